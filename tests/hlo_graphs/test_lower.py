"""From a module to a program: steps, buffers, accesses, loops, and the compiler's own table."""

from __future__ import annotations

import pytest

from hlo_graphs.bundle import AllocationInfo, BufferInfo, ValueName
from hlo_graphs.chips import find_chip
from hlo_graphs.errors import InputError
from hlo_graphs.lower import Lowered, LoweringOptions, lower
from hlo_graphs.parser import parse_module
from hlo_graphs.program import BEFORE_PROGRAM, AccessKind, Program
from hlo_graphs.times import analytic_times

CHIP = find_chip("v5e")

STRAIGHT = """HloModule straight, is_scheduled=true
ENTRY main {
  x = f32[256,128]{1,0:T(8,128)} parameter(0)
  w = f32[256,128]{1,0:T(8,128)} parameter(1)
  y = f32[256,128]{1,0:T(8,128)} add(x, w)
  b = f32[32768]{0:T(1024)} bitcast(y)
  s = f32[] constant(2)
  z = (f32[256,128]{1,0:T(8,128)}, f32[128]{0:T(128)}) custom-call(y, x, s), custom_call_target="f"
  z0 = f32[256,128]{1,0:T(8,128)} get-tuple-element(z), index=0
  ROOT v = f32[256,128]{1,0:T(8,128)} add(z0, z0)
}
"""

LOOP = """HloModule loop, is_scheduled=true, input_output_alias={ {}: (1, {}, may-alias) }
body {
  s = (s32[], f32[64,256]{1,0:T(8,128)}, f32[256]{0:T(256)}) parameter(0)
  i = s32[] get-tuple-element(s), index=0
  one = s32[] constant(1)
  j = s32[] add(i, one)
  k = f32[64,256]{1,0:T(8,128)} get-tuple-element(s), index=1
  r = f32[256]{0:T(256)} get-tuple-element(s), index=2
  m = f32[1,256]{1,0:T(8,128)} reshape(r)
  zero = s32[] constant(0)
  u = f32[64,256]{1,0:T(8,128)} dynamic-update-slice(k, m, i, zero)
  ROOT t = (s32[], f32[64,256]{1,0:T(8,128)}, f32[256]{0:T(256)}) tuple(j, u, r)
}
test {
  s = (s32[], f32[64,256]{1,0:T(8,128)}, f32[256]{0:T(256)}) parameter(0)
  i = s32[] get-tuple-element(s), index=0
  n = s32[] constant(64)
  ROOT p = pred[] compare(i, n), direction=LT
}
ENTRY main {
  z = s32[] constant(0)
  row = f32[256]{0:T(256)} parameter(0)
  cache = f32[64,256]{1,0:T(8,128)} parameter(1)
  c = s32[] copy(z)
  s = (s32[], f32[64,256]{1,0:T(8,128)}, f32[256]{0:T(256)}) tuple(c, cache, row)
  w = (s32[], f32[64,256]{1,0:T(8,128)}, f32[256]{0:T(256)}) while(s), condition=test, body=body
  ROOT o = f32[64,256]{1,0:T(8,128)} get-tuple-element(w), index=1
}
"""


DONATION = "input_output_alias={ {}: (1, {}, may-alias) }"

FILLED = (
    LOOP.replace(f", {DONATION}", "")
    .replace("tuple(c, cache, row)", "tuple(c, empty, row)")
    .replace(
        "  c = s32[] copy(z)\n",
        """  c = s32[] copy(z)
  read = f32[64,256]{1,0:T(8,128)} exponential(cache)
  empty = f32[64,256]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
""",
    )
)
"""The loop fills what holds nothing at first, after the parameter's last use."""


def lowered(text: str, options: LoweringOptions | None = None, **arguments: object) -> Lowered:
    module = parse_module(text)
    settings = options or LoweringOptions(name="test")
    return lower(module, CHIP, analytic_times(module, CHIP), settings, **arguments)  # type: ignore[arg-type]


