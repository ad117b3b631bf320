"""Any command line ends in a run, or in one clear line."""

import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvae_tf.config import ExperimentConfig
from tests.conftest import tiny_experiment_config
from tests.trainers.programs import Program

LONGEST = 240  # seconds, on a busy machine
DEFAULTS = ExperimentConfig().flat()
TINY = {k: v for k, v in tiny_experiment_config().flat().items() if v != DEFAULTS[k]}
VALUES = (
    *(
        "",
        "nan",
        "inf",
        "-inf",
        "1e309",
        "-1",
        "0",
        "1",
        "2",
        "3",
        "7",
        "0.5",
        "99999999999999",
        str(2**64),
    ),
    *("true", "None", "x", "()", "(1,)", "(8,8,1)", "(0,0,0)", "[]", "{}", "\x1b[2J", "/dev/null"),
    *("fashion_mnist_embedded", "mnist:9.9.9", "bernoulli", "float32", "res_mbconv", "a" * 300),
)
# Flags of the programs that use a trained model, and one of each program that they share.
FLAGS = {
    "trainers.sample": ("num_samples", "temperature", "seed", "batch_size", "pixels", "output"),
    "trainers.evaluate": (
        *("split", "num_images", "num_iw_samples", "num_hierarchy_images", "seed", "batch_size"),
        *("num_samples", "temperature", "features", "per_image", "output", "config.data.data_dir"),
    ),
    "trainers.latents": (
        *("mode", "images", "seeds", "groups", "channels", "keep_groups", "steps", "deviations"),
        *("temperature", "output", "config.data.name", "config.data.crop"),
    ),
    "trainers.detect": (
        *("num_images", "num_iw_samples", "validation_fraction", "seed", "batch_size", "output"),
        *("config.data.data_dir", "novel.name", "novel.crop"),
    ),
    "trainers.model_card": ("output", "checkpoint"),
    "trainers.save_preset": ("output", "mantissa_bits"),
    "export.export_model": ("export_base", "keep_versions", "precision", "checkpoint"),
}


def assert_clear(program, arguments):
    with tempfile.TemporaryDirectory() as directory:
        process = Program(program, *arguments, place=directory)
        _, err = process.communicate(LONGEST)
    assert "Traceback" not in err, err[-3000:]
    if process.returncode:
        assert process.returncode == 1, (process.returncode, err[-3000:])
        clear = [n for n in err.splitlines() if n.startswith(("Error: ", "FATAL Flags parsing"))]
        assert len(clear) == 1, err[-3000:]


values = st.sampled_from(VALUES)
changes = st.dictionaries(st.sampled_from(sorted(DEFAULTS)), values, min_size=1, max_size=3)
uses = st.sampled_from(sorted(FLAGS)).flatmap(
    lambda program: st.tuples(
        st.just(program),
        st.dictionaries(st.sampled_from(FLAGS[program]), values, min_size=1, max_size=3),
    )
)
few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.slow
@given(changes)
@few
def test_any_configuration_is_trained_or_refused(changed):
    fields = {**TINY, "train.steps": 1, **changed}
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    assert_clear("trainers.train", ["--preset=quickstart", "--workdir=run", *arguments])


@pytest.mark.slow
@given(uses)
@few
def test_any_use_of_a_model_is_a_result_or_refused(finished, used):
    program, flags = used
    outputs = {"export_base" if program.startswith("export") else "output": "x.png"}
    arguments = [f"--{name}={value}" for name, value in (outputs | flags).items()]
    assert_clear(program, [f"--workdir={finished.path}", *arguments])
