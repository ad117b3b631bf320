"""Writes the event files of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorboard.plugins.custom_scalar import summary as custom_scalar_summary
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import summary as hparams_summary

from nvae_tf.config import ExperimentConfig
from nvae_tf.evaluation import (
    ACTIVE_CHANNEL_NATS,
    LikelihoodResult,
    collapsed_groups,
    figures,
)
from nvae_tf.model.inference import InferenceModel, PreparedWeights
from nvae_tf.runs.workdir import Workdir
from nvae_tf.sampling.images import PNG_CHANNELS
from nvae_tf.training.metrics import BatchMeans, StepMetrics
from nvae_tf.training.objective import bits_per_dimension
from trainers.summaries import description
from trainers.summaries.event_files import event_files, open_writer, read_scalars
from trainers.summaries.gallery import Gallery
from trainers.summaries.layout import MARGINS, chart_layout, group_tag, margin_tags

_TEMPERATURES = (0.6, 0.8, 1.0)
_LAYERS_SHOWN = 10  # of those with the largest singular values
_NORMAL_95 = 1.96  # standard errors around a mean that hold 95 %
_DESCRIPTION = ".description"  # how the name of its event file ends
_COLUMNS_OF_TIME = 500  # at most, of the heat map


class Speed(NamedTuple):
    """The speed of a run since its last report."""

    images_per_second: float
    waiting: float  # share of the time spent waiting for data, 0 to 1


class Summaries:
    """Writes the event files of a run: training and validation side by side, and what the run is.

    `train` and `validation` have the same tags where they measure the same, so that TensorBoard
    draws them into one chart. `validation` also has the run's description: configuration, model,
    layout of the custom charts, and its row in the table of runs, whose metrics it has.

    Args:
      workdir: Where the event files go.
      config: The run's configuration.
      model: The model that draws the pictures.
      layers: The paths of the convolutions, in the order of the steps' singular values.
      examples: (16 or fewer, H, W, C) held-out images, as the model sees them.
      step: The number of steps done; what was logged after them is removed.
      facts: What else is to be shown of the run, by name.
    """

    def __init__(
        self,
        workdir: Workdir,
        config: ExperimentConfig,
        model: InferenceModel,
        layers: Sequence[str],
        examples: tf.Tensor,
        step: int,
        facts: Mapping[str, object],
    ):
        self._workdir = workdir
        self._experiment = config
        self._config = config.model
        self._model = model
        self._layers = layers
        self._gallery = Gallery(model, examples)
        self._last: StepMetrics | None = None  # that was logged, as arrays
        self._describe(facts)
        self._open(step)

    def _run(self, name: str) -> str:
        return os.path.join(self._workdir.tensorboard, name)

    def _open(self, step: int) -> None:
        self._train = open_writer(self._run("train"), step)
        self._validation = open_writer(self._run("validation"), step)
        self._history = _read_kl(self._run("train"), self._config.num_groups)

    def restart(self, step: int) -> None:
        """Goes on after an earlier step, and removes what was logged since."""
        self._train.close()
        self._validation.close()
        self._last = None
        self._open(step)

    def _describe(self, facts: Mapping[str, object]) -> None:
        directory, model = self._run("validation"), self._model.model
        for path in event_files(directory):
            if path.endswith(_DESCRIPTION):  # TensorBoard shows the first one that it finds
                os.remove(path)
        self._description = tf.summary.create_file_writer(directory, filename_suffix=_DESCRIPTION)
        parameters = {"parameters": f"{model.num_trainable_parameters:,}"}
        with self._description.as_default(step=0):
            description.write_hyperparameters(self._experiment, self._workdir.path)
            tf.summary.text("configuration", description.configuration_tables(self._experiment))
            tf.summary.text("model", description.model_tables(model))
            tf.summary.text("surroundings", description.surroundings_table({**facts, **parameters}))
            layout = custom_scalar_summary.pb(chart_layout(self._config))
            tf.summary.experimental.write_raw_pb(layout.SerializeToString())
        self._description.flush()

    def log_step(self, step: int, metrics: StepMetrics, speed: Speed) -> None:
        """Writes the scalars of a training step."""
        self._last = tf.nest.map_structure(lambda tensor: tensor.numpy(), metrics)
        batch, schedule, verdict = self._last
        self._history[step] = batch.kl_per_group
        active = np.count_nonzero(batch.kl_per_channel > ACTIVE_CHANNEL_NATS, axis=1)
        scalar = tf.summary.scalar
        with self._train.as_default(step):
            scalar("loss/total", batch.loss, description="What is minimised.")
            size = self._experiment.train.global_batch_size
            self._log_bound(batch.bound, batch.standard_errors(size).numpy())
            scalar("regularization/spectral", batch.singular_values.sum())
            scalar("regularization/batch_norm", batch.batch_norm)
            if self._experiment.train.consistency:
                scalar(
                    "regularization/inconsistency",
                    batch.inconsistency,
                    description="KL between the posteriors of views and images, nats.",
                )
            scalar(
                "spectral_norm/largest",
                batch.singular_values.max(),
                description="Of all convolutions' kernels. The text spectral_norm names the layer.",
            )
            scalar("schedule/beta", schedule.kl)
            scalar("schedule/lambda", schedule.regularization)
            scalar("schedule/learning_rate", schedule.learning_rate)
            scalar("training/gradient_norm", verdict.gradient_norm)
            scalar("training/loss_scale", verdict.loss_scale)
            scalar(
                "training/skipped_steps",
                verdict.skipped,
                description="Steps so far whose gradients were not finite or too large.",
            )
            scalar("training/images_per_second", speed.images_per_second)
            scalar("training/waiting_for_data", speed.waiting, description="Of the time, 0 to 1.")
            self._log_groups("kl", batch.kl_per_group, "Nats.")
            self._log_groups(
                "kl_balance", batch.balance, "Weight of the group's KL while beta rises."
            )
            self._log_groups(
                "kl_active_channels",
                active,
                f"Of {self._config.num_latent_per_group}, those with more than "
                f"{ACTIVE_CHANNEL_NATS} nats of KL.",
            )

    def _log_bound(self, means: Sequence[float], standard_errors: Sequence[float]) -> None:
        """Writes -ELBO, reconstruction and KL, and where they lie with 95 % probability."""
        meanings = ("Nats per image.", "-log p(x|z), nats.", "Sum over the groups, nats.")
        for name, mean, error, meaning in zip(MARGINS, means, standard_errors, meanings):
            tf.summary.scalar(f"loss/{name}", mean, description=meaning)
            for tag, sign in zip(margin_tags(name), (-1, 1)):
                tf.summary.scalar(tag, mean + sign * _NORMAL_95 * error)
        tf.summary.scalar("loss/bits_per_dim", bits_per_dimension(means[0], self._config))

    def _log_groups(self, quantity: str, values: Sequence[float], meaning: str) -> None:
        shapes, scales = self._config.latent_shapes, self._config.group_scales
        for group, (value, scale) in enumerate(zip(values, scales)):
            height, width, _ = shapes[group]
            tf.summary.scalar(
                group_tag(quantity, group),
                value,
                description=f"Scale {scale}, {height}x{width}. {meaning}",
            )

    def log_validation(self, step: int, result: LikelihoodResult) -> None:
        """Writes the scalars of the held-out images."""
        with self._validation.as_default(step):
            means = [getattr(result, name) for name in MARGINS]
            errors = [getattr(result, f"{name}_standard_error") for name in MARGINS]
            self._log_bound(means, errors)
            self._log_groups("kl", result.kl_per_group, "Nats.")

    def log_images(self, step: int, weights: PreparedWeights) -> None:
        """Draws figures of where the information is, reconstructions and samples.

        Args:
          step: The number of steps done.
          weights: Those of the model, from `InferenceModel.weights`.
        """
        if self._last:
            with self._train.as_default(step):
                self._log_figures(self._last.batch)
                self._log_singular_values(self._last.batch.singular_values)
        if self._config.image_shape[-1] in PNG_CHANNELS:  # else they cannot be shown
            with self._validation.as_default(step):
                self._log_gallery(weights)

    def _log_singular_values(self, values: np.ndarray) -> None:
        largest = np.argsort(-values)[:_LAYERS_SHOWN]
        rows = [(f"`{self._layers[i]}`", f"{values[i]:.4f}") for i in largest]
        header = ("layer", "largest singular value")
        tf.summary.text("spectral_norm", description.markdown_table(header, rows))

    def _log_figures(self, last: BatchMeans) -> None:
        steps = np.array(list(self._history))
        kl = np.stack(list(self._history.values()))
        shown = np.unique(np.linspace(0, len(steps) - 1, _COLUMNS_OF_TIME).round().astype(int))
        collapsed = collapsed_groups(kl[-1])
        over_time = figures.kl_over_time(steps[shown], kl[shown], collapsed)
        by_channel = figures.kl_by_channel(last.kl_per_channel, collapsed)
        tf.summary.image("kl/over_time", over_time[None])
        tf.summary.image("kl/by_channel", by_channel[None])
        tf.summary.image("kl/rate_curve", figures.rate_curve(kl[-1])[None])

    def _log_gallery(self, weights: PreparedWeights) -> None:
        sheets = self._gallery.draw(weights, _TEMPERATURES)
        tf.summary.image("reconstructions/pairs", sheets.pairs[None])
        kept = ", ".join(map(str, self._gallery.shown_groups()))
        tf.summary.image(
            "reconstructions/first_groups",
            sheets.first_groups[None],
            description=f"The first {kept} groups of the image in the last column; the others "
            "are drawn from the prior.",
        )
        for temperature, samples in zip(_TEMPERATURES, sheets.samples):
            tf.summary.image(f"samples/temperature_{temperature}", samples[None])

    def end(self, success: bool) -> None:
        """Enters into the table of runs how the run has ended."""
        status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
        with self._description.as_default(step=0):
            ended = hparams_summary.session_end_pb(status)
            tf.summary.experimental.write_raw_pb(ended.SerializeToString())

    def flush(self) -> None:
        """Makes everything that was logged visible."""
        for writer in (self._description, self._train, self._validation):
            writer.flush()

    def close(self) -> None:
        """Flushes and closes the event files."""
        for writer in (self._description, self._train, self._validation):
            writer.close()


def _read_kl(directory: str, groups: int) -> dict[int, np.ndarray]:
    """Reads the logged KL of all groups (L,) by step, in the order of the steps."""
    tags = [group_tag("kl", group) for group in range(groups)]
    logged = read_scalars(directory, group_tag("kl", 0).rpartition("_")[0])
    return {
        step: np.array([values[tag] for tag in tags], np.float32)
        for step, values in logged.items()
        if len(values) == groups  # the file of a run that was killed may end in between
    }
