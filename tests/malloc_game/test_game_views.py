"""The Gymnasium wrapper, pictures of a state, and watching a game."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from experiments.play import PolicyName, play, policy_of, watch
from hlo_graphs.errors import InputError
from malloc_game.env import MallocGame
from malloc_game.gym import MallocGameEnv
from malloc_game.memory_map import MemoryMap, Part, Residency, Source
from malloc_game.render import boxes_of_state, draw_map, draw_state, svg_of_map, svg_of_state
from malloc_game.simulate import simulate
from malloc_game.validate import validate
from tests.malloc_game.game_batches import SMALL
from tests.malloc_game.small import program_of
from tests.strategies import small_program


@pytest.mark.filterwarnings("ignore:.*alternative render modes.*:UserWarning")
def test_gymnasium_accepts_the_environment() -> None:
    check_env(MallocGameEnv(small_program(11), "ansi", bucket=SMALL))


def test_gymnasium_episode_ends_with_the_simulated_latency() -> None:
    program = small_program(11)
    env = MallocGameEnv(program, bucket=SMALL)
    _, info = env.reset(seed=1)
    over = False
    while not over:
        action = np.int64(np.flatnonzero(info["action_mask"])[-1])
        _, _, over, truncated, info = env.step(action)
        assert not truncated
    simulation = simulate(program, env.memory_map())
    assert info["latency_seconds"] == pytest.approx(simulation.latency_seconds, rel=1e-5)


def test_gymnasium_errors_say_what_to_do() -> None:
    with pytest.raises(InputError, match="choose ansi or none"):
        MallocGameEnv(small_program(1), "human")
    with pytest.raises(InputError, match="call reset first"):
        MallocGameEnv(small_program(1), bucket=SMALL).step(np.int64(0))
    with pytest.raises(InputError, match="nothing to decide"):
        MallocGameEnv(small_program(1).with_capacity(0), bucket=SMALL).reset()


PICTURE = """\
8 bytes of fast memory, 4 steps
|..cc|
|..cc|
|    |
| bbb|
| bbb|
|aa  |
|aa  |
|aa  |
+----+"""


def drawn_map() -> tuple[object, MemoryMap]:
    program = program_of(
        {"a": 3, "b": 2, "c": 2}, [(9, "wa"), (9, "ra wb"), (9, "rb rc"), (9, "rb rc")], capacity=8
    )
    memory_map = MemoryMap(
        (
            Residency(0, 0, 0, 2, Source.PRODUCED, 0),
            Residency(1, 3, 1, 4, Source.PRODUCED, 1),
            Residency(2, 6, 0, 4, Source.COPIED, 2),
        )
    )
    assert validate(program, memory_map) == ()
    return program, memory_map


def test_text_picture_by_eye() -> None:
    assert draw_map(*drawn_map(), width=4, height=8) == PICTURE


def test_svg_has_a_shape_for_every_residency() -> None:
    document = ElementTree.fromstring(svg_of_map(*drawn_map()))
    titles = [element.text or "" for element in document.iter() if element.tag.endswith("title")]
    assert len(titles) == 4  # the copied one is drawn in two shades
    assert sum("copied" in title for title in titles) == 2
    assert any("a: produced, steps 0 to 2, bytes 0 to 3" in title for title in titles)


def test_holes_and_slices_leave_what_they_do_not_hold_to_others() -> None:
    steps = [(5, "wa"), (5, "ra"), (5, "wb"), (5, "rb"), (5, "wa"), (5, "ra")]
    program = program_of({"a": 4, "b": 4}, steps, capacity=4)
    holed = Residency(0, 0, 0, 6, Source.PRODUCED, 0, holes=((2, 4),))
    inside = Residency(1, 0, 2, 4, Source.PRODUCED, 2)
    both = MemoryMap((holed, inside))
    assert validate(program, both) == ()
    assert draw_map(program, both, height=1).splitlines()[1] == "|aabbaa|"
    program = program_of({"p": 4, "q": 2}, [(5, "rq"), (5, "rq"), (5, "rq"), (5, "rp")], capacity=4)
    sliced = Residency(0, 0, 0, 4, Source.COPIED, 3, parts=(Part(0, 2, 0), Part(2, 2, 2)))
    above = MemoryMap((sliced, Residency(1, 2, 0, 2, Source.COPIED, 0)))
    assert validate(program, above) == ()
    assert draw_map(program, above, height=2).splitlines()[1:3] == ["|bb.a|", "|...a|"]


def test_pictures_of_a_state_grow_into_that_of_the_map() -> None:
    program = small_program(11)
    game = MallocGame(program, bucket=SMALL)
    seen, last = 0, None
    for turn, state in watch(game, policy_of(PolicyName.KEEP)):
        boxes = boxes_of_state(game.table, state)
        assert len(boxes) >= seen
        seen, last = len(boxes), state
        assert turn.description.split(":")[0] in str(turn)
        ElementTree.fromstring(svg_of_state(game.table, state))
    assert last is not None
    finished = draw_map(program, game.memory_map(last))
    assert draw_state(game.table, last) == f"{finished}\nthe game is over"


@pytest.mark.parametrize("policy", list(PolicyName))
def test_every_policy_plays_a_valid_game(policy: PolicyName) -> None:
    program = small_program(11)
    heard: list[str] = []
    played = play(
        program, policy, seed=3, bucket=SMALL, on_turn=lambda turn: heard.append(str(turn))
    )
    assert len(heard) == len(played.turns)
    latency = simulate(program, played.memory_map).latency_ticks
    assert played.saved == pytest.approx(1 - latency / program.all_slow_ticks, abs=1e-5)
    assert played.picture().startswith(str(program.capacity_bytes))
    assert played.svg().startswith("<svg")


def test_unknown_policy_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="choose one of random, greedy, keep, drop"):
        policy_of("wise")


def test_replay_and_turn_table_do_not_import_jax() -> None:
    code = (
        "import sys, malloc_game.replay, malloc_game.turn_table, malloc_game.specs;"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
