"""Animations, grids, and images written as they come."""

import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nvae_tf.sampling import images as pictures
from nvae_tf.sampling.images import (
    check_grid,
    check_grid_output,
    check_image_output,
    encode_animation,
    encode_grid,
    image_writer,
    sheet,
    show_holes,
    to_uint8,
)


def random_pictures(*shape):
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def frames_of(content, mode):
    image = Image.open(io.BytesIO(content))
    frames = []
    for number in range(image.n_frames):
        image.seek(number)
        frames.append(np.asarray(image.convert(mode)))
    return image, np.stack(frames)


def test_gray_gif_is_exact_and_endless():
    frames = random_pictures(4, 9, 7, 1)
    image, decoded = frames_of(encode_animation(frames, ".gif"), "L")
    np.testing.assert_array_equal(decoded, frames[..., 0])
    assert image.format == "GIF" and image.info["duration"] == 100 and image.info["loop"] == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_webp_is_exact(channels):
    frames = random_pictures(4, 9, 7, channels)
    image, decoded = frames_of(encode_animation(frames, ".webp"), "RGB")
    np.testing.assert_array_equal(decoded, np.broadcast_to(frames, (4, 9, 7, 3)))
    assert image.format == "WEBP"


def test_colours_of_a_gif_are_near():
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    frame = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 128), axis=-1)
    frames = np.stack([frame, 255 - frame]).astype(np.uint8)
    _, decoded = frames_of(encode_animation(frames, ".gif"), "RGB")
    assert np.abs(decoded.astype(int) - frames).mean() < 8


def test_what_cannot_be_animated():
    with pytest.raises(ValueError, match="one of .gif, .webp; received '.mp4'"):
        encode_animation(random_pictures(2, 4, 4, 1), ".mp4")
    with pytest.raises(ValueError, match="1 or 3 channels, the images have 2"):
        encode_animation(random_pictures(2, 4, 4, 2), ".gif")
    for extension, limit in (".gif", 65_535), (".webp", 16_383):
        assert encode_animation(random_pictures(1, limit, 1, 1), extension)
        with pytest.raises(ValueError, match=f"up to {limit:,} pixels .* {limit + 1:,}x1:"):
            encode_animation(random_pictures(1, limit + 1, 1, 1), extension)
        with pytest.raises(ValueError, match=f"up to {limit:,} pixels .* 1x{limit + 1:,}:"):
            encode_animation(random_pictures(1, 1, limit + 1, 1), extension)


def test_a_sheet_that_no_png_can_be_is_refused():
    check_grid(1000, 1000, (14, 14, 3), ".png")
    with pytest.raises(ValueError, match="66,002x66,002 pixels is too large for a PNG"):
        check_grid(1000, 1000, (64, 64, 1), ".png")
    check_grid(1, 999_000 // 34, (32, 32, 1), ".png")
    with pytest.raises(ValueError, match="too large for a PNG"):
        check_grid(1, 1_000_000 // 34 + 1, (32, 32, 1), ".png")


def test_frames_are_about_square_so_many_rows_fit():
    check_grid(990**2, 3, (64, 64, 3), ".gif")
    with pytest.raises(ValueError, match="up to 65,535 pixels on each side, .* have 66,002x66,002"):
        check_grid(1000**2, 3, (64, 64, 3), ".gif")
    with pytest.raises(ValueError, match="up to 16,383 pixels on each side, .* have 18x16,386"):
        check_grid(64, 2, (0, 2046, 1), ".webp")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_holes_are_an_opaque_chequerboard(channels):
    images, holes = random_pictures(1, 8, 8, channels), np.zeros((1, 8, 8), bool)
    holes[0, :, 2:] = True
    shown = show_holes(images, holes)
    np.testing.assert_array_equal(shown[~holes], images[~holes])
    assert set(np.unique(shown[holes][:, : min(channels, 3)])) == {105, 150}
    assert channels < 4 or np.all(shown[holes][:, 3] == 255)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_drawn(value):
    with pytest.raises(ValueError, match="not finite"):
        to_uint8(np.array([[0.5, value]]))


def test_a_grid_is_a_sheet_of_its_rows():
    grid = random_pictures(2, 3, 4, 5, 3)
    picture = tf.io.decode_png(encode_grid(grid, ".png")).numpy()
    assert picture.shape == (2 * 6 + 2, 3 * 7 + 2, 3)
    np.testing.assert_array_equal(picture[2 + 6 : 2 + 6 + 4, 2 + 14 : 2 + 14 + 5], grid[1, 2])


def test_a_grid_s_columns_go_by_and_back():
    grid = random_pictures(2, 4, 5, 5, 1)
    image, decoded = frames_of(encode_grid(grid, ".gif"), "L")
    expected = [sheet(grid[:, column])[..., 0] for column in (0, 1, 2, 3, 2, 1)]
    np.testing.assert_array_equal(decoded, expected)
    image.seek(3)
    assert image.info["duration"] == 100  # a frame shown twice would be one of twice the time


def write(path, images, batch=3):
    with image_writer(str(path), len(images), images.shape[1:]) as add:
        for first in range(0, len(images), batch):
            add(images[first : first + batch])
            assert not os.path.exists(path)


def test_images_as_a_sheet_an_array_and_a_directory(tmp_path):
    images = random_pictures(7, 4, 5, 3)
    write(tmp_path / "a.png", images)
    write(tmp_path / "a.npy", images)
    write(f"{tmp_path}/a/", images)
    assert sorted(os.listdir(tmp_path)) == ["a", "a.npy", "a.png"]
    expected = sheet(images)
    np.testing.assert_array_equal(tf.io.decode_png((tmp_path / "a.png").read_bytes()), expected)
    array = np.load(tmp_path / "a.npy")
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, images)
    assert sorted(os.listdir(tmp_path / "a")) == [f"{number:05}.png" for number in range(7)]
    for number, image in enumerate(images):
        content = (tmp_path / "a" / f"{number:05}.png").read_bytes()
        np.testing.assert_array_equal(tf.io.decode_png(content), image)


def test_a_sheet_s_columns_can_be_given(tmp_path):
    images = random_pictures(6, 4, 5, 3)
    with image_writer(f"{tmp_path}/a.png", 6, (4, 5, 3), columns=2) as add:
        add(images)
    expected = sheet(images, columns=2)
    np.testing.assert_array_equal(tf.io.decode_png((tmp_path / "a.png").read_bytes()), expected)


def test_an_array_with_images_missing_does_not_appear(tmp_path):
    images = random_pictures(2, 4, 4, 1)
    with (
        pytest.raises(ValueError, match="to have 5 images, received 2"),
        image_writer(str(tmp_path / "a.npy"), 5, images.shape[1:]) as write,
    ):
        write(images)
    assert not os.listdir(tmp_path)


def test_names_sort_in_order_however_many_there_are(tmp_path):
    with image_writer(f"{tmp_path}/a/", 100_001, (2, 2, 1)) as add:
        add(random_pictures(2, 2, 2, 1))
    assert sorted(os.listdir(tmp_path / "a")) == ["000000.png", "000001.png"]


def test_a_sheet_that_would_be_too_large_is_refused_before_it_is_drawn(tmp_path):
    with (
        pytest.raises(ValueError, match="too large for a PNG"),
        image_writer(f"{tmp_path}/a.png", 4096, (512, 512, 3)),
    ):
        pytest.fail("it has begun")


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a/"])
def test_nothing_is_left_of_an_interrupted_output(tmp_path, name):
    with (
        pytest.raises(KeyboardInterrupt),
        image_writer(f"{tmp_path}/{name}", 4, (2, 2, 1)) as add,
    ):
        add(random_pictures(2, 2, 2, 1))
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_an_array_where_the_system_cannot_reserve_room(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")  # macOS
    images = random_pictures(3, 2, 2, 1)
    with image_writer(f"{tmp_path}/a.npy", 3, (2, 2, 1)) as add:
        add(images)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), images)


