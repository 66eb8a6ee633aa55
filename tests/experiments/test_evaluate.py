"""Evaluations: resumable, with failures as rows, and refusing to mix settings."""

from __future__ import annotations

import csv
import functools
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from experiments import evaluate as evaluation
from experiments import task_processes
from experiments.evaluate import evaluate, programs_of
from experiments.files import held
from experiments.folder import MAPS, map_path, read_settings
from experiments.folder import SETTINGS as SETTINGS_FILE
from experiments.report.contents import report_of
from experiments.results import RESULTS, TABLE, append_row, read_rows
from experiments.task_processes import processor_sets
from experiments.tasks import Task, source_of
from hlo_graphs import corpus
from hlo_graphs.errors import InputError
from malloc_game.generator import random_program
from malloc_game.memory_map import MemoryMap
from tests.experiments.processes import processes_of, wait_until
from tests.experiments.quick import PROGRAM, quick_settings

SETTINGS = quick_settings(seeds=(0, 1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evaluation")
    evaluate(SETTINGS, directory, parallel=2, command="malloc-game evaluate")
    return directory


def test_every_task_has_a_row_a_map_and_a_line_in_the_table(finished: Path) -> None:
    rows = read_rows(finished)
    keys = [(PROGRAM, "greedy", seed, 2.0, 1) for seed in (0, 1)]
    assert sorted(row.key for row in rows) == keys
    for row in rows:
        assert row.error is None
        assert row.latency_seconds is not None
        assert row.all_slow_seconds is not None
        assert 0 < row.latency_seconds < row.all_slow_seconds
        assert not row.is_native
        assert MemoryMap.from_json(map_path(finished, row).read_text()).residencies
    with (finished / TABLE).open() as file:
        assert [line["seed"] for line in csv.DictReader(file)] == ["0", "1"]
    (run,) = read_settings(finished).runs
    assert (run.programs, run.seeds, run.parallel) == ((PROGRAM,), (0, 1), 2)
    assert run.command == "malloc-game evaluate"


def test_what_is_finished_is_not_done_again(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    nothing = lambda *_: pytest.fail("nothing was left to do")  # noqa: E731
    evaluate(SETTINGS, finished, parallel=2, command="malloc-game evaluate", on_row=nothing)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_line_cut_off_by_a_kill_is_done_again(finished: Path, tmp_path: Path) -> None:
    lines = (finished / RESULTS).read_bytes().splitlines(keepends=True)
    shutil.copy(finished / SETTINGS_FILE, tmp_path)
    (tmp_path / RESULTS).write_bytes(lines[0] + lines[1][:200])
    done = []
    rows = evaluate(SETTINGS, tmp_path, on_row=lambda row, *_: done.append(row.key))
    assert len(done) == 1
    assert len({row.key for row in rows}) == len(rows) == 2


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished table that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def test_a_table_is_extended_and_its_rows_are_kept(copied: Path) -> None:
    before = (copied / RESULTS).read_bytes()
    more = replace(SETTINGS, solvers=("greedy", "random"), time_limit_seconds=0.5)
    rows = evaluate(more, copied, command="more")
    assert (copied / RESULTS).read_bytes().startswith(before)
    added = {(row.solver, row.seed, row.time_limit_seconds) for row in rows[2:]}
    assert added == {(solver, seed, 0.5) for solver in more.solvers for seed in (0, 1)}
    assert len(rows) == 6
    assert all(map_path(copied, row).exists() for row in rows)
    assert [run.command for run in read_settings(copied).runs] == ["malloc-game evaluate", "more"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"times": "analytic"}, "timed as calibrated, not as analytic"),
        ({"copy_order": "fifo"}, "not as calibrated, fifo"),
        ({"busy": "slow"}, "not as calibrated, stricter bus"),
    ],
)
def test_a_table_has_one_time_model(copied: Path, changes: dict[str, Any], words: str) -> None:
    before = (copied / SETTINGS_FILE).read_bytes()
    with pytest.raises(InputError, match=words):
        evaluate(replace(SETTINGS, **changes), copied)
    assert (copied / SETTINGS_FILE).read_bytes() == before


