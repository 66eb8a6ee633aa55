"""Other solvers' maps as games to learn from.

The map is read back into actions (`malloc_game.replay`), which become the plan of a game: the agent
plays it, searches along it, and keeps it in its archive like any other game, marked as a
demonstration (docs/agent.md, "How it works").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.games import Plan, Source
from agents.programs import PlayedProgram
from malloc_game.fast_game import NOT_ASKED
from malloc_game.memory_map import MemoryMap
from malloc_game.replay import actions_from_map


@dataclass(frozen=True)
class Demonstration:
    """A map as a plan.

    Attributes:
      plan: the moves.
      latency_ticks: of the game that they make.
      loss: how much slower that game is than the map, as a share (`malloc_game.replay`).
    """

    plan: Plan
    latency_ticks: float
    loss: float


def demonstration_of(member: PlayedProgram, memory_map: MemoryMap, num_items: int) -> Demonstration:
    """`memory_map`, which must be valid, as a plan of `num_items` (the bucket's)."""
    replay = actions_from_map(member.program, memory_map, member.fast_game)
    # A turn that did not come up has a wish all the same: so plans of whole games are known.
    played = np.where(replay.taken == NOT_ASKED, replay.wishes, replay.taken)
    plan = Plan(member.by_item(played, num_items), Source.DEMONSTRATION)
    return Demonstration(plan, replay.latency_ticks, replay.loss)
