"""A finished run, which the tests of this folder look at."""

import contextlib
import fcntl
import io

import pytest

from nvae_tf.runs.workdir import Workdir
from tests.conftest import tiny_experiment_config
from trainers.run.experiment import train
from trainers.run.step_profile import StepRange


@pytest.fixture(scope="session")
def finished_and_printed(tmp_path_factory, worker_id):
    """The workdir of a tiny run of four steps, and all that it printed."""
    directory = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        directory = directory.parent  # one run for all processes of pytest-xdist
    workdir, log = Workdir(directory / "finished"), directory / "finished.log"
    with open(directory / "finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                train(tiny_experiment_config(), workdir, profile_steps=StepRange(2, 3))
            log.write_text(printed.getvalue())
    return workdir, log.read_text()


@pytest.fixture(scope="session")
def finished(finished_and_printed):
    """The workdir of a tiny run of four steps; not to be written to."""
    return finished_and_printed[0]
