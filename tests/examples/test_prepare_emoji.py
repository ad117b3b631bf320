"""The directory of emoji that the example makes of three packages."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.trainers.programs import Program, run

RED, CLEAR = (255, 0, 0, 255), (0, 255, 0, 0)
ENTRIES = [
    ("1F3FB", "Component"),
    ("2640-FE0F", "Symbols"),
    ("0034-FE0F-20E3", "Symbols"),
    ("1F3F4", "Flags"),
    ("1F44B", "People & Body"),
    ("1F9D1-200D-2695-FE0F", "People & Body"),
]
NOTO = ["2640-fe0f", "0034-fe0f-20e3", "1f3f4", "1f44b", "1f44b-1f3fb", "1f44b-1f3fc"]
TWEMOJI = ["1f468-1f3fd-200d-2695-fe0f", "1f469-200d-2695-fe0f", "1f46b-1f3fb-200d-1f3ff"]
FLUENT = ["34-fe0f-20e3", "1f3f4-e0067_e0062"]


def picture(color, format_):
    buffer = io.BytesIO()
    Image.new("RGBA", (128, 128), color).save(buffer, format_, lossless=True)
    return buffer.getvalue()


def pack(path, files):
    with tarfile.open(path, "w:gz") as package:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))


@pytest.fixture
def packages(tmp_path):
    """Three packages of a few pictures; those of Twemoji are transparent, all others red."""
    entries = [{"unified": code, "category": category} for code, category in ENTRIES]
    red, clear, webp = picture(RED, "PNG"), picture(CLEAR, "PNG"), picture(RED, "WEBP")
    pack(
        tmp_path / "emoji-datasource-google-16.0.0.tgz",
        {"emoji.json": json.dumps(entries).encode()}
        | {f"img/google/64/{code}.png": red for code in NOTO},
    )
    pack(
        tmp_path / "emoji-datasource-twitter-16.0.0.tgz",
        {f"img/twitter/64/{code}.png": clear for code in TWEMOJI},
    )
    pack(
        tmp_path / "lobehub-fluent-emoji-3d-1.1.0.tgz",
        {f"assets/{code}.webp": webp for code in FLUENT},
    )
    return tmp_path


def test_pictures_are_on_white_and_have_categories(packages):
    output = packages / "emoji"
    run("examples.prepare_emoji", f"--packages={packages}", f"--output={output}")
    with (output / "labels.csv").open(newline="") as file:
        labels = dict(csv.reader(file))
    assert set(labels) == {str(path.relative_to(output)) for path in output.rglob("*.png")}
    categories = {path.partition("/")[2]: category for path, category in labels.items()}
    assert categories == {
        "0034-fe0f-20e3_noto.png": "Symbols",
        "1f3f4_noto.png": "Flags",
        "1f44b-1f3fb_noto.png": "People & Body",  # without the tone 1f3fc, and pairs of tones
        "1f44b_noto.png": "People & Body",
        "2640-fe0f_noto.png": "Symbols",
        "1f468-1f3fd-200d-2695-fe0f_twemoji.png": "People & Body",
        "1f469-200d-2695-fe0f_twemoji.png": "People & Body",
        "34-fe0f-20e3_fluent.png": "Symbols",
        "1f3f4-e0067_e0062_fluent.png": "Flags",
    }
    for path in labels:
        color = (255, 255, 255) if path.endswith("_twemoji.png") else (255, 0, 0)
        pixels = np.asarray(Image.open(output / path))
        assert pixels.shape == (64, 64, 3) and (pixels == color).all()


def test_variants_of_an_emoji_are_in_the_same_split(packages):
    output = packages / "emoji"
    run("examples.prepare_emoji", f"--packages={packages}", f"--output={output}")
    for variants in ("1f44b*", "1f46[89]*", "*34-fe0f-20e3*"):
        assert len(list(output.glob(f"*/{variants}"))) == 2
        assert len({path.parent for path in output.glob(f"*/{variants}")}) == 1


def test_a_package_must_be_there(packages):
    (packages / "lobehub-fluent-emoji-3d-1.1.0.tgz").unlink()
    output = packages / "emoji"
    program = Program("examples.prepare_emoji", f"--packages={packages}", f"--output={output}")
    _, error = program.communicate()
    assert program.returncode == 1 and "Traceback" not in error
    assert "must hold one lobehub-fluent-emoji-3d-*.tgz, but there are 0" in error
    assert not output.exists()
