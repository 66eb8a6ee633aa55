"""Offset packing: fixed lifetimes, one address range per buffer, no two sharing a byte at a time.

Constructive orders first (largest, longest or largest area first, at the lowest free address or
in the tightest hole), then a search over orders that moves what did not fit to the front, then
CP-SAT with the best order's packing as its hint. Problems fall apart at steps that no buffer
crosses; the parts are packed alone. File format: MiniMalloc's CSV (github.com/google/minimalloc).
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hlo_graphs.errors import InputError
from solvers.solver import Deadline, Status


@dataclass(frozen=True, slots=True)
class PackItem:
    """A buffer with a fixed lifetime.

    Attributes:
      name: for people and files.
      start: first step it lives.
      end: one past the last.
      size: bytes or any other unit, the same as the capacity's.
      alignment: its offset is a multiple of it.
      fixed_offset: where it must lie, None for anywhere.
    """

    name: str
    start: int
    end: int
    size: int
    alignment: int = 1
    fixed_offset: int | None = None


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


def read_minimalloc_csv(text: str, path: str = "<string>") -> tuple[PackItem, ...]:
    """Items of a MiniMalloc file: columns id, lower, upper (or an inclusive end), size.

    `alignment` and `offset` are read if present, other columns are ignored.

    Raises:
      InputError: for missing columns or values that are not whole numbers, with the line.
    """
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = set(rows.fieldnames or ())
    start_name = "lower" if "lower" in columns else "start"
    inclusive = "upper" not in columns
    end_name = "end" if inclusive else "upper"
    missing = {"id", start_name, end_name, "size"} - columns
    if missing:
        raise InputError(f"{path}:1: no column {', '.join(sorted(missing))}; found {columns}")
    items: list[PackItem] = []
    for line, row in enumerate(rows, start=2):
        try:
            items.append(_item_of_row(row, start_name, end_name, inclusive))
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{path}:{line}: {error}") from error
    return tuple(items)


def _item_of_row(row: dict[str, str], start_name: str, end_name: str, inclusive: bool) -> PackItem:
    offset = (row.get("offset") or "").strip()
    item = PackItem(
        name=row["id"].strip(),
        start=int(row[start_name]),
        end=int(row[end_name]) + inclusive,
        size=int(row["size"]),
        alignment=int((row.get("alignment") or "1").strip() or "1"),
        fixed_offset=int(offset) if offset else None,
    )
    if item.start >= item.end or item.size < 0 or item.alignment < 1:
        raise ValueError(f"buffer {item.name}: empty lifetime, negative size or alignment")
    return item


def read_minimalloc_file(path: Path) -> tuple[PackItem, ...]:
    """`read_minimalloc_csv` of a file."""
    return read_minimalloc_csv(path.read_text(), str(path))


def write_minimalloc_csv(items: Sequence[PackItem], offsets: Sequence[int | None]) -> str:
    """The items with their offsets, as MiniMalloc writes solutions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "lower", "upper", "size", "offset"])
    for item, offset in zip(items, offsets, strict=True):
        writer.writerow([item.name, item.start, item.end, item.size, offset])
    return out.getvalue()


def check_packing(
    items: Sequence[PackItem], capacity: int, offsets: Sequence[int | None]
) -> list[str]:
    """What is wrong with a packing, as sentences; unplaced items are not wrong."""
    wrong: list[str] = []
    placed = [(i, o) for i, o in zip(items, offsets, strict=True) if o is not None]
    for item, offset in placed:
        if offset < 0 or offset + item.size > capacity or offset % item.alignment:
            wrong.append(f"{item.name} at {offset} is outside {capacity} or not aligned")
        if item.fixed_offset is not None and offset != item.fixed_offset:
            wrong.append(f"{item.name} is not at its fixed offset")
    for index, (item, offset) in enumerate(placed):
        for other, there in placed[:index]:
            in_time = item.start < other.end and other.start < item.end
            if in_time and offset < there + other.size and there < offset + item.size:
                wrong.append(f"{item.name} and {other.name} share bytes")
    return wrong


def peak_load(items: Sequence[PackItem]) -> int:
    """Most bytes alive at one step: no capacity below it can do."""
    change: dict[int, int] = {}
    for item in items:
        change[item.start] = change.get(item.start, 0) + item.size
        change[item.end] = change.get(item.end, 0) - item.size
    load = peak = 0
    for step in sorted(change):
        load += change[step]
        peak = max(peak, load)
    return peak


