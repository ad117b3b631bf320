"""The SavedModel, read by processes that know nothing of this package or of Keras."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from export.saved_model import export_model, next_version
from nvae_tf import NVAE
from nvae_tf.pictures import to_uint8
from tests.conftest import tiny_model_config


@pytest.fixture(scope="module")
def model():
    tf.keras.utils.set_random_seed(0)
    # Flows, padding and three channels; large enough weights for pictures that differ.
    model = NVAE(
        tiny_model_config(
            image_shape=(16, 16, 3), padding=2, likelihood="logistic_mixture", num_x_bits=8
        )
    )
    model.image_head.log_scale.assign(model.image_head.log_scale + 3)
    return model


@pytest.fixture(scope="module")
def version(model, tmp_path_factory):
    return export_model(model, tmp_path_factory.mktemp("serving") / "nvae")


@pytest.fixture(scope="module")
def sample(version):
    return tf.saved_model.load(version).signatures["sample"]


def draw(sample, seeds, temperatures):
    return sample(
        seed=tf.constant(seeds, tf.int64), temperature=tf.constant(temperatures, tf.float32)
    )


def test_images_and_their_png(sample):
    outputs = draw(sample, [1, 2, 3], [1.0, 1.0, 0.5])
    images = outputs["image"].numpy()
    assert images.shape == (3, 12, 12, 3) and images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 3
    for image, png in zip(images, outputs["image_bytes"].numpy()):
        np.testing.assert_array_equal(tf.io.decode_png(png), image)


def test_a_row_depends_on_its_own_seed_and_temperature_alone(sample):
    together = draw(sample, [7, 8, 7, 9], [0.5, 0.5, 0.5, 1.0])["image"].numpy().astype(int)
    np.testing.assert_array_equal(together[0], together[2])
    for row, (seed, temperature) in enumerate([(7, 0.5), (8, 0.5), (7, 0.5), (9, 1.0)]):
        alone = draw(sample, [seed], [temperature])["image"].numpy()[0].astype(int)
        # Kernels may round differently for another batch size: at most one grey level.
        assert np.abs(alone - together[row]).max() <= 1


def test_the_export_computes_what_the_model_does(model, sample):
    noise = model.draw_noise(1, tf.constant([5, 0], tf.int64))
    expected = model.crop_padding(model.likelihood(model.generate(1, 0.7, noise)).mean())
    exported = draw(sample, [5], [0.7])["image"].numpy().astype(int)
    assert np.abs(exported - to_uint8(expected).astype(int)).max() <= 1


def test_a_process_with_tensorflow_alone_gets_the_same_images(version, sample):
    code = f"""
import sys
for name in ("nvae_tf", "keras", "tf_keras", "tensorflow_probability"):
    sys.modules[name] = None  # importing it is an error from here on
import tensorflow as tf
signature = tf.saved_model.load({version!r}).signatures["sample"]
images = signature(seed=tf.constant([1], tf.int64), temperature=tf.constant([1.0]))["image"]
print(int(tf.reduce_sum(tf.cast(images, tf.int32))))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False
    )
    assert result.returncode == 0, result.stderr
    expected = int(draw(sample, [1], [1.0])["image"].numpy().sum())
    assert abs(int(result.stdout) - expected) <= 12 * 12 * 3


def saved_model_cli(*arguments):
    command = os.path.join(os.path.dirname(sys.executable), "saved_model_cli")
    result = subprocess.run(
        [command, *arguments], capture_output=True, text=True, cwd="/", check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_saved_model_cli(version, tmp_path):
    shown = saved_model_cli("show", f"--dir={version}", "--tag_set=serve", "--signature_def=sample")
    for line in ("inputs['seed']", "inputs['temperature']", "outputs['image']", "DT_UINT8"):
        assert line in shown
    saved_model_cli(
        "run",
        f"--dir={version}",
        "--tag_set=serve",
        "--signature_def=sample",
        "--input_exprs=seed=[3,4];temperature=[0.7,0.7]",
        f"--outdir={tmp_path}",
    )
    assert np.load(tmp_path / "image.npy").shape == (2, 12, 12, 3)


def test_two_channels_have_no_png(tmp_path):
    two = NVAE(
        tiny_model_config(
            image_shape=(8, 8, 2), likelihood="normal", num_x_bits=8, num_latent_scales=1
        )
    )
    signature = tf.saved_model.load(export_model(two, tmp_path)).signatures["sample"]
    assert set(draw(signature, [1], [1.0])) == {"image"}


def test_versions_count_up_and_appear_whole(model, tmp_path, monkeypatch):
    (tmp_path / "7").mkdir()
    (tmp_path / "notes").mkdir()
    assert next_version(tmp_path) == 8

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        export_model(model, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["7", "notes"]


def test_the_base_must_be_a_directory(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not a directory"):
        export_model(model, tmp_path / "file")
