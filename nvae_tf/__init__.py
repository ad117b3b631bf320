"""NVAE, the deep hierarchical VAE of Vahdat and Kautz (2020), for TensorFlow and Keras 3."""

from nvae_tf import nvlabs, presets
from nvae_tf.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from nvae_tf.model.nvae import NVAE
from nvae_tf.runs.load import load_model

__all__ = [
    "NVAE",
    "DataConfig",
    "ExperimentConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "load_model",
    "nvlabs",
    "presets",
]
