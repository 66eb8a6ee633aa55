"""Values and buffers: golden cases read off XLA's rules, and a slow witness on random programs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_graphs.aliasing import AliasAnalysis, analyse_aliases
from hlo_graphs.call_graph import CallGraph
from hlo_graphs.dataflow import simplify_phis
from hlo_graphs.dataflow_rules import Position
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloModule, ShapeIndex
from hlo_graphs.in_place import InPlacePair, async_pairs, in_place_pairs
from hlo_graphs.live_range import flatten_schedule, live_ranges
from hlo_graphs.parser import parse_module, parse_modules, read_module
from tests.hlo_graphs.hlo_programs import random_module
from tests.shared_data import shared_data_path


def conformance(name: str) -> HloModule:
    return read_module(shared_data_path("hlo_conformance") / f"{name}.hlo")


def alias_sets(aliases: AliasAnalysis) -> set[frozenset[str]]:
    """Buffers of several values, by the values' names."""
    return {
        frozenset(str(aliases.values[value]) for value in buffer.values)
        for buffer in aliases.buffers
        if len(buffer.values) > 1
    }


def at(aliases: AliasAnalysis, instruction: str, index: ShapeIndex = ()) -> set[str]:
    """Names of the values at an instruction of the entry computation."""
    values = aliases.values_at(aliases.module.entry.name, instruction, index)
    return {str(aliases.values[value]) for value in values}


def sets(*groups: str) -> set[frozenset[str]]:
    return {frozenset(group.split()) for group in groups}


ALIAS_SETS = {
    "BinaryOperation": sets(),
    "Bitcast": sets(),
    "TupleAndGtes": sets(),
    "NondistinctTuple": sets(),
    "ParametersWithAliasing": sets(),
    "DynamicUpdateSlice": sets("copy0{} dynamic_update_slice{}"),
    "ChainedDynamicUpdateSliceFusion": sets(),
    "DynamicUpdateSliceMultiOutputFusion": sets("negate1{} fusion{1}", "negate2{} fusion{2}"),
    "SingleWhile": sets(
        "tuple{} body_param{} cond_param{} body_tuple{} xla_while{}",
        "constant2{} body_param{1} cond_param{1} add{} xla_while{1}",
    ),
    "SwizzlingWhile": sets(
        "tuple{} body_param{} cond_param{} body_tuple{} xla_while{}",
        "constant1{} constant2{} constant3{} "
        "body_param{0} body_param{1} body_param{2} cond_param{0} cond_param{1} cond_param{2} "
        "xla_while{0} xla_while{1} xla_while{2}",
    ),
}
"""Per HloAliasAnalysisTest its sets of several values.

A loop element that the body passes through keeps its initial value (constant1 of SingleWhile):
nothing to merge. A fusion of two chained updates does not write over its parameter for XLA.
"""


def test_comments_in_stated_aliasing_hide_nothing() -> None:
    module = parse_module(
        "ENTRY e { p = f32[8] parameter(0)\n ROOT c = (f32[8], f32[8]) custom-call(p), "
        'custom_call_target="f", output_to_operand_aliasing={ {/*index=0*/0} : ( 0, {} ) } }'
    )
    pairs = in_place_pairs(module, module.entry, module.entry.root)
    assert pairs == (InPlacePair(0, (), (0,)),)


@pytest.mark.parametrize("name", ALIAS_SETS)
def test_alias_sets(name: str) -> None:
    module = conformance(f"hlo_alias_analysis_test__HloAliasAnalysisTest.{name}")
    assert alias_sets(analyse_aliases(module)) == ALIAS_SETS[name]


