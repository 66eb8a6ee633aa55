"""OpenXLA's own scenarios of memory-space assignment.

They are those of `xla/service/memory_space_assignment/memory_space_assignment_test.cc`.
Expectations are derived by hand from what each of OpenXLA's tests checks: which values are in
alternate memory, that offsets differ or agree, where copies start and end in the sequence. Modules
come from the shared reference data, or are written here where OpenXLA builds them in code. Unless
stated: 128 bytes, alignment 8, instruction counts (2, 10), largest buffers first.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from hlo_graphs.costs import analyse_costs
from hlo_graphs.parser import parse_module
from hlo_graphs.shapes import byte_size_of
from solvers.msa_algorithm import PrecoloredError
from solvers.msa_options import (
    ASSIGN_FIRST,
    ASSIGN_LAST,
    BufferOrder,
    MsaOptions,
    PickerKind,
    PickerOptions,
    PrefetchOverride,
    SortOverride,
)
from tests.conformance.msa_hlo import HloAssignment, HloMsaInput, assign_hlo
from tests.conformance.msa_hlo_costs import FixedHloCosts, RooflineHloCosts
from tests.shared_data import shared_data_path

COUNTS = PickerOptions(kind=PickerKind.INSTRUCTION_COUNT, min_count=2, max_count=10)

OPTIONS = MsaOptions(
    order=BufferOrder.SIZE,
    picker=COUNTS,
    enable_cross_program_prefetch=False,
    verify=True,
)

RATIOS = PickerOptions(min_overlap=0.8, preferred_overlap=1.5, max_overlap=10.0)

NEGATE_CHAIN = """
HloModule NegateChain, is_scheduled=true
ENTRY chain {
  p0 = f32[2,3] parameter(0)
  p1 = f32[2,3] parameter(1)
  negate0 = f32[2,3] negate(p0)
  negate1 = f32[2,3] negate(negate0)
  negate2 = f32[2,3] negate(negate1)
  negate3 = f32[2,3] negate(negate2)
  negate4 = f32[2,3] negate(negate3)
  negate5 = f32[2,3] negate(negate4)
  negate6 = f32[2,3] negate(negate5)
  ROOT add = f32[2,3] add(negate6, p1)
}
"""

EVICT_AND_PREFETCH = """
HloModule EvictAndPrefetch, is_scheduled=true
ENTRY entry {
  p0 = f32[2,3] parameter(0)
  p1 = f32[2,3] parameter(1)
  tanh = f32[2,3] tanh(p0)
  a = f32[2,3] multiply(p0, tanh)
  b = f32[2,3] subtract(p0, p1)
  c = f32[2,3] multiply(p0, p1)
  d = f32[2,3] subtract(p0, p1)
  e = f32[2,3] multiply(a, b)
  f = f32[2,3] multiply(a, c)
  g = f32[2,3] multiply(a, d)
  h = f32[2,3] multiply(b, c)
  i = f32[2,3] multiply(b, d)
  j = f32[2,3] multiply(c, d)
  k = f32[2,3] add(e, f)
  l = f32[2,3] add(g, h)
  m = f32[2,3] add(i, j)
  n = f32[2,3] add(k, l)
  o = f32[2,3] add(n, m)
  ROOT add = f32[2,3] add(o, tanh)
}
"""


def module_text(name: str, fixture: str = "MemorySpaceAssignmentTest") -> str:
    """One of OpenXLA's inline modules."""
    folder = shared_data_path("hlo_conformance")
    return (folder / f"memory_space_assignment_test__{fixture}.{name}.hlo").read_text()


def run(
    text: str, options: MsaOptions = OPTIONS, given: HloMsaInput | None = None
) -> HloAssignment:
    return assign_hlo(parse_module(text, "test.hlo"), given or HloMsaInput(), options)


def with_roofline(text: str, capacity_bytes: int = 128) -> HloMsaInput:
    module = parse_module(text, "test.hlo")
    costs = RooflineHloCosts(analyse_costs(module, byte_size_of))
    return HloMsaInput(capacity_bytes=capacity_bytes, costs=costs)


