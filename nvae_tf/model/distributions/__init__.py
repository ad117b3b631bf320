"""TensorFlow Probability distributions over the latent groups and over images."""

from nvae_tf.model.distributions.likelihoods import (
    ImageDistribution,
    PixelNormal,
    image_distribution,
)
from nvae_tf.model.distributions.logistic_mixture import DiscretizedLogisticMixture
from nvae_tf.model.distributions.residual_normal import ResidualNormal

__all__ = [
    "DiscretizedLogisticMixture",
    "ImageDistribution",
    "PixelNormal",
    "ResidualNormal",
    "image_distribution",
]
