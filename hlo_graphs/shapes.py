"""How many bytes values take: element types, tiled layouts, tuples.

Source: `ByteSizeOf` and `ArraySize` of `xla/shape_util.cc`; docs/hlo.md, "Sizes".
"""

from __future__ import annotations

import math

from hlo_graphs.errors import InputError
from hlo_graphs.hlo import COMBINED_TILE_DIMENSION, UNBOUNDED_DIMENSION, Layout, Shape

POINTER_SIZE_BYTES = 8
"""Size of one entry of a tuple's pointer table."""

ELEMENT_BITS: dict[str, int] = {
    "pred": 8,
    **{f"s{bits}": bits for bits in (1, 2, 4, 8, 16, 32, 64)},
    **{f"u{bits}": bits for bits in (1, 2, 4, 8, 16, 32, 64)},
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "f64": 64,
    "c64": 64,
    "c128": 128,
    "f8e5m2": 8,
    "f8e4m3": 8,
    "f8e4m3fn": 8,
    "f8e4m3b11fnuz": 8,
    "f8e3m4": 8,
    "f8e5m2fnuz": 8,
    "f8e4m3fnuz": 8,
    "f8e8m0fnu": 8,
    "f4e2m1fn": 4,
    "f6e2m3fn": 6,
    "f6e3m2fn": 6,
}
"""Bits of information per element of every array type, before any padding to bytes."""


def element_size_bits(shape: Shape) -> int:
    """Bits one element of the array `shape` takes in memory.

    Types under a byte take a whole one unless the layout says otherwise with `E(bits)`.

    Raises:
      InputError: if the element type is not an array type.
    """
    if shape.layout is not None and shape.layout.element_size_bits:
        return shape.layout.element_size_bits
    natural = ELEMENT_BITS.get(shape.element_type)
    if natural is None:
        raise InputError(f"shape {shape}: {shape.element_type} has no element size")
    return 8 * math.ceil(natural / 8)


def byte_size_of(shape: Shape, pointer_size_bytes: int = POINTER_SIZE_BYTES) -> int:
    """Bytes of the value itself, ignoring tiles (ShapeUtil::ByteSizeOf).

    Tuples count their pointer table only; tokens take nothing, an opaque value one pointer.

    Raises:
      InputError: if the size is unknown: an unbounded dimension.
    """
    if shape.is_array:
        _require_bounded(shape)
        return _bytes_of_elements(shape, shape.num_elements)
    return _byte_size_of_handle(shape, pointer_size_bytes)


def elements_in(shape: Shape) -> int:
    """Elements of all arrays in a shape (ShapeUtil::ElementsInRecursive)."""
    return sum(part.num_elements for _, part in shape.subshapes() if part.is_array)


def padded_size_bytes(shape: Shape) -> int:
    """Bytes the value takes in memory, padded to its layout (ShapeUtil::ArraySize).

    The first tile pads the dimensions it covers (the most minor ones) to its multiples; later
    tiles only reorder inside it. Then the number of elements is rounded up to the tail alignment,
    and elements under a byte are packed where the layout says so.

    Raises:
      InputError: if the size is unknown: an unbounded dimension.
    """
    if not shape.is_array:
        return _byte_size_of_handle(shape, POINTER_SIZE_BYTES)
    _require_bounded(shape)
    if shape.layout is None:
        return _bytes_of_elements(shape, shape.num_elements)
    count = math.prod(_padded_dimensions(shape.dimensions, shape.layout))
    alignment = max(shape.layout.tail_alignment, 1)
    count = math.ceil(count / alignment) * alignment
    return _bytes_of_elements(shape, count) + shape.layout.dynamic_prefix_bytes


def _byte_size_of_handle(shape: Shape, pointer_size_bytes: int) -> int:
    if shape.is_tuple:
        return pointer_size_bytes * len(shape.elements)
    if shape.element_type == "buffer":
        return padded_size_bytes(shape.elements[0])
    return 0 if shape.element_type == "token" else pointer_size_bytes


def _bytes_of_elements(shape: Shape, count: int) -> int:
    return -(-count * element_size_bits(shape) // 8)


def _padded_dimensions(dimensions: tuple[int, ...], layout: Layout) -> list[int]:
    """Sizes from major to minor with the first tile's padding applied."""
    sizes = [dimensions[dimension] for dimension in reversed(layout.minor_to_major)]
    if not layout.tiles:
        return sizes
    tile = layout.tiles[0]
    sizes = [1] * (len(tile) - len(sizes)) + sizes
    first_tiled = len(sizes) - len(tile)
    padded = sizes[:first_tiled]
    merged = 1
    for size, tile_size in zip(sizes[first_tiled:], tile, strict=True):
        if tile_size == COMBINED_TILE_DIMENSION:
            merged *= size
            continue
        padded.append(-(-merged * size // tile_size) * tile_size)
        merged = 1
    return padded


def _require_bounded(shape: Shape) -> None:
    if UNBOUNDED_DIMENSION in shape.dimensions:
        raise InputError(f"shape {shape}: the size of a dimension '?' is unknown; give a bound")
