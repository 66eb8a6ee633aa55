"""Every solver by name: the classical ones, and the agent, which is handed in from outside."""

from __future__ import annotations

from pathlib import Path

from experiments.inputs import need_extra
from hlo_graphs.errors import InputError, did_you_mean
from solvers.portfolio import PortfolioSolver
from solvers.solver import Solver, solver_ideas, solver_named

WITH_AGENT = "portfolio-agent"
"""The portfolio with the agent among its members."""

AGENTS = {
    "agent": "the trained network's games, then a table; from 80 s on search and learning too",
    "agent-generalist": "the trained network as it is, then with search",
    "agent-scratch": "begins with a uniform table and random weights; else as agent",
    "agent-demonstrations": "agent-scratch, which is first shown the maps of greedy and xla-msa",
    "agent-prod": "agent, likewise; the best of its map and theirs",
    "mcts": "search with the game's rules alone, nothing learned; a control",
    WITH_AGENT: "the portfolio with agent as its first member",
}
"""Solvers of the optional extra "train", and what they do; nothing of it is imported before they
are asked for."""


def all_solver_ideas() -> dict[str, str]:
    """What each solver that `any_solver_named` knows does, in a line; the default first."""
    return {**solver_ideas(), **AGENTS}


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
    known = all_solver_ideas()
    if name not in known:
        near = did_you_mean(name, known)
        raise InputError(f"no solver is called {name!r}{near}. Solvers: {', '.join(known)}")
    if checkpoint is not None:
        raise InputError(f"solver {name!r} has no use for a checkpoint")
    return solver_named(name)
