"""Loading of data sets (`sources`) and batches of their images (`pipeline`)."""

from nvae_tf.data.pipeline import (
    Division,
    evaluation_batches,
    preprocess,
    training_batches,
    training_input,
    training_seed,
)
from nvae_tf.data.sources import ImageSet, load_classes, load_image_set, load_images
from nvae_tf.data.storage import cache_directory, describe

__all__ = [
    "Division",
    "ImageSet",
    "cache_directory",
    "describe",
    "evaluation_batches",
    "load_classes",
    "load_image_set",
    "load_images",
    "preprocess",
    "training_batches",
    "training_input",
    "training_seed",
]
