"""The SavedModel, read by processes that know nothing of this package or of Keras."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from export.manifest import manifest_of, read_manifest
from export.portable_names import PORTABLE_NAMES
from export.publish import publish
from nvae_tf.runs.load import TrainedModel, save_weights
from nvae_tf.runs.workdir import Workdir
from tests.conftest import tiny_experiment_config
from tests.export.exported import (
    SIGNATURES,
    requests,
    small_model,
    small_signatures,
    small_version,
)

# Operations with a state: variables and their files, and the data set that decodes a picture.
STATEFUL = {
    "Assert",
    "DatasetToSingleElement",
    "TensorDataset",
    "AssignVariableOp",
    "DisableCopyOnRead",
    "MergeV2Checkpoints",
    "ReadVariableOp",
    "RestoreV2",
    "SaveV2",
    "VarHandleOp",
}


def graph(version):
    saved = saved_model_pb2.SavedModel()
    with open(os.path.join(version, "saved_model.pb"), "rb") as file:
        saved.ParseFromString(file.read())
    (meta_graph,) = saved.meta_graphs
    return meta_graph


def nodes(meta_graph):
    yield from meta_graph.graph_def.node
    for function in meta_graph.graph_def.library.function:
        yield from function.node_def


def test_names_types_and_open_batches():
    strings, seeds = (tf.string, [None]), (tf.int64, [None])
    temperatures, images = (tf.float32, [None]), (tf.uint8, [None, 12, 12, 3])
    latents = {
        f"z_{group:02}": (tf.float32, [None, *shape])
        for group, shape in enumerate(small_model().config.latent_shapes)
    }
    pictures = {"image": images, "image_bytes": strings}
    kl, error = {"kl": (tf.float32, [None, 2])}, {"error": strings}
    expected = {
        "sample": ({"seed": seeds, "temperature": temperatures}, pictures),
        "serving_default": ({"examples": strings}, pictures | error),
        "decode": (latents, pictures),
        "reconstruct": ({"image_bytes": strings}, pictures | error),
        "encode": ({"image_bytes": strings}, latents | kl | error),
        "vary": (
            {
                "image_bytes": strings,
                "keep_groups": (tf.int32, [None]),
                "seed": seeds,
                "temperature": temperatures,
            },
            pictures | error,
        ),
        "log_likelihood": (
            {"image_bytes": strings, "seed": seeds},
            {"elbo": temperatures, "bits_per_dim": temperatures} | kl | error,
        ),
        "novelty": ({"image_bytes": strings, "seed": seeds}, {"llr": kl["kl"]} | error),
    }
    found = {
        name: tuple(
            {
                key: (tf.dtypes.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape).as_list())
                for key, info in side.items()
            }
            for side in (signature.inputs, signature.outputs)
        )
        for name, signature in graph(small_version()).signature_def.items()
        if not name.startswith("__")
    }
    floats = (tf.float32, [None, 12, 12, 3])
    noise = {name.replace("z", "noise"): shape for name, shape in latents.items()}
    expected |= {
        "decode_tensors": (latents, {"image": floats}),
        "sample_tensors": (noise | {"temperature": temperatures}, {"image": floats}),
        "infer_tensors": (
            {"image": floats} | noise,
            {"elbo": temperatures, "bits_per_dim": temperatures} | kl | latents,
        ),
    }
    assert found == expected


def test_operations_that_every_server_has_and_none_with_a_state_of_its_own():
    meta_graph = graph(small_version())
    functions = {function.signature.name for function in meta_graph.graph_def.library.function}
    operations = {node.op for node in nodes(meta_graph)} - functions
    assert "Conv2D" in operations and not any("PyFunc" in name for name in operations)
    definitions = {name: op_def_registry.get(name) for name in operations}
    assert not [name for name, definition in definitions.items() if definition is None]
    stateful = {name for name, definition in definitions.items() if definition.is_stateful}
    # Calls count as stateful if anything that they call may be: it is in the list itself.
    assert stateful - {"StatefulPartitionedCall", "While", "If"} <= STATEFUL


def test_the_manifest_says_what_it_is():
    manifest = read_manifest(small_version())
    assert (manifest.step, manifest.precision) == (7, "float32")
    assert manifest.signatures == (*SIGNATURES, *PORTABLE_NAMES)
    assert manifest.config["model"]["image_shape"] == [16, 16, 3]
    assert manifest.software["tensorflow"] == tf.__version__


def test_a_process_with_tensorflow_alone_gets_the_same_answers(tmp_path):
    inputs = {
        name: {key: value.numpy() for key, value in request.items()}
        for name, request in requests(3).items()
    }
    (tmp_path / "inputs").write_bytes(pickle.dumps(inputs))
    code = f"""
