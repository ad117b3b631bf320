"""From the bytes in a request to what the model gets, against NumPy."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export.request_tensors import allowed_temperature, read_examples, read_pictures
from nvae_tf.data.pipeline import preprocess
from tests.conftest import tiny_model_config
from tests.export.exported import as_png, pictures

COLOURS = tiny_model_config(
    image_shape=(16, 16, 3), padding=2, likelihood="logistic_mixture", num_x_bits=8
)
GRAY = tiny_model_config(likelihood="normal", num_x_bits=8)
BINARY = tiny_model_config()


def seeds(*values):
    return tf.constant([[value, 1] for value in values], tf.int64)


def read(contents, config, *values):
    images, errors = read_pictures(
        tf.stack(contents), config, seeds(*(values or [0] * len(contents)))
    )
    assert not any(errors.numpy())
    return images


def content(images):
    """(B, 12, 12, 3) from 0 to 255, of what COLOURS pads."""
    return 255 * images.numpy()[:, 2:-2, 2:-2]


def test_a_png_of_the_models_size_is_unchanged():
    images = pictures(3)
    result = read(list(as_png(images)), COLOURS)
    np.testing.assert_allclose(content(result), images, atol=1e-4)
    np.testing.assert_array_equal(result, preprocess(tf.constant(images), COLOURS, [0, 0]))


def test_the_largest_centred_part_is_averaged():
    wide = pictures(1, 24, 31)[0]
    tall = pictures(1, 39, 36)[0]
    result = content(read([*as_png([wide]), *as_png([tall])], COLOURS))
    for image, factor, received in ((wide[:, 3:27], 2, result[0]), (tall[1:37], 3, result[1])):
        blocks = image.reshape(12, factor, 12, factor, 3).mean((1, 3))
        np.testing.assert_allclose(received, blocks, atol=0.51)


def test_a_smaller_picture_is_enlarged():
    image = pictures(1, 6, 6)
    expected = image[0].repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(content(read(as_png(image), COLOURS))[0], expected, atol=1e-4)


def test_jpeg():
    file = tf.io.encode_jpeg(pictures(1)[0])
    result = content(read([file], COLOURS))[0]
    np.testing.assert_allclose(result, tf.io.decode_jpeg(file), atol=1e-4)


def test_gray_becomes_colours_and_colours_become_gray():
    image = pictures(1)[0]
    gray = image[..., :1]
    expected = np.repeat(gray, 3, -1)
    np.testing.assert_allclose(content(read(as_png([gray]), COLOURS))[0], expected, atol=1e-4)

    image = image[:8, :8]
    files = [*as_png([image]), tf.io.encode_jpeg(image, quality=100), *as_png([image[..., :1]])]
    result = 255 * read(files, GRAY).numpy()[..., 0]
    luminance = image @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(result[0], luminance, atol=1.6)
    assert np.abs(result[1] - luminance).mean() < 4
    np.testing.assert_allclose(result[2], image[..., 0], atol=1e-4)


def test_transparency():
    rgba = np.concatenate([pictures(1), pictures(1, seed=1)[..., :1]], -1)[0, :8, :8]
    four = tiny_model_config(image_shape=(8, 8, 4), likelihood="normal", num_x_bits=8)
    files = [*as_png([rgba]), tf.io.encode_jpeg(rgba[..., :3]), *as_png([rgba[..., :3]])]
    result = 255 * read(files, four).numpy()
    np.testing.assert_allclose(result[0], rgba, atol=1e-4)
    np.testing.assert_allclose(result[1:, ..., 3], 255)
    np.testing.assert_allclose(result[2, ..., :3], rgba[..., :3], atol=1e-4)
    opaque = 255 * read(as_png([rgba]), GRAY).numpy()
    np.testing.assert_allclose(opaque[0, ..., 0], rgba[..., :3] @ [0.299, 0.587, 0.114], atol=1.6)


def test_binarisation_depends_on_the_rows_own_seed():
    images = pictures(1, 8, 8)[..., :1].repeat(4, 0)
    files = list(as_png(images))
    together = read(files, BINARY, 1, 2, 1, 3).numpy()
    assert set(np.unique(together)) == {0, 1}
    np.testing.assert_array_equal(together[0], together[2])
    assert np.any(together[0] != together[1]) and np.any(together[1] != together[3])
    for row, seed in enumerate([1, 2, 1, 3]):
        np.testing.assert_array_equal(read(files[:1], BINARY, seed)[0], together[row])


def test_binarisation_follows_the_intensity():
    image = pictures(1, 8, 8)[..., :1]
    count = 100
    drawn = read(list(as_png(image)) * count, BINARY, *range(count)).numpy()
    # Five standard deviations of a mean of 100: false alarms once in 30,000 runs of 64 pixels.
    assert np.abs(drawn.mean(0) - image[0] / 255).max() < 5 * 0.5 / np.sqrt(count)


def png_header(width, height):
    """A PNG of one header that claims a size, and one chunk of compressed pixels behind it."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99))


