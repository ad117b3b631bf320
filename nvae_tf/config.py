"""The configuration of a run: frozen dataclasses that check their values and convert to JSON.

The model's fields have the names of the options in the paper's released code. All programs read
their settings from here, so a run's `config.json` describes the run completely.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable
from typing import Any

from nvae_tf.architectures import ARCHITECTURES, parse_operation

LIKELIHOODS = ("bernoulli", "logistic_mixture", "normal")
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
COMPILATIONS = ("none", "islands", "step")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_types(config: Any) -> None:
    """Raises a ValueError for the first field whose value is not of its annotated type."""
    for name, annotation in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if annotation is float and type(value) is int:
            object.__setattr__(config, name, float(value))
            continue
        if typing.get_origin(annotation) is tuple:
            if isinstance(value, list):  # JSON has no tuples
                value = tuple(value)
                object.__setattr__(config, name, value)
            good = isinstance(value, tuple) and all(type(v) is int for v in value)
            expected = "tuple of int"
        else:
            good = type(value) is annotation
            expected = annotation.__name__
        _require(
            good,
            f"{type(config).__name__}.{name} must be of type {expected}, "
            f"received {value!r} ({type(value).__name__}).",
        )


def _check_at_least(config: Any, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(
            value >= minimum,
            f"{type(config).__name__}.{name} must be at least {minimum}, received {value}.",
        )


def _check_choice(config: Any, name: str, allowed: Iterable[str]) -> None:
    value = getattr(config, name)
    _require(
        value in allowed,
        f"{type(config).__name__}.{name} must be one of {', '.join(allowed)}; received {value!r}.",
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of the images, their likelihood, and the architecture of the network.

    Raises:
      ValueError: if a value has the wrong type or is out of range, or if the height or width is
        not a multiple of `image_size_divisor`.
    """

    image_shape: tuple[int, ...] = (32, 32, 3)  # height, width, channels; padding included
    padding: int = 0  # border pixels on each side; the likelihood ignores them
    likelihood: str = "logistic_mixture"
    num_x_bits: int = 8  # bits per pixel and channel; 1 for Bernoulli images
    num_mixture_dec: int = 10  # components of the logistic mixture

    num_latent_scales: int = 1
    num_groups_per_scale: int = 10
    ada_groups: bool = False  # each lower resolution has half as many groups
    min_groups_per_scale: int = 1
    num_latent_per_group: int = 20
    num_channels_enc: int = 32
    num_channels_dec: int = 32
    num_preprocess_blocks: int = 1
    num_preprocess_cells: int = 2
    num_postprocess_blocks: int = 1
    num_postprocess_cells: int = 2
    num_cell_per_cond_enc: int = 2
    num_cell_per_cond_dec: int = 2
    num_nf: int = 0  # pairs of autoregressive cells per group
    use_se: bool = True
    res_dist: bool = True
    arch_instance: str = "res_mbconv"

    def __post_init__(self) -> None:
        _check_types(self)
        _require(
            len(self.image_shape) == 3 and min(self.image_shape) >= 1,
            "ModelConfig.image_shape must be (height, width, channels), all positive; "
            f"received {self.image_shape}.",
        )
        _check_choice(self, "likelihood", LIKELIHOODS)
        _check_choice(self, "arch_instance", ARCHITECTURES)
        _check_at_least(self, 0, "padding", "num_nf", "num_preprocess_blocks")
        _check_at_least(
            self, 0, "num_cell_per_cond_enc", "num_cell_per_cond_dec", "num_postprocess_blocks"
        )
        _check_at_least(
            self,
            1,
            "num_x_bits",
            "num_latent_scales",
            "num_groups_per_scale",
            "min_groups_per_scale",
            "num_latent_per_group",
            "num_preprocess_cells",
            "num_postprocess_cells",
            "num_mixture_dec",
        )
        _check_at_least(self, 2, "num_channels_enc", "num_channels_dec")
        _require(
            self.num_x_bits <= 8,
            f"ModelConfig.num_x_bits must be 1 to 8, received {self.num_x_bits}.",
        )
        _require(
            self.likelihood != "bernoulli" or self.num_x_bits == 1,
            "A Bernoulli likelihood is for binary images: ModelConfig.num_x_bits must be 1, "
            f"received {self.num_x_bits}.",
        )
        _require(
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
        _require(
            height % divisor == 0 and width % divisor == 0,
            f"ModelConfig.image_shape: height and width must be divisible by {divisor} "
            f"(2^(num_preprocess_blocks + num_latent_scales - 1)), received {height}x{width}. "
            "Pad the images (image_shape with the border, padding = its width), resize them, or "
            "use fewer scales.",
        )
        _require(
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
            _require(
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
        groups, result = self.num_groups_per_scale, []
        for _ in range(self.num_latent_scales):
            groups = max(groups, self.min_groups_per_scale)
            result.append(groups)
            groups //= 2
        return tuple(result)

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

    name: str = "fashion_mnist_embedded"  # also folder, idx, tfrecord, or any TFDS set
    data_dir: str = ""  # where the files are; for TFDS, its directory (empty: its default)
    train_split: str = "train"
    test_split: str = "test"
    test_fraction: float = 0.1  # share held out from a folder that has no directories for splits
    split_seed: int = 0  # selects the pictures that are held out
    feature: str = "image"  # name of the feature that holds the image, in TFDS and tf.Examples
    raw_shape: tuple[int, ...] = ()  # (height, width, channels) of raw tf.Examples; empty: encoded
    skip_corrupt: bool = False  # leave out and report pictures that cannot be read
    crop: tuple[int, ...] = ()  # top, left, height, width in pixels; empty: the whole image
    center_crop: bool = False  # keep the largest centred part with the model's aspect ratio
    resize: bool = False  # to the model's image shape without padding, by area
    flip: bool = False  # mirror a random half of the images in training
    cache_dir: str = ""  # for images that do not fit into memory; empty: ~/.cache/nvae_tf

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("name", "train_split", "test_split", "feature"):
            _require(bool(getattr(self, name)), f"DataConfig.{name} must not be empty.")
        _require(
            len(self.crop) in (0, 4)
            and min(self.crop[:2], default=0) >= 0
            and min(self.crop[2:], default=1) >= 1,
            f"DataConfig.crop must be empty or (top, left, height, width); received {self.crop}.",
        )
        _require(
            len(self.raw_shape) in (0, 3) and min(self.raw_shape, default=1) >= 1,
            "DataConfig.raw_shape must be empty or (height, width, channels), all positive; "
            f"received {self.raw_shape}.",
        )
        _require(
            0 < self.test_fraction < 1,
            f"DataConfig.test_fraction must be between 0 and 1, received {self.test_fraction}.",
        )
        _check_at_least(self, 0, "split_seed")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdaMax and its learning-rate schedule. See docs/model.md."""

    learning_rate: float = 1e-2
    learning_rate_min: float = 1e-4
    warmup_epochs: float = 5.0
    weight_decay: float = 3e-4  # L2 term that is added to the gradient
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-3
    clip_norm: float = 0.0  # limit of the norm of all gradients together; 0: no limit
    ema_decay: float = 0.0  # decay of the weights' moving average for evaluation; 0: no average

    def __post_init__(self) -> None:
        _check_types(self)
        _check_at_least(self, 0, "learning_rate_min", "warmup_epochs", "weight_decay", "clip_norm")
        _require(
            self.learning_rate > 0 and self.epsilon > 0,
            "OptimizerConfig.learning_rate and epsilon must be positive, received "
            f"{self.learning_rate} and {self.epsilon}.",
        )
        _require(
            self.learning_rate_min <= self.learning_rate,
            "OptimizerConfig.learning_rate_min must not exceed learning_rate, received "
            f"{self.learning_rate_min} and {self.learning_rate}.",
        )
        for name in ("beta_1", "beta_2", "ema_decay"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"OptimizerConfig.{name} must be in [0, 1), received {value}.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The length of training, its batches and devices, and the coefficients of the loss.

    See "The loss" in docs/model.md for the coefficients.
    """

    epochs: int = 400
    steps: int = 0  # optimiser steps of the whole run; 0: derived from `epochs`
    global_batch_size: int = 32  # over all replicas and accumulation steps
    accumulation_steps: int = 1  # parts of a batch that are computed one after the other
    kl_anneal_portion: float = 0.3  # share of all steps in which beta rises to 1
    kl_const_portion: float = 1e-4  # share of all steps in which beta stays at its minimum
    weight_decay_norm: float = 1e-2  # lambda of the spectral and batch-norm regularisation
    weight_decay_norm_anneal: bool = False
    weight_decay_norm_init: float = 1.0  # initial lambda, if it is annealed
    checkpoint_every: int = 1000  # steps
    log_every: int = 100  # steps between scalar summaries
    image_every: int = 1000  # steps between reconstructions, samples and validation
    keep_checkpoints: int = 3  # the newest ones; the best one is kept as well
    skip_gradient_norm: float = 0.0  # skip gradients above this multiple of the running norm
    max_rollbacks: int = 3  # returns to the last checkpoint after a loss that was not finite
    precision: str = "float32"
    recompute: bool = False  # recompute cells in the backward pass instead of keeping activations
    jit_compile: str = "none"  # what XLA compiles: batch normalisation as islands, or the step
    seed: int = 0
    strategy: str = "auto"

    def __post_init__(self) -> None:
        _check_types(self)
        _check_choice(self, "strategy", STRATEGIES)
        _check_choice(self, "precision", PRECISIONS)
        _check_choice(self, "jit_compile", COMPILATIONS)
        _check_at_least(self, 0, "steps", "kl_const_portion", "weight_decay_norm", "seed")
        _check_at_least(self, 0, "max_rollbacks")
        _check_at_least(self, 1, "epochs", "global_batch_size", "accumulation_steps")
        _check_at_least(self, 1, "checkpoint_every", "keep_checkpoints", "log_every", "image_every")
        _require(
            self.skip_gradient_norm == 0 or self.skip_gradient_norm > 1,
            "TrainConfig.skip_gradient_norm is a multiple of the running norm: it must be above 1, "
            f"or 0 for no limit; received {self.skip_gradient_norm}.",
        )
        _require(
            0 < self.kl_anneal_portion <= 1,
            f"TrainConfig.kl_anneal_portion must be in (0, 1], received {self.kl_anneal_portion}.",
        )
        _require(
            not self.weight_decay_norm_anneal
            or min(self.weight_decay_norm, self.weight_decay_norm_init) > 0,
            "TrainConfig.weight_decay_norm and weight_decay_norm_init must be positive to be "
            "annealed, for that happens between their logarithms.",
        )


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """The complete configuration of a run: model, data, optimiser and training."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def override(self, values: dict[str, Any]) -> ExperimentConfig:
        """Returns a copy with some fields changed.

        Args:
          values: New values by dotted field name, such as `"model.num_nf"`.

        Raises:
          ValueError: if a field does not exist or a value is not allowed.
        """
        check_fields(values)
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
        sections = json.loads(text)
        flat = {
            f"{section}.{name}": value
            for section, fields in sections.items()
            for name, value in fields.items()
        }
        return cls().override(flat)


_FIELDS = tuple(ExperimentConfig().flat())


def check_fields(paths: Iterable[str]) -> None:
    """Raises a ValueError for the first dotted name that is not a field of `ExperimentConfig`."""
    for path in paths:
        near = difflib.get_close_matches(path, _FIELDS, n=3) or _FIELDS
        _require(path in _FIELDS, f"No configuration field {path!r}. Known: {', '.join(near)}.")