def accesses(program: Program, name: str) -> dict[str, AccessKind]:
    (found,) = [i for i in program.instructions if i.name == name]
    return {program.buffers[a.buffer].name: a.kind for a in found.accesses}


def buffer_named(program: Program, name: str) -> int:
    (found,) = [i for i, b in enumerate(program.buffers) if name in b.values]
    return found


def test_real_instructions_are_steps_and_forwarding_ones_are_not() -> None:
    assert [i.name for i in lowered(STRAIGHT).program.instructions] == ["y", "z", "v"]


def test_an_operand_used_twice_is_one_access_of_twice_the_bytes() -> None:
    program = lowered(STRAIGHT).program
    last = {a.buffer: a for a in program.instructions[2].accesses}
    read = last[buffer_named(program, "z{0}")]
    assert read.kind is AccessKind.READ
    assert read.size_bytes == 2 * 256 * 128 * 4


def test_buffers_know_where_they_come_from_and_where_they_go() -> None:
    program = lowered(STRAIGHT).program
    facts = {b.name: (b.origin, b.live_out, b.is_parameter) for b in program.buffers}
    assert facts["x{}"] == (BEFORE_PROGRAM, False, True)
    assert facts["y{}"] == (0, False, False)
    assert facts["v{}"] == (2, True, False)


def test_sizes_are_physical_and_aligned() -> None:
    program = lowered(STRAIGHT).program
    sizes = {b.name: b.size_bytes for b in program.buffers}
    assert sizes["x{}"] == 256 * 128 * 4
    assert sizes["z{1}"] == CHIP.alignment_bytes  # 512 bytes of data


def test_scalars_never_lie_in_fast_memory() -> None:
    program = lowered(STRAIGHT).program
    assert not program.buffers[buffer_named(program, "s{}")].fast_allowed


def test_in_place_updates_and_donated_parameters_share_one_buffer() -> None:
    program = lowered(LOOP).program
    cache = buffer_named(program, "cache{}")
    assert {"cache{}", "u{}", "w{1}"} <= set(program.buffers[cache].values)
    assert accesses(program, "u")[program.buffers[cache].name] is AccessKind.UPDATE
    assert program.buffers[cache].live_out


def test_a_buffer_to_be_filled_holds_nothing_at_first() -> None:
    program = lowered(FILLED).program
    filled = program.buffers[buffer_named(program, "empty{}")]
    assert (filled.origin, filled.is_undefined) == (BEFORE_PROGRAM, True)
    assert not filled.has_content_at_start


def test_a_donated_parameter_that_is_filled_anew_holds_its_old_content_at_first() -> None:
    donated = FILLED.replace("is_scheduled=true", f"is_scheduled=true, {DONATION}")
    program = lowered(donated).program
    cache = program.buffers[buffer_named(program, "cache{}")]
    assert "empty{}" in cache.values
    assert cache.is_parameter
    assert cache.has_content_at_start


def test_loops_are_ranges_of_steps_with_trip_counts() -> None:
    program = lowered(LOOP).program
    (loop,) = program.loops
    inside = [i.name for i in program.instructions[loop.start_step : loop.end_step]]
    assert loop.trip_count == 64
    assert inside == ["p", "j", "m", "u"]
    assert {i.name: i.repeat for i in program.instructions}["u"] == 64
    assert program.instructions[0].repeat == 1


def test_unknown_trip_counts_have_a_default_that_can_be_set() -> None:
    text = LOOP.replace("j = s32[] add(i, one)", "j = s32[] multiply(i, one)")
    assert lowered(text).program.loops[0].trip_count == 5
    chosen = LoweringOptions(name="test", default_trip_count=9)
    assert lowered(text, chosen).program.loops[0].trip_count == 9


