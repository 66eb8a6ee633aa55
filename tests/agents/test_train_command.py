"""What `malloc-game train` leaves on disk, and that it goes on from there."""

from __future__ import annotations

import errno
import json
import math
import signal
import struct
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event

from agents.checkpoint import BEST, CHECKPOINT, read_document, read_weights
from agents.config import preset_named
from agents.programs import NothingToPlayError
from agents.self_play import SelfPlay
from agents.trainer import Trainer, TrainReport
from experiments.files import held
from experiments.interrupts import interrupts_awaited
from experiments.metrics import METRICS
from experiments.run_folder import run_folder
from experiments.train import SETTINGS, TrainSettings, _sources, _trainer, train
from experiments.training_run import Reference, TrainingRun, mean_of_all, smoothed
from hlo_graphs.errors import InputError, MallocGameError
from hlo_graphs.program import Program
from malloc_game.known_optimum import known_optimum_program
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import simulate
from malloc_game.turn_table import turn_table
from solvers.bounds import bound_program
from solvers.greedy import GreedySolver
from solvers.solver import SolveRequest
from tests.malloc_game.small import program_of


def chunks_of(out: Path) -> list[int]:
    lines = (out / METRICS).read_text().splitlines()
    return [json.loads(line)["num_chunks"] for line in lines]


