"""A directory of pictures."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from nvae_tf import DataConfig, ModelConfig
from nvae_tf.data import folder as folder_module
from nvae_tf.data import load_classes, load_image_set, load_images, sources, storage

MODEL = ModelConfig(image_shape=(6, 8, 3))


def save(path, value, size=(6, 8)):
    """A picture of one colour, by which it is known."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def folder(root, **options):
    return DataConfig(name="folder", data_dir=str(root), **options)


def values(images):
    return images[:, 0, 0, 0].tolist()


def test_splits_by_directory(tmp_path, caplog):
    save(tmp_path / "train/cats/b.png", 2)
    save(tmp_path / "train/a.bmp", 1)
    save(tmp_path / "train/dogs/deep/c.webp", 3)
    save(tmp_path / "test/x.PNG", 9)
    save(tmp_path / "train/.hidden.png", 7)
    (tmp_path / "train/readme.txt").write_text("not a picture")
    os.symlink(tmp_path / "train", tmp_path / "train/cats/back")  # leads in a circle
    data = folder(tmp_path)
    assert values(load_images(data, MODEL, "train")) == [1, 2, 3]
    assert "1 files below" in caplog.text and "(such as 'readme.txt') are not read" in caplog.text
    assert values(load_images(data, MODEL, "test")) == [9]
    with pytest.raises(ValueError, match="no directory 'valid'.*'test', 'train'"):
        load_images(data, MODEL, "valid")


def test_a_seeded_split_of_one_directory(tmp_path, caplog):
    for number in range(40):
        save(tmp_path / f"{number % 3}/{number:02d}.png", number)
    train, test = (values(load_images(folder(tmp_path), MODEL, s)) for s in ("train", "test"))
    assert len(test) == 5 and sorted(train + test) == list(range(40))
    assert "the split 'test' is 5 of the 40 pictures (data.test_fraction)" in caplog.text
    everything = load_image_set(folder(tmp_path), MODEL, ".")
    assert sorted(values(everything.images)) == list(range(40))
    assert everything.files == [f"{v % 3}/{v:02d}.png" for v in values(everything.images)]
    held_out = load_image_set(folder(tmp_path), MODEL, "test").first(2)
    assert held_out.files == [f"{v % 3}/{v:02d}.png" for v in test[:2]]
    assert values(held_out.images) == test[:2]
    again = values(load_images(folder(tmp_path), MODEL, "test"))
    other = values(load_images(folder(tmp_path, split_seed=1), MODEL, "test"))
    half = values(load_images(folder(tmp_path, test_fraction=0.5), MODEL, "test"))
    assert again == test != other
    assert 10 < len(half) < 30 and set(test) < set(half)
    # More pictures, or fewer, move none from one split to the other.
    for number in range(100, 120):
        save(tmp_path / f"new{number}.png", number)
    more = values(load_images(folder(tmp_path), MODEL, "test"))
    assert {value for value in more if value < 40} == set(test) and max(more) >= 100
    (tmp_path / f"{test[0] % 3}/{test[0]:02d}.png").unlink()
    assert {v for v in values(load_images(folder(tmp_path), MODEL, "test")) if v < 40} < set(test)


def test_crop_resize_and_center_crop(tmp_path):
    columns = np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (12, 1, 3))
    Image.fromarray(columns).save(tmp_path / "a.png")
    Image.fromarray(columns).save(tmp_path / "b.png")

    def one(**options):
        return load_images(folder(tmp_path, **options), MODEL, "test")[0, 0, :, 0].tolist()

    assert one(crop=(0, 3, 6, 8)) == list(range(3, 11))
    assert one(center_crop=True) == list(range(16, 24))
    # 12 rows at 6:8 are 16 columns from the 12th on, two of which make one.
    expected = np.arange(12, 28).reshape(8, 2).mean(axis=1)
    np.testing.assert_allclose(one(center_crop=True, resize=True), expected, atol=0.5)
    np.testing.assert_allclose(one(resize=True), np.arange(40).reshape(8, 5).mean(1), atol=0.5)


def test_a_damaged_picture_is_named_or_left_out(tmp_path, caplog):
    for number in range(5):
        save(tmp_path / f"train/{number}.png", number)
    (tmp_path / "train/3.png").write_bytes((tmp_path / "train/2.png").read_bytes()[:50])
    (tmp_path / "train/4.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train/3\.png: not a readable picture.*skip_corrupt"):
        load_images(folder(tmp_path), MODEL, "train")
    images = load_images(folder(tmp_path, skip_corrupt=True), MODEL, "train")
    assert values(images) == [0, 1, 2]
    assert "Left out 2 of 5 images" in caplog.text and "4.png" in caplog.text