def test_a_table_is_of_one_machine(copied: Path) -> None:
    document = json.loads((copied / SETTINGS_FILE).read_text())
    document["machine"]["packages"]["numba"] = "0.1"
    (copied / SETTINGS_FILE).write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"made elsewhere \(numba '0.1' there, .* here\)"):
        evaluate(replace(SETTINGS, seeds=(2,)), copied)


def test_another_processor_is_taken_on_demand_and_rows_tell_theirs(copied: Path) -> None:
    document = json.loads((copied / SETTINGS_FILE).read_text())
    (here,) = {row.processor for row in read_rows(copied)}
    assert document["machine"]["processor"] == here
    document["machine"] |= {"processor": "Of old", "cores": 999}
    (copied / SETTINGS_FILE).write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"processor 'Of old' there, .* --any-processor"):
        evaluate(replace(SETTINGS, seeds=(2,)), copied)
    rows = evaluate(replace(SETTINGS, seeds=(2,)), copied, any_processor=True)
    assert [row.processor for row in rows if row.seed == 2] == [here]
    assert read_settings(copied).machine == document["machine"]


def test_other_packages_are_refused_on_any_processor(copied: Path) -> None:
    document = json.loads((copied / SETTINGS_FILE).read_text())
    document["machine"] |= {"processor": "Of old", "python": "3.0"}
    (copied / SETTINGS_FILE).write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"python '3.0' there, .*; choose another folder$"):
        evaluate(replace(SETTINGS, seeds=(2,)), copied, any_processor=True)


def test_a_solver_is_not_mixed_with_what_it_was_before(copied: Path) -> None:
    _plant(copied, code="0123456789ab")
    with pytest.raises(InputError, match="greedy's rows there were made by other code"):
        evaluate(replace(SETTINGS, seeds=(2,)), copied)
    other = replace(SETTINGS, solvers=("random",), seeds=(0,), time_limit_seconds=0.5)
    assert len(evaluate(other, copied)) == 3


def test_a_program_whose_times_changed_is_not_mixed(copied: Path) -> None:
    _plant(copied, production_seconds=1.0)
    with pytest.raises(InputError, match="its times have changed"):
        evaluate(replace(SETTINGS, seeds=(2,)), copied)
    assert len(read_rows(copied)) == 2


def test_rows_without_their_settings_are_not_guessed_at(copied: Path) -> None:
    (copied / SETTINGS_FILE).unlink()
    with pytest.raises(InputError, match="malloc-game evaluate"):
        evaluate(replace(SETTINGS, seeds=(2,)), copied)


def _plant(directory: Path, **changes: Any) -> None:
    """Changes every row of a table."""
    lines = [json.dumps({**asdict(row), **changes}) for row in read_rows(directory)]
    (directory / RESULTS).write_text("\n".join(lines) + "\n")


def test_a_program_of_ones_own_is_evaluated_like_the_corpus(tmp_path: Path) -> None:
    for part in corpus.DIRECTORY.glob(f"{PROGRAM}.*"):
        shutil.copy(part, tmp_path / part.name.replace("lstm_forward", "mine"))
    own = tmp_path / "mine.v5e.32MiB.before.hlo.gz"
    settings = replace(SETTINGS, programs=(str(own), PROGRAM), seeds=(0,))
    mine, known = sorted(
        evaluate(settings, tmp_path / "table"), key=lambda row: row.program, reverse=True
    )
    assert (mine.program, mine.source, mine.split) == ("mine.v5e.32MiB", str(own), "own")
    assert (known.program, known.source, known.split) == (PROGRAM, PROGRAM, "test")
    assert mine.latency_seconds == known.latency_seconds
    assert mine.production_seconds == known.production_seconds is not None
    assert mine.model_error == known.model_error
    assert mine.is_native is known.is_native is False


