"""How long a program takes with a memory map, in integer ticks (docs/simulator.md, "Time").

Every step takes `Instruction.elapsed_ticks` of its slow accesses; what the slow memory's bus
leaves of it is idle time, from which one engine serves the copies, each between its issue and
its deadline. A copy that is unfinished at its deadline stalls the program just before that step.

**Loops.** The schedule is played once, as one trip of every loop. A copy of a loop is served
once per trip. A copy that spans a whole loop gets, from each step inside, what the copies of
inner loops leave, times the loop's `weight` (trip count times probability), rounded down: once
for each loop passed on the way out, from the inside. A stall counts as often as the loop of its
copy runs; that of a copy due at the end of a trip happens inside the loop.

This equals the full unrolling of the program, copy by copy and to the tick, for every valid map
of a program without branches, under `deadline` order: whatever is due inside a trip is due
before what spans the loop, so inner copies come first there too, and a spanning copy sees all
trips. With a branch the supply is the expected one (and rounded down), not that of any one run.

**Replaced copies.** Their step takes no time and has no idle time; the transfer counts instead.

**fifo** is OpenXLA's order (`FifoEngine`). Deliberate differences from its `RuntimeSimulator`, each
named in docs/simulator.md: the bandwidth is restored when a queue runs empty within a step (OpenXLA
keeps halving it), a copy that spans a loop is served by all its trips (OpenXLA: by one), copies
inside a loop go before copies that span it, only ready residencies count as fast, and conditionals
are not counted beside their branches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.copies import Copy, copies_of
from malloc_game.copy_engine import CopyEngine, DeadlineEngine, FifoEngine, Transfer
from malloc_game.memory_map import MemoryMap

COPY_ORDERS = ("deadline", "fifo")
"""How the copy engine chooses among pending copies (docs/simulator.md, "Time")."""


def check_copy_order(copy_order: str) -> None:
    """Raises InputError for an order that is none."""
    if copy_order not in COPY_ORDERS:
        known = ", ".join(COPY_ORDERS)
        raise InputError(f"unknown copy order {copy_order!r}: use one of {known}")


@dataclass(frozen=True, slots=True)
class CopyService:
    """How one copy fared, in ticks of one trip of its loop.

    Attributes:
      copy: the copy.
      served: (step, ticks) by step: the idle time that served it.
      stall_ticks: how long the program stood still for it before its deadline, per trip.
    """

    copy: Copy
    served: tuple[tuple[int, float], ...]
    stall_ticks: float

    @property
    def first_step(self) -> int | None:
        """First step whose idle time served it, None if none did."""
        return self.served[0][0] if self.served else None

    @property
    def end_step(self) -> int | None:
        """One past the last such step."""
        return self.served[-1][0] + 1 if self.served else None


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """What running a program with a memory map costs. Weighted: counting every trip.

    Attributes:
      latency_ticks: sum of repeat * elapsed plus the weighted stalls.
      latency_seconds: the same in seconds.
      stall_ticks: weighted stalls.
      stall_seconds: the same in seconds.
      elapsed_ticks: [T] of one execution of each step.
      idle_ticks: [T] of one execution: what slow accesses leave of the bus, before copies.
      stall_before_ticks: [T + 1] weighted stall just before each step and the virtual end.
      services: how each copy fared.
      num_copies: copies in the map (slices counted apart), each counted once.
      peak_fast_bytes: most bytes that residencies hold at one step.
      bus_bytes: bytes over the slow memory's bus, by slow accesses and copies, weighted.
      num_fast_accesses: accesses served from fast memory, each counted once.
    """

    latency_ticks: float
    latency_seconds: float
    stall_ticks: float
    stall_seconds: float
    elapsed_ticks: NDArray[np.int64]
    idle_ticks: NDArray[np.int64]
    stall_before_ticks: NDArray[np.float64]
    services: tuple[CopyService, ...]
    num_copies: int
    peak_fast_bytes: int
    bus_bytes: int
    num_fast_accesses: int


def simulate(program: Program, memory_map: MemoryMap, copy_order: str = "deadline") -> Simulation:
    """Plays `program` once with `memory_map`, which must be valid (`validate.check`).

    Args:
      program: the program.
      memory_map: a valid map of it.
      copy_order: "deadline" (exact integers) or "fifo" (OpenXLA's queues, floats).

    Raises:
      InputError: for another copy order.
    """
    check_copy_order(copy_order)
    fast = fast_access_mask(program, memory_map)
    replaced = sorted({copy.step for copy in memory_map.replaced_copies})
    slow = ~fast & ~np.isin(program.access_table.step, replaced)
    elapsed, idle = _step_times(program, slow, replaced)
    copies = copies_of(program, memory_map)
    transfers = [Transfer(copy, copy.ticks) for copy in copies]
    _serve_all(program, idle, transfers, DeadlineEngine if copy_order == "deadline" else FifoEngine)
    stall_before = np.zeros(program.num_steps + 1)
    for transfer in transfers:
        repeat = program.repeat_of(transfer.copy.loop)
        stall_before[transfer.copy.deadline] += repeat * transfer.stall
    stall = float(sum(stall_before.tolist()))
    busy = sum(i.repeat * t for i, t in zip(program.instructions, elapsed.tolist(), strict=True))
    return Simulation(
        latency_ticks=busy + stall,
        latency_seconds=(busy + stall) * program.tick_seconds,
        stall_ticks=stall,
        stall_seconds=stall * program.tick_seconds,
        elapsed_ticks=elapsed,
        idle_ticks=idle,
        stall_before_ticks=stall_before,
        services=tuple(CopyService(t.copy, tuple(t.served), t.stall) for t in transfers),
        num_copies=len(copies),
        peak_fast_bytes=int(held_bytes(program, memory_map).max(initial=0)),
        bus_bytes=_bus_bytes(program, slow, copies),
        num_fast_accesses=int(fast.sum()),
    )


def held_bytes(program: Program, memory_map: MemoryMap) -> NDArray[np.int64]:
    """[T + 1] bytes of fast memory that residencies hold at each step and the virtual end."""
    change = np.zeros(program.num_steps + 3, dtype=np.int64)
    for residency in memory_map.residencies:
        size_bytes = program.buffers[residency.buffer].size_bytes
        for start, end, low, high in residency.occupied(size_bytes):
            change[start] += high - low
            change[end] -= high - low
    held: NDArray[np.int64] = np.cumsum(change)[: program.num_steps + 1]
    return held


def fast_access_mask(program: Program, memory_map: MemoryMap) -> NDArray[np.bool_]:
    """[A] whether each access, in the order of `Program.access_table`, is served fast.

    Accesses of replaced copies are no accesses of a step any more: False.
    """
    table = program.access_table
    width, last = program.num_steps + 1, program.num_steps
    rows = [(r.buffer, r.ready, r.end) for r in memory_map.residencies]
    change = np.zeros(len(table.step) + 1, dtype=np.int64)
    if rows:
        buffer, ready, end = np.array(rows, dtype=np.int64).T
        np.add.at(change, np.searchsorted(table.keys, buffer * width + np.minimum(ready, last)), 1)
        np.add.at(change, np.searchsorted(table.keys, buffer * width + np.minimum(end, last)), -1)
    fast = np.zeros(len(table.step), dtype=np.bool_)
    fast[table.by_buffer] = np.cumsum(change[:-1]) > 0
    fast &= ~np.isin(table.step, [copy.step for copy in memory_map.replaced_copies])
    return fast


def fast_accesses(program: Program, memory_map: MemoryMap) -> frozenset[tuple[int, int]]:
    """(step, buffer) of the accesses served from fast memory, replaced copies left out."""
    table = program.access_table
    fast = fast_access_mask(program, memory_map)
    return frozenset(zip(table.step[fast].tolist(), table.buffer[fast].tolist(), strict=True))


def compulsory_bus_bytes(program: Program) -> int:
    """Bytes that cross the slow memory's bus under every map that carries nothing over.

    A buffer that must come in or go out does so by a copy or by one of the accesses concerned
    at least; one that may not be resident moves with every access. Steps that the copy engine
    could take over are left out. A lower bound, weighted by repeats.
    """
    return round(sum(_compulsory_bytes(program, buffer) for buffer in range(len(program.buffers))))


def _compulsory_bytes(program: Program, index: int) -> float:
    buffer = program.buffers[index]
    accesses = program.accesses_of_buffer[index]
    if not accesses or any(program.instructions[step].async_copy for step, _ in accesses):
        return 0.0
    moved = [(a.kind, program.instructions[step].repeat * a.size_bytes) for step, a in accesses]
    if not program.may_be_resident(index):
        return sum(size for _, size in moved)
    comes_in = buffer.has_content_at_start and accesses[0][1].kind.reads
    goes_out = buffer.live_out and any(kind.writes for kind, _ in moved)
    if not (comes_in or goes_out):
        return 0.0
    chance = min(_chance(program, step) for step, _ in accesses)
    return min([chance * buffer.size_bytes, *(size for _, size in moved)])


def _chance(program: Program, step: int) -> float:
    """Probability that `step` runs at all."""
    around = program.loops_around(program.loop_of_step[step])
    return math.prod((program.loops[loop].probability for loop in around), start=1.0)


def _step_times(
    program: Program, slow: NDArray[np.bool_], replaced: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[T] elapsed and idle ticks of one execution of each step."""
    table = program.access_table
    bus = np.zeros(program.num_steps, dtype=np.int64)
    np.add.at(bus, table.step[slow], table.bus_ticks[slow])
    lanes = table.base_ticks.copy()
    np.add.at(lanes, table.step[slow], table.lane_ticks[slow])
    elapsed = np.maximum(bus, lanes.max(axis=1, initial=0))
    idle = elapsed - bus
    elapsed[replaced] = 0
    idle[replaced] = 0
    return elapsed, idle


def _serve_all(
    program: Program,
    idle: NDArray[np.int64],
    transfers: Sequence[Transfer],
    engine: type[DeadlineEngine] | type[FifoEngine],
) -> None:
    """Plays the schedule once; every transfer ends complete, with its stall."""
    issued, due = _by_step(transfers)
    engines: dict[int | None, CopyEngine] = {t.copy.loop: engine() for t in transfers}
    under_way = 0
    idle_ticks = idle.tolist()
    for step in range(program.num_steps + 1):
        for transfer in due.get(step, ()):
            engines[transfer.copy.loop].finish(transfer)
            under_way -= 1
        for order, transfer in issued.get(step, ()):
            mine = engines[transfer.copy.loop]
            mine.issue(order, transfer)
            if transfer.copy.deadline > step:
                under_way += 1
            else:
                mine.finish(transfer)
        if under_way and step < program.num_steps and idle_ticks[step]:
            _serve_step(program, engines, idle_ticks[step], step)


def _by_step(
    transfers: Sequence[Transfer],
) -> tuple[dict[int, list[tuple[int, Transfer]]], dict[int, list[Transfer]]]:
    """Copies by issue, empty windows first, and by deadline, those with empty windows left out."""
    issued: dict[int, list[tuple[int, Transfer]]] = {}
    due: dict[int, list[Transfer]] = {}
    hidden = sorted(
        enumerate(transfers), key=lambda entry: entry[1].copy.issue < entry[1].copy.deadline
    )
    for order, transfer in hidden:
        issued.setdefault(transfer.copy.issue, []).append((order, transfer))
        if transfer.copy.issue < transfer.copy.deadline:
            due.setdefault(transfer.copy.deadline, []).append(transfer)
    return issued, due


def _serve_step(
    program: Program, engines: dict[int | None, CopyEngine], idle: float, step: int
) -> None:
    """Hands a step's idle time to the copies of its loop, what is left to those around it."""
    scope = program.loop_of_step[step]
    while idle > 0:
        mine = engines.get(scope)
        if mine is not None:
            idle = mine.serve(idle, step)
        if scope is None:
            return
        loop = program.loops[scope]
        idle = math.floor(idle * loop.weight)
        scope = loop.parent


def _bus_bytes(program: Program, slow: NDArray[np.bool_], copies: Sequence[Copy]) -> int:
    table = program.access_table
    repeats = np.array([i.repeat for i in program.instructions], dtype=np.float64)
    total = float((repeats[table.step[slow]] * table.size_bytes[slow]).sum())
    total += sum(program.repeat_of(copy.loop) * copy.bus_bytes for copy in copies)
    return round(total)
