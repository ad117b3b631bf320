"""Decoding of pictures, which are encoded files such as PNG, into arrays of pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image, UnidentifiedImageError

from nvae_tf.data.source import UnreadableError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_PNG = b"\x89PNG\r\n\x1a\n"
_GRAY = 0  # the colour type of a PNG
# What pictures of Pillow's modes are converted to. The second mode is for those whose `info` says
# that a colour stands for transparency, which takes no alpha channel in the file.
_MODES = {
    "1": ("L", "LA"),
    "L": ("L", "LA"),
    "LA": ("LA", "LA"),
    "P": ("RGB", "RGBA"),
    "PA": ("RGBA", "RGBA"),
    "RGB": ("RGB", "RGBA"),
    "RGBA": ("RGBA", "RGBA"),
}
_ORIENTATION = 0x0112  # the number of EXIF's tag
# What turns the pixels (h, w, C) of another orientation than 1 upright.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
# The errors that Pillow raises for damaged files; they depend on the format and the damage.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def decode_picture(content: bytes, channels: int) -> np.ndarray:
    """Decodes a PNG, JPEG, WebP or BMP file, and turns the image upright.

    A picture whose EXIF cannot be read is taken to be upright.

    Conversions that lose nothing are made: gray becomes RGB, an alpha channel that is opaque
    everywhere is dropped, palettes are looked up. 16-bit values are scaled to 8 bits, which is
    logged once.

    Args:
      content: The bytes of the file.
      channels: 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha).

    Returns:
      (h, w, channels) uint8.

    Raises:
      UnreadableError: if the file is damaged or has another format.
      ValueError: if the image would lose colours or transparency.
    """
    is_wide = content.startswith(_PNG) and content[24:25] == b"\x10"
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            pixels = (
                _decode_16_bit(picture, content) if is_wide else _decode_8_bit(picture, content)
            )
            turn = _turn(picture)
    except UnreadableError:
        raise
    except _DAMAGE as error:
        # Pillow's text would name an object in memory.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no known format" if unknown else error
        raise UnreadableError(f"not a readable picture ({reason})") from error
    return with_channels(turn(pixels) if turn else pixels, channels)


def _decode_8_bit(picture: Image.Image, content: bytes) -> np.ndarray:
    picture.load()
    _scale_key(picture, content)
    if picture.mode not in _MODES:
        raise UnreadableError(f"its colours are {picture.mode}; gray, RGB and palettes can be read")
    opaque, transparent = _MODES[picture.mode]
    pixels = np.asarray(picture.convert(transparent if _has_key(picture) else opaque))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _has_key(picture: Image.Image) -> bool:
    """Returns whether a colour, or a palette's entry, stands for transparency."""
    return "transparency" in picture.info


def _scale_key(picture: Image.Image, content: bytes) -> None:
    """Scales the gray that stands for transparency as Pillow has scaled the pixels.

    It brings pixels of 2 and 4 bits to 8, and leaves the key as it is in the file.
    """
    depth, kind = content[24:26] if content.startswith(_PNG) else (0, 0)
    key = picture.info.get("transparency")
    if kind == _GRAY and depth in (2, 4) and isinstance(key, int):
        picture.info["transparency"] = key * (255 // (2**depth - 1))


def _turn(picture: Image.Image) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns what turns a picture upright; None if its EXIF names nothing, or cannot be read."""
    # ImageOps.exif_transpose writes the EXIF anew, and fails if that holds anything odd.
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises nearly anything for what it cannot parse
        return None


def _decode_16_bit(picture: Image.Image, content: bytes) -> np.ndarray:
    # Pillow would drop the low byte of RGB, and clip gray. TensorFlow obeys a key if there is to be
    # an alpha channel.
    try:
        channels = 4 if _has_key(picture) else 0  # 0: those of the file
        wide = tf.io.decode_png(content, channels, dtype=tf.uint16).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise UnreadableError("not a readable picture (damaged 16-bit PNG)") from error
    logging.log_first_n(logging.WARNING, "16-bit images are scaled to 8 bits.", 1)
    return scale_to_8_bits(wide)


def scale_to_8_bits(wide: np.ndarray) -> np.ndarray:
    """Scales values from 0 to 65535 to 0 to 255, rounded, as uint8."""
    return ((wide.astype(np.uint32) + 128) // 257).astype(np.uint8)


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Converts pixels (h, w, 1 to 4) to a number of channels, as `decode_picture` says.

    Raises:
      ValueError: if the image would lose colours or transparency.
    """
    if channels > 4:
        raise ValueError(
            f"a picture file has 1 to 4 channels, but the model's image_shape expects {channels}; "
            "tf.Examples with data.raw_shape can have more."
        )
    has_alpha, wants_alpha = pixels.shape[2] in (2, 4), channels in (2, 4)
    wanted = channels - wants_alpha  # of colours
    colours = pixels[:, :, :-1] if has_alpha else pixels
    alpha = pixels[:, :, -1:] if has_alpha else np.full_like(pixels[:, :, :1], 255)
    if not wants_alpha and np.any(alpha != 255):
        raise ValueError(
            f"it is transparent in places, but the model's image_shape expects {wanted} "
            "channel(s); put such pictures on a background first."
        )
    if wanted == 1 and colours.shape[2] == 3:
        if np.any(colours != colours[:, :, :1]):
            raise ValueError(
                f"it has colours, but the model's image_shape expects {wanted} channel(s)."
            )
        colours = colours[:, :, :1]
    elif wanted == 3 and colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)
    return np.concatenate([colours, alpha], axis=2) if wants_alpha else colours
