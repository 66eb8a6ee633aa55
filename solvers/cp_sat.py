"""CP-SAT with a time limit, which Ctrl-C ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ortools.sat.python import cp_model

from solvers.solver import Deadline


def cp_solver(deadline: Deadline, *, seed: int, workers: int) -> cp_model.CpSolver:
    """A solver that stops at the deadline, and leaves signals alone."""
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(deadline.remaining_seconds, 0.01)
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed % 2**31
    # It would swallow the first SIGINT, and leave the second to end the process.
    solver.parameters.catch_sigint_signal = False
    return solver


def solved(solver: cp_model.CpSolver, model: cp_model.CpModel) -> cp_model.CpSolverStatus:
    """The status of one solve.

    Raises:
      KeyboardInterrupt: at once, however long the solver would have gone on.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(solver.solve, model)
        try:
            return running.result()
        except BaseException:
            solver.stop_search()
            raise
