"""The programs an agent plays: one bucket, one return unit each, and their incumbents' curves.

**Return unit.** Rewards of the game are shares of the all-slow latency. An agent counts them in
`(1 - all_fast / all_slow) / sqrt(turns)` of each program: what there is to win, over the root of
the number of decisions, so that Q values of one search and values of one game have the same
order of magnitude on every program.

**Relative returns** (docs/agent.md, "How it works"). Of each reward, what the incumbent gained over
the same stretch of items is taken off. That is a difference of a function of the item at hand, so
it changes no preference among actions, but a value is then how much better than the incumbent a
game will be, and nearly all of its variance is gone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from agents.games import NO_ACTION
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.fast_game import FastGame
from malloc_game.state import Bucket, ProgramArrays, bucket_for, program_arrays
from malloc_game.turn_table import Column, TurnTable, turn_table

OUTLOOK_ITEMS = (1, 2, 4, 8, 16, 64, 256)
"""How far ahead a network is told the incumbent's gains; the last column is all that is left."""

OUTLOOK_COLUMNS = len(OUTLOOK_ITEMS) + 1


class NothingToPlayError(InputError):
    """The program has one memory map only: no decision is ever asked for."""


def nothing_to_decide(program: Program) -> NothingToPlayError:
    """The error for a program that has turns, but no choice at any of them."""
    return NothingToPlayError(f"{program.name}: has one map only, there is nothing to decide")


