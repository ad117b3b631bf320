"""The programs from the outside: a clear line for wrong usage, and nothing created."""

import glob
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import nvae_tf
from nvae_tf.data import load_images
from nvae_tf.evaluation.kept_rows import KeptRows
from nvae_tf.evaluation.suite import Evaluation
from nvae_tf.runs.checkpoint_files import checkpoint_step
from nvae_tf.runs.load import TrainedModel
from nvae_tf.runs.workdir import Workdir
from nvae_tf.sampling.sampler import Sampler
from tests.trainers.programs import Program, run

BAD_TRAINING = {
    "unknown preset": (
        ["--preset=nonesuch"],
        "Unknown preset 'nonesuch'. Known: quickstart, folder64, mnist_small",
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
        "must be divisible by 8",
    ),
    "the last of two sizes": (
        [
            "--preset=quickstart",
            "--config.model.image_shape=(64,64,1)",
            "--config.model.padding=0",
            "--config.model.image_shape=(20,28,1)",
        ],
        "received 20x28",
    ),
    "a file of settings": (
        ["--preset=quickstart", "--config=my.json"],
        "--config=my.json gives nothing: fields are given one by one, such as --config.model.",
    ),
    "epochs beside steps": (
        ["--preset=quickstart", "--config.train.epochs=3"],
        "train.epochs is the length if train.steps is 0, and that is 1200",
    ),
    "missing data set": (
        ["--preset=quickstart", "--config.data.name=nonesuch"],
        "Unknown data set 'nonesuch'",
    ),
    "steps to profile": (
        ["--preset=quickstart", "--profile_steps=9"],
        "profile_steps must be FIRST:LAST, with 1 <= FIRST <= LAST; such as 100:110. Received '9'",
    ),
    "steps to profile that never come": (
        ["--preset=quickstart", "--profile_steps=1190:1201"],
        "must be between 1 and 1200, those that the run has to come; received 1190 to 1201",
    ),
    "neither preset nor run": ([], "--preset must say what to train"),
    "mirrored without a GPU": (
        ["--preset=quickstart", "--config.train.strategy=mirrored"],
        "train.strategy mirrored is for several GPUs, and TensorFlow sees none",
    ),
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


BAD_FLAGS = {
    "report over its numbers": ("evaluate", "--output=e.html", "must end in .json"),
    "fewer than no images": ("evaluate", "--num_hierarchy_images=-1", "non-negative"),
    "batches of millions": ("evaluate", "--batch_size=1000000", "[1, 10000]"),
    "draws without end": ("evaluate", "--num_iw_samples=100000000000", "[1, 10000000]"),
    "samples without end": ("sample", "--num_samples=100000000000", "[1, 10000000]"),
    "columns without end": ("latents", "--steps=1000000", "[2, 1000]"),
    "no number": ("latents", "--deviations=nan", "--deviations must be finite"),
}


def test_wrong_flags_of_other_programs(finished):
    processes = {
        case: Program(f"trainers.{program}", f"--workdir={finished.path}", *flags)
        for case, (program, *flags, _) in BAD_FLAGS.items()
        for flags in [[*flags, *(["--mode=traverse"] if program == "latents" else [])]]
    }
    for case, (*_, message) in BAD_FLAGS.items():
        out, err = processes[case].communicate()
        assert processes[case].returncode == 1, case
        assert message in err and "Traceback" not in err and not out, (case, err)


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


@pytest.fixture
def extractor(tmp_path):
    """A SavedModel whose features are the means of an image's rows."""
    module = tf.Module()
    module.serve = tf.function(
        lambda images: tf.reduce_mean(images, axis=[2, 3]),
        input_signature=[tf.TensorSpec([None, None, None, 1])],
    )
    tf.saved_model.save(module, str(tmp_path / "extractor"), {"serving_default": module.serve})
    return tmp_path / "extractor"


def test_evaluate_measures_all_that_was_asked_for(finished, tmp_path, extractor):
    workdir = Workdir(tmp_path / "run")
    shutil.copytree(finished.path, workdir.path)
    cache = str(tmp_path / "cache")
    workdir.write_config(workdir.read_config().override({"data.cache_dir": cache}))
    path, table = tmp_path / "result.json", tmp_path / "images.csv"
    out = run(
        "trainers.evaluate",
        f"--workdir={workdir.path}",
        "--num_iw_samples=3",
        "--num_images=20",
        "--num_samples=30",
        "--temperature=0.5,0.7",
        f"--features={extractor}",
        "--reference_split=test",
        f"--per_image={table}",
        f"--output={path}",
    )
    printed, written = json.loads(out), json.loads(path.read_text())
    assert printed == written
    assert printed["num_images"] == 20 and printed["num_iw_samples"] == 3
    assert printed["split"] == "test"
    assert printed["iw_bound"] < printed["negative_elbo"] + 1
    # The same images, draws by draws.
    lines = table.read_text().splitlines()
    assert lines[0] == "image,negative_elbo,iw_bound,reconstruction,kl_00,kl_01,kl_02"
    columns = np.array([[float(value) for value in line.split(",")] for line in lines[1:]])
    assert columns[:, 0].tolist() == list(range(20))
    assert columns[:, 1].mean() == pytest.approx(printed["negative_elbo"], abs=1e-4)
    np.testing.assert_allclose(columns[:, 3:].sum(axis=1), columns[:, 1], atol=1e-4)

    hierarchy = printed["hierarchy"]
    assert len(hierarchy["distortion"]) == 4 and hierarchy["num_images"] == 20
    # Of one draw instead of three.
    assert hierarchy["negative_elbo"][-1] == pytest.approx(printed["negative_elbo"], rel=0.05)

    quality = printed["sample_quality"]
    assert quality["num_real"] == 1000 and quality["num_generated"] == 30
    assert quality["protocol"]["temperature"] == [0.5, 0.7]
    assert len(os.listdir(cache)) == 1
    images = load_images(workdir.read_config().data, workdir.read_config().model, "test")
    sampler = Sampler(nvae_tf.load_model(workdir.path), batch_size=30)
    (samples,) = sampler.batches(30, [0.5, 0.7])
    real, fake = (np.mean(x / 255, axis=(2, 3)) for x in (images, samples))
    # Independent of ours: the trace of a product's root, by its eigenvalues.
    covariances = [np.cov(features.T) for features in (real, fake)]
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0))
    expected = np.sum((real.mean(0) - fake.mean(0)) ** 2)
    expected += sum(map(np.trace, covariances)) - 2 * roots.sum()
    assert quality["fid"] == pytest.approx(expected, rel=1e-2)
    page = (tmp_path / "result.html").read_text()
    assert page.count("data:image/png") == 7 and "kid_standard_deviation" in page


