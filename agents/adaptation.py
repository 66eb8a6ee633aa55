"""Adapting to one program: a table of probabilities, turn by turn, that begins as the network's.

Source: AGENT.md, "Adapt few parameters per program from a policy pre-trained on many" (efficient
active search, Hottung et al. 2022, with a table beside the network's output). The network's games
say how likely it finds each action at each turn; from there the table moves towards what the best
of its own games played, as in the cross-entropy method (Rubinstein and Kroese 2004). The games
are played by the compiled game, thousands a second, without the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.games import NO_ACTION, Game
from agents.programs import PlayedProgram
from malloc_game.fast_game import NOT_ASKED
from malloc_game.state import NUM_ACTIONS

Table = NDArray[np.float64]
"""`[num_turns, 3]` probabilities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptationConfig:
    """How the table moves.

    Attributes:
      games_per_round: games drawn from one table.
      elite_share: share of them that the table moves towards.
      smoothing: how far.
      trust: in the network's probabilities at first; the rest goes to the best game's moves.
      best_weight: probability of the best game's moves where the table begins anew.
      least_probability: of any action.
      decided: mean of the largest probabilities at which it begins anew.
    """

    games_per_round: int = 200
    elite_share: float = 0.05
    smoothing: float = 0.3
    trust: float = 0.9
    best_weight: float = 0.7
    least_probability: float = 0.003
    decided: float = 0.985


@dataclass(frozen=True, slots=True)
class Found:
    """After a round of games.

    Attributes:
      num_games: played so far.
      latency_ticks: of the best game so far, those it began from included.
      wishes: `[num_turns]` int8 of that game.
    """

    num_games: int
    latency_ticks: float
    wishes: NDArray[np.int8]


def network_table(member: PlayedProgram, games: Sequence[Game]) -> Table:
    """What the network thinks of each turn, in the mean over `games` of the program, at least one.

    Even where it was not asked.
    """
    turn_of_item = np.full(member.table.num_items, -1)
    turn_of_item[member.item_of_turn] = np.arange(len(member.item_of_turn))
    total = np.zeros((len(member.item_of_turn), NUM_ACTIONS))
    for game in games:
        np.add.at(total, turn_of_item[game.cursors[:-1]], game.policies)
    asked = total.sum(axis=1, keepdims=True)
    mean = np.where(asked > 0, total / np.maximum(asked, 1e-9), 1 / NUM_ACTIONS)
    kept = np.maximum(mean, 1e-4)
    table: Table = kept / kept.sum(axis=1, keepdims=True)
    return table


def adapt(
    member: PlayedProgram,
    games: Sequence[Game],
    config: AdaptationConfig,
    rng: np.random.Generator,
) -> Iterator[Found]:
    """Rounds of games, without end, from what the network played and thought.

    Args:
      member: the program.
      games: the network's, at least one.
      config: settings.
      rng: of the games.
    """
    best = min(games, key=lambda game: game.latency_ticks)
    wishes = member.wishes(best.actions_by_item(member.table.num_items))
    network = network_table(member, games)
    table = config.trust * network + (1 - config.trust) * around(wishes, config.best_weight)
    return improve(member, table, Found(0, best.latency_ticks, wishes), config, rng)


def from_nothing(
    member: PlayedProgram, config: AdaptationConfig, rng: np.random.Generator
) -> Iterator[Found]:
    """Rounds of games, without end, from uniform probabilities: the cross-entropy method."""
    table = np.full((member.table.num_turns, NUM_ACTIONS), 1 / NUM_ACTIONS)
    slow = Found(0, member.program.all_slow_ticks, member.fast_game.wishes())
    return improve(member, table, slow, config, rng)


def improve(
    member: PlayedProgram,
    table: Table,
    found: Found,
    config: AdaptationConfig,
    rng: np.random.Generator,
) -> Iterator[Found]:
    """Rounds of games, without end; each begins where the one before left off.

    Args:
      member: the program.
      table: of the first round.
      found: so far.
      config: settings.
      rng: of the games.
    """
    while True:
        latencies, taken = member.fast_game.sample(table, config.games_per_round, rng)
        first = int(latencies.argmin())
        found = Found(found.num_games + len(latencies), found.latency_ticks, found.wishes)
        if latencies[first] < found.latency_ticks:
            wishes = np.where(taken[first] == NOT_ASKED, found.wishes, taken[first])
            found = Found(found.num_games, float(latencies[first]), wishes.astype(np.int8))
        yield found
        count = max(1, round(config.elite_share * len(latencies)))
        table = _moved(table, taken[np.argpartition(latencies, count - 1)[:count]], config)
        if table.max(axis=1).mean() >= config.decided:
            table = around(found.wishes, config.best_weight)


def around(wishes: NDArray[np.int8], weight: float) -> Table:
    """`weight` on the wished actions, the rest shared by the others."""
    table = np.full((len(wishes), NUM_ACTIONS), (1 - weight) / (NUM_ACTIONS - 1))
    table[np.arange(len(wishes)), wishes] = weight
    return table


def _moved(table: Table, elite: NDArray[np.int8], config: AdaptationConfig) -> Table:
    """The table, moved towards what `elite` `[games, num_turns]` played where it was asked."""
    counts = np.stack([(elite == action).sum(axis=0) for action in range(NUM_ACTIONS)], axis=1)
    asked = counts.sum(axis=1, keepdims=True)
    shares = np.where(asked > 0, counts / np.maximum(asked, 1), table)
    moved = table + config.smoothing * asked / len(elite) * (shares - table)
    moved = np.maximum(moved, config.least_probability)
    result: Table = moved / moved.sum(axis=1, keepdims=True)
    return result


def actions_by_item(member: PlayedProgram, wishes: NDArray[np.int8], size: int) -> NDArray[np.int8]:
    """`[size]` actions of the game with `wishes` by item, as plans have them."""
    actions = np.full(size, NO_ACTION, dtype=np.int8)
    actions[member.item_of_turn] = wishes
    return actions
