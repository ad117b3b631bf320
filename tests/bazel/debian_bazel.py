"""A workspace that Debian's Bazel 4.2 can build without a network.

That Bazel knows no modules, and rules_python is no Debian package. The repositories that
`MODULE.bazel` and Bazel itself would fetch are overridden: by Debian's packages, or by native rules
behind the same names. The targets of the pip hub are empty; packages come from the environment of
the interpreter.

`python -m tests.bazel.debian_bazel test //tests/...` runs all tests so.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tempfile

from tests.bazel.build_graph import PACKAGES, ROOT, locked_distributions

# Debian package, repository, path.
_DEBIAN = [
    ("bazel-skylib", "bazel_skylib", "/usr/share/bazel/tools/skylib"),
    ("bazel-platforms", "platforms", "/usr/share/bazel/tools/platforms"),
    ("bazel-rules-java", "rules_java", "/usr/share/bazel/rules/java"),
]
_BAZEL = "/usr/bin/bazel"

_WORKSPACE = """
workspace(name = "nvae_tf")
register_toolchains("//interpreter:toolchain")
"""

_INTERPRETER = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")
py_runtime(name = "runtime", interpreter_path = "{python}", python_version = "PY3")
py_runtime_pair(name = "pair", py3_runtime = ":runtime")
toolchain(
    name = "toolchain",
    toolchain = ":pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

_PYTHON_RULES = """
py_binary = native.py_binary
py_library = native.py_library
py_test = native.py_test
"""

_C_RULES = """
cc_binary = native.cc_binary
cc_import = native.cc_import
cc_library = native.cc_library
cc_proto_library = native.cc_proto_library
cc_test = native.cc_test
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
fdo_prefetch_hints = native.fdo_prefetch_hints
fdo_profile = native.fdo_profile
objc_import = native.objc_import
objc_library = native.objc_library
"""

_HUB_TARGET = """
py_library(name = "{name}", visibility = ["//visibility:public"])
"""

_COVERAGE_TARGETS = """
filegroup(name = "coverage_report_generator", visibility = ["//visibility:public"])
filegroup(name = "lcov_merger", visibility = ["//visibility:public"])
"""


def missing_packages() -> list[str]:
    """The Debian packages that are not installed, of those that this needs."""
    paths = {package: path for package, _, path in _DEBIAN}
    paths["bazel-bootstrap"] = "/usr/share/bazel/A-server.jar"  # another Bazel will not do
    return [package for package, path in paths.items() if not pathlib.Path(path).exists()]


def write_workspace(directory: pathlib.Path) -> list[str]:
    """Copies the sources into a directory, with all that they need beside them.

    Args:
      directory: a new one, which gets the folders `workspace` and `repositories`.

    Returns:
      The options that `bazel build` and `bazel test` need for it.
    """
    workspace = directory / "workspace"
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, workspace / name, ignore=ignored)
    for name in (".bazelrc", "BUILD", "pyproject.toml"):
        shutil.copy(ROOT / name, workspace / name)
    _write(workspace, {"WORKSPACE": _WORKSPACE})
    _write(workspace, {"interpreter/BUILD": _INTERPRETER.format(python=sys.executable)})

    repositories = {
        "pip": {f"{name}/BUILD": _HUB_TARGET.format(name=name) for name in locked_distributions()},
        "remote_coverage_tools": {"BUILD": _COVERAGE_TARGETS},
        "rules_cc": {"cc/BUILD": "", "cc/defs.bzl": _C_RULES},
        "rules_python": {"python/BUILD": "", "python/defs.bzl": _PYTHON_RULES},
    }
    for name, files in repositories.items():
        _write(directory / "repositories" / name, {"WORKSPACE": "", **files})
    paths = {name: path for _, name, path in _DEBIAN}
    paths |= {name: str(directory / "repositories" / name) for name in repositories}
    overrides = [f"--override_repository={name}={path}" for name, path in paths.items()]
    return [*overrides, "--nosandbox_debug"]  # which Debian's configuration asks for


def bazel(directory: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Bazel in the workspace of `write_workspace`; returns its output in one text."""
    options = ["--nohome_rc", f"--output_user_root={directory / 'output'}"]
    return subprocess.run(
        [_BAZEL, *options, *arguments],
        cwd=directory / "workspace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def main(arguments: list[str]) -> None:
    """`bazel` with the arguments, which start with a command, in a temporary workspace."""
    if not arguments or arguments[0] not in ("build", "query", "test"):
        raise SystemExit(f"usage: debian_bazel build|query|test ...; received {arguments}")
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        options = write_workspace(directory)
        try:
            result = bazel(directory, arguments[0], *options, *arguments[1:])
        finally:
            bazel(directory, "shutdown")
    print(result.stdout)
    sys.exit(result.returncode)


def _write(directory: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
