"""A model repository for NVIDIA Triton Inference Server, of versions of ONNX files.

`BASE/triton` has a model for each portable signature, such as `nvae_sample_tensors` if BASE is
called `nvae`: its configuration, and for each version in BASE a link to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from export.limits import MAX_ROWS
from export.portable_names import PORTABLE_NAMES
from export.publish import versions
from nvae_tf.files import write_atomically

if TYPE_CHECKING:
    import onnx

DIRECTORY = "triton"  # in BASE, where servers of versions ignore it
_MAX_QUEUE = 100  # requests; those beyond are refused as UNAVAILABLE, which clients try again
_CONFIG = "config.pbtxt"


def update_repository(base: str | os.PathLike, shown: Sequence[int]) -> None:
    """Makes the model repository of a directory's versions, or brings an old one up to date.

    Links to new versions appear before those to old ones vanish, so that a server that looks
    meanwhile finds a version. `publish` calls it under its lock.

    Args:
      base: Directory of versions that `write_onnx` wrote.
      shown: The numbers of those that the repository has; at least one.
    """
    import onnx

    base = os.path.abspath(base)
    present = versions(base)
    repository = os.path.join(base, DIRECTORY)
    for signature in PORTABLE_NAMES:
        name = f"{os.path.basename(base)}_{signature}"
        directory = os.path.join(repository, name)
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(present[max(shown)], f"{signature}.onnx")
        graph = onnx.load(path, load_external_data=False).graph
        # Before the versions, without which Triton does not load a model.
        write_atomically(os.path.join(directory, _CONFIG), _config(name, signature, graph))
        for version in shown:
            link = os.path.join(directory, str(version))
            if not os.path.islink(link):
                os.symlink(os.path.join(os.pardir, os.pardir, str(version)), link)
        for entry in os.listdir(directory):
            if entry.isdecimal() and int(entry) not in shown:
                os.remove(os.path.join(directory, entry))


def update_existing(base: str | os.PathLike, shown: Sequence[int]) -> None:
    """Does what `update_repository` does, if there is a repository.

    Its links would lead nowhere once their versions are removed.
    """
    if os.path.isdir(os.path.join(base, DIRECTORY)):
        update_repository(base, shown)


def _config(name: str, signature: str, graph: onnx.GraphProto) -> str:
    """Returns a model's configuration, an `inference.ModelConfig` as text."""
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f'default_model_filename: "{signature}.onnx"',
        f"max_batch_size: {MAX_ROWS}",
        *(_tensor("input", value) for value in graph.input),
        *(_tensor("output", value) for value in graph.output),
        # It merges what is waiting anyway. A delay for more cost what it brought; see the docs.
        "dynamic_batching {",
        f"  default_queue_policy {{ max_queue_size: {_MAX_QUEUE} }}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, value: onnx.ValueInfoProto) -> str:
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    shape = f"dims: [ {', '.join(map(str, dims))} ]"
    if not dims:  # Triton knows no tensors (B,): outside it is (B, 1)
        shape = "dims: [ 1 ] reshape { shape: [] }"
    return f'{kind} {{ name: "{value.name}" data_type: TYPE_FP32 {shape} }}'
