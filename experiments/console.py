"""What the command line shows on a terminal."""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments.sizes import format_size
from hlo_graphs.errors import InputError, MallocGameError

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from experiments.inputs import LoadedProgram
    from experiments.programs import CorpusRow, Description
    from experiments.results import Row
    from experiments.solve import SolveResult
    from solvers.solver import Progress


def show_error(message: str) -> None:
    """One message on standard error."""
    print(f"malloc-game: error: {message}", file=sys.stderr)


def show_notes(*messages: str) -> None:
    """Remarks on standard error, where they are in nobody's way."""
    for message in messages:
        print(f"malloc-game: {message}", file=sys.stderr)


INTERRUPTED = 130
"""Exit code of what was interrupted before there was an answer."""


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """Around a `main`: every expected failure is one message and its exit code."""
    try:
        yield
    except MallocGameError as error:
        show_error(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:  # Nobody reads the output any more, nor what is left to be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        show_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(InputError.exit_code)
    except KeyboardInterrupt:
        show_error("interrupted")
        sys.exit(INTERRUPTED)


def fitted(text: str) -> str:
    """What of a line that is written over and over fits the terminal: more would scroll it."""
    width = shutil.get_terminal_size().columns - 1
    return text if len(text) <= width else f"{text[: width - 1]}…"


class LiveLine:
    """The line that shows a running solver: time, incumbent, bound, gap, and who found it.

    Writes to standard error, and only if that is a terminal; every second, so that its clock goes.
    """

    def __init__(self, loaded: LoadedProgram, *, enabled: bool) -> None:
        self._enabled = enabled and sys.stderr.isatty()
        self._tick_seconds = loaded.program.tick_seconds
        self._incumbent_ticks: float | None = None
        self._bound_ticks: float | None = None
        self._who = ""
        self._began = time.monotonic()
        self._writing = threading.Lock()
        self._is_over = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> LiveLine:
        self._began = time.monotonic()
        if self._enabled:
            self._clock.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        if self._enabled:
            self._clock.join()
            sys.stderr.write("\r\x1b[2K")

    def update(self, progress: Progress) -> None:
        """Shows one event; the line keeps the best of each figure so far."""
        if progress.incumbent_ticks is not None and (
            self._incumbent_ticks is None or progress.incumbent_ticks < self._incumbent_ticks
        ):
            self._incumbent_ticks = progress.incumbent_ticks
            self._who = progress.who
        if progress.bound_ticks is not None:
            self._bound_ticks = max(progress.bound_ticks, self._bound_ticks or 0.0)
        self._draw()

    def _tick(self) -> None:
        # A terminal that was closed takes no more.
        with suppress(OSError):
            while not self._is_over.wait(1.0):
                self._draw()

    def _draw(self) -> None:
        if self._enabled:
            with self._writing:
                sys.stderr.write(f"\r\x1b[2K{fitted(self._text())}")
                sys.stderr.flush()

    def _text(self) -> str:
        from solvers.solver import gap_between

        parts = [f"{time.monotonic() - self._began:7.1f} s"]
        if self._incumbent_ticks is not None:
            parts.append(f"best {_milliseconds(self._incumbent_ticks * self._tick_seconds)}")
        if self._bound_ticks is not None:
            parts.append(f"bound {_milliseconds(self._bound_ticks * self._tick_seconds)}")
            if self._incumbent_ticks is not None:
                gap = gap_between(self._incumbent_ticks, self._bound_ticks)
                if gap is not None and math.isfinite(gap):
                    parts.append(f"gap {gap:.2%}")
        return "  ".join([*parts, self._who])


def print_result(result: SolveResult, remarks: Sequence[str] = ()) -> None:
    """The table of one solved program, and what else there is to say of it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    program = result.program
    title = escape(f"{program.name} on {program.machine.chip}")
    table = Table(title=title, show_header=True)
    table.add_column("")
    table.add_column(escape(result.solution.solver), justify="right")
    table.add_column("production", justify="right")
    for label, ours, theirs in _result_rows(result):
        table.add_row(label, ours, theirs)
    Console().print(table)
    for note in result.solution.notes:
        print(f"note: {note}")
    for remark in remarks:
        print(remark)


def _result_rows(result: SolveResult) -> list[tuple[str, str, str]]:
    ours, theirs, program = result.simulation, result.production, result.program
    all_slow, bound, gap = result.all_slow_latency_seconds, result.lower_bound_seconds, result.gap
    speedup = result.speedup_over_production

    def production(text: str) -> str:
        return "" if theirs is None else text

    def beside(latency_seconds: float) -> str:
        return f"{all_slow / latency_seconds:.3f}x" if latency_seconds else "-"

    theirs_seconds = 0.0 if theirs is None else theirs.latency_seconds
    return [
        ("latency", _milliseconds(ours.latency_seconds), production(_milliseconds(theirs_seconds))),
        ("over production", "-" if speedup is None else f"{speedup:.4f}x", production("1x")),
        ("over all slow", beside(ours.latency_seconds), production(beside(theirs_seconds))),
        ("lower bound", "-" if bound is None else _milliseconds(bound), ""),
        (
            "gap to the bound",
            "-" if gap is None or math.isinf(gap) else f"{gap:.2%}",
            production("-" if not bound else f"{theirs_seconds / bound - 1:.2%}"),
        ),
        (
            "stalls",
            _milliseconds(ours.stall_seconds),
            production(_milliseconds(0.0 if theirs is None else theirs.stall_seconds)),
        ),
        (
            f"peak of {format_size(program.capacity_bytes)}",
            format_size(ours.peak_fast_bytes),
            production(format_size(0 if theirs is None else theirs.peak_fast_bytes)),
        ),
        (
            "bytes over the bus",
            format_size(ours.bus_bytes),
            production(format_size(0 if theirs is None else theirs.bus_bytes)),
        ),
        (
            "copies",
            str(ours.num_copies),
            production(str(0 if theirs is None else theirs.num_copies)),
        ),
        ("times", program.times + ("" if result.copy_order == "deadline" else ", fifo"), ""),
        ("status", result.solution.status.value, ""),
        ("solver seconds", f"{result.wall_seconds:.2f}", ""),
    ]


def _wide_console() -> Console:
    """As wide as the terminal; a file or a pipe has room for every column."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4f} ms"


def print_programs(rows: Sequence[CorpusRow], unmeasured: Sequence[tuple[str, str]]) -> None:
    """The corpus as a table; of the unmeasured programs only name and split are known."""
    from rich.table import Table

    console = _wide_console()
    columns = _PROGRAM_COLUMNS
    if console.width < _PROGRAM_TABLE_WIDTH:
        columns = tuple(column for column in columns if column.is_told_when_narrow)
    table = Table(title=f"{len(rows) + len(unmeasured)} programs")
    for column in columns:
        is_name = column.header == "program"
        table.add_column(
            column.header,
            justify=column.justify,
            no_wrap=not is_name,
            overflow="fold" if is_name else "ellipsis",
        )
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    for name, split in unmeasured:
        table.add_row(name, split, *["-"] * (len(columns) - 2))
    console.print(table)


@dataclass(frozen=True)
class _ProgramColumn:
    header: str
    justify: Literal["left", "right"]
    is_told_when_narrow: bool
    cell: Callable[[CorpusRow], str]


# Terminals narrower than that are told only what tells programs apart and what is to be gained.
_PROGRAM_TABLE_WIDTH = 140
# Name and split come first: they are all that is known of an unmeasured program.
_PROGRAM_COLUMNS: tuple[_ProgramColumn, ...] = (
    _ProgramColumn("program", "left", True, lambda row: row.name),
    _ProgramColumn("split", "left", True, lambda row: row.split),
    _ProgramColumn("chip", "left", False, lambda row: row.chip),
    _ProgramColumn("fast", "right", False, lambda row: format_size(row.capacity_bytes)),
    _ProgramColumn("steps", "right", False, lambda row: str(row.num_steps)),
    _ProgramColumn("accesses", "right", True, lambda row: str(row.num_accesses)),
    _ProgramColumn("loops", "right", False, lambda row: str(row.num_loops)),
    _ProgramColumn("all slow", "right", False, lambda row: _milliseconds(row.all_slow_seconds)),
    _ProgramColumn("production", "right", True, lambda row: _milliseconds(row.production_seconds)),
    _ProgramColumn("bound", "right", False, lambda row: _milliseconds(row.lower_bound_seconds)),
    _ProgramColumn("headroom", "right", True, lambda row: f"{row.headroom:.1%}"),
)


def print_row(row: Row, done: int, total: int) -> None:
    """One finished row of an evaluation."""
    if row.error is not None or row.latency_seconds is None:
        print(f"[{done}/{total}] {row.program} {row.solver} seed {row.seed}: failed: {row.error}")
        return
    beside = "-"
    if row.production_seconds is not None:
        beside = f"{row.production_seconds / row.latency_seconds:.4f}x production"
    bound = ""
    if row.lower_bound_seconds:
        bound = f", {row.latency_seconds / row.lower_bound_seconds - 1:.2%} over the bound"
    print(
        f"[{done}/{total}] {row.program} {row.solver} seed {row.seed}: "
        f"{_milliseconds(row.latency_seconds)}, {beside}{bound}, {row.wall_seconds:.1f} s",
        flush=True,
    )


def print_accesses(description: Description) -> None:
    """A program's figures, then its most expensive slow accesses."""
    from rich.markup import escape
    from rich.table import Table

    console = _wide_console()
    for label, value in description.figures:
        console.print(f"{label:>28}  {value}", highlight=False, markup=False)
    table = Table(title="what slow accesses cost most")
    for header in ("step", "instruction", "kind", "buffer", "size", "costs alone", "may be fast"):
        # A name cut short is no name: fusion.104 and fusion.107 would look alike.
        table.add_column(header, overflow="fold")
    for cost in description.costliest:
        table.add_row(
            str(cost.step),
            escape(cost.instruction),
            cost.kind,
            escape(cost.buffer),
            format_size(cost.size_bytes),
            _milliseconds(cost.seconds),
            "yes" if cost.may_be_fast else "no",
        )
    console.print(table)
