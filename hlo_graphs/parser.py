"""Scheduled HLO text to HloModule.

Source: `xla/hlo/parser/hlo_parser.cc`. Attributes stay raw text, so attributes newer than this
parser do no harm; opcodes, shapes, names and brackets are checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from hlo_graphs.attributes import read_attribute
from hlo_graphs.checks import compatible
from hlo_graphs.errors import InputError
from hlo_graphs.fresh_names import NamesInText
from hlo_graphs.hlo import HloComputation, HloModule, InputOutputAlias, Shape, ShapeIndex
from hlo_graphs.instruction_text import BodyReader
from hlo_graphs.lexer import Cursor
from hlo_graphs.shape_text import ShapeReader
from hlo_graphs.text_files import read_text

_SEPARATOR_DASHES = "// -----"
_SEPARATOR = re.compile(rf"^[ \t]*{_SEPARATOR_DASHES}", re.MULTILINE)
_MODULE = re.compile(r"HloModule(?![\w.\-])")
_ENTRY = re.compile(r"ENTRY(?![\w.\-])")
_TABLE = re.compile(r"(?:FileNames|FunctionNames|FileLocations|StackFrames)(?![\w.\-=])")
_TABLE_ROW = re.compile(r"[0-9]++\s++(?=[\"{'])")
_ALIAS_KIND = re.compile(r"may-alias|must-alias")


def parse_module(text: str, path: str = "<string>") -> HloModule:
    """The one module of `text`.

    Raises:
      HloSyntaxError: where the text does not follow the grammar.
      InputError: if it holds no module, or several.
    """
    modules = parse_modules(text, path)
    if len(modules) != 1:
        raise InputError(
            f"{path}: {len(modules)} HLO modules in one text, expected one; split the file at "
            "its '// -----' lines"
        )
    return modules[0]


def parse_modules(
    text: str, path: str = "<string>", *, use_fast_lines: bool = True
) -> tuple[HloModule, ...]:
    """All modules of `text`, separated by `// -----` lines or by their headers.

    Args:
      text: HLO text.
      path: its name in errors.
      use_fast_lines: read lines that XLA printed with regular expressions. The result is the
        same without, only slower.

    Raises:
      HloSyntaxError: where the text does not follow the grammar.
      InputError: if it holds no module.
    """
    modules = tuple(_modules(text, path, use_fast_lines))
    if not modules:
        raise InputError(f"{path}: no HLO module: the text is empty")
    return modules


def read_module(path: str | Path) -> HloModule:
    """The one module of a file, plain or gzipped; `-` is the standard input.

    Raises:
      HloSyntaxError: where the text does not follow the grammar.
      InputError: if the file cannot be read, or does not hold exactly one module.
    """
    return parse_module(read_text(path), "<stdin>" if str(path) == "-" else str(path))


def require_scheduled(module: HloModule) -> HloModule:
    """`module`, if its text order is an execution order.

    Raises:
      InputError: if it is not scheduled, saying how to get one that is.
    """
    if not module.is_scheduled:
        raise InputError(
            f"{module.path}: module {module.name!r} is not scheduled (no is_scheduled=true in its "
            "header). Compile it and take the module after optimisation: dump with "
            "XLA_FLAGS='--xla_dump_to=DIR --xla_dump_hlo_as_text' and use the "
            "*after_optimizations.txt (TPU: *after_optimizations_before_buffer_assignment.txt), or "
            "print jax.jit(f).lower(...).compile().as_text()"
        )
    return module


def _modules(text: str, path: str, use_fast_lines: bool) -> Iterator[HloModule]:
    cursor = Cursor(text, path)
    names = NamesInText(text)
    ends: list[int] = []
    if _SEPARATOR_DASHES in text:
        ends = [match.start() for match in _SEPARATOR.finditer(text)]
    for end in [*ends, len(text)]:
        cursor.end = end
        while not cursor.at_end():
            yield _ModuleReader(cursor, names, use_fast_lines).read()


class _ModuleReader:
    """Reads one module from the cursor on."""

    def __init__(self, cursor: Cursor, names: NamesInText, use_fast_lines: bool) -> None:
        self._cursor = cursor
        self._shapes = ShapeReader()
        self._computations: dict[str, HloComputation] = {}
        self._bodies = BodyReader(cursor, self._shapes, self._computations, names, use_fast_lines)
        self._attributes: dict[str, str] = {}
        self._aliases: tuple[InputOutputAlias, ...] = ()
        self._aliases_start = 0

    def read(self) -> HloModule:
        cursor = self._cursor
        name = ""
        if cursor.accept_pattern(_MODULE):
            name = self._read_header()
        self._skip_tables()
        entry: str | None = None
        start = cursor.position
        while not cursor.at_end() and not _MODULE.match(cursor.text, cursor.position, cursor.end):
            computation = self._read_computation(entry)
            if computation.is_entry:
                entry = computation.name
        if not self._computations:
            cursor.fail("a computation", start)
        if entry is None:
            if "entry_computation_layout" in self._attributes:
                cursor.fail("an ENTRY computation, as the header announces (is the text cut off?)")
            entry = next(reversed(self._computations))
            self._computations[entry] = replace(self._computations[entry], is_entry=True)
        self._check_aliases(self._computations[entry])
        return HloModule(
            name,
            MappingProxyType(self._attributes),
            MappingProxyType(self._computations),
            self._computations[entry],
            self._attributes.get("is_scheduled") == "true",
            self._aliases,
            cursor.path,
        )

    def _read_header(self) -> str:
        cursor = self._cursor
        name = cursor.expect_name("the module's name")
        cursor.accept(":")
        while cursor.accept(","):
            cursor.skip_blanks()
            start = cursor.position
            attribute = read_attribute(cursor)
            if attribute.name in self._attributes:
                cursor.fail("each attribute once", start, repr(attribute.name))
            self._attributes[attribute.name] = attribute.text
            if attribute.name == "input_output_alias":
                end = attribute.start + len(attribute.text)
                inner = Cursor(cursor.text, cursor.path, attribute.start, end)
                self._aliases_start = attribute.start
                self._aliases = tuple(_read_aliases(inner))
        return name

    def _check_aliases(self, entry: HloComputation) -> None:
        """Each alias must name a node of the result and one of a parameter."""
        for alias in self._aliases:
            try:
                entry.root.shape.at(alias.output_index)
                entry.parameters[alias.parameter_number].shape.at(alias.parameter_index)
            except IndexError:
                found = f"the alias {alias.output_index}: {alias[1:]}"
                expected = f"indices of the result and of a parameter of {entry.name!r}"
                self._cursor.fail(expected, self._aliases_start, found)

    def _skip_tables(self) -> None:
        """FileNames and its like: numbered rows of strings or braces."""
        cursor = self._cursor
        while cursor.accept_pattern(_TABLE):
            while cursor.accept_pattern(_TABLE_ROW):
                if cursor.peek("{"):
                    cursor.skip_balanced()
                else:
                    cursor.expect_string("a string")

    def _read_computation(self, entry: str | None) -> HloComputation:
        """`[ENTRY] name [(parameters) -> shape] { ... } [, attributes]`."""
        cursor = self._cursor
        start = cursor.position
        is_entry = cursor.accept_pattern(_ENTRY) is not None
        if is_entry and entry is not None:
            cursor.fail(f"one ENTRY computation ({entry!r} is one)", start)
        cursor.skip_blanks()
        start = cursor.position
        name = cursor.expect_name("a computation")
        if name in self._computations:
            cursor.fail("a computation name not used before", start, repr(name))
        result = self._read_signature() if cursor.accept("(") else None
        cursor.expect("{", f"before the instructions of {name!r}")
        computation = self._bodies.read(name, is_entry)
        root = computation.root
        if result is not None and not compatible(result, root.shape):
            found = f"the result shape {result} of {name!r}"
            cursor.fail(f"{root.shape}, the shape of its root {root.name!r}", start, found)
        while cursor.accept(","):
            attribute = read_attribute(cursor)
            if attribute.name == "execution_thread":
                computation = replace(computation, execution_thread=attribute.text.strip("\"'"))
        self._computations[name] = computation
        return computation

    def _read_signature(self) -> Shape:
        """The result's shape of `name: shape, ...) -> shape`; the parameters' are passed over."""
        cursor = self._cursor
        first = True
        while not cursor.accept(")"):
            if not first:
                cursor.expect(",", "or ')' between parameters")
            first = False
            cursor.expect_name("a parameter's name")
            cursor.expect(":", "after a parameter's name")
            self._shapes.read(cursor)
        cursor.expect("->", "and the result's shape after the parameters")
        return self._shapes.read(cursor)


def _read_aliases(cursor: Cursor) -> Iterator[InputOutputAlias]:
    """`{ {0}: (1, {}, may-alias), ... }`."""
    cursor.expect("{", "before the aliases")
    first = True
    while not cursor.accept("}"):
        if not first:
            cursor.expect(",", "or '}' between aliases")
        first = False
        output = _read_index(cursor)
        cursor.expect(":", "after the output's index")
        cursor.expect("(", "before the parameter")
        number = cursor.expect_size("a parameter's number")
        cursor.expect(",", "after the parameter's number")
        index = _read_index(cursor)
        kind: str | None = "may-alias"
        if cursor.accept(","):
            kind = cursor.accept_pattern(_ALIAS_KIND)
            if kind is None:
                cursor.fail("may-alias or must-alias")
        cursor.expect(")", "after the parameter")
        yield InputOutputAlias(output, number, index, kind or "may-alias")


def _read_index(cursor: Cursor) -> ShapeIndex:
    cursor.expect("{", "before a shape index")
    index: list[int] = []
    while not cursor.accept("}"):
        if index:
            cursor.expect(",", "or '}' in a shape index")
        index.append(cursor.expect_integer("a number in a shape index"))
    return tuple(index)