def test_branches_are_loops_that_may_be_skipped() -> None:
    text = """HloModule choice, is_scheduled=true
left {
  a = f32[256,128]{1,0:T(8,128)} parameter(0)
  ROOT n = f32[256,128]{1,0:T(8,128)} negate(a)
}
right {
  a = f32[256,128]{1,0:T(8,128)} parameter(0)
  ROOT e = f32[256,128]{1,0:T(8,128)} exponential(a)
}
ENTRY main {
  p = pred[] parameter(0)
  x = f32[256,128]{1,0:T(8,128)} parameter(1)
  ROOT c = f32[256,128]{1,0:T(8,128)} conditional(p, x, x), branch_computations={left, right}
}
"""
    program = lowered(text).program
    assert [(b.start_step, b.end_step, b.probability) for b in program.loops] == [
        (0, 1, 0.5),
        (1, 2, 0.5),
    ]
    assert [i.repeat for i in program.instructions] == [0.5, 0.5]


def test_the_compilers_table_decides_what_may_be_fast() -> None:
    row = BufferInfo(
        buffer_id=1,
        name=ValueName(1, "y", (), False),
        label="<1 y>",
        benefit=0.0,
        size_bytes=131072,
        definition_time=2,
        uses=(),
        is_scoped=False,
    )
    program = lowered(STRAIGHT, buffer_info=(row,)).program
    allowed = {b.name for b in program.buffers if b.fast_allowed}
    # Parameters over 64 KiB are left out of the table when they are prefetched across programs.
    assert allowed == {"x{}", "w{}", "y{}"}


def test_a_small_parameter_that_the_compiler_placed_unlisted_may_be_fast() -> None:
    """DCGAN's noise, of 32 KiB, is prefetched across programs and in no row of the table."""
    small = STRAIGHT.replace("[256,128]", "[64,128]").replace("[32768]", "[8192]")
    row = BufferInfo(1, ValueName(1, "y", (), False), "<1 y>", 0.0, 32768, 2, (), False)
    blocks = [AllocationInfo(1, 32768, 0, 2, 3), AllocationInfo(2, 32768, 32768, 0, 5)]
    for allocations, allowed in ((blocks[:1], {"y{}"}), (blocks, {"x{}", "w{}", "y{}"})):
        program = lowered(small, buffer_info=(row,), allocations=allocations).program
        assert {b.name for b in program.buffers if b.fast_allowed} == allowed


def test_the_stricter_reading_keeps_the_bus_busy_for_all_of_a_slow_access() -> None:
    plain = lowered(STRAIGHT).program
    strict = lowered(STRAIGHT, LoweringOptions(name="test", busy="slow")).program
    for one, other in zip(plain.instructions, strict.instructions, strict=True):
        assert one.elapsed_ticks(one.accesses) <= other.elapsed_ticks(other.accesses)
        for a, b in zip(one.accesses, other.accesses, strict=True):
            assert b.bus_ticks == max(a.bus_ticks, *a.lane_ticks)


def test_ticks_grow_coarser_before_sums_leave_32_bits() -> None:
    text = STRAIGHT.replace("256,128", "25600000,128").replace("[32768]", "[3276800000]")
    program = lowered(text).program
    assert program.tick_seconds > 1e-10
    assert program.all_slow_ticks < 2**30


@pytest.mark.parametrize("capacity", [0, 4096, 5000])
def test_the_capacity_can_be_chosen_and_is_aligned(capacity: int) -> None:
    program = lowered(STRAIGHT, LoweringOptions(name="test", capacity_bytes=capacity)).program
    assert program.capacity_bytes == capacity - capacity % CHIP.alignment_bytes


