"""Memory maps as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings

from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.memory_map import (
    SCHEMA,
    Eviction,
    MemoryMap,
    Part,
    ReplacedCopy,
    Residency,
    Source,
)
from tests.strategies import programs_with_maps

FULL = MemoryMap(
    residencies=(
        Residency(0, 0, 1, 4, Source.COPIED, 2, None, (Part(0, 8, 1), Part(8, 8, 2))),
        Residency(1, 16, 1, 9, Source.PRODUCED, 1, loop=0, holes=((4, 6),)),
        Residency(2, 32, 0, 10, Source.CARRIED, 0),
    ),
    evictions=(Eviction(1, 3, 4),),
    replaced_copies=(ReplacedCopy(5, 5, 7),),
)


@pytest.mark.parametrize("memory_map", [MemoryMap(), FULL], ids=["empty", "full"])
def test_json_round_trip(memory_map: MemoryMap) -> None:
    assert MemoryMap.from_json(memory_map.to_json()) == memory_map


@settings(max_examples=40, deadline=None)
@given(programs_with_maps())
def test_json_round_trip_of_random_maps(pair: tuple[Program, MemoryMap]) -> None:
    _, memory_map = pair
    assert MemoryMap.from_json(memory_map.to_json()) == memory_map


def broken(change: Callable[[Any], object]) -> str:
    document = json.loads(FULL.to_json())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "invalid JSON"),
        ("[]", f"schema is 'list', this version reads '{SCHEMA}'"),
        (broken(lambda d: d.update(schema="other/1")), "schema is 'other/1'"),
        (broken(lambda d: d.pop("evictions")), "evictions is NoneType, not a list"),
        (broken(lambda d: d["residencies"][1].update(source="magic")), "residencies[1]: 'magic'"),
        (broken(lambda d: d["residencies"][2].pop("source")), "residencies[2]: lacks source"),
        (broken(lambda d: d["residencies"][0].update(offset_bytes=1.5)), "residencies[0]: "),
        (broken(lambda d: d["evictions"][0].pop("done")), "evictions[0]: lacks done"),
        (
            broken(lambda d: d["evictions"][0].update(size=4)),
            "evictions[0]: has unknown fields: size",
        ),
        (broken(lambda d: d.update(replaced_copies=[7])), "replaced_copies[0]: is int, not an"),
    ],
)
def test_what_is_no_map(text: str, named: str) -> None:
    with pytest.raises(InputError, match="not a memory map") as caught:
        MemoryMap.from_json(text)
    assert named in str(caught.value)


def test_the_window_of_a_replaced_copy_has_a_step_at_least() -> None:
    assert ReplacedCopy(3, 4, 7).window == (4, 7)
    assert ReplacedCopy(3, 4, 4).window == (4, 5)


def test_bytes_held_by_slices_and_around_holes() -> None:
    """(first step, end, low byte, high byte): slices from their own start, nothing in holes."""
    sliced = Residency(
        0, 100, 1, 9, Source.COPIED, 3, parts=(Part(0, 8, 1), Part(8, 8, 2)), holes=((4, 6),)
    )
    assert sorted(sliced.occupied(16)) == [
        (1, 4, 100, 108),
        (2, 4, 108, 116),
        (6, 9, 100, 108),
        (6, 9, 108, 116),
    ]
