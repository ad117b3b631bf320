"""The training step as functions: gradients of a batch or a part of one, and the update.

`forward_backward` is a function of tensors. It computes on every replica, with its share of the
images; what it returns is summed over the replicas. `update` runs once, outside of them.
docs/training_step.md follows one batch.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.data import training_input, training_seed
from nvae_tf.model.layers.context import functional_call
from nvae_tf.model.layers.normalization import move_average
from nvae_tf.model.nvae import NVAE, InferenceOutput
from nvae_tf.model.stacks import StackLayout
from nvae_tf.replicas import Replicas
from nvae_tf.training.consistency import infer_with_views
from nvae_tf.training.gradients import two_stage_gradients
from nvae_tf.training.metrics import BatchMeans, StepMetrics, Verdict
from nvae_tf.training.objective import ObjectiveTerms, negative_elbo, objective_terms
from nvae_tf.training.optimizer import AdaMax
from nvae_tf.training.regularization import FIRST_ITERATIONS, ITERATIONS, Regularizer
from nvae_tf.training.schedule import Schedule
from nvae_tf.training.weight_average import move_weight_average
from trainers.run.state import Reading, TrainState


@dataclasses.dataclass(frozen=True)
class StepDefinition:
    """The parts of a step that no step changes."""

    config: ExperimentConfig
    model: NVAE  # structure alone
    regularizer: Regularizer
    schedule: Schedule
    weights: StackLayout
    statistics: StackLayout
    num_replicas: int
    frozen: bool  # batch normalisation, which then normalises by its moving averages

    @property
    def replica_batch(self) -> int:
        """The number of images that a replica sees at a time."""
        train = self.config.train
        return train.global_batch_size // (self.num_replicas * train.accumulation_steps)

    @property
    def rows(self) -> int:
        """The number of inputs that go through the model at a time: images, and their views."""
        return self.replica_batch * (2 if self.config.train.consistency else 1)


class Share(NamedTuple):
    """The contribution of a batch, or of a part of one, to the update of a state."""

    gradients: list[tf.Tensor]  # by stack of the weights, times the loss scale
    statistics: list[tf.Tensor]  # by stack of the moving averages; none if those are frozen
    means: BatchMeans


def forward_backward(
    run: StepDefinition,
    replicas: Replicas,
    state: Reading,
    images: tf.Tensor,
    noise: list[tf.Tensor],
    part: tf.Tensor,
    stop: tf.Tensor,
) -> tuple[Share, list[tf.Tensor]]:
    """Computes a replica's loss and gradients, and sums them over the replicas.

    Args:
      run: The definition of the step.
      replicas: Those that compute the step together.
      state: The values to start from.
      images: This replica's images (B, H, W, C); with consistency regularisation (2B, H, W, C).
      noise: Their noise; `prepare` gives both.
      part: The number of the part of the global batch, with accumulation; else 0.
      stop: Whether this worker was asked to stop.

    Returns:
      The sum of the replicas' shares, and the singular vectors after this part.
    """
    images = tf.ensure_shape(images, [run.rows, *run.config.model.image_shape])
    step = state.step
    schedule = run.schedule.at(step)
    averages, scale = run.statistics.split(state.statistics), state.loss_scale
    # The first part of a batch moves the vectors, the others find them where they are.
    iterations = tf.where(part > 0, 0, tf.where(step > 0, ITERATIONS, FIRST_ITERATIONS))

    def regularize(
        weights: list[tf.Tensor],
    ) -> tuple[list[tf.Tensor], tf.Tensor, tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]]:
        stacks = run.weights.lookup(weights)
        kernels = run.regularizer.kernels.compute(stacks)
        values, vectors = run.regularizer.singular_values(
            kernels, state.singular_vectors, iterations, run.config.train.jit_compile == "step"
        )
        batch_norm = run.regularizer.batch_norm(stacks)
        return kernels, tf.reduce_sum(values) + batch_norm, (values, batch_norm, vectors)

    def infer(weights: list[tf.Tensor], kernels: list[tf.Tensor]) -> tuple[tf.Tensor, _Inferred]:
        values = run.weights.split(weights) | averages
        bank = run.regularizer.kernels
        kernels_by_path = bank.split(bank.cast(kernels))
        with functional_call(
            run.model,
            values,
            kernels_by_path,
            recompute=run.config.train.recompute,
            replicas=replicas,
            jit_compile=run.config.train.jit_compile,
            frozen=run.frozen,
        ) as call:
            output, divergence = _output_and_divergence(run, images, noise)
        terms = objective_terms(run.model, images, output, schedule.kl, replicas)
        # With views, the bounds of both count (Sinha and Dieng 2021, equation 3).
        loss = tf.reduce_sum(terms.reconstruction + schedule.kl * terms.balanced_kl)
        loss += run.config.train.consistency * divergence
        size = run.replica_batch * replicas.size
        loss, divergence = loss / size, divergence / size
        return loss * scale, _Inferred(loss, divergence, output, terms, call.statistics)

    penalty = schedule.regularization / replicas.size
    gradients, (singular_values, batch_norm, vectors), inferred = two_stage_gradients(
        state.weights, regularize, infer, penalty * scale
    )
    penalties = schedule.regularization * (tf.reduce_sum(singular_values) + batch_norm)
    inferred = inferred._replace(loss=inferred.loss + penalties / replicas.size)
    means = _replica_means(run, inferred, singular_values, batch_norm, stop)
    summed = replicas.sum([*gradients, *means])
    gradients, means = summed[: len(gradients)], BatchMeans(*summed[len(gradients) :])
    # The replicas have synchronised their batch statistics already.
    statistics = [] if run.frozen else run.statistics.join(inferred.statistics)
    return Share(gradients, statistics, means), vectors


def _output_and_divergence(
    run: StepDefinition, images: tf.Tensor, noise: list[tf.Tensor]
) -> tuple[InferenceOutput, tf.Tensor]:
    """Calls the model; returns the sum of the views' divergences as well, 0 without views."""
    if not run.config.train.consistency:
        return run.model.infer(images, noise, training=True), tf.constant(0.0)
    output, divergences = infer_with_views(run.model, images, noise)
    return output, tf.reduce_sum(divergences)


