"""mallocGame compiled for the CPU: thousands of whole games a second, for search without jax.

Source: docs/game.md, and docs/simulator.md for what a finished game means. The rules themselves are
in `malloc_game.fast_game_kernels`; here are the list of turns, the arrays and the door.
`tests/malloc_game/reference_game.py` is the slow witness that both are tested against.

**Preferences, not moves.** A player hands in one action per turn of the *static* list of turns
(`FastGame.turns`), before the game begins. When a turn comes up, the action that is played is
the first legal one of

- Keep wanted: Keep, Copy, Drop (Keep and Copy need the same window and place, so Copy is only
  reached where there is no next turn to keep the buffer for; at loop entry there is no Copy);
- Copy wanted: Copy, Drop;
- Drop wanted: Drop.

Turns that do not come up (a buffer held for a whole loop takes no turns inside; one that was
not held has none at the loop's exit) ignore what was wanted. So every array of wishes is a
legal game, and wishing for what was played gives the same game again.
"""

from __future__ import annotations

import copy
import enum
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from hlo_graphs.errors import InputError
from hlo_graphs.program import AccessKind, Program
from malloc_game import fast_game_kernels as kernels
from malloc_game.fast_game_kernels import Actions, Floats, Integers
from malloc_game.memory_map import Eviction, MemoryMap, Residency, Source
from malloc_game.turn_table import (
    CARRIED_CANDIDATES,
    FRACTION_DENOMINATOR,
    MAX_CARRIED,
    carried_candidates_of,
    takes_turns,
)

_Result = TypeVar("_Result")


class Action(enum.IntEnum):
    """What to do with a buffer at its turn (docs/game.md)."""

    DROP = kernels.DROP
    COPY = kernels.COPY
    KEEP = kernels.KEEP


CLEAN = kernels.CLEAN
"""Keep, and queue the eviction at the next step already, so that a later Drop frees its place at
once. Not an action of the game: only with `FastGame(allow_clean=True)`, else it is Keep."""

NOT_ASKED = kernels.NOT_ASKED
"""Stands for the action of a turn that did not come up."""


