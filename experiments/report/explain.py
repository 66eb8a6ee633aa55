"""Why is this tensor slow? The accesses that a map leaves in slow memory, and what each costs."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlo_graphs.program import Access, Program
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import Simulation, fast_accesses, held_bytes, simulate


class Reason(enum.StrEnum):
    """Why an access is not served from fast memory."""

    NOT_ALLOWED = "may not be fast"
    TOO_LARGE = "larger than fast memory"
    NOT_WORTH = "costs nothing where it is"
    NO_ROOM = "no room at its step"
    NO_IDLE = "no idle time to fetch it"
    NOT_CHOSEN = "room and time, but others gained more"


@dataclass(frozen=True, slots=True)
class SlowAccess:
    """One access in slow memory.

    Attributes:
      step: where.
      buffer: which.
      kind: read, update or write.
      size_bytes: of the buffer.
      cost_seconds: what the step would be shorter with this access alone fast, all repeats.
      reason: the first that applies.
    """

    step: int
    buffer: int
    kind: str
    size_bytes: int
    cost_seconds: float
    reason: Reason


def slow_accesses(program: Program, memory_map: MemoryMap) -> list[SlowAccess]:
    """Every access that the map serves from slow memory, the costliest first."""
    simulation = simulate(program, memory_map)
    fast = fast_accesses(program, memory_map)
    replaced = {copy.step for copy in memory_map.replaced_copies}
    held = held_bytes(program, memory_map)
    spare = _spare_idle(program, simulation)
    found: list[SlowAccess] = []
    for step, instruction in enumerate(program.instructions):
        slow = [a for a in instruction.accesses if (step, a.buffer) not in fast]
        if step in replaced:
            continue
        elapsed = instruction.elapsed_ticks(slow)
        for access in slow:
            others = [other for other in slow if other is not access]
            saved = instruction.repeat * (elapsed - instruction.elapsed_ticks(others))
            found.append(
                SlowAccess(
                    step=step,
                    buffer=access.buffer,
                    kind=access.kind.value,
                    size_bytes=program.buffers[access.buffer].size_bytes,
                    cost_seconds=saved * program.tick_seconds,
                    reason=_reason(program, step, access, saved, held, spare),
                )
            )
    return sorted(found, key=lambda slow: -slow.cost_seconds)


def _spare_idle(program: Program, simulation: Simulation) -> NDArray[np.float64]:
    """[T + 1] running sum of bus time that neither accesses nor copies use, one trip each."""
    spare = simulation.idle_ticks.astype(np.float64)
    for service in simulation.services:
        first, end = service.first_step, service.end_step
        if first is None or end is None:
            continue
        left = float(service.copy.ticks)
        for step in range(first, min(end, program.num_steps)):
            used = min(left, spare[step])
            spare[step] -= used
            left -= used
    return np.concatenate([[0.0], np.cumsum(spare)])


def _reason(
    program: Program,
    step: int,
    access: Access,
    saved_ticks: float,
    held: NDArray[np.int64],
    spare: NDArray[np.float64],
) -> Reason:
    buffer = program.buffers[access.buffer]
    if not buffer.fast_allowed:
        return Reason.NOT_ALLOWED
    if buffer.size_bytes > program.capacity_bytes:
        return Reason.TOO_LARGE
    if saved_ticks <= 0:
        return Reason.NOT_WORTH
    if held[step] + buffer.size_bytes > program.capacity_bytes:
        return Reason.NO_ROOM
    if access.kind.reads and not _can_be_fetched(program, step, access, spare):
        return Reason.NO_IDLE
    return Reason.NOT_CHOSEN


def _can_be_fetched(
    program: Program, step: int, access: Access, spare: NDArray[np.float64]
) -> bool:
    """Whether spare bus time since the content was last written carries a copy of it."""
    written = max(
        (t + 1 for t, a in program.accesses_of_buffer[access.buffer] if t < step and a.kind.writes),
        default=0,
    )
    loop = program.loop_of_step[step]
    low = written if loop is None else max(written, program.loops[loop].start_step)
    needed = program.copy_ticks(program.buffers[access.buffer].size_bytes)
    return bool(spare[step] - spare[low] >= needed)


def costs_by_reason(accesses: list[SlowAccess]) -> Iterator[tuple[Reason, int, float]]:
    """(reason, how many, what they cost together), the costliest first; costs overlap."""
    totals = {reason: [a.cost_seconds for a in accesses if a.reason is reason] for reason in Reason}
    for reason, costs in sorted(totals.items(), key=lambda item: -sum(item[1])):
        if costs:
            yield reason, len(costs), sum(costs)
