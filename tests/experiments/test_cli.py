"""The command line as a user meets it: what it prints, and how it fails."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from experiments.cli import main
from experiments.inputs import load_program
from experiments.solve import solve as solve_program
from hlo_graphs import corpus
from hlo_graphs.chips import find_chip
from hlo_graphs.errors import InputError
from solvers.solver import Progress
from tests.experiments.processes import processes_of, wait_until

ROOT = Path(__file__).resolve().parents[2]

SMALL = """HloModule small, is_scheduled=true

ENTRY main {
  x = bf16[1024,4096]{1,0:T(8,128)(2,1)} parameter(0)
  w = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(1)
  y = bf16[1024,4096]{1,0:T(8,128)(2,1)} convolution(x, w), dim_labels=bf_io->bf
  z = bf16[1024,4096]{1,0:T(8,128)(2,1)} tanh(y)
  ROOT v = bf16[1024,4096]{1,0:T(8,128)(2,1)} add(z, y)
}
"""


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, stdin: str = "") -> Done:
    """The command in this process: starting Python takes longer than most of what is tested."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["malloc-game", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    return Done(int(stop.value.code or 0), output.getvalue(), errors.getvalue())


def test_the_command_runs_as_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "solve", "-", "--solver", "greedy", "--json"],
        cwd=ROOT,
        input=SMALL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout)["program"] == "stdin"


def failure(*arguments: str | Path, stdin: str = "") -> tuple[int, str]:
    """Exit code and message of a command that must fail without a traceback or output."""
    done = run(*arguments, stdin=stdin)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_real_program_is_solved_beside_production(tmp_path: Path) -> None:
    output = tmp_path / "map.json"
    done = run("solve", "lstm_forward", "--solver", "greedy", "--json", "-o", output)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["program"] == "lstm_forward.v5e"
    assert result["status"] in ("optimal", "feasible")
    assert 0 < result["latency_seconds"] < result["all_slow_latency_seconds"]
    assert result["speedup_over_production"] == pytest.approx(
        result["production_latency_seconds"] / result["latency_seconds"]
    )
    written = json.loads(output.read_text())
    placed = {str(residency["buffer"]) for residency in written["residencies"]}
    assert written["buffers"].keys() == placed
    buffers = load_program("lstm_forward").program.buffers
    named = {number: found["name"] for number, found in written["buffers"].items()}
    assert named == {number: buffers[int(number)].name for number in placed}
    done = run("validate", "lstm_forward", output)
    assert done.returncode == 0
    latency = f"{result['latency_seconds'] * 1e3:.6f} ms"
    assert done.stdout == f"valid; {latency} (v5e, calibrated times)\n"
    assert "valid; " in run("validate", "lstm_forward", output, "--times", "analytic").stdout
    # Of the same steps and tensors: how the map does on another chip may be asked.
    assert "v6e" in run("validate", "lstm_forward.v6e", output).stdout
    code, message = failure("validate", "lstm_train", output)
    assert code == 3
    assert f"{output}: is a map for lstm_forward.v5e, not for lstm_train.v5e" in message


