"""Values of many variables by path, those of one shape side by side in one tensor.

A deep NVAE has thousands of variables in a few dozen shapes. What is done to each of them (read,
normalise, reduce over replicas, clip, update, average) is done here once per shape: graphs are
smaller, and steps shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import numpy as np
import tensorflow as tf

Values: TypeAlias = Mapping[str, tf.Tensor]  # by the path of the variable that each belongs to

_Item = TypeVar("_Item")

# Gives the values of several variables of one shape as one tensor, stacked along a new first axis.
StackFunction: TypeAlias = Callable[[Sequence[keras.Variable]], tf.Tensor]


def read_values(variables: Iterable[keras.Variable]) -> dict[str, tf.Tensor]:
    """Reads the values of variables by path."""
    return {variable.path: tf.convert_to_tensor(variable) for variable in variables}


def first_not_finite(variables: Iterable[keras.Variable]) -> str | None:
    """Returns the path of the first variable that has a value which is not finite, or None."""
    return next((v.path for v in variables if not np.isfinite(v.numpy()).all()), None)


def stack_variables(variables: Sequence[keras.Variable]) -> tf.Tensor:
    """Reads the variables one by one and copies them into one tensor (n, ...)."""
    return tf.stack([tf.convert_to_tensor(variable) for variable in variables])


def stack_values(values: Values) -> StackFunction:
    """Returns a function that copies the values of given variables into one tensor (n, ...)."""
    return lambda variables: tf.stack([values[variable.path] for variable in variables])


def by_shape(items: Iterable[tuple[_Item, Iterable[int]]]) -> list[list[_Item]]:
    """Groups items, which come with a shape, by it; groups and members keep their order."""
    groups: dict[tuple[int, ...], list[_Item]] = {}
    for item, shape in items:
        groups.setdefault(tuple(shape), []).append(item)
    return list(groups.values())


def _unstack(
    groups: Sequence[Sequence[_Item]], stacks: Sequence[tf.Tensor]
) -> dict[_Item, tf.Tensor]:
    """Returns the parts of each group's stack by the item that they belong to."""
    return {
        item: part
        for group, stack in zip(groups, stacks)
        for item, part in zip(group, tf.unstack(stack, num=len(group)))
    }


class StackLayout:
    """The order in which variables lie in stacks.

    Args:
      variables: Those to lay out.
      together: Variables that must share a stack, in that order. The layout groups all others by
        their shape.

    Attributes:
      groups: The paths of the variables of each stack, in their order.
      shapes: The shape (n, ...) of each stack.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        together: Iterable[Sequence[keras.Variable]] = (),
    ):
        groups = [list(group) for group in together]
        grouped = {variable.path for group in groups for variable in group}
        groups += by_shape((v, v.shape) for v in variables if v.path not in grouped)
        self.groups = [tuple(variable.path for variable in group) for group in groups]
        self.shapes = [(len(group), *group[0].shape) for group in groups]

    def join(self, values: Mapping[str, tf.Tensor | np.ndarray]) -> list[tf.Tensor]:
        """Copies values by path into stacks (n, ...)."""
        return [tf.stack([values[path] for path in paths]) for paths in self.groups]

    def split(self, stacks: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the parts of stacks (n, ...) by path; aligned ones share the stacks' memory."""
        return _unstack(self.groups, stacks)

    def lookup(self, stacks: Sequence[tf.Tensor]) -> StackFunction:
        """Returns a function that finds the stack of a whole group instead of copying it."""
        by_group = dict(zip(self.groups, stacks))
        return lambda variables: by_group[tuple(variable.path for variable in variables)]


class Packing:
    """A structure of many tensors as few: those of one shape side by side.

    Args:
      structure: Nested dictionaries and tuples of tensors, whose shapes are taken.
    """

    def __init__(self, structure: Any):
        self._structure = tf.nest.map_structure(lambda _: None, structure)
        tensors = tf.nest.flatten(structure)
        self._groups = by_shape((number, tensor.shape) for number, tensor in enumerate(tensors))

    def join(self, structure: Any) -> list[tf.Tensor]:
        """Copies the tensors into one (n, ...) for each shape."""
        tensors = tf.nest.flatten(structure)
        return [tf.stack([tensors[number] for number in group]) for group in self._groups]

    def split(self, stacks: Sequence[tf.Tensor]) -> Any:
        """Returns the structure of what `join` gave."""
        tensors = _unstack(self._groups, stacks)
        return tf.nest.pack_sequence_as(self._structure, [tensors[i] for i in range(len(tensors))])


class StackedVariables(tf.Module):
    """Variables that hold stacks; create them under a strategy's scope.

    Args:
      layout: Which value lies where.
      initial: One tensor (n, ...) for each stack.
      name: The module's name.

    Attributes:
      layout: The argument of that name.
      stacks: The variables, one for each stack.
    """

    def __init__(self, layout: StackLayout, initial: Sequence[tf.Tensor], name: str):
        super().__init__(name=name)
        self.layout = layout
        self.stacks = [tf.Variable(value, trainable=False, name=name) for value in initial]

    @classmethod
    def zeros(cls, layout: StackLayout, name: str) -> StackedVariables:
        """Creates stacks of zeros."""
        return cls(layout, [tf.zeros(shape) for shape in layout.shapes], name)

    @property
    def paths(self) -> list[str]:
        """The paths of all values."""
        return [path for group in self.layout.groups for path in group]

    def values(self) -> list[tf.Tensor]:
        """Reads one tensor (n, ...) for each stack."""
        return [tf.convert_to_tensor(stack) for stack in self.stacks]

    def by_path(self) -> dict[str, tf.Tensor]:
        """Reads the values by the path of the variable that each belongs to."""
        return self.layout.split(self.values())

    def assign(self, stacks: Sequence[tf.Tensor]) -> None:
        """Replaces all values by those of stacks (n, ...)."""
        for variable, stack in zip(self.stacks, stacks):
            variable.assign(stack)
