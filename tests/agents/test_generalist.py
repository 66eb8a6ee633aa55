"""Many programs and one network; a table that adapts it; weights that come with the package."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from agents.adaptation import (
    CROSS_ENTROPY,
    AdaptationConfig,
    Found,
    Table,
    _converge,
    _elites,
    _joined,
    _walk,
    adapt,
    around,
    from_nothing,
    near,
    network_table,
    window_ends,
)
from agents.checkpoint import (
    BEST,
    CHECKPOINT,
    read_document,
    read_weights,
    write_document,
    write_weights,
)
from agents.compilation import CompilationClock
from agents.config import AgentConfig, preset_named
from agents.demonstrations import demonstration_of
from agents.games import NO_ACTION, Source
from agents.generalist import ABOUT, WEIGHTS
from agents.league import League, parted_by_size
from agents.passages import Passages
from agents.programs import PlayedProgram
from agents.solver import (
    AgentSolver,
    Learning,
    _Found,
    _Playing,
    _with_fewer_actors,
    agent_named,
)
from agents.trainer import Trainer, TrainReport
from experiments.demonstrations import TABLE
from experiments.generalist import (
    PROGRAMS,
    SETTINGS,
    GeneralistSettings,
    Validation,
    _Run,
    generated_programs,
    main,
    ship,
    show_demonstrations,
    train_generalist,
    variant,
)
from experiments.inputs import load_program
from experiments.metrics import METRICS, VALIDATION
from experiments.solvers_by_name import AGENTS, WITH_AGENT, any_solver_named
from hlo_graphs import corpus
from hlo_graphs.errors import InputError, MallocGameError
from malloc_game.fast_game import NOT_ASKED, FastGame, GameWalk, TurnKind
from malloc_game.generator import random_program
from malloc_game.known_optimum import KnownOptimum
from malloc_game.simulate import simulate
from malloc_game.turn_table import turn_table
from malloc_game.validate import check
from solvers.cross_entropy import CrossEntropySolver
from solvers.greedy import GreedySolver
from solvers.portfolio import PortfolioSolver
from solvers.solver import SolveRequest
from tests.agents.conftest import CHANCE_GAMES, GRACE_SECONDS


@pytest.fixture(scope="module")
def config() -> AgentConfig:
    tiny = preset_named("tiny", simulations=2)
    learn = replace(tiny.learn, updates_per_chunk=2, outlook_dropout=0.5)
    return replace(tiny, play=replace(tiny.play, actors=8), learn=learn)


def test_averaged_weights_are_at_first_the_mean_of_all_that_were(config: AgentConfig) -> None:
    league = League([random_program(3, num_accesses=20)], config)
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
    config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parts of one bucket: compiled once.
    monkeypatch.setattr("agents.league.SIZES", (35,))
    programs = [random_program(seed, num_accesses=20) for seed in (3, 5)]

    def league(seed: int) -> League:
        return League(programs, config, seed=seed)

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
        League(programs[:1], config).restore(first)


def opinionated(params: Any) -> Any:
    """Weights whose policy is not uniform, as untrained ones are."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


