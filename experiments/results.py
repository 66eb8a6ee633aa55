"""The table of an evaluation: one row per program, solver and seed; JSON lines and CSV.

`results.jsonl` is only ever appended to, one whole line at a time, so that whatever kills an
evaluation loses no finished row; a line cut off in the middle is ignored when it is read again.
Where only the CSV was kept, rows are read from it, without their anytime curves.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from experiments.files import write_atomically
from hlo_graphs.errors import InputError

RESULTS = "results.jsonl"
TABLE = "results.csv"

Key = tuple[str, str, int, float, int]
"""Program, solver, seed, time limit in seconds, processes: what makes a row one of its table."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A time that was measured or simulated."""


@dataclass(frozen=True, slots=True)
class TimeModel:
    """How maps are timed; one table has one.

    Attributes:
      times: cost model, "calibrated" or "analytic".
      copy_order: "deadline" or "fifo".
      busy: which part of a slow access keeps the bus busy, "bytes" or "slow".
    """

    times: str
    copy_order: str
    busy: str

    @property
    def label(self) -> str:
        """For people: "calibrated, fifo"; what is usual is left out."""
        extras = [self.copy_order] if self.copy_order != "deadline" else []
        extras += ["stricter bus"] if self.busy != "bytes" else []
        return ", ".join([self.times, *extras])


@dataclass(frozen=True, slots=True)
class Row:
    """One solver's result on one program; times in seconds, None where nothing is known.

    Attributes:
      program: corpus name, or that of the user's own bundle or file.
      source: what `load_program` takes for it: a corpus name or a path.
      family: of the model; programs of a family are on one side of the split. Of a program that
        is not in the corpus its own name.
      split: "train", "test", or "own" for a program that is not in the corpus.
      chip: what it was compiled for.
      capacity_bytes: fast memory for tensors.
      is_native: the chip's own capacity, not a reduced one.
      times: cost model ("calibrated" or "analytic").
      copy_order: "deadline" or "fifo".
      busy: which part of a slow access keeps the bus busy, "bytes" or "slow".
      solver: its registered name.
      seed: the run's.
      time_limit_seconds: given to the solver.
      workers_per_task: processes the solver could use.
      code: digest of the sources and weights that made the row (`experiments.folder.code_digest`).
      processor: that it was made on, by name; None in tables older than this column.
      status: as in `solvers.solver.Status`, or "failed".
      latency_seconds: of the map, stalls included.
      stall_seconds: of the map.
      all_slow_seconds: with everything in slow memory.
      production_seconds: of production's map in the same simulator.
      production_stall_seconds: of production's map.
      lower_bound_seconds: the certified bound the solver returned.
      model_error: simulated over compiler cycles at production's placement, minus one.
      peak_fast_bytes: of the map.
      bus_bytes: of the map.
      num_copies: of the map.
      games_played: maps or games evaluated on the way.
      wall_seconds: the solver's; of a failed row the task's.
      error: why it failed, None if it did not.
      source_digest: of the program's files, 12 hex digits; None in the corpus, and where it was
        not kept.
      curve: the anytime curve: (seconds, incumbent or None, bound or None) at each improvement.
    """

    program: str
    source: str
    family: str
    split: str
    chip: str
    capacity_bytes: int
    is_native: bool
    times: str
    copy_order: str
    busy: str
    solver: str
    seed: int
    time_limit_seconds: float
    workers_per_task: int
    code: str
    status: str
    processor: str | None = None
    latency_seconds: Seconds | None = None
    stall_seconds: Seconds | None = None
    all_slow_seconds: Seconds | None = None
    production_seconds: Seconds | None = None
    production_stall_seconds: Seconds | None = None
    lower_bound_seconds: Seconds | None = None
    model_error: float | None = None
    peak_fast_bytes: int | None = None
    bus_bytes: int | None = None
    num_copies: int | None = None
    games_played: int | None = None
    wall_seconds: Seconds | None = None
    error: str | None = None
    source_digest: str | None = None
    curve: tuple[tuple[float, float | None, float | None], ...] = ()

    @property
    def own_times(self) -> tuple[float | None, float | None]:
        """What the program takes by itself: with everything slow, and under production's map."""
        return self.all_slow_seconds, self.production_seconds

    @property
    def key(self) -> Key:
        """What makes a row one of its table."""
        return (
            *(self.program, self.solver, self.seed),
            *(self.time_limit_seconds, self.workers_per_task),
        )


_COLUMNS = frozenset(field.name for field in fields(Row))
_ROW = TypeAdapter(Row)


def append_row(directory: Path, row: Row) -> None:
    """Adds a row and waits until it is on disk."""
    path = directory / RESULTS
    needs_break = _ends_in_mid_line(path)
    with path.open("ab") as file:
        line = ("\n" if needs_break else "") + json.dumps(asdict(row)) + "\n"
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _ends_in_mid_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def has_rows(directory: Path) -> bool:
    """Whether the folder holds a table that rows can be added to."""
    return (directory / RESULTS).exists()


def read_rows(directory: Path) -> list[Row]:
    """The finished rows of an evaluation, in the order in which they finished.

    Of a task that failed and was run again the last. Of a table of which only the CSV was kept, in
    its order, without curves.

    Raises:
      InputError: if the folder holds no table, or one of another version.
    """
    path = directory / RESULTS
    if not path.exists():
        if (directory / TABLE).exists():
            return _rows_of_table(directory / TABLE)
        raise InputError(f"{directory}: no {RESULTS} there; `malloc-game evaluate` writes one")
    rows: dict[Key, Row] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        row = _row(line)
        if row is not None:
            rows.pop(row.key, None)
            rows[row.key] = row
    return list(rows.values())


def _row(line: str) -> Row | None:
    """A row of the table; None for a line that was cut off.

    Raises:
      InputError: for a whole line that is no such row: dropping it would lose a result.
    """
    other = f"{RESULTS} has a row of another version"
    try:
        document = json.loads(line)
    except ValueError:
        return None
    except RecursionError as error:
        raise InputError(f"{other}: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{other}: a {type(document).__name__}, not an object")
    unknown = sorted(set(document) - _COLUMNS)
    if unknown:
        raise InputError(f"{other}: with {', '.join(unknown)}")
    try:
        return _ROW.validate_python(document)
    except ValidationError as error:
        place, words = _first_wrong(error)
        raise InputError(f"{other}: {'.'.join(place)}: {words}") from error


def _first_wrong(error: ValidationError) -> tuple[list[str], str]:
    """Where the first wrong value is, and what is wrong with it."""
    first = error.errors()[0]
    return [str(part) for part in first["loc"]], first["msg"]


def _rows_of_table(path: Path) -> list[Row]:
    """Rows from CSV, which has empty cells for None; raises InputError if they are none."""
    lines = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8", errors="replace")))
    known = [{name: value for name, value in line.items() if value != ""} for line in lines]
    try:
        return TypeAdapter(list[Row]).validate_python(known)
    except ValidationError as error:
        (number, *column), words = _first_wrong(error)
        place = f"row {int(number) + 1}, {'.'.join(column)}"
        raise InputError(f"{path}: {place}: {words}") from error


def write_table(directory: Path, rows: Iterable[Row]) -> None:
    """The rows as CSV, without the curves, sorted by program, solver and seed."""
    names = [field.name for field in fields(Row) if field.name != "curve"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in sorted(rows, key=lambda row: row.key):
        values = [getattr(row, name) for name in names]
        writer.writerow(["" if value is None else value for value in values])
    write_atomically(directory / TABLE, text.getvalue())
