"""A growing linear program has the optimum of the grown one, with prices that prove it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from solvers.linear_program import LinearProgram


class Grown:
    """A random program of boxes and rows that always has a point: 0 in all columns."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.program = LinearProgram()
        self.cost: list[float] = []
        self.high: list[float] = []
        self.matrix = np.zeros((0, 0))

    def grow(self, columns: int, rows: int) -> None:
        """Adds columns, with entries in the rows that are there, then rows over all columns."""
        rng, program = self.rng, self.program
        for _ in range(columns):
            self.cost.append(float(rng.normal()))
            column = program.column(self.cost[-1], 0.0, 1.0)
            entries = rng.normal(size=len(self.high)) * (rng.random(len(self.high)) < 0.5)
            for row in np.flatnonzero(entries):
                program.entry(int(row), column, float(entries[row]) / 2)
                program.entry(int(row), column, float(entries[row]) / 2)  # They add up.
            self.matrix = np.column_stack([self.matrix, entries])
        for _ in range(rows):
            entries = rng.normal(size=len(self.cost))
            self.high.append(float(rng.uniform(0, 1)))
            program.row(-np.inf, self.high[-1], list(enumerate(entries.tolist())))
            self.matrix = np.vstack([self.matrix, entries])

    def optimum(self, fixed: dict[int, float], whole: bool = False) -> float | None:
        """By another way in: the whole program at once."""
        lower, upper = np.zeros(len(self.cost)), np.ones(len(self.cost))
        for column, value in fixed.items():
            lower[column] = upper[column] = value
        found = milp(
            self.cost,
            constraints=LinearConstraint(self.matrix, -np.inf, self.high),
            bounds=Bounds(lower, upper),
            integrality=np.full(len(self.cost), int(whole)),
        )
        return None if found.x is None else float(found.fun)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_added_and_fixed_between_solutions_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grown = Grown(rng)
    grown.grow(4, 3)
    for _ in range(6):
        chosen = rng.choice(len(grown.cost), size=int(rng.integers(0, 3)), replace=False)
        fixed = {int(column): float(rng.integers(2)) for column in chosen}
        expected = grown.optimum(fixed)
        assert grown.program.minimise(10.0, fixed) == (expected is not None)
        if expected is not None:
            assert grown.program.value == pytest.approx(expected, abs=1e-7)
        grown.grow(int(rng.integers(0, 4)), int(rng.integers(0, 3)))


@pytest.mark.parametrize("seed", range(10))
def test_the_prices_of_a_solution_prove_it(seed: int) -> None:
    grown = Grown(np.random.default_rng(seed))
    grown.grow(8, 6)
    assert grown.program.minimise(10.0, {})
    found = grown.program.solution()
    assert (found.row_duals <= 1e-9).all()
    reduced = np.array(grown.cost) - grown.matrix.T @ found.row_duals
    np.testing.assert_allclose(found.reduced_costs, reduced, atol=1e-9)
    dual = found.row_duals @ grown.high + np.minimum(reduced, 0).sum()
    assert dual == pytest.approx(found.value, abs=1e-7)
    assert np.array(grown.cost) @ found.point == pytest.approx(found.value, abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_whole_columns(seed: int) -> None:
    grown = Grown(np.random.default_rng(seed))
    grown.grow(8, 6)
    expected = grown.optimum({}, whole=True)
    found = grown.program.solve_whole(range(8), 10.0, 0.0)
    assert found is not None
    assert found.value == pytest.approx(expected, abs=1e-7)
    assert found.bound <= found.value + 1e-7
    np.testing.assert_allclose(found.point, np.round(found.point), atol=1e-6)


def test_no_point_is_no_solution() -> None:
    program = LinearProgram()
    column = program.column(1.0, 0.0, 1.0)
    program.row(2.0, np.inf, [(column, 1.0)])
    assert not program.minimise(10.0, {})
    assert program.solve_whole([column], 10.0, 0.0) is None
