"""What the parser finds, on modules small enough to check by eye."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from hlo_graphs.errors import HloSyntaxError, InputError
from hlo_graphs.hlo import HloInstruction, HloModule, InputOutputAlias
from hlo_graphs.parser import parse_module, parse_modules, read_module, require_scheduled
from tests.hlo_graphs.sample_module import SAMPLE


def _entry(*lines: str, before: str = "") -> HloModule:
    body = "\n  ".join(lines)
    return parse_module(f"HloModule m\n{before}\nENTRY e {{\n  {body}\n}}")


def _outline(module: HloModule) -> list[str]:
    return [f"{i.name} {i.opcode} {','.join(i.operands)}" for i in module.entry.instructions]


@pytest.fixture(scope="module")
def sample() -> HloModule:
    return parse_module(SAMPLE, "sample.hlo")


def test_module_header(sample: HloModule) -> None:
    assert sample.name == "jit_f"
    assert sample.is_scheduled
    assert require_scheduled(sample) is sample
    assert sample.input_output_alias == (
        InputOutputAlias((0,), 1, (), "may-alias"),
        InputOutputAlias((1, 0), 2, (0,), "must-alias"),
    )
    assert sample.attributes["frontend_attributes"] == '{k="v"}'
    assert sample.path == "sample.hlo"


def test_computations_in_text_order(sample: HloModule) -> None:
    assert list(sample.computations) == [
        "region_0.1",
        "fused_computation.4",
        "body.1",
        "cond.1",
        "async_computation.1",
        "async_wrapped",
        "main.1",
    ]
    assert sample.entry is sample.computations["main.1"]
    assert [c.name for c in sample.computations.values() if c.is_entry] == ["main.1"]
    assert sample.computations["async_computation.1"].execution_thread == "parallel"
    assert sample.computations["body.1"].execution_thread is None


def test_instructions(sample: HloModule) -> None:
    fusion = sample.entry.instruction("fusion.4")
    assert fusion.opcode == "fusion"
    assert fusion.operands == ("copy-done.1", "y.1")
    assert fusion.attributes == {
        "kind": "kLoop",
        "calls": "%fused_computation.4",
        "backend_config": '"opaque, text={"',
    }
    assert fusion.called_computations == ("fused_computation.4",)
    assert str(fusion.shape) == "(f32[8,128]{1,0:T(8,128)}, f32[]{:T(128)})"
    assert SAMPLE.splitlines()[fusion.line - 1].lstrip().startswith("%fusion.4 =")
    assert sample.entry.root.name == "tuple.5"
    assert [i.name for i in sample.entry.instructions if i.is_root] == ["tuple.5"]
    custom_call = sample.entry.instruction("concat.1")
    assert custom_call.attributes["backend_config"].endswith('"note":"a } \\" brace"}')
    while_loop = sample.entry.instruction("while.1")
    assert while_loop.called_computations == ("cond.1", "body.1")


def test_parameters_and_literals(sample: HloModule) -> None:
    entry = sample.entry
    assert [p.name for p in entry.parameters] == ["x.1", "y.1", "z.1"]
    assert entry.instruction("y.1").parameter_number == 1
    assert entry.instruction("while.1").parameter_number is None
    fused = sample.computations["fused_computation.4"]
    assert fused.instruction("constant.3").literal == "-1.5e-05"
    assert fused.instruction("constant.4").literal == "{ { 1, 2 }, { 3, 4 } }"
    assert fused.instruction("reduce.1").literal is None


def test_every_line_number(sample: HloModule) -> None:
    lines = SAMPLE.splitlines()
    for computation in sample.computations.values():
        for instruction in computation.instructions:
            if computation.name != "async_wrapped":
                assert f"%{instruction.name} = " in lines[instruction.line - 1]


def test_async_sugar_becomes_a_computation(sample: HloModule) -> None:
    start = sample.entry.instruction("slice-start.2")
    assert (start.opcode, start.called_computations) == ("async-start", ("async_wrapped",))
    assert start.attributes == {"calls": "%async_wrapped", "metadata": '{op_name="s"}'}
    assert sample.entry.instruction("slice-done.2").opcode == "async-done"
    wrapped = sample.computations["async_wrapped"]
    assert [(i.name, i.opcode) for i in wrapped.instructions] == [
        ("async_param", "parameter"),
        ("slice", "slice"),
    ]
    assert wrapped.root.attributes["slice"] == "{[4:8], [0:128]}"
    assert str(wrapped.root.shape) == "f32[4,128]{1,0:T(8,128)S(1)}"


def test_late_binding_async() -> None:
    module = _entry(
        "a = f32[4,4] parameter(0)",
        "b = f32[4,4] parameter(1)",
        "s = ((), (), u32[]) dot-start()",
        "u = ((f32[4,4]), (), u32[]) dot-update(s, a)",
        "ROOT d = f32[4,4] dot-done(u, b)",
    )
    wrapped = module.computations["async_wrapped"]
    assert [i.opcode for i in wrapped.instructions] == ["parameter", "parameter", "dot"]
    assert wrapped.root.operands == ("async_param", "async_param.1")
    assert str(wrapped.root.shape) == "f32[4,4]{1,0}"
    assert [i.opcode for i in module.entry.instructions[2:]] == [
        "async-start",
        "async-update",
        "async-done",
    ]


def test_computation_in_place() -> None:
    module = _entry(
        "a = f32[] parameter(0)",
        "ROOT c = f32[] call(a), to_apply={",
        "  p = f32[] parameter(0)",
        "  ROOT n = f32[] negate(p)",
        "}",
    )
    assert module.entry.root.called_computations == ("_",)
    assert module.computations["_"].root.opcode == "negate"


def test_list_of_computations_in_place() -> None:
    body = "{ p = f32[] parameter(0)\n ROOT n = f32[] negate(p) }"
    module = _entry(
        "a = f32[] parameter(0)",
        "i = s32[] parameter(1)",
        f"ROOT c = conditional(i, a, a), branch_computations={{ {body}, {body} }}",
    )
    assert module.entry.root.called_computations == ("_", "_.1")
    assert str(module.entry.root.shape) == "f32[]"
    assert list(module.computations) == ["_", "_.1", "e"]


def test_made_up_names_leave_those_of_the_text_alone() -> None:
    body = "{ a = f32[] parameter(0)\n ROOT c = f32[] negate(a) }"
    start = "s = ((f32[4]), f32[2], u32[]) slice-start(p), slice={[0:2]}"
    nested = f"{{ p = f32[4] parameter(0)\n {start}\n ROOT d = f32[2] slice-done(s) }}"
    module = parse_module(
        f"""HloModule m