def test_evaluate_goes_on_where_another_stopped(finished, tmp_path):
    workdir = Workdir(tmp_path / "run")
    shutil.copytree(finished.path, workdir.path)
    trained = TrainedModel.of_run(workdir)
    images = load_images(trained.config.data, trained.config.model, "test")[:20]
    evaluation = Evaluation(trained.config, trained.load(), "test", images, batch_size=8, seed=0)
    directory = trained.kept("likelihood", trained.config.data)
    add = KeptRows.add

    def stop(self, arrays):
        add(self, tuple(np.zeros_like(array) for array in arrays))  # which no image has
        self.write()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptRows, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluation.measure_likelihood(2, directory)
    path, table = tmp_path / "result.json", tmp_path / "images.csv"
    out = run(
        "trainers.evaluate",
        f"--workdir={workdir.path}",
        "--num_iw_samples=2",
        "--num_images=20",
        "--num_hierarchy_images=0",
        "--batch_size=8",
        f"--per_image={table}",
        f"--output={path}",
    )
    assert json.loads(out)["num_images"] == 20
    bounds = np.loadtxt(table, delimiter=",", skiprows=1)[:, 2]
    assert np.all(bounds[:8] == 0) and np.all(bounds[8:] > 1)
    assert os.listdir(directory) == []


def test_the_table_of_own_pictures_names_their_files(finished, tmp_path):
    for number in range(4):
        (tmp_path / f"{number}").mkdir()
        Image.new("L", (8, 8), 60 * number).save(tmp_path / f"{number}/picture.png")
    out = run(
        "trainers.evaluate",
        f"--workdir={finished.path}",
        "--config.data.name=folder",
        f"--config.data.data_dir={tmp_path}",
        "--config.data.test_split=.",
        "--num_images=3",
        "--num_hierarchy_images=0",
        f"--output={tmp_path}/result.json",
        f"--per_image={tmp_path}/images.csv",
    )
    assert json.loads(out)["num_images"] == 3
    table = [line.split(",") for line in (tmp_path / "images.csv").read_text().splitlines()]
    files = ["file", *(f"{number}/picture.png" for number in range(3))]
    assert [row[1] for row in table] == files and table[0][2] == "negative_elbo"


