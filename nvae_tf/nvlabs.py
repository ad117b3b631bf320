"""Import of checkpoints of the paper's own PyTorch release (docs/importing.md).

This module was written from a description of the file format, not from the release's code.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np

from nvae_tf.config import ModelConfig
from nvae_tf.model.layers.cells import (
    ConvolutionBranch,
    DownSkip,
    InvertedBottleneck,
    ResidualCell,
    SqueezeExcitation,
    UpSkip,
)
from nvae_tf.model.layers.convolution import Convolution, WeightNormConvolution
from nvae_tf.model.layers.normalization import BatchNormalization
from nvae_tf.model.nvae import NVAE

if TYPE_CHECKING:
    import torch

# Image side and channels by the release's data-set names. Its gray sets are 28x28 padded to 32x32.
_GRAY = {"image_shape": (32, 32, 1), "padding": 2, "likelihood": "bernoulli", "num_x_bits": 1}
_DATASETS: dict[str, dict[str, Any]] = {
    "mnist": _GRAY,
    "omniglot": _GRAY,
    "cifar10": {"image_shape": (32, 32, 3)},
    "imagenet_32": {"image_shape": (32, 32, 3)},
    "celeba_64": {"image_shape": (64, 64, 3)},
    "celeba_256": {"image_shape": (256, 256, 3)},
    "ffhq": {"image_shape": (256, 256, 3)},
    "lsun_bedroom_128": {"image_shape": (128, 128, 3)},
    "lsun_bedroom_256": {"image_shape": (256, 256, 3)},
}
_OPTIONS = (
    "num_latent_scales",
    "num_groups_per_scale",
    "num_latent_per_group",
    "num_channels_enc",
    "num_channels_dec",
    "num_preprocess_blocks",
    "num_preprocess_cells",
    "num_postprocess_blocks",
    "num_postprocess_cells",
    "num_cell_per_cond_enc",
    "num_cell_per_cond_dec",
    "num_nf",
    "use_se",
    "res_dist",
    "arch_instance",
)
_OPTIONS_OF_LATER_VERSIONS = {
    "ada_groups": False,
    "min_groups_per_scale": 1,
    "num_mixture_dec": 10,
}
# Counters and caches that hold nothing of the model.
_IGNORED_ENDINGS = ("num_batches_tracked", "weight_normalized")
_SHOWN = 5  # keys in an error
_PART_VALUES = 2**23  # 32 MB


class _Weight(NamedTuple):
    """The place of one array of a checkpoint."""

    key: str
    variable: keras.Variable
    to_ours: Callable[[np.ndarray], np.ndarray]  # from the checkpoint's layout
    shape: tuple[int, ...]  # expected in the checkpoint


def load_checkpoint(path: str | os.PathLike) -> NVAE:
    """Loads the model of a checkpoint of the paper's release, its weights in place.

    Nothing in the file is executed: only tensors, plain containers and the argument namespace are
    read from it.

    Args:
      path: A `.pt` file with `state_dict` and `args`.

    Raises:
      FileNotFoundError: There is no such file.
      ImportError: PyTorch, which reads the file, is not installed.
      ValueError: The file is damaged, holds anything but data, or does not fit: then the message
        names the option, or the key with the expected and the received shape.
    """
    _check_sums(path)
    checkpoint = _read(path)
    model = NVAE(_model_config(vars(checkpoint["args"])))
    weights = list(_weights(model))
    _check_fit(weights, checkpoint["state_dict"], model.config)
    unplaced = {variable.path for variable in model.variables}
    for part in _parts(weights):
        # The file is mapped, and what was copied of it counts as memory until it is unmapped.
        del checkpoint
        checkpoint = _read(path)
        for weight in part:
            array = _to_array(weight.key, checkpoint["state_dict"][weight.key])
            _check_values(weight.key, array)
            weight.variable.assign(weight.to_ours(array))
            unplaced.remove(weight.variable.path)
    assert not unplaced, f"{len(unplaced)} variables have no place in a checkpoint"
    return model


def _to_array(key: str, tensor: torch.Tensor) -> np.ndarray:
    """Converts a tensor; what NumPy has no type for is converted to float32 first."""
    try:
        if tensor.is_floating_point():
            tensor = tensor.detach().float()
        return tensor.numpy()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{key!r} in the checkpoint is no plain array: {error}") from error


def _check_values(key: str, array: np.ndarray) -> None:
    """Raises a ValueError unless all values are finite real numbers, and variances not negative."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{key!r} in the checkpoint holds {array.dtype}, not real numbers.")
    if not np.isfinite(array).all():
        raise ValueError(f"{key!r} in the checkpoint has values that are not finite.")
    if key.endswith("running_var") and array.min(initial=0) < 0:
        raise ValueError(f"{key!r} in the checkpoint has a negative variance, {array.min()}.")


