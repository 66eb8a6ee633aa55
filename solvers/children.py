"""Child processes that do not run the caller's script again, and how many are of use.

Python starts fresh ("spawn") processes by importing the main script anew, so that a script that
calls a solver without an `if __name__ == "__main__"` guard would call it again in every child.
What runs in ours lives in modules, so the main script is left out.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any


def start_child(
    target: Callable[..., None], arguments: tuple[Any, ...], *, import_main: bool = False
) -> SpawnProcess:
    """Starts a daemon process that calls `target`.

    `import_main`: the arguments hold objects that the main script defines, so it must be
    imported in the child after all.
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=target, args=arguments, daemon=True)
    with deaf_to_interrupts():
        if import_main:
            process.start()
        else:
            with main_hidden():
                process.start()
    return process


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started meanwhile never hear Ctrl-C, which a terminal sends to all of them.

    Their parent does, and ends them. It hears it once this is over, if it comes meanwhile: a
    process that is told half of what it has to do complains.
    """
    # Starting the tracker of resources would unblock what is blocked here.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with _interrupts_put_off():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _interrupts_put_off() -> Iterator[None]:
    """Handlers run when this is over: what one thread blocks the system gives to another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    missed: dict[int, FrameType | None] = {}
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler
            signal.signal(number, missed.__setitem__)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for heard, frame in missed.items():
            handlers[signal.Signals(heard)](heard, frame)


@contextmanager
def main_hidden() -> Iterator[None]:
    """While it lasts, the main script looks as if it had no file."""
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    try:
        if "__file__" in kept:
            del main.__file__
        main.__spec__ = None
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


def usable_processors() -> int:
    """How many processors this process may run on, as far as the system says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent() -> None:
    """In a child: from now on it ends when its parent does, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
