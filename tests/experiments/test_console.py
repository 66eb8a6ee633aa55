"""Tables that fit the terminal they are shown on."""

from __future__ import annotations

import sys

import pytest
from rich.text import Text

from experiments.console import print_accesses, print_programs
from experiments.inputs import load_program
from experiments.programs import committed_table, describe


def _on_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))


def _lines(capsys: pytest.CaptureFixture[str], width: int) -> list[str]:
    lines = [Text.from_ansi(line).plain for line in capsys.readouterr().out.splitlines()]
    assert lines
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    return lines


def test_a_narrow_terminal_is_told_names_and_times_in_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = committed_table()
    _on_a_terminal(80, monkeypatch)
    print_programs(rows, [("new.v5e", "train")])
    lines = _lines(capsys, 80)
    for row in rows:
        (line,) = (line for line in lines if f" {row.name} " in line)
        assert f"{row.production_seconds * 1e3:.4f} ms" in line
        assert f"{row.headroom:.1%}" in line
    assert not any("loops" in line for line in lines)
    (line,) = (line for line in lines if " new.v5e " in line)
    assert line.count(" - ") == 3


@pytest.mark.parametrize("is_terminal", [True, False])
def test_with_room_for_them_all_columns_are_shown(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_terminal:
        _on_a_terminal(140, monkeypatch)
    print_programs(committed_table(), [])
    lines = _lines(capsys, 140)
    assert all(any(f" {row.name} " in line for line in lines) for row in committed_table())
    head = next(line for line in lines if "program " in line)
    assert all(name in head for name in ("chip", "steps", "loops", "all slow", "bound", "headroom"))


@pytest.mark.parametrize(("columns", "is_in_one_line"), [(80, False), (160, True)])
def test_no_name_of_a_description_is_cut(
    columns: int,
    is_in_one_line: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    description = describe(load_program("lstm_forward"))
    _on_a_terminal(columns, monkeypatch)
    print_accesses(description)
    lines = _lines(capsys, columns)
    longest = max((cost.buffer for cost in description.costliest), key=len)
    assert any(longest in line for line in lines) == is_in_one_line
    column = [line.split("│")[4].strip() for line in lines if line.count("│") == 8]
    assert longest in "".join(column)
