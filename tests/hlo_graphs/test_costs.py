"""Flops and bytes: golden one-op modules, XLA's own analysis as an oracle, brute force."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo_graphs.costs import CostAnalysis, InstructionCost, analyse_costs
from hlo_graphs.errors import InputError
from hlo_graphs.fusion_costs import matrix_operands
from hlo_graphs.parser import parse_module
from hlo_graphs.shapes import byte_size_of
from hlo_graphs.windows import WindowDimension, parse_window, valid_positions
from tests.hlo_graphs.cost_oracle import xla_properties
from tests.shared_data import shared_data_path

HELPERS = """
add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b)
}

ge {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = pred[] compare(a, b), direction=GE
}

less {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  c = s32[] parameter(2)
  d = s32[] parameter(3)
  ROOT e = pred[] compare(a, b), direction=LT
}
"""


def one_op(body: str, parameters: Sequence[str], helpers: str = HELPERS) -> str:
    """A module whose entry is one operation on parameters p0, p1, ..."""
    lines = [f"  p{i} = {shape} parameter({i})" for i, shape in enumerate(parameters)]
    entry = "\n".join(["ENTRY e {", *lines, f"  ROOT r = {body}", "}"])
    return f"HloModule one\n{helpers}\n{entry}\n"


def analyse(text: str) -> CostAnalysis:
    return analyse_costs(parse_module(text), byte_size_of)


def root_cost(text: str) -> InstructionCost:
    analysis = analyse(text)
    entry = analysis.module.entry
    return analysis.cost(entry.name, entry.root.name)


@dataclass(frozen=True)
class Golden:
    """An operation and what it costs: flops, transcendentals, total bytes, operands, output."""

    body: str
    parameters: tuple[str, ...]
    flops: float
    transcendentals: float
    total_bytes: float
    operands: tuple[float, ...]
    output: float


# By the rules of `xla/service/hlo_cost_analysis.cc`, each recomputed by hand.
GOLDEN = [
    Golden(
        "f32[10] dynamic-slice(p0, p1), dynamic_slice_sizes={10}",
        ("f32[100]", "s32[]"),
        0,
        0,
        84,
        (40, 4),
        40,
    ),
    Golden(
        "f32[100] dynamic-update-slice(p0, p1, p2)",
        ("f32[100]", "f32[10]", "s32[]"),
        0,
        0,
        84,
        (0, 40, 4),
        40,
    ),
    Golden(
        "f32[4,16] dot(p0, p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        ("f32[4,8]", "f32[8,16]"),
        2 * 4 * 8 * 16,
        0,
        896,
        (128, 512),
        256,
    ),
    Golden(
        "f32[1,4,4,8] convolution(p0, p1), window={size=3x3 pad=1_1x1_1}, "
        "dim_labels=b01f_01io->b01f",
        ("f32[1,4,4,3]", "f32[3,3,3,8]"),
        2 * 3 * 8 * 10 * 10,
        0,
        1568,
        (192, 864),
        512,
    ),
    Golden(
        "f32[16,8]{0,1:T(8,128)} tanh(p0)", ("f32[16,8]{0,1:T(8,128)}",), 0, 128, 1024, (512,), 512
    ),
    Golden(
        "f32[16] reduce(p0, p1), dimensions={1}, to_apply=add",
        ("f32[16,8]", "f32[]"),
        112,
        0,
        580,
        (512, 4),
        64,
    ),
    Golden(
        "f32[3,20] gather(p0, p1), offset_dims={1}, collapsed_slice_dims={0}, "
        "start_index_map={0}, index_vector_dim=1, slice_sizes={1,20}",
        ("f32[10,20]", "s32[3]"),
        0,
        0,
        492,
        (240, 12),
        240,
    ),
    Golden(
        "f32[10,20] scatter(p0, p1, p2), update_window_dims={1}, inserted_window_dims={0}, "
        "scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=add",
        ("f32[10,20]", "s32[3]", "f32[3,20]"),
        60,
        0,
        732,
        (240, 12, 240),
        240,
    ),
    Golden("(f32[8], f32[8]) tuple(p0, p1)", ("f32[8]", "f32[8]"), 0, 0, 16, (0, 0), 16),
    Golden("f32[10,3] slice(p0), slice={[0:10], [0:3]}", ("f32[20,5]",), 0, 0, 240, (120,), 120),
]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.body.split("(")[0])
def test_golden_operations(golden: Golden) -> None:
    cost = root_cost(one_op(golden.body, golden.parameters))
    operands = tuple(cost.operand_bytes(i) for i in range(len(golden.parameters)))
    assert (cost.flops, cost.transcendentals) == (golden.flops, golden.transcendentals)
    assert (cost.total_bytes, operands) == (golden.total_bytes, golden.operands)
    assert cost.output_bytes() == golden.output


MORE = [
    (
        "f32[4,4] reduce-window(p0, p1), window={size=2x2 stride=2x2}, to_apply=add",
        ["f32[8,8]", "f32[]"],
    ),
    (
        "f32[8,8] select-and-scatter(p0, p1, p2), window={size=2x2 stride=2x2}, select=ge, "
        "scatter=add",
        ["f32[8,8]", "f32[4,4]", "f32[]"],
    ),
    ("f32[8] map(p0, p1), dimensions={0}, to_apply=add", ["f32[8]", "f32[8]"]),
    ("c64[8] fft(p0), fft_type=FFT, fft_length={8}", ["c64[8]"]),
    (
        "f32[4,4] triangular-solve(p0, p1), left_side=true, lower=true, transpose_a=NO_TRANSPOSE",
        ["f32[4,4]", "f32[4,4]"],
    ),
    ("f32[5,5] cholesky(p0), lower=true", ["f32[5,5]"]),
    ("f32[8] all-reduce(p0), replica_groups={}, to_apply=add", ["f32[8]"]),
    ("(f32[8], f32[9]) all-reduce(p0, p1), replica_groups={}, to_apply=add", ["f32[8]", "f32[9]"]),
    ("f32[16] all-gather(p0), dimensions={0}", ["f32[8]"]),
    ("token[] outfeed(p0, p1)", ["(f32[8], (f32[9], s32[]))", "token[]"]),
    ("token[] outfeed(p0, p1)", ["f32[8]", "token[]"]),
    ("(u64[2], u32[8]) rng-bit-generator(p0), algorithm=rng_default", ["u64[2]"]),
    ("f32[8] rng(p0, p1), distribution=rng_uniform", ["f32[]", "f32[]"]),
    ("f32[8] iota(), iota_dimension=0", []),
    ("f32[8,3] broadcast(p0), dimensions={0}", ["f32[8]"]),
    ("f32[12] pad(p0, p1), padding=2_2", ["f32[8]", "f32[]"]),
    ("f32[12] concatenate(p0, p1), dimensions={0}", ["f32[8]", "f32[4]"]),
    ("f32[2,4] reshape(p0)", ["f32[8]"]),
    ("f32[4,4]{1,0} transpose(p0), dimensions={1,0}", ["f32[4,4]{1,0}"]),
    ("f32[4,4]{0,1} transpose(p0), dimensions={1,0}", ["f32[4,4]{1,0}"]),
    ("f32[8] clamp(p0, p1, p2)", ["f32[]", "f32[8]", "f32[]"]),
    ("f32[8] multiply(p0, p0)", ["f32[8]"]),
    ("bf16[8] convert(p0)", ["f32[8]"]),
    ("pred[8] is-finite(p0)", ["f32[8]"]),
    ("f32[8] power(p0, p0)", ["f32[8]"]),
    ("f32[8] copy(p0)", ["f32[8]"]),
    ("(f32[8], f32[8], u32[]) copy-start(p0)", ["f32[8]"]),
    ("(f32[16], s32[16]) sort(p0, p1), dimensions={0}, to_apply=less", ["f32[16]", "s32[16]"]),
    (
        "f32[3,5,7] dot(p0, p1), lhs_batch_dims={0}, rhs_batch_dims={0}, "
        "lhs_contracting_dims={2}, rhs_contracting_dims={1}",
        ["f32[3,5,4]", "f32[3,4,7]"],
    ),
    (
        "f32[2,5,5,4] convolution(p0, p1), window={size=3x2 stride=2x1 pad=0_1x1_0 lhs_dilate=1x2 "
        "rhs_dilate=2x1}, dim_labels=b01f_01io->b01f, feature_group_count=2",
        ["f32[2,14,3,6]", "f32[3,2,3,4]"],
    ),
    ("f32[10] dynamic-slice(p0, p1), dynamic_slice_sizes={10}", ["f32[100]", "s32[]"]),
    (
        "f32[10,10] dynamic-slice(p0, p1, p2), dynamic_slice_sizes={10,10}",
        ["f32[100,100]", "s32[]", "s32[]"],
    ),
    ("f32[9,9] dynamic-update-slice(p0, p1, p2, p3)", ["f32[9,9]", "f32[2,3]", "s32[]", "s32[]"]),
]

FUSIONS = [
    # A slice reads its result; two elementwise users share one full read; the constant is inside.
    """
