"""What checkpoints hold, which are kept, and how a run comes back from a divergence."""

import ast
import glob
import os
import types

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf import NVAE
from nvae_tf.model.stacks import StackedVariables, StackLayout
from nvae_tf.model.towers import Towers
from nvae_tf.runs.checkpoint_files import (
    CheckpointReader,
    checkpoint_step,
    checkpoints,
    write_checkpoint,
)
from nvae_tf.runs.load import save_weights
from nvae_tf.runs.workdir import Workdir
from nvae_tf.training.schedule import Schedule
from tests.conftest import small_experiment_config
from tests.trainers.run.test_trainer import stored_images
from trainers.run import experiment
from trainers.run import step as step_module
from trainers.run import trainer as trainer_module
from trainers.run.checkpoints import Checkpointer
from trainers.run.diagnosis import first_non_finite
from trainers.run.experiment import train
from trainers.run.progress import Progress
from trainers.run.signals import StopRequest
from trainers.run.strategies import make_strategy
from trainers.run.trainer import DivergedError, Trainer

CONFIG = small_experiment_config(keep_checkpoints=2).override({"optimizer.ema_decay": 0.5})


class AlreadyAsked(StopRequest):
    """A request that has come before the first step."""

    def __enter__(self):
        super().__enter__()
        self.name = "SIGTERM"
        return self


def make(workdir, config=CONFIG):
    trainer = Trainer(config, make_strategy("auto"), num_images=100)
    return trainer, Checkpointer(trainer, workdir)


def run(trainer, steps):
    iterator = iter(trainer.batches(stored_images(trainer.config)))
    for _ in range(steps):
        trainer.step(iterator)


def everything(trainer):
    return [variable.numpy() for variable in trainer.state.variables]


