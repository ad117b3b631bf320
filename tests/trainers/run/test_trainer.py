"""The training step: what it minimises, on one replica and on two."""

import functools
import itertools
import random
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.data import training_batches, training_input
from nvae_tf.model.compilation import compiled
from nvae_tf.model.layers.context import functional_call
from nvae_tf.replicas import Replicas
from nvae_tf.training.consistency import infer_with_views
from nvae_tf.training.objective import negative_elbo, objective_terms
from tests.conftest import small_experiment_config, tiny_experiment_config
from trainers.run import step as step_module
from trainers.run.memory import expected_memory
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer, has_diverged


def stored_images(config):
    """Images to train on, of random pixels."""
    return np.random.default_rng(0).integers(
        256, size=(40, *config.model.content_shape), dtype=np.uint8
    )


def first_batch(trainer):
    """The model's input in the first step, of the global batch."""
    stored = next(iter(training_batches(stored_images(trainer.config), trainer.config)))
    return training_input(stored, trainer.config, 0)


CONFIG = tiny_experiment_config(steps=100).override({"model.num_nf": 1})
SMALL = small_experiment_config(steps=100)
# As beta is 1, nothing looks at the whole of a batch.
FROZEN = SMALL.override({"train.frozen_batch_norm_portion": 1.0, "train.kl_anneal_portion": 1e-9})


@functools.cache
def strategy_of(name):
    """One per process: collective operations of several strategies get in each other's way."""
    return make_strategy(name)


def train(strategy, count, config=CONFIG):
    trainer = Trainer(config, strategy_of(strategy), num_images=100)
    guard = trainer.state.guard
    guard.loss_scale.assign(min(64.0, guard.loss_scale.numpy()))
    iterator = iter(trainer.batches(stored_images(config)))
    metrics = [trainer.step(iterator) for _ in range(count)]
    return trainer, metrics


@pytest.fixture(scope="module")
def one_replica():
    """A trainer after 20 steps, and their metrics."""
    return train("one_device", 20)


@pytest.fixture(scope="module")
def small():
    """Without flows and with a single scale, after 5 steps."""
    return train("one_device", 5, SMALL)


def test_metrics_add_up_to_the_loss(small):
    trainer, metrics = small
    for step, schedule, _ in metrics:
        assert float(step.kl) == pytest.approx(float(tf.reduce_sum(step.kl_per_group)), rel=1e-5)
        assert float(step.negative_elbo) == pytest.approx(
            float(step.reconstruction + step.kl), rel=1e-5
        )
        balanced = float(tf.reduce_sum(step.balance * step.kl_per_group))
        regularization = float(tf.reduce_sum(step.singular_values) + step.batch_norm)
        assert float(step.loss) == pytest.approx(
            float(step.reconstruction)
            + float(schedule.kl) * balanced
            + float(schedule.regularization) * regularization,
            rel=1e-5,
        )
    assert int(trainer.state.iterations) == trainer.state.steps_done == 5


def test_the_step_is_that_of_the_model_and_the_objective(small):
    fresh = Trainer(SMALL, strategy_of("one_device"), num_images=100)
    images = first_batch(fresh)
    noise = fresh.model.draw_noise(4, tf.constant([SMALL.train.seed, 0], tf.int64))
    with functional_call(fresh.model, fresh.state.model_values()):
        output = fresh.model.infer(images, noise, training=True)
    terms = objective_terms(fresh.model, images, output, 1e-4)
    first = small[1][0].batch
    expected = float(tf.reduce_mean(negative_elbo(terms)))
    assert float(first.negative_elbo) == pytest.approx(expected, rel=1e-4)


def test_standard_errors_are_those_of_the_batch(small):
    fresh = Trainer(SMALL, strategy_of("one_device"), num_images=100)
    images = first_batch(fresh)
    noise = fresh.model.draw_noise(4, tf.constant([SMALL.train.seed, 0], tf.int64))
    with functional_call(fresh.model, fresh.state.model_values()):
        output = fresh.model.infer(images, noise, training=True)
    terms = objective_terms(fresh.model, images, output, 1e-4)
    kl = tf.reduce_sum(terms.kl_per_group, axis=1)
    for error, values in zip(
        small[1][0].batch.standard_errors(4), (negative_elbo(terms), terms.reconstruction, kl)
    ):
        expected = np.std(values, ddof=1) / np.sqrt(4)
        np.testing.assert_allclose(error, expected, rtol=1e-3, atol=5e-3)


