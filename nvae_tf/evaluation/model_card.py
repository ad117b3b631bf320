"""Model cards, filled in from the files of a run."""

from __future__ import annotations

import pathlib
import string

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
    """
    config, step = trained.config, trained.step
    height, width, channels = config.model.content_shape
    data = config.data
    fields = {
        "name": trained.name,
        "flags": trained.flags,
        "dataset": data.name,
        "step": f"{step:,}",
        "num_groups": config.model.num_groups,
        "num_scales": config.model.num_latent_scales,
        "parameters": f"{NVAE.structure(config.model).num_trainable_parameters:,}",
        "image_shape": f"{height}x{width} pixels with {channels} channel(s) of "
        f"{config.model.num_x_bits} bit(s)",
        "likelihood": _LIKELIHOODS[config.model.likelihood],
        "groups": _groups(config),
        "data": f"`{data.name}`" + (f" in `{data.data_dir}`" if data.data_dir else ""),
        "train_split": data.train_split,
        "steps": f"{step:,}",
        "batch": config.train.global_batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "learning_rate_min": config.optimizer.learning_rate_min,
        "anneal": f"{config.train.kl_anneal_portion:.0%}",
        "regularization": config.train.weight_decay_norm,
        "precision": config.train.precision,
        "seed": config.train.seed,
        "evaluation": _evaluation(trained),
        "config": config.to_json().strip(),
    }
    return string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(fields)


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
    return (
        f"On {result['num_images']:,} images of the split `{result['split']}`, per image:\n\n"
        "| | nats | bits per dimension |\n|---|---|---|\n"
        f"| -ELBO | {result['negative_elbo']:.2f} ± "
        f"{result['negative_elbo_standard_error']:.2f} "
        f"| {result['negative_elbo_bits_per_dim']:.4f} |\n"
        f"| bound with {result['num_iw_samples']} importance-weighted sample(s) "
        f"| {result['iw_bound']:.2f} ± {result['iw_bound_standard_error']:.2f} "
        f"| {result['iw_bound_bits_per_dim']:.4f} |\n\n"
        f"Reconstruction {result['reconstruction']:.2f}, KL {result['kl']:.2f} nats; by group, "
        f"from the lowest resolution: {', '.join(f'{kl:.2f}' for kl in result['kl_per_group'])}."
    )
