"""Bounds hold for every valid map and all prices, and meet known optima where they can."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.inputs import load_program
from hlo_graphs.program import Loop, Program
from malloc_game.known_optimum import KINDS, known_optimum_program
from malloc_game.memory_map import MemoryMap, ReplacedCopy, Residency, Source
from malloc_game.simulate import simulate
from malloc_game.validate import validate
from solvers.bounds import Leaf, _BoundSearch, _Tree, bound_program, mix_prices
from solvers.covers import Cover, violated_cover, violated_flow_cover
from solvers.duration_cuts import DurationCut, violated_duration_cut
from solvers.exact import solve_exactly
from solvers.greedy import GreedySolver
from solvers.prices import Prices, price_bound, resident_lanes, uniform_prices
from solvers.relaxation import Relaxation
from solvers.solver import Deadline, SolveRequest, Status, status_of
from tests.malloc_game.small import program_of
from tests.strategies import programs, programs_with_maps, random_valid_map, small_program


def random_prices(program: Program, rng: np.random.Generator) -> Prices:
    """Any prices: mostly absurd ones."""
    steps = program.num_steps
    scale = 10 ** rng.uniform(-3, 2)
    held = rng.exponential(scale, (3, steps)) * (rng.random((3, steps)) < 0.3)
    space = np.concatenate([np.zeros((3, 1)), np.cumsum(held, axis=1)], axis=1)
    idle = rng.exponential(10 ** rng.uniform(-2, 0.3), steps) * (rng.random(steps) < 0.5)
    lanes = rng.dirichlet([0.3] * (program.num_lanes + 1), steps)
    divisors = (1, int(rng.integers(1, 5)), int(rng.integers(2, 9)))
    covers = random_covers(program, rng, scale)
    return Prices(space, idle, lanes, divisors, covers, random_durations(program, rng))


def random_covers(
    program: Program, rng: np.random.Generator, scale: float
) -> dict[tuple[int, Cover], float]:
    """Prices of inequalities that random shares of the buffers break."""
    unit = program.machine.alignment_bytes
    units = [found.size_bytes // unit for found in program.buffers]
    found: dict[tuple[int, Cover], float] = {}
    for step in range(program.num_steps):
        held = {
            buffer: float(rng.uniform(0.5, 1))
            for buffer in range(len(units))
            if program.may_be_resident(buffer) and units[buffer]
        }
        part = {buffer: (1 - share) * float(rng.random()) for buffer, share in held.items()}
        arguments = (units, program.capacity_bytes // unit, 0.01)
        for cover in (
            violated_cover(held, *arguments),
            violated_flow_cover(held, part, *arguments),
        ):
            if cover is not None:
                largest = max(weight for _, weight in cover.weights)
                found[step, cover] = float(rng.exponential(scale)) / largest
    return found


def random_durations(
    program: Program, rng: np.random.Generator
) -> dict[tuple[int, DurationCut], float]:
    """Weights of cuts that random shares of slow accesses break, steps that may be replaced too."""
    found: dict[tuple[int, DurationCut], float] = {}
    for step, instruction in enumerate(program.instructions):
        slow = {
            access.buffer: float(np.clip(rng.uniform(-0.5, 1.5), 0.0, 1.0))
            for access in instruction.accesses
            if program.may_be_resident(access.buffer)
        }
        cut = violated_duration_cut(instruction, slow, 0.0)
        if cut is not None:
            found[step, cut] = float(rng.exponential(1.0))
    return found


@given(programs_with_maps(max_accesses=20), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_no_valid_map_beats_the_bound_of_any_prices(
    drawn: tuple[Program, MemoryMap], seed: int
) -> None:
    program, memory_map = drawn
    latency = simulate(program, memory_map).latency_ticks
    prices = random_prices(program, np.random.default_rng(seed))
    assert price_bound(program, prices) <= latency


@given(programs(max_accesses=20), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_no_valid_map_beats_the_best_bound(program: Program, seed: int) -> None:
    bound = bound_program(program, 0.3)
    greedy = GreedySolver().solve(SolveRequest(program))
    assert bound.ticks <= greedy.latency_ticks
    rng = np.random.default_rng(seed)
    for _ in range(4):
        memory_map = random_valid_map(program, rng, 25)
        for order in ("deadline", "fifo"):
            assert bound.ticks <= simulate(program, memory_map, order).latency_ticks + 1e-6


@given(programs(max_accesses=30))
@settings(max_examples=30, deadline=None)
def test_the_certificate_gives_the_bound_again(program: Program) -> None:
    bound = bound_program(program, 2.0)
    proven = [price_bound(program, leaf.prices, forced=leaf.forced) for leaf in bound.leaves]
    assert proven == [leaf.ticks for leaf in bound.leaves]
    assert bound.ticks == pytest.approx(min(proven), rel=1e-9)
    assert covers_everything([leaf.forced for leaf in bound.leaves])


def covers_everything(cases: list[dict[tuple[int, int, int], bool]]) -> bool:
    """Whether cases are the leaves of a tree that splits on one access at a time."""
    if not cases:
        return False
    if any(not case for case in cases):
        return len(cases) == 1
    common = set(cases[0]).intersection(*cases[1:])
    for access in common:
        sides = [
            [{k: v for k, v in case.items() if k != access} for case in cases if case[access] is on]
            for on in (True, False)
        ]
        if all(covers_everything(side) for side in sides):
            return True
    return False


@given(programs_with_maps(max_accesses=16), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_forced_cases_bound_the_maps_that_obey_them(
    drawn: tuple[Program, MemoryMap], seed: int
) -> None:
    program, memory_map = drawn
    rng = np.random.default_rng(seed)
    forced = {
        (buffer, lane_index, position): any(
            r.buffer == buffer
            and r.loop == lane.loop
            and r.ready <= item.start_step
            and item.end_step <= r.end
            for r in memory_map.residencies
        )
        for buffer, lanes in enumerate(resident_lanes(program))
        for lane_index, lane in enumerate(lanes)
        for position, item in enumerate(lane.items)
        if not (item.loop is None and program.instructions[item.start_step].async_copy)
        and rng.random() < 0.5
    }
    latency = simulate(program, memory_map).latency_ticks
    assert price_bound(program, random_prices(program, rng), forced=forced) <= latency
    relaxed = Relaxation(program).solve(10.0, forced)
    if relaxed is not None:  # its services are only some of those a map may use
        assert price_bound(program, relaxed.prices, forced=forced) <= latency


def test_branching_closes_gaps_of_the_relaxation() -> None:
    """Knapsacks by construction: the relaxation takes parts of tensors, branching does not."""
    gained = []
    for seed in range(8):
        known = known_optimum_program(seed, kind="knapsack", size=6)
        root = bound_program(known.program, 10.0, branching=False)
        bound = bound_program(known.program, 10.0, target_ticks=lambda k=known: k.optimal_ticks)
        assert root.ticks <= bound.ticks <= known.optimal_ticks
        gained.append(bound.ticks > root.ticks * 1.001)
    assert any(gained)


@pytest.mark.parametrize("seed", [1, 2])
def test_branching_goes_on_past_cases_that_no_map_is_of(seed: int) -> None:
    """Where what is to be covered does not fit, the linear program has no point."""
    program = known_optimum_program(seed, kind="knapsack", size=6).program
    search = _BoundSearch(program, Deadline.after(60.0), None)
    relaxation = Relaxation(program, search.lanes)
    *most, last = relaxation.fast_column
    tree = _Tree(search, relaxation, None)
    parent = Leaf(dict.fromkeys(most, True), search.prices, search.best, math.inf, ())
    leaf = tree._child(parent, last, True)
    assert not leaf.undecided
    assert relaxation.solve(10.0, leaf.forced) is None
    assert leaf.ticks > program.all_slow_ticks
    assert leaf.ticks == price_bound(program, leaf.prices, forced=leaf.forced)


@pytest.mark.parametrize("size", [8, 12])
def test_leaves_prove_the_bound(size: int) -> None:
    known = known_optimum_program(2, kind="knapsack", size=size)
    bound = bound_program(
        known.program, 30.0, target_ticks=lambda: known.optimal_ticks * (1 - 1e-9)
    )
    assert bound.ticks == pytest.approx(known.optimal_ticks)
    assert len(bound.leaves) > 2
    for leaf in bound.leaves:
        assert price_bound(known.program, leaf.prices, forced=leaf.forced) >= bound.ticks


def without_carrying_and_replacing(program: Program) -> Program:
    """What the linear program knows as exactly as the certificate does."""
    instructions = tuple(replace(step, async_copy=False) for step in program.instructions)
    buffers = tuple(replace(found, is_parameter=False) for found in program.buffers)
    return replace(program, instructions=instructions, buffers=buffers)


@given(programs(max_accesses=40))
@settings(max_examples=60, deadline=None)
def test_the_linear_program_proves_what_its_prices_do(drawn: Program) -> None:
    """Nothing that a life pays is missing in it; once it has all columns, nothing else either."""
    program = without_carrying_and_replacing(drawn)
    relaxation = Relaxation(program)
    for _ in range(60):
        found = relaxation.solve(10.0)
        assert found is not None
        ticks = price_bound(program, found.prices)
        assert ticks <= found.value_ticks * (1 + 1e-6) + 1e-6
        if not relaxation.refine(found):
            break
    assert ticks == pytest.approx(found.value_ticks, rel=1e-3)


def test_parameters_that_hold_nothing_are_not_carried() -> None:
    drawn = load_program("flash_attention_forward.v5e").program
    buffers = tuple(replace(found, is_undefined=found.is_parameter) for found in drawn.buffers)
    program = replace(drawn, buffers=buffers)
    assert any(found.is_undefined for found in buffers)
    found = Relaxation(program).solve_refined(Deadline.after(30.0))
    assert found is not None
    assert price_bound(program, found.prices) <= found.value_ticks * (1 + 1e-6)


def test_what_leaves_holds_its_place_until_it_is_copied() -> None:
    """A real program with little memory, whose large tensors have to take turns within a trip."""
    program = load_program("lstm_train.v5e.32MiB").program
    bound = bound_program(program, 60.0, branching=False)
    assert bound.relaxed is not None
    assert bound.ticks == pytest.approx(bound.relaxed.value_ticks, rel=1e-3)
    assert bound.ticks > 0.605 * program.all_slow_ticks
    assert bound.leaves[0].prices.covers


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_exact_optima_are_not_exceeded(seed: int) -> None:
    program = small_program(seed, branches=False, max_accesses=8)
    found = solve_exactly(program, 20.0)
    if found is not None and found.proven:
        assert bound_program(program, 1.0).ticks <= found.ticks


@given(programs(max_accesses=30), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_rubbish_in_the_duals_costs_tightness_only(program: Program, seed: int) -> None:
    """A solver that returned wrong duals could not break the bound."""
    prices = bound_program(program, 10.0, branching=False).leaves[0].prices
    rng = np.random.default_rng(seed)
    noisy = replace(
        prices,
        idle=prices.idle + rng.normal(0, 0.1, program.num_steps),
        lanes=prices.lanes * rng.uniform(0, 3, prices.lanes.shape),
        durations={key: w * rng.uniform(0, 3) for key, w in prices.durations.items()},
        space=prices.space * rng.uniform(0.5, 2.0),
    )
    latency = GreedySolver().solve(SolveRequest(program)).latency_ticks
    assert price_bound(program, noisy) <= latency


@pytest.mark.parametrize("kind", KINDS)
def test_known_optima_are_not_exceeded(kind: str) -> None:
    for seed in range(15):
        known = known_optimum_program(seed, kind=kind, size=2 + seed)
        assert bound_program(known.program, 0.3).ticks <= known.optimal_ticks


def test_known_packings_are_met_exactly() -> None:
    for seed in range(10):
        known = known_optimum_program(seed, kind="packing", size=3 + seed)
        assert bound_program(known.program, 10.0, branching=False).ticks == pytest.approx(
            known.optimal_ticks
        )


def test_two_halves_of_a_memory_that_holds_one() -> None:
    """Each a little over half: the linear relaxation alone would keep most of both."""
    steps = [(0, "wa wb"), (0, "ra rb")]
    program = program_of({"a": 5, "b": 5}, steps, capacity=9)
    bound = bound_program(program, 10.0)
    assert bound.ticks == pytest.approx(10.0)
    assert GreedySolver().solve(SolveRequest(program)).latency_ticks == 10.0
    prices = bound.leaves[0].prices
    without_cuts = replace(prices, divisors=(1,), space=prices.space[:1])
    assert price_bound(program, without_cuts) < 9.0


def test_one_carried_parameter_is_free_and_two_are_not() -> None:
    program = program_of({"p": 4, "q": 4}, [(0, "rp rq")], capacity=8)
    assert bound_program(program, 10.0).ticks == pytest.approx(4.0)
    prices = uniform_prices(program)
    assert price_bound(program, prices, max_carried=2) <= price_bound(program, prices)


def test_state_carried_around_a_loop_must_be_written_back_or_stay() -> None:
    """Too large to stay, its round trip through slow memory is in the bound."""
    loops = [Loop(1, 3, 10)]
    steps = [(0, "ws"), (0, "rs wx"), (0, "rx ws"), (0, "rs")]
    program = program_of({"s": 4, "x": 8}, steps, capacity=8, loops=loops)
    assert bound_program(program, 10.0).ticks >= 10 * 4


def test_mixtures_of_prices_are_prices() -> None:
    program = program_of({"a": 4}, [(0, "wa"), (0, "ra")], capacity=2)
    first, second = uniform_prices(program), bound_program(program, 5.0).leaves[0].prices
    assert first.divisors == second.divisors
    mixed = mix_prices(first, second, 0.5)
    assert price_bound(program, mixed) <= program.all_slow_ticks


def test_a_parameter_that_holds_nothing_is_not_carried() -> None:
    program = program_of({"p": 2}, [(1, "rp")])
    empty = replace(program.buffers[0], is_undefined=True)
    assert bound_program(replace(program, buffers=(empty,)), 1.0).ticks <= 2


def test_an_empty_program_takes_no_time() -> None:
    empty = replace(program_of({"a": 4}, [(0, "wa")]), instructions=(), buffers=())
    assert bound_program(empty, 1.0).ticks == 0.0


def test_the_limit_is_kept() -> None:
    program = program_of({"a": 4}, [(0, "wa"), (0, "ra")])
    bound = bound_program(program, 0.0)
    assert bound.rounds == 0
    assert 0.0 <= bound.ticks <= program.all_slow_ticks


def test_whole_items_cost_at_least_the_relaxation() -> None:
    program = program_of({"a": 5, "b": 5, "c": 3}, [(0, "wa wb"), (0, "wc"), (0, "ra rb rc")])
    relaxation = Relaxation(program)
    relaxed = relaxation.solve(10.0)
    whole = relaxation.solve_integer(10.0, 0.0)
    assert relaxed is not None
    assert whole is not None
    assert whole.value_ticks >= relaxed.value_ticks - 1e-6
    assert set(whole.fast.values()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", ["dlrm_infer.v5e", "lstm_forward.v5e", "moe_forward.v5e"])
def test_productions_own_map_is_not_below_the_bound(name: str) -> None:
    """Its maps slice prefetches, replace copies and carry a parameter over."""
    loaded = load_program(name)
    assert loaded.production_map is not None
    production = simulate(loaded.program, loaded.production_map).latency_ticks
    bound = bound_program(loaded.program, 1.0)
    assert 0.4 * production < bound.ticks <= production
    greedy = GreedySolver().solve(SolveRequest(loaded.program))
    assert bound.ticks <= greedy.latency_ticks


def _undefined(program: Program) -> Program:
    """Its first buffer holds nothing that means anything before it is written."""
    first, *others = program.buffers
    return replace(program, buffers=(replace(first, is_undefined=True), *others))


def hole(buffer: int, start: int, end: int, *dead: tuple[int, int]) -> Residency:
    """A residency of the whole program that is produced, with stretches that hold nothing."""
    return Residency(buffer, 0, start, end, Source.PRODUCED, start, None, holes=dead)


def produced(buffer: int, start: int, end: int) -> Residency:
    return Residency(buffer, 0, start, end, Source.PRODUCED, start)


def in_loop(buffer: int, start: int, end: int) -> Residency:
    return Residency(buffer, 0, start, end, Source.PRODUCED, start, 0)


ONCE = Loop(1, 4, 1)
BRANCH = Loop(1, 4, 1, 0.5)
OFTEN = Loop(1, 6, 10)

EARLY = [
    pytest.param(
        program_of(
            {"b": 4, "c": 4},
            [(0, "wb"), (0, "rb"), (0, "wc"), (0, "rc"), (0, "")],
            capacity=4,
            loops=[loop],
        ),
        MemoryMap((hole(0, 0, 4, (2, 4)), in_loop(1, 2, 4))),
        id=f"after the last access of {name}",
    )
    for name, loop in (("a single trip", ONCE), ("a branch", BRANCH))
] + [
    pytest.param(
        program_of(
            {"b": 4, "c": 4, "s": 4},
            [(0, "wb"), (0, "rb"), (0, "rs wb"), (0, "wc"), (0, "rc"), (10, "")],
            capacity=4,
            loops=[OFTEN],
            forbidden="s",
            copies=[2],
        ),
        MemoryMap(
            (hole(0, 0, 6, (3, 5)), in_loop(1, 3, 5)), replaced_copies=(ReplacedCopy(2, 5, 6),)
        ),
        id="before a replaced copy fills it again",
    ),
    pytest.param(
        program_of(
            {"s": 4, "b": 4, "c": 4},
            [(0, "ws"), (0, "rs wb"), (0, "wc"), (0, "rc"), (4, ""), (0, "rb")],
            capacity=4,
            forbidden="s",
            copies=[1],
        ),
        MemoryMap((produced(2, 2, 4), produced(1, 4, 6)), replaced_copies=(ReplacedCopy(1, 4, 5),)),
        id="before a replaced copy fills it, steps after its own",
    ),
    pytest.param(
        _undefined(
            program_of(
                {"b": 4, "c": 4},
                [(0, "wc"), (0, "rc"), (0, "rb"), (0, "wb"), (0, "rb")],
                capacity=4,
                loops=[Loop(0, 5, 1)],
            )
        ),
        MemoryMap((hole(0, 0, 5, (0, 2)), in_loop(1, 0, 2))),
        id="before anything was written",
    ),
]


def test_a_carried_parameter_may_give_its_place_up_and_come_back() -> None:
    program = small_program(1203, max_accesses=20)
    greedy = GreedySolver().solve(SolveRequest(program))
    pieces = [(r.buffer, r.source) for r in greedy.memory_map.residencies]
    assert {(0, Source.CARRIED), (0, Source.COPIED)} <= set(pieces)
    assert bound_program(program, 5.0).ticks <= greedy.latency_ticks


@pytest.mark.parametrize(("program", "memory_map"), EARLY)
def test_bytes_given_up_as_early_as_allowed(program: Program, memory_map: MemoryMap) -> None:
    assert validate(program, memory_map) == ()
    assert bound_program(program, 5.0).ticks <= simulate(program, memory_map).latency_ticks


def test_many_uses_leave_an_optimum_proven() -> None:
    steps = [(0, "wa"), (0, "wb"), *[(0, "ra rb")] * 1000]
    program = program_of({"a": 4, "b": 4}, steps, capacity=4)
    found = GreedySolver().solve(SolveRequest(program))
    bound = bound_program(program, 10.0)
    assert bound.ticks <= found.latency_ticks
    assert status_of(found.latency_ticks, bound.ticks, 0.0) is Status.OPTIMAL
