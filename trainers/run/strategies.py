"""Distribution of a run over devices and workers."""

from __future__ import annotations

import os

import tensorflow as tf


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Creates the strategy that `train.strategy` names.

    `auto` uses all workers if TF_CONFIG lists them, otherwise all GPUs if there are several, and
    otherwise one device. With several workers, call it before any computation.

    Raises:
      ValueError: if the name is unknown, or is `multi_worker` while TF_CONFIG is not set.
    """
    if name == "multi_worker" and not os.environ.get("TF_CONFIG"):
        raise ValueError(
            "train.strategy multi_worker needs the environment variable TF_CONFIG: the workers' "
            'addresses and this one\'s place, such as {"cluster": {"worker": ["host1:12345", '
            '"host2:12345"]}, "task": {"type": "worker", "index": 0}}.'
        )
    if name == "multi_worker" or (name == "auto" and os.environ.get("TF_CONFIG")):
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
        return tf.distribute.MirroredStrategy(None if gpus else cpus)
    if name in ("auto", "one_device"):
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    raise ValueError(f"Unknown strategy {name!r}.")


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process is the worker that prints and writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_type == "worker" and resolver.task_id == 0
