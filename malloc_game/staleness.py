"""Does whoever reads a buffer read its newest content? (docs/simulator.md, rules 3 and 4.)

Per buffer three facts are followed through the program: the slow copy is current, what lies in
the present residency is the content, and there is no content yet. A fact counts only if it holds
on every path: a loop of several trips is entered from before it or from its own end, a branch
may be skipped. Within one residency and one trip every change of these facts sets, clears or
copies them, so merging paths by "and" loses nothing, and the verdict is exact for programs whose
branches are independent of each other.

A loop whose trip count is 1 has no second trip.

Order of events between two steps: evictions that are due complete, replaced copies complete,
flushes (evictions with issue == done) happen, residencies end, residencies begin and prefetches
are issued, replaced copies are issued. At the end of a trip, what is due there happens inside
the loop.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hlo_graphs.program import AccessKind, Program
from malloc_game.loop_nest import LoopNest
from malloc_game.memory_map import Eviction, ReplacedCopy, Residency, Source
from malloc_game.residency_index import ResidencyIndex
from malloc_game.violations import Rule, Violation


class WriteTimes:
    """When each buffer is written: by steps, and by the transfers of replaced copies."""

    def __init__(self, program: Program, copies: Iterable[ReplacedCopy]) -> None:
        self._program = program
        self._replaced: set[int] = set()
        self._transfers: dict[int, list[tuple[int, int]]] = {}
        for copy in copies:
            self._replaced.add(copy.step)
            for access in program.instructions[copy.step].accesses:
                if access.kind.writes:
                    windows = self._transfers.setdefault(access.buffer, [])
                    windows.append(copy.window)
        self._steps: dict[int, list[int]] = {}

    def steps(self, buffer: int) -> list[int]:
        """The steps, replaced ones left out, that write `buffer`, in order."""
        if buffer not in self._steps:
            self._steps[buffer] = [
                step
                for step, access in self._program.accesses_of_buffer[buffer]
                if access.kind.writes and step not in self._replaced
            ]
        return self._steps[buffer]

    def first_in(self, buffer: int, start: int, end: int) -> int | None:
        """The first step of `[start, end)` at which `buffer` is written, if any."""
        if start >= end:
            return None
        steps = self.steps(buffer)
        at = bisect_left(steps, start)
        found = [steps[at]] if at < len(steps) and steps[at] < end else []
        for low, high in self._transfers.get(buffer, ()):
            if low < end and start < high:
                found.append(max(low, start))
        return min(found, default=None)


def starts_without_content(program: Program, residency: Residency, writes: WriteTimes) -> bool:
    """Whether a produced residency begins, once, before anything was ever written to its buffer.

    What it holds then means nothing, but so does everything else of the buffer.
    """
    if residency.source is not Source.PRODUCED or residency.loop is not None or residency.parts:
        return False
    if program.buffers[residency.buffer].has_content_at_start:
        return False
    return writes.first_in(residency.buffer, 0, residency.start) is None


class _Kind(enum.IntEnum):
    """What happens; the values order what happens between the same two steps."""

    ENTER_LOOP = 0
    EVICTED = 1
    TRANSFER_ENDS = 2
    FLUSHED = 3
    PLACED = 4
    TRANSFER_BEGINS = 5
    ACCESS = 6
    LEAVE_LOOP = 7


@dataclass(frozen=True, slots=True)
class _Event:
    """One event of one buffer; which of the later fields count depends on the kind."""

    order: tuple[int, ...]
    kind: _Kind
    step: int
    fast: bool = False
    access: AccessKind = AccessKind.READ
    source: Source | None = None
    writes_inside: bool = False
    loop: int = -1


_AT_TRIP_END, _BETWEEN, _DURING = range(3)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What holds on every path.

    Attributes:
      slow_current: the newest content is in slow memory.
      fast_current: it is in the residency.
      is_empty: there is no content yet, so every place has "the newest".
    """

    slow_current: bool
    fast_current: bool
    is_empty: bool

    def __and__(self, other: _Facts) -> _Facts:
        return _Facts(
            self.slow_current and other.slow_current,
            self.fast_current and other.fast_current,
            self.is_empty and other.is_empty,
        )


