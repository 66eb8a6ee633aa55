"""Benchmarks of the agent: fair counts of games, and variants that differ in what they say."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("mctx", reason="the agent's packages are not installed")

from agents.adaptation import Found
from agents.canonical import wishes_by_price
from agents.checkpoint import write_weights
from agents.config import ModelKind, preset_named
from agents.programs import PlayedProgram
from agents.trainer import Trainer
from experiments.benchmarks import ablations, adaptation, equal_games
from experiments.evaluate import evaluate
from experiments.inputs import LoadedProgram
from experiments.results import append_row
from hlo_graphs.errors import InputError
from malloc_game.generator import random_program
from malloc_game.known_optimum import known_optimum_program
from tests.experiments.quick import quick_settings


def test_cross_entropy_plays_as_many_games_as_the_agent_did(tmp_path: Path) -> None:
    (greedy,) = evaluate(quick_settings(), tmp_path)
    with pytest.raises(InputError, match="no games of agent-scratch beside"):
        equal_games.rows_of(tmp_path, "agent-scratch", None)
    few = replace(greedy, solver="agent-scratch", games_played=1)
    for row in (few, replace(few, seed=1, games_played=3000), replace(few, time_limit_seconds=1.0)):
        append_row(tmp_path, row)
    rows = equal_games.rows_of(tmp_path, "agent-scratch", None)
    assert [row.seed for row in rows] == [0, 1]
    with pytest.raises(InputError, match="within 9 s"):
        equal_games.rows_of(tmp_path, "agent-scratch", 9.0)
    one, many = (equal_games.compare([row]) for row in rows)
    assert (one.num_games, many.num_games) == (1, 3000)
    assert one.agent == many.agent == greedy.production_seconds / greedy.latency_seconds  # type: ignore[operator]
    assert one.registered < many.registered
    assert one.uniform <= many.uniform
    level = replace(many, registered=many.agent, uniform=many.agent * 1.1)
    assert equal_games.verdict([level], "registered").endswith(
        "ahead on 0, level on 1, behind on 0"
    )
    assert equal_games.verdict([level], "uniform").endswith("ahead on 0, level on 0, behind on 1")


def test_variants_differ_from_the_base_in_what_they_say() -> None:
    base = preset_named("tiny")
    variants = {name: variant.changed(base) for name, variant in ablations.VARIANTS.items()}
    assert variants.pop("base") == base
    assert variants.pop("demonstrations") == base
    assert base not in variants.values()
    assert len(set(map(str, variants.values()))) == len(variants)
    assert variants["exact"].search.model is ModelKind.EXACT
    assert not ablations.VARIANTS["no learning"].learns
    with pytest.raises(InputError, match="did you mean 'exact'"):
        ablations.chosen_variants(["exakt"])


def test_a_variant_is_trained_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_optimum_program(2, kind="knapsack", size=8)
    slow = known.program.all_slow_ticks
    best = 1 - known.optimal_ticks / slow
    subject = ablations.Subject(
        loaded=LoadedProgram(known.program),
        greedy=best,
        production_ticks=slow,
        shown=(known.memory_map, known.memory_map),
    )
    taught = ablations.VARIANTS["demonstrations"]
    small = replace(
        taught, changed=lambda config: replace(config, search=replace(config.search, simulations=0))
    )
    # A chunk takes a second, as it seems.
    clock = SimpleNamespace(process_time=itertools.count().__next__)
    monkeypatch.setattr(ablations, "time", clock)
    short, long = (ablations.train(subject, small, seconds, 0) for seconds in (6.0, 9.0))
    assert long.num_updates - short.num_updates == 3 * preset_named("tiny").learn.updates_per_chunk
    assert 0 < short.num_games < long.num_games
    for outcome in (short, long):
        assert outcome.best == pytest.approx(best)
        assert outcome.mean <= best
        assert outcome.speedup == pytest.approx(slow / known.optimal_ticks)


def test_a_row_of_a_variant_holds_medians() -> None:
    known = known_optimum_program(2, kind="knapsack", size=8)
    subject = ablations.Subject(LoadedProgram(known.program), 0.5, None, ())
    outcomes = [
        ablations.Outcome(best, 0.25, 1.5, num_games, 24)
        for best, num_games in ((0.5, 10), (0.4, 30), (0.1, 20))
    ]
    line = ablations.row(subject, "no imitation", outcomes)
    assert line == f"{known.program.name:<28}{'no imitation':<18}" + "".join(
        f"{cell:>{width}}"
        for cell, width in (("0.8000", 9), ("0.5000", 9), ("1.5000", 10), ("20", 8), ("24", 9))
    )


def test_tables_are_compared_after_as_many_games_as_are_said(tmp_path: Path) -> None:
    rounds = (Found(200 * n, 100.0 - n, np.zeros(1, dtype=np.int8)) for n in itertools.count(1))
    assert list(adaptation._best_ticks(rounds, (150, 500, 600))) == [99, 97, 97]

    program = random_program(3, num_accesses=20)
    tiny = preset_named("tiny")
    config = replace(tiny, play=replace(tiny.play, actors=4))
    weights = tmp_path / "weights"
    write_weights(weights, config, Trainer([program], config).learner.params)
    compared = adaptation.compare(program, (200, 400), weights, 0)
    member = PlayedProgram.of(program)
    by_price = member.fast_game.latency_ticks(wishes_by_price(member))
    saved_by_price = 1 - by_price / program.all_slow_ticks
    assert saved_by_price > 0
    assert compared.prices == pytest.approx(saved_by_price / compared.greedy)
    tables = {
        "net": compared.adapted,
        "uni": compared.uniform,
        "single": compared.single,
        "whole": compared.whole,
        "ce": compared.cross_entropy,
    }
    for early, late in tables.values():
        assert 0 < early <= late < 1 / compared.greedy
    other = replace(compared, greedy=compared.greedy / 2, policy=compared.policy + 0.5)
    mean = adaptation.mean_of([compared, other])
    assert mean.policy == pytest.approx(compared.policy + 0.25)
    head, row = adaptation.header((200, 400)), compared.row()
    width = adaptation._WIDTH
    starts = range(52, 52 + 12 * width, width)
    names, shares = ([line[at : at + width].strip() for at in starts] for line in (head, row))
    expected = {"prices": compared.prices, "policy": compared.policy} | {
        f"{name} {games}": saved[place]
        for place, games in enumerate((200, 400))
        for name, saved in tables.items()
    }
    assert names == list(expected)
    assert shares == [f"{share:.4f}" for share in expected.values()]