def test_a_damaged_bundle_is_a_failed_row_and_no_more(tmp_path: Path) -> None:
    for part in corpus.DIRECTORY.glob(f"{PROGRAM}.*"):
        shutil.copy(part, tmp_path / part.name.replace("lstm_forward", "mine"))
    (tmp_path / "mine.v5e.32MiB.cycles.json").write_text("{")
    own = str(tmp_path / "mine.v5e.32MiB.before.hlo.gz")
    settings = replace(SETTINGS, programs=(own, PROGRAM), seeds=(0,))
    rows = {row.program: row for row in evaluate(settings, tmp_path / "table")}
    assert rows["mine.v5e.32MiB"].status == "failed"
    assert "mine.v5e.32MiB.cycles.json" in str(rows["mine.v5e.32MiB"].error)
    assert rows[PROGRAM].latency_seconds is not None
    report = report_of(tmp_path / "table")
    assert [row.program for row in report.failures] == ["mine.v5e.32MiB"]
    assert {result.program for result in report.results} == {PROGRAM}
    evaluate(replace(settings, programs=(own,)), tmp_path / "nothing")
    assert report_of(tmp_path / "nothing").results == ()


def test_what_failed_is_tried_again_and_the_later_row_counts(tmp_path: Path) -> None:
    for part in corpus.DIRECTORY.glob(f"{PROGRAM}.*"):
        shutil.copy(part, tmp_path / part.name.replace("lstm_forward", "mine"))
    cycles = tmp_path / "mine.v5e.32MiB.cycles.json"
    whole = cycles.read_bytes()
    cycles.write_text("{")
    own = str(tmp_path / "mine.v5e.32MiB.before.hlo.gz")
    settings = replace(SETTINGS, programs=(own, PROGRAM), seeds=(0,))
    evaluate(settings, tmp_path / "table")
    cycles.write_bytes(whole)
    counts: list[tuple[int, int]] = []
    rows = evaluate(settings, tmp_path / "table", on_row=lambda _, *found: counts.append(found))
    assert counts == [(2, 2)]
    assert [row.error for row in rows] == [None, None]
    with (tmp_path / "table" / TABLE).open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_file_that_has_changed_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    own = tmp_path / "mine.hlo.gz"
    shutil.copy(corpus.DIRECTORY / f"{PROGRAM}.before.hlo.gz", own)
    settings = replace(SETTINGS, programs=(str(own),), seeds=(0,), times="analytic")
    (row,) = evaluate(settings, tmp_path / "table")
    assert len(row.source_digest or "") == 12
    shutil.copy(corpus.DIRECTORY / "vgg16_infer.v5e.before.hlo.gz", own)
    with pytest.raises(InputError, match=r"mine\.hlo\.gz was another program"):
        evaluate(settings, tmp_path / "table")


def test_a_lone_file_without_cycles_is_refused_before_anything_runs(tmp_path: Path) -> None:
    own = tmp_path / "mine.hlo.gz"
    shutil.copy(corpus.DIRECTORY / f"{PROGRAM}.before.hlo.gz", own)
    with pytest.raises(InputError, match="no compiler cycles beside it: use --times analytic"):
        evaluate(replace(SETTINGS, programs=(str(own),)), tmp_path / "table")
    assert not (tmp_path / "table").exists()


def test_a_program_document_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "program.json"
    path.write_text(random_program(0).to_json())
    with pytest.raises(InputError, match="is a Program"):
        evaluate(replace(SETTINGS, programs=(str(path),)), tmp_path / "table")


def test_a_chip_that_is_not_known_is_said_before_anything_runs(tmp_path: Path) -> None:
    own = tmp_path / "mine.v3.before.hlo.gz"
    shutil.copy(corpus.DIRECTORY / f"{PROGRAM}.before.hlo.gz", own)
    with pytest.raises(InputError, match=r"mine\.v3\.before\.hlo\.gz: no chip is called 'v3'"):
        evaluate(replace(SETTINGS, programs=(str(own),), times="analytic"), tmp_path / "table")
    assert not (tmp_path / "table").exists()


