"""Every solver on every program, in parallel processes, resumable.

Each task (program, solver, seed) runs in a process of its own, so that a crash or a hang is that
task's failure and no other's; failures are rows like all others. What is finished is in
`results.jsonl` and is not done again. A table may be extended by further runs, as far as its rows
still compare (`experiments.folder`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from experiments.files import write_atomically
from experiments.folder import (
    Run,
    code_digest,
    held,
    map_path,
    open_table,
    processor,
    refuse_mixing,
)
from experiments.inputs import DEFAULT_CHIP, LoadedProgram, is_program_document, lone_name
from experiments.results import Key, Row, TimeModel, append_row, has_rows, read_rows, write_table
from experiments.solvers_by_name import AGENTS, any_solver_named
from hlo_graphs import bundle as bundles
from hlo_graphs import corpus
from hlo_graphs.bundle import Bundle
from hlo_graphs.chips import find_chip
from hlo_graphs.errors import InputError
from hlo_graphs.lower import BUSY
from malloc_game.generator import random_program
from malloc_game.simulate import COPY_ORDERS
from solvers.children import deaf_to_interrupts, end_with_parent, start_child
from solvers.solver import Progress, SolveRequest, solver_named

OVERTIME_SECONDS = 60.0
"""What a task may take beyond its solver's limit (loading, checking, timing) before it is ended."""

_UNDER_WAY = "under way"
"""Status of a row that is not finished; no table has one."""

_CLEARING_SECONDS = 2.0
"""What tasks may take to clear up when they are ended from outside."""

LEAVING_SECONDS = 10.0
"""What a task's process may take to end once its row is there."""


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What one run of an evaluation does.

    Attributes:
      programs: corpus names, or paths of a user's own bundles and scheduled HLO files.
      solvers: registered names.
      seeds: each solver runs once per seed.
      time_limit_seconds: per task.
      workers_per_task: processes each solver may use.
      times: cost model.
      copy_order: "deadline" or "fifo".
      busy: which part of a slow access keeps the bus busy, "bytes" or "slow".
    """

    programs: tuple[str, ...]
    solvers: tuple[str, ...]
    seeds: tuple[int, ...]
    time_limit_seconds: float
    workers_per_task: int
    times: str
    copy_order: str
    busy: str

    @property
    def model(self) -> TimeModel:
        """How maps are timed: the same for all rows of a table."""
        return TimeModel(self.times, self.copy_order, self.busy)


@dataclass(frozen=True, slots=True)
class Source:
    """A program to evaluate.

    Attributes:
      name: its name in the table: a corpus name, or that of the user's bundle or file.
      path: what `load_program` takes for it: the corpus name, or an absolute path.
      bundle: its files, None for a lone HLO file.
      is_corpus: whether it is a program of the corpus.
      digest: of its files, 12 hex digits; None in the corpus.
    """

    name: str
    path: str
    bundle: Bundle | None
    is_corpus: bool
    digest: str | None = None

    @property
    def chip(self) -> str:
        """What it was compiled for; of a lone file, what it is taken for."""
        return (self.bundle and self.bundle.chip) or DEFAULT_CHIP


@dataclass(frozen=True, slots=True)
class Task:
    """One solver on one program with one seed."""

    source: Source
    solver: str
    seed: int


def source_of(text: str) -> Source:
    """The program that a corpus name or a path means.

    Raises:
      InputError: if it is neither, or a `Program`.
    """
    path = Path(text)
    if not path.is_file():
        bundle = corpus.bundle(text)
        return Source(bundle.key, bundle.key, bundle, is_corpus=True)
    found = bundles.bundle_of(path) if bundles.is_part(path) else None
    if found is None and is_program_document(path):
        raise InputError(
            f"{path}: is a Program or another document, not HLO: an evaluation times programs "
            "itself, so give their HLO (`solve` takes a Program too)"
        )
    name = lone_name(path) if found is None else found.key
    return Source(name, str(path.resolve()), found, is_corpus=False, digest=_digest(path, found))


def _digest(path: Path, bundle: Bundle | None) -> str:
    """Of a program's file, or of all of its bundle."""
    parts = (getattr(bundle, part) for part in bundles.PART_SUFFIXES) if bundle else (path,)
    digest = hashlib.sha256()
    for part in parts:
        if part is not None:
            digest.update(part.read_bytes())
    return digest.hexdigest()[:12]


