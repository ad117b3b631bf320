"""Shows what the latent groups encode: `nvae-latents --workdir=DIR --mode=MODE`.

Every mode makes a sheet of images:

  reconstruct   images above their reconstructions
  interpolate   one row for the way from each image, or seed, to the next
  traverse      one row for each channel of a group, whose value moves across its prior
  vary          one row for each number of groups that are kept from an image: the image, then
                variations of it with the other groups drawn anew
  direction     one row for each image, moved along the difference between the means of two classes
                of pictures
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf
from absl import app, flags
from tqdm import tqdm

from nvae_tf.command_line import (
    check_flags_of_mode,
    config_changes,
    define_images_flag,
    define_model_flags,
    usage_errors,
    use_devices,
)
from nvae_tf.config import ExperimentConfig, ModelConfig
from nvae_tf.data import evaluation_batches, load_classes, load_images, preprocess
from nvae_tf.files import write_atomically
from nvae_tf.sampling.explorer import Explorer, check_indices
from nvae_tf.sampling.images import (
    ANIMATIONS,
    check_grid,
    check_grid_output,
    encode_grid,
)
from nvae_tf.sampling.sampler import group_temperatures

_FLAGS_OF_MODE = {
    "reconstruct": ("images",),
    "interpolate": ("images", "seeds", "groups", "steps", "temperature"),
    "traverse": ("images", "seeds", "groups", "channels", "steps", "deviations", "temperature"),
    "vary": ("images", "seeds", "keep_groups", "temperature"),
    "direction": ("images", "classes", "towards", "away_from", "groups", "steps", "strength"),
}
_DEFAULT_IMAGES = {
    "reconstruct": 8,
    "interpolate": 2,
    "traverse": 1,
    "vary": 1,
    "direction": 4,
}
_ANIMATED = ("interpolate", "traverse", "direction")
_OF_SEEDS = ("interpolate", "traverse")
_DRAWS = 7
_BATCH = 64  # pictures of a class that are held at a time

_find_model = define_model_flags()
_MODE = flags.DEFINE_enum("mode", None, list(_FLAGS_OF_MODE), "Sheet to make.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output",
    "latents.png",
    "x.png: a sheet. x.gif or x.webp: an animation of interpolate, traverse or direction, which "
    "shows the columns one after the other and then in reverse.",
)
_IMAGES = flags.DEFINE_list(
    "images", None, "Numbers of images in the run's test split, from 0; default: the first ones."
)
_SEEDS = flags.DEFINE_list(
    "seeds",
    None,
    "interpolate, traverse: seeds of samples that are used instead of images. vary: seeds of the "
    f"draws, one for each column; default: 0 to {_DRAWS - 1}. A seed gives the first image that "
    "nvae-sample draws for it.",
)
_GROUPS = flags.DEFINE_list(
    "groups",
    None,
    "Numbers of groups; 0 has the lowest resolution. interpolate, direction: the groups that "
    "change, default all. traverse: the groups whose channels are shown, default 0.",
)
_CHANNELS = flags.DEFINE_list(
    "channels", None, "traverse: numbers of the groups' channels; default: all."
)
_KEEP_GROUPS = flags.DEFINE_list(
    "keep_groups",
    None,
    "vary: numbers of groups to keep from the image, one for each row; default: 0, 1, … all.",
)
_STEPS = flags.DEFINE_integer(
    "steps", 8, "Columns of interpolate, traverse and direction.", lower_bound=2, upper_bound=1000
)
_DEVIATIONS = flags.DEFINE_float(
    "deviations",
    3.0,
    "traverse: distance from the prior's mean, on both sides, in standard deviations.",
    lower_bound=0.0,
)
_CLASSES = flags.DEFINE_string(
    "classes",
    None,
    "direction: directory with a sub-directory of pictures for each class.",
)
_TOWARDS = flags.DEFINE_string("towards", None, "direction: the class to which images move.")
_AWAY_FROM = flags.DEFINE_string(
    "away_from", None, "direction: the class from which they move; default: all others together."
)
_STRENGTH = flags.DEFINE_float(
    "strength",
    1.0,
    "direction: the largest factor of the difference of the classes' means. The columns go from "
    "its negative to it.",
)
_TEMPERATURE = flags.DEFINE_list(
    "temperature",
    ["1.0"],
    "Temperature of draws from the prior: one number, or one for each scale or group.",
)


def integers(flag: flags.FlagHolder, default: range, limit: int) -> list[int]:
    """Returns the flag's integers, or the default if the flag was not given.

    Raises:
      ValueError: if a value is not an integer from 0 to limit - 1, or there are none.
    """
    if flag.value is None:
        return list(default)
    try:
        values = [int(text) for text in flag.value]
    except ValueError as error:
        raise ValueError(f"--{flag.name} must be integers, received {flag.value}.") from error
    if not values:
        raise ValueError(f"--{flag.name} must not be empty.")
    check_indices(f"--{flag.name}", values, limit)
    return values


def check_flags(mode: str) -> None:
    """Raises a ValueError if flags contradict each other or the mode does not use them."""
    check_flags_of_mode(mode, _FLAGS_OF_MODE)
    for flag in (_DEVIATIONS, _STRENGTH):
        if not math.isfinite(flag.value):  # absl's bounds let nan pass
            raise ValueError(f"--{flag.name} must be finite, received {flag.value}.")
    if mode in _OF_SEEDS and _IMAGES.value is not None and _SEEDS.value is not None:
        raise ValueError("Choose between --images and --seeds.")
    if mode in _OF_SEEDS and _SEEDS.value is None and _TEMPERATURE.present:
        raise ValueError(f"--temperature is about samples, so --mode={mode} needs --seeds for it.")
    if mode not in _ANIMATED and _OUTPUT.value.endswith(tuple(ANIMATIONS)):
        raise ValueError(f"Only {' and '.join(_ANIMATED)} make animations; end --output in .png.")
    if mode == "direction" and (_CLASSES.value is None or _TOWARDS.value is None):
        raise ValueError("--mode=direction needs --classes and --towards.")


def classes_of_direction(config: ExperimentConfig) -> list[Iterable[tf.Tensor]]:
    """Returns batches of the images of the class to move to, and of those that are left.

    No class is copied, which may be mapped from a file that is larger than the memory.

    Raises:
      ValueError: There are no such classes.
    """
    assert _CLASSES.value is not None and _TOWARDS.value is not None  # check_flags has seen to it
    classes = load_classes(_CLASSES.value, config.data, config.model)
    for flag in (_TOWARDS, _AWAY_FROM):
        if flag.value is not None and flag.value not in classes:
            raise ValueError(
                f"--{flag.name} must be one of the classes {', '.join(classes)}, received "
                f"{flag.value!r}."
            )
    towards, away_from = _TOWARDS.value, _AWAY_FROM.value
    others = [away_from] if away_from else [name for name in classes if name != towards]
    if others in ([], [towards]):
        raise ValueError("A direction leads from one class to another.")

    seeds = {name: seed for seed, name in enumerate(classes)}

    def batches(names: list[str]) -> Iterator[tf.Tensor]:
        for name in names:  # each class is binarised with other random numbers
            yield from evaluation_batches(classes[name].images, config.model, _BATCH, seeds[name])

    return [batches([towards]), batches(others)]


def as_model_sees(images: np.ndarray, numbers: list[int], config: ModelConfig) -> tf.Tensor:
    """Preprocesses the images of the given numbers to the model's input (N, H, W, C).

    An image's pixels do not depend on the others, and are those that nvae-evaluate sees.
    """
    return tf.concat(
        [preprocess(images[i : i + 1], config, tf.constant([0, 0], tf.int64), i) for i in numbers],
        axis=0,
    )


def chosen_images(mode: str, config: ExperimentConfig) -> tuple[tf.Tensor, np.ndarray]:
    """Returns the images that the flags choose, as the model sees them and as they are stored."""
    stored = load_images(config.data, config.model, config.data.test_split)
    default = range(min(_DEFAULT_IMAGES[mode], len(stored)))
    numbers = integers(_IMAGES, default, len(stored))
    if mode == "interpolate" and len(numbers) < 2:
        raise ValueError("An interpolation needs two --images or --seeds, or more.")
    return as_model_sees(stored, numbers, config.model), stored[numbers]


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        mode = _MODE.value
        check_flags(mode)
        trained = _find_model()
        config = config_changes(trained.config)
        num_groups = config.model.num_groups
        temperatures = group_temperatures(config.model, _TEMPERATURE.value)
        seeds = integers(_SEEDS, range(_DRAWS), 2**63)
        groups = integers(_GROUPS, range(1 if mode == "traverse" else num_groups), num_groups)
        latents = config.model.num_latent_per_group
        channels = integers(_CHANNELS, range(latents), latents)
        keep_groups = integers(_KEEP_GROUPS, range(num_groups + 1), num_groups + 1)
        extension = os.path.splitext(_OUTPUT.value)[1]
        check_grid_output(_OUTPUT.value, config.model.image_shape[-1])
        use_devices()
        from_seeds = mode in _OF_SEEDS and _SEEDS.value is not None
        if not from_seeds:
            images, originals = chosen_images(mode, config)
        elif mode == "interpolate" and len(seeds) < 2:
            raise ValueError("An interpolation needs two --images or --seeds, or more.")
        if mode == "direction":
            ends = classes_of_direction(config)
        count = len(seeds if from_seeds else images)
        rows, columns = {
            "reconstruct": (2, count),
            "interpolate": (count - 1, _STEPS.value),
            "traverse": (len(groups) * len(channels) * count, _STEPS.value),
            "direction": (count, _STEPS.value + 1),
            "vary": (len(keep_groups) * count, len(seeds) + 1),
        }[mode]
        check_grid(rows, columns, config.model.content_shape, extension)

        model = trained.load()
        with tqdm(unit="image", disable=None) as bar:
            explorer = Explorer(model, after_batch=bar.update)
            if mode == "reconstruct":
                grid = np.stack([originals, explorer.reconstruct(images)])
            elif mode == "interpolate" and from_seeds:
                grid = explorer.interpolate_seeds(seeds, _STEPS.value, temperatures, groups)
            elif mode == "interpolate":
                grid = explorer.interpolate_images(images, _STEPS.value, groups)
            elif mode == "traverse":
                bases = (
                    explorer.draw(seeds, temperatures) if from_seeds else explorer.encode(images)
                )
                values = np.linspace(-_DEVIATIONS.value, _DEVIATIONS.value, _STEPS.value)
                grid = np.concatenate(
                    [explorer.traverse(bases, group, channels, values) for group in groups]
                )
            elif mode == "direction":
                to, away = map(explorer.mean_latents, ends)
                amounts = np.linspace(-_STRENGTH.value, _STRENGTH.value, _STEPS.value)
                way = [a - b for a, b in zip(to, away)]
                moved = explorer.along(images, way, amounts, groups)
                grid = np.concatenate([originals[:, None], moved], axis=1)
            else:
                varied = explorer.vary(images, keep_groups, seeds, temperatures)
                first = np.repeat(originals, len(keep_groups), axis=0)
                grid = np.concatenate([first[:, None], varied], axis=1)
        write_atomically(_OUTPUT.value, encode_grid(grid, extension))
    print(f"{mode}, {grid.shape[0]} rows of {grid.shape[1]}: {_OUTPUT.value}")


def run() -> None:
    """Entry point of `nvae-latents`."""
    define_images_flag()
    app.run(main)


if __name__ == "__main__":
    run()
