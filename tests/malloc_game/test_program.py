"""`Program`: its checks, what it derives, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from hlo_graphs.errors import InputError
from hlo_graphs.program import SCHEMA, Access, AccessKind, Instruction, Loop, Program
from malloc_game.generator import random_program
from malloc_game.turn_table import turn_table
from tests.malloc_game.small import program_of
from tests.strategies import programs

LOOPS = (Loop(1, 4, 3), Loop(1, 3, 2, parent=0), Loop(4, 5, 1, 0.5))


def nested() -> Program:
    """Five steps, a loop of three trips around one of two, then a branch."""
    steps = [(1, "ra"), (2, "ra"), (3, "ua"), (4, "ra"), (5, "ra")]
    return program_of({"a": 2}, steps, loops=LOOPS)


def test_loops_of_steps() -> None:
    program = nested()
    assert program.loop_of_step == (None, 1, 1, 0, 2, None)
    assert list(program.loops_around(1)) == [1, 0]
    assert [i.repeat for i in program.instructions] == [1, 6, 6, 3, 0.5]
    assert [loop.is_branch for loop in program.loops] == [False, False, True]


def test_times() -> None:
    program = nested()
    # Slow: the larger of compute and bytes; a read moves 2, the update 4.
    assert program.all_slow_ticks == 2 + 6 * 2 + 6 * 4 + 3 * 4 + 0.5 * 5
    assert program.all_fast_ticks == 1 + 6 * 2 + 6 * 3 + 3 * 4 + 0.5 * 5
    assert replace(program, tick_seconds=0.3).copy_ticks(2) == 7


def test_elapsed_takes_the_longest_lane() -> None:
    a = Access(0, AccessKind.READ, 4, 4, (0, 10))
    b = Access(1, AccessKind.READ, 6, 6, (0, 3))
    step = Instruction("op", "fusion", "", 1.0, (9, 1), (a, b))
    assert step.elapsed_ticks([]) == 9
    assert step.elapsed_ticks([a]) == 11
    assert step.elapsed_ticks([b]) == 9
    assert step.elapsed_ticks([a, b]) == 14
    bus = Instruction("op", "fusion", "", 1.0, (3,), ())
    assert bus.elapsed_ticks([replace(a, lane_ticks=(0,)), replace(b, lane_ticks=(0,))]) == 10


@settings(max_examples=40, deadline=None)
@given(programs(max_accesses=60))
def test_the_access_table_holds_the_accesses(program: Program) -> None:
    table = program.access_table
    rows = [(step, a) for step, i in enumerate(program.instructions) for a in i.accesses]
    assert table.step.tolist() == [step for step, _ in rows]
    assert table.buffer.tolist() == [a.buffer for _, a in rows]
    assert table.bus_ticks.tolist() == [a.bus_ticks for _, a in rows]
    assert table.size_bytes.tolist() == [a.size_bytes for _, a in rows]
    assert table.lane_ticks.tolist() == [list(a.lane_ticks) for _, a in rows]
    assert table.base_ticks.tolist() == [list(i.base_ticks) for i in program.instructions]
    by_buffer = [(b, s) for b, found in enumerate(program.accesses_of_buffer) for s, _ in found]
    assert by_buffer == list(
        zip(table.buffer[table.by_buffer], table.step[table.by_buffer], strict=True)
    )
    assert bool(np.all(np.diff(table.keys) > 0))


def test_capacity_is_rounded_down_to_the_alignment() -> None:
    program = random_program(0)
    assert program.with_capacity(5000).capacity_bytes == 4096
    assert program.with_capacity(0).capacity_bytes == 0
    with pytest.raises(InputError, match="-1 bytes"):
        program.with_capacity(-1)


def test_what_may_be_resident() -> None:
    program = program_of({"a": 2, "b": 9, "c": 2}, [(1, "ra rb rc")], forbidden="c", capacity=8)
    assert [program.may_be_resident(b) for b in range(3)] == [True, False, False]


def test_as_a_networkx_graph() -> None:
    graph = nested().to_networkx()
    assert graph.number_of_nodes() == 5 + 1
    assert graph.number_of_edges(("buffer", 0), ("step", 2)) == 1
    assert graph.number_of_edges(("step", 2), ("buffer", 0)) == 1
    assert graph.number_of_edges(("step", 1), ("buffer", 0)) == 0


@pytest.mark.parametrize(
    ("loops", "named"),
    [
        ((Loop(2, 3, 1), Loop(0, 1, 1)), "sorted by start"),
        ((Loop(0, 9, 1),), "empty or outside"),
        ((Loop(2, 2, 1),), "empty or outside"),
        ((Loop(0, 3, 1), Loop(2, 5, 1)), "crosses loop"),
        ((Loop(0, 3, 1), Loop(1, 2, 1)), "parent is None, expected"),
        ((Loop(0, 3, 0),), "trip count 0"),
        ((Loop(0, 3, 2**70),), "trip count 1180591620717411303424 is more than"),
    ],
)
def test_bad_loops(loops: tuple[Loop, ...], named: str) -> None:
    with pytest.raises(InputError, match=named):
        replace(nested(), loops=loops)


def access(**changes: Any) -> tuple[Access, ...]:
    return (replace(nested().instructions[0].accesses[0], **changes),)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"accesses": access(buffer=7)}, "no buffer 7"),
        ({"accesses": access(bus_ticks=-1)}, "ticks of the access to buffer 0"),
        ({"accesses": access(lane_ticks=(0, 0))}, "ticks of the access to buffer 0"),
        ({"accesses": access() * 2}, "more than one access"),
        ({"base_ticks": (1, 2)}, "expected 1 >= 0"),
        ({"repeat": float("nan")}, "repeat is nan"),
        ({"repeat": float("inf")}, "must be >= 0 and finite"),
    ],
)
def test_bad_instructions(changes: dict[str, Any], named: str) -> None:
    program = nested()
    last = replace(program.instructions[-1], **changes)
    with pytest.raises(InputError, match=named):
        replace(program, instructions=(*program.instructions[:-1], last))


def test_bad_buffers_and_machines() -> None:
    program = random_program(0)
    first = program.buffers[0]
    for changes, named in (
        ({"size_bytes": 100}, "multiple of the alignment"),
        ({"origin": -2}, "origin -2 is not a step"),
    ):
        with pytest.raises(InputError, match=named):
            replace(program, buffers=(replace(first, **changes), *program.buffers[1:]))
    for changes, named in (
        ({"capacity_bytes": -1024}, "cannot be negative"),
        ({"capacity_bytes": 1000}, "not a multiple"),
        ({"slow_bytes_per_second": 0.0}, "slow bandwidth is 0.0"),
    ):
        with pytest.raises(InputError, match=named):
            replace(program, machine=replace(program.machine, **changes))
    with pytest.raises(InputError, match="tick_seconds"):
        replace(program, tick_seconds=0.0)


def broken(change: Callable[[Any], object]) -> str:
    document = json.loads(nested().to_json())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense", "invalid JSON"),
        ("3", f"schema is 'int', this version reads '{SCHEMA}'"),
        (broken(lambda d: d.update(schema="x")), "schema is 'x'"),
        (broken(lambda d: d.pop("loops")), "not a Program: it has no 'loops'"),
        (broken(lambda d: d.update(loops={})), "not a Program: loops is dict, not a list"),
        (broken(lambda d: d["buffers"][0].pop("name")), "buffers[0] has no 'name'"),
        (broken(lambda d: d["buffers"].__setitem__(0, 7)), "not a Program: buffers[0]: "),
        (broken(lambda d: d["instructions"][2].pop("repeat")), "not a Program: instructions[2]: "),
        (broken(lambda d: d["machine"].pop("chip")), "not a Program: machine has no 'chip'"),
        (broken(lambda d: d["instructions"][0]["accesses"][0].pop()), "ticks of the access"),
        (
            broken(lambda d: d["instructions"][0]["accesses"][0].__setitem__(1, "peek")),
            "not a Program: instructions[0]: 'peek' is not",
        ),
    ],
)
def test_what_is_no_program(text: str, named: str) -> None:
    with pytest.raises(InputError) as caught:
        Program.from_json(text)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repeat": 1.0}, r"step 1 .*repeat is 1.0, the loops around it make it 6"),
        ({"repeat": float("inf")}, "repeat is inf"),
        # Copies are counted by the loops, times by the step: a bound would lie above a map.
        ({"repeat": 6 * (1 - 0.9e-9)}, r"step 1 .*the loops around it make it 6"),
    ],
)
def test_steps_run_as_often_as_the_loops_around_them(change: dict[str, Any], words: str) -> None:
    program = nested()
    steps = list(program.instructions)
    steps[1] = replace(steps[1], **change)
    with pytest.raises(InputError, match=words):
        replace(program, instructions=tuple(steps))


def test_bytes_and_addresses_in_range() -> None:
    program = nested()
    steps = list(program.instructions)
    steps[0] = replace(steps[0], accesses=(replace(steps[0].accesses[0], size_bytes=-5),))
    with pytest.raises(InputError, match=r"step 0 .*-5 bytes"):
        replace(program, instructions=tuple(steps))
    with pytest.raises(InputError, match="in which addresses are counted"):
        program.with_capacity(2**31)


def test_text_of_nothing_but_brackets_is_no_program() -> None:
    with pytest.raises(InputError, match="invalid JSON"):
        Program.from_json("[" * 100_000)


def test_loops_of_unknown_trips_survive_the_file() -> None:
    program = replace(nested(), loops=tuple(replace(x, trips_known=False) for x in LOOPS))
    again = Program.from_json(program.to_json())
    assert again == program
    assert all(loop.may_skip and loop.may_repeat for loop in again.loops)
    older = json.loads(program.to_json())
    for loop in older["loops"]:
        del loop["trips_known"]
    assert Program.from_json(json.dumps(older)) == nested()


def test_compute_that_is_stated_survives_the_file_and_is_in_range() -> None:
    program = nested()
    first = replace(program.instructions[0], compute_ticks=7)
    stated = replace(program, instructions=(first, *program.instructions[1:]))
    assert Program.from_json(stated.to_json()) == stated
    assert "compute_ticks" not in program.to_json()
    for wrong in (-1, 2**60):
        steps = (replace(first, compute_ticks=wrong), *program.instructions[1:])
        with pytest.raises(InputError, match="compute_ticks"):
            replace(program, instructions=steps)


def test_a_bus_too_slow_to_count_ticks_of_is_refused() -> None:
    program = nested()
    with pytest.raises(InputError, match=r"a copy of its \d+ bytes takes \S+ ticks, more than"):
        replace(program, machine=replace(program.machine, slow_bytes_per_second=1e-300))


def test_the_game_refuses_loops_it_has_no_room_for_before_it_looks_at_them() -> None:
    def nest(depth: int) -> Program:
        loops = [Loop(0, 1, 1, parent=k - 1 if k else None) for k in range(depth)]
        return program_of({"a": 1}, [(5, "ra")], loops=loops)

    assert turn_table(nest(3)).num_turns > 0
    with pytest.raises(InputError, match="loops nest 40 deep, the game knows 15"):
        turn_table(nest(40))