HloModule sliced
inner {
  p = f32[100] parameter(0)
  s = f32[10] slice(p), slice={[5:15]}
  q = f32[10] parameter(1)
  t = f32[10] multiply(s, q)
  ROOT u = f32[10] add(t, q)
}
ENTRY e {
  a = f32[100] parameter(0)
  b = f32[10] parameter(1)
  ROOT f = f32[10] fusion(a, b), kind=kLoop, calls=inner
}
""",
    # Updated in place: only the update is written, nothing of the old content read.
    """
HloModule updated
inner {
  p = f32[100] parameter(0)
  q = f32[10] parameter(1)
  i = s32[] parameter(2)
  n = f32[10] negate(q)
  ROOT u = f32[100] dynamic-update-slice(p, n, i)
}
ENTRY e {
  a = f32[100] parameter(0)
  b = f32[10] parameter(1)
  c = s32[] parameter(2)
  ROOT f = f32[100] fusion(a, b, c), kind=kLoop, calls=inner
}
""",
    # Two outputs, one of them updated in place.
    """
HloModule several
inner {
  p = f32[100] parameter(0)
  q = f32[10] parameter(1)
  i = s32[] parameter(2)
  u = f32[100] dynamic-update-slice(p, q, i)
  n = f32[10] exponential(q)
  ROOT r = (f32[100], f32[10]) tuple(u, n)
}
ENTRY e {
  a = f32[100] parameter(0)
  b = f32[10] parameter(1)
  c = s32[] parameter(2)
  ROOT f = (f32[100], f32[10]) fusion(a, b, c), kind=kLoop, calls=inner
}
""",
    # A fusion in a fusion is looked through.
    """
