"""What the searches over mallocGame's actions share: starts, incumbents, time, the answer.

A search plays `malloc_game.fast_game.FastGame` with arrays of wishes, one per turn. Here are the
translation of any valid map into wishes, the bookkeeping of a run (`ActionSearch`), and the
last word: the answer is timed by the simulator and is never worse than the empty map or a map
handed in. docs/search.md says what the searches do.
"""

from __future__ import annotations

import abc
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hlo_graphs.program import Program
from malloc_game.fast_game import CLEAN, Action, FastGame, Turn, TurnKind
from malloc_game.fast_game_kernels import Actions, Floats, Integers
from malloc_game.memory_map import MemoryMap, Residency, Source
from malloc_game.validate import validate
from solvers.evaluate import simulated_latency
from solvers.solver import Deadline, Progress, Solution, SolveRequest, status_of

RESERVE_SECONDS = 0.05
"""Kept back from the time limit for building and timing the answer."""

DENSITY_SHARES = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
"""Shares of turns that `density_wishes` keeps for, the densest."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a player wants: a game, to be played on a `FastGame`.

    Attributes:
      wishes: `[num_turns]` int8 actions.
      hints: `[num_turns]` preferred offsets in alignment units, -1 for best fit.
    """

    wishes: Actions
    hints: Integers


def plan_of_map(game: FastGame, memory_map: MemoryMap) -> Plan:
    """The plan that follows a valid map of the game's program.

    Copy where an access is served fast, Keep where the same residency lasts to the buffer's next
    turn (Clean if it is evicted before), Drop elsewhere, each at the map's offsets. The game
    times copies by its own rules, so its map is near the given one, not equal to it.
    """
    follower = _MapFollower(game.program, memory_map)
    turns, following = game.turns, game.next_turn
    wishes = game.wishes(Action.DROP)
    hints = np.full(game.num_turns, -1, dtype=np.int64)
    for index, turn in enumerate(turns):
        residency = follower.covering(turn)
        if residency is None:
            continue
        hints[index] = residency.offset_bytes // game.program.machine.alignment_bytes
        later = following[index]
        if turn.kind is TurnKind.CARRY:
            wishes[index] = Action.KEEP
        elif later >= 0 and _lasts_to(residency, turns[later]):
            early = follower.evicts_between(turn, turns[later])
            wishes[index] = CLEAN if early else Action.KEEP
        elif turn.kind is TurnKind.ACCESS:
            wishes[index] = Action.COPY
    return Plan(wishes, hints)


def _lasts_to(residency: Residency, turn: Turn) -> bool:
    """Whether the residency covers the turn (for an exit: all of the loop before it)."""
    if turn.kind is TurnKind.EXIT:
        return residency.end >= turn.step
    return residency.end > turn.step


class _MapFollower:
    """Finds the residency of a map that a turn concerns."""

    def __init__(self, program: Program, memory_map: MemoryMap) -> None:
        self.program = program
        self._of_buffer: list[list[Residency]] = [[] for _ in program.buffers]
        for residency in sorted(memory_map.residencies, key=lambda r: r.start):
            self._of_buffer[residency.buffer].append(residency)
        self._issues: list[list[int]] = [[] for _ in program.buffers]
        for eviction in sorted(memory_map.evictions, key=lambda e: e.issue):
            self._issues[eviction.buffer].append(eviction.issue)
        self._starts = [[r.start for r in found] for found in self._of_buffer]

    def evicts_between(self, turn: Turn, later: Turn) -> bool:
        """Whether an eviction is issued after the turn and not after the later one's position."""
        first = turn.step + (turn.kind is TurnKind.ACCESS)
        issues = self._issues[turn.buffer]
        row = bisect_left(issues, first)
        return row < len(issues) and issues[row] <= later.step

    def covering(self, turn: Turn) -> Residency | None:
        """The ready residency at the turn's access, or through its whole loop, or carried."""
        found = self._of_buffer[turn.buffer]
        if turn.kind is TurnKind.CARRY:
            carried = (r for r in found if r.source is Source.CARRIED)
            return next(carried, None)
        step = turn.step - 1 if turn.kind is TurnKind.EXIT else turn.step
        position = bisect_right(self._starts[turn.buffer], step) - 1
        if position < 0:
            return None
        residency = found[position]
        end = step + 1
        if turn.kind is TurnKind.ENTRY:
            assert turn.loop is not None
            end = self.program.loops[turn.loop].end_step
        covers = residency.ready <= step and residency.end >= end
        return residency if covers else None