_.1 {{ a = f32[] parameter(0)
  ROOT c = f32[] call(a), to_apply={body} }}
_ {body}
async_wrapped {{ p = f32[4] parameter(0)
  {start}
  e = f32[2] call(p), to_apply={nested}
  ROOT d = f32[2] slice-done(s) }}
ENTRY e {{ p = f32[4] parameter(0)
  ROOT x = f32[2] call(p), to_apply=async_wrapped }}
"""
    )
    made = {name: c.root.opcode for name, c in module.computations.items()}
    assert made == {
        "_.2": "negate",
        "_.1": "call",
        "_": "negate",
        "async_wrapped.2": "slice",
        "_.3": "async-done",
        "async_wrapped.1": "slice",
        "async_wrapped": "async-done",
        "e": "call",
    }
    assert module.computations["_.1"].root.called_computations == ("_.2",)


def test_a_made_up_name_cannot_be_called() -> None:
    body = "{ a = f32[] parameter(0)\n ROOT c = f32[] negate(a) }"
    with pytest.raises(HloSyntaxError, match="found '_', expected the name of a computation"):
        _entry(
            "a = f32[] parameter(0)",
            f"b = f32[] call(a), to_apply={body}",
            "ROOT c = f32[] call(b), to_apply=_",
        )


def test_operands_in_place_and_element_indices() -> None:
    module = _entry(
        "t = (f32[4], (s32[], f32[2])) parameter(0)",
        "ROOT r = f32[4] add(t#0, multiply(f32[4] t#0, negate(f32[4] t#0)))",
        "u = f32[2] negate(%t#1#1)",
    )
    assert _outline(module) == [
        "t parameter ",
        "t#0 get-tuple-element t",
        "negate.anon negate t#0",
        "multiply.anon multiply t#0,negate.anon",
        "r add t#0,multiply.anon",
        "t#1 get-tuple-element t",
        "t#1#1 get-tuple-element t#1",
        "u negate t#1#1",
    ]
    assert module.entry.root.name == "r"


@pytest.mark.parametrize(
    ("right_hand_side", "shape"),
    [
        ("add(a, a)", "f32[2,3]{0,1}"),
        ("compare(a, a), direction=LT", "pred[2,3]{0,1}"),
        ("tuple(a, b)", "(f32[2,3]{0,1}, s32[])"),
        ("get-tuple-element(t), index=1", "s32[]"),
        ("abs(a)", "f32[2,3]{0,1}"),
        ("abs(c)", "f64[2]{0}"),
        ("select(p, a, a)", "f32[2,3]{0,1}"),
        ("select(p, b, b)", "s32[]"),
        ("select(q, a, m)", "f32[2,3]{1,0}"),
        ("add(a, m)", "f32[2,3]{0,1}"),
        ("concatenate(a, d), dimensions={0}", "f32[6,3]{1,0}"),
        ("after-all()", "token[]"),
        ("call(b), to_apply=f", "(s32[])"),
    ],
)
def test_omitted_result_shape(right_hand_side: str, shape: str) -> None:
    module = _entry(
        "a = f32[2,3]{0,1} parameter(0)",
        "b = s32[] parameter(1)",
        "p = pred[] parameter(2)",
        "t = tuple(a, b)",
        "c = c128[2] parameter(3)",
        "q = pred[2,3] parameter(4)",
        "m = f32[2,3] parameter(5)",
        "d = f32[4,3] parameter(6)",
        f"ROOT r = {right_hand_side}",
        before="f { x = s32[] parameter(0)\n ROOT y = tuple(x) }",
    )
    assert str(module.entry.root.shape) == shape


def test_root_is_the_last_instruction_unless_marked() -> None:
    assert _entry("a = f32[] parameter(0)", "b = f32[] negate(a)").entry.root.name == "b"
    assert _entry("ROOT a = f32[] parameter(0)", "b = f32[] negate(a)").entry.root.name == "a"


def test_bare_computations_without_header() -> None:
    module = parse_module("f { a = f32[] parameter(0) }  g { ROOT b = s32[] parameter(0) }")
    assert module.name == ""
    assert module.entry.name == "g"
    assert not module.is_scheduled
    assert [c.is_entry for c in module.computations.values()] == [False, True]


def test_comments_anywhere() -> None:
    module = parse_module(
        """/* first */ HloModule m: // header
        ENTRY /*x*/ e /* y { */ {
          // a = f32[] parameter(0)
          a = /* } */ f32[2]{0} constant({1, /*bar*/ 2}) /* , index=3 */
        } // last"""
    )
    assert _outline(module) == ["a constant "]