HloModule nested
deep {
  p = f32[64] parameter(0)
  ROOT s = f32[8] slice(p), slice={[0:8]}
}
inner {
  p = f32[64] parameter(0)
  d = f32[8] fusion(p), kind=kLoop, calls=deep
  ROOT n = f32[8] negate(d)
}
ENTRY e {
  a = f32[64] parameter(0)
  ROOT f = f32[8] fusion(a), kind=kLoop, calls=inner
}
""",
    # Control flow: one trip of body and condition; the worst branch.
    """
HloModule looped
body {
  p = (s32[], f32[8]) parameter(0)
  i = s32[] get-tuple-element(p), index=0
  x = f32[8] get-tuple-element(p), index=1
  one = s32[] constant(1)
  j = s32[] add(i, one)
  y = f32[8] sine(x)
  ROOT t = (s32[], f32[8]) tuple(j, y)
}
condition {
  p = (s32[], f32[8]) parameter(0)
  i = s32[] get-tuple-element(p), index=0
  n = s32[] constant(9)
  ROOT c = pred[] compare(i, n), direction=LT
}
ENTRY e {
  a = (s32[], f32[8]) parameter(0)
  ROOT w = (s32[], f32[8]) while(a), condition=condition, body=body
}
""",
    """
HloModule branched
small {
  p = f32[8] parameter(0)
  ROOT n = f32[8] negate(p)
}
large {
  p = f32[8] parameter(0)
  q = f32[8] multiply(p, p)
  ROOT n = f32[8] tanh(q)
}
ENTRY e {
  c = pred[] parameter(0)
  a = f32[8] parameter(1)
  ROOT b = f32[8] conditional(c, a, a), true_computation=small, false_computation=large
}
""",
]

needs_jaxlib = pytest.mark.skipif(
    importlib.util.find_spec("jaxlib") is None, reason="jaxlib, the oracle, is not installed"
)


def entry_totals(text: str) -> dict[str, float]:
    analysis = analyse(text)
    total = analysis.total(analysis.module.entry.name)
    return {
        "flops": total.flops,
        "transcendentals": total.transcendentals,
        "bytes accessed": total.total_bytes,
    }


def assert_as_xla(text: str, properties: dict[str, float]) -> None:
    ours = entry_totals(text)
    for key, value in ours.items():
        # XLA sums in 32-bit floats.
        assert value == pytest.approx(properties.get(key, 0.0), rel=1e-5), (key, text[:300])


@needs_jaxlib
def test_counts_are_xlas_on_single_operations_and_fusions() -> None:
    texts = [one_op(g.body, g.parameters) for g in GOLDEN]
    texts += [one_op(body, parameters) for body, parameters in MORE]
    texts += FUSIONS
    answers = xla_properties(texts)
    assert len(answers) == len(texts), "XLA refuses one of the modules"
    for position, properties in answers.items():
        assert_as_xla(texts[position], properties)


@needs_jaxlib
def test_bytes_per_operand_are_xlas_on_fusions() -> None:
    answers = xla_properties(FUSIONS[:4])
    for position, properties in answers.items():
        cost = root_cost(FUSIONS[position])
        for operand in range(len(cost.operands)):
            expected = properties.get(f"bytes accessed{operand}{{}}", 0.0)
            assert cost.operand_bytes(operand) == expected
        assert cost.output_bytes() == properties["bytes accessedout{}"]
    assert root_cost(FUSIONS[2]).output_bytes((0,)) == 40.0


DIFFERENT = ("custom-call", "opt-barrier", "ragged-dot", "infeed", " scan(", "<=")
"""What is counted otherwise on purpose (docstring of `hlo_graphs.costs`) or has no rule."""

QUIRKS = {
    "DUSLoopFusionWithBitcast": "an update in place behind a bitcast",
    "NestedFusionBodyAliasingThroughBitcast": "an update in place behind a bitcast",
    "DUSFusionWithOutputOperandAliasing": "an operand that is passed on at its place",
    "NestedDUSFusion": "the index of a nested update is read: 4 bytes",
    "NestedLoopWithAliasingInDUSFusion": "the indices of a nested update",
    "NestedMultiOutputDUSFusion": "the indices of a nested update",
    "IgnoreUnusedParameterShape": "XLA adds a pointer table where a tuple leaf is unused",
    "FusedDynamicUpdateSlice": "XLA adds a pointer table where a tuple leaf is unused",
    "hlo_parser_test___toplevel_74": "XLA adds a pointer table where a tuple leaf is unused",
    "NestedFusionFeedsMultipleUsers": "reduce-window over a whole dimension",
    "ParamFeedsNestedFusionAndTrivialUser": "reduce-window over a whole dimension",
    "ReduceWindowSingleDimReduceBroadcast": "reduce-window over a whole dimension",
}
"""Modules left out by name, with the reason."""


@needs_jaxlib
def test_counts_are_xlas_on_the_conformance_modules() -> None:
    texts = []
    for path in sorted(shared_data_path("hlo_conformance").glob("*.hlo")):
        text = path.read_text()
        ordinary = not any(part in text for part in DIFFERENT)
        if ordinary and text.count("HloModule") == 1 and path.stem.split(".")[-1] not in QUIRKS:
            texts.append(text)
    answers = xla_properties(texts)
    for position, properties in answers.items():
        assert_as_xla(texts[position], properties)
    assert len(answers) > 380


def brute_force_positions(dimension: WindowDimension, input_size: int, output_size: int) -> int:
    """Tries every pair of kernel and output element."""
    count = 0
    for tap in range(dimension.size):
        for output in range(output_size):
            place = output * dimension.stride + tap * dimension.window_dilation
            place -= dimension.pad_low
            inside = 0 <= place <= (input_size - 1) * dimension.base_dilation
            count += inside and place % dimension.base_dilation == 0
    return count


@given(
    st.builds(
        WindowDimension,
        size=st.integers(1, 6),
        stride=st.integers(1, 5),
        pad_low=st.integers(-3, 6),
        base_dilation=st.integers(1, 5),
        window_dilation=st.integers(1, 4),
    ),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_valid_positions_match_brute_force(
    dimension: WindowDimension, input_size: int, output_size: int
) -> None:
    expected = brute_force_positions(dimension, input_size, output_size) if input_size else 0
    assert valid_positions(dimension, input_size, output_size) == expected


def test_windows_parse() -> None:
    window = parse_window("{size=3x1 stride=2x1 pad=1_2x0_0 rhs_dilate=1x4}")
    assert window == (
        WindowDimension(3, stride=2, pad_low=1, pad_high=2),
        WindowDimension(1, window_dilation=4),
    )
    assert parse_window("{}") == ()


def test_whole_dimension_windows_count_the_reduction() -> None:
    body = "f32[8,4] reduce-window(p0, p1), window={size=15x1 pad=7_7x0_0}, to_apply=add"
    assert root_cost(one_op(body, ["f32[8,4]", "f32[]"])).flops == 7 * 4


def test_ragged_dots_count_their_products() -> None:
    body = (
        "f32[11,5] ragged-dot(p0, p1, p2), lhs_contracting_dims={1}, rhs_contracting_dims={1}, "
        "lhs_ragged_dims={0}, rhs_group_dims={0}"
    )
    cost = root_cost(one_op(body, ["f32[11,4]", "f32[3,4,5]", "s32[3]"]))
    assert cost.flops == cost.matrix_flops == 2 * 11 * 4 * 5


@pytest.mark.parametrize("quote", ['"', '\\"'])
def test_kernels_that_state_their_work_are_taken_at_their_word(quote: str) -> None:
    config = '{"custom_call_config":{"cost_estimate":{"flops":"64","transcendentals":8}}}'
    call = 'bf16[8] custom-call(p0), custom_call_target="mine", backend_config='
    stated = config.replace('"', quote)
    text = call + (stated if quote == '"' else f'"{stated}"')
    cost = root_cost(one_op(text, ["bf16[8]"]))
    assert (cost.flops, cost.matrix_flops, cost.transcendentals) == (64, 64, 8)
    assert (cost.matrix_type, cost.total_bytes, cost.known) == ("bf16", 32, False)


def test_custom_calls_are_unknown_but_counted() -> None:
    cost = root_cost(one_op('f32[8] custom-call(p0), custom_call_target="mine"', ["f32[8]"]))
    assert (cost.known, cost.total_bytes, cost.operand_bytes(0)) == (False, 64, 32)
    free = root_cost(one_op('f32[8] custom-call(), custom_call_target="AllocateBuffer"', []))
    assert (free.known, free.total_bytes) == (True, 0)
    marked = root_cost(one_op('f32[8] custom-call(p0), custom_call_target="Sharding"', ["f32[8]"]))
    assert marked.total_bytes == 64, "its result is a buffer of its own"


@pytest.mark.parametrize("layout", ["{1,0}", "{0,1}"])
def test_a_transposition_that_is_a_step_is_a_copy_at_least(layout: str) -> None:
    text = f"f32[64,32]{layout} transpose(p0), dimensions={{1,0}}"
    analysis = analyse(one_op(text, ["f32[32,64]{1,0}"]))
    entry = analysis.module.entry
    cost = analysis.step_cost(entry.name, entry.root.name)
    assert cost.total_bytes == 2 * 4 * 64 * 32


def test_an_outfeed_reads_every_leaf() -> None:
    shapes = ["(f32[8], (f32[9], s32[]))", "token[]"]
    cost = root_cost(one_op("token[] outfeed(p0, p1)", shapes))
    assert cost.operands == ({(0,): 32, (1, 0): 36, (1, 1): 4}, {})
    assert cost.total_bytes == 72


def test_costs_of_called_computations_are_not_counted_twice() -> None:
    analysis = analyse(FUSIONS[4])
    loop = analysis.cost("e", "w")
    assert (
        loop.total_bytes
        == analysis.total("body").total_bytes + analysis.total("condition").total_bytes
    )
    assert all(not leaves for leaves in loop.operands)
    assert loop.output_bytes() == 0


def test_what_a_fusion_only_passes_on_at_its_place_does_not_move() -> None:
    text = """
