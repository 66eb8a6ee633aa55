"""Offset packing: fixed lifetimes, one address range per buffer, no two sharing a byte at a time.

Constructive orders first (largest, longest or largest area first, at the lowest free address or
in the tightest hole), then exhaustive searches (`solvers.packing_search`). Problems fall apart at
steps that no buffer crosses; the parts are packed alone.
"""

from __future__ import annotations

import itertools
import math
import random
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
    seed: int = 0,
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
        found, part_status = _pack_component(chosen, capacity, deadline, seed, workers)
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
    items: Sequence[PackItem], capacity: int, deadline: Deadline, seed: int, workers: int
) -> tuple[list[int | None], Status]:
    fixed = [item.fixed_offset for item in items]
    if check_packing(items, capacity, fixed):
        return [None] * len(items), Status.INFEASIBLE
    best = _constructed(items, capacity)
    if None not in best:
        return best, Status.OPTIMAL
    if peak_load(items) > capacity:
        return best, Status.INFEASIBLE
    searched, status = _searched(items, capacity, deadline, seed, workers)
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
"""Of a search that goes on: some hundredths of a second."""

_DRAWN, _DRAWN_NODES = 4, 2000
"""How many others follow such a slice, and how far each goes: those that do well are soon done."""


def _searched(
    items: Sequence[PackItem], capacity: int, deadline: Deadline, seed: int, workers: int
) -> tuple[list[int | None] | None, Status]:
    """What the first of many exhaustive searches finds: they break ties in different ways.

    Three go on for as long as it takes. Between their slices others, whose order is drawn, go a
    little way: a search that has begun badly does not recover, and another one may begin well.
    """
    problem = _Unplaced(items, capacity)
    lasting = [problem.search(order) for order in problem.orders()]
    is_over = threading.Event()

    def run(worker: int) -> PackingSearch | None:
        rng = random.Random(f"{seed}/{worker}")
        own = lasting[worker::workers]
        for turn in itertools.count():
            if is_over.is_set() or deadline.expired:
                return None
            round_number, place = divmod(turn, 1 + _DRAWN)
            if place == 0 and own:
                search, nodes = own[round_number % len(own)], _SLICE_NODES
            else:
                search, nodes = problem.search(problem.drawn_order(rng)), _DRAWN_NODES
            if search.run(nodes) != RUNNING:
                is_over.set()
                return search
        return None

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(run, worker) for worker in range(workers)]
        try:
            ended = [search for search in (future.result() for future in running) if search]
        finally:
            is_over.set()
    if not ended:
        return None, Status.UNKNOWN
    if ended[0].status == IMPOSSIBLE:
        return None, Status.INFEASIBLE
    placed = iter(ended[0].offsets())
    offsets: list[int | None] = [
        next(placed) if _is_free(item) else item.fixed_offset or 0 for item in items
    ]
    return offsets, Status.OPTIMAL


def _is_free(item: PackItem) -> bool:
    """Whether it needs a place that is not given."""
    return item.fixed_offset is None and item.size > 0


class _Unplaced:
    """The items that need a place, and orders to break ties by."""

    def __init__(self, items: Sequence[PackItem], capacity: int) -> None:
        self._capacity = capacity
        self._free = [item for item in items if _is_free(item)]
        self._fixed = [item for item in items if item.fixed_offset is not None]
        self._sizes = [item.size for item in self._free]
        self._lengths = [item.end - item.start for item in self._free]
        self._areas = [item.size * (item.end - item.start) for item in self._free]
        self._peaks = peak_loads(self._free)

    def search(self, order: Sequence[int]) -> PackingSearch:
        """A search that has not begun."""
        return PackingSearch(self._free, self._fixed, self._capacity, order)

    def orders(self) -> list[list[int]]:
        """Largest areas first; or what meets the most bytes, of these the longest, or largest."""
        lengths, areas, peaks = self._lengths, self._areas, self._peaks
        keys: tuple[Callable[[int], tuple[int, ...]], ...] = (
            lambda i: (-areas[i],),
            lambda i: (-peaks[i], -lengths[i], -areas[i]),
            lambda i: (-peaks[i], -areas[i]),
        )
        return [sorted(range(len(self._free)), key=key) for key in keys]

    def drawn_order(self, rng: random.Random) -> list[int]:
        """One like these, its figures blurred."""
        figures = rng.choice((self._areas, self._lengths, self._sizes))
        blur, levels = rng.choice(_BLURS), rng.choice(_PEAK_LEVELS)
        blurred = [figure * math.exp(rng.gauss(0, blur)) for figure in figures]
        most = max(self._peaks)
        level = [round(levels * peak / most) for peak in self._peaks]
        return sorted(range(len(self._free)), key=lambda i: (-level[i], -blurred[i]))


_BLURS = (0.05, 0.15, 0.3, 0.6)
_PEAK_LEVELS = (0, 5, 10, 20)
"""Into how many classes the bytes that an item meets are put; with 0 they do not count."""


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
