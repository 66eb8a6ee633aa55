"""Result shapes that the text leaves out because operands give them.

Source: `ShapeInference` (`xla/service/shape_inference.cc`) and `HloParserImpl::CreateInstruction`
(`xla/hlo/parser/hlo_parser.cc`). Whatever changes dimensions gets the row-major layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hlo_graphs.hlo import Layout, Shape
from hlo_graphs.opcodes import BINARY, UNARY, words
from hlo_graphs.shapes import ELEMENT_BITS

_CHANGES_TYPE = frozenset(
    {"abs", "bitcast-convert", "convert", "real", "imag", "is-finite", "complex"}
)
_SHAPE_OF_OPERAND: dict[str, int] = {
    **dict.fromkeys((UNARY | BINARY) - _CHANGES_TYPE - {"compare"}, 0),
    **dict.fromkeys(
        words("""
            add-dependency batch-norm-inference copy dynamic-update-slice reverse
            while
        """),
        0,
    ),
    **dict.fromkeys(("clamp", "triangular-solve"), 1),
}
_RESULT_TYPES: dict[str, dict[str, str]] = {
    "complex": {"f32": "c64", "f64": "c128"},
    **{opcode: {"c64": "f32", "c128": "f64"} for opcode in ("abs", "imag", "real")},
    **dict.fromkeys(("compare", "is-finite"), dict.fromkeys(ELEMENT_BITS, "pred")),
}
"""Element type of the result by that of the first operand; absent types stay."""
_SHAPE_OF_ROOT = ("call", "fusion", "conditional")
_INTEGER = re.compile(r"-?[0-9]+")
_PADDING = re.compile(r"(-?[0-9]+)_(-?[0-9]+)(?:_(-?[0-9]+))?")


def infer_shape(
    opcode: str,
    operands: Sequence[Shape],
    attributes: Mapping[str, str],
    called_roots: Sequence[Shape],
) -> Shape | None:
    """The result's shape, None where the rules here do not give it.

    Args:
      opcode: of the instruction.
      operands: their shapes.
      attributes: raw attribute texts by name.
      called_roots: shapes of the called computations' roots.
    """
    if opcode == "tuple":
        return Shape("tuple", elements=tuple(operands))
    if opcode == "after-all":
        return Shape("token")
    if opcode in ("partition-id", "replica-id"):
        return _row_major("u32", ())
    if opcode in _SHAPE_OF_ROOT and called_roots:
        return called_roots[0]
    if opcode in BINARY and not _agree(operands):
        return None
    place = _SHAPE_OF_OPERAND.get(opcode)
    if place is not None:
        return operands[place] if place < len(operands) else None
    return _infer_from_first(opcode, operands, attributes) if operands else None


def _infer_from_first(
    opcode: str, operands: Sequence[Shape], attributes: Mapping[str, str]
) -> Shape | None:
    """Rules that start from the first operand, which exists."""
    first = operands[0]
    if opcode == "get-tuple-element":
        return _element(first, attributes.get("index", ""))
    if opcode in _RESULT_TYPES:
        element_type = _RESULT_TYPES[opcode].get(first.element_type, first.element_type)
        return replace(first, element_type=element_type)
    if opcode in ("sort", "scatter"):
        values = operands if opcode == "sort" else operands[: len(operands) // 2]
        return first if len(values) < 2 else Shape("tuple", elements=tuple(values))
    if not all(operand.is_array for operand in operands):
        return None
    if opcode == "select":
        return _selected(first, operands[1:])
    if opcode == "transpose":
        return _transposed(first, _integers(attributes, "dimensions"))
    if any(operand.dynamic_dimensions for operand in operands):
        return None
    if opcode == "reduce":
        return _reduced(operands[: len(operands) // 2], _integers(attributes, "dimensions"))
    if opcode == "concatenate":
        return _concatenated(operands, _integers(attributes, "dimensions"))
    if opcode == "pad":
        return _padded(operands, _PADDING.findall(attributes.get("padding", "")))
    return _dot(operands, attributes) if opcode == "dot" else None


def _agree(shapes: Sequence[Shape]) -> bool:
    """Whether all are one shape but for layouts: what XLA makes of others is not known here."""
    return len({(s.element_type, s.dimensions, s.dynamic_dimensions) for s in shapes}) <= 1


def _row_major(element_type: str, sizes: Iterable[int]) -> Shape:
    dimensions = tuple(sizes)
    return Shape(element_type, dimensions, Layout(tuple(reversed(range(len(dimensions))))))


def _integers(attributes: Mapping[str, str], name: str) -> list[int]:
    return [int(number) for number in _INTEGER.findall(attributes.get(name, ""))]


def _element(shape: Shape, index: str) -> Shape | None:
    if not shape.is_tuple or not index.isdecimal() or int(index) >= len(shape.elements):
        return None
    return shape.elements[int(index)]


def _without(shape: Shape, removed: Sequence[int]) -> list[int]:
    return [size for place, size in enumerate(shape.dimensions) if place not in removed]


def _selected(predicate: Shape, sides: Sequence[Shape]) -> Shape | None:
    """A scalar predicate chooses between whole arrays; of an array's XLA takes the layout."""
    if not sides or not _agree(sides):
        return None
    selected = replace(predicate, element_type=sides[0].element_type)
    if _agree((selected, sides[0])):
        return selected
    return None if predicate.dimensions else sides[0]


