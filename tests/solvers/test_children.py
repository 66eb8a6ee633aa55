"""How many processes are worth starting, and that none is started by half."""

import os
import signal
import threading
import time

import pytest

from solvers.children import deaf_to_interrupts, usable_processors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_heard_once_a_process_is_started(number: signal.Signals) -> None:
    started: list[bool] = []
    # The system gives to any other thread what one blocks.
    over = threading.Event()
    other = threading.Thread(target=over.wait)

    def start() -> None:
        with deaf_to_interrupts():
            os.kill(os.getpid(), number)
            time.sleep(0.2)
            started.append(True)

    before = signal.signal(number, signal.default_int_handler)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        over.set()
        other.join()
        signal.signal(number, before)
    assert started


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_confined_process_counts_only_what_it_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, list(before)[:1])
        assert usable_processors() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_processors() == len(before)


def test_elsewhere_all_processors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_processors() == os.cpu_count()
