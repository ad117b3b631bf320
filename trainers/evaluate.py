"""Measures a trained model on held-out images: `nvae-evaluate --workdir=DIR`."""

from __future__ import annotations

import os

from absl import app, flags, logging

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
from nvae_tf.data import describe, load_image_set
from nvae_tf.evaluation import FeatureExtractor, InceptionFeatures, SavedModelFeatures
from nvae_tf.evaluation.reference import MIN_SAMPLES
from nvae_tf.evaluation.suite import Evaluation, Protocol
from nvae_tf.files import check_output, to_json, write_atomically
from nvae_tf.runs.load import TrainedModel
from nvae_tf.sampling.sampler import OUTPUTS, group_temperatures

_find_model = define_model_flags()
_SPLIT = flags.DEFINE_string(
    "split", None, "Split of the data set to evaluate on; default: data.test_split."
)
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    None,
    "Number of images, from the start of the split; default: all.",
    lower_bound=1,
)
_NUM_IW_SAMPLES = flags.DEFINE_integer(
    "num_iw_samples",
    1,
    "Draws per image for the importance-weighted bound.",
    lower_bound=1,
    upper_bound=MAX_IMAGES,
)
_NUM_HIERARCHY_IMAGES = flags.DEFINE_integer(
    "num_hierarchy_images",
    1000,
    "Images on which the use of the latent groups is measured; 0: none.",
    lower_bound=0,
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples",
    0,
    "Samples for FID, KID, precision and recall (usual: 50000); 0: none.",
    lower_bound=0,
    upper_bound=MAX_IMAGES,
)
_FEATURES = flags.DEFINE_string(
    "features",
    "inception",
    "Feature extractor for the sample quality: inception, or the directory of a SavedModel.",
)
_INCEPTION_WEIGHTS = flags.DEFINE_string(
    "inception_weights",
    "imagenet",
    "Weights of Inception: imagenet, which Keras downloads, or the path of a file.",
)
_TEMPERATURE = flags.DEFINE_list(
    "temperature", ["1.0"], "Temperature of the samples for the sample quality; see nvae-sample."
)
_PIXELS = flags.DEFINE_enum(
    "pixels", "mean", OUTPUTS, "Pixels of the samples for the sample quality; see nvae-sample."
)
_READJUST_BN = flags.DEFINE_bool(
    "readjust_bn",
    False,
    "Readjust the batch normalisations for the samples of the sample quality; see nvae-sample.",
)
_REFERENCE_SPLIT = flags.DEFINE_string(
    "reference_split",
    None,
    "Split that the samples are compared with; default: data.train_split.",
)
_OF_SAMPLE_QUALITY = (
    _FEATURES,
    _INCEPTION_WEIGHTS,
    _TEMPERATURE,
    _PIXELS,
    _READJUST_BN,
    _REFERENCE_SPLIT,
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    100,
    "Images at a time, after which progress is shown: with many draws, take few.",
    lower_bound=1,
    upper_bound=MAX_BATCH,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the binarisation and all draws.", lower_bound=0, upper_bound=MAX_SEED
)
_PER_IMAGE = flags.DEFINE_string(
    "per_image", None, "CSV file to write with the bounds of each image."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "JSON file to write, x.json; a report is written beside it as HTML. Default: evaluation.json "
    "in the workdir, or evaluation_best.json for the best checkpoint; nothing for a preset.",
)

_SAY_WHERE = ", whose evaluation stays: say with --output where the result goes."


def make_extractor() -> FeatureExtractor:
    """Returns the feature extractor that the flags select."""
    if _FEATURES.value == "inception":
        return InceptionFeatures(_INCEPTION_WEIGHTS.value)
    return SavedModelFeatures(_FEATURES.value)


def check_flags() -> None:
    """Raises a ValueError if flags do not fit together."""
    if _NUM_SAMPLES.value:
        if _NUM_SAMPLES.value < MIN_SAMPLES:
            raise ValueError(
                f"--num_samples must be at least {MIN_SAMPLES}, received {_NUM_SAMPLES.value}."
            )
        if _INCEPTION_WEIGHTS.present and _FEATURES.value != "inception":
            raise ValueError(
                "--inception_weights is about --features=inception, received "
                f"--features={_FEATURES.value}."
            )
    else:
        for flag in _OF_SAMPLE_QUALITY:
            if flag.present:
                raise ValueError(
                    f"--{flag.name} is about the sample quality, which --num_samples=0 leaves out."
                )


