"""Writes docs/configuration.md: `python -m tests.configuration_page > docs/configuration.md`."""

from __future__ import annotations

from nvae_tf.architectures import ARCHITECTURES
from nvae_tf.config import ExperimentConfig

_START = """# Configuration

Every field of a configuration is an option of `nvae-train`: `--config.SECTION.FIELD=VALUE`. A field
that neither an option nor the [preset](presets.md) names has the default below; without a preset, a
run that goes on keeps its own. Several numbers are written as `"(32, 32, 3)"`. In Python, the
sections are the dataclasses `ModelConfig`, `DataConfig`, `OptimizerConfig` and `TrainConfig` of an
`ExperimentConfig`; a value that is not allowed is a `ValueError`.

Other programs read the configuration from the run or the trained model, and have options for those
fields alone that may differ from it.
"""
_ARCHITECTURES = """
## Kinds of cells

The values of `model.arch_instance`, and the operations in the branches of their cells (paper,
section 3.1). `res_bnswish` is batch normalisation, swish and a 3×3 convolution, `res_bnelu` the
same with ELU, and `res_elu` ELU and the convolution alone. In `res_bnswish5`, the taps of the
kernel are two pixels apart, so that it sees 5×5 pixels. `mconv_eEkKgG` is an inverted bottleneck:
it expands the channels by E, and its K×K convolution has G groups; with G = 0 it is depthwise.

| value | bottom-up | top-down | before the groups | after the groups |
|---|---|---|---|---|
"""
_HEADER = "| field | meaning | default | values |\n|---|---|---|---|\n"


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value!r}".replace("'", "")


def page() -> str:
    """Returns the page: the fields of every section, and the kinds of cells."""
    config = ExperimentConfig()
    options = config.options()
    lines = [_START]
    section = None
    for path, default in config.flat().items():
        if path.partition(".")[0] != section:
            section = path.partition(".")[0]
            lines += [f"\n## `{section}`\n\n", _HEADER]
        option = options[path]
        shown = f"`{_value(default)}`" if _value(default) else "empty"
        values = option.values()
        if option.choices:
            values = ", ".join(f"`{choice}`" for choice in option.choices)
        elif isinstance(default, bool):
            values = "`true`, `false`"
        lines += [f"| `{path}` | {option.meaning} | {shown} | {values} |\n"]
    lines += [_ARCHITECTURES]
    for name, cells in ARCHITECTURES.items():
        branches = (cells.encoder, cells.decoder, cells.preprocess, cells.postprocess)
        shown = " | ".join(", ".join(f"`{operation}`" for operation in b) for b in branches)
        lines += [f"| `{name}` | {shown} |\n"]
    return "".join(lines)


if __name__ == "__main__":
    print(page(), end="")