def _parts(weights: list[_Weight]) -> Iterator[list[_Weight]]:
    """Splits the weights into parts of about `_PART_VALUES` values."""
    part: list[_Weight] = []
    values = 0
    for weight in weights:
        part.append(weight)
        values += math.prod(weight.shape)
        if values >= _PART_VALUES:
            yield part
            part, values = [], 0
    yield part


def _check_sums(path: str | os.PathLike) -> None:
    """Raises a ValueError if a part of a zip file has another checksum than it should.

    PyTorch does not compare them.
    """
    if not (os.path.isfile(path) and zipfile.is_zipfile(path)):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    # A flipped bit may name a compression that zipfile does not know: NotImplementedError.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise ValueError(f"{os.fspath(path)!r} is damaged ({error}).") from error
    if damaged:
        raise ValueError(f"{os.fspath(path)!r} is damaged: {damaged!r} has a wrong checksum.")


def _read(path: str | os.PathLike) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No checkpoint at {os.fspath(path)!r}.")
    try:
        import torch  # only this step needs it
    except ImportError as error:
        raise ImportError(
            "Reading a PyTorch checkpoint needs PyTorch: pip install 'nvae-tf[nvlabs]'."
        ) from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, so that the file's tensors and the model's are not in memory at once; only
            # the zip format can be.
            checkpoint = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # a damaged pickle raises whatever comes up on the way
        # PyTorch goes on with advice to allow the execution of code.
        first_sentence = re.split(r"\.\s|\n", str(error).strip())[0]
        raise ValueError(
            f"{os.fspath(path)!r} is not a readable checkpoint of tensors and arguments alone "
            f"({type(error).__name__}: {first_sentence})."
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{os.fspath(path)!r} holds no dictionary.")
    for key, kind in (("state_dict", dict), ("args", argparse.Namespace)):
        if not isinstance(checkpoint.get(key), kind):
            raise ValueError(f"{os.fspath(path)!r} lacks {key}, or it is no {kind.__name__}.")
    for key, value in checkpoint["state_dict"].items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
            raise ValueError(f"{os.fspath(path)!r}: {str(key)[:80]!r} of state_dict is no tensor.")
    return checkpoint


def _model_config(args: dict[str, Any]) -> ModelConfig:
    """Returns the configuration that the release's argument namespace stands for."""
    missing = [name for name in ("dataset", "num_x_bits", *_OPTIONS) if name not in args]
    if missing:
        raise ValueError(f"The checkpoint's arguments lack {', '.join(missing)}.")
    if not isinstance(args["dataset"], str) or args["dataset"] not in _DATASETS:
        raise ValueError(
            f"Unknown dataset {args['dataset']!r} in the checkpoint's arguments. "
            f"Known: {', '.join(_DATASETS)}."
        )
    options = {name: args[name] for name in _OPTIONS}
    options |= {name: args.get(name, old) for name, old in _OPTIONS_OF_LATER_VERSIONS.items()}
    options["num_x_bits"] = args["num_x_bits"]
    options["likelihood"] = "normal" if options["num_mixture_dec"] == 1 else "logistic_mixture"
    return ModelConfig(**(options | _DATASETS[args["dataset"]]))


def _check_fit(weights: list[_Weight], state: dict[str, Any], config: ModelConfig) -> None:
    """Raises a ValueError unless the state holds exactly these weights, in their shapes."""
    expected = {weight.key for weight in weights}
    received = {key for key in state if not key.endswith(_IGNORED_ENDINGS)}
    if config.is_vanilla:
        received.discard("prior_ftr0")  # a model without towers has no use for it
    if expected != received:
        raise ValueError(
            "The checkpoint does not fit its arguments. "
            f"Missing: {_some(expected - received)}. Surplus: {_some(received - expected)}."
        )
    for weight in weights:
        shape = tuple(state[weight.key].shape)
        if shape != weight.shape:
            raise ValueError(
                f"{weight.key!r} in the checkpoint: expected the shape {weight.shape}, "
                f"received {shape}."
            )


def _some(keys: set[str]) -> str:
    """Returns the first few keys, and how many there are."""
    shown = [repr(key)[:80] for key in sorted(keys, key=str)[:_SHOWN]]
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(shown) + more if shown else "none"


def _weight(
    key: str,
    variable: keras.Variable,
    permutation: Sequence[int] | None = None,
    extra_axes: int = 0,
) -> _Weight:
    """Describes a weight whose axes the checkpoint permutes, or extends by single ones.

    Args:
      key: Its name in the checkpoint.
      variable: Its variable here.
      permutation: The place in the checkpoint of every axis of ours; None: the same order.
      extra_axes: The number of single axes at the end of its shape in the checkpoint.
    """
    ours = tuple(variable.shape)
    if permutation is None:
        return _Weight(key, variable, lambda array: array.reshape(ours), ours + (1,) * extra_axes)
    theirs = [0] * len(ours)
    for axis, place in enumerate(permutation):
        theirs[place] = ours[axis]
    return _Weight(key, variable, lambda array: array.transpose(permutation), tuple(theirs))


def _convolution(prefix: str, layer: Convolution) -> Iterator[_Weight]:
    yield _weight(f"{prefix}.weight", layer.kernel, permutation=(2, 3, 1, 0))  # HWIO from OIHW
    if layer.use_bias:
        yield _weight(f"{prefix}.bias", layer.bias)
    if isinstance(layer, WeightNormConvolution):
        yield _weight(f"{prefix}.log_weight_norm", layer.log_scale, extra_axes=3)


def _batch_norm(prefix: str, layer: BatchNormalization) -> Iterator[_Weight]:
    yield _weight(f"{prefix}.weight", layer.gamma)
    yield _weight(f"{prefix}.bias", layer.beta)
    yield _weight(f"{prefix}.running_mean", layer.moving_mean)
    yield _weight(f"{prefix}.running_var", layer.moving_variance)


def _squeeze_excitation(prefix: str, layer: SqueezeExcitation) -> Iterator[_Weight]:
    for index, dense in ((0, layer.squeeze), (2, layer.excite)):
        yield _weight(f"{prefix}.{index}.weight", dense.kernel, permutation=(1, 0))
        yield _weight(f"{prefix}.{index}.bias", dense.bias)


def _skip(prefix: str, layer: DownSkip | UpSkip) -> Iterator[_Weight]:
    if isinstance(layer, UpSkip):
        yield from _convolution(f"{prefix}.1", layer.convolution)
        return
    for i, convolution in enumerate(layer.convolutions):
        yield from _convolution(f"{prefix}.conv_{i + 1}", convolution)


def _operation(prefix: str, layer: ConvolutionBranch | InvertedBottleneck) -> Iterator[_Weight]:
    if isinstance(layer, ConvolutionBranch):
        if layer.normalization:
            name = "bn_act" if layer.normalization.activation == "swish" else "bn.bn"
            yield from _batch_norm(f"{prefix}.{name}", layer.normalization)
        yield from _convolution(f"{prefix}.conv_0", layer.convolution)
        return
    first = 1 if layer.kind == "up" else 0  # the up-sampling counts as a layer
    before, expand, after_expand = layer.pointwise
    spatial, after_spatial, project, last = layer.spatial
    yield from _batch_norm(f"{prefix}.conv.{first}.bn", before)
    yield from _convolution(f"{prefix}.conv.{first + 1}.conv.0", expand)
    yield from _batch_norm(f"{prefix}.conv.{first + 1}.conv.1", after_expand)
    yield from _convolution(f"{prefix}.conv.{first + 2}.conv.0", spatial)
    yield from _batch_norm(f"{prefix}.conv.{first + 2}.conv.1", after_spatial)
    yield from _convolution(f"{prefix}.conv.{first + 3}", project)
    yield from _batch_norm(f"{prefix}.conv.{first + 4}.bn", last)


def _cell(prefix: str, cell: ResidualCell) -> Iterator[_Weight]:
    if cell.skip:
        yield from _skip(f"{prefix}.skip", cell.skip)
    for i, operation in enumerate(cell.branch):
        yield from _operation(f"{prefix}._ops.{i}", operation)
    if cell.gate:
        yield from _squeeze_excitation(f"{prefix}.se.se", cell.gate)


def _tower(prefix: str, items: Sequence[keras.layers.Layer]) -> Iterator[_Weight]:
    for i, item in enumerate(items):
        if isinstance(item, ResidualCell):
            yield from _cell(f"{prefix}.{i}", item)
        else:  # a combiner
            yield from _convolution(f"{prefix}.{i}.conv", item.convolution)


def _encoder_items(model: NVAE) -> list[keras.layers.Layer]:
    """Returns cells and combiners in the order of the bottom-up pass."""
    items: list[keras.layers.Layer | None] = []
    for group in reversed(model.groups):
        items += [*group.encoder_cells, group.encoder_combiner, group.down_cell]
    return [item for item in items if item]


def _decoder_items(model: NVAE) -> list[keras.layers.Layer]:
    """Returns cells and combiners in the order of the top-down pass."""
    items: list[keras.layers.Layer | None] = []
    for group in model.groups:
        items += [*group.decoder_cells, group.decoder_combiner, group.up_cell]
    return [item for item in items if item]


def _weights(model: NVAE) -> Iterator[_Weight]:
    """Lists all variables of a model with their keys in a checkpoint."""
    yield from _convolution("stem", model.stem)
    yield from _tower("pre_process", model.preprocess_cells)
    yield from _tower("enc_tower", _encoder_items(model))
    yield from _convolution("enc0.1", model.encoder_head)
    for group in model.groups:
        yield from _convolution(f"enc_sampler.{group.number}", group.posterior_head.convolution)
    for group in model.groups:
        if group.prior_head:  # group 0 has none, and is not counted
            yield from _convolution(
                f"dec_sampler.{group.number - 1}.1", group.prior_head.convolution
            )
    for group in model.groups:
        for i, cell in enumerate(group.flow.cells if group.flow else ()):
            pair = group.number * model.config.num_nf + i // 2
            prefix = f"nf_cells.{pair}.cell{i % 2 + 1}.conv"
            yield from _convolution(f"{prefix}.convz.0", cell.expand)
            yield from _convolution(f"{prefix}.convz.2", cell.spatial)
            yield from _convolution(f"nf_cells.{pair}.cell{i % 2 + 1}.mu.conv_0", cell.shift)
    if model.config.is_vanilla:
        yield from _convolution("stem_decoder", model.decoder_stem)
    else:
        yield _weight("prior_ftr0", model.constant, permutation=(1, 2, 0))
    yield from _tower("dec_tower", _decoder_items(model))
    yield from _tower("post_process", model.postprocess_cells)
    yield from _convolution("image_conditional.1", model.image_head)
