"""`nvae-detect` from the outside."""

import csv
import importlib.util
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.evaluation.detection import Separation
from tests.trainers.programs import Program, run

needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="needs the extra detect"
)


@pytest.fixture
def noise(tmp_path):
    """A folder of pictures that are nothing but noise, without splits."""
    directory = tmp_path / "noise"
    directory.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(256, size=(60, 8, 8, 1))):
        content = tf.io.encode_png(pixels.astype(np.uint8)).numpy()
        (directory / f"{number:02d}.png").write_bytes(content)
    return directory


@needs_sklearn
def test_two_sets_are_compared(finished, tmp_path, noise):
    output = tmp_path / "result.json"
    arguments = [
        f"--workdir={finished.path}",
        "--novel.name=folder",
        f"--novel.data_dir={noise}",
        "--novel.test_fraction=0.5",
        "--num_images=20",
        "--validation_fraction=0.3",
        "--num_iw_samples=2",
    ]
    printed = json.loads(run("trainers.detect", *arguments, f"--output={output}"))
    assert printed == json.loads(output.read_text())
    assert (printed["num_groups"], printed["num_iw_samples"]) == (3, 2)
    with open(tmp_path / "result.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("known", "novel"):
        own = [row for row in rows if row["set"] == name]
        assert len(own) == printed[name]["num_images"] == 20
        files = [row["file"] for row in own]
        assert all(map(os.path.isfile, (noise / file for file in files))) == (name == "novel")
        assert len(set(files)) == (20 if name == "novel" else 1)
        assert sum(row["part"] == "validation" for row in own) == 6
        bounds = [float(row["bound"]) for row in own]
        assert np.mean(bounds) == pytest.approx(printed[name]["bound"], abs=1e-4)
    # The metrics are those of the table's numbers.
    best = []
    for part in ("validation", "test"):
        for k in (1, 2, 3):
            known, novel = (
                np.array(
                    [
                        float(row[f"llr_{k:02d}"])
                        for row in rows
                        if (row["set"], row["part"]) == (name, part)
                    ]
                )
                for name in ("known", "novel")
            )
            auroc = Separation.of(known, novel).auroc
            assert printed[part]["llr"][k - 1]["auroc"] == pytest.approx(auroc, abs=1e-6)
            if part == "validation":
                best.append(auroc)
    assert printed["chosen_k"] == 1 + int(np.argmax(best))
    # Noise is less likely than clothes, even to a model of four steps.
    page = (tmp_path / "result.html").read_text()
    assert page.count("data:image/png") == 5 and "FPR at 80 % TPR: test images" in page

    smaller = tmp_path / "smaller.json"
    run("trainers.detect", *arguments, "--batch_size=7", f"--output={smaller}")
    first, second = (
        np.genfromtxt(path.with_suffix(".csv"), delimiter=",", skip_header=1)[:, 2:]
        for path in (output, smaller)
    )
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-3)


def test_one_set_is_scored(finished, tmp_path):
    output = tmp_path / "x.json"
    arguments = [f"--workdir={finished.path}", "--num_images=5", f"--output={output}"]
    printed = json.loads(run("trainers.detect", *arguments))
    assert printed["known"]["num_images"] == 5 and "chosen_k" not in printed
    lines = (tmp_path / "x.csv").read_text().splitlines()
    bounds = [f"bound_{k:02d}" for k in (1, 2, 3)] + [f"llr_{k:02d}" for k in (1, 2, 3)]
    assert lines[0] == ",".join(["set,part,image,bound", *bounds])
    assert len(lines) == 6 and all(line.startswith("known,test,") for line in lines[1:])


REFUSED = {
    "report over its numbers": (["--output={}/e.html"], "must end in .json"),
    "no directory": (["--output={}/no/e.json"], "there is no directory"),
    "one set, divided": (["--validation_fraction=0.1"], "--validation_fraction is for two sets"),
    "no images": (["--num_images=0"], "not a positive integer"),
    "unknown field": (["--novel.dir=x"], "No field --novel.dir. Known: data_dir"),
    "wrong value": (["--novel.crop=(1,2)"], "DataConfig.crop must be empty or"),
}
OF_TWO_SETS = {
    "all for validation": (
        ["--novel.name=folder", "--novel.data_dir={}", "--validation_fraction=1"],
        "--validation_fraction must be in (0, 1), received 1.0",
    ),
    "no number": (
        ["--novel.name=folder", "--novel.data_dir={}", "--validation_fraction=nan"],
        "--validation_fraction must be in (0, 1), received nan",
    ),
    "no pictures": (["--novel.name=folder", "--novel.data_dir={}"], "no pictures"),
    "the set itself": (["--novel.flip=true"], "Both sets have the same images."),
}
if importlib.util.find_spec("sklearn"):
    REFUSED |= OF_TWO_SETS


def test_wrong_usage(finished, tmp_path):
    processes = {
        case: Program(
            "trainers.detect",
            f"--workdir={finished.path}",
            f"--output={tmp_path}/x.json",
            *(argument.format(tmp_path) for argument in arguments),
        )
        for case, (arguments, _) in REFUSED.items()
    }
    for case, (_, message) in REFUSED.items():
        out, err = processes[case].communicate()
        assert processes[case].returncode == 1, case
        assert message in err and "Traceback" not in err and not out, (case, err)
    assert not list(tmp_path.iterdir())
