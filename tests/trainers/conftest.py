"""A finished run, which the tests of this folder look at."""

import pytest

from nvae_tf.workdir import Workdir
from tests.conftest import tiny_experiment_config
from trainers.experiment import train


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of a tiny run of four steps; not to be written to."""
    workdir = Workdir(tmp_path_factory.mktemp("finished") / "run")
    train(tiny_experiment_config(), workdir)
    return workdir
