"""The replicas that compute a step together, as layers and objective see them.

Whatever looks at the whole batch (batch normalisation, the balance of the KL terms, the gradients)
needs sums over the replicas. Which ones there are travels as an argument.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import tensorflow as tf

_PACK_BYTES = 50e6  # of what is summed at a time: enough to use a link, little beside the weights


class Replicas:
    """One replica, which is alone.

    Attributes:
      size: The number of replicas.
      index: The number of this one, from 0.
    """

    size: int = 1
    index: int | tf.Tensor = 0

    def sum(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the sums of the replicas' tensors; all replicas must ask for them."""
        return list(tensors)

    def mean(self, tensor: tf.Tensor) -> tf.Tensor:
        """Returns the mean of the replicas' tensors; all replicas must ask for it."""
        return self.sum([tensor])[0] / self.size if self.size > 1 else tensor


class ContextReplicas(Replicas):
    """The replicas of a `tf.distribute` strategy, each of which is traced by itself.

    Args:
      context: The replica's context.
    """

    def __init__(self, context: tf.distribute.ReplicaContext):
        self._context = context
        self.size = context.num_replicas_in_sync
        self.index = context.replica_id_in_sync_group

    def sum(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return self._context.all_reduce("sum", list(tensors))


class ReplicaGroup:
    """The devices of one process that call the same traced function, each with its own values.

    TensorFlow's replica contexts make every replica's thread trace the step again. Its collective
    operations need no context: they meet by two numbers, which may be the same constants in all
    replicas, and only their devices differ.

    Args:
      size: The number of devices.
    """

    # Any two groups of a process must differ, and TensorFlow counts its own from 1.
    _keys = itertools.count(1 << 20)

    def __init__(self, size: int):
        self.size = size
        self.key = next(ReplicaGroup._keys)
        self._instances = itertools.count(1)

    def next_instance(self) -> int:
        """Returns the number of the next collective operation that is traced."""
        return next(self._instances)


class GroupReplicas(Replicas):
    """The replicas of a group, inside of the function that all of them call.

    Args:
      group: The group.
      index: The number of the replica that calls, a scalar int32.
      token: A resource of that replica's device. It keeps collective operations in their order,
        which must be the same on all devices.
    """

    def __init__(self, group: ReplicaGroup, index: tf.Tensor, token: tf.Tensor):
        self._group = group
        self._token = token
        self.size = group.size
        self.index = index

    def sum(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        sums: list[tf.Tensor] = []
        for pack in packs(tensors):
            if len(pack) == 1:
                sums.append(self._all_reduce(pack[0]))
                continue
            flat = self._all_reduce(tf.concat([tf.reshape(t, [-1]) for t in pack], axis=0))
            parts = tf.split(flat, [t.shape.num_elements() for t in pack])
            sums += [tf.reshape(part, t.shape) for part, t in zip(parts, pack)]
        return sums

    def _all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.CollectiveReduceV2(
            input=tensor,
            group_size=self._group.size,
            group_key=self._group.key,
            instance_key=self._group.next_instance(),
            ordering_token=[self._token],
            merge_op="Add",
            final_op="Id",
        )


def packs(tensors: Sequence[tf.Tensor]) -> list[list[tf.Tensor]]:
    """Divides tensors, in their order, into packs of one type and at most about 50 MB."""
    result: list[list[tf.Tensor]] = []
    room = 0.0
    for tensor in tensors:
        size = tensor.shape.num_elements() * tensor.dtype.size
        if not result or size > room or tensor.dtype != result[-1][0].dtype:
            result.append([])
            room = _PACK_BYTES
        result[-1].append(tensor)
        room -= size
    return result


def replicas_of_context() -> Replicas:
    """Returns the replicas of the `tf.distribute` context that this thread is in."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return Replicas()
    return ContextReplicas(context)
