"""Measures the latency of samples in several runtimes: `python -m benchmarks.runtimes`.

All compute `sample_tensors` of the same noise but the C API, which draws its own and writes PNG:
the served `sample`. Runtimes that are not on this machine are named below the table. Each is
measured in a process of its own, with its defaults, but with as many threads as there are cores.
"""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks.browser_runtime import time_in_browser
from benchmarks.workloads import in_fresh_process, print_table
from export.manifest import manifest_of
from export.onnx_files import write_onnx
from export.saved_model import write_saved_model
from export.seed_noise import noise_inputs
from nvae_tf.command_line import use_devices
from nvae_tf.runs.load import TrainedModel

_PRESET = flags.DEFINE_string("preset", "fashion_mnist", "Trained model that is exported.")
_REPEATS = flags.DEFINE_integer("repeats", 50, "Calls whose median counts.", lower_bound=1)

_ROWS = (1, 16)
_TEMPERATURE = 0.8
_SIGNATURE = "sample_tensors"
_ROOT = pathlib.Path(__file__).parents[1]
_MODULES = _ROOT / "node_modules"  # of npm install --prefix=.


class Result(NamedTuple):
    """The version of a runtime, and the milliseconds of the median call and of the fastest one."""

    version: str
    median: float
    fastest: float

    @classmethod
    def of(cls, version: str, milliseconds: Sequence[float]) -> Result:
        """Makes a result of the times of all calls."""
        return cls(version, statistics.median(milliseconds), min(milliseconds))


class Runtime(NamedTuple):
    """A runtime, as a function of the export's directory, its inputs, and a number of calls."""

    measure: Callable[[pathlib.Path, dict[str, np.ndarray], int], Result]
    modules: tuple[str, ...] = ()  # of Python
    programs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # of npm

    def missing(self) -> list[str]:
        """What of these is not on this machine."""
        return [
            *(name for name in self.modules if importlib.util.find_spec(name) is None),
            *(name for name in self.programs if shutil.which(name) is None),
            *(f"{name} (npm)" for name in self.packages if not (_MODULES / name).is_dir()),
        ]


def in_tensorflow(export: pathlib.Path, inputs: dict[str, np.ndarray], repeats: int) -> Result:
    """Measures the signature of the SavedModel, called from Python."""
    loaded = tf.saved_model.load(str(export / "saved_model"))
    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    sample = loaded.signatures[_SIGNATURE]

    def call() -> np.ndarray:
        return sample(**tensors)["image"].numpy()

    return Result.of(tf.__version__, _times(call, repeats))


def in_c(export: pathlib.Path, inputs: dict[str, np.ndarray], repeats: int) -> Result:
    """Measures the signature `sample` of the SavedModel, called by `examples/c/sample.c`."""
    library = tf.sysconfig.get_lib()
    with tempfile.TemporaryDirectory() as directory:
        program = os.path.join(directory, "sample")
        command = ["gcc", "-std=c11", "-O2", f"-I{tf.sysconfig.get_include()}", "-o", program]
        command += [str(_ROOT / "examples/c/sample.c"), f"-Wl,-rpath,{library}"]
        command += [f"{library}/libtensorflow_{name}.so.2" for name in ("cc", "framework")]
        subprocess.run(command, check=True)
        rows = len(inputs["temperature"])
        arguments = [export / "saved_model", 0, rows, _TEMPERATURE, directory, repeats]
        text = _output_of([program, *map(str, arguments)])
    times = re.search(r"median (\S+) ms, fastest (\S+) ms\n$", text)
    assert times, text
    return Result(tf.__version__, float(times[1]), float(times[2]))


def in_onnx_runtime(export: pathlib.Path, inputs: dict[str, np.ndarray], repeats: int) -> Result:
    """Measures the ONNX file in ONNX Runtime, called from Python."""
    import onnxruntime

    session = onnxruntime.InferenceSession(_onnx(export), providers=["CPUExecutionProvider"])
    times = _times(lambda: session.run(None, inputs), repeats)
    return Result.of(onnxruntime.__version__, times)


def in_node(export: pathlib.Path, inputs: dict[str, np.ndarray], repeats: int) -> Result:
    """Measures the ONNX file in ONNX Runtime, called from JavaScript in Node."""
    command = ["node", "benchmarks/onnxruntime_node.mjs", str(_onnx(export)), str(repeats)]
    answer = json.loads(_output_of(command, json.dumps(_as_json(inputs))))
    return Result.of(answer["version"], answer["milliseconds"])


def in_browser(export: pathlib.Path, inputs: dict[str, np.ndarray], repeats: int) -> Result:
    """Measures the ONNX file in ONNX Runtime Web (WebAssembly), in Chromium."""
    runtime = _MODULES / "onnxruntime-web/dist"
    answer = time_in_browser(_onnx(export), runtime, _as_json(inputs), repeats)
    browser = _output_of(["chromium", "--version"]).split()[1]
    version = f"{answer['version']}, Chromium {browser.partition('.')[0]}"
    return Result.of(version, answer["milliseconds"])


