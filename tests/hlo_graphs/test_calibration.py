"""Calibrated times: exact where the compiler speaks, monotone, near at placements not fitted on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo_graphs.bundle import CompileMeta, CyclePoint, CycleTable, Placement, read_cycles
from hlo_graphs.calibration import (
    COMPILER_FORM,
    CalibratedTimes,
    Observation,
    PipelineForm,
    StatedInstruction,
    calibrated_times,
    memory_shares,
    pipeline_times,
    placements_of,
    slow_leaves,
)
from hlo_graphs.chips import CHIPS
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloModule
from hlo_graphs.parser import parse_module, read_module
from hlo_graphs.times import LeafKey, StepTimes
from tests.shared_data import shared_data_path

V5E = CHIPS["v5e"]


def stated(
    bus: list[float],
    outputs: list[bool],
    matrix: list[bool],
    *,
    slow: float,
    floor: float,
    matrix_seconds: float = 0.0,
    is_copy: bool = False,
    observations: tuple[Observation, ...] = (),
) -> StatedInstruction:
    """An instruction given in seconds of bus time, with made-up leaves."""
    keys: list[LeafKey] = [
        ("output", (i,)) if is_output else ("operand", i, ()) for i, is_output in enumerate(outputs)
    ]
    return StatedInstruction(
        name="made up",
        keys=tuple(keys),
        sizes_bytes=tuple(round(seconds * V5E.slow_bytes_per_second) for seconds in bus),
        bus_seconds=np.array(bus, dtype=np.float64),
        is_output=np.array(outputs, dtype=bool),
        is_matrix=np.array(matrix, dtype=bool),
        is_copy=is_copy,
        matrix_seconds=matrix_seconds,
        slow_seconds=slow,
        floor_seconds=floor,
        observations=observations,
    )


SECONDS = st.just(0.0) | st.floats(1e-15, 10)
"""None, or what some bus could take: quotients of what is shorter are no numbers."""


@st.composite
def instructions(draw: st.DrawFn) -> StatedInstruction:
    """Any stated instruction, sensible or not, with any observations."""
    count = draw(st.integers(0, 5))
    bus = draw(st.lists(SECONDS, min_size=count, max_size=count))
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    outputs = draw(flags)
    matrix = [m and not o for m, o in zip(draw(flags), outputs, strict=True)]
    slow = draw(st.floats(0, 30, allow_subnormal=False))
    floor = slow * draw(st.floats(0, 1))
    seen = draw(st.lists(st.tuples(flags.map(tuple), st.floats(0, 1)), max_size=4))
    observations = tuple(Observation(where, floor + (slow - floor) * part) for where, part in seen)
    return stated(
        bus,
        outputs,
        matrix,
        slow=slow,
        floor=floor,
        matrix_seconds=draw(SECONDS),
        is_copy=draw(st.booleans()),
        observations=observations,
    )


@given(instructions())
def test_both_ends_are_exact(item: StatedInstruction) -> None:
    step = pipeline_times(item, COMPILER_FORM)
    assert step.all_fast_seconds == pytest.approx(item.floor_seconds)
    if item.keys:
        assert step.all_slow_seconds == pytest.approx(item.slow_seconds, abs=1e-9)
    assert step.stated


@given(instructions(), st.data())
def test_slower_memory_is_never_faster(item: StatedInstruction, data: st.DataObject) -> None:
    step = pipeline_times(item, COMPILER_FORM)
    chosen = [key for key in step.leaves if data.draw(st.booleans())]
    for key in step.leaves:
        if key not in chosen:
            assert step.elapsed_seconds([*chosen, key]) >= step.elapsed_seconds(chosen) - 1e-12


@given(instructions())
def test_the_bus_is_busy_for_the_bytes_or_less(item: StatedInstruction) -> None:
    step = pipeline_times(item, COMPILER_FORM)
    bus = [leaf.bus_seconds for leaf in step.leaves.values()]
    assert all(busy <= most * (1 + 1e-12) for busy, most in zip(bus, item.bus_seconds, strict=True))
    assert sum(bus) <= item.slow_seconds * (1 + 1e-9) + 1e-12
    assert all(min(leaf.lane_seconds) >= 0 for leaf in step.leaves.values())


@given(instructions(), st.floats(0, 30, allow_subnormal=False))
def test_shares_use_up_what_is_available(item: StatedInstruction, available: float) -> None:
    shares = memory_shares(item, available, COMPILER_FORM)
    if item.keys:
        assert shares.sum() == pytest.approx(available, abs=1e-9)
    assert (shares >= 0).all()


READ: LeafKey = ("operand", 0, ())
OTHER: LeafKey = ("operand", 1, ())
WRITE: LeafKey = ("output", (2,))


def test_writes_are_exposed_and_reads_hidden_in_elementwise_work() -> None:
    """As the compiler has it: all-slow minus floor is the write's streaming time, no more."""
    item = stated([1.0, 1.0, 1.0], [False, False, True], [False] * 3, slow=5 + 1.11, floor=5.0)
    step = pipeline_times(item, COMPILER_FORM)
    assert step.elapsed_seconds([READ, OTHER]) == pytest.approx(5.0, rel=0.05)
    assert step.elapsed_seconds([WRITE]) == pytest.approx(6.11)


