"""Completes images of which some pixels are missing. See docs/completion.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.devices import filled_rows
from nvae_tf.model.inference import AnyModel, InferenceModel, PreparedWeights

# Adam's, for a learning rate that falls to zero.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.99, 1e-6
_DRAWS = 2  # for each step's estimate of the bound
_FILLINGS, _FILLINGS_AT_ONCE = 512, 32  # draws from the prior that are tried
_LEAST_SCALE = 1e-3  # of the noise, where q begins


class Completions(NamedTuple):
    """M completions of each of B images.

    Attributes:
      images: Means of the likelihood in [0, 1], without padding, [B, M, h, w, C].
      hole_log_prob: log p(hole | z_m) of the pixels that were given, nats, [B, M].
      seen_log_prob: log p(seen pixels | z_m), nats, [B, M].
    """

    images: np.ndarray
    hole_log_prob: np.ndarray
    seen_log_prob: np.ndarray


class _Noise(NamedTuple):
    """A normal distribution of the noise of every group, for each image on its own."""

    loc: list[tf.Tensor]  # L of [B, H_l, W_l, C_z]
    log_scale: list[tf.Tensor]  # L of [B, H_l, W_l, C_z]


class _State(NamedTuple):
    """A step's result: the distribution, and Adam's means of gradients and of their squares."""

    noise: _Noise
    first: _Noise
    second: _Noise


class Completer:
    """Draws what may have been in the holes of images.

    The latent groups are written as the model draws them from its prior, z_l = μ_l(z_<l) +
    σ_l(z_<l) ε_l with normal noise ε. For each image the bound

    ```none
    log p(seen) ≥ E_q(ε) [ log p(seen | z(ε)) ] - KL( q(ε) | N(0, 1) )
    ```

    is maximised over a normal distribution q with a mean and a scale for each component of ε. It
    begins as the encoder's posterior, in terms of ε, of the image with its hole filled: by that of
    some draws from the prior which makes the seen pixels likeliest. A completion is a draw from q,
    decoded.

    An image's completions depend on the seed and its number alone (kernels may round differently
    for another batch size), and on no pixel in its hole.

    Args:
      model: The model; each call of `batches` takes its weights of that moment.
      steps: Steps of Adam; 0 draws from where q begins.
      learning_rate: Of the first step; it falls linearly to zero.
      batch_size: Images at a time.

    Raises:
      ValueError: Steps, learning rate or batch size are too small.

    #### References

    Kingma and Welling, *Auto-Encoding Variational Bayes*, ICLR 2014, for the bound and its
    gradient; Cremer et al., *Inference Suboptimality in Variational Autoencoders*, ICML 2018, for
    distributions that are optimised image by image.
    """

    def __init__(
        self,
        model: AnyModel,
        steps: int = 100,
        learning_rate: float = 0.1,
        batch_size: int = 32,
    ):
        if steps < 0 or not learning_rate > 0 or batch_size < 1:
            raise ValueError(
                "Steps must not be negative; learning rate and batch size must be "
                f"positive; received {steps}, {learning_rate} and {batch_size}."
            )
        self._model = InferenceModel.of(model)
        self._steps = steps
        self._learning_rate = learning_rate
        self._batch_size = batch_size
        self._fill = self._model.function(self._fill_once)
        self._encode = self._model.function(self._encode_filled)
        self._improve = self._model.function(self._improve_once)
        self._complete = self._model.function(self._complete_once)

    def batches(
        self,
        images: tf.Tensor,
        holes: np.ndarray,
        completions: int = 8,
        seed: int = 0,
        after_step: Callable[[], object] | None = None,
    ) -> Iterator[Completions]:
        """Completes N images, batch by batch.

        Args:
          images: (N, H, W, C) in [0, 1] as the model sees them, padding included.
          holes: (N, h, w) bool without padding, true where a pixel is missing.
          completions: M.
          seed: A number from which all draws are made.
          after_step: A function that is called after every step, for progress.

        Raises:
          ValueError: There are no images, the holes do not fit them, or fewer than one completion
            is asked for. The call raises it, not the first batch.
        """
        expected = (len(images), *self._model.config.content_shape[:2])
        if tuple(holes.shape) != expected or not len(images):
            raise ValueError(
                f"Expected one image or more and their holes, of shape {expected}; received "
                f"{tuple(holes.shape)}."
            )
        if completions < 1:
            raise ValueError(f"completions must be at least 1, received {completions}.")
        weights = self._model.weights()
        return self._batches(
            weights, tf.convert_to_tensor(images), holes, completions, seed, after_step
        )

    def _batches(
        self,
        weights: PreparedWeights,
        images: tf.Tensor,
        holes: np.ndarray,
        completions: int,
        seed: int,
        after_step: Callable[[], object] | None,
    ) -> Iterator[Completions]:
        count = len(holes)
        for rows, number in filled_rows(count, min(self._batch_size, count)):
            batch, hole = tf.gather(images, rows), tf.constant(holes[rows])
            first = tf.constant(rows[0], tf.int64)
            noise = self._fit(weights, batch, hole, seed, first, after_step)
            drawn = []
            for completion in range(completions):
                own = tf.constant([seed, self._steps + completion], tf.int64)
                drawn_now = self._complete(weights, batch, hole, noise, own, first)
                drawn.append([tensor.numpy() for tensor in drawn_now])
            parts = (np.stack(part, axis=1)[:number] for part in zip(*drawn))
            yield Completions(*parts)

    def _fit(
        self,
        weights: PreparedWeights,
        images: tf.Tensor,
        holes: tf.Tensor,
        seed: int,
        first: tf.Tensor,
        after_step: Callable[[], object] | None,
    ) -> _Noise:
        """Returns the distribution that maximises the bound of each image's seen pixels."""
        # The fillings are the same for all images, and their seed that of no step.
        own = tf.constant([seed, -1], tf.int64)
        best = tf.fill([len(images)], -np.inf), tf.zeros_like(images)
        for row in range(0, _FILLINGS, _FILLINGS_AT_ONCE):
            best = self._fill(weights, images, holes, best, own, tf.constant(row, tf.int64))
        start = self._encode(weights, best[1])
        zeros = tf.nest.map_structure(tf.zeros_like, start)
        state = _State(start, zeros, zeros)
        for step in range(self._steps):
            own = tf.constant([seed, step], tf.int64)
            rate = self._learning_rate * (1 - step / self._steps)
            number = tf.constant(step + 1.0)
            state = self._improve(
                weights, images, holes, state, own, first, number, tf.constant(rate)
            )
            if after_step:
                after_step()
        return state.noise

    def _fill_once(
        self,
        images: tf.Tensor,
        holes: tf.Tensor,
        best: tuple[tf.Tensor, tf.Tensor],
        seed: tf.Tensor,
        first: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Tries draws from the prior, and returns the best fillings so far.

        Args:
          images: (B, H, W, C).
          holes: (B, h, w).
          best: log p(seen) by the best draw (B,), and the images filled by it (B, H, W, C).
          seed: Two integers.
          first: The number of the first draw.
        """
        model = self._model
        noise = model.draw_noise(_FILLINGS_AT_ONCE, seed, first)
        likelihood = model.likelihood(model.generate(_FILLINGS_AT_ONCE, noise=noise))

        def log_prob(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            image, hole = row
            return _sum(tf.where(hole, 0.0, likelihood.log_prob_by_pixel(image[None])))

        tried = tf.map_fn(log_prob, (images, holes), fn_output_signature=tf.float32)
        border = [model.config.padding] * 2
        hidden = tf.pad(holes, [[0, 0], border, border])[..., None]
        drawn = tf.gather(likelihood.mean(), tf.argmax(tried, axis=1))
        filled = tf.where(hidden, drawn, images)
        highest = tf.reduce_max(tried, axis=1)
        better = highest > best[0]
        return (
            tf.where(better, highest, best[0]),
            tf.where(better[:, None, None, None], filled, best[1]),
        )

    def _encode_filled(self, images: tf.Tensor) -> _Noise:
        """Returns the distribution of the noise that the posterior of whole images stands for."""
        model = self._model
        features = model.bottom_up(images)
        noise = _Noise([], [])

        def draw(group: int, top_down: tf.Tensor | None) -> tf.Tensor:
            shape = [images.shape[0], *model.config.latent_shapes[group]]
            # What flows make of a distribution is taken for a normal one here.
            mean, higher = (
                model.infer_group(group, features[group], top_down, number * tf.ones(shape)).latent
                for number in (0.0, 1.0)
            )
            prior = model.prior(group, top_down, tf.shape(mean))
            scale = tf.maximum(tf.abs(higher - mean) / prior.scale, _LEAST_SCALE)
            noise.loc.append((mean - prior.loc) / prior.scale)
            noise.log_scale.append(tf.math.log(scale))
            return mean

        model.top_down(images.shape[0], draw)
        return noise

    def _improve_once(
        self,
        images: tf.Tensor,
        holes: tf.Tensor,
        state: _State,
        seed: tf.Tensor,
        first: tf.Tensor,
        number: tf.Tensor,
        rate: tf.Tensor,
    ) -> _State:
        """Takes a step of Adam, the number of which counts from 1, for each image on its own."""
        parameters = tf.nest.flatten(state.noise)
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            bound = tf.reduce_sum(self._bound(images, holes, state.noise, seed, first))
        gradients = tape.gradient(bound, parameters)
        moments, squares = tf.nest.flatten(state.first), tf.nest.flatten(state.second)
        moments = [_BETA_1 * m + (1 - _BETA_1) * g for m, g in zip(moments, gradients)]
        squares = [_BETA_2 * s + (1 - _BETA_2) * g * g for s, g in zip(squares, gradients)]
        rate *= tf.sqrt(1 - _BETA_2**number) / (1 - _BETA_1**number)
        moved = [
            p + rate * m / (tf.sqrt(s) + _EPSILON) for p, m, s in zip(parameters, moments, squares)
        ]
        return tf.nest.pack_sequence_as(state, [*moved, *moments, *squares])

    def _bound(
        self,
        images: tf.Tensor,
        holes: tf.Tensor,
        noise: _Noise,
        seed: tf.Tensor,
        first: tf.Tensor,
    ) -> tf.Tensor:
        """Estimates the bound on log p(seen) of each image (B,) with a few draws."""
        rows = _Noise(*([tf.repeat(t, _DRAWS, axis=0) for t in part] for part in noise))
        _, log_prob = self._decode(tf.repeat(images, _DRAWS, axis=0), rows, seed, first * _DRAWS)
        seen = _sum(tf.where(tf.repeat(holes, _DRAWS, axis=0), 0.0, log_prob))
        kl = [
            tf.reduce_sum(0.5 * (m * m + tf.exp(2 * s) - 1) - s, [1, 2, 3])
            for m, s in zip(noise.loc, noise.log_scale)
        ]
        return tf.reduce_mean(tf.reshape(seen, [-1, _DRAWS]), axis=1) - tf.add_n(kl)

    def _complete_once(
        self,
        images: tf.Tensor,
        holes: tf.Tensor,
        noise: _Noise,
        seed: tf.Tensor,
        first: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draws a completion of each image: [B, h, w, C], log p of the hole, and of the rest."""
        mean, log_prob = self._decode(images, noise, seed, first)
        completed = tf.where(holes[..., None], mean, self._model.crop_padding(images))
        hole, seen = tf.where(holes, log_prob, 0.0), tf.where(holes, 0.0, log_prob)
        return completed, _sum(hole), _sum(seen)

    def _decode(
        self, images: tf.Tensor, noise: _Noise, seed: tf.Tensor, first: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws from q: means (B, h, w, C), and log p of the images' pixels (B, h, w)."""
        model, batch = self._model, images.shape[0]
        normal = model.draw_noise(batch, seed, first)
        drawn = [m + tf.exp(s) * n for m, s, n in zip(noise.loc, noise.log_scale, normal)]
        likelihood = model.likelihood(model.generate(batch, noise=drawn))
        return model.crop_padding(likelihood.mean()), likelihood.log_prob_by_pixel(images)


def _sum(by_pixel: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(by_pixel, axis=[1, 2])