HloModule m
inner {
  p = f32[100] parameter(0)
  q = f32[10] parameter(1)
  b = f32[10,10] bitcast(p)
  n = f32[10] negate(q)
  ROOT r = (f32[10], f32[10,10]) tuple(n, b)
}
ENTRY e {
  a = f32[100] parameter(0)
  c = f32[10] parameter(1)
  ROOT f = (f32[10], f32[10,10]) fusion(a, c), kind=kLoop, calls=inner
}
"""
    copied = root_cost(text)
    assert (copied.operand_bytes(0), copied.output_bytes((1,))) == (400, 400)
    aliased = "calls=inner, output_to_operand_aliasing={{1}: (0, {})}"
    passed = root_cost(text.replace("calls=inner", aliased))
    assert (passed.operand_bytes(0), passed.output_bytes((1,))) == (0, 0)
    assert (passed.operand_bytes(1), passed.output_bytes((0,))) == (40, 40)
    read_too = text.replace("negate(q)", "slice(p), slice={[0:10]}")
    assert root_cost(read_too.replace("calls=inner", aliased)).operand_bytes(0) == 40


def test_updates_in_place_are_seen_through_bitcasts() -> None:
    text = """
HloModule m
inner {
  p = f32[10,10] parameter(0)
  flat = f32[100] bitcast(p)
  q = f32[10] parameter(1)
  i = s32[] parameter(2)
  u = f32[100] dynamic-update-slice(flat, q, i)
  ROOT b = f32[10,10] bitcast(u)
}
ENTRY e {
  a = f32[10,10] parameter(0)
  b = f32[10] parameter(1)
  c = s32[] parameter(2)
  ROOT f = f32[10,10] fusion(a, b, c), kind=kLoop, calls=inner
}
"""
    cost = root_cost(text)
    assert [cost.operand_bytes(i) for i in range(3)] == [0, 40, 4]
    assert cost.output_bytes() == 40


def test_gathers_and_scatters_in_fusions_touch_what_they_move() -> None:
    text = """