def test_copies_pay_for_either_side() -> None:
    item = stated([1.0, 1.0], [False, True], [False, False], slow=8, floor=1, is_copy=True)
    step = pipeline_times(item, COMPILER_FORM)
    assert step.elapsed_seconds([READ]) == pytest.approx(4.5)
    assert step.elapsed_seconds([("output", (1,))]) == pytest.approx(4.5)


def test_a_product_hides_transfers_behind_the_matrix_units() -> None:
    bound = stated(
        [1.0, 1.0, 4.0],
        [False, False, True],
        [True, True, False],
        slow=14,
        floor=10.0,
        matrix_seconds=10.0,
    )
    step = pipeline_times(bound, PipelineForm(exposed=0.0))
    assert step.elapsed_seconds([WRITE]) == pytest.approx(10.0)
    idle = replace(bound, matrix_seconds=0.0)
    assert pipeline_times(idle, COMPILER_FORM).elapsed_seconds([WRITE]) > 12.0


def test_repeated_reads_fall_on_the_operands_of_the_product() -> None:
    item = stated(
        [1.0, 1.0, 1.0], [False, False, True], [True, False, False], slow=13.33, floor=0.0
    )
    shares = memory_shares(item, 13.33, COMPILER_FORM)
    assert shares == pytest.approx([1.11 + 10.0, 1.11, 1.11])


def test_an_observation_in_between_is_met() -> None:
    item = stated([1.0, 1.0, 1.0], [False, False, True], [True, True, False], slow=20.0, floor=5.0)
    seen = Observation((True, False, False), 15.0)
    corrected = pipeline_times(replace(item, observations=(seen,)), COMPILER_FORM)
    before = pipeline_times(item, COMPILER_FORM).elapsed_seconds([READ])
    assert abs(corrected.elapsed_seconds([READ]) - 15.0) < 0.1 < abs(before - 15.0)


def test_an_observation_at_the_floor_bounds_the_memory_lane() -> None:
    item = stated([1.0, 1.0, 1.0], [False, False, True], [True, True, False], slow=20.0, floor=5.0)
    seen = Observation((True, False, False), 5.0)
    corrected = pipeline_times(replace(item, observations=(seen,)), COMPILER_FORM)
    assert corrected.elapsed_seconds([READ]) == pytest.approx(5.0, rel=0.05)


# --- on modules ----------------------------------------------------------------------------------

LAYERS = """
HloModule layers, is_scheduled=true
first {
  p = f32[1024] parameter(0)
  ROOT n = f32[1024] negate(p)
}
second {
  p = f32[1024] parameter(0)
  ROOT n = f32[1024] negate(p)
}
ENTRY e {
  a = f32[1024] parameter(0)
  f1 = f32[1024] fusion(a), kind=kLoop, calls=first
  f2 = f32[1024] fusion(f1), kind=kLoop, calls=second
  ROOT c = f32[1024] custom-call(f2), custom_call_target="mine"
}
"""


def point(name: str, cycles: dict[str, int], placements: dict[str, Placement]) -> CyclePoint:
    return CyclePoint(name, cycles, placements)


FAST = Placement("1", "1")


def layer_table(huge_cycles: dict[str, int] | None, second: Placement = FAST) -> CycleTable:
    """With f2 placed as `second` where memory is huge, and f1 fast."""
    huge = None
    if huge_cycles is not None:
        huge = point("huge", huge_cycles, {"f1": FAST, "f2": second})
    return CycleTable(
        unit="cycles",
        none=point("none", {"f1": 3000, "f2": 3000}, {}),
        production=point("production", {"f1": 500, "f2": 3000}, {"f1": FAST}),
        production_size_bytes=112 * 2**20,
        huge=huge,
        huge_failure=None if huge else "it failed",
        meta=None,
    )


def layer_times(table: CycleTable, *, with_production: bool = False) -> CalibratedTimes:
    module = parse_module(LAYERS)
    return calibrated_times(module, table, V5E, with_production=with_production)


def test_equal_layers_share_their_floor() -> None:
    times = layer_times(layer_table({"f1": 1000, "f2": 2900}, Placement("1", "0")))
    for name in ("f1", "f2"):
        assert times.step("e", name).all_fast_seconds == pytest.approx(V5E.seconds(1000))
        assert times.step("e", name).all_slow_seconds == pytest.approx(V5E.seconds(3000))


def test_what_is_seen_all_fast_keeps_its_own_floor() -> None:
    times = layer_times(layer_table({"f1": 1000, "f2": 2900}))
    assert times.step("e", "f1").all_fast_seconds == pytest.approx(V5E.seconds(1000))
    assert times.step("e", "f2").all_fast_seconds == pytest.approx(V5E.seconds(2900))


def test_production_is_not_looked_at_unless_asked() -> None:
    table = layer_table({"f1": 1000, "f2": 1000})
    assert layer_times(table).step("e", "f1").all_fast_seconds == pytest.approx(V5E.seconds(1000))
    asked = layer_times(table, with_production=True)
    assert asked.step("e", "f1").all_fast_seconds == pytest.approx(V5E.seconds(500))


