"""What TensorBoard gets: the event files of a finished run, read as TensorBoard reads them."""

import json
import re
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

import nvae_tf
from nvae_tf.data import evaluation_batches, load_images
from nvae_tf.evaluation import ACTIVE_CHANNEL_NATS, COLLAPSED_NATS
from nvae_tf.model.inference import InferenceModel
from nvae_tf.runs.workdir import Workdir
from nvae_tf.sampling.images import to_uint8
from nvae_tf.sampling.latents import reconstruct
from nvae_tf.sampling.sampler import Sampler
from tests.conftest import random_images, tiny_experiment_config
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer
from trainers.summaries import Speed, Summaries
from trainers.summaries.event_files import event_files, open_writer, read_scalars
from trainers.summaries.gallery import Gallery


def read(directory):
    logs = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    return logs.Reload()


@pytest.fixture(scope="module")
def train_logs(finished):
    return read(f"{finished.tensorboard}/train")


@pytest.fixture(scope="module")
def validation_logs(finished):
    return read(f"{finished.tensorboard}/validation")


def series(logs, tag):
    """Steps and values of a scalar."""
    events = logs.Tensors(tag)
    values = [float(np.squeeze(tf.make_ndarray(event.tensor_proto))) for event in events]
    return [event.step for event in events], np.array(values)


def test_both_runs_have_what_overlays(train_logs, validation_logs):
    common = {f"kl/group_{group:02d}" for group in range(3)} | {
        f"loss/{name}" for name in ("negative_elbo", "bits_per_dim", "reconstruction", "kl")
    }
    assert common <= set(train_logs.Tags()["tensors"]) & set(validation_logs.Tags()["tensors"])
    assert series(train_logs, "loss/kl")[0] == [1, 2, 3, 4]
    assert series(validation_logs, "loss/kl")[0] == [2, 4]


@pytest.mark.parametrize("logs", ["train_logs", "validation_logs"])
def test_parts_add_up(logs, request):
    logs = request.getfixturevalue(logs)
    kl = sum(series(logs, f"kl/group_{group:02d}")[1] for group in range(3))
    np.testing.assert_allclose(series(logs, "loss/kl")[1], kl, rtol=1e-5)
    bound = series(logs, "loss/reconstruction")[1] + kl
    np.testing.assert_allclose(series(logs, "loss/negative_elbo")[1], bound, rtol=1e-5)
    bits = bound / (8 * 8 * np.log(2))
    np.testing.assert_allclose(series(logs, "loss/bits_per_dim")[1], bits, rtol=1e-5)


def test_the_events_are_the_numbers_that_the_run_printed(finished_and_printed, request):
    finished, printed = finished_and_printed
    train_logs, validation_logs = map(request.getfixturevalue, ("train_logs", "validation_logs"))
    bounds = series(validation_logs, "loss/negative_elbo")[1]
    bits = series(validation_logs, "loss/bits_per_dim")[1]
    assert f"step 2: validation -ELBO {bounds[0]:.2f} nats, {bits[0]:.4f} bits/dim\n" in printed
    finish = re.search(r"Finished: -ELBO (\S+) ± (\S+) nats \((\S+) bits/dim\)", printed)
    assert (finish[1], finish[3]) == (f"{bounds[-1]:.2f}", f"{bits[-1]:.4f}")
    upper = series(validation_logs, "margin/negative_elbo_upper")[1]
    assert float(finish[2]) == pytest.approx((upper[-1] - bounds[-1]) / 1.96, abs=0.01)
    with open(finished.evaluation) as file:
        assert json.load(file)["negative_elbo"] == pytest.approx(bounds[-1], rel=1e-6)

    bar = re.findall(r"-ELBO (\S+) nats, (\S+) bits/dim, KL (\S+), beta (\S+)\]", printed)[-1]
    tags = ("loss/negative_elbo", "loss/bits_per_dim", "loss/kl", "schedule/beta")
    last = [series(train_logs, tag)[1][-1] for tag in tags]
    assert bar == tuple(f"{v:.{d}f}" for v, d in zip(last, (1, 3, 1, 2)))


