"""A finished run, which the tests of this folder look at."""

import contextlib
import io

import pytest

from nvae_tf.workdir import Workdir
from tests.conftest import tiny_experiment_config
from trainers.experiment import train
from trainers.profile import StepRange


@pytest.fixture(scope="session")
def finished_and_printed(tmp_path_factory):
    """The workdir of a tiny run of four steps, and all that it printed."""
    workdir = Workdir(tmp_path_factory.mktemp("finished") / "run")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        train(tiny_experiment_config(), workdir, profile_steps=StepRange(2, 3))
    return workdir, printed.getvalue()


@pytest.fixture(scope="session")
def finished(finished_and_printed):
    """The workdir of a tiny run of four steps; not to be written to."""
    return finished_and_printed[0]
