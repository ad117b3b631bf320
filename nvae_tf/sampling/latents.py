"""Encodes, decodes, interpolates, traverses and varies what the latent groups hold.

All are functions of tensors with the batch first, whose rows do not depend on each other, for use
in graphs; the batch dimension may be unknown. Images are (B, H, W, C) in [0, 1] as the model sees
them, padding included; latent variables are lists of L tensors (B, H_l, W_l, C_z), top-down.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import tensorflow as tf

from nvae_tf.model.inference import AnyModel

_PARALLEL = 1e-4  # sine of the angle below which two vectors count as parallel


def encode(
    model: AnyModel, images: tf.Tensor, noise: Sequence[tf.Tensor] | None = None
) -> list[tf.Tensor]:
    """Returns the latent variables of images: means of the posteriors, or draws from them.

    Group l's mean is that of q(z_l | z_<l, x) at the means of the groups before it. With flows it
    is what the flow makes of the mean of its base distribution.

    Args:
      model: The model to encode with.
      images: (B, H, W, C).
      noise: L standard-normal tensors (B, H_l, W_l, C_z) for a draw; None gives the means.
    """
    return model.infer(images, _zeros(model, images) if noise is None else noise).latents


def decode(model: AnyModel, latents: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the likelihood's mean (B, H, W, C) at these latent variables.

    Raises:
      ValueError: The latent variables have the wrong shape or number.
    """
    shapes = [tuple(latent.shape[1:]) for latent in latents]
    if shapes != list(model.config.latent_shapes):
        raise ValueError(
            f"Expected a latent variable for each of the {model.config.num_groups} groups, "
            f"top-down, of shapes {list(model.config.latent_shapes)} after the batch; received "
            f"{shapes}."
        )
    logits = model.top_down(tf.shape(latents[0])[0], lambda group, _: latents[group])
    return model.likelihood(logits).mean()


def reconstruct(
    model: AnyModel, images: tf.Tensor, noise: Sequence[tf.Tensor] | None = None
) -> tf.Tensor:
    """Computes `decode(encode(images))` (B, H, W, C) in one pass."""
    output = model.infer(images, _zeros(model, images) if noise is None else noise)
    return model.likelihood(output.logits).mean()


def draw_latents(
    model: AnyModel, noise: Sequence[tf.Tensor], temperature: float | tf.Tensor = 1.0
) -> list[tf.Tensor]:
    """Returns the latent variables that `model.generate` draws from the prior.

    Args:
      model: The model whose prior it is.
      noise: L standard-normal tensors (B, H_l, W_l, C_z).
      temperature: A factor of the prior's scales: a scalar, (L,), or (B or 1, L or 1).
    """
    latents = []

    def draw(group: int, features: tf.Tensor | None) -> tf.Tensor:
        prior = model.prior(group, features, tf.shape(noise[group]), temperature)
        latents.append(prior.at(noise[group]))
        return latents[-1]

    model.top_down(tf.shape(noise[0])[0], draw)
    return latents


def interpolate(
    start: Sequence[tf.Tensor],
    end: Sequence[tf.Tensor],
    weight: tf.Tensor,
    groups: Collection[int] | None = None,
) -> list[tf.Tensor]:
    """Returns latent variables on the straight line from start to end.

    This is meant for two images. The line leads through the latent variables themselves, so its
    ends decode to the two reconstructions exactly. Posterior means are no draws of the prior: they
    are much shorter, and where two of them are nearly opposite a great circle would lengthen what
    lies between them beyond anything that the decoder knows. The alternative, a line in the noise
    that the prior would have turned into them, gave less likely images half way (303 against 292
    nats on the quickstart model), for the same noise means another latent variable below other
    groups.

    Args:
      start: L tensors (B or 1, H_l, W_l, C_z).
      end: L tensors of the same shapes.
      weight: (B,), 0 at the start, 1 at the end.
      groups: The groups that move; the others stay at the start. None moves all.
    """
    return [
        (1 - _column(w)) * a + _column(w) * b
        for a, b, w in zip(start, end, _moving(weight, groups, len(start)))
    ]


def interpolate_noise(
    start: Sequence[tf.Tensor],
    end: Sequence[tf.Tensor],
    weight: tf.Tensor,
    groups: Collection[int] | None = None,
) -> list[tf.Tensor]:
    """Returns noise on the great circle from start to end, group by group.

    This is meant for two samples; `model.generate` decodes the noise. Normal noise of many
    dimensions lies near a sphere, and so does what this gives, while the middle of the straight
    line is shorter, as if at a lower temperature.

    Args:
      start: L tensors (B or 1, H_l, W_l, C_z), standard normal.
      end: L tensors of the same shapes.
      weight: (B,), 0 at the start, 1 at the end.
      groups: The groups that move; the others stay at the start. None moves all.

    #### References

    Shoemake, *Animating rotation with quaternion curves*, SIGGRAPH 1985 (slerp).
    """
    return [
        _slerp(a, b, _column(w)) for a, b, w in zip(start, end, _moving(weight, groups, len(start)))
    ]