def copies(assignment: HloAssignment) -> list[tuple[str, bool]]:
    """(what, to fast memory) in the order in which they are done."""
    return [(copy.name, copy.to_fast) for copy in assignment.copies]


def most_outstanding(assignment: HloAssignment, to_fast: bool) -> int:
    """Copies under way at once; those done at a time make room for those that start there."""
    found = [copy for copy in assignment.copies if copy.to_fast == to_fast]
    return max((sum(c.after <= copy.after < c.before for c in found) for copy in found), default=0)


# -- straight lines ---------------------------------------------------------------------------


def test_parameter_only() -> None:
    result = run("HloModule m, is_scheduled=true\nENTRY e {\n ROOT p0 = f32[2,3] parameter(0)\n}")
    assert result.offset_at("p0") is None
    assert result.copies == ()


def test_simple() -> None:
    result = run(
        """HloModule Simple, is_scheduled=true
        ENTRY entry {
          p0 = f32[2,3] parameter(0)
          p1 = f32[2,3] parameter(1)
          add = f32[2,3] add(p0, p1)
          sub = f32[2,3] subtract(p0, p1)
          ROOT mul = f32[2,3] multiply(add, sub)
        }"""
    )
    offsets = [result.offset_at(name) for name in ("add", "sub")]
    assert None not in offsets
    assert offsets[0] != offsets[1]
    assert [result.offset_at(name) for name in ("p0", "p1", "mul")] == [None] * 3


def test_negate_chain() -> None:
    result = run(NEGATE_CHAIN)
    assert all(result.offset_at(f"negate{i}") is not None for i in range(7))
    assert result.offset_at("add") is None
    assert result.operand_offset("add", 1) is not None
    sequence = result.sequence()
    assert sequence.index("copy-start(p1)") == 2
    assert sequence.index("copy-done(p1)") == 10
    assert copies(result) == [("p1", True)]


def test_evict_and_prefetch() -> None:
    result = run(EVICT_AND_PREFETCH)
    assert ("tanh", False) in copies(result)
    assert ("tanh", True) in copies(result)
    assert result.offset_at("tanh") is not None
    assert result.operand_offset("add", 1) is not None


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_evict_and_prefetch_limit_async_copies(limit: int) -> None:
    options = replace(OPTIONS, max_outstanding_prefetches=limit, max_outstanding_evictions=limit)
    result = run(EVICT_AND_PREFETCH, options)
    assert most_outstanding(result, True) <= limit
    assert most_outstanding(result, False) <= limit
    assert bool(result.copies) == (limit > 0)


def test_disable_prefetch() -> None:
    result = run(module_text("DisablePrefetch"), replace(OPTIONS, max_outstanding_prefetches=0))
    assert result.copies == ()
    assert result.operand_offset("add", 1) is None


def test_last_use_look_ahead_needs_no_copies() -> None:
    """Without looking ahead `add1` would lie where `mul1` does and have to leave."""
    result = run(
        """HloModule LastUseOpt, is_scheduled=true
        ENTRY entry {
          p0 = f32[2,3] parameter(0)
          p1 = f32[2,4] parameter(1)
          add1 = f32[2,3] add(p0, p0)
          sub1 = f32[2,3] subtract(p0, add1)
          mul1 = f32[2,4] multiply(p1, p1)
          add2 = f32[2,4] add(mul1, p1)
          mul2 = f32[2,3] multiply(add1, sub1)
          zero = f32[] constant(0)
          padded = f32[2,4] pad(mul2, zero), padding=0_0x0_1
          ROOT add3 = f32[2,4] add(add2, padded)
        }"""
    )
    assert not {"add1", "sub1", "mul1"} & {copy.name for copy in result.copies}
    assert result.offset_at("add1") is not None
    assert result.operand_offset("mul2", 0) == result.offset_at("add1")
    assert result.offset_at("add1") != result.offset_at("mul1")


def test_constant_far() -> None:
    result = run(module_text("ConstantAllocationFar"))
    assert result.offset_at("const") is None
    assert copies(result) == [("const", True)]
    assert result.operand_offset("negate", 0) is not None


