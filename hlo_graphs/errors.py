"""Errors a user can cause, each with what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class MallocGameError(Exception):
    """Base of every error the command line turns into one message and an exit code."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Whole errors come back from other processes, whatever their constructors take."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[MallocGameError], arguments: tuple[Any, ...]) -> MallocGameError:
    """An error with its message; its attributes are put back by whoever called `__reduce__`."""
    return kind.__new__(kind, *arguments)


class InputError(MallocGameError):
    """The input (a file, a value, a setting) is not acceptable."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A place in a text file; `line` and `column` count from 1."""

    path: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


class HloSyntaxError(InputError):
    """HLO text that does not follow the grammar, with the place, what was found and expected."""

    def __init__(self, location: SourceLocation, found: str, expected: str) -> None:
        self.location = location
        self.found = found
        self.expected = expected
        super().__init__(f"{location}: found {_clipped(found)}, expected {_clipped(expected)}")


def _clipped(text: str) -> str:
    """The text, or its two ends if it is too long for a message."""
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 40]} ... {text[-35:]}"


_MAX_SHOWN = 160


class MissingExtraError(InputError):
    """An optional dependency is needed and absent."""

    def __init__(self, extra: str, needed_for: str) -> None:
        self.extra = extra
        super().__init__(
            f"{needed_for} needs the optional extra '{extra}': pip install 'malloc-game[{extra}]', "
            f"in a checkout pip install -e '.[{extra}]'"
        )


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """What to put behind the message that `word` is unknown: the nearest names, or nothing."""
    near = difflib.get_close_matches(word[:_MAX_SHOWN], sorted(known), n=count)
    return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""


def require_integers(where: str, **values: object) -> None:
    """Raises InputError, naming the field, if a value that came from a file is no integer."""
    for name, value in values.items():
        if type(value) is not int:
            raise InputError(f"{where}: {name} is {value!r}, not an integer")


def require_texts(where: str, **values: object) -> None:
    """Likewise, if it is no text, or none that can be written."""
    for name, value in values.items():
        if not isinstance(value, str) or value != value.encode(errors="replace").decode():
            raise InputError(f"{where}: {name} is {value!r}, not a text")


def require_booleans(where: str, **values: object) -> None:
    """Likewise, if it is neither true nor false."""
    for name, value in values.items():
        if type(value) is not bool:
            raise InputError(f"{where}: {name} is {value!r}, neither true nor false")
