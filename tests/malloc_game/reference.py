"""Slow, obvious witnesses of the validator and the simulator, for small programs.

Nothing here is shared with what it checks but the types. The validator's witness runs the
program: every loop of several trips twice, every branch taken and skipped in all combinations,
with a version number for each content, so that a stale read is seen as what it is. The
simulator's witness runs every trip and hands out the idle time tick by tick.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hlo_graphs.program import BEFORE_PROGRAM, AccessKind, Program
from malloc_game.memory_map import Eviction, MemoryMap, ReplacedCopy, Residency, Source

MAX_RUNS = 128
"""Most combinations of branches that are tried."""


class TooManyRunsError(Exception):
    """The program has too many branches for this witness."""


class InvalidError(Exception):
    """The map is not valid, and why."""


def reference_verdict(program: Program, memory_map: MemoryMap, max_carried: int = 1) -> str | None:
    """None for a valid map, else what is wrong with it.

    Raises:
      TooManyRunsError: for programs with many branches in loops.
    """
    try:
        for residency in memory_map.residencies:
            _residency_is_well_formed(program, residency, memory_map)
        for eviction in memory_map.evictions:
            _eviction_is_well_formed(program, eviction, memory_map)
        _carried_are_allowed(program, memory_map, max_carried)
        _replaced_copies_keep_their_meaning(program, memory_map)
        for number, choices in enumerate(_all_choices(program)):
            if number >= MAX_RUNS:
                raise TooManyRunsError
            _Run(program, memory_map, choices).play()
    except InvalidError as error:
        return str(error)
    return None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidError(message)


def _range_fits_loops(program: Program, start: int, end: int, scope: int | None) -> bool:
    """Rule 5 for the steps [start, end), loop by loop, as sets of steps."""
    steps = set(range(start, end))
    around = set(program.loops_around(scope))
    for index, loop in enumerate(program.loops):
        inside = set(range(loop.start_step, loop.end_step))
        if index in around:
            if not (steps <= inside and loop.start_step <= start <= end <= loop.end_step):
                return False
        elif steps:
            if (steps & inside) and not inside <= steps:
                return False
        elif loop.start_step < start < loop.end_step:
            return False
    return True


def _residency_is_well_formed(program: Program, r: Residency, memory_map: MemoryMap) -> None:
    _require(0 <= r.buffer < len(program.buffers), "buffer")
    _require(r.loop is None or 0 <= r.loop < len(program.loops), "loop")
    _require(0 <= r.start < r.end <= program.num_steps + 1, "range")
    buffer = program.buffers[r.buffer]
    capacity = program.machine.capacity_bytes
    _require(buffer.fast_allowed and buffer.size_bytes <= capacity, "rule 7")
    _require(0 <= r.offset_bytes <= capacity - buffer.size_bytes, "rule 1: range")
    _require(r.offset_bytes % program.machine.alignment_bytes == 0, "rule 1: alignment")
    _require(_range_fits_loops(program, r.start, r.end, r.loop), "rule 5: residency")
    if r.source is Source.COPIED:
        _require(r.start <= r.ready < r.end, "ready")
        for start in [part.start for part in r.parts] or [r.start]:
            _require(_range_fits_loops(program, start, r.ready, r.loop), "rule 5: prefetch")
    else:
        _require(r.ready == r.start, "ready of what is not copied")
    if r.parts:
        _parts_tile(buffer.size_bytes, r)
        for part in r.parts:
            _require(_range_fits_loops(program, part.start, r.end, r.loop), "rule 5: slice")
    _holes_are_dead(program, r, memory_map)
    if r.source is Source.PRODUCED:
        writers = {
            step
            for step, access in program.accesses_of_buffer[r.buffer]
            if access.kind is AccessKind.WRITE
        }
        replaced = {c.step: c for c in memory_map.replaced_copies}
        by_step = r.start in writers - set(replaced) and not r.parts
        by_copy = any(
            replaced[step].issue == r.start
            and all(part.start <= replaced[step].done for part in r.parts)
            for step in writers & set(replaced)
        )
        early = _is_before_all_content(program, r, replaced)
        _require(by_step or by_copy or early, "not produced")


def _is_before_all_content(
    program: Program, r: Residency, replaced: dict[int, ReplacedCopy]
) -> bool:
    """Whether, once, the buffer is given its place before it ever held anything."""
    buffer = program.buffers[r.buffer]
    writers = [step for step, a in program.accesses_of_buffer[r.buffer] if a.kind.writes]
    begins = [replaced[step].issue if step in replaced else step for step in writers]
    empty = buffer.is_undefined or buffer.origin != BEFORE_PROGRAM
    return empty and r.loop is None and not r.parts and all(step >= r.start for step in begins)


def _holes_are_dead(program: Program, r: Residency, memory_map: MemoryMap) -> None:
    """Nobody touches the buffer in the holes of its residency, and each lies in one trip."""
    after = max([r.ready, *(part.start for part in r.parts)])
    accessed = {step for step, _ in program.accesses_of_buffer[r.buffer]}
    copied: list[tuple[int, int]] = [
        copy.window
        for copy in memory_map.replaced_copies
        if 0 <= copy.step < program.num_steps
        and any(a.buffer == r.buffer for a in program.instructions[copy.step].accesses)
    ]
    for start, end in r.holes:
        _require(after <= start < end <= r.end, "hole outside")
        _require(program.loop_of_step[start] == program.loop_of_step[end - 1], "hole in loops")
        _require(not accessed & set(range(start, end)), "access in a hole")
        for issue, done in copied:
            _require(done <= start or end <= issue, "replaced copy in a hole")
        for e in memory_map.evictions:
            apart = e.done <= start or end <= e.issue
            _require(apart or e.buffer != r.buffer or _origin(e, memory_map) != r, "evicted hole")
        after = end


def _parts_tile(size_bytes: int, r: Residency) -> None:
    covered = sorted(
        byte
        for part in r.parts
        for byte in range(part.offset_bytes, part.offset_bytes + part.size_bytes)
    )
    _require(covered == list(range(size_bytes)), "parts do not tile")
    _require(all(part.size_bytes > 0 for part in r.parts), "empty part")
    starts = [part.start for part in r.parts]
    last = r.ready if r.source is Source.COPIED else r.end - 1
    _require(r.source is not Source.CARRIED, "parts of what is carried")
    _require(min(starts) == r.start and max(starts) <= last, "parts' starts")


def _origin(eviction: Eviction, memory_map: MemoryMap) -> Residency | None:
    """The residency that an eviction copies out of: the latest that fits."""
    issue, done = eviction.issue, eviction.done
    fitting = [
        r
        for r in memory_map.residencies
        if r.buffer == eviction.buffer
        and r.ready <= issue
        and done <= r.end
        and (r.start < issue if issue == done else issue < r.end)
    ]
    return max(fitting, key=lambda r: r.start, default=None)


def _eviction_is_well_formed(program: Program, e: Eviction, memory_map: MemoryMap) -> None:
    _require(0 <= e.issue <= e.done <= program.num_steps, "range of an eviction")
    origin = _origin(e, memory_map)
    _require(origin is not None, "eviction of nothing")
    assert origin is not None
    _require(_range_fits_loops(program, e.issue, e.done, origin.loop), "rule 5: eviction")


def _carried_are_allowed(program: Program, memory_map: MemoryMap, max_carried: int) -> None:
    carried = [r for r in memory_map.residencies if r.source is Source.CARRIED]
    _require(len(carried) <= max_carried, "rule 6: too many")
    for r in carried:
        kinds = {access.kind for _, access in program.accesses_of_buffer[r.buffer]}
        _require(program.buffers[r.buffer].is_parameter, "rule 6: parameter")
        _require(kinds <= {AccessKind.READ}, "rule 6: written")
        _require(r.start == 0 and r.loop is None, "rule 6: start")
        at_end = [
            other
            for other in memory_map.residencies
            if other.buffer == r.buffer
            and other.ready <= program.num_steps < other.end
            and other.offset_bytes == r.offset_bytes
            and not other.holes
        ]
        _require(bool(at_end), "rule 6: end")


def _hull(copy: ReplacedCopy) -> set[int]:
    low = min(copy.issue, copy.step)
    return set(range(low, max(copy.done, copy.issue + 1, copy.step + 1)))


def _replaced_copies_keep_their_meaning(program: Program, memory_map: MemoryMap) -> None:
    copies = memory_map.replaced_copies
    steps = [copy.step for copy in copies]
    _require(len(set(steps)) == len(steps), "replaced twice")
    for copy in copies:
        _require(0 <= copy.step < program.num_steps, "no step")
        instruction = program.instructions[copy.step]
        kinds = {access.kind for access in instruction.accesses}
        _require(instruction.async_copy and AccessKind.UPDATE not in kinds, "not a copy")
        _require(AccessKind.WRITE in kinds, "writes nothing")
        _require(0 <= copy.issue <= copy.done <= program.num_steps, "range of a copy")
        _require(copy.issue < program.num_steps, "range of a copy")
        loop = program.loop_of_step[copy.step]
        hull = sorted(_hull(copy))
        _require(_range_fits_loops(program, hull[0], hull[-1] + 1, loop), "rule 5: hull")
        _require(_range_fits_loops(program, *copy.window, loop), "rule 5: copy")
    when = {step: {step} for step in range(program.num_steps)}
    when |= {copy.step: _hull(copy) for copy in copies}
    for copy in copies:
        for access in program.instructions[copy.step].accesses:
            for step, other in program.accesses_of_buffer[access.buffer]:
                harmless = access.kind is AccessKind.READ and other.kind is AccessKind.READ
                apart = not when[step] & when[copy.step]
                _require(step == copy.step or harmless or apart, "copy disturbed")
            if access.kind is AccessKind.WRITE:
                _result_stays(copy, access.buffer, memory_map)


def _result_stays(copy: ReplacedCopy, buffer: int, memory_map: MemoryMap) -> None:
    window = set(range(copy.issue, max(copy.done, copy.issue + 1)))
    mine = [r for r in memory_map.residencies if r.buffer == buffer]
    touching = [r for r in mine if window & set(range(r.start, r.end))]
    whole = [r for r in mine if window <= set(range(r.ready, r.end))]
    _require(not touching or bool(whole), "result moves")


Choices = Callable[[int], bool]


def _all_choices(program: Program) -> Iterator[Choices]:
    """Every way to take and skip branches, as functions of the n-th time a branch is reached."""
    prefixes: list[tuple[bool, ...]] = [()]
    while prefixes:
        prefix = prefixes.pop()
        asked: list[bool] = []

        def choose(
            _loop: int, prefix: tuple[bool, ...] = prefix, asked: list[bool] = asked
        ) -> bool:
            at = len(asked)
            asked.append(prefix[at] if at < len(prefix) else True)
            return asked[-1]

        yield choose
        prefixes += [(*asked[:at], False) for at in range(len(prefix), len(asked))]


_NEVER_WRITTEN = -1
"""The version of a place that nothing was put into yet."""


@dataclass
class _Run:
    """One run of the program: at most two trips per loop, branches as `choose` says.

    It also says after how many trips a loop of unknown trips ends.
    """

    program: Program
    memory_map: MemoryMap
    choose: Choices
    newest: dict[int, int] = field(default_factory=dict)
    slow: dict[int, int] = field(default_factory=dict)
    fast: dict[int, int] = field(default_factory=dict)
    moving: list[ReplacedCopy] = field(default_factory=list)
    evicting: dict[int, bool] = field(default_factory=dict)
    counter: int = 0

    def play(self) -> None:
        for index, buffer in enumerate(self.program.buffers):
            empty = buffer.is_undefined or buffer.origin != BEFORE_PROGRAM
            self.newest[index] = self.slow[index] = _NEVER_WRITTEN if empty else 0
        self._trip(None, 0, self.program.num_steps)
        for index, leaving in enumerate(self.program.buffers):
            if leaving.live_out:
                _require(self.slow[index] == self.newest[index], "rule 4")

    def _trip(self, scope: int | None, low: int, high: int) -> None:
        step = low
        while step < high:
            self._ends(step, scope)
            self._begins(step, scope)
            child = self._child_at(step, scope)
            if child is None:
                self._execute(step)
                step += 1
            else:
                loop = self.program.loops[child]
                for trip in range(min(2, loop.trip_count) if loop.trips_known else 2):
                    by_chance = trip == 0 and loop.probability < 1
                    if (by_chance or not loop.trips_known) and not self.choose(child):
                        break
                    self._trip(child, loop.start_step, loop.end_step)
                step = loop.end_step
        self._ends(high, scope)
        if scope is None:
            self._begins(high, scope)
            self._bytes_are_apart(high)

    def _child_at(self, step: int, scope: int | None) -> int | None:
        for index, loop in enumerate(self.program.loops):
            if loop.start_step == step and loop.parent == scope:
                return index
        return None

    def _ends(self, step: int, scope: int | None) -> None:
        evictions = [
            (number, eviction, _origin(eviction, self.memory_map))
            for number, eviction in enumerate(self.memory_map.evictions)
        ]
        for number, eviction, origin in evictions:
            assert origin is not None
            is_due = eviction.issue < eviction.done == step and origin.loop == scope
            if is_due and not self.evicting.pop(number):
                self.slow[eviction.buffer] = self._content(origin)
        for copy in self.memory_map.replaced_copies:
            end = max(copy.done, copy.issue + 1)
            if end == step and self.program.loop_of_step[copy.step] == scope:
                self.moving.remove(copy)
                for access in self.program.instructions[copy.step].accesses:
                    if access.kind is AccessKind.READ:  # What it read last must be right, too.
                        self._read(access.buffer, range(*copy.window))
                self._transfer(copy)
        for _, eviction, origin in evictions:
            assert origin is not None
            if eviction.done == eviction.issue == step and origin.loop == scope:
                self.slow[eviction.buffer] = self._content(origin)
        for number, residency in enumerate(self.memory_map.residencies):
            if residency.end == step and residency.loop == scope:
                del self.fast[number]

    def _begins(self, step: int, scope: int | None) -> None:
        for number, residency in enumerate(self.memory_map.residencies):
            if residency.start == step and residency.loop == scope:
                self._place(number, residency)
            if (step, scope) in [(s, self.program.loop_of_step[s]) for s, _ in residency.holes]:
                self.fast[number] = _NEVER_WRITTEN
        for copy in self.memory_map.replaced_copies:
            if copy.issue == step and self.program.loop_of_step[copy.step] == scope:
                for access in self.program.instructions[copy.step].accesses:
                    if access.kind is AccessKind.READ:
                        self._read(access.buffer, range(*copy.window))
                self.moving.append(copy)
                self._transfer(copy)
        for number, eviction in enumerate(self.memory_map.evictions):
            origin = _origin(eviction, self.memory_map)
            assert origin is not None
            if eviction.issue == step < eviction.done and origin.loop == scope:
                self.evicting[number] = self._is_moving(eviction.buffer)

    def _is_moving(self, buffer: int) -> bool:
        return any(
            access.buffer == buffer and access.kind.writes
            for copy in self.moving
            for access in self.program.instructions[copy.step].accesses
        )

    def _place(self, number: int, residency: Residency) -> None:
        buffer = residency.buffer
        for other in self.fast:
            _require(self.memory_map.residencies[other].buffer != buffer, "rule 2: twice there")
        if residency.source is Source.COPIED:
            _require(self.slow[buffer] == self.newest[buffer], "rule 3: stale prefetch")
            torn = residency.start < residency.ready and self._is_moving(buffer)
            _require(not torn, "rule 3: prefetch of what is being written")
        produced = residency.source is Source.PRODUCED
        self.fast[number] = _NEVER_WRITTEN if produced else self.slow[buffer]

    def _content(self, residency: Residency) -> int:
        return self.fast[self.memory_map.residencies.index(residency)]

    def _residency_at(self, buffer: int, steps: range) -> int | None:
        """The residency present that serves `buffer` during all of `steps`."""
        for number in self.fast:
            residency = self.memory_map.residencies[number]
            serves = residency.ready <= steps.start and steps.stop <= residency.end
            if residency.buffer == buffer and serves:
                return number
        return None

    def _read(self, buffer: int, steps: range) -> None:
        number = self._residency_at(buffer, steps)
        seen = self.slow[buffer] if number is None else self.fast[number]
        _require(seen == self.newest[buffer], f"rule 3: stale read of {buffer} at {steps.start}")

    def _write(self, buffer: int, steps: range) -> None:
        for number in self.fast:
            residency = self.memory_map.residencies[number]
            waiting = residency.buffer == buffer and steps.start < residency.ready
            _require(not waiting, "rule 3: written while prefetched")
        self.counter += 1
        self.newest[buffer] = self.counter
        number = self._residency_at(buffer, steps)
        if number is None:
            self.slow[buffer] = self.counter
        else:
            self.fast[number] = self.counter
        for eviction in self.evicting:
            if self.memory_map.evictions[eviction].buffer == buffer:
                self.evicting[eviction] = True

    def _transfer(self, copy: ReplacedCopy) -> None:
        for access in self.program.instructions[copy.step].accesses:
            if access.kind is AccessKind.WRITE:
                self._write(access.buffer, range(*copy.window))

    def _execute(self, step: int) -> None:
        self._bytes_are_apart(step)
        if step in {copy.step for copy in self.memory_map.replaced_copies}:
            return
        for access in self.program.instructions[step].accesses:
            if access.kind.reads:
                self._read(access.buffer, range(step, step + 1))
            if access.kind.writes:
                self._write(access.buffer, range(step, step + 1))

    def _bytes_are_apart(self, step: int) -> None:
        held = []
        for number in self.fast:
            residency = self.memory_map.residencies[number]
            low = residency.offset_bytes
            if any(start <= step < end for start, end in residency.holes):
                continue
            if not residency.parts:
                held.append((low, low + self.program.buffers[residency.buffer].size_bytes))
            for part in residency.parts:
                if part.start <= step:
                    start = low + part.offset_bytes
                    held.append((start, start + part.size_bytes))
        for first, second in itertools.combinations(held, 2):
            shared = max(first[0], second[0]) < min(first[1], second[1])
            _require(not shared, f"rule 2: bytes shared at {step}")


@dataclass
class _Instance:
    """One execution of a copy in the unrolled program; positions count executed steps."""

    static: int
    issue: int
    deadline: int
    remaining: int


@dataclass(frozen=True)
class ReferenceTimes:
    """What the unrolled program takes, in ticks, over all trips."""

    latency_ticks: int
    stall_before_ticks: tuple[int, ...]


def reference_simulation(program: Program, memory_map: MemoryMap) -> ReferenceTimes:
    """Runs every trip of every loop; each idle tick serves the most urgent copy. No branches."""
    copies = list(_static_copies(program, memory_map))
    order: list[int] = []
    instances: list[_Instance] = []
    open_copies: dict[int, _Instance] = {}

    def between(step: int, scope: int | None, *, begins: bool) -> None:
        for static, (issue, deadline, _, loop) in enumerate(copies):
            if deadline == step and issue < step and loop == scope:
                open_copies.pop(static).deadline = len(order)
        for static, (issue, deadline, ticks, loop) in enumerate(copies):
            at_once = issue == deadline == step
            if loop == scope and (at_once or (begins and issue == step)):
                instances.append(_Instance(static, len(order), len(order), ticks))
                if not at_once:
                    open_copies[static] = instances[-1]

    def trip(scope: int | None, low: int, high: int) -> None:
        step = low
        while step < high:
            between(step, scope, begins=True)
            child = next(
                (
                    x
                    for x, loop in enumerate(program.loops)
                    if loop.parent == scope and loop.start_step == step
                ),
                None,
            )
            if child is None:
                order.append(step)
                step += 1
            else:
                loop = program.loops[child]
                for _ in range(loop.trip_count):
                    trip(child, loop.start_step, loop.end_step)
                step = loop.end_step
        between(high, scope, begins=scope is None)

    trip(None, 0, program.num_steps)
    return _serve_tick_by_tick(program, memory_map, order, instances, copies)


def _serve_tick_by_tick(
    program: Program,
    memory_map: MemoryMap,
    order: list[int],
    instances: list[_Instance],
    copies: list[tuple[int, int, int, int | None]],
) -> ReferenceTimes:
    total = 0
    stalls = [0] * (program.num_steps + 1)
    for position in range(len(order) + 1):
        for instance in instances:
            if instance.deadline == position and instance.remaining:
                stalls[copies[instance.static][1]] += instance.remaining
                total += instance.remaining
                instance.remaining = 0
        if position == len(order):
            break
        elapsed, idle = _step_times(program, memory_map, order[position])
        total += elapsed
        waiting = [i for i in instances if i.issue <= position < i.deadline and i.remaining]
        for _ in range(idle):
            urgent = min(
                (i for i in waiting if i.remaining),
                key=lambda i: (i.deadline, i.issue, i.static),
                default=None,
            )
            if urgent is None:
                break
            urgent.remaining -= 1
    return ReferenceTimes(total, tuple(stalls))


def _step_times(program: Program, memory_map: MemoryMap, step: int) -> tuple[int, int]:
    if step in {copy.step for copy in memory_map.replaced_copies}:
        return 0, 0
    instruction = program.instructions[step]
    slow = [
        access
        for access in instruction.accesses
        if not any(
            r.buffer == access.buffer and r.ready <= step < r.end for r in memory_map.residencies
        )
    ]
    elapsed = instruction.elapsed_ticks(slow)
    return elapsed, elapsed - sum(access.bus_ticks for access in slow)


def _static_copies(
    program: Program, memory_map: MemoryMap
) -> Iterator[tuple[int, int, int, int | None]]:
    """(issue, deadline, ticks, loop) of each copy."""
    for r in memory_map.residencies:
        if r.source is Source.COPIED:
            size = program.buffers[r.buffer].size_bytes
            for part_size, start in [(p.size_bytes, p.start) for p in r.parts] or [(size, r.start)]:
                yield start, r.ready, program.copy_ticks(part_size), r.loop
    for e in memory_map.evictions:
        origin = _origin(e, memory_map)
        assert origin is not None
        ticks = program.copy_ticks(program.buffers[e.buffer].size_bytes)
        yield e.issue, e.done, ticks, origin.loop
    for copy in memory_map.replaced_copies:
        reads = [a.buffer for a in program.instructions[copy.step].accesses if not a.kind.writes]
        from_slow = sum(not _is_fast_throughout(memory_map, buffer, copy) for buffer in reads)
        for buffer, size, start in _filled_slices(program, copy, memory_map):
            loop = program.loop_of_step[copy.step]
            times = from_slow + (not _is_fast_throughout(memory_map, buffer, copy))
            yield start, copy.done, program.copy_ticks(size * times if times else size), loop


def _is_fast_throughout(memory_map: MemoryMap, buffer: int, copy: ReplacedCopy) -> bool:
    low, high = copy.window
    return any(
        r.buffer == buffer and r.ready <= low and high <= r.end for r in memory_map.residencies
    )


def _filled_slices(
    program: Program, copy: ReplacedCopy, memory_map: MemoryMap
) -> Iterator[tuple[int, int, int]]:
    """(buffer, bytes, issue) of the transfers of a replaced copy."""
    for access in program.instructions[copy.step].accesses:
        if access.kind.writes:
            begun = (access.buffer, copy.issue, Source.PRODUCED)
            slices = [
                (part.size_bytes, part.start)
                for r in memory_map.residencies
                if (r.buffer, r.start, r.source) == begun
                for part in r.parts
            ]
            whole = (program.buffers[access.buffer].size_bytes, copy.issue)
            yield from ((access.buffer, *part) for part in slices or [whole])


def reference_fifo_latency(program: Program, memory_map: MemoryMap, slices: int) -> float:
    """Latency under OpenXLA's two queues, a `slices`-th of a tick at a time; no loops.

    In each slice of time the head of the only waiting queue moves on by a slice, or both heads
    by half of one. So it errs by less than a slice per copy.
    """
    queues: dict[bool, list[list[float]]] = {False: [], True: []}
    copies = list(_static_copies(program, memory_map))
    first_eviction = len(copies) - sum(
        1 for copy in memory_map.replaced_copies for _ in _filled_slices(program, copy, memory_map)
    )
    first_eviction -= len(memory_map.evictions)
    evictions = range(first_eviction, first_eviction + len(memory_map.evictions))
    waiting: dict[int, list[float]] = {}

    def pass_a_slice() -> None:
        heads = [queue[0] for queue in queues.values() if queue]
        for head in heads:
            head[0] -= 1 / slices / len(heads)
        for queue in queues.values():
            if queue and queue[0][0] <= 1e-9:
                queue.pop(0)

    def finish(number: int) -> float:
        stalled = 0
        mine = waiting[number]
        while any(entry is mine for queue in queues.values() for entry in queue):
            pass_a_slice()
            stalled += 1
        return stalled / slices

    latency = 0.0
    for step in range(program.num_steps + 1):
        for number, (issue, deadline, _, _) in enumerate(copies):
            if deadline == step and issue < step:
                latency += finish(number)
        for hidden in (False, True):
            for number, (issue, deadline, ticks, _) in enumerate(copies):
                if issue == step and (issue < deadline) == hidden:
                    waiting[number] = [float(ticks)]
                    queues[number in evictions].append(waiting[number])
                    latency += 0.0 if hidden else finish(number)
        if step < program.num_steps:
            elapsed, idle = _step_times(program, memory_map, step)
            latency += elapsed
            for _ in range(idle * slices):
                pass_a_slice()
    return latency
