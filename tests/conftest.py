"""Shared by all tests: fixed seeds, small configurations, golden values."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import struct
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as trainers/start.py does for programs

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.command_line import use_devices
from nvae_tf.config import ExperimentConfig, ModelConfig, TrainConfig

for variable in ("TF_CONFIG", "SLURM_STEP_NUM_TASKS"):  # of a cluster's job that runs the tests
    os.environ.pop(variable, None)

# Two CPU devices, so that two replicas can be compared with one; before anything is computed.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], 2 * [tf.config.LogicalDeviceConfiguration()]
)
use_devices(training=True)  # without Grappler, which takes longer than most tests

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Weights and noise are the same in every run of a test."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def golden():
    """Loads a file of reference values by its name."""

    def load(name: str):
        path = GOLDEN / name
        if path.suffix == ".json":
            return json.loads(path.read_text())
        with np.load(path) as arrays:
            return dict(arrays)

    return load


def tiny_model_config(**changes) -> ModelConfig:
    """Two scales of 2 + 1 groups on 8x8 images: everything there is, as small as it gets."""
    options = {
        "image_shape": (8, 8, 1),
        "likelihood": "bernoulli",
        "num_x_bits": 1,
        "num_latent_scales": 2,
        "num_groups_per_scale": 2,
        "ada_groups": True,
        "num_latent_per_group": 2,
        "num_channels_enc": 8,
        "num_channels_dec": 8,
        "num_preprocess_cells": 1,
        "num_postprocess_cells": 1,
        "num_cell_per_cond_enc": 1,
        "num_cell_per_cond_dec": 1,
    }
    return ModelConfig(**(options | changes))


def tiny_experiment_config(**train_changes) -> ExperimentConfig:
    """The tiny model on the embedded images, resized."""
    options = {
        "steps": 4,
        "global_batch_size": 4,
        "log_every": 1,
        "checkpoint_every": 2,
        "image_every": 2,
    }
    return ExperimentConfig(
        model=tiny_model_config(), train=TrainConfig(**(options | train_changes))
    ).override({"data.resize": True})


def small_experiment_config(**train_changes) -> ExperimentConfig:
    """`tiny_experiment_config` with one scale and plain residual cells, the quickest to trace."""
    return tiny_experiment_config(**train_changes).override(
        {"model.num_latent_scales": 1, "model.arch_instance": "res_bnswish"}
    )


@contextlib.contextmanager
def handled_as(number: signal.Signals, handler: Any) -> Iterator[None]:
    """A scope in which a signal has a handler, whatever started the tests has made of it."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def idx_file(values: np.ndarray) -> bytes:
    """The content of an idx file of unsigned bytes."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()


def random_images(config: ModelConfig, count: int = 3, seed: int = 0) -> tf.Tensor:
    """Images (B, H, W, C) of the values that the configuration allows."""
    levels = 2**config.num_x_bits
    values = np.random.default_rng(seed).integers(levels, size=(count, *config.image_shape))
    return tf.constant(values / (levels - 1), tf.float32)
