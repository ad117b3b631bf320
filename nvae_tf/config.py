"""The configuration of a run: frozen dataclasses that check their values and convert to JSON.

The model's fields have the names of the options in the paper's released code. All programs read
their settings from here, so a run's `config.json` describes the run completely.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from nvae_tf.architectures import ARCHITECTURES, parse_operation
from nvae_tf.options import Option, convert_and_check, option, require

LIKELIHOODS = ("bernoulli", "logistic_mixture", "normal")
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
COMPILATIONS = ("none", "islands", "step")
_LARGEST_SEED = 2**32 - 1  # NumPy's
_MOST_STEPS = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of the images, their likelihood, and the architecture of the network.

    Raises:
      ValueError: if a value has the wrong type or is out of range, or if the height or width is
        not a multiple of `image_size_divisor`.
    """

    image_shape: tuple[int, ...] = option(
        (32, 32, 3), "height, width and channels, padding included", low=1, high=4096
    )
    padding: int = option(
        0, "border pixels on each side, which the likelihood ignores", low=0, high=2048
    )
    likelihood: str = option("logistic_mixture", "distribution of the pixels", choices=LIKELIHOODS)
    num_x_bits: int = option(8, "bits per pixel and channel; 1 for Bernoulli images", low=1, high=8)
    num_mixture_dec: int = option(10, "components of the logistic mixture", low=1, high=100)

    num_latent_scales: int = option(1, "resolutions that have latent groups", low=1, high=12)
    num_groups_per_scale: int = option(
        10, "latent groups of the highest resolution", low=1, high=100
    )
    ada_groups: bool = option(False, "each lower resolution has half as many groups")
    min_groups_per_scale: int = option(
        1, "least number of groups of a scale below the first", low=1, high=100
    )
    num_latent_per_group: int = option(20, "channels of a latent group", low=1, high=1024)
    num_channels_enc: int = option(
        32, "channels of the bottom-up tower at the highest resolution", low=2, high=4096
    )
    num_channels_dec: int = option(
        32, "channels of the top-down tower at the highest resolution", low=2, high=4096
    )
    num_preprocess_blocks: int = option(
        1, "halvings of the image before the first group", low=0, high=8
    )
    num_preprocess_cells: int = option(2, "cells of each of them", low=1, high=100)
    num_postprocess_blocks: int = option(
        1, "doublings after the last group, as many as halvings", low=0, high=8
    )
    num_postprocess_cells: int = option(2, "cells of each of them", low=1, high=100)
    num_cell_per_cond_enc: int = option(2, "bottom-up cells of each group", low=0, high=100)
    num_cell_per_cond_dec: int = option(2, "top-down cells of each group", low=0, high=100)
    num_nf: int = option(0, "pairs of autoregressive cells per group", low=0, high=100)
    use_se: bool = option(True, "squeeze and excitation in the cells")
    res_dist: bool = option(True, "posteriors relative to their priors")
    smooth_scales: bool = option(
        False, "standard deviations of the latents by a softplus and not the exponential"
    )
    arch_instance: str = option("res_mbconv", "kinds of the cells", choices=tuple(ARCHITECTURES))

    def __post_init__(self) -> None:
        convert_and_check(self)
        require(
            len(self.image_shape) == 3,
            "ModelConfig.image_shape must be (height, width, channels); "
            f"received {self.image_shape}.",
        )
        require(
            self.likelihood != "bernoulli" or self.num_x_bits == 1,
            "A Bernoulli likelihood is for binary images: ModelConfig.num_x_bits must be 1, "
            f"received {self.num_x_bits}.",
        )
        require(
            self.num_preprocess_blocks == self.num_postprocess_blocks,
            "ModelConfig.num_preprocess_blocks and num_postprocess_blocks must be equal, or the "
            f"output has another size than the input; received {self.num_preprocess_blocks} and "
            f"{self.num_postprocess_blocks}.",
        )
        self._check_image_size()
        self._check_grouped_convolutions()

    def _check_image_size(self) -> None:
        height, width, _ = self.image_shape
        divisor = self.image_size_divisor
        require(
            height % divisor == 0 and width % divisor == 0,
            f"ModelConfig.image_shape: height and width must be divisible by {divisor} "
            f"(2^(num_preprocess_blocks + num_latent_scales - 1)), received {height}x{width}. "
            "Pad the images (image_shape with the border, padding = its width), resize them, or "
            "use fewer scales.",
        )
        require(
            min(height, width) > 2 * self.padding,
            f"ModelConfig.padding of {self.padding} leaves nothing of a {height}x{width} image.",
        )

    def _check_grouped_convolutions(self) -> None:
        cells = ARCHITECTURES[self.arch_instance]
        for names, channels in (
            (cells.encoder + cells.preprocess, self.num_channels_enc),
            (cells.decoder + cells.postprocess, self.num_channels_dec),
        ):
            groups = max(parse_operation(name).groups for name in names)
            require(
                groups == 0 or channels % groups == 0,
                f"arch_instance {self.arch_instance!r} has convolutions of {groups} groups: "
                f"num_channels_enc and num_channels_dec must be divisible by {groups}, "
                f"received {self.num_channels_enc} and {self.num_channels_dec}.",
            )

    @property
    def image_size_divisor(self) -> int:
        """The number of which the image's height and width must be multiples."""
        return 2 ** (self.num_preprocess_blocks + self.num_latent_scales - 1)

    @property
    def content_shape(self) -> tuple[int, int, int]:
        """The height, width and channels of an image without its padding."""
        height, width, channels = self.image_shape
        return height - 2 * self.padding, width - 2 * self.padding, channels

    @property
    def num_dimensions(self) -> int:
        """Pixels times channels without the padding, by which bits per dimension are divided."""
        height, width, channels = self.content_shape
        return height * width * channels

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """The number of groups in each scale; scale 0 has the highest resolution.

        See the paper's appendix A for `ada_groups`.
        """
        if not self.ada_groups:
            return (self.num_groups_per_scale,) * self.num_latent_scales
        groups = [self.num_groups_per_scale]
        while len(groups) < self.num_latent_scales:
            groups.append(max(groups[-1] // 2, self.min_groups_per_scale))
        return tuple(groups)

    @property
    def num_groups(self) -> int:
        """The number of latent groups in all scales together."""
        return sum(self.groups_per_scale)

    @property
    def is_vanilla(self) -> bool:
        """True if there is a single group, which makes the model a plain VAE without towers."""
        return self.num_groups == 1

    @property
    def group_scales(self) -> tuple[int, ...]:
        """The scale of each group, top-down: the first groups have the lowest resolution."""
        scales = reversed(range(self.num_latent_scales))
        return tuple(s for s in scales for _ in range(self.groups_per_scale[s]))

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """The shape (H_l, W_l, C_z) of each group, top-down."""
        height, width, _ = self.image_shape
        shapes = []
        for scale in self.group_scales:
            factor = 2 ** (self.num_preprocess_blocks + scale)
            shapes.append((height // factor, width // factor, self.num_latent_per_group))
        return tuple(shapes)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, and how its images are prepared for the model. See docs/data.md.

    With the name `folder`, `data_dir` holds pictures, optionally in one sub-directory per split.
    With `idx`, it holds files such as `train-images-idx3-ubyte.gz` and `t10k-images-idx3-ubyte`.
    With `tfrecord`, it holds files of tf.Example whose names begin with the split's name, or which
    are in a sub-directory of that name.
    """

    name: str = option(
        "fashion_mnist_embedded",
        "fashion_mnist_embedded, folder, idx, tfrecord, or any set of TensorFlow Datasets",
    )
    data_dir: str = option("", "where the files are; for TFDS, its directory (empty: its default)")
    train_split: str = option("train", "name of the split to train on")
    test_split: str = option("test", "name of the held-out split")
    test_fraction: float = option(
        0.1,
        "share held out from a folder that has no directories for splits",
        low=0,
        high=1,
        open_low=True,
        open_high=True,
    )
    split_seed: int = option(0, "selects the pictures that are held out", low=0, high=_LARGEST_SEED)
    feature: str = option("image", "name of the image's feature, in TFDS and tf.Examples")
    raw_shape: tuple[int, ...] = option(
        (), "height, width and channels of raw tf.Examples; empty: encoded", low=1, high=65_536
    )
    skip_corrupt: bool = option(False, "leave out and report pictures that cannot be read")
    crop: tuple[int, ...] = option(
        (), "top, left, height and width in pixels; empty: the whole image", low=0, high=65_536
    )
    center_crop: bool = option(
        False,
        "keep the centre: with data.resize the largest part of the model's aspect ratio, without "
        "it a part of the model's size",
    )
    resize: bool = option(False, "to the model's image shape without padding, by area")
    flip: bool = option(False, "mirror a random half of the images in training")
    cache_dir: str = option("", "for decoded images, features, …; empty: ~/.cache/nvae_tf")

    def __post_init__(self) -> None:
        convert_and_check(self)
        for name in ("name", "train_split", "test_split", "feature"):
            require(bool(getattr(self, name)), f"DataConfig.{name} must not be empty.")
        require(
            len(self.crop) in (0, 4) and min(self.crop[2:], default=1) >= 1,
            f"DataConfig.crop must be empty or (top, left, height, width); received {self.crop}.",
        )
        require(
            len(self.raw_shape) in (0, 3),
            "DataConfig.raw_shape must be empty or (height, width, channels); "
            f"received {self.raw_shape}.",
        )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdaMax and its learning-rate schedule. See docs/model.md."""

    learning_rate: float = option(
        1e-2, "learning rate after the warm-up", low=0, high=1000, open_low=True
    )
    learning_rate_min: float = option(
        1e-4, "learning rate at the end of the cosine", low=0, high=1000
    )
    warmup_epochs: float = option(
        5.0, "epochs in which the learning rate rises", low=0, high=1_000_000
    )
    weight_decay: float = option(
        3e-4, "factor of the L2 term that is added to the gradient", low=0, high=1
    )
    beta_1: float = option(0.9, "decay of the gradient's mean", low=0, high=1, open_high=True)
    beta_2: float = option(
        0.999, "decay of the gradient's largest value", low=0, high=1, open_low=True, open_high=True
    )
    epsilon: float = option(1e-3, "AdaMax's epsilon", low=0, high=1, open_low=True)
    clip_norm: float = option(
        0.0, "limit of the norm of all gradients together; 0: no limit", low=0, high=1e30
    )
    ema_decay: float = option(
        0.0,
        "decay of the weights' moving average for evaluation; 0: no average",
        low=0,
        high=1,
        open_high=True,
    )

    def __post_init__(self) -> None:
        convert_and_check(self)
        require(
            self.learning_rate_min <= self.learning_rate,
            "OptimizerConfig.learning_rate_min must not exceed learning_rate, received "
            f"{self.learning_rate_min} and {self.learning_rate}.",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The length of training, its batches and devices, and the coefficients of the loss.

    See "The loss" in docs/model.md for the coefficients.
    """

    epochs: int = option(400, "length of the run, if steps is 0", low=1, high=1_000_000)
    steps: int = option(
        0, "optimiser steps of the whole run; 0: derived from epochs", low=0, high=_MOST_STEPS
    )
    global_batch_size: int = option(
        32, "images of a step, over all replicas and accumulation steps", low=1, high=1_000_000
    )
    accumulation_steps: int = option(
        1, "parts of a batch that are computed one after the other", low=1, high=1_000_000
    )
    kl_anneal_portion: float = option(
        0.3, "share of all steps in which beta rises to 1", low=0, high=1, open_low=True
    )
    kl_const_portion: float = option(
        1e-4, "share of all steps in which beta stays at its minimum", low=0, high=1
    )
    frozen_batch_norm_portion: float = option(
        0.0, "share of all steps, the last ones, that normalise by moving averages", low=0, high=1
    )
    weight_decay_norm: float = option(
        1e-2, "lambda of the spectral and batch-norm regularisation", low=0, high=1_000_000
    )
    weight_decay_norm_anneal: bool = option(False, "anneal lambda from weight_decay_norm_init")
    weight_decay_norm_init: float = option(
        1.0, "initial lambda, if it is annealed", low=0, high=1_000_000
    )
    consistency: float = option(
        0.0, "weight of consistency regularisation; 0: none", low=0, high=1_000_000
    )
    checkpoint_every: int = option(1000, "steps between checkpoints", low=1, high=_MOST_STEPS)
    log_every: int = option(100, "steps between scalar summaries", low=1, high=_MOST_STEPS)
    image_every: int = option(
        1000, "steps between reconstructions, samples and validation", low=1, high=_MOST_STEPS
    )
    keep_checkpoints: int = option(
        3, "newest checkpoints to keep, beside the best one", low=1, high=1_000_000
    )
    skip_gradient_norm: float = option(
        0.0, "skip gradients above this multiple of the running norm; 0: never", low=0, high=1e30
    )
    max_rollbacks: int = option(
        3, "returns to the last checkpoint after a loss that was not finite", low=0, high=1000
    )
    precision: str = option("float32", "precision of the activations", choices=PRECISIONS)
    recompute: bool = option(
        False, "recompute cells in the backward pass instead of keeping activations"
    )
    jit_compile: str = option(
        "none",
        "what XLA compiles beside swish: nothing, all of batch normalisation, or the step",
        choices=COMPILATIONS,
    )
    seed: int = option(
        0, "seed of weights, noise and the order of images", low=0, high=_LARGEST_SEED
    )
    strategy: str = option("auto", "devices and workers that train", choices=STRATEGIES)

    def __post_init__(self) -> None:
        convert_and_check(self)
        require(
            self.skip_gradient_norm == 0 or self.skip_gradient_norm > 1,
            "TrainConfig.skip_gradient_norm is a multiple of the running norm: it must be above 1, "
            f"or 0 for no limit; received {self.skip_gradient_norm}.",
        )
        require(
            self.kl_const_portion + self.kl_anneal_portion <= 1,
            "TrainConfig.kl_const_portion and kl_anneal_portion must add up to at most 1, or beta "
            f"never reaches 1; received {self.kl_const_portion} and {self.kl_anneal_portion}.",
        )
        require(
            not self.weight_decay_norm_anneal
            or min(self.weight_decay_norm, self.weight_decay_norm_init) > 0,
            "TrainConfig.weight_decay_norm and weight_decay_norm_init must be positive to be "
            "annealed, for that happens between their logarithms.",
        )


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """The complete configuration of a run. See docs/configuration.md for all fields.

    Attributes:
      model: What is built.
      data: The data set, and how its images are prepared.
      optimizer: The optimiser and its learning rate.
      train: Length, batches, devices and loss of the training.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def override(self, values: dict[str, Any]) -> ExperimentConfig:
        """Returns a copy with some fields changed.

        Args:
          values: New values by dotted field name, such as `"model.num_nf"`.

        Raises:
          ValueError: if a field does not exist, a value is not allowed, or `train.epochs` would do
            nothing because `train.steps` is not 0.
        """
        check_fields(values)
        if "train.epochs" in values and "train.steps" not in values and self.train.steps:
            raise ValueError(
                f"train.epochs is the length if train.steps is 0, and that is {self.train.steps}: "
                "set train.steps as well, to 0 or to what is meant."
            )
        sections: dict[str, dict[str, Any]] = {}
        for path, value in values.items():
            section, _, name = path.partition(".")
            sections.setdefault(section, {})[name] = value
        return dataclasses.replace(
            self,
            **{
                section: dataclasses.replace(getattr(self, section), **changes)
                for section, changes in sections.items()
            },
        )

    def flat(self) -> dict[str, Any]:
        """Returns all values by dotted field name, in the order of definition."""
        return {
            f"{section}.{name}": value
            for section, fields in dataclasses.asdict(self).items()
            for name, value in fields.items()
        }

    def differences(self, other: ExperimentConfig) -> dict[str, str]:
        """Returns the fields in which `other` differs.

        Returns:
          Dotted field name to a phrase that names both values.
        """
        theirs = other.flat()
        return {
            name: f"{name} is {theirs[name]!r} there, {value!r} was asked for"
            for name, value in self.flat().items()
            if value != theirs[name]
        }

    def to_json(self) -> str:
        """Returns JSON text, from which `from_json` makes an equal configuration."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ExperimentConfig:
        """Reads the JSON text that `to_json` returned.

        Raises:
          ValueError: if the text is not JSON, names an unknown field, or holds a value that is
            not allowed.
        """
        try:
            sections = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"A configuration is JSON: {error}.") from error
        if not isinstance(sections, dict) or not all(
            isinstance(v, dict) for v in sections.values()
        ):
            raise ValueError(
                "A configuration is a JSON object of sections, each of them an object."
            )
        flat = {
            f"{section}.{name}": value
            for section, fields in sections.items()
            for name, value in fields.items()
        }
        return cls().override(flat)

    def options(self) -> dict[str, Option]:
        """Returns what every field means and allows, by dotted name."""
        return {
            f"{section.name}.{field.name}": field.metadata["option"]
            for section in dataclasses.fields(self)
            for field in dataclasses.fields(getattr(self, section.name))
        }


_FIELDS = tuple(ExperimentConfig().flat())
_ROOM = 3  # phrases of a list in a message


def some_of(phrases: Sequence[str]) -> str:
    """Joins phrases, of which a message has room for the first few."""
    more = len(phrases) - _ROOM
    return "; ".join(phrases[:_ROOM]) + (f"; and {more} more" if more > 0 else "")


def check_fields(paths: Iterable[str]) -> None:
    """Raises a ValueError for the first dotted name that is not a field of `ExperimentConfig`."""
    for path in paths:
        require(path in _FIELDS, f"No configuration field {path!r}. {near_names(path, _FIELDS)}")


def near_names(name: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """Returns a sentence for who has mistyped a name: up to three that are like it, or all.

    Args:
      name: What was typed.
      known: What there is.
      likeness: How like it names must be, from 0 to 1; less for short ones.
    """
    every = tuple(known)
    near = difflib.get_close_matches(name, every, n=3, cutoff=likeness) or every
    return f"Known: {', '.join(near)}."