def _slerp(start: tf.Tensor, end: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    def dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(a * b, axis=[1, 2, 3], keepdims=True)

    cosine = tf.math.divide_no_nan(dot(start, end), tf.sqrt(dot(start, start) * dot(end, end)))
    angle = tf.acos(tf.clip_by_value(cosine, -1.0, 1.0))
    sine = tf.sin(angle)
    parallel = sine < _PARALLEL  # or opposite, where no great circle is the shortest
    sine = tf.where(parallel, 1.0, sine)
    first = tf.where(parallel, 1 - weight, tf.sin((1 - weight) * angle) / sine)
    second = tf.where(parallel, weight, tf.sin(weight * angle) / sine)
    return first * start + second * end


def move(
    latents: Sequence[tf.Tensor],
    direction: Sequence[tf.Tensor],
    amount: tf.Tensor,
    groups: Collection[int] | None = None,
) -> list[tf.Tensor]:
    """Returns latent variables moved along a direction, such as the difference of two classes.

    Args:
      latents: L tensors (B or 1, H_l, W_l, C_z).
      direction: L tensors of the same shapes.
      amount: (B,), the factor of the direction.
      groups: The groups that move; the others stay. None moves all.
    """
    return [
        z + _column(a) * d
        for z, d, a in zip(latents, direction, _moving(amount, groups, len(latents)))
    ]


def traverse(
    model: AnyModel,
    latents: Sequence[tf.Tensor],
    group: tf.Tensor,
    channel: tf.Tensor,
    deviations: tf.Tensor,
) -> tf.Tensor:
    """Returns images (B, H, W, C) with one channel of one group set to another value everywhere.

    The value is so many standard deviations from the mean of its prior p(z_l | z_<l), which may
    differ from position to position. All other latent variables stay as they are, those of later
    groups too, although their priors change.

    Args:
      model: The model to decode with.
      latents: L tensors (B or 1, H_l, W_l, C_z).
      group: int32 (B,), 0 to L - 1; another number changes nothing.
      channel: int32 (B,), 0 to C_z - 1; another number changes nothing.
      deviations: (B,), the value in standard deviations of the prior.
    """
    channels = tf.range(model.config.num_latent_per_group)

    def draw(index: int, features: tf.Tensor | None) -> tf.Tensor:
        chosen = tf.equal(group, index)[:, None] & tf.equal(channel[:, None], channels)
        prior = model.prior(index, features, tf.shape(latents[index]))
        moved = prior.at(_column(deviations))
        return tf.where(chosen[:, None, None, :], moved, latents[index])

    logits = model.top_down(tf.shape(deviations)[0], draw)
    return model.likelihood(logits).mean()


def vary(
    model: AnyModel,
    images: tf.Tensor,
    keep_groups: tf.Tensor,
    noise: Sequence[tf.Tensor],
    temperature: float | tf.Tensor = 1.0,
) -> tf.Tensor:
    """Returns images (B, H, W, C) with the first groups of given ones, and draws of the others.

    The groups that are kept are `encode`'s posterior means. With none kept it is what
    `model.generate` makes of the noise, with all of them the reconstruction.

    Args:
      model: The model to encode and decode with.
      images: (B, H, W, C).
      keep_groups: int32 (B,), how many groups to keep, top-down.
      noise: L standard-normal tensors (B, H_l, W_l, C_z), such as those of `row_noise`.
      temperature: A factor of the prior's scales in the drawn groups: a scalar, (L,), or (B or 1,
        L or 1).
    """
    zeros = _zeros(model, images)
    features = model.bottom_up(images)
    logits = keep_first_groups(model, features, keep_groups, zeros, noise, temperature)
    return model.likelihood(logits).mean()


def keep_first_groups(
    model: AnyModel,
    features: Sequence[tf.Tensor],
    keep_groups: tf.Tensor,
    posterior_noise: Sequence[tf.Tensor],
    prior_noise: Sequence[tf.Tensor],
    temperature: float | tf.Tensor = 1.0,
) -> tf.Tensor:
    """Decodes the posterior's first groups, and draws of the others from the prior given those.

    Args:
      model: The model to decode with.
      features: The images' features, as `model.bottom_up` gives them.
      keep_groups: int32 (B,), how many groups come from the posterior, top-down.
      posterior_noise: L standard-normal tensors (B, H_l, W_l, C_z); zeros for its means.
      prior_noise: L standard-normal tensors (B, H_l, W_l, C_z).
      temperature: A factor of the prior's scales: a scalar, (L,), or (B or 1, L or 1).

    Returns:
      Parameters of the likelihood (B, H, W, P).
    """

    def draw(group: int, top_down: tf.Tensor | None) -> tf.Tensor:
        kept = model.infer_group(group, features[group], top_down, posterior_noise[group]).latent
        prior = model.prior(group, top_down, tf.shape(prior_noise[group]), temperature)
        drawn = prior.at(prior_noise[group])
        return tf.where(_column(keep_groups > group), kept, drawn)

    return model.top_down(tf.shape(prior_noise[0])[0], draw)


def _column(values: tf.Tensor) -> tf.Tensor:
    """Reshapes (B,) to (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _moving(weight: tf.Tensor, groups: Collection[int] | None, num_groups: int) -> list[tf.Tensor]:
    """Returns the weight (B,) of each group, zeros for those that stay.

    Raises:
      ValueError: A group does not exist.
    """
    chosen = range(num_groups) if groups is None else groups
    for group in chosen:
        if not 0 <= group < num_groups:
            raise ValueError(f"groups must be from 0 to {num_groups - 1}, received {group}.")
    return [weight if group in chosen else tf.zeros_like(weight) for group in range(num_groups)]


def _zeros(model: AnyModel, images: tf.Tensor) -> list[tf.Tensor]:
    """Returns noise without effect, with as many rows as there are images."""
    batch = tf.shape(images)[0]
    return [tf.zeros([batch, *shape]) for shape in model.config.latent_shapes]
