"""The rules: memory maps, their validator and simulator, and the game that makes them.

`malloc_game.solve` is the whole tool as one function, `experiments.solve.solve`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.solve import solve as solve

__all__ = ["solve"]


def __getattr__(name: str) -> Any:
    """Hands `solve` on when it is asked for: the rules themselves know no solvers."""
    if name == "solve":
        from experiments.solve import solve

        return solve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
