"""The roofline per array leaf, against XLA's own cost analysis tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo_graphs.chips import CHIPS, Chip
from hlo_graphs.costs import analyse_costs
from hlo_graphs.parser import parse_module, read_module
from hlo_graphs.shapes import byte_size_of
from hlo_graphs.times import AnalyticTimes, LeafKey, StepTimes, analytic_times, takes_no_time
from tests.shared_data import shared_data_path

ADD = """
HloModule add
ENTRY e {
  p0 = f32[2,4] parameter(0)
  p1 = f32[2,4] parameter(1)
  ROOT add = f32[2,4] add(p0, p1)
}
"""

XLA_TEST_CHIP: Chip = replace(
    CHIPS["v5e"],
    name="cost_analysis_test.cc",
    slow_bytes_per_second=32.0,
    fast_read_bytes_per_second=128.0,
    fast_write_bytes_per_second=128.0,
    vector_flops_per_second=8.0,
    transcendentals_per_second=16.0,
)

FIRST: LeafKey = ("operand", 0, ())
SECOND: LeafKey = ("operand", 1, ())
OUTPUT: LeafKey = ("output", ())


def add_step() -> StepTimes:
    costs = analyse_costs(parse_module(ADD), byte_size_of)
    return AnalyticTimes(costs, XLA_TEST_CHIP).step("e", "add")


@pytest.mark.parametrize(
    ("slow", "seconds"),
    [
        ((FIRST, SECOND, OUTPUT), 3.0),
        ((SECOND, OUTPUT), 2.25),
        ((SECOND,), 1.5),
        ((), 1.0),
    ],
)
def test_xlas_own_figures(slow: tuple[LeafKey, ...], seconds: float) -> None:
    """`cost_analysis_test.cc`: NoPipelineOverhead."""
    assert add_step().elapsed_seconds(slow) == pytest.approx(seconds)


def test_slow_leaves_keep_the_bus_busy() -> None:
    step = add_step()
    assert [leaf.bus_seconds for leaf in step.leaves.values()] == [1.0, 1.0, 1.0]
    assert step.all_slow_seconds == pytest.approx(3.0)
    assert step.all_fast_seconds == pytest.approx(1.0)
    assert not step.stated


@given(st.sets(st.sampled_from([FIRST, SECOND, OUTPUT])), st.sampled_from([FIRST, SECOND, OUTPUT]))
def test_slower_memory_is_never_faster(slow: set[LeafKey], more: LeafKey) -> None:
    step = add_step()
    assert step.elapsed_seconds(slow | {more}) >= step.elapsed_seconds(slow)


def test_transcendentals_and_products_have_their_own_units() -> None:
    text = """
HloModule m
ENTRY e {
  p0 = f32[64,64] parameter(0)
  d = f32[64,64] dot(p0, p0), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT t = f32[64,64] tanh(d)
}
"""
    times = analytic_times(parse_module(text), CHIPS["v5e"])
    product = 2 * 64**3 / CHIPS["v5e"].peak_flops_per_second
    assert times.step("e", "d").base_seconds[0] == pytest.approx(product)
    tanh = 64 * 64 / CHIPS["v5e"].transcendentals_per_second
    assert times.step("e", "t").base_seconds[0] == pytest.approx(tanh)


@pytest.mark.parametrize("opcode", ["parameter", "while", "copy-start", "async-done", "tuple"])
def test_forwarding_costs_nothing(opcode: str) -> None:
    assert takes_no_time(opcode)
    assert not takes_no_time("copy")


def test_every_instruction_of_a_real_program_has_times() -> None:
    path = shared_data_path("tpu_examples") / "lstm.v5e.before.hlo.gz"
    times = analytic_times(read_module(path), CHIPS["v5e"])
    for computation in times.costs.module.computations.values():
        for instruction in computation.instructions:
            step = times.step(computation.name, instruction.name)
            assert len(step.base_seconds) == times.num_lanes
            assert 0 <= step.all_fast_seconds <= step.all_slow_seconds
            for leaf in step.leaves.values():
                assert len(leaf.lane_seconds) == times.num_lanes
                assert min(leaf.lane_seconds) >= 0


def test_a_leaf_is_never_counted_beyond_its_size() -> None:
    """XLA counts one read for each broadcast of a parameter."""
    text = """
HloModule m
inner {
  p = f32[8] parameter(0)
  a = f32[4,8] broadcast(p), dimensions={1}
  b = f32[4,8] broadcast(p), dimensions={1}
  ROOT c = f32[4,8] add(a, b)
}
ENTRY e {
  p = f32[8] parameter(0)
  ROOT f = f32[4,8] fusion(p), kind=kLoop, calls=inner
}
"""
    module = parse_module(text)
    assert analyse_costs(module).cost("e", "f").operand_bytes(0) == 64
    assert analytic_times(module, CHIPS["v5e"]).step("e", "f").leaves[FIRST].size_bytes == 32
