"""Distribution of a run over devices and workers."""

from __future__ import annotations

import json
import os
import re

import tensorflow as tf

from nvae_tf.config import TrainConfig

_WORKERS = ("chief", "worker", "evaluator")  # the jobs of a cluster that trains in step
_EXAMPLE = (
    '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Creates the strategy that `train.strategy` names.

    `auto` uses all workers if the environment lists several, otherwise all GPUs if there are
    several, and otherwise one device. With several workers, call it before any computation.

    Workers are listed by TF_CONFIG, or by Slurm for the tasks of a job step.

    `mirrored` uses all GPUs; where there are none, it uses logical devices of the CPU if the
    program has made several of them.

    Raises:
      ValueError: The name is unknown, or is `multi_worker` while nothing lists the workers, or
        `mirrored` while there is only a CPU; or TF_CONFIG is not what TensorFlow needs.
    """
    slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if name == "multi_worker" and not (os.environ.get("TF_CONFIG") or slurm):
        raise ValueError(
            "train.strategy multi_worker needs the environment variable TF_CONFIG: the workers' "
            f"addresses and this one's place, such as {_EXAMPLE}. Under Slurm, srun with several "
            "tasks is enough."
        )
    if name in ("multi_worker", "auto"):
        if text := os.environ.get("TF_CONFIG"):
            check_cluster(text)
            return tf.distribute.MultiWorkerMirroredStrategy()
        if slurm:
            resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
            return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
        if not gpus and len(cpus) == 1:
            raise ValueError(
                "train.strategy mirrored is for several GPUs, and TensorFlow sees none on this "
                "machine (see docs/gpus.md). Use train.strategy=auto."
            )
        return tf.distribute.MirroredStrategy(None if gpus else cpus)
    if name in ("auto", "one_device"):
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    raise ValueError(f"Unknown strategy {name!r}.")


def check_cluster(text: str) -> None:
    """Checks the value of TF_CONFIG, of which TensorFlow's own errors say little.

    Raises:
      ValueError: It is not JSON, lists no workers, or this process is none of them.
    """

    def require(condition: bool, fault: str) -> None:
        if not condition:
            raise ValueError(f"The environment variable TF_CONFIG {fault}, unlike {_EXAMPLE}.")

    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The environment variable TF_CONFIG is not JSON: {error}.") from error
    require(isinstance(fields, dict), "is not an object")
    cluster, task = fields.get("cluster"), fields.get("task")
    require(isinstance(cluster, dict) and bool(cluster), "has no object 'cluster'")
    for kind, addresses in cluster.items():
        require(kind in _WORKERS, f"has the job {kind!r}, which this program has no use for")
        known = isinstance(addresses, list) and all(
            isinstance(address, str) and re.fullmatch(r"\S+:\d{1,5}", address)
            for address in addresses
        )
        require(known and bool(addresses), f"has no list of HOST:PORT for {kind!r}")
    require(isinstance(task, dict), "has no object 'task'")
    kind, index = task.get("type"), task.get("index")
    require(isinstance(kind, str) and kind in cluster, f"has a task of the type {kind!r}")
    require(kind != "evaluator", "has a task of the type 'evaluator', which would train alone")
    inside = isinstance(index, int) and not isinstance(index, bool)
    require(inside and 0 <= index < len(cluster[kind]), f"has a task of the index {index!r}")


def check_devices(train: TrainConfig, replicas: int) -> None:
    """Raises a ValueError unless so many replicas can share the steps of a run."""
    if train.jit_compile == "step" and replicas > 1:
        raise ValueError(
            f"train.jit_compile=step is for one device, received {replicas} replicas. Use "
            "train.jit_compile=islands, which compiles batch normalisation."
        )
    if train.global_batch_size % (replicas * train.accumulation_steps):
        raise ValueError(
            f"train.global_batch_size must be a multiple of the {replicas} replicas times the "
            f"{train.accumulation_steps} accumulation steps, received {train.global_batch_size}."
        )


def device_names(strategy: tf.distribute.Strategy) -> str:
    """Returns the devices on which a strategy computes, with the names of the GPUs."""
    gpus = {d.name.rpartition(":")[2]: d for d in tf.config.list_physical_devices("GPU")}
    names = []
    for path in strategy.extended.worker_devices:
        kind, number = path.rpartition("device:")[2].split(":")
        known = kind == "GPU" and number in gpus
        details = tf.config.experimental.get_device_details(gpus[number]) if known else {}
        model = details.get("device_name")
        names.append(f"{kind}:{number}" + (f" ({model})" if model else ""))
    return ", ".join(names)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process is the worker that prints and writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_type == "worker" and resolver.task_id == 0
