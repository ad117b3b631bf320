"""The program that exports a run."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from export.manifest import read_manifest
from nvae_tf.runs.load import save_weights
from nvae_tf.runs.workdir import Workdir
from tests.conftest import tiny_experiment_config
from tests.export.exported import requests, small_model, small_signatures
from tests.trainers.programs import Program, run


def test_onnx_files_are_in_float32(tmp_path):
    program = Program(
        "export.export_model", "--preset=mnist_small", f"--export_base={tmp_path / 'nvae'}",
        "--format=onnx", "--precision=mixed_float16",
    )  # fmt: skip
    assert "leave --precision out" in program.communicate()[1]
    assert program.returncode == 1 and not os.path.exists(tmp_path / "nvae")


@pytest.mark.slow
def test_export_refusal_and_another_precision(tmp_path):
    workdir = Workdir(tmp_path / "run")
    changes = {f"model.{k}": v for k, v in dataclasses.asdict(small_model().config).items()}
    workdir.write_config(tiny_experiment_config().override(changes))
    save_weights(small_model(), workdir)
    flags = [f"--workdir={workdir.path}", f"--export_base={tmp_path / 'nvae'}"]

    def evaluated(bits):
        with open(workdir.evaluation, "w", encoding="utf-8") as file:
            json.dump({"step": 0, "negative_elbo_bits_per_dim": bits}, file)

    evaluated(1.0)
    printed = run("export.export_model", *flags)
    assert printed.startswith(f"{tmp_path / 'nvae' / '1'}: step 0, float32, ")
    assert "signatures sample, serving_default, " in printed

    evaluated(2.0)
    refused = Program("export.export_model", *flags)
    message = refused.communicate()[1].splitlines()[-1]
    assert refused.returncode == 1
    assert message.startswith("Error: ") and "1.0000" in message and "--allow_worse" in message
    assert sorted(os.listdir(tmp_path / "nvae")) == [".lock", "1"]

    run(
        "export.export_model",
        *flags,
        "--allow_worse",
        "--keep_versions=1",
        "--precision=mixed_float16",
    )
    assert sorted(os.listdir(tmp_path / "nvae")) == [".lock", "2"]
    version = str(tmp_path / "nvae" / "2")
    assert read_manifest(version).precision == "mixed_float16"
    loaded = tf.saved_model.load(version)
    images = loaded.signatures["reconstruct"](**requests(3)["reconstruct"])["image"]
    expected = small_signatures()["reconstruct"](**requests(3)["reconstruct"])["image"]
    mixed = Program("export.export_model", *flags, "--format=triton")
    assert "choose another directory" in mixed.communicate()[1]
    pytest.importorskip("tf2onnx", reason="needs the extra onnx")
    triton = [flags[0], f"--export_base={tmp_path / 'triton' / 'nvae'}", "--format=triton"]
    run("export.export_model", *triton)
    link = tmp_path / "triton" / "nvae" / "triton" / "nvae_sample_tensors" / "1"
    assert (link / "sample_tensors.onnx").is_file()
    difference = np.abs(images.numpy().astype(int) - expected.numpy())
    assert difference.max() > 0 and difference.mean() < 3
