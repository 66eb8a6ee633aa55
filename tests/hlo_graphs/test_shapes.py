"""Sizes of shapes: against the compiler's own lists, and cases to check by eye."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo_graphs.errors import HloSyntaxError, InputError
from hlo_graphs.hlo import Layout, Shape
from hlo_graphs.shape_text import parse_shape
from hlo_graphs.shapes import ELEMENT_BITS, byte_size_of, element_size_bits, padded_size_bytes
from tests.shared_data import shared_data_path

_VALUE = re.compile(r"^ *value: <.*> \(size=(\d+),offset=\d+\): (.*)$", re.MULTILINE)

TPU_POINTER_TABLE_ALIGNMENT_BYTES = 512
"""The TPU compiler rounds pointer tables of tuples up to this."""

TPU_UNTILED_SCALAR_ELEMENTS = 1024
"""What it sets aside for a scalar without a tile (only inside comparators and the like)."""

TPU_SYNC_FLAG_SPACE = 2
"""Memory space of synchronisation flags, which take what they hold."""


def _listed(folder: Path) -> Iterator[tuple[str, int]]:
    """(shape text, size in bytes) of every value of every buffer-assignment dump, once each."""
    seen: set[tuple[str, int]] = set()
    for path in sorted(folder.glob("*.buffer-assignment.txt.gz")):
        with gzip.open(path, "rt") as file:
            for size, text in _VALUE.findall(file.read()):
                seen.add((text, int(size)))
    yield from sorted(seen)


def test_padded_sizes_are_the_tpu_compilers_for_every_listed_value() -> None:
    different = []
    arrays = tuples = 0
    for text, listed_bytes in _listed(shared_data_path("tpu_examples")):
        shape = parse_shape(text)
        arrays += shape.is_array
        tuples += shape.is_tuple
        if _tpu_size_bytes(shape) != listed_bytes:
            different.append((text, listed_bytes, padded_size_bytes(shape)))
    assert different == []
    assert arrays > 100
    assert tuples > 50


def _tpu_size_bytes(shape: Shape) -> int:
    """`padded_size_bytes` with the TPU compiler's own rounding of tuples and untiled scalars."""
    size_bytes = padded_size_bytes(shape)
    if shape.is_tuple:
        alignment = TPU_POINTER_TABLE_ALIGNMENT_BYTES
        return math.ceil(size_bytes / alignment) * alignment
    assert shape.layout is not None
    is_flag = shape.layout.memory_space == TPU_SYNC_FLAG_SPACE
    if not shape.dimensions and not shape.layout.tiles and not is_flag:
        return TPU_UNTILED_SCALAR_ELEMENTS * size_bytes
    return size_bytes


def test_byte_sizes_are_the_cpu_compilers_for_every_listed_value() -> None:
    listed = list(_listed(shared_data_path("hlo_scheduled_cpu")))
    different = [
        (text, size_bytes)
        for text, size_bytes in listed
        if byte_size_of(parse_shape(text)) != size_bytes
    ]
    assert different == []
    assert len(listed) > 100


