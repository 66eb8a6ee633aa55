"""Agents as solvers: their stages, their clock, and whose maps they return."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.compilation import CompilationClock
from agents.config import AgentConfig
from agents.games import Source
from agents.solver import (
    AgentSolver,
    Learning,
    TaughtAgentSolver,
    _Found,
    _Playing,
    agent_named,
)
from agents.trainer import Trainer
from hlo_graphs.errors import InputError
from malloc_game.known_optimum import KnownOptimum
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import simulate
from malloc_game.validate import check
from solvers.solver import SolveRequest, Status, solver_named
from tests.agents.conftest import CHANCE_GAMES, GRACE_SECONDS
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
    found = _Found(SolveRequest(known.program, time_limit_seconds=1.0), "agent")
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
    found = _Found(SolveRequest(hidden.program, time_limit_seconds=AMPLE_SECONDS), "agent")
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
    found = _Found(SolveRequest(known.program, time_limit_seconds=AMPLE_SECONDS), "agent")
    playing = _Playing(trainer, found, CompilationClock(), own=True)
    monkeypatch.setattr(Trainer, "compile", compile_slowly)
    monkeypatch.setattr(_Playing, "_take", interrupted)
    monkeypatch.setattr("agents.solver.usable_processors", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        playing.compile_policy()
    assert not may_end.is_set()
    may_end.set()


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
