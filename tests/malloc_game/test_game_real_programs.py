"""Real programs: the JAX game against the compiled one, and the loss of replaying production."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.inputs import LoadedProgram, load_program
from malloc_game.fast_game import Action, FastGame
from malloc_game.outcome import memory_map_of
from malloc_game.replay import LostKind, actions_from_map
from malloc_game.simulate import simulate
from malloc_game.state import program_arrays
from malloc_game.turn_table import Column, turn_table
from malloc_game.validate import validate
from tests.malloc_game.game_batches import TASTES, play_programs
from tests.shared_data import shared_data_path


def loaded(name: str) -> LoadedProgram:
    return load_program(shared_data_path("tpu_examples") / f"{name}.v5e.before.hlo.gz")


@pytest.mark.parametrize(
    "name",
    [
        "lstm",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mlp6", "lm_infer", "decode", "lm_train", "resnet50_infer")
        ),
    ],
)
def test_games_of_real_programs_are_those_of_the_compiled_game(name: str) -> None:
    program = loaded(name).program
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
    [("mlp6", 0), ("lm_infer", 0), ("resnet50_infer", 0), ("lstm", 0.2), ("lm_train", 0.1)],
)
def test_production_replays_with_the_loss_that_is_documented(name: str, most_lost: float) -> None:
    """docs/game.md has the figures: what is lost is what production does beyond the game."""
    one = loaded(name)
    assert one.production_map is not None
    replay = actions_from_map(one.program, one.production_map)
    assert validate(one.program, replay.memory_map) == ()
    assert -0.01 <= replay.loss <= most_lost + 1e-9
    accesses = [part for part in replay.lost if part.kind is LostKind.ACCESS]
    assert bool(accesses) == (most_lost > 0)
