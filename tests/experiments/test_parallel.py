"""Slow work on all processors, mostly with threads in place of processes."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from experiments.parallel import on_all_processors
from tests.experiments.processes import wait_until


class Threads(ThreadPoolExecutor):
    def __init__(self, workers: int, **_: Any) -> None:
        super().__init__(workers)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.parallel.ProcessPoolExecutor", Threads)
    monkeypatch.setattr("experiments.parallel.usable_processors", lambda: 2)


def test_what_is_found_is_in_the_order_of_the_tasks() -> None:
    later, said = Event(), []

    def work(task: int) -> int:
        if task == 0:
            later.wait()
        later.set()
        return -task

    assert on_all_processors(work, [0, 1, 2], "done", said.append) == [0, -1, -2]
    assert said == ["1 of 3 done", "2 of 3 done", "3 of 3 done"]


def test_a_failure_does_not_wait_for_tasks_that_run() -> None:
    begun, failed = Event(), Event()
    ended = []

    def work(task: int) -> None:
        if task == 1:
            begun.wait()
            raise ValueError("no such thing")
        begun.set()
        failed.wait(timeout=5)
        ended.append(task)

    with pytest.raises(ValueError, match="no such thing"):
        on_all_processors(work, [0, 1, 2, 3], "done", None)
    assert ended == []
    failed.set()


def _fail_or_sleep(task: int) -> None:
    if task:
        time.sleep(600)
    raise ValueError("no such thing")


def test_a_failure_ends_the_processes_of_tasks_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.parallel.ProcessPoolExecutor", ProcessPoolExecutor)
    with pytest.raises(ValueError, match="no such thing"):
        on_all_processors(_fail_or_sleep, [0, 1], "done", None)
    wait_until(lambda: not multiprocessing.active_children())
