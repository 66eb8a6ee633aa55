"""Offset packing: correct against brute force, MiniMalloc's files, infeasibility proven."""

from __future__ import annotations

import csv
import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_graphs.errors import InputError
from solvers.pack_items import (
    PackItem,
    check_packing,
    peak_load,
    read_minimalloc_csv,
    read_minimalloc_file,
    write_minimalloc_csv,
)
from solvers.packing import components, pack, place_in_order
from solvers.packing_search import IMPOSSIBLE, PACKED, RUNNING, PackingSearch
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


@st.composite
def awkward_items(draw: st.DrawFn) -> list[PackItem]:
    """Some aligned, some fixed (but not onto each other), all of some size."""
    items = []
    for item in draw(small_items()):
        sized = replace(item, size=max(item.size, 1), alignment=draw(st.sampled_from((1, 1, 2, 3))))
        place = draw(st.none() | st.none() | st.integers(0, 2))
        fixed = replace(sized, fixed_offset=place and place * sized.alignment)
        offsets = [other.fixed_offset for other in (*items, fixed)]
        items.append(sized if check_packing([*items, fixed], 99, offsets) else fixed)
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


@given(awkward_items(), st.integers(4, 7), st.permutations(range(5)))
@settings(max_examples=150, deadline=None)
def test_the_search_alone_agrees_with_brute_force(
    items: list[PackItem], capacity: int, shuffled: list[int]
) -> None:
    fixed = [item for item in items if item.fixed_offset is not None]
    free = [item for item in items if item.fixed_offset is None]
    order = [index for index in shuffled if index < len(free)]
    search = PackingSearch(free, fixed, capacity, order)
    while search.run(1) == RUNNING:  # One node at a time: it can be left and gone back to anywhere.
        pass
    others = [replace(item, fixed_offset=None) for item in free]
    fits = any(
        not check_packing([*others, *fixed], capacity, [*offsets, *(f.fixed_offset for f in fixed)])
        for offsets in itertools.product(range(capacity), repeat=len(free))
    )
    fixed_fit = not check_packing(fixed, capacity, [item.fixed_offset for item in fixed])
    if fixed_fit:
        assert search.status == (PACKED if fits else IMPOSSIBLE)
    if search.status == PACKED:
        assert (
            check_packing(
                [*free, *fixed], 99, [*search.offsets(), *(f.fixed_offset for f in fixed)]
            )
            == []
        )


@given(st.integers(0, 10**6), st.integers(10, 60))
@settings(max_examples=25, deadline=None)
def test_what_was_cut_from_one_sheet_is_laid_back(seed: int, cuts: int) -> None:
    """No byte is free at any time: every gap is a mistake."""
    rng = random.Random(seed)
    sheets = [(0, 40, 0, 64)]  # Steps and addresses, both half open.
    for _ in range(cuts):
        start, end, low, high = sheets.pop(rng.randrange(len(sheets)))
        if rng.random() < 0.5 and end - start > 1:
            at = rng.randrange(start + 1, end)
            sheets += [(start, at, low, high), (at, end, low, high)]
        elif high - low > 1:
            at = rng.randrange(low + 1, high)
            sheets += [(start, end, low, at), (start, end, at, high)]
        else:
            sheets.append((start, end, low, high))
    items = [PackItem(str(n), s, e, high - low) for n, (s, e, low, high) in enumerate(sheets)]
    found = pack(items, 64, time_limit_seconds=60.0)
    assert found.complete
    assert check_packing(items, 64, found.offsets) == []


def test_a_load_that_fits_and_cannot_be_packed() -> None:
    """Never more than 5 are alive, yet nobody can place these; a sixth address helps."""
    lives = ((3, 7, 1), (2, 3, 2), (4, 5, 2), (2, 5, 2), (0, 4, 1), (0, 1, 3), (5, 7, 3))
    items = [PackItem(f"b{n}", start, end, size) for n, (start, end, size) in enumerate(lives)]
    assert peak_load(items) == 5
    assert not fits_by_brute_force(items, 5)
    assert pack(items, 5).status is Status.INFEASIBLE
    assert pack(items, 5, time_limit_seconds=0).status is Status.UNKNOWN
    assert pack(items, 6).complete


