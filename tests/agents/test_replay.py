from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.config import PlayConfig, ReplayConfig
from agents.elites import Elites
from agents.games import NO_ACTION, Game, Source
from agents.programs import Baselines, PlayedProgram, ProgramSet
from agents.replay import Draw, Replay, Targets
from agents.rows import FIRST_PRIORITY, Rows, RowStore
from malloc_game.generator import Family, random_program
from malloc_game.observation import ADDRESS_BINS, TIME_EDGES, Observation, observation_specs
from malloc_game.turn_table import Column
from tests.malloc_game.small import program_of


def game_of(rewards: list[float], actions: list[int] | None = None, program: int = 0) -> Game:
    """A made-up game with a decision at every item from 1 on."""
    length = len(rewards)
    specs = observation_specs()

    def zeros(name: str) -> np.ndarray:
        return np.zeros((length, *getattr(specs, name).shape), dtype=np.float16)

    seen = {name: zeros(name) for name in ("turn", "now", "window", "memory", "idle")}
    seen["turn"][:, 0] = np.arange(length)
    seen["memory"] = np.zeros((length, len(TIME_EDGES), ADDRESS_BINS // 8), dtype=np.uint8)
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
        latency_ticks=1 - sum(rewards),
    )


@pytest.fixture(scope="module")
def programs() -> ProgramSet:
    steps = [(1, "wa"), (9, "wb"), (1, "ra"), (1, "rb")]
    return ProgramSet.of([program_of({"a": 4, "b": 4}, steps, capacity=4)])


def targets_of(programs: ProgramSet, unroll: int, td_steps: int | None = None) -> Targets:
    config = ReplayConfig(td_steps=td_steps)
    return Targets(Baselines(programs), config, unroll)


def at(game: Game, *indices: int, imitate: bool = False) -> list[Draw]:
    weights = np.ones(len(indices), dtype=np.float32)
    return [Draw(Rows.of(game), np.array(indices), weights, imitate)]


def test_full_returns_and_what_lies_past_the_end(programs: ProgramSet) -> None:
    unit = programs.members[0].return_unit
    game = game_of([0.1, 0.2, 0.3], [0, 1, 2])
    batch = targets_of(programs, 3).batch(at(game, 1))
    np.testing.assert_allclose(batch.returns[0] * unit, [0.5, 0.3, 0, 0], atol=1e-6)
    np.testing.assert_allclose(batch.rewards[0] * unit, [0.2, 0.3, 0], atol=1e-6)
    np.testing.assert_array_equal(batch.actions[0], [1, 2, 0])
    np.testing.assert_array_equal(batch.going[0], [True, True, False, False])
    np.testing.assert_array_equal(batch.policies[0, 2:], np.zeros((2, 3)))
    assert not batch.bootstraps.any()


def test_n_step_returns_leave_off_where_the_network_takes_over(programs: ProgramSet) -> None:
    unit = programs.members[0].return_unit
    batch = targets_of(programs, 1, td_steps=2).batch(at(game_of([0.1, 0.2, 0.3, 0.4]), 1))
    np.testing.assert_allclose(batch.returns[0] * unit, [0.5, 0.7], atol=1e-6)
    np.testing.assert_array_equal(batch.bootstraps[0], [True, False])
    assert batch.bootstrap_observation.turn[0, 0, 0] == 3


def test_returns_against_the_incumbent(programs: ProgramSet) -> None:
    baselines = Baselines(programs)
    incumbent = game_of([0.1, 0.2, 0.3])
    baselines.set_incumbent(0, incumbent.cursors, incumbent.gained)
    targets = Targets(baselines, ReplayConfig(), 0)
    unit = programs.members[0].return_unit
    assert targets.batch(at(incumbent, 0)).returns == pytest.approx(0, abs=1e-5)
    better = targets.batch(at(game_of([0.1, 0.3, 0.3]), 0, 2)).returns
    np.testing.assert_allclose(better[:, 0] * unit, [0.1, 0], atol=1e-5)
    shown = baselines.outlook(np.array([0]), np.array([1]))
    assert np.expm1(shown[0, 0]) * unit == pytest.approx(0.1, abs=1e-4)


def test_imitated_moves_are_targets(programs: ProgramSet) -> None:
    game = game_of([0.1, 0.2], [2, 0])
    batch = targets_of(programs, 0).batch(at(game, 0, imitate=True))
    np.testing.assert_allclose(batch.policies[0, 0], [0.01, 0.01, 0.98], atol=1e-6)


def test_draws_follow_priorities() -> None:
    replay = Replay(ReplayConfig(priority_exponent=1.0, importance_exponent=1.0))
    replay.add(game_of([0.0] * 3))
    replay.add(game_of([0.0] * 2))
    # Rows 3 and 6 are the games' ends.
    every = np.array([0, 1, 2, 4, 5])
    errors = np.array([1.0, 2.0, 3.0, 4.0, 0.0])
    replay.update(Draw(replay.rows, every, np.ones(5, dtype=np.float32)), errors)
    drawn = replay.sample(20_000, np.random.default_rng(0))
    shares = np.bincount(drawn.places, minlength=7)[every] / len(drawn)
    np.testing.assert_allclose(shares, np.array([1, 2, 3, 4, 1e-3]) / 10.001, atol=0.015)
    weights = dict(zip(drawn.places.tolist(), drawn.weights.tolist(), strict=True))
    assert set(weights) <= set(every.tolist())
    assert weights[0] / weights[4] == pytest.approx(4)


def test_priorities_that_are_no_numbers_do_no_harm() -> None:
    replay = Replay(ReplayConfig())
    replay.add(game_of([0.0] * 4))
    three = Draw(replay.rows, np.arange(3), np.ones(3, dtype=np.float32))
    replay.update(three, np.array([np.nan, np.inf, -0.5]))
    drawn = replay.sample(1000, np.random.default_rng(0))
    assert set(drawn.places.tolist()) == {0, 1, 2, 3}
    np.testing.assert_allclose(replay.rows.priority, [FIRST_PRIORITY] * 2 + [0.5, 1, 0])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=30))
