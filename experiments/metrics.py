"""The lines of metrics that a training run leaves in its folder, and goes on with after a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.files import write_atomically
from hlo_graphs.errors import InputError

METRICS = "metrics.jsonl"
"""Of training, many lines."""

VALIDATION = "validation.jsonl"
"""Of play on programs that are not trained on, a line a checkpoint."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """A run's lines; one cut off by a kill is left out.

    Raises:
      InputError: if there is no such file, or nothing of the kind in it.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from error
    try:
        found = [json.loads(line) for line in lines if line.endswith(b"\n")]
    except ValueError as error:
        raise InputError(f"{path}: not the metrics of a run: {error}") from error
    if not found:
        raise InputError(f"{path}: holds no metrics yet")
    if not all(isinstance(line, dict) and "num_updates" in line for line in found):
        raise InputError(f"{path}: not the metrics of a run: lines without num_updates")
    return found


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def forget_metrics_after(path: Path, name: str, last: int) -> None:
    """Drops lines that a run wrote after its checkpoint, and damaged ones: they are made again.

    Args:
      path: of the lines; nothing happens if there is no such file.
      name: a count that each line has, e.g. "num_updates".
      last: its value at the checkpoint.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line.decode() for line in lines if _is_until(line, name, last)]
    write_atomically(path, "".join(kept))


def _is_until(line: bytes, name: str, last: int) -> bool:
    """Whether a line is whole and its count at most `last`."""
    try:
        row = json.loads(line)
        return line.endswith(b"\n") and bool(row[name] <= last)
    except (ValueError, TypeError, KeyError):
        return False
