"""`nvae-complete`, `nvae-projector` and `nvae-latents --mode=direction` from the outside."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from nvae_tf.data import load_images
from nvae_tf.runs.load import TrainedModel
from nvae_tf.runs.workdir import Workdir
from tests.trainers.programs import decode, finish, start


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Pictures of 8x8 pixels: dark ones and light ones."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 156)):
        (root / name).mkdir()
        for number in range(3):
            pixels = rng.integers(low, low + 100, (8, 8), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_images_of_the_data_set(finished, tmp_path):
    completed = start(
        "complete",
        f"--workdir={finished.path}",
        "--hole=0,4,8,4",
        "--num_images=3",
        "--completions=2",
        "--steps=2",
        "--batch_size=2",
        f"--output={tmp_path}/sheet.png",
        f"--pictures_output={tmp_path}/pictures",
        f"--score={tmp_path}/score.json",
    )
    assert "2 completions of 3 images" in finish(completed)
    config = TrainedModel.of_run(Workdir(finished.path), "latest").config
    images = load_images(config.data, config.model, "test")[:3]
    sheet = decode(tmp_path / "sheet.png")
    assert sheet.shape == (32, 42, 1)
    names = sorted(os.listdir(tmp_path / "pictures"))
    assert names == [f"0000{image}_0{number}.png" for image in range(3) for number in range(2)]
    for name in names:
        picture = decode(tmp_path / "pictures" / name)
        number, completion = int(name[:5]), int(name[6:8])
        np.testing.assert_array_equal(picture[:, :4], images[number, :, :4])
        top, left = 2 + 10 * number, 2 + 10 * (2 + completion)
        np.testing.assert_array_equal(picture, sheet[top : top + 8, left : left + 8])
    score = json.loads((tmp_path / "score.json").read_text())
    assert score["num_images"] == 3 and score["hole_pixels"] == 32
    assert list(score["mixture"]) == ["1", "2"]
    assert 0 < score["pixel_frequencies"] < 32 < score["mixture"]["1"] + 32


def test_a_picture_with_transparency_and_a_mask(finished, tmp_path):
    pixels = np.full((8, 8, 2), 255, np.uint8)
    pixels[0, :3, 1] = 0
    Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[7, 7] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    completed = start(
        "complete",
        f"--workdir={finished.path}",
        f"--pictures={tmp_path}/a.png",
        f"--mask={tmp_path}/mask.png",
        "--completions=1",
        "--steps=1",
        f"--output={tmp_path}/sheet.png",
        f"--pictures_output={tmp_path}/pictures",
    )
    finish(completed)
    picture = decode(tmp_path / "pictures" / "00000_00.png")[..., 0]
    hole = np.zeros((8, 8), bool)
    hole[0, :3] = hole[7, 7] = True
    assert np.all(picture[~hole] == 255) and np.all(picture[hole] < 255)
    assert decode(tmp_path / "sheet.png").shape == (12, 22, 1)


def test_directions_and_the_projector(finished, classes, tmp_path):
    model = f"--workdir={finished.path}"
    direction = start(
        "latents",
        model,
        "--mode=direction",
        f"--classes={classes}",
        "--towards=light",
        "--away_from=dark",
        "--groups=0,2",
        "--images=1,2",
        "--steps=3",
        f"--output={tmp_path}/direction.png",
    )
    by_class = start("projector", model, f"--classes={classes}", f"--output={tmp_path}/by_class")
    plain = start("projector", model, "--num_images=7", f"--output={tmp_path}/plain")
    assert "direction, 2 rows of 4" in finish(direction)
    assert decode(tmp_path / "direction.png").shape == (22, 42, 1)
    assert f"6 images, 3 groups: tensorboard --logdir={tmp_path}/by_class" in finish(by_class)
    lines = (tmp_path / "by_class/metadata.tsv").read_text().splitlines()
    assert lines[:2] == ["image\tclass", "dark/0.png\tdark"] and lines[-1] == "light/2.png\tlight"
    assert "7 images, 3 groups" in finish(plain)
    assert decode(tmp_path / "plain/sprite.png").shape == (24, 24, 1)


BAD = {
    "no hole": ("complete", [], "Say where the holes are: --mask, --hole, or --pictures with"),
    "a hole outside": ("complete", ["--hole=0,0,9,1"], "images of 8x8 pixels and not empty"),
    "a hole of words": ("complete", ["--hole=a,b,c,d"], "--hole must be four integers"),
    "no such mask": ("complete", ["--mask={tmp}/none.png"], "No such file"),
    "no such picture": ("complete", ["--pictures={tmp}/none.png"], "No such file"),
    "truth of a picture": (
        "complete",
        ["--pictures={tmp}/x.png", "--score={tmp}/s.json"],
        "--pictures has no use for --score.",
    ),
    "score that is no JSON": (
        "complete",
        ["--hole=0,0,1,1", "--score={tmp}/s.csv"],
        "--score must end in .json",
    ),
    "no rate": (
        "complete",
        ["--hole=0,0,1,1", "--learning_rate=nan"],
        "--learning_rate must be positive, received nan",
    ),
    "no class to move to": (
        "latents",
        ["--mode=direction", "--classes={classes}"],
        "--mode=direction needs --classes and --towards.",
    ),
    "unknown class": (
        "latents",
        ["--mode=direction", "--classes={classes}", "--towards=grey"],
        "--towards must be one of the classes dark, light, received 'grey'.",
    ),
    "from a class to itself": (
        "latents",
        ["--mode=direction", "--classes={classes}", "--towards=dark", "--away_from=dark"],
        "A direction leads from one class to another.",
    ),
    "no classes": ("projector", ["--classes={tmp}/none"], "There is no directory"),
    "pictures where pictures are": (
        "complete",
        ["--hole=0,0,4,4", "--pictures_output={classes}"],
        "is not an empty directory",
    ),
    "nothing but pictures": (
        "projector",
        ["--classes={classes}/dark"],
        "must have a sub-directory of pictures for each class",
    ),
}


def test_wrong_usage(finished, classes, tmp_path):
    def fill(argument):
        return argument.replace("{tmp}", str(tmp_path)).replace("{classes}", str(classes))

    outputs = {"complete": "o.png", "latents": "o.png", "projector": "o"}
    processes = {
        case: start(
            module,
            f"--workdir={finished.path}",
            f"--output={tmp_path}/{outputs[module]}",
            *map(fill, arguments),
        )
        for case, (module, arguments, _) in BAD.items()
    }
    for case, (_, _, message) in BAD.items():
        out, err = processes[case].communicate()
        assert processes[case].returncode == 1 and message in err, (case, err)
        assert "Traceback" not in err and not out, (case, err)
    assert os.listdir(tmp_path) == []
