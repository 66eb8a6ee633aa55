"""Cover inequalities: nothing that fits breaks one, and none could weigh more."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from solvers.covers import Cover, flow_cover, lifted_cover, violated_cover, violated_flow_cover

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


def heaviest_in_parts(cover: Cover, sizes: list[int], capacity: int) -> int:
    """By looking at every set that is wholly there, with what fits beside it of the others."""
    weights = dict(cover.weights)
    whole = [buffer for buffer in weights if buffer not in cover.parts]
    fluid = sum(sizes[buffer] for buffer in cover.parts)
    assert all(weights[buffer] == sizes[buffer] for buffer in cover.parts)
    heaviest = 0
    for count in range(len(whole) + 1):
        for chosen in itertools.combinations(whole, count):
            room = capacity - sum(sizes[buffer] for buffer in chosen)
            if room >= 0:
                weight = sum(weights[buffer] for buffer in chosen)
                heaviest = max(heaviest, weight + min(room, fluid))
    return heaviest


@given(st.lists(st.integers(1, CAPACITY), min_size=3, max_size=8), st.data())
def test_a_flow_cover_holds_for_all_that_fits(sizes: list[int], data: st.DataObject) -> None:
    largest = max(sizes)
    assume(largest > 1)
    capacity = max(sum(sizes) - data.draw(st.integers(1, largest - 1)), largest)
    excess = sum(sizes) - capacity
    assume(excess > 0)
    possible = [buffer for buffer, size in enumerate(sizes) if size > excess]
    large = data.draw(st.lists(st.sampled_from(possible), min_size=1, unique=True))
    fluid = [buffer for buffer in range(len(sizes)) if buffer not in large]
    cover = flow_cover(large, fluid, sizes, capacity)
    assert heaviest_in_parts(cover, sizes, capacity) == cover.limit


@given(sizes, st.data())
def test_a_flow_cover_that_is_found_is_broken_and_holds(
    sizes: list[int], data: st.DataObject
) -> None:
    share = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
    whole = {buffer: data.draw(share) for buffer in range(len(sizes))}
    part = {buffer: data.draw(share) * (1 - whole[buffer]) for buffer in range(len(sizes))}
    cover = violated_flow_cover(whole, part, sizes, CAPACITY, 0.01)
    if cover is not None:
        weight = sum(
            times * (whole[buffer] + (part[buffer] if buffer in cover.parts else 0.0))
            for buffer, times in cover.weights
        )
        assert weight > cover.limit
        assert heaviest_in_parts(cover, sizes, CAPACITY) <= cover.limit


def test_what_may_have_arrived_depends_on_what_is_still_there() -> None:
    """Room for two and a half: while three are wholly there, half of the fourth may have come.

    The linear relaxation has half of the third leave and three quarters of the fourth arrive.
    """
    whole, part = {0: 1.0, 1: 1.0, 2: 0.5}, {3: 0.75}
    found = violated_flow_cover(whole, part, [8, 8, 8, 8], 26, 0.1)
    assert found == Cover(((0, 8), (1, 8), (2, 6), (3, 8)), 24, (0, 1, 3))
    assert violated_flow_cover(whole, {3: 0.5}, [8, 8, 8, 8], 26, 0.1) is None
