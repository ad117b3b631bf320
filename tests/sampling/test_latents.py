"""Latent variables: what they decode to, between images, across priors, group by group."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import NVAE
from nvae_tf.sampling import latents
from nvae_tf.sampling.explorer import Explorer
from nvae_tf.sampling.images import to_uint8
from nvae_tf.sampling.sampler import Sampler, row_noise
from tests.conftest import random_images, tiny_model_config

GROUPS, CHANNELS = 3, 2


@pytest.fixture(scope="module")
def model():
    """With flows, a padding, and weights of which the images differ."""
    tf.keras.utils.set_random_seed(0)
    config = tiny_model_config(
        image_shape=(12, 12, 1), padding=2, num_nf=1, arch_instance="res_bnswish", use_se=False
    )
    model = NVAE(config)
    model.image_head.log_scale.assign(model.image_head.log_scale + 3)
    return model


@pytest.fixture(scope="module")
def images(model):
    return random_images(model.config, 3)


def noise_of(model, seeds):
    return row_noise(model, tf.constant([[seed, 0] for seed in seeds], tf.int64))


def generated(model, noise, temperature=1.0):
    logits = model.generate(len(noise[0]), temperature, noise)
    return model.likelihood(logits).mean()


def row(tensors, index):
    return [tensor[index : index + 1] for tensor in tensors]


def test_encode_gives_the_posterior_s_means(model, images):
    # Of the first group they can be computed by hand: its prior's parameters are zero.
    delta_loc, _ = model.groups[0].posterior_head(model.bottom_up(images)[0])
    encoded = latents.encode(model, images)
    expected = model.groups[0].flow(5 * tf.tanh(delta_loc / 5))
    np.testing.assert_allclose(encoded[0], expected, atol=1e-6)
    assert [tuple(z.shape[1:]) for z in encoded] == list(model.config.latent_shapes)


def test_encode_with_noise_draws_from_the_posterior(model, images):
    noise = model.draw_noise(3, (0, 1))
    for drawn, expected in zip(
        latents.encode(model, images, noise), model.infer(images, noise).latents
    ):
        np.testing.assert_array_equal(drawn, expected)


def test_decode_of_encode_is_reconstruct(model, images):
    for noise in (None, model.draw_noise(3, (0, 1))):
        encoded = latents.encode(model, images, noise)
        np.testing.assert_array_equal(
            latents.decode(model, encoded), latents.reconstruct(model, images, noise)
        )


def test_decode_of_drawn_latents_is_generate(model):
    noise = noise_of(model, [1, 2])
    for temperature in (0.7, 1, np.array([0.5, 0.9, 1.0]), tf.constant([[0.5], [1.0]])):
        drawn = latents.draw_latents(model, noise, temperature)
        np.testing.assert_array_equal(
            latents.decode(model, drawn), generated(model, noise, temperature)
        )


def test_interpolation_starts_and_ends_with_the_reconstructions_exactly(model, images):
    start, end = (latents.encode(model, one) for one in (images[:1], images[1:2]))
    between = latents.interpolate(start, end, tf.constant([0.0, 0.5, 1.0]))
    for index, one in ((0, images[:1]), (2, images[1:2])):
        np.testing.assert_array_equal(
            latents.decode(model, row(between, index)), latents.reconstruct(model, one)
        )
    for z, a, b in zip(between, start, end):
        np.testing.assert_allclose(z[1], (a[0] + b[0]) / 2, atol=1e-6)


def test_only_chosen_groups_are_interpolated(model, images):
    encoded = latents.encode(model, images)
    start, end = row(encoded, 0), row(encoded, 1)
    for function in (latents.interpolate, latents.interpolate_noise):
        between = function(start, end, tf.constant([0.25, 1.0]), groups=[1])
        for group in (0, 2):
            np.testing.assert_array_equal(between[group], tf.repeat(start[group], 2, axis=0))
        np.testing.assert_array_equal(between[1][1], end[1][0])
        assert np.abs(between[1][0] - start[1][0]).max() > 0
        with pytest.raises(ValueError, match="from 0 to 2, received 3"):
            function(start, end, tf.constant([0.5]), groups=[0, 3])


def test_noise_moves_along_the_great_circle():
    a, b = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 20))
    weight = tf.linspace(tf.constant(0.0, tf.float64), 1.0, 5)
    points = latents.interpolate_noise([a], [b], weight)[0].numpy()
    np.testing.assert_array_equal(points[[0, -1]], np.concatenate([a, b]))
    lengths = np.linalg.norm(points.reshape(5, -1), axis=1)
    assert lengths[1:-1].min() > 0.98 * min(lengths[0], lengths[-1])
    # With ends of one length, four steps of one angle on the sphere.
    units = latents.interpolate_noise([a / lengths[0]], [b / lengths[-1]], weight)[0].numpy()
    units = units.reshape(5, -1)
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, rtol=1e-12)
    whole = np.arccos(np.sum(a * b) / lengths[0] / lengths[-1])
    np.testing.assert_allclose(np.arccos(np.sum(units[1:] * units[:-1], axis=1)), whole / 4)


def test_parallel_opposite_and_zero_noise_make_no_nan():
    one = tf.random.stateless_normal([1, 2, 2, 2], (0, 0))
    weight = tf.constant([0.0, 0.5, 1.0])
    for other in (one, 2 * one, -one):
        path = latents.interpolate_noise([one], [other], weight)[0]
        np.testing.assert_allclose(path, [one[0], (one[0] + other[0]) / 2, other[0]], atol=1e-5)
    path = latents.interpolate_noise([one], [tf.zeros_like(one)], weight)[0]
    assert np.isfinite(path).all()


def test_traversal_sets_one_channel_to_so_many_deviations_of_its_prior(model):
    noise = noise_of(model, [3])
    drawn = latents.draw_latents(model, noise)
    group, channel = tf.constant([0, 1, 2, 1]), tf.constant([1, 0, 1, 1])
    deviations = tf.constant([-2.0, 0.0, 1.5, 3.0])
    got = latents.traverse(model, drawn, group, channel, deviations)
    for index in range(4):
        g, c = int(group[index]), int(channel[index])
        # A draw with this noise in this channel lies so many deviations from the mean.
        changed = [tensor.numpy() for tensor in noise]
        changed[g][..., c] = deviations[index]
        expected = [tensor.numpy() for tensor in drawn]
        expected[g][..., c] = latents.draw_latents(model, changed)[g][..., c]
        np.testing.assert_allclose(got[index], latents.decode(model, expected)[0], atol=1e-5)
    unchanged = latents.decode(model, drawn)[0].numpy()
    assert all(np.abs(image - unchanged).max() > 1e-4 for image in got.numpy())
    nothing = latents.traverse(
        model, drawn, tf.constant([GROUPS]), tf.constant([0]), tf.constant([1.0])
    )
    np.testing.assert_allclose(nothing[0], unchanged, atol=1e-6)


def test_variations_go_from_a_sample_to_the_reconstruction(model, images):
    noise = noise_of(model, [1, 2, 3])
    nothing = latents.vary(model, images, tf.zeros([3], tf.int32), noise, 0.7)
    np.testing.assert_allclose(nothing, generated(model, noise, 0.7), atol=1e-6)
    everything = latents.vary(model, images, tf.fill([3], GROUPS), noise, 0.7)
    np.testing.assert_allclose(everything, latents.reconstruct(model, images), atol=1e-6)


def test_variations_keep_the_first_groups(model, images):
    noise, other = noise_of(model, [1, 2, 3]), noise_of(model, [4, 5, 6])
    keep = tf.constant([1, 2, 1])
    varied = latents.vary(model, images, keep, noise)
    mixed = [other[0], noise[1], noise[2]]  # the first group is kept: its noise does not count
    np.testing.assert_allclose(latents.vary(model, images, keep, mixed), varied, atol=1e-6)
    mixed = [noise[0], other[1], noise[2]]  # it does where the second is drawn
    changed = np.abs(latents.vary(model, images, keep, mixed) - varied).max(axis=(1, 2, 3))
    assert changed[0] > 1e-4 and changed[2] > 1e-4 and changed[1] < 1e-6


def test_everything_works_in_a_graph_row_by_row(model, images):
    config = model.config

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *config.image_shape]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, 2], tf.int64),
            tf.TensorSpec([None, 1]),
        ],
        autograph=False,
    )
    def everything(images, number, seeds, temperature):
        noise = row_noise(model, seeds)
        weight = temperature[:, 0]
        encoded = latents.encode(model, images)
        turned = latents.interpolate_noise(encoded, noise, weight)
        return (
            latents.decode(model, latents.interpolate(encoded, turned, weight)),
            latents.traverse(model, encoded, number, number % CHANNELS, weight),
            latents.vary(model, images, number, noise, temperature),
        )

    arguments = (
        images,
        tf.constant([0, 1, 3]),
        tf.constant([[1, 0], [2, 0], [1, 5]], tf.int64),
        tf.constant([[0.5], [1.0], [0.7]]),
    )
    together = everything(*arguments)
    for index in range(3):
        alone = everything(*(tensor[index : index + 1] for tensor in arguments))
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[index], b[0], atol=1e-5)


def test_latents_of_another_model(model, images):
    encoded = latents.encode(model, images)
    with pytest.raises(ValueError, match="each of the 3 groups.*received"):
        latents.decode(model, encoded[:2])


@pytest.fixture
def explorer(model):
    """Of batches that divide nothing; eager, for tracing takes longer than a few images."""
    tf.config.run_functions_eagerly(True)
    yield Explorer(model, batch_size=3)
    tf.config.run_functions_eagerly(False)


def close(pictures, expected):
    """Kernels may round differently for another batch size: by one grey level."""
    return np.abs(pictures.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_pictures_between_images(model, images, explorer):
    images = images[:2]
    ends = explorer.reconstruct(images)
    assert ends.shape == (2, 8, 8, 1) and ends.dtype == np.uint8
    assert close(ends, to_uint8(model.crop_padding(latents.reconstruct(model, images))))
    path = explorer.interpolate_images(tf.concat([images, images[:1]], axis=0), steps=5)
    assert path.shape == (2, 5, 8, 8, 1)
    assert close(path[0, 0], ends[0]) and close(path[0, -1], ends[1])
    assert close(path[1], path[0, ::-1])
    assert not close(path[0, 2], ends[0]) and not close(path[0, 2], ends[1])
    still = explorer.interpolate_images(images, steps=2, groups=[])
    assert close(still[0, 1], ends[0])


def test_pictures_between_seeds(model, explorer):
    sampler = Sampler(model, batch_size=1)
    path = explorer.interpolate_seeds([4, 5, 6], steps=4, temperature=[0.5, 0.9])
    assert path.shape == (2, 4, 8, 8, 1)
    for index, seed in enumerate((4, 5, 6)):
        sample = next(sampler.batches(1, [0.5, 0.9], seed))
        assert index == 2 or close(path[index, 0], sample[0])
        assert index == 0 or close(path[index - 1, -1], sample[0])


def test_pictures_across_a_prior(model, images, explorer):
    images = images[:2]
    bases = [*explorer.encode(images[:1]), *explorer.draw([7], 0.7)]
    grid = explorer.traverse(bases, group=2, channels=[1, 0], deviations=[-2, -1, 1, 2])
    assert grid.shape == (4, 4, 8, 8, 1)
    for index, (base, channel) in enumerate((b, c) for b in bases for c in (1, 0)):
        expected = latents.traverse(
            model, base, tf.constant([2]), tf.constant([channel]), tf.constant([1.0])
        )
        assert close(grid[index, 2], to_uint8(model.crop_padding(expected))[0])


def test_pictures_of_variations(model, images, explorer):
    images = images[:2]
    counted = []
    counting = Explorer(model, batch_size=3, after_batch=counted.append)
    grid = counting.vary(images, keep_groups=[0, 3], seeds=[1, 2, 3, 4], temperature=0.7)
    assert grid.shape == (4, 4, 8, 8, 1) and counted == [3, 1] * 4
    reconstructed = explorer.reconstruct(images)
    assert close(grid[1], np.repeat(reconstructed[:1], 4, axis=0))
    assert close(grid[3], np.repeat(reconstructed[1:], 4, axis=0))
    assert close(grid[0], grid[2])  # nothing is left of the image
    assert close(grid[0, 1], next(Sampler(model, batch_size=1).batches(1, 0.7, 2))[0])


def test_pictures_follow_the_model_s_weights(model, images, explorer):
    before = explorer.reconstruct(images)
    bias = model.image_head.bias
    own = tf.identity(bias)
    bias.assign(own + 0.5)
    changed = explorer.reconstruct(images)
    bias.assign(own)
    assert not close(before, changed) and close(before, explorer.reconstruct(images))


def test_wrong_wishes(images, explorer):
    with pytest.raises(ValueError, match="two ends and two steps or more, received 1 and 8"):
        explorer.interpolate_images(images[:1], steps=8)
    with pytest.raises(ValueError, match="received 2 and 1"):
        explorer.interpolate_seeds([1, 2], steps=1)
    with pytest.raises(ValueError, match="group must be from 0 to 2, received 3"):
        explorer.traverse([], group=3, channels=[0], deviations=[1])
    with pytest.raises(ValueError, match="channels must be from 0 to 1, received 2"):
        explorer.traverse([], group=0, channels=[2], deviations=[1])
    with pytest.raises(ValueError, match="keep_groups must be from 0 to 3, received 4"):
        explorer.vary(images, keep_groups=[4], seeds=[1])
    with pytest.raises(ValueError, match="each of the 3 groups"):
        explorer.draw([1], temperature=[1, 1, 1, 1])
    for nothing in (
        lambda: explorer.reconstruct(images[:0]),
        lambda: explorer.vary(images, keep_groups=[0], seeds=[]),
        lambda: explorer.vary(images[:0], keep_groups=[0], seeds=[1]),
        lambda: explorer.traverse([], group=0, channels=[0], deviations=[1]),
        lambda: explorer.along(images[:1], [], []),
    ):
        with pytest.raises(ValueError, match="There is nothing to draw"):
            nothing()
    with pytest.raises(ValueError, match="batch_size must be at least 1, received 0"):
        Explorer(None, batch_size=0)


def test_move_adds_the_direction_to_the_groups_that_move(model, images):
    base = latents.encode(model, images[:1])
    way = latents.encode(model, images[1:2])
    moved = latents.move(base, way, tf.constant([0.0, 2.0]), groups=[1])
    for group, (z, d, m) in enumerate(zip(base, way, moved)):
        np.testing.assert_array_equal(m[0], z[0])
        np.testing.assert_allclose(m[1], z[0] + (2 * d[0] if group == 1 else 0), rtol=1e-6)
    with pytest.raises(ValueError, match="groups must be from 0 to 2, received 3"):
        latents.move(base, way, tf.constant([1.0]), groups=[3])


def test_along_leads_from_one_class_s_mean_to_the_other_s(model, images):
    explorer = Explorer(model, batch_size=2)
    a, b = explorer.mean_latents([images[:1]]), explorer.mean_latents([images[1:2], images[2:]])
    for nothing in ([], [images[:0]]):
        with pytest.raises(ValueError, match="no images"):
            explorer.mean_latents(nothing)
    each = [latents.encode(model, images[i : i + 1]) for i in (1, 2)]
    for mean, *others in zip(b, *each):
        np.testing.assert_allclose(mean, np.mean([z[0] for z in others], axis=0), atol=1e-5)
    way = [to - start for to, start in zip(b, a)]
    drawn = explorer.along(images[:1], way, [0.0, 1.0])
    ends = [latents.decode(model, [z[None] for z in end]) for end in (a, b)]
    expected = to_uint8(model.crop_padding(tf.concat(ends, axis=0)))
    assert drawn.shape == (1, 2, *model.config.content_shape)
    assert np.abs(drawn[0].astype(int) - expected).max() <= 1
