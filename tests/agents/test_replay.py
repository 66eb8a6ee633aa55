from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from agents.config import PlayConfig, ReplayConfig
from agents.elites import Elites
from agents.games import NO_ACTION, Game, Source
from agents.programs import Baselines, PlayedProgram, ProgramSet
from agents.replay import FIRST_PRIORITY, Position, Replay, Targets
from malloc_game.observation import Observation, observation_specs
from tests.malloc_game.small import program_of


def game_of(rewards: list[float], actions: list[int] | None = None, program: int = 0) -> Game:
    """A made-up game with a decision at every item from 1 on."""
    length = len(rewards)
    specs = observation_specs()

    def zeros(name: str) -> np.ndarray:
        return np.zeros((length, *getattr(specs, name).shape), dtype=np.float16)

    seen = {name: zeros(name) for name in ("turn", "now", "window", "memory", "idle")}
    seen["turn"][:, 0] = np.arange(length)
    mask = np.ones((length, 3), dtype=bool)
    return Game(
        program=program,
        source=Source.SELF_PLAY,
        observations=Observation(**seen, action_mask=mask),  # type: ignore[arg-type]
        cursors=np.arange(1, length + 2, dtype=np.int32),
        actions=np.array(actions or [1] * length, dtype=np.int8),
        rewards=np.array(rewards, dtype=np.float32),
        opening=0.0,
        policies=np.tile(np.float32([0.5, 0.25, 0.25]), (length, 1)),
        values=np.zeros(length, dtype=np.float32),
        latency_ticks=1 - sum(rewards),
    )


@pytest.fixture(scope="module")
def programs() -> ProgramSet:
    steps = [(1, "wa"), (9, "wb"), (1, "ra"), (1, "rb")]
    return ProgramSet.of([program_of({"a": 4, "b": 4}, steps, capacity=4)])


def targets_of(programs: ProgramSet, unroll: int, td_steps: int | None = None) -> Targets:
    config = ReplayConfig(td_steps=td_steps)
    return Targets(programs.members, Baselines(programs), config, unroll)


def test_full_returns_and_what_lies_past_the_end(programs: ProgramSet) -> None:
    unit = programs.members[0].return_unit
    game = game_of([0.1, 0.2, 0.3], [0, 1, 2])
    batch = targets_of(programs, 3).batch([Position(game, 1)])
    np.testing.assert_allclose(batch.returns[0] * unit, [0.5, 0.3, 0, 0], atol=1e-6)
    np.testing.assert_allclose(batch.rewards[0] * unit, [0.2, 0.3, 0], atol=1e-6)
    np.testing.assert_array_equal(batch.actions[0], [1, 2, 0])
    np.testing.assert_array_equal(batch.going[0], [True, True, False, False])
    np.testing.assert_array_equal(batch.policies[0, 2:], np.zeros((2, 3)))
    assert not batch.bootstraps.any()


def test_n_step_returns_leave_off_where_the_network_takes_over(programs: ProgramSet) -> None:
    unit = programs.members[0].return_unit
    batch = targets_of(programs, 1, td_steps=2).batch([Position(game_of([0.1, 0.2, 0.3, 0.4]), 1)])
    np.testing.assert_allclose(batch.returns[0] * unit, [0.5, 0.7], atol=1e-6)
    np.testing.assert_array_equal(batch.bootstraps[0], [True, False])
    assert batch.bootstrap_observation.turn[0, 0, 0] == 3


def test_returns_against_the_incumbent(programs: ProgramSet) -> None:
    baselines = Baselines(programs)
    incumbent = game_of([0.1, 0.2, 0.3])
    baselines.set_incumbent(0, incumbent.cursors, incumbent.gained)
    targets = Targets(programs.members, baselines, ReplayConfig(), 0)
    unit = programs.members[0].return_unit
    assert targets.relative_return(incumbent, 0) == pytest.approx(0, abs=1e-5)
    better = game_of([0.1, 0.3, 0.3])
    assert targets.relative_return(better, 0) * unit == pytest.approx(0.1, abs=1e-5)
    assert targets.relative_return(better, 2) * unit == pytest.approx(0, abs=1e-5)
    shown = baselines.outlook(0, np.array([1]))
    assert np.expm1(shown[0, 0]) * unit == pytest.approx(0.1, abs=1e-4)


