"""Names for what the text leaves unnamed, numbered as XLA numbers them."""

from __future__ import annotations

import re
from collections.abc import Container
from functools import cached_property

WRAPPED = "async_wrapped"
"""What computations are called that `slice-start` and its like stand for."""

IN_PLACE = "_"
"""What computations are called that are written as an attribute's value."""

_MADE_UP = re.compile(rf"(?<![\w.\-])(?:{WRAPPED}|{IN_PLACE})(?:\.[0-9]++)?(?![\w.\-])", re.ASCII)


class FreshNames:
    """Makes up names; each is made once, and none that is taken.

    Args:
      taken: may grow.
    """

    def __init__(self, taken: Container[str]) -> None:
        self._taken = taken
        self._next: dict[str, int] = {}

    def make(self, wanted: str) -> str:
        """`wanted`, or with the first number behind it that makes it new."""
        number = self._next.get(wanted, 0)
        while True:
            name = f"{wanted}.{number}" if number else wanted
            number += 1
            if name not in self._taken:
                self._next[wanted] = number
                return name


class NamesInText:
    """The names of computations that cannot be made up because the text has them.

    They count wherever they stand: a computation further down may have the name too.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _found(self) -> frozenset[str]:
        return frozenset(_MADE_UP.findall(self._text))

    def __contains__(self, name: object) -> bool:
        return name in self._found
