"""Whole runs: what they leave behind, how they resume, what they refuse."""

import json
import math
import os
import shutil
import signal
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.data import evaluation_batches, load_images
from nvae_tf.evaluation import LikelihoodEvaluator
from nvae_tf.runs.load import TrainedModel
from nvae_tf.runs.workdir import Workdir
from tests.conftest import tiny_experiment_config
from trainers.run import experiment
from trainers.run.checkpoints import Checkpointer
from trainers.run.experiment import check_profile_steps, train
from trainers.run.progress import Progress, drawn_rows
from trainers.run.step_profile import StepRange
from trainers.run.strategies import make_strategy
from trainers.run.trainer import DivergedError, Trainer
from trainers.summaries.event_files import read_scalars


def train_until_killed(config, workdir, step):
    """Ends a run right after its checkpoint of that step, as a kill would."""

    class Killed(Exception):
        pass

    save = Checkpointer.save

    def save_then_die(self):
        save(self)
        if self._trainer.state.steps_done == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_then_die)
        with pytest.raises(Killed):
            train(config, workdir)


def test_a_run_leaves_config_checkpoints_and_evaluation(finished):
    assert finished.read_config() == tiny_experiment_config()
    assert finished.latest_checkpoint().endswith("-4")
    with open(finished / "evaluation.json") as file:
        result = json.load(file)
    assert result["num_images"] == 1000
    assert result["negative_elbo"] == pytest.approx(
        result["reconstruction"] + sum(result["kl_per_group"]), rel=1e-4
    )
    assert sorted(os.listdir(finished.path)) == [
        ".lock",
        "checkpoints",
        "config.json",
        "evaluation.json",
        "images.json",
        "tensorboard",
    ]


def test_the_best_checkpoint_has_the_lowest_validation_bound(finished):
    logged = read_scalars(f"{finished.tensorboard}/validation", "loss/negative_elbo")
    bounds = {step: values["loss/negative_elbo"] for step, values in logged.items()}
    assert sorted(bounds) == [2, 4]
    best = min(bounds, key=bounds.__getitem__)
    assert finished.checkpoint("best").endswith(f"best/ckpt-{best}")


def test_a_validation_is_not_of_the_first_class_alone():
    sorted_by_class = np.repeat([0.0, 1.0], 2000)
    assert sorted_by_class[drawn_rows(4000, 1000)].mean() == pytest.approx(0.5, abs=0.05)


def test_a_finished_run_does_not_start_over(finished, capsys):
    before = os.stat(finished.latest_checkpoint() + ".index").st_mtime_ns
    train(tiny_experiment_config(), finished)
    assert "is complete: 4 of 4 steps" in capsys.readouterr().out
    assert os.stat(finished.latest_checkpoint() + ".index").st_mtime_ns == before


@pytest.mark.slow
def test_a_run_killed_before_its_evaluation_evaluates(finished, tmp_path, capsys):
    workdir = Workdir(tmp_path / "killed")
    shutil.copytree(finished.path, workdir.path)
    with open(workdir.evaluation) as file:
        before = json.load(file)
    os.remove(workdir.evaluation)
    train(tiny_experiment_config(), workdir)
    assert "Finished: -ELBO" in capsys.readouterr().out
    with open(workdir.evaluation) as file:
        assert json.load(file) == before and before["step"] == 4
    os.remove(workdir.evaluation)
    train(tiny_experiment_config(steps=2), workdir)  # fewer than the run has done
    assert workdir.evaluated_step() == 4


def test_a_signal_ends_the_last_evaluation_and_the_same_command_makes_it(
    finished, tmp_path, capsys, monkeypatch
):
    workdir = Workdir(tmp_path / "run")
    shutil.copytree(finished.path, workdir.path)
    os.remove(workdir.evaluation)

    class Ended(Exception):
        pass

    def end(number, frame):
        raise Ended

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "measure", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        outer = signal.signal(signal.SIGTERM, end)
        try:
            with pytest.raises(Ended):
                train(tiny_experiment_config(), workdir)
        finally:
            signal.signal(signal.SIGTERM, outer)
    assert workdir.evaluated_step() is None
    assert train(tiny_experiment_config(), workdir)
    assert workdir.evaluated_step() == 4
    printed = capsys.readouterr().out
    assert "Finished: -ELBO" in printed
    assert "traced in" not in printed  # for no step is left