def test_imitated_moves_are_targets(programs: ProgramSet) -> None:
    game = game_of([0.1, 0.2], [2, 0])
    batch = targets_of(programs, 0).batch([Position(game, 0, imitate=True)])
    np.testing.assert_allclose(batch.policies[0, 0], [0.01, 0.01, 0.98], atol=1e-6)


def test_draws_follow_priorities() -> None:
    replay = Replay(ReplayConfig(priority_exponent=1.0, importance_exponent=1.0))
    replay.add(game_of([0.0] * 3))
    replay.add(game_of([0.0] * 2))
    replay.update(np.arange(5), np.array([1.0, 2.0, 3.0, 4.0, 0.0]))
    positions, places = replay.sample(20_000, np.random.default_rng(0))
    shares = np.bincount(places, minlength=5) / len(places)
    np.testing.assert_allclose(shares, np.array([1, 2, 3, 4, 1e-3]) / 10.001, atol=0.015)
    weights = {place: p.weight for place, p in zip(places.tolist(), positions, strict=True)}
    assert weights[0] / weights[3] == pytest.approx(4)
    by_place = dict(zip(places.tolist(), positions, strict=True))
    assert by_place[3].index == 0
    assert by_place[3].game is replay.games[1]


def test_priorities_that_are_no_numbers_do_no_harm() -> None:
    replay = Replay(ReplayConfig())
    replay.add(game_of([0.0] * 4))
    replay.update(np.arange(3), np.array([np.nan, np.inf, -0.5]))
    _, places = replay.sample(1000, np.random.default_rng(0))
    assert set(places.tolist()) == {0, 1, 2, 3}
    assert FIRST_PRIORITY in replay.to_document()["priorities"][0]  # type: ignore[index]


def test_the_oldest_games_leave() -> None:
    replay = Replay(ReplayConfig(capacity_decisions=5))
    games = [game_of([float(i)] * 2) for i in range(4)]
    for game in games:
        replay.add(game)
    assert replay.games == tuple(games[2:])
    assert replay.num_decisions == 4
    assert replay.mean_age(10) == 10


def test_replay_survives_a_checkpoint() -> None:
    replay = Replay(ReplayConfig())
    replay.add(game_of([0.1, 0.2]))
    replay.update(np.array([1]), np.array([0.3]))
    other = Replay(ReplayConfig())
    other.restore(replay.to_document())
    first, second = (one.sample(16, np.random.default_rng(1))[1] for one in (replay, other))
    np.testing.assert_array_equal(first, second)
    jax.tree.map(
        np.testing.assert_array_equal,
        replay.games[0].to_document(),
        other.games[0].to_document(),
    )


def test_elites_are_the_best_that_differ() -> None:
    elites = Elites(1, per_program=2)
    poor, good, best = (game_of([r], [a]) for r, a in ((0.1, 0), (0.2, 1), (0.3, 2)))
    assert [elites.add(game) for game in (good, poor, best, replace(good))] == [
        *(True, False, True, False),
    ]
    assert elites.games(0) == (best, good)
    assert elites.best(0) is best
    assert all(
        p.imitate and p.game in (best, good) for p in elites.sample(9, np.random.default_rng())
    )


def test_plans_come_from_elites() -> None:
    elites = Elites(1, per_program=1)
    rng = np.random.default_rng(0)
    prefixes = PlayConfig(restart_fraction=1.0, follow_fraction=0.0)
    assert (elites.plan(0, prefixes, 8, rng).actions == NO_ACTION).all()
    elites.add(game_of([0.1] * 6, [0, 1, 2, 0, 1, 2]))
    for _ in range(20):
        given = elites.plan(0, prefixes, 8, rng).actions
        length = int((given[1:] != NO_ACTION).sum())
        assert given[1 : 1 + length].tolist() == [0, 1, 2, 0, 1, 2][:length]
        assert length < 6
    close = PlayConfig(restart_fraction=0.0, follow_fraction=1.0, free_moves=2)
    kept = [(elites.plan(0, close, 8, rng).actions != NO_ACTION).sum() for _ in range(200)]
    assert np.mean(kept) == pytest.approx(4, abs=0.4)


def test_both_games_list_turns_alike(programs: ProgramSet) -> None:
    member: PlayedProgram = programs.members[0]
    assert len(member.item_of_turn) == member.fast_game.num_turns
