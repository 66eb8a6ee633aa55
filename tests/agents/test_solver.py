"""Agents as solvers: their stages, their clock, and whose maps they return."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from agents.checkpoint import (
    read_weights,
    write_weights,
)
from agents.compilation import CompilationClock
from agents.config import AgentConfig, preset_named
from agents.games import NO_ACTION, Source
from agents.solver import (
    AgentSolver,
    Learning,
    TaughtAgentSolver,
    _AgentIncumbent,
    _Playing,
    agent_named,
)
from agents.trainer import Trainer, TrainReport
from experiments.solvers_by_name import AGENTS, WITH_AGENT, any_solver_named
from hlo_graphs.errors import InputError
from malloc_game.generator import random_program
from malloc_game.known_optimum import KnownOptimum
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import simulate
from malloc_game.validate import check
from solvers.portfolio import PortfolioSolver
from solvers.solver import SolveRequest, Status, solver_named
from tests.agents.conftest import CHANCE_GAMES, GRACE_SECONDS, disturbed
from tests.malloc_game.small import program_of

AMPLE_SECONDS = 300.0
"""A limit that nothing which ends by itself comes near."""


def test_the_agent_is_a_solver(hidden: KnownOptimum, config: AgentConfig) -> None:
    reports = []
    solver = AgentSolver(Learning.SCRATCH, config)
    solver.solve(SolveRequest(hidden.program, time_limit_seconds=0.1))  # Loads machine code.
    request = SolveRequest(
        hidden.program,
        time_limit_seconds=5.0,
        initial_maps=(MemoryMap(),),
        on_progress=reports.append,
    )
    solution = solver.solve(request)
    check(hidden.program, solution.memory_map)
    latency = simulate(hidden.program, solution.memory_map).latency_ticks
    assert latency == solution.latency_ticks == hidden.optimal_ticks
    assert solution.games_played > CHANCE_GAMES
    assert solution.wall_seconds < request.time_limit_seconds + GRACE_SECONDS
    assert solution.solver == "agent-scratch"
    assert reports[-1].incumbent_ticks == latency
    assert any("raw" in note for note in solution.notes)


@pytest.mark.parametrize("compile_seconds", [0.0, 60.0])
def test_updates_that_would_be_compiled_beyond_the_limit_are_not_begun(
    compile_seconds: float,
    known: KnownOptimum,
    config: AgentConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned: list[int] = []
    monkeypatch.setattr(Trainer, "learn", lambda self: learned.append(self.num_chunks))
    monkeypatch.setattr("agents.solver._LEARN_COMPILE_SECONDS", compile_seconds)
    trainer = Trainer([known.program], config)
    trainer.run_chunk(learn=False)  # Compiles.
    found = _AgentIncumbent(SolveRequest(known.program, time_limit_seconds=1.0), "agent")
    with CompilationClock() as compilation:
        _Playing(trainer, found, compilation, own=True).play_on(learn=True)
    assert trainer.num_games > 0
    # Never in the first chunk, whose moves may have to be compiled before.
    assert learned == (list(range(2, trainer.num_chunks)) if compile_seconds == 0 else [])


def test_in_production_it_is_no_worse_than_what_it_was_shown(
    hidden: KnownOptimum, config: AgentConfig
) -> None:
    agent = AgentSolver(Learning.SCRATCH, config, follow_initial_maps=True)
    solver = TaughtAgentSolver("agent-prod", agent, returns_shown=True, teachers=("greedy",))
    solver.solve(SolveRequest(hidden.program, time_limit_seconds=0.1))  # Loads machine code.
    request = SolveRequest(
        hidden.program, time_limit_seconds=4.0, initial_maps=(hidden.memory_map,)
    )
    solution = solver.solve(request)
    assert solution.latency_ticks == hidden.optimal_ticks
    assert solution.solver == "agent-prod"
    assert solution.games_played > CHANCE_GAMES
    with pytest.raises(InputError, match=r"use agent-scratch, agent, .* or agent-prod"):
        agent_named("agnet")


def test_what_teachers_found_outlives_an_agent_that_cannot_play(
    known: KnownOptimum, config: AgentConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def search(self: AgentSolver, found: object) -> None:
        raise InputError("too deep")

    monkeypatch.setattr(AgentSolver, "search", search)
    request = SolveRequest(known.program, time_limit_seconds=2.0)
    deployed = agent_named("agent-prod")
    solution = deployed.solve(request)
    assert solution.latency_ticks < known.program.all_slow_ticks
    assert solution.notes[-1] == "agent: too deep"
    with pytest.raises(InputError, match="too deep"):
        agent_named("agent-demonstrations").solve(request)
    monkeypatch.setattr("agents.solver.solver_named", None)
    with pytest.raises(InputError, match="cannot read"):
        agent_named("agent-prod", tmp_path / "none").solve(request)


def test_with_demonstrations_alone_the_answer_is_a_game(
    hidden: KnownOptimum, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the table there are only games by chance, which do not solve it, and the map shown.
    monkeypatch.setattr(_Playing, "learn_table", lambda self, *, must_search: False)
    agent = AgentSolver(Learning.SCRATCH, config, follow_initial_maps=True)
    solver = TaughtAgentSolver("agent-demonstrations", agent, returns_shown=False, teachers=())
    request = SolveRequest(hidden.program, time_limit_seconds=AMPLE_SECONDS)
    by_chance = solver.solve(request)
    assert by_chance.games_played == CHANCE_GAMES
    assert by_chance.latency_ticks > hidden.optimal_ticks
    shown = replace(request, initial_maps=(hidden.memory_map,))
    assert solver.solve(shown).latency_ticks == hidden.optimal_ticks
    monkeypatch.setattr(AgentSolver, "search", lambda self, found: None)
    assert solver.solve(shown).memory_map == MemoryMap()


def test_a_table_begins_around_the_best_that_is_known(
    hidden: KnownOptimum, config: AgentConfig
) -> None:
    trainer = Trainer([hidden.program], config)
    found = _AgentIncumbent(SolveRequest(hidden.program, time_limit_seconds=AMPLE_SECONDS), "agent")
    begun = []
    for memory_map in (hidden.memory_map, MemoryMap()):
        playing = _Playing(trainer, found, CompilationClock(), own=False)
        by_chance = playing._known.latency_ticks
        playing.show([memory_map])
        rounds, source, _ = playing._table()
        begun.append((next(rounds).latency_ticks, source))
    assert begun[0] == (hidden.optimal_ticks, Source.DEMONSTRATION)
    # A map that is worse than a game by chance is not where it begins.
    latency_ticks, source = begun[1]
    assert latency_ticks <= by_chance < hidden.program.all_slow_ticks
    assert source is Source.SELF_PLAY


@pytest.mark.parametrize("learning", Learning)
def test_a_program_with_one_map_only_takes_no_time(
    learning: Learning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "compile", lambda self, search: pytest.fail("nothing to play"))
    program = program_of({"a": 4}, [(100, "ua")])
    request = SolveRequest(program, time_limit_seconds=AMPLE_SECONDS)
    solution = AgentSolver(learning).solve(request)
    assert solution.games_played == CHANCE_GAMES
    assert "nothing to decide" in solution.notes[-1]
    check(program, solution.memory_map)


def test_nothing_is_compiled_once_the_time_is_up(
    known: KnownOptimum, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "compile", lambda self, search: pytest.fail("too late"))
    solution = agent_named("agent").solve(SolveRequest(known.program, time_limit_seconds=0.0))
    assert solution.games_played == CHANCE_GAMES


def test_an_interrupt_does_not_wait_for_what_is_compiled(
    known: KnownOptimum, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling, may_end = threading.Event(), threading.Event()

    def compile_slowly(self: Trainer, search: object) -> None:
        compiling.set()
        may_end.wait(AMPLE_SECONDS)

    def interrupted(self: _Playing, last: object, played_before: int) -> None:
        assert compiling.wait(AMPLE_SECONDS)
        raise KeyboardInterrupt

    trainer = Trainer([known.program], config)
    found = _AgentIncumbent(SolveRequest(known.program, time_limit_seconds=AMPLE_SECONDS), "agent")
    playing = _Playing(trainer, found, CompilationClock(), own=True)
    monkeypatch.setattr(Trainer, "compile", compile_slowly)
    monkeypatch.setattr(_Playing, "_take", interrupted)
    monkeypatch.setattr("agents.solver.usable_processors", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        playing.compile_policy()
    assert not may_end.is_set()
    may_end.set()


def test_what_was_found_outlives_an_error_of_the_device(
    known: KnownOptimum, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Trainer, search: object) -> None:
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(Trainer, "compile", fail)
    request = SolveRequest(known.program, time_limit_seconds=AMPLE_SECONDS)
    solution = agent_named("agent").solve(request)
    assert any("ended early: RESOURCE_EXHAUSTED" in note for note in solution.notes)
    assert solution.latency_ticks < known.program.all_slow_ticks


@pytest.mark.parametrize(("workers", "waits"), [(1, True), (2, False)])
def test_with_one_worker_nothing_plays_while_the_policy_is_loaded(
    workers: int, waits: bool, known: KnownOptimum, config: AgentConfig, monkeypatch: Any
) -> None:
    played, loaded = threading.Event(), threading.Event()

    def load(self: Trainer, search: object) -> None:
        assert waits or played.wait(AMPLE_SECONDS)
        loaded.set()

    def take(self: _Playing, last: object, played_before: int) -> None:
        assert not waits
        played.set()

    request = SolveRequest(known.program, time_limit_seconds=AMPLE_SECONDS, workers=workers)
    found = _AgentIncumbent(request, "agent")
    playing = _Playing(Trainer([known.program], config), found, CompilationClock(), own=True)
    monkeypatch.setattr(Trainer, "compile", load)
    monkeypatch.setattr(_Playing, "_take", take)
    monkeypatch.setattr("agents.solver.usable_processors", lambda: 2)
    monkeypatch.setattr("agents.solver._LOADING_SECONDS", AMPLE_SECONDS)
    playing.compile_policy()
    assert loaded.is_set()


@pytest.mark.parametrize(
    ("remaining_seconds", "must_search", "left_seconds"),
    [
        (300.0, False, 120.0),
        (75.0, False, 30.0),
        (74.0, False, 0.0),
        (74.0, True, 30.0),
        (40.0, True, 30.0),
        (39.0, True, 0.0),
    ],
)
def test_what_the_table_leaves_for_search_and_learning(
    remaining_seconds: float, must_search: bool, left_seconds: float
) -> None:
    deadline = SimpleNamespace(remaining_seconds=remaining_seconds)
    playing: Any = SimpleNamespace(found=SimpleNamespace(deadline=deadline))
    assert _Playing._search_seconds(playing, must_search) == pytest.approx(left_seconds)


def test_each_teacher_has_a_tenth_of_the_time(
    known: KnownOptimum, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def teacher(name: str) -> Any:
        def solve(request: SolveRequest) -> object:
            asked.append((name, request.time_limit_seconds))
            return solver_named(name).solve(request)

        return SimpleNamespace(solve=solve)

    monkeypatch.setattr("agents.solver.solver_named", teacher)
    monkeypatch.setattr(AgentSolver, "search", lambda self, found: None)
    solution = agent_named("agent-prod").solve(
        SolveRequest(known.program, time_limit_seconds=AMPLE_SECONDS)
    )
    assert asked == [("greedy", AMPLE_SECONDS / 10), ("xla-msa", AMPLE_SECONDS / 10)]
    assert solution.status is Status.FEASIBLE
    assert solution.latency_ticks < known.program.all_slow_ticks


def test_games_that_have_not_ended_tell_what_the_network_thinks(small_config: AgentConfig) -> None:
    program = random_program(5, num_accesses=60)
    play = replace(small_config.play, moves=4)
    request = SolveRequest(program, time_limit_seconds=60.0)
    trainer = Trainer([program], replace(small_config, play=play))
    with CompilationClock() as compilation:
        game = _Playing(trainer, _AgentIncumbent(request, "agent"), compilation, own=True)
        game.play_at_random()
        game.compile_policy()
        assert trainer.num_moves == 0
        assert game.found.games_played >= 200
        assert trainer.self_play.under_way() == []
        trainer.run_chunk(small_config.search.policy_alone(), learn=False)
        assert compilation.seconds > 0
        assert trainer.num_games == 0
        under_way = trainer.self_play.under_way()
        # The first move of a game begins it, and is no decision.
        assert [len(one.cursors) for one in under_way] == [3] * small_config.play.actors
        assert all((one.cursors > 0).all() for one in under_way)
        rounds, source, _ = game._table()
        assert next(rounds).num_games == 200
        assert source is Source.SELF_PLAY
    assert "the policy had time for" in game.found.notes[-1]


def test_a_search_whose_training_diverges_ends_its_stage(
    known: KnownOptimum,
    small_config: AgentConfig,
    diverged: TrainReport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunks = []

    def run_chunk(self: Trainer, search: object, *, learn: bool) -> TrainReport:
        chunks.append(learn)
        return diverged if learn else replace(diverged, learn=None)

    monkeypatch.setattr(Trainer, "run_chunk", run_chunk)
    request = SolveRequest(known.program, time_limit_seconds=600.0)
    trainer = Trainer([known.program], small_config)
    with CompilationClock() as compilation:
        game = _Playing(trainer, _AgentIncumbent(request, "agent"), compilation, own=True)
        game.play_at_random()
        game.play_on(learn=True)
    assert chunks == [False, True]  # In the first, which is compiled, nothing is learned.
    diverges, stage = game.found.notes
    assert diverges == "training diverged after 3 updates and was ended"
    assert stage.startswith("search and learning: ")
    assert game.found.games_played == 200


def test_what_is_shown_leaves_the_actor_without_noise_alone(
    known: KnownOptimum, small_config: AgentConfig
) -> None:
    trainer = Trainer([known.program], small_config)
    trainer.demonstrate(0, known.memory_map)
    trainer.self_play.restart()
    _, plans = trainer.self_play.position(trainer.baselines)
    planned = np.asarray((plans != NO_ACTION).any(axis=1))
    assert planned.tolist() == [False] * (small_config.play.actors - 1) + [True]


def test_long_programs_have_fewer_games_side_by_side() -> None:
    config = preset_named("generalist")
    actors = [config.for_turns(turns).play.actors for turns in (1, 4096, 5793, 8192, 10**6)]
    assert actors == [32, 32, 16, 8, 4]


@pytest.mark.parametrize("learning", [Learning.NONE, Learning.ADAPTED])
def test_an_agent_with_weights_plays_and_adapts(
    learning: Learning, hidden: KnownOptimum, small_config: AgentConfig, tmp_path: Path
) -> None:
    trainer = Trainer([hidden.program], small_config)
    trainer.run_chunk(small_config.search.policy_alone(), learn=False)  # Compiles.
    params = disturbed(trainer.learner.params)
    path = tmp_path / "weights"
    write_weights(path, small_config, params, half=True)
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
    small_config: AgentConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agents.solver._COMPILE_SECONDS", 4.0)
    monkeypatch.setattr("agents.solver._LEAST_TABLE_SECONDS", 0.5)
    solver = AgentSolver(Learning.SCRATCH, small_config)
    solver.solve(SolveRequest(hidden.program, time_limit_seconds=0.1))  # Loads machine code.
    solution = solver.solve(SolveRequest(hidden.program, time_limit_seconds=time_limit_seconds))
    check(hidden.program, solution.memory_map)
    stages = [note.split(":")[0] for note in solution.notes]
    assert stages == (["table"] if time_limit_seconds == 3.0 else ["table", "search and learning"])
    assert solution.games_played > CHANCE_GAMES
    assert solution.latency_ticks == hidden.optimal_ticks


def test_with_time_to_compile_it_searches_too(
    hidden: KnownOptimum, small_config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.solver._COMPILE_SECONDS", 0.1)
    trainer = Trainer([hidden.program], small_config)
    path = tmp_path / "weights"
    write_weights(path, small_config, trainer.learner.params)
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
