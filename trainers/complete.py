"""Completes pictures with holes: `nvae-complete --preset=emoji64 --pictures=x.png`.

A hole is where a picture is transparent, where the picture --mask is not black, or the rectangle
--hole. The sheet has a row for each image: the image, the image with its hole, and completions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os

import numpy as np
import tensorflow as tf
from absl import app, flags
from tqdm import tqdm

from nvae_tf.command_line import (
    MAX_BATCH,
    MAX_IMAGES,
    MAX_SEED,
    config_changes,
    define_images_flag,
    define_model_flags,
    usage_errors,
    use_devices,
)
from nvae_tf.config import ExperimentConfig
from nvae_tf.data import load_images, preprocess
from nvae_tf.data.holes import load_mask, load_with_holes, rectangle
from nvae_tf.evaluation.completion import PixelFrequencies, score
from nvae_tf.files import check_output, new_directory, to_json, write_atomically
from nvae_tf.sampling.completion import Completer
from nvae_tf.sampling.images import (
    check_channels,
    check_grid,
    encode_grid,
    show_holes,
    to_uint8,
    write_pngs,
)

_SHEET_ROWS = 32

_find_model = define_model_flags()
_PICTURES = flags.DEFINE_list("pictures", None, "Picture files to complete, separated by commas.")
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    8,
    "Without --pictures: number of images of the data set's test split, from its start.",
    lower_bound=1,
    upper_bound=MAX_IMAGES,
)
_MASK = flags.DEFINE_string(
    "mask", None, "Picture of the model's image size that is black where pixels are seen."
)
_HOLE = flags.DEFINE_list(
    "hole", None, "Rectangle top,left,height,width, in pixels of the model's images."
)
_COMPLETIONS = flags.DEFINE_integer(
    "completions", 8, "Completions of each image.", lower_bound=1, upper_bound=MAX_BATCH
)
_STEPS = flags.DEFINE_integer(
    "steps", 100, "Steps of the search for the latent variables.", lower_bound=0
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 0.1, "Learning rate of the search's first step; it falls to zero."
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "The same seed gives the same completions.", lower_bound=0, upper_bound=MAX_SEED
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "Images at a time.", lower_bound=1, upper_bound=MAX_BATCH
)
_OUTPUT = flags.DEFINE_string(
    "output", "completions.png", f"Sheet x.png of the first {_SHEET_ROWS} images at most."
)
_PICTURES_OUTPUT = flags.DEFINE_string(
    "pictures_output", None, "New directory for all completed pictures: 00000_00.png, …."
)
_SCORE = flags.DEFINE_string(
    "score",
    None,
    "JSON file x.json for -log p of the true pixels in the holes, by the completions' mixture and "
    "by the frequencies of the training images' values. Not with --pictures.",
)


def check_flags() -> None:
    """Raises a ValueError if flags contradict each other, or an OSError if outputs cannot be."""
    if _PICTURES.value is not None:
        for flag in (_NUM_IMAGES, _SCORE):
            if flag.present:
                raise ValueError(f"--pictures has no use for --{flag.name}.")
        if not _PICTURES.value:
            raise ValueError("--pictures must name a file.")
    elif _MASK.value is None and _HOLE.value is None:
        raise ValueError("Say where the holes are: --mask, --hole, or --pictures with alpha.")
    if not (math.isfinite(_LEARNING_RATE.value) and _LEARNING_RATE.value > 0):
        raise ValueError(f"--learning_rate must be positive, received {_LEARNING_RATE.value}.")
    for flag, extension in ((_OUTPUT, ".png"), (_SCORE, ".json")):
        if flag.value is not None:
            if os.path.splitext(flag.value)[1] != extension:
                raise ValueError(f"--{flag.name} must end in {extension}, received {flag.value!r}.")
            check_output(flag.value)


def extra_hole(config: ExperimentConfig) -> np.ndarray:
    """Returns the hole (h, w) bool that --mask and --hole make in all images."""
    hole = np.zeros(config.model.content_shape[:2], bool)
    if _MASK.value is not None:
        hole |= load_mask(_MASK.value, config.model)
    if _HOLE.value is not None:
        try:
            sides = [int(text) for text in _HOLE.value]
        except ValueError as error:
            raise ValueError(f"--hole must be four integers, received {_HOLE.value}.") from error
        hole |= rectangle(sides, config.model)
    return hole


def images_and_holes(config: ExperimentConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images (N, h, w, C) uint8 and their holes (N, h, w) bool that the flags say."""
    hole = extra_hole(config)
    if _PICTURES.value is not None:
        images, holes = load_with_holes(_PICTURES.value, config.data, config.model)
        holes |= hole
        for path, own in zip(_PICTURES.value, holes):
            if not own.any():
                raise ValueError(
                    f"{path}: it has no hole. Say where with --hole or --mask, or, unless the "
                    "model's images have an alpha channel themselves, by transparency."
                )
        return images, holes
    if not hole.any():
        raise ValueError(f"--mask={_MASK.value} is black everywhere: there is no hole.")
    images = load_images(config.data, config.model, config.data.test_split)[: _NUM_IMAGES.value]
    return images, np.repeat(hole[None], len(images), axis=0)