class _Inferred(NamedTuple):
    """What a replica's inputs gave; the loss and the inconsistency are its shares of the mean."""

    loss: tf.Tensor
    inconsistency: tf.Tensor
    output: InferenceOutput
    terms: ObjectiveTerms
    statistics: dict[str, tf.Tensor]


def _replica_means(
    run: StepDefinition,
    inferred: _Inferred,
    singular_values: tf.Tensor,
    batch_norm: tf.Tensor,
    stop: tf.Tensor,
) -> BatchMeans:
    """Computes what a replica adds to the means over the batch, of images without their views."""
    replicas, terms, own = run.num_replicas, inferred.terms, run.replica_batch
    batch = own * replicas
    kl_per_group = terms.kl_per_group[:own]
    kl = tf.reduce_sum(kl_per_group, axis=1)
    bound = tf.stack([negative_elbo(terms)[:own], terms.reconstruction[:own], kl])
    return BatchMeans(
        loss=inferred.loss,
        bound=tf.reduce_sum(bound, axis=1) / batch,
        squared_bound=tf.reduce_sum(tf.square(bound), axis=1) / batch,
        kl_per_group=tf.reduce_sum(kl_per_group, axis=0) / batch,
        kl_per_channel=tf.reduce_sum(inferred.output.kl_per_channel[:own], axis=0) / batch,
        balance=terms.balance / replicas,
        inconsistency=inferred.inconsistency,
        singular_values=singular_values / replicas,
        batch_norm=batch_norm / replicas,
        stop=tf.cast(stop, tf.float32),
    )