def test_code_that_changes_meanwhile_ends_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "code_digest", lambda: "0123456789ab")  # Not in the children.
    with pytest.raises(InputError, match="code has changed while it was running"):
        evaluate(SETTINGS, tmp_path)
    assert read_rows(tmp_path) == []


def test_what_is_finished_is_in_the_csv_too_when_an_evaluation_is_interrupted(
    tmp_path: Path,
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(SETTINGS, tmp_path, on_row=interrupt)
    with (tmp_path / TABLE).open() as file:
        assert [line["seed"] for line in csv.DictReader(file)] == ["0"]


def test_versions_that_only_an_earlier_run_knew_are_kept(copied: Path) -> None:
    document = json.loads((copied / SETTINGS_FILE).read_text())
    document["machine"]["packages"]["of-old"] = "1.0"
    (copied / SETTINGS_FILE).write_text(json.dumps(document))
    evaluate(replace(SETTINGS, seeds=(2,)), copied)
    assert read_settings(copied).machine["packages"]["of-old"] == "1.0"


def test_a_name_that_means_another_file_is_refused(copied: Path, tmp_path: Path) -> None:
    for part in corpus.DIRECTORY.glob(f"{PROGRAM}.*"):
        shutil.copy(part, tmp_path)
    own = str(tmp_path / f"{PROGRAM}.before.hlo.gz")
    with pytest.raises(InputError, match=f"{PROGRAM} is {PROGRAM} there, not {own}"):
        evaluate(replace(SETTINGS, programs=(own,)), copied)


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
    for other in ("[1]", "3", '{"seed": ' + "[" * 200_000):
        (tmp_path / RESULTS).write_text(other + "\n")
        with pytest.raises(InputError, match="another version"):
            read_rows(tmp_path)
    infinite = {"production_seconds": float("inf")}
    for wrong in (
        *({"latency_seconds": "x"}, {"latency_seconds": -1.0}, infinite),
        *({"seed": None}, {"curve": [[1]]}),
    ):
        (tmp_path / RESULTS).write_text(json.dumps({**line, **wrong}) + "\n")
        with pytest.raises(InputError, match=f"another version.*\n?.*{next(iter(wrong))}"):
            read_rows(tmp_path)


def test_programs_of_one_name_are_told_by_their_files(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "mine.hlo" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("HloModule m, is_scheduled=true")
    settings = replace(SETTINGS, programs=tuple(map(str, paths)), times="analytic")
    with pytest.raises(InputError, match=rf"twice: mine \(of {paths[0]}, {paths[1]}\): rename"):
        evaluate(settings, tmp_path / "new")


def test_a_task_that_hangs_is_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_processes, "OVERTIME_SECONDS", -10.0)
    # This solver uses its whole limit, so its row cannot be there before the deadline is looked at.
    settings = replace(SETTINGS, seeds=(0,), solvers=("large-neighbourhood",))
    (row,) = evaluate(settings, tmp_path)
    assert row.status == "failed"
    assert row.error == "did not return in time"
    assert row.program == PROGRAM


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_tasks_beside_each_other_have_processors_of_their_own() -> None:
    here = os.sched_getaffinity(0)
    each = processor_sets(len(here), 1)
    assert {processor for one in each if one is not None for processor in one} == here
    assert all(one is not None and len(one) == 1 for one in each)
    assert processor_sets(1, len(here)) == [frozenset(here)]
    assert processor_sets(2, len(here)) == [None, None]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_task_stays_on_its_processors(tmp_path: Path) -> None:
    settings = replace(SETTINGS, solvers=("greedy",))
    inbox, outbox = multiprocessing.Pipe(duplex=False)
    one = frozenset(list(os.sched_getaffinity(0))[:1])
    (tmp_path / MAPS).mkdir()
    work = functools.partial(_work_and_tell, tmp_path / "seen")
    process = multiprocessing.get_context("spawn").Process(
        target=work, args=(Task(source_of(PROGRAM), "greedy", 0), settings, tmp_path, one, outbox)
    )
    process.start()
    assert inbox.recv().error is None
    process.join()
    assert (tmp_path / "seen").read_text() == str(sorted(one))


def _work_and_tell(path: Path, *arguments: Any) -> None:
    task_processes._work(*arguments)
    path.write_text(str(sorted(os.sched_getaffinity(0))))


def test_one_evaluation_at_a_time_writes_into_a_folder(copied: Path) -> None:
    more = replace(SETTINGS, seeds=(2,))
    before = (copied / RESULTS).read_bytes()
    with held(copied), pytest.raises(InputError, match="another process is writing"):
        evaluate(more, copied)
    assert (copied / RESULTS).read_bytes() == before
    assert len(evaluate(more, copied)) == 3


def test_a_killed_evaluation_leaves_no_process_and_no_half_row(tmp_path: Path) -> None:
    arguments = ["evaluate", PROGRAM, "--solvers", "portfolio", "--time-limit", "60"]
    directory = tmp_path / "killed"
    parent = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *arguments, "-o", directory],
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    wait_until(lambda: len(processes_of(parent.pid)) >= 3)
    parent.kill()
    parent.wait()
    wait_until(lambda: not processes_of(parent.pid))
    assert read_rows(directory) == []


