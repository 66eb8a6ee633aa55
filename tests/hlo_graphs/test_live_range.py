"""Schedules and live ranges: golden cases by eye, and what must hold on random programs."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_graphs.aliasing import AliasAnalysis, analyse_aliases
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloModule
from hlo_graphs.live_range import FlatSchedule, LiveRange, Span, flatten_schedule, live_ranges
from hlo_graphs.parser import parse_module, read_module
from tests.hlo_graphs.hlo_programs import random_module
from tests.shared_data import shared_data_path


def conformance(name: str) -> HloModule:
    return read_module(shared_data_path("hlo_conformance") / f"hlo_live_range_test__{name}.hlo")


def named_ranges(module: HloModule) -> dict[str, tuple[int, int]]:
    aliases = analyse_aliases(module)
    found = live_ranges(module, aliases, flatten_schedule(module))
    return {str(aliases.values[value]): tuple(lived) for value, lived in found.items()}


def sequence(module: HloModule) -> str:
    return " ".join(place.instruction.name for place in flatten_schedule(module).positions)


def test_parameters_live_through_and_the_root_one_step_longer() -> None:
    assert named_ranges(conformance("HloLiveRangeTest.ToStringSimpleComputation")) == {
        "paramA{}": (0, 3),
        "paramX{}": (0, 3),
        "multiply{}": (2, 3),
    }


def test_tuple_constants_have_a_value_per_node() -> None:
    ranges = named_ranges(conformance("HloLiveRangeTest.ToStringComputationWithTuple"))
    assert ranges == {
        "paramA{}": (0, 4),
        "constant{}": (1, 2),
        "constant{0}": (1, 1),
        "constant{1}": (1, 3),
        "add{}": (3, 4),
    }


def test_what_a_call_uses_lives_until_the_callee_uses_it() -> None:
    module = conformance("HloLiveRangeTest.Call")
    assert sequence(module) == "a b param_0 negate_0 c d e"
    assert named_ranges(module) == {
        "a{}": (0, 7),
        "b{}": (1, 3),
        "negate_0{}": (3, 6),
        "d{}": (5, 6),
        "e{}": (6, 7),
    }


def test_operands_of_an_asynchronous_call_live_until_it_is_done() -> None:
    module = conformance("HloLiveRangeTest.AsyncCall")
    ranges = named_ranges(module)
    assert ranges["a{}"] == ranges["b{}"] == (0, 16)
    assert ranges["negate_0{}"] == (2, 14)
    assert ranges["negate_1{}"] == (3, 14)
    assert ranges["add_0{}"] == (13, 15)
    assert ranges["add_1{}"] == (15, 16)


def test_late_bound_operations_run_where_the_last_operand_is_bound() -> None:
    assert sequence(conformance("HloLiveRangeTest.LateBoundAsyncCall")) == (
        "a negate_0 async-start negate_1 async_param param_0 negate_2 call async-update "
        "async-done add_1"
    )
    assert sequence(conformance("HloLiveRangeTest.ProgressiveLateBoundAsyncCall")) == (
        "a b negate_0 negate_1 async-start async-update.1 async_param async_param.1 param_0 "
        "param_1 add_0 call async-update.2 async-done add_1"
    )


LOOP = """HloModule m, is_scheduled=true{alias}
body {{
  p = (f32[4], f32[4]) parameter(0)
  x = f32[4] get-tuple-element(p), index=0
  y = f32[4] get-tuple-element(p), index=1
  s = f32[4] add(x, y)
  ROOT out = (f32[4], f32[4]) tuple(s, y)
}}
condition {{
  q = (f32[4], f32[4]) parameter(0)
  ROOT more = pred[] constant(false)
}}
ENTRY main {{
  a = f32[4] parameter(0)
  b = f32[4] parameter(1)
  c = f32[4] copy(a)
  init = (f32[4], f32[4]) tuple(c, b)
  loop = (f32[4], f32[4]) while(init), condition=condition, body=body
  d = f32[4] get-tuple-element(loop), index=0
  ROOT e = f32[4] negate(d)
}}"""


def test_loop() -> None:
    """The condition is at 4 and 5, the body at 6 to 10, the loop itself at 11."""
    module = parse_module(LOOP.format(alias=""))
    schedule = flatten_schedule(module)
    assert sequence(module) == "a b c init q more p x y s out loop d e"
    assert schedule.spans == {
        "condition": Span(4, 6),
        "body": Span(6, 11),
        "main": Span(0, 14),
    }
    (flow,) = schedule.control_flow()
    assert flow.is_loop
    assert (flow.time, flow.spans) == (11, (Span(4, 6), Span(6, 11)))
    ranges = named_ranges(module)
    assert ranges["a{}"] == ranges["b{}"] == (0, 14), "not given back: b is only read"
    assert [ranges[name] for name in ("c{}", "q{0}", "p{0}", "s{}", "loop{0}")] == [
        (2, 4),
        (4, 6),
        (6, 9),
        (9, 11),
        (11, 13),
    ], "the carried array is handed on without a gap"
    assert ranges["more{}"] == (5, 6)
    assert ranges["e{}"] == (13, 14)


def test_a_donated_parameter_dies_with_its_last_use() -> None:
    module = parse_module(LOOP.format(alias=", input_output_alias={ {}: (0, {}, may-alias) }"))
    ranges = named_ranges(module)
    assert ranges["a{}"] == (0, 2)
    assert ranges["e{}"] == (13, 14)


def test_branches_come_before_their_conditional() -> None:
    module = parse_module(
        """HloModule m, is_scheduled=true
        left { l = f32[4] parameter(0)  ROOT ln = f32[4] negate(l) }
        right { r = f32[4] parameter(0)  rn = f32[4] negate(r)  ROOT rm = f32[4] negate(rn) }
        ENTRY main {
          which = s32[] parameter(0)
          a = f32[4] parameter(1)
          b = f32[4] negate(a)
          ROOT c = f32[4] conditional(which, b, b), branch_computations={left, right}
        }"""
    )
    schedule = flatten_schedule(module)
    assert sequence(module) == "which a b l ln r rn rm c"
    (flow,) = schedule.control_flow()
    assert not flow.is_loop
    assert flow.spans == (Span(3, 5), Span(5, 8))
    ranges = named_ranges(module)
    assert ranges["b{}"] == (2, 8), "the conditional uses it"
    assert [ranges[name] for name in ("ln{}", "rm{}", "c{}")] == [(4, 5), (7, 8), (8, 9)]


def test_an_unscheduled_module_is_refused() -> None:
    module = parse_module("HloModule m\nENTRY e { ROOT a = f32[] constant(1) }", "some.hlo")
    with pytest.raises(InputError, match=r"some\.hlo: .*is_scheduled=true"):
        flatten_schedule(module)


def analysed(seed: int) -> tuple[HloModule, AliasAnalysis, FlatSchedule, dict[int, LiveRange]]:
    module = parse_module(random_module(random.Random(seed), depth=2))
    aliases = analyse_aliases(module)
    schedule = flatten_schedule(module)
    return module, aliases, schedule, live_ranges(module, aliases, schedule)


SEEDS = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_every_instruction_has_one_time_after_what_it_needs(seed: int) -> None:
    module, _, schedule, _ = analysed(seed)
    assert len(schedule.time_of) == len(schedule.positions)
    for time, (computation, instruction) in enumerate(schedule.positions):
        assert schedule.time_of[computation, instruction.name] == time
        for operand in instruction.operands:
            assert schedule.time_of[computation, operand] < time
        for called in instruction.called_computations:
            assert schedule.spans[called].end <= time
    for name, span in schedule.spans.items():
        own = [t for t, p in enumerate(schedule.positions) if p.computation == name]
        assert (span.start <= own[0], span.end) == (True, own[-1] + 1)
        assert len(own) == len(module.computations[name].instructions)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_ranges_of_one_buffer_follow_each_other(seed: int) -> None:
    _, aliases, _, ranges = analysed(seed)
    for buffer in aliases.buffers:
        for this, following in pairwise(sorted(ranges[value] for value in buffer.values)):
            assert this.end <= following.start


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_a_buffer_lives_from_its_first_definition_to_its_last_use(seed: int) -> None:
    """Between the ends of its values' single ranges, found by looking at every instruction."""
    module, aliases, schedule, ranges = analysed(seed)
    for buffer in aliases.buffers:
        single = [slow_range(module, aliases, schedule, value) for value in buffer.values]
        whole = [ranges[value] for value in buffer.values]
        assert min(lived.start for lived in whole) == min(start for start, _ in single)
        assert max(lived.end for lived in whole) == max(end for _, end in single)
        if len(buffer.values) == 1:
            assert tuple(whole[0]) == single[0]


