"""Where images come from."""

import dataclasses
import gzip
import os
import pathlib
import shutil

import numpy as np
import pytest

from nvae_tf import DataConfig, ModelConfig, presets
from nvae_tf.data import load_images, storage
from nvae_tf.data import tfds as tfds_module

GRAY = presets.get("quickstart").model
# The Debian package dataset-fashion-mnist, the whole set as idx files.
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")


def test_embedded_images_are_whole():
    data = DataConfig()
    train, test = (load_images(data, GRAY, split) for split in ("train", "test"))
    assert train.shape == (9000, 28, 28, 1) and test.shape == (1000, 28, 28, 1)
    assert train.dtype == np.uint8 and train.min() == 0 and train.max() == 255
    # The published test set's mean intensity is 73.15.
    mean = (train.sum(dtype=np.int64) + test.sum(dtype=np.int64)) / (10_000 * 28 * 28)
    assert mean == pytest.approx(73.15, abs=0.01)


def test_crop_and_resize():
    cropped = load_images(
        DataConfig(crop=(4, 6, 20, 16)),
        ModelConfig(image_shape=(20, 16, 1), num_latent_scales=1),
        "test",
    )
    whole = load_images(DataConfig(), GRAY, "test")
    np.testing.assert_array_equal(cropped, whole[:, 4:24, 6:22])
    resized = load_images(DataConfig(resize=True), ModelConfig(image_shape=(14, 14, 1)), "test")
    by_area = whole.reshape(1000, 14, 2, 14, 2, 1).mean(axis=(2, 4))
    assert np.abs(resized - by_area).max() <= 0.5


@pytest.mark.parametrize(
    ("data", "model", "split", "message"),
    [
        (DataConfig(), GRAY, "validation", "splits train and test, received 'validation'"),
        (DataConfig(data_dir="mine"), GRAY, "train", "data.data_dir must be empty, rec.*'mine'"),
        (DataConfig(name="nonesuch"), GRAY, "train", "Unknown data set 'nonesuch'.*mnist"),
        (
            DataConfig(),
            ModelConfig(image_shape=(32, 32, 1)),
            "train",
            "28x28 pixels, but.*expects 32x32.*data.resize",
        ),
        (DataConfig(), ModelConfig(image_shape=(28, 28, 3)), "train", "1 channels.*expects 3"),
        (DataConfig(name="cifar10"), GRAY, "train", "'cifar10' have 3 channels.*expects 1"),
    ],
)
def test_what_does_not_fit_is_named(data, model, split, message):
    with pytest.raises(ValueError, match=message):
        load_images(data, model, split)


def test_a_set_that_cannot_be_downloaded(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    def no_network(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds_module, "_has_network", lambda: True)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", no_network)
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", no_network)
    data = DataConfig(name="mnist", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="'mnist' is not in.*no route to host.*data.data_dir"):
        load_images(data, GRAY, "train")


def test_without_a_network_nothing_is_tried_for_minutes(monkeypatch, tmp_path):
    def refuse(address, timeout):
        assert timeout <= 5
        raise OSError(f"no way to {address}")

    monkeypatch.setattr(tfds_module.urllib.request, "getproxies", dict)
    monkeypatch.setattr(tfds_module.socket, "create_connection", refuse)
    data = DataConfig(name="mnist", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="no network to download it.*build mnist.*data.data_dir"):
        load_images(data, GRAY, "train")
    assert not os.listdir(tmp_path)


def prepare(directory, images, shape):
    """Stores images as a TFDS data set with the name few; returns its configuration."""
    import tensorflow_datasets as tfds

    tfds.dataset_builders.store_as_tfds_dataset(
        name="few",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=shape)}),
        split_datasets={"train": [(i, {"image": image}) for i, image in enumerate(images)]},
        data_dir=directory,
        disable_shuffling=True,
    )
    return DataConfig(name="few", data_dir=str(directory))


@pytest.fixture
def prepared(tmp_path):
    """A small TFDS data set in files: its configuration, and the path of its features."""
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28, 1)
    data = prepare(tmp_path, images, (28, 28, 1))
    (features,) = (tmp_path / "few").rglob("features.json")
    return data, features


def test_a_prepared_set_of_ones_own(prepared):
    data, _ = prepared
    assert load_images(data, GRAY, "train").shape == (2, 28, 28, 1)


