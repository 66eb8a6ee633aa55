"""Tasks of an evaluation in processes of their own: a crash or a hang is that task's failure alone.

A task's process solves, keeps the map and sends its row; soon after it has begun it sends what is
known of the row by then, so that one that never returns has its program's figures all the same.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from experiments.files import write_atomically
from experiments.folder import code_digest, map_path, processor
from experiments.inputs import LoadedProgram
from experiments.results import Row
from experiments.tasks import EvaluationSettings, Task
from hlo_graphs import bundle as bundles
from hlo_graphs import corpus
from hlo_graphs.chips import find_chip
from hlo_graphs.errors import InputError
from solvers.children import deaf_to_interrupts, end_with_parent
from solvers.solver import Progress

OVERTIME_SECONDS = 60.0
"""What a task may take beyond its solver's limit (loading, checking, timing) before it is ended."""

_UNDER_WAY = "under way"
"""Status of a row that is not finished; no table has one."""

_CLEARING_SECONDS = 2.0
"""What tasks may take to clear up when they are ended from outside."""

LEAVING_SECONDS = 10.0
"""What a task's process may take to end once its row is there."""


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


def run_tasks(
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
