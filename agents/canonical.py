"""Of all games that are as fast, one that plays as preferred wherever that costs nothing.

In a good game every other action makes no difference: what was asked for is not to be had, or
nothing else wants the place. There a table's game holds what chance drew, and a network that
imitates it learns chance. So a game is made canonical before it is imitated: its moves are
exchanged for preferred ones as long as it gets no slower. What is left is where the preferred
moves are wrong. Along the way it may get faster.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agents.adaptation import Found
from agents.programs import PlayedProgram
from malloc_game.fast_game import FastGame
from malloc_game.state import Action
from malloc_game.turn_features import TurnFeature, turn_features

_STRETCH_TURNS = 32
"""Turns that are tried together at first."""

_WORTH_IT = 0.5
"""Of `TurnFeature.WORTH_NOW` and `WORTH_TO_NEXT`: what is saved is what the place costs."""


def canonical(game: FastGame, found: Found, preferred: NDArray[np.int8]) -> Found:
    """`found` with as many of the `preferred` wishes `[num_turns]` as make the game no slower.

    No other turn's wish can be exchanged by itself for the preferred one without slowing the game.
    Stretches of turns are exchanged at once, and halved where that is too much. Games played for
    it count.
    """
    while True:
        following = _exchanged(game, found, preferred)
        if np.array_equal(following.wishes, found.wishes):
            return following
        found = following


def _exchanged(game: FastGame, best: Found, preferred: NDArray[np.int8]) -> Found:
    """After every stretch was tried once."""
    num_turns = len(preferred)
    stretches = [
        (start, min(start + _STRETCH_TURNS, num_turns))
        for start in range(0, num_turns, _STRETCH_TURNS)
    ]
    while stretches:
        start, end = stretches.pop()
        other = start + np.flatnonzero(best.wishes[start:end] != preferred[start:end])
        if len(other) == 0:
            continue
        tried = best.wishes.copy()
        tried[start:end] = preferred[start:end]
        latency_ticks, num_games = game.latency_ticks(tried), best.num_games + 1
        if latency_ticks <= best.latency_ticks:
            best = Found(num_games, latency_ticks, tried)
            continue
        best = replace(best, num_games=num_games)
        if len(other) > 1:
            middle = int(other[len(other) // 2])
            stretches += [(start, middle), (middle, end)]
    return best


def wishes_by_price(member: PlayedProgram) -> NDArray[np.int8]:
    """`[num_turns]` what saves at least what its place costs (`malloc_game.memory_prices`).

    Keep if staying until the buffer's next turn does; else Copy if this turn by itself does.
    """
    features = turn_features(member.table)[member.item_of_turn]
    copy = np.where(features[:, TurnFeature.WORTH_NOW] >= _WORTH_IT, Action.COPY, Action.DROP)
    keeps = features[:, TurnFeature.WORTH_TO_NEXT] >= _WORTH_IT
    return np.where(keeps, Action.KEEP, copy).astype(np.int8)
