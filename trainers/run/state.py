"""The state of a training run: everything that its future depends on, in one place."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.model.nvae import NVAE
from nvae_tf.model.stacks import StackedVariables, StackLayout, Values, read_values
from nvae_tf.runs.checkpoint_files import AVERAGE, MODEL, CheckpointReader
from nvae_tf.training.regularization import Regularizer
from trainers.run.guard import Guard


class Reading(NamedTuple):
    """What the gradients of a step depend on, as tensors."""

    weights: list[tf.Tensor]  # by stack
    statistics: list[tf.Tensor]  # by stack
    singular_vectors: list[tf.Tensor]  # by stack
    loss_scale: tf.Tensor
    step: tf.Tensor


class TrainState(tf.Module):
    """Weights, moving averages, and what optimiser, regulariser and guard remember.

    All of it exists here once; a model that trains is structure alone. Create it under the
    strategy's scope.

    Args:
      model: The structure, whose variables have initial values.
      regularizer: The regulariser of that model; kernels that it needs together share a stack.
      config: The run's configuration.

    Attributes:
      weights: The trainable variables.
      statistics: The moving averages of batch normalisation.
      momentum: AdaMax's m.
      infinity_norm: AdaMax's u - ε.
      iterations: The number of steps that changed the weights, int64.
      average: The moving average of the weights, or None.
      singular_vectors: The vectors of the power iterations, by the path of their kernel.
      guard: Loss scale, and counts of what was skipped.
      step: The number of steps done, int64.
    """

    def __init__(self, model: NVAE, regularizer: Regularizer, config: ExperimentConfig):
        super().__init__(name="state")
        self._variables_of_model = model.variables
        layout = StackLayout(model.trainable_variables, regularizer.variable_groups())
        initial = read_values(model.variables)
        self.weights = StackedVariables(layout, layout.join(initial), "weights")
        layout_of_statistics = StackLayout(model.non_trainable_variables)
        self.statistics = StackedVariables(
            layout_of_statistics, layout_of_statistics.join(initial), "statistics"
        )
        self.momentum = StackedVariables.zeros(layout, "momentum")
        self.infinity_norm = StackedVariables.zeros(layout, "infinity_norm")
        self.average = (
            StackedVariables(layout, self.weights.values(), "average")
            if config.optimizer.ema_decay
            else None
        )
        self.singular_vectors = StackedVariables(
            regularizer.kernels.layout,
            regularizer.initial_vectors(config.train.seed),
            "singular_vector",
        )
        self.guard = Guard(config.train)
        self.iterations = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)

    @property
    def num_bytes(self) -> int:
        """The size of all variables, on each replica."""
        return sum(v.shape.num_elements() * v.dtype.size for v in self.variables)

    @property
    def steps_done(self) -> int:
        """The value of `step`."""
        return int(self.step.numpy())  # int() alone does not know mirrored variables

    def model_values(self) -> Values:
        """Reads weights and moving averages by path."""
        return self.weights.by_path() | self.statistics.by_path()

    def evaluation_values(self) -> Values:
        """Reads what evaluations use: `model_values`, with the average of the weights if any."""
        return (self.average or self.weights).by_path() | self.statistics.by_path()

    def first_not_finite(self) -> str | None:
        """Returns the path of the first weight or moving average with a value that is not."""
        parts = [self.weights, self.statistics, *([self.average] if self.average else [])]
        if all(tf.reduce_all(tf.math.is_finite(v)) for part in parts for v in part.values()):
            return None
        values = {path: v for part in parts for path, v in part.by_path().items()}
        return next(p for p, v in values.items() if not tf.reduce_all(tf.math.is_finite(v)))

    def read(self) -> Reading:
        """Reads what the gradients of the next step depend on; a replica reads its own copy."""
        return Reading(
            self.weights.values(),
            self.statistics.values(),
            self.singular_vectors.values(),
            tf.convert_to_tensor(self.guard.loss_scale),
            tf.convert_to_tensor(self.step),
        )

    def replace_weights(self, values: dict[str, tf.Tensor]) -> None:
        """Replaces some weights, by path, and starts their average again."""
        self.weights.assign(self.weights.layout.join(self.weights.by_path() | values))
        if self.average:
            self.average.assign(self.weights.values())

    def start_from(self, values: Values) -> None:
        """Takes weights and moving averages of another training, by path.

        The average of the weights starts again; optimiser, guard and step stay at their start.
        """
        self.replace_weights({path: values[path] for path in self.weights.paths})
        self.statistics.assign(self.statistics.layout.join(values))

    def _parts(self) -> dict[str, list[StackedVariables]]:
        """The parts of a checkpoint whose values have a path."""
        parts = {
            MODEL: [self.weights, self.statistics],
            "momentum": [self.momentum],
            "infinity_norm": [self.infinity_norm],
            "singular_vector": [self.singular_vectors],
        }
        return parts | ({AVERAGE: [self.average]} if self.average else {})

    def _scalars(self) -> dict[str, tf.Variable]:
        guard = {name: v for name, v in vars(self.guard).items() if isinstance(v, tf.Variable)}
        return {
            "step": self.step,
            "iterations": self.iterations,
            **{f"guard/{name}": variable for name, variable in guard.items()},
        }

    def checkpoint_items(self) -> dict[str, tf.Tensor]:
        """Reads everything by name: the part of the state, and the path of what it belongs to."""
        items = {name: tf.convert_to_tensor(v) for name, v in self._scalars().items()}
        for part, modules in self._parts().items():
            for module in modules:
                items |= {f"{part}/{path}": value for path, value in module.by_path().items()}
        return items

    def restore(self, reader: CheckpointReader) -> None:
        """Takes everything from a checkpoint. One of weights alone leaves the rest at its start.

        Raises:
          ValueError: The checkpoint does not hold exactly this state, or is damaged; nothing has
        changed.
        """
        reader.check_layout(self._variables_of_model)
        parts, scalars = self._parts(), self._scalars()
        weights_alone = holds_weights_alone(reader)
        if weights_alone:
            parts, scalars = {MODEL: parts[MODEL]}, {}
        names = [f"{part}/{path}" for part, ms in parts.items() for m in ms for path in m.paths]
        reader.check_names([*scalars, *names], parts)
        # All is read before anything changes, for some of it may be damaged.
        values = {name: reader.read(name) for name in [*scalars, *names]}
        for part, modules in parts.items():
            for module in modules:
                own = {path: values[f"{part}/{path}"] for path in module.paths}
                module.assign(module.layout.join(own))
        for name, variable in scalars.items():
            variable.assign(values[name])
        if weights_alone and self.average:
            self.average.assign(self.weights.values())


def holds_weights_alone(reader: CheckpointReader) -> bool:
    """Returns whether a checkpoint, such as an imported one, has nothing but a run's weights."""
    return not reader.has_part("momentum")
