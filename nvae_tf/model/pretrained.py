"""Directories with a trained model, by the conventions of KerasHub's presets.

A directory holds `config.json` (the configuration of the whole experiment, as in a run's workdir),
`metadata.json`, `model.weights.h5` (Keras's own format) and `README.md`, the model card. Those that
are part of this package are in `nvae_tf/pretrained/`. See docs/trained_models.md.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Mapping
from importlib import metadata, resources
from typing import Any

import h5py
import keras
import numpy as np
from absl import logging

from nvae_tf import presets
from nvae_tf.config import ExperimentConfig
from nvae_tf.files import new_directory, read_json, read_text
from nvae_tf.model.stacks import first_not_finite

_CONFIG, _METADATA, _WEIGHTS, _CARD = (
    "config.json",
    "metadata.json",
    "model.weights.h5",
    "README.md",
)
MANTISSA_BITS = 23  # of float32
_UNCOMPRESSED = 512  # values at most of an array that compression would only make larger
_COMPRESSION = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
_CARD_TEXT = """---
library_name: keras
pipeline_tag: unconditional-image-generation
tags: [nvae, vae]
---

# NVAE with {parameters:,} parameters

Images of shape {shape}, {groups} latent groups. To draw samples:

```sh
nvae-sample --preset=DIRECTORY --output=samples.png
```
"""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A directory with a trained model.

    Attributes:
      name: The name or the path by which it was found.
      directory: Its path.
      config: The configuration of the experiment.
      metadata: The content of `metadata.json`: `keras_version`, `nvae_tf_version`,
        `parameter_count`, `date_saved`, and from a run `step`, `evaluation`, and in `init_from`
        `name` and `step` of the model that it started from, if there was one.
    """

    name: str
    directory: str
    config: ExperimentConfig
    metadata: Mapping[str, Any]

    @classmethod
    def find(cls, preset: str | os.PathLike) -> Pretrained:
        """Finds a trained model by the name of a preset, or by the path of a directory.

        Raises:
          ValueError: There is none; the message says which there are, or how to train one. Or its
            files are damaged.
        """
        name = os.fspath(preset)
        if name in builtin_names():
            directory = os.path.join(builtin_directory(), name)
            if os.path.isdir(name):
                here = os.path.join(os.curdir, name)
                logging.warning("%s is the model of this package; the directory is %s.", name, here)
        else:
            directory = name
            if not os.path.isdir(directory):
                raise ValueError(_advice(name))
            if not is_saved_model(directory) and os.path.isdir(os.path.join(name, "checkpoints")):
                raise ValueError(
                    f"{name!r} is the workdir of a run: --workdir, or nvae_tf.load_model, takes it."
                )
        try:
            config = ExperimentConfig.from_json(read_text(os.path.join(directory, _CONFIG)))
            facts = read_json(os.path.join(directory, _METADATA))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name!r} is not the directory of a trained model: {error} It must hold "
                f"{_CONFIG}, {_METADATA} and {_WEIGHTS}, which nvae-save-preset writes."
            ) from error
        _check_facts(facts, name)
        return cls(name, directory, config, facts)

    def load_weights(self, model: keras.Model) -> None:
        """Gives a model of this configuration the weights.

        Raises:
          ValueError: The file is missing or damaged, or it belongs to another model.
        """
        path = os.path.join(self.directory, _WEIGHTS)
        try:
            model.load_weights(path)
        except Exception as error:  # h5py and Keras raise whatever comes up on the way
            raise ValueError(
                f"{path!r} does not hold the weights of this model: {error}"
            ) from error
        if wrong := first_not_finite(model.variables):
            raise ValueError(f"{path!r}: the values of {wrong} are not finite.")


def _check_facts(facts: Mapping[str, Any], name: str) -> None:
    """Raises a ValueError if those facts that are read again are not of their kind."""
    origin = facts.get("init_from", {})
    right = {
        "step": type(facts.get("step", 0)) is int,
        "evaluation": isinstance(facts.get("evaluation", {}), dict),
        "init_from": isinstance(origin, dict)
        and (
            not origin or (isinstance(origin.get("name"), str) and type(origin.get("step")) is int)
        ),
    }
    for field, is_right in right.items():
        if not is_right:
            raise ValueError(f"{name!r}: {field} in {_METADATA} is of a wrong kind.")


def builtin_directory() -> str:
    """Returns the directory of the trained models in this package."""
    return str(resources.files("nvae_tf").joinpath("pretrained"))


