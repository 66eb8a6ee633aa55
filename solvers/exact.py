"""Small programs, exactly: every residency that could help as a column, CP-SAT chooses.

A column fixes what a residency covers, when its prefetch is issued and when its eviction is
done; what is left to decide is which columns are there, at which address, and which step serves
how much of each copy. Columns are all there are of residencies without slices and holes, but
for those filled by a copy of what nothing reads, and copy instructions are not replaced: the
optimum is that of the game's maps and more. Serving by choice is as good as earliest deadline
first, which loses least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ortools.sat.python import cp_model

from hlo_graphs.program import Program
from malloc_game.loop_nest import LoopNest
from malloc_game.memory_map import Eviction, MemoryMap, Residency, Source
from solvers.cp_sat import cp_solver, solved
from solvers.lane_table import all_lanes
from solvers.solver import Deadline
from solvers.timeline import Lane, begins_with_write, is_undefined_before

MOST_COLUMNS = 3000
"""Programs with more columns are not solved exactly."""

MOST_SHARES = 40_000
"""Nor those whose columns' copies could be served in more steps, summed over the copies."""


@dataclass(frozen=True, slots=True)
class ExactSolution:
    """What CP-SAT found.

    Attributes:
      memory_map: the best map.
      ticks: its latency.
      proven: no map without slices, holes, replaced copies and copies of content that nothing
        reads is faster, copies being served by deadline.
    """

    memory_map: MemoryMap
    ticks: float
    proven: bool


@dataclass(frozen=True, slots=True)
class _Transfer:
    """A copy of a column: served in steps `[issue, deadline)`, once per trip of its loop."""

    ticks: int
    issue: int
    deadline: int


@dataclass(frozen=True, slots=True)
class _Column:
    """One way for a buffer to be resident over a run of items; offsets are left open.

    A carried parameter's two residencies are one column.
    """

    buffer: int
    loop: int | None
    residencies: tuple[Residency, ...]
    evictions: tuple[Eviction, ...]
    transfers: tuple[_Transfer, ...]
    fast: frozenset[int]

    @property
    def is_carried(self) -> bool:
        return self.residencies[0].source is Source.CARRIED


@dataclass(slots=True)
class _Model:
    """The CP-SAT model and its handles."""

    model: cp_model.CpModel
    present: list[cp_model.IntVar] = field(default_factory=list)
    offsets: list[cp_model.IntVar] = field(default_factory=list)
    stalls: list[tuple[int, Any]] = field(default_factory=list)


def can_be_exact(program: Program) -> bool:
    """Whether every count is whole and the columns and their windows make a small model."""
    whole = all(step.repeat == int(step.repeat) for step in program.instructions)
    if not whole or any(loop.may_skip for loop in program.loops):
        return False
    num_shares = 0
    for number, column in enumerate(_columns(program), start=1):
        num_shares += sum(transfer.deadline - transfer.issue for transfer in column.transfers)
        if number > MOST_COLUMNS or num_shares > MOST_SHARES:
            return False
    return True


