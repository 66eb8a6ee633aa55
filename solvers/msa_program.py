"""A `Program` as memory-space assignment sees it, and its answer as a memory map.

Steps are the logical times. Every write of a buffer begins a new value, which shares its place
with the one before if the write is an update (XLA: an in-place pair). A loop that accesses a
buffer is one use of it: fast memory that serves it is held for the whole loop (docs/simulator.md,
rule 5); if it is served from slow memory, the values inside the loop are placed for themselves,
once per trip. Where XLA's decisions depend on what a Program does not say (operand roles of a
weight), the largest read-only parameters stand in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from hlo_graphs.errors import InputError
from hlo_graphs.program import Access, AccessKind, Program
from hlo_graphs.shape_text import parse_shape
from hlo_graphs.shapes import elements_in
from malloc_game.memory_map import Eviction, MemoryMap, Residency, Source
from solvers.msa_algorithm import MsaResult, Placed
from solvers.msa_attempt import Allocation
from solvers.msa_options import MsaOptions
from solvers.msa_problem import MsaBuffer, MsaProblem, MsaUse, MsaValue
from solvers.msa_step_costs import StepCost
from solvers.timeline import Item, Lane, is_undefined_before, lanes_of

ACTIVATION_OPCODES = frozenset(
    {"copy", "dynamic-slice", "dynamic-update-slice", "gather", "reduce"}
)
"""Opcodes of which most operands are activations, no weights; a Program does not tell operands
apart as `LooksLikeAnActivation` in `algorithm.cc` does."""

PROGRAM_SCOPE = -1
"""`MsaValue.scope` of what is outside all loops."""


@dataclass(slots=True)
class _Draft:
    """A value while its uses are collected."""

    lane: Lane
    name: str
    time: int
    value: int
    required_default: bool
    size_bytes: int = 0
    covered_by: tuple[tuple[int, int], ...] = ()
    uses: list[MsaUse] = field(default_factory=list)


def problem_of(program: Program, options: MsaOptions) -> MsaProblem:
    """The problem whose times are the program's steps."""
    costs = [StepCost.of(instruction, options) for instruction in program.instructions]
    elapsed = tuple(cost.elapsed_ticks for cost in costs)
    depth = tuple(_depth(program, loop) for loop in program.loop_of_step[:-1])
    trips = tuple(_depth(program, loop, True) for loop in program.loop_of_step[:-1])
    scaling = options.async_copy_bandwidth_scaling
    mem_size = options.picker.max_overlap_size_bytes
    override = options.picker.size_override_bytes
    longest = program.capacity_bytes if mem_size is None else mem_size
    buffers = []
    for index, buffer in enumerate(program.buffers):
        if program.may_be_resident(index) and program.accesses_of_buffer[index]:
            size = buffer.size_bytes if override is None else override
            copy_ticks = round(program.copy_ticks(size) / scaling)
            values = tuple(_Builder(program, costs, index).values())
            buffers.append(_buffer(program, costs, options, index, values, copy_ticks))
    return MsaProblem(
        num_times=program.num_steps,
        capacity_bytes=program.capacity_bytes,
        alignment_bytes=program.machine.alignment_bytes,
        elapsed_ticks=elapsed,
        while_nest=trips,
        nest=depth,
        max_copy_ticks=program.copy_ticks(longest) / scaling,
        buffers=tuple(buffers),
        names=tuple(i.name for i in program.instructions),
        one_place_at_a_time=True,
        inside=_inside(program),
    )


def _depth(program: Program, loop: int | None, trips_only: bool = False) -> int:
    around = program.loops_around(loop)
    return sum(not (trips_only and program.loops[index].is_branch) for index in around)


def _inside(program: Program) -> dict[int, frozenset[int]]:
    """Per scope the steps before which a loop that is not around the scope is under way."""
    found = {}
    for scope in [None, *range(len(program.loops))] if program.loops else []:
        around = set(program.loops_around(scope))
        times = {
            step
            for index, loop in enumerate(program.loops)
            if index not in around
            for step in range(loop.start_step + 1, loop.end_step)
        }
        found[PROGRAM_SCOPE if scope is None else scope] = frozenset(times)
    return found


