"""The programs from the outside: a clear line for wrong usage, and nothing created."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers.programs import Program, run

BAD_TRAINING = {
    "unknown preset": (
        ["--preset=nonesuch"],
        "Unknown preset 'nonesuch'. Known: quickstart, folder64, mnist",
    ),
    "unknown field": (
        ["--preset=quickstart", "--config.model.num_flows=1"],
        "No configuration field 'model.num_flows'. Known: ",
    ),
    "wrong type": (
        ["--preset=quickstart", "--config.model.num_nf=many"],
        "--config.model.num_nf=many",
    ),
    "size that does not divide": (
        ["--preset=quickstart", "--config.model.image_shape=(28,28,1)", "--config.model.padding=0"],
        "must be divisible by 32",
    ),
    "missing data set": (
        ["--preset=quickstart", "--config.data.name=nonesuch"],
        "Unknown data set 'nonesuch'",
    ),
    "neither preset nor run": ([], "--preset must say what to train"),
    "stray argument": (["--preset=quickstart", "quickstart"], "unexpected argument 'quickstart'"),
}


def test_wrong_usage_of_train(tmp_path):
    processes = {
        case: Program("trainers.train", f"--workdir={tmp_path / case}", *arguments)
        for case, (arguments, _) in BAD_TRAINING.items()
    }
    for case, (_, message) in BAD_TRAINING.items():
        out, err = processes[case].communicate()
        assert processes[case].returncode == 1, case
        assert message in err, (case, err)
        assert "Traceback" not in err, (case, err)
        assert not out and not os.path.exists(tmp_path / case), case


def test_sample_writes_the_same_sheet_for_the_same_seed(finished, tmp_path):
    seeds = {"a": 1, "b": 1, "c": 2}
    processes = [
        Program(
            "trainers.sample",
            f"--workdir={finished.path}",
            "--num_samples=5",
            "--temperature=0.7",
            f"--seed={seed}",
            f"--output={tmp_path / name}.png",
        )
        for name, seed in seeds.items()
    ]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "5 samples at temperature 0.7" in out
    sheets = {n: tf.io.decode_png((tmp_path / f"{n}.png").read_bytes()).numpy() for n in seeds}
    assert sheets["a"].shape == (2 * 10 + 2, 3 * 10 + 2, 1)  # 3 x 2 images of 8x8, margins of 2
    np.testing.assert_array_equal(sheets["a"], sheets["b"])
    assert np.any(sheets["a"] != sheets["c"])


def test_evaluate_prints_and_writes_json(finished, tmp_path):
    path = tmp_path / "result.json"
    out = run(
        "trainers.evaluate",
        f"--workdir={finished.path}",
        "--num_iw_samples=3",
        "--num_images=20",
        f"--output={path}",
    )
    printed, written = json.loads(out), json.loads(path.read_text())
    assert printed == written
    assert printed["num_images"] == 20 and printed["num_iw_samples"] == 3
    assert printed["split"] == "test"
    assert printed["iw_bound"] < printed["negative_elbo"] + 1


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("trainers.sample", [], "is not the workdir of a run"),
        ("trainers.evaluate", [], "is not the workdir of a run"),
        ("export.export_model", ["--export_base=serving"], "is not the workdir of a run"),
        ("trainers.sample", ["--output=no/such/x.png"], "there is no directory"),
    ],
)
def test_wrong_usage_of_the_others(tmp_path, module, arguments, message):
    process = Program(module, f"--workdir={tmp_path}", *arguments)
    _, err = process.communicate()
    assert process.returncode == 1 and message in err and "Traceback" not in err
    assert not os.listdir(tmp_path)
