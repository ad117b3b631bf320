"""Configurations: derived facts, validation, round trips."""

import dataclasses
import math
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvae_tf import presets
from nvae_tf.architectures import ARCHITECTURES, parse_operation
from nvae_tf.config import DataConfig, ExperimentConfig, ModelConfig, OptimizerConfig, TrainConfig


def test_groups_per_scale_are_the_reference_s(golden):
    for case in golden("schedules.json")["groups_per_scale"]:
        config = ModelConfig(
            image_shape=(64, 64, 3),
            num_latent_scales=case["num_scales"],
            num_groups_per_scale=case["num_groups"],
            ada_groups=case["adaptive"],
            min_groups_per_scale=case["min_groups"],
        )
        assert list(config.groups_per_scale) == case["value"]


def test_the_minimum_is_of_the_scales_below_the_first():
    config = ModelConfig(
        num_latent_scales=3, num_groups_per_scale=1, ada_groups=True, min_groups_per_scale=2
    )
    assert config.groups_per_scale == (1, 2, 2)
    odd = ModelConfig(num_latent_scales=3, num_groups_per_scale=5, ada_groups=True)
    assert odd.groups_per_scale == (5, 2, 1)


@given(
    scales=st.integers(1, 4),
    groups=st.integers(1, 9),
    ada=st.booleans(),
    minimum=st.integers(1, 5),
    blocks=st.integers(0, 2),
    cells=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_latent_shapes_follow_the_hierarchy(scales, groups, ada, minimum, blocks, cells):
    divisor = 2 ** (blocks + scales - 1)
    config = ModelConfig(
        image_shape=(divisor * cells[0], divisor * cells[1], 3),
        num_latent_scales=scales,
        num_groups_per_scale=groups,
        ada_groups=ada,
        min_groups_per_scale=minimum,
        num_preprocess_blocks=blocks,
        num_postprocess_blocks=blocks,
    )
    shapes = config.latent_shapes
    assert len(shapes) == config.num_groups == len(config.group_scales)
    assert shapes[0][:2] == cells  # the deepest scale
    assert shapes[-1][:2] == tuple(c * 2 ** (scales - 1) for c in cells)
    assert list(config.group_scales) == sorted(config.group_scales, reverse=True)
    assert config.image_size_divisor == divisor


@pytest.mark.parametrize("name", presets.names())
def test_presets_survive_json(name):
    config = presets.get(name)
    assert ExperimentConfig.from_json(config.to_json()) == config


def test_paper_presets_have_the_paper_s_settings():
    expected = {  # groups, latents, channels, flows, bits, lambda, epochs
        "mnist": (15, 20, 32, 0, 1, 1e-2, 400),
        "cifar10": (30, 20, 128, 1, 8, 1e-2, 400),
        "celeba64": (35, 20, 64, 1, 8, 1e-1, 90),
        "imagenet32": (28, 20, 192, 1, 8, 1e-2, 45),
        "celebahq256": (36, 20, 30, 2, 5, 1e-2, 300),
        "ffhq256": (36, 20, 30, 2, 5, 1e-1, 200),
    }
    for name, values in expected.items():
        config = presets.get(name)
        model = config.model
        assert values == (
            model.num_groups,
            model.num_latent_per_group,
            model.num_channels_enc,
            model.num_nf,
            model.num_x_bits,
            config.train.weight_decay_norm,
            config.train.epochs,
        )
        assert model.num_channels_dec == model.num_channels_enc
        assert model.use_se and model.res_dist and model.arch_instance == "res_mbconv"


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'cifar'.*mnist, cifar10"):
        presets.get("cifar")


@pytest.mark.parametrize(
    ("config_class", "changes", "message"),
    [
        (ModelConfig, {"image_shape": (28, 28, 1)}, r"divisible by 32.*28x28"),
        (ModelConfig, {"image_shape": (32, 36, 1)}, r"divisible by 32.*32x36"),
        (ModelConfig, {"image_shape": (32, 32)}, r"\(height, width, channels\)"),
        (ModelConfig, {"num_nf": "1"}, r"num_nf must be of type int, received '1' \(str\)"),
        (ModelConfig, {"use_se": 1}, "use_se must be of type bool"),
        (ModelConfig, {"num_nf": -1}, "num_nf must be 0 to 100; received -1"),
        (ModelConfig, {"likelihood": "gauss"}, "bernoulli, logistic_mixture, normal"),
        (ModelConfig, {"likelihood": "bernoulli"}, "num_x_bits must be 1, received 8"),
        (ModelConfig, {"num_x_bits": 9}, "1 to 8; received 9"),
        (ModelConfig, {"arch_instance": "resnet"}, "res_mbconv.*received 'resnet'"),
        (ModelConfig, {"num_postprocess_blocks": 2}, "must be equal.*1 and 2"),
        (ModelConfig, {"padding": 16}, "leaves nothing"),
        (
            ModelConfig,
            {"arch_instance": "mbconv_den", "num_channels_dec": 12},
            "divisible by 8, received 32 and 12",
        ),
        (DataConfig, {"crop": (1, 2)}, r"\(top, left, height, width\)"),
        (DataConfig, {"name": ""}, "must not be empty"),
        (OptimizerConfig, {"learning_rate": 0.0}, r"in \(0, 1000\]; received 0.0"),
        (OptimizerConfig, {"learning_rate_min": 1.0}, "must not exceed"),
        (OptimizerConfig, {"beta_2": 1.0}, r"in \(0, 1\); received 1.0"),
        (TrainConfig, {"strategy": "tpu"}, "mirrored, multi_worker; received 'tpu'"),
        (TrainConfig, {"precision": "float64"}, "mixed_bfloat16; received 'float64'"),
        (TrainConfig, {"skip_gradient_norm": 0.5}, "above 1, or 0 for no limit; received 0.5"),
        (TrainConfig, {"accumulation_steps": 0}, "1 to 1,000,000; received 0"),
        (TrainConfig, {"kl_anneal_portion": 0.0}, r"in \(0, 1\]"),
        (TrainConfig, {"kl_const_portion": 0.9}, "at most 1, or beta never.*received 0.9 and 0.3"),
        (TrainConfig, {"global_batch_size": 0}, "1 to 1,000,000; received 0"),
    ],
)
def test_what_is_not_allowed_is_named(config_class, changes, message):
    options = {"num_latent_scales": 5} if "image_shape" in changes else {}
    with pytest.raises(ValueError, match=message):
        config_class(**options, **changes)


FLOATS = [name for name, value in ExperimentConfig().flat().items() if isinstance(value, float)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_numbers_are_finite(name, value):
    with pytest.raises(ValueError, match=rf"{name.partition('.')[2]} must be finite"):
        ExperimentConfig().override({name: value})


@pytest.mark.parametrize("name", ExperimentConfig().flat())
def test_every_number_has_bounds(name):
    default, option = ExperimentConfig().flat()[name], ExperimentConfig().options()[name]
    assert option.meaning
    if isinstance(default, (int, float, tuple)) and not isinstance(default, bool):
        many = isinstance(default, tuple)
        for outside in (option.low - 1, 2 * option.high + 1):
            value = (int(outside),) * max(len(default), 4) if many else type(default)(outside)
            with pytest.raises(ValueError, match=f"{name.partition('.')[2]} must be"):
                ExperimentConfig().override({name: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "a JSON object of sections"),
        ("3", "a JSON object of sections"),
        ('{"model": 3}', "sections, each of them an object"),
        ("{", "is JSON: Expecting property name"),
        ('{"model": {"num_nf": null}}', r"ModelConfig\.num_nf must be of type int, received None"),
        (
            f'{{"optimizer": {{"learning_rate": 1{"0" * 400}}}}}',
            r"OptimizerConfig\.learning_rate: the number is too large for a float",
        ),
        ('{"data": {"crop": [0, 0, 0, 4]}}', r"crop must be empty or .*received \(0, 0, 0, 4\)"),
        ('{"data": {"raw_shape": [3, 3]}}', r"raw_shape must be empty or .*received \(3, 3\)"),
    ],
)
def test_json_of_another_shape(text, message):
    with pytest.raises(ValueError, match=message):
        ExperimentConfig.from_json(text)


VALUES = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.none(),
    st.lists(st.integers(-5, 10**6), max_size=4), st.sampled_from([1e308, 10**12, -1, 0, 1, 2]),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(list(ExperimentConfig().flat())), VALUES, max_size=4))
