"""Trip counts of loops whose counters show them."""

from __future__ import annotations

import pytest

from hlo_graphs.hlo import HloModule
from hlo_graphs.parser import parse_module
from hlo_graphs.trip_counts import known_trip_count


def counting(
    start: int = 0, limit: int = 10, step: int = 1, compare: str = "LT", config: str = ""
) -> HloModule:
    return parse_module(
        f"""HloModule m, is_scheduled=true
body {{
  s = (s32[], f32[8]{{0}}) parameter(0)
  i = s32[] get-tuple-element(s), index=0
  c = s32[] copy(i)
  k = s32[] constant({step})
  j = s32[] add(c, k)
  x = f32[8]{{0}} get-tuple-element(s), index=1
  y = f32[8]{{0}} negate(x)
  ROOT t = (s32[], f32[8]{{0}}) tuple(j, y)
}}
condition {{
  s = (s32[], f32[8]{{0}}) parameter(0)
  i = s32[] get-tuple-element(s), index=0
  n = s32[] constant({limit})
  ROOT p = pred[] compare(i, n), direction={compare}
}}
ENTRY e {{
  z = s32[] constant({start})
  x = f32[8]{{0}} parameter(0)
  s = (s32[], f32[8]{{0}}) tuple(z, x)
  ROOT w = (s32[], f32[8]{{0}}) while(s), condition=condition, body=body{config}
}}
"""
    )


def trips(module: HloModule) -> int | None:
    return known_trip_count(module, module.entry, module.entry.root)


def trips_by_running(start: int, limit: int, step: int, compare: str) -> int | None:
    """The loop itself, given up on after a thousand trips."""
    holds = {
        "LT": int.__lt__,
        "LE": int.__le__,
        "GT": int.__gt__,
        "GE": int.__ge__,
        "NE": int.__ne__,
    }[compare]
    count = 0
    while holds(start, limit):
        start += step
        count += 1
        if count > 1000:
            return None
    return count


@pytest.mark.parametrize("compare", ["LT", "LE", "GT", "GE", "NE"])
@pytest.mark.parametrize("step", [-3, -1, 1, 2])
@pytest.mark.parametrize(("start", "limit"), [(0, 10), (10, 0), (3, 3), (0, 9), (-4, 5)])
def test_counters_count_as_the_loop_does(start: int, limit: int, step: int, compare: str) -> None:
    found = trips(counting(start, limit, step, compare))
    assert found == trips_by_running(start, limit, step, compare)


def test_what_the_compiler_states_is_believed() -> None:
    config = ', backend_config={"known_trip_count":{"n":"128"}}'
    assert trips(counting(limit=7, config=config)) == 128


def test_a_counter_that_stands_still_says_nothing() -> None:
    assert trips(counting(step=0)) is None


def test_a_condition_that_is_no_comparison_says_nothing() -> None:
    module = parse_module(
        """HloModule m, is_scheduled=true
body {
  ROOT s = (pred[], s32[]) parameter(0)
}
condition {
  s = (pred[], s32[]) parameter(0)
  ROOT p = pred[] get-tuple-element(s), index=0
}
ENTRY e {
  x = (pred[], s32[]) parameter(0)
  ROOT w = (pred[], s32[]) while(x), condition=condition, body=body
}
"""
    )
    assert trips(module) is None


def test_the_limit_may_come_with_the_state_and_through_a_fusion() -> None:
    module = parse_module(
        """HloModule m, is_scheduled=true
fused {
  a = s32[] parameter(0)
  b = s32[] parameter(1)
  ROOT p = pred[] compare(b, a), direction=GT
}
body {
  s = (s32[], s32[]) parameter(0)
  i = s32[] get-tuple-element(s), index=0
  n = s32[] get-tuple-element(s), index=1
  k = s32[] constant(3)
  j = s32[] add(i, k)
  ROOT t = (s32[], s32[]) tuple(j, n)
}
condition {
  s = (s32[], s32[]) parameter(0)
  i = s32[] get-tuple-element(s), index=0
  n = s32[] get-tuple-element(s), index=1
  ROOT p = pred[] fusion(i, n), kind=kLoop, calls=fused
}
ENTRY e {
  z = s32[] constant(0)
  n = s32[] constant(10)
  s = (s32[], s32[]) tuple(z, n)
  ROOT w = (s32[], s32[]) while(s), condition=condition, body=body
}
"""
    )
    assert trips(module) == 4
