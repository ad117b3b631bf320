"""The form of convolutions and normalisations in which they only answer.

With moving averages a batch normalisation is a scale and a shift of each channel. Beside a
convolution these become part of its kernel and its bias; what is left is convolution, bias and
activation, which TensorFlow's graph rewriter can join into one operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

if TYPE_CHECKING:  # both look themselves up in what `fold` returns
    from nvae_tf.model.layers.convolution import Convolution
    from nvae_tf.model.layers.normalization import BatchNormalization


class Fold(NamedTuple):
    """A normalisation that a convolution beside it can take over, and on which side it is.

    Nothing may stand between the two. The kernel of a convolution that a normalisation precedes
    must be 1x1: the zeros around an image are not normalised.
    """

    normalization: BatchNormalization
    convolution: Convolution
    follows: bool  # whether the normalisation sees what the convolution gives


class FoldedLayers(NamedTuple):
    """What layers that only answer compute with; all of it float32.

    A normalisation that is not among `scales` is part of a convolution.
    """

    kernels: dict[str, tf.Tensor]  # (h, w, in, out), by the path of the kernel's variable
    biases: dict[str, tf.Tensor]  # (out,), by the path of the kernel's variable
    scales: dict[str, tf.Tensor]  # (C,), by the path of gamma
    shifts: dict[str, tf.Tensor]  # (C,), by the path of gamma


def fold(
    convolutions: Iterable[Convolution],
    normalizations: Iterable[BatchNormalization],
    folds: Iterable[Fold],
    values: Mapping[str, tf.Tensor],
    kernels: Mapping[str, tf.Tensor],
) -> FoldedLayers:
    """Folds normalisations into convolutions.

    Args:
      convolutions: All convolutions of a model.
      normalizations: All its normalisations.
      folds: Which of them meet, in the order of computation.
      values: The values of all variables, by path.
      kernels: The effective kernels (h, w, in, out), by the path of the kernel's variable.
    """
    kernels = dict(kernels)
    biases = {c.kernel.path: values[c.bias.path] for c in convolutions if c.use_bias}
    scales, shifts = {}, {}
    for normalization in normalizations:
        scale, shift = normalization.affine(values)
        scales[normalization.gamma.path], shifts[normalization.gamma.path] = scale, shift
    for normalization, convolution, follows in folds:
        scale = scales.pop(normalization.gamma.path)
        shift = shifts.pop(normalization.gamma.path)
        path = convolution.kernel.path
        kernel, bias = kernels[path], biases.get(path)
        if follows:
            kernels[path] = kernel * scale
            biases[path] = shift if bias is None else bias * scale + shift
        else:
            kernels[path] = kernel * scale[:, None]
            constant = tf.linalg.matvec(kernel[0, 0], shift, transpose_a=True)
            biases[path] = constant if bias is None else bias + constant
    return FoldedLayers(kernels, biases, scales, shifts)
