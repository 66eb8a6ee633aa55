"""The JAX game against the slow witness, and what an environment must keep."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlo_graphs.errors import InputError
from hlo_graphs.program import AccessKind, Loop, Machine, Program
from malloc_game import env as game_env
from malloc_game import rules
from malloc_game.env import MallocGame, StepType
from malloc_game.generator import random_program
from malloc_game.rules import PATIENCE, advance
from malloc_game.state import Action, bucket_for, first_state, program_arrays
from malloc_game.turn_table import NUM_COLUMNS, Column, turn_table
from tests.malloc_game.game_batches import (
    SMALL,
    check_against_reference,
    play_programs,
    play_randomly,
    stack_programs,
)
from tests.malloc_game.reference_game import (
    ReferenceGame,
    total_of_all_slow,
    with_rare_cases,
)
from tests.malloc_game.small import program_of
from tests.strategies import small_program

NUM_DECISIONS = 96
"""More than any game of a small program has."""


def drawn_program(seed: int) -> Program:
    return with_rare_cases(small_program(seed), seed)


def same_state(left: object, right: object) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_same_as_reference_on_random_games_step_by_step() -> None:
    compared = 0
    for batch in range(4):
        programs = [drawn_program(100 * batch + seed) for seed in range(16)]
        record = play_randomly(programs, batch, NUM_DECISIONS)
        compared += check_against_reference(programs, record)
    assert compared > 1500
    assert play_programs._cache_size() == 1, "the games of one bucket must share one trace"


def with_lanes(program: Program, lanes: dict[tuple[int, int], int]) -> Program:
    """The program with other lane ticks of some accesses, by (step, buffer)."""
    instructions = [
        dataclasses.replace(
            instruction,
            accesses=tuple(
                dataclasses.replace(a, lane_ticks=(lanes.get((step, a.buffer), a.lane_ticks[0]),))
                for a in instruction.accesses
            ),
        )
        for step, instruction in enumerate(program.instructions)
    ]
    return dataclasses.replace(program, instructions=tuple(instructions))


def test_idle_time_that_a_copy_took_from_before_a_loop_stays_taken_behind_it() -> None:
    """The copy's window reaches across a branch, and its item enters the loop at once."""
    branch, loop = Loop(1, 2, 1, probability=0.5), Loop(3, 4, 10)
    kept = program_of(
        {"a": 8, "b": 40},
        [(10, ""), (4, ""), (2, ""), (3, "ra"), (0, "rb")],
        capacity=300,
        loops=(branch, loop),
    )
    branch, loop = Loop(3, 4, 1, probability=0.5), Loop(5, 6, 10)
    written = program_of(
        {"u": 30, "v": 200},
        [(10, ""), (10, ""), (210, "wv"), (10, ""), (0, "ru"), (14, ""), (0, "rv")],
        capacity=300,
        loops=(branch, loop),
    )
    programs = [
        with_lanes(kept, {(4, 1): 100}),
        with_lanes(written, {(4, 0): 200, (6, 1): 1000}),
    ] * 8
    compared = check_against_reference(programs, play_randomly(programs, 0, NUM_DECISIONS))
    assert compared > 100


@pytest.mark.slow
def test_same_as_reference_on_thousands_of_random_games() -> None:
    for batch in range(200):
        programs = [drawn_program(10_000 + 100 * batch + seed) for seed in range(16)]
        check_against_reference(programs, play_randomly(programs, batch, NUM_DECISIONS))


def test_compiles_once_for_all_programs_of_a_bucket() -> None:
    sizes = set()
    for seed in range(4):
        game = MallocGame(small_program(seed), bucket=SMALL)
        state, _ = game.reset()
        for action in Action:
            state, _ = game.step(state, action)
        sizes.add((game_env._reset._cache_size(), game_env._step._cache_size()))
    assert len(sizes) == 1, "a new program of the bucket was traced anew"


def test_batches_of_batches_are_the_games_themselves() -> None:
    programs = [small_program(seed) for seed in (3, 4, 5)]
    arrays = stack_programs(programs)
    states = jax.vmap(first_state)(arrays)
    actions = jnp.array([[0, 1], [2, 0], [2, 2]])

    def twice(arrays, state, actions):
        state, _ = advance(arrays, state, jnp.int32(0))
        return jax.vmap(advance, in_axes=(None, None, 0))(arrays, state, actions)

    together = jax.jit(jax.vmap(twice))(arrays, states, actions)
    for index, program in enumerate(programs):
        game = MallocGame(program, bucket=SMALL)
        for choice in range(2):
            alone, _ = game.step(game.reset()[0], actions[index, choice])
            at = jax.tree.map(lambda leaf, at=(index, choice): leaf[at], together[0])
            assert same_state(alone, at)


