"""What must hold of every game of every program, shown on the slow witness.

`tests/malloc_game/test_game.py` shows that the JAX rules are the witness's, decision by decision.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_graphs.program import Loop, Program
from malloc_game.generator import Family, random_program
from malloc_game.known_optimum import known_optimum_program, packing_program
from malloc_game.memory_map import MemoryMap, Residency, Source
from malloc_game.simulate import fast_accesses, simulate
from malloc_game.validate import validate
from malloc_game.violations import Rule
from tests.malloc_game.reference_game import (
    Action,
    ReferenceGame,
    Rules,
    Turn,
    TurnKind,
    next_steps,
    play_out,
    with_rare_cases,
)
from tests.strategies import programs, small_program

CHOICES = st.lists(st.integers(0, 5), min_size=1, max_size=40)
PROGRAMS = st.builds(with_rare_cases, programs(), st.integers(0, 4))
RULES = st.builds(Rules, max_carried=st.integers(0, 3), carried_candidates=st.integers(0, 4))


def finished(program: Program, choices: list[int], rules: Rules) -> ReferenceGame:
    game = ReferenceGame(program, rules)
    play_out(game, choices)
    return game


def check_finished(game: ReferenceGame, rewards: list[Fraction]) -> None:
    """Valid, timed by the simulator as by the game, and the rewards sum to what was won."""
    memory_map = game.memory_map()
    assert validate(game.program, memory_map, max_carried=game.rules.max_carried) == ()
    simulation = simulate(game.program, memory_map)
    assert simulation.latency_ticks == pytest.approx(float(game.latency), rel=1e-12)
    assert sum(rewards) == (1 - game.latency / game.all_slow if game.all_slow else 0)
    stalls: dict[int, float] = defaultdict(float)
    for position, frame, ticks in game.stalls:
        stalls[position] += ticks * _repeat(game.program, frame)
    for position, found in enumerate(simulation.stall_before_ticks):
        assert found == pytest.approx(stalls[position], rel=1e-12), position


def _repeat(program: Program, frame: int | None) -> float:
    repeat = 1.0
    for loop in program.loops_around(frame):
        repeat *= program.loops[loop].weight
    return repeat


@given(PROGRAMS, CHOICES, RULES)
@settings(max_examples=150, deadline=None)
def test_finished_games_are_valid_maps_that_the_simulator_times_alike(
    program: Program, choices: list[int], rules: Rules
) -> None:
    game = ReferenceGame(program, rules)
    check_finished(game, play_out(game, choices))


@pytest.mark.slow
def test_thousands_of_finished_games_are_valid_maps() -> None:
    for seed in range(20_000):
        game = ReferenceGame(with_rare_cases(small_program(seed, max_accesses=60), seed))
        check_finished(game, play_out(game, [seed % 3, seed % 5, seed % 7, 2, seed % 11]))


@given(PROGRAMS, CHOICES)
@settings(max_examples=60, deadline=None)
def test_drop_is_always_legal_and_so_is_keep_of_a_resident_buffer_with_a_next_turn(
    program: Program, choices: list[int]
) -> None:
    """The claim is not the mask (which says so) but that the map stays valid: extend whenever
    possible, so that every resident buffer is kept to its last turn."""
    game = ReferenceGame(program)
    index = 0
    while game.turn is not None:
        drop, _, keep = game.legal()
        assert drop
        resident = game.turn.buffer in game.at
        bring = choices[index % len(choices)] % 2 == 1
        index += 1
        game.play(Action.KEEP if keep and (resident or bring) else Action.DROP)
    assert validate(program, game.memory_map()) == ()


@given(PROGRAMS, CHOICES, RULES)
@settings(max_examples=60, deadline=None)
def test_stalls_fall_only_where_the_contract_says(
    program: Program, choices: list[int], rules: Rules
) -> None:
    borders = {program.num_steps}
    for loop in program.loops:
        borders |= {loop.start_step, loop.end_step}
    memory_map = finished(program, choices, rules).memory_map()
    simulation = simulate(program, memory_map)
    fast = fast_accesses(program, memory_map)
    for position, stall in enumerate(simulation.stall_before_ticks):
        if position in borders or stall == 0:
            continue
        # What comes waits for its copy, or for evictions to make room, also where it is produced.
        came = {r.buffer for r in memory_map.residencies if r.ready == position}
        instruction = program.instructions[position]
        assert any(access.buffer in came for access in instruction.accesses)
        slow = [a for a in instruction.accesses if (position, a.buffer) not in fast]
        saved = instruction.elapsed_ticks(instruction.accesses) - instruction.elapsed_ticks(slow)
        assert stall < instruction.repeat * saved


def test_accesses_never_wait_longer_than_they_save() -> None:
    """Dropping the buffer at the turn, and everything after, is slower than waiting for it."""
    waited = 0
    for seed in range(150):
        game = ReferenceGame(with_rare_cases(small_program(seed), seed))
        while game.turn is not None:
            turn, legal = game.turn, game.legal()
            if turn.kind is TurnKind.ACCESS and turn.buffer not in game.at and legal[Action.COPY]:
                copied, stalls = copy.deepcopy(game), len(game.stalls)
                copied._apply(turn, Action.COPY)
                waited += len(copied.stalls) > stalls
                assert copied.latency <= game.latency
            game.play(Action.KEEP if legal[Action.KEEP] and seed % 2 else Action.DROP)
    assert waited > 50


@given(st.builds(with_rare_cases, programs(max_accesses=12), st.integers(0, 4)), CHOICES)
@settings(max_examples=40, deadline=None)
def test_illegal_copies_would_break_a_rule_or_wait(program: Program, choices: list[int]) -> None:
    """Wherever Copy is illegal, no residency that begins in the same loop and serves the access
    is both valid and free of stalls, at any address and from any start."""
    game = ReferenceGame(program)
    index = 0
    while game.turn is not None:
        turn, legal = game.turn, game.legal()
        if turn.kind is TurnKind.ACCESS and turn.buffer not in game.at and not legal[Action.COPY]:
            _check_nothing_serves(game)
        options = [Action(i) for i, possible in enumerate(legal) if possible]
        game.play(options[choices[index % len(choices)] % len(options)])
        index += 1


def _check_nothing_serves(game: ReferenceGame) -> None:
    turn = game.turn
    assert turn is not None
    rest = copy.deepcopy(game)
    while rest.turn is not None:
        rest.play(Action.DROP)
    before = rest.memory_map()
    waits = simulate(game.program, before).stall_ticks
    for residency in _candidates(game.program, turn.buffer, turn.position, turn.frame):
        more = MemoryMap((*before.residencies, residency), before.evictions)
        valid = validate(game.program, more) == ()
        assert not valid or simulate(game.program, more).stall_ticks > waits, residency


def _candidates(
    program: Program, buffer: int, position: int, frame: int | None
) -> Iterator[Residency]:
    alignment = program.machine.alignment_bytes
    size = program.buffers[buffer].size_bytes
    first = 0 if frame is None else program.loops[frame].start_step
    for start in range(first, position + 1):
        for offset in range(0, program.capacity_bytes - size + 1, alignment):
            yield Residency(buffer, offset, start, position + 1, Source.COPIED, position, frame)


def best_latency(game: ReferenceGame) -> Fraction:
    """The least latency of all ways to play on."""
    if game.turn is None:
        return game.latency
    best = None
    for action in Action:
        if game.legal()[action]:
            after = copy.deepcopy(game)
            after.play(action)
            latency = best_latency(after)
            best = latency if best is None else min(best, latency)
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(6))
def test_exhaustive_play_finds_the_known_optimum_of_packings(seed: int) -> None:
    known = packing_program(np.random.default_rng(seed), "packing", 3, capacity_units=6)
    assert best_latency(ReferenceGame(known.program)) == known.optimal_ticks


@pytest.mark.parametrize("seed", range(10))
def test_exhaustive_play_finds_the_known_optimum_of_knapsacks(seed: int) -> None:
    known = known_optimum_program(seed, kind="knapsack", size=4)
    assert best_latency(ReferenceGame(known.program)) == known.optimal_ticks


class KeepsAnythingAtEntry(ReferenceGame):
    """Without the first correction of docs/game.md."""

    def _may_enter(self, turn: Turn) -> bool:
        return True


class HidesInPartWhereMoreIsOffered(ReferenceGame):
    """Without the sixth correction of docs/game.md, first half."""

    def _exact_from(self) -> int:
        return 0


class HidesInPartDuringEvictions(ReferenceGame):
    """Without the sixth correction of docs/game.md, second half."""

    def _evicts_in_part(self) -> bool:
        return False


class WaitsForBuffersInUse(ReferenceGame):
    """Without the condition of the seventh correction of docs/game.md."""

    def _uses_waiting(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("loose", "seeds"),
    [
        (HidesInPartWhereMoreIsOffered, (174, 315, 470)),
        (HidesInPartDuringEvictions, (906, 1161, 1406)),
        (WaitsForBuffersInUse, (36, 48, 49)),
    ],
)
def test_what_stalls_take_is_certain_only_under_the_rules_conditions(
    loose: type[ReferenceGame], seeds: tuple[int, ...]
) -> None:
    for seed in seeds:
        program = with_rare_cases(small_program(seed, max_accesses=40), seed)
        choices = [1, 2, seed % 3, 1, seed % 5, 2, seed % 7]
        game = ReferenceGame(program)
        check_finished(game, play_out(game, choices))
        other = loose(program)
        play_out(other, choices)
        assert simulate(program, other.memory_map()).latency_ticks != other.latency


class OffersWholeTicksOfBranches(ReferenceGame):
    """Without the fourth correction of docs/game.md."""

    def _rounding(self, loop: Loop) -> int:
        return 0


def test_content_that_is_not_needed_must_not_be_kept_at_loop_entry() -> None:
    for seed in (29, 34, 43):
        program = small_program(seed, max_accesses=60)
        choices = [seed % 3, seed % 5, seed % 7, 2, seed % 11]
        game = ReferenceGame(program)
        check_finished(game, play_out(game, choices))
        loose = KeepsAnythingAtEntry(program)
        play_out(loose, choices)
        broken = validate(program, loose.memory_map())
        assert Rule.CONTENT in {violation.rule for violation in broken}


def test_idle_time_of_branches_must_be_rounded_as_the_engine_may() -> None:
    for seed in (3445, 4437, 6936):
        program = random_program(
            seed,
            family=Family.BRANCH,
            num_accesses=30,
            pressure=(0.3, 0.6, 1.0)[seed % 3],
            intensity=(1, 1.3, 1.7, 2.0)[seed % 4],
            max_size_units=2,
            forbidden_share=0,
        )
        choices = [1, 1, seed % 5, 1, seed % 7, 1]
        game = ReferenceGame(program)
        check_finished(game, play_out(game, choices))
        loose = OffersWholeTicksOfBranches(program)
        play_out(loose, choices)
        assert simulate(program, loose.memory_map()).latency_ticks > loose.latency


@given(programs(), st.integers(0, 10), st.data())
@settings(max_examples=60, deadline=None)
def test_needed_says_whether_some_run_reads_the_old_content(
    program: Program, turn_number: int, data: st.DataObject
) -> None:
    """Against random walks: if a walk reads first, the buffer is needed."""
    game = ReferenceGame(program)
    for _ in range(turn_number):
        if game.turn is not None:
            game.play(Action.DROP)
    if game.turn is None:
        return
    turn = game.turn
    after = turn.position + 1 if turn.kind is TurnKind.ACCESS else turn.position
    needed = game._needed(turn.buffer, after, turn.frame)
    position, frame = after, turn.frame
    for _ in range(200):
        step = data.draw(st.sampled_from(sorted(next_steps(program, position, frame))))
        if step == program.num_steps:
            assert needed or not program.buffers[turn.buffer].live_out
            return
        uses = [a for a in program.instructions[step].accesses if a.buffer == turn.buffer]
        if uses:
            assert needed or not uses[0].kind.reads
            return
        position, frame = step + 1, program.loop_of_step[step]
