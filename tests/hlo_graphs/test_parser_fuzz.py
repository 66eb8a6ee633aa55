"""Mutations of real text: never anything but a module or a located error, fast or slow."""

from __future__ import annotations

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hlo_graphs.errors import HloSyntaxError, InputError
from hlo_graphs.hlo import HloModule
from hlo_graphs.parser import parse_modules
from tests.hlo_graphs.sample_module import SAMPLE

_PIECES = sorted(
    {
        *re.findall(r"[%\w.\-]+|[^\w\s]|\s+", SAMPLE),
        *"{}()[]\"'/*#,=<>?:%\n\x00é\\",
        "/*",
        "*/",
        "//",
        "{...}",
        "ROOT ",
        "ENTRY ",
        "HloModule x\n",
        "// -----\n",
        "9" * 25,
        "-1",
        "nan",
        "f32[?,<=4]",
        "%x.1#0",
        "negate(%x.1)",
    }
)
_LINES = SAMPLE.splitlines(keepends=True)


@st.composite
def _mutated(draw: st.DrawFn) -> str:
    text = SAMPLE
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 1, 2, 5, 20, 200])))
        text = text[:start] + draw(st.sampled_from(["", *_PIECES])) + text[end:]
    return text


@st.composite
def _shuffled(draw: st.DrawFn) -> str:
    first, second = sorted(
        (draw(st.integers(0, len(_LINES) - 1)), draw(st.integers(0, len(_LINES) - 1)))
    )
    lines = list(_LINES)
    lines[first], lines[second] = lines[second], lines[first]
    if draw(st.booleans()):
        lines.insert(first, lines[second])
    return "".join(lines)


def _outcome(text: str, use_fast_lines: bool) -> tuple[HloModule, ...] | type[InputError]:
    try:
        return parse_modules(text, "fuzz.hlo", use_fast_lines=use_fast_lines)
    except HloSyntaxError as error:
        location, message = error.location, str(error)
    except InputError:
        return InputError
    assert 1 <= location.line <= text.count("\n") + 1
    assert 1 <= location.column <= len(text) + 1
    assert len(message) < 700
    return HloSyntaxError


@settings(max_examples=250, deadline=None)
@given(_mutated() | _shuffled())
@example(SAMPLE.replace("\n", "\r\n"))
@example(SAMPLE.replace("%", ""))
@example(SAMPLE.replace(", kind=kLoop", "\n , kind=kLoop"))
@example(SAMPLE.replace("ROOT %tuple.5", "ROOT"))
@example(SAMPLE.replace("async-done(%slice-start.1)", "async-done(%slice-start.1), calls=%gone"))
@example(SAMPLE.replace('"ConcatBitcast"', '"x", literal=( s32[4]{0} {4, 1, 2, 3}, pred[] 1 )'))
def test_both_readers_agree_on_mutated_text(text: str) -> None:
    assert _outcome(text, use_fast_lines=True) == _outcome(text, use_fast_lines=False)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SAMPLE)))
def test_truncated_text(length: int) -> None:
    outcome = _outcome(SAMPLE[:length], use_fast_lines=True)
    assert isinstance(outcome, type) or length > len(SAMPLE) - 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=60).map("".join))
def test_random_pieces(text: str) -> None:
    assert _outcome(text, use_fast_lines=True) == _outcome(text, use_fast_lines=False)
    body = "HloModule m\nENTRY e {\n  p = f32[4] parameter(0)\n  " + text
    assert _outcome(body, use_fast_lines=True) == _outcome(body, use_fast_lines=False)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    assert _outcome(text, use_fast_lines=True) == _outcome(text, use_fast_lines=False)
