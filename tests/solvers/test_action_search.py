"""The searches over the game's actions: valid, honest, anytime, deterministic, worth their time."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from hlo_graphs.program import Program
from malloc_game.fast_game import Action, FastGame
from malloc_game.fast_game_kernels import Actions, Floats
from malloc_game.generator import random_program
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import fast_accesses, simulate
from malloc_game.validate import validate
from solvers.action_search import ActionSearch, density_wishes, plan_of_map
from solvers.cross_entropy import CrossEntropySolver
from solvers.evolution import EvolutionSettings, EvolutionSolver, Population
from solvers.greedy import construct
from solvers.local_search import LocalSearchSolver
from solvers.plan import Plan
from solvers.random_restarts import RandomSolver
from solvers.solver import Progress, Solver, SolveRequest, solver_named

SOLVERS = (
    RandomSolver(),
    EvolutionSolver(),
    CrossEntropySolver(),
    LocalSearchSolver(),
)
FAMILIES = ("training", "mixed", "loop", "in_place")

each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)


def request(program: Program, **settings: object) -> SolveRequest:
    limits = {"time_limit_seconds": 60.0, "max_games": 1000}
    return SolveRequest(program, **{**limits, **settings})  # type: ignore[arg-type]


@each_solver
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_valid_and_their_latency_is_the_simulators(solver: Solver, family: str) -> None:
    program = random_program(11, family=family, num_accesses=80, pressure=3.0)
    solution = solver.solve(request(program))
    assert validate(program, solution.memory_map) == ()
    assert solution.latency_ticks == simulate(program, solution.memory_map).latency_ticks
    assert solution.latency_ticks < program.all_slow_ticks
    assert solution.games_played >= 1000


@each_solver
def test_the_same_seed_and_games_give_the_same_map(solver: Solver) -> None:
    program = random_program(12, num_accesses=80)
    first, second = (solver.solve(request(program, seed=5)) for _ in range(2))
    assert first.memory_map == second.memory_map
    assert first.games_played == second.games_played


@each_solver
def test_two_workers_play_as_valid_and_as_reproducible_games(solver: Solver) -> None:
    program = random_program(12, family="training", num_accesses=120, pressure=3.0)
    first, second = (solver.solve(request(program, seed=5, workers=2)) for _ in range(2))
    assert first.memory_map == second.memory_map
    assert first.games_played == second.games_played >= 1000
    assert first.latency_ticks == simulate(program, first.memory_map).latency_ticks
    if not isinstance(solver, LocalSearchSolver):  # Whose workers walk on their own.
        assert first.memory_map == solver.solve(request(program, seed=5)).memory_map


@each_solver
def test_never_worse_than_a_map_handed_in(solver: Solver) -> None:
    program = random_program(13, family="training", num_accesses=120, pressure=3.0)
    given = construct(Plan(program)).memory_map()
    solution = solver.solve(request(program, initial_maps=(given,)))
    assert solution.latency_ticks <= simulate(program, given).latency_ticks


@each_solver
def test_the_time_limit_holds(solver: Solver) -> None:
    program = random_program(14, family="training", num_accesses=400)
    by_the_clock = request(program, time_limit_seconds=0.5, max_games=None)
    solver.solve(replace(by_the_clock, time_limit_seconds=0.01))  # machine code is loaded now
    started = time.monotonic()
    solution = solver.solve(by_the_clock)
    assert time.monotonic() - started < 1.5
    assert validate(program, solution.memory_map) == ()


@each_solver
def test_no_time_still_gives_a_valid_map(solver: Solver) -> None:
    program = random_program(15)
    solution = solver.solve(request(program, time_limit_seconds=0.0))
    assert validate(program, solution.memory_map) == ()
    assert solution.latency_ticks <= program.all_slow_ticks


@each_solver
def test_a_program_without_decisions_is_left_alone(solver: Solver) -> None:
    program = random_program(16).with_capacity(0)
    solution = solver.solve(request(program))
    assert solution.memory_map == MemoryMap()
    assert solution.latency_ticks == program.all_slow_ticks


@each_solver
def test_each_report_is_an_improvement_and_a_valid_map(solver: Solver) -> None:
    program = random_program(17, family="training", num_accesses=80, pressure=3.0)
    seen: list[Progress] = []
    solution = solver.solve(request(program, on_progress=seen.append))
    ticks = [event.incumbent_ticks for event in seen]
    assert ticks
    assert ticks == sorted(ticks, reverse=True)
    for event in seen:
        assert event.memory_map is not None
        assert event.who == solver.name
        assert validate(program, event.memory_map) == ()
        found = simulate(program, event.memory_map).latency_ticks
        assert found == pytest.approx(event.incumbent_ticks, rel=1e-12)
    assert solution.latency_ticks == pytest.approx(ticks[-1], rel=1e-12)


@each_solver
def test_a_map_handed_in_is_reported_first(solver: Solver) -> None:
    """Who is interrupted then has it at least."""
    program = random_program(17, family="training", num_accesses=80, pressure=3.0)
    given = construct(Plan(program)).memory_map()
    seen: list[Progress] = []
    solver.solve(request(program, on_progress=seen.append, initial_maps=(given,), max_games=20))
    assert seen[0].memory_map == given
    assert seen[0].incumbent_ticks == simulate(program, given).latency_ticks


@each_solver
def test_what_is_reported_is_timed_in_the_requested_order(solver: Solver) -> None:
    program = random_program(17, family="training", num_accesses=80, pressure=3.0)
    seen: list[Progress] = []
    solution = solver.solve(request(program, on_progress=seen.append, copy_order="fifo"))
    assert seen
    for event in seen:
        assert event.memory_map is not None
        found = simulate(program, event.memory_map, "fifo").latency_ticks
        assert found == pytest.approx(event.incumbent_ticks, rel=1e-12)
    assert solution.latency_ticks == min(event.incumbent_ticks or 0.0 for event in seen)


@pytest.mark.parametrize("solver", SOLVERS[1:], ids=lambda s: s.name)  # No news for random ones.
def test_news_from_others_is_taken_up(solver: Solver) -> None:
    program = random_program(18, family="training", num_accesses=300, pressure=3.0)
    strong = LocalSearchSolver().solve(request(program, max_games=6000)).memory_map
    solution = solver.solve(request(program, best_known=lambda: strong))
    assert solution.latency_ticks <= 1.02 * simulate(program, strong).latency_ticks


@pytest.mark.parametrize("name", ["random", "evolution", "cross-entropy", "local-search"])
def test_they_are_in_the_registry(name: str) -> None:
    assert solver_named(name).name == name


def test_evolution_begins_anew_where_nothing_gets_better(monkeypatch: pytest.MonkeyPatch) -> None:
    founded = []
    found = EvolutionSolver._founded

    def counted(self: EvolutionSolver, search: ActionSearch, *known: Actions) -> Population:
        founded.append(len(known))
        return found(self, search, *known)

    monkeypatch.setattr(EvolutionSolver, "_founded", counted)
    program = random_program(11, num_accesses=12)
    solver = EvolutionSolver(settings=EvolutionSettings(patience=4))
    solver.solve(request(program, max_games=60 * 60))
    assert len(founded) > 3
    assert founded == [1] + [0] * (len(founded) - 1)


def test_search_finds_the_best_play_of_small_games() -> None:
    compared = 0
    for seed in range(12):
        program = random_program(seed, num_accesses=9, pressure=2.0, max_loop_depth=1)
        game = FastGame(program, allow_clean=True)
        free = [t for t in range(game.num_turns) if game.legal_masks(game.wishes())[0][t] != 1]
        if len(free) > 9:
            continue
        wishes = game.wishes()
        best = np.inf
        for choice in product(Action, repeat=len(free)):
            wishes[free] = choice
            best = min(best, game.latency_ticks(wishes))
        for solver in SOLVERS[1:]:
            assert solver.solve(request(program)).latency_ticks <= best * (1 + 1e-12), seed
        compared += 1
    assert compared >= 4


def test_the_order_of_strength_on_a_train_step() -> None:
    program = random_program(19, family="training", num_accesses=300, pressure=3.0)
    random, _, sampled, annealed = (s.solve(request(program)).latency_ticks for s in SOLVERS)
    assert sampled < random
    assert annealed < random


def test_following_a_games_own_map_is_nearly_the_same_game() -> None:
    # Not quite: a map does not tell what was kept from what waited for its eviction.
    rng = np.random.default_rng(0)
    before = after = same = 0.0
    for seed in range(60):
        program = random_program(seed, num_accesses=60)
        game = FastGame(program)
        wishes = rng.choice(3, size=game.num_turns, p=[0.2, 0.3, 0.5]).astype(np.int8)
        record, memory_map = game.play(wishes), game.map_of(wishes)
        plan = plan_of_map(game, memory_map)
        game.hints[:] = plan.hints
        again = game.map_of(plan.wishes)
        same += fast_accesses(program, again) == fast_accesses(program, memory_map)
        before += record.latency_ticks
        after += game.latency_ticks(plan.wishes)
    assert same >= 25
    assert after == pytest.approx(before, rel=0.02)


def test_hints_move_places_and_leave_games_valid() -> None:
    rng = np.random.default_rng(1)
    for seed in range(40):
        program = random_program(seed, num_accesses=60)
        game = FastGame(program, allow_clean=True)
        capacity = program.capacity_bytes // program.machine.alignment_bytes
        game.hints[:] = rng.integers(-2, capacity + 2, game.num_turns)
        wishes = rng.choice(3, size=game.num_turns, p=[0.2, 0.3, 0.5]).astype(np.int8)
        memory_map = game.map_of(wishes)
        assert validate(program, memory_map) == ()
        simulated = simulate(program, memory_map).latency_ticks
        assert game.latency_ticks(wishes) == pytest.approx(simulated, rel=1e-12)


def test_densities_give_better_games_than_nothing() -> None:
    game = FastGame(random_program(20, family="training", num_accesses=200))
    latencies = [game.latency_ticks(wishes) for wishes in density_wishes(game)]
    assert min(latencies) < game.latency_ticks(game.wishes())


def test_cross_entropy_begins_anew_when_its_games_get_no_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Turns that make no difference keep the probabilities from deciding."""
    program = random_program(17, family="training", num_accesses=80, pressure=3.0)
    starts: list[float] = []
    start = CrossEntropySolver._start

    def counted(self: CrossEntropySolver, search: ActionSearch) -> Floats:
        starts.append(search.best_ticks)
        return start(self, search)

    monkeypatch.setattr(CrossEntropySolver, "_start", counted)
    CrossEntropySolver(decided=2.0).solve(request(program, max_games=30_000))
    assert len(starts) > 2
    assert starts == sorted(starts, reverse=True)


def test_a_solver_leaves_no_thread_behind() -> None:
    program = random_program(1, num_accesses=40)
    before = threading.active_count()
    request = SolveRequest(program, time_limit_seconds=60.0, max_games=2000, workers=3)
    for name in ("cross-entropy", "local-search", "random", "evolution"):
        solver_named(name).solve(request)
    assert threading.active_count() == before