@pytest.mark.parametrize(
    ("text", "padded_bytes", "logical_bytes"),
    [
        # rows of 8 x 128: 16 is the minor dimension, so 8 x 128 floats
        ("f32[16,8]{0,1:T(8,128)}", 8 * 128 * 4, 512),
        ("f32[4]{0:T(128)}", 128 * 4, 16),
        ("f32[4]{0}", 16, 16),
        ("f32[]", 4, 4),
        ("f32[]{:T(128)}", 512, 4),
        ("u32[]{:S(2)}", 4, 4),
        ("bf16[3,5,130]{2,1,0:T(8,128)(2,1)}", 3 * 8 * 256 * 2, 3 * 5 * 130 * 2),
        ("bf16[1000]{0:T(256)(128)(2,1)}", 1024 * 2, 2000),
        # the combined dimension joins the next one before padding: 3*5=15 -> 16
        ("f32[3,5,100]{2,1,0:T(*,8,128)}", 16 * 128 * 4, 6000),
        ("pred[10]{0}", 10, 10),
        ("s4[10]{0}", 10, 10),
        ("s4[11]{0:E(4)}", 6, 6),
        ("s4[8,200]{1,0:T(8,128)E(4)}", 8 * 256 // 2, 800),
        ("u2[5]{0:E(2)}", 2, 2),
        ("f8e4m3fn[7,9]{1,0}", 63, 63),
        ("f4e2m1fn[6]{0:E(4)}", 3, 3),
        ("c128[2]{0}", 32, 32),
        ("f32[100]{0:L(64)}", 128 * 4, 400),
        ("f32[<=10]{0}", 40, 40),
        ("f32[<=10]{0:M(8)}", 48, 40),
        ("f32[0,5]{1,0:T(8,128)}", 0, 0),
        ("token[]", 0, 0),
        ("opaque[]", 8, 8),
        ("()", 0, 0),
        ("(f32[8], (s32[], s32[]))", 16, 16),
        ("b(f32[8]{0})", 32, 32),
    ],
)
def test_sizes_to_check_by_eye(text: str, padded_bytes: int, logical_bytes: int) -> None:
    assert padded_size_bytes(parse_shape(text)) == padded_bytes
    if not text.startswith("b("):
        assert byte_size_of(parse_shape(text)) == logical_bytes


def test_pointer_size_is_a_parameter() -> None:
    assert byte_size_of(parse_shape("(f32[8], f32[8])"), pointer_size_bytes=4) == 8


def test_unbounded_dimension_has_no_size() -> None:
    shape = parse_shape("f32[?,4]{1,0}")
    for size in (padded_size_bytes, byte_size_of):
        with pytest.raises(InputError, match=r"f32\[\?,4\].*unknown"):
            size(shape)


def test_token_has_no_element_size() -> None:
    with pytest.raises(InputError, match="token has no element size"):
        element_size_bits(parse_shape("token[]"))


_SIZES = st.integers(0, 40)
_TILE = st.integers(1, 9)


@given(st.lists(_SIZES, max_size=4), st.data())
def test_padding_counts_the_elements_of_whole_tiles(sizes: list[int], data: st.DataObject) -> None:
    """Witness: walk over the tiles of the physical shape and count."""
    order = data.draw(st.permutations(range(len(sizes))))
    tile = tuple(data.draw(st.lists(_TILE, min_size=1, max_size=max(len(sizes), 1))))
    shape = Shape("f32", tuple(sizes), Layout(tuple(order), (tile,)))
    physical = [sizes[dimension] for dimension in reversed(order)]
    physical = [1] * (len(tile) - len(physical)) + physical
    whole = physical[: len(physical) - len(tile)]
    tiles_along = [
        len(range(0, size, t)) for size, t in zip(physical[len(whole) :], tile, strict=True)
    ]
    assert padded_size_bytes(shape) == 4 * math.prod(whole + tiles_along) * math.prod(tile)
    assert padded_size_bytes(shape) >= byte_size_of(shape)


_ARRAY_TYPES = st.sampled_from(sorted(ELEMENT_BITS))


@st.composite
def _shapes(draw: st.DrawFn) -> Shape:
    return draw(
        st.recursive(
            _arrays() | st.sampled_from([Shape("token"), Shape("opaque")]),
            lambda inner: st.lists(inner, max_size=7).map(
                lambda elements: Shape("tuple", elements=tuple(elements))
            ),
            max_leaves=12,
        )
    )


@st.composite
def _arrays(draw: st.DrawFn) -> Shape:
    sizes = tuple(draw(st.lists(st.integers(0, 2**40), max_size=4)))
    dynamic = tuple(draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))))
    tile = st.lists(st.sampled_from([-1, 1, 2, 8, 128]), min_size=1, max_size=3).map(tuple)
    layout = Layout(
        tuple(draw(st.permutations(range(len(sizes))))),
        tuple(draw(st.lists(tile, max_size=3))),
        draw(st.integers(0, 7)),
        draw(st.sampled_from([0, 2, 4])),
        draw(st.sampled_from([1, 64])),
    )
    element_type = draw(_ARRAY_TYPES)
    return Shape(element_type, sizes, layout, (), dynamic if any(dynamic) else ())


