"""Values of many variables by path and by shape."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.model.layers.context import functional_call
from nvae_tf.model.stacks import StackedVariables, StackLayout


class Five(keras.layers.Layer):
    """A layer with five variables, the i-th of which is full of i."""

    def build(self, input_shape):
        shapes = [(2,), (3,), (2,), (2, 2), (2,)]
        self.parts = [
            self.add_weight(name=f"v{i}", shape=shape, initializer=keras.initializers.Constant(i))
            for i, shape in enumerate(shapes)
        ]
        self.built = True


@pytest.fixture
def layer():
    layer = Five(name="five")
    layer.build(None)
    return layer


@pytest.fixture
def variables(layer):
    return layer.variables


def own_values(variables):
    return {variable.path: tf.convert_to_tensor(variable) for variable in variables}


def test_one_stack_per_shape_and_group(variables):
    layout = StackLayout(variables, together=[[variables[4], variables[0]]])
    stacks = layout.join(own_values(variables))
    assert [tuple(value.shape) for value in stacks] == [(2, 2), (1, 3), (1, 2), (1, 2, 2)]
    assert layout.shapes == [(2, 2), (1, 3), (1, 2), (1, 2, 2)]
    np.testing.assert_array_equal(stacks[0], [[4, 4], [0, 0]])
    found = layout.lookup(stacks)([variables[4], variables[0]])
    np.testing.assert_array_equal(found, stacks[0])


def test_values_travel_both_ways(variables):
    layout = StackLayout(variables)
    held = StackedVariables(layout, layout.join(own_values(variables)), "held")
    for stack in held.stacks:
        stack.assign(stack + 10)
    assert float(variables[1][0]) == 1
    by_path = held.by_path()
    assert [float(tf.reduce_max(by_path[v.path])) for v in variables] == [10, 11, 12, 13, 14]
    held.assign(layout.join(by_path | {variables[3].path: tf.zeros([2, 2])}))
    for path, value in held.by_path().items():
        expected = 0 if path == variables[3].path else by_path[path]
        np.testing.assert_array_equal(value, tf.zeros_like(value) + expected)


def test_a_model_computes_with_given_values(layer, variables):
    layout = StackLayout(variables)
    doubled = [2 * value for value in layout.join(own_values(variables))]
    with functional_call(layer, layout.split(doubled)):
        assert float(tf.convert_to_tensor(variables[2])[0]) == 4
    assert float(tf.convert_to_tensor(variables[2])[0]) == 2


def test_paths_name_the_variables(variables):
    layout = StackLayout(variables)
    assert [path for group in layout.groups for path in group] == [
        "five/v0",
        "five/v2",
        "five/v4",
        "five/v1",
        "five/v3",
    ]
