"""Many programs and one network; weights that come with the package."""

from __future__ import annotations

import json
import math
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from agents.checkpoint import (
    BEST,
    CHECKPOINT,
    read_document,
    read_weights,
    write_document,
    write_weights,
)
from agents.config import AgentConfig, preset_named
from agents.generalist import ABOUT, WEIGHTS
from agents.league import League, parted_by_size
from agents.trainer import Trainer, TrainReport
from experiments.demonstrations import TABLE
from experiments.generalist.__main__ import main
from experiments.generalist.programs import generated_programs, variant
from experiments.generalist.run import PROGRAMS, SETTINGS, GeneralistRun, ship
from experiments.generalist.settings import GeneralistSettings
from experiments.generalist.training import show_demonstrations, train_generalist
from experiments.generalist.validation import Validation
from experiments.metrics import METRICS, VALIDATION, append_metrics
from hlo_graphs import corpus
from hlo_graphs.errors import InputError, MallocGameError
from malloc_game.generator import random_program
from malloc_game.known_optimum import KnownOptimum
from malloc_game.turn_table import turn_table
from solvers.solver import SolveRequest
from tests.agents.conftest import disturbed


def test_averaged_weights_are_at_first_the_mean_of_all_that_were(small_config: AgentConfig) -> None:
    league = League([random_program(3, num_accesses=20)], small_config)
    first = jax.tree.map(np.array, league.learner.params)
    jax.tree.map(np.testing.assert_array_equal, league.averaged, first)
    seen = []
    while len(seen) < 4:
        before = league.learner.num_updates
        league.run_chunk()
        if league.learner.num_updates > before:
            seen.append(jax.tree.map(np.array, league.learner.params))
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *seen)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), league.averaged, mean
    )


def test_variants_differ_in_the_machine_alone() -> None:
    program = random_program(1, num_accesses=40)
    rng = np.random.default_rng(0)
    variants = [variant(program, rng) for _ in range(50)]
    assert len({one.name for one in variants}) == 50
    for one in variants:
        assert program.capacity_bytes / 6 - 1 <= one.capacity_bytes + one.machine.alignment_bytes
        assert one.capacity_bytes <= program.capacity_bytes
        assert replace(one, name=program.name, machine=program.machine) == program


def test_programs_of_like_size_play_together() -> None:
    programs = [random_program(1, num_accesses=size) for size in (20, 600, 30)]
    sizes = [turn_table(program).num_items for program in programs]
    assert sizes[0] < 384 < sizes[1] < 1536
    assert parted_by_size(programs) == [[programs[0], programs[2]], [programs[1]]]
    assert parted_by_size([]) == []
    with pytest.raises(InputError, match="no program"):
        League([], preset_named("tiny"))