def _buffer(
    program: Program,
    costs: Sequence[StepCost],
    options: MsaOptions,
    index: int,
    values: tuple[MsaValue, ...],
    copy_ticks: int,
) -> MsaBuffer:
    buffer = program.buffers[index]
    accesses = program.accesses_of_buffer[index]
    return MsaBuffer(
        id=index,
        name=buffer.name,
        size_bytes=buffer.size_bytes,
        start=max(values[0].time, 0),
        end=program.num_steps if buffer.live_out else accesses[-1][0],
        values=values,
        boundedness=_boundedness(program, costs, accesses, options),
        copy_ticks=copy_ticks,
        unrounded_bytes=_unrounded_bytes(program, index),
        cross_program=(
            buffer.is_parameter and not buffer.live_out and _looks_like_a_weight(program, accesses)
        ),
    )


def _unrounded_bytes(program: Program, index: int) -> int:
    """A buffer's size before that was rounded up to the alignment, as far as accesses show it.

    Writes are of the whole buffer, reads may be.
    """
    size = program.buffers[index].size_bytes
    least = max(size - program.machine.alignment_bytes + 1, 1)
    accesses = program.accesses_of_buffer[index]
    moved = [a.size_bytes for _, a in accesses if a.kind is not AccessKind.UPDATE]
    return min(max([least, *moved]), size)


def _looks_like_a_weight(program: Program, accesses: Sequence[tuple[int, Access]]) -> bool:
    """XLA's test as far as a Program tells: read only, by what weights are read by.

    Which operand of a fusion is a weight is not known; inputs mostly go through a copy first.
    What a loop reads XLA sees as part of the loop's tuple: it is left out.
    """
    return not any(
        access.kind.writes
        or program.loop_of_step[step] is not None
        or program.instructions[step].opcode in ACTIVATION_OPCODES
        for step, access in accesses
    )


def _boundedness(
    program: Program,
    costs: Sequence[StepCost],
    accesses: Sequence[tuple[int, Access]],
    options: MsaOptions,
) -> float:
    """XLA's memory boundedness: gains of memory-bound uses add up, others count at most once.

    It starts with the gain of the definition, which is nothing for a parameter; what later writes
    gain does not count. A gain below 0 says how far from memory bound a step is, which more trips
    do not change.
    """
    step, access = accesses[0]
    is_defined = access.kind is AccessKind.WRITE
    total = _gain(program, costs, step, access, options) if is_defined else 0.0
    for step, access in accesses:
        if access.kind.reads:
            gain = _gain(program, costs, step, access, options)
            total = total + gain if total > 0 and gain > 0 else max(total, gain)
    return total


def _gain(
    program: Program, costs: Sequence[StepCost], step: int, access: Access, options: MsaOptions
) -> float:
    """What fast memory saves at an access, in all trips of the loops around it."""
    gain = costs[step].benefit(access)
    levels = _depth(program, program.loop_of_step[step], True)
    return gain * options.while_execution_count**levels if gain > 0 else gain


def _one_way_bytes(access: Access) -> int:
    """What is read, or else written: half of what an update moves."""
    return access.size_bytes // 2 if access.kind is AccessKind.UPDATE else access.size_bytes