def test_rewards_in_32_bits_differ_from_exact_ones_by_rounding_only() -> None:
    """Each reward is one rounded product or sum; n of them are off by at most n eps sum |r|."""
    programs = [small_program(seed) for seed in range(16)]
    record = play_randomly(programs, 7, NUM_DECISIONS)
    for index, program in enumerate(programs):
        for lane in range(record.actions.shape[2]):
            game = ReferenceGame(program)
            exact = []
            while game.turn is not None:
                exact.append(float(game.play(int(record.actions[len(exact), index, lane]))))
            found = record.rewards[: len(exact), index, lane].astype(np.float64)
            size = sum(abs(r) for r in exact) + float(game.stall_ticks / max(1, game.all_slow))
            bound = 4 * np.finfo(np.float32).eps * (1 + len(exact)) * size
            assert abs(found.sum() - sum(exact)) <= bound
            assert sum(exact) == pytest.approx(float(1 - game.latency / game.all_slow), abs=1e-12)


def test_time_steps_follow_the_environment_contract() -> None:
    game = MallocGame(small_program(11), bucket=SMALL)
    state, time_step = game.reset()
    assert int(time_step.step_type) == StepType.FIRST
    while not bool(time_step.last()):
        assert float(time_step.discount) == 1
        for field in dataclasses.fields(time_step.observation):
            spec = getattr(game.observation_spec, field.name)
            spec.validate(getattr(time_step.observation, field.name))
        action = int(np.flatnonzero(time_step.observation.action_mask)[-1])
        state, time_step = game.step(state, game.action_spec.validate(action))
        game.reward_spec.validate(time_step.reward)
    after, past = game.step(state, Action.KEEP)
    assert float(past.reward) == 0
    assert float(past.discount) == 0
    assert same_state(after, state)


def test_illegal_action_counts_as_drop() -> None:
    checked = 0
    for seed in range(12):
        game = MallocGame(small_program(seed), bucket=SMALL)
        state, time_step = game.reset()
        while not bool(time_step.last()):
            legal = np.asarray(game_env.action_mask(state))
            for action in np.flatnonzero(~legal).tolist():
                assert same_state(game.step(state, action), game.step(state, Action.DROP))
                checked += 1
            state, time_step = game.step(state, int(np.flatnonzero(legal)[-1]))
    assert checked > 5


def test_without_fast_memory_there_is_nothing_to_decide() -> None:
    program = small_program(2).with_capacity(0)
    game = MallocGame(program, bucket=SMALL)
    state, time_step = game.reset()
    assert bool(time_step.last())
    assert game.memory_map(state).residencies == ()


def test_endless_fast_memory_and_bandwidth_end_all_fast() -> None:
    for seed in range(8):
        program = small_program(seed)
        total = sum(buffer.size_bytes for buffer in program.buffers)
        machine = Machine("endless", total * 4, program.machine.alignment_bytes, float("inf"))
        endless = dataclasses.replace(program, machine=machine)
        game = MallocGame(endless, bucket=SMALL)
        state, time_step = game.reset()
        reward = float(time_step.reward)
        while not bool(time_step.last()):
            legal = np.flatnonzero(time_step.observation.action_mask)
            state, time_step = game.step(state, int(legal[-1]))
            reward += float(time_step.reward)
        assert reward == pytest.approx(
            1 - endless.all_fast_ticks / endless.all_slow_ticks, abs=1e-5
        )


def test_unfinished_game_has_no_map() -> None:
    game = MallocGame(small_program(11), bucket=SMALL)
    state, _ = game.reset()
    with pytest.raises(InputError, match="only a finished game"):
        game.memory_map(state)


def test_program_must_fit_its_bucket() -> None:
    program = random_program(1, num_accesses=400)
    with pytest.raises(InputError, match="num_items must be at least"):
        program_arrays(program, SMALL)
    bucket = bucket_for(turn_table(program))
    assert program_arrays(program, bucket).items.shape == (
        bucket.num_items,
        NUM_COLUMNS + 3 * bucket.num_lanes,
    )


