"""Model cards, filled in from the files of a run."""

from __future__ import annotations

import html
import json
import pathlib
import re
import shlex
import string
from collections.abc import Mapping
from typing import Any

from nvae_tf.config import ExperimentConfig
from nvae_tf.model.nvae import NVAE
from nvae_tf.runs.load import TrainedModel

_TEMPLATE = pathlib.Path(__file__).with_name("model_card_template.md")
_LIKELIHOODS = {
    "bernoulli": "binary, with a Bernoulli for each pixel",
    "logistic_mixture": "with a mixture of discretised logistics",
    "normal": "with a normal for each value",
}


def model_card(trained: TrainedModel) -> str:
    """Returns the model card of a trained model, as Markdown with a header in YAML.

    Facts that the files do not hold are left as placeholders in angle brackets.

    Raises:
      ValueError: The evaluation is not one of this package.
    """
    config, step = trained.config, trained.step
    portion = config.train.frozen_batch_norm_portion
    frozen = (
        f" batch normalisation frozen in the last {100 * portion:g}% of them," if portion else ""
    )
    height, width, channels = config.model.content_shape
    data = config.data
    fields = {
        "name": _prose(trained.name),
        "flags": _line(trained.flags),
        "export_base": _line(shlex.quote(f"--export_base=serving/{trained.name}")),
        "dataset": json.dumps(data.name),  # which is YAML as well
        "step": f"{step:,}",
        "groups_of_latents": _count(config.model.num_groups, "group"),
        "scales": _count(config.model.num_latent_scales, "scale"),
        "parameters": f"{NVAE.structure(config.model).num_trainable_parameters:,}",
        "image_shape": f"{height}x{width} pixels with {_count(channels, 'channel')} of "
        f"{_count(config.model.num_x_bits, 'bit')}",
        "likelihood": _LIKELIHOODS[config.model.likelihood],
        "groups": _groups(config),
        "data": _code(data.name) + (f" in {_code(data.data_dir)}" if data.data_dir else ""),
        "train_split": _code(data.train_split),
        "steps": f"{step:,}",
        "batch": config.train.global_batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "learning_rate_min": config.optimizer.learning_rate_min,
        "anneal": f"{100 * config.train.kl_anneal_portion:g}%",
        "frozen": frozen,
        "regularization": config.train.weight_decay_norm,
        "precision": config.train.precision,
        "seed": config.train.seed,
        "start": _start(trained.init_from),
        "evaluation": _evaluation(trained),
        "config": config.to_json().strip(),
    }
    return string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(fields)


def _line(text: str) -> str:
    """Returns a text whose line breaks and other control characters are question marks."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _count(number: int, noun: str) -> str:
    """Returns a number with its noun, such as 3 scales."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _prose(text: str) -> str:
    """Returns what Markdown shows as this text."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(_line(text), quote=False))


def _code(text: str) -> str:
    """Returns what Markdown shows as this text in the font of code."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{_line(text)}{space}{fence}"


def _start(source: Mapping[str, Any]) -> str:
    """Returns a sentence about the weights that the training started with."""
    if not source:
        return ""
    return f"\n  It started with the weights of {_code(source['name'])} (step {source['step']:,})."


def _groups(config: ExperimentConfig) -> str:
    rows = zip(config.model.group_scales, config.model.latent_shapes)
    return "\n".join(
        f"| {group} | {scale} | {height}x{width} | {channels} |"
        for group, (scale, (height, width, channels)) in enumerate(rows)
    )


def _evaluation(trained: TrainedModel) -> str:
    """Returns the bounds from the evaluation, or a hint if there is none."""
    result = trained.evaluation
    if not result:
        return "Not evaluated at this step: run `nvae-evaluate`, and write this card again."
    try:
        return _bounds(result)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The evaluation of {trained.origin} is not one of nvae-evaluate ({error!r}): run it "
            "again."
        ) from error


def _with_error(result: Mapping[str, Any], name: str) -> str:
    error = result[f"{name}_standard_error"]  # null for a single image
    return f"{result[name]:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _bounds(result: Mapping[str, Any]) -> str:
    return (
        f"On {result['num_images']:,} images of the split {_code(result['split'])}, per image:\n\n"
        "| | nats | bits per dimension |\n|---|---|---|\n"
        f"| -ELBO | {_with_error(result, 'negative_elbo')} "
        f"| {result['negative_elbo_bits_per_dim']:.4f} |\n"
        f"| bound with {_count(result['num_iw_samples'], 'importance-weighted draw')} "
        f"| {_with_error(result, 'iw_bound')} "
        f"| {result['iw_bound_bits_per_dim']:.4f} |\n\n"
        f"Reconstruction {result['reconstruction']:.2f}, KL {result['kl']:.2f} nats; by group, "
        f"from the lowest resolution: {', '.join(f'{kl:.2f}' for kl in result['kl_per_group'])}."
    )
