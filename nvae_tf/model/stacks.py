"""Many small variables as few large ones.

A deep NVAE has thousands of variables in a few dozen shapes. What a training step does to each of
them (read, reduce over replicas, clip, update, average) it does here once per shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import keras
import tensorflow as tf

# Gives several variables of one shape as one tensor, stacked along a new first axis.
StackFunction = Callable[[Sequence[keras.Variable]], tf.Tensor]


def stack_variables(variables: Sequence[keras.Variable]) -> tf.Tensor:
    """The variables' values (n, ...), read and copied one by one."""
    return tf.stack([tf.convert_to_tensor(variable) for variable in variables])


class VariableStacks(tf.Module):
    """Copies of a model's variables, those of one shape in one variable (n, ...).

    While a model trains, the stacks hold the truth; `store` brings it back to the model.
    Inside `keras.StatelessScope(stacks.state_mapping(values))` a model computes with the stacks'
    values instead of its variables' own.

    Args:
      variables: of the model; their values are copied.
      groups: variables that must share a stack, in that order; the others are grouped by shape.
      name: of the module.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        groups: Iterable[Sequence[keras.Variable]] = (),
        name: str = "stacks",
    ):
        super().__init__(name=name)
        self._groups = [tuple(group) for group in groups]
        grouped = {id(variable) for group in self._groups for variable in group}
        by_shape: dict[tuple, list[keras.Variable]] = {}
        for variable in variables:
            if id(variable) not in grouped:
                by_shape.setdefault(tuple(variable.shape), []).append(variable)
        self._groups += [tuple(group) for group in by_shape.values()]
        self.variables_by_stack = [
            tf.Variable(stack_variables(group), trainable=False, name="stack")
            for group in self._groups
        ]

    def values(self) -> list[tf.Tensor]:
        """One tensor (n, ...) per stack."""
        return [tf.convert_to_tensor(stack) for stack in self.variables_by_stack]

    def state_mapping(self, values: Sequence[tf.Tensor]) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Each variable with its part of the stacks' values."""
        return [
            pair
            for group, value in zip(self._groups, values)
            for pair in zip(group, tf.unstack(value))
        ]

    def lookup(self, values: Sequence[tf.Tensor]) -> StackFunction:
        """A function that finds the stack of a group among the values, instead of copying."""
        by_group = {tuple(map(id, group)): value for group, value in zip(self._groups, values)}
        return lambda variables: by_group[tuple(map(id, variables))]

    def restack(self, value_of: Callable[[keras.Variable], tf.Tensor]) -> list[tf.Tensor]:
        """Stacks (n, ...) of what a function makes of every variable."""
        return [tf.stack([value_of(v) for v in group]) for group in self._groups]

    def load(self) -> None:
        """Copies from the model's variables."""
        for stack, group in zip(self.variables_by_stack, self._groups):
            stack.assign(stack_variables(group))

    def store(self) -> None:
        """Copies into the model's variables."""
        for variable, value in self.state_mapping(self.values()):
            variable.assign(value)
