"""Tables that fit the terminal they are shown on."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from rich.text import Text

from experiments.console import LiveLine, fitted, print_accesses, print_programs, told_in_a_line
from experiments.inputs import load_program
from experiments.programs import committed_table, describe
from hlo_graphs.errors import InputError
from solvers.solver import Progress
from tests.experiments.processes import wait_until


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


def test_a_line_that_is_written_over_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert fitted("x" * 39) == "x" * 39
    assert fitted("x" * 40) == "x" * 38 + "…"


def test_the_clock_of_a_running_solver_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("COLUMNS", "80")
    with LiveLine(load_program("lstm_forward"), enabled=True) as live:
        live.update(Progress(0.0, "a solver", 1e6, 5e5))
        wait_until(lambda: written.getvalue().count("\x1b[2K") >= 3)
    *shown, last = re.split("\r?\x1b\\[2K", written.getvalue())[1:]
    assert last == ""
    assert len({line.split(" s ")[0] for line in shown}) > 1
    assert all("gap 100.00%  a solver" in line and len(line) < 80 for line in shown)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such thing"), 3, "no such thing"),
        (OSError(28, "No space left on device", "map.json"), 3, "map.json: No space left"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_ends_a_command_is_told_in_a_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, told_in_a_line():
        raise error
    assert ended.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_output_that_nobody_reads_ends_a_benchmark_quietly() -> None:
    command = [sys.executable, "-m", "experiments.benchmarks.production", "vgg16_infer"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