def test_a_signal_cuts_a_validation_short(tmp_path, monkeypatch, capsys):
    counted = []

    def batches(images, *arguments):
        for batch in evaluation_batches(images, *arguments):
            if len(images) == 1000:
                counted.append(len(batch))
                if len(counted) == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr("trainers.run.progress.evaluation_batches", batches)
    workdir = Workdir(tmp_path / "run")
    assert not train(tiny_experiment_config(steps=8), workdir)
    assert "Stopped after step 4" in capsys.readouterr().out
    assert workdir.latest_checkpoint().endswith("-4")
    assert len(counted) == 2
    assert not read_scalars(f"{workdir.tensorboard}/validation", "loss/negative_elbo")


def test_images_may_change_until_the_run_has_started(tmp_path, monkeypatch):
    workdir, config = Workdir(tmp_path / "run"), tiny_experiment_config()

    class Killed(Exception):
        pass

    def die(*arguments):
        raise Killed

    monkeypatch.setattr(experiment, "Trainer", die)
    for width in (20, 21):
        with pytest.raises(Killed):
            train(config.override({"data.crop": (0, 0, 20, width)}), workdir)


def test_a_model_is_loaded_in_float32_whatever_keras_is_set_to(finished):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = nvae_tf.load_model(finished.path)
        half = TrainedModel.of_run(finished).load("mixed_bfloat16")
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.compute_dtype == "float32"
    assert half.compute_dtype == "bfloat16"


def test_results_are_kept_in_the_workdir_or_the_cache_of_the_data(finished, tmp_path):
    trained = TrainedModel.of_run(finished)
    data = trained.config.override({"data.cache_dir": str(tmp_path)}).data
    assert trained.kept("likelihood", data) == f"{finished.path}/likelihood"
    preset = TrainedModel.of_preset("mnist_small")
    assert preset.kept("likelihood", data) == str(tmp_path / "likelihood")


def weights(workdir):
    return {v.path: v.numpy() for v in nvae_tf.load_model(workdir.path).variables}


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(finished, tmp_path, capsys):
    config = tiny_experiment_config()
    workdir = Workdir(tmp_path / "run")

    train_until_killed(config, workdir, step=2)
    assert workdir.latest_checkpoint().endswith("-2")
    train(config, workdir)
    assert "Resuming after step 2 of 4" in capsys.readouterr().out
    expected = weights(finished)
    for path, value in weights(workdir).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)
    kl = read_scalars(f"{workdir.tensorboard}/train", "kl/group")
    assert list(kl) == [1, 2, 3, 4] and kl == read_scalars(
        f"{finished.tensorboard}/train", "kl/group"
    )


FREEZING = tiny_experiment_config().override({"train.frozen_batch_norm_portion": 0.25})


@pytest.fixture(scope="module")
def freezing(tmp_path_factory):
    """A run of four steps, the last of them with frozen batch normalisation."""
    workdir = Workdir(tmp_path_factory.mktemp("freezing") / "run")
    train(FREEZING, workdir)
    return workdir


def test_a_run_says_when_it_freezes_batch_norm(tmp_path, capsys, monkeypatch):
    steps = []
    take = Trainer.step

    def step(self, batches, done, stop=False):
        metrics = take(self, batches, done, stop)
        steps.append(self.traced_step(done).definition.frozen)
        return metrics

    monkeypatch.setattr(Trainer, "step", step)
    train(FREEZING, Workdir(tmp_path / "run"))
    assert steps == [False, False, False, True]
    printed = capsys.readouterr().out
    first = printed.index("Step traced in")
    second = printed.index("Step with frozen batch normalisation traced in")
    assert first < second


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3])
def test_a_run_resumes_on_either_side_of_freezing(freezing, tmp_path, step):
    workdir = Workdir(tmp_path / "run")
    train_until_killed(FREEZING.override({"train.checkpoint_every": 1}), workdir, step)
    train(FREEZING, workdir)
    expected = weights(freezing)
    for path, value in weights(workdir).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_a_newer_evaluation_has_no_report_of_an_older_one(finished, tmp_path):
    workdir = Workdir(tmp_path / "run")
    shutil.copytree(finished.path, workdir.path)
    report = tmp_path / "run/evaluation.html"
    report.write_text("of step 4")
    train(tiny_experiment_config(steps=5), workdir)
    assert workdir.evaluated_step() == 5 and not report.exists()