def assert_same_path(ours, theirs, rtol=1e-5, balanced=True):
    for ours_step, theirs_step in zip(ours[1], theirs[1]):
        a, b = ours_step.batch, theirs_step.batch
        for name in ("loss", "negative_elbo", "reconstruction", "kl"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol, err_msg=name)
        norms = ours_step.verdict.gradient_norm, theirs_step.verdict.gradient_norm
        np.testing.assert_allclose(*norms, rtol, err_msg="gradient_norm")
        np.testing.assert_allclose(a.kl_per_group, b.kl_per_group, rtol=1e-4, atol=1e-5)
        errors = a.standard_errors(4), b.standard_errors(4)
        np.testing.assert_allclose(*(error[1:] for error in errors), rtol=1e-3, atol=5e-3)
        # That of the -ELBO is from a mean of squares near 130^2, which float32 has to 2e-3, and the
        # square of the mean: its square is known to a third of twice that.
        np.testing.assert_allclose(*(error[0] ** 2 for error in errors), rtol=1e-3, atol=1.5e-3)
        if balanced:
            np.testing.assert_allclose(a.balance, b.balance, rtol=1e-4)


def test_two_replicas_take_the_steps_of_one(small):
    assert strategy_of("mirrored").num_replicas_in_sync == 2
    assert_same_path(train("mirrored", 5, SMALL), small)


@pytest.mark.slow
def test_two_replicas_walk_the_path_of_one(one_replica):
    assert strategy_of("mirrored").num_replicas_in_sync == 2
    two = train("mirrored", 20)
    assert_same_path(two, one_replica)
    expected = one_replica[0].state.model_values()
    for path, value in two[0].state.model_values().items():
        np.testing.assert_allclose(value, expected[path], atol=2e-3, err_msg=path)


# Without batch normalisation and, as beta is 1, without balancing: both look at the whole of a
# batch, and with accumulation at the whole of each part.
PLAIN = SMALL.override({"model.arch_instance": "res_elu", "train.kl_anneal_portion": 1e-9})


@pytest.fixture(scope="module")
def plain():
    return train("one_device", 5, PLAIN)


@pytest.mark.parametrize(
    "strategy, parts", [("one_device", 4), pytest.param("mirrored", 2, marks=pytest.mark.slow)]
)
def test_accumulation_walks_the_path_of_the_whole_batch(plain, strategy, parts):
    config = PLAIN.override({"train.accumulation_steps": parts})
    assert_same_path(train(strategy, 5, config), plain, rtol=3e-5, balanced=False)


@pytest.mark.slow
def test_accumulated_batch_statistics_are_the_mean_of_the_parts():
    config = CONFIG.override({"train.accumulation_steps": 2})
    trainer, _ = train("one_device", 1, config)
    fresh = Trainer(config, strategy_of("one_device"), num_images=100)
    images = first_batch(fresh)
    noise = fresh.model.draw_noise(4, tf.constant([config.train.seed, 0], tf.int64))
    means = []
    for rows in (slice(0, 2), slice(2, 4)):
        with functional_call(fresh.model, fresh.state.model_values()) as call:
            fresh.model.infer(images[rows], [part[rows] for part in noise], training=True)
        means.append(call.statistics)
    ours = trainer.state.statistics.by_path()
    for path, average in fresh.state.statistics.by_path().items():
        mean = (means[0][path] + means[1][path]) / 2
        expected = 0.95 * average + 0.05 * mean
        np.testing.assert_allclose(ours[path], expected, rtol=1e-3, atol=1e-5)


CONSISTENT = PLAIN.override({"train.consistency": 0.1})


@pytest.fixture(scope="module")
def consistent():
    return train("one_device", 3, CONSISTENT)