def points_of(out: Path) -> list[float]:
    """Numbers of the chunks that TensorBoard shows: a restart hides points from its step on."""
    shown: list[tuple[int, float]] = []
    for path in sorted((out / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack_from("<Q", data)
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.HasField("session_log"):
                shown = [point for point in shown if point[0] < event.step]
            values = [one.simple_value for one in event.summary.value if one.tag == "num_chunks"]
            shown += [(event.step, value) for value in values]
    return [value for _, value in shown]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorBoard's files are named by the second, and a restart may fall into the same one.
    in_a_second = SimpleNamespace(time=lambda: 1.8e9)
    monkeypatch.setattr("tensorboardX.event_file_writer.time", in_a_second)
    known = known_optimum_program(2, kind="knapsack", size=8)
    source, out = tmp_path / "program.json", tmp_path / "run"
    source.write_text(known.program.to_json())
    settings = TrainSettings(
        programs=(str(source),),
        out=out,
        simulations=4,
        demonstrations=("greedy",),
        time_limit_seconds=1.0,
    )
    said: list[str] = []
    first = train(settings, said.append)
    assert any("greedy shows a game" in line for line in said)
    assert said[0].startswith("memory ")
    with pytest.raises(InputError, match="holds a run already"):
        train(settings, said.append)

    with pytest.raises(InputError, match=r"is a run on .*program.json; name those, or none"):
        train(replace(settings, programs=("other",), resume=True), said.append)

    # A kill in the middle of a line, after the last checkpoint.
    before = chunks_of(out)
    with (out / METRICS).open("a") as file:
        file.write('{"num_chunks": 99999}\n{"num_chu')
    with SummaryWriter(str(out / "tensorboard")) as board:
        board.add_scalar("num_chunks", 99999, first.num_moves + 1)
    resumed = replace(settings, programs=(), simulations=None, demonstrations=(), resume=True)
    second = train(resumed, said.append)
    assert second.num_games > first.num_games
    assert chunks_of(out) == list(range(1, len(chunks_of(out)) + 1))
    assert len(chunks_of(out)) > len(before)
    assert points_of(out) == chunks_of(out)

    memory_map = MemoryMap.from_json((out / "maps" / "knapsack-2.json").read_text())
    best = second.best_latency_ticks[0]
    assert simulate(known.program, memory_map).latency_ticks == best
    assert read_weights(out)[0] == preset_named("tiny", simulations=4)
    assert (out / BEST).exists()
    assert list((out / "tensorboard").iterdir())


def test_bounds_and_demonstrations_get_what_is_left_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = known_optimum_program(2, kind="knapsack", size=8).program
    source = tmp_path / "program.json"
    source.write_text(program.to_json())
    asked: list[float] = []

    def bounded(program: Program, seconds: float) -> Any:
        asked.append(seconds)
        time.sleep(seconds)
        return bound_program(program, 0.0)

    def solve(request: SolveRequest) -> Any:
        asked.append(request.time_limit_seconds)
        return GreedySolver().solve(request)

    monkeypatch.setattr("experiments.train.bound_program", bounded)
    monkeypatch.setattr("experiments.train.solver_named", lambda _: SimpleNamespace(solve=solve))
    settings = TrainSettings(
        programs=(str(source),),
        out=tmp_path / "run",
        simulations=0,
        time_limit_seconds=1.0,
        demonstrations=("greedy",),
    )
    train(settings, lambda line: None)
    bound_seconds, demonstration_seconds = asked
    assert 0 <= bound_seconds < 1
    assert demonstration_seconds == 0


def test_one_run_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    settings = TrainSettings(programs=("lstm_train",), out=tmp_path, time_limit_seconds=0.0)
    with held(tmp_path), pytest.raises(InputError, match="another process is writing"):
        train(settings)
    assert not (tmp_path / SETTINGS).exists()


def test_a_run_begins_without_what_another_left(tmp_path: Path) -> None:
    for name in (METRICS, BEST):
        (tmp_path / name).touch()
    with run_folder(tmp_path, resume=False):
        assert not (tmp_path / METRICS).exists()
        assert not (tmp_path / BEST).exists()


def test_a_folder_that_cannot_be_made_is_noticed_before_long_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = TrainSettings(programs=("lstm_train",), out=tmp_path / "file" / "run")
    said: list[str] = []
    with pytest.raises(InputError, match="cannot write there: Not a directory"):
        train(settings, said.append)
    assert not said


def test_weights_of_a_long_program_are_kept_with_all_their_actors(tmp_path: Path) -> None:
    """Fewer games side by side on a long program; another one that they play may be short."""
    accesses = " ".join(f"r{buffer}" for buffer in "abcdefgh")
    program = program_of(dict.fromkeys("abcdefgh", 4), [(1, accesses)] * 900, capacity=16)
    (tmp_path / "long.json").write_text(program.to_json())
    settings = TrainSettings(programs=(str(tmp_path / "long.json"),), out=tmp_path / "run")
    trainer, config = _trainer(settings, None, [program])
    assert trainer.config.play.actors < config.play.actors
    reference = Reference("long", program.all_slow_ticks, None, 1.0)
    run = TrainingRun(tmp_path, config, trainer, (reference,), 1.0, [None])
    run.save()
    kept = read_document(tmp_path / CHECKPOINT)
    assert read_weights(tmp_path)[0] == config
    again, same = _trainer(replace(settings, resume=True), kept, [program])
    assert (again.config, same) == (trainer.config, config)


def test_what_was_never_saved_cannot_be_resumed_but_begun_anew(tmp_path: Path) -> None:
    known = known_optimum_program(2, kind="knapsack", size=8)
    source, out = tmp_path / "program.json", tmp_path / "run"
    source.write_text(known.program.to_json())
    out.mkdir()
    (out / "settings.json").write_text(json.dumps({"programs": [str(source)]}))
    settings = TrainSettings(programs=(str(source),), out=out, time_limit_seconds=0.0)
    with pytest.raises(InputError, match="cannot read"):
        train(replace(settings, resume=True))
    assert train(settings, lambda line: None).num_moves > 0


def test_a_program_that_leaves_no_choice_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    # Bound by compute: the program would wait for the copy, and gain nothing by it.
    program = program_of({"a": 4}, [(100, "ua")])
    assert turn_table(program).num_turns == 1
    source, out = tmp_path / "program.json", tmp_path / "run"
    source.write_text(program.to_json())
    with pytest.raises(NothingToPlayError, match="nothing to decide"):
        train(TrainSettings(programs=(str(source),), out=out))
    assert not out.exists()


def test_the_best_weights_outlive_a_kill_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "program.json", tmp_path / "run"
    source.write_text(known_optimum_program(2, kind="knapsack", size=8).program.to_json())
    settings = TrainSettings(
        programs=(str(source),), out=out, simulations=4, time_limit_seconds=1.0
    )

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("agents.checkpoint.write_weights", kill)
        with pytest.raises(KeyboardInterrupt):
            train(settings, lambda line: None)
    assert not (out / BEST).exists()
    best = read_document(out / CHECKPOINT)["best_params"]
    again = replace(settings, programs=(), simulations=None, resume=True, time_limit_seconds=0.0)
    monkeypatch.setattr("experiments.training_run.mean_of_all", lambda _: None)  # None is better.
    train(again, lambda line: None)
    jax.tree.map(np.testing.assert_array_equal, read_weights(out / BEST)[1], best)


def test_a_generalists_run_is_not_resumed_as_one_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.checkpoint.read_document", lambda path: {"league": {}})
    (tmp_path / "settings.json").write_text('{"programs": ["deepfm_train.v5e"]}')
    with pytest.raises(InputError, match="not a run of `malloc-game train`"):
        train(TrainSettings(programs=(), out=tmp_path, resume=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"programs": [', r"settings\.json:1:15: not JSON"),
        ("[]", r"settings\.json: holds a list, not a dict"),
        ("{}", r"settings\.json: names no programs"),
        ('{"programs": []}', r"settings\.json: names no programs"),
        ('{"programs": [1]}', r"settings\.json: names no programs"),
        (None, r"settings\.json: no such file"),
    ],
)
def test_damaged_settings_are_the_users_error(
    text: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.checkpoint.read_document", lambda path: {})
    if text is not None:
        (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=words):
        train(TrainSettings(programs=(), out=tmp_path, resume=True))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("one", "one"), "one: several programs have this name"),
        (("a/b",), "'a/b': a map cannot be filed"),
        (("one", "../one"), "'../one': a map cannot be filed"),
    ],
)
def test_programs_whose_maps_cannot_be_told_apart_are_refused_at_once(
    names: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.train.bound_program", None)
    program = known_optimum_program(2, kind="knapsack", size=8).program
    sources = [tmp_path / f"{number}.json" for number in range(len(names))]
    for source, name in zip(sources, names, strict=True):
        source.write_text(replace(program, name=name).to_json())
    out = tmp_path / "run"
    with pytest.raises(InputError, match=words):
        train(TrainSettings(programs=tuple(map(str, sources)), out=out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "name", "given"),
    [
        ("--weights", "--simulations", {"simulations": 2}),
        ("--resume", "--simulations", {"simulations": 2}),
        ("--resume", "--weights", {"weights": Path("other")}),
        ("--resume", "--seed", {"seed": 0}),
        ("--resume", "--demonstrations", {"demonstrations": ("greedy",)}),
    ],
)
def test_what_is_begun_from_brings_its_settings(
    option: str, name: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.checkpoint.read_document", lambda path: {})
    (tmp_path / "settings.json").write_text('{"programs": ["lstm_forward"]}')
    resume = option == "--resume"
    settings = TrainSettings(
        programs=("lstm_forward",),
        out=tmp_path,
        weights=None if resume else tmp_path,
        resume=resume,
    )
    with pytest.raises(InputError, match=f"{option} brings its own settings: {name} cannot"):
        train(replace(settings, **given))


def test_a_run_that_diverges_stops_and_leaves_its_checkpoint(
    tmp_path: Path, diverged: TrainReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = known_optimum_program(2, kind="knapsack", size=8)
    source, out = tmp_path / "program.json", tmp_path / "run"
    source.write_text(known.program.to_json())

    def run_chunk(self: Trainer) -> TrainReport:
        self.learner.params = jax.tree.map(lambda leaf: leaf * np.nan, self.learner.params)
        return diverged

    monkeypatch.setattr(Trainer, "run_chunk", run_chunk)
    settings = TrainSettings(
        programs=(str(source),), out=out, time_limit_seconds=0.0, save_seconds=0.0
    )
    with pytest.raises(MallocGameError, match="diverged: after 3 updates the loss is nan"):
        train(settings, lambda line: None)
    assert not (out / METRICS).exists()  # A line of what are no numbers would not be JSON.
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(read_weights(out)[1]))


def test_what_programs_save_is_compared_once_all_have_played_a_game_of_their_own() -> None:
    references = [Reference(name, 100.0, None, 1.0) for name in ("one", "other")]

    def game(program: int, latency_ticks: float, free: bool = True) -> Any:
        return SimpleNamespace(program=program, latency_ticks=latency_ticks, free=free)

    shown = game(1, 1.0, free=False)
    first = smoothed([None, None], [game(0, 50.0), game(0, 70.0), shown], references)
    assert first == [pytest.approx(0.4), None]
    assert mean_of_all(first) is None
    second = smoothed(first, [game(1, 90.0)], references)
    assert second == pytest.approx([0.4, 0.1])
    assert mean_of_all(second) == pytest.approx(0.25)
    # Whichever program happens to finish games, the others still count as much.
    third = smoothed(second, [shown, *[game(0, 60.0)] * 9], references)
    assert third == pytest.approx(second)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_waits_for_the_end_of_the_chunk(
    ending: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = known_optimum_program(2, kind="knapsack", size=8)
    source, out = tmp_path / "program.json", tmp_path / "run"
    source.write_text(known.program.to_json())
    whole = SelfPlay.play
    ended = []

    def play(self: SelfPlay, *arguments: Any) -> Any:
        if len(ended) == 2:
            signal.raise_signal(ending)
        result = whole(self, *arguments)
        ended.append(result)
        return result

    monkeypatch.setattr(SelfPlay, "play", play)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if ending is signal.SIGHUP and line.startswith("interrupted"):
            raise OSError(errno.EIO, "Input/output error")  # The terminal is gone.

    settings = TrainSettings(
        programs=(str(source),), out=out, simulations=0, time_limit_seconds=300.0
    )
    before = signal.signal(ending, signal.default_int_handler)
    try:
        train(settings, say)
        assert signal.getsignal(ending) is signal.default_int_handler
    finally:
        signal.signal(ending, before)
    assert said[-1] == "interrupted: saving"
    assert len(ended) == 3
    assert read_document(out / CHECKPOINT)["trainer"]["counts"][0] == 3
    assert chunks_of(out) == [1, 2, 3]


def test_a_second_interrupt_does_not_wait_and_a_hang_up_may_be_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with interrupts_awaited() as interrupted:
            assert not interrupted()
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)  # Of the shell, after that of its terminal.
            assert interrupted()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with interrupts_awaited() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_names_its_files_so_that_it_can_be_resumed_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.json").write_text("{}")
    settings = TrainSettings(programs=("own.json", "lstm_forward"), out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    lasting = (str(tmp_path / "own.json"), "lstm_forward")
    assert _sources(settings) == lasting
    settings.out.mkdir()
    (settings.out / SETTINGS).write_text(json.dumps({"programs": lasting}))
    assert _sources(replace(settings, resume=True)) == lasting
    monkeypatch.chdir(settings.out)
    assert _sources(replace(settings, programs=(), resume=True)) == lasting
    with pytest.raises(InputError, match="name a file"):
        _sources(replace(settings, programs=("-",)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_limit_seconds": -1.0}, "time limit is -1.0"),
        ({"time_limit_seconds": math.nan}, "time limit is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"demonstrations": ("foo",)}, "foo"),
    ],
)
def test_settings_that_make_no_sense_leave_no_folder(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    settings = TrainSettings(programs=("lstm_forward",), out=tmp_path / "run")
    with pytest.raises(InputError, match=words):
        train(replace(settings, **changes))
    assert not (tmp_path / "run").exists()
