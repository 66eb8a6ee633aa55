"""Every solver on every program, in parallel processes, resumable.

Each task (program, solver, seed) runs in a process of its own, so that a crash or a hang is that
task's failure and no other's; failures are rows like all others. What is finished is in
`results.jsonl` and is not done again; `settings.json` says what the table was made with, and a
folder made with other settings is refused.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from experiments.files import write_atomically
from experiments.results import Row, append_row, read_rows, write_table
from experiments.solvers_by_name import any_solver_named
from hlo_graphs import corpus
from hlo_graphs.errors import InputError
from hlo_graphs.lower import BUSY
from solvers.solver import COPY_ORDERS, Progress

SETTINGS = "settings.json"
MAPS = "maps"

OVERTIME_SECONDS = 60.0
"""What a task may take beyond its solver's limit (loading, checking, timing) before it is ended."""

LEAVING_SECONDS = 10.0
"""What a task's process may take to end once its row is there."""


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What an evaluation runs; two tables compare only if these agree.

    Attributes:
      programs: corpus names.
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


@dataclass(frozen=True, slots=True)
class Task:
    """One solver on one program with one seed."""

    program: str
    solver: str
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """The row it makes."""
        return (self.program, self.solver, self.seed)

    @property
    def map_name(self) -> str:
        """File name of its map."""
        return f"{self.program}.{self.solver}.{self.seed}.json"


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
    command: str = "",
    on_row: Callable[[Row, int, int], None] | None = None,
) -> list[Row]:
    """Runs what is missing of an evaluation and returns all its rows.

    Args:
      settings: what to run.
      directory: of the table; made if need be.
      parallel: tasks at a time.
      command: kept beside the table, for whoever wants to make it again.
      on_row: told of each finished row, with how many are done and how many there are.

    Raises:
      InputError: for settings that make no sense, or a folder with others.
    """
    _check(settings, parallel)
    _prepare(settings, directory, command)
    done = {row.key for row in read_rows(directory)}
    tasks = [task for task in _tasks(settings) if task.key not in done]
    total = len(done) + len(tasks)
    for row in _run(tasks, settings, directory, parallel):
        append_row(directory, row)
        done.add(row.key)
        if on_row is not None:
            on_row(row, len(done), total)
    rows = read_rows(directory)
    write_table(directory, rows)
    return rows


def _check(settings: EvaluationSettings, parallel: int) -> None:
    """Raises InputError for what would otherwise make every task fail, or none run."""
    for name in settings.programs:
        corpus.bundle(name)
    for name in settings.solvers:
        any_solver_named(name)
    for what in ("programs", "solvers", "seeds"):
        values = getattr(settings, what)
        if not values:
            raise InputError(f"an evaluation of no {what} shows nothing: name at least one")
        if len(set(values)) < len(values):
            raise InputError(f"{what} are named twice: {', '.join(map(str, values))}")
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


_CHOICES = {
    "times": ("calibrated", "analytic"),
    "copy_order": COPY_ORDERS,
    "busy": BUSY,
}


def _prepare(settings: EvaluationSettings, directory: Path, command: str) -> None:
    """Makes the folder, or checks that it is of the same evaluation."""
    (directory / MAPS).mkdir(parents=True, exist_ok=True)
    path = directory / SETTINGS
    wanted = json.loads(json.dumps(asdict(settings)))
    if path.exists():
        found = json.loads(path.read_text())["settings"]
        differing = sorted(name for name in wanted if found.get(name) != wanted[name])
        if differing:
            raise InputError(
                f"{directory}: holds an evaluation with another {', '.join(differing)}; "
                "choose another folder"
            )
    else:
        document = {"settings": wanted, "command": command, "machine": machine()}
        write_atomically(path, json.dumps(document, indent=2) + "\n")
    (directory / "results.jsonl").touch()


def machine() -> dict[str, Any]:
    """What the table was made on: versions, processor, cores."""
    packages = ("malloc-game", "numba", "numpy", "ortools", "scipy")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _tasks(settings: EvaluationSettings) -> Iterable[Task]:
    for seed in settings.seeds:
        for program in settings.programs:
            for solver in settings.solvers:
                yield Task(program, solver, seed)


@dataclass(frozen=True, slots=True)
class _Running:
    """A task at work."""

    task: Task
    process: Any
    inbox: Connection
    deadline: float


