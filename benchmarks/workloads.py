"""The workloads of the benchmarks, and functions that measure each in a process of its own."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.calibrate import calibrate
from nvae_tf import ExperimentConfig, ModelConfig, presets


def configurations() -> dict[str, ExperimentConfig]:
    """Returns the three workloads by name: the paper's MNIST preset, and two small models.

    That of `mnist_4_2` is what the preset `mnist_small` had first, with 4+2 groups.
    """
    mnist = presets.get("mnist")
    model = dataclasses.replace(presets.get("mnist_small").model, num_groups_per_scale=4)
    mnist_4_2 = dataclasses.replace(mnist, model=model)
    cifar10_small = ModelConfig(
        num_groups_per_scale=8,
        num_channels_enc=32,
        num_channels_dec=32,
        num_nf=1,
        num_cell_per_cond_enc=1,
        num_cell_per_cond_dec=1,
    )
    return {
        "mnist": mnist.override({"train.global_batch_size": 8}),
        "mnist_4_2": mnist_4_2.override({"train.global_batch_size": 32}),
        "cifar10_small": ExperimentConfig(model=cifar10_small).override(
            {"train.global_batch_size": 8}
        ),
    }


def random_images(config: ExperimentConfig, count: int = 1000) -> np.ndarray:
    """Returns noise (count, h, w, C) uint8; the pixels' values make no difference to the time."""
    random = np.random.default_rng(0)
    return random.integers(256, size=(count, *config.model.content_shape), dtype=np.uint8)


class Measurement(NamedTuple):
    """The times of a function that is called repeatedly, and the memory of the process."""

    images: int  # per call
    first: float  # seconds to prepare the function and call it once
    median: float  # seconds
    fastest: float  # seconds
    calibration: float  # seconds; see benchmarks/calibrate.py
    peak_memory: float  # 10^9 bytes


def measure(prepare: Callable[[], Callable[[], Any]], images: int, repeats: int) -> Measurement:
    """Times a function; the two calls after the first are not counted.

    Args:
      prepare: Returns the function, which must wait for its result.
      images: Number of images that a call computes.
      repeats: Number of calls that are counted.
    """
    start = time.perf_counter()
    run = prepare()
    run()
    first = time.perf_counter() - start
    seconds = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        run()
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    peak_memory = peak_resident_gigabytes()  # before the calibration takes its own
    median, fastest = statistics.median(seconds), min(seconds)
    return Measurement(images, first, median, fastest, calibrate(), peak_memory)


def print_measurements(what: str, results: Mapping[str, Measurement]) -> None:
    """Prints a table with one row for each workload.

    Args:
      what: Name of the measured operation, for the header.
      results: The measurements by the workload's name.
    """
    rows = [
        (
            name,
            f"{result.images}",
            f"{result.first:.1f} s",
            f"{result.median:.3f} s",
            f"{result.fastest:.3f} s",
            f"{result.images / result.median:.1f}",
            f"{1000 * result.calibration:.1f} ms",
            f"{result.median / result.calibration:.1f}",
            f"{result.peak_memory:.2f} GB",
        )
        for name, result in results.items()
    ]
    header = ("workload", "batch", f"first {what}", what, "fastest", "images/s", "calibration")
    print_table((*header, f"{what} / calibration", "peak memory"), rows)


def in_fresh_process(function: Callable, *args: Any) -> Any:
    """Calls a module-level function in a new process, and returns its result.

    Raises:
      BrokenProcessPool: The process ended before the function did. (A pool of multiprocessing
        would wait for ever.)
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as executor:
        return executor.submit(function, *args).result()


def peak_resident_gigabytes() -> float:
    """Returns this process's peak memory so far, in 10^9 bytes (on Linux)."""
    return process_memory("VmHWM") / 1e9


def process_memory(field: str) -> int:
    """Returns a field of this process's `/proc/self/status` in bytes (on Linux)."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(rf"{field}:\s*(\d+) kB", status)
    assert match, f"no {field} in /proc/self/status"
    return 1024 * int(match[1])


def measure_workloads(
    what: str, names: Sequence[str], function: Callable[..., Measurement], repeats: int
) -> None:
    """Measures workloads, each in a process of its own, and prints a table.

    Args:
      what: Name of the measured operation, for the header.
      names: Names of the workloads.
      function: Measures a configuration with a number of repeats.
      repeats: Number of repeats.
    """
    chosen = {name: configurations()[name] for name in names}
    results = {name: in_fresh_process(function, config, repeats) for name, config in chosen.items()}
    print_measurements(what, results)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = [width * "-" for width in widths]
    for row in (header, rule, *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
