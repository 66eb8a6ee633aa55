"""Copy engines: who is served from a step's idle time, and how long a late copy stalls.

One engine serves the copies of one loop (or of the program outside all loops). The simulator
steps through the program, hands each engine the idle time it may use, and asks for a stall when
a copy is due. Sources: docs/simulator.md, "Time", and OpenXLA's `RuntimeSimulator`
(`xla/service/memory_space_assignment/simulator.cc`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from malloc_game.copies import Copy, Direction


@dataclass(slots=True)
class Transfer:
    """A copy on its way; times in ticks of one trip of its loop.

    Attributes:
      copy: what is copied.
      remaining: bus time that is still missing.
      stall: how long the program stood still before the copy's deadline for it.
      served: (step, bus time) of every time that it was served.
    """

    copy: Copy
    remaining: float
    stall: float = 0
    served: list[tuple[int, float]] = field(default_factory=list)

    def serve(self, ticks: float, step: int) -> None:
        """Gives it `ticks` of bus time during `step`."""
        self.remaining -= ticks
        self.served.append((step, ticks))


class CopyEngine(Protocol):
    """Serves the copies of one loop."""

    def issue(self, order: int, transfer: Transfer) -> None:
        """Takes on a copy; `order` is its place in the map."""

    def serve(self, idle: float, step: int) -> float:
        """Uses up to `idle` ticks of `step`, and returns what it leaves."""

    def finish(self, transfer: Transfer) -> float:
        """Completes a copy that is due, and returns the stall in ticks."""


class DeadlineEngine:
    """Earliest deadline first; ties by issue, then by the order in the map. Exact integers.

    A late copy is served alone: the stall is what it still misses.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, int, Transfer]] = []

    def issue(self, order: int, transfer: Transfer) -> None:
        """Takes on a copy."""
        copy = transfer.copy
        heapq.heappush(self._waiting, (copy.deadline, copy.issue, order, transfer))

    def serve(self, idle: float, step: int) -> float:
        """Uses up to `idle` ticks of `step`, and returns what it leaves."""
        while idle > 0 and self._waiting:
            transfer = self._waiting[0][3]
            given = min(idle, transfer.remaining)
            if given > 0:
                transfer.serve(given, step)
                idle -= given
            if transfer.remaining == 0:
                heapq.heappop(self._waiting)
        return idle

    def finish(self, transfer: Transfer) -> float:
        """Completes a copy that is due; it stays in the heap as a served one until popped."""
        transfer.stall, transfer.remaining = transfer.remaining, 0
        return transfer.stall


class FifoEngine:
    """OpenXLA's two queues, reads (prefetches) and writes (evictions), sharing the bandwidth.

    While both queues hold copies each head has half of the bandwidth. A copy that is due drains
    its own queue up to itself, the other queue going on at half speed beside it. Times are
    floats: halves of ticks occur.
    """

    def __init__(self) -> None:
        self._queues: dict[Direction, deque[Transfer]] = {d: deque() for d in Direction}

    def issue(self, order: int, transfer: Transfer) -> None:
        """Takes on a copy, behind those of its direction."""
        self._queues[transfer.copy.direction].append(transfer)

    def serve(self, idle: float, step: int) -> float:
        """Uses up to `idle` ticks of `step`, and returns what it leaves."""
        while idle > 0 and (heads := self._heads()):
            needed = min(head.remaining for head in heads) * len(heads)
            used = min(idle, needed)
            for head in heads:
                head.serve(used / len(heads), step)
            idle -= used
        return idle

    def finish(self, transfer: Transfer) -> float:
        """Completes a copy that is due, and all before it in its queue."""
        own = self._queues[transfer.copy.direction]
        while transfer.remaining > 0:
            heads = self._heads()
            least = min(head.remaining for head in heads)
            for head in heads:
                head.remaining -= least
            transfer.stall += least * len(heads)
            while own and own[0].remaining <= 0:
                own.popleft()
        return transfer.stall

    def _heads(self) -> Sequence[Transfer]:
        """The unfinished copy at the head of each queue that has one."""
        for queue in self._queues.values():
            while queue and queue[0].remaining <= 0:
                queue.popleft()
        return [queue[0] for queue in self._queues.values() if queue]