def test_a_bound_is_had_for_the_asking() -> None:
    done = run("solve", "lstm_forward", "--solver", "greedy", "--bound", "5", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0 < result["lower_bound_seconds"] <= result["latency_seconds"]
    code, message = failure("solve", "lstm_forward", "--solver", "greedy", "--bound", "-1")
    assert code == 3
    assert "bound is -1.0 seconds" in message


JSON_FIELDS = {
    *("schema", "program", "chip", "capacity_bytes", "solver", "status", "latency_seconds"),
    *("all_slow_latency_seconds", "production_latency_seconds", "speedup_over_production"),
    *("lower_bound_seconds", "gap", "stall_seconds", "peak_fast_bytes", "wall_seconds", "seed"),
    *("copy_order", "times"),
}


@pytest.mark.parametrize(("solver", "games"), [("local-search", 3000), ("large-neighbourhood", 60)])
def test_by_count_the_same_seed_gives_the_same_map(solver: str, games: int, tmp_path: Path) -> None:
    maps = []
    for number, seed in enumerate(("4", "4", "5")):
        output = tmp_path / f"{number}.json"
        count = ("--max-games", str(games), "--time-limit", "300", "--seed", seed, "-o", output)
        done = run("solve", "lstm_train", "--solver", solver, *count, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["wall_seconds"] < 200
        document = json.loads(output.read_text())
        maps.append((document["residencies"], document["evictions"]))
    assert maps[0] == maps[1] != maps[2]


def test_any_scheduled_module_is_solved_from_standard_input() -> None:
    done = run("solve", "-", "--solver", "greedy", "--json", "--chip", "v6e", stdin=SMALL)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() >= JSON_FIELDS
    assert result["chip"] == "v6e"
    assert result["production_latency_seconds"] is None


def test_a_program_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "program.json"
    assert run("info", "-", "-o", path, stdin=SMALL).returncode == 0
    results = [
        json.loads(run("solve", source, "--solver", "greedy", "--json", stdin=SMALL).stdout)
        for source in ("-", path)
    ]
    assert results[0]["latency_seconds"] == results[1]["latency_seconds"]


def test_a_program_has_its_chip_and_times(tmp_path: Path) -> None:
    path = tmp_path / "program.json"
    assert run("info", "-", "-o", path, stdin=SMALL).returncode == 0
    for option, value in (("--chip", "v6e"), ("--times", "analytic"), ("--cycles", "some.json")):
        code, message = failure("solve", path, option, value)
        assert code == 3
        assert f"to choose {option.removeprefix('--')}" in message


def test_what_was_compiled_for_another_chip_is_no_answer() -> None:
    arguments = ("--chip", "v6e", "--times", "analytic", "--solver", "greedy", "--json")
    result = json.loads(run("solve", "lstm_forward", *arguments).stdout)
    assert result["production_latency_seconds"] is None
    assert result["capacity_bytes"] == find_chip("v6e").assignable_bytes


@pytest.fixture
def by_hand(tmp_path: Path) -> dict[str, Path]:
    """Files of lstm_forward in a folder of their own, the program under a name of its own."""
    bundle = corpus.bundle("lstm_forward")
    parts = (bundle.production, bundle.cycles, bundle.buffer_assignment)
    copies = [Path(shutil.copy(part, tmp_path)) for part in parts if part is not None]
    program = shutil.copy(bundle.before, tmp_path / "mine.hlo.gz")
    names = ("program", "production", "cycles", "assignment")
    return dict(zip(names, (program, *copies), strict=True))


def test_files_named_by_hand_are_as_good_as_the_bundle(by_hand: dict[str, Path]) -> None:
    named = ("--cycles", by_hand["cycles"], "--production", by_hand["production"])
    quick = ("--solver", "greedy", "--json")
    done = run("solve", by_hand["program"], *named, *quick)
    assert done.returncode == 0, done.stderr
    found, whole = (
        {field: result[field] for field in ("production_latency_seconds", "capacity_bytes")}
        for result in map(json.loads, (done.stdout, run("solve", "lstm_forward", *quick).stdout))
    )
    assert found == whole
    by_hand["assignment"].unlink()
    code, message = failure("solve", by_hand["program"], *named, *quick)
    assert code == 3
    assert "no lstm_forward.v5e.buffer-assignment.txt.gz beside" in message


def test_a_chip_of_ones_own_has_its_own_capacity_beside_named_cycles(
    by_hand: dict[str, Path], tmp_path: Path
) -> None:
    chip = tmp_path / "big.toml"
    chip.write_text(f'name = "big"\nbase = "v5e"\nfast_capacity_bytes = {2**28}\n')
    given = {"chip": str(chip), "cycles": by_hand["cycles"]}
    capacity = load_program(by_hand["program"], **given).program.capacity_bytes
    assert capacity == find_chip(str(chip)).assignable_bytes > find_chip("v5e").assignable_bytes


def test_a_folder_called_like_a_program_is_not_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lstm_forward").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_program("lstm_forward").program.name == "lstm_forward.v5e"


def test_production_of_another_compile_has_its_own_addresses() -> None:
    other = load_program("lstm_forward.v5e.32MiB")
    production = corpus.bundle("lstm_forward.v5e.32MiB").production
    cycles = corpus.bundle("lstm_forward.v5e.32MiB").cycles
    found = load_program("lstm_forward", production=production, cycles=cycles)
    assert found.production_map == other.production_map
    assert found.notes == ()


def test_a_map_for_another_memory_is_no_answer(by_hand: dict[str, Path]) -> None:
    smaller = corpus.bundle("lstm_forward.v5e.32MiB").production
    with pytest.raises(InputError, match=r"for v5e with 32MiB .*, the program is for v5e: "):
        load_program("lstm_forward", production=smaller)
    with pytest.raises(InputError, match="give the --cycles of the same compile"):
        load_program(by_hand["program"], production=smaller)
    other_chip = corpus.bundle("lstm_forward.v6e").production
    with pytest.raises(InputError, match="was compiled for v6e"):
        load_program("lstm_forward", production=other_chip)
    with pytest.raises(InputError, match=r"production's map is for 112 MiB.*leave out"):
        load_program(by_hand["program"], production=by_hand["production"], capacity_bytes=2**26)


def test_what_production_is_not_compared_for_is_told(by_hand: dict[str, Path]) -> None:
    (smaller,) = load_program("lstm_forward", capacity_bytes=2**26).notes
    assert smaller == "production's map is for 112 MiB of fast memory: not compared"
    (other_chip,) = load_program("lstm_forward", chip="v6e", times="analytic").notes
    assert other_chip == "production's map is for v5e: not compared"
    (roofline,) = load_program(by_hand["program"], production=by_hand["production"]).notes
    assert "times are a roofline's" in roofline
    done = run("solve", "lstm_forward", "--capacity", "64MiB", "--solver", "greedy", "--json")
    assert smaller in done.stderr
    for asked in ({}, {"times": "analytic"}, {"capacity_bytes": 112 * 2**20}):
        assert load_program("lstm_forward", **asked).notes == ()


def test_a_lone_file_has_the_chip_of_its_cycles(tmp_path: Path) -> None:
    bundle = corpus.bundle("lstm_forward.v6e")
    lone = shutil.copy(bundle.before, tmp_path / "mine.hlo.gz")
    assert load_program(lone, cycles=bundle.cycles).program.machine.chip == "v6e"
    with pytest.raises(InputError, match=r"those of v6e, the chip is v5e.*choose v6e"):
        load_program(lone, cycles=bundle.cycles, chip="v5e")
    assert load_program(lone).program.machine.chip == "v5e"


def test_a_chip_of_ones_own_has_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "chip.toml"
    path.write_text('name = "v5e"\nbase = "v5e"\n')
    assert load_program("lstm_forward", chip=str(path)).production_map is not None
    path.write_text('name = "v5e"\nbase = "v5e"\nfast_capacity_bytes = 33554432\n')
    with pytest.raises(InputError, match="differs from the known v5e"):
        load_program("lstm_forward", chip=str(path))


def test_cycles_of_another_program_are_refused() -> None:
    cycles = corpus.bundle("vgg16_infer").cycles
    with pytest.raises(InputError, match=r"not the cycles of lstm_forward.*18 of 22 instructions"):
        load_program("lstm_forward", cycles=cycles)


def test_cycles_for_another_memory_than_productions_map_are_refused() -> None:
    cycles = corpus.bundle("lstm_forward.v5e.32MiB").cycles
    with pytest.raises(InputError, match=r"in the memory that .*32MiB.* is for: 15 violations"):
        load_program("lstm_forward", cycles=cycles)
    production = corpus.bundle("lstm_forward.v5e.32MiB").production
    assert load_program("lstm_forward", cycles=cycles, production=production).production_map


def test_impossible_addresses_of_production_are_an_error(by_hand: dict[str, Path]) -> None:
    text = gzip.decompress(by_hand["assignment"].read_bytes()).decode()
    by_hand["assignment"].write_bytes(gzip.compress(re.sub("offset=", "offset=1", text).encode()))
    with pytest.raises(InputError, match=r"production\.hlo\.gz: no answer to mine: .* rule 1"):
        load_program(by_hand["program"], production=by_hand["production"])


def test_points_belong_to_the_cycles_beside_them(by_hand: dict[str, Path]) -> None:
    folder = by_hand["program"].parent / "bundle"
    folder.mkdir()
    before = shutil.copy(by_hand["program"], folder / "lstm_forward.v5e.before.hlo.gz")
    (folder / "lstm_forward.v5e.points.json").write_text("{}")
    assert load_program(before, cycles=by_hand["cycles"]).program.num_steps
    shutil.copy(by_hand["cycles"], folder)
    with pytest.raises(InputError, match=r"points\.json: key 'extra' is missing"):
        load_program(by_hand["program"], cycles=folder / by_hand["cycles"].name)


def test_json_that_is_none_of_ours_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert str(path) in failure("solve", path)[1]
    assert str(path) in failure("validate", "lstm_forward", path)[1]
    path.write_text("[" * 200_000)
    assert "invalid JSON" in failure("validate", "lstm_forward", path)[1]
    (tmp_path / "settings.json").write_text('{"model": ' + "[" * 200_000)
    (tmp_path / "results.jsonl").write_text('{"seed": ' + "[" * 200_000 + "\n")
    code, message = failure("report", tmp_path)
    assert code == 3
    assert "settings.json: damaged" in message or "results.jsonl" in message


@pytest.mark.parametrize("wrong", ["1", 0.5, True, None])
def test_figures_of_files_that_are_no_integers_are_named(tmp_path: Path, wrong: object) -> None:
    path = tmp_path / "file.json"
    whole = json.loads(load_program_json(tmp_path))
    for group, name in (("machine", "capacity_bytes"), ("buffers", "size_bytes")):
        document = json.loads(json.dumps(whole))
        holder = document[group] if group == "machine" else document[group][0]
        holder[name] = wrong
        path.write_text(json.dumps(document))
        code, message = failure("solve", path, "--solver", "greedy")
        assert code == 3
        assert f"{name} is {wrong!r}, not an integer" in message
    row = {"buffer": 0, "issue": wrong, "done": 1}
    answer = {"schema": "malloc-game/memory-map/1", "residencies": [], "replaced_copies": []}
    path.write_text(json.dumps({**answer, "evictions": [row]}))
    code, message = failure("validate", "-", path, stdin=SMALL)
    assert code == 3
    assert f"eviction: issue is {wrong!r}" in message


def test_figures_that_are_too_large_are_named(tmp_path: Path) -> None:
    whole, path = json.loads(load_program_json(tmp_path)), tmp_path / "file.json"
    whole["instructions"][0]["base_ticks"][0] = 2**63
    path.write_text(json.dumps(whole))
    code, message = failure("solve", path, "--solver", "greedy")
    assert code == 3
    assert f"step 0 (y): base_ticks ({2**63}, " in message
    assert message.endswith(f"more than {2**48}\n")
    path.write_text('{"schema": ' + "9" * 5000 + "}")
    for arguments in (("solve", path), ("validate", "lstm_forward", path)):
        code, message = failure(*arguments)
        assert code == 3
        assert "invalid JSON" in message


@pytest.mark.parametrize(
    ("where", "field", "wrong"),
    [
        ("buffers", "live_out", None),
        ("buffers", "is_parameter", "yes"),
        ("instructions", "async_copy", 1),
    ],
)
def test_what_is_neither_true_nor_false_is_named(
    where: str, field: str, wrong: object, tmp_path: Path
) -> None:
    whole, path = json.loads(load_program_json(tmp_path)), tmp_path / "file.json"
    whole[where][0][field] = wrong
    path.write_text(json.dumps(whole))
    code, message = failure("solve", path, "--solver", "greedy")
    assert code == 3
    assert f"{field} is {wrong!r}, neither true nor false" in message


@pytest.mark.parametrize(
    ("where", "field", "wrong", "words"),
    [
        ("instructions", "shape", None, "shape is None, not a text"),
        ("instructions", "name", "\ud800", "not a text"),
        ("buffers", "name", 3, "name is 3, not a text"),
        ("buffers", "values", [None], "value is None, not a text"),
        ("loops", "parent", 0.0, "parent is 0.0, not an integer"),
    ],
)
def test_what_is_no_text_or_integer_is_named(
    where: str, field: str, wrong: object, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    whole = json.loads(load_program("lstm_train").program.to_json())
    whole[where][0][field] = wrong
    path.write_text(json.dumps(whole))
    code, message = failure("info", path)
    assert code == 3
    assert words in message


def test_a_clock_that_stands_still_is_named(tmp_path: Path) -> None:
    whole, path = json.loads(load_program_json(tmp_path)), tmp_path / "file.json"
    path.write_text(json.dumps({**whole, "tick_seconds": float("inf")}))
    assert "tick_seconds is inf" in failure("info", path)[1]


def test_more_bytes_than_any_buffer_has_are_named(tmp_path: Path) -> None:
    whole, path = json.loads(load_program_json(tmp_path)), tmp_path / "file.json"
    whole["instructions"][0]["accesses"][0][2] = 2**70
    path.write_text(json.dumps(whole))
    code, message = failure("solve", path, "--solver", "greedy")
    assert code == 3
    assert f"{2**70} bytes of buffer" in message


def load_program_json(tmp_path: Path) -> str:
    path = tmp_path / "whole.json"
    assert run("info", "-", "-o", path, stdin=SMALL).returncode == 0
    return path.read_text()


def test_computations_that_call_too_deeply_are_refused() -> None:
    calls = "".join(
        f"f{i + 1} {{\n  x = f32[8]{{0}} parameter(0)\n"
        f"  ROOT y = f32[8]{{0}} call(x), to_apply=f{i}\n}}\n"
        for i in range(3000)
    )
    leaf = "f0 {\n  x = f32[8]{0} parameter(0)\n  ROOT y = f32[8]{0} tanh(x)\n}\n"
    text = f"HloModule deep, is_scheduled=true\n{leaf}{calls}"
    code, message = failure("solve", "-", stdin=text.replace("f3000 {", "ENTRY main {"))
    assert code == 3
    assert "too deeply" in message


def test_no_capacity_leaves_everything_slow() -> None:
    done = run("solve", "-", "--solver", "greedy", "--json", "--capacity", "0", stdin=SMALL)
    result = json.loads(done.stdout)
    assert result["latency_seconds"] == result["all_slow_latency_seconds"]


def test_an_invalid_map_is_named_rule_by_rule(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    run("solve", "-", "--solver", "greedy", "-o", path, stdin=SMALL)
    document = json.loads(path.read_text())
    for residency in document["residencies"]:
        residency["offset_bytes"] = 1
    path.write_text(json.dumps(document))
    done = run("validate", "-", path, stdin=SMALL)
    assert done.returncode == 4
    assert "offset 1 is not a multiple" in done.stdout


BAD_TEXTS = {
    "unknown opcode": (SMALL.replace("tanh", "tahn"), ":7:", "did you mean 'tan"),
    "unscheduled": (
        SMALL.replace(", is_scheduled=true", ""),
        "not scheduled",
        "after_optimizations",
    ),
    "truncated": (SMALL[:300], "found", "expected"),
    "over 2^63": (SMALL.replace("1024,4096", f"{2**63 - 1},4096"), "bytes", "shape"),
    "empty": ("", "no HLO module", "empty"),
    "no Program": ('{"schema": "other"}', "not a Program", "other"),
    "damaged Program": ('{"schema": ', "not a Program", "JSON"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_text_is_located(name: str) -> None:
    text, *words = BAD_TEXTS[name]
    code, message = failure("solve", "-", "--solver", "greedy", stdin=text)
    assert code == 3
    assert all(word in message for word in words), message


def test_a_computation_that_calls_itself_is_refused() -> None:
    text = (
        "HloModule m, is_scheduled=true\n"
        "a {\n  x = f32[8]{0} parameter(0)\n  ROOT c = f32[8]{0} call(x), to_apply=a\n}\n"
        "ENTRY e {\n  p = f32[8]{0} parameter(0)\n  ROOT q = f32[8]{0} call(p), to_apply=a\n}\n"
    )
    code, message = failure("solve", "-", stdin=text)
    assert code == 3
    assert "<stdin>:4:" in message or "-:4:" in message


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(SMALL.encode())
    rubbish = random.Random(0).randbytes(10_000)
    for name, data in {"short.hlo.gz": whole[: len(whole) // 2], "rubbish.hlo": rubbish}.items():
        path = tmp_path / name
        path.write_bytes(data)
        code, message = failure("solve", path, "--solver", "greedy")
        assert code == 3
        assert f"{path}: cannot be read" in message


def test_a_line_of_a_megabyte_makes_a_short_message(tmp_path: Path) -> None:
    path = tmp_path / "long.hlo"
    path.write_text("a" * 1_000_000)
    code, message = failure("solve", path)
    assert code == 3
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["solve", "resnet51_infer"], 3, "did you mean"),
        (["solve", "-", "--chip", "v5"], 3, "v5e"),
        (["solve", "-", "--solver", "gredy"], 3, "did you mean 'greedy'"),
        (["solve", "-", "--capacity", "-5MiB"], 3, "cannot be negative"),
        (["solve", "-", "--capacity", "lots"], 3, "not a size"),
        (["solve", "-", "--times", "measured"], 3, "analytic or calibrated"),
        (["solve", "-", "--times", "calibrated"], 3, "--cycles"),
        (["solve", "-", "--copy-order", "lifo"], 3, "fifo"),
        (["solve", "-", "-o", "/nonexistent/map.json"], 3, "cannot write"),
        (["solve", "-", "--seed", "-1"], 3, "seed is -1"),
        (["play", "-", "--policy", "random", "--seed", "-1"], 3, "seed is -1"),
        (["solve", "-", "--max-games", "9"], 3, "'portfolio' does not count games"),
        (["solve", "-", "--max-games", "0", "--solver", "random"], 3, "limited to 0"),
        (["solve", ""], 3, "no program is named"),
        (["solve", "lstm_forward", "--chip", "v6e"], 3, "or analytic times"),
        (["info", "-", "-o", "/nonexistent/program.json"], 3, "cannot write"),
        (["validate", "-", "absent.json"], 3, "absent.json: no such file"),
        (["solve", "-", "--no-such-option"], 2, "No such option"),
        (["report", "nowhere"], 3, "nowhere: no such folder"),
        (["evaluate", "lstm_train", "--cores", "9999", "-o", "out"], 3, "workers is 9999"),
        (["fly"], 2, "No such command"),
    ],
)
def test_wrong_arguments_say_what_to_do(arguments: list[str], code: int, words: str) -> None:
    found, message = failure(*arguments, stdin=SMALL)
    assert found == code
    assert words in message


def test_a_game_can_be_watched(tmp_path: Path) -> None:
    pytest.importorskip("jax", reason="the game needs the extra 'train'")
    picture = tmp_path / "game.svg"
    done = run("play", "-", "--policy", "keep", "--svg", picture, stdin=SMALL)
    assert done.returncode == 0, done.stderr
    assert "Keep" in done.stdout
    assert "of the all-slow latency saved" in done.stdout
    assert picture.read_text().startswith("<svg")


def test_solving_can_draw_its_maps(tmp_path: Path) -> None:
    picture = tmp_path / "map.html"
    done = run("solve", "-", "--solver", "greedy", "--json", "--picture", picture, stdin=SMALL)
    assert done.returncode == 0, done.stderr
    assert "showPicture" in picture.read_text()


def test_a_picture_is_timed_like_its_solution(tmp_path: Path) -> None:
    picture = tmp_path / "map.html"
    options = ("--solver", "greedy", "--copy-order", "fifo", "--json", "--picture", picture)
    done = run("solve", "gpt_prefill", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["copy_order"] == "fifo"
    drawn = re.findall(r'"latency": ?([0-9.e-]+)', picture.read_text())
    assert float(drawn[0]) == pytest.approx(result["latency_seconds"], rel=1e-9)
    assert float(drawn[1]) == pytest.approx(result["production_latency_seconds"], rel=1e-9)
    in_deadline_order = json.loads(run("solve", "gpt_prefill", *options[:2], "--json").stdout)
    assert in_deadline_order["latency_seconds"] < result["latency_seconds"]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_prints_and_writes_its_best_map(
    ending: signal.Signals, tmp_path: Path
) -> None:
    """Ctrl-C goes to all processes of a terminal: what it does not end must not complain."""
    output, temporary = tmp_path / "map.json", tmp_path / "temporary"
    temporary.mkdir()
    options = ("--time-limit", "300", "--json", "-o", str(output))
    # What a shell starts in the background ignores SIGINT, and so would its children.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = f"{listen}; from experiments.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "solve", "lstm_train.v5e.32MiB", *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        # The portfolio has a map before it starts its members.
        wait_until(lambda: len(processes_of(process.pid)) >= 3)
        send = os.killpg if ending == signal.SIGINT else os.kill
        send(process.pid, ending)
        printed, complaints = process.communicate(timeout=60.0)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in complaints
    assert list(temporary.iterdir()) == []
    result = json.loads(printed)
    assert "interrupted: the best map so far" in result["notes"]
    assert result["solver"].startswith("portfolio/")
    assert 0 < result["latency_seconds"] < result["all_slow_latency_seconds"]
    assert run("validate", "lstm_train.v5e.32MiB", output).returncode == 0
    wait_until(lambda: not processes_of(process.pid))


@pytest.mark.parametrize("solver", ["local-search", "milp"])
def test_any_solver_that_is_interrupted_has_found_its_best_map(solver: str) -> None:
    heard: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        heard.append(progress)
        if sum(event.memory_map is not None for event in heard) == 2:
            raise KeyboardInterrupt

    result = solve_program("lstm_train", solver=solver, on_progress=interrupt)
    assert result.memory_map == heard[-1].memory_map
    assert result.solution.notes == ("interrupted: the best map so far",)
    bounds = [event.bound_ticks for event in heard if event.bound_ticks is not None]
    assert result.solution.lower_bound_ticks == max(bounds, default=None)


def test_what_was_found_is_said_though_it_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.cli.write_atomically", fail)
    output = tmp_path / "map.json"
    done = run("solve", "lstm_forward", "--solver", "greedy", "--json", "-o", output)
    assert done.returncode == 3
    assert json.loads(done.stdout)["latency_seconds"] > 0
    assert "No space left on device" in done.stderr


def test_a_map_and_its_picture_are_two_files(tmp_path: Path) -> None:
    both = tmp_path / "both"
    code, message = failure("solve", "lstm_forward", "-o", both, "--picture", both)
    assert code == 3
    assert "both the map and its picture would be written there" in message


@pytest.mark.parametrize("command", [("solve",), ("info",), ("solve", "--chip", "here.toml")])
def test_what_is_read_is_not_written_over(command: tuple[str, ...], tmp_path: Path) -> None:
    own, chip = tmp_path / "small.hlo", tmp_path / "here.toml"
    own.write_text(SMALL)
    chip.write_text('name = "half"\nbase = "v5e"\nslow_bytes_per_second = 4.0e11\n')
    target = chip if "--chip" in command else own
    arguments = [str(chip) if word == "here.toml" else word for word in command]
    before = target.read_text()
    code, message = failure(*arguments, own, "-o", target)
    assert code == 3
    assert message.endswith(f"{target}: it is read, and would be written over\n")
    assert target.read_text() == before


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    marked = tmp_path / "marked.hlo"
    marked.write_text(SMALL, encoding="utf-8-sig")
    assert run("info", marked).returncode == 0


def test_over_a_bound_of_nothing_the_gap_is_not_known(tmp_path: Path) -> None:
    text = "HloModule m, is_scheduled=true\nENTRY e {\n  x = f32[1024,1024]{1,0} parameter(0)\n"
    text += "  ROOT y = f32[1024,1024]{1,0} copy(x)\n}\n"
    arguments = ("solve", "-", "--solver", "greedy", "--bound", "1")
    found = json.loads(run(*arguments, "--json", stdin=text).stdout)
    assert (found["lower_bound_seconds"], found["gap"]) == (0.0, None)
    assert found["latency_seconds"] > 0
    assert "inf" not in run(*arguments, stdin=text).stdout


def test_assumed_trip_counts_are_told() -> None:
    text = """HloModule m, is_scheduled=true
c { s = (pred[]{:T(512)}, f32[8]{0}) parameter(0)
  ROOT p = pred[]{:T(512)} get-tuple-element(s), index=0 }
b { s = (pred[]{:T(512)}, f32[8]{0}) parameter(0)
  p = pred[]{:T(512)} get-tuple-element(s), index=0
  x = f32[8]{0} get-tuple-element(s), index=1
  y = f32[8]{0} tanh(x)
  ROOT t = (pred[]{:T(512)}, f32[8]{0}) tuple(p, y) }
ENTRY e { s = (pred[]{:T(512)}, f32[8]{0}) parameter(0)
  ROOT w = (pred[]{:T(512)}, f32[8]{0}) while(s), condition=c, body=b }
"""
    done = run("solve", "-", "--solver", "greedy", stdin=text)
    assert done.returncode == 0, done.stderr
    assert "loops whose trip count is not known: 1; times are for 5 trips of each" in done.stderr


def test_nothing_found_yet_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    def solve(self: object, request: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("solvers.greedy.GreedySolver.solve", solve)
    with pytest.raises(KeyboardInterrupt):
        solve_program("lstm_forward", solver="greedy")
    code, message = failure("solve", "lstm_forward", "--solver", "greedy")
    assert code == 130
    assert "interrupted" in message


def test_a_run_is_resumed_with_what_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mctx", reason="the agent needs the extra 'train'")
    from experiments.train import TrainResult, TrainSettings

    taken: list[TrainSettings] = []

    def train(settings: TrainSettings) -> TrainResult:
        taken.append(settings)
        return TrainResult((), (), 0, 0)

    monkeypatch.setattr("experiments.train.train", train)
    assert run("train", "--resume").returncode == 0
    assert (taken[-1].seed, taken[-1].demonstrations) == (None, ())
    assert run("train", "lstm_train").returncode == 0
    assert taken[-1].demonstrations == ("greedy", "xla-msa")
    refused = run("train", "--resume", "--from-scratch")
    assert refused.returncode == 3
    assert "--from-scratch cannot be given" in " ".join(refused.stderr.split())
    refused = run("train", "lstm_train", "--from-scratch", "--demonstrations", "greedy")
    assert refused.returncode == 3
    assert "--demonstrations cannot be given" in " ".join(refused.stderr.split())
    assert len(taken) == 2


def test_a_file_whose_name_is_no_text_is_solved(tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xff.hlo")
    try:
        (tmp_path / name).write_text(SMALL)
    except OSError:
        pytest.skip("this file system takes no such name")
    command = [sys.executable, "-m", "experiments.cli", "solve", str(tmp_path / name)]
    files = ("-o", tmp_path / "map.json", "--picture", tmp_path / "map.html")
    done = subprocess.run(
        [*command, "--solver", "greedy", *files], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert f"map written to {tmp_path / 'map.json'}" in done.stdout
    assert f"picture written to {tmp_path / 'map.html'}" in done.stdout


def test_of_two_files_the_one_that_was_written_is_told(tmp_path: Path) -> None:
    output = tmp_path / "map.json"
    picture = tmp_path / "gone" / "map.html"
    with mock.patch("experiments.cli.check_writable"):
        done = run(
            "solve", "lstm_forward", "--solver", "greedy", "-o", output, "--picture", picture
        )
    assert done.returncode == 3
    assert f"map written to {output}" in done.stdout
    assert "map.html: cannot write there" in done.stderr


def test_an_answer_tells_its_times() -> None:
    quick = ("--solver", "greedy")
    assert re.search(r"times +│ +calibrated │", run("solve", "lstm_forward", *quick).stdout)
    done = run("solve", "lstm_forward", *quick, "--times", "analytic", "--copy-order", "fifo")
    assert re.search(r"times +│ analytic, fifo │", done.stdout)


def test_programs_and_a_suite_are_one_too_many(tmp_path: Path) -> None:
    code, message = failure("evaluate", "lstm_forward", "--suite", "test", "-o", tmp_path / "t")
    assert code == 3
    assert "--suite cannot be given" in message


def test_more_tasks_than_processors_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("experiments.evaluate.evaluate", lambda *_, **__: [])
    monkeypatch.setattr("solvers.children.usable_processors", lambda: 3)
    shared = run("evaluate", "lstm_forward", "--workers", "2", "--cores", "2", "-o", tmp_path / "t")
    assert "more than the 3 processors there are" in shared.stderr
    fitting = run("evaluate", "lstm_forward", "--workers", "3", "--cores", "1", "-o", tmp_path)
    assert fitting.stderr == ""


TIGHT = """id,lower,upper,size
a,3,7,1
b,2,3,2
c,4,5,2
d,2,5,2
e,0,4,1
f,0,1,3
g,5,7,3
"""
"""Never more than 5 are alive; 6 addresses are needed."""


def test_packs_fixed_lifetimes(tmp_path: Path) -> None:
    problem, answer = tmp_path / "tight.csv", tmp_path / "packed.csv"
    problem.write_text(TIGHT)
    done = run("pack", problem, "--capacity", "6", "-o", answer)
    assert done.returncode == 0
    assert done.stdout.startswith("7 of 7 buffers placed, height 6 of 6, peak load 5")
    again = run("pack", answer, "--capacity", "6", "--json")  # Every offset is fixed now.
    assert json.loads(again.stdout)["status"] == "optimal"
    rows = [row.rpartition(",")[0] for row in answer.read_text().splitlines()]
    assert rows == TIGHT.splitlines()


@pytest.mark.parametrize(
    ("limit", "code", "told"), [(10, 10, "no packing"), (0, 11, "out of time")]
)
def test_says_why_nothing_was_packed(tmp_path: Path, limit: int, code: int, told: str) -> None:
    answer = tmp_path / "packed.csv"
    done = run(
        "pack", "-", "--capacity", "5", "--time-limit", str(limit), "-o", answer, stdin=TIGHT
    )
    assert done.returncode == code
    assert told in done.stdout
    assert not answer.exists()


def test_refuses_what_it_cannot_pack(tmp_path: Path) -> None:
    problem = tmp_path / "tight.csv"
    problem.write_text(TIGHT)
    code, message = failure("pack", problem, "--capacity", "6", "-o", problem)
    assert (code, "would be written over" in message) == (3, True)
    assert failure("pack", "-", "--capacity", "6", stdin="id,lower,upper,size\nb,0,x,1\n")[0] == 3
    assert failure("pack", problem, "--capacity", "6", "--workers", "0")[0] == 3
