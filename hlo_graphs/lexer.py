"""A place in HLO text and the moves the grammar makes from it; every failure is located.

Source: `xla/hlo/parser/hlo_lexer.cc`.
"""

from __future__ import annotations

import re
from typing import NoReturn

from hlo_graphs.errors import HloSyntaxError, SourceLocation

NAME = r"[A-Za-z_][\w.\-]*+"
STRING = r"\"(?:[^\"\\]++|\\.)*+\"|'(?:[^'\\]++|\\.)*+'"
COMMENT = r"//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+\*/"

_BLANK = re.compile(rf"(?:\s++|{COMMENT})*+")
_NAME = re.compile(rf"%?+{NAME}", re.ASCII)
_INTEGER = re.compile(r"-?[0-9]+")
_STRING = re.compile(STRING, re.DOTALL)
_FOUND = re.compile(r"[\w.%\-]{1,60}")
_BRACKET_OR_QUOTE = {
    "{": re.compile(r"[{}\"']|//|/\*"),
    "(": re.compile(r"[()\"']|//|/\*"),
    "[": re.compile(r"[\[\]\"']|//|/\*"),
}
_CLOSING = {"{": "}", "(": ")", "[": "]"}


_LONGEST_PART = 240
"""Characters of a message's part: names and shapes can have any length."""


def _shortened(text: str) -> str:
    half = _LONGEST_PART // 2
    return text if len(text) <= _LONGEST_PART else f"{text[:half]}...{text[-half:]}"


class Cursor:
    """A position in a text.

    Comments count as blanks. `expect_*` raise HloSyntaxError, `accept_*` report failure.

    Attributes:
      text: the whole file, so that places are counted from its start.
      path: name of the file, for messages.
      position: index of the next character.
      end: where to stop.
    """

    __slots__ = ("_line", "_line_position", "end", "path", "position", "text")

    def __init__(self, text: str, path: str, position: int = 0, end: int | None = None) -> None:
        self.text = text
        self.path = path
        self.position = position
        self.end = len(text) if end is None else end
        self._line = 1
        self._line_position = 0

    def location(self, position: int) -> SourceLocation:
        """Line and column of `position`."""
        line = self.text.count("\n", 0, position) + 1
        column = position - (self.text.rfind("\n", 0, position) + 1) + 1
        return SourceLocation(self.path, line, column)

    def line_of(self, position: int) -> int:
        """Line number of `position`; cheap for positions that only grow."""
        if position < self._line_position:
            return self.location(position).line
        self._line += self.text.count("\n", self._line_position, position)
        self._line_position = position
        return self._line

    def fail(
        self, expected: str, position: int | None = None, found: str | None = None
    ) -> NoReturn:
        """Raises the error that `expected` was not found at `position` (default: here)."""
        if position is None:
            self.skip_blanks()
            position = self.position
        if found is None:
            found = self._found(position)
        raise HloSyntaxError(self.location(position), _shortened(found), _shortened(expected))

    def _found(self, position: int) -> str:
        if position >= self.end:
            return "end of text"
        match = _FOUND.match(self.text, position, self.end)
        return repr(match.group() if match else self.text[position])

    def skip_blanks(self) -> None:
        """Moves over white space and comments."""
        match = _BLANK.match(self.text, self.position, self.end)
        if match is not None:
            self.position = match.end()

    def at_end(self) -> bool:
        """Whether only blanks are left."""
        self.skip_blanks()
        return self.position >= self.end

    def peek(self, literal: str) -> bool:
        """Whether `literal` comes next."""
        if self.text.startswith(literal, self.position, self.end):
            return True
        self.skip_blanks()
        return self.text.startswith(literal, self.position, self.end)

    def accept(self, literal: str) -> bool:
        """Moves over `literal` if it comes next."""
        if not self.peek(literal):
            return False
        self.position += len(literal)
        return True

    def expect(self, literal: str, context: str) -> None:
        """Moves over `literal`, which must come next."""
        if not self.accept(literal):
            self.fail(f"{literal!r} {context}")

    def accept_pattern(self, pattern: re.Pattern[str]) -> str | None:
        """Moves over a match of `pattern` and returns it; None if there is none here."""
        self.skip_blanks()
        match = pattern.match(self.text, self.position, self.end)
        if match is None:
            return None
        self.position = match.end()
        return match.group()

    def accept_name(self) -> str | None:
        """A name, returned without its `%`."""
        name = self.accept_pattern(_NAME)
        return None if name is None else name.removeprefix("%")

    def expect_name(self, expected: str) -> str:
        """A name, returned without its `%`."""
        name = self.accept_name()
        if name is None:
            self.fail(expected)
        return name

    def expect_integer(self, expected: str) -> int:
        """A decimal integer that fits 64 bits."""
        text = self.accept_pattern(_INTEGER)
        if text is None:
            self.fail(expected)
        if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
            start = self.position - len(text)
            self.fail(f"{expected} that fits 64 bits", start, f"{text[:40]!r}")
        return int(text)

    def expect_size(self, expected: str) -> int:
        """An integer that is not negative."""
        self.skip_blanks()
        start = self.position
        value = self.expect_integer(expected)
        if value < 0:
            self.fail(f"{expected}, at least 0", start, repr(str(value)))
        return value

    def expect_string(self, expected: str) -> str:
        """A quoted string, returned with its quotes."""
        text = self.accept_pattern(_STRING)
        if text is None:
            self.fail(expected)
        return text

    def skip_balanced(self) -> None:
        """Moves over the bracketed piece of text that starts here.

        Only brackets of the first one's kind are counted, as XLA does in JSON; those in strings
        and comments are not. Works without recursion, so any depth is fine.
        """
        start = self.position
        opening = self.text[start]
        of_interest = _BRACKET_OR_QUOTE[opening]
        depth = 0
        while True:
            match = of_interest.search(self.text, self.position, self.end)
            if match is None:
                self.fail(f"a {_CLOSING[opening]!r} to close it", start)
            token = match.group()
            self.position = match.start()
            if token in ("//", "/*"):
                self._skip_comment()
            elif token in "\"'":
                self.expect_string("a string that ends")
            else:
                self.position += 1
                depth += 1 if token == opening else -1
                if depth == 0:
                    return

    def _skip_comment(self) -> None:
        start = self.position
        self.skip_blanks()
        if self.position == start:
            self.fail("a comment that ends", start, "'/*'")