def test_several_modules() -> None:
    one = "HloModule {}\nENTRY e {{ a = f32[] parameter(0) }}\n"
    separated = "// -----\n".join(["", one.format("a"), one.format("b"), "\n"])
    for text in (separated, one.format("a") + one.format("b")):
        assert [module.name for module in parse_modules(text)] == ["a", "b"]
    lines = [m.entry.root.line for m in parse_modules(separated)]
    assert lines == [3, 6]
    with pytest.raises(InputError, match=r"two\.hlo: 2 HLO modules in one text"):
        parse_module(separated, "two.hlo")


def test_same_text_without_fast_lines() -> None:
    assert parse_modules(SAMPLE, use_fast_lines=False) == parse_modules(SAMPLE)


@pytest.mark.parametrize(
    ("shape", "literal"),
    [
        ("f32[0,128]{1,0}", "{}"),
        ("f32[0]{0}", "{}"),
        ("f32[1,0,64]{2,1,0}", "{ {} }"),
        ("f32[2,0]{1,0}", "{ {}, {} }"),
    ],
)
def test_constants_without_elements(shape: str, literal: str) -> None:
    assert _entry(f"c = {shape} constant({literal})").entry.root.literal == literal
    with pytest.raises(HloSyntaxError, match="braces and the number"):
        _entry(f"c = {shape} constant({{ {literal} }})")


def test_attribute_forms_are_kept_as_text() -> None:
    values = {
        "replica_groups": "mesh['axis_0'=2,'axis_1'=2] {'axis_0'}",
        "sharding": "{devices=[4,2]<=[8]T(1,0) last_tile_dim_replicate}",
        "dim_labels": "b01f_01io->b01f",
        "window": "{size=3x3 pad=0_1x-1_2 rhs_reversal=1x1}",
        "literal": 'f32[2] {1, "two"}',
        "padding": "0_1_2x3_4",
        "from_the_future": "<=(a,b)[c]{d}",
    }
    attributes = ", ".join(f"{name}={value}" for name, value in values.items())
    module = _entry("a = f32[] parameter(0), " + attributes)
    assert module.entry.root.attributes == values


def test_reads_plain_gzipped_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "a.hlo"
    plain.write_text(SAMPLE)
    packed = tmp_path / "a.hlo.gz"
    packed.write_bytes(gzip.compress(SAMPLE.encode()))
    expected = parse_module(SAMPLE)
    assert read_module(plain) == read_module(str(packed)) == expected
    stream = io.TextIOWrapper(io.BytesIO(packed.read_bytes()))
    monkeypatch.setattr("sys.stdin", stream)
    assert read_module("-") == expected


def test_unscheduled_module_says_how_to_schedule() -> None:
    module = parse_module("HloModule m, is_scheduled=false\nENTRY e { a = f32[] parameter(0) }")
    assert not module.is_scheduled
    with pytest.raises(InputError, match=r"'m' is not scheduled.*xla_dump_to.*after_optimi"):
        require_scheduled(module)


def test_instructions_can_be_kept_in_sets(sample: HloModule) -> None:
    instructions: set[HloInstruction] = set(sample.entry.instructions)
    assert len(instructions) == len(sample.entry.instructions)


def test_comments_among_computations() -> None:
    branches = "\n".join(
        f"{name} {{\n  a = f32[4] parameter(0)\n  ROOT n = f32[4] negate(a)\n}}" for name in "fg"
    )
    module = _entry(
        "k = s32[] parameter(0)",
        "p = f32[4] parameter(1)",
        "ROOT c = f32[4] conditional(k, p, p), branch_computations={%f, /*index=1*/%g}",
        before=branches,
    )
    assert module.entry.root.called_computations == ("f", "g")
