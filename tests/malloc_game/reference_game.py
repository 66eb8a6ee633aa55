"""mallocGame once more, slow and obvious: the witness the fast implementations are tested against.

Written from docs/game.md in plain Python integers and `Fraction`s, sharing no code with
`malloc_game`'s games. Nothing here is clever: places are searched among all residencies ever
made, idle time is a list of numbers, and "needed" is a walk over the control flow.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from hlo_graphs.program import Access, Loop, Program
from malloc_game.memory_map import Eviction, MemoryMap, Residency, Source

IDLE_LIMIT_TICKS = 2**30
"""All loops together offer no more idle time than this, so that 32 bits suffice."""

FRACTION_DENOMINATOR = 1024
"""Weights of loops that are not whole numbers are rounded down to multiples of 1/1024."""


class Action(enum.IntEnum):
    """What a turn decides (docs/game.md)."""

    DROP = 0
    COPY = 1
    KEEP = 2


class TurnKind(enum.IntEnum):
    """What a turn is about."""

    ACCESS = 0
    ENTRY = 1
    EXIT = 2
    CARRIED = 3


class EventKind(enum.IntEnum):
    """What happens between turns."""

    STEP_END = 10
    FLUSH_AT_ENTRY = 11
    TRIP_END = 12
    PROGRAM_END = 13


@dataclass(frozen=True)
class Turn:
    """A possible turn: `position` is the step it comes before, or belongs to.

    `frame` is the loop whose time the decision spends: for entry and exit turns the loop around
    `loop`; None is the program itself.
    """

    kind: TurnKind
    position: int
    buffer: int
    frame: int | None
    loop: int | None = None
    access: Access | None = None


@dataclass(frozen=True)
class Event:
    """Something that happens by itself at `position`."""

    kind: EventKind
    position: int
    loop: int | None = None


@dataclass
class Place:
    """A residency, current or past; `end` is None while the buffer is there."""

    buffer: int
    offset: int
    size: int
    start: int
    ready: int
    source: Source
    frame: int | None
    end: int | None = None


@dataclass
class PendingCopy:
    """An eviction in the queue."""

    buffer: int
    issue: int
    remaining_ticks: int
    spoiled: bool = False


@dataclass
class Supply:
    """Unreserved idle time of a step, or of a whole loop inside the frame at hand."""

    position: int
    ticks: int


@dataclass
class Frame:
    """Idle time of an open frame; partial windows begin no earlier than `exact_from`."""

    supplies: list[Supply] = field(default_factory=list)
    exact_from: int = 0


@dataclass(frozen=True)
class Arrival:
    """How a buffer would come: resident from `start`, `hidden_ticks` of its copy unnoticed.

    The program waits for the first `evictions` of the queue, then `stall_ticks` for the copy.
    """

    start: int
    offset: int
    hidden_ticks: int
    stall_ticks: int
    evictions: int = 0


@dataclass(frozen=True)
class Rules:
    """The settings of the game."""

    max_carried: int = 1
    carried_candidates: int = 8


@dataclass
class ReferenceGame:
    """One game. `turn` is the decision at hand, or None when the game is over."""

    program: Program
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        program = self.program
        self.turn: Turn | None = None
        self.all_slow = total_of_all_slow(program)
        self.latency = self.all_slow
        self.stall_ticks = Fraction(0)
        self.stalls: list[tuple[int, int | None, int]] = []
        self.places: list[Place] = []
        self.evictions: list[Eviction] = []
        self.at: dict[int, Place] = {}  # buffer -> where it is now
        self.leaving: set[int] = set()
        self.stale: set[int] = set()
        self.held: set[int] = set()  # kept around a loop, or carried: no turns inside
        self.held_by: dict[int, int] = {}  # buffer -> the loop around which it is kept
        self.earliest = [0] * len(program.buffers)  # prefetches begin no earlier
        self.queue: list[PendingCopy] = []
        self.frames = [Frame()]  # the open ones
        self.num_carried = 0
        self.fast: set[int] = set()  # buffers served fast in the step at hand
        self.uses_waiting = False  # one of them waits in the queue
        self.script = list(script_of(program, self.rules))
        self.cursor = 0
        self._advance()

    # --- what a player sees ---------------------------------------------------------------

    def legal(self) -> tuple[bool, bool, bool]:
        """Which of Drop, Copy, Keep may be played now."""
        assert self.turn is not None
        return self._legal(self.turn)

    def play(self, action: int) -> Fraction:
        """Plays one decision; the fall of latency until the next, over the all-slow latency."""
        assert self.turn is not None
        action = Action(action)
        assert self.legal()[action], (action, self.turn)
        before = self.latency
        turn, self.turn = self.turn, None
        self._apply(turn, action)
        self.cursor += 1
        self._advance()
        return (before - self.latency) / self.all_slow if self.all_slow else Fraction(0)

    def memory_map(self) -> MemoryMap:
        """The finished game's map."""
        assert self.turn is None
        alignment = self.program.machine.alignment_bytes
        residencies = []
        for place in self.places:
            assert place.end is not None
            assert place.offset % alignment == 0
            residencies.append(
                Residency(
                    buffer=place.buffer,
                    offset_bytes=place.offset,
                    start=place.start,
                    end=place.end,
                    source=place.source,
                    ready=place.ready,
                    loop=place.frame,
                )
            )
        return MemoryMap(tuple(residencies), tuple(self.evictions))

    # --- the course of the game -----------------------------------------------------------

    def _advance(self) -> None:
        """Runs events and turns with one legal action until there is a decision."""
        while self.cursor < len(self.script):
            item = self.script[self.cursor]
            if isinstance(item, Event):
                self._happen(item)
            elif item.buffer in self.held and not self._releases(item):
                if item.kind is TurnKind.ACCESS:
                    self._serve_fast(item)
            else:
                legal = self._legal(item)
                if sum(legal) > 1:
                    self.turn = item
                    return
                self._apply(item, Action(legal.index(True)))
            self.cursor += 1

    def _releases(self, turn: Turn) -> bool:
        """Whether this is the exit turn of the loop around which the buffer is held."""
        return turn.kind is TurnKind.EXIT and self.held_by.get(turn.buffer) == turn.loop

    def _happen(self, event: Event) -> None:
        position = event.position
        if event.kind is EventKind.STEP_END:
            self._end_step(position)
        elif event.kind is EventKind.FLUSH_AT_ENTRY:
            assert event.loop is not None
            self._flush(position, self.program.loops[event.loop].parent)
            self.frames.append(Frame())
        elif event.kind is EventKind.TRIP_END:
            assert event.loop is not None
            self._flush(position, event.loop)
            self._offer_loop(event.loop)
        else:
            self._flush(position, None)
            for place in self.at.values():
                assert place.source is Source.CARRIED
                place.end = position + 1

    # --- turns ----------------------------------------------------------------------------

    def _legal(self, turn: Turn) -> tuple[bool, bool, bool]:
        buffer = turn.buffer
        has_next = self._has_next(turn)
        if turn.kind is TurnKind.CARRIED:
            room = self.num_carried < self.rules.max_carried
            return True, False, room and self._best_fit(buffer, 0) is not None
        if buffer in self.at:
            return True, False, has_next
        if turn.kind is TurnKind.EXIT:
            return True, False, False
        if turn.kind is TurnKind.ENTRY:
            return True, False, self._may_enter(turn) and self._arrival(turn) is not None
        possible = self._arrival(turn) is not None
        return True, possible, possible and has_next

    def _apply(self, turn: Turn, action: Action) -> None:
        buffer = turn.buffer
        if turn.kind is TurnKind.CARRIED:
            if action is Action.KEEP:
                self._carry(buffer)
            return
        if buffer not in self.at and action is not Action.DROP:
            self._bring(turn)
        if turn.kind is TurnKind.EXIT and buffer in self.at:
            self.held.discard(buffer)
            self.held_by.pop(buffer, None)
        if buffer not in self.at:
            self._serve_slow(turn)
            return
        if turn.kind is TurnKind.ACCESS:
            self._serve_fast(turn)
        if action is Action.KEEP:
            self.leaving.discard(buffer)
            if turn.kind is TurnKind.ENTRY:
                assert turn.loop is not None
                self.held.add(buffer)
                self.held_by[buffer] = turn.loop
        else:
            self._leave(turn)
            if turn.kind is TurnKind.ACCESS and buffer in self._waiting(turn.position):
                self.uses_waiting = True

    def _carry(self, buffer: int) -> None:
        offset = self._best_fit(buffer, 0)
        assert offset is not None
        self._occupy(buffer, offset, 0, 0, Source.CARRIED, None)
        self.num_carried += 1
        self.held.add(buffer)

    def _bring(self, turn: Turn) -> None:
        """Puts the buffer into fast memory, where and when the rules say."""
        found = self._arrival(turn)
        assert found is not None
        self._reserve(found.hidden_ticks, found.start)
        self._wait(turn.position, turn.frame, found.evictions)
        if found.stall_ticks:
            self._stall(turn.position, turn.frame, found.stall_ticks)
        source = Source.PRODUCED if is_produced(self.program, turn) else Source.COPIED
        self._occupy(turn.buffer, found.offset, found.start, turn.position, source, turn.frame)

    def _occupy(
        self, buffer: int, offset: int, start: int, ready: int, source: Source, frame: int | None
    ) -> None:
        size = self.program.buffers[buffer].size_bytes
        place = Place(buffer, offset, size, start, ready, source, frame)
        self.places.append(place)
        self.at[buffer] = place

    def _serve_fast(self, turn: Turn) -> None:
        assert turn.access is not None
        instruction = self.program.instructions[turn.position]
        before = self._elapsed(turn.position)
        self.fast.add(turn.buffer)
        self.latency -= Fraction(instruction.repeat) * (before - self._elapsed(turn.position))
        if turn.access.kind.writes:
            self.stale.add(turn.buffer)
            for pending in self.queue:
                if pending.buffer == turn.buffer:
                    pending.spoiled = True

    def _serve_slow(self, turn: Turn) -> None:
        if turn.access is not None and turn.access.kind.writes:
            self.stale.discard(turn.buffer)
            self.earliest[turn.buffer] = turn.position + 1

    def _leave(self, turn: Turn) -> None:
        """The buffer leaves after this turn, at once or when its slow copy is made current."""
        buffer = turn.buffer
        after = turn.position + 1 if turn.kind is TurnKind.ACCESS else turn.position
        underway = any(p.buffer == buffer and not p.spoiled for p in self.queue)
        if buffer in self.stale and not underway and self._needed(buffer, after, turn.frame):
            self.queue.append(PendingCopy(buffer, after, self._copy_ticks(buffer)))
        self.leaving.add(buffer)
        self._release_if_done(buffer, after)

    def _release_if_done(self, buffer: int, position: int) -> None:
        if buffer not in self.leaving or any(p.buffer == buffer for p in self.queue):
            return
        place = self.at.pop(buffer)
        place.end = position
        self.leaving.discard(buffer)
        self.stale.discard(buffer)
        self.earliest[buffer] = max(self.earliest[buffer], position)

    def _has_next(self, turn: Turn) -> bool:
        """Whether the buffer has another turn in the same frame (so that Keep has a meaning)."""
        if turn.kind in (TurnKind.CARRIED, TurnKind.ENTRY):
            return True
        later = self.script[self.cursor + 1 :]
        return any(
            isinstance(other, Turn) and other.buffer == turn.buffer and other.frame == turn.frame
            for other in later[: self._frame_end(turn.frame)]
        )

    def _frame_end(self, frame: int | None) -> int:
        """How many script items after the present one belong to the frame's present trip."""
        for index, item in enumerate(self.script[self.cursor + 1 :]):
            if isinstance(item, Event) and item.kind is EventKind.TRIP_END and item.loop == frame:
                return index
        return len(self.script)

    def _may_enter(self, turn: Turn) -> bool:
        """Whether a residency around a loop would hold what it should (overridden by a test)."""
        return self._needed(turn.buffer, turn.position, turn.frame)

    # --- needed ---------------------------------------------------------------------------

    def _needed(self, buffer: int, position: int, frame: int | None) -> bool:
        """Whether from `position` inside `frame` some path reads the buffer before writing it."""
        program = self.program
        seen: set[int] = set()
        waiting = list(next_steps(program, position, frame))
        while waiting:
            step = waiting.pop()
            if step in seen:
                continue
            seen.add(step)
            if step == program.num_steps:
                if program.buffers[buffer].live_out:
                    return True
                continue
            mine = [a for a in program.instructions[step].accesses if a.buffer == buffer]
            if mine and mine[0].kind.reads:
                return True
            if not mine:
                waiting.extend(next_steps(program, step + 1, program.loop_of_step[step]))
        return False

    # --- time -----------------------------------------------------------------------------

    def _elapsed(self, step: int) -> int:
        instruction = self.program.instructions[step]
        return instruction.elapsed_ticks(self._slow(step))

    def _slow(self, step: int) -> list[Access]:
        accesses = self.program.instructions[step].accesses
        return [a for a in accesses if a.buffer not in self.fast]

    def _end_step(self, step: int) -> None:
        """The step's idle time serves the queue; what is left may be reserved by prefetches."""
        idle = self._elapsed(step) - sum(a.bus_ticks for a in self._slow(step))
        while self.queue and self.queue[0].issue <= step:
            first = self.queue[0]
            served = min(idle, first.remaining_ticks)
            first.remaining_ticks -= served
            idle -= served
            if first.remaining_ticks > 0:
                break
            self._finish_first(step + 1)
        self.frames[-1].supplies.append(Supply(step, idle))
        self.fast.clear()
        self.uses_waiting = False

    def _finish_first(self, done: int) -> None:
        copy = self.queue.pop(0)
        self.evictions.append(Eviction(copy.buffer, copy.issue, done))
        if not copy.spoiled:
            self.stale.discard(copy.buffer)
            self.earliest[copy.buffer] = done
        self._release_if_done(copy.buffer, done)

    def _flush(self, position: int, frame: int | None) -> None:
        """The program waits until the queue is empty."""
        self._wait(position, frame, len(self.queue))

    def _wait(self, position: int, frame: int | None, evictions: int) -> None:
        """The program waits for so many evictions."""
        for _ in range(evictions):
            self._stall(position, frame, self.queue[0].remaining_ticks)
            self._finish_first(position)

    def _stall(self, position: int, frame: int | None, ticks: int) -> None:
        """The program waits before `position`, on every trip of `frame`."""
        self.stalls.append((position, frame, ticks))
        self.stall_ticks += ticks * repeat_of_frame(self.program, frame)
        self.latency += ticks * repeat_of_frame(self.program, frame)

    def _copy_ticks(self, buffer: int) -> int:
        return self.program.copy_ticks(self.program.buffers[buffer].size_bytes)

    def _offer_loop(self, loop: int) -> None:
        """What the finished trip left over is, times the loop's weight, the outer frame's."""
        frame = self.frames.pop()
        inside = sum(s.ticks for s in frame.supplies)
        bounds = self.program.loops[loop]
        numerator, denominator = weight_as_ratio(bounds)
        limit = IDLE_LIMIT_TICKS // len(self.program.loops)
        offer = min(inside * numerator // denominator, IDLE_LIMIT_TICKS)
        if not float(bounds.weight).is_integer():
            offer = max(0, offer - self._rounding(bounds))
        self.frames[-1].supplies.append(Supply(bounds.start_step, min(offer, limit)))
        exact = float(bounds.weight).is_integer() and frame.exact_from == 0 and offer < limit
        if not exact:
            self.frames[-1].exact_from = bounds.start_step + 1

    def _rounding(self, loop: Loop) -> int:
        """What an engine that rounds at every step of a branch may lose (overridden by a test)."""
        return loop.end_step - loop.start_step

    # --- windows and places ---------------------------------------------------------------

    def _arrival(self, turn: Turn) -> Arrival | None:
        """How the turn's buffer would come; None if it may not."""
        position = turn.position
        produced = is_produced(self.program, turn)
        whole = 0 if produced else self._copy_ticks(turn.buffer)
        start, hidden = (position, 0) if produced else self._window(turn)
        evictions = 0
        offset = self._best_fit(turn.buffer, start)
        if offset is None:
            offset = self._best_fit(turn.buffer, position)
            if offset is not None:
                start, hidden = self._later_window(turn, start, offset)
            else:
                start, hidden = position, 0
                offset, evictions = self._place_after_evictions(turn)
        if offset is None:
            return None
        stall = whole - hidden
        waits = stall + sum(pending.remaining_ticks for pending in self.queue[:evictions])
        if waits and turn.kind is TurnKind.ACCESS and waits >= self._saving(turn):
            return None
        return Arrival(start, offset, hidden, stall, evictions)

    def _saving(self, turn: Turn) -> int:
        """Ticks that the step is faster when this access too is fast."""
        before = self._elapsed(turn.position)
        self.fast.add(turn.buffer)
        after = self._elapsed(turn.position)
        self.fast.remove(turn.buffer)
        return before - after

    def _window(self, turn: Turn) -> tuple[int, int]:
        """Where the copy starts and how many of its ticks idle time hides from there."""
        whole = self._copy_ticks(turn.buffer)
        start = self._whole_window(turn.buffer, turn.position)
        if start is not None:
            return start, whole
        return self._partial_window(turn.buffer, turn.position)

    def _whole_window(self, buffer: int, position: int) -> int | None:
        """The latest step from which the frame's unreserved idle time carries the whole copy."""
        wanted = self._copy_ticks(buffer)
        start = position
        for supply in reversed(self.frames[-1].supplies):
            if wanted <= 0:
                break
            wanted -= supply.ticks
            start = supply.position
        return None if wanted > 0 or start < self.earliest[buffer] else start

    def _partial_window(self, buffer: int, position: int, since: int = 0) -> tuple[int, int]:
        """All the unreserved idle time that may serve the copy, where that does not suffice."""
        first = max(since, self.earliest[buffer], self._exact_from())
        usable = [s for s in self.frames[-1].supplies if s.ticks > 0 and s.position >= first]
        if not usable or self._evicts_in_part():
            return position, 0
        return usable[0].position, sum(s.ticks for s in usable)

    def _later_window(self, turn: Turn, start: int, offset: int) -> tuple[int, int]:
        """The window from when on `offset`, free now but not from `start`, has been free."""
        end = offset + self.program.buffers[turn.buffer].size_bytes
        since = max(
            place.end
            for place in self.places
            if place.end is not None and place.offset < end and offset < place.offset + place.size
        )
        assert start < since <= turn.position
        return self._partial_window(turn.buffer, turn.position, since)

    def _waiting(self, position: int) -> set[int]:
        """Buffers that leave once evictions queued before step `position` are served."""
        late = {pending.buffer for pending in self.queue if pending.issue > position}
        return {pending.buffer for pending in self.queue} & self.leaving - late

    def _place_after_evictions(self, turn: Turn) -> tuple[int | None, int]:
        """Where the buffer fits if nothing waited, and for how many evictions that has to wait."""
        if self._uses_waiting():
            return None, 0
        waiting = self._waiting(turn.position)
        offset = self._best_fit(turn.buffer, turn.position, waiting)
        if offset is None:
            return None, 0
        end = offset + self.program.buffers[turn.buffer].size_bytes
        there = [
            buffer
            for buffer in waiting
            if self.at[buffer].offset < end
            and offset < self.at[buffer].offset + self.at[buffer].size
        ]
        rows = [row for row, pending in enumerate(self.queue) if pending.buffer in there]
        return offset, max(rows) + 1

    def _uses_waiting(self) -> bool:
        """Whether a buffer that waits cannot leave before the step (overridden by a test)."""
        return self.uses_waiting

    def _exact_from(self) -> int:
        """Whatever loops offer before this, the engine may have more (overridden by a test)."""
        return self.frames[-1].exact_from

    def _evicts_in_part(self) -> bool:
        """Whether an eviction is under way (overridden by a test)."""
        return any(p.remaining_ticks < self._copy_ticks(p.buffer) for p in self.queue)

    def _reserve(self, wanted: int, start: int) -> None:
        """Takes so many ticks from the frame's idle time, latest first."""
        for supply in reversed(self.frames[-1].supplies):
            taken = min(wanted, supply.ticks)
            supply.ticks -= taken
            wanted -= taken
            assert taken == 0 or supply.position >= start
        assert wanted == 0

    def _best_fit(self, buffer: int, start: int, without: Collection[int] = ()) -> int | None:
        """The lowest offset of the smallest gap that is free from `start` on.

        Buffers `without` which it is looked for are taken to have left.
        """
        size = self.program.buffers[buffer].size_bytes
        taken = sorted(
            (place.offset, place.offset + place.size)
            for place in self.places
            if (place.end is None and place.buffer not in without)
            or (place.end is not None and place.end > start)
        )
        gaps: list[tuple[int, int]] = []
        free_from = 0
        for low, high in [*taken, (self.program.capacity_bytes, self.program.capacity_bytes)]:
            if low - free_from >= size:
                gaps.append((low - free_from, free_from))
            free_from = max(free_from, high)
        return min(gaps)[1] if gaps else None


# --- what is known before the game ------------------------------------------------------------


def total_of_all_slow(program: Program) -> Fraction:
    """Latency with everything in slow memory, exactly."""
    total = Fraction(0)
    for instruction in program.instructions:
        total += Fraction(instruction.repeat) * instruction.elapsed_ticks(instruction.accesses)
    return total


def repeat_of_frame(program: Program, frame: int | None) -> Fraction:
    """How often what happens once per trip of `frame` happens in the program."""
    repeat = Fraction(1)
    for loop in program.loops_around(frame):
        repeat *= Fraction(program.loops[loop].weight)
    return repeat


def weight_as_ratio(loop: Loop) -> tuple[int, int]:
    """The loop's weight, rounded down where it is not a whole number."""
    weight = float(loop.weight)
    if weight.is_integer() or weight >= FRACTION_DENOMINATOR:
        return math.floor(weight), 1
    return math.floor(weight * FRACTION_DENOMINATOR), FRACTION_DENOMINATOR


def is_produced(program: Program, turn: Turn) -> bool:
    """Whether the buffer is made in fast memory rather than copied there."""
    if turn.access is not None and not turn.access.kind.reads:
        return True
    return turn.frame is None and not has_content(program, turn.buffer, turn.position)


def has_content(program: Program, buffer: int, position: int) -> bool:
    """Whether anything may have come to be in the buffer before `position`, outside of loops."""
    writes = (
        access.kind.writes and access.buffer == buffer
        for instruction in program.instructions[:position]
        for access in instruction.accesses
    )
    return program.buffers[buffer].has_content_at_start or any(writes)


def may_be_skipped(loop: Loop) -> bool:
    return loop.is_branch or not loop.trips_known


def may_run_twice(loop: Loop) -> bool:
    return not loop.is_branch or loop.trip_count > 1 or not loop.trips_known


def next_steps(program: Program, position: int, frame: int | None) -> set[int]:
    """Steps that control may reach first from `position` inside `frame`; T is the end."""
    reached: set[int] = set()
    seen: set[tuple[int, int | None]] = set()
    waiting = [(position, frame)]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        at, inside = here
        if inside is not None and program.loops[inside].end_step == at:
            waiting.append((at, program.loops[inside].parent))
            if may_run_twice(program.loops[inside]):
                waiting.append((program.loops[inside].start_step, inside))
            continue
        child = loop_starting(program, at, inside)
        if child is None:
            reached.add(at)
            continue
        waiting.append((at, child))
        if may_be_skipped(program.loops[child]):
            waiting.append((program.loops[child].end_step, inside))
    return reached


def loop_starting(program: Program, position: int, parent: int | None) -> int | None:
    """The loop directly inside `parent` that starts at `position`, if one does."""
    for index, loop in enumerate(program.loops):
        if loop.start_step == position and loop.parent == parent:
            return index
    return None


def allowed(program: Program, buffer: int) -> bool:
    """Whether the buffer takes turns. Buffers of no bytes do not: nothing could be won."""
    return program.may_be_resident(buffer) and program.buffers[buffer].size_bytes > 0


def first_uses(program: Program, start: int, end: int) -> list[int]:
    """Allowed buffers used in steps `[start, end)`, in order of first use."""
    found: dict[int, None] = {}
    for instruction in program.instructions[start:end]:
        for access in instruction.accesses:
            if allowed(program, access.buffer):
                found.setdefault(access.buffer)
    return list(found)


def carried_candidates(program: Program, limit: int) -> list[int]:
    """Read-only parameters with the largest savings, in order of first use."""
    order = first_uses(program, 0, program.num_steps)
    savings: dict[int, float] = {}
    for buffer in order:
        accesses = program.accesses_of_buffer[buffer]
        if program.buffers[buffer].is_parameter and not any(a.kind.writes for _, a in accesses):
            savings[buffer] = math.fsum(_saving_alone(program, s, a) for s, a in accesses)
    best = sorted(savings, key=lambda b: (-savings[b], order.index(b)))[:limit]
    return [buffer for buffer in order if buffer in best]


def _saving_alone(program: Program, step: int, access: Access) -> float:
    instruction = program.instructions[step]
    others = [a for a in instruction.accesses if a is not access]
    gain = instruction.elapsed_ticks(instruction.accesses) - instruction.elapsed_ticks(others)
    return instruction.repeat * gain


def script_of(program: Program, rules: Rules) -> Iterator[Turn | Event]:
    """Everything that may happen in a game, in order (docs/game.md, "Order of turns")."""
    for buffer in carried_candidates(program, rules.carried_candidates):
        yield Turn(TurnKind.CARRIED, 0, buffer, None)
    for step in range(program.num_steps):
        yield from _leave_loops(program, step)
        yield from _enter_loops(program, step)
        frame = program.loop_of_step[step]
        for access in program.instructions[step].accesses:
            if allowed(program, access.buffer):
                yield Turn(TurnKind.ACCESS, step, access.buffer, frame, None, access)
        yield Event(EventKind.STEP_END, step)
    yield from _leave_loops(program, program.num_steps)
    yield Event(EventKind.PROGRAM_END, program.num_steps)


def _leave_loops(program: Program, position: int) -> Iterator[Turn | Event]:
    ending = [i for i, loop in enumerate(program.loops) if loop.end_step == position]
    for index in reversed(ending):  # inner loops end first
        loop = program.loops[index]
        yield Event(EventKind.TRIP_END, position, index)
        for buffer in first_uses(program, loop.start_step, loop.end_step):
            yield Turn(TurnKind.EXIT, position, buffer, loop.parent, index)


def _enter_loops(program: Program, position: int) -> Iterator[Turn | Event]:
    for index, loop in enumerate(program.loops):  # outer loops come first
        if loop.start_step != position:
            continue
        for buffer in first_uses(program, loop.start_step, loop.end_step):
            yield Turn(TurnKind.ENTRY, position, buffer, loop.parent, index)
        yield Event(EventKind.FLUSH_AT_ENTRY, position, index)


def with_rare_cases(program: Program, seed: int) -> Program:
    """The program with most slow accesses `1 + seed % 5` times as slow: some are worth a wait.

    A third of the buffers that hold something at the start hold nothing there.
    """
    factor = 1 + seed % 5
    instructions = []
    for step, instruction in enumerate(program.instructions):
        accesses = [
            replace(access, lane_ticks=tuple(factor * ticks for ticks in access.lane_ticks))
            if (step + access.buffer + seed) % 3
            else access
            for access in instruction.accesses
        ]
        instructions.append(replace(instruction, accesses=tuple(accesses)))
    buffers = [
        replace(buffer, is_undefined=True, is_parameter=False)
        if buffer.has_content_at_start and (index + seed) % 3 == 0
        else buffer
        for index, buffer in enumerate(program.buffers)
    ]
    return replace(program, instructions=tuple(instructions), buffers=tuple(buffers))


def play_out(game: ReferenceGame, choices: Sequence[int]) -> list[Fraction]:
    """Plays `choices` (any integers, taken modulo the number of legal actions); the rewards."""
    rewards = []
    index = 0
    while game.turn is not None:
        options = [Action(i) for i, legal in enumerate(game.legal()) if legal]
        rewards.append(game.play(options[choices[index % len(choices)] % len(options)]))
        index += 1
    return rewards
