"""Makes a directory of 64x64 pictures from the emoji of three npm packages.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 \
        @lobehub/fluent-emoji-3d@1.1.0
    python examples/prepare_emoji.py --packages=. --output=emoji

A tenth of the emoji are held out. All pictures of an emoji, by whatever artist and in whatever
skin tone, are in the same split. Of five skin tones three are taken, and none of pairs of people
with two tones; else most pictures would be of people. `labels.csv` has the path and the category of
each picture, such as "Food & Drink".
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pathlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator

from absl import app, flags
from PIL import Image

from nvae_tf.command_line import usage_errors
from nvae_tf.files import new_directory

_PACKAGES = flags.DEFINE_string("packages", ".", "Directory of the packages, as npm packs them.")
_OUTPUT = flags.DEFINE_string("output", "emoji", "Directory to create, with train and test.")

_SIZE = 64
_HELD_OUT = 10  # one of so many emoji
_SETS = {  # artist: beginning of the package's name, pictures inside
    "noto": ("emoji-datasource-google-", re.compile(r"package/img/google/64/(.+)\.png")),
    "twemoji": ("emoji-datasource-twitter-", re.compile(r"package/img/twitter/64/(.+)\.png")),
    "fluent": ("lobehub-fluent-emoji-3d-", re.compile(r"package/assets/(.+)\.webp")),
}
_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
_TONES_TAKEN = _TONES[::2]
_GENDERS = ("2640", "2642")
_PEOPLE = ("1f468", "1f469", "1f9d1")  # man, woman, person
_JOINERS = ("fe0f", "200d")
_CATEGORIES = "package/emoji.json"  # in Noto's package
_PARTS = "Component"  # category of skin tones, as emoji of their own


def package_of(packages: pathlib.Path, artist: str) -> pathlib.Path:
    """Returns the path of an artist's package.

    Raises:
      FileNotFoundError: There is no such file, or there are several.
    """
    beginning, _ = _SETS[artist]
    paths = sorted(packages.glob(f"{beginning}*.tgz"))
    if len(paths) != 1:
        raise FileNotFoundError(
            f"{packages} must hold one {beginning}*.tgz, but there are {len(paths)}."
        )
    return paths[0]


def emoji_of(codes: list[str]) -> str:
    """Returns what all variants of an emoji, by tone and gender, have in common."""
    codes = [_PEOPLE[-1] if code in _PEOPLE else code for code in codes]
    return "-".join(c for c in codes if c not in (*_TONES, *_GENDERS, *_JOINERS))


def is_taken(codes: list[str]) -> bool:
    """Returns whether a picture is one of those that are taken."""
    tones = [code for code in codes if code in _TONES]
    return not tones or (len(tones) == 1 and tones[0] in _TONES_TAKEN)


def split_of(emoji: str) -> str:
    """Returns `test` for a tenth of all emoji, else `train`."""
    digest = hashlib.sha256(emoji.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % _HELD_OUT == 0 else "train"


def spelling(codes: list[str]) -> list[str]:
    """Returns code points as Noto's package writes them; Fluent's has 39-fe0f and 1f3f4-e0067_…."""
    return [code.zfill(4) for code in "-".join(codes).replace("_", "-").split("-")]


def categories(path: pathlib.Path) -> dict[str, str]:
    """Reads the category of each emoji, which all of its variants have, from Noto's package."""
    with tarfile.open(path) as package:
        file = package.extractfile(_CATEGORIES)
        assert file
        entries = json.load(file)
    return {
        emoji_of(entry["unified"].lower().split("-")): entry["category"]
        for entry in entries
        if entry["category"] != _PARTS
    }


def category_of(codes: list[str], known: dict[str, str]) -> str:
    """Returns the category of a picture: if its emoji is unknown, that of its first code point."""
    codes = spelling(codes)
    emoji = emoji_of(codes)
    return known[emoji] if emoji in known else known[codes[0]]


def picture(content: bytes) -> Image.Image:
    """Decodes a picture on white, `_SIZE` pixels wide and high."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB").resize((_SIZE, _SIZE), Image.BOX)


def pictures(path: pathlib.Path, artist: str) -> Iterator[tuple[list[str], bytes]]:
    """Yields code points and content of the pictures of an artist's package that are taken."""
    _, pattern = _SETS[artist]
    with tarfile.open(path) as package:
        for member in package:
            match = pattern.fullmatch(member.name)
            codes = match[1].lower().split("-") if match else []
            if codes and is_taken(codes):
                file = package.extractfile(member)
                assert file
                yield codes, file.read()


def main(argv: list[str]) -> None:
    counts: Counter = Counter()
    labels = []
    with usage_errors(argv), new_directory(_OUTPUT.value) as output:
        directory = pathlib.Path(_PACKAGES.value)
        packages = {artist: package_of(directory, artist) for artist in _SETS}
        known = categories(packages["noto"])
        for split in ("train", "test"):
            pathlib.Path(output, split).mkdir()
        for artist, package in packages.items():
            for codes, content in pictures(package, artist):
                split = split_of(emoji_of(spelling(codes)))
                path = f"{split}/{'-'.join(codes)}_{artist}.png"
                picture(content).save(pathlib.Path(output, path))
                labels.append((path, category_of(codes, known)))
                counts[artist, split] += 1
        with pathlib.Path(output, "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows(sorted(labels))
    for (artist, split), count in counts.items():
        print(f"{artist}, {split}: {count} pictures")


if __name__ == "__main__":
    app.run(main)
