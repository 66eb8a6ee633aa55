"""From a memory map back to the actions that make it, as far as the game can.

Any valid map can be replayed: `actions_from_map` reads out of it what each turn should do, plays
that, and says what was lost on the way. Named are what the game cannot express (sliced prefetches,
replaced copies, dead contents that give their place away inside a loop, all in docs/production.md;
carried parameters that are no candidates) and what it did not grant: an access that had no place by
then, or would have waited longer than it saves, because the game prefetches late, evicts at once
and packs best-fit. No jax here: the game that plays is the compiled one.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from hlo_graphs.program import Program
from malloc_game.fast_game import Action, FastGame, Turn, TurnKind
from malloc_game.fast_game_kernels import Actions
from malloc_game.memory_map import MemoryMap, Residency, Source
from malloc_game.simulate import fast_accesses, simulate


class LostKind(enum.StrEnum):
    """Why a part of a map is not in the replayed game."""

    REPLACED_COPY = "replaced copy"
    SLICED_PREFETCH = "sliced prefetch"
    CARRIED = "carried parameter"
    HOLE = "hole"
    ACCESS = "access"


@dataclass(frozen=True, slots=True)
class LostPart:
    """A part of the map that the replayed game lacks.

    Attributes:
      kind: why.
      buffer: index into `Program.buffers`.
      step: where in the program.
      message: one line for people.
    """

    kind: LostKind
    buffer: int
    step: int
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Replay:
    """A map, played.

    Attributes:
      wishes: `[num_turns]` int8, per turn of `FastGame.turns` what the map asks for; a turn plays
        the first legal one of what is asked, Copy (for Keep) and Drop.
      taken: `[num_turns]` int8 what was played, `NOT_ASKED` where a turn did not come up.
      memory_map: the map that the game made.
      latency_ticks: of that map.
      map_latency_ticks: of the map that was replayed.
      lost: what is not in the replayed game.
    """

    wishes: Actions
    taken: Actions
    memory_map: MemoryMap
    latency_ticks: float
    map_latency_ticks: float
    lost: tuple[LostPart, ...]

    @property
    def loss(self) -> float:
        """How much slower the replay is, as a share of the map's latency; negative if faster."""
        if self.map_latency_ticks == 0:
            return 0.0
        return self.latency_ticks / self.map_latency_ticks - 1


def actions_from_map(
    program: Program, memory_map: MemoryMap, game: FastGame | None = None
) -> Replay:
    """Replays `memory_map`, which must be valid, as a game of `program`.

    Args:
      program: the program.
      memory_map: a valid map of it.
      game: its compiled game, if there is one already.
    """
    game = game or FastGame(program)
    reader = _Reader(program, memory_map)
    wishes = game.wishes()
    for index, turn in enumerate(game.turns):
        following = int(game.next_turn[index])
        wishes[index] = reader.wish(turn, game.turns[following] if following >= 0 else None)
    record = game.play(wishes)
    played = game.map_of(wishes)
    return Replay(
        wishes=wishes,
        taken=record.taken,
        memory_map=played,
        latency_ticks=record.latency_ticks,
        map_latency_ticks=simulate(program, memory_map).latency_ticks,
        lost=tuple(_lost_parts(program, memory_map, played)),
    )


class _Reader:
    """What a map asks for at each turn."""

    def __init__(self, program: Program, memory_map: MemoryMap) -> None:
        self.program = program
        self.residencies: dict[int, list[Residency]] = {}
        for residency in memory_map.residencies:
            self.residencies.setdefault(residency.buffer, []).append(residency)
        self.done_of_issue: dict[tuple[int, int], int] = {}
        for eviction in memory_map.evictions:
            self.done_of_issue[eviction.buffer, eviction.issue] = eviction.done

    def wish(self, turn: Turn, following: Turn | None) -> Action:
        """What the map asks for at `turn`, whose buffer's next turn is `following`."""
        if turn.kind is TurnKind.CARRY:
            held = self.residencies.get(turn.buffer, [])
            return Action.KEEP if any(r.source is Source.CARRIED for r in held) else Action.DROP
        if turn.kind is TurnKind.ENTRY:
            return Action.KEEP if self._around_loop(turn) else Action.DROP
        if turn.kind is TurnKind.EXIT:
            residency = self._around_loop(turn)
            after = turn.step
        else:
            residency = self._covering(turn.buffer, turn.step)
            after = turn.step + 1
        if residency is None:
            return Action.DROP
        if following is None or residency.end <= following.step:
            return Action.COPY
        if any(after <= start and end <= following.step for start, end in residency.holes):
            return Action.COPY
        # Leaving, but the copy back is still under way at the next turn: it stays by itself.
        # At a loop's entry that includes what is flushed there, after the entry turns.
        done = self.done_of_issue.get((turn.buffer, after), -1)
        waiting_until = done if following.kind is TurnKind.ENTRY else done - 1
        return Action.COPY if waiting_until >= following.step else Action.KEEP

    def _covering(self, buffer: int, step: int) -> Residency | None:
        """The residency that serves an access at `step`."""
        for residency in self.residencies.get(buffer, []):
            if residency.ready <= step < residency.end:
                return residency
        return None

    def _around_loop(self, turn: Turn) -> Residency | None:
        """The residency that lasts for the whole of the turn's loop, every trip."""
        if turn.loop is None:
            return None
        loop = self.program.loops[turn.loop]
        for residency in self.residencies.get(turn.buffer, []):
            outside = turn.loop not in self.program.loops_around(residency.loop)
            covers = residency.ready <= loop.start_step and residency.end >= loop.end_step
            if outside and covers:
                return residency
        return None


def _lost_parts(program: Program, wanted: MemoryMap, played: MemoryMap) -> Iterator[LostPart]:
    def name(buffer: int) -> str:
        return program.buffers[buffer].name

    for copy in wanted.replaced_copies:
        buffer = program.instructions[copy.step].accesses[-1].buffer
        message = f"step {copy.step}: the game cannot leave {name(buffer)}'s copy to the engine"
        yield LostPart(LostKind.REPLACED_COPY, buffer, copy.step, message)
    carried = {r.buffer for r in played.residencies if r.source is Source.CARRIED}
    for residency in wanted.residencies:
        buffer, start = residency.buffer, residency.start
        if residency.parts:
            message = f"step {start}: {name(buffer)} arrives in slices; the game copies it whole"
            yield LostPart(LostKind.SLICED_PREFETCH, buffer, start, message)
        for hole_start, hole_end in residency.holes:
            if program.loop_of_step[hole_start] != residency.loop:
                where = f"steps {hole_start} to {hole_end - 1}"
                message = f"{where}: the game holds {name(buffer)}, though its content is dead"
                yield LostPart(LostKind.HOLE, buffer, hole_start, message)
        if residency.source is Source.CARRIED and buffer not in carried:
            message = f"step {start}: the game did not carry {name(buffer)}"
            yield LostPart(LostKind.CARRIED, buffer, start, message)
    for step, buffer in sorted(fast_accesses(program, wanted) - fast_accesses(program, played)):
        message = f"step {step}: {name(buffer)} is fast in the map and slow in the game"
        yield LostPart(LostKind.ACCESS, buffer, step, message)
