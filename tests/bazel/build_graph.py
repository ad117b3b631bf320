"""What the BUILD files say of the dependencies, and what the sources import.

BUILD files are read as Python, of whose syntax theirs is a part; nothing of them is run.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("benchmarks", "examples", "export", "nvae_tf", "tests", "trainers")  # top level
RULES = ("py_library", "py_binary", "pytest_test")

# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl_py",
    "cleanfid": "clean_fid",
    "fontTools": "fonttools",
    "google": "protobuf",  # google.protobuf
    "grpc": "grpcio",
    "tensorflow_serving": "tensorflow_serving_api",
    "yaml": "pyyaml",
}
# What a distribution imports without asking for it.
UNDECLARED = {"tensorflow_datasets": "importlib_resources"}
# TFX's libraries are for glibc 2.39 or newer, and need older ones than the lock holds. What
# runs a compiled step is for machines that have JAX and no TensorFlow.
NOT_LOCKED = {
    "ai_edge_litert",
    "jax",
    "jaxlib",
    "kfp",
    "kubernetes",
    "kubernetes_validate",
    "onnx",
    "onnxruntime",
    "openvino",
    "pytriton",
    "sklearn",
    "tf2onnx",
    "tfx",
    "tfx_bsl",
    "tritonclient",
}

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclasses.dataclass(frozen=True)
class Target:
    """A rule of a BUILD file that has Python sources."""

    label: str  # "//nvae_tf:model"
    rule: str  # one of RULES
    sources: tuple[str, ...]  # paths from the root of the repository
    dependencies: tuple[str, ...]  # absolute labels, those of every branch of a select
    visibility: tuple[str, ...] = ("//visibility:private",)  # "//tests:__subpackages__"

    @property
    def package(self) -> str:
        """The path of its directory from the root."""
        return self.label.removeprefix("//").partition(":")[0]

    def is_visible_from(self, package: str) -> bool:
        """Whether targets of a package may depend on it."""
        above = package.split("/")
        prefixes = ["/".join(above[:depth]) for depth in range(1, len(above) + 1)]
        allowed = {
            "//visibility:public",
            f"//{package}:__pkg__",
            *(f"//{prefix}:__subpackages__" for prefix in prefixes),
        }
        groups = package_groups()
        said = {label for entry in self.visibility for label in groups.get(entry, [entry])}
        return package == self.package or bool(allowed & said)


def build_files() -> list[pathlib.Path]:
    """Every BUILD file of the repository."""
    nested = (path for package in PACKAGES for path in (ROOT / package).rglob("BUILD"))
    return [ROOT / "BUILD", *sorted(nested)]


def python_files() -> list[str]:
    """The Python sources which belong to a target, as paths from the root."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def absolute_label(label: str, package: str) -> str:
    """The label with the name of its package and of its target, as seen from a package."""
    if label.startswith("@"):
        return label
    if label.startswith(":"):
        return f"//{package}{label}"
    if not label.startswith("//"):
        raise ValueError(f"a label starts with '@', '//' or ':'; {label!r} of {package} does not")
    return label if ":" in label else f"{label}:{label.rpartition('/')[2]}"


def _strings(node: ast.expr) -> list[str]:
    """The strings of a list, of a sum of lists, or of all branches of a select."""
    if isinstance(node, ast.List):
        return [ast.literal_eval(item) for item in node.elts]
    if isinstance(node, ast.BinOp):
        return _strings(node.left) + _strings(node.right)
    if isinstance(node, ast.Call) and isinstance(node.args[0], ast.Dict):
        return [text for branch in node.args[0].values for text in _strings(branch)]
    raise ValueError(f"not a list of strings: {ast.unparse(node)}")


def rules(text: str) -> list[tuple[str, dict[str, ast.expr]]]:
    """The calls of a BUILD file: their names and keyword arguments."""
    calls = [node.value for node in ast.parse(text).body if isinstance(node, ast.Expr)]
    return [
        (ast.unparse(call.func), {word.arg or "": word.value for word in call.keywords})
        for call in calls
        if isinstance(call, ast.Call)
    ]


@functools.cache
def package_groups() -> dict[str, list[str]]:
    """The package groups of the root: by label, the packages in the form of a visibility."""
    calls = rules((ROOT / "BUILD").read_text(encoding="utf-8"))
    return {
        f"//:{ast.literal_eval(arguments['name'])}": [
            package.replace("/...", ":__subpackages__")
            for package in _strings(arguments["packages"])
        ]
        for rule, arguments in calls
        if rule == "package_group"
    }