def programs_of(suite: str) -> tuple[str, ...]:
    """Corpus names of a suite: "all", "train" or "test".

    Raises:
      InputError: for any other name.
    """
    if suite == "all":
        return corpus.names()
    if suite in ("train", "test"):
        return tuple(name for name in corpus.names() if corpus.family_of(name).split == suite)
    raise InputError(f"no suite is called {suite!r}: use all, train or test")


def evaluate(
    settings: EvaluationSettings,
    directory: Path,
    *,
    parallel: int = 1,
    any_processor: bool = False,
    command: str = "",
    on_row: Callable[[Row, int, int], None] | None = None,
) -> list[Row]:
    """Runs what a table lacks of these settings and returns all its rows.

    Args:
      settings: what to run.
      directory: of the table; made if need be, extended if it has one already.
      parallel: tasks at a time.
      any_processor: add to a table that was begun on another processor, too.
      command: kept beside the table, for whoever wants to make it again.
      on_row: told of each finished row, with how many are done and how many there are.

    Raises:
      InputError: for settings that make no sense, a table whose rows would not compare with the
        new ones, or one whose programs take another time now; or if another evaluation is at
        work in the folder.
    """
    sources = _checked(settings, parallel)
    with held(directory):
        known = read_rows(directory) if has_rows(directory) else []
        _refuse_other_programs(directory, known, sources)
        tasks = _missing(settings, sources, known)
        again = {_key(task, settings) for task in tasks}
        known = [row for row in known if row.key not in again]  # failed rows
        refuse_mixing(directory, known, {task.solver for task in tasks})
        run = _run_of(settings, sources, parallel, command)
        open_table(directory, settings.model, run, any_processor=any_processor)
        return _filled(settings, tasks, known, directory, parallel, on_row)


def failed_of(settings: EvaluationSettings, rows: Iterable[Row]) -> list[Row]:
    """The failed rows of a table that these settings ask for."""
    sources = [source_of(text) for text in settings.programs]
    asked = {_key(task, settings) for task in _tasks(settings, sources)}
    return [row for row in rows if row.error is not None and row.key in asked]


def _filled(
    settings: EvaluationSettings,
    tasks: Sequence[Task],
    known: list[Row],
    directory: Path,
    parallel: int,
    on_row: Callable[[Row, int, int], None] | None,
) -> list[Row]:
    """All rows, once the tasks have run; of a folder that nobody else writes into."""
    total = len(known) + len(tasks)
    _compile_games(tasks)
    try:
        for row in _run(tasks, settings, directory, parallel):
            _check_agrees(directory, known, row)
            _check_code(directory, row)
            append_row(directory, row)
            known.append(row)
            if on_row is not None:
                on_row(row, len(known), total)
    finally:
        write_table(directory, read_rows(directory))
    return read_rows(directory)


def _checked(settings: EvaluationSettings, parallel: int) -> tuple[Source, ...]:
    """The programs; raises InputError for what would make every task fail, or none run."""
    for name in settings.solvers:
        any_solver_named(name)
    sources = tuple(source_of(text) for text in settings.programs)
    for source in sources:
        try:
            find_chip(source.chip)
        except InputError as error:
            raise InputError(f"{source.path}: {error}") from error
        if settings.times == "calibrated" and (source.bundle is None or not source.bundle.cycles):
            raise InputError(
                f"{source.path}: no compiler cycles beside it: use --times analytic, or a bundle "
                "that `malloc-game extract` made"
            )
    names = {
        "programs": [source.name for source in sources],
        "solvers": settings.solvers,
        "seeds": settings.seeds,
    }
    for what, values in names.items():
        if not values:
            raise InputError(f"an evaluation of no {what} shows nothing: name at least one")
        twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
        if twice:
            of = [str(source.path) for source in sources if source.name in twice]
            files = f" (of {', '.join(of)}): rename a file" if what == "programs" else ""
            raise InputError(f"{what} named twice: {', '.join(map(str, twice))}{files}")
    for what, allowed in _CHOICES.items():
        if getattr(settings, what) not in allowed:
            found = getattr(settings, what)
            raise InputError(f"unknown {what} {found!r}: use {' or '.join(allowed)}")
    if not 0 <= settings.time_limit_seconds < math.inf:
        raise InputError(f"time limit is {settings.time_limit_seconds} seconds, must be >= 0")
    if min(parallel, settings.workers_per_task) < 1:
        raise InputError(
            f"workers is {parallel} and cores is {settings.workers_per_task}: at least 1 of each"
        )
    return sources