ASYNC = """HloModule chains, is_scheduled=true
inner {
  x = f32[256,128]{1,0:T(8,128)} parameter(0)
  ROOT made = f32[256,128]{1,0:T(8,128)} tanh(x)
}
outer {
  x = f32[256,128]{1,0:T(8,128)} parameter(0)
  ROOT y = f32[256,128]{1,0:T(8,128)} call(x), to_apply=inner
}
handed_on {
  ROOT x = f32[256,128]{1,0:T(8,128)} parameter(0)
}
ENTRY main {
  x = f32[256,128]{1,0:T(8,128)} parameter(0)
  s = ((f32[256,128]{1,0:T(8,128)}), f32[256,128]{1,0:T(8,128)}, s32[]) async-start(x), calls=outer
  t = ((f32[256,128]{1,0:T(8,128)}), f32[256,128]{1,0:T(8,128)}, s32[]) async-start(x),
      calls=handed_on
  beside = f32[256,128]{1,0:T(8,128)} negate(x)
  d = f32[256,128]{1,0:T(8,128)} async-done(s)
  e = f32[256,128]{1,0:T(8,128)} async-done(t)
  ROOT r = (f32[256,128]{1,0:T(8,128)}, f32[256,128]{1,0:T(8,128)}) tuple(d, beside)
}
"""


def test_an_asynchronous_start_writes_what_it_wraps_makes_and_not_what_it_hands_on() -> None:
    program = lowered(ASYNC).program
    assert [i.name for i in program.instructions] == ["s", "t", "beside"]
    assert accesses(program, "s")["made{}"] is AccessKind.WRITE
    assert program.buffers[buffer_named(program, "made{}")].origin == 0
    assert accesses(program, "t") == {"x{}": AccessKind.READ, "t{2}": AccessKind.WRITE}


def test_a_module_from_after_the_assignment_is_refused() -> None:
    assigned = STRAIGHT.replace(
        "y = f32[256,128]{1,0:T(8,128)} add", "y = f32[256,128]{1,0:T(8,128)S(1)} add"
    )
    with pytest.raises(InputError, match=r":\d+: y lies in v5e's fast memory already \(S\(1\)\)"):
        lowered(assigned)
    other_space = STRAIGHT.replace("s = f32[] constant", "s = f32[]{:S(6)} constant")
    assert lowered(other_space).program.num_steps == lowered(STRAIGHT).program.num_steps


IN_FLIGHT = """HloModule flight, is_scheduled=true
ENTRY main {
  p = f32[4096]{0} parameter(0)
  q = f32[4096]{0} parameter(1)
  x = f32[4096]{0} negate(p)
  s = (f32[4096]{0}, f32[4096]{0}, u32[], u32[]) collective-permute-start(x)
  y = f32[4096]{0} exponential(q)
  d = f32[4096]{0} collective-permute-done(s)
  ROOT r = f32[4096]{0} add(d, y)
}
"""


def may_be_fast(text: str) -> set[str]:
    return {buffer.name for buffer in lowered(text).program.buffers if buffer.fast_allowed}


def test_what_an_asynchronous_operation_uses_stays_slow_while_other_steps_run() -> None:
    assert may_be_fast(IN_FLIGHT) == {"p{}", "q{}", "y{}", "r{}"}
    start, step, done = IN_FLIGHT.splitlines()[5:8]
    at_once = IN_FLIGHT.replace(f"{start}\n{step}\n{done}", f"{step}\n{start}\n{done}")
    assert may_be_fast(at_once) == {"p{}", "q{}", "x{}", "y{}", "s{1}", "r{}"}
    unfinished = IN_FLIGHT.replace(done + "\n", "").replace("add(d, y)", "add(x, y)")
    assert may_be_fast(unfinished) == {"p{}", "q{}", "y{}", "r{}"}


HOST = """HloModule host, is_scheduled=true
ENTRY main {
  p = f32[4096]{0} parameter(0)
  x = f32[4096]{0} negate(p)
  k = token[] after-all()
  s = (f32[4096]{0}, u32[], token[]) send(x, k), channel_id=1, is_host_transfer=true
  t = token[] send-done(s), channel_id=1, is_host_transfer=true
  v = (f32[4096]{0}, u32[], token[]) recv(t), channel_id=2, is_host_transfer=true
  w = (f32[4096]{0}, token[]) recv-done(v), channel_id=2, is_host_transfer=true
  y = f32[4096]{0} get-tuple-element(w), index=0
  z = f32[4096]{0} exponential(y)
  a = f32[4096]{0} add-dependency(z, t)
  ROOT r = f32[4096]{0} add(a, a)
}
"""


