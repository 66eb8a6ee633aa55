"""Every solver by name: the classical ones, and the agent, which is handed in from outside."""

from __future__ import annotations

from pathlib import Path

from experiments.inputs import need_extra
from hlo_graphs.errors import InputError
from solvers.portfolio import PortfolioSolver
from solvers.solver import Solver, solver_named, solver_names

WITH_AGENT = "portfolio-agent"
"""The portfolio with the agent among its members."""

AGENTS = (
    *("agent", "agent-generalist", "agent-scratch", "agent-demonstrations", "agent-prod", "mcts"),
    WITH_AGENT,
)
"""Solvers of the optional extra "train"; nothing of it is imported before they are asked for."""


def all_solver_names() -> tuple[str, ...]:
    """Names that `any_solver_named` accepts, the default first."""
    return (*solver_names(), *AGENTS)


def any_solver_named(name: str, checkpoint: Path | None = None) -> Solver:
    """The solver called `name`.

    Args:
      name: a classical solver, or one of `AGENTS`.
      checkpoint: a trained agent's, in place of the one that comes with the package.

    Raises:
      InputError: if there is none, or it has no use for a checkpoint.
      MissingExtraError: if the agent's packages are not installed.
    """
    if name in AGENTS:
        need_extra("mctx", "train", f"the solver {name!r}")
        from agents.solver import agent_named

        if name == WITH_AGENT:
            return PortfolioSolver(extra=(agent_named("agent", checkpoint),))
        return agent_named(name, checkpoint)
    if checkpoint is not None:
        raise InputError(f"solver {name!r} has no use for a checkpoint")
    return solver_named(name)
