"""The array leaves of shapes, and how many elements they have."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hlo_graphs.hlo import Shape, ShapeIndex


def elements(shape: Shape) -> int:
    """Number of elements of an array shape; of a tuple's first leaf, as XLA's handlers take it."""
    while shape.is_tuple and shape.elements:
        shape = shape.elements[0]
    return math.prod(shape.dimensions)


def leaves(shape: Shape) -> Iterator[tuple[ShapeIndex, Shape]]:
    """The array leaves of a shape with their indices."""
    return ((index, part) for index, part in shape.subshapes() if part.is_array)
