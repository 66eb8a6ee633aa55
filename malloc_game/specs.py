"""Shapes, types and ranges of what an environment takes and gives, in the manner of Jumanji."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hlo_graphs.errors import InputError


@dataclass(frozen=True)
class ArraySpec:
    """One array.

    Attributes:
      shape: its shape.
      dtype: its scalar type.
      minimum: least value, inclusive.
      maximum: greatest value, inclusive.
      name: what it is called in messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    minimum: float
    maximum: float
    name: str

    def validate(self, value: ArrayLike) -> NDArray[np.generic]:
        """`value` as an array. Raises InputError unless it has this shape, type and range."""
        array = np.asarray(value)
        if array.shape != self.shape or array.dtype != self.dtype:
            raise InputError(
                f"{self.name}: {array.dtype}{list(array.shape)}, expected "
                f"{self.dtype}{list(self.shape)}"
            )
        inside = (array >= self.minimum) & (array <= self.maximum)
        if not np.all(inside):
            raise InputError(
                f"{self.name}: {array[~inside].flat[0]} at {np.argwhere(~inside)[0].tolist()} is "
                f"outside [{self.minimum}, {self.maximum}]"
            )
        return array


@dataclass(frozen=True)
class DiscreteSpec:
    """One of `num_values` choices, counted from 0.

    Attributes:
      num_values: how many.
      name: what it is called in messages.
    """

    num_values: int
    name: str

    def validate(self, value: ArrayLike) -> int:
        """`value` as a number. Raises InputError unless it is one of the choices."""
        array = np.asarray(value)
        if array.shape != () or not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"{self.name}: {value!r} is not a whole number")
        if not 0 <= int(array) < self.num_values:
            raise InputError(f"{self.name}: {int(array)} is not in 0..{self.num_values - 1}")
        return int(array)