IN_PLACE = {
    "DUS": ("dus", [(0, (), ())]),
    "DUSFusion": ("fusion", [(0, (), ())]),
    "NonDUSFusion": ("fusion", []),
    "NonDUSFusionWithOutputOperandAliasing": ("fusion", [(0, (), ())]),
    "DUSFusionWithOutputOperandAliasing": ("fusion", [(0, (), (1,)), (1, (), (0,))]),
    "DUSLoopFusionWithBitcast": ("fusion1", [(1, (), ())]),
    "DUSLoopFusionWithCollective": ("fusion", [(0, (), (1,))]),
    "DUSOutputFusionWithCollective": ("fusion", [(0, (), (1,))]),
    "NestedDUSFusion": ("fusion", [(0, (), ())]),
    "NestedFusionBodyAliasingThroughBitcast": ("fusion", [(0, (), ())]),
    "NestedFusionAnnotationNotInheritedThroughBitcast": ("fusion", []),
    "NestedMultiOutputDUSFusion": ("fusion", [(1, (0,), (2,))]),
    "NestedLoopWithAliasingInDUSFusion": ("fusion", [(0, (0,), ())]),
    "RaggedAllToAll": ("ra2a", [(1, (), ())]),
    "ScatterDefaultAliasing": ("scatter", [(0, (), ())]),
    "SetDimensionSize": ("sds", [(0, (), ())]),
    "CustomCallAliasing": ("cc", [(0, (1,), (0,))]),
    "GetNonDefaultInPlacePairs": ("add", []),
    "AllReduceStartDefault": ("ars", [(0, (), ())]),
    "AllReduceStartMultiOperand": ("ars", [(0, (), (0,)), (1, (), (1,))]),
    "CollectivePermuteInplaceNonTuple": ("cp", [(1, (), ())]),
    "CollectivePermuteInplaceTuple": ("cp", [(1, (), ()), (1, (0,), (0,)), (1, (1,), (1,))]),
    "CollectivePermuteStartInplaceNonTuple": ("cps", [(1, (), (1,))]),
    "CollectivePermuteStartInplaceTuple": (
        "cps",
        [(1, (), (1,)), (1, (0,), (1, 0)), (1, (1,), (1, 1))],
    ),
    "CollectivePermuteStartNotInplace": ("cps", []),
    "CombinedCollectivePermute": ("collective-permute-start.0", []),
    "AsyncStartDefaultAliasing": ("start", []),
    "AsyncStartForwardedOperand": ("start", [(0, (), (1,))]),
    "AsyncStartWithOutputOperandAliasing": (
        "all-to-all-start.1",
        [(0, (1, i), (0, 0, 1, i)) for i in range(3)],
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_pairs(name: str) -> None:
    module = conformance(f"alias_info_test__GetInPlaceInputOutputPairsTest.{name}")
    instruction, expected = IN_PLACE[name]
    found = pairs_of(module, instruction)
    assert list(found) == [InPlacePair(*pair) for pair in expected]


def pairs_of(module: HloModule, name: str) -> tuple[InPlacePair, ...]:
    instruction = module.entry.instruction(name)
    if instruction.opcode.startswith("async-"):
        return async_pairs(CallGraph(module), module.entry, instruction)
    return in_place_pairs(module, module.entry, instruction)


def test_late_bound_operands_alias_where_they_are_bound() -> None:
    module = conformance("alias_info_test__GetInPlaceInputOutputPairsTest.AsyncStart_LateBinding")
    assert pairs_of(module, "start") == ()
    assert pairs_of(module, "update") == (InPlacePair(1, (), (1,)),)


def test_loop_carried_update_is_one_buffer() -> None:
    aliases = analyse_aliases(
        parse_module(
            """HloModule m, is_scheduled=true, input_output_alias={ {1}: (0, {}, may-alias) }
            body {
              p = (s32[], f32[8]) parameter(0)
              i = s32[] get-tuple-element(p), index=0
              x = f32[8] get-tuple-element(p), index=1
              part = f32[2] slice(x), slice={[0:2]}
              written = f32[8] dynamic-update-slice(x, part, i)
              one = s32[] constant(1)
              next = s32[] add(i, one)
              ROOT out = (s32[], f32[8]) tuple(next, written)
            }
            condition {
              q = (s32[], f32[8]) parameter(0)
              j = s32[] get-tuple-element(q), index=0
              limit = s32[] constant(4)
              ROOT more = pred[] compare(j, limit), direction=LT
            }
            ENTRY main {
              state = f32[8] parameter(0)
              zero = s32[] constant(0)
              start = s32[] copy(zero)
              init = (s32[], f32[8]) tuple(start, state)
              ROOT loop = (s32[], f32[8]) while(init), condition=condition, body=body
            }"""
        )
    )
    assert alias_sets(aliases) == sets(
        "init{} p{} q{} out{} loop{}",
        "start{} p{0} q{0} next{} loop{0}",
        "state{} p{1} q{1} written{} loop{1}",
    )
    assert aliases.buffer_at("body", "x", ()) == aliases.buffer_at("main", "state", ())


def test_branches_share_the_result_but_not_their_operands() -> None:
    module = conformance("hlo_dataflow_analysis_test__HloDataflowAnalysisTest.NestedConditionals")
    aliases = analyse_aliases(module)
    results = {
        aliases.buffer_at(module.entry.name, i.name, ())
        for i in module.entry.instructions
        if i.opcode == "conditional"
    }
    parameters = {aliases.buffer_at(module.entry.name, p.name, ()) for p in module.entry.parameters}
    assert len(results) == 1
    assert not results & parameters
    assert any(v.is_phi for v in aliases.values)


def test_copy_start_defines_destination_and_context() -> None:
    name = "hlo_dataflow_analysis_test__HloDataflowAnalysisTest.CopyStartAndCopyDone"
    module = conformance(name)
    start = next(i.name for i in module.entry.instructions if i.opcode == "copy-start")
    done = next(i.name for i in module.entry.instructions if i.opcode == "copy-done")
    aliases = analyse_aliases(module)
    for index in ((), (0,), (2,)):
        text = "{" + ",".join(map(str, index)) + "}"
        assert at(aliases, start, index) == {start + text}
    operand = module.entry.instruction(start).operands[0]
    assert at(aliases, start, (1,)) == at(aliases, operand)
    assert at(aliases, done) == {f"{start}{{0}}"}


def test_async_operations_pass_on_what_they_wrap() -> None:
    module = conformance("hlo_live_range_test__HloLiveRangeTest.AsyncCall")
    aliases = analyse_aliases(module)
    assert at(aliases, "async-done") == {"result.1{}"}
    assert at(aliases, "async-start", (0, 1)) == {"negate_1{}"}
    inner = aliases.values_at("called_computation", "param_0", ())
    assert {str(aliases.values[v]) for v in inner} == {"negate_0{}"}


def test_uses_leave_out_what_passes_through() -> None:
    aliases = analyse_aliases(
        parse_module(
            """HloModule m
            ENTRY main {
              a = f32[4] parameter(0)
              b = f32[4] parameter(1)
              pair = (f32[4], f32[4]) tuple(a, b)
              first = f32[4] get-tuple-element(pair), index=0
              view = f32[4] bitcast(first)
              sum = f32[4] add(view, view)
              ROOT out = (f32[4], f32[4]) tuple(sum, b)
            }"""
        )
    )
    uses = {
        str(value): [(use.instruction, use.operand_number) for use in aliases.uses[value.id]]
        for value in aliases.values
    }
    assert uses["a{}"] == [("view", 0), ("sum", 0), ("sum", 1)]
    assert uses["b{}"] == [("out", 1)]
    assert uses["pair{}"] == [("first", 0)]
    assert uses["sum{}"] == [("out", 0)]


def test_a_value_with_two_callers_has_no_single_buffer() -> None:
    aliases = analyse_aliases(
        parse_module(
            """HloModule m
            twice { x = f32[] parameter(0)  ROOT y = f32[] negate(x) }
            ENTRY main {
              a = f32[] parameter(0)
              b = f32[] parameter(1)
              c = f32[] call(a), to_apply=twice
              d = f32[] call(b), to_apply=twice
              ROOT e = f32[] add(c, d)
            }"""
        )
    )
    assert len(aliases.values_at("twice", "x", ())) == 2
    with pytest.raises(InputError, match="several callers"):
        aliases.buffer_at("twice", "x", ())


def test_positions_that_do_not_exist_are_named() -> None:
    aliases = analyse_aliases(parse_module("HloModule m\nENTRY e { ROOT a = f32[] constant(1) }"))
    with pytest.raises(InputError, match="no instruction b in computation e"):
        aliases.values_at("e", "b", ())
    with pytest.raises(InputError, match=r"no index \(0,\)"):
        aliases.values_at("e", "a", (0,))


def conformance_files() -> list[Path]:
    return sorted(shared_data_path("hlo_conformance").glob("*.hlo"))


def test_every_module_that_parses_is_analysed_or_refused_with_a_reason() -> None:
    analysed = scheduled = 0
    refused: list[str] = []
    for path in conformance_files():
        try:
            modules = parse_modules(path.read_text(), path.name)
        except InputError:
            continue
        for module in modules:
            try:
                aliases = analyse_aliases(module)
                analysed += 1
                if module.is_scheduled:
                    live_ranges(module, aliases, flatten_schedule(module))
                    scheduled += 1
            except InputError:
                refused.append(path.name)
    assert [name for name in refused if "Incomplete_Chain" not in name] == []
    assert analysed > 500
    assert scheduled > 200


# A slow witness: which plain definitions reach a position, by repeating the rules until nothing
# changes, without phis; and buffers from those sets alone.


def reaching(module: HloModule) -> dict[Position, frozenset[Position]]:
    """Per position the definitions that reach it."""
    graph = CallGraph(module)
    found: dict[Position, frozenset[Position]] = {}
    changed = True
    while changed:
        changed = False
        for computation in graph.computations:
            for instruction in computation.instructions:
                for index, _ in instruction.shape.subshapes():
                    place = Position(computation.name, instruction.name, index)
                    sources = list(witness_sources(graph, place))
                    new = frozenset[Position]().union(*(found.get(s, ()) for s in sources))
                    if not sources:
                        new = frozenset({place})
                    if new != found.get(place, frozenset()):
                        found[place] = new
                        changed = True
    return found


def witness_sources(graph: CallGraph, place: Position) -> Iterator[Position]:
    """Where the random programs' values come from; none where they are defined."""
    module = graph.module
    computation, name, index = place
    instruction = module.computations[computation].instruction(name)
    operands = instruction.operands
    match instruction.opcode:
        case "bitcast":
            yield Position(computation, operands[0], index)
        case "get-tuple-element":
            number = int(instruction.attributes["index"])
            yield Position(computation, operands[0], (number, *index))
        case "tuple" if index:
            yield Position(computation, operands[index[0]], index[1:])
        case "while":
            body = module.computations[instruction.attributes["body"]]
            yield Position(computation, operands[0], index)
            yield Position(body.name, body.root.name, index)
        case "call" | "conditional":
            for called in instruction.called_computations:
                yield Position(called, module.computations[called].root.name, index)
        case "parameter":
            for site in graph.callers(computation):
                caller = site.instruction
                if caller.opcode == "while":
                    yield Position(site.caller.name, caller.name, index)
                else:
                    number = site.role.branch + 1 if caller.opcode == "conditional" else 0
                    yield Position(site.caller.name, caller.operands[number], index)


def witness_buffers(module: HloModule) -> set[frozenset[Position]]:
    """Definitions that must share memory, by merging sets until they are disjoint."""
    reach = reaching(module)
    groups = [{p} for p, found in reach.items() if found == {p}]
    for merged in witness_merges(module, reach):
        touched = [group for group in groups if group & merged]
        groups = [group for group in groups if not group & merged]
        groups.append(set().union(*touched))
    return {frozenset(group) for group in groups}


def witness_merges(
    module: HloModule, reach: dict[Position, frozenset[Position]]
) -> Iterator[frozenset[Position]]:
    for place, found in reach.items():
        instruction = module.computations[place.computation].instruction(place.instruction)
        if instruction.opcode in ("while", "conditional"):
            yield found
        if instruction.opcode == "dynamic-update-slice":
            yield found | reach[Position(place.computation, instruction.operands[0], ())]
    entry = module.entry
    for alias in module.input_output_alias:
        output = Position(entry.name, entry.root.name, alias.output_index)
        parameter = Position(entry.name, entry.parameters[0].name, alias.parameter_index)
        yield reach[output] | reach[parameter]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_buffers_are_those_of_the_slow_witness(seed: int) -> None:
    module = parse_module(random_module(random.Random(seed)))
    aliases = analyse_aliases(module)
    found = {
        frozenset(aliases.values[v].position for v in buffer.values if not aliases.values[v].is_phi)
        for buffer in aliases.buffers
    }
    assert found == witness_buffers(module)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_values_are_single_and_definitions_are_where_they_are_defined(seed: int) -> None:
    module = parse_module(random_module(random.Random(seed)))
    aliases = analyse_aliases(module)
    reach = reaching(module)
    for place, definitions in reach.items():
        (value,) = (aliases.values[v] for v in aliases.values_at(*place))
        if value.is_phi:
            assert len(definitions) > 1, f"a superfluous phi at {place}"
        else:
            assert definitions == {value.position}
        assert place in aliases.dataflow.positions[value.id] or place.instruction == (
            value.instruction
        )


def slow_simplify(inputs: dict[int, set[int]]) -> dict[int, int]:
    """Replaces one superfluous phi at a time, looking at all of them each time."""
    stands_for = {phi: phi for phi in inputs}

    def now(node: int) -> int:
        while stands_for.get(node, node) != node:
            node = stands_for[node]
        return node

    def replacement(phi: int) -> int | None:
        others = {now(node) for node in inputs[phi]} - {phi}
        if len(others) == 1:
            return others.pop()
        seen, pending = set(), [phi]
        while pending:
            node = now(pending.pop())
            if node not in seen:
                seen.add(node)
                pending.extend(inputs.get(node, ()))
        definitions = {node for node in seen if node not in inputs}
        return definitions.pop() if len(definitions) == 1 else None

    while True:
        for phi in inputs:
            if now(phi) == phi and (found := replacement(phi)) is not None:
                stands_for[phi] = found
                break
        else:
            return {phi: now(phi) for phi in inputs}


@st.composite
def phi_graphs(draw: st.DrawFn) -> dict[int, set[int]]:
    """Phis 0.. with inputs among them and three definitions; each can reach a definition."""
    count = draw(st.integers(1, 7))
    node = st.integers(0, count - 1) | st.integers(100, 102)
    graph = {}
    for phi in range(count):
        earlier = st.integers(100, 102) if phi == 0 else st.integers(0, phi - 1)
        graph[phi] = {draw(earlier), *draw(st.sets(node, max_size=3))}
    return graph


@settings(max_examples=300, deadline=None)
@given(phi_graphs())
def test_phis_are_simplified_as_one_at_a_time(graph: dict[int, set[int]]) -> None:
    assert simplify_phis({phi: tuple(nodes) for phi, nodes in graph.items()}) == (
        slow_simplify(graph)
    )
