"""Consistency regularisation: posteriors of an image and of a view of it stay near each other.

#### References

Sinha and Dieng, *Consistency Regularization for Variational Auto-Encoders*, NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from nvae_tf.model.nvae import NVAE, InferenceOutput, InferredGroup


def infer_with_views(
    model: NVAE, images: tf.Tensor, noise: Sequence[tf.Tensor]
) -> tuple[InferenceOutput, tf.Tensor]:
    """Does what `NVAE.infer` does in training, and compares posteriors of images and their views.

    The divergence KL(q(z|view) || q(z|image)) of the hierarchies is a sum over the groups. Each
    group's term is that of its two posteriors after the same z_<l, those that were drawn for the
    view. Flows do not change it, for both posteriors pass through the same one.

    Args:
      model: The model.
      images: (2B, H, W, C), B images and then one view of each.
      noise: L standard-normal tensors (2B, H_l, W_l, C_z), top-down.

    Returns:
      What `infer` returns of all 2B, and the divergences (B, L) in nats.
    """
    count = images.shape[0] // 2
    features = model.bottom_up(images, training=True)
    groups: list[InferredGroup] = []
    divergences = []

    def draw(group: int, top_down: tf.Tensor | None) -> tf.Tensor:
        after_view = None if top_down is None else top_down[count:]
        of_image, of_view = (
            model.posterior(group, bottom_up, after_view)
            for bottom_up in (features[group][:count], features[group][count:])
        )
        divergences.append(tf.reduce_sum(tfd.kl_divergence(of_view, of_image), [1, 2, 3]))
        groups.append(model.infer_group(group, features[group], top_down, noise[group]))
        return groups[-1].latent

    logits = model.top_down(images.shape[0], draw, training=True)
    return InferenceOutput.of(logits, groups), tf.stack(divergences, axis=1)