def gap_steps(game: FastGame) -> tuple[Integers, Integers]:
    """`[num_turns]` first step and one past the last for which a Keep holds space.

    A turn without a next one holds its own step; a carried parameter the whole program.
    """
    starts = np.array([turn.step for turn in game.turns], dtype=np.int64)
    following = game.next_turn
    ends = np.where(following >= 0, starts[np.maximum(following, 0)], starts + 1)
    carried = [turn.kind is TurnKind.CARRY for turn in game.turns]
    ends = np.where(carried, game.program.num_steps, ends)
    return starts, np.maximum(ends, starts + 1)


def saving_ticks(game: FastGame) -> Floats:
    """`[num_turns]` what each turn's access takes when slow; at loop entry, all inside.

    Its time on the bus and in its longest lane: what it saves when fast, if nothing else of its
    step takes as long.
    """
    program = game.program
    savings = np.zeros(game.num_turns)
    for index, turn in enumerate(game.turns):
        if turn.kind is TurnKind.EXIT:
            continue
        first, last = turn.step, turn.step + 1
        if turn.kind is TurnKind.ENTRY:
            assert turn.loop is not None
            last = program.loops[turn.loop].end_step
        elif turn.kind is TurnKind.CARRY:
            last = program.num_steps
        for step, access in program.accesses_of_buffer[turn.buffer]:
            if first <= step < last:
                lanes = max(access.lane_ticks, default=0)
                ticks = access.bus_ticks + lanes
                savings[index] += program.instructions[step].repeat * ticks
    return savings


def keep_densities(game: FastGame) -> Floats:
    """`[num_turns]` ticks that the next access saves per byte and step of keeping it till then."""
    starts, ends = gap_steps(game)
    savings = saving_ticks(game)
    following = game.next_turn
    gained = np.where(following >= 0, savings[np.maximum(following, 0)], savings)
    sizes = np.array([game.program.buffers[turn.buffer].size_bytes for turn in game.turns])
    return np.asarray(gained / np.maximum(sizes * (ends - starts), 1), dtype=np.float64)


def density_wishes(game: FastGame) -> Iterator[Actions]:
    """Games that keep above a density and copy, or drop, below it, for several densities."""
    if game.num_turns == 0:
        return
    densities = keep_densities(game)
    for share in DENSITY_SHARES:
        threshold = np.quantile(densities, 1 - share)
        for otherwise in (Action.COPY, Action.DROP):
            wanted = np.where(densities >= threshold, Action.KEEP, otherwise)
            yield np.asarray(wanted, dtype=np.int8)


def num_choices(game: FastGame) -> Integers:
    """`[num_turns]` 4 where Clean may mean something, i.e. the buffer is ever written; else 3."""
    program = game.program
    written = [
        any(access.kind.writes for _, access in accesses) for accesses in program.accesses_of_buffer
    ]
    loops = (TurnKind.ENTRY, TurnKind.CARRY)
    return np.array(
        [
            CLEAN + (turn.may_keep and written[turn.buffer] and turn.kind not in loops)
            for turn in game.turns
        ],
        dtype=np.int64,
    )


