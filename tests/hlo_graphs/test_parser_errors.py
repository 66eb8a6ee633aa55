"""Every error has a place and says what was found and expected; nothing hangs or crashes."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest

from hlo_graphs.errors import HloSyntaxError, InputError
from hlo_graphs.parser import parse_module, parse_modules, read_module

_P = "  p = f32[4] parameter(0)\n"


_BODY = f"ENTRY e {{\n{_P}}}"


def _module(body: str) -> str:
    return f"HloModule m\nENTRY e {{\n{body}}}\n"


_CASES = [
    ("", 1, 1, "", "no HLO module"),
    ("HloModule", 1, 10, "end of text", "the module's name"),
    ("HloModule m", 1, 12, "end of text", "a computation"),
    ("HloModule m, x", 1, 14, "'x'", "name=value"),
    ("HloModule m, a={", 1, 16, "'{'", "'}' to close it"),
    ("HloModule m, a=1, a=2", 1, 19, "'a'", "once"),
    ("HloModule m, input_output_alias={ {0, a}: (0, {}) }\ne {}", 1, 39, "'a'", "shape index"),
    ("HloModule m, input_output_alias={ {0}: (0, {}, no) }", 1, 48, "'no'", "may-alias"),
    ("HloModule m, input_output_alias={ {}: (1, {}) }\n" + _BODY, 1, 33, "alias", "of 'e'"),
    ("HloModule m, input_output_alias={ {0}: (0, {}) }\n" + _BODY, 1, 33, "alias", "of 'e'"),
    ("HloModule m, buffer_donor={ (0, {a}) }", 1, 27, "'{ (0, {a}) }'", "donors"),
    ("HloModule m\nENTRY e {\n", 3, 1, "end of text", "an instruction or '}'"),
    ("HloModule m\nENTRY e {\n}", 3, 1, "'}'", "an instruction in 'e'"),
    ("HloModule m\ne (a: f32[] -> f32[] {", 2, 13, "'-'", "',' or ')'"),
    ("HloModule m\ne { a = f32[] parameter(0) }\ne {", 3, 1, "'e'", "name not used before"),
    (_module(_P) + "ENTRY f {", 5, 1, "'ENTRY'", "one ENTRY computation ('e' is one)"),
    ("HloModule m\ne () -> s32[] { a = f32[] parameter(0) }", 2, 1, "result shape", "f32[]"),
    (_module("  p=f32[] parameter(0)\n"), 3, 4, "'='", "a blank between the name 'p'"),
    (_module("  p f32[] parameter(0)\n"), 3, 5, "'f32'", "'='"),
    (_module(_P + _P), 4, 3, "'p'", "line 3 defines it"),
    (_module(_P + "  q = f32[4] negate(z)\n"), 4, 21, "'z'", "instruction defined above"),
    (_module(_P + "  q = f32[4] negate(p\n"), 5, 1, "'}'", "',' or ')' between operands"),
    (_module(_P + "  q = f32[4] negate(f32[5] p)\n"), 4, 21, "f32[5]{0}", "f32[4]{0}"),
    (_module(_P + "  q = f32[4] negate(p, p)\n"), 4, 14, "'negate'", "1 operands of negate, not 2"),
    (
        _module(
            _P + '  q = f32[4] custom-call(p), custom_call_target="f", '
            "output_to_operand_aliasing={{}: (5, {})}\n"
        ),
        4,
        14,
        "'custom-call'",
        "an operand 5 to alias with",
    ),
    *(
        (
            _module(
                _P + '  q = f32[4] custom-call(p), custom_call_target="f", '
                f"output_to_operand_aliasing={text}\n"
            ),
            4,
            81,
            text[:60],
            "aliases such as {{0}: (1, {})}",
        )
        for text in ("{foo}", "{{}: (0, {a})}", f"{{{{}}: ({'1' * 5000}, {{}})}}")
    ),
    (_module(_P + "  q = f32[4] convolution(p, p)\n"), 4, 14, "'convolution'", "dim_labels="),
    (_module(_P + "  q = f32[4] ragged-all-to-all(p)\n"), 4, 14, "'ragged", "at least 2 operands"),
    (_module(_P + "  q = f32[4] negate(p#0)\n"), 4, 22, "'#'", "an element of 'p'"),
    (_module(_P + "  q = f32[4] negate(p#x)\n"), 4, 23, "'x'", "number of a tuple's element"),
    (_module(_P + "  q = (f32[4]) tuple(p), =\n"), 4, 26, "'='", "name=value"),
    (
        _module(_P + "  q = f32[4] negatee(p)\n"),
        4,
        14,
        "opcode 'negatee'",
        "did you mean 'negate'?",
    ),
    (_module(_P + "  q = f32[4] zzzzzz(p)\n"), 4, 14, "unknown opcode 'zzzzzz'", "an opcode"),
    (_module(_P + "  q = f33[4] negate(p)\n"), 4, 7, "'f33'", "an element type"),
    (_module(_P + "  q = gather(p, p)\n"), 4, 7, "'gather'", "it cannot be inferred"),
    (_module(_P + "  q = constant(1)\n"), 4, 16, "'1'", "a shape before"),
    (_module("  p = f32[4] parameter(-1)\n"), 3, 24, "'-1'", "at least 0"),
    (_module("  p = f32[4] parameter(1)\n"), 2, 9, "'{'", "parameters numbered 0 to 0"),
    (
        _module("  p = f32[9223372036854775808] parameter(0)\n"),
        3,
        11,
        "'9223372036854775808'",
        "64",
    ),
    (_module("  p = f32[2]{1} parameter(0)\n"), 3, 14, "{1}", "each of the 1 dimensions once"),
    (_module("  c = f32[2] constant({1,2,3})\n"), 3, 23, "'{1,2,3}'", "braces and the number"),
    (_module("  c = f32[2] constant({1,x})\n"), 3, 26, "'x'", "a literal of shape f32[2]{0}"),
    (_module("  c = s4[] constant(8)\n"), 3, 21, "'8'", "integers from -8 to 7"),
    (_module("  c = u32[] constant(-1)\n"), 3, 22, "'-1'", "integers from 0 to 4294967295"),
    (_module("  c = s32[] constant(1.5)\n"), 3, 22, "'1.5'", "integers"),
    (_module("  c = f16[] constant(1e9)\n"), 3, 22, "'1e9'", "that a f16 can hold"),
    (_module("  c = token[] constant(1)\n"), 3, 24, "'1'", "an array shape"),
    (_module(_P + "  q = (f32[4]) tuple(p), index=one\n"), 4, 32, "'one'", "an integer as index"),
    (_module(_P + '  q = (f32[4]) tuple(p), a="x\n'), 4, 28, "'\"'", "a string that ends"),
    (_module(_P + "  q = (f32[4]) tuple(p), a=1, a=2\n"), 4, 31, "'a'", "once"),
    (_module(_P + "  q = (f32[4]) tuple(p), a=\n"), 5, 1, "'}'", "the attribute's value"),
    (_module(_P + "  q = f32[4] call(p), to_apply=f\n"), 4, 32, "'f'", "computation defined above"),
    (_module(_P + "  q = f32[4] call(p), to_apply=e\n"), 4, 32, "'e'", "calls cannot be cyclic"),
    (_module(_P + "  q = f32[4] call(p)\n"), 4, 14, "'call'", "the attribute to_apply="),
    (
        _module(_P + "  q = f32[4] get-tuple-element(p), index=0\n"),
        4,
        14,
        "'get-tuple-element'",
        "f32[4]",
    ),
    (
        _module(_P + "  q = f32[4] async-done(p)\n"),
        4,
        14,
        "'async-done'",
        "async-start or async-update",
    ),
    (_module(_P + "  q = f32[4] copy-done(p), x=[\n"), 4, 30, "'['", "']' to close it"),
    (
        _module("  ROOT p = f32[4] parameter(0)\n  ROOT q = f32[4] copy(p)\n"),
        4,
        3,
        "'ROOT'",
        "one ROOT",
    ),
    ("/* unterminated", 1, 1, "'/'", "a computation"),
    ("\x00\x01\x02", 1, 1, r"'\x00'", "a computation"),
]


@pytest.mark.parametrize(("text", "line", "column", "found", "expected"), _CASES)
def test_error_names_place_found_and_expected(
    text: str, line: int, column: int, found: str, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse_modules(text, "a.hlo")
    if not text:
        assert expected in str(caught.value)
        return
    error = caught.value
    assert isinstance(error, HloSyntaxError)
    assert (error.location.path, error.location.line, error.location.column) == (
        "a.hlo",
        line,
        column,
    )
    assert found in error.found
    assert expected in error.expected
    assert str(error).startswith(f"a.hlo:{line}:{column}: found ")
    assert error.exit_code == 3


@pytest.mark.parametrize(
    "right_hand_side",
    [
        "add(h, a)",
        "add(a, s)",
        "add(a, d)",
        "compare(a, d), direction=LT",
        "complex(a, d)",
        "select(p, a, d)",
        "select(q, a, a)",
        "concatenate(h, a), dimensions={0}",
        "concatenate(a, w), dimensions={0}",
        "concatenate(d, d), dimensions={1}",
        "pad(h, s), padding=1_1x0_0",
        "pad(d, s), padding=0_0x1_1",
        "dot(d, a), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
    ],
)
def test_operands_that_differ_leave_the_shape_to_the_text(right_hand_side: str) -> None:
    shapes = ("f32[2,3] a", "bf16[2,3] h", "f32[] s", "f32[<=2,3] d", "f32[2,4] w", "pred[] p")
    lines = [
        f"  {name} = {shape} parameter({number})\n"
        for number, (shape, name) in enumerate(each.split() for each in (*shapes, "pred[3] q"))
    ]
    with pytest.raises(HloSyntaxError, match=r":10:7: .*it cannot be inferred here"):
        parse_module(_module("".join(lines) + f"  r = {right_hand_side}\n"))


def test_callees_take_what_they_are_given() -> None:
    callee = "HloModule m\nf { a = f32[4] parameter(0) }\nENTRY e {\n" + _P
    with pytest.raises(HloSyntaxError, match=r":5:.*2 parameters of 'f', which has 1"):
        parse_module(callee + "  q = f32[4] call(p, p), to_apply=f\n}")
    with pytest.raises(HloSyntaxError, match=r":5:.*one operand more than the conditional's 1"):
        parse_module(callee + "  q = f32[4] conditional(p, p, p), branch_computations={f}\n}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("q = (f32[4], f32[4]) tuple(p)", "shape to be (f32[4]{0})"),
        ("q = f32[5] fusion(p), kind=kLoop, calls=f", "the shape f32[5]{0} from what it calls"),
        ("q = f32[5] fusion(r), kind=kLoop, calls=f", "f32[4]{0} for 'a' of 'f', not f32[5]{0}"),
        ("q = (f32[4]) call(p), to_apply=f", "the shape (f32[4]{0}) from what it calls"),
        ("q = f32[5] while(p), condition=f, body=f", "the shape f32[4]{0} from what it calls"),
        ("q = f32[5] conditional(s, p), branch_computations={f}", "the shape f32[5]{0} from"),
        ("q = f32[5] get-tuple-element(t), index=0", "shape to be f32[4]{0}, not f32[5]{0}"),
    ],
)
def test_shapes_fit_where_values_pass(line: str, expected: str) -> None:
    before = "HloModule m\nf { a = f32[4] parameter(0) }\nENTRY e {\n" + _P
    before += "  s = s32[] parameter(1)\n  r = f32[5] parameter(2)\n  t = (f32[4]) parameter(3)\n"
    with pytest.raises(HloSyntaxError) as caught:
        parse_module(f"{before}  {line}\n}}")
    assert caught.value.location.line == 8
    assert expected in caught.value.expected


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    good = gzip.compress(_module(_P).encode() * 50)
    cases = {
        "cut.hlo.gz": (good[: len(good) // 2], "damaged gzip"),
        "flipped.hlo.gz": (good[:40] + bytes([good[40] ^ 255]) + good[41:], "damaged gzip"),
        "binary.hlo": (bytes(range(256)), "byte 128 is not UTF-8"),
        "empty.hlo": (b"", "the text is empty"),
    }
    for name, (data, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError, match=message) as caught:
            read_module(path)
        assert name in str(caught.value)
    with pytest.raises(InputError, match=r"none\.hlo: no such file"):
        read_module(tmp_path / "none.hlo")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_module(tmp_path)
    with pytest.raises(InputError, match="not a file name"):
        read_module("a\0b")


_MEGABYTE = 1_000_000
_DEEP = 50_000


@pytest.mark.parametrize(
    "body",
    [
        "  " + "x" * _MEGABYTE,
        _P + "  t = " + "(" * _DEEP + ")" * _DEEP + " parameter(1)\n",
        _P + "  t = f32[4] " + "negate(" * _DEEP + "p" + ")" * _DEEP + "\n",
        _P + "  t = f32[4] call(p), to_apply={ a = f32[4] call(), to_apply={ " * 1000,
        _P + "  t = f32[4] copy(p), a={" + "{" * _MEGABYTE,
        _P + "  t = f32[4] copy(p), a=" + "[({" * _DEEP,
        "  c = f32[] constant(" + "1" * _MEGABYTE + ")\n",
        "  p = f32[" + "1," * _DEEP + "1] parameter(0)\n",
        "  p = f32[1] parameter(0), dimensions={" + "1," * _DEEP + "x}\n",
        '"' * _MEGABYTE,
        "/*" * _MEGABYTE,
        _P + "  t = tuple(" + "p, " * _DEEP,
    ],
)
def test_large_rubbish_fails_quickly(body: str) -> None:
    start = time.thread_time()
    with pytest.raises(HloSyntaxError) as caught:
        parse_module(_module(body))
    assert time.thread_time() - start < 5
    assert len(str(caught.value)) < 700


def test_a_line_of_a_megabyte_is_read_in_linear_time() -> None:
    line = _P + " ".join(f"a{i} = f32[4] copy(p)" for i in range(40_000)) + "\n"
    start = time.thread_time()
    assert len(parse_module(_module(line)).entry.instructions) == 40_001
    assert time.thread_time() - start < 20


def test_deep_braces_are_read() -> None:
    value = "{" * _DEEP + "}" * _DEEP
    module = parse_module(_module(f"  p = f32[4] parameter(0), sharding={value}\n"))
    assert module.entry.root.attributes["sharding"] == value
