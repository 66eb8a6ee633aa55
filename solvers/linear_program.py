"""A linear program that grows: columns, rows and entries are added between solutions.

HiGHS solves it, each time from the basis of the time before: after a few new columns, rows or
bounds that takes a tenth of a fresh start. Source: Huangfu and Hall, "Parallelizing the dual
revised simplex method", 2018.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import highspy
import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]

_LEAST_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class LinearSolution:
    """An optimum.

    Attributes:
      value: of the objective.
      point: per column.
      row_duals: per row, not negative where only its lower limit binds, not positive where only
        its upper one does.
      reduced_costs: per column, likewise.
    """

    value: float
    point: Floats
    row_duals: Floats
    reduced_costs: Floats


@dataclass(frozen=True, slots=True)
class WholeSolution:
    """The best point with whole columns that was found.

    Attributes:
      value: of the objective.
      bound: branch and bound's own; in floating point, not certified.
      point: per column.
    """

    value: float
    bound: float
    point: Floats


class LinearProgram:
    """Minimises `cost @ x` with `x` and the rows' sums between limits."""

    def __init__(self) -> None:
        self._cost: list[float] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._row_low: list[float] = []
        self._row_high: list[float] = []
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self._highs: highspy.Highs | None = None
        self._taken_over = (0, 0, 0)
        self._fixed: set[int] = set()

    @property
    def num_columns(self) -> int:
        """Added so far."""
        return len(self._cost)

    @property
    def num_rows(self) -> int:
        """Added so far."""
        return len(self._row_low)

    def column(self, cost: float, lower: float, upper: float) -> int:
        """Adds a column; its index."""
        self._cost.append(cost)
        self._lower.append(lower)
        self._upper.append(upper)
        return len(self._cost) - 1

    def row(self, low: float, high: float, terms: Iterable[tuple[int, float]]) -> int:
        """Adds a row whose terms, (column, value), sum up to between its limits; its index."""
        index = len(self._row_low)
        self._row_low.append(low)
        self._row_high.append(high)
        for column, value in terms:
            self.entry(index, column, value)
        return index

    def entry(self, row: int, column: int, value: float) -> None:
        """Adds to the coefficient of a column in a row, one of which is new since `minimise`."""
        self._rows.append(row)
        self._columns.append(column)
        self._values.append(value)

    def set_upper_limit(self, row: int, high: float) -> None:
        """Changes a row that is new since `minimise`."""
        self._row_high[row] = high

    def minimise(self, time_limit_seconds: float, fixed: Mapping[int, float]) -> bool:
        """Finds the optimum with some columns fixed; False if there is none, or no more time."""
        highs = self._up_to_date()
        self._fix(highs, fixed)
        # Its clock runs on from one call to the next.
        limit = highs.getRunTime() + max(time_limit_seconds, _LEAST_SECONDS)
        highs.setOptionValue("time_limit", limit)
        highs.run()
        return bool(highs.getModelStatus() == highspy.HighsModelStatus.kOptimal)

    @property
    def value(self) -> float:
        """The objective at the optimum that was found last."""
        assert self._highs is not None
        return float(self._highs.getInfo().objective_function_value)

    def solution(self) -> LinearSolution:
        """The optimum that was found last."""
        assert self._highs is not None
        found = self._highs.getSolution()
        return LinearSolution(
            self.value,
            np.array(found.col_value),
            np.array(found.row_dual),
            np.array(found.col_dual),
        )

    def solve_whole(
        self, whole: Collection[int], time_limit_seconds: float, relative_gap: float
    ) -> WholeSolution | None:
        """The best point found in which some columns are whole; None if there is none.

        HiGHS does not react to interrupts: run it in a child process where that matters.
        """
        model = self._model()
        kinds = np.full(self.num_columns, highspy.HighsVarType.kContinuous)
        kinds[list(whole)] = highspy.HighsVarType.kInteger
        model.integrality_ = kinds.tolist()
        highs = _quiet()
        highs.setOptionValue("time_limit", max(time_limit_seconds, _LEAST_SECONDS))
        highs.setOptionValue("mip_rel_gap", relative_gap)
        highs.passModel(model)
        highs.run()
        info = highs.getInfo()
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return None
        point = np.array(highs.getSolution().col_value)
        value, bound = float(info.objective_function_value), float(info.mip_dual_bound)
        return WholeSolution(value, bound, point)

    def _model(self) -> highspy.HighsLp:
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self.num_columns, self.num_rows
        model.col_cost_ = np.array(self._cost)
        model.col_lower_, model.col_upper_ = np.array(self._lower), np.array(self._upper)
        model.row_lower_, model.row_upper_ = np.array(self._row_low), np.array(self._row_high)
        shape = (self.num_rows, self.num_columns)
        matrix = sparse.csr_matrix((self._values, (self._rows, self._columns)), shape=shape)
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = matrix.indptr
        model.a_matrix_.index_ = matrix.indices
        model.a_matrix_.value_ = matrix.data
        return model

    def _up_to_date(self) -> highspy.Highs:
        """The solver, with all that was added since."""
        columns, rows, entries = self._taken_over
        if self._highs is None:
            self._highs = _quiet()
            self._highs.passModel(self._model())
        else:
            values = np.array(self._values[entries:])
            at = (np.array(self._rows[entries:], int), np.array(self._columns[entries:], int))
            shape = (self.num_rows, self.num_columns)
            added = sparse.csr_matrix((values, at), shape=shape)
            self._add_columns(self._highs, columns, added[:rows, columns:].tocsc())
            self._add_rows(self._highs, rows, added[rows:])
        self._taken_over = (self.num_columns, self.num_rows, len(self._values))
        return self._highs

    def _add_columns(self, highs: highspy.Highs, first: int, added: sparse.csc_matrix) -> None:
        highs.addCols(
            self.num_columns - first,
            np.array(self._cost[first:]),
            np.array(self._lower[first:]),
            np.array(self._upper[first:]),
            *_entries(added),
        )

    def _add_rows(self, highs: highspy.Highs, first: int, added: sparse.csr_matrix) -> None:
        highs.addRows(
            self.num_rows - first,
            np.array(self._row_low[first:]),
            np.array(self._row_high[first:]),
            *_entries(added),
        )

    def _fix(self, highs: highspy.Highs, fixed: Mapping[int, float]) -> None:
        for column in self._fixed - fixed.keys():
            highs.changeColBounds(column, self._lower[column], self._upper[column])
        for column, value in fixed.items():
            highs.changeColBounds(column, value, value)
        self._fixed = set(fixed)


def _entries(added: sparse.csr_matrix | sparse.csc_matrix) -> tuple[object, ...]:
    """How many there are, where each row, or column, begins, then indices and values."""
    return added.nnz, added.indptr[:-1], added.indices, added.data


def _quiet() -> highspy.Highs:
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    return highs
