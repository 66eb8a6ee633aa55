"""Waiting for what does not hear interrupts."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog

from solvers.interrupts import heard


def test_results_and_errors_come_back() -> None:
    assert heard(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        heard(lambda: 1 // 0)


def test_an_interrupt_is_heard_while_a_linear_program_is_solved() -> None:
    rng = np.random.default_rng(0)
    rows = sparse.random(3000, 4000, 0.01, rng=rng).tocsr()
    values = rows @ rng.random(4000) + rng.random(3000)
    cost = -rng.random(4000)
    seconds = 20.0

    def solve() -> object:
        options = {"time_limit": seconds}
        return linprog(cost, rows, values, bounds=(0, 1), method="highs-ds", options=options)

    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    began = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        heard(solve)
    assert time.monotonic() - began < seconds / 2
