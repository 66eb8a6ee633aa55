"""Maps back to actions: exact for the game's own maps, with the losses named for others."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from hlo_graphs.program import Program
from malloc_game.fast_game import Action, FastGame
from malloc_game.memory_map import MemoryMap, Part, ReplacedCopy, Residency, Source
from malloc_game.replay import LostKind, actions_from_map
from malloc_game.simulate import simulate
from malloc_game.validate import validate
from tests.malloc_game.small import program_of
from tests.strategies import programs_with_maps, small_program


def test_maps_of_games_replay_without_loss() -> None:
    """Exactly, but for a buffer that leaves at a loop's entry: the map does not tell whether it
    went before the entry turns or in its own, and so other addresses may be free for them."""
    same = 0
    for seed in range(150):
        program = small_program(seed, max_accesses=40)
        game, rng = FastGame(program), np.random.default_rng(seed)
        shares = rng.dirichlet([0.7, 0.7, 1.5])
        made = game.map_of(rng.choice(3, size=game.num_turns, p=shares).astype(np.int8))
        replay = actions_from_map(program, made, game)
        assert replay.loss == 0
        assert replay.lost == ()
        same += replay.memory_map == made
    assert same >= 148


@given(programs_with_maps())
@settings(max_examples=60, deadline=None)
def test_any_valid_map_replays_to_a_valid_one_and_the_loss_is_that_of_the_simulator(
    drawn: tuple[Program, MemoryMap],
) -> None:
    program, memory_map = drawn
    replay = actions_from_map(program, memory_map)
    assert validate(program, replay.memory_map) == ()
    before = simulate(program, memory_map).latency_ticks
    after = simulate(program, replay.memory_map).latency_ticks
    assert replay.latency_ticks == after
    assert replay.map_latency_ticks == before
    assert abs(replay.loss * before - (after - before)) <= 1e-9 * before


def test_what_the_game_cannot_express_is_named() -> None:
    program = program_of(
        {"p": 4, "q": 4, "x": 4, "y": 2},
        [(20, "wx"), (0, "rp wq"), (20, "rq wy"), (20, "rx")],
        capacity=8,
        copies=[1],
    )
    sliced = Residency(
        program_index(program, "x"), 0, 1, 4, Source.COPIED, 3, None, (Part(0, 2, 1), Part(2, 2, 2))
    )
    memory_map = MemoryMap((sliced,), (), (ReplacedCopy(1, 0, 2),))
    assert validate(program, memory_map) == ()
    lost = actions_from_map(program, memory_map).lost
    assert {part.kind for part in lost} == {LostKind.REPLACED_COPY, LostKind.SLICED_PREFETCH}
    assert any("arrives in slices" in str(part) for part in lost)


def test_access_without_a_place_is_named() -> None:
    """The map tiles what best fit does not: y lies low, so z finds its gap cut in two."""
    program = program_of(
        {"a": 2, "b": 2, "c": 4},
        [(20, "wa"), (20, "ra wb"), (0, "wc"), (0, "rb rc")],
        capacity=6,
    )
    memory_map = MemoryMap(
        (
            Residency(0, 4, 0, 2, Source.PRODUCED, 0),
            Residency(1, 4 - 4, 1, 4, Source.PRODUCED, 1),
            Residency(2, 2, 2, 4, Source.PRODUCED, 2),
        )
    )
    assert validate(program, memory_map) == ()
    replay = actions_from_map(program, memory_map)
    assert replay.loss > 0
    assert {(part.kind, part.step, part.buffer) for part in replay.lost} == {
        (LostKind.ACCESS, 2, 2),
        (LostKind.ACCESS, 3, 2),
    }


def test_empty_map_is_all_drop() -> None:
    program = program_of({"a": 2}, [(20, "wa"), (20, "ra")], capacity=6)
    replay = actions_from_map(program, MemoryMap())
    assert set(replay.wishes.tolist()) == {int(Action.DROP)}
    assert replay.memory_map == MemoryMap()


def program_index(program: Program, letter: str) -> int:
    return [buffer.name for buffer in program.buffers].index(letter)