def test_a_league_teaches_one_learner_and_goes_on_from_a_file(
    small_config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parts of one bucket: compiled once.
    monkeypatch.setattr("agents.league.SIZES", (35,))
    programs = [random_program(seed, num_accesses=20) for seed in (3, 5)]

    def league(seed: int) -> League:
        return League(programs, small_config, seed=seed)

    whole, parted = league(7), league(7)
    assert len(whole.trainers) == 2
    assert all(trainer.learner is whole.learner for trainer in whole.trainers)
    for _ in range(8):
        whole.run_chunk()
    for _ in range(3):
        parted.run_chunk()
    assert whole.learner.num_updates > 0
    write_document(tmp_path / "league", parted.to_document())
    resumed = league(99)
    resumed.restore(read_document(tmp_path / "league"))
    for _ in range(5):
        resumed.run_chunk()
    first, second = whole.to_document(), resumed.to_document()
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    with pytest.raises(InputError, match="other sizes"):
        League(programs[:1], small_config).restore(first)


def test_generated_programs_differ_and_are_drawn_from_the_seed() -> None:
    programs = generated_programs(8, 5)
    assert [p.to_json() for p in programs] == [p.to_json() for p in generated_programs(8, 5)]
    assert len({p.name for p in programs}) == 8


def test_the_test_split_is_not_trained_on(tmp_path: Path) -> None:
    settings = GeneralistSettings(out=tmp_path / "run", programs=("gpt_decode.v5e",))
    with pytest.raises(InputError, match="not one of the programs to train on"):
        train_generalist(settings)


def test_training_leaves_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_chunks = 0
    whole = League.run_chunk

    def run_chunk(self: League) -> Any:
        nonlocal num_chunks
        num_chunks += 1
        return whole(self)

    # A second a chunk, however busy the machine.
    monkeypatch.setattr(League, "run_chunk", run_chunk)
    clock = SimpleNamespace(monotonic=lambda: float(num_chunks))
    monkeypatch.setattr("experiments.generalist.training.time", clock)
    settings = GeneralistSettings(
        out=tmp_path / "run",
        programs=("flash_attention_forward.v5e",),
        num_variants=1,
        num_generated=1,
        validation=("deepfm_train.v5e",),
        preset="tiny",
        time_limit_seconds=20.0,
        demonstrations=("greedy", TABLE),
        demonstration_games=400,
        log_seconds=0.0,
    )
    said: list[str] = []
    train_generalist(settings, say=said.append)
    assert any("shown" in line and "greedy" in line and "table" in line for line in said)
    with pytest.raises(InputError, match="holds a run already"):
        train_generalist(settings)
    rows = [json.loads(line) for line in (settings.out / METRICS).read_text().splitlines()]
    train_generalist(replace(settings, time_limit_seconds=8.0), resume=True, say=said.append)
    more = [json.loads(line) for line in (settings.out / METRICS).read_text().splitlines()]
    assert len(more) > len(rows)
    assert more[-1]["num_updates"] > rows[-1]["num_updates"]
    assert more[-1]["num_games"] > rows[-1]["num_games"]
    lines = (settings.out / VALIDATION).read_text().splitlines()
    scores = {row["num_updates"]: row["score"] for row in map(json.loads, lines)}
    assert list(scores) == sorted(scores)
    assert all(math.isfinite(score) for score in scores.values())
    latest = read_document(settings.out / CHECKPOINT)
    assert latest["best_score"] == max(scores.values())
    agent, best = read_weights(settings.out)
    assert Validation.of(settings).score(agent, best) == pytest.approx(latest["best_score"])
    with pytest.raises(InputError, match="no run with these settings"):
        train_generalist(replace(settings, seed=1), resume=True)


@pytest.mark.parametrize("loss", [1.0, math.nan])
@pytest.mark.parametrize("gradient_norm", [1.0, math.inf, math.nan])
def test_a_chunk_that_diverges_is_neither_noted_nor_saved(
    loss: float,
    gradient_norm: float,
    diverged: TrainReport,
    tmp_path: Path,
    small_config: AgentConfig,
) -> None:
    assert diverged.learn is not None
    learn = replace(diverged.learn, loss=loss, gradient_norm=gradient_norm)
    report = replace(diverged, learn=learn)
    trainer: Any = None
    league: Any = SimpleNamespace(config=small_config)
    settings = GeneralistSettings(out=tmp_path, log_seconds=math.inf, save_seconds=math.inf)
    run = GeneralistRun(settings, league, Validation((), ()), print)
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        run.note(trainer, report)
        assert run.trained_seconds == 2
        return
    with pytest.raises(MallocGameError, match="training has diverged: after 3 updates"):
        run.note(trainer, report)
    assert run.trained_seconds == 0


def test_the_best_weights_outlive_a_kill_before_they_are_written(
    small_config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.4])
    monkeypatch.setattr(Validation, "score", lambda *_: next(scores))
    league = League([random_program(3, num_accesses=20)], small_config)
    league.averaged = disturbed(league.learner.params)
    best = jax.tree.map(np.array, league.averaged)

    def run() -> GeneralistRun:
        settings = GeneralistSettings(out=tmp_path)
        return GeneralistRun(settings, league, Validation((), ()), lambda line: None)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("agents.checkpoint.write_weights", kill)
        with pytest.raises(KeyboardInterrupt):
            run().save()
    assert not (tmp_path / BEST).exists()
    resumed = run()
    resumed.restore(read_document(tmp_path / CHECKPOINT))
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path / BEST)[1], best)
    league.averaged = disturbed(best)
    resumed.save()
    # What played worse is in the checkpoint, and not in place of the best.
    (tmp_path / BEST).unlink()
    again = run()
    again.restore(read_document(tmp_path / CHECKPOINT))
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path / BEST)[1], best)
    assert again.best.score == 0.5
    lines = (tmp_path / VALIDATION).read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [0.5, 0.4]


