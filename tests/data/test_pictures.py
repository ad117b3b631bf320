"""Decoding of picture files: what is kept, what is converted, what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from nvae_tf.data.pictures import decode_picture, scale_to_8_bits
from nvae_tf.data.source import UnreadableError

RANDOM = np.random.default_rng(0)
ORIENTATION = 0x0112  # the number of EXIF's tag
GRADIENT = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def encode(pixels, file_format="PNG", mode=None, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, file_format, **options)
    return buffer.getvalue()


def colours(height=5, width=7):
    return RANDOM.integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("file_format", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats_give_the_pixels(file_format, options):
    pixels = colours()
    np.testing.assert_array_equal(decode_picture(encode(pixels, file_format, **options), 3), pixels)


def test_jpeg_and_its_orientation():
    pixels = np.full((8, 16, 3), 30, np.uint8)
    pixels[:, :8] = 220
    upright = decode_picture(encode(pixels, "JPEG", quality=95), 3)
    assert upright.shape == (8, 16, 3) and np.abs(upright.astype(int) - pixels).max() < 12
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = decode_picture(encode(pixels, "JPEG", quality=95, exif=exif), 3)
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))


# What EXIF says about each orientation: where the picture's first row and column are to be seen.
UPRIGHT = {
    1: lambda pixels: pixels,  # top, left
    2: np.fliplr,  # top, right
    3: lambda pixels: np.rot90(pixels, 2),  # bottom, right
    4: np.flipud,  # bottom, left
    5: lambda pixels: pixels.swapaxes(0, 1),  # left, top
    6: lambda pixels: np.rot90(pixels, -1),  # right, top
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),  # right, bottom
    8: np.rot90,  # left, bottom
}


@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9, 65535])
@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_every_orientation(orientation, file_format, options):
    pixels, exif = colours(), Image.Exif()
    exif[ORIENTATION] = orientation
    decoded = decode_picture(encode(pixels, file_format, exif=exif, **options), 3)
    np.testing.assert_array_equal(decoded, UPRIGHT.get(orientation, UPRIGHT[1])(pixels))


def camera_exif():
    """EXIF as a camera writes it, with tags of many types in three directories."""
    exif = Image.Exif()
    exif.update({0x010F: "Maker", 0x0128: 2, 0x0132: "2020:01:01 00:00:00", ORIENTATION: 6})
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9000: b"0230"})
    exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


CAMERA = camera_exif()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage
@settings(max_examples=300)
@given(
    changes=st.dictionaries(
        st.integers(len(b"Exif00"), len(CAMERA) - 1), st.integers(0, 255), max_size=4
    ),
    length=st.one_of(st.just(len(CAMERA)), st.integers(0, len(CAMERA))),
    file_format=st.sampled_from(["PNG", "JPEG", "WEBP"]),
)
# Types of values for which Pillow, when it writes such EXIF, raises AttributeError and TypeError.
@example(changes={19: 5}, length=len(CAMERA), file_format="JPEG")
@example(changes={159: 0}, length=len(CAMERA), file_format="JPEG")
def test_an_intact_picture_is_read_whatever_its_exif_is(changes, length, file_format):
    exif = bytes(changes.get(i, value) for i, value in enumerate(CAMERA))[:length]
    options = {"quality": 95} if file_format == "JPEG" else {"lossless": True}
    plain = decode_picture(encode(GRADIENT, file_format, **options), 3)
    decoded = decode_picture(encode(GRADIENT, file_format, exif=exif, **options), 3)
    assert any(np.array_equal(decoded, turn(plain)) for turn in UPRIGHT.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_that_stands_for_transparency(channels):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:2] = 9, 8, 7
    key = (9, 8, 7)
    if channels == 1:
        pixels, key = pixels[:, :, 0], 9
    content = encode(pixels, transparency=key)
    with pytest.raises(ValueError, match="transparent in places"):
        decode_picture(content, channels)
    alpha = decode_picture(content, channels + 1)[:, :, -1]
    np.testing.assert_array_equal(alpha[:, 0], [0, 0, 255, 255])
    unused = encode(pixels, transparency=200 if channels == 1 else (200, 0, 0))
    assert decode_picture(unused, channels).shape == (4, 6, channels)


def test_conversions_that_lose_nothing():
    gray = RANDOM.integers(256, size=(4, 6), dtype=np.uint8)
    np.testing.assert_array_equal(decode_picture(encode(gray), 1)[:, :, 0], gray)
    as_colours = decode_picture(encode(gray), 3)
    np.testing.assert_array_equal(as_colours, np.repeat(gray[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(decode_picture(encode(as_colours), 1)[:, :, 0], gray)
    pixels = colours()
    opaque = np.concatenate([pixels, np.full((5, 7, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(decode_picture(encode(opaque), 3), pixels)
    np.testing.assert_array_equal(decode_picture(encode(pixels), 4), opaque)
    assert decode_picture(encode(gray), 2).shape == (4, 6, 2)
    palette = Image.fromarray(pixels).quantize(16)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_picture(buffer.getvalue(), 3), expected)


def test_what_would_be_lost_is_refused():
    glass = np.concatenate([colours(), np.full((5, 7, 1), 128, np.uint8)], axis=2)
    np.testing.assert_array_equal(decode_picture(encode(glass), 4), glass)
    with pytest.raises(ValueError, match="transparent in places.*expects 3"):
        decode_picture(encode(glass), 3)
    with pytest.raises(ValueError, match="has colours.*expects 1"):
        decode_picture(encode(colours()), 1)
    with pytest.raises(ValueError, match="1 to 4 channels.*expects 5.*raw_shape"):
        decode_picture(encode(colours()), 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_pictures_are_turned_and_have_keys(channels):
    wide = RANDOM.integers(1000, 65536, size=(4, 6, channels), dtype=np.uint16)
    wide[0, :2] = 7
    content, exif = encode_16_bit(wide), Image.Exif()
    exif[ORIENTATION] = 6
    key = struct.pack(">H", 7) * channels
    for kind, data in ((b"tRNS", key), (b"eXIf", exif.tobytes()[len(b"Exif00") :])):
        content = content[:_HEADER_END] + png_chunk(kind, data) + content[_HEADER_END:]
    upright = UPRIGHT[6](scale_to_8_bits(wide))
    decoded = decode_picture(content, channels + 1)
    np.testing.assert_array_equal(decoded[..., :channels], upright)
    np.testing.assert_array_equal(decoded[..., -1], UPRIGHT[6](np.where(wide[..., 0] == 7, 0, 255)))
    with pytest.raises(ValueError, match="transparent in places"):
        decode_picture(content, channels)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_gray_of_few_bits_can_stand_for_transparency(depth):
    levels = 2**depth
    values = np.arange(8 * 8).reshape(8, 8) % levels
    bits = (values[:, :, None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(8, -1), axis=1)
    header = struct.pack(">IIBBBBB", 8, 8, depth, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    for key in {0, 1, levels - 1}:
        chunks = (
            (b"IHDR", header),
            (b"tRNS", struct.pack(">H", key)),
            (b"IDAT", data),
            (b"IEND", b""),
        )
        content = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
        gray, alpha = np.moveaxis(decode_picture(content, 2), 2, 0)
        np.testing.assert_array_equal(gray, values * (255 // (levels - 1)))
        np.testing.assert_array_equal(alpha, np.where(values == key, 0, 255))


_HEADER_END = 8 + 25  # bytes: the signature, and the chunk IHDR


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_and_that_is_said_once(channels, caplog):
    wide = RANDOM.integers(65536, size=(4, 6, channels), dtype=np.uint16)
    content = tf.io.encode_png(wide).numpy()
    for _ in range(2):
        pixels = decode_picture(content, channels)
    np.testing.assert_array_equal(pixels, np.round(wide / 257.0).astype(np.uint8))
    assert caplog.text.count("scaled to 8 bits") <= 1  # once in the life of the process


def test_scaling_is_exact():
    wide = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(scale_to_8_bits(wide), np.round(wide / 257.0))


@settings(max_examples=60)
@given(data=st.data(), file_format=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]))
def test_a_truncated_or_foreign_file_is_unreadable_or_right(data, file_format):
    content = encode(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3), file_format)
    cut = content[: data.draw(st.integers(0, len(content) - 40))]
    with pytest.raises(UnreadableError):
        decode_picture(cut, 3)
    with pytest.raises(UnreadableError):
        decode_picture(data.draw(st.binary(max_size=60)), 3)


def test_a_truncated_16_bit_file_is_unreadable():
    wide = RANDOM.integers(65536, size=(40, 60, 3), dtype=np.uint16)
    with pytest.raises(UnreadableError, match="16-bit"):
        decode_picture(tf.io.encode_png(wide).numpy()[:200], 3)


def test_what_is_no_picture_is_named_without_objects_in_memory():
    for content in (b"", b"no picture"):
        with pytest.raises(UnreadableError, match=r"^not a readable picture \(no known format\)$"):
            decode_picture(content, 3)


def test_cmyk_is_refused():
    picture = Image.fromarray(colours()).convert("CMYK")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    with pytest.raises(UnreadableError, match="its colours are CMYK"):
        decode_picture(buffer.getvalue(), 3)


def test_16_bit_pictures_have_the_limit_of_all_others():
    picture = encode_16_bit(np.zeros((2, 2, 1), np.uint16))
    header = (15_000).to_bytes(4, "big") * 2 + picture[24:29]
    huge = picture[:8] + png_chunk(b"IHDR", header) + picture[_HEADER_END:]
    with pytest.raises(UnreadableError, match="not a readable picture .*225000000 pixels"):
        decode_picture(huge, 1)


def encode_16_bit(values):
    return tf.io.encode_png(tf.constant(values)).numpy()
