"""Shows latent groups in TensorBoard's projector: `nvae-projector --preset=emoji64`.

It writes a directory in which every image is a point of each group: the posterior's mean, with the
image beside it. `tensorboard --logdir=DIR` shows it; below the directory of a run it is shown with
the run.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl import app, flags
from tqdm import tqdm

from nvae_tf.command_line import (
    config_changes,
    define_images_flag,
    define_model_flags,
    usage_errors,
    use_devices,
)
from nvae_tf.config import ExperimentConfig
from nvae_tf.data import ImageSet, load_classes, load_image_set, preprocess
from nvae_tf.files import new_directory
from nvae_tf.sampling.explorer import Explorer
from nvae_tf.sampling.images import check_channels
from nvae_tf.sampling.projector import check_projection, write_projection

_find_model = define_model_flags()
_CLASSES = flags.DEFINE_string(
    "classes",
    None,
    "Directory with a sub-directory of pictures for each class, which are shown in place of the "
    "data set's test split and can be coloured by class.",
)
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images", 1000, "The largest number of images, of each class if given.", lower_bound=2
)
_OUTPUT = flags.DEFINE_string("output", "projector", "Directory to create.")


def chosen_images(config: ExperimentConfig) -> tuple[ImageSet, list[str] | None]:
    """Returns the images that the flags ask for, and their classes if known."""
    limit = _NUM_IMAGES.value
    if _CLASSES.value is None:
        images = load_image_set(config.data, config.model, config.data.test_split)
        return images.first(limit), None
    classes = load_classes(_CLASSES.value, config.data, config.model)
    shown = {name: pictures.first(limit) for name, pictures in classes.items()}
    labels = [name for name, pictures in shown.items() for _ in pictures.images]
    files = [file for pictures in shown.values() for file in pictures.files or ()]
    return ImageSet(np.concatenate([p.images for p in shown.values()]), files), labels


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        trained = _find_model()
        config = config_changes(trained.config)
        check_channels(".png", config.model.image_shape[-1])
        with new_directory(_OUTPUT.value) as directory:
            use_devices()
            chosen, labels = chosen_images(config)
            images = chosen.images
            check_projection(len(images), config.model.content_shape, labels or ())
            model = trained.load()
            seen = preprocess(tf.constant(images), config.model, tf.constant([0, 0], tf.int64))
            with tqdm(total=len(images), unit="image", disable=None) as bar:
                explorer = Explorer(model, batch_size=64, after_batch=bar.update)
                means = explorer.posterior_means(seen)
            write_projection(directory, means, images, labels, chosen.files)
    print(f"{len(images)} images, {len(means)} groups: tensorboard --logdir={_OUTPUT.value}")


def run() -> None:
    """Entry point of `nvae-projector`."""
    define_images_flag()
    app.run(main)


if __name__ == "__main__":
    run()