@pytest.mark.slow
def test_more_steps_resume(finished, tmp_path, capsys):
    workdir = Workdir(tmp_path / "longer")
    shutil.copytree(finished.path, workdir.path)
    train(tiny_experiment_config(steps=5), workdir)
    assert "Resuming after step 4 of 5" in capsys.readouterr().out
    assert workdir.latest_checkpoint().endswith("-5")
    assert workdir.read_config().train.steps == 5
    assert workdir.evaluated_step() == 5


def test_a_workdir_of_another_configuration_is_refused(finished):
    other = tiny_experiment_config().override({"model.num_nf": 1, "train.seed": 5})
    with pytest.raises(
        ValueError, match=r"model.num_nf is 0 there, 1 was asked for; train.seed is 0 there, 5"
    ):
        train(other, finished)


def test_load_model_gives_the_trained_weights(finished):
    config = finished.read_config()
    trainer = Trainer(config, make_strategy("auto"), num_images=9000)
    assert Checkpointer(trainer, finished).restore()
    loaded = nvae_tf.load_model(finished.path)
    values = trainer.state.model_values()
    for variable in loaded.variables:
        np.testing.assert_array_equal(values[variable.path], variable.numpy())
    assert trainer.state.steps_done == int(trainer.state.iterations) == 4


def test_load_model_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="'mnist_small' is not a run, but a model of this"):
        nvae_tf.load_model("mnist_small")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        nvae_tf.load_model(tmp_path)
    Workdir(tmp_path).write_config(tiny_experiment_config())
    with pytest.raises(FileNotFoundError, match="no latest checkpoint yet"):
        nvae_tf.load_model(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(finished, tmp_path):
    other = tiny_experiment_config().override({"model.num_cell_per_cond_dec": 2})
    Workdir(tmp_path).write_config(other)
    os.symlink(finished.checkpoints, Workdir(tmp_path).checkpoints)
    with pytest.raises(ValueError, match="does not hold this model"):
        nvae_tf.load_model(tmp_path)


def test_the_last_evaluation_is_in_float32(tmp_path):
    config = tiny_experiment_config(precision="mixed_bfloat16", image_every=100)
    workdir = Workdir(tmp_path / "half")
    train(config, workdir)
    assert workdir.checkpoint("best").endswith("best/ckpt-4")  # there was no validation before
    with open(workdir.evaluation) as file:
        reported = json.load(file)["negative_elbo"]
    images = load_images(config.data, config.model, config.data.test_split)
    batches = evaluation_batches(images, config.model, 4)
    expected = LikelihoodEvaluator(nvae_tf.load_model(workdir.path)).evaluate(batches)
    assert reported == pytest.approx(expected.negative_elbo, rel=1e-6)
    assert nvae_tf.load_model(workdir.path).compute_dtype == "float32"


def test_one_process_trains_in_a_workdir(finished):
    wanted = rf"Another process trains.*process {os.getpid()} on"
    with finished.training(), pytest.raises(ValueError, match=wanted):
        train(tiny_experiment_config(steps=8), finished)
    with finished.training():  # the lock ends with its scope
        pass


def test_nothing_is_built_while_another_process_trains(finished, monkeypatch):
    monkeypatch.setattr(experiment, "Trainer", pytest.fail)  # it may not fit beside the other one
    with finished.training(), pytest.raises(ValueError, match="Another process trains"):
        train(tiny_experiment_config(steps=8), finished)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.accumulation_steps": 3}, "multiple of the 1 replicas times the 3 accumulation"),
        ({"data.test_split": "vla"}, "vla"),
        ({"train.frozen_batch_norm_portion": 1.0}, "say with --init_from which weights"),
    ],
)
def test_a_slip_shows_before_the_images_to_train_on_are_read(
    tmp_path, monkeypatch, changes, message
):
    def load(data, model, split):
        assert split != "train"
        return load_images(data, model, split)

    monkeypatch.setattr(experiment, "load_images", load)
    with pytest.raises(ValueError, match=message):
        train(tiny_experiment_config().override(changes), Workdir(tmp_path / "run"))
    assert not os.path.exists(tmp_path / "run")


