"""A member of the portfolio in a process of its own, where neither side ever waits for the other.

Maps of large programs are longer than a pipe holds. A process that is busy with a linear program
reads nothing for seconds, so whoever wrote to it directly would stop working; two that wrote to
each other would stop for good. Therefore a member's messages are sent by a thread, and the best
map goes the other way by a file that members look at when they like.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from malloc_game.memory_map import MemoryMap
from solvers.children import end_with_parent, start_child
from solvers.solver import Solution, Solver, SolveRequest, solver_named


class Noticeboard:
    """The best map of a run, in a file that is replaced as a whole."""

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="malloc-game-")

    @property
    def path(self) -> Path:
        """Where the map is; raises OSError if there is no place for temporary files."""
        return Path(self._folder.name) / "best"

    def post(self, memory_map: MemoryMap) -> None:
        """Shows this map to all members from now on; raises OSError if it cannot."""
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(pickle.dumps(memory_map))
        fresh.replace(self.path)

    def close(self) -> None:
        """Removes the file."""
        if "_folder" in vars(self):
            self._folder.cleanup()


@dataclass
class _Reader:
    """A member's view of the noticeboard at `path`."""

    path: Path
    seen: tuple[int, int] = (0, 0)
    memory_map: MemoryMap | None = None

    def latest(self) -> MemoryMap | None:
        """The map that is posted now, None if there is none."""
        with contextlib.suppress(OSError):
            status = self.path.stat()
            stamp = (status.st_ino, status.st_mtime_ns)
            if stamp != self.seen:
                self.memory_map = pickle.loads(self.path.read_bytes())
                self.seen = stamp
        return self.memory_map


def start_member(
    solver: str | Solver, request: SolveRequest, board: Noticeboard
) -> tuple[SpawnProcess, Connection]:
    """Starts a member; the connection brings its `Progress`, then a `Solution` or why not.

    Its time limit counts from now, so that it ends in time whatever its process takes to start.
    """
    inbox, outbox = multiprocessing.get_context("spawn").Pipe(duplex=False)
    theirs = not isinstance(solver, str) and type(solver).__module__ == "__main__"
    arguments = (outbox, board.path, solver, request, time.monotonic())
    process = start_child(_work, arguments, import_main=theirs)
    outbox.close()
    return process, inbox


def guarded(work: Callable[[], Solution]) -> object:
    """The solution, or what went wrong as text: a member must not take the portfolio down."""
    try:
        return work()
    except Exception as error:  # reported in the solution's notes
        return f"{type(error).__name__}: {error}"


def _work(
    outbox: Connection, board: Path, solver: str | Solver, request: SolveRequest, began: float
) -> None:
    """What the process does: runs the solver and sends what it finds."""
    end_with_parent()
    messages: queue.SimpleQueue[object] = queue.SimpleQueue()
    sender = threading.Thread(target=_send_all, args=(outbox, messages), daemon=True)
    sender.start()
    reader = _Reader(board)
    member = solver_named(solver) if isinstance(solver, str) else solver
    # That processes share this clock is so everywhere, but not promised: hence the limits.
    late = min(max(time.monotonic() - began, 0.0), request.time_limit_seconds)
    connected = replace(
        request,
        time_limit_seconds=request.time_limit_seconds - late,
        on_progress=messages.put,
        best_known=reader.latest,
    )
    messages.put(guarded(lambda: member.solve(connected)))
    messages.put(None)
    sender.join()


def _send_all(outbox: Connection, messages: queue.SimpleQueue[object]) -> None:
    """Sends until None comes up. Ends the process if nobody listens any more."""
    while (message := messages.get()) is not None:
        try:
            outbox.send(message)
        except OSError:
            os._exit(1)
