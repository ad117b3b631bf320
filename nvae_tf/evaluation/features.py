"""Feature extractors, which turn images into the vectors that sample quality compares."""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

_INCEPTION_SIDE = 299  # height and width, in pixels, of Inception's training images
_SIGNATURE = "serving_default"
_BLOCK = 2**20  # bytes of a file that are hashed at a time


class FeatureExtractor(abc.ABC):
    """A function from images to feature vectors, with a name and a fingerprint.

    Attributes:
      name: The type of the extractor and the origin of its weights, for people.
      fingerprint: SHA-256 of the extractor's type and weights. Two distances are comparable only
        if their features have the same fingerprint.
    """

    name: str
    fingerprint: str

    def __call__(self, images: np.ndarray | tf.Tensor) -> np.ndarray:
        """Computes the features of a batch of images.

        Args:
          images: (N, h, w, C) uint8, or floats in [0, 1].

        Returns:
          (N, D) float32.

        Raises:
          ValueError: if the images have another rank, type or range, if the extractor does not
            accept their shape, or if the features are not finite vectors.
        """
        images = _as_floats(images)
        features = np.asarray(self._extract(tf.constant(images)), np.float32)
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"{self.name}: {len(images)} images gave features of shape {features.shape}, "
                "not one vector for each."
            )
        if not np.isfinite(features).all():
            raise ValueError(f"{self.name}: the features are not all finite.")
        return features

    @abc.abstractmethod
    def _extract(self, images: tf.Tensor) -> tf.Tensor:
        """Computes features (N, D) of images (N, h, w, C) float32 in [0, 1]."""


def _as_floats(images: np.ndarray | tf.Tensor) -> np.ndarray:
    """Checks images (N, h, w, C) and converts them to float32 in [0, 1]."""
    images = np.asarray(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"Images must be (N, h, w, C), not empty; received {images.shape}.")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"Images must be uint8 or floats in [0, 1], received {images.dtype}.")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise ValueError(
            f"Floating-point images must be in [0, 1], received values from {low:g} to {high:g}."
        )
    return images.astype(np.float32)


