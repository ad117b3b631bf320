"""Trains an NVAE: `python -m trainers.train --preset=quickstart --workdir=DIR`.

Every field of the configuration can be changed by a flag of its own, such as
`--config.model.num_latent_scales=3`. Started again, a run goes on from its newest checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time

import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from ml_collections import config_dict, config_flags
from tqdm import tqdm

from nvae_tf import presets
from nvae_tf.config import ExperimentConfig
from nvae_tf.data import evaluation_batches, load_images, training_batches
from nvae_tf.evaluation import LikelihoodEvaluator, LikelihoodResult
from nvae_tf.files import write_atomically
from nvae_tf.objective import bits_per_dimension
from nvae_tf.workdir import Workdir
from trainers.checkpoints import Checkpointer
from trainers.loop import (
    DivergedError,
    StepMetrics,
    Trainer,
    make_strategy,
    run_steps,
    trace_step,
)
from trainers.programs import usage_errors, use_devices
from trainers.summaries import Summaries

_PRESET = flags.DEFINE_string(
    "preset", None, f"Where the configuration starts from: {', '.join(presets.names())}."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_CONFIG = config_flags.DEFINE_config_dict(
    "config",
    config_dict.ConfigDict(dataclasses.asdict(ExperimentConfig())),
    "Changes to the preset's fields.",
)

_VALIDATION_IMAGES = 1000  # at most, during training
_EVALUATION_BATCH = 100


def requested_config(workdir: Workdir) -> ExperimentConfig:
    """The configuration that preset and flags ask for; without a preset, that of the workdir.

    Raises:
      ValueError: for an unknown preset, a value that is not allowed, or neither preset nor run.
    """
    if _PRESET.value is not None:
        base = presets.get(_PRESET.value)
    elif workdir.has_config:
        base = workdir.read_config()
    else:
        raise ValueError(
            f"{workdir.path!r} holds no run yet: --preset must say what to train "
            f"({', '.join(presets.names())})."
        )
    return base.override(config_flags.get_override_values(flags.FLAGS["config"]))


class _Reporter:
    """Progress bar, summaries and checkpoints of a run."""

    def __init__(self, trainer: Trainer, workdir: Workdir, test_images: np.ndarray):
        config = trainer.config
        self._trainer = trainer
        self._checkpointer = Checkpointer(trainer, workdir)
        self._evaluator = LikelihoodEvaluator(trainer.model)
        self._test_images = test_images
        self._examples = next(
            iter(evaluation_batches(test_images[:16], config.model, batch_size=16))
        )
        self._workdir = workdir
        self._summaries: Summaries | None = None
        self._bar: tqdm | None = None
        self._since = (0, 0.0)  # step and time of the last report

    def restore(self) -> bool:
        return self._checkpointer.restore()

    def start(self, step: int) -> None:
        self._summaries = Summaries(self._workdir, self._trainer.model, self._examples)
        self._bar = tqdm(
            total=self._trainer.total_steps,
            initial=step,
            unit="step",
            mininterval=1 if sys.stderr.isatty() else 20,
            dynamic_ncols=True,
        )
        self._since = step, time.perf_counter()

    def after_step(self, step: int, metrics: StepMetrics) -> None:
        train = self._trainer.config.train
        last = step == self._trainer.total_steps
        self._bar.update()
        if step % train.log_every == 0 or last:
            self._report(step, metrics)
        if step % train.checkpoint_every == 0 or last:
            self._checkpointer.save()
        if step % train.image_every == 0 and not last:  # the last step gets the full evaluation
            self._validate(step)
            self._since = step, time.perf_counter()

    def _report(self, step: int, metrics: StepMetrics) -> None:
        now = time.perf_counter()
        steps, seconds = step - self._since[0], now - self._since[1]
        rate = steps * self._trainer.config.train.global_batch_size / seconds
        self._since = step, now
        elbo = float(metrics.negative_elbo)
        bits = bits_per_dimension(elbo, self._trainer.config.model)
        self._bar.set_postfix_str(
            f"{rate:.0f} images/s, -ELBO {elbo:.1f} nats, {bits:.3f} bits/dim, "
            f"KL {float(metrics.kl):.1f}, beta {float(metrics.kl_coefficient):.2f}",
            refresh=False,
        )
        self._summaries.log_step(step, metrics, rate)

    def _validate(self, step: int) -> None:
        result = self._evaluate(self._test_images[:_VALIDATION_IMAGES], step)
        self._summaries.flush()
        self._bar.write(
            f"step {step}: validation -ELBO {result.negative_elbo:.2f} nats, "
            f"{result.negative_elbo_bits_per_dim:.4f} bits/dim",
            file=sys.stderr,
        )

    def _evaluate(self, images: np.ndarray, step: int) -> LikelihoodResult:
        batches = evaluation_batches(images, self._trainer.config.model, _EVALUATION_BATCH)
        result = self._evaluator.evaluate(batches)
        self._summaries.log_validation(step, result)
        self._summaries.log_images(step)
        return result

    def finish(self) -> None:
        """Evaluates the finished model on all test images, prints and writes the result."""
        self._bar.refresh()
        result = self._evaluate(self._test_images, self._trainer.total_steps)
        write_atomically(
            self._workdir / "evaluation.json",
            json.dumps(dataclasses.asdict(result), indent=2) + "\n",
        )
        self.close()
        print(
            f"Finished: -ELBO {result.negative_elbo:.2f} ± "
            f"{result.negative_elbo_standard_error:.2f} nats "
            f"({result.negative_elbo_bits_per_dim:.4f} bits/dim) on {result.num_images:,} "
            f"held-out images: reconstruction {result.reconstruction:.2f}, KL {result.kl:.2f}.",
            flush=True,
        )

    def close(self) -> None:
        for resource in (self._bar, self._summaries):
            if resource is not None:
                resource.close()


def train(config: ExperimentConfig, workdir: Workdir) -> None:
    """Trains until the run's last step, or goes on from where it stopped.

    Raises:
      ValueError: if the workdir holds another run, or the images do not fit; nothing is created.
      DivergedError: if the loss is not finite any more.
    """
    workdir.check_config(config)
    strategy = make_strategy(config.train.strategy)
    images = load_images(config.data, config.model, config.data.train_split)
    test_images = load_images(config.data, config.model, config.data.test_split)
    training_batches(images, config)  # raises if there are too few images

    start = time.perf_counter()
    trainer = Trainer(config, strategy, len(images))
    model, total = trainer.model, trainer.total_steps
    print(
        f"{model.num_trainable_parameters:,} parameters in {config.model.num_groups} groups, built "
        f"in {time.perf_counter() - start:.1f} s; {len(images):,} training images, "
        f"{strategy.num_replicas_in_sync} replica(s).",
        flush=True,
    )
    reporter = _Reporter(trainer, workdir, test_images)
    restored = reporter.restore()
    step = int(trainer.optimizer.iterations.numpy())
    if step >= total:
        print(
            f"The run in {workdir.path!r} is complete: {step} of {total} steps. "
            "To go on, ask for more with --config.train.steps."
        )
        return
    if restored:
        print(f"Resuming after step {step} of {total}.", flush=True)
    workdir.write_config(config)

    dataset = training_batches(images, config, start=step)
    if not restored:
        model.initialize_from_batch(next(iter(dataset)), (config.train.seed, 0))
    batches = trainer.distribute(dataset)
    print(f"Step traced in {trace_step(trainer, batches):.1f} s.", flush=True)
    try:
        reporter.start(step)
        run_steps(trainer, batches, reporter.after_step)
        reporter.finish()
    finally:
        reporter.close()


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        workdir = Workdir(_WORKDIR.value)
        config = requested_config(workdir)
        use_devices()
        logging.set_verbosity(logging.WARNING)
        try:
            train(config, workdir)
        except DivergedError as error:
            sys.exit(f"Error: {error}")


def run() -> None:
    """Entry point of `nvae-train`."""
    app.run(main)


if __name__ == "__main__":
    run()
