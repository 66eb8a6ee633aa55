"""Bounds that `solve` adds to the answers of solvers that prove none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.inputs import load_program
from experiments.solve import SolveResult, _bounded, solve
from hlo_graphs.errors import InputError
from solvers import bounds
from solvers.bounds import bound_program
from solvers.solver import Progress, SolveRequest, Status, WrongBoundError


def _greedy(bound_seconds: float) -> SolveResult:
    return solve("lstm_forward", solver="greedy", bound_seconds=bound_seconds)


def _again(found: SolveResult, solver: str, gap: float) -> SolveResult:
    maps = [found.memory_map]
    return solve("lstm_forward", solver=solver, initial_maps=maps, bound_seconds=20.0, gap=gap)


def test_a_bound_is_added_where_the_solver_proves_none() -> None:
    alone, bounded = _greedy(0.0), _greedy(10.0)
    assert alone.lower_bound_seconds is None
    assert bounded.memory_map == alone.memory_map
    program = load_program("lstm_forward").program
    expected = bound_program(program, 10.0, target_ticks=lambda: bounded.solution.latency_ticks)
    assert bounded.solution.lower_bound_ticks == pytest.approx(expected.ticks, rel=1e-3)
    assert bounded.gap is not None
    assert 0.05 < bounded.gap < 0.1
    assert bounded.solution.status is Status.FEASIBLE


def test_a_map_that_meets_the_added_bound_is_optimal() -> None:
    # Stops as soon as its own bound says so.
    found = solve("lstm_forward", solver="portfolio", time_limit_seconds=120.0, gap=0.001)
    again = _again(found, "greedy", 0.002)
    assert again.solution.status is Status.OPTIMAL


def test_the_solvers_own_bound_is_kept_if_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = bounds.Bound(1.0, (), None, 0, 0.0)
    monkeypatch.setattr(bounds, "bound_program", lambda *_, **__: weak)
    program = load_program("lstm_forward").program
    found = replace(_greedy(0.0).solution, lower_bound_ticks=2.0)
    assert _bounded(SolveRequest(program), found, 1.0).lower_bound_ticks == 2.0
    found = replace(found, lower_bound_ticks=0.5)
    assert _bounded(SolveRequest(program), found, 1.0).lower_bound_ticks == 1.0


def test_an_interrupted_bound_is_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, on_bound: Callable[[float], None], **__: Any) -> None:
        on_bound(7.0)
        on_bound(8.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(bounds, "bound_program", interrupted)
    assert _greedy(10.0).solution.lower_bound_ticks == 8.0


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_a_bound_takes_some_finite_time(seconds: float) -> None:
    with pytest.raises(InputError, match="bound is"):
        _greedy(seconds)


def test_a_bound_that_is_not_wanted_is_not_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    proven = solve(load_program("lstm_forward"), solver="milp", time_limit_seconds=20.0, gap=0.01)
    assert proven.solution.status is Status.OPTIMAL
    monkeypatch.setattr(bounds, "bound_program", lambda *_, **__: pytest.fail("not wanted"))
    assert _again(proven, "milp", 5.0).solution.status is Status.OPTIMAL


def test_after_an_interrupt_no_bound_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bounds, "bound_program", lambda *_, **__: pytest.fail("interrupted"))
    found = solve("lstm_forward", solver="greedy", bound_seconds=5.0, on_progress=interrupt)
    assert found.solution.notes == ("interrupted: the best map so far",)
    assert found.to_document()["games_played"] is None


def test_the_search_for_a_bound_is_heard() -> None:
    heard: list[Progress] = []
    found = solve("lstm_forward", solver="greedy", bound_seconds=10.0, on_progress=heard.append)
    told = [progress.bound_ticks for progress in heard if progress.bound_ticks is not None]
    assert told
    assert max(told) == found.solution.lower_bound_ticks


def test_a_bound_above_a_valid_map_is_our_fault_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _greedy(0.0).solution
    boasting = replace(honest, lower_bound_ticks=honest.latency_ticks * 1.01)
    solver = SimpleNamespace(solve=lambda request: boasting)
    monkeypatch.setattr("experiments.solve.any_solver_named", lambda *_: solver)
    with pytest.raises(WrongBoundError, match=r"is above the .* of its own valid map"):
        _greedy(0.0)
