"""A TFX pipeline on this machine, from files of tf.Example to a pushed version.

`python examples/tfx_pipeline.py --root=/tmp/pipeline --preset=quickstart --train_steps=40`

ImportExampleGen, Trainer, a gate on the validation's bits per dimension, Pusher. Without
`--examples` the embedded Fashion-MNIST images are written as tf.Examples first. Every start is a
run of the same pipeline: its model is pushed if it is no worse than the last one that was. With
`--compile=pipeline.yaml` nothing runs: the file describes the same pipeline to Kubeflow Pipelines.
See docs/tfx.md.
"""

from __future__ import annotations

import importlib.util
import json
import os

os.environ["TF_USE_LEGACY_KERAS"] = "0"  # see trainers/tfx/training.py

import tensorflow as tf
import yaml
from absl import app, flags
from tfx import v1 as tfx

from nvae_tf import presets
from nvae_tf.command_line import usage_errors, use_devices
from nvae_tf.data import load_images
from nvae_tf.files import check_output, new_directory, write_atomically
from trainers.tfx.evaluator import BitsPerDimensionEvaluator

_ROOT = flags.DEFINE_string(
    "root",
    None,
    "Directory of all that the pipeline makes; versions go to ROOT/serving.",
    required=True,
)
_EXAMPLES = flags.DEFINE_string(
    "examples", None, "Directory of TFRecord files train* and eval*; default: made in ROOT."
)
_PRESET = flags.DEFINE_string("preset", "quickstart", f"One of {', '.join(presets.names())}.")
_OVERRIDE = flags.DEFINE_multi_string(
    "override", [], "A field's value in JSON, such as model.num_nf=1; may be repeated."
)
_TRAIN_STEPS = flags.DEFINE_integer(
    "train_steps", 0, "Steps of training; 0: as many as the preset says.", lower_bound=0
)
_EVAL_STEPS = flags.DEFINE_integer("eval_steps", 0, "Batches; 0: all images.", lower_bound=0)
_COMPILE = flags.DEFINE_string(
    "compile", None, "File to write for Kubeflow Pipelines, x.yaml, instead of a run here."
)
_IMAGE = flags.DEFINE_string("image", None, "compile: container image of all steps.")
_WARM_START = flags.DEFINE_bool("warm_start", False, "Start from the last blessed model's weights.")

_NAME = "nvae"


def write_embedded_images(directory: str) -> None:
    """Fashion-MNIST as tf.Examples with a PNG in `image`: train.tfrecord and eval.tfrecord."""
    config = presets.get("quickstart")
    with new_directory(directory) as temporary:
        for name, split in (("train", config.data.train_split), ("eval", config.data.test_split)):
            path = os.path.join(temporary, f"{name}.tfrecord")
            with tf.io.TFRecordWriter(path) as writer:
                for image in load_images(config.data, config.model, split):
                    example = tf.train.Example()
                    png = tf.io.encode_png(image).numpy()
                    example.features.feature["image"].bytes_list.value.append(png)
                    writer.write(example.SerializeToString())


def parse_override(text: str) -> tuple[str, object]:
    """Field and value of FIELD=VALUE."""
    field, _, value = text.partition("=")
    try:
        return field, json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"--override must be FIELD=VALUE with the value in JSON, received {text!r}."
        ) from error


def compile_pipeline(pipeline: tfx.dsl.Pipeline, path: str, image: str) -> None:
    """Writes a pipeline's specification for Kubeflow Pipelines, version 2, whole or not at all."""
    from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner  # it needs the package kfp

    config = kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(
        default_image=image,
        use_pipeline_spec_2_1=True,  # the version that KFP's own SDK reads
    )
    job = kubeflow_v2_dag_runner.KubeflowV2DagRunner(config).run(pipeline, write_out=False)
    root = pipeline.pipeline_info.pipeline_root
    write_atomically(path, yaml.safe_dump(job["pipelineSpec"] | {"defaultPipelineRoot": root}))


def check_compile(path: str | None, image: str | None, examples: str | None) -> None:
    """Raises a ValueError if a flag is missing or useless for what `--compile` asks."""
    if path is None:
        if image is not None:
            raise ValueError("--image is only for --compile.")
        return
    if not path.endswith(".yaml"):
        raise ValueError(f"--compile must be a file x.yaml, received {path!r}.")
    check_output(path)
    if not image or not examples:
        raise ValueError("--compile needs --image and --examples, which the steps can read.")
    if importlib.util.find_spec("kfp") is None:
        raise ValueError("--compile needs the package kfp, which TFX has for Python 3.10 and 3.11.")


def make_pipeline(root: str, examples: str, overrides: dict[str, object]) -> tfx.dsl.Pipeline:
    """The pipeline that the flags ask for; its metadata are in `root`/metadata.sqlite."""
    splits = [tfx.proto.Input.Split(name=name, pattern=f"{name}*") for name in ("train", "eval")]
    example_gen = tfx.components.ImportExampleGen(
        input_base=examples, input_config=tfx.proto.Input(splits=splits)
    )
    last_blessed = tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.LatestBlessedModelStrategy,
        model=tfx.dsl.Channel(type=tfx.types.standard_artifacts.Model),
        model_blessing=tfx.dsl.Channel(type=tfx.types.standard_artifacts.ModelBlessing),
    ).with_id("last_blessed")
    trainer = tfx.components.Trainer(
        run_fn="trainers.tfx_module.run_fn",
        examples=example_gen.outputs["examples"],
        base_model=last_blessed.outputs["model"] if _WARM_START.value else None,
        train_args=tfx.proto.TrainArgs(num_steps=_TRAIN_STEPS.value),
        eval_args=tfx.proto.EvalArgs(num_steps=_EVAL_STEPS.value),
        custom_config={"preset": _PRESET.value, "overrides": overrides},
    )
    evaluator = BitsPerDimensionEvaluator(
        model=trainer.outputs["model"],
        model_run=trainer.outputs["model_run"],
        baseline=last_blessed.outputs["model"],
    )
    destination = tfx.proto.PushDestination.Filesystem(
        base_directory=os.path.join(root, "serving", _NAME)
    )
    pusher = tfx.components.Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(filesystem=destination),
    )
    return tfx.dsl.Pipeline(
        pipeline_name=_NAME,
        pipeline_root=os.path.join(root, "artifacts"),
        components=[example_gen, last_blessed, trainer, evaluator, pusher],
        enable_cache=True,
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            os.path.join(root, "metadata.sqlite")
        ),
    )


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        overrides = dict(map(parse_override, _OVERRIDE.value))
        presets.get(_PRESET.value).override(overrides)  # raises an error before the work
        check_compile(_COMPILE.value, _IMAGE.value, _EXAMPLES.value)
        if _COMPILE.value:
            pipeline = make_pipeline(_ROOT.value, _EXAMPLES.value, overrides)
            compile_pipeline(pipeline, _COMPILE.value, _IMAGE.value)
            print(f"Not run, but written: {_COMPILE.value}")
            return
        root = os.path.abspath(_ROOT.value)
        examples = os.path.abspath(_EXAMPLES.value or os.path.join(root, "examples"))
        use_devices(training=True)
        if not _EXAMPLES.value and not os.path.exists(examples):
            os.makedirs(root, exist_ok=True)
            write_embedded_images(examples)
        pipeline = make_pipeline(root, examples, overrides)
    tfx.orchestration.LocalDagRunner().run(pipeline)


if __name__ == "__main__":
    app.run(main)
