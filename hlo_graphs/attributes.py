"""Attributes of instructions and modules: where each begins and ends, and their known forms.

Source: `xla/hlo/parser/hlo_parser.cc`. Values stay text. Unknown attributes are kept like known
ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from hlo_graphs.lexer import COMMENT, NAME, STRING, Cursor
from hlo_graphs.opcodes import words

CALLING_ATTRIBUTES: dict[str, int] = {
    "condition": 0,
    "body": 1,
    "true_computation": 0,
    "false_computation": 1,
    "select": 0,
    "scatter": 1,
    "branch_computations": 0,
    "called_computations": 0,
    "calls": 0,
    "to_apply": 0,
    "comparator": 0,
}
"""Attributes that name computations, with their place in `called_computations`."""

PLAIN_VALUE = r"(?:[^\s,{}\[\]()\"'=/<]++|<=|/(?![/*]))"

_NAME_IN_LIST = re.compile(rf"%?({NAME})", re.ASCII)
_ATTRIBUTE_NAME = re.compile(rf"({NAME})=", re.ASCII)
_PLAIN = re.compile(rf"{PLAIN_VALUE}++")
_COMMENT = re.compile(COMMENT)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One `name=value`.

    Attributes:
      name: before the `=`.
      text: the value as written.
      start: position of the value's first character.
    """

    name: str
    text: str
    start: int


def read_attribute(cursor: Cursor) -> Attribute:
    """The attribute at the cursor, which moves behind it.

    Raises:
      HloSyntaxError: if there is none, or its value has not the form its name asks for.
    """
    name = read_attribute_name(cursor)
    cursor.skip_blanks()
    start = cursor.position
    _skip_value(cursor)
    if name == "literal" and _accept_blank_on_line(cursor):
        _skip_value(cursor)
    text = cursor.text[start : cursor.position]
    expected = expected_form(name, text)
    if expected is not None:
        cursor.fail(f"{expected} as {name}", start, repr(text[:60]))
    return Attribute(name, text, start)


def read_attribute_name(cursor: Cursor) -> str:
    """The attribute's name; leaves the cursor behind the `=`, which must follow at once."""
    found = cursor.accept_pattern(_ATTRIBUTE_NAME)
    if found is None:
        cursor.fail("an attribute: name=value")
    return found[:-1]


def _skip_value(cursor: Cursor) -> None:
    """Moves over one value: words, strings and bracketed pieces without blanks between.

    A brace or bracket belongs to the value even after a blank (`mesh['a'=2] {'b'}`).
    """
    start = cursor.position
    while cursor.position < cursor.end:
        character = cursor.text[cursor.position]
        if character in "{[(":
            cursor.skip_balanced()
        elif character in "\"'":
            cursor.expect_string("a string that ends")
        elif (match := _PLAIN.match(cursor.text, cursor.position, cursor.end)) is not None:
            cursor.position = match.end()
        elif not _bracket_after_blank(cursor, start):
            break
    if cursor.position == start:
        cursor.fail("the attribute's value")


def _bracket_after_blank(cursor: Cursor, start: int) -> bool:
    before = cursor.position
    if before > start and (cursor.peek("{") or cursor.peek("[")):
        return True
    cursor.position = before
    return False


def _accept_blank_on_line(cursor: Cursor) -> bool:
    before = cursor.position
    cursor.skip_blanks()
    if cursor.position > before and "\n" not in cursor.text[before : cursor.position]:
        return True
    cursor.position = before
    return False


def computation_names(value: str) -> list[str]:
    """The names in the value of a calling attribute: `%a`, `a`, or `{%a, b}`."""
    return _NAME_IN_LIST.findall(_COMMENT.sub(" ", value) if "/" in value else value)


def called_computations(opcode: str, values: Mapping[str, str]) -> tuple[str, ...]:
    """Names of called computations; the ends of async chains repeat their start's, so have none."""
    if opcode in ("async-update", "async-done"):
        return ()
    calling = [key for key in values if key in CALLING_ATTRIBUTES]
    calling.sort(key=CALLING_ATTRIBUTES.__getitem__)
    return tuple(name for key in calling for name in computation_names(values[key]))


@lru_cache(maxsize=4096)
def expected_form(name: str, value: str) -> str | None:
    """What the value of the attribute `name` should be, None if it is.

    Attributes that only some tool knows may have any value.
    """
    form = _FORMS.get(name)
    if form is None:
        return None
    if "/" in value:
        value = _COMMENT.sub(" ", value)
    return None if form.pattern.fullmatch(value.strip()) else form.description


@dataclass(frozen=True, slots=True)
class _Form:
    description: str
    pattern: re.Pattern[str]


def _list_of(item: str) -> str:
    return rf"\{{\s*(?:(?:{item})(?:\s*,\s*(?:{item}))*+)?\s*\}}"


def _by(separator: str, item: str) -> str:
    return rf"{item}(?:{separator}{item})*+"