def test_an_array_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)
    # 64 GB, sparse on disk: that it can be begun at all shows that nobody holds it.
    shape = (256, 256, 1)
    with (
        pytest.raises(KeyboardInterrupt),
        image_writer(f"{tmp_path}/a.npy", 2**20, shape) as add,
    ):
        add(random_pictures(1, *shape))
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "count", "error", "message"),
    [
        ("a.jpg", 1, ValueError, "must end in .png .*received .*a.jpg"),
        ("a", 1, ValueError, "or / .a directory"),
        ("a.png", 4097, ValueError, "up to 4,096 images, 4,097 were asked for.*in .npy"),
        ("no/a.npy", 1, FileNotFoundError, "there is no directory .*no'"),
        ("no/a.png", 1, FileNotFoundError, "there is no directory .*no'"),
    ],
)
def test_outputs_that_are_refused(tmp_path, name, count, error, message):
    path = f"{tmp_path}/{name}"
    with pytest.raises(error, match=message):
        check_image_output(path, count)
    with pytest.raises(error, match=message), image_writer(path, count, (2, 2, 1)):
        pass
    assert os.listdir(tmp_path) == []


def test_a_directory_must_be_new_and_pngs_have_no_two_channels(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match="not an empty directory"),
        image_writer(f"{tmp_path}/", 1, (2, 2, 1)),
    ):
        pass
    for name in ("a.png", "a/"):
        with (
            pytest.raises(ValueError, match="the images have 2"),
            image_writer(f"{tmp_path}/{name}", 1, (2, 2, 2)),
        ):
            pass
    write(tmp_path / "a.npy", random_pictures(3, 2, 2, 2))
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "file"]


def test_the_limit_of_a_sheet_is_meant_for_sheets_alone(tmp_path):
    assert check_image_output(f"{tmp_path}/a.png", pictures.SHEET_LIMIT) == ".png"
    assert check_image_output(f"{tmp_path}/a.npy", 10**9) == ".npy"
    assert check_image_output("no/such/", 10**9) == "/"


def test_outputs_of_grids(tmp_path):
    for name in ("a.png", "a.gif", "a.webp"):
        check_grid_output(f"{tmp_path}/{name}", 3)
    with pytest.raises(ValueError, match=r"end in .png, .gif or .webp; received .*a.npy"):
        check_grid_output(f"{tmp_path}/a.npy", 3)
    with pytest.raises(ValueError, match="1 or 3 channels, the images have 4"):
        check_grid_output(f"{tmp_path}/a.gif", 4)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        check_grid_output("no/such/a.png", 3)