def test_constant_near() -> None:
    text = module_text("ConstantAllocationFar").replace("  const = f32[2,4] constant({...})\n", "")
    text = text.replace("  ROOT negate", "  const = f32[2,4] constant({...})\n  ROOT negate")
    result = run(text)
    assert result.offset_at("const") is None
    assert copies(result) == []


# -- order ------------------------------------------------------------------------------------

TWO_ROOMS = 2 * 48
TANHS = [f"tanh{i}" for i in range(4)]
NEGATES = [f"negate{i}" for i in range(4)]


def boundedness(*overrides: SortOverride, capacity_bytes: int = TWO_ROOMS) -> HloAssignment:
    text = module_text("MemoryBoundednessOverrideSortOrderAssignFirst")
    given = with_roofline(text, capacity_bytes=capacity_bytes)
    options = replace(
        OPTIONS,
        order=BufferOrder.MEMORY_BOUNDEDNESS,
        picker=RATIOS,
        sort_order_overrides=overrides,
    )
    return run(text, options, given)


def in_fast(result: HloAssignment, names: list[str]) -> list[bool]:
    return [result.offset_at(name) is not None for name in names]


def test_memory_bound_values_come_first() -> None:
    """Negates wait for memory, hyperbolic tangents for the transcendental unit."""
    result = boundedness()
    assert all(in_fast(result, NEGATES))
    assert not any(in_fast(result, TANHS))


@pytest.mark.parametrize(
    "override",
    [
        SortOverride(ASSIGN_FIRST, instruction_regex="tanh[0-3]"),
        SortOverride(ASSIGN_LAST, instruction_regex="negate[0-3]"),
        SortOverride(ASSIGN_FIRST, use_regex="tanh[1-4]"),
    ],
)
def test_overrides_swap_the_roles(override: SortOverride) -> None:
    """`negate3` outlives all tangents that may be fast, so there is room for it."""
    result = boundedness(override)
    assert all(in_fast(result, TANHS))
    assert not any(in_fast(result, NEGATES[:3]))


def test_override_by_size_matches_all_and_changes_nothing() -> None:
    result = boundedness(SortOverride(ASSIGN_FIRST, size_gte=48, size_lte=48))
    assert all(in_fast(result, NEGATES))
    assert not any(in_fast(result, TANHS))


# -- colours and scratch ----------------------------------------------------------------------


def test_precolored_buffer() -> None:
    result = run(module_text("PrecoloredBuffer"))
    assert result.offset_at("a") is not None
    assert result.operand_offset("d", 0) == result.offset_at("a")
    assert result.operand_offset("r", 1) == result.offset_at("a")
    assert "a" not in [copy.name for copy in result.copies]


def test_precolored_buffer_out_of_memory() -> None:
    with pytest.raises(PrecoloredError, match="requires allocation"):
        run(module_text("PrecoloredBufferOOM"))


def test_other_memory_spaces_are_left_alone() -> None:
    result = run(module_text("PinnedDefaultMemorySpace"))
    names = ["p1", "negate", "negate.1", "negate.2", "negate.4", "negate.5", "negate.6"]
    assert not any(in_fast(result, names))
    assert "p1" not in [copy.name for copy in result.copies]
    assert result.offset_at("negate.3") is not None


def test_reserved_scoped_memory() -> None:
    """`c` needs 100 of 128 bytes for itself: nothing of 32 bytes can be held across it."""
    text = module_text("ReservedScopedMemory")
    time = 3  # param0, a, b, c
    result = run(text, replace(OPTIONS, reserved_scoped_bytes=((time, 100),)))
    assert in_fast(result, ["a", "b", "c", "d", "e"]) == [True, False, False, True, True]


# -- bandwidth --------------------------------------------------------------------------------


