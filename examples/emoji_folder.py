"""Renders the pictures of a colour emoji font into a folder, as images to train on.

`python examples/emoji_folder.py --font=NotoColorEmoji.ttf --output=emoji` (the Debian package
`fonts-noto-color-emoji` has that font; it needs Pillow and fontTools, as matplotlib does).
"""

from __future__ import annotations

import os

from absl import app, flags
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from nvae_tf.command_line import usage_errors
from nvae_tf.files import new_directory

_FONT = flags.DEFINE_string("font", None, "NotoColorEmoji.ttf.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Directory that will be made.", required=True)
_SIZE = flags.DEFINE_integer("size", 64, "Height and width of the pictures.", lower_bound=8)

_FIRST_EMOJI = 0x203C  # digits and letters below it have glyphs, too
_BITMAP_SIZE = 109  # the only one in that font


def render(font: ImageFont.FreeTypeFont, character: str, size: int) -> Image.Image | None:
    """The character on white, (size, size), or None if the font has no picture of it."""
    left, top, right, bottom = font.getbbox(character)
    side = max(right - left, bottom - top)
    if side < _BITMAP_SIZE // 2:
        return None
    picture = Image.new("RGB", (side, side), "white")
    corner = ((side - right - left) // 2, (side - bottom - top) // 2)
    ImageDraw.Draw(picture).text(corner, character, font=font, embedded_color=True)
    colours = picture.getcolors(2)
    if colours is not None and len(colours) == 1:
        return None
    return picture.resize((size, size), Image.Resampling.BOX)


def main(argv: list[str]) -> None:
    count = 0
    with usage_errors(argv), new_directory(_OUTPUT.value) as directory:
        font = ImageFont.truetype(_FONT.value, _BITMAP_SIZE)
        codes = [code for code in sorted(TTFont(_FONT.value).getBestCmap()) if code >= _FIRST_EMOJI]
        for code in codes:
            picture = render(font, chr(code), _SIZE.value)
            if picture is not None:
                picture.save(os.path.join(directory, f"u{code:05x}.png"))
                count += 1
    print(f"{count} pictures of {_SIZE.value}x{_SIZE.value} in {_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
