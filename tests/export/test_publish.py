"""Versions in a directory that is watched: whole or not there, blessed, and by count."""

import dataclasses
import errno
import json
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import publish as publishing
from export.manifest import Manifest, manifest_of, read_manifest, write_manifest
from export.publish import WorseModelError, check_blessing, check_files, publish, versions
from nvae_tf import NVAE, ExperimentConfig
from nvae_tf.runs.load import TrainedModel, save_weights
from nvae_tf.runs.workdir import Workdir
from tests.conftest import tiny_experiment_config, tiny_model_config
from tests.export.exported import small_model
from tests.export.publisher import SIGNATURE

MODEL = keras.Model()  # has no weights


@pytest.fixture
def stand_in(monkeypatch):
    """A SavedModel that takes no time: only its manifest."""

    def write(model, directory, manifest):
        del model
        os.makedirs(directory)
        write_manifest(directory, manifest)

    monkeypatch.setattr(publishing, "write_saved_model", write)


def manifest(bits=None, step=1, **changes):
    metrics = {} if bits is None else {publishing.METRIC: bits, "split": "test", "num_images": 9}
    return Manifest.of(ExperimentConfig().override(changes), step, metrics)


def names(base):
    return sorted(name for name in os.listdir(base) if name != ".lock")


def test_versions_count_up(stand_in, tmp_path):
    base = tmp_path / "new" / "nvae"
    assert publish(MODEL, base, manifest()) == str(base / "1")
    (base / "0007").mkdir()
    (base / "notes").mkdir()
    (base / "²").mkdir()  # a digit for Python, not for a server
    assert publish(MODEL, base, manifest()) == str(base / "8")
    assert list(versions(base)) == [1, 7, 8]


def test_the_newest_are_kept(stand_in, tmp_path):
    for _ in range(4):
        publish(MODEL, tmp_path, manifest())
    (tmp_path / "notes").mkdir()
    publish(MODEL, tmp_path, manifest(), keep_versions=2)
    assert names(tmp_path) == ["4", "5", "notes"]
    publish(MODEL, tmp_path, manifest(), keep_versions=1)
    assert names(tmp_path) == ["6", "notes"]


def test_keep_versions_must_be_positive(stand_in, tmp_path):
    with pytest.raises(ValueError, match="at least 1, received 0"):
        publish(MODEL, tmp_path, manifest(), keep_versions=0)
    assert not names(tmp_path)


