"""One run: from a configuration to a trained and evaluated model in a workdir."""

from __future__ import annotations

import dataclasses
import sys
import time

import numpy as np
from tqdm import tqdm

from nvae_tf.config import ExperimentConfig
from nvae_tf.data import evaluation_batches, load_images, training_batches
from nvae_tf.evaluation import LikelihoodEvaluator, LikelihoodResult
from nvae_tf.objective import bits_per_dimension
from nvae_tf.workdir import Workdir
from trainers.checkpoints import Checkpointer
from trainers.loop import StepMetrics, Trainer, make_strategy, run_steps, trace_step
from trainers.summaries import Summaries

_VALIDATION_IMAGES = 1000  # at most, during training
_EVALUATION_BATCH = 100
_EXAMPLES = 16  # held-out images whose reconstructions are shown


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

    start = time.perf_counter()
    trainer = Trainer(config, strategy, len(images))
    model, total = trainer.model, trainer.total_steps
    print(
        f"{model.num_trainable_parameters:,} parameters in {config.model.num_groups} groups, built "
        f"in {time.perf_counter() - start:.1f} s; {len(images):,} training images, "
        f"{strategy.num_replicas_in_sync} replica(s).",
        flush=True,
    )
    checkpointer = Checkpointer(trainer, workdir)
    restored = checkpointer.restore()
    step = int(trainer.optimizer.iterations.numpy())
    if step >= total and workdir.evaluated_step() == step:
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
    progress = _Progress(trainer, checkpointer, workdir, test_images)
    try:
        run_steps(trainer, batches, progress.after_step)
        progress.finish()
    finally:
        progress.close()


class _Progress:
    """What a run shows and saves on its way.

    Args:
      trainer: whose steps are reported.
      checkpointer: of the trainer.
      workdir: where summaries and the evaluation go.
      test_images: (N, h, w, C) uint8, held out.
    """

    def __init__(
        self,
        trainer: Trainer,
        checkpointer: Checkpointer,
        workdir: Workdir,
        test_images: np.ndarray,
    ):
        config = trainer.config
        self._trainer = trainer
        self._checkpointer = checkpointer
        self._workdir = workdir
        self._test_images = test_images
        self._evaluator = LikelihoodEvaluator(trainer.model)
        examples = evaluation_batches(test_images[:_EXAMPLES], config.model, _EXAMPLES)
        self._summaries = Summaries(workdir, trainer.model, next(iter(examples)))
        step = int(trainer.optimizer.iterations.numpy())
        self._bar = tqdm(
            total=trainer.total_steps,
            initial=step,
            unit="step",
            mininterval=1 if sys.stderr.isatty() else 20,
            dynamic_ncols=True,
        )
        self._since = step, time.perf_counter()  # of the last report

    def after_step(self, step: int, metrics: StepMetrics) -> None:
        """To be called after every step, with its number from 1."""
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
        result = self._evaluate(self._test_images, self._trainer.total_steps)
        fields = {"split": self._trainer.config.data.test_split, **dataclasses.asdict(result)}
        self._workdir.write_evaluation(fields)
        self.close()
        print(
            f"Finished: -ELBO {result.negative_elbo:.2f} ± "
            f"{result.negative_elbo_standard_error:.2f} nats "
            f"({result.negative_elbo_bits_per_dim:.4f} bits/dim) on {result.num_images:,} "
            f"held-out images: reconstruction {result.reconstruction:.2f}, KL {result.kl:.2f}.",
            flush=True,
        )

    def close(self) -> None:
        """Ends bar and event files; may be called again."""
        self._bar.close()
        self._summaries.close()
