"""Triton's model repository: its files, and what Triton itself makes of them."""

import os
import pathlib
import shutil
from concurrent import futures

import numpy as np
import pytest

from export.manifest import Manifest
from export.portable_names import PORTABLE_NAMES
from export.publish import publish
from export.serving_client import Client, RequestError
from export.triton_repository import DIRECTORY, update_existing, update_repository
from nvae_tf import ExperimentConfig
from tests.export import triton_server as triton
from tests.export.exported import small_model, small_signatures

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("tf2onnx", reason="needs the extra onnx")
from export.onnx_files import write_onnx


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    found = tmp_path_factory.mktemp("export") / "nvae"
    config = ExperimentConfig(model=small_model().config)
    manifest = Manifest.of(config, step=7)
    publish(
        small_model(), found, manifest, allow_worse=True, write=write_onnx, index=update_repository
    )
    return found


def models(base):
    """The versions by model, as a server sees them through the links."""
    return {
        model.name: sorted(p.name for p in model.iterdir() if p.is_dir())
        for model in (base / DIRECTORY).iterdir()
    }


def test_models_and_versions(base, tmp_path):
    copy = pathlib.Path(shutil.copytree(base, tmp_path / "nvae", symlinks=True))
    names = {f"nvae_{name}" for name in PORTABLE_NAMES}
    assert models(copy) == {key: ["1"] for key in names}
    for name in PORTABLE_NAMES:
        assert (copy / DIRECTORY / f"nvae_{name}" / "1" / f"{name}.onnx").is_file()
    shutil.copytree(copy / "1", copy / "2")
    update_repository(copy, [1, 2])
    assert models(copy) == {key: ["1", "2"] for key in names}
    update_repository(copy, [2])
    assert models(copy) == {key: ["2"] for key in names}
    assert not any(os.path.islink(copy / DIRECTORY / name / "1") for name in names)
    # A link to the directory gives the models its own name.
    copy.rename(tmp_path / "run7")
    (tmp_path / "nvae").symlink_to(tmp_path / "run7")
    update_repository(tmp_path / "nvae", [2])
    assert models(tmp_path / "run7") == {key: ["2"] for key in names}


def test_onnx_files_in_the_same_place_bring_the_repository_up_to_date(base, tmp_path):
    copy = pathlib.Path(shutil.copytree(base, tmp_path / "nvae", symlinks=True))
    shutil.copytree(copy / "1", copy / "2")
    update_existing(copy, [2])
    assert set(map(tuple, models(copy).values())) == {("2",)}
    shutil.rmtree(copy / DIRECTORY)
    update_existing(copy, [2])
    assert not (copy / DIRECTORY).exists()


def test_the_configuration_is_tritons(base):
    pytest.importorskip("tritonclient.grpc", reason="it has the messages of Triton")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    for name in PORTABLE_NAMES:
        text = (base / DIRECTORY / f"nvae_{name}" / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        specs = {spec.name: spec.shape.as_list()[1:] for spec in signature_inputs(name)}
        assert config.name == f"nvae_{name}" and config.max_batch_size == 32
        assert {value.name: list(value.dims) for value in config.input} == {
            key: shape or [1] for key, shape in specs.items()
        }


def signature_inputs(name):
    return small_signatures()[name].structured_input_signature[1].values()


@pytest.fixture(scope="module")
def server(base, tmp_path_factory):
    if reason := triton.why_not():
        pytest.skip(reason)
    with triton.triton_server(base, tmp_path_factory.mktemp("triton")) as addresses:
        yield addresses


@pytest.mark.slow
def test_triton_gives_the_images_of_the_seeds(server):
    expected = small_signatures()["sample"](
        seed=np.arange(7, 47), temperature=np.full(40, 0.7, np.float32)
    )["image"].numpy()
    with Client(server.http, "kserve") as client:
        images = client.sample(40, seed=7, temperature=0.7)
        assert np.abs(images.astype(int) - expected).max() <= 1
        sent = {"image": images[:2] / np.float32(255)} | {
            spec.name: np.zeros([2, *spec.shape[1:]], np.float32)
            for spec in signature_inputs("infer_tensors")
            if spec.name != "image"
        }
        answer = client.ask("infer_tensors", sent)
    for name, value in small_signatures()["infer_tensors"](**sent).items():
        np.testing.assert_allclose(answer[name], value, rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_nothing_is_lost_under_load(server):
    with Client(server.http, "kserve") as client, futures.ThreadPoolExecutor(8) as pool:
        alone = client.sample(8, seed=3)
        answers = list(pool.map(lambda n: client.sample(1, seed=3 + n % 8), range(200)))
    assert len(answers) == 200
    for n, answer in enumerate(answers):
        assert np.abs(answer[0].astype(int) - alone[n % 8]).max() <= 1


@pytest.mark.slow
def test_what_triton_does_not_have(server):
    for options in ({"model": "vae"}, {"version": 7}):
        with (
            Client(server.http, "kserve", **options) as client,
            pytest.raises(RequestError, match="has no model") as caught,
        ):
            client.sample(1)
        assert caught.value.code == "NOT_FOUND"


@pytest.mark.slow
def test_other_clients_over_grpc(server):
    """With Triton's own client, which knows nothing of this package."""
    grpc = pytest.importorskip("tritonclient.grpc")
    with grpc.InferenceServerClient(server.grpc) as client:
        (image,) = client.get_model_metadata("nvae_sample_tensors").outputs
        assert list(image.shape) == [-1, *small_model().config.content_shape]
        inputs = []
        for spec in signature_inputs("sample_tensors"):
            value = np.zeros([1, *(spec.shape.as_list()[1:] or [1])], np.float32)
            inputs.append(grpc.InferInput(spec.name, value.shape, "FP32"))
            inputs[-1].set_data_from_numpy(value)
        drawn = client.infer("nvae_sample_tensors", inputs).as_numpy("image")
    zeros = {
        spec.name: np.zeros([1, *spec.shape[1:]], np.float32)
        for spec in signature_inputs("sample_tensors")
    }
    expected = small_signatures()["sample_tensors"](**zeros)["image"]
    np.testing.assert_allclose(drawn, expected, atol=1 / 255)