class _Builder:
    """Makes the values of one buffer."""

    def __init__(self, program: Program, costs: Sequence[StepCost], buffer: int) -> None:
        self._program = program
        self._costs = costs
        self._buffer = buffer
        self._drafts: list[_Draft] = []

    def values(self) -> Iterator[MsaValue]:
        """The values, those outside a loop before those inside it."""
        covering: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        lanes = lanes_of(self._program, self._buffer)
        for number, lane in enumerate(lanes):
            covered = () if lane.parent is None else covering.get(lane.parent, ())
            self._add_lane(number, lane, covered, covering)
        for draft in self._drafts:
            loop = draft.lane.loop
            yield MsaValue(
                value=draft.value,
                name=draft.name,
                time=draft.time,
                scope=PROGRAM_SCOPE if loop is None else loop,
                nest=_depth(self._program, loop),
                uses=tuple(draft.uses),
                required_default=draft.required_default,
                size_bytes=draft.size_bytes,
                covered_by=draft.covered_by,
            )

    def _add_lane(
        self,
        number: int,
        lane: Lane,
        covered: tuple[tuple[int, int], ...],
        covering: dict[tuple[int, int], tuple[tuple[int, int], ...]],
    ) -> None:
        """Adds the values of one scope; notes which uses cover the lanes inside."""
        program = self._program
        current: _Draft | None = None
        buffer = program.buffers[self._buffer]
        # A trip may begin with content that is dead, and stale in slow memory.
        if lane.needed_before if lane.loop is not None else buffer.has_content_at_start:
            current = self._draft(lane, buffer.name, lane.start_step - 1, covered, required=True)
        for position, item in enumerate(lane.items):
            if item.loop is None:
                current = self._add_access(lane, item, current, covered)
                continue
            inside = covered
            carried = item.reads_first or lane.needed_after[position]
            if carried:
                current, use = self._add_loop(lane, position, item, current, covered)
                inside = (*covered, use)
            elif item.writes:
                current = None
            covering[number, position] = inside
        written = any(item.writes for item in lane.items)
        if current is not None and lane.needed_after[-1] and written:
            self._use(current, lane.end_step, lane.end_step, required=True)

    def _draft(
        self,
        lane: Lane,
        name: str,
        time: int,
        covered: tuple[tuple[int, int], ...],
        required: bool = False,
        size_bytes: int = 0,
    ) -> _Draft:
        draft = _Draft(lane, name, time, len(self._drafts), required, size_bytes, covered)
        self._drafts.append(draft)
        return draft

    def _add_access(
        self, lane: Lane, item: Item, current: _Draft | None, covered: tuple[tuple[int, int], ...]
    ) -> _Draft:
        """A read is a use, a write a new value, an update both at one place."""
        step, access = item.uses[0]
        name = self._program.instructions[step].name
        if current is None and access.kind.reads:
            # Nothing has written it yet: what is read means nothing, and lies in slow memory.
            current = self._draft(lane, name, step - 1, covered, required=True)
        if access.kind.reads:
            assert current is not None
            updates = access.kind is AccessKind.UPDATE
            self._use(current, step, step, access, updates)
        if access.kind.writes:
            return self._draft(lane, name, step, covered, size_bytes=_one_way_bytes(access))
        assert current is not None
        return current

    def _add_loop(
        self,
        lane: Lane,
        position: int,
        item: Item,
        current: _Draft | None,
        covered: tuple[tuple[int, int], ...],
    ) -> tuple[_Draft, tuple[int, int]]:
        """A loop is a use that holds its place to the end, and a new value if it writes."""
        first_step = item.uses[0][0]
        name = self._program.instructions[first_step].name
        dead = False
        if current is None:
            dead = not is_undefined_before(self._program, lane, position)
            current = self._draft(lane, name, item.start_step, covered, required=dead)
        self._use(current, item.start_step, item.end_step - 1, None, item.writes, dead, item)
        use = (current.value, len(current.uses) - 1)
        if item.writes:
            current = self._draft(lane, name, item.end_step - 1, covered)
        return current, use

    def _use(
        self,
        draft: _Draft,
        time: int,
        hold_until: int,
        access: Access | None = None,
        shares: bool = False,
        required: bool = False,
        item: Item | None = None,
    ) -> None:
        program = self._program
        name, elements = "end", 0
        if time < program.num_steps:
            user = program.instructions[time]
            name, elements = user.name, _num_elements(user.shape)
        reduction, moved = 0.0, 0
        if access is not None:
            reduction = self._costs[time].reduction(access)
            moved = _one_way_bytes(access)
        if item is not None:
            moved = sum(a.size_bytes for _, a in item.uses)
        # What shares the place is the value drafted next.
        aliases = ((len(self._drafts), hold_until),) if shares else ()
        first = () if item is None else ((item.start_step, item.uses[0][0]),)
        draft.uses.append(
            MsaUse(
                time=time,
                latest_prefetch_time=time,
                hold_until=hold_until,
                name=name,
                size_bytes=moved,
                result_elements=elements,
                reduction_ticks=reduction,
                required_default=required,
                aliases=aliases,
                is_while=item is not None,
                first_inside=first,
            )
        )