def test_a_store_is_a_queue_of_rows(steps: list[tuple[int, int]]) -> None:
    store, expected = RowStore(), []
    for number, (length, drops) in enumerate(steps):
        game = game_of([float(number)] * length)
        store.append(Rows.of(game))
        expected.append(game.gained)
        for _ in range(min(drops, len(expected) - 1)):
            store.drop(len(expected.pop(0)))
        np.testing.assert_array_equal(store.live.gained, np.concatenate(expected))


def slow_returns(game: Game, index: int, steps: int, td_steps: int | None) -> list[float]:
    """Value targets of a game against no incumbent, without their bootstrap, one at a time."""
    values = []
    for first in range(index, index + steps + 1):
        end = len(game) if td_steps is None else first + td_steps
        values.append(float(sum(game.rewards[first:end])))
    return values


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=9),
    st.integers(0, 4),
    st.sampled_from([None, 1, 3]),
    st.data(),
)
def test_targets_are_those_counted_one_by_one(
    programs: ProgramSet,
    rewards: list[float],
    unroll: int,
    td_steps: int | None,
    data: st.DataObject,
) -> None:
    game = game_of(rewards)
    index = data.draw(st.integers(0, len(game) - 1))
    before = game_of([0.5, 0.25])
    rows = Rows.joined([Rows.of(before), Rows.of(game), Rows.of(before)])
    place = np.array([len(before) + 1 + index])
    draw = Draw(rows, place, np.ones(1, dtype=np.float32))
    batch = targets_of(programs, unroll, td_steps).batch([draw])
    unit = programs.members[0].return_unit
    slow = slow_returns(game, index, unroll, td_steps)
    np.testing.assert_allclose(batch.returns[0] * unit, slow, atol=1e-5)
    going = [index + k < len(game) for k in range(unroll + 1)]
    np.testing.assert_array_equal(batch.going[0], going)
    far = [td_steps is not None and index + k + td_steps < len(game) for k in range(unroll + 1)]
    np.testing.assert_array_equal(batch.bootstraps[0], far)
    if td_steps is not None:
        seen = batch.bootstrap_observation.turn[0, :, 0]
        for k, there in enumerate(far):
            assert not there or seen[k] == index + k + td_steps


