"""Evaluations: resumable, with failures as rows, and refusing to mix settings."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import evaluate as evaluation
from experiments.evaluate import EvaluationSettings, evaluate, programs_of
from experiments.results import RESULTS, TABLE, append_row, read_rows
from hlo_graphs import corpus
from hlo_graphs.errors import InputError
from malloc_game.memory_map import MemoryMap

PROGRAM = "lstm_forward.v5e.32MiB"

SETTINGS = EvaluationSettings(
    programs=(PROGRAM,),
    solvers=("greedy",),
    seeds=(0, 1),
    time_limit_seconds=2.0,
    workers_per_task=1,
    times="calibrated",
    copy_order="deadline",
    busy="bytes",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evaluation")
    evaluate(SETTINGS, directory, parallel=2, command="malloc-game evaluate")
    return directory


def test_every_task_has_a_row_a_map_and_a_line_in_the_table(finished: Path) -> None:
    rows = read_rows(finished)
    assert sorted(row.key for row in rows) == [(PROGRAM, "greedy", 0), (PROGRAM, "greedy", 1)]
    for row in rows:
        assert row.error is None
        assert row.latency_seconds is not None
        assert row.all_slow_seconds is not None
        assert 0 < row.latency_seconds < row.all_slow_seconds
        assert not row.is_native
        memory_map = finished / "maps" / f"{PROGRAM}.greedy.{row.seed}.json"
        assert MemoryMap.from_json(memory_map.read_text()).residencies
    with (finished / TABLE).open() as file:
        assert [line["seed"] for line in csv.DictReader(file)] == ["0", "1"]
    assert json.loads((finished / "settings.json").read_text())["command"]


def test_what_is_finished_is_not_done_again(finished: Path) -> None:
    before = (finished / RESULTS).read_bytes()
    evaluate(SETTINGS, finished, on_row=lambda *_: pytest.fail("nothing was left to do"))
    assert (finished / RESULTS).read_bytes() == before


def test_a_line_cut_off_by_a_kill_is_done_again(finished: Path, tmp_path: Path) -> None:
    lines = (finished / RESULTS).read_bytes().splitlines(keepends=True)
    (tmp_path / RESULTS).write_bytes(lines[0] + lines[1][:200])
    done = []
    rows = evaluate(SETTINGS, tmp_path, on_row=lambda row, *_: done.append(row.key))
    assert len(done) == 1
    assert len({row.key for row in rows}) == len(rows) == 2


def test_other_settings_are_refused(finished: Path) -> None:
    with pytest.raises(InputError, match="another time_limit_seconds"):
        evaluate(replace(SETTINGS, time_limit_seconds=3.0), finished)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": ()}, "no seeds"),
        ({"programs": ()}, "no programs"),
        ({"solvers": ("greedy", "greedy")}, "named twice: greedy"),
        ({"times": "measured"}, "calibrated or analytic"),
        ({"copy_order": "lifo"}, "deadline or fifo"),
        ({"busy": "always"}, "bytes or slow"),
        ({"time_limit_seconds": -1.0}, "time limit is -1.0"),
        ({"time_limit_seconds": math.nan}, "time limit is nan"),
        ({"workers_per_task": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense_leave_no_folder(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        evaluate(replace(SETTINGS, **changes), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_task_at_a_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        evaluate(SETTINGS, tmp_path / "new", parallel=0)


def test_a_row_of_another_version_is_not_dropped(finished: Path, tmp_path: Path) -> None:
    line = json.loads((finished / RESULTS).read_text().splitlines()[0])
    (tmp_path / RESULTS).write_text(json.dumps({**line, "colour": "red"}) + "\n")
    with pytest.raises(InputError, match="another version"):
        read_rows(tmp_path)


def test_a_task_that_hangs_is_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "OVERTIME_SECONDS", -10.0)
    # This solver uses its whole limit, so its row cannot be there before the deadline is looked at.
    settings = replace(SETTINGS, seeds=(0,), solvers=("large-neighbourhood",))
    (row,) = evaluate(settings, tmp_path)
    assert row.status == "failed"
    assert row.error == "did not return in time"
    assert row.program == PROGRAM


def test_a_killed_evaluation_leaves_no_process_and_no_half_row(tmp_path: Path) -> None:
    arguments = ["evaluate", PROGRAM, "--solvers", "portfolio", "--time-limit", "60"]
    directory = tmp_path / "killed"
    parent = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *arguments, "-o", directory],
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    _wait_until(lambda: len(_processes_of(parent.pid)) >= 3)
    parent.kill()
    parent.wait()
    _wait_until(lambda: not _processes_of(parent.pid))
    assert read_rows(directory) == []


def _wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60.0
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.2)


def _processes_of(session: int) -> list[str]:
    """The live processes of a session, zombies left out."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("processes are listed by /proc")
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                found.append(path.parent.name)
    return found


def test_suites_are_the_sides_of_the_split() -> None:
    train, test = set(programs_of("train")), set(programs_of("test"))
    assert train | test == set(programs_of("all")) == set(corpus.names())
    assert not train & test
    with pytest.raises(InputError, match="no suite"):
        programs_of("exam")


def test_rows_survive_the_file(tmp_path: Path, finished: Path) -> None:
    row = read_rows(finished)[0]
    append_row(tmp_path, replace(row, error='a "quoted"\nline'))
    append_row(tmp_path, row)
    assert read_rows(tmp_path) == [replace(row, error='a "quoted"\nline'), row]


def test_a_folder_without_a_table_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="malloc-game evaluate"):
        read_rows(tmp_path)
