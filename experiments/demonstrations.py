"""What the generalist is shown of a program: the best game that others find, made canonical.

A table is counted in games: with it and greedy, the same seed shows the same game on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.adaptation import AdaptationConfig, Found, from_nothing, near
from agents.canonical import canonical, wishes_by_price
from agents.programs import PlayedProgram
from hlo_graphs.program import Program
from malloc_game.replay import actions_from_map
from solvers.solver import SolveRequest, solver_named

TABLE = "table"
"""The demonstrator that is no solver: a table that begins uniform (`agents.adaptation`)."""


@dataclass(frozen=True, slots=True)
class Task:
    """One program to find a game of.

    Attributes:
      program: what is played.
      demonstrators: names of solvers, which take no longer than they need, and `TABLE`; one at
        least.
      num_games: of the table, half of them near the best game of all.
      seed: of the table.
    """

    program: Program
    demonstrators: tuple[str, ...]
    num_games: int
    seed: int


@dataclass(frozen=True, eq=False)
class Shown:
    """The game that is shown.

    Attributes:
      wishes: `[num_turns]` int8 of it.
      latency_ticks: of it.
      by_demonstrator: latency in ticks of what each found, in the order asked.
    """

    wishes: NDArray[np.int8]
    latency_ticks: float
    by_demonstrator: tuple[float, ...]


def demonstrated(task: Task) -> Shown:
    """The best of what the demonstrators find, made canonical; near it a table then goes on."""
    member = PlayedProgram.of(task.program)
    rng = np.random.default_rng(task.seed)
    found = [_found_by(name, member, task.num_games // 2, rng) for name in task.demonstrators]
    best = _by_price(member, min(found, key=lambda one: one.latency_ticks))
    if TABLE in task.demonstrators:
        rounds = near(member, best.wishes, AdaptationConfig(), rng)
        best = _by_price(member, _after(rounds, task.num_games // 2))
    return Shown(best.wishes, best.latency_ticks, tuple(one.latency_ticks for one in found))


def _found_by(name: str, member: PlayedProgram, num_games: int, rng: np.random.Generator) -> Found:
    if name == TABLE:
        return _after(from_nothing(member, AdaptationConfig(), rng), num_games)
    memory_map = solver_named(name).solve(SolveRequest(member.program)).memory_map
    replay = actions_from_map(member.program, memory_map, member.fast_game)
    return Found(0, replay.latency_ticks, replay.wishes)


def _after(rounds: Iterator[Found], num_games: int) -> Found:
    return next(found for found in rounds if found.num_games >= num_games)


def _by_price(member: PlayedProgram, found: Found) -> Found:
    return canonical(member.fast_game, found, wishes_by_price(member))


def tasks_of(
    programs: Sequence[Program], demonstrators: tuple[str, ...], num_games: int, seed: int
) -> list[Task]:
    """One per program, each with a seed of its own."""
    return [
        Task(program, demonstrators, num_games, seed + number)
        for number, program in enumerate(programs)
    ]