def write_pictures(directory: str, completed: np.ndarray, first: int) -> None:
    """Writes completions (B, M, h, w, C) uint8 of images from number `first` on as PNG files."""
    digits = max(2, len(str(completed.shape[1] - 1)))
    pairs = itertools.product(range(first, first + len(completed)), range(completed.shape[1]))
    names = (f"{number:05}_{completion:0{digits}}.png" for number, completion in pairs)
    write_pngs(directory, completed.reshape(-1, *completed.shape[2:]), names)


def main(argv: list[str]) -> None:
    with usage_errors(argv), contextlib.ExitStack() as scope:
        check_flags()
        pictures = None
        if _PICTURES_OUTPUT.value is not None:  # now, for a directory that cannot be is an error
            pictures = scope.enter_context(new_directory(_PICTURES_OUTPUT.value))
        trained = _find_model()
        config = config_changes(trained.config)
        check_channels(".png", config.model.image_shape[-1])
        use_devices()
        images, holes = images_and_holes(config)
        columns = _COMPLETIONS.value + (1 if _PICTURES.value is not None else 2)
        rows = min(_SHEET_ROWS, len(images))
        check_grid(rows, columns, config.model.content_shape, ".png")
        frequencies = None
        if _SCORE.value:
            training = load_images(config.data, config.model, config.data.train_split)
            frequencies = PixelFrequencies(training, config.model)
        model = trained.load()

        seen = preprocess(tf.constant(images), config.model, tf.constant([0, 0], tf.int64))
        completer = Completer(model, _STEPS.value, _LEARNING_RATE.value, _BATCH_SIZE.value)
        batches = math.ceil(len(images) / _BATCH_SIZE.value)
        with tqdm(total=batches * _STEPS.value, unit="step", disable=None) as bar:
            done, drawn, log_probs = 0, [], []
            for batch in completer.batches(
                seen, holes, _COMPLETIONS.value, _SEED.value, bar.update
            ):
                these = slice(done, done + len(batch.images))
                # What was seen stays as it is stored, not as the model saw it.
                completed = np.where(
                    holes[these, None, :, :, None], to_uint8(batch.images), images[these, None]
                )
                if pictures:
                    write_pictures(pictures, completed, done)
                if done < _SHEET_ROWS:
                    drawn.append(completed)
                log_probs.append(batch.hole_log_prob)
                done = these.stop
        if pictures:
            scope.close()  # now it has its name, and other files may go into it
        shown = slice(_SHEET_ROWS)
        parts = [show_holes(images[shown], holes[shown])[:, None], np.concatenate(drawn)[shown]]
        if _PICTURES.value is None:  # else nobody knows what was there
            parts.insert(0, images[shown, None])
        write_atomically(_OUTPUT.value, encode_grid(np.concatenate(parts, axis=1), ".png"))
        if frequencies and _SCORE.value:
            truth = model.crop_padding(seen).numpy()
            result = score(np.concatenate(log_probs), truth, holes, frequencies)
            text = to_json(dataclasses.asdict(result))
            write_atomically(_SCORE.value, text)
            print(text, end="")
    print(f"{_COMPLETIONS.value} completions of {len(images)} images: {_OUTPUT.value}")


def run() -> None:
    """Entry point of `nvae-complete`."""
    define_images_flag()
    app.run(main)


if __name__ == "__main__":
    run()
