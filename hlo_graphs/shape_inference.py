"""Result shapes that the text leaves out because operands give them.

Source: XLA_MSA.md section G.3 (`ShapeInference`, `HloParserImpl::CreateInstruction`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hlo_graphs.hlo import Shape
from hlo_graphs.opcodes import BINARY, UNARY

_CHANGES_TYPE = frozenset({"bitcast-convert", "convert", "real", "imag"})


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
    if opcode in ("call", "fusion") and called_roots:
        return called_roots[0]
    if opcode == "after-all":
        return Shape("token")
    if not operands:
        return None
    if opcode == "get-tuple-element":
        return _element(operands[0], attributes.get("index", ""))
    if opcode == "compare":
        return replace(operands[0], element_type="pred")
    if opcode in UNARY and opcode not in _CHANGES_TYPE:
        return operands[0]
    if opcode in BINARY or opcode in ("while", "copy", "add-dependency"):
        return operands[0]
    return operands[1] if opcode == "select" and len(operands) > 1 else None


def _element(shape: Shape, index: str) -> Shape | None:
    if not shape.is_tuple or not index.isdecimal() or int(index) >= len(shape.elements):
        return None
    return shape.elements[int(index)]
