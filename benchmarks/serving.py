"""Measures time and size of an export, and latencies: `python -m benchmarks.serving`.

Requests go to the SavedModel loader that TensorFlow Serving uses, without network or batching.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import tempfile
import time
from typing import NamedTuple

import tensorflow as tf
from absl import app, flags
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from benchmarks.workloads import in_fresh_process, print_table
from export.manifest import Manifest
from export.publish import publish
from nvae_tf import NVAE, presets
from nvae_tf.command_line import use_devices

_PRESETS = flags.DEFINE_list("presets", ["quickstart"], "Presets whose models are exported.")
_REPEATS = flags.DEFINE_integer("repeats", 20, "Requests whose median counts.", lower_bound=1)
_ROWS = 16  # rows of a request, as in the larger warm-up requests


class Export(NamedTuple):
    """An exported model, with the time and the sizes of its export."""

    version: str  # directory
    seconds: float
    graph: int  # bytes
    variables: int  # bytes


class Latency(NamedTuple):
    """The seconds of the first request for `_ROWS` images, and of the median one."""

    first: float
    median: float


def measure_export(preset: str, base: str) -> Export:
    """Exports a preset's model and times the export, without the time to build the model."""
    use_devices()
    config = presets.get(preset)
    model = NVAE(config.model)  # untrained, which makes no difference to the time
    start = time.perf_counter()
    version = publish(model, base, Manifest.of(config, 0))
    seconds = time.perf_counter() - start
    graph = os.path.getsize(os.path.join(version, "saved_model.pb"))
    files = pathlib.Path(version, "variables").iterdir()
    return Export(version, seconds, graph, sum(file.stat().st_size for file in files))


def measure_requests(version: str, warm_up: bool, repeats: int) -> dict[str, Latency]:
    """Loads a SavedModel and times requests to each of its signatures.

    Args:
      version: Directory of the SavedModel.
      warm_up: Whether the warm-up requests are sent first.
      repeats: Number of requests of which the median is returned.
    """
    path = os.path.join(version, "assets.extra", "tf_serving_warmup_requests")
    requests = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        for record in tf.data.TFRecordDataset(path)
    ]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loader = tf.compat.v1.saved_model.loader
        signatures = loader.load(session, ["serve"], version).signature_def

        def ask(request: predict_pb2.PredictRequest) -> float:
            signature = signatures[request.model_spec.signature_name]
            feed = {
                signature.inputs[name].name: tf.make_ndarray(tensor)
                for name, tensor in request.inputs.items()
            }
            start = time.perf_counter()
            session.run([output.name for output in signature.outputs.values()], feed)
            return time.perf_counter() - start

        for request in requests if warm_up else ():
            ask(request)
        large = {
            request.model_spec.signature_name: request
            for request in requests
            if next(iter(request.inputs.values())).tensor_shape.dim[0].size == _ROWS
        }
        firsts = {name: ask(request) for name, request in large.items()}
        return {
            name: Latency(firsts[name], statistics.median(ask(request) for _ in range(repeats)))
            for name, request in large.items()
        }


def main(argv: list[str]) -> None:
    del argv
    exports, requests = [], []
    for preset in _PRESETS.value:
        with tempfile.TemporaryDirectory() as base:
            export = in_fresh_process(measure_export, preset, base)
            cold, warm = (
                in_fresh_process(measure_requests, export.version, warm_up, _REPEATS.value)
                for warm_up in (False, True)
            )
        exports.append(
            (
                preset,
                f"{export.seconds:.1f} s",
                f"{export.graph / 1e6:.1f} MB",
                f"{export.variables / 1e6:.1f} MB",
            )
        )
        requests += [
            (
                preset,
                name,
                f"{1000 * latency.median:.0f} ms",
                f"{1000 * cold[name].first:.0f} ms",
                f"{1000 * latency.first:.0f} ms",
                f"{latency.first / latency.median:.2f}",
            )
            for name, latency in warm.items()
        ]
    print_table(("preset", "export", "graph", "variables"), exports)
    print(f"\nRequests for {_ROWS} images:\n")
    print_table(
        ("preset", "signature", "median", "first, cold", "first, warmed up", "times the median"),
        requests,
    )


if __name__ == "__main__":
    app.run(main)
