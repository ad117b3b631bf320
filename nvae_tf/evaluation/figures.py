"""Figures of a model's groups and scores, drawn with matplotlib for TensorBoard and reports.

Groups are numbered top-down: group 0 has the lowest resolution. Each function returns an image
(H, W, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_LEAST_NATS = 1e-3  # the lower end of the logarithmic colour scale
_SCALE_COLOURS = ("#1b6ca8", "#e07a1f", "#3a8f4d", "#9b3f9b", "#b03a3a", "#5a5a5a")
_HISTOGRAM_COLUMNS = 4
_BINS = 40


def _new_figure(width: float = 5.0, height: float = 3.0) -> tuple[Figure, Axes]:
    """Returns an empty figure, 700 pixels wide by default.

    Its text stays readable at half that size, which is how TensorBoard shows it.
    """
    figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
    return figure, figure.add_subplot()


def _render(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _label_groups(axes: Axes, groups: int, collapsed: Collection[int]) -> None:
    names = [f"{group:02d}" for group in range(groups)]
    for group in collapsed:
        names[group] = f"collapsed {names[group]}"
    axes.set_yticks(range(groups), names)
    axes.set_ylabel("group, top-down")
    for group in collapsed:
        axes.get_yticklabels()[group].set(color="#c00000", fontweight="bold")


def _height(groups: int) -> float:
    return max(3.0, 0.9 + 0.19 * groups)


def kl_bars(kl_per_group: Sequence[float], scales: Sequence[int]) -> np.ndarray:
    """Draws the KL of every group as a bar, coloured by scale.

    Args:
      kl_per_group: L values in nats, top-down.
      scales: The scale of each group; scale 0 has the highest resolution.
    """
    figure, axes = _new_figure()
    for scale in dict.fromkeys(scales):
        groups = [group for group, own in enumerate(scales) if own == scale]
        axes.bar(
            groups,
            [kl_per_group[group] for group in groups],
            color=_SCALE_COLOURS[scale % len(_SCALE_COLOURS)],
            label=f"scale {scale}",
        )
    axes.set_xlabel("group, top-down")
    axes.set_ylabel("KL, nats per image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return _render(figure)


def rate_curve(kl_per_group: Sequence[float]) -> np.ndarray:
    """Draws the sum of the first k groups' KL, in nats, against k."""
    figure, axes = _new_figure()
    axes.plot(range(len(kl_per_group) + 1), np.cumsum([0.0, *kl_per_group]), marker=".")
    axes.set_xlabel("first k groups, top-down")
    axes.set_ylabel("KL, nats per image, summed")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    return _render(figure)


def kl_over_time(
    steps: Sequence[int], kl: np.ndarray, collapsed: Collection[int] = ()
) -> np.ndarray:
    """Draws the KL of every group over the course of training, as a logarithmic heat map.

    Args:
      steps: T step numbers in ascending order.
      kl: (T, L) in nats. Values below 0.001 get the darkest colour.
      collapsed: Numbers of the groups that are labelled as collapsed.
    """
    groups = kl.shape[1]
    figure, axes = _new_figure(height=_height(groups))
    _heat_map(figure, axes, kl.T, "KL, nats per image")
    _label_groups(axes, groups, collapsed)
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(4, len(steps))).round().astype(int))
    axes.set_xticks(ticks, [f"{steps[tick]:,}" for tick in ticks])
    axes.set_xlabel("step")
    return _render(figure)


def kl_by_channel(
    kl_per_channel: Sequence[np.ndarray], collapsed: Collection[int] = ()
) -> np.ndarray:
    """Draws the KL of every channel of every group, as a logarithmic heat map.

    Args:
      kl_per_channel: L arrays (C_z,) in nats.
      collapsed: Numbers of the groups that are labelled as collapsed.
    """
    figure, axes = _new_figure(height=_height(len(kl_per_channel)))
    _heat_map(figure, axes, np.stack(kl_per_channel), "KL, nats per image")
    _label_groups(axes, len(kl_per_channel), collapsed)
    axes.set_xlabel("channel")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _render(figure)


def _heat_map(figure: Figure, axes: Axes, values: np.ndarray, label: str) -> None:
    values = np.where(np.isfinite(values), np.maximum(values, _LEAST_NATS), np.nan)
    largest = np.nanmax(values, initial=10 * _LEAST_NATS)
    image = axes.imshow(
        values,
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        norm=LogNorm(_LEAST_NATS, largest),
    )
    figure.colorbar(image, ax=axes, label=label)


def rate_distortion(rate: Sequence[float], distortion: Sequence[float]) -> np.ndarray:
    """Draws distortion against rate when the first 0, 1, … L groups come from the posterior.

    Args:
      rate: L + 1 values: the KL of these groups, in nats.
      distortion: L + 1 values: -log p(x|z), in nats.
    """
    figure, axes = _new_figure()
    axes.plot(rate, distortion, marker="o", markersize=4)
    for groups in dict.fromkeys((0, 1, len(rate) // 2, len(rate) - 1)):
        point = (rate[groups], distortion[groups])
        axes.annotate(f"{groups}", point, textcoords="offset points", xytext=(6, 6))
    axes.set_xlabel("rate: KL of the first k groups, nats")
    axes.set_ylabel("distortion: -log p(x|z), nats")
    return _render(figure)


def score_histograms(
    names: Sequence[str], sets: Mapping[str, np.ndarray], notes: Sequence[str] | None = None
) -> np.ndarray:
    """Draws a histogram of every score, in which the sets are side by side.

    The axis of a score ends where all but 1 % of the images of each set lie inside.

    Args:
      names: S scores' names.
      sets: By the name of each set of images, its scores (N, S) in nats.
      notes: What to add to each name, on a second line.
    """
    columns = min(_HISTOGRAM_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns, 0.5 + 2.1 * rows), dpi=140, layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for number, (name, axes) in enumerate(zip(names, panels)):
        columns_of = {label: scores[:, number] for label, scores in sets.items()}
        ends = np.concatenate([np.quantile(s, (0.005, 0.995)) for s in columns_of.values()])
        bins = np.linspace(ends.min(), max(ends.max(), ends.min() + 1e-6), _BINS + 1)
        for colour, (label, values) in zip(_SCALE_COLOURS, columns_of.items()):
            weights = np.full(len(values), 1 / len(values))
            inside = np.clip(values, bins[0], bins[-1])  # what lies outside is in the last bins
            axes.hist(inside, bins, weights=weights, color=colour, alpha=0.6, label=label)
        axes.set_title(f"{name}\n{notes[number]}" if notes else name, fontsize=10)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=8)
        axes.spines[["left", "top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel("nats per image", fontsize=9)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
    )
    return _render(figure)
