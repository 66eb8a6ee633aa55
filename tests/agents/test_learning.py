"""What is learned from: priorities, values beyond a horizon, what networks see, statistics."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.checkpoint import CHECKPOINT, write_document
from agents.compilation import needs_of
from agents.config import AgentConfig, ModelKind
from agents.games import compact, expanded
from agents.learner import LearnReport, _bootstrap_values
from agents.models import relative_rewards
from agents.networks import Networks, View, predict, represent
from agents.programs import outlook
from agents.replay import LEAST_PRIORITY, Draw
from agents.self_play import Moves, PlayStatistics
from agents.trainer import Trainer
from malloc_game.known_optimum import KnownOptimum
from malloc_game.observation import Observation, observation_specs
from tests.agents.conftest import disturbed


@pytest.fixture(scope="module")
def alone(config: AgentConfig) -> AgentConfig:
    """By the policy alone, with returns that end three moves on."""
    learn = replace(config.learn, updates_per_chunk=2)
    td = replace(config.replay, td_steps=3)
    return replace(config, search=config.search.policy_alone(), replay=td, learn=learn)


def played(known: KnownOptimum, config: AgentConfig, num_decisions: int = 200) -> Trainer:
    trainer = Trainer([known.program], config)
    while len(trainer.replay) < num_decisions:
        trainer.run_chunk(learn=False)
    return trainer


def test_each_decision_gets_the_priority_of_its_own_error(
    known: KnownOptimum, alone: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = played(known, alone)
    draws: list[Draw] = []
    sample = trainer.replay.sample

    def remembered(count: int, rng: np.random.Generator) -> Draw:
        draws.append(sample(count, rng))
        return draws[-1]

    monkeypatch.setattr(trainer.replay, "sample", remembered)
    report = LearnReport(*[0.0] * 10)
    # Errors by which each position can be told apart: what its return is.
    monkeypatch.setattr(trainer.learner, "update", lambda batch: (report, batch.returns[..., 0]))
    before = trainer.replay.rows.priority.copy()
    trainer.learn()
    (drawn,) = draws
    errors = np.abs(trainer._targets.batch([drawn]).returns[:, 0])
    after = trainer.replay.rows.priority
    assert np.ptp(errors) > 0.1
    np.testing.assert_allclose(after[drawn.places], np.maximum(errors, LEAST_PRIORITY), rtol=1e-6)
    np.testing.assert_array_equal(np.delete(after, drawn.places), np.delete(before, drawn.places))


def test_beyond_the_horizon_the_network_values_the_position_there(
    known: KnownOptimum, alone: AgentConfig
) -> None:
    trainer = played(known, alone)
    params = disturbed(trainer.learner.params)
    networks = Networks(alone.network)
    rows = trainer.replay.rows
    places = np.flatnonzero(rows.left)[:20]
    batch = trainer._targets.batch([Draw(rows, places, np.ones(len(places), np.float32))])
    found = np.asarray(jax.jit(lambda batch: _bootstrap_values(networks, params, batch))(batch))

    ahead = trainer.baselines.outlook(rows.program[:], rows.cursor[:])
    everywhere = np.arange(len(rows))
    view = View(expanded(jax.tree.map(jnp.asarray, rows.observation(everywhere))), ahead)
    prediction = predict(networks, params, represent(networks, params, view))
    values = np.asarray(networks.value(prediction.value_logits))
    assert np.ptp(values) > 0.1
    horizon = alone.replay.td_steps
    assert horizon is not None
    for place, bootstrapped in zip(places, found, strict=True):
        for k, value in enumerate(bootstrapped):
            is_over = k + horizon >= rows.left[place]
            expected = 0.0 if is_over else values[place + k + horizon]
            assert value == pytest.approx(expected, abs=1e-4)


def test_play_and_learning_see_the_same_incumbent(known: KnownOptimum, alone: AgentConfig) -> None:
    trainer = played(known, alone)
    baselines = trainer.baselines
    assert np.ptp(baselines.curves) > 0, "an incumbent that gains nothing would hide all faults"
    boards, _ = trainer.self_play.position(baselines)
    count = len(boards.units)
    programs = np.zeros(count, dtype=np.int64)
    (num_items,) = np.unique(np.asarray(boards.num_items))
    cursors = np.linspace(1, num_items - 1, count).astype(np.int32)
    here = replace(boards, state=replace(boards.state, cursor=jnp.asarray(cursors)))
    there = replace(boards, state=replace(boards.state, cursor=jnp.asarray(cursors + 1)))
    np.testing.assert_allclose(
        outlook(here.curves, here.state.cursor, here.num_items, here.units),
        baselines.outlook(programs, cursors),
        atol=1e-5,
    )
    rewards = np.linspace(0, 0.1, count, dtype=np.float32)
    gained = baselines.gains(programs, cursors, cursors + 1)
    np.testing.assert_allclose(
        relative_rewards(here, there, jnp.asarray(rewards)),
        (rewards - gained) / baselines.units[programs],
        atol=1e-5,
    )


def test_what_is_kept_of_an_observation_is_its_bits_and_halves() -> None:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        name: jnp.asarray(rng.random((2, *spec.shape)), dtype=jnp.float32)
        for name, spec in vars(observation_specs()).items()
    }
    columns["memory"] = (columns["memory"] > 0.5).astype(jnp.float32)
    columns["action_mask"] = columns["action_mask"] > 0.5
    seen = Observation(**columns)
    again = expanded(compact(seen))
    for name in ("memory", "action_mask"):
        np.testing.assert_array_equal(getattr(again, name), getattr(seen, name))
    for name in ("turn", "now", "window", "idle"):
        np.testing.assert_allclose(getattr(again, name), getattr(seen, name), atol=1e-3)


def test_the_statistics_of_three_moves_counted_by_hand() -> None:
    legal = np.array([[[True, True, False]], [[True, True, True]], [[True, False, False]]])
    third = [1 / 3, 1 / 3, 1 / 3]
    shares = np.array([[[0.5, 0.5, 0.0]], [third], [[1.0, 0.0, 0.0]]])
    moves: Any = Moves(
        observation=replace(observation_specs(), action_mask=legal),
        going=np.array([[True], [True], [True]]),
        cursor=np.array([[1], [2], [3]]),
        action=np.array([[1], [1], [0]]),
        reward=np.zeros((3, 1)),
        policy=shares,
        prior=np.array([[[0.25, 0.75, 0.0]], [third], [[1.0, 0.0, 0.0]]]),
        visits=np.array([[[1.0, 0.0, 0.0]], [third], [[1.0, 0.0, 0.0]]]),
    )
    found = PlayStatistics.of(moves)
    assert found.num_moves == 3
    # The last leaves no choice; the first puts all visits on one action, the second on none.
    assert found.visit_entropy == pytest.approx(0.5)
    assert found.policy_entropy == pytest.approx(1.0)
    assert found.search_divergence == pytest.approx(0.5 * np.log(4 / 3) / 2)
    assert found.commonest_action == 1.0
    over = PlayStatistics.of(moves._replace(going=np.zeros((3, 1), dtype=bool)))
    assert over.num_moves == 0


def test_values_explain_what_they_explain_of_all_positions_together(
    known: KnownOptimum, config: AgentConfig
) -> None:
    trainer = played(known, replace(config, search=config.search.policy_alone()))
    count, size = config.learn.updates_per_chunk, config.learn.batch_size
    flat = trainer._targets.batch([trainer.replay.sample(count * size, np.random.default_rng(0))])
    # Batches whose returns are all alike, beside others: alone, nothing of theirs can be explained.
    flat.returns[: len(flat.returns) // 2] = 0
    batches = jax.tree.map(lambda leaf: leaf.reshape(count, size, *leaf.shape[1:]), flat)
    trainer.learner.params = disturbed(trainer.learner.params)
    report, errors = trainer.learner.update(batches)
    assert errors.shape == (count, size)
    explained = 1 - np.var(errors) / np.var(flat.returns[:, 0])
    assert report.value_explained == pytest.approx(explained, abs=0.05)


def test_memory_needed_is_what_a_full_replay_and_its_checkpoint_take(
    known: KnownOptimum, alone: AgentConfig, tmp_path: Path
) -> None:
    config = replace(alone, replay=replace(alone.replay, capacity_decisions=3000))
    trainer = Trainer([known.program], config)
    needs = needs_of(trainer)
    tracemalloc.start()
    while trainer.num_moves < 4000:
        trainer.run_chunk(learn=False)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    write_document(tmp_path / CHECKPOINT, trainer.to_document())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert trainer.replay.num_decisions > 2900
    assert 0.5 * needs.saving_bytes < peak - held < 1.2 * needs.saving_bytes


def test_the_exact_model_learns_too(known: KnownOptimum, config: AgentConfig) -> None:
    search = replace(config.search, model=ModelKind.EXACT)
    play = replace(config.play, restart_fraction=0.0, follow_fraction=0.0)
    trainer = Trainer([known.program], replace(config, search=search, play=play))
    means = []
    while trainer.num_games < 300:
        report = trainer.run_chunk()
        means += [report.mean_saved] if report.mean_saved is not None else []
        assert report.learn is None or report.learn.reward_error == 0
    assert np.mean(means[-4:]) > np.mean(means[:4]) + 0.05
