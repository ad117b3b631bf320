"""Bazel's own view of the build graph, on Debian's Bazel 4.2; see `debian_bazel.py`."""

import contextlib
import pathlib
import re

import pytest

from tests.bazel.debian_bazel import bazel, missing_packages, write_workspace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing_packages()), reason=f"needs the Debian packages {missing_packages()}"
    ),
]
# Of every kind (data files, helpers, a conftest of a folder, torch), and the quickest.
TESTS = [
    "//tests:test_config",
    "//tests:test_files",
    "//tests/training:test_optimizer",
    "//tests/data/...",
    "//tests/model/distributions/...",
    "//tests/evaluation:test_feature_distances",
    "//tests/export:test_request_tensors",
    "//tests/export:test_serving_files",
    "//tests/trainers/run:test_guard",
]


class Workspace:
    """A copy of the repository which Bazel works in."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.options = write_workspace(directory)

    def run(self, command, *arguments):
        """Exit code and output."""
        result = bazel(self.directory, command, *self.options, *arguments)
        return result.returncode, result.stdout

    @contextlib.contextmanager
    def edited(self, package, old, new):
        """With a text of a BUILD file replaced."""
        path = self.directory / "workspace" / package / "BUILD"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        yield
        path.write_text(text)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bazel")
    yield Workspace(directory)
    bazel(directory, "shutdown")


@pytest.mark.parametrize("configuration", [[], ["--config=torch"]])
def test_every_target_builds(workspace, configuration):
    code, output = workspace.run("build", *configuration, "//...")
    assert code == 0, output
    assert "Build completed successfully" in output


def test_every_test_finds_what_it_imports(workspace):
    """All are collected, which imports them; a test without what it needs is an error."""
    code, output = workspace.run(
        "test", "--config=torch", "--local_test_jobs=2", "--test_arg=--collect-only", "//tests/..."
    )
    assert code == 0, output
    assert len(re.findall(r"^//\S+ +PASSED", output, re.MULTILINE)) > 40


def test_tests_pass_with_nothing_but_their_dependencies(workspace):
    code, output = workspace.run("test", "--config=torch", "--local_test_jobs=2", *TESTS)
    assert code == 0, output
    passed = re.findall(r"^(//\S+) +PASSED", output, re.MULTILINE)
    assert len(passed) >= len(TESTS)


def test_slow_tests_are_run_where_they_are_asked_for(workspace):
    code, output = workspace.run(
        "test",
        "--config=slow",
        "--test_arg=--collect-only",
        "--test_output=all",
        "//tests/model:test_nvae",
    )
    assert code == 0, output
    collected, deselected = map(int, re.search(r"(\d+)/\d+ tests.*?(\d+) desel", output).groups())
    assert collected and deselected


def test_a_missing_dependency_is_an_error(workspace):
    with workspace.edited("nvae_tf/model/layers", '        ":depthwise",\n', ""):
        code, output = workspace.run("test", "//tests/training:test_regularization")
    assert code != 0
    assert "No module named 'nvae_tf.model.layers.depthwise'" in output


def test_the_library_cannot_depend_on_a_program(workspace):
    config = '        ":architectures",\n'
    with workspace.edited("nvae_tf", config, f'{config}        "//trainers/run:signals",\n'):
        code, output = workspace.run("build", "//nvae_tf:config")
    assert code != 0
    assert "'//trainers/run:signals' is not visible from target '//nvae_tf:config'" in output
