"""Reads shapes and layouts, the part of HLO text that repeats most.

Source: `HloParserImpl::ParseShape` and `ParseLayout` (`xla/hlo/parser/hlo_parser.cc`).
"""

from __future__ import annotations

import re
from typing import Any

from hlo_graphs.hlo import COMBINED_TILE_DIMENSION, UNBOUNDED_DIMENSION, Layout, Shape
from hlo_graphs.lexer import Cursor
from hlo_graphs.shapes import ELEMENT_BITS

MAX_NESTING = 100
"""Deepest tuple nesting read; real modules stay under ten."""

MAX_RANK = 256
"""Most dimensions read; real arrays have under ten."""

_SIMPLE = re.compile(
    r"[a-z][a-z0-9]*+\[[0-9,]*+\](?:\{(?=[0-9:])[^{}\s]*+\}|(?!\s*+\{\s*+[0-9:]))", re.ASCII
)
_TYPE_NAME = re.compile(r"[A-Za-z_]\w*")
_DIM_LEVEL = re.compile(r"[DCSH][+~]*")
_LAYOUT_AHEAD = re.compile(r"\s*+\{\s*+(?=-?[0-9]|:)")
_BUFFER_AHEAD = re.compile(r"b\s*+\(")
_SHAPE_AHEAD = re.compile(r"\(|b\s*+\(|[A-Za-z_]\w*+\s*+\[")
_HANDLES = ("token", "opaque")


def parse_shape(text: str, path: str = "<shape>") -> Shape:
    """The shape that `text` is, nothing more.

    Raises:
      HloSyntaxError: if it is not one shape.
    """
    cursor = Cursor(text, path)
    return ShapeReader().from_text(text, cursor, 0)


class ShapeReader:
    """Reads shapes at a cursor; equal texts give the same object."""

    def __init__(self) -> None:
        self._known: dict[str, Shape] = {}

    def from_text(self, text: str, cursor: Cursor, position: int) -> Shape:
        """The shape `text`, which stands at `position` of the cursor's text."""
        shape = self._known.get(text)
        if shape is None:
            inner = Cursor(cursor.text, cursor.path, position, position + len(text))
            shape = self.read(inner)
            if not inner.at_end():
                inner.fail("the end of the shape")
            self._known[text] = shape
        return shape

    def known(self, text: str) -> Shape | None:
        """The shape of a text read before."""
        return self._known.get(text)

    def ahead(self, cursor: Cursor) -> bool:
        """Whether a shape comes next."""
        cursor.skip_blanks()
        return _SHAPE_AHEAD.match(cursor.text, cursor.position, cursor.end) is not None

    def read(self, cursor: Cursor, depth: int = 0) -> Shape:
        """The shape at the cursor, which moves behind it.

        Raises:
          HloSyntaxError: if there is none.
        """
        cursor.skip_blanks()
        match = _SIMPLE.match(cursor.text, cursor.position, cursor.end)
        if match is not None and (known := self._known.get(match.group())) is not None:
            cursor.position = match.end()
            return known
        shape = self._read_any(cursor, depth)
        if match is not None and cursor.position == match.end():
            self._known[match.group()] = shape
        return shape

    def _read_any(self, cursor: Cursor, depth: int) -> Shape:
        if depth > MAX_NESTING:
            cursor.fail(f"a shape nested at most {MAX_NESTING} deep")
        if cursor.accept("("):
            return Shape("tuple", elements=self._read_members(cursor, depth))
        if _BUFFER_AHEAD.match(cursor.text, cursor.position, cursor.end):
            cursor.accept("b")
            cursor.accept("(")
            inner = self.read(cursor, depth + 1)
            cursor.expect(")", "after the shape of a buffer")
            return Shape("buffer", elements=(inner,))
        return self._read_array(cursor, depth)

    def _read_members(self, cursor: Cursor, depth: int) -> tuple[Shape, ...]:
        members: list[Shape] = []
        if cursor.accept(")"):
            return ()
        while True:
            members.append(self.read(cursor, depth + 1))
            if cursor.accept(")"):
                return tuple(members)
            cursor.expect(",", "or ')' in a tuple shape")

    def _read_array(self, cursor: Cursor, depth: int) -> Shape:
        start = cursor.position
        name = cursor.accept_pattern(_TYPE_NAME)
        if name is None:
            cursor.fail("a shape")
        if name not in ELEMENT_BITS and name not in _HANDLES:
            cursor.fail("an element type such as f32", start, repr(name))
        cursor.expect("[", f"after the element type {name}")
        dimensions, dynamic = _read_dimensions(cursor)
        layout = None
        if _LAYOUT_AHEAD.match(cursor.text, cursor.position, cursor.end):
            layout = self._read_layout(cursor, len(dimensions), depth)
        elif name not in _HANDLES:
            layout = Layout(tuple(reversed(range(len(dimensions)))))
        return Shape(name, dimensions, layout, (), dynamic)

    def _read_layout(self, cursor: Cursor, rank: int, depth: int) -> Layout:
        cursor.expect("{", "before a layout")
        start = cursor.position
        minor_to_major: list[int] = []
        if not cursor.peek(":") and not cursor.peek("}"):
            minor_to_major = _read_integers(cursor, "a dimension number")
        if sorted(minor_to_major) != list(range(rank)):
            found = f"{{{','.join(map(str, minor_to_major))}}}"
            cursor.fail(f"each of the {rank} dimensions once", start, found)
        properties: dict[str, Any] = {}
        if cursor.accept(":"):
            while not cursor.peek("}"):
                self._read_property(cursor, properties, depth)
        cursor.expect("}", "after a layout")
        if "physical_shape" in properties and set(properties.get("dim_levels", "D")) == {"D"}:
            cursor.fail("a sparse dimension level D(...) beside P(...)", start)
        return Layout(tuple(minor_to_major), **properties)

    def _read_property(self, cursor: Cursor, properties: dict[str, Any], depth: int) -> None:
        """One letter and its brackets."""
        if cursor.accept("T"):
            tiles = [_read_tile(cursor)]
            while cursor.peek("("):
                tiles.append(_read_tile(cursor))
            properties["tiles"] = tuple(tiles)
        elif cursor.accept("SC"):
            properties["split_configs"] = _read_split_configs(cursor)
        elif cursor.accept("D"):
            properties["dim_levels"] = _read_dim_levels(cursor)
        elif cursor.accept("P"):
            cursor.expect("(", "after P")
            properties["physical_shape"] = self.read(cursor, depth + 1)
            cursor.expect(")", "after the physical shape")
        else:
            _read_scalar_property(cursor, properties)


