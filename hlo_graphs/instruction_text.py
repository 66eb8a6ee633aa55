"""Reads the instructions between a computation's braces, piece by piece.

This is the grammar and finds the place of every error; lines that look as XLA prints them are
taken by `fast_lines` first. Source: `HloParserImpl` (`xla/hlo/parser/hlo_parser.cc`).
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import replace

from hlo_graphs.async_sugar import AsyncChains
from hlo_graphs.attributes import (
    CALLING_ATTRIBUTES,
    Attribute,
    called_computations,
    computation_names,
    read_attribute,
    read_attribute_name,
)
from hlo_graphs.checks import compatible, expected_parameters, missing_part
from hlo_graphs.errors import did_you_mean
from hlo_graphs.fast_lines import FastLines
from hlo_graphs.fresh_names import IN_PLACE, FreshNames
from hlo_graphs.hlo import HloComputation, HloInstruction, Shape
from hlo_graphs.lexer import NAME, Cursor
from hlo_graphs.literals import check_literal
from hlo_graphs.opcodes import OPCODES, split_async_opcode
from hlo_graphs.scope import Scope
from hlo_graphs.shape_inference import infer_shape
from hlo_graphs.shape_text import ShapeReader

MAX_NESTING = 50
"""Deepest nesting of operands or computations written in place."""

_ROOT = re.compile(r"ROOT(?![\w.\-])")
_OPCODE = re.compile(r"[A-Za-z_][\w\-]*+", re.ASCII)
_INLINE_BODY = re.compile(rf"\{{\s*+(?:ROOT\s++)?+%?{NAME}\s*+=", re.ASCII)
_INLINE_BODIES = re.compile(rf"\{{\s*+{_INLINE_BODY.pattern}", re.ASCII)
_ELEMENT_INDEX = re.compile(r"#([0-9]{1,9})(?![\w.])")


class BodyReader:
    """Reads computation bodies of one module.

    Args:
      cursor: stands behind the opening brace whenever `read` is called.
      shapes: the shapes known so far.
      computations: those defined so far; bodies written in place are added to it.
      taken: names that are not to be made up.
      use_fast_lines: whether to try the regular expressions first.
    """

    def __init__(
        self,
        cursor: Cursor,
        shapes: ShapeReader,
        computations: dict[str, HloComputation],
        taken: Container[str],
        use_fast_lines: bool = True,
    ) -> None:
        self._cursor = cursor
        self._shapes = shapes
        self._computations = computations
        self._fast_lines = FastLines(cursor, shapes, computations)
        self._use_fast_lines = use_fast_lines
        self._names = FreshNames(taken)

    def read(self, name: str, is_entry: bool, depth: int = 0) -> HloComputation:
        """The computation whose body begins at the cursor, up to and with the closing brace."""
        cursor = self._cursor
        if depth > MAX_NESTING:
            cursor.fail(f"computations nested at most {MAX_NESTING} deep")
        start = cursor.position
        scope = Scope(AsyncChains(self._names))
        while True:
            if self._use_fast_lines:
                self._fast_lines.read(scope)
            if cursor.accept("}"):
                break
            self._read_instruction(scope, depth)
        if not scope.by_name:
            cursor.fail(f"an instruction in {name!r}", cursor.position - 1)
        expected = expected_parameters(scope.by_name.values())
        if expected is not None:
            cursor.fail(f"{expected}, in {name!r}", start - 1)
        self._computations.update(scope.wrapped_computations())
        return scope.computation(name, is_entry)

    def _read_instruction(self, scope: Scope, depth: int) -> None:
        """`[ROOT] name = right-hand side`."""
        cursor = self._cursor
        cursor.skip_blanks()
        start = cursor.position
        is_root = cursor.accept_pattern(_ROOT) is not None
        if is_root and scope.root is not None:
            cursor.fail(f"one ROOT (it is {scope.root!r})", start)
        cursor.skip_blanks()
        start = cursor.position
        name = cursor.expect_name("an instruction or '}'")
        if name in scope.by_name:
            line = scope.by_name[name].line
            cursor.fail(f"a name not used before (line {line} defines it)", start, repr(name))
        if cursor.text.startswith("=", cursor.position):
            cursor.fail(f"a blank between the name {name!r} and '='", cursor.position)
        cursor.expect("=", f"after the instruction's name {name!r}")
        line = cursor.line_of(start)
        scope.add(self._read_right_hand_side(scope, name, is_root, line, depth))

    def _read_right_hand_side(
        self, scope: Scope, name: str | None, is_root: bool, line: int, depth: int
    ) -> HloInstruction:
        """`[shape] opcode(operands), attributes`; without `name` as an operand in place."""
        cursor = self._cursor
        shape = self._shapes.read(cursor) if self._shapes.ahead(cursor) else None
        cursor.skip_blanks()
        start = cursor.position
        opcode = self._read_opcode()
        cursor.expect("(", f"after the opcode {opcode}")
        arguments, operands = self._read_arguments(scope, opcode, shape, depth)
        attributes = {} if name is None else self._read_attributes(depth)
        values = {key: attribute.text for key, attribute in attributes.items()}
        called = self._checked_calls(attributes, opcode, values)
        if shape is None:
            shape = self._infer(scope, opcode, operands, values, called, start)
        if name is None:
            name = scope.fresh_name(f"{opcode}.anon")
        instruction = HloInstruction(
            name, opcode, shape, operands, arguments, values, called, is_root, line
        )
        return self._resolve(scope, instruction, start)

    def _read_opcode(self) -> str:
        cursor = self._cursor
        cursor.skip_blanks()
        start = cursor.position
        opcode = cursor.accept_pattern(_OPCODE)
        if opcode is None:
            cursor.fail("an opcode")
        if opcode not in OPCODES and split_async_opcode(opcode) is None:
            found = f"unknown opcode {opcode[:80]!r}"
            cursor.fail(f"an opcode{did_you_mean(opcode, OPCODES)}", start, found)
        return opcode

    def _read_arguments(
        self, scope: Scope, opcode: str, shape: Shape | None, depth: int
    ) -> tuple[str, tuple[str, ...]]:
        """(text, operand names) of what is between the parentheses; the cursor is inside."""
        cursor = self._cursor
        if opcode == "parameter":
            number = cursor.expect_size("the parameter's number")
            cursor.expect(")", "after the parameter's number")
            return str(number), ()
        if opcode == "constant":
            return self._read_literal(shape), ()
        names: list[str] = []
        while not cursor.accept(")"):
            if names:
                cursor.expect(",", "or ')' between operands")
            names.append(self._read_operand(scope, depth))
        return "", tuple(names)

    def _read_literal(self, shape: Shape | None) -> str:
        cursor = self._cursor
        start = cursor.position
        if shape is None:
            cursor.fail("a shape before the opcode of a constant", start)
        cursor.position = start - 1
        cursor.skip_balanced()
        text = cursor.text[start : cursor.position - 1]
        check_literal(text, shape, cursor, start)
        return text

    def _read_operand(self, scope: Scope, depth: int) -> str:
        """The name of an operand; one written in place is added to the scope first."""
        cursor = self._cursor
        if depth > MAX_NESTING:
            cursor.fail(f"operands nested at most {MAX_NESTING} deep")
        cursor.skip_blanks()
        start = cursor.position
        declared = self._shapes.read(cursor) if self._shapes.ahead(cursor) else None
        cursor.skip_blanks()
        name_start = cursor.position
        name = cursor.expect_name("an operand: a name, or an instruction in place")
        name_end = cursor.position
        if cursor.peek("("):
            cursor.position = start
            line = cursor.line_of(start)
            nested = self._read_right_hand_side(scope, None, False, line, depth + 1)
            scope.add(nested)
            return nested.name
        cursor.position = name_end
        if name not in scope.by_name:
            cursor.fail("the name of an instruction defined above", name_start, repr(name))
        name = self._read_element_indices(scope, name)
        actual = scope.by_name[name].shape
        if declared is not None and not compatible(declared, actual):
            cursor.fail(f"the operand's shape, {actual}", start, str(declared))
        return name

    def _read_element_indices(self, scope: Scope, name: str) -> str:
        """`#1#0` behind a name: adds the get-tuple-elements that it stands for."""
        cursor = self._cursor
        while cursor.text.startswith("#", cursor.position):
            found = _ELEMENT_INDEX.match(cursor.text, cursor.position, cursor.end)
            if found is None:
                cursor.fail("the number of a tuple's element after '#'", cursor.position + 1)
            name = self._element(scope, name, int(found.group(1)))
            cursor.position = found.end()
        return name

    def _element(self, scope: Scope, name: str, index: int) -> str:
        shape = scope.by_name[name].shape
        element_name = f"{name}#{index}"
        if not shape.is_tuple or index >= len(shape.elements):
            self._cursor.fail(f"an element of {name!r}, whose shape is {shape}")
        if element_name not in scope.by_name:
            line = self._cursor.line_of(self._cursor.position)
            scope.add(
                HloInstruction(
                    element_name,
                    "get-tuple-element",
                    shape.elements[index],
                    (name,),
                    "",
                    {"index": str(index)},
                    (),
                    False,
                    line,
                )
            )
        return element_name

    def _read_attributes(self, depth: int) -> dict[str, Attribute]:
        cursor = self._cursor
        found: dict[str, Attribute] = {}
        while cursor.accept(","):
            cursor.skip_blanks()
            start = cursor.position
            attribute = self._read_inline_body(depth) or read_attribute(cursor)
            if attribute.name in found:
                cursor.fail("each attribute once", start, repr(attribute.name))
            found[attribute.name] = attribute
        return found

    def _read_inline_body(self, depth: int) -> Attribute | None:
        """Computations written as an attribute's value; None if there are none here."""
        cursor = self._cursor
        before = cursor.position
        name = read_attribute_name(cursor)
        cursor.skip_blanks()
        start = cursor.position
        if name in CALLING_ATTRIBUTES:
            if _INLINE_BODY.match(cursor.text, start, cursor.end):
                return Attribute(name, f"%{self._computation_in_place(depth)}", start)
            if _INLINE_BODIES.match(cursor.text, start, cursor.end):
                return Attribute(name, self._computations_in_place(depth), start)
        cursor.position = before
        return None

    def _computation_in_place(self, depth: int) -> str:
        """Reads one body in braces; returns the name made up for it."""
        self._cursor.expect("{", "before a computation in place")
        computation = self.read(IN_PLACE, False, depth + 1)
        name = self._names.make(IN_PLACE)
        self._computations[name] = replace(computation, name=name)
        return name

    def _computations_in_place(self, depth: int) -> str:
        """Reads `{ { body }, { body } }`; returns the list of names that replaces it."""
        cursor = self._cursor
        cursor.expect("{", "before computations in place")
        names = [f"%{self._computation_in_place(depth)}"]
        while cursor.accept(","):
            names.append(f"%{self._computation_in_place(depth)}")
        cursor.expect("}", "after computations in place")
        return f"{{{', '.join(names)}}}"

    def _checked_calls(
        self, attributes: Mapping[str, Attribute], opcode: str, values: Mapping[str, str]
    ) -> tuple[str, ...]:
        for key, attribute in attributes.items():
            if key not in CALLING_ATTRIBUTES:
                continue
            for name in computation_names(attribute.text):
                if name not in self._computations:
                    expected = "the name of a computation defined above (calls cannot be cyclic)"
                    self._cursor.fail(expected, attribute.start, repr(name))
        return called_computations(opcode, values)

    def _infer(
        self,
        scope: Scope,
        opcode: str,
        operands: tuple[str, ...],
        values: Mapping[str, str],
        called: tuple[str, ...],
        start: int,
    ) -> Shape:
        shapes = tuple(scope.by_name[name].shape for name in operands)
        roots = tuple(self._computations[name].root.shape for name in called)
        shape = infer_shape(opcode, shapes, values, roots)
        if shape is None:
            self._cursor.fail(f"a shape before {opcode}, it cannot be inferred here", start)
        return shape

    def _resolve(self, scope: Scope, instruction: HloInstruction, start: int) -> HloInstruction:
        """Rewrites `slice-start` and its like to async-start; checks operands and attributes."""
        missing = missing_part(instruction, scope.by_name, self._computations)
        if missing is not None:
            self._cursor.fail(missing, start)
        result = scope.chains.resolve(instruction, scope.by_name)
        if isinstance(result, str):
            self._cursor.fail(f"{result} {instruction.opcode}", start)
        return result