def test_any_configuration_is_clear(changes):
    try:
        config = ExperimentConfig().override(changes)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert ExperimentConfig.from_json(config.to_json()) == config
        assert 1 <= config.model.num_groups <= 1200
        assert math.prod(config.model.image_shape) <= 4096**3


def test_override_changes_only_what_it_names():
    config = presets.get("mnist").override({"model.num_nf": 2, "train.seed": 7})
    assert config.model.num_nf == 2 and config.train.seed == 7
    assert config.override({"model.num_nf": 0, "train.seed": 0}) == presets.get("mnist")


def test_epochs_that_would_do_nothing_are_an_error():
    config = presets.get("quickstart")
    with pytest.raises(ValueError, match="if train.steps is 0, and that is 1200"):
        config.override({"train.epochs": 3})
    assert config.override({"train.epochs": 3, "train.steps": 0}).train.epochs == 3
    assert presets.get("mnist").override({"train.epochs": 3}).train.epochs == 3


@pytest.mark.parametrize("path", ["model.num_nfs", "num_nf", "network.num_nf", "?"])
def test_override_of_an_unknown_field_lists_near_ones(path):
    with pytest.raises(ValueError, match=rf"'{re.escape(path)}'.*model\.num_nf"):
        ExperimentConfig().override({path: 1})


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().num_nf = 3


def test_all_operations_of_all_architectures_parse():
    for cells in ARCHITECTURES.values():
        for names in dataclasses.astuple(cells):
            assert names
            for name in names:
                parse_operation(name)
    with pytest.raises(ValueError, match="mconv_e6k5"):
        parse_operation("mconv_e6k5")
