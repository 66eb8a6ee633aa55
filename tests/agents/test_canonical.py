"""Games made canonical, and what the generalist is shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.adaptation import Found
from agents.canonical import canonical, wishes_by_price
from agents.programs import PlayedProgram
from experiments.demonstrations import TABLE, demonstrated, tasks_of
from experiments.generalist.programs import corpus_programs
from experiments.inputs import load_program
from hlo_graphs import corpus
from malloc_game.fast_game import Action, FastGame
from malloc_game.generator import Family, random_program
from malloc_game.replay import actions_from_map
from solvers.solver import SolveRequest, solver_named


def game_of(game: FastGame, wishes: NDArray[np.int8]) -> Found:
    return Found(0, game.latency_ticks(wishes), wishes)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_accesses=st.integers(10, 150))
def test_no_further_move_can_be_exchanged_without_slowing_the_game(
    seed: int, num_accesses: int
) -> None:
    game = FastGame(random_program(seed, num_accesses=num_accesses))
    rng = np.random.default_rng(seed)
    wishes, preferred = (rng.integers(0, 3, game.num_turns).astype(np.int8) for _ in range(2))
    before = wishes.copy()
    found = canonical(game, game_of(game, wishes), preferred)
    np.testing.assert_array_equal(wishes, before)
    assert found.latency_ticks == game.latency_ticks(found.wishes)
    assert found.latency_ticks <= game.latency_ticks(wishes)
    for turn in np.flatnonzero(found.wishes != preferred):
        assert found.wishes[turn] == wishes[turn]
        exchanged = found.wishes.copy()
        exchanged[turn] = preferred[turn]
        assert game.latency_ticks(exchanged) > found.latency_ticks


def test_moves_that_make_no_difference_become_the_preferred_ones() -> None:
    game = FastGame(random_program(9, family="training", num_accesses=100, intensity=1e6))
    drop, copy = (np.full(game.num_turns, action, np.int8) for action in (Action.DROP, Action.COPY))
    assert game.latency_ticks(drop) == game.latency_ticks(copy)
    found = canonical(game, game_of(game, drop), copy)
    np.testing.assert_array_equal(found.wishes, copy)
    # Whole stretches are exchanged at once.
    assert found.num_games < game.num_turns / 4


@pytest.mark.parametrize("family", [Family.CHAIN, Family.RESIDUAL, Family.TRAINING])
def test_with_room_for_all_prices_keep_what_saves_time(family: Family) -> None:
    program = random_program(1, family=family, num_accesses=60)
    roomy = program.with_capacity(2 * sum(buffer.size_bytes for buffer in program.buffers))
    member = PlayedProgram.of(roomy)
    wishes = wishes_by_price(member)
    assert wishes.shape == (member.fast_game.num_turns,)
    by_price = member.fast_game.latency_ticks(wishes)
    greedy = solver_named("greedy").solve(SolveRequest(roomy)).latency_ticks
    saved_by_greedy = roomy.all_slow_ticks - greedy
    assert saved_by_greedy > 0
    assert roomy.all_slow_ticks - by_price >= 0.9 * saved_by_greedy


def test_the_same_game_is_shown_again_and_it_is_none_of_the_slower_ones() -> None:
    programs = [random_program(seed, num_accesses=80) for seed in (1, 2)]
    tasks = tasks_of(programs, ("greedy", TABLE), 800, seed=5)
    assert [task.seed for task in tasks] == [5, 6]
    for task in tasks:
        shown, again = demonstrated(task), demonstrated(task)
        np.testing.assert_array_equal(shown.wishes, again.wishes)
        assert shown.latency_ticks <= min(shown.by_demonstrator)
        member = PlayedProgram.of(task.program)
        assert shown.latency_ticks == member.fast_game.latency_ticks(shown.wishes)
        greedy = solver_named("greedy").solve(SolveRequest(task.program))
        replay = actions_from_map(task.program, greedy.memory_map, member.fast_game)
        assert shown.by_demonstrator[0] == replay.latency_ticks


def test_without_a_table_the_solvers_map_is_shown() -> None:
    task = tasks_of([random_program(3, num_accesses=40)], ("greedy",), 0, seed=0)[0]
    shown = demonstrated(task)
    assert shown.latency_ticks <= shown.by_demonstrator[0]
    assert len(shown.by_demonstrator) == 1


def test_families_kept_apart_are_not_trained_on() -> None:
    trained, apart = (corpus_programs(validation=validation) for validation in (False, True))
    assert sorted(trained + apart) == sorted(corpus.split().train)
    assert trained
    assert apart
    families = [{corpus.family_of(name).name for name in names} for names in (trained, apart)]
    assert families[0].isdisjoint(families[1])


@pytest.mark.parametrize("name", ["mlp_mixer_train.v5e", "deepfm_train.v5e"])
def test_a_random_game_of_a_real_program_becomes_nearly_what_prices_say(name: str) -> None:
    member = PlayedProgram.of(load_program(name).program)
    rng = np.random.default_rng(0)
    wishes = rng.integers(0, 3, member.fast_game.num_turns).astype(np.int8)
    preferred = wishes_by_price(member)
    found = canonical(member.fast_game, game_of(member.fast_game, wishes), preferred)
    assert np.mean(wishes == preferred) < 0.5
    assert np.mean(found.wishes == preferred) > 0.8
    assert found.latency_ticks <= member.fast_game.latency_ticks(wishes)
