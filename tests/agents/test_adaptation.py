"""The table: how it begins, what it learns from, how it walks."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.adaptation import (
    CROSS_ENTROPY,
    AdaptationConfig,
    Found,
    Table,
    _bred,
    _converge,
    _elites,
    _joined,
    _walk,
    adapt,
    around,
    from_nothing,
    improve,
    near,
    network_table,
    window_ends,
)
from agents.config import AgentConfig
from agents.demonstrations import demonstration_of
from agents.games import NO_ACTION
from agents.passages import Passages
from agents.programs import PlayedProgram
from agents.trainer import Trainer
from experiments.inputs import load_program
from malloc_game.fast_game import NOT_ASKED, FastGame, GameWalk, TurnKind
from malloc_game.generator import random_program
from malloc_game.known_optimum import KnownOptimum
from malloc_game.simulate import simulate
from malloc_game.validate import check
from solvers.cross_entropy import CrossEntropySolver
from solvers.evolution import EvolutionSettings, Population
from solvers.greedy import GreedySolver
from solvers.solver import SolveRequest
from tests.agents.conftest import disturbed


def test_a_table_begins_as_the_network_and_finds_the_optimum(
    known: KnownOptimum, small_config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = disturbed(Trainer([known.program], small_config).learner.params)
    trainer = Trainer([known.program], small_config, params=params)
    while trainer.best(0) is None:
        trainer.run_chunk(learn=False)
    assert trainer.learner.num_updates == 0
    games = trainer.elites.games(0)
    member = trainer.programs.members[0]
    thoughts = [game.thoughts for game in games]
    network = network_table(member, thoughts)
    np.testing.assert_allclose(network.sum(axis=1), 1)
    turn = int(np.flatnonzero(member.item_of_turn == games[0].cursors[0])[0])
    asked = [game.policies[0] for game in games]
    assert {int(game.cursors[0]) for game in games} == {int(games[0].cursors[0])}
    expected = np.maximum(np.mean(asked, axis=0), 1e-4)
    np.testing.assert_allclose(network[turn], expected / expected.sum(), rtol=1e-5)
    assert np.ptp(network[turn]) > 0.1

    begun: list[Table] = []

    def improve(member: PlayedProgram, table: Table, *_: object) -> Iterator[Found]:
        begun.append(table)
        return iter(())

    best, settings = Found.of(member, games[0]), AdaptationConfig()
    assert best.latency_ticks == games[0].latency_ticks
    with monkeypatch.context() as patched:
        patched.setattr("agents.adaptation.improve", improve)
        adapt(member, best, thoughts, settings, np.random.default_rng(0))
    mixed = settings.trust * network + (1 - settings.trust) * around(best.wishes, 0.7)
    np.testing.assert_allclose(begun[0], mixed)

    latencies, played = [], []
    rounds = adapt(member, best, thoughts, settings, np.random.default_rng(0))
    for found, _ in zip(rounds, range(40), strict=False):
        latencies.append(found.latency_ticks)
        played.append(found.num_games)
    assert latencies == sorted(latencies, reverse=True)
    assert played[:4] == [200, 400, 600, 800]
    assert (np.diff(played) > 0).all()
    assert (np.diff(played) <= 200).all()
    assert latencies[-1] == known.optimal_ticks
    memory_map = member.fast_game.map_of(found.wishes)
    check(known.program, memory_map)
    assert simulate(known.program, memory_map).latency_ticks == known.optimal_ticks


def test_windows_end_after_the_step_of_the_buffers_next_turn_is_paid_for() -> None:
    game = FastGame(random_program(4, family="loop", num_accesses=60))
    turns, entered = game.turns, 0
    for more in (0, 8, 10_000):
        ends = window_ends(game, more)
        assert ends is not None
        for index, turn in enumerate(turns):
            if turn.kind is TurnKind.CARRY:
                assert ends[index] == game.num_turns
                continue
            used = index if game.next_turn[index] < 0 else int(game.next_turn[index])
            if used != index and turns[used].kind is TurnKind.ENTRY:
                entered += 1
                used = int(game.next_turn[used])
                assert turns[used].kind is TurnKind.EXIT
            last = ends[index] - more
            if ends[index] < game.num_turns:
                assert turns[last].step > turns[used].step
            if last > 0:
                assert turns[last - 1].step <= turns[used].step
    assert entered > 0


def test_a_window_sees_what_keeping_is_worth() -> None:
    game = FastGame(random_program(4, family="attention", num_accesses=200))
    ends = window_ends(game, 0)
    assert ends is not None
    drop = np.tile([1.0, 0.0, 0.0], (game.num_turns, 1))
    (slow,), _ = game.sample_along(drop, 1, np.random.default_rng(0))
    gains = []
    for index in np.flatnonzero(game.next_turn >= 0):
        used = game.turns[game.next_turn[index]]
        # What is needed later is evicted later, and may have to be waited for past the window.
        if used.kind is not TurnKind.ACCESS or used.needed_after:
            continue
        table = drop.copy()
        table[index] = [0.0, 0.0, 1.0]
        (fast,), _ = game.sample_along(table, 1, np.random.default_rng(0))
        gains.append(slow[-1] - fast[-1])
        within = (slow[ends[index]] - slow[index]) - (fast[ends[index]] - fast[index])
        assert within == pytest.approx(gains[-1])
    assert max(gains) > 0


def test_each_turn_has_its_own_best_games() -> None:
    spent = np.array(
        [
            [0.0, 5.0, 6.0, 9.0],
            [0.0, 1.0, 7.0, 8.0],
            [0.0, 3.0, 4.0, 7.0],
            [0.0, 2.0, 9.0, 11.0],
        ]
    )
    taken = np.array([[2, 0, 1], [1, 2, -1], [0, 1, -1], [1, 1, -1]], dtype=np.int8)
    assert NOT_ASKED == -1
    best = _elites(spent, taken, np.array([1, 2, 3]), 2)
    # First turns took 5, 1, 3, 2; second ones 1, 6, 1, 7; of the third only one game knows.
    assert best[:, 0].tolist() == [1, 1]
    assert sorted(best[:, 1].tolist()) == [0, 1]
    assert best[:, 2].tolist() == [1, NOT_ASKED]
    whole = _elites(spent, taken, None, 2)
    assert sorted(map(tuple, whole.tolist())) == [(0, 1, -1), (1, 2, -1)]


def test_a_table_begins_anew_around_its_best_game_and_at_times_as_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    member = PlayedProgram.of(random_program(4, num_accesses=60))
    begun = []

    def converge(
        game: FastGame, table: Table, ends: object, found: Found, *_: object
    ) -> Generator[Found, None, Found]:
        begun.append((table, ends))
        yield found
        return replace(found, wishes=np.full_like(found.wishes, 2))

    monkeypatch.setattr("agents.adaptation._converge", converge)
    config = AdaptationConfig(windows_turns=(4, None), opening_period=3, idle_starts=None)
    rounds = from_nothing(member, config, np.random.default_rng(0))
    for _, _ in zip(range(7), rounds, strict=False):
        pass
    uniform = [bool(np.ptp(table) == 0) for table, _ in begun]
    assert uniform == [True, False, False, True, False, False, True]
    assert begun[1][0][:, 2] == pytest.approx(config.best_weight)
    assert [ends is None for _, ends in begun] == [False, True] * 3 + [False]


@pytest.mark.parametrize("patience", [2, 6])
def test_a_table_whose_games_get_no_better_is_given_up(patience: int) -> None:
    member = PlayedProgram.of(random_program(4, num_accesses=60).with_capacity(10**12))
    config = AdaptationConfig(
        smoothing=0.0, least_probability=0.0, decided=2.0, patience=patience, games_per_round=4000
    )
    keeps = np.tile([0.0, 0.0, 1.0], (member.table.num_turns, 1))
    start = Found(0, math.inf, member.fast_game.wishes())
    rounds = list(_converge(member.fast_game, keeps, None, start, config, np.random.default_rng(0)))
    assert len(rounds) == 1 + patience


def test_games_have_children_once_tables_find_nothing_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    founded: list[NDArray[np.int8]] = []

    class Noted(Population):
        def __init__(
            self, settings: EvolutionSettings, genes: NDArray[np.int8], latencies: Any
        ) -> None:
            founded.append(genes.copy())
            super().__init__(settings, genes, latencies)

    monkeypatch.setattr("agents.adaptation.Population", Noted)
    # All fits: the first table finds the best game, and no other one a better.
    member = PlayedProgram.of(random_program(4, num_accesses=60).with_capacity(10**12))
    config = AdaptationConfig(idle_starts=2, generations=3)
    keeps = np.tile([0.0, 0.0, 1.0], (member.table.num_turns, 1))
    slow = Found(0, member.program.all_slow_ticks, member.fast_game.wishes())
    rounds = []
    for found in improve(member, keeps, slow, config, np.random.default_rng(0)):
        rounds.append(found)
        if len(founded) == 3:
            break
    assert (np.diff([0, *(found.num_games for found in rounds)]) > 0).all()
    latencies = [found.latency_ticks for found in rounds]
    assert (np.diff(latencies) <= 0).all()
    assert latencies[-1] == member.fast_game.latency_ticks(rounds[-1].wishes)
    for genes in founded:
        half = len(genes) // 2
        assert (genes[:half] == 2).all()  # as the first table would have it
        assert set(np.unique(genes[half:])) == {0, 1, 2}  # and as chance would


def test_what_children_find_is_kept_and_walked_on_from() -> None:
    program = random_program(9, family="training", num_accesses=100)
    game = FastGame(program)
    opening = np.full((game.num_turns, 3), 1 / 3)
    slow = Found(1000, program.all_slow_ticks, game.wishes())
    config = AdaptationConfig(generations=1)
    *_, bred = _bred(game, Passages(game), opening, slow, config, np.random.default_rng(0))
    assert bred.latency_ticks == game.latency_ticks(bred.wishes)
    alone = replace(config, bred_walk_share=0.0)
    *_, children = _bred(game, Passages(game), opening, slow, alone, np.random.default_rng(0))
    assert bred.latency_ticks < children.latency_ticks < 0.9 * slow.latency_ticks
    best = Found(1000, bred.latency_ticks, bred.wishes)
    *_, kept = _bred(game, Passages(game), opening, best, alone, np.random.default_rng(0))
    assert kept.latency_ticks == best.latency_ticks
    assert (kept.wishes == best.wishes).all()
    assert kept.num_games == children.num_games


def test_turns_that_know_their_own_best_games_need_fewer() -> None:
    program = random_program(9, family="chain", num_accesses=400)
    member = PlayedProgram.of(program)

    def saved(config: AdaptationConfig) -> float:
        rounds = from_nothing(member, config, np.random.default_rng(0))
        found = next(found for found in rounds if found.num_games >= 4000)
        return 1 - found.latency_ticks / program.all_slow_ticks

    windows = AdaptationConfig(walk_share=0.0)
    assert saved(windows) > 1.1 * saved(replace(windows, windows_turns=(None,))) > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_a_walk_exchanges_one_move_a_game_and_takes_what_is_no_slower(threads: int) -> None:
    program = random_program(9, family="training", num_accesses=100)
    game, config = FastGame(program, threads=threads), AdaptationConfig(transfer_share=0.0)
    rng = np.random.default_rng(0)
    slow = Found(1000, program.all_slow_ticks, game.wishes())
    rounds = list(_walk(game, Passages(game), slow, 450, config, rng))
    played = np.diff([1000, *(found.num_games for found in rounds)])
    # Of 200 a few change back what one just before them changed; one joins what threads found.
    assert (played[:2] > 150).all()
    assert (played > 0).all()
    assert 450 <= played.sum() <= 450 + threads
    latencies = [found.latency_ticks for found in rounds]
    assert latencies == [game.latency_ticks(found.wishes) for found in rounds]
    assert slow.latency_ticks > latencies[0]
    assert (np.diff(latencies) <= 0).all()
    *_, first = _walk(game, Passages(game), slow, 1, config, rng)
    assert np.count_nonzero(first.wishes != slow.wishes) <= threads
    # Where copies are as fast as nothing, moves make no difference, and are taken.
    idle = FastGame(random_program(9, family="training", num_accesses=100, intensity=1e6))
    calm = Found(0, idle.latency_ticks(idle.wishes()), idle.wishes())
    *_, last = _walk(idle, Passages(idle), calm, 200, config, np.random.default_rng(0))
    assert last.latency_ticks == calm.latency_ticks
    assert np.count_nonzero(last.wishes != calm.wishes) > 0.3 * idle.num_turns
    assert list(_walk(game, Passages(game), slow, 0, config, rng)) == []


def test_walks_that_go_apart_are_joined_where_that_is_no_slower() -> None:
    program = random_program(9, family="training", num_accesses=100)
    game = FastGame(program, threads=2)
    before = Found(7, program.all_slow_ticks, game.wishes())
    walks = [GameWalk(player, before.wishes) for player in game.players]
    tried = np.arange(game.num_turns)[:, None]
    half = game.num_turns // 2
    for walk, turns in zip(walks, (tried[:half], tried[half:]), strict=True):
        keeps = np.full(turns.shape, 2, dtype=np.int8)
        walk.propose(turns, keeps, np.zeros(len(turns)))
        assert (walk.wishes != before.wishes).any()
    joined = _joined(game, before, walks)
    assert joined.num_games == 8
    assert joined.latency_ticks == game.latency_ticks(joined.wishes)
    assert [walk.latency_ticks for walk in walks] == [joined.latency_ticks] * 2
    # The halves help each other little: together they save nearly what they save alone.
    assert joined.wishes[:half].any()
    assert joined.wishes[half:].any()
    # Where each alone is better than both together, the better one stays.
    poor = [GameWalk(game.players[0], joined.wishes), GameWalk(game.players[1], before.wishes)]
    assert _joined(game, joined, poor).latency_ticks == joined.latency_ticks
    assert (poor[1].wishes == joined.wishes).all()


def test_a_table_near_a_game_is_never_behind_it(known: KnownOptimum) -> None:
    member = PlayedProgram.of(known.program)
    shown = demonstration_of(member, known.memory_map, member.table.num_items)
    wishes = member.wishes(shown.plan.actions)
    rounds = near(member, wishes, AdaptationConfig(), np.random.default_rng(0))
    assert next(rounds).latency_ticks == shown.latency_ticks == known.optimal_ticks


def test_a_demonstration_is_a_plan_of_the_whole_game() -> None:
    """Though some of its turns do not come up: by that it is known when games begin anew."""
    member = PlayedProgram.of(load_program("lstm_forward").program)
    greedy = GreedySolver().solve(SolveRequest(member.program)).memory_map
    shown = demonstration_of(member, greedy, member.table.num_items)
    wishes = member.wishes(shown.plan.actions)
    record = member.fast_game.play(wishes)
    assert (record.taken == NOT_ASKED).any()
    assert (shown.plan.actions[member.item_of_turn] != NO_ACTION).all()
    assert member.fast_game.latency_ticks(wishes) == shown.latency_ticks


def test_the_control_begins_anew_as_the_solver_does() -> None:
    solver = CrossEntropySolver()
    control = AdaptationConfig(
        games_per_round=solver.games_per_round,
        windows_turns=(None,),
        elite_share=solver.elite_share,
        smoothing=solver.smoothing,
        best_weight=solver.start_weight,
        opening_period=None,
        least_probability=solver.least_probability,
        decided=solver.decided,
        patience=solver.patience,
        walk_share=0.0,
        idle_starts=None,
    )
    assert control == CROSS_ENTROPY


def test_a_table_around_a_game() -> None:
    wishes = np.array([0, 2], dtype=np.int8)
    np.testing.assert_allclose(around(wishes, 0.8), [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
