"""Offset packing: fixed lifetimes, one address range per buffer, no two sharing a byte at a time.

Constructive orders first (largest, longest or largest area first, at the lowest free address or
in the tightest hole), then an exhaustive search (`solvers.packing_search`). Problems fall apart at
steps that no buffer crosses; the parts are packed alone.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hlo_graphs.errors import InputError
from solvers.pack_items import MOST_UNITS, PackItem, check_packing, peak_load, peak_loads
from solvers.packing_search import IMPOSSIBLE, RUNNING, PackingSearch
from solvers.solver import Deadline, Status


@dataclass(frozen=True, slots=True)
class Packing:
    """An answer.

    Attributes:
      offsets: one per item, None where an item did not fit.
      status: optimal if all fit, infeasible if proven impossible, else unknown.
      wall_seconds: time taken.
    """

    offsets: tuple[int | None, ...]
    status: Status
    wall_seconds: float

    @property
    def complete(self) -> bool:
        """Whether every item has its place."""
        return self.status is Status.OPTIMAL


def pack(
    items: Sequence[PackItem],
    capacity: int,
    *,
    time_limit_seconds: float = 10.0,
    workers: int = 1,
) -> Packing:
    """Places all items below `capacity` if it finds a way in time.

    A KeyboardInterrupt ends it. Code that is compiled the first time cannot be cut short.

    Raises:
      InputError: for a capacity that is too large to count with.
    """
    if capacity >= MOST_UNITS:
        raise InputError(f"capacity is {capacity}, must be below 2^62")
    deadline = Deadline.after(time_limit_seconds)
    offsets: list[int | None] = [None] * len(items)
    status = Status.OPTIMAL
    for part in components(items):
        chosen = [items[index] for index in part]
        found, part_status = _pack_component(chosen, capacity, deadline, workers)
        for index, offset in zip(part, found, strict=True):
            offsets[index] = offset
        if part_status is not Status.OPTIMAL and status is not Status.INFEASIBLE:
            status = part_status
    return Packing(tuple(offsets), status, deadline.elapsed_seconds)


def components(items: Sequence[PackItem]) -> list[list[int]]:
    """Groups of items between the steps that nothing crosses."""
    order = sorted(range(len(items)), key=lambda i: (items[i].start, items[i].end))
    groups: list[list[int]] = []
    reach = None
    for index in order:
        if reach is None or items[index].start >= reach:
            groups.append([])
            reach = items[index].end
        groups[-1].append(index)
        reach = max(reach, items[index].end)
    return groups


def _pack_component(
    items: Sequence[PackItem], capacity: int, deadline: Deadline, workers: int
) -> tuple[list[int | None], Status]:
    fixed = [item.fixed_offset for item in items]
    if check_packing(items, capacity, fixed):
        return [None] * len(items), Status.INFEASIBLE
    best = _constructed(items, capacity)
    if None not in best:
        return best, Status.OPTIMAL
    if peak_load(items) > capacity:
        return best, Status.INFEASIBLE
    searched, status = _searched(items, capacity, deadline, workers)
    return searched or best, status


_ORDERS: tuple[Callable[[PackItem], tuple[float, ...]], ...] = (
    lambda item: (-item.size, item.start),
    lambda item: (-item.size * (item.end - item.start), item.start),
    lambda item: (item.start - item.end, -item.size),
    lambda item: (item.start, -item.size),
)


def _constructed(items: Sequence[PackItem], capacity: int) -> list[int | None]:
    """Of the packings in simple orders the one that leaves the fewest bytes without a place."""
    found = [
        place_in_order(items, capacity, order, best_fit=best_fit)
        for order in (sorted(range(len(items)), key=lambda i: key(items[i])) for key in _ORDERS)
        for best_fit in (False, True)
    ]
    return min(found, key=lambda offsets: _missing(items, offsets))


def _missing(items: Sequence[PackItem], offsets: Sequence[int | None]) -> tuple[int, int]:
    """Bytes, and items, without a place."""
    sizes = [item.size for item, o in zip(items, offsets, strict=True) if o is None]
    return sum(sizes), len(sizes)


_SLICE_NODES = 10_000
"""Of one search at a time: some hundredths of a second."""


def _searched(
    items: Sequence[PackItem], capacity: int, deadline: Deadline, workers: int
) -> tuple[list[int | None] | None, Status]:
    """What the first of several exhaustive searches finds: they break ties in different ways."""
    searches = _searches(items, capacity)
    is_over = threading.Event()

    def run(own: Sequence[PackingSearch]) -> PackingSearch | None:
        for search in itertools.cycle(own):
            if is_over.is_set() or deadline.expired:
                return None
            if search.run(_SLICE_NODES) != RUNNING:
                is_over.set()
                return search
        return None

    with ThreadPoolExecutor(workers) as pool:
        running = [
            pool.submit(run, searches[k::workers]) for k in range(min(workers, len(searches)))
        ]
        try:
            ended = [search for search in (future.result() for future in running) if search]
        finally:
            is_over.set()
    if not ended:
        return None, Status.UNKNOWN
    if ended[0].status == IMPOSSIBLE:
        return None, Status.INFEASIBLE
    placed = iter(ended[0].offsets())
    return [
        next(placed) if _is_free(item) else item.fixed_offset or 0 for item in items
    ], Status.OPTIMAL


def _is_free(item: PackItem) -> bool:
    """Whether it needs a place that is not given."""
    return item.fixed_offset is None and item.size > 0


def _searches(items: Sequence[PackItem], capacity: int) -> list[PackingSearch]:
    """Largest areas first; or those that meet the most bytes, of these the longest, or largest."""
    free = [item for item in items if _is_free(item)]
    fixed = [item for item in items if item.fixed_offset is not None]
    areas = [item.size * (item.end - item.start) for item in free]
    peaks = peak_loads(free)
    keys: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda i: (-areas[i],),
        lambda i: (-peaks[i], free[i].start - free[i].end, -areas[i]),
        lambda i: (-peaks[i], -areas[i]),
    )
    orders = (sorted(range(len(free)), key=key) for key in keys)
    return [PackingSearch(free, fixed, capacity, order) for order in orders]


def place_in_order(
    items: Sequence[PackItem], capacity: int, order: Sequence[int], *, best_fit: bool = False
) -> list[int | None]:
    """Places items one after the other, at the lowest free address or in the tightest hole."""
    offsets: list[int | None] = [None] * len(items)
    fixed = [index for index in order if items[index].fixed_offset is not None]
    done: list[int] = []
    for index in fixed:
        offsets[index] = items[index].fixed_offset
        done.append(index)
    for index in order:
        item = items[index]
        if item.fixed_offset is not None:
            continue
        blocking = sorted(
            (offsets[other] or 0, (offsets[other] or 0) + items[other].size)
            for other in done
            if items[other].start < item.end
            and item.start < items[other].end
            and items[other].size > 0
        )
        offsets[index] = _hole(blocking, capacity, item, best_fit)
        if offsets[index] is not None:
            done.append(index)
    return offsets


def _hole(
    blocking: Sequence[tuple[int, int]], capacity: int, item: PackItem, best_fit: bool
) -> int | None:
    cursor = 0
    best: tuple[int, int] | None = None
    for low, high in [*blocking, (capacity, capacity)]:
        start = -(-cursor // item.alignment) * item.alignment
        if low - start >= item.size and (best is None or low - start < best[0]):
            best = (low - start, start)
            if not best_fit:
                break
        cursor = max(cursor, high)
    return None if best is None else best[1]
