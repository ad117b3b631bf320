"""idx files, the format of MNIST."""

import gzip
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_tf import DataConfig, ModelConfig
from nvae_tf.data import load_images
from nvae_tf.data.idx import read_idx_images
from tests.conftest import idx_file

IMAGES = np.random.default_rng(0).integers(256, size=(5, 4, 6, 1), dtype=np.uint8)
MODEL = ModelConfig(image_shape=(4, 6, 1))


def data(root, **options):
    return DataConfig(name="idx", data_dir=str(root), **options)


@pytest.mark.parametrize(
    "name", ["t10k-images-idx3-ubyte", "test-images.idx3-ubyte", "t10k-images-idx3-ubyte.gz"]
)
def test_images_of_both_splits(tmp_path, name):
    content = idx_file(IMAGES[3:, ..., 0])
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_file(IMAGES[:3, ..., 0]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"of no use here")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    np.testing.assert_array_equal(load_images(data(tmp_path), MODEL, "train"), IMAGES[:3])
    np.testing.assert_array_equal(load_images(data(tmp_path), MODEL, "test"), IMAGES[3:])


def test_colour_and_other_names(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(2, 4, 6, 3), dtype=np.uint8)
    (tmp_path / "letters-train-images-idx4-ubyte").write_bytes(idx_file(images))
    loaded = load_images(data(tmp_path), ModelConfig(image_shape=(4, 6, 3)), "letters-train")
    np.testing.assert_array_equal(loaded, images)
    with pytest.raises(ValueError, match="3 channels, but the model's .* expects 1"):
        load_images(data(tmp_path), MODEL, "letters-train")
    with pytest.raises(ValueError, match="4x6 pixels, but the model's image_shape"):
        load_images(data(tmp_path), ModelConfig(image_shape=(8, 8, 3)), "letters-train")


def test_files_that_are_missing_or_double(tmp_path):
    with pytest.raises(ValueError, match="there is no directory"):
        load_images(data(tmp_path / "nowhere"), MODEL, "train")
    with pytest.raises(ValueError, match="'test', which may be called t10k. Present: nothing"):
        load_images(data(tmp_path), MODEL, "test")
    for name in ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"):
        (tmp_path / name).write_bytes(idx_file(IMAGES[..., 0]))
    with pytest.raises(ValueError, match="one file train-images.*ubyte, train-images-.*gz"):
        load_images(data(tmp_path), MODEL, "train")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it begins with nothing"),
        (b"\x89PNG and so on", "it begins with 89 50 4e 47"),
        (b"\0\0\x08\x01" + struct.pack(">I", 3) + b"abc", "it begins with 00 00 08 01"),
        (b"\0\0\x0d\x03" + 12 * b"\0", "unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "ends after 6 bytes, in its header"),
        (idx_file(IMAGES[..., 0])[:-1], "must have 136 bytes, received 135"),
        (b"\0\0\x08\x04" + 16 * b"\xff", "must have"),
        (gzip.compress(idx_file(IMAGES[..., 0]))[:-9], "damaged gzip data"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte': .*{message}"):
        load_images(data(tmp_path), MODEL, "train")


@settings(max_examples=300)
@given(st.integers(0, 2**64), st.binary(min_size=1, max_size=6), st.booleans())
def test_mutated_files_are_read_or_refused(position, replacement, zipped):
    content = bytearray(idx_file(IMAGES[..., 0]))
    content = bytearray(gzip.compress(bytes(content), mtime=0)) if zipped else content
    start = position % len(content)
    content[start : start + len(replacement)] = replacement
    try:
        images = read_idx_images(bytes(content))
    except ValueError:
        return
    assert images.ndim == 4 and images.dtype == np.uint8


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(ValueError, match="is not a regular file"):
        load_images(data(tmp_path), MODEL, "train")
