"""Every buffer's lanes, with what is fixed about residencies over their items.

Nothing here depends on a memory map, so one table serves every plan of a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hlo_graphs.program import Program
from solvers.timeline import Lane, begins_with_write, lanes_of


@dataclass(frozen=True, slots=True)
class LaneTable:
    """The lanes of a program; everything but `index` is by lane, the lists by item within it.

    Attributes:
      lanes: of every buffer that may be in fast memory; `Lane.parent` counts within them.
      index: of the lane of a buffer in a scope, by (buffer, loop).
      inner: by item, for those that are loops: the lanes inside that loop, however deep.
      write_before: the first step after the last item before it that writes or is a loop. A
        prefetch window begins no earlier: the slow copy would be stale, or a residency of the
        loop's own might be in the way.
      starts_empty: whether a residency that begins with it is produced there, not copied.
      last_write: the last item up to it that writes; -1 if there is none.
    """

    lanes: tuple[Lane, ...]
    index: dict[tuple[int, int | None], int]
    inner: list[dict[int, tuple[int, ...]]]
    write_before: list[list[int]]
    starts_empty: list[list[bool]]
    last_write: list[list[int]]

    @classmethod
    def of(cls, program: Program) -> LaneTable:
        """The table of a program."""
        lanes = all_lanes(program)
        return cls(
            lanes=lanes,
            index={(lane.buffer, lane.loop): i for i, lane in enumerate(lanes)},
            inner=_inner_lanes(lanes),
            write_before=[_write_before(lane) for lane in lanes],
            starts_empty=[_starts_empty(program, lane) for lane in lanes],
            last_write=[_last_write(lane) for lane in lanes],
        )

    def must_evict(self, lane_index: int, first: int, last: int) -> bool:
        """Whether a residency over items `first..last` must be written back."""
        return self.lanes[lane_index].needed_after[last] and (
            self.last_write[lane_index][last] >= first
        )


def all_lanes(program: Program) -> tuple[Lane, ...]:
    """Lanes of every buffer that may be in fast memory; `Lane.parent` counts within all."""
    lanes: list[Lane] = []
    for buffer in range(len(program.buffers)):
        if program.may_be_resident(buffer):
            offset = len(lanes)
            lanes.extend(_shifted(lane, offset) for lane in lanes_of(program, buffer))
    return tuple(lanes)


def _shifted(lane: Lane, offset: int) -> Lane:
    if lane.parent is None:
        return lane
    return replace(lane, parent=(lane.parent[0] + offset, lane.parent[1]))


def _inner_lanes(lanes: Sequence[Lane]) -> list[dict[int, tuple[int, ...]]]:
    inner: list[dict[int, list[int]]] = [{} for _ in lanes]
    for index, lane in enumerate(lanes):
        around = lane.parent
        while around is not None:
            inner[around[0]].setdefault(around[1], []).append(index)
            around = lanes[around[0]].parent
    return [{position: tuple(found) for position, found in row.items()} for row in inner]


def _write_before(lane: Lane) -> list[int]:
    floors: list[int] = []
    floor = lane.start_step
    for item in lane.items:
        floors.append(floor)
        if item.writes or item.loop is not None:
            floor = item.end_step
    return floors


def _starts_empty(program: Program, lane: Lane) -> list[bool]:
    undefined = lane.loop is None and not program.buffers[lane.buffer].has_content_at_start
    found: list[bool] = []
    for item in lane.items:
        found.append(undefined or begins_with_write(item))
        undefined = undefined and not item.writes
    return found


def _last_write(lane: Lane) -> list[int]:
    found: list[int] = []
    last = -1
    for position, item in enumerate(lane.items):
        last = position if item.writes else last
        found.append(last)
    return found
