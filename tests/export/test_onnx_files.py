"""ONNX files: what ONNX Runtime computes is what TensorFlow computes."""

import base64
import importlib.util
import json
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from export import onnx_files
from export.manifest import Manifest, read_manifest
from export.onnx_files import _inputs, check_installed, check_same, write_onnx
from export.portable_names import PORTABLE_NAMES
from export.publish import publish, versions
from export.seed_noise import noise_inputs
from export.signatures import make_signatures
from nvae_tf import NVAE, ExperimentConfig
from tests.conftest import tiny_model_config
from tests.export.exported import small_model, small_signatures

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("tf2onnx", reason="needs the extra onnx")

ROOT = pathlib.Path(__file__).parents[2]


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
    noise = noise_inputs((7, 8, 9), small_model().config.latent_shapes)
    temperature = np.float32([0.7, 1.0, 0.0])
    images = run(written / "sample_tensors.onnx", **noise, temperature=temperature)["image"]
    served = small_signatures()["sample"](seed=np.int64([7, 8, 9]), temperature=temperature)
    assert np.abs(np.round(255 * images) - served["image"].numpy()).max() <= 1


def test_a_wrong_file_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "_GREY_LEVEL", -1.0)  # nothing is near enough
    manifest = Manifest.of(ExperimentConfig(model=small_model().config), step=7)
    with pytest.raises(ValueError, match="computes another"):
        publish(small_model(), tmp_path, manifest, write=write_onnx)
    assert not versions(tmp_path)


@pytest.mark.parametrize("name", PORTABLE_NAMES)
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
    assert read_manifest(written).signatures == PORTABLE_NAMES
    assert json.loads(facts["config"])["model"]["num_nf"] == 1


def test_binary_images(tmp_path):
    """Their likelihood has an operation that ONNX lacks."""
    model = NVAE(tiny_model_config(num_latent_scales=1, arch_instance="res_bnswish"))
    write_onnx(model, tmp_path, Manifest.of(ExperimentConfig(model=model.config), step=0))
    assert (tmp_path / "infer_tensors.onnx").stat().st_size > 0


@pytest.fixture(scope="module")
def inputs():
    return _inputs(small_model(), make_signatures(small_model()))


def expected(name, inputs):
    tensors = {key: tf.constant(value) for key, value in inputs[name].items()}
    return small_signatures()[name](**tensors)


@pytest.mark.slow
@pytest.mark.parametrize("name", PORTABLE_NAMES)
def test_openvino_computes_the_same(written, inputs, name):
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(written / f"{name}.onnx", "CPU", options)
    answer = compiled(inputs[name])
    wanted = expected(name, inputs)
    check_same(name, {key: answer[key] for key in wanted}, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", PORTABLE_NAMES)
def test_onnx_runtime_in_node_computes_the_same(written, inputs, name):
    if not shutil.which("node"):
        pytest.skip("needs Node")
    if not (ROOT / "node_modules/onnxruntime-node").is_dir():
        pytest.skip(
            "needs npm install --no-save --ignore-scripts --prefix=. onnxruntime-node@1.30.0"
        )
    given = {
        key: {"shape": value.shape, "data": base64.b64encode(value.tobytes()).decode()}
        for key, value in inputs[name].items()
    }
    command = ["node", "benchmarks/onnxruntime_node.mjs", written / f"{name}.onnx"]
    ended = subprocess.run(
        command, cwd=ROOT, input=json.dumps(given), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    received = {
        key: np.frombuffer(base64.b64decode(value["data"]), np.float32).reshape(value["shape"])
        for key, value in json.loads(ended.stdout)["outputs"].items()
    }
    wanted = expected(name, inputs)
    assert {k: v.shape for k, v in received.items()} == {k: v.shape for k, v in wanted.items()}
    check_same(name, received, wanted)


def test_what_is_missing_is_said_first(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx and onnxruntime and tf2onnx: pip install"):
        check_installed()


@pytest.mark.parametrize("wrong", [np.nan, 2e-4])
def test_another_answer_is_an_error(wrong):
    expected = tf.ones([2])
    check_same("infer_tensors", {"elbo": expected.numpy()}, {"elbo": expected})
    with pytest.raises(ValueError, match="computes another 'elbo' of infer_tensors"):
        check_same("infer_tensors", {"elbo": expected.numpy() + wrong}, {"elbo": expected})