@pytest.mark.parametrize("in_memory", [1e9, 10])
def test_what_was_left_out_is_said_whenever_the_stored_images_are_used(
    tmp_path, monkeypatch, caplog, in_memory
):
    monkeypatch.setattr(storage, "_IN_MEMORY", in_memory)
    save(tmp_path / "pictures/train/2.png", 8)
    save(tmp_path / "pictures/train" / os.fsdecode(b"0\xe9\r\x85.png"), 7)
    (tmp_path / "pictures/train/1.png").write_bytes(b"no picture")
    (tmp_path / "pictures/train" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no picture")
    data = folder(tmp_path / "pictures", skip_corrupt=True, cache_dir=str(tmp_path / "cache"))
    for _ in range(2):
        caplog.clear()
        loaded = load_image_set(data, MODEL, "train")
        assert values(loaded.images) == [7, 8]
        assert loaded.files == [r"train/0\xe9\r\x85.png", "train/2.png"]
        assert "Left out 2 of 4 images" in caplog.text and "1.png" in caplog.text


def test_a_name_of_other_bytes_is_another_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_IN_MEMORY", 10)
    directory = tmp_path / "pictures/train"
    save(directory / "b.png", 7)
    data = folder(tmp_path / "pictures", skip_corrupt=True, cache_dir=str(tmp_path / "cache"))
    (directory / os.fsdecode(b"a\xfe.png")).write_bytes(b"no picture")
    assert load_image_set(data, MODEL, "train").files == ["train/b.png"]
    (directory / os.fsdecode(b"a\xfe.png")).rename(directory / os.fsdecode(b"a\xff.png"))
    assert load_image_set(data, MODEL, "train").files == ["train/b.png"]


def test_other_code_decodes_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_IN_MEMORY", 10)
    save(tmp_path / "pictures/train/0.png", 7)
    data = folder(tmp_path / "pictures", cache_dir=str(tmp_path / "cache"))
    for code in ("before", "before", "after"):
        monkeypatch.setattr(sources, "sources_fingerprint", lambda _, code=code: code)
        load_images(data, MODEL, "train")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_file_that_a_disk_fails_to_read_is_not_left_out(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    save(tmp_path / "train/a.png", 1)
    monkeypatch.setattr(folder_module, "read_bytes", fail)
    with pytest.raises(ValueError, match=r"a\.png: it cannot be read \(Input/output error\)\.?$"):
        load_images(folder(tmp_path, skip_corrupt=True), MODEL, "train")


def test_a_split_inside_of_the_other_is_refused(tmp_path):
    save(tmp_path / "train/a.png", 1)
    save(tmp_path / "train/deep/held/b.png", 2)
    os.symlink(tmp_path / "train", tmp_path / "same")
    for test_split in ("train/deep/held", "train/deep", "same"):
        with pytest.raises(ValueError, match="belong to both splits, 'train' .*test_split"):
            load_images(folder(tmp_path, test_split=test_split), MODEL, "train")
    apart = folder(tmp_path, train_split="train/deep/held", test_split="other")
    save(tmp_path / "other/c.png", 3)
    assert values(load_images(apart, MODEL, "train/deep/held")) == [2]


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((5, 8), {}, r"b\.png: 5x8 pixels, but.*expects 6x8.*data\.resize"),
        ((5, 8), {"center_crop": True}, "5x8 pixels"),
        ((6, 8), {"crop": (1, 1, 6, 8)}, r"6x8 pixels, and data\.crop \(1, 1, 6, 8\) reaches"),
    ],
)
def test_sizes_that_do_not_fit_are_named(tmp_path, size, options, message):
    if "crop" not in options:
        save(tmp_path / "train/a.png", 1)
    save(tmp_path / "train/b.png", 1, size)
    with pytest.raises(ValueError, match=message):
        load_images(folder(tmp_path, skip_corrupt=True, **options), MODEL, "train")


def test_wrong_channels_are_named_even_if_damage_is_left_out(tmp_path):
    save(tmp_path / "train/a.png", (1, 2, 3))
    gray = ModelConfig(image_shape=(6, 8, 1))
    with pytest.raises(ValueError, match=r"a\.png: it has colours.*expects 1 channel"):
        load_images(folder(tmp_path, skip_corrupt=True), gray, "train")


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="data_dir must say where"):
        load_images(DataConfig(name="folder"), MODEL, "train")
    with pytest.raises(ValueError, match="no directory '.*none'"):
        load_images(folder(tmp_path / "none"), MODEL, "train")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"no pictures \(.png.*1 other files.*notes.txt"):
        load_images(folder(tmp_path), MODEL, "train")
    save(tmp_path / "a.png", 1)
    with pytest.raises(ValueError, match="too few for two splits. The split '.' is all pictures"):
        load_images(folder(tmp_path), MODEL, "train")
    assert values(load_images(folder(tmp_path), MODEL, ".")) == [1]
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="'train' has no images"):
        load_images(folder(tmp_path, skip_corrupt=True), MODEL, "train")


@pytest.mark.parametrize(
    "kind, fault",
    [
        ("pipe", "it is not a regular file"),
        ("device", "it is not a regular file"),
        ("nowhere", "No such file"),
    ],
)
def test_what_is_no_regular_file_is_named_or_left_out(tmp_path, caplog, kind, fault):
    for number in range(8):
        save(tmp_path / f"train/{number}.png", number)
    save(tmp_path / "test/0.png", 0)
    path = tmp_path / "train/x.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "/nowhere.png")
    with pytest.raises(ValueError, match=rf"x\.png: {fault}"):
        load_images(folder(tmp_path), MODEL, "train")
    images = load_images(folder(tmp_path, skip_corrupt=True), MODEL, "train")
    assert values(images) == list(range(8)) and f"x.png: {fault}" in caplog.text


def test_classes_are_the_sub_directories(tmp_path):
    save(tmp_path / "cats/b.png", 2)
    save(tmp_path / "cats/a.png", 1)
    save(tmp_path / "birds/deep/c.png", 3)
    save(tmp_path / ".hidden/d.png", 4)
    save(tmp_path / "alone.png", 5)
    classes = load_classes(tmp_path, DataConfig(name="idx", data_dir="elsewhere"), MODEL)
    assert {name: (values(c.images), c.files) for name, c in classes.items()} == {
        "birds": ([3], ["birds/deep/c.png"]),
        "cats": ([1, 2], ["cats/a.png", "cats/b.png"]),
    }
    with pytest.raises(ValueError, match="must have a sub-directory of pictures for each class"):
        load_classes(tmp_path / "cats", DataConfig(), MODEL)
    with pytest.raises(ValueError, match="There is no directory"):
        load_classes(tmp_path / "dogs", DataConfig(), MODEL)