_INTEGER = r"-?[0-9]{1,20}"
_NUMBER = r"[0-9]{1,9}"
_SHAPE_INDEX = _list_of(_NUMBER)
_PAD = rf"{_INTEGER}_{_INTEGER}"
_SIZES = _by("x", _INTEGER)
_WINDOW_FIELD = (
    rf"(?:(?:size|stride|lhs_dilate|rhs_dilate|rhs_reversal)={_SIZES}|pad={_by('x', _PAD)})"
)
_WINDOW_FIELDS = _by(r"\s+", _WINDOW_FIELD)
_LABELS = r"[a-z0-9?]*+"
_RANGE = rf"\[\s*{_INTEGER}\s*:\s*{_INTEGER}\s*(?::\s*{_INTEGER}\s*)?\]"
_COMPUTATION = rf"%?{NAME}"
_ACCURACY = r"\{\s*(?:mode=\w+|tolerance=\{[^{}]*\}|(?:(?:atol|rtol|ulps)=[^\s,{}]+\s*,?\s*)*)\s*\}"


def _form(description: str, pattern: str) -> _Form:
    return _Form(description, re.compile(pattern, re.ASCII | re.DOTALL))


_FORMS: dict[str, _Form] = {
    **dict.fromkeys(
        words("""
            batch_group_count channel_id concat_dimension cross_program_prefetch_index
            delta dimension exponent_bits feature_group_count index index_vector_dim
            iota_dimension k mantissa_bits split_dimension
        """),
        _form("an integer", _INTEGER),
    ),
    **dict.fromkeys(
        words("""
            constrain_layout custom_call_has_side_effect indices_are_sorted
            is_host_transfer is_scheduled is_stable largest left_side lower
            unique_indices unit_diagonal use_global_device_ids
        """),
        _form("true or false", "true|false"),
    ),
    **dict.fromkeys(
        words("""
            collapsed_slice_dims dimensions dynamic_slice_sizes fft_length
            inserted_window_dims lhs_batch_dims lhs_contracting_dims offset_dims
            operand_batching_dims rhs_batch_dims rhs_contracting_dims
            scatter_dims_to_operand_dims start_index_map
            start_indices_batching_dims update_window_dims
        """),
        _form("a list of integers such as {0,1}", _list_of(_INTEGER)),
    ),
    **dict.fromkeys(
        ("async_execution_thread", "custom_call_target", "infeed_config", "outfeed_config"),
        _form("a quoted string", STRING),
    ),
    **dict.fromkeys(
        ("condition", "body", "true_computation", "false_computation", "comparator"),
        _form("the name of a computation", _COMPUTATION),
    ),
    **dict.fromkeys(
        words("""
            select scatter calls to_apply branch_computations called_computations
        """),
        _form("names of computations", rf"{_COMPUTATION}|{_list_of(_COMPUTATION)}"),
    ),
    "control-predecessors": _form("a list of names", _list_of(_COMPUTATION)),
    "slice_sizes": _form(
        "integers such as {2,3}, or a list of such lists",
        f"{_list_of(_INTEGER)}|{_list_of(_list_of(_INTEGER))}",
    ),
    "window": _form(
        "a window such as {size=2x2 pad=0_1x0_1}", rf"\{{\s*(?:{_WINDOW_FIELDS})?\s*\}}"
    ),
    "slice": _form("a list of ranges such as {[0:4:1], [2:3]}", _list_of(_RANGE)),
    "padding": _form("paddings such as 0_1x2_3_1", _by("x", rf"{_PAD}(?:_{_INTEGER})?")),
    "dim_labels": _form("labels such as b01f_01io->b01f", rf"{_LABELS}_{_LABELS}->{_LABELS}"),
    "direction": _form("one of EQ NE GE GT LE LT", "EQ|NE|GE|GT|LE|LT"),
    "kind": _form("one of kLoop kInput kOutput kCustom", "kLoop|kInput|kOutput|kCustom"),
    "fft_type": _form("one of FFT IFFT RFFT IRFFT", "I?R?FFT"),
    "api_version": _form(
        "an API_VERSION_...",
        r"API_VERSION_(?:ORIGINAL|STATUS_RETURNING|STATUS_RETURNING_UNIFIED|TYPED_FFI|UNSPECIFIED)",
    ),
    "result_accuracy": _form("an accuracy {mode=...} or {tolerance={...}}", _ACCURACY),
    "output_to_operand_aliasing": _form(
        "aliases such as {{0}: (1, {})}",
        _list_of(rf"{_SHAPE_INDEX}\s*:\s*\(\s*{_NUMBER}\s*,\s*{_SHAPE_INDEX}\s*\)"),
    ),
    "buffer_donor": _form(
        "donors such as {(0, {1})}", _list_of(rf"\(\s*{_INTEGER}\s*,\s*{_list_of(_INTEGER)}\s*\)")
    ),
}