def test_copy_resource_integration() -> None:
    """Two copies of 20 s share instructions of 10 s: the second starts when the first is done."""
    text = module_text("CopyResourceIntegration")
    given = HloMsaInput(capacity_bytes=300, costs=FixedHloCosts(10, 20))
    priority = (SortOverride(-1, instruction_regex="p0"), SortOverride(1, instruction_regex="p1"))
    options = replace(
        OPTIONS,
        picker=PickerOptions(kind=PickerKind.INSTRUCTION_COUNT, min_count=2, max_count=10),
        sort_order_overrides=priority,
    )
    result = run(text, options, given)
    sequence = result.sequence()
    start, done = sequence.index("copy-start(p1)"), sequence.index("copy-done(p1)")
    assert sequence[start - 1] == "c"
    assert sequence[start + 1 : done] == ["d", "e"]
    assert sequence[done + 1] == "f"


# -- asynchronous operations ------------------------------------------------------------------


def test_async_op_short_live_range() -> None:
    result = run(module_text("AsyncOpShortLiveRange"))
    assert result.operand_offset("collective-permute-start", 0) is not None
    assert result.offset_at("collective-permute-start", (0,)) is not None
    assert result.offset_at("collective-permute-start", (1,)) is not None


def test_async_op_long_live_range() -> None:
    result = run(module_text("AsyncOpLongLiveRangeInputBufferConsumer"))
    assert result.operand_offset("collective-permute-start", 0) is None
    assert result.offset_at("collective-permute-start", (0,)) is None
    assert result.offset_at("collective-permute-start", (1,)) is None


# -- loops and branches -----------------------------------------------------------------------


def test_while_in_place_buffer() -> None:
    """Element 1 is updated in place: one address before, in and after the loop."""
    result = run(module_text("WhileInPlaceBuffer"))
    offset = result.offset_at("copy2")
    assert offset is not None
    assert result.operand_offset("while", 0, (1,)) == offset
    assert result.offset_at("body_param", (1,), "WhileBody") == offset
    assert result.offset_at("fusion", (), "WhileBody") == offset
    assert result.offset_at("while", (1,)) == offset


def test_consecutive_while_loops_are_consistent() -> None:
    """What a loop takes in lies where it leaves it, for each element of each loop."""
    result = run(module_text("ConsecutiveWhileLoopsOneBuffer"))
    for loop, body in (("while", "WhileBody"), ("while.1", "WhileBody2")):
        for index in ((0,), (1,)):
            offset = result.operand_offset(loop, 0, index)
            assert result.offset_at("body_param", index, body) == offset


def test_conditional_operand_is_fast() -> None:
    result = run(module_text("ConditionalShouldBeAllocatedInAlternateMem"))
    assert result.offset_at("copy") is not None
    for branch, user in (("true_computation", "neg1"), ("false_computation", "neg2")):
        assert result.operand_offset(user, 0, (), branch) == result.offset_at("copy")


def test_conditional_avoids_unnecessary_prefetch() -> None:
    """What a branch uses late enters it in default memory and is fetched inside."""
    result = run(module_text("ConditionalAvoidsUnnecessaryPrefetch"))
    assert result.operand_offset("conditional", 1, (0,)) is not None
    assert result.operand_offset("conditional", 1, (1,)) is None
    assert result.operand_offset("add", 1, (), "true_computation") is not None


def test_conditional_multi_use() -> None:
    """Branches may use the memory after they have read it: a later use reads a saved copy."""
    result = run(module_text("ConditionalMultiUse"))
    assert result.operand_offset("conditional", 1, (1,)) is not None
    assert ("copy1", False) in copies(result)
    assert result.operand_offset("add1", 0) is None


def test_conditional_results_without_tuples_stay_in_default() -> None:
    result = run(module_text("ConditionalWithoutTupleAllocationTest"))
    assert result.offset_at("conditional") is None
    assert result.offset_at("neg1", (), "true_computation") is None
    assert result.offset_at("neg3", (), "false_computation") is None


def test_no_second_eviction_in_a_read_only_loop() -> None:
    """A parameter prefetched for the loop still has its copy in default memory afterwards."""
    result = run(module_text("AvoidRedundantEvictionInWhile"))
    assert ("p0", True) in copies(result)
    assert all(to_fast for _, to_fast in copies(result))