class InceptionFeatures(FeatureExtractor):
    """The 2048 features of Keras's Inception-v3, averaged over space, before its classifier.

    Images are resized to 299 x 299 (bilinear, antialiased when they shrink) and scaled to
    [-1, 1]. The channel of gray images is repeated three times.

    The weights are those of `keras.applications`, not those of the TF-Slim network of 2015 with
    which the FID was defined (Heusel et al., arXiv 1706.08500) and published FIDs are computed.
    Do not compare results from these features with a paper's. To compute comparable ones, give
    that network to `SavedModelFeatures`.

    Args:
      weights: `"imagenet"`, which Keras downloads on first use, or the path of a file (.h5 or
        .keras) with the weights of `keras.applications.InceptionV3(include_top=False)`.

    Raises:
      FileNotFoundError: if the file does not exist, or the weights cannot be downloaded.
      ValueError: if the file does not hold these weights. A call raises it if the images have
        neither 1 nor 3 channels.
    """

    def __init__(self, weights: str | os.PathLike = "imagenet"):
        weights = os.fspath(weights)
        self.name = f"inception_v3/{weights}"
        self._model = _load_inception(weights)
        digest = hashlib.sha256(b"inception_v3")
        for values in self._model.get_weights():
            digest.update(np.ascontiguousarray(values).data)
        self.fingerprint = digest.hexdigest()
        images = tf.TensorSpec((None, None, None, 3))
        self._features = tf.function(
            self._resized_features, input_signature=[images], autograph=False
        )

    def _resized_features(self, images: tf.Tensor) -> tf.Tensor:
        side = (_INCEPTION_SIDE, _INCEPTION_SIDE)
        resized = tf.image.resize(images, side, "bilinear", antialias=True)
        return self._model(2 * resized - 1, training=False)

    def _extract(self, images: tf.Tensor) -> tf.Tensor:
        channels = images.shape[-1]
        if channels not in (1, 3):
            raise ValueError(f"Inception takes images of 1 or 3 channels, received {channels}.")
        return self._features(tf.repeat(images, 3 // channels, axis=-1))


def _load_inception(weights: str) -> keras.Model:
    downloaded = weights == "imagenet"
    if not downloaded:
        if not os.path.isfile(weights):
            raise FileNotFoundError(f"There is no file of Inception weights {weights!r}.")
        if not weights.endswith((".h5", ".keras")):
            raise ValueError(f"Inception weights are a .h5 or .keras file, received {weights!r}.")
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # keras.applications use the global policy only
    try:
        return keras.applications.InceptionV3(
            include_top=False,
            weights=weights,
            pooling="avg",
            input_shape=(_INCEPTION_SIDE, _INCEPTION_SIDE, 3),
        )
    # Keras raises a bare Exception for a failed download, and other types for a damaged file.
    except Exception as error:
        if downloaded:
            raise FileNotFoundError(
                "Inception's ImageNet weights are neither in Keras's cache nor to be downloaded; "
                f"give the path of a local .h5 or .keras file instead of 'imagenet'. {error}"
            ) from error
        raise ValueError(
            f"{weights!r} does not hold the weights of "
            f"keras.applications.InceptionV3(include_top=False): {error}"
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)


class SavedModelFeatures(FeatureExtractor):
    """A feature extractor that is read from a SavedModel.

    The signature `serving_default` must have one input, images (B, h, w, C) float32 in [0, 1] of
    any B, and one floating-point output whose first axis is B. Further axes of the output are
    flattened to features (B, D). The images keep their size and channels, so the SavedModel has
    to resize and scale them and convert gray to colour itself.

    Args:
      path: Directory of the SavedModel.

    Raises:
      FileNotFoundError: if the directory does not exist.
      ValueError: if it is not a SavedModel with such a signature. A call raises it if the
        signature does not accept the images' shape.
    """

    def __init__(self, path: str | os.PathLike):
        path = os.fspath(path)
        if not os.path.isdir(path):
            raise FileNotFoundError(f"There is no directory of a SavedModel {path!r}.")
        if not tf.saved_model.contains_saved_model(path):
            raise ValueError(f"The directory {path!r} does not hold a SavedModel.")
        self.name = f"saved_model/{path}"
        digest = hashlib.sha256(b"saved_model")
        for file in _files(path):
            digest.update(f"{os.path.relpath(file, path)} {os.path.getsize(file)} ".encode())
            with open(file, "rb") as content:
                while block := content.read(_BLOCK):
                    digest.update(block)
        self.fingerprint = digest.hexdigest()
        self._model = tf.saved_model.load(path)  # a signature alone does not keep the variables
        if _SIGNATURE not in self._model.signatures:
            raise ValueError(
                f"{self.name} must have a signature {_SIGNATURE!r}, "
                f"it has {sorted(self._model.signatures)}."
            )
        self._signature = self._model.signatures[_SIGNATURE]
        self._input, self._spec = self._check_signature()

    def _check_signature(self) -> tuple[str, tf.TensorSpec]:
        """Checks the signature, and returns the name and specification of its input."""
        inputs = self._signature.structured_input_signature[1]
        outputs = self._signature.structured_outputs
        for what, specs in (("input", inputs), ("output", outputs)):
            if len(specs) != 1:
                raise ValueError(
                    f"{self.name}: {_SIGNATURE!r} must have one {what}, it has {sorted(specs)}."
                )
        (name, images), (features,) = next(iter(inputs.items())), outputs.values()
        rank = images.shape.rank
        if images.dtype != tf.float32 or rank not in (4, None) or (rank and images.shape[0]):
            raise ValueError(
                f"{self.name}: the input of {_SIGNATURE!r} must be float32 [B, h, w, C] with any "
                f"B, it is {images.dtype.name} {images.shape}."
            )
        if not features.dtype.is_floating or features.shape.rank in (0, 1):
            raise ValueError(
                f"{self.name}: the output of {_SIGNATURE!r} must be floating-point [B, ...], "
                f"it is {features.dtype.name} {features.shape}."
            )
        return name, images

    def _extract(self, images: tf.Tensor) -> tf.Tensor:
        if not self._spec.shape.is_compatible_with(images.shape):
            raise ValueError(
                f"{self.name} takes images {self._spec.shape}, received {images.shape}."
            )
        (features,) = self._signature(**{self._input: images}).values()
        return tf.reshape(features, [tf.shape(features)[0], -1])


def _files(path: str) -> Iterator[str]:
    """Yields all files below a directory, in a fixed order."""
    for directory, subdirectories, names in os.walk(path):
        subdirectories.sort()
        for name in sorted(names):
            yield os.path.join(directory, name)