def test_a_table_begins_as_the_network_and_finds_the_optimum(
    known: KnownOptimum, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = opinionated(Trainer([known.program], config).learner.params)
    trainer = Trainer([known.program], config, params=params)
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


def test_games_that_have_not_ended_tell_what_the_network_thinks(config: AgentConfig) -> None:
    program = random_program(5, num_accesses=60)
    play = replace(config.play, moves=4)
    request = SolveRequest(program, time_limit_seconds=60.0)
    trainer = Trainer([program], replace(config, play=play))
    with CompilationClock() as compilation:
        game = _Playing(trainer, _Found(request, "agent"), compilation, own=True)
        game.play_at_random()
        game.compile_policy()
        assert trainer.num_moves == 0
        assert game.found.games_played >= 200
        assert trainer.self_play.under_way() == []
        trainer.run_chunk(config.search.policy_alone(), learn=False)
        assert compilation.seconds > 0
        assert trainer.num_games == 0
        under_way = trainer.self_play.under_way()
        # The first move of a game begins it, and is no decision.
        assert [len(one.cursors) for one in under_way] == [3] * config.play.actors
        assert all((one.cursors > 0).all() for one in under_way)
        rounds, source, _ = game._table()
        assert next(rounds).num_games == 200
        assert source is Source.SELF_PLAY
    assert "the policy had time for" in game.found.notes[-1]


def test_a_search_whose_training_diverges_ends_its_stage(
    known: KnownOptimum,
    config: AgentConfig,
    diverged: TrainReport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunks = []

    def run_chunk(self: Trainer, search: object, *, learn: bool) -> TrainReport:
        chunks.append(learn)
        return diverged if learn else replace(diverged, learn=None)

    monkeypatch.setattr(Trainer, "run_chunk", run_chunk)
    request = SolveRequest(known.program, time_limit_seconds=600.0)
    trainer = Trainer([known.program], config)
    with CompilationClock() as compilation:
        game = _Playing(trainer, _Found(request, "agent"), compilation, own=True)
        game.play_at_random()
        game.play_on(learn=True)
    assert chunks == [False, True]  # In the first, which is compiled, nothing is learned.
    diverges, stage = game.found.notes
    assert diverges == "training diverged after 3 updates and was ended"
    assert stage.startswith("search and learning: ")
    assert game.found.games_played == 200


def test_what_is_shown_leaves_the_actor_without_noise_alone(
    known: KnownOptimum, config: AgentConfig
) -> None:
    trainer = Trainer([known.program], config)
    trainer.demonstrate(0, known.memory_map)
    trainer.self_play.restart()
    _, plans = trainer.self_play.position(trainer.baselines)
    planned = np.asarray((plans != NO_ACTION).any(axis=1))
    assert planned.tolist() == [False] * (config.play.actors - 1) + [True]


def test_long_programs_have_fewer_games_side_by_side() -> None:
    config = preset_named("generalist")
    actors = [
        _with_fewer_actors(config, turns).play.actors for turns in (1, 4096, 5793, 8192, 10**6)
    ]
    assert actors == [32, 32, 16, 8, 4]


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
    config = AdaptationConfig(windows_turns=(4, None), opening_period=3)
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
    )
    assert control == CROSS_ENTROPY


def test_a_table_around_a_game() -> None:
    wishes = np.array([0, 2], dtype=np.int8)
    np.testing.assert_allclose(around(wishes, 0.8), [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])


@pytest.mark.parametrize("learning", [Learning.NONE, Learning.ADAPTED])
def test_an_agent_with_weights_plays_and_adapts(
    learning: Learning, hidden: KnownOptimum, config: AgentConfig, tmp_path: Path
) -> None:
    trainer = Trainer([hidden.program], config)
    trainer.run_chunk(config.search.policy_alone(), learn=False)  # Compiles.
    params = opinionated(trainer.learner.params)
    path = tmp_path / "weights"
    write_weights(path, config, params, half=True)
    jax.tree.map(
        lambda kept, old: np.testing.assert_allclose(kept, old, rtol=1e-3, atol=1e-6),
        read_weights(path)[1],
        params,
    )
    solver = AgentSolver(learning, checkpoint=path)
    solution = solver.solve(SolveRequest(hidden.program, time_limit_seconds=4.0))
    check(hidden.program, solution.memory_map)
    assert simulate(hidden.program, solution.memory_map).latency_ticks == solution.latency_ticks
    assert solution.solver == learning.value
    stages = [note.split(":")[0] for note in solution.notes]
    if learning is Learning.NONE:
        assert stages == ["policy alone", "policy near its best"]
    else:
        first = "table from nothing, while the policy was compiled"
        assert stages == [first, "policy alone", "table"]
        assert solution.latency_ticks == hidden.optimal_ticks
    assert solution.games_played > CHANCE_GAMES + 8
    assert solution.wall_seconds < 4.0 + GRACE_SECONDS


@pytest.mark.parametrize("time_limit_seconds", [3.0, 9.0])
def test_from_scratch_the_table_is_first_and_search_follows_if_there_is_time(
    time_limit_seconds: float,
    hidden: KnownOptimum,
    config: AgentConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agents.solver._COMPILE_SECONDS", 4.0)
    monkeypatch.setattr("agents.solver._LEAST_TABLE_SECONDS", 0.5)
    solver = AgentSolver(Learning.SCRATCH, config)
    solver.solve(SolveRequest(hidden.program, time_limit_seconds=0.1))  # Loads machine code.
    solution = solver.solve(SolveRequest(hidden.program, time_limit_seconds=time_limit_seconds))
    check(hidden.program, solution.memory_map)
    stages = [note.split(":")[0] for note in solution.notes]
    assert stages == (["table"] if time_limit_seconds == 3.0 else ["table", "search and learning"])
    assert solution.games_played > CHANCE_GAMES
    assert solution.latency_ticks == hidden.optimal_ticks


def test_with_time_to_compile_it_searches_too(
    hidden: KnownOptimum, config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.solver._COMPILE_SECONDS", 0.1)
    trainer = Trainer([hidden.program], config)
    path = tmp_path / "weights"
    write_weights(path, config, trainer.learner.params)
    solver = AgentSolver(Learning.ADAPTED, checkpoint=path)
    solution = solver.solve(SolveRequest(hidden.program, time_limit_seconds=8.0))
    stages = [note.split(":")[0] for note in solution.notes]
    assert stages[-1] == "search and learning"
    assert solution.latency_ticks == hidden.optimal_ticks


def test_every_agent_is_found_by_its_name_and_near_names_are_told() -> None:
    for name in AGENTS:
        if name != WITH_AGENT:
            assert any_solver_named(name).name == name
    with pytest.raises(InputError, match="did you mean 'agent'"):
        any_solver_named("agnt")
    assert any_solver_named("greedy").name == "greedy"


def test_weights_are_of_no_use_from_scratch() -> None:
    with pytest.raises(InputError, match="no use for a checkpoint"):
        agent_named("agent-scratch", Path("weights"))


def test_the_portfolio_takes_the_agent_up_first() -> None:
    solver = any_solver_named("portfolio-agent")
    assert isinstance(solver, PortfolioSolver)
    assert solver.schedule[0].solver == AgentSolver(Learning.ADAPTED)
    assert solver.schedule[1:] == PortfolioSolver().schedule


def test_generated_programs_differ_and_are_drawn_from_the_seed() -> None:
    programs = generated_programs(8, 5)
    assert [p.to_json() for p in programs] == [p.to_json() for p in generated_programs(8, 5)]
    assert len({p.name for p in programs}) == 8


def test_the_test_split_is_not_trained_on(tmp_path: Path) -> None:
    settings = GeneralistSettings(out=tmp_path / "run", programs=("gpt_decode.v5e",))
    with pytest.raises(InputError, match="not one of the programs to train on"):
        train_generalist(settings)


def test_training_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    settings = GeneralistSettings(
        out=tmp_path / "run",
        programs=("flash_attention_forward.v5e",),
        num_variants=1,
        num_generated=1,
        validation=("deepfm_train.v5e",),
        preset="tiny",
        time_limit_seconds=25.0,
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
    loss: float, gradient_norm: float, diverged: TrainReport, tmp_path: Path, config: AgentConfig
) -> None:
    assert diverged.learn is not None
    learn = replace(diverged.learn, loss=loss, gradient_norm=gradient_norm)
    report = replace(diverged, learn=learn)
    trainer: Any = None
    settings = GeneralistSettings(out=tmp_path, log_seconds=math.inf, save_seconds=math.inf)
    run = _Run(settings, trainer, Validation((), ()), print)
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        run.note(trainer, report)
        assert run.trained_seconds == 2
        return
    with pytest.raises(MallocGameError, match="training has diverged: after 3 updates"):
        run.note(trainer, report)
    assert run.trained_seconds == 0


def test_the_best_weights_outlive_a_kill_before_they_are_written(
    config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.4])
    monkeypatch.setattr(Validation, "score", lambda *_: next(scores))
    league = League([random_program(3, num_accesses=20)], config)
    league.averaged = opinionated(league.learner.params)
    best = jax.tree.map(np.array, league.averaged)

    def run() -> _Run:
        settings = GeneralistSettings(out=tmp_path)
        return _Run(settings, league, Validation((), ()), lambda line: None)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("experiments.generalist.write_weights", kill)
        with pytest.raises(KeyboardInterrupt):
            run().save()
    assert not (tmp_path / BEST).exists()
    resumed = run()
    resumed.restore(read_document(tmp_path / CHECKPOINT))
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path / BEST)[1], best)
    league.averaged = opinionated(best)
    resumed.save()
    # What played worse is in the checkpoint, and not in place of the best.
    (tmp_path / BEST).unlink()
    again = run()
    again.restore(read_document(tmp_path / CHECKPOINT))
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path / BEST)[1], best)
    assert again.best_score == 0.5
    lines = (tmp_path / VALIDATION).read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [0.5, 0.4]