_CHOICES = {
    "times": ("calibrated", "analytic"),
    "copy_order": COPY_ORDERS,
    "busy": BUSY,
}


def _missing(
    settings: EvaluationSettings, sources: Sequence[Source], known: Iterable[Row]
) -> list[Task]:
    """The tasks that have no row yet, or failed."""
    done = {row.key for row in known if row.error is None}
    return [task for task in _tasks(settings, sources) if _key(task, settings) not in done]


def _tasks(settings: EvaluationSettings, sources: Sequence[Source]) -> Iterator[Task]:
    """All that the settings ask for, a seed before the next."""
    for seed in settings.seeds:
        for source in sources:
            for solver in settings.solvers:
                yield Task(source, solver, seed)


def _key(task: Task, settings: EvaluationSettings) -> Key:
    """Of the row a task makes."""
    return (
        *(task.source.name, task.solver, task.seed),
        *(settings.time_limit_seconds, settings.workers_per_task),
    )


def _run_of(
    settings: EvaluationSettings, sources: Sequence[Source], parallel: int, command: str
) -> Run:
    return Run(
        programs=tuple(source.name for source in sources),
        solvers=settings.solvers,
        seeds=settings.seeds,
        time_limit_seconds=settings.time_limit_seconds,
        workers_per_task=settings.workers_per_task,
        parallel=parallel,
        command=command,
    )


def _refuse_other_programs(
    directory: Path, known: Iterable[Row], sources: Iterable[Source]
) -> None:
    """Raises InputError if a name of the table now means another file, or other content."""
    rows: Mapping[str, Row] = {row.program: row for row in known if row.error is None}
    for source in sources:
        before = rows.get(source.name)
        if before is None:
            continue
        if before.source != source.path:
            raise InputError(
                f"{directory}: {source.name} is {before.source} there, not {source.path}: "
                "rename the file, or choose another folder"
            )
        if before.source_digest not in (None, source.digest):
            raise InputError(
                f"{directory}: {source.path} was another program when its rows there were made: "
                "rename the file, or choose another folder"
            )


_SEARCHES = ("cross-entropy", "evolution", "local-search", "random")
"""Solvers that between them use all of the compiled game."""


def _compile_games(tasks: Iterable[Task]) -> None:
    """Compiles the game where solvers play it, unless it is kept from before.

    In a fresh checkout that takes half a minute, which the first rows would count as searching.
    """
    if {task.solver for task in tasks} & {*_SEARCHES, *AGENTS, "portfolio"}:
        start_child(_play_a_little, ()).join()


def _play_a_little() -> None:
    end_with_parent()
    program = random_program(0)
    for name in _SEARCHES:
        request = SolveRequest(program, time_limit_seconds=OVERTIME_SECONDS, max_games=400)
        solver_named(name).solve(request)


def _check_agrees(directory: Path, known: Iterable[Row], row: Row) -> None:
    """Raises InputError if the program's known times are not what they were in older rows.

    The time with everything slow, and production's, depend on no solver: if one differs, then the
    program, the cost model or the simulator has changed, and the rows would not compare.
    """
    for other in known:
        if other.program != row.program or other.error is not None:
            continue
        if None in (other.all_slow_seconds, row.all_slow_seconds):
            continue
        if other.own_times != row.own_times:
            raise InputError(
                f"{directory}: {row.program} takes {row.own_times} s now (all in slow memory, "
                f"production's map), {other.own_times} s in the table: its times have changed; "
                "choose another folder"
            )


