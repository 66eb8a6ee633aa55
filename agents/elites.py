"""The best games of each program: what is imitated, restarted from, and counted against.

The best games teach, not the mean: a solver returns its best (docs/agent.md, "How it works"). Two
games of the same latency are kept only if they differ in their moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.config import PlayConfig
from agents.games import NO_ACTION, Game, Plan
from agents.replay import Draw
from agents.rows import Rows


class Elites:
    """An archive of `per_program` games of each of `num_programs` programs, the best first."""

    def __init__(self, num_programs: int, per_program: int) -> None:
        self._per_program = per_program
        self._games: list[list[Game]] = [[] for _ in range(num_programs)]
        self._rows: list[Rows | None] = [None] * num_programs

    def add(self, game: Game) -> bool:
        """Keeps `game` if it is among the best; says whether it is the new best."""
        ranked = self._games[game.program]
        if any(_same_moves(game, other) for other in ranked):
            return False
        is_best = not ranked or game.total > ranked[0].total
        ranked.append(game)
        ranked.sort(key=lambda kept: -kept.total)
        del ranked[self._per_program :]
        self._rows[game.program] = None
        return is_best

    def games(self, program: int) -> tuple[Game, ...]:
        """The best first."""
        return tuple(self._games[program])

    def sample(self, count: int, rng: np.random.Generator) -> list[Draw]:
        """Decisions of elite games to imitate, programs alike; none while there are no games."""
        known = [program for program, ranked in enumerate(self._games) if ranked]
        if not known:
            return []
        shares = np.bincount(rng.integers(len(known), size=count), minlength=len(known))
        return [
            self._draw(program, share, rng)
            for program, share in zip(known, shares.tolist(), strict=True)
            if share
        ]

    def _draw(self, program: int, count: int, rng: np.random.Generator) -> Draw:
        """Of any of the program's decisions alike."""
        rows = self._rows[program]
        if rows is None:
            rows = Rows.joined([Rows.of(game) for game in self._games[program]])
            self._rows[program] = rows
        decisions = np.flatnonzero(rows.left)
        places = decisions[rng.integers(len(decisions), size=count)]
        return Draw(rows, places, np.ones(count, dtype=np.float32), imitate=True)

    def plan(
        self, program: int, config: PlayConfig, num_items: int, rng: np.random.Generator
    ) -> Plan:
        """How the next game begins: free, from an elite's prefix, or close to an elite."""
        ranked = self._games[program]
        draw = rng.random()
        if not ranked or draw >= config.restart_fraction + config.follow_fraction:
            return Plan.free(num_items)
        game = ranked[rng.integers(len(ranked))]
        actions = game.actions_by_item(num_items)
        if draw < config.restart_fraction:
            kept = int(rng.integers(len(game)))
            if kept == 0:
                return Plan.free(num_items)
            actions[game.cursors[kept] :] = NO_ACTION
        else:
            freed = rng.random(num_items) < config.free_moves / len(game)
            actions[freed] = NO_ACTION
        return Plan(actions, game.source)

    def to_document(self) -> list[list[dict[str, Any]]]:
        """For a checkpoint."""
        return [[game.to_document() for game in ranked] for ranked in self._games]

    def restore(self, document: list[list[dict[str, Any]]]) -> None:
        """What `to_document` made, in place of what is held."""
        self._games = [[Game.from_document(game) for game in ranked] for ranked in document]
        self._rows = [None] * len(self._games)


def _same_moves(game: Game, other: Game) -> bool:
    return np.array_equal(game.cursors, other.cursors) and np.array_equal(
        game.actions, other.actions
    )
