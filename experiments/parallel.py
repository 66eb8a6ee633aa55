"""Slow work on many programs, on all processors."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from hlo_graphs.errors import MallocGameError
from solvers.children import end_with_parent, main_hidden, usable_processors

Task = TypeVar("Task")
Found = TypeVar("Found")

Say = Callable[[str], None]
"""Told how far the work is, in a few words."""


def on_all_processors(
    work: Callable[[Task], Found], tasks: Sequence[Task], what: str, say: Say | None
) -> list[Found]:
    """`work` of each task, in the order of the tasks.

    Args:
      work: of a module, so that another process finds it.
      tasks: independent of each other.
      what: is said of the tasks that are done, e.g. "programs timed again".
      say: told when another is done.

    Raises:
      MallocGameError: if a process is ended from outside.
      Exception: the first that a task raises; tasks that have not begun are then left.
    """

    def tell(done: int) -> None:
        if say is not None:
            say(f"{done} of {len(tasks)} {what}")

    workers = min(usable_processors(), len(tasks))
    if workers <= 1:
        found = []
        for task in tasks:
            found.append(work(task))
            tell(len(found))
        return found
    try:
        return _in_processes(work, tasks, workers, tell)
    except BrokenProcessPool as error:
        raise MallocGameError(
            "a process of this work was ended from outside, perhaps for want of memory"
        ) from error


def _in_processes(
    work: Callable[[Task], Found], tasks: Sequence[Task], workers: int, tell: Callable[[int], None]
) -> list[Found]:
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
    with main_hidden():
        futures: list[Future[Found]] = [pool.submit(work, task) for task in tasks]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                tell(done)
        except BaseException:
            # Nobody waits for tasks that run, neither here nor where this process ends.
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                if child not in others:
                    child.kill()
            raise
        pool.shutdown()
        return [future.result() for future in futures]
