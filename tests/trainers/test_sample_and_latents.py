"""`nvae-sample` and `nvae-latents` from the outside."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from nvae_tf.runs.load import load_model
from nvae_tf.sampling.readjustment import readjusted, stored_statistics
from nvae_tf.sampling.sampler import Sampler
from tests.trainers.programs import decode, finish, start


@pytest.fixture(scope="module")
def workdir(finished, tmp_path_factory):
    """A copy of the finished run, which may be written to."""
    return shutil.copytree(finished.path, tmp_path_factory.mktemp("copy") / "run")


def test_sample_readjusts_and_writes_a_directory(workdir, tmp_path):
    out = finish(
        start(
            "sample",
            f"--workdir={workdir}",
            "--temperature=0.4,0.6",
            "--seed=3",
            "--readjust_bn",
            "--num_samples=5",
            f"--output={tmp_path}/a/",
        )
    )
    assert "5 samples at temperature 0.4,0.6, seed 3" in out
    assert sorted(os.listdir(tmp_path / "a")) == [f"0000{number}.png" for number in range(5)]
    model = load_model(workdir)
    sampler = Sampler(model, batch_size=5)
    (plain,) = sampler.batches(5, [0.4, 0.6], seed=3)
    statistics = stored_statistics(
        workdir / "batch_norm", model, [0.4, 0.6], after_pass=pytest.fail
    )
    with readjusted(model, statistics):
        (expected,) = sampler.batches(5, [0.4, 0.6], seed=3)
    assert np.any(plain != expected)
    for number in range(5):
        picture = decode(tmp_path / "a" / f"0000{number}.png").astype(int)
        assert np.abs(picture - expected[number]).max() <= 1


def test_a_test_split_smaller_than_the_default(workdir, tmp_path):
    (tmp_path / "test").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), 60 * number).save(tmp_path / f"test/{number}.png")
    images = "--config.data.name=folder", f"--config.data.data_dir={tmp_path}"
    output = f"--output={tmp_path}/x.png"
    out = finish(start("latents", f"--workdir={workdir}", "--mode=reconstruct", *images, output))
    assert out == f"reconstruct, 2 rows of 3: {tmp_path}/x.png\n"


def image(sheet, row, column):
    """One of the 8x8 images of a sheet."""
    return sheet[2 + 10 * row : 10 + 10 * row, 2 + 10 * column : 10 + 10 * column].astype(int)


def test_latents_as_a_sheet_and_as_an_animation(workdir, tmp_path):
    common = f"--workdir={workdir}", "--images=2,0"
    vary = start(
        "latents",
        *common,
        "--mode=vary",
        "--seeds=5,6",
        "--keep_groups=0,3",
        f"--output={tmp_path}/vary.png",
    )
    interpolate = start(
        "latents",
        *common,
        "--mode=interpolate",
        "--steps=3",
        f"--output={tmp_path}/interpolate.gif",
    )
    assert "vary, 4 rows of 3" in finish(vary)
    assert "interpolate, 1 rows of 3" in finish(interpolate)
    sheet = decode(tmp_path / "vary.png")
    assert sheet.shape == (4 * 10 + 2, 3 * 10 + 2, 1)
    reconstruction = image(sheet, 1, 1)
    assert np.abs(image(sheet, 1, 2) - reconstruction).max() <= 1  # all groups are kept
    np.testing.assert_array_equal(image(sheet, 0, 0), image(sheet, 1, 0))
    assert np.any(image(sheet, 0, 0) != image(sheet, 2, 0))
    with Image.open(tmp_path / "interpolate.gif") as animation:
        first = np.asarray(animation.convert("L"))[..., None]
    assert np.abs(image(first, 0, 0) - reconstruction).max() <= 1


@pytest.mark.slow
def test_latents_in_the_other_modes(workdir, tmp_path):
    reconstruct = start(
        "latents",
        f"--workdir={workdir}",
        "--mode=reconstruct",
        "--images=2,0,1",
        f"--output={tmp_path}/reconstruct.png",
    )
    traverse = start(
        "latents",
        f"--workdir={workdir}",
        "--mode=traverse",
        "--seeds=1,2",
        "--groups=1,2",
        "--channels=1",
        "--steps=3",
        "--temperature=0.7",
        f"--output={tmp_path}/traverse.webp",
    )
    between = start(
        "latents",
        f"--workdir={workdir}",
        "--mode=interpolate",
        "--seeds=1,2",
        f"--output={tmp_path}/between.png",
    )
    assert "reconstruct, 2 rows of 3" in finish(reconstruct)
    assert "traverse, 4 rows of 3" in finish(traverse)
    assert "interpolate, 1 rows of 8" in finish(between)
    assert decode(tmp_path / "reconstruct.png").shape == (22, 32, 1)
    with Image.open(tmp_path / "traverse.webp") as animation:
        assert animation.size == (22, 22)
    assert decode(tmp_path / "between.png").shape == (12, 82, 1)


BAD = {
    "too large a sheet": (
        "sample",
        ["--num_samples=5000", "--output={tmp}/a.png"],
        "up to 4,096 images, 5,000 were asked for: let the output end in / for a directory",
    ),
    "flag of another mode": (
        "latents",
        ["--mode=reconstruct", "--seeds=1", "--output={tmp}/a.png"],
        "--mode=reconstruct has no use for --seeds, only for --images.",
    ),
    "temperature of images": (
        "latents",
        ["--mode=traverse", "--images=1", "--temperature=0.5", "--output={tmp}/a.png"],
        "--temperature is about samples, so --mode=traverse needs --seeds for it.",
    ),
    "image that is not there": (
        "latents",
        ["--mode=vary", "--images=1,1000", "--output={tmp}/a.png"],
        "--images must be from 0 to 999, received 1000.",
    ),
}


def test_wrong_usage(finished, tmp_path):
    processes = {
        case: start(
            module,
            f"--workdir={finished.path}",
            *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments),
        )
        for case, (module, arguments, _) in BAD.items()
    }
    for case, (_, _, message) in BAD.items():
        out, err = processes[case].communicate()
        assert processes[case].returncode == 1 and message in err, (case, err)
        assert "Traceback" not in err and not out, (case, err)
    assert os.listdir(tmp_path) == []