def test_a_run_that_cannot_be_resumed_keeps_the_names_of_its_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = random_program(3, num_accesses=20)
    settings = GeneralistSettings(out=tmp_path / "run", preset="tiny", time_limit_seconds=0.0)
    monkeypatch.setattr(Validation, "of", lambda settings: Validation((), ()))
    monkeypatch.setattr(Validation, "score", lambda *_: 0.5)
    monkeypatch.setattr("experiments.generalist.training_programs", lambda _: [program])
    train_generalist(replace(settings, demonstrations=()), say=lambda line: None)
    assert json.loads((settings.out / PROGRAMS).read_text()) == [program.name]
    other = replace(program, name="other")
    monkeypatch.setattr("experiments.generalist.training_programs", lambda _: [other])
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
    monkeypatch.setattr(Validation, "score", lambda *_: 0.5)
    monkeypatch.setattr("experiments.generalist.training_programs", lambda _: [program])
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
    (trainer,) = read_document(settings.out / CHECKPOINT)["parts"]
    assert trainer["counts"][0] == 1


def test_without_demonstrators_nothing_is_shown(known: KnownOptimum, config: AgentConfig) -> None:
    league: Any = SimpleNamespace(trainers=[Trainer([known.program], config)])
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
    monkeypatch.setattr("experiments.generalist.solver_named", lambda name: solver)
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
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path), "--resume"])
    assert stop.value.code == InputError.exit_code
    said = capsys.readouterr().err
    assert re.fullmatch(rf"malloc-game: error: .*{SETTINGS}:1:10: not JSON.*\n", said)

    def train(*_: object, **__: object) -> None:
        raise MallocGameError("a process of this work was ended")

    monkeypatch.setattr("experiments.generalist.train_generalist", train)
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path)])
    assert stop.value.code == MallocGameError.exit_code
    assert capsys.readouterr().err == "malloc-game: error: a process of this work was ended\n"


@pytest.mark.parametrize("damaged", [SETTINGS, PROGRAMS])
def test_a_damaged_run_is_not_shipped(
    damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.generalist.WEIGHTS", tmp_path / "shipped")
    monkeypatch.setattr("experiments.generalist.ABOUT", tmp_path / "about")
    write_weights(tmp_path / BEST, preset_named("tiny"), {"layer": np.ones(3)})
    for name, text in {
        VALIDATION: '{"num_updates": 3, "score": 0.5}\n',
        METRICS: '{"num_updates": 4}\n',
        SETTINGS: '{"out": "run", "seed": 1}',
        PROGRAMS: '["one"]',
    }.items():
        (tmp_path / name).write_text(text[:-2] if name == damaged else text)
    with pytest.raises(InputError, match=rf"{damaged}:1:\d+: not JSON"):
        ship(tmp_path)
    assert not (tmp_path / "shipped").exists()


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
