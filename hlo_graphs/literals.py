"""Checks the values of constants; they are kept as text.

Source: XLA_MSA.md section G.3 (`HloParserImpl::ParseLiteral`).
"""

from __future__ import annotations

import re

from hlo_graphs.hlo import Shape
from hlo_graphs.lexer import Cursor

_NUMBER = r"-?+(?:[0-9]++(?:\.[0-9]*+)?+(?:[eE][+\-]?+[0-9]++)?+|inf|nan(?:\(0x[0-9a-fA-F]++\))?+)"
_SCALAR = re.compile(rf"{_NUMBER}|true|false", re.ASCII)
_TOKENS = re.compile(
    rf"(?:\s++|{_NUMBER}|true|false|\.\.\.|[{{}}(),]|//[^\n]*+|/\*(?:[^*]|\*(?!/))*+\*/)*+",
    re.ASCII,
)


def check_literal(text: str, shape: Shape, cursor: Cursor, position: int) -> None:
    """Raises HloSyntaxError unless `text`, at `position`, can be the value of a constant."""
    if _SCALAR.fullmatch(text) is not None and not shape.dimensions:
        return
    match = _TOKENS.match(text)
    if match is None or match.end() != len(text) or not text.strip():
        place = position + (match.end() if match else 0)
        cursor.fail(f"a literal of shape {shape}", place)
