"""Writes a model card: `nvae-model-card --workdir=DIR --output=CARD.md`.

Facts from the model's files are filled in; placeholders in angle brackets are left for people.
"""

from __future__ import annotations

from absl import app, flags

from nvae_tf.command_line import define_model_flags, log_warnings_only, usage_errors
from nvae_tf.evaluation.model_card import model_card
from nvae_tf.files import check_output, write_atomically

_find_model = define_model_flags()
_OUTPUT = flags.DEFINE_string("output", "MODEL_CARD.md", "File to write.")


def main(argv: list[str]) -> None:
    with usage_errors(argv):
        log_warnings_only()
        check_output(_OUTPUT.value)
        trained = _find_model()
        write_atomically(_OUTPUT.value, model_card(trained))
    print(f"{_OUTPUT.value}: write what stands in angle brackets.")


def run() -> None:
    """Entry point of `nvae-model-card`."""
    app.run(main)


if __name__ == "__main__":
    run()
