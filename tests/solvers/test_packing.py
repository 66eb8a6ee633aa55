"""Offset packing: correct against brute force, MiniMalloc's files, infeasibility proven."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_graphs.errors import InputError
from solvers.packing import (
    PackItem,
    check_packing,
    components,
    pack,
    peak_load,
    place_in_order,
    read_minimalloc_csv,
    read_minimalloc_file,
    write_minimalloc_csv,
)
from solvers.solver import Status
from tests.shared_data import shared_data_path


@st.composite
def small_items(draw: st.DrawFn) -> list[PackItem]:
    count = draw(st.integers(1, 5))
    items = []
    for index in range(count):
        start = draw(st.integers(0, 4))
        end = start + draw(st.integers(1, 4))
        items.append(PackItem(f"b{index}", start, end, draw(st.integers(0, 4))))
    return items


def fits_by_brute_force(items: list[PackItem], capacity: int) -> bool:
    """Tries every combination of offsets."""
    choices = [range(capacity - item.size + 1) for item in items]
    return any(
        not check_packing(items, capacity, offsets) for offsets in itertools.product(*choices)
    )


@given(small_items(), st.integers(4, 7))
@settings(max_examples=80, deadline=None)
def test_agrees_with_brute_force(items: list[PackItem], capacity: int) -> None:
    found = pack(items, capacity, time_limit_seconds=10.0)
    assert check_packing(items, capacity, found.offsets) == []
    expected = fits_by_brute_force(items, capacity)
    assert found.status is (Status.OPTIMAL if expected else Status.INFEASIBLE)
    assert found.complete == expected
    assert not expected or None not in found.offsets


@given(small_items(), st.integers(4, 7), st.permutations(range(5)))
@settings(max_examples=80, deadline=None)
def test_any_order_places_without_overlap(
    items: list[PackItem], capacity: int, shuffled: list[int]
) -> None:
    order = [index for index in shuffled if index < len(items)]
    for best_fit in (False, True):
        offsets = place_in_order(items, capacity, order, best_fit=best_fit)
        assert check_packing(items, capacity, offsets) == []


@pytest.mark.parametrize("seed", [0, 2**40 + 1])
def test_a_packing_that_needs_thought(seed: int) -> None:
    """Largest first at the lowest address fails here; an answer exists."""
    items = [
        PackItem("a", 0, 3, 4),
        PackItem("b", 3, 9, 4),
        PackItem("c", 0, 9, 4),
        PackItem("d", 9, 21, 4),
        PackItem("e", 0, 21, 4),
    ]
    found = pack(items, 12, seed=seed)
    assert found.complete
    assert peak_load(items) == 12


def test_components_split_where_nothing_crosses() -> None:
    items = [PackItem("a", 0, 2, 1), PackItem("b", 1, 3, 1), PackItem("c", 3, 4, 1)]
    assert components(items) == [[0, 1], [2]]


def test_fixed_offsets_and_alignment_are_kept() -> None:
    items = [
        PackItem("fixed", 0, 2, 3, fixed_offset=4),
        PackItem("aligned", 0, 2, 3, alignment=8),
        PackItem("free", 0, 2, 1),
    ]
    found = pack(items, 12)
    assert found.complete
    assert found.offsets[0] == 4
    assert found.offsets[1] in (0, 8)
    assert check_packing(items, 12, found.offsets) == []


def test_checks_name_what_is_wrong() -> None:
    items = [PackItem("a", 0, 2, 3), PackItem("b", 1, 3, 3, alignment=2)]
    assert check_packing(items, 6, [0, 2]) == ["b and a share bytes"]
    assert check_packing(items, 6, [4, None]) == ["a at 4 is outside 6 or not aligned"]
    assert check_packing(items, 8, [None, 1]) == ["b at 1 is outside 8 or not aligned"]


def test_reads_and_writes_minimalloc_files() -> None:
    items = read_minimalloc_csv("id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\n")
    assert items == (PackItem("b1", 0, 3, 4), PackItem("b2", 3, 9, 4))
    inclusive = read_minimalloc_csv("id,lower,end,size\nb1,0,2,4\n")
    assert inclusive == (PackItem("b1", 0, 3, 4),)
    written = write_minimalloc_csv(items, [0, 8])
    assert read_minimalloc_csv(written)[1] == PackItem("b2", 3, 9, 4, fixed_offset=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,lower,upper\n", "f.csv:1: no column size"),
        ("id,lower,upper,size\nb,0,x,4\n", "f.csv:2: invalid literal"),
        ("id,lower,upper,size\nb,3,3,4\n", "f.csv:2: buffer b: empty lifetime"),
        ("lower,upper,size,id\n0,1,4\n", "f.csv:2: "),
    ],
)
def test_bad_files_are_located(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_minimalloc_csv(text, "f.csv")


def test_minimalloc_example_and_hard_set() -> None:
    folder = shared_data_path("minimalloc")
    example = read_minimalloc_file(folder / "input.12.csv")
    assert pack(example, 12).complete
    sizes = {}
    for path in sorted(folder.glob("?.1048576.csv")):
        items = read_minimalloc_file(path)
        sizes[path.name[0]] = len(items)
        assert peak_load(items) <= 1048576
        found = pack(items, 1048576, time_limit_seconds=0.5)
        assert check_packing(items, 1048576, found.offsets) == []
        assert found.status is not Status.INFEASIBLE
    assert sizes["A"] == 154


@pytest.mark.parametrize("offsets", [(0, 2), (100, 0), (-4, 0)])
def test_fixed_offsets_that_cannot_be_are_infeasible(offsets: tuple[int, int]) -> None:
    items = [PackItem(f"i{n}", 0, 2, 4, fixed_offset=at) for n, at in enumerate(offsets)]
    assert pack(items, 8).status is Status.INFEASIBLE