def test_views_add_their_bound_and_their_divergence(consistent):
    fresh = Trainer(CONSISTENT, strategy_of("one_device"), num_images=100)
    stored = next(iter(training_batches(stored_images(CONSISTENT), CONSISTENT)))
    images, noise = step_module.prepare(
        fresh.traced_step().definition, Replicas(), stored, tf.constant(0, tf.int64), tf.constant(0)
    )
    assert images.shape[0] == 8
    with functional_call(fresh.model, fresh.state.model_values()):
        output, divergences = infer_with_views(fresh.model, images, noise)
    batch, schedule, _ = consistent[1][0]
    terms = objective_terms(fresh.model, images, output, schedule.kl)
    bound = float(tf.reduce_mean(negative_elbo(terms)[:4]))
    assert float(batch.negative_elbo) == pytest.approx(bound, rel=1e-4)
    by_channel = np.sum(batch.kl_per_channel, axis=1)  # of the images alone, as by group
    np.testing.assert_allclose(by_channel, batch.kl_per_group, rtol=1e-4)
    inconsistency = float(tf.reduce_sum(divergences)) / 4
    assert float(batch.inconsistency) == pytest.approx(inconsistency, rel=1e-3)
    penalty = float(schedule.regularization * (tf.reduce_sum(batch.singular_values)))
    both = float(tf.reduce_sum(terms.reconstruction + schedule.kl * terms.balanced_kl)) / 4
    assert float(batch.loss) == pytest.approx(both + 0.1 * inconsistency + penalty, rel=1e-4)


@pytest.mark.parametrize(
    "strategy, changes",
    [
        ("mirrored", {}),
        ("one_device", {"train.accumulation_steps": 2}),
        pytest.param("one_device", {"train.jit_compile": "step"}, marks=pytest.mark.slow),
    ],
)
def test_views_are_those_of_the_global_batch(consistent, strategy, changes):
    theirs = (None, consistent[1])
    ours = train(strategy, 3, CONSISTENT.override(changes))
    assert_same_path(ours, theirs, rtol=3e-5, balanced=False)
    for a, b in zip(ours[1], theirs[1]):
        np.testing.assert_allclose(a.batch.inconsistency, b.batch.inconsistency, rtol=1e-3)


def test_recomputation_changes_nothing_but_memory(small):
    config = SMALL.override({"train.recompute": True})
    assert_same_path(train("one_device", 5, config), small)


@pytest.fixture(scope="module")
def frozen():
    """With frozen batch normalisation, after 5 steps."""
    return train("one_device", 5, FROZEN)


def test_frozen_batch_norm_uses_the_moving_averages_and_keeps_them(frozen):
    trainer, metrics = frozen
    fresh = Trainer(FROZEN, strategy_of("one_device"), num_images=100)
    for before, after in zip(fresh.state.statistics.stacks, trainer.state.statistics.stacks):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(fresh.state.weights.stacks, trainer.state.weights.stacks):
        assert np.any(before.numpy() != after.numpy())
    images = first_batch(fresh)
    noise = fresh.model.draw_noise(4, tf.constant([FROZEN.train.seed, 0], tf.int64))
    bounds = []
    for training in (False, True):
        with functional_call(fresh.model, fresh.state.model_values()):
            output = fresh.model.infer(images, noise, training=training)
        terms = objective_terms(fresh.model, images, output, 1e-4)
        bounds.append(float(tf.reduce_mean(negative_elbo(terms))))
    assert float(metrics[0].batch.negative_elbo) == pytest.approx(bounds[0], rel=1e-5)
    assert abs(bounds[1] - bounds[0]) > 1e-2


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("one_device", {"train.recompute": True}),
        ("one_device", {"train.jit_compile": "islands"}),
        pytest.param("one_device", {"train.jit_compile": "step"}, marks=pytest.mark.slow),
        ("one_device", {"train.accumulation_steps": 2}),
        ("mirrored", {}),
    ],
)
def test_frozen_batch_norm_does_not_depend_on_how_a_batch_is_computed(frozen, strategy, changes):
    ours = train(strategy, 3, FROZEN.override(changes))
    assert_same_path(ours, (frozen[0], frozen[1][:3]), rtol=3e-5, balanced=False)