def pack(
    items: Sequence[PackItem],
    capacity: int,
    *,
    time_limit_seconds: float = 10.0,
    seed: int = 0,
    workers: int = 1,
) -> Packing:
    """Places all items below `capacity` if it finds a way in time."""
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
    best = place_in_order(items, capacity, _by_size(items))
    if peak_load(items) > capacity:
        return best, Status.INFEASIBLE
    search = _OrderSearch(items, capacity, random.Random(seed))
    until = Deadline.after(deadline.remaining_seconds * 0.3)
    best = search.run(until)
    if None not in best:
        return best, Status.OPTIMAL
    if deadline.expired:
        return best, Status.UNKNOWN
    exact, status = _pack_exactly(items, capacity, best, deadline, seed, workers)
    return (exact if exact is not None else best), status


def _by_size(items: Sequence[PackItem]) -> list[int]:
    return sorted(range(len(items)), key=lambda i: (-items[i].size, items[i].start))


_ORDERS: tuple[Callable[[PackItem], tuple[float, ...]], ...] = (
    lambda item: (-item.size, item.start),
    lambda item: (-item.size * (item.end - item.start), item.start),
    lambda item: (item.start - item.end, -item.size),
    lambda item: (item.start, -item.size),
)


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
            if items[other].start < item.end and item.start < items[other].end
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


class _OrderSearch:
    """Squeaky wheel search: what does not fit moves towards the front of the order."""

    def __init__(self, items: Sequence[PackItem], capacity: int, rng: random.Random) -> None:
        self.items = items
        self.capacity = capacity
        self.rng = rng
        self.best: list[int | None] = [None] * len(items)
        self.best_missing = sum(item.size for item in items) + 1

    def run(self, until: Deadline) -> list[int | None]:
        """The packing that leaves the fewest bytes without a place."""
        for key in _ORDERS:
            for best_fit in (False, True):
                order = sorted(range(len(self.items)), key=lambda i: key(self.items[i]))
                if self._try(order, best_fit):
                    return self.best
        while not until.expired and self.best_missing > 0:
            key = self.rng.choice(_ORDERS)
            self._squeak(sorted(range(len(self.items)), key=lambda i: key(self.items[i])), until)
        return self.best

    def _squeak(self, order: list[int], until: Deadline) -> None:
        best_fit = self.rng.random() < 0.3
        for _ in range(60):
            if until.expired or self._try(order, best_fit):
                return
            missing = [i for i in order if self.last[i] is None]
            for index in missing:
                position = order.index(index)
                order.insert(self.rng.randint(0, max(position // 2, 0)), order.pop(position))
            swap = self.rng.randrange(len(order))
            order.insert(self.rng.randrange(len(order)), order.pop(swap))

    def _try(self, order: Sequence[int], best_fit: bool) -> bool:
        self.last = place_in_order(self.items, self.capacity, order, best_fit=best_fit)
        missing = sum(item.size for item, o in zip(self.items, self.last, strict=True) if o is None)
        missing += sum(1 for o in self.last if o is None)
        if missing < self.best_missing:
            self.best, self.best_missing = self.last, missing
        return missing == 0


def _pack_exactly(
    items: Sequence[PackItem],
    capacity: int,
    hint: Sequence[int | None],
    deadline: Deadline,
    seed: int,
    workers: int,
) -> tuple[list[int | None] | None, Status]:
    """CP-SAT's no-overlap in two dimensions, with the hint and redundant capacity."""
    from ortools.sat.python import cp_model

    from solvers.cp_sat import cp_solver, solved

    model = cp_model.CpModel()
    offsets = []
    across, along = [], []
    for item in items:
        highest = (capacity - item.size) // item.alignment
        if highest < 0:
            return None, Status.INFEASIBLE
        scaled = model.new_int_var(0, highest, item.name)
        if item.fixed_offset is not None:
            model.add(scaled * item.alignment == item.fixed_offset)
        offsets.append(scaled)
        start = scaled * item.alignment
        across.append(model.new_fixed_size_interval_var(start, item.size, ""))
        along.append(model.new_fixed_size_interval_var(item.start, item.end - item.start, ""))
    model.add_no_overlap_2d(along, across)
    for variable, item, offset in zip(offsets, items, hint, strict=True):
        if offset is not None:
            model.add_hint(variable, offset // item.alignment)
    solver = cp_solver(deadline, seed=seed, workers=workers)
    solver.parameters.use_energetic_reasoning_in_no_overlap_2d = True
    status = solved(solver, model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        found: list[int | None] = [
            solver.value(v) * item.alignment for v, item in zip(offsets, items, strict=True)
        ]
        if not check_packing(items, capacity, found):
            return found, Status.OPTIMAL
        return None, Status.UNKNOWN
    return None, Status.INFEASIBLE if status == cp_model.INFEASIBLE else Status.UNKNOWN