def in_format(kind):
    file = io.BytesIO()
    Image.fromarray(pictures(1, 40, 40)[0]).save(file, kind)
    return file.getvalue()


UNREADABLE = {
    "empty": b"",
    "text": b"GIF?",
    "broken PNG": b"\x89PNG\r\n\x1a\n broken",
    "truncated PNG": in_format("PNG")[:-80],
    "damaged PNG": in_format("PNG")[:60] + b"!!!" + in_format("PNG")[63:],
    "short JPEG": in_format("JPEG")[:30],
    "GIF": in_format("GIF"),
    "BMP": in_format("BMP"),
    "pixels that are missing": png_header(100, 100),
}


@pytest.mark.parametrize("model", [COLOURS, GRAY], ids=["colours", "gray"])
def test_a_picture_with_an_error_is_black_and_leaves_the_others_alone(model):
    good = list(as_png(pictures(2)))
    contents = [good[0], *map(tf.constant, UNREADABLE.values()), good[1]]
    images, errors = tf.function(read_pictures)(
        tf.stack(contents), model, seeds(*[0] * len(contents))
    )
    expected = read(good, model)
    np.testing.assert_array_equal([images[0], images[-1]], expected)
    assert not images[1:-1].numpy().any()
    said = dict(zip(UNREADABLE, errors.numpy()[1:-1]))
    assert not errors[0].numpy() and not errors[-1].numpy()
    assert {
        name for name, error in said.items() if b"not a whole PNG or JPEG" not in error
    } == set()


@pytest.mark.parametrize("size", [(23000, 23000), (4097, 4096), (1 << 31, 1 << 31), (2**32 - 1, 5)])
def test_a_picture_that_is_too_large_is_not_decoded(size):
    images, errors = read_pictures(tf.constant([png_header(*size)]), GRAY, seeds(0))
    assert not images.numpy().any()
    assert b"pixels" in errors[0].numpy() or size[0] >= 1 << 31


def test_a_jpeg_that_is_too_large_is_not_decoded():
    file = in_format("JPEG")
    start = file.index(b"\xff\xc0") + 5  # height and width in the frame's header
    huge = file[:start] + struct.pack(">HH", 65000, 65000) + file[start + 4 :]
    _, errors = read_pictures(tf.constant([huge]), COLOURS, seeds(0))
    assert b"more than 16,777,216 pixels" in errors[0].numpy()


def example(**features):
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_examples_have_defaults():
    seed = tf.train.Feature(int64_list=tf.train.Int64List(value=[9]))
    temperature = tf.train.Feature(float_list=tf.train.FloatList(value=[0.5]))
    image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"png"]))
    examples = [
        b"",
        example(seed=seed),
        example(temperature=temperature, image=image),
        example(seed=seed, temperature=temperature),
    ]
    seeds, temperatures, errors = read_examples(tf.constant(examples))
    np.testing.assert_array_equal(seeds, [0, 9, 0, 9])
    np.testing.assert_array_equal(temperatures, [1, 1, 0.5, 0.5])
    assert seeds.dtype == tf.int64 and not any(errors.numpy())


def test_allowed_temperatures():
    received = tf.constant([0.75, 0.0, -1.0, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(allowed_temperature(received), [0.75, 0, 0, 1, np.inf, 0])