def test_no_second_eviction_after_a_loop() -> None:
    result = run(module_text("AvoidRedundantEvictionAfterWhile"))
    assert copies(result) == [("p0", True), ("copy", True), ("while", True)]


# -- in place and inefficient -----------------------------------------------------------------


def test_in_place_results_share_the_address() -> None:
    result = run(module_text("InPlaceOp"))
    assert result.offset_at("negate") is not None
    assert result.offset_at("fusion") == result.offset_at("negate")


def test_inefficient_allocation_is_undone() -> None:
    """The fusion updates two elements in place: copying the buffer in and out costs more."""
    text = module_text("InefficientAllocation")
    given = with_roofline(text)
    eager = run(text, OPTIONS, given)
    assert eager.operand_offset("fusion", 0) is not None
    options = replace(OPTIONS, inefficient_use_to_copy_ratio=0.5)
    assert run(text, options, given).operand_offset("fusion", 0) is None


# -- cross-program prefetch -------------------------------------------------------------------

CARRYING = replace(OPTIONS, enable_cross_program_prefetch=True)

DOT = """HloModule cross_program_prefetch, is_scheduled=true
ENTRY main {{
  p0 = f32[8,8]{{1,0}} parameter(0)
  p1 = f32[8,2]{{1,0}} parameter(1)
  ROOT dot = f32[8,2]{{1,0}} dot({operands}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}"""


def carried(result: HloAssignment) -> list[str]:
    return [p.buffer.name for p in result.result.placed.values() if p.carried is not None]


def test_the_weight_is_carried_not_the_activation() -> None:
    result = run(DOT.format(operands="p0, p1"), CARRYING)
    assert carried(result) == ["p1"]
    assert result.sequence()[0] == "copy-start(p1)"


def test_too_big_to_carry() -> None:
    result = run(DOT.format(operands="p0, p1"), CARRYING, HloMsaInput(capacity_bytes=56))
    assert carried(result) == []


def test_carried_memory_is_kept_if_used_to_the_end() -> None:
    text = module_text("CrossProgramPrefetchReuse")
    options = replace(CARRYING, picker=replace(COUNTS, min_count=5, max_count=2))
    result = run(text, options, HloMsaInput(capacity_bytes=512))
    assert carried(result) == ["p1"]
    assert len([copy for copy in result.copies if copy.name == "p1"]) == 1


def test_carried_memory_is_freed_and_fetched_again_where_scarce() -> None:
    text = module_text("CrossProgramPrefetchTupleNoReuse")
    options = replace(CARRYING, picker=replace(COUNTS, min_count=5, max_count=2))
    result = run(text, options, HloMsaInput(capacity_bytes=512))
    weights = [copy for copy in result.copies if copy.after == -1]
    assert len(weights) == 1
    again = [c for c in result.copies if c.name == weights[0].name and c.after > 0]
    assert [copy.offset for copy in again] == [weights[0].offset]


def test_permissive_mode_takes_unknown_users_for_weights() -> None:
    text = module_text("CrossProgramPrefetchPermissiveMode")
    assert carried(run(text, CARRYING)) == []
    permissive = replace(CARRYING, cross_program_prefetch_permissive_mode=True)
    assert carried(run(text, permissive)) == ["p1"]


