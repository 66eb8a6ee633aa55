"""Prices of fast memory: what they promise about every choice of stays, by trying all choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo_graphs.program import Loop
from malloc_game.memory_prices import Stays, memory_prices
from malloc_game.turn_features import TurnFeature, turn_features
from malloc_game.turn_table import Column, ItemKind, turn_table
from tests.malloc_game.small import program_of

NUM_STEPS = 6

a_stay = st.tuples(
    st.integers(0, NUM_STEPS - 1), st.integers(1, NUM_STEPS), st.integers(1, 5), st.integers(0, 9)
)

a_few_stays = given(st.lists(a_stay, min_size=1, max_size=8), st.integers(0, 8))


def stays_of(rows: list[tuple[int, int, int, int]]) -> Stays:
    """Stays from (start, length, size, saved); those beyond the last step end there."""
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    end = np.minimum(table[:, 0] + table[:, 1], NUM_STEPS)
    return Stays(table[:, 0], end, table[:, 2], table[:, 3].astype(np.float64))


def most_saved(stays: Stays, capacity: int) -> float:
    """By trying all choices of stays."""
    best = 0.0
    for chosen in itertools.product([False, True], repeat=len(stays.start)):
        held = np.zeros(NUM_STEPS)
        for place in np.flatnonzero(chosen):
            held[stays.start[place] : stays.end[place]] += stays.size_units[place]
        if held.max() <= capacity:
            best = max(best, float(stays.saved_ticks[list(chosen)].sum()))
    return best


@a_few_stays
def test_no_choice_saves_more_than_the_prices_allow(
    rows: list[tuple[int, int, int, int]], capacity: int
) -> None:
    stays = stays_of(rows)
    prices = memory_prices(stays, capacity, NUM_STEPS)
    assert (prices.per_unit >= 0).all()
    assert (prices.left_units >= 0).all()
    earned = np.maximum(stays.saved_ticks - prices.cost_ticks(stays), 0.0).sum()
    bound = capacity * prices.per_unit.sum() + earned
    assert most_saved(stays, capacity) <= bound * (1 + 1e-9) + 1e-9


@a_few_stays
def test_what_finds_no_room_costs_at_least_what_it_saves(
    rows: list[tuple[int, int, int, int]], capacity: int
) -> None:
    stays = stays_of(rows)
    prices = memory_prices(stays, capacity, NUM_STEPS)
    cost = prices.cost_ticks(stays)
    held = capacity - prices.left_units
    taken = np.flatnonzero(cost < stays.saved_ticks * (1 - 1e-9))
    assert all(stays.size_units[place] <= capacity for place in taken)
    for step in range(NUM_STEPS):
        over = [p for p in taken if stays.start[p] <= step < stays.end[p]]
        assert sum(stays.size_units[p] for p in over) <= held[step]


def test_where_there_is_room_for_all_nothing_costs() -> None:
    stays = stays_of([(0, 6, 2, 5), (1, 2, 3, 1)])
    prices = memory_prices(stays, 5, NUM_STEPS)
    assert prices.per_unit.tolist() == [0] * NUM_STEPS
    assert prices.left_units.tolist() == [3, 0, 0, 3, 3, 3]


def test_what_is_turned_away_sets_the_price_where_room_is_short() -> None:
    # 12 ticks for 4 units over 4 steps come after 4 ticks for 2 units over 2 steps.
    stays = stays_of([(0, 4, 4, 12), (2, 2, 2, 4), (5, 1, 4, 1)])
    prices = memory_prices(stays, 5, NUM_STEPS)
    assert prices.left_units.tolist() == [5, 5, 3, 3, 5, 1]
    assert prices.per_unit.tolist() == [0, 0, 1.5, 1.5, 0, 0]
    assert prices.cost_ticks(stays).tolist() == [12, 6, 0]


def test_a_turn_knows_what_its_place_is_worth() -> None:
    # Each slow access takes 4 ticks instead of 1. With room for one buffer, what is accessed takes
    # it, and keeping a from step 1 to 3 would cost what b saves.
    steps = [(1, "wa"), (1, "wb"), (1, "rb"), (1, "ra")]
    columns = [TurnFeature.WORTH_NOW, TurnFeature.WORTH_TO_NEXT, TurnFeature.ROOM]
    seen = {}
    for capacity in (8, 4):
        table = turn_table(program_of({"a": 4, "b": 4}, steps, capacity=capacity))
        turns = np.flatnonzero(table.items[:, Column.KIND])
        seen[capacity] = turn_features(table)[np.ix_(turns, columns)]
    roomy = [[1, 1, 0.5], [1, 1, 0], [1, 0, 0], [1, 0, 0.5]]
    np.testing.assert_allclose(seen[8], roomy)
    tight = [[1, 0.5, 0], [2 / 3, 1, 0], [2 / 3, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(seen[4], tight)


def test_a_buffer_does_not_compete_with_itself() -> None:
    # One parameter and room for it: carried, through the loop, or for one access, nothing competes.
    loop = Loop(1, 3, trip_count=4)
    program = program_of(
        {"p": 6}, [(1, "rp"), (1, "rp"), (1, "rp"), (1, "rp")], capacity=8, loops=[loop]
    )
    table = turn_table(program)
    turns = np.flatnonzero(table.items[:, Column.KIND])
    features = turn_features(table)[turns]
    kinds = set(table.items[turns, Column.KIND].tolist())
    assert kinds == set(ItemKind) - {ItemKind.NONE}
    for column in (TurnFeature.WORTH_NOW, TurnFeature.WORTH_TO_NEXT):
        assert set(features[:, column].tolist()) <= {0.0, 1.0}
    assert features[features[:, TurnFeature.IS_EXIT] == 0, TurnFeature.WORTH_NOW].all()
    assert features[:, TurnFeature.ROOM] == pytest.approx(2 / 8)
