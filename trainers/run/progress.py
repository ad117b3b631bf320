"""Shows a run on its way: the bar, the summaries, the evaluation of held-out images."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from nvae_tf.data import describe, evaluation_batches
from nvae_tf.evaluation import (
    COLLAPSED_NATS,
    ImageLikelihoods,
    LikelihoodEvaluator,
    LikelihoodResult,
    collapsed_groups,
)
from nvae_tf.evaluation.kept_rows import NotFiniteError
from nvae_tf.files import to_json, write_atomically
from nvae_tf.model.inference import InferenceModel, PreparedWeights
from nvae_tf.model.nvae import NVAE
from nvae_tf.runs.workdir import Workdir
from nvae_tf.training.metrics import StepMetrics
from nvae_tf.training.objective import bits_per_dimension
from trainers.run.memory import peak_memory
from trainers.run.signals import StopRequest
from trainers.run.trainer import DivergedError, Trainer
from trainers.summaries import EXAMPLES, Speed, Summaries, group_name

_VALIDATION_IMAGES = 1000  # at most, during training
_SEED = 0  # of bounds, as of nvae-evaluate without --seed


def drawn_rows(count: int, wanted: int) -> np.ndarray:
    """Draws numbers from 0 to count - 1 in ascending order, the same ones in every run.

    Images are chosen so because data sets may be sorted, for instance by class.
    """
    return np.sort(np.random.default_rng(0).permutation(count)[:wanted])


class Progress:
    """Reports the steps of a run, and evaluates it.

    Evaluations prepare the weights of the trainer's state, which are freed after each of them.

    Args:
      trainer: The trainer whose steps are reported.
      workdir: Where summaries and the evaluation go.
      test_images: (N, h, w, C) uint8, held out.
    """

    def __init__(
        self,
        trainer: Trainer,
        workdir: Workdir,
        test_images: np.ndarray,
    ):
        config = trainer.config
        self._trainer = trainer
        self._workdir = workdir
        self._test_images = test_images
        self._validated = drawn_rows(len(test_images), _VALIDATION_IMAGES)
        self._model = InferenceModel(trainer.model)
        self._evaluator = LikelihoodEvaluator(self._model)
        shown = test_images[drawn_rows(len(test_images), EXAMPLES)]
        examples = evaluation_batches(shown, config.model, EXAMPLES)
        step = trainer.state.steps_done
        self._summaries = Summaries(
            workdir,
            config,
            self._model,
            trainer.regularizer.layers,
            next(iter(examples)),
            step,
            facts={
                "replicas": trainer.strategy.num_replicas_in_sync,
                "steps": f"{trainer.total_steps:,}",
            },
        )
        self._collapsed: list[int] = []
        self._steps_seen = 0
        self._bar = tqdm(
            total=trainer.total_steps,
            initial=step,
            unit="step",
            mininterval=1 if sys.stderr.isatty() else 20,
            dynamic_ncols=True,
        )
        self._restart_clock(step)

    def after_step(self, step: int, metrics: StepMetrics) -> None:
        """Reports a step; call it after every one, with its number from 1."""
        train = self._trainer.config.train
        self._bar.update()
        self._steps_seen += 1
        if self._steps_seen == 2:  # what the first one allocates for a moment is gone
            for device, peak in peak_memory().items():
                self._write(f"{device} has taken {peak / 1e9:.2f} GB at most in two steps")
        if step % train.log_every == 0 or step == self._trainer.total_steps:
            self._report(step, metrics)

    def go_back_to(self, step: int) -> None:
        """Reports that a rollback has gone back to so many steps done."""
        self._bar.reset(total=self._trainer.total_steps)
        self._bar.update(step)
        self._summaries.restart(step)
        self._restart_clock(step)

    def _restart_clock(self, step: int) -> None:
        self._since = step, time.perf_counter(), self._trainer.seconds_waiting

    def _report(self, step: int, metrics: StepMetrics) -> None:
        since_step, since, waited = self._since
        seconds = time.perf_counter() - since
        rate = (step - since_step) * self._trainer.config.train.global_batch_size / seconds
        waiting = (self._trainer.seconds_waiting - waited) / seconds
        self._restart_clock(step)
        elbo = float(metrics.batch.negative_elbo)
        bits = bits_per_dimension(elbo, self._trainer.config.model)
        self._bar.set_postfix_str(
            f"{rate:.0f} images/s, {waiting:.1%} waiting for data, -ELBO {elbo:.1f} nats, "
            f"{bits:.3f} bits/dim, KL {float(metrics.batch.kl):.1f}, "
            f"beta {float(metrics.schedule.kl):.2f}",
            refresh=False,
        )
        self._summaries.log_step(step, metrics, Speed(rate, waiting))

    def validate(self, step: int, stop: StopRequest) -> float:
        """Evaluates some held-out images and shows pictures; returns the -ELBO in nats.

        Raises:
          DivergedError: It is not finite.
          Stopped: A signal arrived meanwhile.
        """
        stop.check()
        weights = self._weights()
        found = self._validation_bounds(weights, lambda _: stop.check())
        self._log(step, found, weights)
        result = found.summary(self._trainer.config.model)
        self._summaries.flush()
        self._write(
            f"step {step}: validation -ELBO {result.negative_elbo:.2f} nats, "
            f"{result.negative_elbo_bits_per_dim:.4f} bits/dim"
        )
        self._warn_of_collapse(step, result)
        self._restart_clock(step)
        return result.negative_elbo

    def _write(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def _warn_of_collapse(self, step: int, result: LikelihoodResult) -> None:
        """Says which groups carry nothing, whenever that has changed."""
        before, self._collapsed = self._collapsed, collapsed_groups(result.kl_per_group)
        if self._collapsed and self._collapsed != before:
            names = ", ".join(map(group_name, self._collapsed))
            self._write(
                f"step {step}: Warning: {len(self._collapsed)} of {len(result.kl_per_group)} "
                f"groups have collapsed, with less than {COLLAPSED_NATS} nats of KL on held-out "
                f"images: {names}"
            )
        elif before and not self._collapsed:
            self._write(f"step {step}: all groups are in use again")

    def _weights(self) -> PreparedWeights:
        """Prepares the weights of the steps done."""
        return self._model.weights(self._trainer.state.evaluation_values())

    def _bounds(
        self,
        images: np.ndarray,
        evaluator: LikelihoodEvaluator,
        weights: PreparedWeights,
        after_batch: Callable[[int], None] | None = None,
    ) -> ImageLikelihoods:
        # What fits into a device's memory in training does so here.
        batches = evaluation_batches(
            images, self._trainer.config.model, self._trainer.replica_batch, _SEED
        )
        try:
            return evaluator.per_image(
                batches, seed=_SEED, after_batch=after_batch, weights=weights
            )
        except NotFiniteError as error:
            step = self._trainer.state.steps_done
            raise DivergedError(
                f"The -ELBO of held-out images was not finite after step {step}"
            ) from error

    def _validation_bounds(
        self, weights: PreparedWeights, after_batch: Callable[[int], None] | None = None
    ) -> ImageLikelihoods:
        images = self._test_images[self._validated]
        return self._bounds(images, self._evaluator, weights, after_batch)

    def _log(self, step: int, found: ImageLikelihoods, weights: PreparedWeights) -> None:
        self._summaries.log_validation(step, found.summary(self._trainer.config.model))
        self._summaries.log_images(step, weights)

    def flush(self) -> None:
        """Makes everything that was logged visible."""
        self._summaries.flush()

    def fail(self) -> None:
        """Reports that the run ends without a result."""
        self._summaries.end(success=False)

    def measure(self) -> tuple[ImageLikelihoods, float]:
        """Evaluates the finished model on all test images.

        It does so in float32, as the other programs do, whatever the precision of the training was.

        Returns:
          The bounds of all images, and what `validate` would return: an image's draws depend on
          its number among those that are evaluated, so that is measured by itself, in the
          precision of the training; infinite if it is not finite.

        Raises:
          DivergedError: The bounds of all images are not finite.
        """
        own = weights = self._weights()
        evaluator = self._evaluator
        if self._trainer.config.train.precision != "float32":
            exact = InferenceModel(NVAE.structure(self._trainer.config.model, dtype="float32"))
            weights = exact.weights(self._trainer.state.evaluation_values())
            evaluator = LikelihoodEvaluator(exact)
        found = self._bounds(self._test_images, evaluator, weights)
        self._log(self._trainer.state.steps_done, found, own)
        validation = found
        if len(self._validated) < len(self._test_images) or weights is not own:
            try:
                validation = self._validation_bounds(own)
            except DivergedError:  # in float16 alone, so this is not the best one
                return found, math.inf
        return found, float(validation.negative_elbo.mean())

    def finish(self, found: ImageLikelihoods) -> None:
        """Prints and writes what `measure` has found."""
        step = self._trainer.state.steps_done
        result = found.summary(self._trainer.config.model)
        fields = {
            "split": self._trainer.config.data.test_split,
            "seed": _SEED,
            "images_sha256": describe(self._test_images)["sha256"],
            **dataclasses.asdict(result),
        }
        write_atomically(self._workdir.evaluation, to_json({"step": step, **fields}))
        self._workdir.remove_report()
        self._warn_of_collapse(step, result)
        self._summaries.end(success=True)
        self.close()
        print(
            f"Finished: -ELBO {result.negative_elbo:.2f} ± "
            f"{result.negative_elbo_standard_error:.2f} nats "
            f"({result.negative_elbo_bits_per_dim:.4f} bits/dim) on {result.num_images:,} "
            f"held-out images: reconstruction {result.reconstruction:.2f}, KL {result.kl:.2f}.",
            flush=True,
        )

    def close(self) -> None:
        """Ends bar and event files; calling it again changes nothing."""
        self._bar.close()
        self._summaries.close()
