"""Passages that look alike, and what is carried over between them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest

from agents.adaptation import AdaptationConfig, Found, _walk
from agents.passages import LONGEST_SHARE, MOST_CHANGES, RUN_TURNS, Passages
from hlo_graphs.program import Program
from malloc_game.fast_game import FastGame
from malloc_game.state import NUM_ACTIONS
from tests.malloc_game.small import program_of


def layers(count: int, other: Collection[int] = ()) -> Program:
    """Each layer makes four tensors, of which one or two have room, and reads them in turn.

    Those of the layers in `other` are read in the opposite order.
    """
    sizes: dict[str, int] = {}
    steps = []
    for layer in range(count):
        names = [chr(0x4E00 + 4 * layer + one) for one in range(4)]
        sizes |= dict(zip(names, (5, 4, 3, 5), strict=True))
        steps += [(2, f"w{name}") for name in names]
        steps += [(2, f"r{name}") for name in (reversed(names) if layer in other else names)]
    return program_of(sizes, steps)


def test_turns_look_alike_in_every_layer_and_not_within_one() -> None:
    looks = Passages(FastGame(layers(3))).looks
    first = looks[:8].tolist()
    # The first and the last tensor of a layer have one size, and so look alike.
    assert first == [0, 1, 2, 0, 3, 4, 5, 3]
    assert looks.tolist() == first * 3
    mixed = Passages(FastGame(layers(2, other=[1]))).looks
    assert mixed.tolist() == [*first, 0, 1, 2, 0, 3, 5, 4, 3]


def test_a_transfer_plays_one_layer_as_another_is_played() -> None:
    game = FastGame(layers(8))
    wishes = game.wishes()
    wishes[16:24] = [0, 2, 1, 0, 0, 2, 0, 1]
    made = Passages(game).transfers(wishes, 2000, np.random.default_rng(0))
    whole = [(t, a) for t, a in made if len(t) == 4 and (a != 0).all() and t[-1] - t[0] == 6]
    assert {int(turns[0]) // 8 for turns, _ in whole} == {0, 1, 3, 4, 5, 6, 7}
    for turns, actions in whole:
        assert (turns % 8).tolist() == [1, 2, 5, 7]
        assert actions.tolist() == [2, 1, 2, 1]
    # The other way round that layer is played as the others are.
    assert any((actions == 0).all() and turns[0] // 8 == 2 for turns, actions in made)


@pytest.mark.parametrize("seed", range(12))
def test_every_transfer_repeats_a_stretch_that_looks_the_same(seed: int) -> None:
    rng, count = np.random.default_rng(seed), 3 + 5 * seed
    game = FastGame(layers(count, np.flatnonzero(rng.random(count) < 0.5)))
    wishes = rng.integers(NUM_ACTIONS, size=game.num_turns).astype(np.int8)
    passages = Passages(game)
    looks = passages.looks
    made = passages.transfers(wishes, 100, rng)
    assert made
    for turns, actions in made:
        assert 0 < len(turns) <= MOST_CHANGES
        assert (np.diff(turns) > 0).all()
        assert (actions != wishes[turns]).all()
        assert turns[-1] - turns[0] < max(RUN_TURNS, LONGEST_SHARE * game.num_turns)
        shifts = [
            shift
            for shift in range(-int(turns[0]), game.num_turns - int(turns[-1]))
            if (looks[turns + shift] == looks[turns]).all()
            and (wishes[turns + shift] == actions).all()
        ]
        assert shifts


def test_nothing_is_carried_over_where_nothing_repeats_or_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    sizes = {name: size for size, name in enumerate("abcdefgh", 1)}
    different = FastGame(program_of(sizes, [(2, f"w{name}") for name in sizes], capacity=64))
    wishes = rng.integers(NUM_ACTIONS, size=different.num_turns).astype(np.int8)
    assert different.num_turns >= RUN_TURNS
    assert Passages(different).transfers(wishes, 50, rng) == []
    short = FastGame(program_of({"a": 2}, [(2, "wa"), (2, "ra")]))
    assert short.num_turns < RUN_TURNS
    assert Passages(short).transfers(short.wishes(), 50, rng) == []
    alike = FastGame(layers(4))
    assert Passages(alike).transfers(alike.wishes(), 50, rng) == []


def test_a_walk_that_carries_over_needs_fewer_games() -> None:
    game = FastGame(layers(40))
    config = AdaptationConfig(games_per_round=50)
    slow = Found(0, game.latency_ticks(game.wishes()), game.wishes())

    def reached(config: AdaptationConfig) -> float:
        found = []
        for seed in range(5):
            *_, last = _walk(game, Passages(game), slow, 400, config, np.random.default_rng(seed))
            assert last.latency_ticks == game.latency_ticks(last.wishes)
            found.append(last.latency_ticks)
        return float(np.mean(found))

    alone = reached(replace(config, transfer_share=0.0))
    assert slow.latency_ticks - reached(config) > 1.1 * (slow.latency_ticks - alone) > 0