HloModule m
add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b)
}
lookup {
  table = f32[1000,8] parameter(0)
  rows = s32[5] parameter(1)
  ROOT g = f32[5,8] gather(table, rows), offset_dims={1},
      collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,8}
}
accumulate {
  table = f32[1000,8] parameter(0)
  rows = s32[5] parameter(1)
  new = f32[5,8] parameter(2)
  ROOT s = f32[1000,8] scatter(table, rows, new), update_window_dims={1},
      inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=add
}
ENTRY e {
  t = f32[1000,8] parameter(0)
  i = s32[5] parameter(1)
  g = f32[5,8] fusion(t, i), kind=kCustom, calls=lookup
  ROOT s = f32[1000,8] fusion(t, i, g), kind=kCustom, calls=accumulate
}
"""
    analysis = analyse(text)
    gather, scatter = analysis.cost("e", "g"), analysis.cost("e", "s")
    assert [gather.operand_bytes(i) for i in range(2)] == [160, 20]
    assert [scatter.operand_bytes(i) for i in range(3)] == [160, 20, 160]
    assert scatter.output_bytes() == 160


@pytest.mark.parametrize(
    "body",
    [
        "f32[4,4] dot(p0, p0), lhs_contracting_dims={7}, rhs_contracting_dims={0}",
        "f32[4,4] convolution(p0, p0), window={size=3}, dim_labels=bf_io->bf",
        "f32[4,4] convolution(p0, p0), dim_labels=bf_io->bf, feature_group_count=0",
        "f32[4,4] convolution(p0, p0), dim_labels=bf_io->bf, batch_group_count=0",
    ],
)
def test_attributes_that_do_not_fit_are_located(body: str) -> None:
    module = parse_module(one_op(body, ["f32[4,4]"]), "broken.hlo")
    with pytest.raises(InputError, match=r"broken\.hlo:\d+: (dot|convolution) r: its attributes"):
        analyse_costs(module).cost("e", "r")


def test_padded_sizes_are_the_default() -> None:
    text = one_op("f32[3]{0:T(1024)} negate(p0)", ["f32[3]{0:T(1024)}"])
    module = parse_module(text)
    assert analyse_costs(module).cost("e", "r").total_bytes == 2 * 4096
    assert analyse_costs(module, byte_size_of).cost("e", "r").total_bytes == 2 * 12


def test_matrix_operands_are_found_through_fusions() -> None:
    text = """
