"""The BUILD files name what the sources import, no less and no more."""

import ast
import collections
import graphlib
import re

import pytest

from tests.bazel import build_graph
from tests.bazel.build_graph import ROOT, absolute_label, build_files, read_targets, rules

TARGETS = build_graph.all_targets()
LABEL_OF = {source: target.label for target in TARGETS for source in target.sources}
LOCKED = build_graph.locked_distributions()


def difference(target):
    """(missing, superfluous) dependencies of a target."""
    needed = set()
    for source in target.sources:
        needed |= build_graph.expected_dependencies(source, LABEL_OF, LOCKED)
    needed.discard(target.label)
    return needed - set(target.dependencies), set(target.dependencies) - needed


@pytest.mark.parametrize("package", sorted({target.package for target in TARGETS}))
def test_dependencies_are_what_the_sources_import(package):
    targets = [target for target in TARGETS if target.package == package]
    found = {target.label: difference(target) for target in targets}
    wrong = {label: both for label, both in found.items() if any(both)}
    assert not wrong, "label: ({missing}, {superfluous})"


def test_every_source_belongs_to_one_target():
    counts = collections.Counter(source for target in TARGETS for source in target.sources)
    assert set(counts.values()) == {1}
    assert sorted(counts) == build_graph.python_files()
    assert all(target.sources for target in TARGETS)


def test_every_other_file_is_data_of_a_target():
    others = {
        path.relative_to(ROOT).as_posix()
        for package in build_graph.PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.name != "BUILD" and path.suffix not in (".py", ".pyc", ".bzl")
    }
    assert others <= build_graph.data_files()
    assert "nvae_tf/data/embedded/t10k-images-idx3-ubyte.gz" in others


def test_every_dependency_may_be_seen():
    by_label = {target.label: target for target in TARGETS}
    for target in TARGETS:
        for label in set(target.dependencies) & set(by_label):
            assert by_label[label].is_visible_from(target.package), f"{label} from {target.label}"


@pytest.mark.parametrize(
    ("visibility", "package", "visible"),
    [
        ("//visibility:private", "export", True),
        ("//visibility:private", "export/below", False),
        ("//visibility:public", "tests/data", True),
        ("//tests:__subpackages__", "tests", True),
        ("//tests:__subpackages__", "tests/data", True),
        ("//tests:__subpackages__", "testsuite", False),
        ("//:programs", "trainers/run", True),
        ("//:programs", "nvae_tf/model", False),
        ("//tests:__pkg__", "tests", True),
        ("//tests:__pkg__", "tests/data", False),
    ],
)
def test_visibility_is_bazel_s(visibility, package, visible):
    target = build_graph.Target("//export:x", "py_library", (), (), (visibility,))
    assert target.is_visible_from(package) == visible


def test_what_the_tests_of_bazel_name_is_there():
    text = (ROOT / "tests/bazel/test_bazel.py").read_text(encoding="utf-8")
    labels = set(re.findall(r"//[\w/]+:\w+", text))
    packages = re.findall(r"//([\w/]+)/\.\.\.", text) + re.findall(r'edited\("([\w/]+)"', text)
    assert labels and labels <= {target.label for target in TARGETS}
    assert packages and all((ROOT / package / "BUILD").exists() for package in packages)


def test_no_dependency_is_listed_twice():
    for target in TARGETS:
        assert len(set(target.dependencies)) == len(target.dependencies), target.label


def test_every_label_exists():
    known = {target.label for target in TARGETS} | {f"@pip//{name}" for name in LOCKED}
    for target in TARGETS:
        assert set(target.dependencies) <= known, target.label


def test_there_is_no_cycle():
    edges = {target.label: target.dependencies for target in TARGETS}
    order = list(graphlib.TopologicalSorter(edges).static_order())
    assert order.index("//nvae_tf:config") < order.index("//trainers:train")


def test_only_tests_depend_on_tests():
    for target in TARGETS:
        if not target.label.startswith("//tests"):
            assert not [label for label in target.dependencies if label.startswith("//tests")]


def test_the_rule_is_that_of_the_source():
    for target in TARGETS:
        text = "".join((ROOT / source).read_text(encoding="utf-8") for source in target.sources)
        in_tests = target.label.startswith("//tests")
        if in_tests and target.label.partition(":")[2].startswith("test_"):
            assert target.rule == "pytest_test", target.label
        elif not in_tests and '__name__ == "__main__"' in text:
            assert target.rule == "py_binary", target.label
        else:
            assert target.rule == "py_library", target.label


