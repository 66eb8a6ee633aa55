"""Where the reference data lies, if it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data_path(name: str) -> Path:
    """The folder `name` of the shared reference data; skips the test where it is absent."""
    path = _ROOT / name
    if not path.is_dir():
        pytest.skip(f"reference data {name!r} is not present beside the checkout")
    return path