def test_production_gives_the_floors_where_nothing_else_does() -> None:
    times = layer_times(layer_table(None))
    assert times.step("e", "f2").all_fast_seconds == pytest.approx(V5E.seconds(500))
    in_between = [seen for seen in times.stated["f1"].observations if not all(seen.slow)]
    assert in_between == []


def test_cycles_of_another_chip_are_refused() -> None:
    meta = CompileMeta("v5e", 1.5e9, "", "", 112 * 2**20, 1, None, "", 1.0, "before")
    table = replace(layer_table(None), meta=meta)
    assert layer_times(table).step("e", "f1").stated
    with pytest.raises(InputError, match="cycles are those of v5e, the chip is v6e"):
        calibrated_times(parse_module(LAYERS), table, CHIPS["v6e"])


def test_what_states_no_cycles_streams_at_the_analytic_bandwidth() -> None:
    times = layer_times(layer_table(None))
    step, plain = times.step("e", "c"), times.analytic.step("e", "c")
    assert not step.stated
    for key, leaf in plain.leaves.items():
        expected = [COMPILER_FORM.streaming * seconds for seconds in leaf.lane_seconds]
        assert step.leaves[key].lane_seconds == pytest.approx(expected)
        assert step.leaves[key].bus_seconds == leaf.bus_seconds


def test_placements_are_read_from_a_compiled_module() -> None:
    placed = LAYERS.replace("f1 = f32[1024] fusion", "f1 = f32[1024]{0:S(1)} fusion")
    found = placements_of(parse_module(LAYERS), parse_module(placed), 1)
    assert found["f1"] == Placement("0", "1")
    assert found["f2"] == Placement("1", "0")
    assert slow_leaves(found["f2"]) == (False, True)
    changed = placed.replace("c = f32[1024] custom-call(f2)", "c = f32[1024] custom-call(f1, f2)")
    assert "c" not in placements_of(parse_module(LAYERS), parse_module(changed), 1)


# --- against the compiler ------------------------------------------------------------------------

EXAMPLES = ["decode", "lm_infer", "lm_train", "lstm", "mlp6", "resnet50_infer"]


def example(folder: Path, name: str) -> tuple[HloModule, CycleTable, dict[str, Placement]]:
    module = read_module(folder / f"{name}.v5e.before.hlo.gz")
    placed = read_module(folder / f"{name}.v5e.production.hlo.gz")
    table = read_cycles(folder / f"{name}.v5e.cycles.json")
    return module, table, placements_of(module, placed, V5E.fast_memory_space)


def slow_keys(step: StepTimes, placement: Placement) -> list[LeafKey]:
    slow = slow_leaves(placement)
    return [key for key, is_slow in zip(step.leaves, slow, strict=True) if is_slow]


def test_production_is_foretold_without_having_been_seen() -> None:
    """Within 10 % a program and 5 % in all, over the instructions that state cycles."""
    folder = shared_data_path("tpu_examples")
    all_predicted = all_stated = 0.0
    for name in EXAMPLES:
        module, table, placements = example(folder, name)
        times = calibrated_times(module, table, V5E)
        predicted = compiler = 0.0
        for computation in module.computations.values():
            for instruction in computation.instructions:
                cycles = table.production.cycles.get(instruction.name)
                if cycles is None or instruction.name not in placements:
                    continue
                step = times.step(computation.name, instruction.name)
                keys = slow_keys(step, placements[instruction.name])
                predicted += step.elapsed_seconds(keys)
                compiler += V5E.seconds(cycles)
        assert predicted == pytest.approx(compiler, rel=0.05), name
        all_predicted += predicted
        all_stated += compiler
    assert all_predicted == pytest.approx(all_stated, rel=0.02)


def test_all_slow_and_all_fast_are_the_compilers_own_on_a_real_program() -> None:
    module, table, _ = example(shared_data_path("tpu_examples"), "resnet50_infer")
    assert table.huge is not None
    times = calibrated_times(module, table, V5E)
    compared = 0
    for computation in module.computations.values():
        for instruction in computation.instructions:
            name = instruction.name
            if name in table.none.cycles:
                step = times.step(computation.name, name)
                slow = table.none.cycles[name]
                assert step.all_slow_seconds == pytest.approx(V5E.seconds(slow)), name
                most = V5E.seconds(min(slow, table.huge.cycles.get(name, slow)))
                assert step.all_fast_seconds <= most * (1 + 1e-9)
                compared += 1
    assert compared == len(table.none.cycles)


def test_the_documentation_states_the_coefficients_in_use() -> None:
    page = (Path(__file__).parents[2] / "docs" / "times.md").read_text(encoding="utf-8")
    form = COMPILER_FORM
    for text in (
        f"= F + {form.exposed:g} of each",
        f"takes {form.streaming:g} times its bus time",
        f"size^{form.reread_power:g}.",
        f"from {form.overlap_ratio:.0%} of F on",
    ):
        assert text in page
