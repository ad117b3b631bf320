"""Sums over replicas."""

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf.replicas as module
from nvae_tf.replicas import GroupReplicas, ReplicaGroup, Replicas, packs, replicas_of_context


def tensors(sizes):
    return [tf.reshape(tf.range(n, dtype=tf.float32), [n, 1]) for n in sizes]


def test_packs_keep_the_order_and_the_limit(monkeypatch):
    monkeypatch.setattr(module, "_PACK_BYTES", 40.0)
    given = [*tensors([3, 4, 3, 1, 20, 2]), tf.constant([1, 2]), *tensors([1])]
    result = packs(given)
    assert [len(pack) for pack in result] == [3, 1, 1, 1, 1, 1]
    for a, b in zip(given, [tensor for pack in result for tensor in pack], strict=True):
        assert a is b
    assert not packs([])


@pytest.mark.parametrize("limit", [1e9, 20.0])
def test_a_group_sums_what_its_devices_have(monkeypatch, limit):
    monkeypatch.setattr(module, "_PACK_BYTES", limit)
    group, traces = ReplicaGroup(2), []

    @tf.function(autograph=False)
    def shared(a, b, index, token):
        traces.append(index)
        replicas = GroupReplicas(group, index, token)
        return [*replicas.sum([a, b]), replicas.mean(a * tf.cast(index, tf.float32))]

    compute = shared.get_concrete_function(
        tf.TensorSpec([3]), tf.TensorSpec([2, 2]), tf.TensorSpec([], tf.int32),
        tf.TensorSpec([], tf.resource),
    )  # fmt: skip
    variables = []
    for device in tf.config.list_logical_devices("CPU")[:2]:
        with tf.device(device.name):
            variables.append(tf.Variable(0.0))

    @tf.function(autograph=False)
    def all_devices(a, b):
        results = []
        for index, variable in enumerate(variables):
            with tf.device(variable.device):
                factor = 10.0**index
                results.append(compute(a * factor, b * factor, tf.constant(index), variable.handle))
        return results

    a, b = tf.constant([1.0, 2.0, 3.0]), tf.constant([[4.0, 5.0], [6.0, 7.0]])
    for _ in range(3):
        for sum_a, sum_b, mean in all_devices(a, b):
            np.testing.assert_array_equal(sum_a, 11 * a)
            np.testing.assert_array_equal(sum_b, 11 * b)
            np.testing.assert_array_equal(mean, 5 * a)
    assert len(traces) == 1


def test_alone_nothing_is_done():
    replicas = replicas_of_context()
    assert type(replicas) is Replicas and (replicas.size, replicas.index) == (1, 0)
    tensor = tf.constant(1.0)
    assert replicas.sum([tensor])[0] is tensor and replicas.mean(tensor) is tensor


def test_groups_differ():
    assert ReplicaGroup(2).key != ReplicaGroup(2).key