def test_frozen_batch_norm_in_mixed_precision_stays_near_float32(frozen):
    config = FROZEN.override({"train.precision": "mixed_bfloat16"})
    for ours, theirs in zip(train("one_device", 3, config)[1], frozen[1]):
        bounds = ours.batch.negative_elbo, theirs.batch.negative_elbo
        np.testing.assert_allclose(*bounds, rtol=3e-2)
        assert bool(ours.verdict.applied)


@pytest.mark.parametrize("strategy", ["one_device", "mirrored"])
def test_batch_norm_is_frozen_for_the_last_share_of_the_steps(strategy):
    config = small_experiment_config(steps=5).override(
        {"train.frozen_batch_norm_portion": 0.5, "train.kl_anneal_portion": 1e-9}
    )
    trainer = Trainer(config, strategy_of(strategy), num_images=100)
    assert trainer.schedule.frozen_from == 3
    iterator = iter(trainer.batches(stored_images(config)))

    def values():
        return {path: value.numpy() for path, value in trainer.state.model_values().items()}

    states, metrics = [values()], []
    for _ in range(5):
        metrics.append(trainer.step(iterator))
        states.append(values())
    averages, weights = trainer.state.statistics.by_path(), trainer.state.weights.by_path()
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        moved = {path for path in before if np.any(before[path] != after[path])}
        assert moved & set(averages) == (set(averages) if step < 3 else set())
        assert moved & set(weights) or step == 0  # where the learning rate is 0
    # The first frozen step is inference with the values that the steps before it have left.
    stored = next(iter(training_batches(stored_images(config), config, start=3)))
    images = training_input(stored, config, 3)
    noise = trainer.model.draw_noise(4, tf.constant([config.train.seed, 3], tf.int64))
    with functional_call(trainer.model, states[3]):
        terms = objective_terms(trainer.model, images, trainer.model.infer(images, noise), 1.0)
    expected = float(tf.reduce_mean(negative_elbo(terms)))
    assert float(metrics[3].batch.negative_elbo) == pytest.approx(expected, rel=1e-5)


def test_a_trainer_leaves_random_numbers_alone():
    def seed():
        random.seed(5), np.random.seed(5), keras.utils.set_random_seed(5)

    def numbers():
        ours = random.random(), np.random.rand()
        return *ours, float(tf.random.uniform([])), float(keras.random.uniform([]))

    seed()
    expected = numbers()
    seed()
    first = Trainer(SMALL, strategy_of("one_device"), num_images=100)
    assert numbers() == expected
    again = Trainer(SMALL, strategy_of("one_device"), num_images=100)
    for a, b in zip(first.state.model_values().values(), again.state.model_values().values()):
        np.testing.assert_array_equal(a, b)


def test_frozen_batch_norm_takes_no_more_memory():
    def expected(config):
        trainer = Trainer(config, strategy_of("one_device"), num_images=100)
        return expected_memory(trainer, trainer.batches(stored_images(config)))

    assert expected(FROZEN) <= expected(SMALL)


def test_frozen_batch_norm_normalises_views_alike():
    config = FROZEN.override({"train.consistency": 0.1})
    whole = train("one_device", 2, config)
    parts = train("one_device", 2, config.override({"train.accumulation_steps": 2}))
    assert_same_path(parts, whole, rtol=3e-5, balanced=False)


@pytest.mark.parametrize(
    ("strategy", "jit_compile"),
    [
        ("one_device", "islands"),
        pytest.param("one_device", "step", marks=pytest.mark.slow),
        ("mirrored", "islands"),
    ],
)
def test_compilation_changes_no_result(small, strategy, jit_compile):
    config = SMALL.override({"train.jit_compile": jit_compile})
    assert_same_path(train(strategy, 3, config), (small[0], small[1][:3]))