# Evaluates the run in argv[1], whose training meanwhile ends as the run in argv[2] did.
OVERTAKEN = """
import shutil
import sys

from nvae_tf.evaluation.suite import Evaluation
from trainers import evaluate

_, workdir, ended = sys.argv
measure = Evaluation.measure_likelihood


def overtaken(self, *arguments):
    shutil.copytree(ended, workdir, dirs_exist_ok=True)
    return measure(self, *arguments)


Evaluation.measure_likelihood = overtaken
sys.argv[1:] = [f"--workdir={workdir}", "--num_hierarchy_images=0"]
evaluate.run()
"""


def test_an_evaluation_that_is_overtaken_replaces_no_newer_one(finished, tmp_path):
    early = Workdir(tmp_path / "run")
    shutil.copytree(finished.path, early.path, ignore=shutil.ignore_patterns("evaluation.*"))
    for path in glob.glob(f"{early.latest_checkpoint()}.*"):
        os.remove(path)
    step = checkpoint_step(early.latest_checkpoint())
    process = subprocess.run(
        [sys.executable, "-c", OVERTAKEN, early.path, finished.path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["step"] == step
    assert "has been evaluated at a later step" in process.stderr
    assert early.evaluated_step() == finished.evaluated_step() > step
    # One of the same step is replaced.
    run("trainers.evaluate", f"--workdir={early.path}", "--num_hierarchy_images=0", "--seed=5")
    assert json.loads(pathlib.Path(early.evaluation).read_text())["seed"] == 5


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


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--per_image=no/such/x.csv", "there is no directory"),
        ("--output=x.json --per_image=./x.html", "is where the results or the report go"),
        ("--temperature=1,2,3,4,5", "temperature must be one number"),
        ("--features=no/such/model", "no/such/model"),
        ("--num_samples=2", "--num_samples must be at least 4"),
        ("--num_samples=0 --temperature=0.7", "--temperature is about the sample quality"),
        ("--num_samples=9 --features=d --inception_weights=w", "is about --features=inception"),
        (
            "--num_samples=0 --output= --config.data.crop=(0,0,20,20)",
            "say with --output where the result goes",
        ),
        ("--num_samples=0 --output= --num_images=10", "leaves some of the run's images out"),
        ("--num_samples=0 --output= --split=train", "'train' is not the run's test split"),
    ],
)
def test_wrong_usage_of_evaluate(finished, tmp_path, argument, message):
    output = f"--output={tmp_path / 'result.json'}"
    process = Program(
        "trainers.evaluate",
        f"--workdir={finished.path}",
        "--num_samples=9",
        output,
        *argument.split(),
    )
    _, err = process.communicate()
    assert process.returncode == 1 and message in err and "Traceback" not in err
    assert not os.listdir(tmp_path)


@pytest.fixture(scope="module")
def preset(finished, tmp_path_factory):
    """The finished run's model, saved for others."""
    directory = tmp_path_factory.mktemp("preset") / "tiny model"
    out = run("trainers.save_preset", f"--workdir={finished.path}", f"--output={directory}")
    assert out.startswith(f"{directory}: ")
    return directory


def test_a_preset_is_as_good_as_the_run(finished, preset, tmp_path):
    metadata = json.loads((preset / "metadata.json").read_text())
    written = json.loads(pathlib.Path(finished.evaluation).read_text())
    assert metadata["step"] == written.pop("step") == 4
    assert metadata["evaluation"] == written
    card = (preset / "README.md").read_text()
    assert "| -ELBO |" in card
    assert "nvae-export '--preset=tiny model' '--export_base=serving/tiny model'\n" in card
    assert finished.path not in card and finished.path not in (preset / "config.json").read_text()
    sheets = []
    for number, origin in enumerate((f"--workdir={finished.path}", f"--preset={preset}")):
        sheets.append(tmp_path / f"{number}.png")
        run("trainers.sample", origin, "--num_samples=2", f"--output={sheets[-1]}")
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    bounds = [
        json.loads(run("trainers.evaluate", origin, "--num_images=20", output))["negative_elbo"]
        for origin, output in (
            (f"--workdir={finished.path}", f"--output={tmp_path / 'x.json'}"),
            (f"--preset={preset}", "--config.data.test_split=test"),
        )
    ]
    assert bounds[0] == bounds[1]
    assert sorted(os.listdir(preset)) == sorted(
        ["README.md", "config.json", "metadata.json", "model.weights.h5"]
    )


