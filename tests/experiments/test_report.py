"""Reports: figures recomputed from the table file, regressions named, and the page in a browser."""

from __future__ import annotations

import csv
import gzip
import html
import json
import math
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings

from experiments.evaluate import evaluate
from experiments.folder import map_path, read_settings
from experiments.inputs import load_map, load_program
from experiments.report.charts import charts
from experiments.report.contents import report_of, sections, side_by_side
from experiments.report.explain import Reason, slow_accesses
from experiments.report.markdown import markdown
from experiments.report.page import MARKDOWN, PAGE, write_report
from experiments.report.picture import PicturedMap, map_document, program_document
from experiments.report.retimings import ranking, retime, retimed_rows
from experiments.report.statistics import (
    anytime_curves,
    compare,
    performance_profile,
    program_results,
    regressions,
    retimed_programs,
    summarise,
)
from experiments.results import RESULTS, TABLE, Row, TimeModel, append_row, read_rows
from hlo_graphs import corpus
from hlo_graphs.errors import InputError
from hlo_graphs.program import Loop, Program
from malloc_game.memory_map import MemoryMap, ReplacedCopy, Residency, Source, to_document
from malloc_game.simulate import fast_accesses, simulate
from malloc_game.validate import validate
from malloc_game.violations import InvalidMapError
from tests.experiments.quick import quick_settings
from tests.malloc_game.small import program_of
from tests.strategies import programs_with_maps

PROGRAMS = ("lstm_forward.v5e", "lstm_forward.v5e.32MiB")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    settings = quick_settings(
        programs=PROGRAMS, solvers=("greedy", "large-neighbourhood"), time_limit_seconds=1.0
    )
    evaluate(settings, directory, parallel=2, command="malloc-game evaluate ...")
    write_report(directory)
    return directory


