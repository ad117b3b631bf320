"""Saves a run's model for others: `nvae-save-preset --workdir=W --output=DIRECTORY`.

The directory holds configuration, weights, metadata with the newest evaluation, and the model card.
Programs take it as `--preset=DIRECTORY`, and Python code as `NVAE.from_preset(DIRECTORY)`.
"""

from __future__ import annotations

import dataclasses
import os
import shlex

from absl import app, flags

from nvae_tf.command_line import define_model_flags, log_warnings_only, usage_errors, use_devices
from nvae_tf.evaluation.model_card import model_card
from nvae_tf.files import check_new_directory
from nvae_tf.model.pretrained import MANTISSA_BITS, builtin_names

_find_model = define_model_flags()
_OUTPUT = flags.DEFINE_string("output", None, "Directory to create.", required=True)
_MANTISSA_BITS = flags.DEFINE_integer(
    "mantissa_bits",
    MANTISSA_BITS,
    "Bits to which the mantissas of kernels are rounded: 10, as in float16, make the file half as "
    "large; default: all.",
    lower_bound=1,
    upper_bound=MANTISSA_BITS,
)


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        output = os.path.normpath(_OUTPUT.value)
        check_new_directory(output)
        trained = _find_model()
        use_devices()
        log_warnings_only()
        name = os.path.basename(output)
        saved = dataclasses.replace(
            trained,
            name=name,
            # The bare name of a packaged model would mean that one.
            flags=shlex.quote(f"--preset={'./' * (name in builtin_names())}{name}"),
            # Where the images were is of no use elsewhere.
            config=trained.config.override({"data.data_dir": "", "data.cache_dir": ""}),
        )
        model = trained.load()
        model.save_to_preset(
            output,
            saved.config,
            mantissa_bits=_MANTISSA_BITS.value,
            card=model_card(saved),
            facts={
                "step": trained.step,
                # Where it was is of no use elsewhere, either.
                "init_from": {k: v for k, v in trained.init_from.items() if k != "path"},
                "evaluation": dict(trained.evaluation),
            },
        )
    size = sum(os.path.getsize(os.path.join(output, name)) for name in os.listdir(output))
    print(
        f"{output}: {model.num_trainable_parameters:,} parameters, {size / 1e6:.1f} MB. "
        "Write what stands in angle brackets in its README.md."
    )


def run() -> None:
    """Entry point of `nvae-save-preset`."""
    app.run(main)


if __name__ == "__main__":
    run()
