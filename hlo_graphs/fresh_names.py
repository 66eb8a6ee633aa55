"""Names for what the text leaves unnamed, numbered as XLA numbers them."""

from __future__ import annotations

from collections.abc import Container


class FreshNames:
    """Makes up names; each is made once."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def make(self, wanted: str, taken: Container[str]) -> str:
        """`wanted`, or with the first number behind it that makes it new and not `taken`."""
        number = self._next.get(wanted, 0)
        while True:
            name = f"{wanted}.{number}" if number else wanted
            number += 1
            if name not in taken:
                self._next[wanted] = number
                return name
