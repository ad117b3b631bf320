"""Descriptions of a run for TensorBoard: its configuration, model and software versions."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf
import tensorflow_probability as tfp
from tensorboard.plugins.hparams import api as hp

from nvae_tf.config import ExperimentConfig
from nvae_tf.model.nvae import NVAE
from trainers.summaries.layout import group_name

# Tag and name of each metric in the table of runs; all are measured on held-out images.
_METRICS = (
    ("loss/bits_per_dim", "bits per dimension"),
    ("loss/negative_elbo", "-ELBO, nats"),
    ("loss/reconstruction", "reconstruction, nats"),
    ("loss/kl", "KL, nats"),
)


def hyperparameters(config: ExperimentConfig) -> dict[str, bool | int | float | str]:
    """Returns all fields of a configuration as values that TensorBoard's HParams plugin accepts."""
    return {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in config.flat().items()
    }


def write_hyperparameters(config: ExperimentConfig, workdir: str) -> None:
    """Enters a run into TensorBoard's table of runs, through the default summary writer.

    Args:
      config: The run's configuration.
      workdir: The run's workdir. Its name and four hexadecimal digits of a hash of its path make
        the trial's name, because runs in different places may have the same name.
    """
    values = hyperparameters(config)
    hp.hparams_config(
        hparams=[hp.HParam(name) for name in values],
        metrics=[hp.Metric(tag, display_name=name) for tag, name in _METRICS],
    )
    path = os.path.abspath(workdir)
    digits = hashlib.sha256(path.encode()).hexdigest()[:4]
    hp.hparams(values, trial_id=f"{os.path.basename(path)} {digits}")


def configuration_tables(config: ExperimentConfig) -> str:
    """Returns a Markdown table for each section of the configuration."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for path, value in config.flat().items():
        section, _, name = path.partition(".")
        sections.setdefault(section, []).append((f"`{name}`", f"`{value!r}`"))
    return "\n\n".join(
        f"### {section}\n\n{markdown_table(('field', 'value'), rows)}"
        for section, rows in sections.items()
    )


def model_tables(model: NVAE) -> str:
    """Returns Markdown tables of the model's parts with their parameters, and of its groups."""
    layers: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for variable in model.trainable_variables:
        layer = variable.path.removeprefix(f"{model.name}/").split("/")[0]
        part = re.sub(r"(_\d+)+(_down|_up)?$", "", layer)
        layers.setdefault(part, set()).add(layer)
        sizes[part] = sizes.get(part, 0) + variable.shape.num_elements()
    total = model.num_trainable_parameters
    parts = [
        (f"`{part}`", f"{len(layers[part])}", f"{size:,}", f"{size / total:.1%}")
        for part, size in sizes.items()
    ]
    parts.append(("**together**", f"{sum(map(len, layers.values()))}", f"{total:,}", "100.0%"))
    groups = [
        (
            f"`{group_name(group.number)}`",
            f"{group.scale}",
            "{}x{}".format(*group.latent_shape),
            f"{group.latent_shape[-1]}",
            f"{math.prod(group.latent_shape):,}",
        )
        for group in model.groups
    ]
    return "\n\n".join(
        (
            "### Parts",
            markdown_table(("part", "layers", "parameters", "share"), parts),
            "### Latent groups, top-down",
            markdown_table(("group", "scale", "resolution", "channels", "variables"), groups),
        )
    )


def surroundings_table(facts: dict[str, object]) -> str:
    """Returns a Markdown table of software versions, devices and the given facts."""
    versions = {
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "TensorFlow Probability": tfp.__version__,
        "Python": platform.python_version(),
        "devices": ", ".join(device.name for device in tf.config.list_logical_devices()),
    }
    return markdown_table(("", ""), [(name, f"{v}") for name, v in (versions | facts).items()])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; the cells must not contain `|`."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