@pytest.mark.parametrize("path", build_files(), ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_every_package_states_who_may_use_it(path):
    arguments = next(words for rule, words in rules(path.read_text()) if rule == "package")
    visibility = ast.literal_eval(arguments["default_visibility"])
    package = path.parent.relative_to(ROOT).parts[:1]
    expected = {
        "benchmarks": [["//tests:__subpackages__"]],
        "examples": [["//tests:__subpackages__"]],
        "nvae_tf": [["//visibility:public"]],
        "export": [["//:programs"]],
        "trainers": [["//:programs"]],
        "tests": [["//visibility:private"], ["//tests:__subpackages__"]],
    }
    assert visibility in expected.get("".join(package), [["//visibility:private"]])
    assert ("default_testonly" in arguments) == (package == ("tests",))


def test_the_lock_has_hashes_and_names_no_machine():
    text = (ROOT / "requirements_lock.txt").read_text(encoding="utf-8")
    assert not [word for word in ("://", "index-url", "find-links") if word in text]
    entries = [part for part in re.split(r"\n(?=\S)", text) if not part.startswith("#")]
    assert len(entries) == len(LOCKED) > 50  # none with two versions
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)


def test_the_module_pins_what_it_fetches():
    calls = rules((ROOT / "MODULE.bazel").read_text(encoding="utf-8"))
    assert all("version" in words for rule, words in calls if rule == "bazel_dep")
    words = {
        rule: {name: ast.literal_eval(value) for name, value in arguments.items()}
        for rule, arguments in calls
        if rule in ("module", "pip.parse", "python.toolchain")
    }
    hub = words["pip.parse"]
    assert hub["hub_name"] == "pip"
    assert (ROOT / hub["requirements_lock"].removeprefix("//:")).is_file()
    assert hub["python_version"] == words["python.toolchain"]["python_version"]
    assert f'version="{words["module"]["version"]}"' in (ROOT / "setup.py").read_text()


# The check itself, on targets that are wrong.


def changed(label, change):
    """What `difference` says of a target with other dependencies."""
    target = next(target for target in TARGETS if target.label == label)
    path = ROOT / target.package / "BUILD"
    text = change(path.read_text(encoding="utf-8"))
    assert text != path.read_text(encoding="utf-8")
    again = next(t for t in read_targets(text, target.package) if t.label == target.label)
    return difference(again)


def test_a_missing_dependency_is_noticed():
    missing, superfluous = changed(
        "//nvae_tf:config", lambda text: text.replace('        ":architectures",\n', "")
    )
    assert (missing, superfluous) == ({"//nvae_tf:architectures"}, set())


def test_a_superfluous_dependency_is_noticed():
    missing, superfluous = changed(
        "//nvae_tf:config",
        lambda text: text.replace(
            '":architectures",', '":architectures", ":files", "@pip//numpy",'
        ),
    )
    assert (missing, superfluous) == (set(), {"//nvae_tf:files", "@pip//numpy"})


def test_dependencies_of_a_select_are_read():
    missing, _ = changed(
        "//nvae_tf:nvlabs", lambda text: text.replace('"//:with_torch": ["@pip//torch"]', '"x": []')
    )
    assert missing == {"@pip//torch"}


@pytest.mark.parametrize(
    "source, names",
    [
        ("import a.b as c", {"a.b"}),
        ("from a import b, c", {"a.b", "a.c"}),
        ("def f():\n  import a", {"a"}),
        ("if TYPE_CHECKING:\n  import a\nelse:\n  import b", {"b"}),
        ("if typing.TYPE_CHECKING:\n  import a", set()),
        ("run(['-m', 'package.module', 'not a.module'])", {"package.module"}),
        ("torch = pytest.importorskip('torch', reason='it is not here')", {"torch"}),
    ],
)
def test_imports_that_are_found(source, names):
    assert build_graph.imported_names(ast.parse(source)) == names


@pytest.mark.parametrize(
    "name, source",
    [
        ("nvae_tf", "nvae_tf/__init__.py"),
        ("nvae_tf NVAE", "nvae_tf/__init__.py"),
        ("nvae_tf presets", "nvae_tf/presets.py"),
        ("nvae_tf model nvae NVAE", "nvae_tf/model/nvae.py"),
        # A function and a module of one name.
        ("nvae_tf evaluation sample_quality", "nvae_tf/evaluation/__init__.py"),
        (
            "nvae_tf evaluation sample_quality sample_quality",
            "nvae_tf/evaluation/sample_quality.py",
        ),
        ("trainers tfx_module run_fn", "trainers/tfx_module.py"),
        ("numpy random", None),
    ],
)
def test_the_source_that_a_name_is_in(name, source):
    # Blanks, as a string with dots would be taken for something that this file imports.
    assert build_graph.module_of(name.replace(" ", ".")) == source


@pytest.mark.parametrize(
    "label, expected",
    [
        (":model", "//nvae_tf:model"),
        ("//nvae_tf", "//nvae_tf:nvae_tf"),
        ("//nvae_tf/layers:cells", "//nvae_tf/layers:cells"),
        ("@pip//numpy", "@pip//numpy"),
    ],
)
def test_labels_are_made_absolute(label, expected):
    assert absolute_label(label, "nvae_tf") == expected


def test_a_bare_name_is_no_label():
    with pytest.raises(ValueError, match="'model' of nvae_tf does not"):
        absolute_label("model", "nvae_tf")