def slow_range(
    module: HloModule, aliases: AliasAnalysis, schedule: FlatSchedule, value_id: int
) -> tuple[int, int]:
    """One value's range, by walking over all nodes of all scheduled instructions."""
    value = aliases.values[value_id]
    start = schedule.time_of[value.computation, value.instruction]
    end = start
    for time, (computation, instruction) in enumerate(schedule.positions):
        here = module.computations[computation]
        for index, _ in instruction.shape.subshapes():
            if value_id in aliases.values_at(computation, instruction.name, index):
                is_own = (computation, instruction.name) == value.position[:2]
                if not is_own or index == value.index:
                    is_root = here.root is instruction
                    end = max(end, schedule.spans[computation].end if is_root else time)
        for operand in instruction.operands:
            for index, _ in here.instruction(operand).shape.subshapes():
                if value_id in aliases.values_at(computation, operand, index):
                    used = slow_use(module, schedule, time, bool(index))
                    end = max(end, used)
    defining = module.computations[value.computation].instruction(value.instruction)
    if defining.opcode == "parameter":
        start = schedule.spans[value.computation].start
        donated = [a.parameter_index for a in module.input_output_alias]
        if value.computation == module.entry.name and value.index not in donated:
            end = schedule.end_time
    return start, end


def slow_use(module: HloModule, schedule: FlatSchedule, time: int, is_element: bool) -> int:
    """When the instruction at `time` uses an operand's node, -1 if it only passes it on."""
    user = schedule.positions[time].instruction
    if user.opcode in ("tuple", "call") or (is_element and user.opcode == "get-tuple-element"):
        return -1
    if user.opcode == "while":
        body = module.computations[user.attributes["body"]]
        return schedule.time_of[body.name, body.parameters[0].name]
    return time