@pytest.mark.parametrize(("operands", "weights"), [("x, w", ["p1"]), ("w, x", [])])
def test_what_a_loop_does_with_a_parameter_says_whether_it_is_a_weight(
    operands: str, weights: list[str]
) -> None:
    text = f"""HloModule weight_in_a_loop, is_scheduled=true
    condition {{
      q = (s32[], f32[4,4], f32[4,4]) parameter(0)
      i = s32[] get-tuple-element(q), index=0
      n = s32[] constant(4)
      ROOT less = pred[] compare(i, n), direction=LT
    }}
    body {{
      q = (s32[], f32[4,4], f32[4,4]) parameter(0)
      i = s32[] get-tuple-element(q), index=0
      x = f32[4,4] get-tuple-element(q), index=1
      w = f32[4,4] get-tuple-element(q), index=2
      one = s32[] constant(1)
      next = s32[] add(i, one)
      y = f32[4,4] dot({operands}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
      ROOT t = (s32[], f32[4,4], f32[4,4]) tuple(next, y, w)
    }}
    ENTRY main {{
      p0 = f32[4,4] parameter(0)
      p1 = f32[4,4] parameter(1)
      zero = s32[] constant(0)
      start = (s32[], f32[4,4], f32[4,4]) tuple(zero, p0, p1)
      loop = (s32[], f32[4,4], f32[4,4]) while(start), condition=condition, body=body
      ROOT result = f32[4,4] get-tuple-element(loop), index=1
    }}"""
    assert carried(run(text, CARRYING)) == weights


def test_every_array_of_a_reduction_may_be_a_weight() -> None:
    text = """HloModule two_sums, is_scheduled=true
    sums {
      a = f32[] parameter(0)
      b = f32[] parameter(1)
      c = f32[] parameter(2)
      d = f32[] parameter(3)
      e = f32[] add(a, c)
      f = f32[] add(b, d)
      ROOT t = (f32[], f32[]) tuple(e, f)
    }
    ENTRY main {
      p0 = f32[4,2] parameter(0)
      rows = f32[4,2] iota(), iota_dimension=0
      zero = f32[] constant(0)
      ROOT r = (f32[4], f32[4]) reduce(rows, p0, zero, zero), dimensions={1}, to_apply=sums
    }"""
    assert carried(run(text, CARRYING)) == ["p0"]


# -- preferred prefetch times -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "start"),
    [
        (PrefetchOverride(size_gte=24, size_lte=24, prefetch_eagerness=0.5), 6),
        (
            PrefetchOverride(
                instruction_regex="add", operand_number=1, after_instruction="negate1"
            ),
            4,
        ),
        (
            PrefetchOverride(
                instruction_regex="add", operand_number=1, before_instruction="negate3"
            ),
            5,
        ),
    ],
)
def test_preferred_prefetch_times(override: PrefetchOverride, start: int) -> None:
    result = run(NEGATE_CHAIN, replace(OPTIONS, preferred_prefetch_overrides=(override,)))
    sequence = result.sequence()
    assert sequence.index("copy-start(p1)") == start
    assert sequence.index("copy-done(p1)") == 10


def test_a_preferred_time_that_is_too_late_means_no_prefetch() -> None:
    override = PrefetchOverride(instruction_regex="add", after_instruction="negate6")
    result = run(NEGATE_CHAIN, replace(OPTIONS, preferred_prefetch_overrides=(override,)))
    assert copies(result) == []


# -- everything -------------------------------------------------------------------------------


def scheduled_modules() -> list[str]:
    try:
        folder = shared_data_path("hlo_conformance")
    except pytest.skip.Exception:
        return []
    paths = sorted(folder.glob("memory_space_assignment_test__*.hlo"))
    return [path.name for path in paths if "is_scheduled=true" in path.read_text()]


@pytest.mark.parametrize("name", scheduled_modules())
@pytest.mark.parametrize("capacity_bytes", [64, 128, 1024])
def test_any_module_gets_an_assignment_that_fits(name: str, capacity_bytes: int) -> None:
    """Nothing overlaps (`verify`), and every copy is done after it starts."""
    text = (shared_data_path("hlo_conformance") / name).read_text()
    options = replace(OPTIONS, max_retries=2, max_repacks=3, enable_cross_program_prefetch=True)
    try:
        result = run(text, options, HloMsaInput(capacity_bytes=capacity_bytes))
    except PrecoloredError:
        assert "S(1)" in text
        return
    for copy in result.copies:
        assert copy.after < copy.before
        assert 0 <= copy.offset < capacity_bytes


