"""LiteRT: what it computes of the portable signatures is what TensorFlow computes."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from export.onnx_files import check_same
from export.portable_names import PORTABLE_NAMES
from export.seed_noise import noise_of_seed
from export.signatures import make_signatures
from nvae_tf import NVAE
from tests.conftest import tiny_model_config
from tests.export.exported import small_model, small_signatures, small_version

pytestmark = pytest.mark.slow
interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs ai-edge-litert")


def inputs_of(name, seeds):
    rows = [noise_of_seed(seed, small_model().config.latent_shapes) for seed in seeds]
    word = "z" if name == "decode_tensors" else "noise"
    inputs = {f"{word}_{n:02}": np.stack(group) for n, group in enumerate(zip(*rows))}
    if name == "sample_tensors":
        inputs["temperature"] = np.linspace(0.5, 1, len(seeds), dtype=np.float32)
    if name == "infer_tensors":
        shape = [len(seeds), *small_model().config.content_shape]
        inputs["image"] = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    return inputs


@pytest.mark.parametrize("name", PORTABLE_NAMES)
def test_it_computes_what_tensorflow_computes(name):
    converter = tf.lite.TFLiteConverter.from_saved_model(small_version(), signature_keys=[name])
    model = interpreter.Interpreter(model_content=converter.convert())
    runner = model.get_signature_runner(name)
    for seeds in ([7], [7, 8, 9], [9, 8]):  # the batch is open
        inputs = inputs_of(name, seeds)
        expected = small_signatures()[name](**{k: tf.constant(v) for k, v in inputs.items()})
        received = runner(**inputs)
        assert {k: v.shape for k, v in received.items()} == {
            k: v.shape for k, v in expected.items()
        }
        check_same(name, received, expected)


def test_a_model_without_flows_cannot_infer():
    """As the documentation says, for the reason that it gives."""
    signatures = make_signatures(NVAE(tiny_model_config(num_nf=0)))
    infer = signatures["infer_tensors"]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [infer.get_concrete_function()], infer
    )
    with pytest.raises(Exception, match=re.escape("'tf.PartitionedCall' op is neither a custom")):
        converter.convert()
