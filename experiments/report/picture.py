"""A memory map as data for the viewer: time by address, with copies, idle time and stalls.

The viewer (`viewer.js`) draws it on a canvas; everything it shows on hover is in here. Lists are
columns, to keep pages small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.report.explain import SlowAccess, slow_accesses
from hlo_graphs.program import Program
from malloc_game.copies import Direction
from malloc_game.memory_map import MemoryMap, Residency
from malloc_game.simulate import (
    Simulation,
    fast_accesses,
    held_bytes,
    simulate,
)

NUM_SLOW_SHOWN = 25
"""Rows of the table of costly slow accesses."""


@dataclass(frozen=True)
class PicturedMap:
    """One map over the program, under the heading it is shown with; how its copies are served."""

    heading: str
    memory_map: MemoryMap
    copy_order: str = "deadline"


def program_document(program: Program) -> dict[str, Any]:
    """What all maps over a program share: steps and what they access, buffers, loops."""
    return {
        "name": program.name,
        "chip": program.machine.chip,
        "capacity": program.capacity_bytes,
        "tick": program.tick_seconds,
        "steps": [[i.name, i.opcode, i.shape[:120], i.repeat] for i in program.instructions],
        "accesses": [
            [[access.buffer, access.kind.value] for access in i.accesses]
            for i in program.instructions
        ],
        "buffers": [[b.name, b.shape[:120], b.size_bytes] for b in program.buffers],
        "loops": [[loop.start_step, loop.end_step, loop.trip_count] for loop in program.loops],
    }


def map_document(program: Program, pictured: PicturedMap) -> dict[str, Any]:
    """One map: pieces of memory, copies, and what happens at each step."""
    memory_map = pictured.memory_map
    simulation = simulate(program, memory_map, pictured.copy_order)
    fast = fast_accesses(program, memory_map)
    saved = _saved_ticks(program, fast)
    return {
        "heading": pictured.heading,
        "latency": simulation.latency_seconds,
        "stall": simulation.stall_seconds,
        "pieces": [
            piece
            for residency in memory_map.residencies
            for piece in _pieces(program, residency, saved)
        ],
        "fast": _fast_buffers(program, fast),
        "replaced": sorted({copy.step for copy in memory_map.replaced_copies}),
        "copies": _copies(program, simulation),
        "elapsed": simulation.elapsed_ticks.tolist(),
        "idle": simulation.idle_ticks.tolist(),
        "stalls": [
            [step, ticks] for step, ticks in enumerate(simulation.stall_before_ticks) if ticks > 0
        ],
        "held": held_bytes(program, memory_map).tolist(),
        "slow": [
            _slow_row(slow)
            for slow in slow_accesses(program, memory_map, NUM_SLOW_SHOWN, pictured.copy_order)
        ],
    }


def _pieces(
    program: Program, residency: Residency, saved: dict[tuple[int, int], float]
) -> list[list[Any]]:
    """[buffer, start, end, low, high, source, ready, saved seconds] per rectangle."""
    buffer = residency.buffer
    gain = sum(
        saved.get((step, buffer), 0.0)
        for step, _ in program.accesses_of_buffer[buffer]
        if residency.ready <= step < residency.end
    )
    seconds = gain * program.tick_seconds
    return [
        [buffer, start, end, low, high, residency.source.value, residency.ready, seconds]
        for start, end, low, high in residency.occupied(program.buffers[buffer].size_bytes)
    ]


def _saved_ticks(
    program: Program, fast: frozenset[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """Per fast (step, buffer) what the step would take longer with that access slow."""
    saved: dict[tuple[int, int], float] = {}
    for step, instruction in enumerate(program.instructions):
        slow = [a for a in instruction.accesses if (step, a.buffer) not in fast]
        elapsed = instruction.elapsed_ticks(slow)
        for access in instruction.accesses:
            if (step, access.buffer) in fast:
                longer = instruction.elapsed_ticks([*slow, access]) - elapsed
                saved[step, access.buffer] = instruction.repeat * longer
    return saved


def _fast_buffers(program: Program, fast: frozenset[tuple[int, int]]) -> list[list[int]]:
    """Per step the buffers that it finds in fast memory."""
    return [
        sorted({a.buffer for a in instruction.accesses if (step, a.buffer) in fast})
        for step, instruction in enumerate(program.instructions)
    ]


def _copies(program: Program, simulation: Simulation) -> list[list[Any]]:
    """[buffer, issue, deadline, into fast memory (or a replaced copy)?, bytes, stall ticks per
    trip, trips, replaced step or None] each."""
    return [
        [
            service.copy.buffer,
            service.copy.issue,
            service.copy.deadline,
            service.copy.direction is Direction.PREFETCH,
            service.copy.size_bytes,
            service.stall_ticks,
            program.repeat_of(service.copy.loop),
            service.copy.replaced_step,
        ]
        for service in simulation.services
    ]


def _slow_row(slow: SlowAccess) -> list[Any]:
    return [
        slow.step,
        slow.buffer,
        slow.kind,
        slow.size_bytes,
        slow.cost_seconds,
        slow.reason.value,
    ]
