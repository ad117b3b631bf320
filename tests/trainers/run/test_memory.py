"""The estimate of a step's memory."""

import tensorflow as tf

from trainers.run.memory import peak_bytes


def graph_of(function):
    spec = tf.TensorSpec([1000], tf.float32)
    return tf.function(function, autograph=False).get_concrete_function(spec).graph


def test_what_is_needed_later_stays_alive():
    def chain(x):
        for _ in range(5):
            x = tf.sin(x)
        return x

    def all_at_once(x):
        parts = []
        for _ in range(5):
            x = tf.sin(x)
            parts.append(x)
        return tf.add_n(parts)

    assert peak_bytes(graph_of(chain).get_operations()) == 2 * 4000
    assert peak_bytes(graph_of(all_at_once).get_operations()) == 6 * 4000


def test_views_cost_nothing():
    def reshaped(x):
        return tf.sin(tf.reshape(tf.reshape(tf.sin(x), [10, 100]), [1000]))

    assert peak_bytes(graph_of(reshaped).get_operations()) == 2 * 4000
