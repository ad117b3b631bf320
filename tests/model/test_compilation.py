"""Functions that are nodes of a graph."""

import tensorflow as tf

from nvae_tf.model.compilation import graph_function


def test_a_trace_for_unknown_sizes_is_not_taken_for_known_ones():
    traced = []

    @graph_function
    def total(tensors, factor):
        traced.append(tuple(tensors[0].shape))
        return factor * tf.add_n(tensors)

    unknown = tf.function(
        lambda x: total([x, x], 3), autograph=False, input_signature=[tf.TensorSpec([None, 3])]
    )
    assert float(unknown(tf.ones([2, 3]))[0, 0]) == 6
    for factor in (3, 3, 4):
        assert float(total([tf.ones([4, 3]), tf.ones([4, 3])], factor)[0, 0]) == 2 * factor
    assert traced == [(None, 3), (4, 3), (4, 3)]
