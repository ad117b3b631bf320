"""The example pipeline with TFX itself; it needs an environment of its own (docs/tfx.md)."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf
import yaml

from nvae_tf.data import load_images
from nvae_tf.runs.workdir import Workdir
from tests.conftest import small_experiment_config
from tests.trainers.tfx import stand_ins as tfx_stand_ins
from tests.trainers.tfx.kfp_launcher import run_steps
from trainers.tfx.examples import RecordBatchesOptions
from trainers.tfx_module import FnArgs, run_beside

tfx = pytest.importorskip("tfx.v1")
pytestmark = pytest.mark.slow

PROGRAM = pathlib.Path(__file__).parents[3] / "examples" / "tfx_pipeline.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1])}


class Pipeline:
    """The example's pipeline in a directory, on small images."""

    def __init__(self, root):
        self.root = root
        self.examples = root / "images"
        self.examples.mkdir()
        config = small_experiment_config()
        for name, split, count in (("train", "train", 64), ("eval", "test", 16)):
            images = load_images(config.data, config.model, split)[:count]
            with tf.io.TFRecordWriter(f"{self.examples}/{name}-1") as writer:
                for image in images:
                    example = tf.train.Example()
                    png = tf.io.encode_png(image).numpy()
                    example.features.feature["image"].bytes_list.value.append(png)
                    writer.write(example.SerializeToString())
        self.overrides = [
            f"--override={name}={json.dumps(value)}"
            for name, value in config.flat().items()
            if name.startswith("model.") or name == "train.global_batch_size"
        ]

    def run(self, *flags):
        """Runs it; returns what it wrote."""
        result = self.start(*flags)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout + result.stderr

    def start(self, *flags):
        """Runs it; returns the process that has ended."""
        return subprocess.run(
            [
                sys.executable,
                str(PROGRAM),
                f"--root={self.root}",
                f"--examples={self.examples}",
                *self.overrides,
                *flags,
            ],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )

    def pushed(self):
        return sorted((self.root / "serving" / "nvae").glob("*"))

    def verdicts(self):
        files = (self.root / "artifacts").glob("BitsPerDimensionEvaluator/blessing/*/verdict.json")
        return [json.loads(f.read_text()) for f in sorted(files, key=lambda f: int(f.parent.name))]

    def newest(self, artifact):
        """The newest directory of a Trainer's artifact."""
        places = (self.root / "artifacts" / "Trainer" / artifact).iterdir()
        return max(places, key=lambda place: int(place.name))


def test_a_worse_model_is_not_pushed_and_a_warm_start_goes_on(tmp_path):
    pipeline = Pipeline(tmp_path)
    pipeline.run("--train_steps=60", "--eval_steps=3")
    (first,) = pipeline.pushed()
    answers(first)
    (verdict,) = pipeline.verdicts()
    assert verdict["blessed"] and verdict["baseline_bits_per_dim"] is None
    assert verdict["num_images"] == 3 * small_experiment_config().train.global_batch_size

    pipeline.run("--train_steps=1", "--eval_steps=3")
    assert pipeline.pushed() == [first]
    worse = pipeline.verdicts()[1]
    assert not worse["blessed"]
    assert worse["bits_per_dim"] > worse["baseline_bits_per_dim"] == verdict["bits_per_dim"]

    # It starts from the first model, not from the one that was refused.
    pipeline.run("--train_steps=1", "--eval_steps=3", "--warm_start")
    warm = pipeline.verdicts()[2]
    assert warm["baseline_bits_per_dim"] == verdict["bits_per_dim"]
    assert warm["bits_per_dim"] < worse["bits_per_dim"]
    assert len(pipeline.pushed()) == 1 + warm["blessed"]

    assert Workdir(pipeline.newest("model_run")).read_config().train.steps == 1
    assert Workdir(run_beside(pipeline.newest("model") / "Format-Serving")).has_config


