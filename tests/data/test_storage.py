"""Images that are decoded once, into a file."""

import concurrent.futures
import errno
import fcntl
import os
import time

import numpy as np
import pytest

from nvae_tf import DataConfig, presets
from nvae_tf.data import evaluation_batches, load_images, storage, training_batches

CONFIG = presets.get("quickstart").override({"train.global_batch_size": 8})


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(storage, "_IN_MEMORY", 500)


def test_a_mapped_file_gives_the_same_batches(no_memory, tmp_path):
    in_memory = np.array(load_images(DataConfig(cache_dir=str(tmp_path)), CONFIG.model, "test"))
    mapped = load_images(DataConfig(cache_dir=str(tmp_path)), CONFIG.model, "test")
    assert isinstance(mapped, np.memmap) and not isinstance(in_memory, np.memmap)
    assert len(os.listdir(tmp_path)) == 1  # read once, and whole
    for make in (
        lambda images: training_batches(images, CONFIG, start=120).take(10),
        lambda images: evaluation_batches(images, CONFIG.model, 300),
    ):
        pairs = list(zip(make(in_memory), make(mapped), strict=True))
        assert pairs[0][1].shape == pairs[0][0].shape
        for ours, theirs in pairs:
            np.testing.assert_array_equal(ours, theirs)


def test_other_images_have_another_file(no_memory, tmp_path):
    for options in ({}, {"resize": True}, {"crop": (0, 0, 28, 28)}):
        load_images(DataConfig(cache_dir=str(tmp_path), **options), CONFIG.model, "test")
    load_images(DataConfig(cache_dir=str(tmp_path)), CONFIG.model, "train")
    assert len(os.listdir(tmp_path)) == 4


def test_nothing_is_left_of_a_read_that_failed(no_memory, tmp_path):
    def broken():
        yield np.zeros((2, 4, 4, 1), np.uint8)
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        storage.store(broken, 1000, (4, 4, 1), str(tmp_path), "name")
    assert not os.listdir(tmp_path)
    damaged = {f"{number}.png": "broken" for number in range(1000)}
    arguments = 1000, (4, 4, 1), str(tmp_path), "name", lambda: damaged
    empty = storage.store(lambda: [], *arguments)
    assert empty.images.shape == (0, 4, 4, 1) and empty.left_out == damaged
    assert storage.store(pytest.fail, *arguments).left_out == damaged


@pytest.mark.parametrize(
    "damage",
    {
        "cut off": lambda images, notes: os.truncate(images, 5 * 48 + 12),
        "emptied": lambda images, notes: os.truncate(images, 0),
        "no notes": lambda images, notes: os.remove(notes),
        "damaged notes": lambda images, notes: notes.write_text(""),
        "notes of others": lambda images, notes: notes.write_text("{}"),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_not_whole_is_decoded_again(no_memory, tmp_path, damage):
    images = np.random.default_rng(0).integers(256, size=(19, 4, 4, 3), dtype=np.uint8)
    arguments = 20, (4, 4, 3), str(tmp_path), "name", lambda: {"x.png": "broken"}
    storage.store(lambda: [images], *arguments)
    damage[1](tmp_path / "name.uint8", tmp_path / "name.uint8.json")
    for read in (lambda: [images], pytest.fail):
        stored = storage.store(read, *arguments)
        np.testing.assert_array_equal(stored.images, images)
        assert stored.left_out == {"x.png": "broken"}


def test_notes_of_images_that_are_there_again_do_not_stay(no_memory, tmp_path):
    images = np.zeros((20, 4, 4, 3), np.uint8)
    (tmp_path / "name.uint8.json").write_text('{"x.png": "broken"}')
    stored = storage.store(lambda: [images], 20, (4, 4, 3), str(tmp_path), "name")
    assert len(stored.images) == 20 and stored.left_out == {}
    assert os.listdir(tmp_path) == ["name.uint8"]


def test_fewer_images_than_promised_are_an_error(no_memory, tmp_path):
    images = np.zeros((19, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"name\.uint8' has changed after it was written"):
        storage.store(lambda: [images], 20, (4, 4, 3), str(tmp_path), "name")


def test_one_decodes_and_the_others_wait(no_memory, tmp_path):
    images = np.random.default_rng(0).integers(256, size=(20, 4, 4, 3), dtype=np.uint8)
    reads = []

    def read():
        reads.append(None)
        time.sleep(0.5)  # the others are there by then
        yield images

    def load(_):  # the system keeps threads apart like processes: each opens the lock by itself
        return storage.store(read, 20, (4, 4, 3), str(tmp_path), "name")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for loaded in pool.map(load, range(4)):
            np.testing.assert_array_equal(loaded.images, images)
    assert len(reads) == 1 and os.listdir(tmp_path) == ["name.uint8"]


def test_images_are_stored_where_the_file_system_has_no_locks(
    no_memory, tmp_path, monkeypatch, caplog
):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    images = np.ones((20, 4, 4, 3), np.uint8)
    loaded = storage.store(lambda: [images], 20, (4, 4, 3), str(tmp_path), "name")
    np.testing.assert_array_equal(loaded.images, images)
    assert "may decode the same images: " in caplog.text and "No locks" in caplog.text


def test_descriptions_tell_images_apart():
    images = np.random.default_rng(0).integers(256, size=(3000, 2, 2, 1), dtype=np.uint8)
    description = storage.describe(images)
    assert description == storage.describe(images.copy()) and description["images"] == 3000
    assert storage.describe(images[:-1]) != description
    assert storage.describe(images[::-1])["sha256"] != description["sha256"]
    assert storage.describe(images[:1])["images"] == 1