def builtin_names() -> tuple[str, ...]:
    """Returns the names of the presets whose weights are part of this package."""
    directory = builtin_directory()
    return tuple(
        name for name in presets.names() if os.path.exists(os.path.join(directory, name, _WEIGHTS))
    )


def is_saved_model(directory: str | os.PathLike) -> bool:
    """Returns whether a directory has what `save` writes, and a run's workdir does not."""
    return os.path.exists(os.path.join(directory, _METADATA))


def _advice(name: str) -> str:
    included = ", ".join(builtin_names()) or "none"
    if name in presets.names():
        return (
            f"This package has no weights of the preset {name!r}, only of: {included}. To train "
            f"them: nvae-train --preset={name} --workdir=W; then use --workdir=W, or the directory "
            "that nvae-save-preset writes."
        )
    return (
        f"There is no trained model {name!r}: neither a directory, nor a preset with weights "
        f"({included})."
    )


def save(
    model: keras.Model,
    directory: str | os.PathLike,
    config: ExperimentConfig,
    *,
    mantissa_bits: int = MANTISSA_BITS,
    card: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes the directory of a trained model, which appears whole or not at all.

    Args:
      model: The model, an `NVAE`.
      directory: The path to create.
      config: The configuration of the experiment, which describes this model.
      mantissa_bits: Number of bits to which the mantissas of kernels are rounded, from 1 to 23. The
        others are zero, which compression makes small: 10 as in float16 take less than float16
        does. Vectors keep all bits.
      card: The text of the model card; None: a few lines.
      facts: What `metadata.json` has besides versions, number of parameters and date.

    Raises:
      ValueError: The directory exists and is not empty, values are not finite, or the number of
        bits is not allowed.
    """
    if not 1 <= mantissa_bits <= MANTISSA_BITS:
        raise ValueError(
            f"mantissa_bits must be from 1 to {MANTISSA_BITS}, received {mantissa_bits}."
        )
    if wrong := first_not_finite(model.variables):
        raise ValueError(f"The values of {wrong} are not finite: nothing was saved.")
    if card is None:
        card = _CARD_TEXT.format(
            parameters=model.num_trainable_parameters,
            shape=config.model.content_shape,
            groups=config.model.num_groups,
        )
    content = {
        "keras_version": keras.__version__,
        "nvae_tf_version": package_version(),
        "parameter_count": model.count_params(),
        "date_saved": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d@%H:%M:%S"),
        **(facts or {}),
    }
    with new_directory(directory) as temporary:
        for name, text in (
            (_CONFIG, config.to_json()),
            (_METADATA, json.dumps(content, indent=2) + "\n"),
            (_CARD, card),
        ):
            pathlib.Path(temporary, name).write_text(text, encoding="utf-8")
        wide = os.path.join(temporary, f"wide.{_WEIGHTS}")
        model.save_weights(wide)
        _copy_compactly(wide, os.path.join(temporary, _WEIGHTS), mantissa_bits)
        os.remove(wide)


def _copy_compactly(source: str, target: str, mantissa_bits: int) -> None:
    """Copies a file of weights, compressed, with the mantissas of kernels rounded."""
    with h5py.File(source, "r") as wide, h5py.File(target, "w", libver="latest") as narrow:

        def copy(name: str, item: h5py.Dataset | h5py.Group) -> None:
            if isinstance(item, h5py.Dataset):
                values = item[()]
                if values.ndim > 1:
                    values = _rounded(values, mantissa_bits)
                large = values.size > _UNCOMPRESSED
                options = _COMPRESSION | {"chunks": values.shape} if large else {}
                narrow.create_dataset(name, data=values, **options)
            else:
                narrow.require_group(name)
            narrow[name].attrs.update(item.attrs)

        wide.visititems(copy)


def _rounded(values: np.ndarray, mantissa_bits: int) -> np.ndarray:
    """Rounds float32 values to the nearest ones of so many bits of the mantissa."""
    if mantissa_bits == MANTISSA_BITS:
        return values
    dropped = np.uint32(MANTISSA_BITS - mantissa_bits)
    one = np.uint32(1)
    bits = values.astype(np.float32).view(np.uint32)
    # A carry into the exponent is right: the next value there is a power of two.
    return ((bits + (one << (dropped - one))) >> dropped << dropped).view(np.float32)


def package_version() -> str:
    """Returns this package's version, or `"not installed"`."""
    try:
        return metadata.version("nvae-tf")
    except metadata.PackageNotFoundError:
        return "not installed"
