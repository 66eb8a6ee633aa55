"""Every solver on every program, in parallel processes, resumable.

Each task (program, solver, seed) runs in a process of its own (`experiments.task_processes`);
failures are rows like all others. What is finished is in `results.jsonl` and is not done again. A
table may be extended by further runs, as far as its rows still compare (`experiments.folder`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from experiments.files import held
from experiments.folder import Run, code_digest, open_table, refuse_mixing
from experiments.results import Key, Row, append_row, has_rows, read_rows, write_table
from experiments.solvers_by_name import AGENTS, any_solver_named
from experiments.task_processes import run_tasks
from experiments.tasks import EvaluationSettings, ProgramSource, Task, source_of
from hlo_graphs import corpus
from hlo_graphs.chips import find_chip
from hlo_graphs.errors import InputError
from hlo_graphs.lower import BUSY
from malloc_game.generator import random_program
from malloc_game.simulate import COPY_ORDERS
from solvers.children import end_with_parent, start_child
from solvers.solver import SolveRequest, check_effort, solver_named


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
        for row in run_tasks(tasks, settings, directory, parallel):
            _check_agrees(directory, known, row)
            _check_code(directory, row)
            append_row(directory, row)
            known.append(row)
            if on_row is not None:
                on_row(row, len(known), total)
    finally:
        write_table(directory, read_rows(directory))
    return read_rows(directory)


def _checked(settings: EvaluationSettings, parallel: int) -> tuple[ProgramSource, ...]:
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
    if min(parallel, settings.workers_per_task) < 1:
        raise InputError(
            f"workers is {parallel} and cores is {settings.workers_per_task}: at least 1 of each"
        )
    for seed in settings.seeds:
        check_effort(settings.time_limit_seconds, seed, settings.workers_per_task)
    return sources


_CHOICES = {
    "times": ("calibrated", "analytic"),
    "copy_order": COPY_ORDERS,
    "busy": BUSY,
}


def _missing(
    settings: EvaluationSettings, sources: Sequence[ProgramSource], known: Iterable[Row]
) -> list[Task]:
    """The tasks that have no row yet, or failed."""
    done = {row.key for row in known if row.error is None}
    return [task for task in _tasks(settings, sources) if _key(task, settings) not in done]


def _tasks(settings: EvaluationSettings, sources: Sequence[ProgramSource]) -> Iterator[Task]:
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
    settings: EvaluationSettings, sources: Sequence[ProgramSource], parallel: int, command: str
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
    directory: Path, known: Iterable[Row], sources: Iterable[ProgramSource]
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

_WARMING_SECONDS = 60.0
"""What each of these may take to play a little."""


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
        request = SolveRequest(program, time_limit_seconds=_WARMING_SECONDS, max_games=400)
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


def shell_command() -> str:
    """The command that is running, as a user would type it."""
    return shlex.join(["malloc-game", *sys.argv[1:]])
