"""Real programs: the JAX game against the compiled one, and the loss of replaying production."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.inputs import load_program
from hlo_graphs import corpus
from malloc_game.fast_game import Action, FastGame
from malloc_game.outcome import memory_map_of
from malloc_game.replay import actions_from_map
from malloc_game.simulate import simulate
from malloc_game.state import program_arrays
from malloc_game.turn_table import Column, turn_table
from malloc_game.validate import validate
from tests.malloc_game.game_batches import TASTES, play_programs

ALWAYS = ("lstm_forward.v5e", "schnet_train.v5e")
"""A program with a loop, quickly compiled, and one whose lanes wait and search side by side."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow)
        for name in corpus.names()
    ],
)
def test_games_of_real_programs_are_those_of_the_compiled_game(name: str) -> None:
    program = load_program(name).program
    table, game = turn_table(program), FastGame(program)
    arrays = jax.tree.map(lambda leaf: leaf[None], program_arrays(table))
    keys = jax.random.split(jax.random.key(1), (1, len(TASTES)))
    states, (_, _, rewards) = play_programs(arrays, keys, TASTES, table.num_turns)
    turns = np.flatnonzero(table.items[:, Column.KIND])
    for lane in range(len(TASTES)):
        state = jax.tree.map(lambda leaf, at=lane: leaf[0, at], states)
        memory_map = memory_map_of(table, state)
        assert validate(program, memory_map) == ()
        played = np.asarray(state.actions)[turns]
        wishes = np.where(played >= 0, played % 4, Action.DROP).astype(np.int8)
        other = game.map_of(wishes)
        assert set(other.residencies) == set(memory_map.residencies)
        assert set(other.evictions) == set(memory_map.evictions)
        latency = simulate(program, memory_map).latency_ticks
        saved = float(np.asarray(rewards)[0, lane].sum(dtype=np.float64))
        assert saved == pytest.approx(1 - latency / program.all_slow_ticks, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "most_lost"),
    [
        ("dlrm_infer.v5e", 0.001),
        ("resnet50_infer.v5e", 0.001),
        ("vgg16_infer.v5e", 0.001),
        ("lstm_forward.v5e", 0.001),
        ("lstm_forward.v5e.32MiB", 0.001),
        ("lstm_train.v5e.32MiB", 0.002),
        ("llama_train.v5e", 0.04),
    ],
)
def test_production_replays_with_the_loss_that_is_documented(name: str, most_lost: float) -> None:
    """docs/game.md has the figures: what is lost is what production does beyond the game."""
    one = load_program(name)
    assert one.production_map is not None
    replay = actions_from_map(one.program, one.production_map)
    assert validate(one.program, replay.memory_map) == ()
    assert -0.01 <= replay.loss <= most_lost
    assert all(one.program.buffers[part.buffer].name in str(part) for part in replay.lost)