@pytest.mark.parametrize("name", scheduled_modules())
def test_any_module_terminates_with_costs_and_inefficient_sites(name: str) -> None:
    """The loops over retries, repacks and inefficient sites end (OpenXLA had livelocks here)."""
    text = (shared_data_path("hlo_conformance") / name).read_text()
    options = replace(
        OPTIONS,
        order=BufferOrder.MEMORY_BOUNDEDNESS,
        picker=RATIOS,
        inefficient_use_to_copy_ratio=0.5,
        max_retries=2,
        max_repacks=2,
        enforce_prefetch_fifo_order=True,
    )
    try:
        result = run(text, options, with_roofline(text))
    except PrecoloredError:
        assert "S(1)" in text
        return
    prefetches = [copy for copy in result.copies if copy.to_fast]
    for one in prefetches:
        for other in prefetches:
            assert not (one.after < other.after and other.before < one.before)


def test_disallowed_use_is_read_from_default_memory() -> None:
    given = HloMsaInput(use_may_be_fast=lambda name, _: name != "negate3")
    result = run(NEGATE_CHAIN, OPTIONS, given)
    assert result.operand_offset("negate3", 0) is None
    assert result.operand_offset("negate4", 0) is not None


def test_disallowed_value_stays_in_default_memory() -> None:
    given = HloMsaInput(may_be_fast=lambda value: value.instruction != "negate3")
    result = run(NEGATE_CHAIN, OPTIONS, given)
    assert result.offset_at("negate3") is None
    assert result.offset_at("negate2") is not None


@pytest.mark.parametrize("capacity_bytes", [24, 48, 128])
def test_loops_take_in_and_give_back_at_one_address(capacity_bytes: int) -> None:
    """SimpleWhileTuple: whatever is decided, init, parameters, root and result agree."""
    text = """HloModule SimpleWhileTuple, is_scheduled=true
    cond {
      c = (f32[2,3], f32[2,3], pred[]) parameter(0)
      ROOT more = pred[] get-tuple-element(c), index=2
    }
    body {
      b = (f32[2,3], f32[2,3], pred[]) parameter(0)
      x = f32[2,3] get-tuple-element(b), index=0
      y = f32[2,3] get-tuple-element(b), index=1
      go = pred[] get-tuple-element(b), index=2
      sum = f32[2,3] add(x, y)
      ROOT out = (f32[2,3], f32[2,3], pred[]) tuple(sum, y, go)
    }
    ENTRY entry {
      p0 = f32[2,3] parameter(0)
      p1 = pred[] parameter(1)
      first = f32[2,3] negate(p0)
      second = f32[2,3] negate(first)
      init = (f32[2,3], f32[2,3], pred[]) tuple(first, second, p1)
      loop = (f32[2,3], f32[2,3], pred[]) while(init), condition=cond, body=body
      r0 = f32[2,3] get-tuple-element(loop), index=0
      r1 = f32[2,3] get-tuple-element(loop), index=1
      last = f32[2,3] add(r0, r1)
      ROOT end = f32[2,3] negate(last)
    }"""
    result = run(text, OPTIONS, HloMsaInput(capacity_bytes=capacity_bytes))
    for index in ((0,), (1,)):
        offset = result.operand_offset("loop", 0, index)
        assert result.offset_at("b", index, "body") == offset
        assert result.operand_offset("out", index[0], (), "body") == offset
        assert result.offset_at("loop", index) == offset
    if capacity_bytes == 128:
        assert result.operand_offset("loop", 0, (0,)) is not None


def test_what_waits_for_a_token_stays_in_default_memory() -> None:
    text = """HloModule waits, is_scheduled=true
ENTRY entry {
  p = f32[2,3] parameter(0)
  x = f32[2,3] negate(p)
  t = token[] after-all()
  d = f32[2,3] add-dependency(x, t)
  y = f32[2,3] negate(d)
  ROOT r = f32[2,3] negate(y)
}
"""
    waiting = run(text)
    assert waiting.offset_at("x") is None
    assert waiting.offset_at("y") is not None
    line = "  d = f32[2,3] add-dependency(x, t)\n"
    at_once = run(text.replace(line, "").replace("negate(d)", "negate(x)"))
    assert at_once.offset_at("x") is not None
