"""The protocol, the registry and the small helpers every solver shares."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hlo_graphs.errors import InputError
from solvers.solver import (
    Deadline,
    Solver,
    SolveRequest,
    Status,
    gap_between,
    solver_ideas,
    solver_named,
    status_of,
)
from tests.malloc_game.small import program_of

PROGRAM = program_of({"a": 4}, [(1, "wa"), (1, "ra")])


def test_the_default_is_the_portfolio() -> None:
    assert next(iter(solver_ideas())) == "portfolio"


@pytest.mark.parametrize("name", solver_ideas())
def test_registered_solvers_follow_the_protocol(name: str) -> None:
    solver = solver_named(name)
    assert isinstance(solver, Solver)
    assert solver.name == name


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'greedy'"):
        solver_named("gredy")
    with pytest.raises(InputError, match="Solvers: portfolio, greedy"):
        solver_named("zzz")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"time_limit_seconds": -1.0}, "time limit is -1.0"),
        ({"gap": -0.1}, "gap is -0.1"),
        ({"seed": -1}, "seed is -1, must be a whole number >= 0"),
        ({"workers": 0}, "workers is 0"),
        ({"copy_order": "lifo"}, "unknown copy order 'lifo': use one of deadline, fifo"),
    ],
)
def test_requests_refuse_what_makes_no_sense(setting: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SolveRequest(PROGRAM, **setting)


def test_gap_and_status() -> None:
    assert gap_between(110.0, None) is None
    assert gap_between(110.0, 100.0) == pytest.approx(0.1)
    assert gap_between(0.0, 0.0) == 0.0
    assert gap_between(1.0, 0.0) == float("inf")
    assert status_of(110.0, 100.0, 0.1) is Status.OPTIMAL
    assert status_of(110.0, 100.0, 0.05) is Status.FEASIBLE
    assert status_of(110.0, None, 1.0) is Status.FEASIBLE


def test_deadlines_expire() -> None:
    assert Deadline.after(0.0).expired
    later = Deadline.after(60.0)
    assert not later.expired
    assert 0.0 < later.remaining_seconds <= 60.0


def test_greedy_loads_neither_jax_nor_other_solvers() -> None:
    code = (
        "import sys; from solvers.solver import solver_named; solver_named('greedy');"
        "bad = [m for m in ('jax', 'ortools', 'solvers.milp', 'numba') if m in sys.modules];"
        "print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
