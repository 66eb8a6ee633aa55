"""What there is to know of programs before solving them: the corpus table, and one in detail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.inputs import LoadedProgram, load_program
from experiments.sizes import format_size
from hlo_graphs import corpus
from hlo_graphs.errors import InputError
from hlo_graphs.program import Access, Instruction, Program
from malloc_game.simulate import simulate
from solvers.bounds import bound_program

NUM_COSTLIEST = 20
"""Rows of the table of expensive accesses."""

BOUND_SECONDS = 20.0
"""Time for each program's lower bound."""


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """One program of the corpus.

    Attributes:
      headroom: production's latency over the certified bound, minus one: what could be gained
        at most.
    """

    name: str
    split: str
    chip: str
    capacity_bytes: int
    num_steps: int
    num_accesses: int
    num_loops: int
    all_slow_seconds: float
    production_seconds: float
    lower_bound_seconds: float
    headroom: float

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


TABLE = Path(__file__).with_name("programs.json")
"""The committed table; `malloc-game programs --measure -o experiments/programs.json` adds to it."""


def committed_table() -> list[CorpusRow]:
    """The programs of the corpus that were measured, as they were then.

    Raises:
      InputError: if the table is damaged.
    """
    if not TABLE.exists():
        return []
    try:
        rows = [CorpusRow(**row) for row in json.loads(TABLE.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{TABLE}: no table of the corpus ({error}); use --measure") from error
    known = corpus.names()
    return [row for row in rows if row.name in known]


def unmeasured(rows: Iterable[CorpusRow]) -> list[tuple[str, str]]:
    """(name, split) of the corpus programs that have no row."""
    measured = {row.name for row in rows}
    return [(n, corpus.family_of(n).split) for n in corpus.names() if n not in measured]


def measured_table(
    known: Iterable[CorpusRow], on_row: Callable[[CorpusRow], None]
) -> list[CorpusRow]:
    """The known rows, and one for every other program of the corpus, measured now.

    A KeyboardInterrupt leaves those that were measured.
    """
    rows = {row.name: row for row in known}
    with suppress(KeyboardInterrupt):
        for name, split in unmeasured(rows.values()):
            rows[name] = corpus_row(name, split)
            on_row(rows[name])
    return [rows[name] for name in sorted(rows)]


def corpus_row(name: str, split: str) -> CorpusRow:
    """One row of the table."""
    loaded = load_program(name)
    program = loaded.program
    if loaded.production_map is None:
        raise AssertionError(f"{name}: a corpus program without production's answer")
    production = simulate(program, loaded.production_map)
    bound_ticks = bound_program(program, BOUND_SECONDS).ticks
    return CorpusRow(
        name=name,
        split=split,
        chip=program.machine.chip,
        capacity_bytes=program.capacity_bytes,
        num_steps=program.num_steps,
        num_accesses=num_decidable_accesses(program),
        num_loops=len(program.loops),
        all_slow_seconds=program.all_slow_seconds,
        production_seconds=production.latency_seconds,
        lower_bound_seconds=bound_ticks * program.tick_seconds,
        headroom=production.latency_ticks / bound_ticks - 1,
    )


def num_decidable_accesses(program: Program) -> int:
    """Accesses of buffers that may lie in fast memory: the decisions there are."""
    return sum(
        program.may_be_resident(access.buffer)
        for instruction in program.instructions
        for access in instruction.accesses
    )


@dataclass(frozen=True, slots=True)
class AccessCost:
    """What one access alone adds to the program's time when it is slow and all others fast.

    Attributes:
      seconds: over the whole run, repeats included.
    """

    step: int
    instruction: str
    kind: str
    buffer: str
    size_bytes: int
    seconds: float
    may_be_fast: bool


@dataclass(frozen=True, slots=True)
class Description:
    """One program in detail: labelled figures, and its most expensive accesses."""

    figures: tuple[tuple[str, str], ...]
    costliest: tuple[AccessCost, ...]

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"figures": dict(self.figures), "costliest": [asdict(c) for c in self.costliest]}


def describe(loaded: LoadedProgram) -> Description:
    """The figures `malloc-game info` prints."""
    program = loaded.program
    costs = sorted(_access_costs(program), key=lambda cost: -cost.seconds)
    return Description(tuple(_figures(loaded)), tuple(costs[:NUM_COSTLIEST]))


def _figures(loaded: LoadedProgram) -> list[tuple[str, str]]:
    program = loaded.program
    stated = sum(
        i.repeat * i.elapsed_ticks(i.accesses) for i in program.instructions if i.stated_cycles
    )
    total_bytes = sum(buffer.size_bytes for buffer in program.buffers)
    movable = [b for i, b in enumerate(program.buffers) if program.may_be_resident(i)]
    rows = [
        ("program", program.name),
        ("chip", program.machine.chip),
        ("fast memory", format_size(program.capacity_bytes)),
        ("steps", str(program.num_steps)),
        ("loops and branches", str(len(program.loops))),
        ("buffers", f"{len(program.buffers)}, {format_size(total_bytes)}"),
        (
            "of which may be fast",
            f"{len(movable)}, {format_size(sum(b.size_bytes for b in movable))}",
        ),
        ("accesses to decide", str(num_decidable_accesses(program))),
        (
            "times",
            f"{program.times}, {stated / max(program.all_slow_ticks, 1):.1%} from the compiler",
        ),
        ("all in slow memory", _milliseconds(program, program.all_slow_ticks)),
        ("all in fast memory", _milliseconds(program, program.all_fast_ticks)),
    ]
    if loaded.production_map is not None:
        production = simulate(program, loaded.production_map)
        rows.append(("production's map", _milliseconds(program, production.latency_ticks)))
    return rows


def _milliseconds(program: Program, ticks: float) -> str:
    return f"{ticks * program.tick_seconds * 1e3:.4f} ms"


def _access_costs(program: Program) -> list[AccessCost]:
    return [
        AccessCost(
            step=step,
            instruction=instruction.name,
            kind=access.kind.value,
            buffer=program.buffers[access.buffer].name,
            size_bytes=access.size_bytes,
            seconds=_alone_ticks(instruction, access) * program.tick_seconds,
            may_be_fast=program.may_be_resident(access.buffer),
        )
        for step, instruction in enumerate(program.instructions)
        for access in instruction.accesses
    ]


def _alone_ticks(instruction: Instruction, access: Access) -> float:
    """What the step takes longer for this access, all others fast."""
    return instruction.repeat * (
        instruction.elapsed_ticks([access]) - instruction.elapsed_ticks([])
    )