def test_the_base_must_be_a_directory(stand_in, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is not a directory"):
        publish(MODEL, tmp_path / "file", manifest())


@pytest.mark.parametrize("failing", ["write_saved_model", "rename"])
def test_a_failure_leaves_nothing(failing, stand_in, tmp_path, monkeypatch):
    publish(MODEL, tmp_path, manifest())

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(publishing if failing == "write_saved_model" else os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        publish(MODEL, tmp_path, manifest(), keep_versions=1)
    assert names(tmp_path) == ["1"]


def test_what_killed_publishers_left_is_removed(stand_in, tmp_path):
    for name in (".unfinished-2", ".removed-1", ".somebody_elses"):
        (tmp_path / name / "variables").mkdir(parents=True)
    publish(MODEL, tmp_path, manifest())
    assert names(tmp_path) == [".somebody_elses", "1"]


def test_publishers_take_turns(tmp_path, monkeypatch):
    inside, overlaps = [], []

    def write(model, directory, manifest):
        overlaps.extend(inside)
        inside.append(directory)
        os.makedirs(directory)
        time.sleep(0.05)
        # Nobody has taken it for the leftovers of a killed publisher.
        write_manifest(directory, manifest)
        inside.remove(directory)

    monkeypatch.setattr(publishing, "write_saved_model", write)
    threads = [
        threading.Thread(target=publish, args=(MODEL, tmp_path, manifest(step=i))) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not overlaps
    assert sorted(names(tmp_path)) == ["1", "2", "3", "4", "5", "6"]
    assert {read_manifest(path).step for path in versions(tmp_path).values()} == set(range(6))


def served(tmp_path, *args, **kwargs):
    directory = str(tmp_path / "served")
    write_manifest(directory, manifest(*args, **kwargs))
    return directory


@pytest.mark.parametrize("bits", [2.0, 1.9])
def test_equal_or_better_is_blessed(bits, tmp_path):
    check_blessing(manifest(bits), served(tmp_path, 2.0))


@pytest.mark.parametrize(
    "new, message",
    [
        (manifest(2.1, step=5), r"has 2.0000 .* on 9 images .* \(step 1\), the new one 2.1000"),
        (manifest(float("nan")), "nan"),
        (manifest(step=5), "no evaluation of step 5 .* Run nvae-evaluate"),
        (manifest(1.0, **{"model.num_x_bits": 5}), "another kind: .*'num_x_bits': 8"),
    ],
)
def test_not_blessed(new, message, tmp_path):
    with pytest.raises(WorseModelError, match=message) as error:
        check_blessing(new, served(tmp_path, 2.0))
    assert "--allow_worse" in str(error.value)


def test_anything_may_follow_what_was_not_evaluated(tmp_path):
    check_blessing(manifest(), served(tmp_path))
    check_blessing(manifest(9.0), served(tmp_path))
    (tmp_path / "foreign").mkdir()
    check_blessing(manifest(), tmp_path / "foreign")


def test_a_worse_model_is_refused_before_anything_is_written(stand_in, tmp_path):
    publish(MODEL, tmp_path, manifest(2.0))
    publish(MODEL, tmp_path, manifest(1.0))
    with pytest.raises(WorseModelError, match=r"/2', has 1.0000"):
        publish(MODEL, tmp_path, manifest(1.5), keep_versions=1)  # better than version 1
    assert names(tmp_path) == ["1", "2"]
    publish(MODEL, tmp_path, manifest(1.5), allow_worse=True)
    publish(MODEL, tmp_path, manifest(1.2))
    assert names(tmp_path) == ["1", "2", "3", "4"]


def test_a_damaged_manifest_is_an_error(stand_in, tmp_path):
    extra = tmp_path / "1" / "assets.extra"
    extra.mkdir(parents=True)
    (extra / "nvae_manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a manifest"):
        publish(MODEL, tmp_path, manifest(1.0))


@pytest.fixture
def run(tmp_path):
    """A workdir with a checkpoint of step 0."""
    workdir = Workdir(tmp_path / "run")
    config = tiny_experiment_config()
    changes = dataclasses.asdict(small_model().config)
    workdir.write_config(config.override({f"model.{k}": v for k, v in changes.items()}))
    save_weights(small_model(), workdir)
    return workdir


def evaluated(workdir, name, **fields):
    with open(workdir / name, "w", encoding="utf-8") as file:
        json.dump(fields, file)


def test_the_manifest_of_a_run_has_the_metrics_of_its_step(run):
    assert manifest_of(TrainedModel.of_run(run)).metrics == {}
    evaluated(run, "evaluation.json", step=3, split="test", negative_elbo_bits_per_dim=1.0)
    assert manifest_of(TrainedModel.of_run(run)).metrics == {}
    measured = {"split": "test", "negative_elbo_bits_per_dim": 1.0}
    evaluated(run, "evaluation.json", step=0, kl_per_group=[1.0], **measured)
    assert manifest_of(TrainedModel.of_run(run)).metrics == measured
    assert manifest_of(TrainedModel.of_run(run)).step == 0
    assert manifest_of(TrainedModel.of_run(run)).config == json.loads(run.read_config().to_json())


def test_the_best_checkpoint_has_an_evaluation_of_its_own(run):
    shutil.copytree(run.checkpoints, run.best_checkpoints)
    evaluated(run, "evaluation.json", step=0, negative_elbo_bits_per_dim=1.0)
    assert manifest_of(TrainedModel.of_run(run, "best")).metrics == {
        "negative_elbo_bits_per_dim": 1.0
    }
    evaluated(run, "evaluation_best.json", step=0, negative_elbo_bits_per_dim=0.5)
    assert manifest_of(TrainedModel.of_run(run, "best")).metrics == {
        "negative_elbo_bits_per_dim": 0.5
    }
    assert manifest_of(TrainedModel.of_run(run, "latest")).metrics == {
        "negative_elbo_bits_per_dim": 1.0
    }


def test_a_run_without_a_checkpoint(run):
    with pytest.raises(FileNotFoundError, match="no best checkpoint"):
        manifest_of(TrainedModel.of_run(run, "best"))


def test_a_manifest_is_read_back(tmp_path):
    written = dataclasses.replace(manifest(1.5, step=3), signatures=("a", "b"))
    write_manifest(str(tmp_path), written)
    read = read_manifest(tmp_path)
    assert set(read.software) == {"nvae_tf", "nvae_tf_sources", "tensorflow", "keras"}
    assert dataclasses.replace(read, software={}) == written


def load_and_ask(path):
    """What a server does with a version; raises if anything is missing."""
    answer = tf.saved_model.load(path).signatures[SIGNATURE](rows=tf.constant([0]))
    assert int(answer[SIGNATURE][0]) == read_manifest(path).step


def publisher(base, count, keep):
    command = [sys.executable, "-m", "tests.export.publisher", str(base), str(count), str(keep)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def end(process):
    """Kills a process, and returns its exit code."""
    process.kill()
    process.communicate()
    return process.returncode


@pytest.mark.slow
def test_a_reader_never_sees_a_broken_version(tmp_path):
    """More than 50 publishes by processes most of which are killed in the middle of one."""
    wait = random.Random(0)
    stop, failures, seen = threading.Event(), [], set()

    def read():
        while not stop.is_set():
            present = versions(tmp_path)
            for path in list(present.values())[-1:]:
                try:
                    load_and_ask(path)
                    seen.add(path)
                except Exception as error:
                    failures.append((path, repr(error)))

    reader = threading.Thread(target=read)
    reader.start()
    killed = 0
    process = publisher(tmp_path, 50, keep=10)
    for _ in range(8):
        following = publisher(tmp_path, 50, keep=10)  # the next one waits for its turn
        for _ in range(wait.randrange(8, 14)):
            process.stdout.readline()
        time.sleep(wait.uniform(0, 0.3))
        killed += end(process) < 0
        process = following
        if max(versions(tmp_path), default=0) >= 50:
            break
    killed += end(process) < 0
    unfinished = [name for name in os.listdir(tmp_path) if name.startswith(".unfinished")]
    publisher(tmp_path, 1, keep=10).communicate()
    stop.set()
    reader.join()
    assert not failures
    assert max(versions(tmp_path)) > 50
    assert killed >= 4 and len(seen) >= 10
    print(f"{killed} kills, {len(seen)} versions read, left over at the last kill: {unfinished}")
    assert all(name.isdigit() or name == ".lock" for name in os.listdir(tmp_path))
    assert len(versions(tmp_path)) == 10
    for path in versions(tmp_path).values():
        load_and_ask(path)


def test_files_and_links_are_no_versions(stand_in, tmp_path):
    (tmp_path / "1").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "3").symlink_to(tmp_path / "elsewhere")
    assert publish(MODEL, tmp_path, manifest()) == str(tmp_path / "4")
    assert publish(MODEL, tmp_path, manifest(), keep_versions=1) == str(tmp_path / "5")
    assert list(versions(tmp_path)) == [5] and (tmp_path / "3").is_symlink()


def test_a_version_that_cannot_be_removed_is_a_warning(stand_in, tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "not yours")

    publish(MODEL, tmp_path, manifest())
    (tmp_path / f"{publishing._REMOVED}9").mkdir()
    monkeypatch.setattr(publishing.os, "rmdir", refuse)
    assert publish(MODEL, tmp_path, manifest(), keep_versions=1) == str(tmp_path / "2")
    assert list(versions(tmp_path)) == [2]
    assert "Could not remove" in caplog.text and "not yours" in caplog.text


def test_weights_that_are_not_finite_are_not_published(tmp_path):
    model = NVAE(tiny_model_config())
    kernel = model.stem.kernel
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match="stem/kernel are not finite: nothing was exported"):
        publish(model, tmp_path / "base", manifest(), allow_worse=True)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("bits", [math.nan, math.inf])
def test_bits_that_are_not_finite_are_not_in_the_way(stand_in, tmp_path, bits):
    publish(MODEL, tmp_path, manifest(bits))
    assert publish(MODEL, tmp_path, manifest(5.0)) == str(tmp_path / "2")


def test_evaluations_on_other_images_do_not_compare(stand_in, tmp_path):
    publish(MODEL, tmp_path, manifest(0.5))
    fewer = manifest(0.4)
    fewer.metrics["num_images"] = 8
    with pytest.raises(WorseModelError, match="on 9 images of 'test'.*on 8 images of 'test'"):
        publish(MODEL, tmp_path, fewer)
    known = manifest(0.5)
    known.metrics["images_sha256"] = "a"
    publish(MODEL, tmp_path, known)
    other = manifest(0.4)
    other.metrics["images_sha256"] = "b"
    with pytest.raises(WorseModelError, match="on other 9 images of 'test'"):
        publish(MODEL, tmp_path, other)
    assert publish(MODEL, tmp_path, manifest(0.5)).endswith("3")  # one that does not say


def test_what_lists_the_versions_is_updated_between_the_new_and_the_old(stand_in, tmp_path):
    seen = []

    def index(base, kept):
        seen.append((list(versions(base)), list(kept)))

    for _ in range(3):
        publish(MODEL, tmp_path, manifest(), keep_versions=2, index=index)
    assert seen == [([1], [1]), ([1, 2], [1, 2]), ([1, 2, 3], [2, 3])]
    publish(MODEL, tmp_path, manifest(), index=index)
    assert seen[-1] == ([2, 3, 4], [2, 3, 4])


def test_files_for_other_servers_do_not_mix(tmp_path):
    for base, name, onnx in (
        ("a", "saved_model.pb", False),
        ("b", "decode_tensors.onnx", True),
    ):
        check_files(tmp_path / base, onnx=not onnx)  # nothing is there yet
        (tmp_path / base / "1").mkdir(parents=True)
        (tmp_path / base / "1" / name).touch()
        check_files(tmp_path / base, onnx=onnx)
        with pytest.raises(ValueError, match="choose another directory"):
            check_files(tmp_path / base, onnx=not onnx)
