"""Space-time pictures of memory maps: what a person checks by eye, as text.

One column per step, the virtual end included; one row per alignment unit of fast memory, the
lowest address at the bottom. A letter is the buffer whose bytes lie there, lower case while its
prefetch is under way.
"""

from __future__ import annotations

from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap


def picture(program: Program, memory_map: MemoryMap) -> str:
    """The map as lines of text; a buffer is shown by the first letter of its name."""
    unit = program.machine.alignment_bytes
    rows = program.capacity_bytes // unit
    cells = [["."] * (program.num_steps + 1) for _ in range(rows)]
    for residency in memory_map.residencies:
        buffer = program.buffers[residency.buffer]
        for start, end, low, high in residency.occupied(buffer.size_bytes):
            for row in range(low // unit, high // unit):
                for step in range(start, end):
                    letter = buffer.name[0]
                    ready = step >= residency.ready
                    cells[row][step] = letter.upper() if ready else letter.lower()
    return "\n".join("".join(row) for row in reversed(cells))
