"""Steps in XLA's own form: JAX takes those that TensorFlow takes, and what it trains is a run."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.step_modules import METRICS, steps, write
from nvae_tf.model.compilation import compiled
from nvae_tf.runs.load import load_model
from nvae_tf.runs.workdir import Workdir
from tests.conftest import small_experiment_config
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer

ROOT = pathlib.Path(__file__).parents[1]
needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is not installed"
)

SMALL = (
    "--preset=quickstart",
    "--config.model.num_groups_per_scale=1",
    "--config.model.min_groups_per_scale=1",
    "--config.model.num_latent_scales=1",
    "--config.model.num_channels_enc=4",
    "--config.model.num_channels_dec=4",
)


def run(program, *arguments):
    command = [sys.executable, "-m", f"benchmarks.{program}", *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_several_steps_in_one_call_are_those_of_the_trainer():
    config = small_experiment_config(steps=100)
    shape = (2, config.train.global_batch_size, *config.model.content_shape)
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    trainer, other = (
        Trainer(config, make_strategy("one_device"), num_images=100) for _ in range(2)
    )
    together = tf.function(steps(trainer, 2), autograph=False)(tf.constant(images))
    apart = [other.step(iter([tf.constant(batch)])) for batch in images]
    for name in ("loss", "negative_elbo", "kl"):
        mean = np.mean([getattr(metrics.batch, name) for metrics in apart])
        np.testing.assert_allclose(together[METRICS.index(name)], mean, rtol=1e-5)
    assert trainer.state.steps_done == other.state.steps_done == 2


@pytest.mark.slow
def test_a_failure_leaves_no_half_of_the_files(tmp_path):
    """The first file is larger than the system allows here."""
    command = [sys.executable, "-m", "benchmarks.compiled_step", *SMALL]
    limited = ["bash", "-c", 'ulimit -f 1 && exec "$@"', "bash", *command]
    limited.append(f"--output={tmp_path / 'steps'}")
    ended = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "File too large" in ended.stderr
    assert not os.listdir(tmp_path)


@pytest.mark.slow
@needs_jax
def test_jax_takes_the_steps_of_tensorflow(tmp_path):
    config = small_experiment_config(steps=100).override({"train.jit_compile": "step"})
    trainer = Trainer(config, make_strategy("one_device"), num_images=100)
    write(trainer, str(tmp_path), steps_per_call=2)
    printed = json.loads(run("run_compiled_step", tmp_path, "--calls=3").splitlines()[-1])
    shape = (2, config.train.global_batch_size, *config.model.content_shape)
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    step = compiled(steps(trainer, 2))
    expected = [step(tf.constant(images)).numpy() for _ in range(4)]
    for ours, theirs in ((printed["first"], expected[0]), (printed["last"], expected[-1])):
        np.testing.assert_allclose([ours[name] for name in METRICS], theirs, rtol=1e-4)
    assert trainer.state.steps_done == 8


@pytest.mark.slow
@needs_jax
def test_what_jax_has_trained_is_a_run(tmp_path):
    changes = [*SMALL, "--config.train.steps=4", "--config.train.global_batch_size=4"]
    written, trained, workdir = tmp_path / "steps", tmp_path / "trained", tmp_path / "run"
    run("compiled_step", *changes, "--images", "--steps_per_call=2",
        "--draws=2", f"--output={written}")  # fmt: skip
    run("train_compiled_step", written, trained, "--draws=4", "--bound_seconds=1", "--log_every=1")
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4]
    bound = json.loads((trained / "bound.json").read_text())
    assert bound["draws"] == 4 and bound["iw_bound"] < bound["negative_elbo"]
    run("read_compiled_state", f"--steps={written}", f"--trained={trained}", f"--workdir={workdir}")
    assert Workdir(str(workdir)).latest_checkpoint().endswith("4")
    with np.load(trained / "weights.npz") as weights, np.load(written / "state.npz") as before:
        assert any(
            np.any(weights[name] != before[name]) for name in weights.files if name != "steps"
        )
    assert np.all(np.isfinite(load_model(str(workdir)).image_head.bias))
