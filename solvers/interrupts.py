"""Calls of libraries that do not hear interrupts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_LOOK_SECONDS = 0.2
"""How long an interrupt may go unheard."""


def heard(work: Callable[[], Result]) -> Result:
    """What `work` returns, in a thread of its own: an interrupt ends the wait for it.

    For work that lets go of the interpreter while it takes its time. Interrupted, it goes on
    unheeded until its own end, or the process's.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def do() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised where it is waited for
            errors.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_SECONDS)  # A signal may have come to another thread.
    if errors:
        raise errors[0]
    return results[0]
