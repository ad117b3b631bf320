"""Runs an experiment: from a configuration to a trained and evaluated model in a workdir."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from nvae_tf.config import ExperimentConfig
from nvae_tf.data import describe, load_images, training_batches, training_input
from nvae_tf.model.stacks import Values, read_values
from nvae_tf.runs.checkpoint_files import checkpoint_step
from nvae_tf.runs.load import TrainedModel
from nvae_tf.runs.workdir import Workdir
from nvae_tf.training.metrics import StepMetrics
from nvae_tf.training.schedule import Schedule, total_steps
from trainers.run.checkpoints import Checkpointer
from trainers.run.diagnosis import first_non_finite
from trainers.run.memory import expected_memory
from trainers.run.progress import Progress
from trainers.run.signals import Stopped, StopRequest
from trainers.run.step_profile import StepProfile, StepRange
from trainers.run.strategies import check_devices, device_names, is_chief, make_strategy
from trainers.run.traced_step import Batches
from trainers.run.trainer import DivergedError, Trainer, has_diverged


def train(
    config: ExperimentConfig,
    workdir: Workdir,
    profile_steps: StepRange | None = None,
    init_from: TrainedModel | None = None,
) -> bool:
    """Trains until the run's last step, or goes on from where it stopped.

    SIGTERM, SIGUSR1, SIGHUP or Ctrl-C ends it after the current step or the next, with a
    checkpoint (if that step is not finite, after the next that is); a validation is cut
    short. In another thread than the main one, signals do nothing.

    Args:
      config: The run's configuration.
      workdir: The run's directory.
      profile_steps: The steps to trace with TensorFlow's profiler.
      init_from: A trained model whose weights the run starts with, unless it has started already.

    Returns:
      Whether the run is complete; False if a signal has stopped it.

    Raises:
      OSError: The workdir cannot be one.
      ValueError: The workdir holds another run, or this one with other images, or another process
        trains there, training and test split are the same, the images or `init_from` do not fit,
        batch normalisation is to be frozen from the first step without `init_from`, or the steps to
        trace are not among those to come; nothing is created.
      DivergedError: The loss is not finite any more, and going back did not help.
    """
    workdir.check_usable()
    workdir.check_config(config)
    if config.data.train_split == config.data.test_split:
        raise ValueError(
            f"data.train_split and data.test_split are both {config.data.test_split!r}: the images "
            "to train on would be those that are held out."
        )
    if init_from:
        init_from.check_same_model(config)
    strategy = make_strategy(config.train.strategy)
    check_devices(config.train, strategy.num_replicas_in_sync)
    starts = workdir.latest_checkpoint() is None
    if starts and config.train.frozen_batch_norm_portion == 1 and not init_from:
        raise ValueError(
            "train.frozen_batch_norm_portion=1 takes the moving averages of the weights that a run "
            "starts with: say with --init_from which weights those are, or freeze less of the run."
        )
    initial = InitialWeights.of(init_from) if init_from and starts else None
    # The smaller split first: what is wrong with the configuration shows in either.
    test_images = load_images(config.data, config.model, config.data.test_split)
    images = load_images(config.data, config.model, config.data.train_split)
    described = {
        config.data.train_split: describe(images),
        config.data.test_split: describe(test_images),
    }
    schedule = Schedule(config, len(images))
    check_length(workdir, schedule.total_steps, len(images))
    check_profile_steps(profile_steps, workdir, schedule.total_steps)
    if schedule.warmup_steps >= schedule.total_steps:  # as in a run that is only to be tried out
        logging.warning(
            "The learning rate rises for %d steps (optimizer.warmup_epochs=%g), and the run ends "
            "after %d: train for more steps, or choose a shorter warm-up.",
            schedule.warmup_steps,
            config.optimizer.warmup_epochs,
            schedule.total_steps,
        )
    with contextlib.ExitStack() as scope:
        if is_chief(strategy):
            scope.enter_context(workdir.training())
        # Here, for another process may have trained while the images were read.
        workdir.check_config(config)
        if workdir.latest_checkpoint():
            workdir.check_images(described)
        run = _Run(config, workdir, strategy, images, test_images, profile_steps)
        try:
            with StopRequest() as stop:
                started = run.start(initial, described)
                del initial  # it may be in a device's memory
                if not started:
                    return True
                while True:
                    try:
                        stopped = run.train_on(stop)
                        break
                    except DivergedError as error:
                        run.roll_back(error)
            # From here on a signal ends the process at once: everything is saved.
            if stopped or stop.name:
                run.say(f"Stopped after step {run.step}. The same command goes on from there.")
                return False
            run.finish()
            return True
        finally:
            run.close()


class InitialWeights(NamedTuple):
    """The weights that a run starts with."""

    origin: str
    source: Mapping[str, Any]  # what the workdir keeps
    values: Values

    @classmethod
    def of(cls, trained: TrainedModel) -> InitialWeights:
        """Reads them.

        Raises:
          ValueError: The files are damaged.
        """
        source = {"path": trained.path, "name": trained.name, "step": trained.step}
        return cls(trained.origin, source, read_values(trained.load().variables))


def check_length(workdir: Workdir, total: int, num_images: int) -> None:
    """Raises a ValueError if a run that is not complete is to end before the steps it has done.

    Args:
      workdir: The run's directory, with the configuration that it has.
      total: The number of steps that were asked for.
      num_images: Number of images to train on.
    """
    done = checkpoint_step(workdir.latest_checkpoint())
    if done <= total:
        return
    planned = total_steps(workdir.read_config(), num_images)
    if done < planned:
        raise ValueError(
            f"The run in {workdir.path!r} has done {done} of {planned} steps, and cannot end after "
            f"{total}: ask for {done} or more with --config.train.steps."
        )


def check_profile_steps(steps: StepRange | None, workdir: Workdir, total: int) -> None:
    """Raises a ValueError unless the steps to trace lie between those done and the last one."""
    done = checkpoint_step(workdir.latest_checkpoint())
    if steps and not done < steps.first <= steps.last <= total:
        raise ValueError(
            f"The steps to profile must be between {done + 1} and {total}, those that the run has "
            f"to come; received {steps.first} to {steps.last}."
        )


class _Run:
    """A trainer with what feeds, watches and saves it.

    Only the chief of several workers prints and writes.

    Args:
      config: The run's configuration.
      workdir: The run's directory.
      strategy: Where to compute.
      images: (N, h, w, C) uint8, to train on.
      test_images: (M, h, w, C) uint8, held out.
      profile_steps: The steps to trace with TensorFlow's profiler.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        workdir: Workdir,
        strategy: tf.distribute.Strategy,
        images: np.ndarray,
        test_images: np.ndarray,
        profile_steps: StepRange | None,
    ):
        self._config = config
        self._workdir = workdir
        self._images = images
        self._chief = is_chief(strategy)
        self._profile = StepProfile(workdir.tensorboard, profile_steps if self._chief else None)
        start = time.perf_counter()
        self._trainer = Trainer(config, strategy, len(images))
        self._checkpointer = Checkpointer(self._trainer, workdir)
        model = self._trainer.model
        self.say(
            f"{model.num_trainable_parameters:,} parameters in {config.model.num_groups} groups, "
            f"built in {time.perf_counter() - start:.1f} s; {len(images):,} training images, "
            f"{strategy.num_replicas_in_sync} replica(s) on {device_names(strategy)}."
        )
        self._test_images = test_images
        self._progress: Progress | None = None

    @property
    def step(self) -> int:
        """The number of steps done."""
        return self._trainer.state.steps_done

    def say(self, text: str) -> None:
        """Prints a text on the chief."""
        if self._chief:
            tqdm.write(text)  # which leaves a bar whole
            sys.stdout.flush()

    def start(self, initial: InitialWeights | None, images: Mapping[str, Mapping]) -> bool:
        """Restores or initialises; returns whether there is anything left to do.

        Args:
          initial: What a new run starts with, in place of random weights.
          images: A description of each split, which the workdir keeps.
        """
        trainer = self._trainer
        restored = self._checkpointer.restore()
        trainer.check_agreement()
        total = trainer.total_steps
        if self.step >= total and self._workdir.evaluated_step() == self.step:
            self.say(
                f"The run in {self._workdir.path!r} is complete: {self.step} of {total} steps. "
                "To go on, ask for more with --config.train.steps."
            )
            return False
        if self._chief:
            self._workdir.write_config(self._config)
            self._workdir.write_images(images)
            self._checkpointer.clear_leftovers()
            if not restored:
                self._workdir.write_initial_weights(initial.source if initial else {})
        if restored:
            self.say(f"Resuming after step {self.step} of {total}.")
        elif initial:
            trainer.state.start_from(initial.values)
            self.say(f"Starting from the weights of {initial.origin!r}.")
        else:
            trainer.initialize_from_batch(self._batch(self.step))
        if not restored or self._checkpointer.restored_weights_alone:
            self._save()  # so that there is always something whole to go back to
        self._batches: Batches = trainer.batches(self._images)
        if self.step < total:
            self._trace()
        if self._chief:
            self._progress = Progress(trainer, self._workdir, self._test_images)
        return True

    def _trace(self) -> None:
        trainer = self._trainer
        seconds = trainer.trace(self._batches)
        frozen = trainer.traced_step().definition.frozen
        name = "Step with frozen batch normalisation" if frozen else "Step"
        self.say(
            f"{name} traced in {seconds:.1f} s; expected memory "
            f"{expected_memory(trainer, self._batches) / 1e9:.2f} GB per replica, with "
            f"{trainer.num_bytes / 1e9:.2f} GB of weights and optimiser."
        )
        if self._config.train.jit_compile == "step":
            self.say("XLA compiles the first step before it runs, which can take minutes.")

    def _batch(self, step: int) -> tf.Tensor:
        """Returns the global batch that follows `step` steps, as the model's input (B, H, W, C)."""
        stored = next(iter(training_batches(self._images, self._config, start=step)))
        return training_input(stored, self._config, tf.constant(step))

    def train_on(self, stop: StopRequest) -> bool:
        """Trains to the last step; returns whether it was stopped before.

        Raises:
          DivergedError: Several steps in a row were not finite.
        """
        trainer, train = self._trainer, self._config.train
        batches = iter(self._batches)
        metrics: StepMetrics | None = None
        due = False  # whether a checkpoint is to be written after the next finite step
        first, freezes = self.step + 1, trainer.schedule.freezes
        for step in range(first, trainer.total_steps + 1):
            if step > first and freezes(step - 1) and not freezes(step - 2):
                self._trace()
            previous = metrics
            with self._profile.step(step):
                metrics = trainer.step(batches, step - 1, stop=stop.name is not None)
            last = step == trainer.total_steps
            due = due or last or step % train.checkpoint_every == 0
            # A step's own metrics have to be waited for, so most steps are judged after the next.
            judged = metrics if due else previous
            if judged and has_diverged(judged, last):
                raise DivergedError(f"Loss or gradient was not finite up to step {step}")
            if self._progress:
                self._progress.after_step(step, metrics)
            stops = judged and judged.batch.stop > 0
            # Weights that gave a loss that is not finite are nothing to go back to.
            good = (due or stops) and metrics.verdict.not_finite_in_a_row == 0
            if stops and good and not last:
                self._save()  # at once: whoever asked may not wait for more
                return True
            if step % train.image_every == 0 and not last:
                self._on_chief(functools.partial(self._validate, step, stop))
            if last or (due and good):
                self._save()  # last, so that a run killed before it validates again
                due = False
        return False

    def _validate(self, step: int, stop: StopRequest) -> None:
        assert self._progress
        with contextlib.suppress(Stopped):  # the next step tells all workers
            self._checkpointer.save_if_best(self._progress.validate(step, stop))

    def _save(self) -> None:
        if self._progress:
            self._progress.flush()  # a run that resumes from here finds what it has logged
        self._on_chief(self._checkpointer.save)

    def _on_chief(self, action: Callable[[], None]) -> None:
        """Does on the chief what every worker calls at the same step.

        Raises:
          DivergedError: The chief has found values that are not finite. All workers raise it, for
            they go back to the last checkpoint together.
        """
        found = ""  # and not the error, whose frames keep the weights that were looked at
        if self._chief:
            try:
                action()
            except DivergedError as error:
                found = str(error)
        if self._trainer.sum_over_replicas(int(bool(found))):
            raise DivergedError(found or "The chief has found values that are not finite")

    def roll_back(self, error: DivergedError) -> None:
        """Goes back to the last checkpoint, with half the learning rate.

        Raises:
          DivergedError: That was done too often; the message advises what to try.
        """
        trainer = self._trainer
        failed, step = trainer.state.model_values(), max(self.step - 1, 0)
        batch = self._batch(step)  # of the last step, which was not finite
        rollbacks = int(trainer.state.guard.rollbacks.numpy()) + 1
        self._checkpointer.restore()  # first, for looking for the culprit may fail
        trainer.check_agreement()
        if self._chief:
            self._checkpointer.clear_leftovers()
        self._batches = trainer.batches(self._images)
        finding = first_non_finite(trainer, failed, step, batch)
        if rollbacks > self._config.train.max_rollbacks:
            if self._progress:
                self._progress.fail()
            raise DivergedError(
                f"{error}. {finding}. {rollbacks - 1} rollback(s) did not help. The last "
                "checkpoint is intact. In another workdir, a run can start from its weights "
                f"(--init_from={shlex.quote(self._workdir.path)}), with a lower "
                "optimizer.learning_rate, a larger train.weight_decay_norm, optimizer.clip_norm, "
                "train.skip_gradient_norm, or train.precision=float32."
            ) from error
        trainer.state.guard.note_rollback(rollbacks)
        factor = float(trainer.state.guard.learning_rate_factor.numpy())
        self.say(
            f"{error}. {finding}. Back to step {self.step}, with {factor:g} times the "
            f"learning rate (rollback {rollbacks} of {self._config.train.max_rollbacks})."
        )
        if self._progress:
            self._progress.go_back_to(self.step)

    def finish(self) -> None:
        """Evaluates the finished model on all test images, prints and writes the result.

        Raises:
          DivergedError: The result is not finite.
        """
        if self._progress:
            try:
                found, validation = self._progress.measure()
            except DivergedError:
                self._progress.fail()
                raise
            self._checkpointer.save_if_best(validation)
            self._progress.finish(found)  # last: a run that has a result is complete

    def close(self) -> None:
        """Ends bar, event files and profile; calling it again changes nothing."""
        self._profile.close()
        if self._progress:
            self._progress.close()
