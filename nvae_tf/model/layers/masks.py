"""Masks that make a convolution autoregressive (docs/model.md, flows)."""

from __future__ import annotations

import numpy as np


def autoregressive_mask(
    kernel_size: int, channels: int, filters: int, groups: int, strict: bool, mirror: bool
) -> np.ndarray:
    """Returns the zeros and ones (k, k, channels / groups, filters) of a masked kernel.

    Rows above the centre are open, and in the centre row the positions left of the centre. At the
    centre, output block i sees the input blocks up to i (before i, if strict), where a block is one
    channel on the side that has fewer. `mirror` flips both spatial axes.

    Raises:
      ValueError: if neither number of channels is a multiple of the other.
    """
    if max(channels, filters) % min(channels, filters):
        raise ValueError(
            f"A masked convolution needs channels and filters of which one divides the other, "
            f"received {channels} and {filters}."
        )
    centre = (kernel_size - 1) // 2
    mask = np.zeros((kernel_size, kernel_size, channels // groups, filters), np.float32)
    mask[:centre] = 1
    mask[centre, :centre] = 1
    blocks = min(channels, filters)
    block_in = np.arange(channels) // (channels // blocks)
    block_out = np.arange(filters) // (filters // blocks)
    sees = np.less if strict else np.less_equal
    if groups == 1:
        mask[centre, centre] = sees(block_in[:, None], block_out[None, :])
    else:  # depthwise: a channel meets only itself
        mask[centre, centre] = 0 if strict else 1
    return mask[::-1, ::-1].copy() if mirror else mask
