"""Trip counts: stated ones, counters of every direction against running them, and real loops."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_graphs.hlo import HloModule
from hlo_graphs.parser import parse_module, read_module
from hlo_graphs.trip_counts import known_trip_count

COUNTER = """HloModule m, is_scheduled=true
body {{
  p = (s32[], f32[]) parameter(0)
  i = s32[] get-tuple-element(p), index=0
  c = s32[] copy(i)
  step = s32[] constant({step})
  next = s32[] add(c, step)
  x = f32[] get-tuple-element(p), index=1
  ROOT out = (s32[], f32[]) tuple(next, x)
}}
condition {{
  q = (s32[], f32[]) parameter(0)
  j = s32[] get-tuple-element(q), index=0
  limit = s32[] constant({limit})
  ROOT more = pred[] compare({operands}), direction={direction}
}}
ENTRY main {{
  zero = s32[] {start}
  x = f32[] constant(0)
  init = (s32[], f32[]) tuple(zero, x)
  ROOT loop = (s32[], f32[]) while(init), condition=condition, body=body{stated}
}}"""

HOLDS = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "NE": operator.ne,
}

CORPUS = Path(__file__).resolve().parents[2] / "hlo_graphs" / "corpus"


def counter(
    start: str, limit: int, step: int, direction: str, mirrored: bool = False, stated: str = ""
) -> int | None:
    operands = "limit, j" if mirrored else "j, limit"
    text = COUNTER.format(
        start=start, limit=limit, step=step, direction=direction, operands=operands, stated=stated
    )
    return only_count(parse_module(text))


def only_count(module: HloModule) -> int | None:
    loops = [i for i in module.entry.instructions if i.opcode == "while"]
    assert len(loops) == 1
    return known_trip_count(module, module.entry, loops[0])


@settings(max_examples=150, deadline=None)
@given(
    st.integers(-9, 9),
    st.integers(-9, 9),
    st.integers(-3, 3),
    st.sampled_from(sorted(HOLDS)),
    st.booleans(),
)
def test_counters_run_as_often_as_said(
    start: int, limit: int, step: int, direction: str, mirrored: bool
) -> None:
    trips, value = 0, start
    while trips <= 100:
        sides = (limit, value) if mirrored else (value, limit)
        if not HOLDS[direction](*sides):
            break
        trips, value = trips + 1, value + step
    found = counter(f"constant({start})", limit, step, direction, mirrored)
    if trips > 100:
        assert found is None
    elif step != 0:
        assert found == trips
    else:
        assert found in (None, trips)


def test_the_stated_count_wins() -> None:
    stated = ', backend_config={"known_trip_count":{"n":"7"}}'
    assert counter("constant(0)", 3, 1, "LT", stated=stated) == 7


def test_an_unknown_start_gives_no_count() -> None:
    assert counter("parameter(0)", 3, 1, "LT") is None


@pytest.mark.parametrize("name", ["lstm_forward.v5e", "lstm_forward.v5e.32MiB"])
def test_real_loop_over_a_sequence(name: str) -> None:
    """The sequence's length is the leading dimension of the array the loop reads slices of."""
    module = read_module(CORPUS / f"{name}.before.hlo.gz")
    loop = next(i for i in module.entry.instructions if i.opcode == "while")
    leading = [s.dimensions[0] for s in loop.shape.elements if len(s.dimensions) == 3]
    assert only_count(module) in leading


def test_a_count_stated_inside_a_quoted_string() -> None:
    """As older compilers print it."""
    stated = r', backend_config="{\"known_trip_count\":{\"n\":\"40\"}}"'
    assert counter("constant(0)", 3, 1, "LT", stated=stated) == 40


def test_absurd_counts_are_taken_for_a_large_one() -> None:
    stated = f', backend_config={{"known_trip_count":{{"n":"{"9" * 400}"}}}}'
    assert counter("constant(0)", 3, 1, "LT", stated=stated) == 10**9
    assert counter("constant(0)", 2**31 - 1, 1, "LT") == 10**9


@pytest.mark.parametrize(("operand", "count"), [("step", 5_000), ("last", 30)])
def test_long_sums_are_read_once(operand: str, count: int) -> None:
    """Adding a constant many times, and doubling, whose sum has 2^30 terms."""
    lines, last = [], "step"
    for number in range(count):
        other = last if operand == "last" else operand
        lines.append(f"  n{number} = s32[] add({last}, {other})")
        last = f"n{number}"
    total = 2**count if operand == "last" else count + 1
    limit = min(3 * total, 2**31 - 1)
    text = COUNTER.format(
        start="constant(0)", limit=limit, step=1, direction="LT", operands="j, limit", stated=""
    )
    text = text.replace("add(c, step)", f"add(c, {last})")
    text = text.replace("  next =", "\n".join(lines) + "\n  next =")
    assert only_count(parse_module(text)) == -(-limit // total)