def prepare(
    run: StepDefinition, replicas: Replicas, stored: tf.Tensor, step: tf.Tensor, part: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Makes the model's input of a replica's images, and draws their noise.

    Both are rows of what belongs to the global batch, and depend on the step's number only. XLA
    would draw other numbers, so this stays outside of what it compiles.

    Args:
      run: The definition of the step.
      replicas: Those that compute the step together.
      stored: This replica's images (B, h, w, C) uint8.
      step: The number of steps done.
      part: The number of the part of the global batch, with accumulation; else 0.

    Returns:
      The images (B, H, W, C) float32, and their noise by group. With consistency regularisation,
      views of them follow, and the views' noise.
    """
    first = run.replica_batch * (part * replicas.size + replicas.index)

    def draw(as_views: bool) -> tuple[tf.Tensor, list[tf.Tensor]]:
        seed = training_seed(run.config, step, as_views)
        images = training_input(stored, run.config, step, first, as_views)
        return images, run.model.draw_noise(run.replica_batch, seed, first)

    inputs = draw(as_views=False)
    if not run.config.train.consistency:
        return inputs
    pairs = zip(tf.nest.flatten(inputs), tf.nest.flatten(draw(as_views=True)))
    return tf.nest.pack_sequence_as(inputs, [tf.concat(pair, axis=0) for pair in pairs])


def update(run: StepDefinition, state: TrainState, share: Share) -> StepMetrics:
    """Judges the gradients of a whole batch and moves the state by one step; outside of replicas.

    Args:
      run: The definition of the step.
      state: The state to be moved.
      share: The sum over replicas and parts; under a strategy, one for every replica.
    """
    strategy, optimizer = tf.distribute.get_strategy(), run.config.optimizer
    gradients = [_local(gradient) for gradient in share.gradients]
    means = tf.nest.map_structure(_local, share.means)
    schedule = run.schedule.at(tf.convert_to_tensor(state.step))
    rate = state.guard.learning_rate_factor * schedule.learning_rate
    scale = tf.convert_to_tensor(state.guard.loss_scale)
    norm = tf.linalg.global_norm(gradients) / scale
    applied = state.guard.judge(means.loss, norm)

    def apply() -> bool:
        with strategy.scope():  # which the branches of a tf.cond do not inherit
            AdaMax(optimizer).apply(
                state.weights.stacks,
                state.momentum.stacks,
                state.infinity_norm.stacks,
                state.iterations,
                share.gradients,
                rate,
                _multiplier(run.config, norm, scale),
            )
            for average, statistic in zip(state.statistics.stacks, share.statistics):
                strategy.extended.update(
                    average, lambda a, s: a.assign(move_average(a, s)), args=(statistic,)
                )
            if state.average:
                move_weight_average(state.average.stacks, state.weights.stacks, optimizer.ema_decay)
        return True

    tf.cond(applied, apply, lambda: False)
    state.step.assign_add(1)
    return StepMetrics(
        batch=means,
        schedule=schedule._replace(learning_rate=rate),
        verdict=Verdict(
            gradient_norm=norm,
            loss_scale=scale,
            applied=applied,
            skipped=tf.convert_to_tensor(state.guard.skipped),
            not_finite_in_a_row=tf.convert_to_tensor(state.guard.not_finite_in_a_row),
        ),
    )


def _local(value: tf.Tensor) -> tf.Tensor:
    """Returns one replica's value of what is the same on all of them."""
    return tf.distribute.get_strategy().experimental_local_results(value)[0]


def _multiplier(config: ExperimentConfig, norm: tf.Tensor, scale: tf.Tensor) -> tf.Tensor | None:
    """Returns the factor that takes the loss scale off gradients and clips them; None for 1."""
    clip_norm = config.optimizer.clip_norm
    if clip_norm:
        return tf.minimum(clip_norm / tf.maximum(norm, clip_norm), 1.0) / scale
    return 1 / scale if config.train.precision == "mixed_float16" else None
