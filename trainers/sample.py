"""Draws images from a trained model: `nvae-sample --preset=mnist_small`."""

from __future__ import annotations

import contextlib

from absl import app, flags
from tqdm import tqdm

from nvae_tf.command_line import (
    MAX_BATCH,
    MAX_IMAGES,
    MAX_SEED,
    define_model_flags,
    usage_errors,
    use_devices,
)
from nvae_tf.sampling.images import check_image_output, image_writer
from nvae_tf.sampling.readjustment import PASSES, readjusted, stored_statistics
from nvae_tf.sampling.sampler import OUTPUTS, Sampler, group_temperatures

_find_model = define_model_flags()
_TEMPERATURE = flags.DEFINE_list(
    "temperature",
    ["1.0"],
    "Factor of the prior's standard deviations; lower values give more typical and less diverse "
    "images. One number, or one for each scale or group, from the lowest resolution to the "
    "highest: 0.6,0.7,0.8.",
)
_READJUST_BN = flags.DEFINE_bool(
    "readjust_bn",
    False,
    f"First readjust the batch-norm statistics to the temperature, with {PASSES} passes in "
    "training mode. They are kept, in the workdir or for a preset in ~/.cache/nvae_tf, and used "
    "again for every seed.",
)
_PIXELS = flags.DEFINE_enum(
    "pixels", "mean", OUTPUTS, "Mean of the distribution over images, or a sample from it."
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 64, "Number of images.", lower_bound=1, upper_bound=MAX_IMAGES
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Images at a time.", lower_bound=1, upper_bound=MAX_BATCH
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "The same seed gives the same images.", lower_bound=0, upper_bound=MAX_SEED
)
_OUTPUT = flags.DEFINE_string(
    "output",
    "samples.png",
    "x.png: a sheet. x.npy: an array (N, h, w, C) uint8. x/: a directory of PNG files.",
)


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        number = _NUM_SAMPLES.value
        check_image_output(_OUTPUT.value, number)
        trained = _find_model()
        config = trained.config.model
        temperatures = group_temperatures(config, _TEMPERATURE.value)
        with contextlib.ExitStack() as scope:
            write = scope.enter_context(image_writer(_OUTPUT.value, number, config.content_shape))
            use_devices()
            model = trained.load()
            if _READJUST_BN.value:
                with tqdm(total=PASSES, unit="pass", disable=None) as bar:
                    directory = trained.kept("batch_norm", trained.config.data)
                    statistics = stored_statistics(
                        directory, model, temperatures, after_pass=bar.update
                    )
                scope.enter_context(readjusted(model, statistics))
            sampler = Sampler(model, _PIXELS.value, min(_BATCH_SIZE.value, number))
            with tqdm(total=number, unit="image", disable=None) as bar:
                for images in sampler.batches(number, temperatures, _SEED.value):
                    write(images)
                    bar.update(len(images))
    print(
        f"{number} samples at temperature {','.join(_TEMPERATURE.value)}, seed {_SEED.value}: "
        f"{_OUTPUT.value}"
    )


def run() -> None:
    """Entry point of `nvae-sample`."""
    app.run(main)


if __name__ == "__main__":
    run()
