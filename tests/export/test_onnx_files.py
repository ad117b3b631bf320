"""ONNX files: what ONNX Runtime computes is what TensorFlow computes."""

import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf

from export.manifest import Manifest, read_manifest
from export.onnx_files import _compare, _inputs, check_installed, write_onnx
from export.portable_signatures import NAMES
from export.seed_noise import noise_of_seed
from export.signatures import make_signatures
from nvae_tf import NVAE, ExperimentConfig
from tests.conftest import tiny_model_config
from tests.export.exported import small_model, small_signatures

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("tf2onnx", reason="needs the extra onnx")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("onnx")
    config = ExperimentConfig(model=small_model().config)
    write_onnx(small_model(), directory, Manifest.of(config, step=7))
    return directory


def run(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs)))


def test_the_image_of_a_seed_is_that_of_the_served_model(written):
    rows = [noise_of_seed(seed, small_model().config.latent_shapes) for seed in (7, 8, 9)]
    noise = {f"noise_{n:02}": np.stack(group) for n, group in enumerate(zip(*rows))}
    temperature = np.float32([0.7, 1.0, 0.0])
    images = run(written / "sample_tensors.onnx", **noise, temperature=temperature)["image"]
    served = small_signatures()["sample"](seed=np.int64([7, 8, 9]), temperature=temperature)
    assert np.abs(np.round(255 * images) - served["image"].numpy()).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_metadata(written, name):
    model = onnx.load(written / f"{name}.onnx")
    spec = small_signatures()[name].structured_input_signature[1]
    shapes = {
        value.name: [d.dim_value or None for d in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    assert shapes == {key: value.shape.as_list() for key, value in spec.items()}
    assert {value.name for value in model.graph.output} == set(
        small_signatures()[name].structured_outputs
    )
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["signature"] == name and facts["step"] == "7"
    ExperimentConfig.from_json(facts["config"])
    assert read_manifest(written).signatures == NAMES
    assert json.loads(facts["config"])["model"]["num_nf"] == 1


def test_binary_images(tmp_path):
    """Their likelihood has an operation that ONNX lacks."""
    model = NVAE(tiny_model_config(num_latent_scales=1, arch_instance="res_bnswish"))
    write_onnx(model, tmp_path, Manifest.of(ExperimentConfig(model=model.config), step=0))
    assert (tmp_path / "infer_tensors.onnx").stat().st_size > 0


@pytest.mark.slow
def test_openvino_computes_the_same(written):
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    core = openvino.Core()
    inputs = _inputs(small_model(), make_signatures(small_model()))
    for name in NAMES:
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(written / f"{name}.onnx", "CPU", options)
        answer = compiled(inputs[name])
        expected = small_signatures()[name](
            **{key: tf.constant(value) for key, value in inputs[name].items()}
        )
        _compare(name, {key: answer[key] for key in expected}, expected)


def test_what_is_missing_is_said_first(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx and onnxruntime and tf2onnx: pip install"):
        check_installed()


@pytest.mark.parametrize("wrong", [np.nan, 2e-4])
def test_another_answer_is_an_error(wrong):
    expected = tf.ones([2])
    _compare("infer_tensors", {"elbo": expected.numpy()}, {"elbo": expected})
    with pytest.raises(ValueError, match="computes another 'elbo' of infer_tensors"):
        _compare("infer_tensors", {"elbo": expected.numpy() + wrong}, {"elbo": expected})