def check_contents(
    program: Program,
    nest: LoopNest,
    index: ResidencyIndex,
    evictions: Sequence[Eviction],
    replaced: Sequence[ReplacedCopy],
) -> Iterable[Violation]:
    """Violations of rules 3 and 4, loops and branches included, of well-formed parts of a map.

    Only buffers with residencies or replaced copies can go wrong: the others are always slow.
    """
    evictions_of: dict[int, list[Eviction]] = {}
    for eviction in evictions:
        evictions_of.setdefault(eviction.buffer, []).append(eviction)
    copies_of: dict[int, list[ReplacedCopy]] = {}
    for copy in replaced:
        for access in program.instructions[copy.step].accesses:
            copies_of.setdefault(access.buffer, []).append(copy)
    writes = WriteTimes(program, replaced)
    for buffer in sorted({*index.buffers, *copies_of}):
        checker = _BufferChecker(program, nest, index, writes, buffer)
        yield from checker.check(evictions_of.get(buffer, ()), copies_of.get(buffer, ()))


class _BufferChecker:
    """Lists the events of one buffer and follows the facts through them."""

    def __init__(
        self,
        program: Program,
        nest: LoopNest,
        index: ResidencyIndex,
        writes: WriteTimes,
        buffer: int,
    ) -> None:
        self._program = program
        self._nest = nest
        self._index = index
        self._writes = writes
        self._buffer = buffer
        self._events: list[_Event] = []
        self._loops: set[int] = set()
        self._leave: dict[int, int] = {}
        self._found: dict[tuple[Rule, int], str] = {}

    def check(
        self, evictions: Sequence[Eviction], copies: Sequence[ReplacedCopy]
    ) -> list[Violation]:
        """All violations of this buffer."""
        self._add_accesses({copy.step for copy in copies})
        for residency in self._index.of_buffer(self._buffer):
            self._add_between(residency.start, residency.loop, _Kind.PLACED, residency.source)
            for start, _ in residency.holes:  # what follows finds nothing there until it writes
                scope = self._program.loop_of_step[start]
                self._add_between(start, scope, _Kind.PLACED, Source.PRODUCED)
        for copy in copies:
            self._add_transfer(copy)
        self._add_evictions(evictions)
        self._add_loops()
        self._events.sort(key=lambda event: event.order)
        self._leave = {
            event.loop: at
            for at, event in enumerate(self._events)
            if event.kind == _Kind.LEAVE_LOOP
        }
        is_empty = not self._program.buffers[self._buffer].has_content_at_start
        end = self._follow(0, len(self._events), _Facts(True, False, is_empty))
        if self._program.buffers[self._buffer].live_out and not end.slow_current:
            self._report(
                Rule.LIVE_OUT, self._program.num_steps, "is not current in slow memory at the end"
            )
        return [
            Violation(rule, message, (self._buffer,), (step,))
            for (rule, step), message in self._found.items()
        ]

    def _order(self, step: int, scope: int | None, kind: _Kind) -> tuple[int, ...]:
        """Sort key of what happens just before `step` on each trip of `scope`."""
        depth = self._nest.depth(scope)
        if scope is not None and self._program.loops[scope].end_step == step:
            return (step, _AT_TRIP_END, -depth, kind)
        return (step, _BETWEEN, depth, kind)

    def _add_between(
        self,
        step: int,
        scope: int | None,
        kind: _Kind,
        source: Source | None = None,
        *,
        fast: bool = False,
        access: AccessKind = AccessKind.READ,
        writes_inside: bool = False,
    ) -> None:
        self._loops |= self._nest.around(scope)
        order = self._order(step, scope, kind)
        self._events.append(_Event(order, kind, step, fast, access, source, writes_inside))

    def _add_accesses(self, replaced_steps: set[int]) -> None:
        for step, access in self._program.accesses_of_buffer[self._buffer]:
            if step in replaced_steps:
                continue
            fast = self._index.ready_at(self._buffer, step) is not None
            self._loops |= self._nest.around(self._program.loop_of_step[step])
            self._events.append(
                _Event((step, _DURING, 0, 0), _Kind.ACCESS, step, fast, access.kind)
            )

    def _add_transfer(self, copy: ReplacedCopy) -> None:
        """A replaced copy reads and writes from begin to end.

        An eviction of dead content may spoil in the meantime what was current as it began.
        """
        scope = self._program.loop_of_step[copy.step]
        start, end = copy.window
        residency = self._index.ready_at(self._buffer, start)
        fast = residency is not None and end <= residency.end
        instruction = self._program.instructions[copy.step]
        kind = next(a.kind for a in instruction.accesses if a.buffer == self._buffer)
        self._add_between(start, scope, _Kind.TRANSFER_BEGINS, fast=fast, access=kind)
        self._add_between(end, scope, _Kind.TRANSFER_ENDS, fast=fast, access=kind)

    def _add_evictions(self, evictions: Sequence[Eviction]) -> None:
        for eviction in evictions:
            residency = self._index.evicted(eviction)
            if residency is None:
                continue
            issue, done = eviction.issue, eviction.done
            spoiled = self._writes.first_in(self._buffer, issue, done) is not None
            kind = _Kind.FLUSHED if issue == done else _Kind.EVICTED
            self._add_between(done, residency.loop, kind, writes_inside=spoiled)

    def _add_loops(self) -> None:
        for index in self._loops:
            loop = self._program.loops[index]
            depth = self._nest.depth(index)
            enter = (loop.start_step, _BETWEEN, depth, _Kind.ENTER_LOOP)
            leave = (loop.end_step, _AT_TRIP_END, -depth, _Kind.LEAVE_LOOP)
            self._events.append(_Event(enter, _Kind.ENTER_LOOP, loop.start_step, loop=index))
            self._events.append(_Event(leave, _Kind.LEAVE_LOOP, loop.end_step, loop=index))

    def _follow(self, at: int, stop: int, facts: _Facts) -> _Facts:
        """The facts after events `[at, stop)`, violations noted on the way."""
        while at < stop:
            event = self._events[at]
            if event.kind == _Kind.ENTER_LOOP:
                leave = self._leave[event.loop]
                facts = self._follow_loop(at + 1, leave, event.loop, facts)
                at = leave
            else:
                facts = self._effect(event, facts)
            at += 1
        return facts

    def _follow_loop(self, at: int, stop: int, loop: int, before: _Facts) -> _Facts:
        """Repeats until entering from the loop's own end brings nothing new."""
        entry = before
        after = self._follow(at, stop, entry)
        if self._program.loops[loop].may_repeat:
            while (merged := entry & after) != entry:
                entry = merged
                after = self._follow(at, stop, entry)
        return after & before if self._program.loops[loop].may_skip else after

    def _effect(self, event: _Event, facts: _Facts) -> _Facts:
        match event.kind:
            case _Kind.ACCESS | _Kind.TRANSFER_BEGINS:
                return self._accessed(event, facts)
            case _Kind.TRANSFER_ENDS:
                return self._transferred(event, facts)
            case _Kind.PLACED:
                return self._placed(event, facts)
            case _:
                slow_current = facts.slow_current if event.writes_inside else facts.fast_current
                return replace(facts, slow_current=slow_current)

    def _accessed(self, event: _Event, facts: _Facts) -> _Facts:
        if event.access.reads:
            if event.fast and not facts.fast_current:
                self._report(Rule.CONTENT, event.step, "is read in fast memory before it is there")
            if not event.fast and not facts.slow_current:
                self._report(
                    Rule.CONTENT, event.step, "is read from slow memory while its copy is stale"
                )
        return _written(event.fast, facts) if event.access.writes else facts

    def _transferred(self, event: _Event, facts: _Facts) -> _Facts:
        if event.access.writes:
            return _written(event.fast, facts)
        if not event.fast and not facts.slow_current:
            self._report(
                Rule.CONTENT, event.step, "is overwritten in slow memory while it is copied"
            )
        return facts

    def _placed(self, event: _Event, facts: _Facts) -> _Facts:
        if event.source is Source.COPIED and not facts.slow_current:
            self._report(
                Rule.CONTENT, event.step, "is prefetched while its copy in slow memory is stale"
            )
        is_filled = event.source is not Source.PRODUCED or facts.is_empty
        return replace(facts, fast_current=is_filled)

    def _report(self, rule: Rule, step: int, what: str) -> None:
        name = self._program.buffers[self._buffer].name
        self._found.setdefault((rule, step), f"step {step}: {name} {what}")


def _written(fast: bool, facts: _Facts) -> _Facts:
    return _Facts(False, True, False) if fast else _Facts(True, facts.fast_current, False)
