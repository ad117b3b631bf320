"""Fields of configurations: what they mean, the values that they allow, and their checks."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any


@dataclasses.dataclass(frozen=True)
class Option:
    """The meaning of a configuration field, and the values that it allows.

    Attributes:
      meaning: A phrase for `--help`.
      low: The smallest value; of each number, if the value is several. It comes with `high`.
      high: The largest value, likewise.
      open_low: Whether `low` itself is not allowed.
      open_high: Whether `high` itself is not allowed.
      choices: The only values, if there are few.
    """

    meaning: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()

    def values(self) -> str:
        """Returns a phrase for the values that are allowed; empty if all of the type are."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.low is None or self.high is None:
            return ""
        if not (self.open_low or self.open_high):
            return f"{self.low:,} to {self.high:,}"
        return f"in {'(['[not self.open_low]}{self.low:g}, {self.high:g}{')]'[not self.open_high]}"

    def check(self, name: str, value: Any) -> None:
        """Raises a ValueError unless a value of the right type is allowed."""
        good = not self.choices or value in self.choices
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                require(math.isfinite(number), f"{name} must be finite, received {number}.")
            if isinstance(number, int | float) and self.low is not None and self.high is not None:
                good &= number > self.low if self.open_low else number >= self.low
                good &= number < self.high if self.open_high else number <= self.high
        require(good, f"{name} must be {self.values()}; received {value!r}.")


def option(default: Any, meaning: str, **limits: Any) -> Any:
    """A field of a configuration, with what `--help` and the checks say of it."""
    return dataclasses.field(default=default, metadata={"option": Option(meaning, **limits)})


def require(condition: bool, message: str) -> None:
    """Raises a ValueError with that message unless a condition holds."""
    if not condition:
        raise ValueError(message)


def convert_and_check(config: Any) -> None:
    """Gives a configuration's values the types of their fields, and checks them.

    An int where a float is meant becomes one, and a list, as JSON has it, a tuple.

    Raises:
      ValueError: for the first field whose value has another type or is not allowed.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, annotation, value = field.name, hints[field.name], getattr(config, field.name)
        full_name = f"{type(config).__name__}.{name}"
        if annotation is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError as error:
                raise ValueError(f"{full_name}: the number is too large for a float.") from error
            object.__setattr__(config, name, value)
        if typing.get_origin(annotation) is tuple:
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(config, name, value)
            good = isinstance(value, tuple) and all(type(v) is int for v in value)
            expected = "tuple of int"
        else:
            good = type(value) is annotation
            expected = annotation.__name__
        require(
            good,
            f"{full_name} must be of type {expected}, received {value!r} ({type(value).__name__}).",
        )
        field.metadata["option"].check(full_name, value)
