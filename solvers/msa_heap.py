"""Fast memory over logical times: who is where, best fit, and repacking.

Source: `xla/service/heap_simulator/heap_simulator.cc` and
`xla/service/memory_space_assignment/best_fit_repacker.cc`. Both ends of a chunk's times are
included, as in XLA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `[offset, offset + size)` during times `[start, end]`, both ends included."""

    start: int
    end: int
    offset: int
    size: int


class ChunkHeap:
    """Chunks that do not overlap; finds gaps.

    Args:
      num_times: chunks lie within times `[0, num_times)`.
      capacity: bytes.
      alignment: offsets are multiples of it.
    """

    def __init__(self, num_times: int, capacity: int, alignment: int = 1) -> None:
        self.capacity = capacity
        self.alignment = alignment
        self.used: NDArray[np.int64] = np.zeros(num_times + 1, dtype=np.int64)
        """[times] bytes taken, XLA's `peak_memory_usage`."""
        self._live: list[dict[int, tuple[int, int]]] = [{} for _ in range(num_times + 1)]
        self._starting: list[dict[int, tuple[int, int]]] = [{} for _ in range(num_times + 1)]
        self._count = 0

    def add(self, chunk: Chunk) -> int:
        """Takes a chunk; returns what `remove` wants to know it by."""
        self._count += 1
        piece = (chunk.offset, chunk.offset + chunk.size)
        for time in range(chunk.start, chunk.end + 1):
            self._live[time][self._count] = piece
        self._starting[chunk.start][self._count] = piece
        self.used[chunk.start : chunk.end + 1] += chunk.size
        return self._count

    def remove(self, key: int, chunk: Chunk) -> None:
        """Gives a chunk back."""
        for time in range(chunk.start, chunk.end + 1):
            del self._live[time][key]
        del self._starting[chunk.start][key]
        self.used[chunk.start : chunk.end + 1] -= chunk.size

    def is_free(self, start: int, end: int, offset: int, size: int) -> bool:
        """Whether bytes `[offset, offset + size)` are free and inside during `[start, end]`."""
        if offset + size > self.capacity:
            return False
        high = offset + size
        if any(a < high and offset < b for a, b in self._live[start].values()):
            return False
        return not any(
            a < high and offset < b
            for time in range(start + 1, end + 1)
            for a, b in self._starting[time].values()
        )

    def best_fit(self, start: int, end: int, size: int) -> int | None:
        """Lowest offset in the smallest gap that is free during `[start, end]`; None: none."""
        if int(self.used[start : end + 1].max(initial=0)) + size > self.capacity:
            return None
        return best_gap(self.taken(start, end), size, self.capacity, self.alignment)

    def taken(self, start: int, end: int) -> list[tuple[int, int]]:
        """Byte ranges taken at some time of `[start, end]`, in no order."""
        found = list(self._live[start].values())
        for starting in self._starting[start + 1 : end + 1]:
            if starting:
                found.extend(starting.values())
        return found


def best_gap(taken: list[tuple[int, int]], size: int, capacity: int, alignment: int) -> int | None:
    """Offset in the smallest gap between byte ranges that holds `size`, ties to the lowest.

    The last gap counts as endless, as in XLA: it is chosen only if no other is large enough.
    """
    taken.sort()
    best: int | None = None
    best_length = 0
    free_from = 0
    for low, high in taken:
        if low > free_from:
            length = low - free_from
            if length >= size and (best is None or length < best_length):
                best, best_length = free_from, length
        if high > free_from:
            free_from = -(-high // alignment) * alignment
    if best is None and free_from + size <= capacity:
        return free_from
    return best


@dataclass(frozen=True, slots=True)
class Block:
    """Allocations that must get one common offset: (start, end, size) pieces, ends included."""

    pieces: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> int:
        """Bytes of the largest piece."""
        return max(size for _, _, size in self.pieces)

    @property
    def duration(self) -> int:
        """From the first start to the last end."""
        return max(e for _, e, _ in self.pieces) - min(s for s, _, _ in self.pieces)


def repack(
    blocks: Sequence[Block], num_times: int, capacity: int, alignment: int
) -> list[int] | None:
    """New offsets, the longest blocks first, each by best fit; None if they do not all fit.

    Args:
      blocks: what may move.
      num_times: as for `ChunkHeap`.
      capacity: bytes.
      alignment: of offsets.
    """
    heap = ChunkHeap(num_times, capacity, alignment)
    offsets = [0] * len(blocks)
    order = sorted(range(len(blocks)), key=lambda i: (-blocks[i].duration, -blocks[i].size, i))
    for index in order:
        offset = common_fit(heap, blocks[index])
        if offset is None:
            return None
        offsets[index] = offset
        for start, end, size in blocks[index].pieces:
            heap.add(Chunk(start, end, offset, size))
    return offsets


def common_fit(heap: ChunkHeap, block: Block) -> int | None:
    """Best fit of one offset for all pieces of a block."""
    taken = [piece for start, end, _ in block.pieces for piece in heap.taken(start, end)]
    return best_gap(taken, block.size, heap.capacity, heap.alignment)
