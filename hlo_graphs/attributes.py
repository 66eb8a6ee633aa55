"""Attributes of instructions and modules as raw text: where each begins and ends.

Source: XLA_MSA.md section G.5. Unknown attributes are kept like known ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hlo_graphs.lexer import NAME, Cursor

CALLING_ATTRIBUTES: dict[str, int] = {
    "condition": 0,
    "body": 1,
    "true_computation": 0,
    "false_computation": 1,
    "select": 0,
    "scatter": 1,
    "branch_computations": 0,
    "called_computations": 0,
    "calls": 0,
    "to_apply": 0,
    "comparator": 0,
}
"""Attributes that name computations, with their place in `called_computations`."""

_ATTRIBUTE_NAME = re.compile(r"([A-Za-z_][\w.\-]*)\s*=")
_PLAIN = re.compile(r"(?:[^\s,{}\[\]()\"'=/]|/(?![/*])|<=)+")
_NAME_IN_LIST = re.compile(rf"%?({NAME})")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One `name=value`.

    Attributes:
      name: before the `=`.
      text: the value as written.
      start: position of the value's first character.
    """

    name: str
    text: str
    start: int


def split_attributes(text: str) -> Mapping[str, str]:
    """`, name=value, ...` as a mapping from name to raw value.

    Raises:
      HloSyntaxError: if the text is not such a list.
    """
    cursor = Cursor(text, "<attributes>")
    found = {attribute.name: attribute.text for attribute in read_attributes(cursor)}
    return MappingProxyType(found)


def read_attributes(cursor: Cursor) -> Iterator[Attribute]:
    """Each attribute of a list that begins with a comma; leaves the cursor behind the last."""
    while cursor.accept(","):
        yield read_attribute(cursor)


def read_attribute(cursor: Cursor) -> Attribute:
    """The attribute at the cursor."""
    name = read_attribute_name(cursor)
    cursor.skip_blanks()
    start = cursor.position
    skip_value(cursor)
    return Attribute(name, cursor.text[start : cursor.position], start)


def read_attribute_name(cursor: Cursor) -> str:
    """The attribute's name; leaves the cursor behind the `=`."""
    found = cursor.accept_pattern(_ATTRIBUTE_NAME)
    if found is None:
        cursor.fail("an attribute: name=value")
    return found[:-1].rstrip()


def skip_value(cursor: Cursor) -> None:
    """Moves over one attribute value: words, strings and bracketed pieces without blanks between.

    A brace or bracket belongs to the value even after a blank (`mesh['a'=2] {'b'}`).
    """
    start = cursor.position
    while cursor.position < cursor.end:
        character = cursor.text[cursor.position]
        if character in "{[(":
            cursor.skip_balanced()
        elif character in "\"'":
            cursor.expect_string("a string that ends")
        elif (match := _PLAIN.match(cursor.text, cursor.position, cursor.end)) is not None:
            cursor.position = match.end()
        elif not _bracket_after_blank(cursor, start):
            break
    if cursor.position == start:
        cursor.fail("the attribute's value")


def _bracket_after_blank(cursor: Cursor, start: int) -> bool:
    before = cursor.position
    if before > start and (cursor.peek("{") or cursor.peek("[")):
        return True
    cursor.position = before
    return False


def computation_names(value: str) -> list[str]:
    """The names in the value of a calling attribute: `%a`, `a`, or `{%a, b}`."""
    return _NAME_IN_LIST.findall(value)
