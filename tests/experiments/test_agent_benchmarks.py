"""Benchmarks of the agent: fair counts of games, and variants that differ in what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mctx", reason="the agent's packages are not installed")

from agents.config import ModelKind, preset_named
from experiments.benchmarks import ablations, equal_games
from experiments.evaluate import evaluate
from experiments.inputs import LoadedProgram
from experiments.results import append_row
from hlo_graphs.errors import InputError
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


def test_a_variant_is_trained_for_its_time() -> None:
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
        taught, changed=lambda config: replace(config, search=replace(config.search, simulations=2))
    )
    outcome = ablations.train(subject, small, 1.0, 0)
    assert outcome.best == pytest.approx(best)
    assert outcome.mean <= best
    assert outcome.speedup == pytest.approx(slow / known.optimal_ticks)
    assert outcome.num_games > 0
    assert outcome.num_updates > 0
    line = ablations.row(subject, "demonstrations", [outcome, replace(outcome, best=np.nan)])
    assert line.startswith(known.program.name)
