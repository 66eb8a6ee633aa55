"""Cover inequalities: no set that fits breaks one, and none could weigh more."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from solvers.covers import Cover, lifted_cover, violated_cover

CAPACITY = 24

sizes = st.lists(st.integers(1, CAPACITY), min_size=2, max_size=8)


def heaviest_that_fits(weights: dict[int, int], sizes: list[int], capacity: int) -> int:
    """By looking at every set."""
    return max(
        sum(weights.get(buffer, 0) for buffer in chosen)
        for count in range(len(sizes) + 1)
        for chosen in itertools.combinations(range(len(sizes)), count)
        if sum(sizes[buffer] for buffer in chosen) <= capacity
    )


@given(sizes, st.randoms(use_true_random=False))
def test_a_lifted_cover_holds_for_all_that_fits_and_could_weigh_no_more(
    sizes: list[int], random: object
) -> None:
    assume(sum(sizes) > CAPACITY)
    order = list(range(len(sizes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    members: list[int] = []
    while sum(sizes[buffer] for buffer in members) <= CAPACITY:
        members.append(order[len(members)])
    total = sum(sizes[buffer] for buffer in members)
    for buffer in list(members):
        if total - sizes[buffer] > CAPACITY:
            members.remove(buffer)
            total -= sizes[buffer]
    cover = lifted_cover(members, order, sizes, CAPACITY)
    weights = dict(cover.weights)
    assert weights.keys() >= set(members)
    assert heaviest_that_fits(weights, sizes, CAPACITY) == cover.limit
    for buffer in order:
        heavier = {**weights, buffer: weights.get(buffer, 0) + 1}
        assert heaviest_that_fits(heavier, sizes, CAPACITY) > cover.limit


@given(sizes, st.data())
def test_what_is_found_is_broken_and_holds(sizes: list[int], data: st.DataObject) -> None:
    share = st.floats(0.01, 1)
    held = {buffer: data.draw(share) for buffer in range(len(sizes))}
    cover = violated_cover(held, sizes, CAPACITY, 0.01)
    if sum(sizes) <= CAPACITY:
        assert cover is None
    if cover is not None:
        assert sum(weight * held[buffer] for buffer, weight in cover.weights) >= cover.limit + 0.01
        assert heaviest_that_fits(dict(cover.weights), sizes, CAPACITY) <= cover.limit


def test_of_three_halves_two_stay_and_a_larger_one_counts_twice() -> None:
    held = {0: 0.9, 1: 0.9, 2: 0.9, 3: 0.1}
    assert violated_cover(held, [12, 12, 12, 20], 24, 0.5) == Cover(
        ((0, 1), (1, 1), (2, 1), (3, 2)), 2
    )


def test_two_that_fit_without_a_third_leave_no_room_for_the_smallest() -> None:
    """Memory that is full to the last byte: the relaxation keeps nearly all of both, and it."""
    held = {0: 0.98, 1: 0.98, 2: 1.0}
    assert violated_cover(held, [12, 12, 1], 24, 0.01) == Cover(((0, 1), (1, 1), (2, 1)), 2)


@pytest.mark.parametrize("held", [{}, {0: 1.0, 1: 1.0}])
def test_what_fits_breaks_nothing(held: dict[int, float]) -> None:
    assert violated_cover(held, [12, 12], 24, 0.01) is None