class TurnKind(enum.IntEnum):
    """What a turn is about."""

    CARRY = kernels.KIND_CARRY
    ENTRY = kernels.KIND_ENTRY
    ACCESS = kernels.KIND_ACCESS
    EXIT = kernels.KIND_EXIT


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the static list.

    Attributes:
      kind: before the program, at a loop's entry, an access, or at a loop's exit.
      buffer: the buffer that moves.
      step: of the access; the loop's first step at its entry, one past its last at its exit.
      loop: the loop that is entered or left; around an access the innermost loop; else None.
      access: row of the access in `Program.instructions[step].accesses`, -1 for other kinds.
      may_keep: there is a next turn of the buffer for which it can be kept.
      needed_after: content that leaves now is still needed (docs/game.md, "What an action does").
    """

    kind: TurnKind
    buffer: int
    step: int
    loop: int | None
    access: int
    may_keep: bool
    needed_after: bool


@dataclass(frozen=True, slots=True)
class GameRecord:
    """One finished game.

    Attributes:
      latency_ticks: sum of `repeat` times (elapsed + stall), in ticks.
      stall_ticks: the part of it in which the program waits for copies.
      taken: `[num_turns]` int8 action played at each turn, `NOT_ASKED` where none came up.
    """

    latency_ticks: float
    stall_ticks: float
    taken: Actions


class FastGame:
    """The game on one program; not for use by several threads at once.

    Many games at a time are spread over threads of its own, and are the same games however many
    those are.

    Args:
      program: what is played.
      max_carried: most parameters that may be carried over from the previous run.
      carried_candidates: how many parameters get a turn before step 0.
      allow_clean: not the rules of the game, but valid maps too: `CLEAN` is an action.
      threads: how many play when there are many games to play.

    Attributes:
      tables: the program, as the compiled rules read it.
      players: one per thread, this game itself the first; each may be played on in its thread.

    Raises:
      InputError: if there is to be no thread.
    """

    def __init__(
        self,
        program: Program,
        *,
        max_carried: int = MAX_CARRIED,
        carried_candidates: int = CARRIED_CANDIDATES,
        allow_clean: bool = False,
        threads: int = 1,
    ) -> None:
        if threads < 1:
            raise InputError(f"threads is {threads}, must be at least 1")
        self.program = program
        self.max_carried = max_carried
        candidates = carried_candidates if max_carried > 0 else 0
        self._script = _Script(program, carried_candidates_of(program, candidates))
        self.tables = _tables(program, self._script, max_carried, allow_clean)
        self._state = new_state(self.tables)
        self.players = (self, *(self._twin() for _ in range(threads - 1)))
        self._helpers = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def close(self) -> None:
        """Lets the helping threads end; there is nothing to play in parallel afterwards."""
        if self._helpers is not None:
            self._helpers.shutdown()

    def _twin(self) -> FastGame:
        """The same game with arrays of its own, for another thread."""
        twin = copy.copy(self)
        hints, placed = self.hints.copy(), self.placed.copy()
        twin.tables = self.tables._replace(hints=hints, placed=placed)
        twin._state = new_state(twin.tables)
        twin.players, twin._helpers = (twin,), None
        return twin

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The static list of turns, in the order of play."""
        return tuple(self._script.turns)

    @property
    def num_turns(self) -> int:
        """Length of `turns` and of every array of actions."""
        return len(self._script.turns)

    @property
    def num_events(self) -> int:
        """Rows of the event table: turns, ends of steps, loops entered and left, the end."""
        return int(self.tables.events.shape[0])

    @cached_property
    def next_turn(self) -> Integers:
        """`[num_turns]` the turn until which Keep keeps the buffer, -1 where there is none."""
        following = np.full(self.num_turns, -1, dtype=np.int64)
        latest: dict[tuple[int, int], int] = {}
        rows = self.tables.events[self.event_of_turn]
        keys = rows[:, [kernels.EVENT_BUFFER, kernels.EVENT_LOOP]].tolist()
        for turn in range(self.num_turns - 1, -1, -1):
            if self.turns[turn].kind is not TurnKind.CARRY:
                key = (keys[turn][0], keys[turn][1])
                following[turn] = latest.get(key, -1)
                latest[key] = turn
        return following

    @cached_property
    def event_of_turn(self) -> Integers:
        """`[num_turns]` row of each turn in the event table."""
        events = self.tables.events
        rows = np.flatnonzero(events[:, kernels.EVENT_KIND] <= kernels.KIND_EXIT)
        return rows.astype(np.int64)

    @property
    def hints(self) -> Integers:
        """`[num_turns]` offset in alignment units to prefer at each turn, -1 for best fit.

        Not a rule of the game: searches write here to follow, or vary, where a map puts things.
        """
        return self.tables.hints

    @property
    def placed(self) -> Integers:
        """`[num_turns]` where the buffer is once each turn is played, in alignment units.

        -1 if it is not in fast memory; what leaves after its step is still there.

        Of the game played last as far as it went: a hint for searches, not a record.
        """
        return self.tables.placed

    def wishes(self, action: Action = Action.DROP) -> Actions:
        """`[num_turns]` int8, everywhere `action`."""
        return np.full(self.num_turns, int(action), dtype=np.int8)

    def latency_ticks(self, actions: Actions) -> float:
        """Latency of the game with these wishes (`[num_turns]` int8)."""
        return self.play(actions).latency_ticks

    def play(self, actions: Actions) -> GameRecord:
        """Plays one game with these wishes (`[num_turns]` int8).

        Raises:
          InputError: if there is not one action per turn.
        """
        wanted = self._checked(actions)
        taken = np.full(self.num_turns, NOT_ASKED, dtype=np.int8)
        latency = kernels.play(self.tables, self._state, wanted, taken)
        return GameRecord(float(latency), float(self._state.sums[1]), taken)

    def legal_masks(self, actions: Actions) -> tuple[Actions, Actions]:
        """Plays one game and says what was legal at each turn on the way.

        Returns:
          (`[num_turns]` int8 with bit `1 << action` set where legal, 0 where the turn did not
          come up; `[num_turns]` int8 the actions taken).
        """
        wanted = self._checked(actions)
        taken = np.full(self.num_turns, NOT_ASKED, dtype=np.int8)
        masks = np.zeros(self.num_turns, dtype=np.int8)
        kernels.masks_along(self.tables, self._state, wanted, taken, masks)
        return masks, taken

    def play_many(self, actions: Actions) -> Floats:
        """Latencies `[games]` of wishes `[games, num_turns]` int8."""
        batch = np.ascontiguousarray(actions, dtype=np.int8)
        if batch.ndim != 2 or batch.shape[1] != self.num_turns:
            raise InputError(f"actions have shape {batch.shape}, expected [_, {self.num_turns}]")
        latencies = np.empty(batch.shape[0])

        def play(player: FastGame, part: slice) -> None:
            tables, state = player.tables, player._state
            kernels.play_many(tables, state, batch[part], self.wishes(), latencies[part])

        self._spread(batch.shape[0], play)
        return latencies

    def sample(
        self, probabilities: Floats, num_games: int, rng: np.random.Generator
    ) -> tuple[Floats, Actions]:
        """Plays games whose wishes are drawn turn by turn.

        Args:
          probabilities: `[num_turns, actions]` of Drop, Copy, Keep and perhaps Clean.
          num_games: how many.
          rng: gives the seed of the draws.

        Returns:
          (`[num_games]` latencies in ticks, `[num_games, num_turns]` int8 actions taken).
        """
        return self._drawn(kernels.sample, probabilities, rng, np.empty(num_games))

    def sample_along(
        self, probabilities: Floats, num_games: int, rng: np.random.Generator
    ) -> tuple[Floats, Actions]:
        """The games of `sample`, and what each had spent on the way.

        Returns:
          (`[num_games, num_turns + 1]` ticks spent before each turn of the list, whether or not it
          came up, and in all; `[num_games, num_turns]` int8 actions taken).
        """
        spent = np.empty((num_games, self.num_turns + 1))
        return self._drawn(kernels.sample_along, probabilities, rng, spent)

    def _drawn(
        self,
        kernel: Callable[..., None],
        probabilities: Floats,
        rng: np.random.Generator,
        ticks: Floats,
    ) -> tuple[Floats, Actions]:
        """Has `kernel` draw and play one game per row of `ticks`, where it writes what they take.

        Returns:
          (`ticks`, `[games, num_turns]` int8 actions taken).
        """
        table = np.ascontiguousarray(probabilities, dtype=np.float64)
        taken = np.full((len(ticks), self.num_turns), NOT_ASKED, dtype=np.int8)
        # No seed may be 0. One per game: games do not depend on who plays which.
        seeds = rng.integers(1, 2**64, size=len(ticks), dtype=np.uint64)

        def play(player: FastGame, part: slice) -> None:
            of_part = seeds[part], self.wishes(), taken[part], ticks[part]
            kernel(player.tables, player._state, table, *of_part)

        self._spread(len(ticks), play)
        return ticks, taken

    def in_threads(self, work: Callable[[int], _Result]) -> list[_Result]:
        """What `work` returns for each row of `players`, each done in its thread."""
        others = range(1, len(self.players))
        tasks = [self._helpers.submit(work, row) for row in others] if self._helpers else []
        try:
            first = work(0)
        finally:
            wait(tasks)
        return [first, *(task.result() for task in tasks)]

    def _spread(self, num_games: int, play: Callable[[FastGame, slice], None]) -> None:
        """Has every player play its part of the games, with this one's hints."""
        for player in self.players[1:]:
            player.hints[:] = self.hints
        ends = [num_games * row // len(self.players) for row in range(len(self.players) + 1)]
        self.in_threads(lambda row: play(self.players[row], slice(ends[row], ends[row + 1])))

    def map_of(self, actions: Actions) -> MemoryMap:
        """The memory map that the game with these wishes amounts to."""
        self.play(actions)
        return memory_map_of(self.program, self._state)

    def _checked(self, actions: Actions) -> Actions:
        wanted = np.ascontiguousarray(actions, dtype=np.int8)
        if wanted.shape != (self.num_turns,):
            raise InputError(f"actions have shape {wanted.shape}, expected ({self.num_turns},)")
        return wanted


class GameWalk:
    """A chain of games that differ little, each replayed from where it first differs.

    Args:
      game: what is played; its arrays are shared, so do not play on it in another thread.
      wishes: `[num_turns]` int8 of the first game.
      num_checkpoints: states kept along the current game.

    Attributes:
      wishes: of the current game.
      best_wishes: of the best game since the start or the last `restart`.
      best_hints: the game's hints then; `FastGame.hints` are those of the current game.
    """

    def __init__(self, game: FastGame, wishes: Actions, *, num_checkpoints: int = 0) -> None:
        self.game = game
        wanted = num_checkpoints or min(48, max(4, game.num_events // 64))
        self._stride = -(-game.num_events // wanted)
        self._bank = new_state(game.tables, copies=-(-game.num_events // self._stride))
        self._state = new_state(game.tables)
        self.wishes = game.wishes()
        self.best_wishes = game.wishes()
        self.best_hints = game.hints.copy()
        self._taken = game.wishes()
        self._values = np.zeros(2)
        self._chain = kernels.Chain(
            event_of_turn=game.event_of_turn,
            wishes=self.wishes,
            taken=self._taken,
            trial=game.wishes(),
            best_wishes=self.best_wishes,
            best_hints=self.best_hints,
            values=self._values,
        )
        self.restart(wishes)

    @property
    def latency_ticks(self) -> float:
        """Of the current game."""
        return float(self._values[0])

    @property
    def best_latency_ticks(self) -> float:
        """Of the best game."""
        return float(self._values[1])

    @property
    def taken(self) -> Actions:
        """`[num_turns]` int8 what was played in the current game."""
        return self._taken.copy()

    def restart(self, wishes: Actions) -> None:
        """Makes another game, with the game's hints, the current and the best one."""
        self.wishes[:] = wishes
        self.best_wishes[:] = wishes
        self.best_hints[:] = self.game.hints
        self._taken[:] = NOT_ASKED
        tables = self.game.tables
        self._values[:] = kernels.record(
            tables, self._state, self._bank, self._stride, 0, 0, self.wishes, self._taken
        )

    def propose(
        self,
        turns: Integers,
        actions: Actions,
        thresholds: Floats,
        *,
        hints: Integers | None = None,
        margin_ticks: float = math.inf,
        patience: int = 2,
    ) -> int:
        """Tries changes one after another, keeping those that are not too bad.

        Args:
          turns: `[proposals, changes]` turns whose wish changes, -1 for none.
          actions: `[proposals, changes]` int8 new wishes.
          thresholds: `[proposals]` ticks by which a game may be worse than the current one and
            still replace it.
          hints: `[proposals, changes]` new hints; by default they stay.
          margin_ticks: a game this far behind the current one is given up on the way.
          patience: checkpoints after the last change before a game may be given up.

        Returns:
          The number of games played; changes that change nothing are not played.
        """
        if hints is None:
            hints = self.game.hints[turns]
        proposals = kernels.Proposals(
            turns=np.ascontiguousarray(turns, dtype=np.int64),
            actions=np.array(actions, dtype=np.int8, order="C"),
            hints=np.array(hints, dtype=np.int64, order="C"),
            thresholds=np.ascontiguousarray(thresholds, dtype=np.float64),
            margin=np.array([margin_ticks], dtype=np.float64),
            patience=np.array([patience], dtype=np.int64),
        )
        tables, bank = self.game.tables, self._bank
        return int(kernels.walk(tables, self._state, bank, self._stride, self._chain, proposals))


def memory_map_of(program: Program, state: kernels.State) -> MemoryMap:
    """The memory map of a finished game's state."""
    unit = program.machine.alignment_bytes
    sources = (Source.PRODUCED, Source.COPIED, Source.CARRIED)
    residencies = [
        Residency(
            buffer=row[kernels.END_BUFFER],
            offset_bytes=row[kernels.END_OFFSET] * unit,
            start=row[kernels.END_START],
            end=row[kernels.END_STEP],
            source=sources[row[kernels.END_SOURCE]],
            ready=row[kernels.END_READY],
            loop=None if row[kernels.END_LOOP] < 0 else row[kernels.END_LOOP],
        )
        for row in state.ended[: state.counters[kernels.CNT_ENDED]].tolist()
    ]
    evictions = [
        Eviction(row[kernels.QUE_BUFFER], row[kernels.QUE_ISSUE], row[kernels.QUE_DONE])
        for row in state.queue[: state.counters[kernels.CNT_QUEUE_TAIL]].tolist()
    ]
    residencies.sort(key=lambda r: (r.start, r.end, r.buffer))
    evictions.sort(key=lambda e: (e.issue, e.done, e.buffer))
    return MemoryMap(tuple(residencies), tuple(evictions))


def new_state(tables: kernels.Tables, *, copies: int = 0) -> kernels.State:
    """Arrays for a game, large enough for any play; with `copies` one dimension more."""
    more = (copies,) if copies else ()
    num_turns = int(np.count_nonzero(tables.events[:, kernels.EVENT_KIND] <= kernels.KIND_EXIT))
    num_steps = tables.step_ticks.shape[0]
    num_buffers = tables.sizes.shape[0]

    def integers(*shape: int) -> Integers:
        return np.zeros((*more, *shape), dtype=np.int64)

    return kernels.State(
        counters=integers(kernels.NUM_COUNTERS),
        sums=np.zeros((*more, 2)),
        current=integers(tables.step_ticks.shape[1]),
        idle=integers(num_steps + 1, 2),
        bases=integers(tables.offers.shape[0] + 1, kernels.NUM_BASE_COLUMNS),
        buffers=integers(num_buffers, kernels.NUM_BUFFER_COLUMNS),
        earliest=integers(num_buffers),
        live=integers(num_buffers + 1, 3),
        ended=np.zeros((num_turns + 1, kernels.NUM_ENDED_COLUMNS), dtype=np.int64),
        queue=integers(num_turns + 1, kernels.NUM_QUEUE_COLUMNS),
        leavers=integers(num_buffers + 1),
        scratch=integers(0 if copies else num_buffers + num_turns + 2, 3),
    )


@dataclass(frozen=True, slots=True)
class _Use:
    """A buffer's access, or a loop that uses it with its uses inside."""

    step: int
    kind: AccessKind | None
    loop: int | None
    inside: tuple[_Use, ...]


class _Script:
    """Builds the list of events and turns of a program."""

    def __init__(self, program: Program, carried: Sequence[int]) -> None:
        self.program = program
        self.turns: list[Turn] = []
        self.events: list[tuple[int, ...]] = []
        self.num_accesses = 0
        self._facts: dict[tuple[TurnKind, int, int, int], tuple[bool, bool]] = {}
        self._allowed = [takes_turns(program, b) for b in range(len(program.buffers))]
        for buffer, allowed in enumerate(self._allowed):
            if allowed:
                live_out = program.buffers[buffer].live_out
                self._learn(buffer, _uses(program, buffer), live_out)
        self._users = _buffers_by_first_use(program, self._allowed)
        for buffer in carried:
            self._turn(TurnKind.CARRY, buffer, 0, None)
        self._steps()

    def _learn(self, buffer: int, uses: Sequence[_Use], after: bool) -> bool:
        """Records for each turn whether there is a next one and whether content is needed.

        Returns whether the buffer is needed before the first of `uses`, given whether it is
        needed after the last.
        """
        needed = after
        for position in range(len(uses) - 1, -1, -1):
            use = uses[position]
            has_next = position + 1 < len(uses)
            if use.loop is None:
                assert use.kind is not None
                self._facts[TurnKind.ACCESS, buffer, use.step, -1] = (has_next, needed)
                needed = use.kind.reads
                continue
            loop = self.program.loops[use.loop]
            self._facts[TurnKind.EXIT, buffer, loop.end_step, use.loop] = (has_next, needed)
            inside = self._learn(buffer, use.inside, needed)
            runs_again = not loop.is_branch or loop.may_repeat
            if inside and not needed and runs_again:
                inside = self._learn(buffer, use.inside, True)
            needed = inside or (needed and loop.may_skip)
            self._facts[TurnKind.ENTRY, buffer, loop.start_step, use.loop] = (True, needed)
        return needed

    def _steps(self) -> None:
        program = self.program
        open_loops: list[int] = []
        starts: dict[int, list[int]] = {}
        for index, loop in enumerate(program.loops):
            starts.setdefault(loop.start_step, []).append(index)
        for step in range(program.num_steps):
            for loop_index in starts.get(step, ()):
                self._enter(loop_index)
                open_loops.append(loop_index)
            for row, access in enumerate(program.instructions[step].accesses):
                if self._allowed[access.buffer]:
                    loop_around = open_loops[-1] if open_loops else None
                    self._turn(TurnKind.ACCESS, access.buffer, step, loop_around, row)
                self.num_accesses += 1
            self._event(kernels.KIND_STEP_END, step=step)
            while open_loops and program.loops[open_loops[-1]].end_step == step + 1:
                self._exit(open_loops.pop())
        self._event(kernels.KIND_END, step=program.num_steps)

    def _enter(self, index: int) -> None:
        loop = self.program.loops[index]
        for buffer in self._users[index]:
            self._turn(TurnKind.ENTRY, buffer, loop.start_step, index)
        outer = -1 if loop.parent is None else loop.parent
        self._event(kernels.KIND_ENTER_LOOP, step=loop.start_step, loop=index, access=outer)

    def _exit(self, index: int) -> None:
        loop = self.program.loops[index]
        self._event(kernels.KIND_LEAVE_LOOP, step=loop.end_step, loop=index, access=loop.start_step)
        for buffer in self._users[index]:
            self._turn(TurnKind.EXIT, buffer, loop.end_step, index)

    def _turn(
        self, kind: TurnKind, buffer: int, step: int, loop: int | None, row: int = -1
    ) -> None:
        marker = loop if kind in (TurnKind.ENTRY, TurnKind.EXIT) else None
        facts = (True, False)
        if kind is not TurnKind.CARRY:
            facts = self._facts[kind, buffer, step, -1 if marker is None else marker]
        may_keep, needed = facts
        flags = may_keep * kernels.FLAG_KEEP | needed * kernels.FLAG_NEEDED
        around = loop
        reference = self.num_accesses
        copied = kind is TurnKind.ENTRY
        if kind is TurnKind.ACCESS:
            access = self.program.instructions[step].accesses[row]
            copied = access.kind.reads
            flags |= access.kind.writes * kernels.FLAG_WRITES
        elif loop is not None:
            around = self.program.loops[loop].parent
            reference = loop
        if copied and (around is not None or self.program.has_content_before(buffer, step)):
            flags |= kernels.FLAG_COPIED
        turn = len(self.turns)
        self.turns.append(Turn(kind, buffer, step, loop, row, may_keep, needed))
        self._event(kind, buffer, turn, step, -1 if around is None else around, reference, flags)

    def _event(
        self,
        kind: int,
        buffer: int = -1,
        turn: int = -1,
        step: int = -1,
        loop: int = -1,
        access: int = -1,
        flags: int = 0,
    ) -> None:
        self.events.append((int(kind), buffer, turn, step, loop, access, flags))


def _uses(program: Program, buffer: int) -> tuple[_Use, ...]:
    """The buffer's accesses, those inside loops grouped by loop."""
    accesses = [(step, access.kind) for step, access in program.accesses_of_buffer[buffer]]
    return _group(program, accesses, None)


def _group(
    program: Program, accesses: Sequence[tuple[int, AccessKind]], around: int | None
) -> tuple[_Use, ...]:
    uses: list[_Use] = []
    position = 0
    while position < len(accesses):
        step, kind = accesses[position]
        chain = list(program.loops_around(program.loop_of_step[step]))
        if around is not None:
            chain = chain[: chain.index(around)]
        if not chain:
            uses.append(_Use(step, kind, None, ()))
            position += 1
            continue
        loop = chain[-1]
        end = position
        while end < len(accesses) and program.loops[loop].contains_step(accesses[end][0]):
            end += 1
        uses.append(_Use(step, None, loop, _group(program, accesses[position:end], loop)))
        position = end
    return tuple(uses)


def _buffers_by_first_use(program: Program, allowed: Sequence[bool]) -> list[list[int]]:
    """Per loop the allowed buffers used inside, in order of first use."""
    users: list[dict[int, None]] = [{} for _ in program.loops]
    for step, instruction in enumerate(program.instructions):
        for loop in program.loops_around(program.loop_of_step[step]):
            for access in instruction.accesses:
                if allowed[access.buffer]:
                    users[loop].setdefault(access.buffer)
    return [list(found) for found in users]


def _tables(
    program: Program, script: _Script, max_carried: int, allow_clean: bool
) -> kernels.Tables:
    unit = program.machine.alignment_bytes
    capacity = program.capacity_bytes // unit
    limits = (capacity, max_carried, program.num_steps, allow_clean)
    sizes = [(b.size_bytes // unit, program.copy_ticks(b.size_bytes)) for b in program.buffers]
    lanes = program.num_lanes
    step_ticks = np.zeros((program.num_steps + 1, 1 + lanes), dtype=np.int64)
    access_ticks = np.zeros((script.num_accesses, 1 + lanes), dtype=np.int64)
    row = 0
    for step, instruction in enumerate(program.instructions):
        step_ticks[step, 1:] = instruction.base_ticks
        for access in instruction.accesses:
            access_ticks[row] = (access.bus_ticks, *access.lane_ticks)
            step_ticks[step] += access_ticks[row]
            row += 1
    scopes = [None, *range(len(program.loops))]
    return kernels.Tables(
        limits=np.array(limits, dtype=np.int64),
        events=np.array(script.events, dtype=np.int64).reshape(-1, kernels.NUM_EVENT_COLUMNS),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        step_ticks=step_ticks,
        access_ticks=access_ticks,
        repeats=np.array([*(i.repeat for i in program.instructions), 0.0]),
        loop_repeats=np.array([program.repeat_of(scope) for scope in scopes]),
        offers=_offers(program),
        hints=np.full(len(script.turns), -1, dtype=np.int64),
        placed=np.full(len(script.turns), -1, dtype=np.int64),
    )


def _offers(program: Program) -> Integers:
    """Per loop how the idle time that a trip leaves over counts outside (docs/game.md)."""
    rows = np.zeros((len(program.loops), kernels.NUM_OFFER_COLUMNS), dtype=np.int64)
    for row, loop in zip(rows, program.loops, strict=True):
        weight = float(loop.weight)
        exact = weight.is_integer()
        scale = 1 if exact or weight >= FRACTION_DENOMINATOR else FRACTION_DENOMINATOR
        row[kernels.OFFER_NUMERATOR] = math.floor(weight * scale)
        row[kernels.OFFER_DENOMINATOR] = scale
        row[kernels.OFFER_ROUNDING] = 0 if exact else loop.end_step - loop.start_step
        row[kernels.OFFER_LIMIT] = kernels.IDLE_LIMIT_TICKS // len(program.loops)
    return rows
