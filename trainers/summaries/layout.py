"""The layout of TensorBoard's page of custom scalars, and the tags that it refers to."""

from __future__ import annotations

from tensorboard.plugins.custom_scalar import layout_pb2

from nvae_tf.config import ModelConfig

MARGINS = ("negative_elbo", "reconstruction", "kl")  # drawn with the 95 % margins of their means


def group_name(group: int) -> str:
    """Returns the name `group_00` of the lowest resolution, …; TensorBoard sorts by number."""
    return f"group_{group:02d}"


def group_tag(quantity: str, group: int) -> str:
    """Returns the tag of a group's quantity, such as `kl/group_00`."""
    return f"{quantity}/{group_name(group)}"


def margin_tags(name: str) -> tuple[str, str]:
    """Returns the tags of the lower and the upper end of the margin around `loss/<name>`."""
    return f"margin/{name}_lower", f"margin/{name}_upper"


def chart_layout(config: ModelConfig) -> layout_pb2.Layout:
    """Returns the charts of TensorBoard's page of custom scalars, each with its tags."""
    groups = range(config.num_groups)
    scales = [
        _lines(
            f"KL of scale {scale}, {height}x{width}",
            *(group_tag("kl", group) for group in groups if config.group_scales[group] == scale),
        )
        for scale in dict.fromkeys(config.group_scales)
        for height, width, _ in {
            config.latent_shapes[group] for group in groups if config.group_scales[group] == scale
        }
    ]
    return layout_pb2.Layout(
        category=[
            _category("KL of the groups", _lines("All groups, nats", r"kl/group_\d+"), *scales),
            _category(
                "Bound",
                _margins("Parts with the 95 % margins of their means, nats"),
                _lines("Parts without margins, nats", *(f"loss/{name}" for name in MARGINS)),
                _lines("Bits per dimension", "loss/bits_per_dim"),
            ),
            _category(
                "Schedules",
                _lines("KL weight beta", "schedule/beta"),
                _lines("Balancing of the groups", r"kl_balance/group_\d+"),
                _lines("Regularisation weight lambda", "schedule/lambda"),
                _lines("Learning rate", "schedule/learning_rate"),
            ),
            _category(
                "Health",
                _lines("Active channels of the groups", r"kl_active_channels/group_\d+"),
                _lines("Gradient norm", "training/gradient_norm"),
                _lines("Largest singular value", "spectral_norm/largest"),
                _lines("Loss scale", "training/loss_scale"),
                _lines("Skipped steps", "training/skipped_steps"),
                _lines("Images per second", "training/images_per_second"),
                _lines("Share of the time spent waiting for data", "training/waiting_for_data"),
            ),
        ]
    )


def _category(title: str, *charts: layout_pb2.Chart) -> layout_pb2.Category:
    return layout_pb2.Category(title=title, chart=charts)


def _lines(title: str, *tags: str) -> layout_pb2.Chart:
    content = layout_pb2.MultilineChartContent(tag=[f"{tag}$" for tag in tags])
    return layout_pb2.Chart(title=title, multiline=content)


def _margins(title: str) -> layout_pb2.Chart:
    series = []
    for name in MARGINS:
        lower, upper = margin_tags(name)
        series.append(
            layout_pb2.MarginChartContent.Series(value=f"loss/{name}", lower=lower, upper=upper)
        )
    return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=series))
