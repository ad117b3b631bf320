"""Variables by shape."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.model.stacks import VariableStacks


@pytest.fixture
def variables():
    shapes = [(2,), (3,), (2,), (2, 2), (2,)]
    return [keras.Variable(np.full(shape, i, np.float32)) for i, shape in enumerate(shapes)]


def test_one_stack_per_shape_and_group(variables):
    stacks = VariableStacks(variables, groups=[[variables[4], variables[0]]])
    assert [tuple(value.shape) for value in stacks.values()] == [(2, 2), (1, 3), (1, 2), (1, 2, 2)]
    np.testing.assert_array_equal(stacks.values()[0], [[4, 4], [0, 0]])
    found = stacks.lookup(stacks.values())([variables[4], variables[0]])
    np.testing.assert_array_equal(found, stacks.values()[0])


def test_values_travel_both_ways(variables):
    stacks = VariableStacks(variables)
    for stack in stacks.variables_by_stack:
        stack.assign(stack + 10)
    assert float(variables[1][0]) == 1
    stacks.store()
    assert [float(tf.reduce_max(v)) for v in variables] == [10, 11, 12, 13, 14]
    variables[3].assign(tf.zeros([2, 2]))
    stacks.load()
    for variable, value in stacks.state_mapping(stacks.values()):
        np.testing.assert_array_equal(variable, value)


def test_a_model_computes_with_given_values(variables):
    stacks = VariableStacks(variables)
    doubled = [2 * value for value in stacks.values()]
    with keras.StatelessScope(state_mapping=stacks.state_mapping(doubled)):
        assert float(tf.convert_to_tensor(variables[2])[0]) == 4
    assert float(tf.convert_to_tensor(variables[2])[0]) == 2