import pickle, sys
for name in ("nvae_tf", "export", "keras", "tf_keras", "tensorflow_probability"):
    sys.modules[name] = None  # importing it is an error from here on
import tensorflow as tf
tf.config.optimizer.set_experimental_options({{"disable_meta_optimizer": True}})  # to save time
loaded = tf.saved_model.load({small_version()!r})
answers = {{}}
for name, inputs in pickle.load(open("inputs", "rb")).items():
    inputs = {{key: tf.constant(value) for key, value in inputs.items()}}
    answer = loaded.signatures[name](**inputs)
    answers[name] = {{key: value.numpy() for key, value in answer.items()}}
pickle.dump(answers, open("answers", "wb"))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    answers = pickle.loads((tmp_path / "answers").read_bytes())
    assert set(answers) == set(SIGNATURES)
    for name, answer in answers.items():
        expected = small_signatures()[name](**requests(3)[name])
        for key in set(answer) - {"image_bytes", "error"}:
            np.testing.assert_allclose(
                answer[key].astype(float),
                expected[key].numpy().astype(float),
                rtol=1e-4,
                atol=1 if key == "image" else 1e-3,
            )


@pytest.mark.slow
def test_two_exports_of_a_checkpoint_give_identical_answers(tmp_path):
    config = tiny_experiment_config().override({"train.precision": "mixed_float16"})
    config = config.override({f"model.{k}": v for k, v in small_model().config.__dict__.items()})
    workdir = Workdir(tmp_path / "run")
    workdir.write_config(config)
    save_weights(small_model(), workdir)
    answers = []
    for _ in range(2):
        trained = TrainedModel.of_run(workdir)
        version = publish(trained.load(), tmp_path / "nvae", manifest_of(trained))
        assert sorted(os.listdir(version)) == sorted(os.listdir(small_version()))
        assert not any(
            type_.type in (tf.half.as_datatype_enum, tf.bfloat16.as_datatype_enum)
            for node in nodes(graph(version))
            for type_ in node.attr.values()
        )
        loaded = tf.saved_model.load(version)
        answers.append({s: loaded.signatures[s](**requests(3)[s]) for s in SIGNATURES})
    for name in SIGNATURES:
        for key, value in answers[0][name].items():
            np.testing.assert_array_equal(value, answers[1][name][key])
            if key == "image":  # before and after the weights went through a checkpoint
                own = small_signatures()[name](**requests(3)[name])[key]
                assert np.abs(own.numpy().astype(int) - value.numpy()).max() <= 1


@pytest.mark.slow
def test_saved_model_cli(tmp_path):
    """All in one process: importing TensorFlow takes longer than a run."""
    lines = [["show", "--all", f"--dir={small_version()}"]]
    for name, inputs in requests(2).items():
        files = []
        for key, value in inputs.items():
            path = tmp_path / f"{name}-{key}.npy"
            np.save(path, value.numpy())
            files.append(f"{key}={path}")
        outputs = tmp_path / f"outputs-{name}"
        lines.append(
            [
                "run",
                f"--dir={small_version()}",
                "--tag_set=serve",
                f"--signature_def={name}",
                f"--inputs={';'.join(files)}",
                f"--outdir={outputs}",
            ]
        )
    code = f"""
import sys
from tensorflow.python.tools import saved_model_cli
for line in {lines!r}:
    sys.argv = ["saved_model_cli", *line]
    try:
        saved_model_cli.main()
    except SystemExit as end:
        assert not end.code, end.code
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False
    )
    assert result.returncode == 0, result.stderr
    for name, inputs in requests(2).items():
        assert f"signature_def['{name}']" in result.stdout
        for key, expected in small_signatures()[name](**inputs).items():
            array = np.load(tmp_path / f"outputs-{name}" / f"{key}.npy", allow_pickle=True)
            assert array.shape == expected.shape
            if key == "image":
                assert np.abs(array.astype(int) - expected.numpy()).max() <= 1
