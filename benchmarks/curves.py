"""Draws the curves of runs: -ELBO of training batches and the norm of the gradients.

`python -m benchmarks.curves --runs=plain=runs/a,smooth=runs/b --output=curves.png`

A run is a workdir of `nvae-train`, or what `train_compiled_step` wrote. Each point of a curve is a
mean of some logged values. `--against=steps` is for runs that were interrupted: their minutes
include the time in which they stood still. The program prints how large the gradients were, and
how many steps were skipped, among the logged ones.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

import numpy as np
from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nvae_tf.command_line import usage_errors
from nvae_tf.files import new_file, read_text
from nvae_tf.runs.workdir import Workdir
from trainers.summaries.event_files import event_files, events, read_scalars

_RUNS = flags.DEFINE_list("runs", None, "Runs, each as LABEL=DIRECTORY.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The picture, a PNG file.", required=True)
_TITLE = flags.DEFINE_string("title", "", "What stands above it.")
_AGAINST = flags.DEFINE_enum("against", "minutes", ["minutes", "steps"], "The horizontal axis.")
_MEAN_OVER = flags.DEFINE_integer("mean_over", 10, "Values of a mean.", lower_bound=1)

_SHOWN = 0.9  # of a curve's values; those above, of the first steps, would flatten the others


class Curve(NamedTuple):
    """What a run logged, each of it (n,)."""

    steps: np.ndarray
    minutes: np.ndarray
    negative_elbo: np.ndarray  # nats
    gradient_norm: np.ndarray
    skipped: np.ndarray  # steps, so far

    def summary(self) -> str:
        """Returns a sentence about the gradients."""
        early = self.steps <= 0.1 * self.steps[-1]
        first = self.gradient_norm[early].max(initial=0)
        later = self.gradient_norm[~early].max()
        median = np.median(self.gradient_norm[self.steps > 0.5 * self.steps[-1]])
        return (
            f"{self.steps[-1]:,} steps, {self.skipped[-1]:.0f} skipped; largest norm of the "
            f"gradients {first:.0f} in the first tenth, {later:.0f} later; median of the last "
            f"half {median:.0f}"
        )


def of_log(path: str) -> Curve:
    """Reads the log of `train_compiled_step`.

    Raises:
      ValueError: It is empty.
    """
    rows = [json.loads(line) for line in read_text(path).splitlines()]
    if not rows:
        raise ValueError(f"{path!r} has logged nothing.")
    names = ("step", "seconds", "negative_elbo", "gradient_norm", "skipped")
    steps, seconds, *values = (np.array([row[name] for row in rows]) for name in names)
    return Curve(steps, seconds / 60, *values)


def of_workdir(path: str) -> Curve:
    """Reads the event files of a run.

    Raises:
      ValueError: It has logged nothing.
    """
    directory = os.path.join(Workdir(path).tensorboard, "train")
    tags = ("loss/negative_elbo", "training/gradient_norm", "training/skipped_steps")
    rows = read_scalars(directory, *tags)
    steps = [step for step, values in rows.items() if len(values) == len(tags)]
    if not steps:
        raise ValueError(f"{path!r} has logged nothing.")
    times = {e.step: e.wall_time for file in event_files(directory) for e in events(file)}
    seconds = np.array([times[step] for step in steps])
    values = (np.array([rows[step][tag] for step in steps]) for tag in tags)
    return Curve(np.array(steps), (seconds - seconds[0]) / 60, *values)


def read(path: str) -> Curve:
    """Reads a run of either kind."""
    log = os.path.join(path, "log.jsonl")
    return of_log(log) if os.path.exists(log) else of_workdir(path)


def _mean(values: np.ndarray, count: int) -> np.ndarray:
    count = min(count, len(values))
    return np.convolve(values, np.full(count, 1 / count), mode="valid")


def draw(curves: dict[str, Curve], title: str, against: str, mean_over: int) -> Figure:
    """Draws both curves of each run, against its steps or its minutes."""
    figure = Figure(figsize=(9, 3.2), dpi=140, layout="constrained")
    bound, norm = figure.subplots(1, 2)
    lowest, highest = np.inf, -np.inf
    for label, curve in curves.items():
        columns = (getattr(curve, against), curve.negative_elbo, curve.gradient_norm)
        places, negative_elbo, gradient_norm = (_mean(column, mean_over) for column in columns)
        bound.plot(places, negative_elbo, label=label)
        norm.semilogy(places, gradient_norm)
        lowest = min(lowest, negative_elbo.min())
        highest = max(highest, np.quantile(negative_elbo, _SHOWN))
    border = 0.05 * (highest - lowest)
    bound.set(ylabel="-ELBO of training batches, nats", ylim=(lowest - border, highest + border))
    norm.set(ylabel="norm of the gradients")
    for axes in (bound, norm):
        axes.set(xlabel=f"{against} of training")
        axes.grid(alpha=0.3)
    bound.legend()
    figure.suptitle(title)
    return figure


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        pairs = [run.partition("=")[::2] for run in _RUNS.value]
        if not all(label and path for label, path in pairs):
            raise ValueError(f"--runs must be LABEL=DIRECTORY,…; received {_RUNS.value}.")
        curves = {label: read(path) for label, path in pairs}
    figure = draw(curves, _TITLE.value, _AGAINST.value, _MEAN_OVER.value)
    FigureCanvasAgg(figure)
    with new_file(_OUTPUT.value) as temporary:
        figure.savefig(temporary, format="png")
    for label, curve in curves.items():
        print(f"{label}: {curve.summary()}")
    print(_OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
