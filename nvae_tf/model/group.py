"""The place of one group of latent variables in the hierarchy, with the layers around it."""

from __future__ import annotations

import dataclasses

from nvae_tf.model.layers.cells import ResidualCell
from nvae_tf.model.layers.combiners import DecoderCombiner, EncoderCombiner, ParameterHead
from nvae_tf.model.layers.flow import AutoregressiveFlow


@dataclasses.dataclass(frozen=True)
class LatentGroup:
    """The layers that belong to group l (paper, figure 2).

    The model owns the layers; this is a view of them. Bottom-up, features go through
    `encoder_cells`, are kept for the posterior, and go through `down_cell` to the next scale.
    Top-down, they go through `decoder_cells`, the latent variable is drawn and put into them by
    `decoder_combiner`, and `up_cell` leads to the next scale. Parts that a group does not have are
    None or empty; a model with one group has neither cells nor decoder combiner.

    Attributes:
      number: l, from 0 for the lowest resolution.
      scale: The spatial scale, from 0 for the highest resolution.
      latent_shape: (H_l, W_l, C_z) of the latent variable.
      encoder_cells: The bottom-up cells before the features are kept.
      down_cell: The bottom-up cell after them, for the last group of a scale on the way up.
      posterior_head: The convolution to the parameters of q(z_l | z_<l, x).
      encoder_combiner: What adds top-down to bottom-up features; not for group 0.
      prior_head: The convolution to the parameters of p(z_l | z_<l); not for group 0.
      flow: The flow of the posterior, with `ModelConfig.num_nf`.
      decoder_cells: The top-down cells before the latent variable is drawn; none for group 0.
      decoder_combiner: What puts the latent variable into the top-down features.
      up_cell: The top-down cell after it, for the last group of a scale.
    """

    number: int
    scale: int
    latent_shape: tuple[int, int, int]
    encoder_cells: tuple[ResidualCell, ...]
    down_cell: ResidualCell | None
    posterior_head: ParameterHead
    encoder_combiner: EncoderCombiner | None
    prior_head: ParameterHead | None
    flow: AutoregressiveFlow | None
    decoder_cells: tuple[ResidualCell, ...]
    decoder_combiner: DecoderCombiner | None
    up_cell: ResidualCell | None
