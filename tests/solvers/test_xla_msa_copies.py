"""Copy bandwidth and order against OpenXLA's test vectors and a slow queue.

The vectors are those of `AsynchronousCopyResourceTest` and `AsynchronousCopyOrderingTest`
(`xla/service/memory_space_assignment/memory_space_assignment_test.cc`).
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.msa_copies import CopyOrdering, CopyResource, OutstandingCopies

Copy = tuple[int, int, int]


def add(resource: CopyResource, copy: Copy) -> bool:
    """Adds a copy if it fits."""
    if not resource.fits(*copy):
        return False
    resource.add(*copy)
    return True


def test_simple() -> None:
    resource = CopyResource([2, 3, 1, 6, 7, 1, 7, 2, 2, 4])
    assert add(resource, (-1, 3, 5))
    assert add(resource, (1, 4, 4))
    assert add(resource, (5, 9, 10))
    assert not add(resource, (4, 9, 3))
    assert add(resource, (4, 8, 2))


def test_propagate() -> None:
    resource = CopyResource([2] * 10)
    for copy in [(6, 10, 2), (5, 9, 2), (4, 8, 2), (3, 7, 2), (2, 6, 2), (1, 5, 2)]:
        assert add(resource, copy)
    assert resource.remaining == [2, 2, 0, 0, 0, 0, 0, 0, 2, 2]
    assert add(resource, (0, 4, 3))
    assert resource.remaining == [2, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    assert add(resource, (0, 4, 3))
    assert resource.remaining == [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert not add(resource, (0, 4, 1))


def test_cant_propagate() -> None:
    resource = CopyResource([2] * 10)
    for copy in [(5, 10, 2), (4, 7, 2), (4, 8, 4)]:
        assert add(resource, copy)
    assert resource.remaining == [2, 2, 2, 2, 2, 0, 0, 0, 0, 2]
    assert not add(resource, (3, 6, 4))


def test_nested() -> None:
    resource = CopyResource([2] * 5)
    assert add(resource, (1, 3, 2))
    assert resource.remaining == [2, 2, 0, 2, 2]
    assert not add(resource, (0, 4, 4))
    resource.remove(1, 3, 2)
    assert resource.remaining == [2] * 5
    assert add(resource, (0, 4, 4))
    assert resource.remaining == [2, 0, 0, 2, 2]
    assert not add(resource, (1, 3, 2))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_remove_in_any_order(order: tuple[int, ...]) -> None:
    resource = CopyResource([2] * 5)
    copies = [(2, 5, 2), (-1, 2, 3), (0, 4, 4)]
    states = ([2, 2, 2, 0, 2], [0, 1, 2, 0, 2], [0, 0, 0, 0, 1])
    for copy, state in zip(copies, states, strict=True):
        assert add(resource, copy)
        assert resource.remaining == state
    for index in order:
        resource.remove(*copies[index])
    assert resource.remaining == [2] * 5


def served_in_time(initial: list[int], copies: list[Copy]) -> bool:
    """Plays the queue: each time serves the copies that joined before it, by start time."""
    queue = sorted(enumerate(copies), key=lambda entry: (entry[1][0], entry[0]))
    left = [work for _, (_, _, work) in queue]
    for time, supply in enumerate(initial):
        for position, (_, (start, end, _)) in enumerate(queue):
            if left[position] and end <= time:
                return False
            if start < time:
                served = min(left[position], supply)
                left[position] -= served
                supply -= served
    return not any(left)


copy_lists = st.lists(
    st.tuples(st.integers(-1, 8), st.integers(1, 5), st.integers(1, 6)).map(
        lambda c: (c[0], min(c[0] + c[1] + 1, 10), c[2])
    ),
    max_size=12,
)


@given(st.lists(st.integers(0, 5), min_size=10, max_size=10), copy_lists)
def test_accepts_exactly_what_a_queue_can_serve(initial: list[int], proposed: list[Copy]) -> None:
    resource, accepted = CopyResource(initial), list[Copy]()
    for copy in proposed:
        expected = served_in_time(initial, [*accepted, copy])
        assert add(resource, copy) == expected
        if expected:
            accepted.append(copy)
    before = resource.remaining
    for copy in reversed(accepted[len(accepted) // 2 :]):
        resource.remove(*copy)
    for copy in accepted[len(accepted) // 2 :]:
        assert add(resource, copy)
    assert resource.remaining == before


def test_fifo_order() -> None:
    ordering = CopyOrdering()
    for copy in [(3, 11), (1, 8), (5, 14), (7, 14)]:
        assert not ordering.violates(*copy)
        ordering.add(*copy)
    assert all(ordering.violates(*copy) for copy in [(2, 16), (9, 12), (6, 17)])
    assert not any(ordering.violates(*copy) for copy in [(5, 13), (5, 14)])


def test_equal_copies_count_each() -> None:
    ordering = CopyOrdering()
    for _ in range(3):
        assert not ordering.violates(1, 5)
        ordering.add(1, 5)
    for _ in range(3):
        assert ordering.violates(2, 4)
        ordering.remove(1, 5)
    assert not ordering.violates(2, 4)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=10))
def test_outstanding_copies(copies: list[tuple[int, int]]) -> None:
    counted, plain = OutstandingCopies(), [(s, s + length) for s, length in copies]
    for copy in plain:
        counted.add(*copy)
    for start, end in [(0, 0), (2, 5), (4, 13)]:
        expected = sum(s <= end and start <= e for s, e in plain)
        assert counted.overlapping(start, end) == expected
    for copy in plain:
        counted.remove(*copy)
    assert counted.overlapping(0, 20) == 0
