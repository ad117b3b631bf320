"""Files of tf.Example."""

import dataclasses
import gzip
import os
import struct

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import DataConfig, ModelConfig
from nvae_tf.data import load_images, storage

MODEL = ModelConfig(image_shape=(4, 6, 3))
IMAGES = np.random.default_rng(0).integers(256, size=(5, 4, 6, 3), dtype=np.uint8)


def feature(value):
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if isinstance(value, np.ndarray):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=value.ravel()))
    return tf.train.Feature(float_list=tf.train.FloatList(value=value))


def write(path, values, name="image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    compression = "GZIP" if path.suffix == ".gz" else ""
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for value in values:
            features = tf.train.Features(feature={name: feature(value), "label": feature([1.0])})
            writer.write(tf.train.Example(features=features).SerializeToString())


def pngs(images):
    return [tf.io.encode_png(image).numpy() for image in images]


def tfrecord(root, **options):
    return DataConfig(name="tfrecord", data_dir=str(root), **options)


def test_files_by_prefix_and_by_directory(tmp_path):
    write(tmp_path / "train-00000-of-00002", pngs(IMAGES[:2]))
    write(tmp_path / "train-00001-of-00002.gz", pngs(IMAGES[2:4]))
    write(tmp_path / "eval/data_tfrecord-00000-of-00001.gz", pngs(IMAGES[4:]))
    data = tfrecord(tmp_path, test_split="eval")
    np.testing.assert_array_equal(load_images(data, MODEL, "train"), IMAGES[:4])
    np.testing.assert_array_equal(load_images(data, MODEL, "eval"), IMAGES[4:])
    with pytest.raises(ValueError, match="for the split 'valid'.*Present: 'eval', 'train-00000"):
        load_images(data, MODEL, "valid")


def test_no_file_is_of_both_splits(tmp_path):
    write(tmp_path / "flowers.tfrecord", pngs(IMAGES[:3]))
    write(tmp_path / "flowers_test.tfrecord", pngs(IMAGES[3:]))
    data = tfrecord(tmp_path, train_split="flowers", test_split="flowers_test")
    for split in ("flowers", "flowers_test"):
        with pytest.raises(ValueError, match=r"1 file.*'.*flowers_test\.tfrecord' .*'flowers\.'"):
            load_images(data, MODEL, split)
    apart = dataclasses.replace(data, train_split="flowers.")
    np.testing.assert_array_equal(load_images(apart, MODEL, "flowers."), IMAGES[:3])
    np.testing.assert_array_equal(load_images(apart, MODEL, "flowers_test"), IMAGES[3:])
    # A link leads to the same images.
    (tmp_path / "held_out").symlink_to("flowers.tfrecord")
    linked = dataclasses.replace(apart, test_split="held_out")
    with pytest.raises(ValueError, match=r"1 file.*belong to both splits"):
        load_images(linked, MODEL, "held_out")


@pytest.mark.parametrize("as_integers", [False, True])
def test_raw_values_of_any_number_of_channels(tmp_path, as_integers):
    images = np.random.default_rng(0).integers(256, size=(3, 4, 6, 5), dtype=np.uint8)
    write(
        tmp_path / "train.tfrecord",
        [image.astype(np.int64) if as_integers else image.tobytes() for image in images],
        name="x",
    )
    model = ModelConfig(image_shape=(4, 6, 5))
    data = tfrecord(tmp_path, feature="x", raw_shape=(4, 6, 5))
    np.testing.assert_array_equal(load_images(data, model, "train"), images)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (pngs(IMAGES)[0], {"feature": "picture"}, "record 1: no feature 'picture'.*image, label"),
        (b"short", {"raw_shape": (4, 6, 3)}, r"record 0: .*needs 72 values, received 5"),
        (np.full(72, 256), {"raw_shape": (4, 6, 3)}, "must be 0 to 255, received 256 to 256"),
        ([1.0], {"raw_shape": (4, 6, 3)}, "bytes or integers, received a float_list"),
        (np.zeros(72, int), {}, "int64_list of 0 values|set data.raw_shape"),
        (b"no picture", {}, "record 0: not a readable picture.*skip_corrupt"),
        (IMAGES[0].tobytes(), {"raw_shape": (6, 6, 2)}, "2 channels.*expects 3"),
        (IMAGES[0].tobytes(), {"raw_shape": (6, 4, 3)}, "6x4 pixels.*expects 4x6"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, value, options, message):
    write(tmp_path / "train", [value, value])
    with pytest.raises(ValueError, match=message.replace("record 1", r"record \d")):
        load_images(tfrecord(tmp_path, **options), MODEL, "train")


def test_damaged_files_are_named(tmp_path):
    write(tmp_path / "train-1", pngs(IMAGES))
    content = (tmp_path / "train-1").read_bytes()
    (tmp_path / "train-2").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"train-2' is not a whole TFRecord file"):
        load_images(tfrecord(tmp_path), MODEL, "train")
    with tf.io.TFRecordWriter(str(tmp_path / "train-2")) as writer:
        writer.write(b"\xff\xff not an example")
    with pytest.raises(ValueError, match=r"train-2, record 0: not a tf\.Example"):
        load_images(tfrecord(tmp_path), MODEL, "train")


@pytest.mark.parametrize("place", ["length", "content"])
def test_checksums_are_verified(tmp_path, place):
    for name in ("train-1", "train-2", "train-3"):
        write(tmp_path / name, pngs(IMAGES))
    content = bytearray((tmp_path / "train-2").read_bytes())
    second = 12 + int.from_bytes(content[:8], "little") + 4
    content[second + {"length": 8, "content": 12 + 20}[place]] ^= 1
    (tmp_path / "train-2").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-2' is not a whole TFRecord file.*corrupted"):
        load_images(tfrecord(tmp_path), MODEL, "train")


def test_images_that_were_decoded_are_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_IN_MEMORY", 0)
    path, data = tmp_path / "data/train", tfrecord(tmp_path / "data", cache_dir=str(tmp_path))
    write(path, pngs(IMAGES))
    np.testing.assert_array_equal(load_images(data, MODEL, "train"), IMAGES)
    # Damage to what lies between headers, in a file that looks as before, is not noticed then.
    status, content = path.stat(), bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    np.testing.assert_array_equal(load_images(data, MODEL, "train"), IMAGES)


@pytest.mark.parametrize("name", ["train-0", "train-0.gz"])
@pytest.mark.parametrize("length", [2**40, 2**31, 2**63, 1000])
def test_a_record_that_claims_more_than_its_file(tmp_path, name, length):
    # TensorFlow would ask for that much memory; the checksum of the length is right.
    header = struct.pack("<Q", length)
    content = header + struct.pack("<I", masked_crc(header)) + 100 * b"x"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    data = DataConfig(name="tfrecord", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="train-0.*is not a whole TFRecord file"):
        load_images(data, ModelConfig(), "train")


def masked_crc(content):
    """CRC-32C, rotated and shifted as TFRecord files have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
