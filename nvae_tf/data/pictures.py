"""Decoding of pictures, which are encoded files such as PNG, into arrays of pixels."""

from __future__ import annotations

import io
import math
import struct

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from nvae_tf.data.source import UnreadableError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_PNG = b"\x89PNG\r\n\x1a\n"
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
# What turns a picture of another orientation than 1 upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
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
    if content.startswith(_PNG) and content[24:25] == b"\x10":
        pixels = _decode_16_bit(content)
    else:
        pixels = _decode_8_bit(content)
    return _with_channels(pixels, channels)


def _decode_8_bit(content: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            picture.load()
            turn = _turn(picture)
            upright = picture if turn is None else picture.transpose(turn)
            if upright.mode not in _MODES:
                raise UnreadableError(
                    f"its colours are {upright.mode}; gray, RGB and palettes can be read"
                )
            opaque, transparent = _MODES[upright.mode]
            mode = transparent if "transparency" in upright.info else opaque
            pixels = np.asarray(upright.convert(mode))
    except UnreadableError:
        raise
    except _DAMAGE as error:
        raise UnreadableError(f"not a readable picture ({error})") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """Returns what turns a picture upright; None if its EXIF names nothing, or cannot be read."""
    # ImageOps.exif_transpose writes the EXIF anew, and fails if that holds anything odd.
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises nearly anything for what it cannot parse
        return None


def _decode_16_bit(content: bytes) -> np.ndarray:
    # Pillow would drop the low byte of RGB, and clip gray. Its limit on pixels holds here, too.
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise UnreadableError(f"not a readable picture ({width}x{height} pixels are too many)")
    try:
        wide = tf.io.decode_png(content, dtype=tf.uint16).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise UnreadableError("not a readable picture (damaged 16-bit PNG)") from error
    logging.log_first_n(logging.WARNING, "16-bit images are scaled to 8 bits.", 1)
    return scale_to_8_bits(wide)


def scale_to_8_bits(wide: np.ndarray) -> np.ndarray:
    """Scales values from 0 to 65535 to 0 to 255, rounded, as uint8."""
    return ((wide.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
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
