"""What checkpoints hold, which are kept, and how a run comes back from a divergence."""

import os

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.runs.workdir import Workdir
from tests.conftest import random_images, small_experiment_config
from trainers.run import experiment
from trainers.run import trainer as loop
from trainers.run.checkpoints import Checkpointer
from trainers.run.experiment import train
from trainers.run.strategies import make_strategy
from trainers.run.trainer import DivergedError, Trainer

CONFIG = small_experiment_config(keep_checkpoints=2).override({"optimizer.ema_decay": 0.5})


def make(workdir, config=CONFIG):
    trainer = Trainer(config, make_strategy("auto"), num_images=100)
    return trainer, Checkpointer(trainer, workdir)


def run(trainer, steps):
    images = random_images(trainer.config.model, 4 * steps)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(4)
    iterator = iter(trainer.distribute(dataset))
    for _ in range(steps):
        trainer.step(iterator)


def everything(trainer):
    modules = (trainer.weights, trainer.moving_averages, trainer.average, trainer.optimizer)
    modules += (trainer.regularizer, trainer.guard)
    values = [v.numpy() for module in modules for v in module.variables]
    return [*values, trainer.steps_done.numpy()]


def test_a_checkpoint_holds_everything(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config(CONFIG)
    trainer, checkpointer = make(workdir)
    run(trainer, 2)
    trainer.guard.skipped.assign(7)
    trainer.guard.note_rollback(1)
    checkpointer.save()
    restored, other = make(workdir)
    assert other.restore()
    for a, b in zip(everything(restored), everything(trainer)):
        np.testing.assert_array_equal(a, b)
    # Evaluations get the average.
    model = nvae_tf.load_model(tmp_path)
    trainer.store_average()
    for a, b in zip(model.variables, trainer.model.variables):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    trainer.store()
    assert np.any(model.stem.kernel.numpy() != trainer.model.stem.kernel.numpy())


def test_the_newest_and_the_best_are_kept(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config(CONFIG)
    trainer, checkpointer = make(workdir)
    for step, negative_elbo in enumerate((5.0, 6.0, 4.0, 3.0)):
        trainer.steps_done.assign(step)
        checkpointer.save()
        checkpointer.save_if_best(negative_elbo)
    names = {name for name in os.listdir(workdir.checkpoints) if name.endswith(".index")}
    assert names == {"ckpt-2.index", "ckpt-3.index"}
    assert workdir.checkpoint("best").endswith("best/ckpt-3")
    nvae_tf.load_model(tmp_path, "best")
    with pytest.raises(ValueError, match="latest or best, received 'last'"):
        nvae_tf.load_model(tmp_path, "last")
    # The record still stands after a restart from a checkpoint that was saved before it was set.
    trainer, checkpointer = make(workdir)
    checkpointer.restore()
    trainer.steps_done.assign(5)
    checkpointer.save_if_best(3.5)
    assert workdir.checkpoint("best").endswith("best/ckpt-3")


def test_what_a_killed_save_leaves_is_removed(tmp_path):
    workdir = Workdir(tmp_path)
    _, checkpointer = make(workdir)
    os.makedirs(f"{workdir.checkpoints}/ckpt-5_temp")
    for name in ("ckpt-5.data-00000-of-00001.tempstate12", "ckpt-4.index"):
        (tmp_path / "checkpoints" / name).touch()
    checkpointer.clear_leftovers()
    assert os.listdir(workdir.checkpoints) == ["ckpt-4.index"]


def poison(monkeypatch, steps):
    """Makes the loss of these steps NaN, unless the learning rate was lowered."""
    terms, held = loop.objective_terms, {}
    start = Trainer.__init__

    def init(self, *args):
        start(self, *args)
        held["trainer"] = self

    def poisoned(*args):
        result = terms(*args)
        trainer = held["trainer"]
        bad = tf.reduce_any(tf.equal(trainer.steps_done, tf.constant(steps, tf.int64)))
        bad = tf.logical_and(bad, trainer.guard.learning_rate_factor > 0.3)
        factor = tf.where(bad, np.nan, 1.0)
        return result._replace(reconstruction=result.reconstruction * factor)

    monkeypatch.setattr(Trainer, "__init__", init)
    monkeypatch.setattr(loop, "objective_terms", poisoned)
    monkeypatch.setattr(loop, "_NOT_FINITE_LIMIT", 1)
    return held


@pytest.mark.slow
def test_a_diverging_run_goes_back_and_learns_more_slowly(tmp_path, monkeypatch, capsys):
    held = poison(monkeypatch, [3])
    train(small_experiment_config(steps=5), Workdir(tmp_path / "run"))
    printed = capsys.readouterr().out
    assert "Back to step 2, with 0.5 times the learning rate (rollback 1 of 3)" in printed
    assert "Back to step 2, with 0.25 times the learning rate (rollback 2 of 3)" in printed
    assert "Finished" in printed and "rollback 3" not in printed
    guard = held["trainer"].guard
    assert int(guard.rollbacks) == 2 and float(guard.learning_rate_factor) == 0.25


@pytest.mark.slow
def test_a_run_that_diverges_again_and_again_ends_with_advice(tmp_path, monkeypatch):
    poison(monkeypatch, [3])
    config = small_experiment_config(steps=5, max_rollbacks=1)
    with pytest.raises(DivergedError, match=r"1 rollback\(s\) did not help.*learning_rate"):
        train(config, Workdir(tmp_path / "run"))
    model = nvae_tf.load_model(tmp_path / "run")
    assert all(np.all(np.isfinite(v.numpy())) for v in model.variables)


def test_a_stop_request_ends_the_run_with_a_checkpoint(tmp_path, monkeypatch, capsys):
    class AlreadyAsked(experiment.StopRequest):
        def __enter__(self):
            super().__enter__()
            self.name = "SIGTERM"
            return self

    monkeypatch.setattr(experiment, "StopRequest", AlreadyAsked)
    workdir = Workdir(tmp_path / "run")
    train(small_experiment_config(checkpoint_every=4), workdir)
    assert "Stopped after step 1. The same command goes on" in capsys.readouterr().out
    assert workdir.latest_checkpoint().endswith("-1")
    assert not os.path.exists(workdir.evaluation)
