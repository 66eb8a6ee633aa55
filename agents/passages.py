"""Passages of a game that look alike, and moves carried over from one to another.

The layers of a network repeat, in its forward pass and in its backward pass, and so do the turns
they make. What is worth its place in one layer mostly is in the next, but a search that changes a
turn at a time has to find it anew in each, past games that are slower because layers disagree. A
*transfer* plays in one passage what the game at hand plays in another. A network that reads each
turn's features generalises by itself; this is the same for a table (`agents.adaptation`), which
knows turns by their numbers only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from malloc_game.fast_game import FastGame

RUN_TURNS = 4
"""Turns that have to look the same for two passages to begin with them."""

LONGEST_SHARE = 0.25
"""Of the game's turns that a passage spans at most."""

MOST_CHANGES = 64
"""Moves that a transfer changes at most, the first of those that differ."""


class Passages:
    """Where passages of a game that look alike begin.

    Two turns look the same if they are of one kind, of buffers of one size that both are
    parameters or not, at instructions of one opcode, and both have a next turn or not.

    Args:
      game: whose turns are compared.
    """

    def __init__(self, game: FastGame) -> None:
        self.looks = _looks(game)
        num_runs = max(0, len(self.looks) - RUN_TURNS + 1)
        runs = self.looks[np.arange(num_runs)[:, None] + np.arange(RUN_TURNS)]
        _, group, counts = np.unique(runs, axis=0, return_inverse=True, return_counts=True)
        self._group, self._counts = group.reshape(-1), counts
        self._by_group = np.argsort(self._group, kind="stable")
        self._group_begins = np.cumsum(counts) - counts
        self._repeated = np.flatnonzero(counts[self._group] > 1)

    def transfers(
        self, wishes: NDArray[np.int8], count: int, rng: np.random.Generator
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int8]]]:
        """What would change if one passage were played as another one is.

        Args:
          wishes: `[num_turns]` of the game at hand.
          count: passages to choose; fewer transfers where two are played alike already or one is
            drawn twice, none where no two look alike.
          rng: chooses passages, and their lengths: short ones as likely as long ones, by their
            logarithm.

        Returns:
          Of each `[changes]` turns in order, `MOST_CHANGES` at most, and their moves.
        """
        transfers = []
        for shown, other, length in self._pairs(count, rng):
            until = _same(self.looks, shown, other, length)
            moves = wishes[shown : shown + until]
            changed = np.flatnonzero(moves != wishes[other : other + until])[:MOST_CHANGES]
            if len(changed):
                transfers.append((other + changed, moves[changed]))
        return transfers

    def _pairs(self, count: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """First turns of two passages that begin alike, and how many turns are wanted of them."""
        if not len(self._repeated):
            return []
        shown = self._repeated[rng.integers(len(self._repeated), size=count)]
        group = self._group[shown]
        members = self._group_begins[group] + rng.integers(self._counts[group])
        others = self._by_group[members]
        longest = max(1.0, LONGEST_SHARE * len(self.looks) / RUN_TURNS)
        lengths = RUN_TURNS * np.exp(rng.random(count) * math.log(longest)).astype(np.int64)
        return list(zip(shown.tolist(), others.tolist(), lengths.tolist(), strict=True))


def _same(looks: NDArray[np.int64], first: int, other: int, length: int) -> int:
    """How many of `length` turns from `first` and from `other` look the same, one after another."""
    length = min(length, len(looks) - max(first, other))
    differ = looks[first : first + length] != looks[other : other + length]
    return int(differ.argmax()) if differ.any() else length


def _looks(game: FastGame) -> NDArray[np.int64]:
    """`[num_turns]` a number for each turn, the same for turns that look the same."""
    program = game.program
    numbers: dict[tuple[object, ...], int] = {}
    looks = np.empty(game.num_turns, dtype=np.int64)
    for index, turn in enumerate(game.turns):
        buffer = program.buffers[turn.buffer]
        # An exit from the last loop is past the last step.
        opcode = program.instructions[min(turn.step, program.num_steps - 1)].opcode
        look = (turn.kind, turn.may_keep, opcode, buffer.size_bytes, buffer.is_parameter)
        looks[index] = numbers.setdefault(look, len(numbers))
    return looks