def test_collapsed_groups_are_warned_of_once(finished_and_printed, validation_logs):
    printed = finished_and_printed[1]
    kl = np.stack([series(validation_logs, f"kl/group_{g:02d}")[1] for g in range(3)], axis=1)
    before, expected = [], []
    for step, values in zip((2, 4), kl):
        collapsed = [f"group_{group:02d}" for group in np.flatnonzero(values < COLLAPSED_NATS)]
        if collapsed and collapsed != before:
            expected.append((f"{step}", f"{len(collapsed)}", ", ".join(collapsed)))
        before = collapsed
    assert expected  # this run has collapsed groups
    warnings = re.findall(r"step (\d+): Warning: (\d) of 3 groups have collapsed.*: (.*)", printed)
    assert warnings == expected


def test_active_channels_and_singular_values(train_logs):
    for group in range(3):
        active = series(train_logs, f"kl_active_channels/group_{group:02d}")[1]
        kl = series(train_logs, f"kl/group_{group:02d}")[1]
        # Two channels: one is in use if the group has more than two inactive ones could have.
        assert np.all(active[kl > 2 * ACTIVE_CHANNEL_NATS] >= 1)
        assert np.all(active[kl < ACTIVE_CHANNEL_NATS] == 0)
    largest = series(train_logs, "spectral_norm/largest")[1]
    assert np.all(largest < series(train_logs, "regularization/spectral")[1])
    table = text(train_logs, "spectral_norm")
    rows = re.findall(r"\| `(\S+)` \| (\S+) \|", table)
    assert len(rows) == 10 and rows[0][1] == f"{largest[-1]:.4f}"
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)


def test_the_named_layer_has_the_largest_singular_value(finished, train_logs):
    path = re.search(r"`(\S+)`", text(train_logs, "spectral_norm"))[1]
    model = nvae_tf.load_model(finished.path)
    exact = {}
    for layer in model.convolutions():
        kernel = layer.effective_kernel().numpy()
        matrix = kernel.reshape(-1, kernel.shape[-1])
        exact[layer.path] = np.linalg.svd(matrix, compute_uv=False)[0]
    # The names are one step older than the weights, and four power iterations are not exact.
    assert exact[path] > 0.97 * max(exact.values())


def text(logs, tag):
    return tf.make_ndarray(logs.Tensors(tag)[-1].tensor_proto).item().decode()


def test_every_chart_of_the_layout_has_its_tags(train_logs, validation_logs):
    layout = layout_pb2.Layout()
    layout.ParseFromString(
        tf.make_ndarray(validation_logs.Tensors("custom_scalars__config__")[0].tensor_proto).item()
    )
    assert [category.title for category in layout.category] == [
        "KL of the groups",
        "Bound",
        "Schedules",
        "Health",
    ]
    train, validation = (set(x.Tags()["tensors"]) for x in (train_logs, validation_logs))
    charts = {chart.title: chart for category in layout.category for chart in category.chart}
    for chart in charts.values():
        for pattern in chart.multiline.tag:
            assert any(re.match(pattern, tag) for tag in train), pattern
        for line in chart.margin.series:
            assert {line.value, line.lower, line.upper} <= train & validation

    def groups(title):
        patterns = charts[title].multiline.tag
        return [tag for tag in sorted(train) if any(re.match(p, tag) for p in patterns)]

    assert groups("All groups, nats") == ["kl/group_00", "kl/group_01", "kl/group_02"]
    assert groups("KL of scale 1, 2x2") == ["kl/group_00"]
    assert groups("KL of scale 0, 4x4") == ["kl/group_01", "kl/group_02"]


