"""Reads the instructions between a computation's braces.

Two readers of one grammar: `_Fast` matches a whole line that looks as XLA prints it with one
regular expression; whatever it does not match, the careful reader takes piece by piece, which
also finds the place of every error. Source: XLA_MSA.md section G.3 (`HloParserImpl`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hlo_graphs.async_sugar import AsyncChains, computation_of
from hlo_graphs.attributes import (
    CALLING_ATTRIBUTES,
    Attribute,
    computation_names,
    read_attribute_name,
    skip_value,
    split_attributes,
)
from hlo_graphs.hlo import HloComputation, HloInstruction, Shape
from hlo_graphs.lexer import NAME, Cursor
from hlo_graphs.literals import check_literal
from hlo_graphs.opcodes import OPCODES, split_async_opcode, suggestion
from hlo_graphs.shape_inference import infer_shape
from hlo_graphs.shape_text import ShapeReader

MAX_NESTING = 100
"""Deepest nesting of operands or computations written in place."""

_PLAIN = r"[^\s,{}\[\]()\"'=/<]"
_STRING = r"\"(?:[^\"\\\n]|\\[^\n])*+\""
_FLAT = rf"(?:[^{{}}\[\]()\"'/\n]|{_STRING}|/(?![/*]))"


def _braces(depth: int) -> str:
    """A regular expression for braces nested at most `depth` deep."""
    inside = r"\[[^\[\]{}()\"'/\n]*+\]|\([^\[\]{}()\"'/\n]*+\)"
    pattern = rf"\{{(?:{_FLAT}|{inside})*+\}}"
    for _ in range(depth - 1):
        bracket = rf"\[(?:{_FLAT}|{pattern}|{inside})*+\]"
        pattern = rf"\{{(?:{_FLAT}++|{pattern}|{bracket}|{inside})*+\}}"
    return pattern


_VALUE = rf"(?:{_PLAIN}++|<=|{_STRING}|{_braces(3)}|\[[\d,]*+\]|\([\d,]*+\))++"
_LINE = re.compile(
    rf"\s*+(ROOT )?%?({NAME}) = (\(.*?\)|[^\s(]\S*+) ([a-z][a-z0-9\-]*+)"
    rf"\(([^()/\n\"']*+)\)((?:, [A-Za-z_][\w.\-]*+={_VALUE})*+)[ \t]*+(?=\n)",
    re.ASCII,
)
_PLAIN_OPERANDS = re.compile(rf"%?{NAME}(?:, %?{NAME})*+", re.ASCII)
_NUMBER_OF_PARAMETER = re.compile(r"[0-9]{1,9}")
_ROOT = re.compile(r"ROOT(?![\w.\-])")
_OPCODE = re.compile(r"[A-Za-z_][\w\-]*")
_CALLING_HINT = re.compile(rf", (?:{'|'.join(CALLING_ATTRIBUTES)})=")
_INLINE_BODY = re.compile(r"\{\s*+(?:ROOT\s++)?+%?[A-Za-z_][\w.\-]*+\s*+=")
_ELEMENT_INDEX = re.compile(r"#([0-9]{1,9})")


@dataclass(slots=True)
class Scope:
    """What is known inside one computation."""

    instructions: list[HloInstruction] = field(default_factory=list)
    by_name: dict[str, HloInstruction] = field(default_factory=dict)
    chains: AsyncChains = field(default_factory=AsyncChains)

    def add(self, instruction: HloInstruction) -> None:
        """Appends to the schedule."""
        self.instructions.append(instruction)
        self.by_name[instruction.name] = instruction

    def fresh_name(self, wanted: str) -> str:
        """`wanted`, with a number behind it where it is taken."""
        name, number = wanted, 0
        while name in self.by_name:
            number += 1
            name = f"{wanted}.{number}"
        return name


class BodyReader:
    """Reads computation bodies of one module.

    Args:
      cursor: stands behind the opening brace whenever `read` is called.
      shapes: the shapes known so far.
      computations: those defined so far; bodies written in place are added to it.
      fast: whether to try the regular expression first.
    """

    def __init__(
        self,
        cursor: Cursor,
        shapes: ShapeReader,
        computations: dict[str, HloComputation],
        fast: bool = True,
    ) -> None:
        self._cursor = cursor
        self._shapes = shapes
        self._computations = computations
        self._fast = fast
        self._line = 1
        self._line_position = 0

    def read(self, name: str, is_entry: bool, depth: int = 0) -> HloComputation:
        """The computation whose body begins at the cursor, up to and with the closing brace."""
        if depth > MAX_NESTING:
            self._cursor.fail(f"computations nested at most {MAX_NESTING} deep")
        scope = Scope()
        while True:
            if self._fast:
                self._read_lines(scope)
            if self._cursor.accept("}"):
                break
            self._read_instruction(scope, depth)
        if not scope.instructions:
            self._cursor.fail(f"an instruction in {name!r}", self._cursor.position - 1)
        self._computations.update(scope.chains.computations(scope.by_name))
        return computation_of(name, scope.instructions, is_entry)

    def _line_of(self, position: int) -> int:
        """Line number of `position`; cheap for positions that only grow."""
        if position < self._line_position:
            return self._cursor.location(position).line
        self._line += self._cursor.text.count("\n", self._line_position, position)
        self._line_position = position
        return self._line

    # The fast reader.

    def _read_lines(self, scope: Scope) -> None:
        """Takes lines as long as they look as XLA prints them."""
        cursor = self._cursor
        text, end = cursor.text, cursor.end
        match = _LINE.match(text, cursor.position, end)
        while match is not None:
            instruction = self._from_match(match, scope)
            if instruction is None:
                return
            scope.add(instruction)
            cursor.position = match.end()
            match = _LINE.match(text, cursor.position, end)

    def _from_match(self, match: re.Match[str], scope: Scope) -> HloInstruction | None:
        """The instruction of a line, or None to leave it to the careful reader."""
        root, name, shape_text, opcode, arguments, attributes = match.groups()
        if opcode not in OPCODES or name in scope.by_name:
            return None
        shape = self._shapes.from_text(shape_text, self._cursor, match.start(3))
        operands: tuple[str, ...] = ()
        if opcode == "parameter":
            if _NUMBER_OF_PARAMETER.fullmatch(arguments) is None:
                return None
        elif opcode == "constant":
            check_literal(arguments, shape, self._cursor, match.start(5))
        elif arguments:
            if _PLAIN_OPERANDS.fullmatch(arguments) is None:
                return None
            operands = tuple(arguments.replace("%", "").split(", "))
            if not scope.by_name.keys() >= set(operands):
                return None
            arguments = ""
        called: tuple[str, ...] = ()
        if opcode.startswith("async-"):
            return None
        if attributes and _CALLING_HINT.search(attributes) is not None:
            called = _called_computations(split_attributes(attributes), opcode)
            if not self._computations.keys() >= set(called):
                return None
        return HloInstruction(
            name,
            opcode,
            shape,
            operands,
            arguments,
            attributes,
            called,
            root is not None,
            self._line_of(match.start(2)),
        )

    # The careful reader.

    def _read_instruction(self, scope: Scope, depth: int) -> None:
        cursor = self._cursor
        is_root = cursor.accept_pattern(_ROOT) is not None
        cursor.skip_blanks()
        start = cursor.position
        name = cursor.expect_name("an instruction or '}'")
        if name in scope.by_name:
            line = scope.by_name[name].line
            cursor.fail(f"a name not used before (line {line} defines it)", start, repr(name))
        if cursor.text.startswith("=", cursor.position):
            cursor.fail(f"a blank between the name {name!r} and '='", cursor.position)
        cursor.expect("=", f"after the instruction's name {name!r}")
        instruction = self._read_right_hand_side(scope, name, self._line_of(start), depth, False)
        scope.add(replace(instruction, is_root=is_root))

    def _read_right_hand_side(
        self, scope: Scope, name: str, line: int, depth: int, is_operand: bool
    ) -> HloInstruction:
        """`[shape] opcode(operands), attributes`; operands in place have no attributes."""
        cursor = self._cursor
        shape = self._shapes.read(cursor) if self._shapes.ahead(cursor) else None
        cursor.skip_blanks()
        start = cursor.position
        opcode = self._read_opcode()
        name = name or scope.fresh_name(f"{opcode}.anon")
        cursor.expect("(", f"after the opcode {opcode}")
        arguments, operands = self._read_arguments(scope, opcode, shape, depth)
        attributes_start = cursor.position
        attributes = {} if is_operand else self._read_attributes(depth)
        written = cursor.text[attributes_start : cursor.position] if attributes else ""
        called = self._checked_calls(attributes, opcode)
        if shape is None:
            shape = self._infer(scope, opcode, operands, attributes, called, start)
        values = {key: attribute.text for key, attribute in attributes.items()}
        text = _attribute_text(values) if "{" in written and called else written
        instruction = HloInstruction(
            name, opcode, shape, operands, arguments, text, called, False, line
        )
        return self._resolve_async(scope, instruction, values, start)

    def _read_opcode(self) -> str:
        cursor = self._cursor
        cursor.skip_blanks()
        start = cursor.position
        opcode = cursor.accept_pattern(_OPCODE)
        if opcode is None:
            cursor.fail("an opcode")
        if opcode not in OPCODES and split_async_opcode(opcode) is None:
            found = f"unknown opcode {opcode[:80]!r}"
            cursor.fail(f"an opcode{suggestion(opcode)}", start, found)
        return opcode

    def _read_arguments(
        self, scope: Scope, opcode: str, shape: Shape | None, depth: int
    ) -> tuple[str, tuple[str, ...]]:
        """(text, operand names) of what is between the parentheses; the cursor is inside."""
        cursor = self._cursor
        if opcode == "parameter":
            number = cursor.expect_integer("the parameter's number")
            if number < 0:
                cursor.fail("a parameter number, at least 0", cursor.position, str(number))
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
        cursor.skip_blanks()
        start = cursor.position
        cursor.position = cursor.text.rfind("(", 0, start)
        cursor.skip_balanced()
        text = cursor.text[start : cursor.position - 1]
        if shape is None:
            cursor.fail("a shape before the opcode of a constant", start)
        check_literal(text, shape, cursor, start)
        return text.strip()

    def _read_operand(self, scope: Scope, depth: int) -> str:
        """The name of an operand; one written in place is added to the scope first."""
        cursor = self._cursor
        if depth > MAX_NESTING:
            cursor.fail(f"operands nested at most {MAX_NESTING} deep")
        cursor.skip_blanks()
        start = cursor.position
        if self._shapes.ahead(cursor):
            self._shapes.read(cursor)
        cursor.skip_blanks()
        name_start = cursor.position
        name = cursor.expect_name("an operand: a name, or an instruction in place")
        if cursor.peek("("):
            cursor.position = start
            line = self._line_of(start)
            nested = self._read_right_hand_side(scope, "", line, depth + 1, True)
            scope.add(nested)
            return nested.name
        cursor.position = name_start + len(name) + cursor.text.startswith("%", name_start)
        if name not in scope.by_name:
            cursor.fail("the name of an instruction defined above", name_start, repr(name))
        return self._read_element_indices(scope, name)

    def _read_element_indices(self, scope: Scope, name: str) -> str:
        """`#1#0` behind a name: adds the get-tuple-elements that it stands for."""
        cursor = self._cursor
        while (found := _ELEMENT_INDEX.match(cursor.text, cursor.position, cursor.end)) is not None:
            index = int(found.group(1))
            shape = scope.by_name[name].shape
            if not shape.is_tuple or index >= len(shape.elements):
                cursor.fail(f"an element of {name!r}, whose shape is {shape}", cursor.position)
            element_name = f"{name}#{index}"
            if element_name not in scope.by_name:
                line = self._line_of(cursor.position)
                text = f", index={index}"
                element = shape.elements[index]
                opcode = "get-tuple-element"
                scope.add(
                    HloInstruction(
                        element_name, opcode, element, (name,), "", text, (), False, line
                    )
                )
            name = element_name
            cursor.position = found.end()
        if cursor.text.startswith("#", cursor.position):
            cursor.fail("the number of a tuple's element after '#'", cursor.position)
        return name

    def _read_attributes(self, depth: int) -> dict[str, Attribute]:
        cursor = self._cursor
        found: dict[str, Attribute] = {}
        while cursor.accept(","):
            cursor.skip_blanks()
            name_start = cursor.position
            name = read_attribute_name(cursor)
            if name in found:
                cursor.fail("each attribute once", name_start, repr(name))
            cursor.skip_blanks()
            start = cursor.position
            inline = name in CALLING_ATTRIBUTES and _INLINE_BODY.match(cursor.text, start)
            if inline:
                value = self._read_inline_body(depth)
            else:
                skip_value(cursor)
                value = cursor.text[start : cursor.position]
            found[name] = Attribute(name, value, start)
        return found

    def _read_inline_body(self, depth: int) -> str:
        """A computation written as an attribute's value; returns its made-up name."""
        self._cursor.accept("{")
        name, number = "inline", 0
        while name in self._computations:
            number += 1
            name = f"inline.{number}"
        self._computations[name] = self.read(name, False, depth + 1)
        return f"%{name}"

    def _checked_calls(self, attributes: Mapping[str, Attribute], opcode: str) -> tuple[str, ...]:
        values = {name: attribute.text for name, attribute in attributes.items()}
        for key, attribute in attributes.items():
            if key not in CALLING_ATTRIBUTES:
                continue
            for name in computation_names(attribute.text):
                if name not in self._computations:
                    expected = "the name of a computation defined above (calls cannot be cyclic)"
                    self._cursor.fail(expected, attribute.start, repr(name))
        return _called_computations(values, opcode)

    def _infer(
        self,
        scope: Scope,
        opcode: str,
        operands: tuple[str, ...],
        attributes: Mapping[str, Attribute],
        called: tuple[str, ...],
        start: int,
    ) -> Shape:
        values = {key: attribute.text for key, attribute in attributes.items()}
        shapes = tuple(scope.by_name[name].shape for name in operands)
        roots = tuple(self._computations[name].root.shape for name in called)
        shape = infer_shape(opcode, shapes, values, roots)
        if shape is None:
            self._cursor.fail(f"a shape before {opcode}, it cannot be inferred here", start)
        return shape

    def _resolve_async(
        self, scope: Scope, instruction: HloInstruction, values: Mapping[str, str], start: int
    ) -> HloInstruction:
        """Rewrites `slice-start` and its like to async-start; checks what async-done ends."""
        taken = self._computations.keys()
        result = scope.chains.resolve(instruction, values, scope.by_name, taken)
        if isinstance(result, HloInstruction):
            return result
        self._cursor.fail(result, start, instruction.opcode)


def _attribute_text(values: Mapping[str, str]) -> str:
    return "".join(f", {name}={value}" for name, value in values.items())


def _called_computations(values: Mapping[str, str], opcode: str) -> tuple[str, ...]:
    """Names of called computations; the ends of async pairs repeat their start's, so have none."""
    if opcode in ("async-update", "async-done"):
        return ()
    calling = [key for key in values if key in CALLING_ATTRIBUTES]
    calling.sort(key=CALLING_ATTRIBUTES.__getitem__)
    return tuple(name for key in calling for name in computation_names(values[key]))