def outputs(trained: TrainedModel) -> tuple[str | None, str | None]:
    """Returns where results and report go, if anywhere, once all files can be written.

    Raises:
      ValueError: The results would not be JSON, or two files would be one.
      OSError: A file cannot be written.
    """
    output = _OUTPUT.value or trained.evaluation_path
    report = None
    if output:
        stem, extension = os.path.splitext(output)
        if extension != ".json":
            raise ValueError(f"The output must end in .json, received {output!r}.")
        report = f"{stem}.html"
    written = [os.path.realpath(path) for path in (output, report, _PER_IMAGE.value) if path]
    if len(set(written)) < len(written):
        raise ValueError(
            f"--per_image={_PER_IMAGE.value} is where the results or the report go: name another "
            "file."
        )
    for path in written:
        check_output(path)
    return output, report


def evaluated_later(step: int) -> bool:
    """Returns whether the run went on after this step, and was evaluated, maybe by its training."""
    now = _find_model()
    return now.step > step and bool(now.evaluation)


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        trained = _find_model()
        config = config_changes(trained.config)
        split = _SPLIT.value or config.data.test_split
        replaces = bool(trained.evaluation_path) and not _OUTPUT.value  # the run's own evaluation
        if replaces and split != trained.config.data.test_split:
            raise ValueError(f"{split!r} is not the run's test split{_SAY_WHERE}")
        output, report = outputs(trained)
        check_flags()
        group_temperatures(config.model, _TEMPERATURE.value)  # fails early on a wrong flag
        use_devices()
        extractor = make_extractor() if _NUM_SAMPLES.value else None
        image_set = load_image_set(config.data, config.model, split)
        known = trained.images.get(split)
        if replaces and known and describe(image_set.images) != known:
            raise ValueError(f"These are other images than the run's own{_SAY_WHERE}")
        if replaces and (_NUM_IMAGES.value or len(image_set)) < len(image_set):
            raise ValueError(f"--num_images leaves some of the run's images out{_SAY_WHERE}")
        image_set = image_set.first(_NUM_IMAGES.value)
        model = trained.load()

        evaluation = Evaluation(
            config, model, split, image_set.images, _BATCH_SIZE.value, _SEED.value
        )
        if extractor:
            protocol = Protocol(
                num_samples=_NUM_SAMPLES.value,
                temperature=tuple(map(float, _TEMPERATURE.value)),
                pixels=_PIXELS.value,
                readjust_bn=_READJUST_BN.value,
                reference_split=_REFERENCE_SPLIT.value or config.data.train_split,
                seed=_SEED.value,
            )
            # First, for most of what can be wrong with flags is wrong here.
            reference = evaluation.reference_features(protocol, extractor)
        kept = trained.kept("likelihood", config.data)
        per_image = evaluation.measure_likelihood(_NUM_IW_SAMPLES.value, kept)
        if _PER_IMAGE.value:
            write_atomically(_PER_IMAGE.value, per_image.to_csv(image_set.files))
        if extractor:  # after the likelihood, which is not lost if this fails
            batch_norm = trained.kept("batch_norm", config.data)
            evaluation.measure_sample_quality(protocol, extractor, reference, batch_norm)
        if _NUM_HIERARCHY_IMAGES.value:
            evaluation.measure_hierarchy(_NUM_HIERARCHY_IMAGES.value)
        text = to_json({"step": trained.step, **evaluation.result()})
        if replaces and evaluated_later(trained.step):
            logging.warning("The run has been evaluated at a later step, which %s keeps.", output)
        elif output and report:
            title = f"{trained.origin}, step {trained.step:,}"
            page = evaluation.report(title)  # before any file is replaced
            write_atomically(output, text)
            write_atomically(report, page)
        evaluation.forget()
    print(text, end="")


def run() -> None:
    """Entry point of `nvae-evaluate`."""
    define_images_flag()
    app.run(main)


if __name__ == "__main__":
    run()