def _check_code(directory: Path, row: Row) -> None:
    """Raises InputError if the row is of other code than that which this evaluation began with."""
    if row.code != code_digest():
        raise InputError(
            f"{directory}: the project's code has changed while it was running ({code_digest()}, "
            f"now {row.code}): choose another folder, or put the code back"
        )


@dataclass(slots=True)
class _Running:
    """A task at work, on processors of its own unless there are too few (None).

    `known` has the columns that are known so far: soon what the program takes by itself.
    """

    task: Task
    processors: frozenset[int] | None
    process: Any
    inbox: Connection
    began: float
    known: Row

    @property
    def is_overdue(self) -> bool:
        """Whether it has taken more than its solver's limit and what goes around it."""
        limit = self.known.time_limit_seconds + OVERTIME_SECONDS
        return time.monotonic() > self.began + limit


def _run(
    tasks: Sequence[Task], settings: EvaluationSettings, directory: Path, parallel: int
) -> Iterable[Row]:
    """Rows as they finish; at most `parallel` processes at a time."""
    context = multiprocessing.get_context("spawn")
    waiting, running = list(tasks), list[_Running]()
    free = processor_sets(parallel, settings.workers_per_task)
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(context, waiting.pop(0), settings, directory, free.pop(0)))
            wait([r.inbox for r in running], timeout=1.0)
            for one in list(running):
                row = _collect(one)
                if row is not None:
                    running.remove(one)
                    free.append(one.processors)
                    yield row
    finally:
        _end_all([one.process for one in running])


def processor_sets(parallel: int, cores: int) -> list[frozenset[int] | None]:
    """Where each of `parallel` tasks may run: on `cores` processors of its own.

    A library that starts as many threads as there are processors (jax) would take its neighbour's
    otherwise. None for all, where there are too few or the system cannot confine a process.
    """
    if not hasattr(os, "sched_setaffinity"):
        return [None] * parallel
    here = sorted(os.sched_getaffinity(0))
    if parallel * cores > len(here):
        return [None] * parallel
    return [frozenset(here[first * cores : (first + 1) * cores]) for first in range(parallel)]


def _start(
    context: Any,
    task: Task,
    settings: EvaluationSettings,
    directory: Path,
    processors: frozenset[int] | None,
) -> _Running:
    inbox, outbox = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, settings, directory, processors, outbox))
    with deaf_to_interrupts():
        process.start()
    outbox.close()
    known = _row_without_result(task, settings)
    return _Running(task, processors, process, inbox, time.monotonic(), known)


def _collect(running: _Running) -> Row | None:
    """The row of a task that ended, well or not; None if it still runs."""
    while running.inbox.poll():
        try:
            row = running.inbox.recv()
        except (EOFError, OSError):  # The latter if it ended in the middle of a message.
            _end(running.process)
            return _failed(running, f"its process ended with {running.process.exitcode}")
        assert isinstance(row, Row)
        if row.status != _UNDER_WAY:
            _end(running.process)
            if row.error is None:
                return row
            return replace(_failed(running, row.error), code=row.code)
        running.known = row
    if running.is_overdue:
        _end_all([running.process])
        return _failed(running, "did not return in time")
    return None


def _failed(running: _Running, why: str) -> Row:
    seconds = time.monotonic() - running.began
    return replace(running.known, status="failed", error=why, wall_seconds=seconds)


def _end_all(processes: Sequence[Any]) -> None:
    """Ends tasks under way: they may remove what lies in temporary folders, for a moment."""
    for process in processes:
        process.terminate()
    latest = time.monotonic() + _CLEARING_SECONDS
    for process in processes:
        process.join(max(0.0, latest - time.monotonic()))
        process.kill()
        process.join()


