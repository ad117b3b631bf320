"""Everything that TensorBoard shows."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from nvae_tf.evaluation import LikelihoodResult
from nvae_tf.model import NVAE
from nvae_tf.objective import bits_per_dimension
from nvae_tf.pictures import sheet, to_uint8
from nvae_tf.workdir import Workdir
from trainers.loop import ACTIVE_CHANNEL_NATS, StepMetrics

_PICTURES = 16
_TEMPERATURES = (0.7, 1.0)


class Summaries:
    """Writes the scalars and pictures of a run, training and validation side by side.

    Tags of groups end in their number, top-down: `kl/group_00` is the lowest resolution.

    Args:
      workdir: where the event files go.
      model: whose configuration and samples are shown.
      examples: (16 or fewer, H, W, C) held-out images, as the model sees them.
    """

    def __init__(self, workdir: Workdir, model: NVAE, examples: tf.Tensor):
        self._model = model
        self._examples = examples[:_PICTURES]
        self._train = tf.summary.create_file_writer(f"{workdir.tensorboard}/train")
        self._validation = tf.summary.create_file_writer(f"{workdir.tensorboard}/validation")
        self._sample = tf.function(self._sample_image, autograph=False)
        self._reconstruct = tf.function(self._reconstruct_image, autograph=False)

    def log_step(
        self, step: int, metrics: StepMetrics, images_per_second: float, waiting: float
    ) -> None:
        """Scalars of a training step; `waiting` is the share of the time spent on it for data."""
        config = self._model.config
        with self._train.as_default(step):
            tf.summary.scalar("loss/total", metrics.loss, description="What is minimised.")
            self._log_bound(metrics.negative_elbo, metrics.reconstruction, metrics.kl)
            tf.summary.scalar("regularization/spectral", metrics.spectral)
            tf.summary.scalar("regularization/batch_norm", metrics.batch_norm)
            tf.summary.scalar("schedule/beta", metrics.kl_coefficient)
            tf.summary.scalar("schedule/lambda", metrics.regularization_coefficient)
            tf.summary.scalar("schedule/learning_rate", metrics.learning_rate)
            tf.summary.scalar("training/gradient_norm", metrics.gradient_norm)
            tf.summary.scalar("training/loss_scale", metrics.loss_scale)
            tf.summary.scalar(
                "training/skipped_steps",
                metrics.skipped,
                description="Steps so far whose gradients were not finite or too large.",
            )
            tf.summary.scalar("training/images_per_second", images_per_second)
            tf.summary.scalar(
                "training/waiting_for_data", waiting, description="Share of the time, 0 to 1."
            )
            self._log_kl(metrics.kl_per_group.numpy())
            for group, scale in enumerate(config.group_scales):
                name = f"group_{group:02d}"
                tf.summary.scalar(
                    f"kl_balance/{name}",
                    metrics.balance[group],
                    description=f"Scale {scale}. Weight of the group's KL while beta rises.",
                )
                tf.summary.scalar(
                    f"active_channels/{name}",
                    metrics.active_channels[group],
                    description=f"Scale {scale}. Of {config.num_latent_per_group} channels, those "
                    f"with more than {ACTIVE_CHANNEL_NATS} nats of KL.",
                )

    def _log_bound(self, negative_elbo, reconstruction, kl) -> None:
        tf.summary.scalar("loss/negative_elbo", negative_elbo, description="Nats per image.")
        tf.summary.scalar(
            "loss/bits_per_dim", bits_per_dimension(negative_elbo, self._model.config)
        )
        tf.summary.scalar("loss/reconstruction", reconstruction, description="-log p(x|z), nats.")
        tf.summary.scalar("loss/kl", kl, description="Sum over the groups, nats.")

    def _log_kl(self, kl_per_group: np.ndarray) -> None:
        shapes = self._model.config.latent_shapes
        for group, (value, scale) in enumerate(zip(kl_per_group, self._model.config.group_scales)):
            height, width, _ = shapes[group]
            tf.summary.scalar(
                f"kl/group_{group:02d}",
                value,
                description=f"Nats. Scale {scale}, {height}x{width}.",
            )

    def log_validation(self, step: int, result: LikelihoodResult) -> None:
        """Scalars of the held-out images."""
        with self._validation.as_default(step):
            self._log_bound(result.negative_elbo, result.reconstruction, result.kl)
            self._log_kl(np.asarray(result.kl_per_group))

    def log_images(self, step: int) -> None:
        """Held-out images above their reconstructions, and samples at some temperatures."""
        with self._validation.as_default(step):
            pairs = tf.concat([self._crop(self._examples), self._reconstruct()], axis=0)
            self._image("reconstructions", pairs, columns=len(self._examples))
            for temperature in _TEMPERATURES:
                samples = self._sample(tf.constant(temperature))
                self._image(f"samples/temperature_{temperature}", samples)

    def _crop(self, images: tf.Tensor) -> tf.Tensor:
        return self._model.crop_padding(images)

    def _image(self, tag: str, images: tf.Tensor, columns: int | None = None) -> None:
        if images.shape[-1] in (1, 3, 4):  # what a picture can show
            tf.summary.image(tag, sheet(to_uint8(images), columns)[None])

    def _reconstruct_image(self) -> tf.Tensor:
        noise = self._model.draw_noise(len(self._examples), [0, 0])
        output = self._model.infer(self._examples, noise)
        return self._crop(self._model.likelihood(output.logits).mean())

    def _sample_image(self, temperature: tf.Tensor) -> tf.Tensor:
        noise = self._model.draw_noise(_PICTURES, [0, 0])
        logits = self._model.generate(_PICTURES, temperature, noise)
        return self._crop(self._model.likelihood(logits).mean())

    def flush(self) -> None:
        """Makes what was logged so far visible."""
        self._train.flush()
        self._validation.flush()

    def close(self) -> None:
        """Flushes and closes the event files."""
        self._train.close()
        self._validation.close()
