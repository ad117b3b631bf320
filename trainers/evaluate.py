"""Bounds on the likelihood of held-out images: `python -m trainers.evaluate --workdir=DIR`."""

from __future__ import annotations

import dataclasses

from absl import app, flags
from tqdm import tqdm

from nvae_tf.data import evaluation_batches, load_images
from nvae_tf.evaluation import LikelihoodEvaluator
from nvae_tf.workdir import Workdir, load_model
from trainers.programs import define_checkpoint_flag, usage_errors, use_devices

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_CHECKPOINT = define_checkpoint_flag()
_SPLIT = flags.DEFINE_string("split", None, "Of the data set; default: data.test_split.")
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images", None, "The first so many of the split; default: all.", lower_bound=1
)
_NUM_IW_SAMPLES = flags.DEFINE_integer(
    "num_iw_samples", 1, "Draws per image for the importance-weighted bound.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "Images at a time.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of binarisation and draws.", lower_bound=0)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "JSON file of the result; default: evaluation.json in the workdir, or evaluation_best.json.",
)


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        use_devices()
        workdir = Workdir(_WORKDIR.value)
        config = workdir.read_config()
        split = _SPLIT.value or config.data.test_split
        model = load_model(workdir.path, _CHECKPOINT.value)
        images = load_images(config.data, config.model, split)[: _NUM_IMAGES.value]
        batches = evaluation_batches(images, config.model, _BATCH_SIZE.value, _SEED.value)
        with tqdm(total=len(images), unit="image", disable=None) as bar:
            result = LikelihoodEvaluator(model).evaluate(
                batches, _NUM_IW_SAMPLES.value, _SEED.value, after_batch=bar.update
            )
        fields = {"split": split, **dataclasses.asdict(result)}
        output = _OUTPUT.value
        if output is None and _CHECKPOINT.value == "best":
            output = workdir / "evaluation_best.json"
        text = workdir.write_evaluation(fields, output, _CHECKPOINT.value)
    print(text)


def run() -> None:
    """Entry point of `nvae-evaluate`."""
    app.run(main)


if __name__ == "__main__":
    run()