@given(_shapes())
def test_printed_shape_reads_back(shape: Shape) -> None:
    assert parse_shape(str(shape)) == shape


@given(_shapes())
def test_subshapes_are_found_by_their_index(shape: Shape) -> None:
    found = list(shape.subshapes())
    assert found[0] == ((), shape)
    assert [index for index, _ in found] == sorted(index for index, _ in found)
    for index, subshape in found:
        assert shape.at(index) is subshape


def test_missing_subshape() -> None:
    with pytest.raises(IndexError, match="no index"):
        parse_shape("(f32[2], s32[])").at((0, 1))


@pytest.mark.parametrize(
    "text",
    [
        "f32[2,3]{1,0:D(D,C)T(8,128)(2,1)L(4)#(s32)*(u32)E(4)S(1)}",
        "f32[10,10]{1,0:D(D,C)P((f32[5]{0}, s32[11]{0}))M(16)}",
        "f32[10]{0:S(1)SC(0:4,8)}",
        "f32[?,<=7,3]{2,1,0}",
        "(f32[1]{0}, (), token[], opaque[], pred[], /*index=5*/s4[2]{0:E(4)})",
        "b(f32[2]{0})",
        "f8e8m0fnu[2]{0}",
    ],
)
def test_every_layout_property_reads_back(text: str) -> None:
    assert str(parse_shape(text)) == text


def test_omitted_layout_is_row_major() -> None:
    assert str(parse_shape("f32[ 1, 2,3]")) == "f32[1,2,3]{2,1,0}"
    assert str(parse_shape("f32[2,3]{0, 1}")) == "f32[2,3]{0,1}"


@pytest.mark.parametrize(
    ("text", "column", "found", "expected"),
    [
        ("g32[2]", 1, "'g32'", "an element type"),
        ("f32", 4, "end of text", "'['"),
        ("f32[2", 6, "end of text", "','"),
        ("f32[-2]", 5, "'-2'", "at least 0"),
        ("f32[9223372036854775808]", 5, "'9223372036854775808'", "64 bits"),
        ("f32[99999999999999999999999999]", 5, "'99999999999999999999999999'", "64 bits"),
        ("f32[2]{1}", 8, "{1}", "each of the 1 dimensions once"),
        ("f32[2,3]{0,0}", 10, "{0,0}", "each of the 2 dimensions once"),
        ("f32[2]{0:X(1)}", 10, "'X'", "a layout property"),
        ("f32[2]{0:T(8}", 13, "'}'", "','"),
        ("f32[8,8]{1,0:T(0,128)}", 16, "'0'", "at least 1"),
        ("f32[2]{0:D(X)}", 12, "'X'", "dimension level"),
        ("f32[2]{0:P(f32[2])}", 8, "'0'", "sparse"),
        ("(f32[2] s32[])", 9, "'s32'", "','"),
        ("f32[2] x", 8, "'x'", "end of the shape"),
        ("", 1, "end of text", "a shape"),
        ("(" * 5000, 102, "'('", "nested at most"),
    ],
)
def test_errors_are_located(text: str, column: int, found: str, expected: str) -> None:
    with pytest.raises(HloSyntaxError) as caught:
        parse_shape(text, "a.hlo")
    assert (caught.value.location.line, caught.value.location.column) == (1, column)
    assert caught.value.found == found
    assert expected in caught.value.expected