def test_another_run_that_began_meanwhile_is_not_gone_on_with(finished, tmp_path, monkeypatch):
    def load(data, model, split):
        shutil.copytree(finished.path, tmp_path / "run", dirs_exist_ok=True)
        return load_images(data, model, split)

    monkeypatch.setattr(experiment, "load_images", load)
    config = finished.read_config().override({"optimizer.learning_rate": 0.5})
    with pytest.raises(ValueError, match="another configuration: optimizer.learning_rate"):
        train(config, Workdir(tmp_path / "run"))
    # Nor with the same configuration, and other images.
    shutil.rmtree(tmp_path / "run")
    monkeypatch.setattr(experiment, "describe", lambda images: {"images": len(images)})
    with pytest.raises(ValueError, match="are not those that the run"):
        train(finished.read_config(), Workdir(tmp_path / "run"))
    assert Workdir(tmp_path / "run").read_config() == finished.read_config()


def test_a_run_does_not_end_before_the_steps_that_it_has_done(finished, tmp_path):
    workdir = Workdir(tmp_path / "run")
    shutil.copytree(finished.path, workdir.path)
    stopped = finished.read_config().override({"train.steps": 8})
    workdir.write_config(stopped)
    with pytest.raises(ValueError, match="has done 4 of 8 steps, and cannot end after 3"):
        train(stopped.override({"train.steps": 3}), workdir)
    assert workdir.read_config() == stopped


def test_other_images_are_refused(finished, monkeypatch):
    config = finished.read_config()
    images = load_images(config.data, config.model, "train")
    monkeypatch.setattr(experiment, "load_images", lambda *_: images[1:])
    with pytest.raises(ValueError, match="split 'train' are not those that the run.*started with"):
        train(tiny_experiment_config(steps=8), finished)


def test_a_refused_start_leaves_what_the_images_were(finished, tmp_path, monkeypatch):
    workdir = Workdir(tmp_path / "run")
    shutil.copytree(finished.path, workdir.path)
    shutil.rmtree(workdir.checkpoints)
    before, config = workdir.read_images(), finished.read_config()
    images = load_images(config.data, config.model, "train")
    monkeypatch.setattr(experiment, "load_images", lambda *_: images[1:])
    with pytest.raises(ValueError, match="its checkpoints are gone"):
        train(tiny_experiment_config(steps=8), workdir)
    assert before and workdir.read_images() == before