_INTEGER_PROPERTIES = {
    "S": "memory_space",
    "E": "element_size_bits",
    "L": "tail_alignment",
    "M": "dynamic_prefix_bytes",
}
_TYPE_PROPERTIES = {"#": "index_type", "*": "pointer_type"}


def _read_scalar_property(cursor: Cursor, properties: dict[str, Any]) -> None:
    letter = cursor.text[cursor.position : cursor.position + 1]
    if letter in _INTEGER_PROPERTIES:
        cursor.accept(letter)
        cursor.expect("(", f"after {letter}")
        size = cursor.expect_size(f"the number of {letter}(...)")
        properties[_INTEGER_PROPERTIES[letter]] = size
    elif letter in _TYPE_PROPERTIES:
        cursor.accept(letter)
        cursor.expect("(", f"after {letter}")
        properties[_TYPE_PROPERTIES[letter]] = cursor.expect_name("an element type")
    else:
        cursor.fail("a layout property (one of D T L # * E S SC P M) or '}'")
    cursor.expect(")", f"after the value of {letter}(")


def _read_integers(cursor: Cursor, expected: str) -> list[int]:
    numbers = [cursor.expect_size(expected)]
    while cursor.accept(","):
        numbers.append(cursor.expect_size(expected))
    return numbers


def _read_dimensions(cursor: Cursor) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Sizes and which of them are bounds, up to and with the closing bracket."""
    sizes: list[int] = []
    dynamic: list[bool] = []
    while not cursor.accept("]"):
        if len(sizes) == MAX_RANK:
            cursor.fail(f"at most {MAX_RANK} dimensions")
        if sizes:
            cursor.expect(",", "or ']' between dimensions")
        if cursor.accept("?"):
            sizes.append(UNBOUNDED_DIMENSION)
            dynamic.append(True)
        else:
            dynamic.append(cursor.accept("<="))
            sizes.append(cursor.expect_size("a dimension's size"))
    return tuple(sizes), tuple(dynamic) if any(dynamic) else ()


def _read_tile(cursor: Cursor) -> tuple[int, ...]:
    cursor.expect("(", "before the sizes of a tile")
    sizes: list[int] = []
    while not cursor.accept(")"):
        if sizes:
            cursor.expect(",", "or ')' between the sizes of a tile")
        if cursor.accept("*"):
            sizes.append(COMBINED_TILE_DIMENSION)
        else:
            cursor.skip_blanks()
            start = cursor.position
            size = cursor.expect_size("a tile's size")
            if size == 0:
                cursor.fail("a tile's size, at least 1", start, "'0'")
            sizes.append(size)
    return tuple(sizes)


def _read_dim_levels(cursor: Cursor) -> tuple[str, ...]:
    cursor.expect("(", "after D")
    levels: list[str] = []
    while not cursor.accept(")"):
        if levels:
            cursor.expect(",", "or ')' between dimension levels")
        level = cursor.accept_pattern(_DIM_LEVEL)
        if level is None:
            cursor.fail("a dimension level (D, C, S or H)")
        levels.append(level)
    return tuple(levels)


def _read_split_configs(cursor: Cursor) -> tuple[tuple[int, tuple[int, ...]], ...]:
    configs: list[tuple[int, tuple[int, ...]]] = []
    while cursor.accept("("):
        dimension = cursor.expect_size("a dimension number")
        cursor.expect(":", "after the split dimension")
        configs.append((dimension, tuple(_read_integers(cursor, "a split index"))))
        cursor.expect(")", "after the split indices")
    return tuple(configs)
