"""The simulator's verdict on a map: the one place where solvers ask for a latency."""

from __future__ import annotations

from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import simulate


def simulated_latency(program: Program, memory_map: MemoryMap, copy_order: str) -> float:
    """Latency in ticks of a valid map, stalls included (docs/simulator.md, "Time")."""
    return simulate(program, memory_map, copy_order=copy_order).latency_ticks
