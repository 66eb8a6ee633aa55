from __future__ import annotations

import pytest

from experiments.sizes import format_size, parse_size
from hlo_graphs.errors import InputError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("65536", 65536),
        ("112MiB", 112 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("64kib", 2**16),
        ("8B", 8),
    ],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "12 parsecs", "-1MiB", "1e9", "99999999999GiB"])
def test_other_texts_are_refused_with_the_text_named(text: str) -> None:
    with pytest.raises(InputError, match="size"):
        parse_size(text)


def test_sizes_are_written_with_binary_units() -> None:
    assert [format_size(n) for n in (0, 1023, 1024, 117440512, 2**31)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "112 MiB",
        "2 GiB",
    ]


def test_no_size_is_written_with_an_exponent() -> None:
    sizes = (0, 999, 1023, 1000 * 2**10, 1010 * 2**10, 1023.9 * 2**20, 5000 * 2**30)
    written = [format_size(size) for size in sizes]
    expected = ["0 B", "999 B", "1023 B", "1000 KiB", "1010 KiB", "1024 MiB", "5000 GiB"]
    assert written == expected
    assert format_size(99.94 * 2**10) == "99.9 KiB"


def test_a_size_of_hundreds_of_digits_is_too_large() -> None:
    with pytest.raises(InputError, match=r"larger than 2\^63"):
        parse_size("9" * 400)