@cache
def _num_elements(shape: str) -> int:
    """Of all arrays of a shape; 0 where a Program, which says it for people, has no HLO text."""
    try:
        return elements_in(parse_shape(shape))
    except InputError:
        return 0


# -- the answer -------------------------------------------------------------------------------


def memory_map_of(program: Program, result: MsaResult) -> MemoryMap:
    """The assignment as residencies and evictions."""
    residencies: list[Residency] = []
    evictions: list[Eviction] = []
    for placed in result.placed.values():
        if placed.carried is not None:
            residencies.extend(_carried(program, placed))
            continue
        found, saved = _of_buffer(placed)
        residencies.extend(found)
        evictions.extend(saved)
    residencies.sort(key=lambda r: (r.start, r.buffer))
    evictions.sort(key=lambda e: (e.issue, e.buffer))
    return MemoryMap(tuple(residencies), tuple(evictions))


def _carried(program: Program, placed: Placed) -> Iterator[Residency]:
    carried, buffer = placed.carried, placed.buffer.id
    assert carried is not None
    offset, end = carried.place.offset, program.num_steps + 1
    if carried.fetched_after is None:
        yield Residency(buffer, offset, 0, end, Source.CARRIED, 0)
        return
    yield Residency(buffer, offset, 0, carried.last_use + 1, Source.CARRIED, 0)
    start = carried.fetched_after + 1
    yield Residency(buffer, offset, start, end, Source.COPIED, program.num_steps)


def _of_buffer(placed: Placed) -> tuple[list[Residency], list[Eviction]]:
    """Residencies and evictions; what continues at the same address is one residency."""
    buffer = placed.buffer
    evictions = [
        Eviction(buffer.id, allocation.copy[0] + 1, allocation.copy[1])
        for sequence in placed.sequences
        for allocation in sequence
        if not allocation.fast and allocation.copy is not None
    ]
    ends = _ends(placed)
    found: list[tuple[Allocation, Residency]] = []
    for value, sequence in zip(buffer.values, placed.sequences, strict=True):
        loop = None if value.scope == PROGRAM_SCOPE else value.scope
        for allocation in sequence:
            if allocation.place is None or id(allocation) not in ends:
                continue
            found.append(
                (allocation, _residency(buffer.id, allocation, ends[id(allocation)], loop))
            )
    return _joined(found), evictions


def _ends(placed: Placed) -> dict[int, int]:
    """Per fast allocation one past its last step: its last use's, or the end of its eviction."""
    ends: dict[int, int] = {}
    for value, sequence in zip(placed.buffer.values, placed.sequences, strict=True):
        for allocation in sequence:
            if allocation.fast:
                last = [value.uses[use].hold_until + 1 for use in allocation.uses]
                ends[id(allocation)] = max([allocation.start + 1, *last])
            elif allocation.copy is not None and allocation.source is not None:
                key = id(allocation.source)
                ends[key] = max(ends[key], allocation.copy[1])
    return ends


def _residency(buffer: int, allocation: Allocation, end: int, loop: int | None) -> Residency:
    assert allocation.place is not None
    copied = allocation.copy is not None
    return Residency(
        buffer=buffer,
        offset_bytes=allocation.place.offset,
        start=allocation.start,
        end=end,
        source=Source.COPIED if copied else Source.PRODUCED,
        ready=allocation.copy[1] if allocation.copy is not None else allocation.start,
        loop=loop,
    )


def _joined(found: Sequence[tuple[Allocation, Residency]]) -> list[Residency]:
    """An in-place write continues the residency that it finds."""
    joined: list[tuple[Allocation, Residency]] = []
    for allocation, residency in sorted(found, key=lambda f: (f[1].start, f[1].end)):
        last = joined[-1] if joined else None
        if (
            last is not None
            and allocation.copy is None
            and last[0].place is allocation.place
            and last[1].loop == residency.loop
            and residency.start < last[1].end
        ):
            end = max(last[1].end, residency.end)
            whole = Residency(
                buffer=residency.buffer,
                offset_bytes=residency.offset_bytes,
                start=last[1].start,
                end=end,
                source=last[1].source,
                ready=last[1].ready,
                loop=residency.loop,
            )
            joined[-1] = (allocation, whole)
        else:
            joined.append((allocation, residency))
    return [residency for _, residency in joined]
