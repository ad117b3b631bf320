"""Runs a test file under Bazel; a `pytest_test` of `defs.bzl` has this as its main program.

Arguments are pytest's. Slow tests are left out unless they ask otherwise
(`--test_arg=-m --test_arg=slow`).
"""

from __future__ import annotations

import os
import sys

import pytest


def arguments_from_environment(environment: dict[str, str]) -> list[str]:
    """What Bazel asks of a test by the environment, as arguments of pytest."""
    arguments = []
    if "TEST_TMPDIR" in environment:
        arguments.append(f"--basetemp={environment['TEST_TMPDIR']}/pytest")
    if "TESTBRIDGE_TEST_ONLY" in environment:  # --test_filter
        arguments.append(f"-k={environment['TESTBRIDGE_TEST_ONLY']}")
    if "XML_OUTPUT_FILE" in environment:
        arguments.append(f"--junitxml={environment['XML_OUTPUT_FILE']}")
    return arguments


def main(arguments: list[str]) -> int:
    """Runs pytest; returns the exit code."""
    scratch = os.environ.get("TEST_TMPDIR")
    if scratch:  # the directory of the sources is not to be written to
        os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = scratch
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{scratch}/hypothesis"
    from_bazel = arguments_from_environment(dict(os.environ))
    code = pytest.main(["-p", "no:cacheprovider", "-m", "not slow", *from_bazel, *arguments])
    # A file may have slow tests only, or none of them; a file with errors has another code.
    return 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