class ActionSearch:
    """One run of a search: the game, the clock, the best game so far.

    Args:
      request: what was asked for.
      name: the solver's, for reports.

    Attributes:
      game: to play on.
      rng: the run's random numbers.
      games_played: games played and counted so far.
      best: the plan of the best game.
      best_ticks: its latency.
    """

    def __init__(self, request: SolveRequest, name: str) -> None:
        self.deadline = Deadline.after(request.time_limit_seconds)
        self.request = request
        self.name = name
        self.game = FastGame(request.program, allow_clean=True, threads=request.workers)
        self.rng = np.random.default_rng(request.seed)
        self.games_played = 0
        self._game_seconds, self._batch_games = math.inf, 0
        self.best = Plan(self.game.wishes(Action.DROP), self.game.hints.copy())
        self.best_ticks = self.game.latency_ticks(self.best.wishes)
        self._best_map = MemoryMap()
        self._best_map_ticks = request.program.all_slow_ticks
        self._reported_ticks = request.program.all_slow_ticks
        self.notes: list[str] = []
        self._seen: MemoryMap | None = None
        for memory_map in request.initial_maps:
            self.consider_map(memory_map)

    @property
    def progress(self) -> float:
        """Share of the games, or else of the time, that is used up: 0 to 1."""
        if self.request.max_games is not None:
            return min(self.games_played / self.request.max_games, 1.0)
        limit = max(self.request.time_limit_seconds - RESERVE_SECONDS, 1e-9)
        return min(self.deadline.elapsed_seconds / limit, 1.0)

    @property
    def finished(self) -> bool:
        """Whether to stop: out of games or out of time, or there is nothing to decide.

        Out of time is who could not play another batch like the last.
        """
        batch_seconds = self._batch_games * self._game_seconds if self._batch_games else 0.0
        out_of_time = self.deadline.remaining_seconds <= RESERVE_SECONDS + batch_seconds
        return out_of_time or self.progress >= 1.0 or self.game.num_turns == 0

    def consider(self, wishes: Actions, ticks: float, hints: Integers | None = None) -> bool:
        """Takes note of a game with these hints (the game's own by default); whether it is best."""
        if ticks >= self.best_ticks:
            return False
        self.best = Plan(wishes.copy(), (self.game.hints if hints is None else hints).copy())
        self.best_ticks = float(ticks)
        self._note_best_game()
        return True

    def consider_map(self, memory_map: MemoryMap) -> bool:
        """Takes note of a valid map from elsewhere; whether following it gives the best game.

        The game's hints are then the map's, else they stay.
        """
        program = self.request.program
        ticks = simulated_latency(program, memory_map, self.request.copy_order)
        if ticks < self._best_map_ticks:
            self._best_map, self._best_map_ticks = memory_map, ticks
            self._report(memory_map, ticks)
        plan, old_hints = plan_of_map(self.game, memory_map), self.game.hints.copy()
        self.game.hints[:] = plan.hints
        self.games_played += 1
        if self.consider(plan.wishes, self.game.latency_ticks(plan.wishes)):
            return True
        self.game.hints[:] = old_hints
        return False

    def hear_news(self) -> bool:
        """Looks at the best map others have found; whether it is new and better than ours."""
        best_known = self.request.best_known
        memory_map = best_known() if best_known is not None else None
        if memory_map is None or memory_map is self._seen:
            return False
        self._seen = memory_map
        return self.consider_map(memory_map)

    def sample(self, probabilities: Floats, num_games: int) -> tuple[Floats, Actions]:
        """`FastGame.sample`, its games counted and the best of them considered."""
        began = self.deadline.elapsed_seconds
        latencies, taken = self.game.sample(probabilities, num_games, self.rng)
        # The least, since the first batch may have waited for machine code.
        seconds = (self.deadline.elapsed_seconds - began) / num_games
        self._game_seconds = min(self._game_seconds, seconds)
        self._batch_games = num_games
        self.games_played += num_games
        best = int(latencies.argmin())
        self.consider(np.maximum(taken[best], 0).astype(np.int8), float(latencies[best]))
        return latencies, taken

    def solution(self) -> Solution:
        """The best of the games played, the maps handed in and the empty map."""
        if self.best_ticks < self.request.program.all_slow_ticks:
            self._take_map_of_best()
        return Solution(
            memory_map=self._best_map,
            latency_ticks=self._best_map_ticks,
            lower_bound_ticks=None,
            status=status_of(self._best_map_ticks, None, self.request.gap),
            solver=self.name,
            wall_seconds=self.deadline.elapsed_seconds,
            games_played=self.games_played,
            notes=tuple(self.notes),
        )

    def _map_of_best(self) -> MemoryMap:
        hints = self.game.hints.copy()
        self.game.hints[:] = self.best.hints
        found = self.game.map_of(self.best.wishes)
        self.game.hints[:] = hints
        return found

    def _note_best_game(self) -> None:
        """Reports it, if it is faster than what was reported.

        The game counts with copies by deadline. In another order the best game need not have the
        best map, so each one's is timed and the best of them kept.
        """
        if self.request.copy_order != "deadline":
            self._take_map_of_best()
        elif self.request.on_progress is not None and self.best_ticks < self._reported_ticks:
            self._report(self._map_of_best(), self.best_ticks)

    def _take_map_of_best(self) -> None:
        """Makes the best game's map the answer if it is valid and faster than the present one."""
        program, found = self.request.program, self._map_of_best()
        ticks = simulated_latency(program, found, self.request.copy_order)
        if ticks >= self._best_map_ticks:
            return
        broken = validate(program, found)
        if broken:
            self.notes.append(f"{self.name}: an invalid map was refused: {broken[0]}")
            return
        self._best_map, self._best_map_ticks = found, ticks
        self._report(found, ticks)

    def _report(self, memory_map: MemoryMap, ticks: float) -> None:
        if ticks < self._reported_ticks:
            self._reported_ticks = ticks
            seconds = self.deadline.elapsed_seconds
            self.request.report(Progress(seconds, self.name, ticks, memory_map=memory_map))


@dataclass(frozen=True, slots=True)
class ActionSolver(abc.ABC):
    """A solver that plays games, as many as there is time for or the request says."""

    name: str = "action-search"

    def solve(self, request: SolveRequest) -> Solution:
        """The best game played, the best initial map or the empty one."""
        search = ActionSearch(request, self.name)
        try:
            if not search.finished:
                self.play(search)
            return search.solution()
        finally:
            search.game.close()

    @abc.abstractmethod
    def play(self, search: ActionSearch) -> None:
        """Plays until `search` is finished."""