def test_the_whole_step_is_compiled_for_one_device_only():
    config = SMALL.override({"train.jit_compile": "step"})
    with pytest.raises(ValueError, match="is for one device, received 2 replicas"):
        Trainer(config, strategy_of("mirrored"), num_images=100)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_xla_does_not_merge_what_is_recomputed(precision):
    def convolutions(recompute):
        overrides = {"train.recompute": recompute, "train.precision": precision}
        config = SMALL.override(overrides | {"train.jit_compile": "step"})
        trainer = Trainer(config, strategy_of("one_device"), num_images=100)
        run, reading = trainer.traced_step().definition, trainer.state.read()
        stored = next(iter(trainer.batches(stored_images(config))))
        part = tf.constant(0)
        images, noise = step_module.prepare(run, Replicas(), stored, reading.step, part)
        step = compiled(functools.partial(step_module.forward_backward, run, Replicas()))
        lowered = step.experimental_get_compiler_ir(
            reading, images, noise, part, tf.constant(False)
        )
        return len(re.findall(r" convolution\(|convolution.*custom-call", lowered("optimized_hlo")))

    assert convolutions(recompute=True) > convolutions(recompute=False) > 0


def test_recomputation_sums_no_statistics_again():
    def reductions(recompute):
        config = SMALL.override({"train.recompute": recompute})
        trainer = Trainer(config, strategy_of("mirrored"), num_images=100)
        graph, _ = trainer.traced_step().gradient_graph(trainer.batches(stored_images(config)))
        definition = graph.as_graph_def()
        nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
        return sum(node.op == "CollectiveReduceV2" for node in nodes)

    assert reductions(recompute=True) == reductions(recompute=False) > 1


@pytest.mark.slow
def test_recomputation_on_two_replicas(one_replica):
    config = CONFIG.override({"train.recompute": True})
    ours = train("mirrored", 3, config)
    assert_same_path(ours, (one_replica[0], one_replica[1][:3]))


@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        ("one_device", 1),
        pytest.param("mirrored", 1, marks=pytest.mark.slow),
        pytest.param("mirrored", 2, marks=pytest.mark.slow),
    ],
)
def test_clipping_is_of_the_global_gradient(strategy, parts):
    # Without momentum and decay, the first step of AdaMax is -rate g / (|g| + eps).
    config = SMALL.override(
        {
            "optimizer.clip_norm": 1e-4,
            "optimizer.weight_decay": 0.0,
            "optimizer.warmup_epochs": 0.0,
            "optimizer.epsilon": 1.0,
            "optimizer.learning_rate": 1000.0,
            "optimizer.learning_rate_min": 0.0,
            "train.accumulation_steps": parts,
        }
    )
    trainer = Trainer(config, strategy_of(strategy), num_images=100)
    before = [weight.numpy() for weight in trainer.state.weights.values()]
    norm = float(trainer.step(iter(trainer.batches(stored_images(config)))).verdict.gradient_norm)
    change = [a - b.numpy() for a, b in zip(before, trainer.state.weights.values())]
    assert norm > 0.5
    applied = np.sqrt(sum(np.square(c.astype(np.float64)).sum() for c in change))
    assert applied == pytest.approx(1000 * 1e-4, rel=1e-3)


def state(trainer):
    return [value.numpy() for value in trainer.state.model_values().values()]


@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        ("one_device", 1),
        pytest.param("mirrored", 1, marks=pytest.mark.slow),
        pytest.param("mirrored", 2, marks=pytest.mark.slow),
    ],
)
def test_an_infinite_gradient_on_any_replica_changes_no_weight(monkeypatch, strategy, parts):
    config = SMALL.override({"train.precision": "mixed_float16", "train.accumulation_steps": parts})
    trainer = Trainer(config, strategy_of(strategy), num_images=100)
    trainer.state.guard.loss_scale.assign(64.0)
    poisoned = tf.Variable(-1)  # replica
    objective = step_module.objective_terms

    def terms(*args):
        result = objective(*args)
        factor = tf.where(tf.equal(poisoned, args[-1].index), np.inf, 1.0)
        return result._replace(reconstruction=result.reconstruction * factor)

    monkeypatch.setattr(step_module, "objective_terms", terms)
    replicas = trainer.strategy.num_replicas_in_sync
    steps = 1 + 2 * replicas
    iterator = iter(trainer.batches(stored_images(config)))
    assert bool(trainer.step(iterator).verdict.applied)
    for skipped, replica in enumerate(range(replicas), start=1):
        before, scale = state(trainer), float(trainer.state.guard.loss_scale.numpy())
        poisoned.assign(replica)
        metrics = trainer.step(iterator).verdict
        assert not bool(metrics.applied) and int(metrics.skipped) == skipped
        assert float(trainer.state.guard.loss_scale.numpy()) == scale / 2
        for a, b in zip(state(trainer), before):
            np.testing.assert_array_equal(a, b)
        poisoned.assign(-1)
        assert bool(trainer.step(iterator).verdict.applied)
    assert int(trainer.state.iterations.numpy()) == steps - replicas
    assert trainer.state.steps_done == steps
    assert all(np.all(np.isfinite(values)) for values in state(trainer))