def test_the_oldest_games_leave() -> None:
    replay = Replay(ReplayConfig(capacity_decisions=5))
    games = [game_of([float(i)] * 2) for i in range(4)]
    for game in games:
        replay.add(game)
    assert [game.num_decisions for game in replay.games] == [2, 2]
    assert replay.rows.gained.tolist() == [0, 2, 4, 0, 3, 6]
    assert replay.num_decisions == 4
    assert replay.mean_age(10) == 10


def test_a_game_searched_anew_takes_the_place_of_what_it_repeats() -> None:
    replay = Replay(ReplayConfig(capacity_decisions=5))
    rng = np.random.default_rng(0)
    assert replay.repetition(0, 4, rng) is None
    replay.add(game_of([0.1, 0.2], [1, 2]))
    replay.add(game_of([0.3, 0.4], [2, 0], program=1))
    plan = replay.repetition(1, 4, rng)
    assert plan is not None
    assert plan.actions.tolist() == [NO_ACTION, 2, 0, NO_ACTION]
    assert replay.repetition(2, 4, rng) is None
    policies = np.float32([[0, 1, 0], [0, 0, 1]])
    anew = replace(
        game_of([0.3, 0.4], [2, 0], program=1),
        policies=policies,
        repeats=plan.repeats,
        birth_update=7,
    )
    replay.add(game_of([0.5], [1]))
    replay.refresh(anew)
    assert [game.birth_update for game in replay.games] == [0, 7, 0]
    np.testing.assert_array_equal(replay.rows.policy[3:5], policies)
    np.testing.assert_array_equal(replay.rows.policy[:2], game_of([0.1, 0.2]).policies)
    for _ in range(3):
        replay.add(game_of([0.6, 0.7]))
    remembered = replay.to_document()["rows"]
    replay.refresh(anew)
    jax.tree.map(np.testing.assert_array_equal, remembered, replay.to_document()["rows"])


def test_replay_survives_a_checkpoint() -> None:
    replay = Replay(ReplayConfig(capacity_decisions=3))
    replay.add(game_of([0.3, 0.3]))
    replay.add(game_of([0.1, 0.2]))
    replay.update(Draw(replay.rows, np.array([1]), np.ones(1, dtype=np.float32)), np.array([0.3]))
    other = Replay(ReplayConfig())
    other.restore(replay.to_document())
    first, second = (one.sample(16, np.random.default_rng(1)).places for one in (replay, other))
    np.testing.assert_array_equal(first, second)
    assert replay.games == other.games
    jax.tree.map(np.testing.assert_array_equal, replay.to_document(), other.to_document())


def test_elites_are_the_best_that_differ() -> None:
    elites = Elites(1, per_program=2)
    poor, good, best = (game_of([r], [a]) for r, a in ((0.1, 0), (0.2, 1), (0.3, 2)))
    assert [elites.add(game) for game in (good, poor, best, replace(good))] == [
        *(True, False, True, False),
    ]
    assert elites.games(0) == (best, good)
    (drawn,) = elites.sample(30, np.random.default_rng(0))
    assert drawn.imitate
    assert set(drawn.rows.action[drawn.places].tolist()) == {1, 2}


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


@pytest.mark.parametrize("family", list(Family))
def test_both_games_list_turns_alike(family: Family) -> None:
    member = PlayedProgram.of(random_program(7, family=family, num_accesses=60))
    items = member.table.items[member.item_of_turn]
    buffers = [member.table.buffers[index] for index in items[:, Column.BUFFER]]
    assert buffers == [turn.buffer for turn in member.fast_game.turns]