def solve_exactly(
    program: Program, time_limit_seconds: float, *, seed: int = 0, workers: int = 1
) -> ExactSolution | None:
    """The optimum, or the best map found in time; None if there is none or the program is large."""
    deadline = Deadline.after(time_limit_seconds)
    if not can_be_exact(program):
        return None
    columns = list(_columns(program))
    built = _Model(cp_model.CpModel())
    _add_columns(program, columns, built)
    fast = _add_fast(columns, built)
    elapsed = _add_steps(program, fast, built)
    _add_service(program, columns, fast, elapsed, built)
    cost = [int(step.repeat) * e for step, e in zip(program.instructions, elapsed, strict=True)]
    built.model.minimize(sum(cost) + sum(repeat * stall for repeat, stall in built.stalls))
    solver = cp_solver(deadline, seed=seed, workers=workers)
    status = solved(solver, built.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    memory_map = _map_of(program, columns, built, solver)
    # All costs are whole ticks; presolve may leave the sum a little off.
    ticks = float(round(solver.objective_value))
    return ExactSolution(memory_map, ticks, status == cp_model.OPTIMAL)


def _columns(program: Program) -> Iterator[_Column]:
    nest = LoopNest(program)
    for lane in all_lanes(program):
        for first in range(len(lane.items)):
            for last in range(first, len(lane.items)):
                yield from _columns_over(program, nest, lane, first, last)
        if lane.loop is None and program.buffers[lane.buffer].is_parameter:
            yield from _carried_columns(program, nest, lane)


def _columns_over(
    program: Program, nest: LoopNest, lane: Lane, first: int, last: int
) -> Iterator[_Column]:
    for start, source in _starts(program, nest, lane, first):
        for end, evictions in _ends(nest, lane, first, last):
            ready = lane.items[first].start_step
            residency = Residency(lane.buffer, 0, start, end, source, ready, lane.loop)
            yield _column(program, lane, (residency,), evictions)


def _starts(
    program: Program, nest: LoopNest, lane: Lane, first: int
) -> Iterator[tuple[int, Source]]:
    """Where a residency that begins with an item may start, and how it is filled."""
    item = lane.items[first]
    if begins_with_write(item) or is_undefined_before(program, lane, first):
        yield item.start_step, Source.PRODUCED
        return
    if not item.reads_first:
        return
    writes = [other.end_step for other in lane.items[:first] if other.writes]
    for start in range(max([lane.start_step, *writes]), item.start_step + 1):
        if nest.broken_by(start, item.end_step, lane.loop) is None:
            yield start, Source.COPIED


def _ends(
    nest: LoopNest, lane: Lane, first: int, last: int
) -> Iterator[tuple[int, tuple[Eviction, ...]]]:
    """Where a residency that covers items may end, with the eviction that needs it so long."""
    writes = [item.end_step for item in lane.items[first : last + 1] if item.writes]
    end = lane.items[last].end_step
    if not writes or not lane.needed_after[last]:
        yield end, ()
        return
    following = lane.items[last + 1 : last + 2]
    limit = following[0].start_step if following else lane.end_step
    for done in range(end, limit + 1):
        if nest.broken_by(lane.items[first].start_step, done, lane.loop) is None:
            yield done, (Eviction(lane.buffer, writes[-1], done),)


def _carried_columns(program: Program, nest: LoopNest, lane: Lane) -> Iterator[_Column]:
    """Resident at the start and, at the same place, at the end."""
    if any(item.writes for item in lane.items):
        return
    buffer, end = lane.buffer, program.num_steps + 1
    whole = Residency(buffer, 0, 0, end, Source.CARRIED, 0)
    yield _column(program, lane, (whole,), ())
    firsts = [1, *(item.end_step for item in lane.items)]
    readies = [*(item.start_step for item in lane.items), program.num_steps]
    for stop in sorted(set(firsts)):
        for ready in sorted(set(readies)):
            for start in range(stop, ready + 1):
                first = Residency(buffer, 0, 0, stop, Source.CARRIED, 0)
                again = Residency(buffer, 0, start, end, Source.COPIED, ready)
                if nest.broken_by(0, stop, None) is None and (
                    nest.broken_by(start, ready, None) is None
                ):
                    yield _column(program, lane, (first, again), ())


def _column(
    program: Program,
    lane: Lane,
    residencies: tuple[Residency, ...],
    evictions: tuple[Eviction, ...],
) -> _Column:
    ticks = program.copy_ticks(program.buffers[lane.buffer].size_bytes)
    transfers = [
        _Transfer(ticks, r.start, r.ready) for r in residencies if r.source is Source.COPIED
    ]
    transfers += [_Transfer(ticks, eviction.issue, eviction.done) for eviction in evictions]
    fast = {
        step
        for step, _ in program.accesses_of_buffer[lane.buffer]
        if any(r.ready <= step < r.end for r in residencies)
    }
    return _Column(
        lane.buffer, lane.loop, residencies, evictions, tuple(transfers), frozenset(fast)
    )


def _add_columns(program: Program, columns: Sequence[_Column], built: _Model) -> None:
    """Presence, addresses, and no two columns in each other's way."""
    unit = program.machine.alignment_bytes
    capacity = program.capacity_bytes // unit
    model = built.model
    lives: dict[int, list[cp_model.IntervalVar]] = {}
    along, across = [], []
    held: list[list[Any]] = [[] for _ in range(program.num_steps + 1)]
    for index, column in enumerate(columns):
        size = program.buffers[column.buffer].size_bytes // unit
        present = model.new_bool_var(f"c{index}")
        offset = model.new_int_var(0, capacity - size, f"o{index}")
        built.present.append(present)
        built.offsets.append(offset)
        for r in column.residencies:
            span = model.new_optional_fixed_size_interval_var(r.start, r.end - r.start, present, "")
            lives.setdefault(column.buffer, []).append(span)
            along.append(span)
            across.append(model.new_optional_fixed_size_interval_var(offset, size, present, ""))
            for step in range(r.start, r.end):
                held[step].append(size * present)
    for spans in lives.values():
        model.add_no_overlap(spans)
    model.add_no_overlap_2d(along, across)
    for terms in held:
        model.add(sum(terms) <= capacity)
    carried = [p for p, column in zip(built.present, columns, strict=True) if column.is_carried]
    model.add(sum(carried) <= 1)


def _add_fast(columns: Sequence[_Column], built: _Model) -> dict[tuple[int, int], Any]:
    """Per (step, buffer) how many columns make the access fast: 0 or 1."""
    covering: dict[tuple[int, int], list[cp_model.IntVar]] = {}
    for column, present in zip(columns, built.present, strict=True):
        for step in column.fast:
            covering.setdefault((step, column.buffer), []).append(present)
    return {key: sum(terms) for key, terms in covering.items()}


def _add_steps(
    program: Program, fast: dict[tuple[int, int], Any], built: _Model
) -> list[cp_model.IntVar]:
    """Per step its duration."""
    elapsed = []
    for step, instruction in enumerate(program.instructions):
        longest = instruction.elapsed_ticks(instruction.accesses)
        lanes: list[Any] = [_bus(program, step, fast)]
        for k, base in enumerate(instruction.base_ticks):
            slow = [
                access.lane_ticks[k] * (1 - fast.get((step, access.buffer), 0))
                for access in instruction.accesses
            ]
            lanes.append(base + sum(slow))
        duration = built.model.new_int_var(0, longest, f"e{step}")
        built.model.add_max_equality(duration, lanes)
        elapsed.append(duration)
    return elapsed


def _bus(program: Program, step: int, fast: dict[tuple[int, int], Any]) -> Any:
    return sum(
        access.bus_ticks * (1 - fast.get((step, access.buffer), 0))
        for access in program.instructions[step].accesses
    )


def _add_service(
    program: Program,
    columns: Sequence[_Column],
    fast: dict[tuple[int, int], Any],
    elapsed: Sequence[cp_model.IntVar],
    built: _Model,
) -> None:
    """Who is served when; what no step serves is a stall."""
    model = built.model
    served: dict[tuple[int, int | None], list[cp_model.IntVar]] = {}
    for column, present in zip(columns, built.present, strict=True):
        repeat = int(program.repeat_of(column.loop))
        for transfer in column.transfers:
            shares = []
            for step in range(transfer.issue, min(transfer.deadline, program.num_steps)):
                share = model.new_int_var(0, transfer.ticks, "")
                model.add(share <= transfer.ticks * present)
                served.setdefault((step, column.loop), []).append(share)
                shares.append(share)
            stall = model.new_int_var(0, transfer.ticks, "")
            model.add(stall + sum(shares) == transfer.ticks * present)
            built.stalls.append((repeat, stall))
    for step in range(program.num_steps):
        left: Any = elapsed[step] - _bus(program, step, fast)
        scopes = [*program.loops_around(program.loop_of_step[step]), None]
        for scope in scopes:
            left = left - sum(served.get((step, scope), ()))
            model.add(left >= 0)
            if scope is not None:
                left = int(program.loops[scope].weight) * left


def _map_of(
    program: Program, columns: Sequence[_Column], built: _Model, solver: cp_model.CpSolver
) -> MemoryMap:
    unit = program.machine.alignment_bytes
    residencies: list[Residency] = []
    evictions: list[Eviction] = []
    for column, present, offset in zip(columns, built.present, built.offsets, strict=True):
        if solver.boolean_value(present):
            place = solver.value(offset) * unit
            residencies += [replace(r, offset_bytes=place) for r in column.residencies]
            evictions += column.evictions
    residencies.sort(key=lambda r: (r.start, r.buffer))
    evictions.sort(key=lambda e: (e.issue, e.buffer))
    return MemoryMap(tuple(residencies), tuple(evictions))