def test_a_checkpoint_holds_everything(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config(CONFIG)
    trainer, checkpointer = make(workdir)
    run(trainer, 2)
    trainer.state.guard.skipped.assign(7)
    trainer.state.guard.note_rollback(1)
    checkpointer.save()
    restored, other = make(workdir)
    assert other.restore()
    for a, b in zip(everything(restored), everything(trainer)):
        np.testing.assert_array_equal(a, b)
    # Evaluations get the average.
    model = nvae_tf.load_model(tmp_path)
    averaged = trainer.state.evaluation_values()
    for variable in model.variables:
        np.testing.assert_array_equal(variable.numpy(), averaged[variable.path])
    kernel = model.stem.kernel
    assert np.any(kernel.numpy() != trainer.state.model_values()[kernel.path])


def test_replicas_restore_what_one_device_saved(saved, tmp_path):
    workdir, trainer = saved
    mirrored = Trainer(CONFIG, make_strategy("mirrored"), num_images=100)
    assert mirrored.strategy.num_replicas_in_sync == 2
    assert Checkpointer(mirrored, workdir).restore()
    expected = trainer.state.checkpoint_items()
    for name, value in mirrored.state.checkpoint_items().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    for variable in mirrored.state.weights.stacks:  # on both of them
        np.testing.assert_array_equal(*mirrored.strategy.experimental_local_results(variable))
    other = Workdir(tmp_path)
    Checkpointer(mirrored, other).save()
    assert other.latest_checkpoint().endswith(f"-{trainer.state.steps_done}")


def test_the_newest_and_the_best_are_kept(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config(CONFIG)
    trainer, checkpointer = make(workdir)
    for step, negative_elbo in enumerate((5.0, 6.0, 4.0, 3.0)):
        trainer.state.step.assign(step)
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
    trainer.state.step.assign(5)
    checkpointer.save_if_best(3.5)
    assert workdir.checkpoint("best").endswith("best/ckpt-3")
    # A run that has gone back finds a better one at an earlier step.
    trainer.state.step.assign(1)
    checkpointer.save()
    checkpointer.save_if_best(2.0)
    assert workdir.checkpoint("best").endswith("best/ckpt-1")
    assert workdir.latest_checkpoint().endswith("/ckpt-1")


def test_what_a_killed_save_leaves_is_removed(tmp_path):
    workdir = Workdir(tmp_path)
    _, checkpointer = make(workdir)
    os.makedirs(f"{workdir.checkpoints}/ckpt-5_temp")
    for name in ("ckpt-5.data-00000-of-00001.tempstate12", "ckpt-4.index"):
        (tmp_path / "checkpoints" / name).touch()
    checkpointer.clear_leftovers()
    assert os.listdir(workdir.checkpoints) == ["ckpt-4.index"]


def poison(monkeypatch, steps, limit=1):
    """Makes the loss after these steps NaN, unless the learning rate was lowered twice.

    `limit` steps in a row that are not finite are a divergence then.
    """
    terms, held = step_module.objective_terms, {}
    start = Trainer.__init__

    def init(self, *args):
        start(self, *args)
        held["trainer"] = self

    def poisoned(*args):
        result = terms(*args)
        trainer = held["trainer"]
        bad = tf.reduce_any(tf.equal(trainer.state.step, tf.constant(steps, tf.int64)))
        bad = tf.logical_and(bad, trainer.state.guard.learning_rate_factor > 0.3)
        factor = tf.where(bad, np.nan, 1.0)
        return result._replace(reconstruction=result.reconstruction * factor)

    monkeypatch.setattr(Trainer, "__init__", init)
    monkeypatch.setattr(step_module, "objective_terms", poisoned)
    monkeypatch.setattr(trainer_module, "_NOT_FINITE_LIMIT", limit)
    return held


def saved_steps(workdir):
    return [checkpoint_step(prefix) for prefix in checkpoints(workdir.checkpoints)]


def test_checkpoints_wait_for_finite_steps_and_the_last_one_must_be(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, [1, 3], limit=5)
    monkeypatch.setattr(experiment, "first_non_finite", lambda *_: "No search")
    starts, rates = [], []
    batches, after_step = Trainer.batches, Progress.after_step

    def start(self, images):
        starts.append(self.state.steps_done)
        return batches(self, images)

    def note(self, step, metrics):
        rates.append((step, float(metrics.schedule.learning_rate)))
        after_step(self, step, metrics)

    monkeypatch.setattr(Trainer, "batches", start)
    monkeypatch.setattr(Progress, "after_step", note)
    workdir = Workdir(tmp_path / "run")
    config = small_experiment_config(steps=4, checkpoint_every=2, keep_checkpoints=9)
    config = config.override({"optimizer.warmup_epochs": 0.0})
    train(config, workdir)
    # Step 2 was not finite, nor step 4 before the learning rate was lowered twice.
    assert saved_steps(workdir) == [0, 3, 4]
    assert starts == [0, 3, 3]
    printed = capsys.readouterr().out
    assert "not finite up to step 4. No search. Back to step 3, with 0.5 times" in printed
    assert [step for step, _ in rates] == [1, 2, 3, 4]
    expected = Schedule(config, 9000).at(3)
    assert rates[-1][1] == pytest.approx(0.25 * float(expected.learning_rate), rel=1e-6)


def test_a_stop_among_steps_that_are_not_finite_waits_for_one(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, [1, 2], limit=5)
    monkeypatch.setattr(experiment, "StopRequest", AlreadyAsked)
    workdir = Workdir(tmp_path / "run")
    train(small_experiment_config(steps=6, checkpoint_every=6), workdir)
    assert saved_steps(workdir) == [0, 4]
    assert "Stopped after step 4. The same command goes on" in capsys.readouterr().out


@pytest.mark.slow
def test_a_diverging_run_goes_back_and_learns_more_slowly(tmp_path, monkeypatch, capsys):
    held = poison(monkeypatch, [3])
    searched = []

    def search(trainer, values, step, images):
        searched.append(step)
        restored = trainer.state.model_values()  # of the step before
        assert any(np.any(values[path] != restored[path]) for path in restored)
        return first_non_finite(trainer, values, step, images)

    monkeypatch.setattr(experiment, "first_non_finite", search)
    train(small_experiment_config(steps=5), Workdir(tmp_path / "run"))
    assert searched == [3, 3]  # the step that was poisoned, both times
    printed = capsys.readouterr().out
    assert "Back to step 2, with 0.5 times the learning rate (rollback 1 of 3)" in printed
    assert "Back to step 2, with 0.25 times the learning rate (rollback 2 of 3)" in printed
    assert "Finished" in printed and "rollback 3" not in printed
    guard = held["trainer"].state.guard
    assert int(guard.rollbacks) == 2 and float(guard.learning_rate_factor) == 0.25


@pytest.mark.slow
def test_an_imported_run_goes_back_as_a_whole(tmp_path, monkeypatch, capsys):
    config, workdir = small_experiment_config(steps=4, checkpoint_every=4), Workdir(tmp_path)
    workdir.write_config(config)
    save_weights(NVAE(config.model), workdir)
    held = poison(monkeypatch, [1])
    train(config, workdir)
    printed = capsys.readouterr().out
    assert "Back to step 0, with 0.5 times the learning rate" in printed and "Finished" in printed
    assert int(held["trainer"].state.iterations) == 4


@pytest.mark.slow
def test_a_run_that_diverges_again_and_again_ends_with_advice(tmp_path, monkeypatch):
    poison(monkeypatch, [3])
    config = small_experiment_config(steps=5, max_rollbacks=1)
    with pytest.raises(DivergedError, match=r"1 rollback\(s\) did not help.*learning_rate"):
        train(config, Workdir(tmp_path / "run"))
    model = nvae_tf.load_model(tmp_path / "run")
    assert all(np.all(np.isfinite(v.numpy())) for v in model.variables)


def test_a_stop_request_ends_the_run_with_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "StopRequest", AlreadyAsked)
    workdir = Workdir(tmp_path / "run")
    train(small_experiment_config(checkpoint_every=4), workdir)
    assert "Stopped after step 2. The same command goes on" in capsys.readouterr().out
    assert workdir.latest_checkpoint().endswith("-2")  # a step's metrics are read after the next
    assert not os.path.exists(workdir.evaluation)
    # A request that comes with the last step is one as well.
    train(small_experiment_config(checkpoint_every=4), workdir)
    assert "Stopped after step 4. The same command goes on" in capsys.readouterr().out
    assert not os.path.exists(workdir.evaluation)


def test_every_value_stands_in_a_checkpoint_once(tmp_path):
    workdir = Workdir(tmp_path)
    trainer, checkpointer = make(workdir)
    checkpointer.save()
    shapes = dict(tf.train.list_variables(workdir.latest_checkpoint()))
    model = trainer.model
    trained = {f"{part}/{v.path}" for v in model.trainable_variables for part in PARTS}
    averages = {f"model/{v.path}" for v in model.non_trainable_variables}
    vectors = {f"singular_vector/{layer.kernel.path}" for layer in model.convolutions()}
    scalars = {name for name, shape in shapes.items() if not shape} | {"layout"}
    assert set(shapes) == trained | averages | vectors | scalars
    sizes = {part: 0 for part in (*PARTS, "singular_vector")}
    for name, shape in shapes.items():
        if name not in scalars:
            sizes[name.partition("/")[0]] += int(np.prod(shape))
    parameters = model.num_trainable_parameters
    moving = sum(int(np.prod(v.shape)) for v in model.non_trainable_variables)
    filters = sum(layer.filters for layer in model.convolutions())
    assert list(sizes.values()) == [parameters + moving, *3 * [parameters], filters]


PARTS = ("model", "average", "momentum", "infinity_norm")


def rewrite(workdir, change, directory):
    """A workdir whose checkpoint has other names, or values in another order."""
    reader = CheckpointReader(workdir.latest_checkpoint())
    lines, items = change(
        [line.decode() for line in reader.read("layout")],
        {
            name: reader.read(name)
            for name, _ in tf.train.list_variables(reader.prefix)
            if name != "layout"
        },
    )
    variables = [
        types.SimpleNamespace(path=path, shape=ast.literal_eval(shape))
        for path, _, shape in (line.partition(" ") for line in lines)
    ]
    other = Workdir(directory)
    other.write_config(CONFIG)
    write_checkpoint(other.checkpoints, 1, variables, items, keep=1)
    return other


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with a checkpoint, and its trainer."""
    workdir = Workdir(tmp_path_factory.mktemp("saved"))
    workdir.write_config(CONFIG)
    trainer, checkpointer = make(workdir)
    checkpointer.save()
    return workdir, trainer


def twins(trainer):
    """The kernels of two layers of one shape, by path."""
    first, second = (trainer.model.groups[number].encoder_cells[0] for number in (0, 1))
    paths = [cell.branch[0].convolution.kernel.path for cell in (first, second)]
    values = trainer.state.model_values()
    assert values[paths[0]].shape == values[paths[1]].shape
    return paths


def renamed(paths):
    def change(lines, items):
        def new(name):
            return name.replace("encoder_0_0_0", "encoder_0_7_0")

        return [new(line) for line in lines], {new(n): value for n, value in items.items()}

    return change


def reordered(paths):
    def change(lines, items):
        i, j = (next(k for k, line in enumerate(lines) if line.startswith(p)) for p in paths)
        lines[i], lines[j] = lines[j], lines[i]
        return lines, items

    return change


def shortened(paths):
    return lambda lines, items: (lines[:-1], items)


def without_a_momentum(paths):
    return lambda lines, items: (
        lines,
        {name: value for name, value in items.items() if name != f"momentum/{paths[0]}"},
    )


def with_an_average_of_nothing(paths):
    return lambda lines, items: (lines, items | {"average/nothing": np.zeros(3, np.float32)})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed, "encoder_0_7_0.*, that of this model encoder_0_0_0"),
        (reordered, "does not hold this model: its variable"),
        (shortened, "The first that only the model has is"),
        (without_a_momentum, "lacks momentum/encoder_"),
        (with_an_average_of_nothing, "also has average/nothing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_checkpoint_of_other_layers_is_refused(saved, tmp_path, change, named):
    workdir, trainer = saved
    other = rewrite(workdir, change(twins(trainer)), tmp_path)
    fresh, checkpointer = make(other)
    before = everything(fresh)
    with pytest.raises(ValueError, match=named):
        checkpointer.restore()
    for a, b in zip(everything(fresh), before):
        np.testing.assert_array_equal(a, b)
    if change is not without_a_momentum:  # which a model alone has no use for
        with pytest.raises(ValueError, match=named):
            nvae_tf.load_model(other.path)


def test_layers_of_one_shape_that_are_built_in_another_order(saved, tmp_path, monkeypatch):
    """Their checkpoint is refused; by position it would fit, and every value be another's."""
    workdir, trainer = saved
    names = iter(("encoder_0_1_0", "encoder_0_0_0"))
    cell = Towers._cell

    def swapped(self, name, *arguments):
        swap = name in ("encoder_0_0_0", "encoder_0_1_0")
        return cell(self, next(names) if swap else name, *arguments)

    monkeypatch.setattr(Towers, "_cell", swapped)
    other = Trainer(CONFIG, make_strategy("auto"), num_images=100)
    layout = StackLayout(other.model.trainable_variables)
    assert sorted(layout.shapes) == sorted(StackLayout(trainer.model.trainable_variables).shapes)
    with pytest.raises(ValueError, match=r"is encoder_0_0_0.*, that of this model encoder_0_1_0"):
        Checkpointer(other, workdir).restore()


def test_values_come_back_by_name_whatever_their_place(saved):
    """A state that lays its stacks out in another order restores every value right."""
    workdir, trainer = saved
    other = Trainer(CONFIG, make_strategy("auto"), num_images=100)
    layout = StackLayout(other.model.trainable_variables[::-1])
    assert layout.groups != trainer.state.weights.layout.groups
    for part in ("weights", "momentum", "infinity_norm", "average"):
        setattr(other.state, part, StackedVariables.zeros(layout, part))
    other.state.restore(CheckpointReader(workdir.latest_checkpoint()))
    for ours, theirs in (
        (other.state.model_values(), trainer.state.model_values()),
        (other.state.evaluation_values(), trainer.state.evaluation_values()),
        (other.state.momentum.by_path(), trainer.state.momentum.by_path()),
    ):
        assert ours.keys() == theirs.keys()
        for path, value in ours.items():
            np.testing.assert_array_equal(value, theirs[path], err_msg=path)


def damage(prefix, how):
    index, (data,) = f"{prefix}.index", glob.glob(f"{prefix}.data-*")
    if how == "no index":
        os.remove(index)
    else:
        path, size = {"index": (index, 40), "empty": (index, 0), "data": (data, 100)}[how]
        os.truncate(path, size)


@pytest.mark.parametrize("how", ["no index", "index", "empty", "data"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, how):
    workdir = Workdir(tmp_path)
    trainer, checkpointer = make(workdir)
    run(trainer, 1)
    checkpointer.save()
    expected = everything(trainer)
    run(trainer, 1)
    checkpointer.save()
    damage(f"{workdir.checkpoints}/ckpt-2", how)
    restored, other = make(workdir)
    assert other.restore() and restored.state.steps_done == 1
    assert "ckpt-1, not" in caplog.text and "ckpt-2" in caplog.text
    for a, b in zip(everything(restored), expected):
        np.testing.assert_array_equal(a, b)
    # It counts no more, or it would drive the good ones out.
    other.clear_leftovers()
    assert not os.path.exists(f"{workdir.checkpoints}/ckpt-2.index")
    run(restored, 1)
    other.save()
    assert workdir.latest_checkpoint().endswith("ckpt-2")
    assert make(workdir)[1].restore()


@pytest.mark.parametrize("how", ["no index", "index", "empty", "data"])
def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path, how):
    workdir = Workdir(tmp_path)
    trainer, checkpointer = make(workdir)
    checkpointer.save()
    damage(workdir.latest_checkpoint(), how)
    before = everything(trainer)
    with pytest.raises(ValueError, match=r"ckpt-0: .*(damaged|no index).*another --workdir"):
        checkpointer.restore()
    for a, b in zip(everything(trainer), before):
        np.testing.assert_array_equal(a, b)


def test_a_run_with_logs_but_no_checkpoints_does_not_start_over(tmp_path):
    workdir = Workdir(tmp_path)
    os.makedirs(workdir.tensorboard)
    with pytest.raises(ValueError, match="has logs, but its checkpoints are gone"):
        make(workdir)[1].restore()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    workdir = Workdir(tmp_path)
    trainer, checkpointer = make(workdir)
    bias = trainer.model.image_head.bias
    trainer.state.replace_weights({bias.path: tf.fill(bias.shape, np.inf)})
    with pytest.raises(DivergedError, match=f"not finite after step 0.*{bias.path}"):
        checkpointer.save()
    assert workdir.latest_checkpoint() is None


def test_a_checkpoint_that_cannot_be_written_says_so(tmp_path):
    workdir = Workdir(tmp_path)
    trainer, checkpointer = make(workdir)
    checkpointer.save()
    trainer.state.step.assign(1)
    os.makedirs(f"{workdir.checkpoints}/ckpt-1.tempstate.data-00000-of-00001")
    with pytest.raises(OSError, match=r"Cannot write the checkpoint .*ckpt-1'; earlier ones are"):
        checkpointer.save()
    assert workdir.latest_checkpoint().endswith("ckpt-0")
