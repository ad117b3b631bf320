"""SavedModels that TensorFlow Serving loads as they are."""

from __future__ import annotations

import dataclasses
import os

import tensorflow as tf

from export.manifest import Manifest, write_manifest
from export.portable_names import PORTABLE_NAMES
from export.signatures import make_signatures
from export.warmup import write_warmup_requests
from nvae_tf.model.nvae import NVAE


def write_saved_model(model: NVAE, directory: str | os.PathLike, manifest: Manifest) -> None:
    """Writes a model with all its signatures, warm-up requests and manifest.

    The SavedModel appears file by file: where a server watches, use `publish`.

    Args:
      model: The model, in the precision that it is to be served in.
      directory: The SavedModel's directory, which must be empty or not exist yet.
      manifest: The origin of the model.
    """
    directory = os.fspath(directory)
    functions = make_signatures(model)  # they own the kernels
    signatures = {name: function.get_concrete_function() for name, function in functions.items()}
    module = tf.Module()
    # The signatures hold prepared weights, and not those that the kernels are computed from.
    used = [variable for s in signatures.values() for variable in s.graph.variables]
    module.used = list({variable.ref(): variable for variable in used}.values())
    # Nobody takes gradients of a served model, and writing their functions takes most of the time.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, directory, signatures=signatures, options=options)
    # Nobody asks a server for the portable ones.
    served = {name: s for name, s in signatures.items() if name not in PORTABLE_NAMES}
    write_warmup_requests(directory, served)
    precision = model.dtype_policy.name
    write_manifest(
        directory,
        dataclasses.replace(manifest, signatures=tuple(signatures), precision=precision),
    )
