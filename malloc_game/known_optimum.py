"""Programs whose optimal latency is known by construction, each with a map that reaches it.

Two kinds, see `packing_program` and `knapsack_program`; the arguments stand there. What is
claimed is the optimum over every valid memory map, not over what one solver can express.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hlo_graphs.errors import InputError
from hlo_graphs.program import (
    BEFORE_PROGRAM,
    Access,
    AccessKind,
    Buffer,
    Instruction,
    Loop,
    Machine,
    Program,
)
from malloc_game.generator import (
    SLOW_BYTES_PER_SECOND,
    TICK_SECONDS,
    TICKS_PER_UNIT,
    UNIT_BYTES,
    generator_of,
)
from malloc_game.memory_map import MemoryMap, Residency, Source

KINDS = ("packing", "knapsack")
"""The constructions of `known_optimum_program`."""


@dataclass(frozen=True, slots=True)
class KnownOptimum:
    """A program and its optimum.

    Attributes:
      program: the program.
      optimal_ticks: the least latency of any valid map, under the `deadline` copy order.
      memory_map: a map that reaches it.
    """

    program: Program
    optimal_ticks: float
    memory_map: MemoryMap


def known_optimum_program(seed: int, *, kind: str = "packing", size: int = 12) -> KnownOptimum:
    """A program with a known optimum. Deterministic per seed.

    Args:
      seed: draws the program.
      kind: one of `KINDS`.
      size: number of steps ("packing") or of tensors ("knapsack").

    Raises:
      InputError: for an unknown kind or a size below 2.
    """
    if kind not in KINDS:
        raise InputError(f"no kind {kind!r} of known optima; choose one of {', '.join(KINDS)}")
    if size < 2:
        raise InputError(f"size {size} of a known-optimum program: must be at least 2")
    rng = generator_of(seed)
    name = f"{kind}-{seed}"
    return (
        packing_program(rng, name, size) if kind == "packing" else knapsack_program(rng, name, size)
    )


def packing_program(
    rng: np.random.Generator, name: str, num_steps: int, capacity_units: int = 16
) -> KnownOptimum:
    """Tensors that tile fast memory exactly, so that all of them fit, in just one way or few.

    The rectangle of steps times addresses is cut at random into rectangles of two steps or
    more. Each becomes a tensor written at its first step and read at its last, or a parameter
    read at its last step. A step's compute time is what the rectangles' prefetches were dealt
    of it, each within its own rectangle, so that one schedule meets all deadlines, and with it
    earliest-deadline-first. Decoys (tensors whose accesses a step's compute time hides) tempt.

    Optimum: no latency is below every step's time with all accesses fast, as `elapsed` is
    monotone and stalls are not negative. The tiling reaches that: what is slow are the decoys,
    hidden by compute time that was added for them, and the rest of it is idle time enough.
    """
    draft = _Draft(num_steps)
    residencies: list[Residency] = []
    for start, end, low, high in _tiles(rng, 0, num_steps, 0, capacity_units):
        units = high - low
        is_parameter = bool(rng.random() < 0.4)
        buffer = draft.buffer(units, is_parameter=is_parameter)
        draft.access(end - 1, buffer, AccessKind.READ, units)
        if is_parameter:
            source, ready = Source.COPIED, end - 1
            for step in rng.integers(start, end - 1, size=units):
                draft.base_ticks[step] += TICKS_PER_UNIT
        else:
            source, ready = Source.PRODUCED, start
            draft.access(start, buffer, AccessKind.WRITE, units)
        residencies.append(Residency(buffer, low * UNIT_BYTES, start, end, source, ready))
    for _ in range(num_steps // 4):
        _add_decoy(rng, draft)
    program = draft.program(name, capacity_units)
    return KnownOptimum(program, program.all_fast_ticks, MemoryMap(tuple(residencies)))


def _tiles(
    rng: np.random.Generator, start: int, end: int, low: int, high: int
) -> list[tuple[int, int, int, int]]:
    """Cuts steps [start, end) x units [low, high) into tiles of two steps or more."""
    by_time, by_address = end - start >= 4, high - low >= 2
    area = (end - start) * (high - low)
    if not (by_time or by_address) or rng.random() < 4 / (4 + area):
        return [(start, end, low, high)]
    if by_time and (not by_address or rng.random() < 0.5):
        cut = int(rng.integers(start + 2, end - 1))
        return _tiles(rng, start, cut, low, high) + _tiles(rng, cut, end, low, high)
    cut = int(rng.integers(low + 1, high))
    return _tiles(rng, start, end, low, cut) + _tiles(rng, start, end, cut, high)


def _add_decoy(rng: np.random.Generator, draft: _Draft) -> None:
    first, second = sorted(int(s) for s in rng.choice(len(draft.base_ticks), 2, replace=False))
    units = int(rng.integers(1, 5))
    buffer = draft.buffer(units, is_parameter=False)
    for step, kind in ((first, AccessKind.WRITE), (second, AccessKind.READ)):
        draft.access(step, buffer, kind, units)
        draft.base_ticks[step] += units * TICKS_PER_UNIT


def knapsack_program(rng: np.random.Generator, name: str, num_tensors: int) -> KnownOptimum:
    """Tensors that are all alive at once and do not all fit; half the time in a loop.

    First every tensor is written, each at a step of its own, then every one is read, in another
    order. Nothing computes, and accesses move at most their buffer's size.

    Optimum: a step takes exactly its slow bytes, so there is never idle time, and every copy
    stalls for all of its duration, which is that of moving the whole buffer. Of a tensor's two
    accesses in a trip, both are fast without a copy in that trip only if it is resident from
    its write to its read, hence between the last write and the first read, together with all
    others of that sort: their sizes add up to at most the capacity. Any other fast access of a
    trip needs a copy of its own in that trip (out of fast memory after a fast write, since the
    read follows from slow memory; into it before a fast read of what was written slowly), and
    saves no more than that copy costs. So the best is a set of tensors of the greatest total
    savings whose sizes fit: a knapsack, solved exactly by dynamic programming.
    """
    sizes = [int(s) for s in rng.integers(1, 9, size=num_tensors)]
    moved = [(int(rng.integers(1, s + 1)), int(rng.integers(1, s + 1))) for s in sizes]
    capacity_units = max(1, int(sum(sizes) * rng.uniform(0.3, 0.8)))
    draft = _Draft(2 * num_tensors)
    read_at = [num_tensors + int(position) for position in rng.permutation(num_tensors)]
    for index, units in enumerate(sizes):
        draft.buffer(units, is_parameter=False)
        draft.access(index, index, AccessKind.WRITE, moved[index][0])
        draft.access(read_at[index], index, AccessKind.READ, moved[index][1])
    loop = None
    if rng.random() < 0.5:
        draft.loops = (Loop(0, 2 * num_tensors, int(rng.integers(2, 6))),)
        loop = 0
    program = draft.program(name, capacity_units)
    chosen = _knapsack(sizes, [sum(both) for both in moved], capacity_units)
    residencies: list[Residency] = []
    offset = 0
    for index in chosen:
        start, end = index, read_at[index] + 1
        residencies.append(Residency(index, offset, start, end, Source.PRODUCED, start, loop))
        offset += sizes[index] * UNIT_BYTES
    trips = draft.loops[0].trip_count if draft.loops else 1
    saved = trips * TICKS_PER_UNIT * sum(sum(moved[index]) for index in chosen)
    return KnownOptimum(program, program.all_slow_ticks - saved, MemoryMap(tuple(residencies)))


def _knapsack(sizes: list[int], values: list[int], capacity: int) -> list[int]:
    """Indices of a subset of the greatest value whose sizes add up to at most `capacity`."""
    best = np.zeros((len(sizes) + 1, capacity + 1), dtype=np.int64)
    for index, (size, value) in enumerate(zip(sizes, values, strict=True)):
        best[index + 1] = best[index]
        if size <= capacity:
            taken = best[index, : capacity + 1 - size] + value
            best[index + 1, size:] = np.maximum(best[index, size:], taken)
    chosen: list[int] = []
    room = capacity
    for index in reversed(range(len(sizes))):
        if best[index + 1, room] != best[index, room]:
            chosen.append(index)
            room -= sizes[index]
    return chosen[::-1]


class _Draft:
    """A program under construction: plain roofline steps, one lane."""

    def __init__(self, num_steps: int) -> None:
        self.base_ticks = [0] * num_steps
        self.loops: tuple[Loop, ...] = ()
        self._accesses: list[list[Access]] = [[] for _ in range(num_steps)]
        self._buffers: list[tuple[int, bool]] = []

    def buffer(self, units: int, *, is_parameter: bool) -> int:
        """A new buffer."""
        self._buffers.append((units, is_parameter))
        return len(self._buffers) - 1

    def access(self, step: int, buffer: int, kind: AccessKind, units: int) -> None:
        """A new access; reads must be put in front of writes by the caller's order of kinds."""
        bus_ticks = units * TICKS_PER_UNIT
        self._accesses[step].append(Access(buffer, kind, units * UNIT_BYTES, bus_ticks, (0,)))

    def program(self, name: str, capacity_units: int) -> Program:
        """The finished program."""
        weight = self.loops[0].weight if self.loops else 1.0
        origins = dict.fromkeys(range(len(self._buffers)), BEFORE_PROGRAM)
        for step, accesses in enumerate(self._accesses):
            accesses.sort(key=lambda access: access.kind is AccessKind.WRITE)
            origins.update({a.buffer: step for a in accesses if a.kind is AccessKind.WRITE})
        instructions = tuple(
            Instruction(f"op.{step}", "fusion", "", weight, (base,), tuple(self._accesses[step]))
            for step, base in enumerate(self.base_ticks)
        )
        buffers = tuple(
            Buffer(
                name=f"{'parameter' if is_parameter else 'tensor'}.{index}",
                size_bytes=units * UNIT_BYTES,
                origin=origins[index],
                live_out=False,
                fast_allowed=True,
                is_parameter=is_parameter,
            )
            for index, (units, is_parameter) in enumerate(self._buffers)
        )
        machine = Machine(
            "generated", capacity_units * UNIT_BYTES, UNIT_BYTES, SLOW_BYTES_PER_SECOND
        )
        return Program(
            name, machine, TICK_SECONDS, instructions, buffers, self.loops, times="generated"
        )