def row(program: str, solver: str, latency: float, **changes: object) -> Row:
    plain = Row(
        program=program,
        source=program,
        family=program.split("_")[0],
        split="test",
        chip="v5e",
        capacity_bytes=2**20,
        is_native=True,
        times="calibrated",
        copy_order="deadline",
        busy="bytes",
        solver=solver,
        seed=0,
        time_limit_seconds=1.0,
        workers_per_task=1,
        code="0123456789ab",
        status="feasible",
        latency_seconds=latency,
        production_seconds=1.0,
        lower_bound_seconds=0.5,
        model_error=0.02,
        stall_seconds=0.0,
        wall_seconds=1.0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_figures_are_those_of_the_table_file(evaluated: Path) -> None:
    """The mean, median, wins and losses again, from the CSV alone."""
    with (evaluated / TABLE).open() as file:
        lines = list(csv.DictReader(file))
    for summary in summarise(program_results(read_rows(evaluated))):
        speedups = [
            float(line["production_seconds"]) / float(line["latency_seconds"])
            for line in lines
            if line["solver"] == summary.solver
        ]
        logs = [math.log(s) for s in speedups]
        assert summary.num_programs == len(speedups) == len(PROGRAMS)
        assert summary.geometric_mean == pytest.approx(math.exp(sum(logs) / len(logs)))
        assert summary.median == pytest.approx(statistics.median(speedups))
        assert summary.wins == sum(s >= 1.005 for s in speedups)
        assert summary.losses == sum(s <= 0.995 for s in speedups)
        low, high = summary.geometric_interval
        assert min(speedups) - 1e-12 <= low <= summary.geometric_mean <= high + 1e-12


def test_ties_safe_wins_and_losses() -> None:
    latencies = {"a": 0.9, "b": 0.99, "c": 1.004, "d": 1.2}
    (summary,) = summarise(program_results(row(p, "s", t) for p, t in latencies.items()))
    assert (summary.wins, summary.safe_wins, summary.ties, summary.losses) == (2, 1, 1, 1)
    assert summary.median_gap == pytest.approx(statistics.median([0.8, 0.98, 1.008, 1.4]))


def test_headroom_is_judged_by_the_best_bound_of_all_solvers() -> None:
    rows = [row("a", "s", 0.999, lower_bound_seconds=None), row("a", "t", 1.0)]
    assert all(r.has_headroom for r in program_results(rows))
    closer = [*rows, row("a", "u", 1.0, lower_bound_seconds=0.998)]
    assert not any(r.has_headroom for r in program_results(closer))


def test_failures_are_counted_and_never_dropped() -> None:
    failed = row("b", "s", 0.0, latency_seconds=None, status="failed", error="why", seed=1)
    (result,) = program_results([row("b", "s", 0.9, all_slow_seconds=1.5), failed])
    assert (result.failures, result.status) == (1, "1 of 2 failed")
    assert result.latency_seconds == pytest.approx((0.9 + 1.5) / 2)
    assert result.row.latency_seconds == 0.9
    assert result.spread == pytest.approx((1 / 1.5, 1 / 0.9))


def test_a_solver_that_always_fails_leaves_the_program_slow() -> None:
    nothing = {"latency_seconds": None, "production_seconds": None, "error": "why"}
    failed = row("a", "s", 0.0, status="failed", all_slow_seconds=None, **nothing)
    rows = [failed, row("a", "t", 0.9, all_slow_seconds=2.0)]
    by_solver = {summary.solver: summary for summary in summarise(program_results(rows))}
    assert (by_solver["s"].failures, by_solver["s"].losses) == (1, 1)
    assert by_solver["s"].geometric_mean == pytest.approx(0.5)
    (found,) = regressions(compare([row("a", "s", 0.8), rows[1]], rows))
    assert found.solver == "s"


def test_a_program_that_no_solver_could_do_stays_slow_too() -> None:
    failed = row("b", "s", 0.0, all_slow_seconds=2.0, status="failed", error="killed")
    failed = replace(failed, latency_seconds=None, lower_bound_seconds=None, wall_seconds=61.0)
    (summary,) = summarise(program_results([row("a", "s", 0.8), failed]))
    assert summary.num_programs == 2
    assert summary.geometric_mean == pytest.approx(math.sqrt(1.25 * 0.5))
    assert (summary.wins, summary.losses, summary.failures) == (1, 1, 1)
    assert summary.median_wall_seconds == 31.0


def test_what_was_solved_and_fails_now_is_a_regression() -> None:
    before = [row("a", "s", 0.8, all_slow_seconds=2.0)]
    failed = replace(before[0], latency_seconds=None, status="failed", error="killed")
    (found,) = regressions(compare(before, [failed]))
    assert (found.before_seconds, found.after_seconds) == (0.8, 2.0)


def test_a_program_that_takes_another_time_by_itself_is_no_solvers_doing() -> None:
    before = [row(name, "s", 0.8, all_slow_seconds=2.0) for name in ("a", "b", "c")]
    after = [
        replace(before[0], all_slow_seconds=3.0, latency_seconds=0.9),
        replace(before[1], production_seconds=1.5, latency_seconds=0.9),
        replace(before[2], latency_seconds=0.9),
    ]
    assert retimed_programs(before, after) == ("a", "b")
    assert [change.program for change in compare(before, after)] == ["c"]


def test_a_win_is_not_safe_where_the_models_error_is_not_known() -> None:
    (result,) = program_results([row("a", "s", 0.5, model_error=None)])
    assert result.outcome == "win"
    assert not result.is_safe_win


def test_seeds_are_put_together_and_their_spread_is_shown() -> None:
    rows = [row("a", "s", 0.8, games_played=10), row("a", "s", 0.5, seed=1, games_played=30)]
    rows += [row("a", "s", 0.9, seed=2, games_played=20), row("b", "s", 0.5)]
    several, one = program_results(rows)
    assert several.speedup == pytest.approx(1 / 0.8)
    assert several.spread == pytest.approx((1 / 0.9, 1 / 0.5))
    assert several.games_played == 20
    assert one.spread is None


def test_stalls_and_statuses_are_those_of_all_seeds() -> None:
    seeds = [
        row("a", "s", 0.5, seed=0, status="optimal"),
        row("a", "s", 0.9, seed=1, stall_seconds=0.3),
    ]
    (result,) = program_results(seeds)
    assert result.latency_seconds == pytest.approx(0.7)
    assert result.stall_seconds == pytest.approx(0.15)
    assert result.status == "feasible"


def test_a_report_names_a_program_whose_cycles_are_gone(tmp_path: Path) -> None:
    for path in corpus.DIRECTORY.glob(f"{PROGRAMS[0]}.*"):
        shutil.copy(path, tmp_path)
    own = str(tmp_path / f"{PROGRAMS[0]}.before.hlo.gz")
    evaluate(quick_settings(programs=(own,), time_limit_seconds=1.0), tmp_path / "table")
    (tmp_path / f"{PROGRAMS[0]}.cycles.json").unlink()
    with pytest.raises(InputError, match=r"before\.hlo\.gz: cannot be timed as in the table"):
        report_of(tmp_path / "table")


def test_names_end_no_cell_of_a_table(evaluated: Path) -> None:
    report = report_of(evaluated)
    named = tuple(replace(result, program="a|b") for result in report.results)
    assert "| a\\|b | greedy |" in markdown(replace(report, results=named))


def test_solvers_stand_side_by_side_the_best_first() -> None:
    rows = [row("b", "t", 0.5), row("a", "t", 0.8), row("a", "s", 0.9)]
    rows.append(row("c", "t", 0.5, production_seconds=None))
    table = side_by_side(program_results(rows))
    assert table.solvers == ("t", "s")
    cells = {name: [r and r.latency_seconds for r in found] for name, found in table.lines}
    assert cells == {"a": [0.8, 0.9], "b": [0.5, None]}


def test_a_planted_regression_is_named() -> None:
    before = [row("a", "s", 0.9), row("b", "s", 0.8), row("c", "s", 0.7)]
    after = [row("a", "s", 0.9), row("b", "s", 0.82), row("c", "s", 0.6)]
    (found,) = regressions(compare(before, after))
    assert (found.program, found.solver) == ("b", "s")
    assert found.ratio == pytest.approx(1.025)


def test_tables_with_other_limits_compare_by_the_limits_they_share() -> None:
    before = [row("a", "s", 0.5, time_limit_seconds=10.0)]
    after = [row("a", "s", 1.0, time_limit_seconds=seconds) for seconds in (10.0, 60.0)]
    (found,) = compare(before, after)
    assert (found.solver, found.ratio) == ("s, 10 s", 2.0)
    assert compare(before, after[1:]) == []


def test_tables_timed_differently_do_not_compare(evaluated: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(evaluated, other)
    settings = json.loads((other / "settings.json").read_text())
    settings["model"]["copy_order"] = "fifo"
    (other / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="do not compare"):
        report_of(evaluated, other)


def test_a_program_without_cycles_is_left_out_of_the_other_times(tmp_path: Path) -> None:
    lone = tmp_path / "lone.hlo"
    bundled = corpus.DIRECTORY / f"{PROGRAMS[0]}.before.hlo.gz"
    lone.write_bytes(gzip.decompress(bundled.read_bytes()))
    chosen = quick_settings(
        programs=(str(lone), PROGRAMS[1]),
        solvers=("greedy", "large-neighbourhood"),
        time_limit_seconds=1.0,
        times="analytic",
    )
    evaluate(chosen, tmp_path / "table")
    retiming = report_of(tmp_path / "table").retiming
    assert retiming.without_cycles == ("lone",)
    assert "Left out, having no compiler's cycles to be timed with: lone." in retiming.note
    assert [ranking.num_programs for ranking in retiming.rankings] == [1]
    evaluate(replace(chosen, programs=(str(lone),)), tmp_path / "alone")
    assert report_of(tmp_path / "alone").retiming.rankings == ()


def test_limits_that_only_some_programs_have_name_solvers_alike_under_all_times(
    tmp_path: Path,
) -> None:
    lone = tmp_path / "lone.hlo"
    bundled = corpus.DIRECTORY / f"{PROGRAMS[0]}.before.hlo.gz"
    lone.write_bytes(gzip.decompress(bundled.read_bytes()))
    own = quick_settings(programs=(PROGRAMS[1],), times="analytic")
    evaluate(own, tmp_path / "table")
    evaluate(replace(own, programs=(str(lone),), time_limit_seconds=1.0), tmp_path / "table")
    retiming = report_of(tmp_path / "table").retiming
    assert retiming.without_cycles == ("lone",)
    assert [solver for solver, _ in retiming.rankings[0].lines] == ["greedy, 2 s"]


def test_a_program_that_takes_no_time_is_reported(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.hlo"
    nothing.write_text(
        "HloModule nothing, is_scheduled=true\n\n"
        "ENTRY e {\n  ROOT p = f32[8]{0:T(256)} parameter(0)\n}\n"
    )
    own = quick_settings(programs=(str(nothing),), times="analytic")
    (only,) = evaluate(own, tmp_path / "table")
    assert only.latency_seconds == 0.0
    write_report(tmp_path / "table")
    assert report_of(tmp_path / "table").retiming.changed == ()
    still = row("a", "s", 0.0, production_seconds=0.0, lower_bound_seconds=0.0)
    (result,) = program_results([still])
    assert (result.speedup, result.gap) == (1.0, None)
    assert [line.factors for line in performance_profile([result])] == [(1.0,), (1.0,)]


def test_a_profile_ends_where_its_axis_does() -> None:
    rows = [row("a", "s", 0.5), row("a", "t", 0.6), row("b", "s", 0.9), row("b", "t", 0.9)]
    profile, *_ = charts(rows, program_results(rows))
    production, best, worse = re.findall(r'<path d="M([^"]*)" fill', profile.svg)[::2]
    tops = [min(float(point.split()[1]) for point in line.split("L")) for line in (best, worse)]
    assert tops == [20.0, 20.0]
    # Of two programs production is within the axis on one; on the other it takes twice the best.
    assert min(float(point.split()[1]) for point in production.split("L")) == (20.0 + 254.0) / 2


def test_a_solver_has_settled_when_its_latency_improves_no_more() -> None:
    def settled(*curves: tuple[tuple[float, float | None, float | None], ...]) -> float | None:
        rows = [row("a", "s", 0.5, seed=seed, curve=c) for seed, c in enumerate(curves)]
        (result,) = program_results(rows)
        return result.settled_seconds

    late = ((0.1, None, 0.4), (0.2, 0.9, 0.4), (3.0, 0.50001, 0.4), (9.0, 0.5, 0.45))
    assert settled(late) == 3.0
    assert settled(((1.0, 0.5001, None), (2.0, 0.5, None))) == 2.0
    assert settled(late, ((1.0, 0.5, None),), ((8.0, 0.5, None),)) == 3.0
    assert settled(late, ()) is None


def test_curves_are_of_the_programs_that_all_solvers_ran_on() -> None:
    curve = ((0.5, 0.6, None),)
    rows = [
        row("a", "s", 0.6, curve=curve, all_slow_seconds=1.0),
        row("a", "t", 1.0, all_slow_seconds=1.0),
        row("b", "s", 0.9, curve=((0.5, 0.9, None),), all_slow_seconds=1.0),
        row("b", "t", 0.6, curve=curve, all_slow_seconds=1.0),
        row("c", "s", 0.6, curve=curve, all_slow_seconds=1.0),
    ]
    lines = {line.solver: line.gaps for line in anytime_curves(rows, {"a", "b"}, [0.0, 1.0])}
    assert lines["s"] == pytest.approx((1.0, 0.5))
    assert lines["t"] == pytest.approx((1.0, 0.6))
    assert anytime_curves(rows[1:2], {"a"}, [1.0]) == []


def test_curves_of_a_solver_that_fails_are_of_no_easier_programs() -> None:
    curve = ((0.0, 0.6, None),)
    rows = [
        row(program, solver, 0.6, all_slow_seconds=1.0, curve=curve)
        for solver in ("s", "t")
        for program in ("a", "b", "c")
    ]
    for index in (4, 5):
        rows[index] = replace(rows[index], latency_seconds=None, curve=(), error="killed")
    lines = {line.solver: line.gaps for line in anytime_curves(rows, {"a", "b", "c"}, [1.0])}
    assert lines["s"] == pytest.approx((0.2,))
    assert lines["t"] == pytest.approx((1.0,))


def test_programs_without_a_bound_are_said_to_have_none() -> None:
    rows = [row("a", "s", 0.9, lower_bound_seconds=None), row("b", "s", 0.8)]
    assert sections(program_results(rows))[0].note == (
        "2 programs of 2 families. Of 1 no bound is known, nor whether there is headroom."
    )


def test_another_table_is_looked_for_before_anything_is_timed(
    evaluated: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="settings"):
        write_report(evaluated, tmp_path, say=said.append)
    assert said == []


def test_a_profile_says_how_often_a_solver_is_within_a_factor() -> None:
    rows = [row("a", "s", 0.5), row("b", "s", 1.5), row("a", "t", 1.0), row("b", "t", 0.75)]
    lines = {line.solver: line for line in performance_profile(program_results(rows))}
    assert lines["s"].factors == pytest.approx((1.0, 2.0))
    assert lines["t"].factors == pytest.approx((1.0, 2.0))
    assert lines["production"].factors == pytest.approx((4 / 3, 2.0))
    assert lines["s"].shares == (0.5, 1.0)
    rows += [row("c", "s", 1.0, production_seconds=None)]
    lines = {line.solver: line for line in performance_profile(program_results(rows))}
    assert lines["production"].shares == (0.5, 1.0), "of the programs on which it is known"
    assert lines["t"].shares == pytest.approx((1 / 3, 2 / 3))


def test_solvers_with_other_limits_are_told_apart_and_do_not_mix() -> None:
    rows = [row("a", "s", 0.9), row("a", "s", 0.8, time_limit_seconds=10.0), row("a", "t", 0.7)]
    results = program_results(rows)
    assert [r.solver for r in results] == ["s, 1 s", "s, 10 s", "t, 1 s"]
    assert [r.latency_seconds for r in results] == [0.9, 0.8, 0.7]
    assert program_results(rows[:1])[0].solver == "s"


def test_means_over_different_programs_are_said_not_to_compare() -> None:
    rows = [row("a", "s", 0.9), row("b", "s", 0.8), row("a", "t", 0.7)]
    first, second, *_ = sections(program_results(rows))
    assert first.title == "Programs with headroom that every solver ran on"
    assert {s.solver: s.num_programs for s in first.summaries} == {"s": 1, "t": 1}
    assert {s.solver: s.num_programs for s in second.summaries} == {"s": 2, "t": 1}
    assert "do not compare" not in first.note
    assert "do not compare" in second.note


def test_a_program_without_productions_map_is_shown_and_not_compared() -> None:
    rows = [row("a", "s", 0.9, production_seconds=None), row("b", "s", 0.8)]
    alone, beside = program_results(rows)
    assert (alone.speedup, alone.outcome, alone.has_headroom) == (None, "unknown", False)
    assert alone.gap == pytest.approx(0.8)
    (summary,) = summarise([alone, beside])
    assert (summary.num_programs, summary.wins) == (1, 1)


@pytest.mark.parametrize(
    ("times", "copy_order", "busy"),
    [("analytic", "deadline", "bytes"), ("calibrated", "fifo", "bytes")],
)
def test_retimed_means_are_those_of_the_stored_maps(
    evaluated: Path, times: str, copy_order: str, busy: str
) -> None:
    """Again from the map files alone: load, simulate, multiply."""
    rows = read_rows(evaluated)
    retiming = retime(
        evaluated, rows, program_results(rows), TimeModel("calibrated", "deadline", "bytes")
    )
    assert not retiming.changed
    assert [found.num_programs for found in retiming.rankings] == [1, 1]
    label = TimeModel(times, copy_order, busy).label
    for found, program in zip(retiming.rankings, PROGRAMS, strict=True):
        loaded = load_program(program, times=times, busy=busy)
        assert loaded.production_map is not None
        production = simulate(loaded.program, loaded.production_map, copy_order).latency_ticks
        speedups = {}
        for path in (evaluated / "maps").glob(f"{program}.[gl]*.json"):
            memory_map = MemoryMap.from_json(path.read_text())
            solver = path.name.removeprefix(f"{program}.").split(".")[0]
            ours = simulate(loaded.program, memory_map, copy_order).latency_ticks
            speedups[solver] = production / ours
        column = found.labels.index(label)
        shown = {solver: standings[column] for solver, standings in found.lines}
        assert shown.keys() == speedups.keys()
        for solver, standing in shown.items():
            assert standing.geometric_mean == pytest.approx(speedups[solver], rel=1e-12)
            assert standing.losses == (speedups[solver] <= 0.995)
            better = [s for s in speedups.values() if f"{s:.4f}" > f"{speedups[solver]:.4f}"]
            assert standing.rank == 1 + len(better)


def test_a_failed_row_has_the_programs_times_under_each_model(
    evaluated: Path, tmp_path: Path
) -> None:
    shutil.copytree(evaluated, tmp_path / "table")
    rows = read_rows(evaluated)
    failed = replace(
        next(row for row in rows if row.solver == "greedy"),
        latency_seconds=None,
        lower_bound_seconds=None,
        curve=(),
        status="failed",
        error="killed",
    )
    kept = [row for row in rows if row.key != failed.key]
    model = read_settings(evaluated).model
    analytic = TimeModel("analytic", "deadline", "bytes")
    tables = retimed_rows(tmp_path / "table", [*kept, failed], (model, analytic))
    (again,) = (row for row in tables[analytic] if row.key == failed.key)
    program = load_program(failed.source, times="analytic").program
    assert again.all_slow_seconds == program.all_slow_ticks * program.tick_seconds
    assert again.all_slow_seconds != failed.all_slow_seconds


def test_a_latency_that_is_not_reproduced_is_named(evaluated: Path) -> None:
    rows = read_rows(evaluated)
    rows[0] = replace(rows[0], latency_seconds=1.0)
    model = TimeModel("calibrated", "deadline", "bytes")
    retiming = retime(evaluated, rows, program_results(rows), model)
    assert retiming.changed == (rows[0],)
    assert "has changed since" in retiming.note


def test_a_stored_map_that_breaks_a_rule_is_reported(evaluated: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(evaluated, copied)
    for path in (copied / "maps").glob(f"{PROGRAMS[1]}.greedy*"):
        memory_map = MemoryMap.from_json(path.read_text())
        first = memory_map.residencies[0]
        twice = replace(memory_map, residencies=(*memory_map.residencies, first))
        path.write_text(json.dumps(to_document(twice)))
    with pytest.raises(InvalidMapError, match="not valid for"):
        write_report(copied, pictures=False)


def test_without_its_maps_nothing_is_timed_again(evaluated: Path, tmp_path: Path) -> None:
    rows = read_rows(evaluated)
    model = TimeModel("calibrated", "deadline", "bytes")
    retiming = retime(tmp_path, rows, program_results(rows), model)
    assert len(retiming.missing) == len(rows)
    assert not retiming.rankings
    assert "4 maps are not in the folder" in retiming.note


def test_solvers_that_change_places_are_named() -> None:
    tables = {
        TimeModel("calibrated", "deadline", "bytes"): [row("a", "s", 0.8), row("a", "t", 0.9)],
        TimeModel("analytic", "deadline", "bytes"): [row("a", "s", 1.2), row("a", "t", 0.9)],
    }
    found = ranking("one", tables, {"a"})
    assert [(s, [x.rank for x in standings]) for s, standings in found.lines] == [
        ("s", [1, 2]),
        ("t", [2, 1]),
    ]
    assert [x.losses for x in dict(found.lines)["s"]] == [0, 1]
    assert found.moved == ("s", "t")


def test_means_that_look_the_same_share_a_rank() -> None:
    model = TimeModel("calibrated", "deadline", "bytes")
    rows = [row("a", "s", 0.9), row("a", "t", 0.9 + 1e-7), row("a", "u", 1.0)]
    found = ranking("one", {model: rows}, {"a"})
    assert {solver: standing.rank for solver, (standing,) in found.lines} == {
        "s": 1,
        "t": 1,
        "u": 3,
    }


def test_why_a_tensor_is_slow() -> None:
    steps = [(9, "ra"), (1, "rb"), (1, "rc"), (9, "rd"), (1, "re"), (5, "rf")]
    sizes = {"a": 1, "b": 5, "c": 1, "d": 9, "e": 2, "f": 1}
    program = program_of(sizes, steps, capacity=8, forbidden="c")
    found = slow_accesses(program, MemoryMap(), limit=6)
    assert {program.buffers[s.buffer].name: s.reason for s in found} == {
        "a": Reason.NOT_WORTH,
        "b": Reason.MISSED,  # 8 idle ticks before it
        "c": Reason.NOT_ALLOWED,
        "d": Reason.TOO_LARGE,
        "e": Reason.MISSED,
        "f": Reason.NOT_WORTH,
    }


def test_why_a_tensor_is_slow_in_a_loop() -> None:
    """The copy of `a` costs 4 ticks, of which nothing hides any: worth it for three trips only."""
    for trips, reason in ((1, Reason.NO_TIME), (3, Reason.MISSED)):
        loop = Loop(0, 1, trips, 1.0, None)
        program = program_of({"a": 4}, [(0, "ra")], loops=[loop])
        (found,) = slow_accesses(program, MemoryMap(), limit=1)
        assert found.reason is reason
        assert found.cost_seconds == 4 * trips


def test_an_access_has_no_room_beside_what_fills_the_memory() -> None:
    program = program_of({"a": 8, "b": 1}, [(9, "ra"), (0, "ra rb"), (9, "ra")])
    full = MemoryMap((Residency(0, 0, 0, 3, Source.COPIED, 0),))
    (found, *_) = slow_accesses(program, full, limit=1)
    assert found.reason is Reason.NO_ROOM


@settings(max_examples=150)
@given(programs_with_maps(max_accesses=16))
def test_why_a_read_is_slow_is_what_trying_every_copy_shows(
    case: tuple[Program, MemoryMap],
) -> None:
    """Every start and every address of a copy for this read alone, outside of loops."""
    program, memory_map = case
    assume(not program.loops)
    latency = simulate(program, memory_map).latency_ticks
    for slow in slow_accesses(program, memory_map, limit=16):
        if slow.kind != "read" or slow.reason in (Reason.NOT_ALLOWED, Reason.NOT_WORTH):
            continue
        if slow.reason is Reason.TOO_LARGE:
            assert slow.size_bytes > program.capacity_bytes
            continue
        found = [
            simulate(program, candidate).latency_ticks
            for candidate in copies_for(program, memory_map, slow.buffer, slow.step)
            if not validate(program, candidate)
        ]
        if any(ticks < latency for ticks in found):
            assert slow.reason is Reason.MISSED
        elif found:
            assert slow.reason is Reason.NO_TIME
        else:
            assert slow.reason in (Reason.NO_ROOM, Reason.NOT_ALONE)


def copies_for(
    program: Program, memory_map: MemoryMap, buffer: int, step: int
) -> Iterator[MemoryMap]:
    unit = program.machine.alignment_bytes
    for offset in range(0, program.capacity_bytes, unit):
        for start in range(step + 1):
            added = Residency(buffer, offset, start, step + 1, Source.COPIED, step)
            yield replace(memory_map, residencies=(*memory_map.residencies, added))


def test_the_markdown_has_every_result(evaluated: Path) -> None:
    text = (evaluated / MARKDOWN).read_text()
    for program in PROGRAMS:
        for solver in ("greedy", "large-neighbourhood"):
            assert f"| {program} | {solver} |" in text


def test_a_table_of_several_processors_says_which_made_what(
    evaluated: Path, tmp_path: Path
) -> None:
    (here,) = report_of(evaluated).processors
    assert here not in (evaluated / MARKDOWN).read_text()
    other = Path(shutil.copytree(evaluated, tmp_path / "other"))
    settings = json.loads((other / "settings.json").read_text())
    settings["machine"]["processor"] = "Of old"
    (other / "settings.json").write_text(json.dumps(settings))
    old = [replace(r, processor=None) for r in read_rows(other) if r.solver == "greedy"]
    new = [replace(r, processor="Of late") for r in read_rows(other) if r.solver != "greedy"]
    (other / RESULTS).unlink()
    for r in (*old, *new):
        append_row(other, r)
    write_report(other)
    words = "several processors: Of late (large-neighbourhood); Of old (greedy)."
    assert words in (other / MARKDOWN).read_text()
    assert words in (other / PAGE).read_text()


def test_the_page_needs_nothing_but_itself(evaluated: Path) -> None:
    page = (evaluated / PAGE).read_text()
    assert "http://" not in page
    assert "https://" not in page
    data = page.split('type="application/json">')[1].split("</script>")[0]
    pictures = json.loads(data.replace("<\\/", "</"))
    assert [p["program"]["name"] for p in pictures] == list(PROGRAMS)
    assert [m["heading"] for m in pictures[0]["maps"]][1] == "production"


@pytest.mark.parametrize(("name", "num_replaced"), [("lstm_forward", 0), ("gru_train", 1)])
def test_a_picture_knows_which_accesses_are_fast(name: str, num_replaced: int) -> None:
    loaded = load_program(name)
    assert loaded.production_map is not None
    drawn = map_document(loaded.program, PicturedMap("production", loaded.production_map))
    fast = {(step, buffer) for step, held in enumerate(drawn["fast"]) for buffer in held}
    assert fast == fast_accesses(loaded.program, loaded.production_map)
    assert fast
    assert drawn["replaced"] == [copy.step for copy in loaded.production_map.replaced_copies]
    assert len(drawn["replaced"]) == num_replaced
    used = program_document(loaded.program)["accesses"]
    for step, instruction in enumerate(loaded.program.instructions):
        assert used[step] == [[a.buffer, a.kind] for a in instruction.accesses]


def _dom_of(page: Path, profile: Path) -> str:
    """What a browser makes of a page, once its scripts have run."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    arguments = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--dump-dom"),
    ]
    done = subprocess.run(
        [browser, *arguments, f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_the_page_draws_itself_in_a_browser(evaluated: Path, tmp_path: Path) -> None:
    dom = _dom_of(evaluated / PAGE, tmp_path)
    assert dom.count("<canvas") == 2  # ours and production's
    assert len(re.findall(r"<h4>[^<]*, of which stalls", dom)) == 2
    assert dom.count("<th>why slow</th>") == 2


_GESTURES = """
<pre id="outcome"></pre><script>
const picture = showPicture(document.getElementById("picture"), pictures[0]), outcome = [];
window.onerror = (message) => { outcome.push(message); };
const [view] = picture.views, { canvas } = view, { told, tip } = picture;
const [, start, end, low, high] = view.map.pieces[0], box = canvas.getBoundingClientRect();
const at = {
  clientX: box.left + view.x((start + end) / 2),
  clientY: box.top + view.y((low + high) / 2),
  pointerId: 1,
  cancelable: true,
};
canvas.setPointerCapture = () => {};  // made up pointers cannot be captured
const send = (name, more) => {
  const Kind = name === "wheel" ? WheelEvent : PointerEvent;
  return canvas.dispatchEvent(new Kind(name, { ...at, ...more }));
};
const press = (key) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key }));
const range = () => outcome.push(picture.range.join(" "));

send("pointermove");
outcome.push(tip.textContent.split("\\n")[0]);
send("pointerdown", { button: 2, buttons: 2 });
send("pointerup", { button: 2 });
outcome.push(told.textContent);
send("pointerdown", { buttons: 1 });
send("pointerup");
send("click", { detail: 1 });
outcome.push(told.textContent);
outcome.push([100, -100].map((deltaY) => send("wheel", { deltaY })).join(" "));
press("Escape");
outcome.push(told.textContent);
press("0");
range();
for (let times = 0; times < 9; times++) press("+");
press("ArrowRight");
for (let times = 0; times < 99; times++) press("ArrowLeft");
range();
send("pointerdown", { buttons: 1 });
const left = at.clientX - (view.x(1) - view.x(0));
send("pointermove", { buttons: 1, clientX: left });
send("pointerup", { clientX: left });
send("click", { detail: 1, clientX: left });
outcome.push(picture.range.map(Math.round).join(" "));
outcome.push(told.textContent);
send("dblclick");
range();
document.querySelector("#picture details button").click();
outcome.push(told.textContent);
document.getElementById("outcome").textContent = JSON.stringify(outcome);
</script></body>
"""


def test_a_tensor_is_followed_and_let_go_in_a_browser(evaluated: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text((evaluated / PAGE).read_text().replace("</body>", _GESTURES))
    found = re.search(r'<pre id="outcome">(.*?)</pre>', _dom_of(page, tmp_path / "profile"))
    assert found is not None
    outcome = json.loads(html.unescape(found[1]))
    hint, last = outcome[1], len(load_program(PROGRAMS[0]).program.instructions) + 1
    name, _, held, wheel, let_go, all_shown, first_shown, dragged, undone, reset, looked_at = (
        outcome
    )
    assert hint.startswith("Point at a tensor")  # another button holds nothing
    assert held.startswith(f"{name}, ")
    assert wheel == "true false"  # the page's where nothing more can be shown; the picture's
    assert let_go == undone == hint  # a drag is no click
    assert all_shown == reset == f"0 {last}"
    assert first_shown == "0 8"
    assert dragged == "1 9"
    slow = slow_accesses(*_shown_map(evaluated), 1)[0]
    assert looked_at.startswith(load_program(PROGRAMS[0]).program.buffers[slow.buffer].name)


def _shown_map(directory: Path) -> tuple[Program, MemoryMap]:
    """The program and the map that a report's first picture shows first."""
    loaded = load_program(PROGRAMS[0])
    rows = [row for row in read_rows(directory) if row.program == PROGRAMS[0]]
    best = min(rows, key=lambda row: row.latency_seconds or math.inf)
    return loaded.program, load_map(map_path(directory, best), loaded.program)


def test_what_the_copy_engine_does_for_a_step_is_told_from_prefetches() -> None:
    steps = [(4, "wa"), (0, "ra wb"), (9, "rc"), (0, "rb rc")]
    program = program_of(dict.fromkeys("abc", 4), steps, copies=[1])
    fast = Residency(2, 0, 1, 4, Source.COPIED, 2)
    memory_map = MemoryMap((fast,), replaced_copies=(ReplacedCopy(1, 1, 3),))
    assert validate(program, memory_map) == ()
    drawn = map_document(program, PicturedMap("ours", memory_map))
    assert {(copy[0], copy[7]) for copy in drawn["copies"]} == {(1, 1), (2, None)}
