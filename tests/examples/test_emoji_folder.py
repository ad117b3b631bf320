"""The folder of pictures that the example draws with a colour font (Debian's has it)."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from tests.trainers.programs import run

FONT = pathlib.Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


@pytest.mark.slow
@pytest.mark.skipif(not FONT.exists(), reason="the font is not installed")
def test_pictures_of_a_font(tmp_path):
    output = tmp_path / "pictures"
    printed = run("examples.emoji_folder", f"--font={FONT}", f"--output={output}", "--size=16")
    paths = sorted(output.iterdir())
    assert re.match(rf"{len(paths)} pictures of 16x16 in ", printed) and len(paths) > 1000
    assert all(int(path.stem.removeprefix("u"), 16) >= 0x203C for path in paths)
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    assert images.shape[1:] == (16, 16, 3)
    assert np.all(images.max(axis=(1, 2, 3)) > images.min(axis=(1, 2, 3)))
    assert np.any(images[..., 0] != images[..., 2])  # they have colours


def test_a_font_that_is_none(tmp_path):
    (tmp_path / "font.ttf").write_text("no font")
    run(
        "examples.emoji_folder",
        f"--font={tmp_path / 'font.ttf'}",
        f"--output={tmp_path / 'pictures'}",
        returncode=1,
    )
    assert not (tmp_path / "pictures").exists()
