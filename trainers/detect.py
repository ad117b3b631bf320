"""Scores how novel images are to a trained model: `nvae-detect --workdir=DIR`.

The scores are -L, the bound with its sign changed, and the log-likelihood ratios LLR^{>k} of
Havtorn et al. (2021) for every k; see docs/detection.md. With --novel.* a second set of images is
scored, and the result says how well each score tells the one from the other.
"""

from __future__ import annotations

import math
import os

import numpy as np
from absl import app, flags

from nvae_tf.command_line import (
    MAX_BATCH,
    MAX_IMAGES,
    MAX_SEED,
    config_changes,
    data_changes,
    define_data_flag,
    define_images_flag,
    define_model_flags,
    usage_errors,
    use_devices,
)
from nvae_tf.data import load_image_set
from nvae_tf.data.storage import image_blocks
from nvae_tf.evaluation.detection import check_installed
from nvae_tf.evaluation.novelty import NoveltyEvaluator
from nvae_tf.evaluation.novelty_suite import NoveltyStudy, ScoredSet, Selection
from nvae_tf.files import check_output, to_json, write_atomically

_find_model = define_model_flags()
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    None,
    "Images of each set's test split, drawn at random; default: all.",
    lower_bound=1,
)
_VALIDATION_FRACTION = flags.DEFINE_float(
    "validation_fraction",
    0.2,
    "With a second set: the share of the images of each on which k is chosen. They are left out of "
    "the other results.",
)
_NUM_IW_SAMPLES = flags.DEFINE_integer(
    "num_iw_samples",
    1,
    "Draws per image: with more than one, L is the importance-weighted bound.",
    lower_bound=1,
    upper_bound=MAX_IMAGES,
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 100, "Images at a time.", lower_bound=1, upper_bound=MAX_BATCH
)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Seed of the choice of images, the binarisation and all draws.",
    lower_bound=0,
    upper_bound=MAX_SEED,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    "novelty.json",
    "JSON file to write, x.json. Beside it are written x.csv, with a line for each image, and the "
    "page x.html.",
)


def same_images(known: np.ndarray, novel: np.ndarray) -> bool:
    """Returns whether two sets (N, h, w, C) are equal, which may be larger than the memory."""
    return known.shape == novel.shape and all(
        np.array_equal(known[block], novel[block]) for block in image_blocks(known)
    )


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        output, extension = os.path.splitext(_OUTPUT.value)
        if extension != ".json":
            raise ValueError(f"The output must end in .json, received {_OUTPUT.value!r}.")
        trained = _find_model()
        config = config_changes(trained.config)
        novel = data_changes("novel", config.data)
        fraction = _VALIDATION_FRACTION.value
        if novel:
            check_installed()
        elif _VALIDATION_FRACTION.present:
            raise ValueError("--validation_fraction is for two sets: --novel.* says the second.")
        if not (math.isfinite(fraction) and 0 < fraction < 1):
            raise ValueError(f"--validation_fraction must be in (0, 1), received {fraction}.")
        for ending in (".json", ".csv", ".html"):
            check_output(output + ending)
        use_devices()
        sets = {"known": config.data} | ({"novel": novel} if novel else {})
        selections = {
            name: Selection.draw(
                load_image_set(data, config.model, data.test_split),
                _NUM_IMAGES.value,
                fraction if novel else 0.0,
                _SEED.value,
            )
            for name, data in sets.items()
        }
        if novel and same_images(*(selection.images for selection in selections.values())):
            raise ValueError(
                "Both sets have the same images. Every field that --novel.* does not give is that "
                f"of the first set, among them name={novel.name} and data_dir={novel.data_dir!r}."
            )
        evaluator = NoveltyEvaluator(trained.load())
        options = (evaluator, config.model, _NUM_IW_SAMPLES.value, _BATCH_SIZE.value, _SEED.value)
        study = NoveltyStudy(
            *(ScoredSet.score(name, chosen, *options) for name, chosen in selections.items())
        )
        facts = {"model": trained.origin, "step": trained.step, "seed": _SEED.value}
        text = to_json({**facts, **study.result()})
        write_atomically(output + ".csv", study.to_csv())
        write_atomically(output + ".html", study.page(f"Novelty by {trained.origin}"))
        write_atomically(output + ".json", text)
    print(text, end="")


def run() -> None:
    """Entry point of `nvae-detect`."""
    define_images_flag()
    define_data_flag(
        "novel",
        "--novel.FIELD=VALUE: a second set of images, to be told from the first one, from which it "
        "has all fields that are not given.",
    )
    app.run(main)


if __name__ == "__main__":
    run()