@dataclass
class PlayedProgram:
    """One program with both forms of its game.

    Attributes:
      table: the static part of the game.
      fast_game: the same rules compiled for the CPU; gives a game's exact latency and map.
    """

    table: TurnTable
    fast_game: FastGame = field(repr=False)

    @staticmethod
    def of(program: Program) -> PlayedProgram:
        """Both games of `program`."""
        return PlayedProgram(turn_table(program), FastGame(program))

    def with_threads(self, threads: int) -> PlayedProgram:
        """The same, with so many threads to play the compiled game."""
        return replace(self, fast_game=FastGame(self.program, threads=threads))

    @property
    def program(self) -> Program:
        """What is played."""
        return self.table.program

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the program's JSON: programs of one name may still differ.

        Without what the game does not ask for.
        """
        steps = tuple(replace(step, compute_ticks=None) for step in self.program.instructions)
        played = replace(self.program, instructions=steps)
        return hashlib.sha256(played.to_json().encode()).hexdigest()

    @cached_property
    def is_decided(self) -> bool:
        """Whether no turn has two legal actions: then there is one map only."""
        # All games are the same up to the first decision.
        masks, _ = self.fast_game.legal_masks(self.fast_game.wishes())
        return not (masks & (masks - 1)).any()

    @cached_property
    def return_unit(self) -> float:
        """Share of the all-slow latency that one unit of return is."""
        slow, fast = self.program.all_slow_ticks, self.program.all_fast_ticks
        headroom = 1 - fast / slow if slow > 0 else 0.0
        return max(headroom, 1e-6) / math.sqrt(max(1, self.table.num_turns))

    @cached_property
    def item_of_turn(self) -> NDArray[np.intp]:
        """`[num_turns]` item of each turn of `fast_game`: both list turns in order of play."""
        return np.flatnonzero(self.table.items[:, Column.KIND])

    def wishes(self, actions: NDArray[np.int8]) -> NDArray[np.int8]:
        """`[num_turns]` for the compiled game, from `[num_items]` actions or -1 (then Drop)."""
        return np.maximum(actions[self.item_of_turn], 0)

    def by_item(self, wishes: NDArray[np.int8], num_items: int) -> NDArray[np.int8]:
        """`[num_items]` actions of the game with `wishes`, as plans have them."""
        actions = np.full(num_items, NO_ACTION, dtype=np.int8)
        actions[self.item_of_turn] = wishes
        return actions


@dataclass(frozen=True)
class ProgramSet:
    """Programs padded to one bucket, so that all are played by one compiled function.

    Attributes:
      members: the programs.
      arrays: `ProgramArrays` with a leading axis of programs, on the host.
      units: `[P]` float32 return units.
    """

    members: tuple[PlayedProgram, ...]
    arrays: ProgramArrays
    units: NDArray[np.float32]

    @staticmethod
    def of(programs: Sequence[Program]) -> ProgramSet:
        """`programs`, stacked.

        Raises:
          InputError: if there are none, or one leaves the range of 32 bits.
          NothingToPlayError: if one takes no turns.
        """
        if not programs:
            raise InputError("no program to play")
        members = tuple(PlayedProgram.of(program) for program in programs)
        for member in members:
            if member.table.num_turns == 0:
                raise NothingToPlayError(f"{member.program.name}: no buffer may be resident")
        bucket = common_bucket([bucket_for(member.table) for member in members])
        stacked = [program_arrays(member.table, bucket) for member in members]
        # On the host: there every operation is at hand, on the device each is compiled first.
        arrays: ProgramArrays = jax.tree.map(lambda *leaves: np.stack(leaves), *stacked)
        units = np.array([member.return_unit for member in members], dtype=np.float32)
        return ProgramSet(members, arrays, units)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def bucket(self) -> Bucket:
        """The sizes that all are padded to."""
        return self.arrays.bucket


def common_bucket(buckets: Sequence[Bucket]) -> Bucket:
    """The smallest that holds what any of `buckets` holds."""
    return Bucket(
        num_items=max(bucket.num_items for bucket in buckets),
        num_buffers=max(bucket.num_buffers for bucket in buckets),
        num_segments=max(bucket.num_segments for bucket in buckets),
        num_lanes=max(bucket.num_lanes for bucket in buckets),
    )


class Baselines:
    """Per program what its incumbent has gained by each item, in shares of the all-slow latency.

    Attributes:
      curves: `[P, bucket.num_items + 1]` float32; 0 for programs without an incumbent, which
        makes relative rewards plain ones.
      units: `[P]` float32 return units.
    """

    def __init__(self, programs: ProgramSet) -> None:
        self._num_items = np.array([member.table.num_items for member in programs.members])
        self.units = programs.units
        self.curves = np.zeros((len(programs), programs.bucket.num_items + 1), dtype=np.float32)

    def set_incumbent(
        self, program: int, cursors: NDArray[np.int32], gained: NDArray[np.float32]
    ) -> None:
        """Counts `program`'s rewards against a game from now on.

        Args:
          program: index.
          cursors: `[T + 1]` items of its decisions, then the end.
          gained: `[T + 1]` sums of its rewards before each.
        """
        items = np.arange(self.curves.shape[1])
        self.curves[program] = np.interp(items, cursors, gained)

    def gains(
        self, programs: NDArray[np.int32], start: NDArray[np.int32], end: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """What incumbents gain from items `start` to `end`, shares of the all-slow latency."""
        difference: NDArray[np.float32] = self.curves[programs, end] - self.curves[programs, start]
        return difference

    def outlook(
        self, programs: NDArray[np.int32], cursors: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """`[..., OUTLOOK_COLUMNS]`, as `outlook` on the device, of any number of games."""
        programs, cursors = programs[..., None], cursors[..., None]
        until = _outlook_ends(np, cursors, self._num_items[programs])
        gains = self.gains(programs, cursors, until) / self.units[programs]
        squashed: NDArray[np.float32] = _squashed(np, gains)
        return squashed


def outlook(
    curves: jax.Array, cursors: jax.Array, num_items: jax.Array, units: jax.Array
) -> jax.Array:
    """What the incumbent gains in the coming items, `[B, OUTLOOK_COLUMNS]`, squashed.

    Args:
      curves: `[B, items + 1]` of each game's program.
      cursors: `[B]`.
      num_items: `[B]` of each program.
      units: `[B]` return units.
    """
    rows, cursors = jnp.arange(len(cursors))[:, None], cursors[:, None]
    until = _outlook_ends(jnp, cursors, num_items[:, None])
    result: jax.Array = _squashed(
        jnp, (curves[rows, until] - curves[rows, cursors]) / units[:, None]
    )
    return result


def _outlook_ends(xp: Any, cursors: Any, num_items: Any) -> Any:
    """Items up to which an outlook reaches: one formula for numpy and jax."""
    return xp.minimum(cursors + xp.asarray((*OUTLOOK_ITEMS, 2**30), dtype=xp.int32), num_items)


def _squashed(xp: Any, gains: Any) -> Any:
    return xp.sign(gains) * xp.log1p(xp.abs(gains))