def hparams(logs, tag):
    content = logs.SummaryMetadata(tag).plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_the_table_of_runs(finished, validation_logs):
    experiment = hparams(validation_logs, "_hparams_/experiment").experiment
    for metric in experiment.metric_infos:
        assert not metric.name.group
        assert metric.name.tag in validation_logs.Tags()["tensors"]
    session = hparams(validation_logs, "_hparams_/session_start_info").session_start_info
    assert session.group_name.startswith("finished ")
    values = session.hparams
    assert set(values) == set(finished.read_config().flat())
    assert values["train.steps"].number_value == 4
    assert values["model.likelihood"].string_value == "bernoulli"
    assert values["model.image_shape"].string_value == "(8, 8, 1)"
    assert values["data.resize"].bool_value is True
    assert {info.name for info in experiment.hparam_infos} == set(values)
    end = hparams(validation_logs, "_hparams_/session_end_info").session_end_info
    assert end.status == api_pb2.STATUS_SUCCESS


def test_texts(finished, validation_logs):
    configuration = text(validation_logs, "configuration")
    for section in ("model", "data", "optimizer", "train"):
        assert f"### {section}\n\n| field | value |\n| --- | --- |\n" in configuration
    assert "| `global_batch_size` | `4` |" in configuration
    model = text(validation_logs, "model")
    assert {"stem", "encoder", "posterior", "prior", "decoder", "image_head"} <= set(
        re.findall(r"\| `(\w+)` \|", model)
    )
    parameters = nvae_tf.load_model(finished.path).num_trainable_parameters
    sizes = re.findall(r"\| `\w+` \| \d+ \| ([\d,]+) \| \S+% \|", model)
    assert sum(int(size.replace(",", "")) for size in sizes) == parameters
    assert f"| {parameters:,} | 100.0% |" in model
    assert "| `group_00` | 1 | 2x2 | 2 | 8 |" in model
    assert "| `group_02` | 0 | 4x4 | 2 | 32 |" in model
    surroundings = text(validation_logs, "surroundings")
    assert f"| TensorFlow | {tf.__version__} |" in surroundings


def picture(logs, tag):
    events = logs.Tensors(tag)
    width, height, png = (tf.make_ndarray(events[-1].tensor_proto)[i] for i in range(3))
    image = tf.io.decode_png(png).numpy()
    assert image.shape[:2] == (int(height), int(width))
    return [event.step for event in events], image


def test_collapsed_groups_are_red_in_the_heat_maps(train_logs):
    kl = [series(train_logs, f"kl/group_{group:02d}")[1][-1] for group in range(3)]
    assert min(kl) < COLLAPSED_NATS  # this run has some
    for name in ("over_time", "by_channel"):
        figure = picture(train_logs, f"kl/{name}")[1].astype(int)
        assert np.sum(np.all(np.abs(figure - (192, 0, 0)) < 20, axis=2)) > 100


def test_pictures(finished, train_logs, validation_logs):
    for name in ("over_time", "by_channel", "rate_curve"):
        steps, figure = picture(train_logs, f"kl/{name}")
        assert steps == [2, 4] and figure.shape[1:] == (700, 3)
    assert picture(validation_logs, "reconstructions/pairs")[1].shape == (4 * 10 + 2, 8 * 10 + 2, 1)
    # 6 images; 0, 1, 2, 3 groups and the image itself.
    assert picture(validation_logs, "reconstructions/first_groups")[1].shape == (
        6 * 10 + 2,
        5 * 10 + 2,
        1,
    )
    model = nvae_tf.load_model(finished.path)
    for temperature in (0.6, 1.0):
        sheet = picture(validation_logs, f"samples/temperature_{temperature}")[1]
        expected = next(Sampler(model, batch_size=16).batches(16, temperature, seed=0))
        first, last = sheet[2:10, 2:10], sheet[12:20, 72:80]
        assert np.abs(first.astype(int) - expected[0]).max() <= 1
        assert np.abs(last.astype(int) - expected[15]).max() <= 1


