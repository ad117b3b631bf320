"""Tests in pytest's style."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_test(name, srcs, deps, data = [], **kwargs):
    """A py_test which runs one file with pytest.

    Args:
      name: of the target.
      srcs: the file with the tests.
      deps: what the file imports.
      data: files that the tests read, besides pytest's configuration.
      **kwargs: passed on to py_test.
    """
    if len(srcs) != 1:
        fail("pytest_test runs one file; received {}".format(srcs))
    py_test(
        name = name,
        srcs = srcs + ["//tests/bazel:pytest_main.py"],
        args = ["$(rootpath {})".format(srcs[0])],
        data = data + ["//:pyproject.toml"],
        main = "//tests/bazel:pytest_main.py",
        deps = deps + ["//tests/bazel:pytest_main"],
        **kwargs
    )