def test_export_and_latents_take_presets(preset, tmp_path):
    base = tmp_path / "serving"
    program = Program("export.export_model", f"--preset={preset}", f"--export_base={base}")
    out, err = program.communicate()
    assert out.startswith(f"{base}/1: step 4")
    assert "signature" not in err  # of which TensorFlow informs
    manifest = json.loads((base / "1/assets.extra/nvae_manifest.json").read_text())
    metadata = json.loads((preset / "metadata.json").read_text())
    assert manifest["metrics"]["negative_elbo"] == metadata["evaluation"]["negative_elbo"]
    output = tmp_path / "latents.png"
    run("trainers.latents", f"--preset={preset}", "--mode=reconstruct", f"--output={output}")
    assert output.exists()


def test_a_run_starts_from_a_preset_and_its_configuration(preset, tmp_path):
    trained = nvae_tf.NVAE.from_preset(preset)
    out = run(
        "trainers.train",
        f"--init_from={preset}",
        f"--workdir={tmp_path / 'run'}",
        "--config.train.steps=1",
        "--config.train.keep_checkpoints=2",
    )
    config = TrainedModel.of_preset(preset).config
    asked = {"train.steps": 1, "train.keep_checkpoints": 2}
    assert Workdir(tmp_path / "run").read_config() == config.override(asked)
    assert f"Starting from the weights of '{preset}'" in out
    reader = tf.train.load_checkpoint(str(tmp_path / "run/checkpoints/ckpt-0"))
    for variable in trained.variables:
        np.testing.assert_array_equal(reader.get_tensor(f"model/{variable.path}"), variable.numpy())
    # The same command goes on, even when what it started from is gone.
    asked = [f"--init_from={preset}", f"--workdir={tmp_path / 'run'}"]
    moved = preset.rename(tmp_path / "moved")
    assert "is complete: 1 of 1 steps" in run("trainers.train", *asked)
    moved.rename(preset)
    _, error = Program("trainers.train", f"--init_from={moved}", asked[1]).communicate()
    assert f"started with the weights of '{preset}'" in error
    # And so does whoever takes the model along.
    run("trainers.save_preset", asked[1], f"--output={tmp_path / 'further'}")
    metadata = json.loads((tmp_path / "further/metadata.json").read_text())
    assert metadata["init_from"] == {"name": preset.name, "step": 4}
    assert "started with the weights of" in (tmp_path / "further/README.md").read_text()


def test_verbosity_shows_where_an_error_was_raised():
    _, err = Program("trainers.sample", "--preset=nonesuch", "--verbosity=1").communicate()
    assert "Traceback" in err and "in find" in err
    assert err.endswith("(mnist_small, fashion_mnist, emoji64).\n")


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        # Before the model is looked for:
        ("trainers.save_preset", ["--preset=no", "--output=TINY"], "is not an empty directory"),
        ("trainers.sample", ["--preset=no", "--output=TINY/"], "is not an empty directory"),
        ("trainers.sample", ["--preset=nonesuch"], "no trained model 'nonesuch'"),
        ("trainers.sample", ["--preset=mnist", "--workdir=w"], "Exactly one of (workdir, preset)"),
        ("trainers.sample", [], "Exactly one of (workdir, preset)"),
        ("trainers.sample", ["--preset=TINY", "--checkpoint=best"], "a preset has one state only"),
        (
            "trainers.evaluate",
            ["--preset=TINY", "--config.model.num_nf=1"],
            "--config.model.num_nf cannot change a trained model",
        ),
        ("trainers.evaluate", ["--preset=TINY", "--config.data.x=1"], "No configuration field"),
        (
            "trainers.evaluate",
            ["--preset=TINY", "--config.data.name=idx"],
            "data.data_dir must say where the files",
        ),
        (
            "trainers.train",
            ["--preset=quickstart", "--init_from=TINY", "--workdir=OUT"],
            "is another model: model.image_shape is (8, 8, 1) there",
        ),
    ],
)
def test_wrong_usage_of_presets(preset, tmp_path, module, arguments, message):
    words = {"TINY": str(preset), "OUT": str(tmp_path / "out")}
    for word, path in words.items():
        arguments = [argument.replace(word, path) for argument in arguments]
    process = Program(module, *arguments)
    _, err = process.communicate()
    assert process.returncode == 1 and message in err and "Traceback" not in err
    assert not os.listdir(tmp_path)
