"""What each program of the corpus is, and how much its production placement leaves to gain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hlo_graphs import corpus
from hlo_graphs.bundle import (
    Bundle,
    CyclePoint,
    read_bufferinfo,
    read_cycles,
    read_points,
    read_scheduleinfo,
)


@dataclass(frozen=True, slots=True)
class HeadroomRow:
    """A program of the corpus in the compiler's own cycles, each instruction counted once.

    `floor_cycles` adds up the least cycles any compile stated for each instruction, and is None
    where no compile had a huge fast memory; `headroom` is production over that floor. No schedule
    need reach it: capacity and copies are not in it. Instructions in loops count once, not once
    per trip.
    """

    key: str
    family: str
    split: str
    instructions: int
    accesses: int
    capacity_bytes: int
    no_fast_memory_cycles: int
    production_cycles: int
    floor_cycles: int | None

    @property
    def headroom(self) -> float | None:
        """Production's cycles over the floor's; None where the floor is unknown."""
        if self.floor_cycles is None:
            return None
        return self.production_cycles / max(self.floor_cycles, 1)


def headroom_rows(names: Iterable[str] | None = None) -> tuple[HeadroomRow, ...]:
    """One row per program (by default of the whole corpus)."""
    chosen = corpus.names() if names is None else names
    return tuple(_row(corpus.bundle(name)) for name in chosen)


def markdown_table(rows: Iterable[HeadroomRow]) -> str:
    """The rows as a Markdown table; cycles in millions."""
    lines = [
        "| program | family | split | instructions | accesses | MiB | no fast memory | production "
        "| floor | production / floor |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = (
            row.key,
            row.family,
            row.split,
            str(row.instructions),
            str(row.accesses),
            str(row.capacity_bytes // 2**20),
            f"{row.no_fast_memory_cycles / 1e6:.3f}",
            f"{row.production_cycles / 1e6:.3f}",
            "unknown" if row.floor_cycles is None else f"{row.floor_cycles / 1e6:.3f}",
            "unknown" if row.headroom is None else f"{row.headroom:.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _row(bundle: Bundle) -> HeadroomRow:
    if bundle.cycles is None:
        raise FileNotFoundError(f"{bundle.key}: the corpus holds no cycles of it")
    table = read_cycles(bundle.cycles)
    points = [table.none, table.production]
    points += [] if table.huge is None else [table.huge]
    points += [] if bundle.points is None else read_points(bundle.points)
    shared = table.none.cycles.keys() & table.production.cycles.keys()
    family = corpus.family_of(bundle.key)
    return HeadroomRow(
        key=bundle.key,
        family=family.name,
        split=family.split,
        instructions=_instruction_count(bundle),
        accesses=_access_count(bundle),
        capacity_bytes=table.production_size_bytes,
        no_fast_memory_cycles=_total(table.none.cycles, shared),
        production_cycles=_total(table.production.cycles, shared),
        floor_cycles=None if table.huge is None else sum(_least(points, name) for name in shared),
    )


def _total(cycles: Mapping[str, int], names: Iterable[str]) -> int:
    return sum(cycles[name] for name in names)


def _least(points: Iterable[CyclePoint], name: str) -> int:
    return min(point.cycles[name] for point in points if name in point.cycles)


def _instruction_count(bundle: Bundle) -> int:
    return 0 if bundle.scheduleinfo is None else len(read_scheduleinfo(bundle.scheduleinfo))


def _access_count(bundle: Bundle) -> int:
    """Definitions and uses of the buffers the production assignment considered."""
    if bundle.bufferinfo is None:
        return 0
    rows = {row.name: row for row in read_bufferinfo(bundle.bufferinfo) if not row.is_scoped}
    return sum(1 + len(row.uses) for row in rows.values())
