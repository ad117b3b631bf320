"""The portable signatures as ONNX files, for ONNX Runtime and whatever else reads ONNX.

It needs the extra `onnx`: tf2onnx writes the files, and ONNX Runtime runs each as a check.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
from typing import Any

import numpy as np
import tensorflow as tf

from export.manifest import Manifest, write_manifest
from export.portable_names import PORTABLE_NAMES
from export.seed_noise import noise_inputs
from export.signatures import Signature, make_signatures
from nvae_tf.model.nvae import NVAE

OPSET = 18
_NEEDED = ("onnx", "onnxruntime", "tf2onnx")
_TEMPERATURES = (0.7, 1.0)  # of the rows that are compared
_GREY_LEVEL = 1 / 255
_RELATIVE = 1e-4


def write_onnx(model: NVAE, directory: str | os.PathLike, manifest: Manifest) -> None:
    """Writes `decode_tensors.onnx`, `sample_tensors.onnx` and `infer_tensors.onnx`.

    Names, shapes and types of their inputs and outputs are those of the signatures, with an open
    batch. Their metadata holds the run's configuration and step. Each is run by ONNX Runtime before
    this function returns, and its answer compared with TensorFlow's.

    Args:
      model: The model, in float32.
      directory: The directory, which must be empty or not exist yet.
      manifest: The origin of the model.

    Raises:
      ImportError: The extra `onnx` is not installed.
      ValueError: ONNX Runtime does not compute what TensorFlow computes: images differ by more than
        a grey level, or other outputs by more than 1e-4 of their size.
    """
    check_installed()
    import onnx
    import onnxruntime
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    os.makedirs(directory, exist_ok=True)
    signatures = make_signatures(model)
    facts = {"step": str(manifest.step), "config": json.dumps(manifest.config)}
    inputs = _inputs(model, signatures)
    for name in PORTABLE_NAMES:
        proto, _ = tf2onnx.convert.from_function(
            signatures[name],
            signatures[name].input_signature,
            opset=OPSET,
            custom_op_handlers={"MulNoNan": (_as_product, [])},
        )
        onnx.helper.set_model_props(proto, facts | {"signature": name})
        path = os.path.join(directory, f"{name}.onnx")
        with open(path, "wb") as file:
            file.write(proto.SerializeToString())
        onnx.checker.check_model(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answers = session.run(None, inputs[name])
        received = dict(zip((output.name for output in session.get_outputs()), answers))
        check_same(name, received, signatures[name](*inputs[name].values()))
    precision = model.dtype_policy.name
    write_manifest(
        os.fspath(directory),
        dataclasses.replace(manifest, signatures=PORTABLE_NAMES, precision=precision),
    )


def check_installed() -> None:
    """Raises an ImportError if the extra `onnx` is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Writing ONNX files needs {' and '.join(missing)}: pip install 'nvae-tf[onnx]'."
        )


def _as_product(context: Any, node: Any, name: str, args: Any) -> None:
    """Converts a product in which zero times infinity is zero; a log-probability is finite."""
    del context, name, args
    node.type = "Mul"


def _inputs(model: NVAE, signatures: dict[str, Signature]) -> dict[str, dict[str, np.ndarray]]:
    """The inputs by signature, in their order, with which the runtimes are compared."""
    noise = noise_inputs(range(len(_TEMPERATURES)), model.config.latent_shapes)
    sample = noise | {"temperature": np.array(_TEMPERATURES, np.float32)}
    images = np.round(signatures["sample_tensors"](*sample.values())["image"].numpy())
    infer = {"image": images} | noise
    latents = {f"z_{n:02}": group for n, group in enumerate(noise.values())}
    return {"decode_tensors": latents, "sample_tensors": sample, "infer_tensors": infer}


def check_same(name: str, received: dict[str, np.ndarray], expected: dict[str, tf.Tensor]) -> None:
    """Raises a ValueError unless another runtime's outputs are TensorFlow's.

    Args:
      name: The signature.
      received: The other runtime's outputs by name.
      expected: TensorFlow's.
    """
    if set(received) != set(expected):
        raise ValueError(f"{name}.onnx has the outputs {sorted(received)}.")
    for output, values in received.items():
        wanted = expected[output].numpy()
        limit = _GREY_LEVEL if output == "image" else _RELATIVE * max(1.0, np.abs(wanted).max())
        difference = np.abs(values - wanted).max()
        if not difference <= limit:  # which NaN is not
            raise ValueError(
                f"ONNX Runtime computes another {output!r} of {name}: it differs by {difference}."
            )
