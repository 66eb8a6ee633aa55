"""Buffers of fixed lifetimes that want addresses, their files, and what is wrong with an answer.

File format: MiniMalloc's CSV (github.com/google/minimalloc).
"""

from __future__ import annotations

import csv
import io
import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hlo_graphs.errors import InputError
from hlo_graphs.text_files import read_text

MOST_UNITS = 2**62
"""Sizes, times and the capacity are below it: sums of two are counted in 64 bits."""


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


def read_minimalloc_csv(text: str, path: str = "<string>") -> tuple[PackItem, ...]:
    """Items of a MiniMalloc file: columns id, lower, upper (or an inclusive end), size.

    `alignment` and `offset` are read if present, other columns are ignored.

    Raises:
      InputError: for missing columns or values that are not whole numbers, with the line.
    """
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    try:
        return _items(rows, path)
    except csv.Error as error:  # A field of more than 128 KiB.
        raise InputError(f"{path}:{rows.line_num + 1}: {error}") from error


def _items(rows: csv.DictReader[str], path: str) -> tuple[PackItem, ...]:
    columns = set(rows.fieldnames or ())
    start_name = "lower" if "lower" in columns else "start"
    inclusive = "upper" not in columns
    end_name = "end" if inclusive else "upper"
    missing = {"id", start_name, end_name, "size"} - columns
    if missing:
        found = ", ".join(rows.fieldnames or ()) or "none"
        raise InputError(f"{path}:1: no column {', '.join(sorted(missing))}; found {found}")
    items: list[PackItem] = []
    for line, row in enumerate(rows, start=2):
        try:
            items.append(_item_of_row(row, start_name, end_name, inclusive))
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{path}:{line}: {error}") from error
    return tuple(items)


def _item_of_row(row: dict[str, str], start_name: str, end_name: str, inclusive: bool) -> PackItem:
    if None in (row["id"], row[start_name], row[end_name], row["size"]):
        raise ValueError("has fewer cells than there are columns")
    offset = (row.get("offset") or "").strip()
    item = PackItem(
        name=row["id"].strip(),
        start=int(row[start_name]),
        end=int(row[end_name]) + inclusive,
        size=int(row["size"]),
        alignment=int((row.get("alignment") or "1").strip() or "1"),
        fixed_offset=int(offset) if offset else None,
    )
    if item.start >= item.end or item.size < 0:
        raise ValueError(f"buffer {item.name}: empty lifetime, or negative size")
    if item.alignment < 1:
        raise ValueError(f"buffer {item.name}: alignment is {item.alignment}, must be 1 or more")
    if max(abs(item.start), abs(item.end), item.size, item.alignment) >= MOST_UNITS:
        raise ValueError(f"buffer {item.name}: a number is 2^62 or more")
    return item


def read_minimalloc_file(path: str | Path) -> tuple[PackItem, ...]:
    """`read_minimalloc_csv` of a file; `-` is the standard input."""
    return read_minimalloc_csv(read_text(path), str(path))


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
    """What is wrong with a packing, as sentences; unplaced items are not wrong.

    Items of no size share no byte with any other.
    """
    wrong: list[str] = []
    placed = [(i, o) for i, o in zip(items, offsets, strict=True) if o is not None]
    for item, offset in placed:
        if offset < 0 or offset + item.size > capacity or offset % item.alignment:
            wrong.append(f"{item.name} at {offset} is outside {capacity} or not aligned")
        if item.fixed_offset is not None and offset != item.fixed_offset:
            wrong.append(f"{item.name} is not at its fixed offset")
    sized = [(item, offset) for item, offset in placed if item.size > 0]
    for index, (item, offset) in enumerate(sized):
        for other, there in sized[:index]:
            in_time = item.start < other.end and other.start < item.end
            if in_time and offset < there + other.size and there < offset + item.size:
                wrong.append(f"{item.name} and {other.name} share bytes")
    return wrong


def peak_load(items: Sequence[PackItem]) -> int:
    """Most bytes alive at one step: no capacity below it can do."""
    return max(peak_loads(items), default=0)


def peak_loads(items: Sequence[PackItem]) -> list[int]:
    """Per item the most bytes that are alive at one step of its life."""
    change: dict[int, int] = {}
    for item in items:
        change[item.start] = change.get(item.start, 0) + item.size
        change[item.end] = change.get(item.end, 0) - item.size
    steps = sorted(change)
    loads = list(itertools.accumulate(change[step] for step in steps))
    return [
        max(loads[bisect_left(steps, item.start) : bisect_left(steps, item.end)]) for item in items
    ]
