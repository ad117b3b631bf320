"""`run_fn`, driven by a stand-in for TFX's arguments, and the gate that judges what it leaves."""

import glob
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from export.manifest import read_manifest
from nvae_tf.config import DataConfig
from nvae_tf.data import load_images
from nvae_tf.runs.load import save_weights
from nvae_tf.runs.workdir import Workdir
from nvae_tf.sampling.sampler import row_noise
from tests.conftest import small_experiment_config, tiny_model_config
from tests.trainers.tfx.stand_ins import (
    SMALL,
    DataAccessor,
    FnArgs,
    bytes_feature,
    label,
    write_examples,
)
from trainers.tfx import gate as tfx_gate
from trainers.tfx import places, training
from trainers.tfx.examples import copy_images
from trainers.tfx.gate import Verdict, compare_with_baseline, measured_bits_per_dim
from trainers.tfx_module import requested_config, run_fn

TRAIN_IMAGES, EVAL_IMAGES, BATCH = 20, 12, 4


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(256, size=(32, 8, 8, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def examples(images, tmp_path_factory):
    """The directory that ImportExampleGen would leave; the training images are in two files."""
    directory = tmp_path_factory.mktemp("examples")
    parts = {
        "Split-train/data_tfrecord-00000-of-00002.gz": images[:13],
        "Split-train/data_tfrecord-00001-of-00002.gz": images[13:TRAIN_IMAGES],
        "Split-eval/data_tfrecord-00000-of-00001.gz": images[TRAIN_IMAGES:],
    }
    for name, part in parts.items():
        write_examples(
            directory / name,
            [
                {"image": bytes_feature(tf.io.encode_png(image).numpy()), "label": label(1)}
                for image in part
            ],
        )
    return directory


@pytest.fixture(scope="module")
def trained(examples, tmp_path_factory):
    """The arguments of a run that was done; what it left is not to be written to."""
    tf.keras.utils.set_random_seed(0)
    hyperparameters = {
        "space": [],
        "values": {
            "optimizer.learning_rate": 5e-3,
            "train.seed": 9,
            "train.steps": 40,
            "tuner/epochs": 2,
        },
    }
    fn_args = FnArgs(examples, tmp_path_factory.mktemp("output"), hyperparameters=hyperparameters)
    run_fn(fn_args)
    return fn_args


@pytest.fixture(scope="module")
def model(trained):
    return nvae_tf.load_model(trained.model_run_dir)


@pytest.fixture(scope="module")
def loaded(trained):
    return tf.saved_model.load(trained.serving_model_dir)


def evaluation(fn_args):
    with open(f"{fn_args.model_run_dir}/evaluation.json") as file:
        return json.load(file)


def test_preset_overrides_hyperparameters_and_steps(trained):
    config = Workdir(trained.model_run_dir).read_config()
    assert config.model == small_experiment_config().model  # from the overrides
    assert config.optimizer.learning_rate == 5e-3  # from the hyperparameters
    assert config.train.seed == 9  # from there, and not from the overrides
    assert config.optimizer.warmup_epochs == 0.2  # from the preset
    assert config.train.steps == 3  # from the Trainer: neither 50 nor 40


def test_steps_are_honoured(trained):
    assert Workdir(trained.model_run_dir).latest_checkpoint().endswith("-3")
    result = evaluation(trained)
    assert result["step"] == 3
    assert result["num_images"] == 2 * BATCH < EVAL_IMAGES


def test_tensorboard_is_in_model_run_dir(trained):
    for name in ("train", "validation"):
        assert glob.glob(f"{trained.model_run_dir}/**/{name}/events.*", recursive=True)


def test_the_run_holds_the_images_in_their_order(trained, images):
    config = Workdir(trained.model_run_dir).read_config()
    training, held_out = (load_images(config.data, config.model, s) for s in ("train", "eval"))
    np.testing.assert_array_equal(training, images[:TRAIN_IMAGES])
    np.testing.assert_array_equal(held_out, images[TRAIN_IMAGES:][: 2 * BATCH])


def test_serving_model_dir_is_the_trained_model(model, loaded):
    assert {"sample", "log_likelihood", "serving_default"} <= set(loaded.signatures)
    seeds = tf.constant([5, 6], tf.int64)
    answer = loaded.signatures["sample"](seed=seeds, temperature=tf.ones(2))["image"].numpy()
    noise = row_noise(model, tf.stack([seeds, tf.zeros_like(seeds)], axis=1))
    expected = 255 * model.likelihood(model.generate(2, 1.0, noise)).mean().numpy()
    assert np.abs(answer - expected).max() <= 1.5
    example = tf.train.Example(features=tf.train.Features(feature={"seed": label(6)}))
    single = loaded.signatures["serving_default"](tf.constant([example.SerializeToString()]))
    assert np.abs(single["image"].numpy()[0].astype(int) - answer[1]).max() <= 1


def test_the_manifest_has_configuration_and_evaluation(trained):
    manifest = read_manifest(trained.serving_model_dir)
    name = "negative_elbo_bits_per_dim"
    assert manifest.step == 3 and manifest.config["train"]["steps"] == 3
    assert manifest.metrics[name] == evaluation(trained)[name]


def assert_same_weights(model, expected, tolerance):
    pairs = zip(model.trainable_variables, expected.trainable_variables, strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=ours.path)


@pytest.mark.parametrize("name", ["serving_model_dir", "model_run_dir"])
def test_a_base_model_is_where_the_training_starts(
    trained, model, examples, tmp_path, monkeypatch, name
):
    starts = []

    def train(config, workdir, init_from):
        starts.append(init_from)
        raise InterruptedError

    monkeypatch.setattr(training, "train", train)
    fn_args = FnArgs(examples, tmp_path, base_model=getattr(trained, name))
    with pytest.raises(InterruptedError):
        run_fn(fn_args)
    assert_same_weights(starts[0].load(), model, tolerance=0)


@pytest.mark.slow
def test_training_takes_the_base_model_over(trained, model, examples, tmp_path):
    still = {"optimizer.learning_rate": 1e-9, "optimizer.learning_rate_min": 1e-9}
    fn_args = FnArgs(
        examples,
        tmp_path,
        base_model=trained.serving_model_dir,
        train_steps=1,
        custom_config={"preset": "quickstart", "overrides": SMALL | still | {"train.seed": 7}},
    )
    run_fn(fn_args)
    assert_same_weights(nvae_tf.load_model(fn_args.model_run_dir), model, tolerance=1e-5)


REFUSED = {
    "no preset": ({"custom_config": {}}, "'preset'.*must say what to train.*quickstart"),
    "unknown preset": ({"custom_config": {"preset": "mnits"}}, "Unknown preset 'mnits'"),
    "unknown key": (
        {"custom_config": {"preset": "quickstart", "override": {}}},
        "has the keys preset and overrides, received 'override'",
    ),
    "unknown field": (
        {"custom_config": {"preset": "quickstart", "overrides": {"model.num_flow": 1}}},
        "No configuration field 'model.num_flow'",
    ),
    "wrong type": (
        {"custom_config": {"preset": "quickstart", "overrides": {"model.num_nf": "1"}}},
        "num_nf must be of type int, received '1'",
    ),
    "overrides of a wrong kind": (
        {"custom_config": {"preset": "quickstart", "overrides": ["model.num_nf=1"]}},
        "overrides.*must be a dictionary",
    ),
    "a hyperparameter that is no field": (
        {"hyperparameters": {"values": {"learning_rate": 1.0}}},
        "No configuration field 'learning_rate'. Known: optimizer.learning_rate",
    ),
    "hyperparameters without values": (
        {"hyperparameters": {"space": []}},
        "must have the key 'values', received 'space'",
    ),
    "the pipeline's images": (
        {"custom_config": {"preset": "quickstart", "overrides": {"data.name": "mnist"}}},
        "data.name cannot be overridden",
    ),
    "no steps": ({"train_steps": 0}, "train_steps must be at least 1, or None; received 0"),
    "remote directory": ({"model_run_dir": "gs://bucket/run"}, "must be a local directory"),
    "not our base model": ({"base_model": "/nowhere/Format-Serving"}, "'/nowhere/Run' is"),
    "no files": ({"eval_files": []}, "eval_files is empty"),
    "a model is there": ({"serving_model_dir": "/usr"}, "'/usr' exists already and is not an"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_before_training(examples, tmp_path, monkeypatch, case):
    changes, message = REFUSED[case]
    monkeypatch.setattr(training, "train", lambda *args, **options: pytest.fail("it trains"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_fn(FnArgs(examples, tmp_path, **changes))
    assert not os.listdir(tmp_path)


def test_a_bucket_is_where_it_is_mounted(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "_BUCKETS", ("gs://", f"{tmp_path}/"))
    assert places.local_directory("run", "gs://bucket/a/b") == f"{tmp_path}/bucket/a/b"
    assert places.local_directory("run", "/a/b") == "/a/b"
    with pytest.raises(ValueError, match=r"run must be .* received 's3://bucket/a'"):
        places.local_directory("run", "s3://bucket/a")


def test_a_base_model_of_another_shape_is_refused(trained, examples, tmp_path):
    wider = {"preset": "quickstart", "overrides": SMALL | {"model.num_channels_enc": 12}}
    fn_args = FnArgs(examples, tmp_path, custom_config=wider, base_model=trained.serving_model_dir)
    with pytest.raises(ValueError, match="num_channels_enc is 8 there, 12 was asked for"):
        run_fn(fn_args)
    assert not os.listdir(tmp_path)


def test_without_steps_all_images_and_the_configuration_count(examples, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "train", lambda config, *args, **options: asked.append(config))
    fn_args = FnArgs(examples, tmp_path, train_steps=None, eval_steps=None)
    with pytest.raises(RuntimeError, match="stopped"):
        run_fn(fn_args)
    (config,) = asked
    assert config.train.steps == 50
    assert len(load_images(config.data, config.model, "eval")) == EVAL_IMAGES


def test_tfx_may_keep_keys_of_its_own(examples, tmp_path):
    custom_config = {"preset": "quickstart", "ai_platform_enable_vertex": True}
    requested_config(FnArgs(examples, tmp_path, custom_config=custom_config))


def test_a_training_that_was_stopped_exports_nothing(model, examples, tmp_path, monkeypatch):
    def stopped(config, workdir, init_from):
        workdir.write_config(config)
        save_weights(model, workdir)
        return False

    monkeypatch.setattr(training, "train", stopped)
    fn_args = FnArgs(examples, tmp_path)
    with pytest.raises(RuntimeError, match="stopped after step 0; nothing is exported"):
        run_fn(fn_args)
    assert not os.path.exists(fn_args.serving_model_dir)


# Copies of the examples.


def copied(tmp_path, features, **data):
    write_examples(tmp_path / "in" / "part.gz", features)
    path = tmp_path / "out" / "train.tfrecord"
    copy_images(DataAccessor(), [f"{tmp_path}/in/*"], "image", str(path))
    config = DataConfig(name="tfrecord", data_dir=str(path.parent), **data)
    return load_images(config, tiny_model_config(), "train")


@pytest.mark.parametrize("kind", ["bytes", "integers"])
def test_raw_values(images, tmp_path, kind):
    def feature(image):
        if kind == "bytes":
            return bytes_feature(image.tobytes())
        return tf.train.Feature(int64_list=tf.train.Int64List(value=image.ravel()))

    features = [{"image": feature(image)} for image in images[:5]]
    np.testing.assert_array_equal(copied(tmp_path, features, raw_shape=(8, 8, 1)), images[:5])


def test_an_example_without_an_image_is_named(images, tmp_path):
    png = bytes_feature(tf.io.encode_png(images[0]).numpy())
    with pytest.raises(ValueError, match=r"train\.tfrecord, record 1: no feature 'image'"):
        copied(tmp_path, [{"image": png}, {"label": label(1)}])


def test_examples_without_images_say_what_they_have(tmp_path):
    with pytest.raises(ValueError, match=r"no feature 'image' \(data.feature\), but label"):
        copied(tmp_path, [{"label": label(1)}])
    assert not os.listdir(tmp_path / "out")


# The gate.


@pytest.mark.parametrize(
    "candidate, baseline, blessed",
    [
        (3.0, None, True),
        (3.0, 3.0, True),
        (2.9, 3.0, True),
        (3.1, 3.0, False),
        (3.1, float("nan"), True),
        (3.1, float("inf"), True),
        (float("nan"), None, False),
        (float("nan"), 3.0, False),
        (float("inf"), float("inf"), False),
    ],
)
def test_only_a_model_that_is_no_worse_is_blessed(candidate, baseline, blessed):
    verdict = Verdict(candidate, baseline, 10)
    assert verdict.blessed == blessed
    assert json.loads(verdict.to_json())["blessed"] == blessed


def test_both_models_are_measured_on_the_same_images(trained, images, monkeypatch):
    measured = []

    def measure(saved_model, images):
        measured.append((saved_model, images))
        return float(len(measured))

    monkeypatch.setattr(tfx_gate, "measured_bits_per_dim", measure)
    model = trained.serving_model_dir
    baseline = f"{model}/../Format-Serving"
    assert compare_with_baseline(model, trained.model_run_dir, baseline) == Verdict(
        1.0, 2.0, 2 * BATCH
    )
    assert [path for path, _ in measured] == [model, baseline]
    for _, those in measured:
        np.testing.assert_array_equal(those, images[TRAIN_IMAGES:][: 2 * BATCH])


def test_what_is_measured_is_the_mean_over_the_images(trained, images, loaded, monkeypatch):
    monkeypatch.setattr(tfx_gate, "_BATCH", 3)
    held_out = images[TRAIN_IMAGES:][: 2 * BATCH]
    bits = measured_bits_per_dim(trained.serving_model_dir, held_out)
    single = [
        loaded.signatures["log_likelihood"](
            image_bytes=tf.io.encode_png(image)[None], seed=tf.constant([seed], tf.int64)
        )["bits_per_dim"].numpy()
        for seed, image in enumerate(held_out)
    ]
    assert bits == pytest.approx(np.mean(single), rel=1e-5)
    # The training's own evaluation has other draws.
    assert bits == pytest.approx(evaluation(trained)["negative_elbo_bits_per_dim"], rel=0.1)


def test_models_of_other_images_are_not_compared(trained, tmp_path):
    other = shutil.copytree(trained.serving_model_dir, tmp_path / "other")
    path = other / "assets.extra" / "nvae_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["model"] |= {"likelihood": "normal", "num_x_bits": 8}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="likelihood 'normal' there, 'bernoulli' here; num_x_bits"):
        compare_with_baseline(trained.serving_model_dir, trained.model_run_dir, str(other))


def test_a_model_that_cannot_be_measured_is_named(images, tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(ValueError, match="no signature 'log_likelihood', but none"):
        measured_bits_per_dim(str(tmp_path), images[:1])


def test_an_image_that_a_model_does_not_take_is_an_error(images, tmp_path):
    module = tf.Module()

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, "image_bytes"),
            tf.TensorSpec([None], tf.int64, "seed"),
        ]
    )
    def refuse(image_bytes, seed):
        second = tf.equal(seed, 1)
        return {
            "bits_per_dim": tf.where(second, np.nan, 1.0),
            "error": tf.where(second, "This is no picture.", ""),
        }

    tf.saved_model.save(module, str(tmp_path), {"log_likelihood": refuse})
    with pytest.raises(ValueError, match="does not take a held-out image: This is no picture"):
        measured_bits_per_dim(str(tmp_path), images[:3])
