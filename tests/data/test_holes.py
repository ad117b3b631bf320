"""Pictures with holes: by transparency, by a mask, by a rectangle."""

import numpy as np
import pytest
from PIL import Image

from nvae_tf import DataConfig, ModelConfig
from nvae_tf.data.holes import load_mask, load_with_holes, rectangle

COLOUR = ModelConfig(image_shape=(6, 8, 3))
GRAY = ModelConfig(image_shape=(10, 12, 1), padding=2)  # 6x8 without the padding
DATA = DataConfig()


def save(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8).squeeze()).save(path)
    return str(path)


def test_transparent_pixels_are_the_hole(tmp_path):
    pixels = np.full((6, 8, 4), 255)
    pixels[..., :3] = 7
    pixels[0, 1, 3], pixels[5, 7, 3] = 0, 254
    opaque = save(tmp_path / "opaque.png", np.full((6, 8, 3), 9))
    images, holes = load_with_holes([save(tmp_path / "a.png", pixels), opaque], DATA, COLOUR)
    assert np.argwhere(holes).tolist() == [[0, 0, 1], [0, 5, 7]]
    assert images.dtype == np.uint8 and images.shape == (2, 6, 8, 3)
    assert np.all(images[0][holes[0]] == 0) and np.all(images[0][~holes[0]] == 7)
    assert np.all(images[1] == 9)


def test_gray_pictures_and_a_padding(tmp_path):
    pixels = np.full((6, 8, 2), 255)
    pixels[2:4, 2:4, 1] = 0
    Image.fromarray(pixels.astype(np.uint8), "LA").save(tmp_path / "a.png")
    images, holes = load_with_holes([str(tmp_path / "a.png")], DATA, GRAY)
    assert images.shape == (1, 6, 8, 1) and holes.sum() == 4 and holes[0, 2:4, 2:4].all()


def test_colours_in_a_hole_are_never_looked_at(tmp_path):
    pixels = np.full((6, 8, 4), 255)
    pixels[..., :3] = 100
    pixels[2, 3] = 0, 0, 200, 0  # blue, and erased
    images, holes = load_with_holes([save(tmp_path / "a.png", pixels)], DATA, GRAY)
    assert np.argwhere(holes[0]).tolist() == [[2, 3]] and np.all(images[0][~holes[0]] == 100)
    pixels[2, 3, 3] = 255
    with pytest.raises(ValueError, match="has colours"):
        load_with_holes([save(tmp_path / "b.png", pixels)], DATA, GRAY)


def test_a_pixel_that_mixes_with_the_hole_is_in_it(tmp_path):
    pixels = np.full((12, 16, 4), 255)
    pixels[0, 0] = 0  # a quarter of the first pixel after resizing
    data = DataConfig(resize=True)
    images, holes = load_with_holes([save(tmp_path / "a.png", pixels)], data, COLOUR)
    assert np.argwhere(holes[0]).tolist() == [[0, 0]]
    assert np.all(images[0][~holes[0]] == 255)


def test_a_single_pixel_of_a_large_picture_makes_a_hole(tmp_path):
    pixels = np.full((6 * 40, 8 * 40, 4), 255)
    pixels[0, 0] = 0  # one of 1,600 that make the first one
    _, holes = load_with_holes([save(tmp_path / "a.png", pixels)], DataConfig(resize=True), COLOUR)
    assert np.argwhere(holes[0]).tolist() == [[0, 0]]


def test_masks_and_rectangles(tmp_path):
    hole = rectangle([1, 2, 3, 4], COLOUR)
    assert hole.shape == (6, 8) and hole.sum() == 12 and hole[1:4, 2:6].all()
    mask = save(tmp_path / "mask.png", 255 * hole)
    np.testing.assert_array_equal(load_mask(mask, COLOUR), hole)
    np.testing.assert_array_equal(load_mask(mask, GRAY), hole)


@pytest.mark.parametrize(
    "sides", [[0, 0, 7, 1], [0, 0, 0, 1], [-1, 0, 2, 2], [1, 2, 3], [5, 8, 1, 1]]
)
def test_rectangles_that_are_none(sides):
    with pytest.raises(ValueError, match="inside of the model's images of 6x8 pixels"):
        rectangle(sides, COLOUR)


def test_refusals_name_the_file(tmp_path):
    small = save(tmp_path / "small.png", np.zeros((5, 8, 3)))
    with pytest.raises(ValueError, match=r"small\.png: 5x8 pixels.*expects 6x8"):
        load_with_holes([small], DATA, COLOUR)
    with pytest.raises(ValueError, match=r"small\.png: a mask has the size.*6x8.*received 5x8"):
        load_mask(small, COLOUR)
    colours = save(tmp_path / "colours.png", np.full((6, 8, 3), (9, 0, 0)))
    for model in (GRAY, COLOUR):
        with pytest.raises(ValueError, match=r"colours\.png: a mask is gray and opaque"):
            load_mask(colours, model)
    with pytest.raises(ValueError, match=r"colours\.png: it has colours.*expects 1 channel"):
        load_with_holes([colours], DATA, GRAY)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png: not a readable picture"):
        load_with_holes([str(tmp_path / "text.png")], DATA, COLOUR)
    with pytest.raises(ValueError, match="not a regular file"):
        load_mask(str(tmp_path), COLOUR)
    with pytest.raises(OSError, match="No such file"):
        load_with_holes([str(tmp_path / "none.png")], DATA, COLOUR)