@given(small_items(), st.integers(4, 7), st.permutations(range(5)))
@settings(max_examples=80, deadline=None)
def test_any_order_places_without_overlap(
    items: list[PackItem], capacity: int, shuffled: list[int]
) -> None:
    order = [index for index in shuffled if index < len(items)]
    for best_fit in (False, True):
        offsets = place_in_order(items, capacity, order, best_fit=best_fit)
        assert check_packing(items, capacity, offsets) == []


@pytest.mark.parametrize(("seed", "workers"), [(0, 1), (2**40 + 1, 4)])
def test_a_packing_that_needs_thought(seed: int, workers: int) -> None:
    """Largest first at the lowest address fails here; an answer exists."""
    items = [
        PackItem("a", 0, 3, 4),
        PackItem("b", 3, 9, 4),
        PackItem("c", 0, 9, 4),
        PackItem("d", 9, 21, 4),
        PackItem("e", 0, 21, 4),
    ]
    found = pack(items, 12, seed=seed, workers=workers)
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
        ("id,lower,upper\n", "f.csv:1: no column size; found id, lower, upper"),
        ("id,lower,upper,size\nb,3,4\n", "f.csv:2: has fewer cells than there are columns"),
        ("id,lower,upper,size\nb,0,x,4\n", "f.csv:2: invalid literal"),
        ("id,lower,upper,size\nb,3,3,4\n", "f.csv:2: buffer b: empty lifetime"),
        ("lower,upper,size,id\n0,1,4\n", "f.csv:2: "),
    ],
)
def test_bad_files_are_located(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_minimalloc_csv(text, "f.csv")


def test_a_cell_that_is_no_name_is_located(request: pytest.FixtureRequest) -> None:
    before = csv.field_size_limit(1000)
    request.addfinalizer(lambda: csv.field_size_limit(before))
    with pytest.raises(InputError, match=r"f\.csv:2: field larger than field limit"):
        read_minimalloc_csv("id,lower,upper,size\n" + "b" * 1001 + ",0,1,4\n", "f.csv")


def test_minimalloc_example_and_hard_set() -> None:
    folder = shared_data_path("minimalloc")
    example = read_minimalloc_file(folder / "input.12.csv")
    assert pack(example, 12).complete
    sizes = {}
    for path in sorted(folder.glob("?.1048576.csv")):
        items = read_minimalloc_file(path)
        sizes[path.name[0]] = len(items)
        assert peak_load(items) <= 1048576
        found = pack(items, 1048576, time_limit_seconds=120.0)
        assert check_packing(items, 1048576, found.offsets) == []
        assert found.complete
    assert sizes["A"] == 154


def test_what_has_no_size_is_in_nobodys_way() -> None:
    items = [PackItem("a", 0, 2, 4), PackItem("nothing", 0, 2, 0, fixed_offset=2)]
    found = pack(items, 4)
    assert found.complete
    assert found.offsets == (0, 2)
    assert check_packing(items, 4, found.offsets) == []
    assert pack([replace(items[0], fixed_offset=0), items[1]], 4).complete


def test_a_capacity_beyond_64_bits_is_refused() -> None:
    with pytest.raises(InputError, match="below 2\\^62"):
        pack([PackItem("a", 0, 2, 4)], 2**62)


@pytest.mark.parametrize("offsets", [(0, 2), (100, 0), (-4, 0)])
def test_fixed_offsets_that_cannot_be_are_infeasible(offsets: tuple[int, int]) -> None:
    items = [PackItem(f"i{n}", 0, 2, 4, fixed_offset=at) for n, at in enumerate(offsets)]
    assert pack(items, 8).status is Status.INFEASIBLE
