"""Files that appear whole, and sheets of pictures."""

import concurrent.futures
import json
import math
import os
import pathlib
import time

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.files import (
    check_output,
    locked,
    make_cache,
    new_directory,
    new_file,
    read_arrays,
    read_json,
    to_json,
    write_arrays,
    write_atomically,
)
from nvae_tf.sampling.images import encode_png, image_writer, sheet, to_uint8


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "one")
    write_atomically(path, b"two")
    assert path.read_text() == "two"

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "three")
    assert os.listdir(tmp_path) == ["a.json"] and path.read_text() == "two"


def test_errors_of_the_system_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/x\.json'$"):
        write_atomically(tmp_path / "none/x.json", "one")
    with pytest.raises(OSError, match="too long"):
        check_output(tmp_path / ("a" * 300))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file/x'$"), new_directory(tmp_path / "file/x"):
        pass


def test_directories_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "below" / "new"
    with pytest.raises(RuntimeError, match="interrupted"), new_directory(path) as directory:
        write_atomically(f"{directory}/a.json", "one")
        raise RuntimeError("interrupted")
    assert os.listdir(tmp_path / "below") == []
    with new_directory(path) as directory:
        write_atomically(f"{directory}/a.json", "one")
        assert not path.exists()
    assert os.listdir(tmp_path / "below") == ["new"] and os.listdir(path) == ["a.json"]
    with pytest.raises(ValueError, match="not an empty directory"), new_directory(path):
        pass
    (tmp_path / "empty").mkdir()
    for link, target in (("to_empty", "empty"), ("to_nothing", "later")):
        (tmp_path / link).symlink_to(tmp_path / target)
        with new_directory(tmp_path / link) as directory:
            write_atomically(f"{directory}/a.json", "one")
        assert (tmp_path / link).is_symlink() and os.listdir(tmp_path / target) == ["a.json"]
    with pytest.raises(ValueError, match="is a mount point"), new_directory("/proc"):
        pass


def test_a_result_stays_if_its_place_is_taken_meanwhile(tmp_path):
    path = tmp_path / "new"
    with (
        pytest.raises(OSError, match="The new directory .* stays, .*: Directory not") as error,
        new_directory(path) as directory,
    ):
        write_atomically(f"{directory}/a.json", "one")
        path.mkdir()
        (path / "b.json").touch()
    assert directory in str(error.value) and os.listdir(directory) == ["a.json"]


def test_a_file_that_is_replaced_keeps_its_mode_and_may_have_a_long_name(tmp_path):
    path = tmp_path / ("a" * 255)
    write_atomically(path, "one")
    for mode in (0o600, 0o444):
        path.chmod(mode)
        with new_file(path) as temporary:
            assert os.stat(temporary).st_mode & 0o777 == mode | 0o200
            pathlib.Path(temporary).write_text("two")
        assert path.read_text() == "two" and path.stat().st_mode & 0o777 == mode


def test_arrays_come_back_whole_or_not_at_all(tmp_path, caplog):
    path = tmp_path / "a.npz"
    arrays = {"one": np.arange(3), "two/three": np.zeros([2, 2])}
    write_arrays(path, arrays)
    np.testing.assert_equal(read_arrays(path), arrays)
    np.savez(path, one=arrays["one"])  # as if the directory of the archive had lost the others
    assert read_arrays(path) is None and "damaged" in caplog.text
    with open(path, "wb") as file:
        np.save(file, arrays["one"])
    assert read_arrays(path) is None
    assert read_arrays(tmp_path / "none.npz") is None


def test_json_has_no_numbers_that_are_not_finite():
    text = to_json({"a": [math.nan, 1.5], "b": {"c": -math.inf, "d": "NaN"}, "e": (2, True)})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, 1.5],
        "b": {"c": None, "d": "NaN"},
        "e": [2, True],
    }


def test_sheet_puts_images_in_rows():
    images = np.stack([np.full((2, 3, 1), value, np.uint8) for value in (10, 20, 30)])
    picture = sheet(images, columns=2, margin=1)
    assert picture.shape == (7, 9, 1)
    np.testing.assert_array_equal(picture[1:3, 1:4, 0], images[0, :, :, 0])
    np.testing.assert_array_equal(picture[1:3, 5:8, 0], images[1, :, :, 0])
    np.testing.assert_array_equal(picture[4:6, 1:4, 0], images[2, :, :, 0])
    assert picture[4:6, 5:8].min() == 255 and picture[:, 0].min() == 255


def test_to_uint8_rounds_and_clips():
    values = np.array([-1.0, 0.0, 0.5 / 255 + 1e-6, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 255, 255]


def test_png():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(tf.io.decode_png(encode_png(picture)), picture)
    with pytest.raises(ValueError, match="1, 3 or 4 channels, the images have 2"):
        encode_png(np.zeros((2, 2, 2), np.uint8))


def test_a_link_leads_to_the_file_that_is_replaced(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]
    assert os.stat(tmp_path / "real").st_mode & 0o777 == 0o666 & ~0o022


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    for write in (check_output, lambda path: write_atomically(path, "x")):
        with pytest.raises(ValueError, match="is not a regular file, so it is not replaced"):
            write(path)
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


def test_an_array_needs_room_on_the_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(OSError, match="No space left"),
        image_writer(str(tmp_path / "x.npy"), 10, (2, 2, 1)),
    ):
        raise AssertionError("nothing may be written")
    assert not os.listdir(tmp_path)


def test_a_lock_is_waited_for_and_that_is_said(tmp_path, caplog):
    path, order = tmp_path / ".lock", []

    def second():
        with locked(path, "does the same"):
            order.append("second")

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with locked(path, "does the same"):
            waiting = pool.submit(second)
            while "Waiting for another process that does the same." not in caplog.text:
                assert not waiting.done()
                time.sleep(0.01)
            order.append("first")
        waiting.result(60)
    assert order == ["first", "second"]


def test_a_cache_that_cannot_be_created():
    with pytest.raises(OSError, match=r"Cannot create '/proc/x' \(.*\).*XDG_CACHE_HOME"):
        make_cache("/proc/x")


BAD_JSON = {
    "not UTF-8": b"{\xff}",
    "cut off": b'{"a": 1',
    "nested": b"[" * 100_000,
    "list": b"[]",
    "number": b"7",
    "empty": b"",
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_json_of_the_wrong_shape(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json' is not"):
        read_json(tmp_path / "x.json")


def test_json_that_never_ends(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_json(tmp_path / "x.json")
    with open(tmp_path / "y.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match="more than 16 MiB"):
        read_json(tmp_path / "y.json")
