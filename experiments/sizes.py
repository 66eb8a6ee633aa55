"""Byte counts as people write and read them."""

from __future__ import annotations

import re

from hlo_graphs.errors import InputError

_UNITS = {
    "": 1,
    "B": 1,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
}
_SIZE = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes of "112MiB", "1.5GiB", "65536".

    Raises:
      InputError: for anything else, or a negative size.
    """
    match = _SIZE.fullmatch(text)
    unit = None if match is None else _UNITS.get(match[2].upper())
    if match is None or unit is None:
        raise InputError(f"{text!r} is not a size: write e.g. 112MiB, 1.5GiB or 65536")
    size_bytes = float(match[1]) * unit
    if size_bytes < 0:
        raise InputError(f"size is {text}: it cannot be negative")
    if size_bytes >= 2**63:
        raise InputError(f"size is {text}: larger than 2^63 bytes")
    return int(size_bytes)


def format_size(size_bytes: float) -> str:
    """A byte count with a binary unit and three significant digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024 or unit == "GiB":
            break
        size_bytes /= 1024
    # Three digits of 1000 to 1023 would be written 1e+03.
    digits = ".0f" if unit == "B" or abs(size_bytes) >= 100 else ".3g"
    return f"{size_bytes:{digits}} {unit}"
