"""Rows of noise."""

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_tf import NVAE
from nvae_tf.noise import normal_rows, uniform_rows
from tests.conftest import tiny_model_config


@pytest.mark.parametrize("shape", [(4, 4, 8), (1, 1, 5), (3,), (2, 1)])
@settings(max_examples=40)
@given(
    seed=st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)),
    first=st.integers(0, 40),
    rows=st.integers(1, 9),
)
def test_any_rows_are_those_of_the_whole(shape, seed, first, rows):
    seed = tf.constant(seed, tf.int64)
    whole = tf.random.stateless_normal([first + rows, *shape], seed)
    tf.debugging.assert_equal(normal_rows(rows, shape, seed, first), whole[first:])
    whole = tf.random.stateless_uniform([first + rows, *shape], seed)
    tf.debugging.assert_equal(uniform_rows(rows, shape, seed, first), whole[first:])


def test_the_model_draws_rows_of_a_batch():
    model = NVAE.structure(tiny_model_config(num_latent_per_group=3))
    whole = model.draw_noise(7, (1, 2))
    first = tf.constant(5)  # a replica's number is a tensor
    part = tf.function(lambda first: model.draw_noise(2, (1, 2), first))(first)
    for a, b in zip(whole, part, strict=True):
        tf.debugging.assert_equal(a[5:], b)