def test_a_prepared_set_of_different_sizes(tmp_path):
    images = [np.full((size, 40, 1), size, np.uint8) for size in (30, 28, 29)]
    data = prepare(tmp_path, images, (None, None, 1))
    with pytest.raises(ValueError, match="different sizes: set data.resize"):
        load_images(data, GRAY, "train")
    cropped = dataclasses.replace(data, crop=(0, 0, 28, 28))
    assert load_images(cropped, GRAY, "train")[:, 0, 0, 0].tolist() == [30, 28, 29]
    beyond = dataclasses.replace(data, crop=(0, 0, 29, 29), resize=True)
    with pytest.raises(ValueError, match="few, image 1 of train: 28x40 .*reaches beyond"):
        load_images(beyond, GRAY, "train")


@pytest.mark.parametrize(
    ("train", "test", "shared"),
    [
        ("train", "train[:10%]", 1),
        ("train[:90%]", "train[80%:]", 1),
        ("train[:5]", "train[2:8]", 3),
        ("train[:3]+train[8:]", "train[-1:]", 1),
        ("train", "train[:100%]", 10),
        ("train[:90%]", "train[90%:]", 0),
        ("train[:5]", "train[5:]", 0),
        ("train[2:]", "train[:-8]", 0),
        ("train", "train[:0]", 0),
        ("train", "train[10:]", 0),
        ("train", "nonesuch", 0),
    ],
)
def test_no_image_is_of_both_splits(tmp_path, train, test, shared):
    values = np.arange(10, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (10, 28, 28, 1))
    data = prepare(tmp_path, images, (28, 28, 1))
    data = dataclasses.replace(data, train_split=train, test_split=test)
    if not shared:
        assert len(load_images(data, GRAY, train))
        return
    message = f"^{shared} images of 'few' belong to both splits, .*data.train_split.*overlap"
    for split in (train, test):
        with pytest.raises(ValueError, match=message):
            load_images(data, GRAY, split)


def test_a_set_that_was_prepared_anew_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_IN_MEMORY", 0)
    for value in (3, 7):
        images = np.full((2, 28, 28, 1), value, np.uint8)
        data = prepare(tmp_path / "tfds", images, (28, 28, 1))
        data = dataclasses.replace(data, cache_dir=str(tmp_path / "cache"))
        for _ in range(2):
            np.testing.assert_array_equal(load_images(data, GRAY, "train"), images)
        shutil.rmtree(tmp_path / "tfds")
    assert len(os.listdir(tmp_path / "cache")) == 2  # the second start uses what is there


def test_a_prepared_set_whose_file_is_damaged(prepared):
    data, features = prepared
    (path,) = features.parent.glob("few-train.tfrecord*")
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="'few': a file of the split 'train' is damaged.*corrupt"):
        load_images(data, GRAY, "train")


def test_modules_that_a_data_set_names_are_not_imported(prepared, tmp_path, monkeypatch):
    data, features = prepared
    (tmp_path / "intruder.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    content = features.read_text()
    own = "tensorflow_datasets.core.features.image_feature.Image"
    assert own in content
    features.write_text(content.replace(own, "intruder.Image"))
    with pytest.raises(ValueError, match="'few' in .* name the feature 'intruder.Image'; only"):
        load_images(data, GRAY, "train")
    features.write_text(content)
    assert len(load_images(data, GRAY, "train")) == 2


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.exists(), reason="needs the package dataset-fashion-mnist")
def test_the_full_set_through_tfds(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    def local(self, urls):
        del self
        files = {}
        for key, url in urls.items():
            files[key] = tmp_path / pathlib.Path(url).name.removesuffix(".gz")
            with gzip.open(DEBIAN / pathlib.Path(url).name) as source:
                files[key].write_bytes(source.read())
        return files

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", local)
    monkeypatch.setattr(tfds_module, "_has_network", lambda: True)
    data = DataConfig(name="fashion_mnist", data_dir=str(tmp_path / "tfds"))
    images = load_images(data, GRAY, "train")
    assert images.shape == (60_000, 28, 28, 1)
    test = load_images(data, GRAY, "test")
    embedded = np.concatenate([load_images(DataConfig(), GRAY, s) for s in ("train", "test")])
    assert sorted(map(bytes, test)) == sorted(map(bytes, embedded))  # TFDS stores them shuffled
    as_files = DataConfig(name="idx", data_dir=str(DEBIAN))
    assert sorted(map(bytes, load_images(as_files, GRAY, "train"))) == sorted(map(bytes, images))
    part = load_images(data, GRAY, "train[:10%]")
    assert len(part) == 6000
    with pytest.raises(ValueError, match="no split 'valid'.*train"):
        load_images(data, GRAY, "valid")
    shutil.rmtree(tmp_path / "tfds")