def test_strips_lead_from_a_sample_to_the_reconstruction(finished):
    config, model = finished.read_config(), nvae_tf.load_model(finished.path)
    images = load_images(config.data, config.model, "test")[:3]  # fewer than fit
    examples = next(iter(evaluation_batches(images, config.model, 3)))
    inference = InferenceModel(model)
    gallery = Gallery(inference, examples)
    assert gallery.shown_groups() == [0, 1, 2, 3]

    def tile(sheet, row, column):
        return sheet[2 + 10 * row : 10 + 10 * row, 2 + 10 * column : 10 + 10 * column].astype(int)

    beside, strips, (samples,) = gallery.draw(inference.weights(), [1.0])
    assert strips.shape == (3 * 10 + 2, 5 * 10 + 2, 1)
    reconstructions = to_uint8(reconstruct(model, examples)).astype(int)
    for row in range(3):
        np.testing.assert_array_equal(tile(strips, row, 0), tile(samples, 0, row))
        np.testing.assert_array_equal(tile(strips, row, 4), to_uint8(examples[row]))
        assert np.abs(tile(strips, row, 3) - reconstructions[row]).max() <= 1
        np.testing.assert_array_equal(tile(beside, 0, 2 * row), to_uint8(examples[row]))
        np.testing.assert_array_equal(tile(beside, 0, 2 * row + 1), tile(strips, row, 3))


def log(directory, start, last, value):
    writer = open_writer(directory, start)
    for step in range(start + 1, last + 1):
        with writer.as_default(step):
            tf.summary.scalar("kl/group_00", value)
            tf.summary.scalar("other", value)
    writer.close()


def test_what_a_killed_run_logged_after_its_checkpoint_is_removed(tmp_path):
    log(str(tmp_path), 0, 5, 1.0)
    # TensorBoard orders files by name: of one second, a process's writer 10 comes before writer 9.
    time.sleep(1)
    log(str(tmp_path), 2, 4, 2.0)
    assert len(event_files(str(tmp_path))) == len(list(tmp_path.iterdir())) == 2
    for tag in ("kl/group_00", "other"):
        steps, logged = series(read(tmp_path), tag)
        assert steps == [1, 2, 3, 4] and logged.tolist() == [1, 1, 2, 2]
    values = read_scalars(str(tmp_path), "kl/group")
    assert values == {s: {"kl/group_00": v} for s, v in ((1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0))}


def test_a_run_that_goes_back_draws_nothing_of_undone_steps(tmp_path):
    config = tiny_experiment_config()
    trainer = Trainer(config, make_strategy("one_device"), num_images=100)
    images = np.random.default_rng(0).integers(256, size=(8, *config.model.content_shape))
    batches = iter(trainer.batches(images.astype(np.uint8)))
    model = InferenceModel(trainer.model)
    examples = random_images(config.model, 4)
    workdir = Workdir(tmp_path)
    layers = trainer.regularizer.layers
    summaries = Summaries(workdir, config, model, layers, examples, step=0, facts={})
    summaries.log_step(2, trainer.step(batches), Speed(1.0, 0.0))
    summaries.restart(0)
    summaries.log_images(1, model.weights(trainer.state.evaluation_values()))
    summaries.close()
    assert "kl/over_time" not in read(f"{workdir.tensorboard}/train").Tags()["tensors"]
    assert "reconstructions/pairs" in read(f"{workdir.tensorboard}/validation").Tags()["tensors"]


def test_an_event_file_without_its_end_is_read_up_to_there(tmp_path):
    log(str(tmp_path), 0, 2, 1.0)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    before = {1: {"other": 1.0}}
    assert read_scalars(str(tmp_path), "other") == before
    log(str(tmp_path), 1, 2, 3.0)
    assert read_scalars(str(tmp_path), "other") == before | {2: {"other": 3.0}}


def test_the_profile_has_the_steps_asked_for(finished):
    (trace,) = tf.io.gfile.glob(f"{finished.tensorboard}/plugins/profile/*/*.xplane.pb")
    with open(trace, "rb") as file:
        content = file.read()
    assert b"train" in content and len(content) > 10_000