@pytest.mark.parametrize(
    "precision, rtol",
    [pytest.param("mixed_float16", 5e-3, marks=pytest.mark.slow), ("mixed_bfloat16", 3e-2)],
)
def test_mixed_precision_stays_near_float32(small, precision, rtol):
    ours = train("one_device", 5, SMALL.override({"train.precision": precision}))
    for a, b in zip(ours[1], small[1]):
        np.testing.assert_allclose(a.batch.negative_elbo, b.batch.negative_elbo, rtol=rtol)
        assert bool(a.verdict.applied)
    assert all(v.dtype == tf.float32 for v in ours[0].state.model_values().values())


def test_the_average_follows_the_weights():
    config = SMALL.override({"optimizer.ema_decay": 0.75})
    trainer = Trainer(config, strategy_of("one_device"), num_images=100)
    expected = [weight.numpy() for weight in trainer.state.weights.values()]
    iterator = iter(trainer.batches(stored_images(config)))
    for _ in range(3):
        trainer.step(iterator)
        expected = [
            0.75 * a + 0.25 * w.numpy() for a, w in zip(expected, trainer.state.weights.values())
        ]
    for a, b in zip(trainer.state.average.stacks, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    weights = [weight.numpy() for weight in trainer.state.weights.values()]
    path = trainer.model.stem.kernel.path
    averaged, kernel = (
        values[path].numpy()
        for values in (trainer.state.evaluation_values(), trainer.state.model_values())
    )
    assert np.abs(kernel - averaged).max() > 0
    for a, b in zip(trainer.state.weights.values(), weights):
        np.testing.assert_array_equal(a, b)


def test_several_steps_that_are_not_finite_count_as_diverged():
    config = SMALL
    trainer = Trainer(config, strategy_of("auto"), num_images=100)
    path = trainer.model.image_head.bias.path
    trainer.state.replace_weights({path: tf.constant([np.nan], tf.float32)})
    iterator = iter(trainer.batches(stored_images(config)))
    diverged = [has_diverged(trainer.step(iterator)) for _ in range(6)]
    assert diverged == [False] * 4 + [True] * 2
    at_the_end = Trainer(config, strategy_of("auto"), num_images=100)
    at_the_end.state.replace_weights({path: tf.constant([np.nan], tf.float32)})
    metrics = at_the_end.step(iter(at_the_end.batches(stored_images(config))))
    assert has_diverged(metrics, last=True)
    scaled = metrics.verdict._replace(loss_scale=tf.constant(1024.0))  # it will fall first
    assert not has_diverged(metrics._replace(verdict=scaled), last=True)
    assert int(trainer.state.iterations) == 0 and int(trainer.state.guard.skipped) == 6


def test_the_batch_must_divide_over_the_replicas():
    config = tiny_experiment_config(global_batch_size=3)
    with pytest.raises(ValueError, match="2 replicas times the 1 accumulation steps, received 3"):
        Trainer(config, strategy_of("mirrored"), num_images=100)


def test_too_few_images():
    with pytest.raises(ValueError, match="has 3 images, fewer than train.global_batch_size 4"):
        Trainer(tiny_experiment_config(), make_strategy("auto"), num_images=3)
