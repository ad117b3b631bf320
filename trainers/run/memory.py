"""How much memory a traced step will need, and how much it has taken."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainers.run.traced_step import Batches
from trainers.run.trainer import Trainer

# Operations whose outputs share the memory of their inputs.
_ALIASES = {"Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "Unpack"}


def expected_memory(trainer: Trainer, batches: Batches) -> int:
    """Estimates the bytes that variables and tensors take at most, on each replica.

    They are those of the step to come, which needs others once batch normalisation is frozen.

    The operations are taken in the order in which they were traced, and what single
    kernels need for themselves, the program and TensorFlow itself are left out.
    """
    graph, replicas = trainer.traced_step().gradient_graph(batches)
    return trainer.num_bytes + peak_bytes(graph.get_operations()) // replicas


def peak_memory() -> dict[str, int]:
    """Returns the most bytes that TensorFlow has allocated on each GPU so far, by its name."""
    gpus = [
        device.name.rpartition("device:")[2] for device in tf.config.list_logical_devices("GPU")
    ]
    return {name: tf.config.experimental.get_memory_info(name)["peak"] for name in gpus}


def peak_bytes(operations: list[Any]) -> int:
    """Returns the most bytes that are alive at once if operations run in this order.

    Args:
      operations: A graph's operations, each after those whose outputs it uses. Reads of
        variables count as nothing, for they share the variables' memory.
    """
    owners: dict[str, str] = {}  # tensor to the one whose memory it shares
    last_use: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for i, operation in enumerate(operations):
        for tensor in operation.outputs:
            aliased = operation.type in _ALIASES and operation.inputs
            source = operation.inputs[0].name if aliased else None
            owners[tensor.name] = owners.get(source, tensor.name) if source else tensor.name
            if not aliased:
                sizes[tensor.name] = _bytes(operation, tensor)
        for tensor in operation.inputs:
            last_use[owners.get(tensor.name, tensor.name)] = i
    freed: dict[int, list[str]] = {}
    for name, i in last_use.items():
        freed.setdefault(i, []).append(name)
    alive = peak = 0
    for i, operation in enumerate(operations):
        for tensor in operation.outputs:
            if owners[tensor.name] == tensor.name:
                alive += sizes[tensor.name]
                if tensor.name not in last_use:
                    freed.setdefault(i, []).append(tensor.name)
        peak = max(peak, alive)
        alive -= sum(sizes.get(name, 0) for name in freed.get(i, []))
    return peak


def _bytes(operation: Any, tensor: tf.Tensor) -> int:
    if operation.type in ("ReadVariableOp", "Const", "Placeholder"):
        return 0
    count = tensor.shape.num_elements()
    return count * tensor.dtype.size if count else 0
