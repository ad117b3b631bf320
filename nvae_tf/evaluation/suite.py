"""The evaluation of a run, which collects several measurements into one result and one report."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from nvae_tf.config import ExperimentConfig, ModelConfig
from nvae_tf.data import cache_directory, describe, evaluation_batches, load_images
from nvae_tf.data.pipeline import discretize
from nvae_tf.evaluation import (
    FeatureExtractor,
    HierarchyEvaluator,
    HierarchyResult,
    ImageLikelihoods,
    LikelihoodEvaluator,
    ReferenceFeatures,
    SampleQualityResult,
    figures,
    html_report,
    reference_features,
    sample_quality,
)
from nvae_tf.evaluation.kept_rows import KeptRows
from nvae_tf.fingerprints import array_fingerprint, result_path
from nvae_tf.model.nvae import NVAE
from nvae_tf.sampling.images import PNG_CHANNELS, sheet, to_uint8
from nvae_tf.sampling.readjustment import readjusted, stored_statistics
from nvae_tf.sampling.sampler import Sampler

_SHOWN = 10  # images in each row of the report's sheets
_SAMPLES = 40  # samples in the report at each temperature
_TEMPERATURES = (0.6, 0.8, 1.0)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings with which samples are drawn, and compared with real images."""

    num_samples: int
    temperature: tuple[float, ...]  # one for all groups, or one for each scale or group
    pixels: str  # "mean" or "sample" of the distribution over images
    readjust_bn: bool
    reference_split: str
    seed: int