def _end(process: Any) -> None:
    """Waits for a process that has said all it had to say, but not for ever."""
    process.join(LEAVING_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _work(
    task: Task,
    settings: EvaluationSettings,
    directory: Path,
    processors: frozenset[int] | None,
    outbox: Connection,
) -> None:
    """In the child: solve, keep the map, send the row."""
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that what is left to do is done.
    code_digest()  # Remembered: of the code that solves, whatever becomes of the files meanwhile.
    if processors is not None:
        os.sched_setaffinity(0, processors)
    try:
        row = _solve(task, settings, directory, outbox)
    except Exception as error:  # the row says why; the evaluation goes on
        why = f"{type(error).__name__}: {error}"
        row = replace(_row_without_result(task, settings), status="failed", error=why)
    outbox.send(row)
    outbox.close()


def _solve(task: Task, settings: EvaluationSettings, directory: Path, outbox: Connection) -> Row:
    from experiments.inputs import load_program
    from experiments.solve import solve

    loaded = load_program(task.source.path, times=settings.times, busy=settings.busy)
    known = _row_of_program(task, settings, loaded)
    outbox.send(known)  # In case there is no result.
    program = loaded.program
    curve: list[tuple[float, float | None, float | None]] = []

    def note(progress: Progress) -> None:
        incumbent, bound = (
            None if ticks is None else ticks * program.tick_seconds
            for ticks in (progress.incumbent_ticks, progress.bound_ticks)
        )
        curve.append((progress.seconds, incumbent, bound))

    result = solve(
        loaded,
        solver=task.solver,
        time_limit_seconds=settings.time_limit_seconds,
        seed=task.seed,
        workers=settings.workers_per_task,
        copy_order=settings.copy_order,
        on_progress=note,
    )
    row = replace(
        known,
        status=result.solution.status.value,
        latency_seconds=result.latency_seconds,
        stall_seconds=result.simulation.stall_seconds,
        lower_bound_seconds=result.lower_bound_seconds,
        peak_fast_bytes=result.simulation.peak_fast_bytes,
        bus_bytes=result.simulation.bus_bytes,
        num_copies=result.simulation.num_copies,
        games_played=result.solution.games_played,
        wall_seconds=result.wall_seconds,
        curve=tuple(curve),
    )
    write_atomically(map_path(directory, row), result.map_json())
    return row


def _row_of_program(task: Task, settings: EvaluationSettings, loaded: LoadedProgram) -> Row:
    """With the columns that depend on the program alone."""
    from experiments.benchmarks.production import model_error
    from malloc_game.simulate import simulate

    program, production = loaded.program, loaded.production_map
    theirs = None if production is None else simulate(program, production, settings.copy_order)
    return replace(
        _row_without_result(task, settings),
        chip=program.machine.chip,
        capacity_bytes=program.capacity_bytes,
        all_slow_seconds=program.all_slow_seconds,
        production_seconds=None if theirs is None else theirs.latency_seconds,
        production_stall_seconds=None if theirs is None else theirs.stall_seconds,
        model_error=model_error(loaded, task.source.bundle),
    )


def _row_without_result(task: Task, settings: EvaluationSettings) -> Row:
    """The columns that are known before a task runs."""
    source = task.source
    bundle = source.bundle
    meta = None
    if bundle is not None and bundle.cycles is not None:
        with contextlib.suppress(InputError):  # which the task itself will tell
            meta = bundles.read_cycles(bundle.cycles).meta
    family = corpus.family_of(source.name) if source.is_corpus else None
    return Row(
        program=source.name,
        source=source.path,
        source_digest=source.digest,
        family=source.name if family is None else family.name,
        split="own" if family is None else family.split,
        chip=source.chip,
        capacity_bytes=(
            find_chip(source.chip).assignable_bytes if meta is None else meta.capacity_bytes
        ),
        is_native=bundle is None or bundle.capacity_tag is None,
        times=settings.times,
        copy_order=settings.copy_order,
        busy=settings.busy,
        solver=task.solver,
        seed=task.seed,
        time_limit_seconds=settings.time_limit_seconds,
        workers_per_task=settings.workers_per_task,
        code=code_digest(),
        status=_UNDER_WAY,
        processor=processor(),
    )


def shell_command() -> str:
    """The command that is running, as a user would type it."""
    return shlex.join(["malloc-game", *sys.argv[1:]])