def test_ticks_too_many_for_32_bits_are_refused() -> None:
    program = small_program(4)
    slow = dataclasses.replace(program.instructions[0], base_ticks=(2**31,) * program.num_lanes)
    longer = dataclasses.replace(program, instructions=(slow, *program.instructions[1:]))
    with pytest.raises(InputError, match=r"longer ticks|ticks longer"):
        turn_table(longer)


def test_more_trips_than_ticks_can_be_counted_are_played() -> None:
    many = program_of(
        {"a": 4, "b": 4},
        [(2, ""), (3, ""), (0, "rb"), (1, "ra")],
        capacity=8,
        loops=(Loop(1, 2, 2**40),),
    )
    programs = [many] * 16
    assert check_against_reference(programs, play_randomly(programs, 3, NUM_DECISIONS)) > 50


def test_copies_too_long_for_32_bits_are_refused() -> None:
    program = program_of({"a": 2**30 + 2**20}, [(1, "ra")], capacity=2**31 - 2)
    brief = with_lanes(program, {(0, 0): 1})
    access = dataclasses.replace(brief.instructions[0].accesses[0], bus_ticks=1)
    step = dataclasses.replace(brief.instructions[0], accesses=(access,))
    with pytest.raises(InputError, match="the longest copy"):
        turn_table(dataclasses.replace(brief, instructions=(step,)))


def test_only_what_is_written_is_ever_evicted() -> None:
    """Reading a large parameter a thousand times adds up to no copies back."""
    program = program_of({"p": 2**22}, [(1, "rp")] * 1000, capacity=2**23)
    steps = [
        dataclasses.replace(
            step, accesses=(dataclasses.replace(step.accesses[0], bus_ticks=1, lane_ticks=(1,)),)
        )
        for step in program.instructions
    ]
    brief = dataclasses.replace(program, instructions=tuple(steps))
    assert turn_table(brief).num_turns > 0
    updates = [
        dataclasses.replace(
            step, accesses=(dataclasses.replace(step.accesses[0], kind=AccessKind.UPDATE),)
        )
        for step in steps
    ]
    with pytest.raises(InputError, match="all evictions together"):
        turn_table(dataclasses.replace(brief, instructions=tuple(updates)))


def test_turn_table_lists_the_turns_of_the_witness() -> None:
    for seed in range(40):
        program = small_program(seed)
        table, game = turn_table(program), ReferenceGame(program)
        wanted = [
            (int(turn.kind.value), turn.position, turn.buffer)
            for turn in game.script
            if hasattr(turn, "buffer")
        ]
        kinds = {1: 0, 2: 1, 3: 2, 4: 3}
        found = [
            (kinds[int(row[Column.KIND])], int(row[Column.POSITION]), table.buffers[row[1]])
            for row in table.items
            if row[Column.KIND]
        ]
        assert found == wanted
        assert float(total_of_all_slow(program)) == pytest.approx(program.all_slow_ticks)


def test_lanes_that_play_on_in_a_narrow_batch_play_the_same_game(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches of 32 narrow to one lane after `PATIENCE` items, batches of 4 never do."""
    monkeypatch.setattr(rules, "LONG_GAME_ITEMS", 0)
    program = random_program(3, num_accesses=150, pressure=6.0, max_size_units=8)
    arrays = program_arrays(program)
    first = first_state(arrays)
    wide = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (32, *leaf.shape)), first)
    step = jax.jit(jax.vmap(advance, in_axes=(None, 0, 0)))
    rng = np.random.default_rng(0)
    narrowed = 0
    while bool((wide.cursor < arrays.num_items).any()):
        wishes = rng.choice(3, size=32, p=(0.1, 0.1, 0.8))
        actions = jnp.where(wide.legal[np.arange(32), wishes], wishes, Action.DROP)
        after, rewards = step(arrays, wide, actions)
        parts = [
            jax.tree.map(lambda leaf, at=at: leaf[at : at + 4], wide) for at in range(0, 32, 4)
        ]
        done = [step(arrays, part, actions[4 * i : 4 * i + 4]) for i, part in enumerate(parts)]
        alone = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *done)
        assert same_state((after, rewards), alone)
        runs = np.sort(after.cursor - wide.cursor)
        narrowed += int(runs[-1]) > PATIENCE and int(runs[-2]) < int(runs[-1])
        wide = after
    assert narrowed > 3