def test_the_last_step_is_ranked_like_those_before(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.run.progress._VALIDATION_IMAGES", 12)
    config = finished.read_config()
    trainer = Trainer(config, make_strategy("auto"), num_images=9000)
    assert Checkpointer(trainer, finished).restore()
    images = load_images(config.data, config.model, config.data.test_split)[:40]
    progress = Progress(trainer, Workdir(tmp_path), images)
    found, ranked = progress.measure()
    validated = progress.validate(4, experiment.StopRequest())
    assert ranked == pytest.approx(validated, rel=1e-6)
    assert len(found.negative_elbo) == 40
    same_images = found.negative_elbo[drawn_rows(40, 12)].mean()  # with other draws
    assert abs(ranked - same_images) > 1e-4
    bounds = Progress._bounds

    def overflow(self, images, *arguments):
        if len(images) == 12:
            raise DivergedError("too much for float16")
        return bounds(self, images, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "_bounds", overflow)
        assert progress.measure()[1] == math.inf
    path = trainer.model.image_head.bias.path
    trainer.state.replace_weights({path: tf.constant([np.nan])})
    with pytest.raises(DivergedError, match="held-out images was not finite after step 4"):
        progress.measure()
    progress.close()


def test_a_profile_is_of_steps_to_come(finished):
    check_profile_steps(StepRange(5, 6), finished, 8)
    for first, last in ((4, 6), (5, 9)):
        with pytest.raises(ValueError, match=f"between 5 and 8.*received {first} to {last}"):
            check_profile_steps(StepRange(first, last), finished, 8)


def test_workers_that_have_restored_other_steps_are_refused(monkeypatch):
    trainer = Trainer(tiny_experiment_config(), make_strategy("auto"), num_images=100)
    trainer.check_agreement()
    monkeypatch.setattr(trainer, "sum_over_replicas", lambda own: own + 2)
    with pytest.raises(ValueError, match="have not restored the same step; this one is at 0"):
        trainer.check_agreement()


def test_a_split_to_train_on_is_not_held_out(tmp_path):
    config = tiny_experiment_config().override({"data.test_split": "train"})
    with pytest.raises(ValueError, match="are both 'train'"):
        train(config, Workdir(tmp_path / "run"))
    assert not os.path.exists(tmp_path / "run")


def test_a_run_keeps_what_it_started_from(finished, tmp_path):
    workdir = Workdir(tmp_path / "run")
    config = finished.read_config().override({"train.steps": 1})
    with pytest.raises(ValueError, match="started with random weights.*--init_from=x is for a new"):
        finished.check_initial_weights("x")
    train(config, workdir, init_from=TrainedModel.of(finished.path))
    source = {"path": finished.path, "name": "finished", "step": 4}
    assert TrainedModel.of_run(workdir).init_from == source
    workdir.check_initial_weights(f"{finished.path}/")
    with pytest.raises(ValueError, match="started with the weights of '.*finished'"):
        workdir.check_initial_weights("mnist_small")
    again = Workdir(tmp_path / "again")  # which was stopped before its first checkpoint
    shutil.copytree(
        workdir.path, again.path, ignore=shutil.ignore_patterns("checkpoints", "tensorboard")
    )
    train(config, again)
    assert again.read_initial_weights() == {}


def test_damaged_weights_to_start_from_leave_nothing(finished, tmp_path):
    preset = tmp_path / "preset"
    trained = TrainedModel.of_run(finished)
    trained.load().save_to_preset(preset, trained.config)
    (preset / "model.weights.h5").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"model\.weights\.h5"):
        train(
            tiny_experiment_config(), Workdir(tmp_path / "run"), init_from=TrainedModel.of(preset)
        )
    assert not os.path.exists(tmp_path / "run")


def test_all_workers_hear_that_the_chief_has_found_the_run_diverged(monkeypatch):
    runs = [object.__new__(experiment._Run) for _ in range(2)]
    votes = []
    for index, run in enumerate(runs):
        run._chief = index == 0
        run._trainer = types.SimpleNamespace(sum_over_replicas=lambda vote: votes.append(vote) or 1)

    def action():
        raise DivergedError("The -ELBO was not finite")

    for run, message in zip(runs, ("The -ELBO was not finite", "The chief has found")):
        with pytest.raises(DivergedError, match=message):
            run._on_chief(action)
    assert votes == [1, 0]
    runs[1]._trainer.sum_over_replicas = lambda vote: vote
    runs[1]._on_chief(action)  # which a worker that is not the chief does not do


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_workdir_that_cannot_be_one_is_refused_first(tmp_path, monkeypatch, place):
    (tmp_path / "file").touch()
    monkeypatch.setattr(experiment, "load_images", None)  # it does not come so far
    with pytest.raises(NotADirectoryError, match="file' is not a directory"):
        train(tiny_experiment_config(), Workdir(tmp_path / place))


def test_a_warm_up_as_long_as_the_run_is_said_before_it_begins(tmp_path, monkeypatch, caplog):
    class Begun(Exception):
        pass

    def begin(*_):
        raise Begun

    monkeypatch.setattr(experiment, "_Run", begin)
    for steps, said in ((2250, True), (2251, False)):  # an epoch has 2,250 steps
        config = tiny_experiment_config(steps=steps).override({"optimizer.warmup_epochs": 1.0})
        caplog.clear()
        with pytest.raises(Begun):
            train(config, Workdir(tmp_path / f"run{steps}"))
        assert ("rises for 2250 steps (optimizer.warmup_epochs=1)" in caplog.text) == said


def test_a_run_that_is_not_finite_has_no_result(tmp_path):
    wild = {"optimizer.learning_rate": 1000.0, "optimizer.warmup_epochs": 0.0}
    config = tiny_experiment_config(steps=3, max_rollbacks=0).override(wild)
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(DivergedError, match="not finite"):
        train(config, workdir)
    assert workdir.latest_checkpoint().endswith("-0")
    assert not os.path.exists(workdir.evaluation)