class Evaluation:
    """A collection of measurements of one model, each made by a method.

    Args:
      config: The run's configuration.
      model: The run's model, in float32.
      split: Name of the split that the held-out images are from.
      images: The held-out images (N, h, w, C) uint8.
      batch_size: Number of images that are computed at a time.
      seed: Seed of the binarisation and of all draws.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: NVAE,
        split: str,
        images: np.ndarray,
        batch_size: int,
        seed: int,
    ):
        self._config = config
        self._model = model
        self._split = split
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._kept = KeptRows()
        self._likelihoods: ImageLikelihoods | None = None
        self._hierarchy: HierarchyResult | None = None
        self._quality: tuple[SampleQualityResult, Protocol] | None = None

    def measure_likelihood(self, num_iw_samples: int, directory: str) -> ImageLikelihoods:
        """Computes the -ELBO and the importance-weighted bound of all images.

        If an evaluation like this one stopped, this one goes on after the images that it had done.

        Args:
          num_iw_samples: The number of draws per image.
          directory: The directory that keeps the bounds, until `forget`.

        Raises:
          NotFiniteError: The bounds of a batch are not finite.
        """
        images = array_fingerprint(self._images)
        facts = (self._config.model, images, self._seed, num_iw_samples)
        self._kept = KeptRows(result_path(directory, self._model.variables, *facts))
        done = self._kept.count
        if done:
            logging.info("%d of %d images were evaluated before.", done, len(self._images))
        batches = evaluation_batches(
            self._images, self._config.model, self._batch_size, self._seed, first=done
        )
        evaluator = LikelihoodEvaluator(self._model)
        with _bar("likelihood", len(self._images), done) as bar:
            self._likelihoods = evaluator.per_image(
                batches, num_iw_samples, self._seed, bar.update, self._kept
            )
        return self._likelihoods

    def forget(self) -> None:
        """Removes the bounds that were kept for another evaluation, once they are elsewhere."""
        self._kept.remove()

    def measure_hierarchy(self, num_images: int) -> None:
        """Measures on the first `num_images` images how the model uses its latent groups."""
        count = min(num_images, len(self._images))
        with _bar("hierarchy", count) as bar:
            batches = evaluation_batches(
                self._images[:count], self._config.model, self._batch_size, self._seed
            )
            self._hierarchy = HierarchyEvaluator(self._model).evaluate(
                batches, self._seed, after_batch=bar.update
            )

    def reference_features(
        self, protocol: Protocol, extractor: FeatureExtractor
    ) -> ReferenceFeatures:
        """Computes the features of the real images that samples are compared with.

        Args:
          protocol: How samples are drawn, and the split of the real images.
          extractor: Computes the features.
        """
        data, model = self._config.data, self._config.model
        real = load_images(data, model, protocol.reference_split)
        prepare = _as_generated(model, protocol.pixels, self._seed)
        with _bar("reference features", len(real)) as bar:
            return reference_features(
                real, extractor, cache_directory(data), self._batch_size, bar.update, prepare
            )

    def measure_sample_quality(
        self,
        protocol: Protocol,
        extractor: FeatureExtractor,
        reference: ReferenceFeatures,
        batch_norm: str,
    ) -> None:
        """Computes FID, KID, precision and recall of samples against real images.

        Args:
          protocol: How samples are drawn, and the split of the real images.
          extractor: Computes the features.
          reference: What `reference_features` returned for both.
          batch_norm: The directory that keeps the readjusted batch-norm statistics.
        """
        with contextlib.ExitStack() as scope:
            if protocol.readjust_bn:
                statistics = stored_statistics(batch_norm, self._model, protocol.temperature)
                scope.enter_context(readjusted(self._model, statistics))
            sampler = Sampler(self._model, protocol.pixels, self._batch_size)
            samples = sampler.batches(protocol.num_samples, protocol.temperature, protocol.seed)
            with _bar("samples", protocol.num_samples) as bar:
                result = sample_quality(reference, samples, extractor, self._seed, bar.update)
        self._quality = result, protocol

    def result(self) -> dict[str, Any]:
        """Returns all measurements as values that JSON can hold.

        The likelihood's fields are on the top level; those of the hierarchy and the sample quality
        are nested.
        """
        fields: dict[str, Any] = {
            "split": self._split,
            "seed": self._seed,
            "images_sha256": describe(self._images)["sha256"],
        }
        if self._likelihoods:
            fields |= dataclasses.asdict(self._likelihoods.summary(self._config.model))
        if self._hierarchy:
            fields["hierarchy"] = dataclasses.asdict(self._hierarchy) | {
                "negative_elbo": self._hierarchy.negative_elbo
            }
        if self._quality:
            result, protocol = self._quality
            fields["sample_quality"] = dataclasses.asdict(result) | {
                "protocol": dataclasses.asdict(protocol)
            }
        return fields

    def report(self, title: str) -> str:
        """Returns an HTML page of all measurements, with curves and images."""
        fields = self.result()
        nested = {name: fields.pop(name, None) for name in ("hierarchy", "sample_quality")}
        sections = {"Likelihood (nats per image)": fields}
        if nested["sample_quality"]:
            protocol = nested["sample_quality"].pop("protocol")
            sections["Sample quality"] = nested["sample_quality"]
            sections["How the samples of the sample quality were drawn"] = protocol
        images = _curves(self._hierarchy, self._config.model) if self._hierarchy else []
        if self._config.model.image_shape[-1] in PNG_CHANNELS:
            images += [self._strips(), *self._samples()]
        return html_report(title, sections, images)

    def _strips(self) -> tuple[str, np.ndarray]:
        shown, model = self._images[:_SHOWN], self._config.model
        first = next(iter(evaluation_batches(shown, model, _SHOWN, self._seed)))
        strips = HierarchyEvaluator(self._model).strips(first, self._seed)
        rows = np.concatenate([strips, self._model.crop_padding(first)[None]])
        return (
            "From the top: the first 0, 1, … groups from the posterior of the images in the last "
            "row, the others from the prior.",
            sheet(to_uint8(rows.reshape(-1, *rows.shape[2:])), columns=len(first)),
        )

    def _samples(self) -> list[tuple[str, np.ndarray]]:
        sampler = Sampler(self._model, batch_size=_SAMPLES)
        return [
            (
                f"Samples at temperature {temperature}, with batch normalisation as trained.",
                sheet(next(sampler.batches(_SAMPLES, temperature, self._seed)), columns=_SHOWN),
            )
            for temperature in _TEMPERATURES
        ]


def _as_generated(
    model: ModelConfig, pixels: str, seed: int
) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """Returns what gives images (B, h, w, C) uint8 the values that generated ones can have.

    The means that a Bernoulli model generates have all values, its samples are black and white.
    """
    exact = pixels == "mean" if model.likelihood == "bernoulli" else model.num_x_bits == 8
    if exact:
        return None
    seeds = tf.constant([seed, 0], tf.int64)
    return lambda images, first: to_uint8(discretize(images, model, seeds, first))


def _curves(result: HierarchyResult, model: ModelConfig) -> list[tuple[str, np.ndarray]]:
    active = ", ".join(f"{a} of {u}" for a, u in zip(result.active_units, result.units))
    return [
        (
            f"KL of each group. Active units, top-down: {active}.",
            figures.kl_bars(result.kl_per_group, model.group_scales),
        ),
        (
            "KL of each channel of each group.",
            figures.kl_by_channel([np.array(channels) for channels in result.kl_per_channel]),
        ),
        (
            "Rate and distortion when only the first k groups come from the posterior.",
            figures.rate_distortion(result.rate, result.distortion),
        ),
    ]


def _bar(name: str, total: int, done: int = 0) -> tqdm:
    return tqdm(total=total, initial=done, desc=name, unit="image", disable=None)