def test_what_moves_to_or_from_the_host_or_waits_for_a_token_stays_slow() -> None:
    assert may_be_fast(HOST) == {"p{}", "r{}"}
    between_chips = HOST.replace("is_host_transfer=true", "is_host_transfer=false")
    assert may_be_fast(between_chips) == {"p{}", "x{}", "v{0}", "r{}"}


def test_an_array_of_unknown_size_is_refused_with_its_line() -> None:
    unbounded = STRAIGHT.replace("f32[128]{0:T(128)}", "f32[?]{0:T(128)}")
    with pytest.raises(InputError, match=r":8: z has shape f32\[\?\].*give a bound"):
        lowered(unbounded)


def test_copies_beside_an_asynchronous_operation_are_not_done_early() -> None:
    def engine(text: str) -> list[bool]:
        return [i.async_copy for i in lowered(text).program.instructions if i.opcode == "copy"]

    assert engine(IN_FLIGHT.replace("add(d, y)", "copy(d)")) == [False]
    assert engine(IN_FLIGHT.replace("add(d, y)", "copy(y)")) == [True]


@pytest.mark.parametrize(
    ("ranges", "result", "could"),
    [
        ("[8:16], [0:256]", "f32[8,256]", True),
        ("[0:20], [128:256]", "f32[20,128]", True),
        ("[16:20], [0:256]", "f32[4,256]", True),  # The last tile's rest is padding.
        ("[4:12], [0:256]", "f32[8,256]", False),
        ("[0:8], [127:128]", "f32[8,1]", False),
        ("[0:8], [0:100]", "f32[8,100]", False),
        ("[0:20:2], [0:256]", "f32[10,256]", False),
    ],
)
def test_the_copy_engine_could_do_slices_of_whole_tiles(
    ranges: str, result: str, could: bool
) -> None:
    text = f"""HloModule pieces, is_scheduled=true
ENTRY main {{
  p = f32[20,256]{{1,0:T(8,128)}} parameter(0)
  ROOT s = {result}{{1,0:T(8,128)}} slice(p), slice={{{ranges}}}
}}
"""
    (step,) = lowered(text).program.instructions
    assert step.async_copy is could


def test_wrapped_asynchronous_operations_are_in_flight_too() -> None:
    text = """HloModule wrapped, is_scheduled=true
gather {
  a = f32[4096]{0} parameter(0)
  ROOT g = f32[4096]{0} all-gather(a), dimensions={0}, replica_groups={}
}
ENTRY main {
  p = f32[4096]{0} parameter(0)
  x = f32[4096]{0} negate(p)
  s = ((f32[4096]{0}), f32[4096]{0}) async-start(x), calls=gather
  y = f32[4096]{0} exponential(p)
  d = f32[4096]{0} async-done(s)
  ROOT r = f32[4096]{0} add(d, y)
}
"""
    assert may_be_fast(text) == {"p{}", "y{}", "r{}"}


def test_a_computation_that_runs_from_two_places_is_refused() -> None:
    text = """HloModule twice, is_scheduled=true
f {
  a = f32[256,128]{1,0:T(8,128)} parameter(0)
  ROOT n = f32[256,128]{1,0:T(8,128)} negate(a)
}
ENTRY main {
  x = f32[256,128]{1,0:T(8,128)} parameter(0)
  y = f32[256,128]{1,0:T(8,128)} call(x), to_apply=f
  ROOT z = f32[256,128]{1,0:T(8,128)} call(y), to_apply=f
}
"""
    with pytest.raises(InputError, match=":9: f is called by y and z"):
        lowered(text)


def test_an_assumed_trip_count_is_marked() -> None:
    assert [loop.trips_known for loop in lowered(LOOP).program.loops] == [True]
    text = LOOP.replace("j = s32[] add(i, one)", "j = s32[] multiply(i, one)")
    assert [loop.trips_known for loop in lowered(text).program.loops] == [False]
