"""The copies that a memory map asks of the copy engine, as one list."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from hlo_graphs.program import Program
from malloc_game.memory_map import Eviction, MemoryMap, ReplacedCopy, Residency, Source
from malloc_game.residency_index import ResidencyIndex


class Direction(enum.StrEnum):
    """Which way a copy goes, and with it which queue of OpenXLA it waits in."""

    PREFETCH = "prefetch"
    """Into fast memory, or wherever a replaced copy goes: OpenXLA's read queue."""
    EVICTION = "eviction"
    """Out of fast memory: OpenXLA's write queue."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One transfer between the memories, served once per trip of its loop.

    Attributes:
      direction: prefetch or eviction.
      buffer: the buffer that is filled or saved.
      size_bytes: bytes transferred.
      bus_bytes: of those, over the slow memory's bus: all, but for a replaced copy once for each
        of its ends (the buffers it reads, the one it writes) that lies in slow memory.
      ticks: bus time it takes undisturbed: of the bytes over the bus, or, from fast memory to fast
        memory, of the bytes transferred.
      issue: it may be served from the beginning of this step.
      deadline: it must be complete before this step.
      loop: the loop on whose every trip it happens, None: once.
      replaced_step: the step that it does in the copy engine; None of prefetches and evictions.
    """

    direction: Direction
    buffer: int
    size_bytes: int
    bus_bytes: int
    ticks: int
    issue: int
    deadline: int
    loop: int | None
    replaced_step: int | None = None


def copies_of(program: Program, memory_map: MemoryMap) -> tuple[Copy, ...]:
    """All copies of a valid map: prefetches (slices apart), evictions, replaced copies.

    An eviction belongs to the loop of the residency it copies out of.
    """
    index = ResidencyIndex(memory_map.residencies)
    found: list[Copy] = []
    for residency in memory_map.residencies:
        if residency.source is Source.COPIED:
            found.extend(_prefetches(program, residency))
    for eviction in memory_map.evictions:
        origin = index.evicted(eviction)
        loop = None if origin is None else origin.loop
        found.append(_eviction(program, eviction, loop))
    for replaced in memory_map.replaced_copies:
        found.extend(_replacements(program, index, replaced))
    return tuple(found)


def _prefetches(program: Program, residency: Residency) -> Iterator[Copy]:
    whole = (program.buffers[residency.buffer].size_bytes, residency.start)
    for size, start in [(part.size_bytes, part.start) for part in residency.parts] or [whole]:
        yield Copy(
            direction=Direction.PREFETCH,
            buffer=residency.buffer,
            size_bytes=size,
            bus_bytes=size,
            ticks=program.copy_ticks(size),
            issue=start,
            deadline=residency.ready,
            loop=residency.loop,
        )


def _eviction(program: Program, eviction: Eviction, loop: int | None) -> Copy:
    size = program.buffers[eviction.buffer].size_bytes
    return Copy(
        direction=Direction.EVICTION,
        buffer=eviction.buffer,
        size_bytes=size,
        bus_bytes=size,
        ticks=program.copy_ticks(size),
        issue=eviction.issue,
        deadline=eviction.done,
        loop=loop,
    )


def _replacements(
    program: Program, index: ResidencyIndex, replaced: ReplacedCopy
) -> Iterator[Copy]:
    """One transfer per buffer that the replaced instruction writes, or per slice of it."""
    accesses = program.instructions[replaced.step].accesses
    low, high = replaced.window

    def holder(buffer: int) -> Residency | None:
        residency = index.ready_at(buffer, low)
        return residency if residency is not None and high <= residency.end else None

    slow_sources = sum(not a.kind.writes and holder(a.buffer) is None for a in accesses)
    for access in accesses:
        if not access.kind.writes:
            continue
        target = holder(access.buffer)
        crossings = slow_sources + (target is None)
        whole = (program.buffers[access.buffer].size_bytes, replaced.issue)
        parts = [] if target is None else _slices_filled(target, replaced)
        for size, issue in parts or [whole]:
            yield Copy(
                direction=Direction.PREFETCH,
                buffer=access.buffer,
                size_bytes=size,
                bus_bytes=size * crossings,
                ticks=program.copy_ticks(size * max(crossings, 1)),
                issue=issue,
                deadline=replaced.done,
                loop=program.loop_of_step[replaced.step],
                replaced_step=replaced.step,
            )


def _slices_filled(target: Residency, replaced: ReplacedCopy) -> list[tuple[int, int]]:
    """(bytes, issue) of the slices in which a replaced copy fills the residency it begins."""
    if target.source is not Source.PRODUCED or target.start != replaced.issue:
        return []
    return [(part.size_bytes, part.start) for part in target.parts]