def _reduced(inputs: Sequence[Shape], removed: Sequence[int]) -> Shape | None:
    if not inputs:
        return None
    results = tuple(_row_major(shape.element_type, _without(shape, removed)) for shape in inputs)
    return results[0] if len(results) == 1 else Shape("tuple", elements=results)


def _transposed(shape: Shape, order: Sequence[int]) -> Shape | None:
    """The layout moves with the dimensions, so that nothing moves in memory."""
    if sorted(order) != list(range(len(shape.dimensions))) or shape.layout is None:
        return None
    layout = replace(
        shape.layout,
        minor_to_major=tuple(order.index(place) for place in shape.layout.minor_to_major),
    )
    flags = shape.dynamic_dimensions
    dynamic = tuple(flags[place] for place in order) if flags else ()
    sizes = tuple(shape.dimensions[place] for place in order)
    return Shape(shape.element_type, sizes, layout, (), dynamic)


def _concatenated(operands: Sequence[Shape], along: Sequence[int]) -> Shape | None:
    first = operands[0]
    if len(along) != 1 or any(along[0] >= len(shape.dimensions) for shape in operands):
        return None
    if len({(shape.element_type, *_without(shape, along)) for shape in operands}) > 1:
        return None
    sizes = list(first.dimensions)
    sizes[along[0]] = sum(shape.dimensions[along[0]] for shape in operands)
    return _row_major(first.element_type, sizes)


def _padded(operands: Sequence[Shape], paddings: Sequence[tuple[str, str, str]]) -> Shape | None:
    shape = operands[0]
    if len(paddings) != len(shape.dimensions) or operands[-1].element_type != shape.element_type:
        return None
    sizes = [
        size + int(low) + int(high) + max(size - 1, 0) * int(interior or 0)
        for size, (low, high, interior) in zip(shape.dimensions, paddings, strict=True)
    ]
    return _row_major(shape.element_type, sizes) if min(sizes, default=0) >= 0 else None


def _dot(operands: Sequence[Shape], attributes: Mapping[str, str]) -> Shape | None:
    """Batch dimensions, then what is left of the left side, then of the right side."""
    if len(operands) != 2 or operands[0].element_type != operands[1].element_type:
        return None
    left, right = operands
    batch = _integers(attributes, "lhs_batch_dims")
    if any(place >= len(left.dimensions) for place in batch):
        return None
    used_left = [*batch, *_integers(attributes, "lhs_contracting_dims")]
    used_right = [
        *_integers(attributes, "rhs_batch_dims"),
        *_integers(attributes, "rhs_contracting_dims"),
    ]
    sizes = [left.dimensions[place] for place in batch]
    sizes += [*_without(left, used_left), *_without(right, used_right)]
    return _row_major(left.element_type, sizes)