def answers(version):
    """Asks a pushed version as TFX's validators do, and as clients do."""
    signatures = tf.saved_model.load(str(version)).signatures
    example = tf.train.Example()
    example.features.feature["seed"].int64_list.value.append(3)
    default = signatures["serving_default"](tf.constant([example.SerializeToString()]))
    sample = signatures["sample"](seed=tf.constant([3], tf.int64), temperature=tf.constant([1.0]))
    assert default["image"].shape == (1, 8, 8, 1)
    tf.debugging.assert_equal(default["image"], sample["image"])


@pytest.fixture
def compiled(tmp_path):
    """A pipeline, and the file that describes it to Kubeflow Pipelines."""
    pytest.importorskip("kfp", reason="TFX has it for Python 3.10 and 3.11")
    pipeline = Pipeline(tmp_path)
    file = tmp_path / "pipeline.yaml"
    flags = ("--train_steps=2", "--eval_steps=1", "--image=registry.example/nvae:1")
    pipeline.run(f"--compile={file}", *flags)
    return pipeline, file


def test_kubeflow_pipelines_reads_the_compiled_pipeline(compiled, tmp_path):
    from kfp import compiler, components

    pipeline, file = compiled
    loaded = components.load_component_from_file(str(file))
    assert loaded.pipeline_spec.default_pipeline_root == f"{tmp_path}/artifacts"
    tasks = loaded.pipeline_spec.root.dag.tasks
    assert {"ImportExampleGen", "Trainer", "BitsPerDimensionEvaluator", "Pusher"} < set(tasks)
    assert tasks["Pusher"].dependent_tasks == ["BitsPerDimensionEvaluator", "Trainer"]
    compiler.Compiler().compile(loaded, str(tmp_path / "again.yaml"))
    again = yaml.safe_load((tmp_path / "again.yaml").read_text())
    spec = yaml.safe_load(file.read_text())
    assert again["deploymentSpec"] == spec["deploymentSpec"]
    assert not list(tmp_path.glob("artifacts")) and not pipeline.pushed()  # nothing has run
    spec["root"]["dag"]["tasks"]["Pusher"]["dependentTask"] = []
    file.write_text(yaml.safe_dump(spec))
    with pytest.raises(Exception, match="dependentTask"):  # a check that can fail
        components.load_component_from_file(str(file))


def test_the_compiled_steps_run(compiled, tmp_path):
    pipeline, file = compiled
    spec = yaml.safe_load(file.read_text())
    made = run_steps(spec, tmp_path / "artifacts", ENVIRONMENT)
    (version,) = pipeline.pushed()
    answers(version)
    blessing = made["BitsPerDimensionEvaluator.blessing"]["metadata"]
    # By these two, Vertex AI's resolver finds the model in the next run.
    assert blessing["blessed"] == 1
    assert blessing["current_model_id"] == "Trainer.model"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--compile=x.json", "--image=i"], "--compile must be a file x.yaml"),
        (["--compile=x.yaml"], "--compile needs --image and --examples"),
        (["--image=i"], "--image is only for --compile"),
    ],
)
def test_what_cannot_be_compiled_is_said(tmp_path, flags, message):
    result = Pipeline(tmp_path).start(*flags)
    assert result.returncode and message in result.stderr


@pytest.mark.parametrize("module", ["trainers.tfx_module", "trainers.tfx.evaluator"])
def test_tfx_may_be_imported_first(module):
    """It turns Keras 2 on, which ours must not get."""
    code = f"from tfx import v1; import {module}, nvae_tf; nvae_tf.NVAE"
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "TF_USE_LEGACY_KERAS"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_our_stand_ins_have_the_names_of_tfx(tmp_path):
    tfxio = pytest.importorskip("tfx_bsl.public.tfxio")
    assert RecordBatchesOptions._fields == tfxio.RecordBatchesOptions._fields
    theirs = set(vars(tfx.components.FnArgs()))
    assert set(vars(tfx_stand_ins.FnArgs(tmp_path, tmp_path))) == theirs
    assert set(FnArgs.__annotations__) <= theirs
    for name in tfx.components.DataAccessor._fields:
        assert hasattr(tfx_stand_ins.DataAccessor, name)