def read_targets(text: str, package: str) -> list[Target]:
    """The Python targets of a BUILD file.

    Args:
      text: of the file.
      package: path of its directory from the root.
    """
    targets = []
    default = ast.List([ast.Constant("//visibility:private")])
    for rule, arguments in rules(text):
        if rule == "package":
            default = arguments.get("default_visibility", default)
        if rule in RULES:
            name = ast.literal_eval(arguments["name"])
            sources = _strings(arguments.get("srcs", ast.List([])))
            labels = _strings(arguments.get("deps", ast.List([])))
            targets.append(
                Target(
                    label=f"//{package}:{name}",
                    rule=rule,
                    sources=tuple(f"{package}/{source}" for source in sources),
                    dependencies=tuple(absolute_label(label, package) for label in labels),
                    visibility=tuple(_strings(arguments.get("visibility", default))),
                )
            )
    return targets


def all_targets() -> list[Target]:
    """The Python targets of the repository."""
    return [
        target
        for path in build_files()
        for target in read_targets(
            path.read_text(encoding="utf-8"), path.parent.relative_to(ROOT).as_posix()
        )
    ]


def data_files() -> set[str]:
    """Files of the packages that a target has as data or in a group, as paths from the root."""
    found = set()
    for path in build_files():
        for rule, arguments in rules(path.read_text(encoding="utf-8")):
            listed = arguments.get("srcs" if rule == "filegroup" else "data", ast.List([]))
            patterns = _strings(listed.args[0] if isinstance(listed, ast.Call) else listed)
            for pattern in patterns:
                if not pattern.startswith(("//", ":", "@")):
                    files = path.parent.glob(pattern)
                    found |= {file.relative_to(ROOT).as_posix() for file in files}
    return found


def locked_distributions() -> set[str]:
    """Names in `requirements_lock.txt`, as the labels of the pip hub spell them."""
    text = (ROOT / "requirements_lock.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "_", name).lower() for name in names}


@functools.cache
def _file_of(module: str) -> str | None:
    path = module.replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


@functools.cache
def _names_of_package(file: str) -> set[str]:
    """Names that an `__init__.py` imports from elsewhere, other than modules."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if _file_of(f"{node.module}.{alias.name}") is None
    }


def module_of(name: str) -> str | None:
    """The source that an imported name is in: that of a module, or of the module it is a name of.

    A package may have a function with the name of one of its modules; the import gives that.
    """
    package = name.rpartition(".")[0]
    around = _file_of(package) or ""
    if around.endswith("/__init__.py") and name.rpartition(".")[2] in _names_of_package(around):
        return around
    while name and _file_of(name) is None:
        name = name.rpartition(".")[0]
    return _file_of(name)


def imported_names(tree: ast.AST) -> set[str]:
    """Dotted names that a source imports, wherever in it; those of strings, too.

    `from a import b` gives "a.b". A string is taken for a module where it is dotted ("-m
    trainers.train", `import_module`), or what `importorskip` asks for.
    """
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            names |= imported_names(ast.Module(node.orelse, []))
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"a relative import: {ast.unparse(node)}")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("importorskip"):
            names.update(str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.update([node.value] if _DOTTED.fullmatch(node.value) else [])
        names |= imported_names(node)
    return names


def _distribution(module: str, known: set[str]) -> str | None:
    """The distribution of a module, or None if it is no such module."""
    top = module.partition(".")[0]
    name = DISTRIBUTIONS.get(top, top.lower())
    return None if top in sys.stdlib_module_names or name not in known else name


def expected_dependencies(source: str, label_of: dict[str, str], locked: set[str]) -> set[str]:
    """The labels of what a source imports.

    Args:
      source: path from the root.
      label_of: from the path of each source to the label of its target.
      locked: names of the pip hub.

    Raises:
      ValueError: if it imports something that is neither here nor in the lock.
    """
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    statements = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_names(ast.Module([node], []))
    }
    found = set()
    for name in imported_names(tree):
        top = name.partition(".")[0]
        if top in PACKAGES:
            file = module_of(name)
            own_package = pathlib.PurePath(file or "").parent in pathlib.PurePath(source).parents
            in_own = own_package and pathlib.PurePath(file or "").name == "__init__.py"
            if file is not None and (name in statements or not in_own):
                found.add(label_of[file])
        elif distribution := _distribution(name, locked):
            found.add(f"@pip//{distribution}")
            if distribution in UNDECLARED:
                found.add(f"@pip//{UNDECLARED[distribution]}")
        elif name in statements and top not in sys.stdlib_module_names | NOT_LOCKED:
            raise ValueError(f"{source} imports {name}, which the lock file does not have")
    return (found | _loaded_by_pytest(source, label_of)) - {label_of[source]}


def _loaded_by_pytest(source: str, label_of: dict[str, str]) -> set[str]:
    """What pytest brings without an import: each conftest.py on the way to a test, and plugins.

    Those of all tests come with the main program.
    """
    if source == "tests/bazel/pytest_main.py":
        return {label_of["tests/conftest.py"], "@pip//pytest_xdist"}  # the fixture worker_id
    path = pathlib.PurePath(source)
    if not path.match("test_*.py"):
        return set()
    above = [parent for parent in path.parents if parent.parts[:1] == ("tests",)]
    files = [f"{parent}/conftest.py" for parent in above if parent.parts[1:]]
    return {label_of[file] for file in files if file in label_of}
