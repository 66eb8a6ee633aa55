"""Checks the values of constants; they are kept as text.

Source: `HloParserImpl::ParseLiteral` (`xla/hlo/parser/hlo_parser.cc`), and what jaxlib 0.10.2
accepts: commas are optional, one value without braces does for any shape, `{...}` stands for what
was left out.
"""

from __future__ import annotations

import re
from functools import lru_cache

from hlo_graphs.hlo import Shape
from hlo_graphs.lexer import COMMENT, Cursor
from hlo_graphs.shapes import ELEMENT_BITS

_INTEGER = r"-?+[0-9]{1,400}+(?![0-9.eE])"
_NUMBER = (
    r"-?+(?:[0-9]{1,400}+(?:\.[0-9]{0,400}+)?+(?:[eE][+\-]?+[0-9]{1,6}+)?+"
    r"|inf|nan(?:\(0x[0-9a-fA-F]{1,32}\))?+)"
)
_VALUES = rf"{_NUMBER}|true|false"
_VALUE = re.compile(rf"(?:{_VALUES})(?![\w.])", re.ASCII)
_ONE_INTEGER = re.compile(_INTEGER)
_TOKENS = re.compile(
    rf"(?:\s++|{COMMENT}|(?:{_VALUES})(?![\w.])|\.\.\.|[{{}}(),])*+",
    re.ASCII,
)
_DROPPED = re.compile(rf"{COMMENT}|[\s,]++")
_LARGE_FLOAT = re.compile(r"[eE]\+?[0-9]|[0-9]{5}")
_LARGEST_FLOAT = {
    "f16": 65520.0,
    "bf16": 3.4e38,
    "f32": 3.4028235677973366e38,
    "f64": 1.7976931348623157e308,
    "c64": 3.4028235677973366e38,
    "c128": 1.7976931348623157e308,
}


def check_literal(text: str, shape: Shape, cursor: Cursor, position: int) -> None:
    """Raises HloSyntaxError unless `text`, at `position`, can be the value of a constant."""
    if not shape.dimensions and len(text) < 30 and _is_good_scalar(text, shape.element_type):
        return
    match = _TOKENS.match(text)
    good = match.end() if match is not None else 0
    if good != len(text):
        cursor.fail(f"a literal of shape {shape}", position + good)
    expected = _expected(text, shape)
    if expected is not None:
        cursor.fail(expected, position, repr(text.strip()[:60]) if text.strip() else None)


@lru_cache(maxsize=4096)
def _is_good_scalar(text: str, element_type: str) -> bool:
    """Whether a short text is a value of a scalar; real modules repeat the same few."""
    return _VALUE.fullmatch(text) is not None and _expected(text, Shape(element_type)) is None


def _expected(text: str, shape: Shape) -> str | None:
    """What a text of well-formed tokens should have been, None if it is right."""
    if shape.is_tuple:
        is_tuple = text.strip().startswith("(") and text.count("(") == text.count(")")
        return None if is_tuple else f"a tuple literal (...) of shape {shape}"
    if not shape.is_array:
        return f"an array shape before a constant, not {shape}"
    if shape.dimensions and _DROPPED.sub("", text) == "{...}":
        return None
    if not _has_structure(text, shape):
        return f"a literal with the braces and the number of values of {shape}"
    return _expected_range(text, shape.element_type)


def _has_structure(text: str, shape: Shape) -> bool:
    """Whether braces and counts fit: rows are replaced by one letter, dimension by dimension."""
    folded = _DROPPED.sub("", _VALUE.sub("v", text))
    if shape.element_type in ("c64", "c128"):
        folded = folded.replace("v", "r").replace("(rr)", "v")
    if folded == "v":
        return True
    dimensions = shape.dimensions
    if 0 in dimensions:  # What would lie inside is not written.
        dimensions = dimensions[: dimensions.index(0) + 1]
    for size in reversed(dimensions):
        if size > len(folded):
            return False
        folded = folded.replace("{" + "v" * size + "}", "v")
    return folded == "v"


def _expected_range(text: str, element_type: str) -> str | None:
    """Looks at single values only where a cheap search finds one that may be out of range."""
    if "/" in text:
        text = _DROPPED.sub(" ", text)
    if element_type[0] in "su":
        return _expected_integers(text, element_type)
    largest = _LARGEST_FLOAT.get(element_type)
    if largest is None or _LARGE_FLOAT.search(text) is None:
        return None
    if any(_exceeds(value, largest) for value in _VALUE.findall(text)):
        return f"values that a {element_type} can hold"
    return None


def _exceeds(value: str, largest: float) -> bool:
    if "n" in value or value in ("true", "false"):
        return False
    return not -largest <= float(value) <= largest


def _expected_integers(text: str, element_type: str) -> str | None:
    bits = ELEMENT_BITS[element_type]
    # XLA stores 64-bit values without looking at the sign bit.
    lowest = 0 if element_type[0] == "u" and bits < 64 else -(1 << (bits - 1))
    end = 1 << (bits if element_type[0] == "u" or bits == 64 else bits - 1)
    digits = len(str(end))
    if not re.search(rf"[.a-z]|[0-9]{{{digits}}}" + ("|-" if lowest == 0 else ""), text):
        return None
    values = _VALUE.findall(text)
    if all(_ONE_INTEGER.fullmatch(v) and lowest <= int(v) < end for v in values):
        return None
    return f"integers from {lowest} to {end - 1} for the type {element_type}"