def test_a_run_that_cannot_be_resumed_keeps_the_names_of_its_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = random_program(3, num_accesses=20)
    settings = GeneralistSettings(out=tmp_path / "run", preset="tiny", time_limit_seconds=0.0)
    monkeypatch.setattr(Validation, "of", lambda settings: Validation((), ()))
    monkeypatch.setattr(Validation, "score", lambda *_: 0.5)
    monkeypatch.setattr("experiments.generalist.training.training_programs", lambda _: [program])
    train_generalist(replace(settings, demonstrations=()), say=lambda line: None)
    assert json.loads((settings.out / PROGRAMS).read_text()) == [program.name]
    other = replace(program, name="other")
    monkeypatch.setattr("experiments.generalist.training.training_programs", lambda _: [other])
    with pytest.raises(InputError, match=r"checkpoint is of .*, not of other"):
        train_generalist(replace(settings, demonstrations=()), resume=True, say=lambda line: None)
    assert json.loads((settings.out / PROGRAMS).read_text()) == [program.name]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_run_that_is_saved(
    ending: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = random_program(3, num_accesses=20)
    settings = GeneralistSettings(out=tmp_path / "run", preset="tiny", demonstrations=())
    monkeypatch.setattr(Validation, "of", lambda settings: Validation((), ()))
    monkeypatch.setattr(Validation, "score", lambda *_: pytest.fail("saving comes first"))
    monkeypatch.setattr("experiments.generalist.training.training_programs", lambda _: [program])
    whole = League.run_chunk

    def run_chunk(self: League) -> Any:
        signal.raise_signal(ending)
        return whole(self)

    monkeypatch.setattr(League, "run_chunk", run_chunk)
    said: list[str] = []
    before = signal.signal(ending, signal.default_int_handler)
    try:
        train_generalist(settings, say=said.append)
    finally:
        signal.signal(ending, before)
    assert "interrupted: saving" in said
    document = read_document(settings.out / CHECKPOINT)
    assert document["parts"][0]["counts"][0] == 1
    assert document["best_params"] is None
    again = League([program], preset_named("tiny"))
    GeneralistRun(settings, again, Validation((), ()), print).restore(document)
    assert not (settings.out / BEST).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_limit_seconds": math.nan}, "time limit is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"preset": "huge"}, "huge"),
    ],
)
def test_settings_that_make_no_sense_leave_no_run(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    settings = GeneralistSettings(out=tmp_path / "run")
    with pytest.raises(InputError, match=words):
        train_generalist(replace(settings, **changes))
    assert not settings.out.exists()


def test_without_demonstrators_nothing_is_shown(
    known: KnownOptimum, small_config: AgentConfig
) -> None:
    league: Any = SimpleNamespace(trainers=[Trainer([known.program], small_config)])
    said: list[str] = []
    settings = GeneralistSettings(out=Path("none"), demonstrations=())
    show_demonstrations(league, settings, said.append)
    assert said == []
    assert not any(league.trainers[0]._demonstrations)


@pytest.mark.parametrize("saving", [{0}, {1}, {0, 1}, set()])
def test_programs_of_which_greedy_saves_nothing_judge_nothing(
    saving: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[int] = []

    def solve(request: SolveRequest) -> Any:
        share = 0.75 if len(solved) in saving else 1.0
        solved.append(len(solved))
        return SimpleNamespace(latency_ticks=share * request.program.all_slow_ticks)

    solver = SimpleNamespace(solve=solve)
    monkeypatch.setattr("experiments.generalist.validation.solver_named", lambda name: solver)
    settings = GeneralistSettings(out=Path("none"), validation=("deepfm_train.v5e",))
    if not saving:
        with pytest.raises(InputError, match=r"greedy saves nothing of deepfm_train\.v5e"):
            Validation.of(settings)
        return
    validation = Validation.of(settings)
    variants = ["@" in program.name for program in validation.programs]
    assert variants == [bool(number) for number in sorted(saving)]
    assert validation.greedy_saved == (0.25,) * len(saving)


def test_what_ends_the_generalist_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / SETTINGS).write_text('{"seed": ')
    (tmp_path / CHECKPOINT).touch()
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path), "--resume"])
    assert stop.value.code == InputError.exit_code
    said = capsys.readouterr().err
    assert re.fullmatch(rf"malloc-game: error: .*{SETTINGS}:1:10: not JSON.*\n", said)

    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path), "--time-limit", "0", "--demonstrations", "gredy"])
    assert stop.value.code == InputError.exit_code
    assert "gredy" in capsys.readouterr().err

    def train(*_: object, **__: object) -> None:
        raise MallocGameError("a process of this work was ended")

    monkeypatch.setattr("experiments.generalist.__main__.train_generalist", train)
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path)])
    assert stop.value.code == MallocGameError.exit_code
    assert capsys.readouterr().err == "malloc-game: error: a process of this work was ended\n"


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose best weights had a score of 0.5; shipping writes beside it."""
    monkeypatch.setattr("experiments.generalist.run.WEIGHTS", tmp_path / "shipped")
    monkeypatch.setattr("experiments.generalist.run.ABOUT", tmp_path / "about")
    run = tmp_path / "run"
    run.mkdir()
    weights = {"layer": np.ones(3)}
    document = {
        "config": preset_named("tiny").to_document(),
        "best_score": 0.5,
        "best_params": weights,
    }
    write_document(run / CHECKPOINT, document)
    write_weights(run / BEST, preset_named("tiny"), weights)
    for name, text in {
        VALIDATION: '{"num_updates": 3, "score": 0.5}\n',
        METRICS: '{"num_updates": 4}\n',
        SETTINGS: '{"out": "run", "seed": 1}',
        PROGRAMS: '["one"]',
    }.items():
        (run / name).write_text(text)
    return run


@pytest.mark.parametrize("damaged", [SETTINGS, PROGRAMS])
def test_a_damaged_run_is_not_shipped(damaged: str, finished: Path) -> None:
    text = (finished / damaged).read_text()
    (finished / damaged).write_text(text[:-2])
    with pytest.raises(InputError, match=rf"{damaged}:1:\d+: not JSON"):
        ship(finished)
    assert not (finished.parent / "shipped").exists()


def test_weights_are_shipped_with_their_own_score(finished: Path) -> None:
    """A kill after the line of a validation, before its checkpoint, leaves another one there."""
    append_metrics(finished / VALIDATION, {"num_updates": 9, "score": 0.9})
    write_weights(finished / BEST, preset_named("tiny"), {"layer": np.zeros(3)})
    config, params = read_weights(ship(finished))
    assert config == preset_named("tiny")
    assert params["layer"].tolist() == [1.0, 1.0, 1.0]
    about = json.loads((finished.parent / "about").read_text())
    assert about["validation"] == {"num_updates": 3, "score": 0.5}


def test_what_was_never_validated_is_not_shipped(finished: Path) -> None:
    document = read_document(finished / CHECKPOINT)
    write_document(finished / CHECKPOINT, document | {"best_score": None, "best_params": None})
    with pytest.raises(InputError, match="no weights that were validated"):
        ship(finished)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no weights come with this package")
def test_the_shipped_weights_are_small_and_say_what_they_are() -> None:
    assert WEIGHTS.stat().st_size < 3_000_000
    config, params = read_weights(WEIGHTS)
    assert config.preset == "generalist"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    about = json.loads(ABOUT.read_text())
    played = {name.partition("@")[0] for name in about["programs"]}
    assert played & set(corpus.split().train)
    assert not played & set(corpus.split().test)