def in_openvino(export: pathlib.Path, inputs: dict[str, np.ndarray], repeats: int) -> Result:
    """Measures the ONNX file in OpenVINO, called from Python."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16, where the processor has it
    compiled = openvino.Core().compile_model(_onnx(export), "CPU", options)
    version = importlib.metadata.version("openvino")
    return Result.of(version, _times(lambda: compiled(inputs)["image"], repeats))


def in_litert(export: pathlib.Path, inputs: dict[str, np.ndarray], repeats: int) -> Result:
    """Measures the signature in LiteRT, called from Python, after TensorFlow has converted it."""
    from ai_edge_litert.interpreter import Interpreter

    path = export / "sample_tensors.tflite"
    model = Interpreter(str(path), num_threads=os.cpu_count())
    sample = model.get_signature_runner(_SIGNATURE)
    version = importlib.metadata.version("ai-edge-litert")
    return Result.of(version, _times(lambda: sample(**inputs)["image"], repeats))


RUNTIMES = {
    "TensorFlow": Runtime(in_tensorflow),
    "TensorFlow's C API, `sample`": Runtime(in_c, programs=("gcc",)),
    "ONNX Runtime": Runtime(in_onnx_runtime, modules=("onnxruntime",)),
    "ONNX Runtime in Node": Runtime(in_node, programs=("node",), packages=("onnxruntime-node",)),
    "ONNX Runtime in a browser": Runtime(
        in_browser, programs=("chromium",), packages=("onnxruntime-web",)
    ),
    "OpenVINO": Runtime(in_openvino, modules=("openvino",)),
    "LiteRT": Runtime(in_litert, modules=("ai_edge_litert",)),
}


def _times(call: Callable[[], Any], repeats: int) -> list[float]:
    """Returns the milliseconds of calls; the two before them are not counted."""
    milliseconds = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        call()
        if i >= 2:
            milliseconds.append(1000 * (time.perf_counter() - start))
    return milliseconds


def _onnx(export: pathlib.Path) -> pathlib.Path:
    return export / "onnx" / f"{_SIGNATURE}.onnx"


def _as_json(inputs: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": value.shape, "data": base64.b64encode(value.tobytes()).decode()}
        for name, value in inputs.items()
    }


def _output_of(command: list[str], text: str = "") -> str:
    """Returns what a program prints.

    Raises:
      RuntimeError: It failed.
    """
    ended = subprocess.run(
        command, cwd=_ROOT, input=text, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{command[0]} failed: {ended.stderr}")
    return ended.stdout


def _write(preset: str, directory: pathlib.Path, litert: bool) -> list[tuple[int, ...]]:
    """Exports a model in all formats, and returns the shapes of its latent groups."""
    use_devices()
    trained = TrainedModel.of_preset(preset)
    model = trained.load()
    write_saved_model(model, directory / "saved_model", manifest_of(trained))
    write_onnx(model, directory / "onnx", manifest_of(trained))
    if litert:
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(directory / "saved_model"), signature_keys=[_SIGNATURE]
        )
        (directory / "sample_tensors.tflite").write_bytes(converter.convert())
    return list(model.config.latent_shapes)


def _inputs(shapes: list[tuple[int, ...]], rows: int) -> dict[str, np.ndarray]:
    return noise_inputs(range(rows), shapes) | {
        "temperature": np.full([rows], _TEMPERATURE, np.float32)
    }


def _measure(
    name: str, export: pathlib.Path, shapes: list[tuple[int, ...]], repeats: int
) -> list[Result]:
    """Returns a runtime's results for each number of images."""
    measure = RUNTIMES[name].measure
    return [measure(export, _inputs(shapes, rows), repeats) for rows in _ROWS]


def main(argv: list[str]) -> None:
    del argv
    missing = {name: runtime.missing() for name, runtime in RUNTIMES.items()}
    with tempfile.TemporaryDirectory() as directory:
        export = pathlib.Path(directory)
        shapes = in_fresh_process(_write, _PRESET.value, export, not missing["LiteRT"])
        table = []
        for name in RUNTIMES:
            if missing[name]:
                continue
            results = in_fresh_process(_measure, name, export, shapes, _REPEATS.value)
            times = [f"{time:.1f} ms" for result in results for time in result[1:]]
            table.append([name, results[0].version, *times])
    images = [f"{rows} image{'s' if rows > 1 else ''}" for rows in _ROWS]
    header = [text for rows in images for text in (rows, "fastest")]
    print_table(["runtime", "version", *header], table)
    for name, lacking in missing.items():
        if lacking:
            print(f"{name} was not measured: there is no {' and no '.join(lacking)}.")


if __name__ == "__main__":
    app.run(main)
