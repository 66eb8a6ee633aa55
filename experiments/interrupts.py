"""Interrupts that wait: what is under way ends whole, and is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_awaited() -> Iterator[Callable[[], bool]]:
    """A chunk that is cut short would be saved half done: the first Ctrl-C waits for its end.

    So do SIGTERM, and SIGHUP unless it is ignored, as `nohup` has it. Yields what says whether
    there was one. A second one does not wait, and nothing is saved: but for a hang-up, which both
    the terminal and its shell may send.
    """
    interrupted = False

    def note(number: int, frame: object) -> None:
        nonlocal interrupted
        if interrupted and number != signal.SIGHUP:
            raise KeyboardInterrupt
        interrupted = True

    before = {each: signal.signal(each, note) for each in _awaited()}
    try:
        yield lambda: interrupted
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _awaited() -> tuple[signal.Signals, ...]:
    # Other threads than the main one get no signals, and may not ask for any.
    if threading.current_thread() is not threading.main_thread():
        return ()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return signal.SIGINT, signal.SIGTERM
    return signal.SIGINT, signal.SIGTERM, signal.SIGHUP
