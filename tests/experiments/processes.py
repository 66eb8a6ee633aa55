"""Watching processes that a test has started."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def wait_until(is_so: Callable[[], bool]) -> None:
    """Returns when it is; fails after a minute."""
    end = time.monotonic() + 60.0
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.2)


def processes_of(session: int) -> list[str]:
    """The live processes of a session, zombies left out."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("processes are listed by /proc")
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                found.append(path.parent.name)
    return found