HloModule m
bitcasts {
  p = bf16[8,8] parameter(0)
  q = bf16[8] parameter(1)
  wide = bf16[8,8] broadcast(q), dimensions={0}
  b = bf16[8,8] bitcast(p)
  ROOT x = bf16[8,8] subtract(b, wide)
}
inner {
  lhs = bf16[8,8] parameter(0)
  rhs = bf16[8,8] parameter(1)
  bias = bf16[8,8] parameter(2)
  scale = bf16[8] parameter(3)
  rows = bf16[8,8] broadcast(scale), dimensions={1}
  scaled = bf16[8,8] multiply(lhs, rows)
  cast = bf16[8,8] fusion(rhs, scale), kind=kLoop, calls=bitcasts
  product = bf16[8,8] convolution(scaled, cast), dim_labels=bf_io->bf
  ROOT sum = bf16[8,8] add(product, bias)
}
ENTRY e {
  a = bf16[8,8] parameter(0)
  b = bf16[8,8] parameter(1)
  c = bf16[8,8] parameter(2)
  s = bf16[8] parameter(3)
  f = bf16[8,8] fusion(a, b, c, s), kind=kOutput, calls=inner
  ROOT d = bf16[8,8] dot(f, a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    analysis = analyse(text)
    assert matrix_operands(analysis, "e", "f") == {(0, ()), (1, ())}
    assert matrix_operands(analysis, "e", "d") == {(0, ()), (1, ())}
    assert matrix_operands(analysis, "e", "a") == frozenset()
    assert analysis.cost("e", "f").matrix_type == "bf16"
    assert analysis.cost("e", "f").matrix_flops == 2 * math.prod((8, 8, 8))