def _run(
    tasks: Sequence[Task], settings: EvaluationSettings, directory: Path, parallel: int
) -> Iterable[Row]:
    """Rows as they finish; at most `parallel` processes at a time."""
    context = multiprocessing.get_context("spawn")
    waiting, running = list(tasks), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                running.append(_start(context, waiting.pop(0), settings, directory))
            wait([r.inbox for r in running], timeout=1.0)
            for one in list(running):
                row = _collect(one, settings)
                if row is not None:
                    running.remove(one)
                    yield row
    finally:
        for one in running:
            one.process.kill()


def _start(context: Any, task: Task, settings: EvaluationSettings, directory: Path) -> _Running:
    inbox, outbox = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, settings, directory, outbox))
    process.start()
    outbox.close()
    limit = settings.time_limit_seconds + OVERTIME_SECONDS
    return _Running(task, process, inbox, time.monotonic() + limit)


def _collect(running: _Running, settings: EvaluationSettings) -> Row | None:
    """The row of a task that ended, well or not; None if it still runs."""
    if running.inbox.poll():
        try:
            row = running.inbox.recv()
        except EOFError:
            _end(running.process)
            row = _failure(
                running.task, settings, f"its process ended with {running.process.exitcode}"
            )
        _end(running.process)
        assert isinstance(row, Row)
        return row
    if time.monotonic() > running.deadline:
        running.process.kill()
        running.process.join()
        return _failure(running.task, settings, "did not return in time")
    return None


def _end(process: Any) -> None:
    """Waits for a process that has said all it had to say, but not for ever."""
    process.join(LEAVING_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _work(task: Task, settings: EvaluationSettings, directory: Path, outbox: Connection) -> None:
    """In the child: solve, keep the map, send the row."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        row = _solve(task, settings, directory)
    except Exception as error:  # the row says why; the evaluation goes on
        row = _failure(task, settings, f"{type(error).__name__}: {error}")
    outbox.send(row)
    outbox.close()


def _end_with_parent() -> None:
    """Ends this process once nobody waits for its row: a killed evaluation leaves none behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _solve(task: Task, settings: EvaluationSettings, directory: Path) -> Row:
    from experiments.benchmarks.production import model_error
    from experiments.inputs import load_program
    from experiments.solve import solve

    loaded = load_program(task.program, times=settings.times, busy=settings.busy)
    tick_seconds = loaded.program.tick_seconds
    curve: list[tuple[float, float | None, float | None]] = []

    def note(progress: Progress) -> None:
        incumbent, bound = (
            None if ticks is None else ticks * tick_seconds
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
    write_atomically(directory / MAPS / task.map_name, result.map_json())
    return Row(
        **_identity(task, settings),
        status=result.solution.status.value,
        latency_seconds=result.latency_seconds,
        stall_seconds=result.simulation.stall_seconds,
        all_slow_seconds=result.all_slow_latency_seconds,
        production_seconds=result.production_latency_seconds,
        production_stall_seconds=(
            None if result.production is None else result.production.stall_seconds
        ),
        lower_bound_seconds=result.lower_bound_seconds,
        model_error=model_error(loaded, task.program),
        peak_fast_bytes=result.simulation.peak_fast_bytes,
        bus_bytes=result.simulation.bus_bytes,
        num_copies=result.simulation.num_copies,
        games_played=result.solution.games_played,
        wall_seconds=result.wall_seconds,
        curve=tuple(curve),
    )


def _failure(task: Task, settings: EvaluationSettings, why: str) -> Row:
    return Row(**_identity(task, settings), status="failed", error=why)


def _identity(task: Task, settings: EvaluationSettings) -> dict[str, Any]:
    """The columns that are known before a task runs."""
    from hlo_graphs.bundle import read_cycles
    from hlo_graphs.chips import find_chip

    bundle = corpus.bundle(task.program)
    family = corpus.family_of(task.program)
    cycles = None if bundle.cycles is None else read_cycles(bundle.cycles)
    meta = None if cycles is None else cycles.meta
    chip = bundle.chip or "v5e"
    return {
        "program": task.program,
        "family": family.name,
        "split": family.split,
        "chip": chip,
        "capacity_bytes": find_chip(chip).assignable_bytes if meta is None else meta.capacity_bytes,
        "is_native": bundle.capacity_tag is None,
        "times": settings.times,
        "copy_order": settings.copy_order,
        "solver": task.solver,
        "seed": task.seed,
        "time_limit_seconds": settings.time_limit_seconds,
    }


def shell_command() -> str:
    """The command that is running, as a user would type it."""
    return " ".join(["malloc-game", *sys.argv[1:]])
