"""Instructions written as XLA prints them, one per line, read with regular expressions.

A second reader of a part of the grammar in `instruction_text`, there for speed alone: it gives
the same instructions or declines, and never raises but for a shape or literal that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hlo_graphs.attributes import (
    CALLING_ATTRIBUTES,
    PLAIN_VALUE,
    called_computations,
    expected_form,
)
from hlo_graphs.checks import compatible, missing_part
from hlo_graphs.hlo import HloComputation, HloInstruction
from hlo_graphs.lexer import NAME, Cursor
from hlo_graphs.literals import check_literal
from hlo_graphs.opcodes import OPCODES
from hlo_graphs.scope import Scope
from hlo_graphs.shape_text import ShapeReader

_STRING = r"\"(?:[^\"\\\n]++|\\[^\n])*+\""
_MAX_BRACES = 12
"""JSON nested deeper is left to the careful reader; XLA's own stays under eight."""


def _braces(depth: int) -> str:
    """A regular expression for braces nested at most `depth` deep on one line."""
    flat = rf"[^{{}}\"'/\n]++|{_STRING}|/(?![/*])"
    pattern = rf"\{{(?:{flat})*+\}}"
    for _ in range(depth - 1):
        pattern = rf"\{{(?:{flat}|{pattern})*+\}}"
    return pattern


_FLAT_BRACKETS = r"\[[^\[\]\"'/\n]*+\]|\([^()\"'/\n]*+\)"
_INDEX_COMMENT = r"/\*index=[0-9]++\*/"


def _parentheses(depth: int) -> str:
    """A regular expression for text with parentheses nested at most `depth` deep."""
    flat = rf"[^()/\n\"']++|{_INDEX_COMMENT}"
    pattern = rf"(?:{flat})*+"
    for _ in range(depth):
        pattern = rf"(?:{flat}|\({pattern}\))*+"
    return pattern


_ARGUMENTS = _parentheses(4)
_COMMENTS = re.compile(_INDEX_COMMENT)
_LINE = re.compile(
    rf"\s*+(ROOT )?(?!ROOT )%?({NAME}) = (\(.*?\)|[^\s(]\S*+) ([a-z][a-z0-9\-]*+)"
    rf"\(({_ARGUMENTS})\)([^\n]*+)\n(?=\s*+[%A-Za-z_}}])",
    re.ASCII,
)
_ATTRIBUTE = re.compile(
    rf", ({NAME})=((?:{PLAIN_VALUE}|{_STRING}|{_braces(_MAX_BRACES)}|{_FLAT_BRACKETS})++)",
    re.ASCII,
)
_OPERANDS = re.compile(rf"%?{NAME}(?:, %?{NAME})*+", re.ASCII)
_OPERAND_WITH_SHAPE = re.compile(rf"(\(.*?\)|[^\s(]\S*+) %?({NAME})(?:, |$)", re.ASCII)
_PARAMETER_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


class FastLines:
    """Reads lines of one module.

    Args:
      cursor: shared with the careful reader.
      shapes: the shapes known so far.
      computations: those defined so far.
    """

    def __init__(
        self, cursor: Cursor, shapes: ShapeReader, computations: Mapping[str, HloComputation]
    ) -> None:
        self._cursor = cursor
        self._shapes = shapes
        self._computations = computations
        self._declined_until = 0

    def read(self, scope: Scope) -> None:
        """Adds instructions to `scope` as long as they look as XLA prints them.

        A declined line is not looked at again, so that time stays linear in long lines.
        """
        cursor = self._cursor
        text, end = cursor.text, cursor.end
        if cursor.position < self._declined_until:
            return
        while (match := _LINE.match(text, cursor.position, end)) is not None:
            instruction = self._instruction(match, scope)
            if instruction is None:
                break
            scope.add(instruction)
            cursor.position = match.end() - 1
        next_line = text.find("\n", cursor.position + 1, end)
        self._declined_until = end if next_line < 0 else next_line

    def _instruction(self, match: re.Match[str], scope: Scope) -> HloInstruction | None:
        root, name, shape_text, opcode, arguments, rest = match.groups()
        by_name = scope.by_name
        if opcode not in OPCODES or name in by_name or (root and scope.root is not None):
            return None
        attributes = self._attributes(rest) if rest else {}
        if attributes is None:
            return None
        shape = self._shapes.from_text(shape_text, self._cursor, match.start(3))
        operands: tuple[str, ...] = ()
        if opcode == "parameter":
            if _PARAMETER_NUMBER.fullmatch(arguments) is None:
                return None
        elif opcode == "constant":
            check_literal(arguments, shape, self._cursor, match.start(5))
        elif arguments:
            found = self._operands(arguments, by_name)
            if found is None:
                return None
            operands = found
            arguments = ""
        called: tuple[str, ...] = ()
        if not CALLING_ATTRIBUTES.keys().isdisjoint(attributes):
            called = called_computations(opcode, attributes)
            if not called or not self._computations.keys() >= set(called):
                return None
        line = self._cursor.line_of(match.start(2))
        instruction = HloInstruction(
            name, opcode, shape, operands, arguments, attributes, called, root is not None, line
        )
        return self._checked(instruction, scope)

    def _checked(self, instruction: HloInstruction, scope: Scope) -> HloInstruction | None:
        if missing_part(instruction, scope.by_name, self._computations) is not None:
            return None
        if instruction.opcode.startswith("async-"):
            result = scope.chains.resolve(instruction, scope.by_name)
            return result if isinstance(result, HloInstruction) else None
        return instruction

    def _operands(self, text: str, by_name: Mapping[str, HloInstruction]) -> tuple[str, ...] | None:
        """Names of the operands that `text` lists, None if it is not just known names."""
        if "/" in text:
            text = _COMMENTS.sub("", text)
        if "[" in text:
            names = self._operands_with_shapes(text, by_name)
        elif _OPERANDS.fullmatch(text) is not None:
            names = text.replace("%", "").split(", ")
        else:
            return None
        if names is None or any(name not in by_name for name in names):
            return None
        return tuple(names)

    def _operands_with_shapes(
        self, text: str, by_name: Mapping[str, HloInstruction]
    ) -> list[str] | None:
        """The names in `shape %name, shape %name`, if the shapes are the instructions' own."""
        names: list[str] = []
        position = 0
        while (match := _OPERAND_WITH_SHAPE.match(text, position)) is not None:
            declared = self._shapes.known(match.group(1))
            actual = by_name.get(match.group(2))
            if declared is None or actual is None or not compatible(declared, actual.shape):
                return None
            names.append(match.group(2))
            position = match.end()
        return names if position == len(text) else None

    def _attributes(self, text: str) -> dict[str, str] | None:
        """The attributes of a line's rest, None if it is not just them."""
        pairs = _ATTRIBUTE.findall(text)
        length = 0
        for name, value in pairs:
            length += len(name) + len(value) + 3
            if expected_form(name, value) is not None:
                return None
        attributes = dict(pairs)
        if length != len(text) or len(attributes) != len(pairs):
            return None
        return attributes