def test_an_evaluation_that_is_ended_leaves_nothing_in_temporary_folders(tmp_path: Path) -> None:
    arguments = ["evaluate", PROGRAM, "--solvers", "portfolio", "--time-limit", "60"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *arguments, "-o", tmp_path / "ended"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    wait_until(lambda: any(temporary.iterdir()))
    os.killpg(parent.pid, signal.SIGINT)
    parent.terminate()  # What a shell starts in the background ignores the former.
    _, complaints = parent.communicate(timeout=60.0)
    wait_until(lambda: not processes_of(parent.pid))
    assert list(temporary.iterdir()) == []
    assert "Traceback" not in complaints


@pytest.mark.slow
def test_compiling_the_game_is_no_searching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh checkout it took the first rows' time, and more."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "compiled"))
    chosen = quick_settings(solvers=("random",), time_limit_seconds=3.0)
    (row,) = evaluate(chosen, tmp_path / "table")
    assert any((tmp_path / "compiled").iterdir())
    assert row.games_played is not None
    assert row.games_played > 1_000
    assert row.wall_seconds is not None
    assert row.wall_seconds < 6.0


def test_suites_are_the_sides_of_the_split() -> None:
    train, test = set(programs_of("train")), set(programs_of("test"))
    assert train | test == set(programs_of("all")) == set(corpus.names())
    assert not train & test
    with pytest.raises(InputError, match="no suite"):
        programs_of("exam")


def test_programs_are_called_by_their_files(tmp_path: Path) -> None:
    for name, wanted in (("own.v1.hlo", "own"), (".hidden.hlo", "hidden")):
        path = tmp_path / name
        path.write_text("HloModule m")
        assert source_of(str(path)).name == wanted


def test_rows_survive_the_file(tmp_path: Path, finished: Path) -> None:
    row = read_rows(finished)[0]
    other = replace(row, seed=7, error='a "quoted"\nline')
    append_row(tmp_path, other)
    append_row(tmp_path, row)
    assert read_rows(tmp_path) == [other, row]


def test_a_folder_without_a_table_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="malloc-game evaluate"):
        read_rows(tmp_path)


def test_a_table_of_which_the_csv_was_kept_can_be_read_but_not_added_to(
    tmp_path: Path, finished: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in (TABLE, SETTINGS_FILE):
        shutil.copy(finished / name, kept / name)
    rows = {row.key: row for row in read_rows(kept)}
    assert rows == {row.key: replace(row, curve=()) for row in read_rows(finished)}
    with pytest.raises(InputError, match=r"only results\.csv was kept"):
        evaluate(SETTINGS, kept)
    (kept / TABLE).write_text((kept / TABLE).read_text().replace("greedy,0,", "greedy,none,", 1))
    with pytest.raises(InputError, match=r"results\.csv: row 1, seed: Input should be a valid int"):
        read_rows(kept)
