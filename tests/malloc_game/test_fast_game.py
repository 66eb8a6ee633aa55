"""The compiled game against the slow witness, the validator, the simulator, and by eye."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_graphs.errors import InputError
from hlo_graphs.program import (
    Access,
    AccessKind,
    Buffer,
    Instruction,
    Loop,
    Machine,
    Program,
)
from malloc_game.fast_game import (
    CLEAN,
    NOT_ASKED,
    Action,
    FastGame,
    GameWalk,
    Turn,
    TurnKind,
)
from malloc_game.fast_game_kernels import Actions
from malloc_game.generator import Family, random_program
from malloc_game.memory_map import Eviction, Residency, Source
from malloc_game.simulate import simulate
from malloc_game.validate import validate
from tests.malloc_game import reference_game as slow
from tests.malloc_game.small import program_of

KINDS = {
    slow.TurnKind.ACCESS: TurnKind.ACCESS,
    slow.TurnKind.ENTRY: TurnKind.ENTRY,
    slow.TurnKind.EXIT: TurnKind.EXIT,
    slow.TurnKind.CARRIED: TurnKind.CARRY,
}
LOOP_TURNS = (TurnKind.ENTRY, TurnKind.EXIT)


def drawn_program(seed: int) -> Program:
    rng = np.random.default_rng(seed)
    program = random_program(
        seed,
        family=list(Family)[seed % len(Family)],
        num_accesses=int(rng.integers(8, 70)),
        pressure=float(rng.choice([0.8, 1.5, 2.0, 4.0])),
        intensity=float(rng.choice([0.3, 1.0, 2.0])),
        num_lanes=int(rng.integers(1, 4)),
        max_loop_depth=int(rng.integers(0, 4)),
    )
    return slow.with_rare_cases(program, seed)


def drawn_wishes(game: FastGame, rng: np.random.Generator) -> Actions:
    shares = rng.dirichlet([0.7, 0.7, 1.5])
    return rng.choice(3, size=game.num_turns, p=shares).astype(np.int8)


def games(first_seed: int, count: int) -> Iterator[tuple[FastGame, Actions]]:
    for seed in range(first_seed, first_seed + count):
        game = FastGame(drawn_program(seed))
        rng = np.random.default_rng(seed)
        for _ in range(3):
            yield game, drawn_wishes(game, rng)


def key_of(turn: Turn) -> tuple[TurnKind, int, int, int | None]:
    return turn.kind, turn.step, turn.buffer, turn.loop if turn.kind in LOOP_TURNS else None


def key_of_slow(turn: slow.Turn) -> tuple[TurnKind, int, int, int | None]:
    kind = KINDS[turn.kind]
    return kind, turn.position, turn.buffer, turn.loop if kind in LOOP_TURNS else None


def assert_same_game(game: FastGame, wishes: Actions) -> None:
    """Order of turns, what is legal at each, latency, stalls and map agree with the witness."""
    masks, taken = game.legal_masks(wishes)
    index = {key_of(turn): position for position, turn in enumerate(game.turns)}
    witness = slow.ReferenceGame(game.program)
    decisions = []
    while witness.turn is not None:
        position = index[key_of_slow(witness.turn)]
        decisions.append(position)
        legal = sum(1 << action for action, yes in enumerate(witness.legal()) if yes)
        assert masks[position] == legal, game.turns[position]
        witness.play(slow.Action(int(taken[position])))
    assert decisions == [p for p in range(game.num_turns) if masks[p] not in (0, 1)]
    record = game.play(wishes)
    assert record.latency_ticks == pytest.approx(float(witness.latency), rel=1e-12)
    assert record.stall_ticks == pytest.approx(float(witness.stall_ticks), rel=1e-12)
    found, expected = game.map_of(wishes), witness.memory_map()
    assert set(found.residencies) == set(expected.residencies)
    assert sorted(map(repr, found.evictions)) == sorted(map(repr, expected.evictions))


def test_equals_the_slow_witness() -> None:
    for game, wishes in games(0, 150):
        assert_same_game(game, wishes)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_equals_the_slow_witness_anywhere(seed: int) -> None:
    game = FastGame(drawn_program(seed))
    assert_same_game(game, drawn_wishes(game, np.random.default_rng(seed + 1)))


def test_every_game_is_a_valid_map_with_the_simulated_latency() -> None:
    for game, wishes in games(10_000, 300):
        memory_map = game.map_of(wishes)
        assert validate(game.program, memory_map) == ()
        simulated = simulate(game.program, memory_map).latency_ticks
        assert game.latency_ticks(wishes) == pytest.approx(simulated, rel=1e-12)


def test_wishing_for_what_was_played_is_the_same_game() -> None:
    for game, wishes in games(20_000, 50):
        record = game.play(wishes)
        again = game.play(np.maximum(record.taken, 0).astype(np.int8))
        assert again.latency_ticks == record.latency_ticks
        assert (again.taken == record.taken).all()


def test_dropping_everything_is_the_empty_map() -> None:
    for game, _ in games(30_000, 20):
        wishes = game.wishes(Action.DROP)
        assert game.map_of(wishes).residencies == ()
        assert game.latency_ticks(wishes) == pytest.approx(game.program.all_slow_ticks)


def test_many_games_equal_one_by_one() -> None:
    game = FastGame(random_program(3, num_accesses=80))
    rng = np.random.default_rng(0)
    batch = np.stack([drawn_wishes(game, rng) for _ in range(20)])
    expected = [game.latency_ticks(wishes) for wishes in batch]
    assert game.play_many(batch).tolist() == expected


def test_samples_follow_the_probabilities_and_say_what_was_played() -> None:
    game = FastGame(random_program(4, family="chain", num_accesses=60))
    table = np.tile([0.2, 0.3, 0.5], (game.num_turns, 1))
    latencies, taken = game.sample(table, 400, np.random.default_rng(1))
    again = game.play_many(np.maximum(taken, 0).astype(np.int8))
    assert latencies.tolist() == again.tolist()
    free = FastGame(game.program.with_capacity(2**40), max_carried=0)
    _, taken = free.sample(table[: free.num_turns], 400, np.random.default_rng(1))
    writes = [
        position
        for position, turn in enumerate(free.turns)
        if turn.may_keep and free.legal_masks(free.wishes())[0][position] == 0b111
    ]
    shares = [(taken[:, writes] == action).mean() for action in Action]
    assert shares == pytest.approx([0.2, 0.3, 0.5], abs=0.05)


@pytest.mark.parametrize("family", ["chain", "loop", "branch"])
def test_what_was_spent_before_each_turn_is_what_a_shorter_program_takes(family: str) -> None:
    game = FastGame(random_program(4, family=family, num_accesses=60))
    table = np.tile([0.2, 0.3, 0.5], (game.num_turns, 1))
    latencies, taken = game.sample(table, 50, np.random.default_rng(1))
    spent, taken_along = game.sample_along(table, 50, np.random.default_rng(1))
    assert (taken == taken_along).all()
    assert spent.shape == (50, game.num_turns + 1)
    assert spent[:, -1].tolist() == latencies.tolist()
    assert (np.diff(spent, axis=1) >= 0).all()
    first_step = [turn for turn, at in enumerate(game.turns) if at.step == 0]
    assert (spent[:, first_step[0]] == 0).all()
    # With nothing fast each step takes its time alone, as often as it runs.
    drop = np.tile([1.0, 0.0, 0.0], (game.num_turns, 1))
    spent, _ = game.sample_along(drop, 1, np.random.default_rng(0))
    program = game.program
    ticks = [0.0]
    for instruction in program.instructions:
        ticks.append(
            ticks[-1] + instruction.repeat * instruction.elapsed_ticks(instruction.accesses)
        )
    assert spent[0, :-1].tolist() == pytest.approx([ticks[turn.step] for turn in game.turns])


def test_the_same_seed_draws_the_same_games() -> None:
    game = FastGame(random_program(5, num_accesses=60))
    table = np.full((game.num_turns, 3), 1 / 3)
    first = game.sample(table, 10, np.random.default_rng(7))
    second = game.sample(table, 10, np.random.default_rng(7))
    assert (first[1] == second[1]).all()
    assert not (first[1] == game.sample(table, 10, np.random.default_rng(8))[1]).all()


@pytest.mark.parametrize("threads", [2, 5])
def test_games_are_the_same_however_many_threads_play_them(threads: int) -> None:
    program = random_program(4, family="loop", num_accesses=60)
    alone, together = FastGame(program), FastGame(program, threads=threads)
    assert len(together.players) == threads
    table = np.tile([0.2, 0.3, 0.5], (alone.num_turns, 1))
    for game in (alone, together):
        game.hints[::2] = 3
    for num_games in (0, 1, 3, 50):
        for play in (FastGame.sample, FastGame.sample_along):
            one, other = (
                play(game, table, num_games, np.random.default_rng(1)) for game in (alone, together)
            )
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])
        wishes = np.maximum(one[1], 0)
        np.testing.assert_array_equal(alone.play_many(wishes), together.play_many(wishes))
    # Without the hints they would be others.
    alone.hints[:] = -1
    assert (alone.play_many(wishes) != together.play_many(wishes)).any()


def test_work_in_threads_is_done_by_every_player_and_its_errors_are_told() -> None:
    game = FastGame(random_program(4, num_accesses=60), threads=3)
    latencies = game.in_threads(lambda row: game.players[row].latency_ticks(game.wishes()))
    assert latencies == [game.latency_ticks(game.wishes())] * 3
    with pytest.raises(ZeroDivisionError):
        game.in_threads(lambda row: 1 / (2 - row))
    with pytest.raises(InputError, match="threads is 0, must be at least 1"):
        FastGame(game.program, threads=0)


def test_wrong_number_of_actions_is_refused() -> None:
    game = FastGame(random_program(6))
    with pytest.raises(InputError, match="actions have shape"):
        game.play(np.zeros(game.num_turns + 1, dtype=np.int8))
    with pytest.raises(InputError, match="actions have shape"):
        game.play_many(np.zeros((2, game.num_turns + 1), dtype=np.int8))


# --- games checkable by eye -------------------------------------------------------------------


def access(buffer: int, kind: AccessKind, ticks: int) -> Access:
    return Access(buffer, kind, size_bytes=ticks, bus_ticks=ticks, lane_ticks=(0,))


def step(base_ticks: int, *accesses: Access, repeat: float = 1.0) -> Instruction:
    return Instruction("i", "dot", "", repeat, (base_ticks,), accesses)


def buffer(name: str, size: int, origin: int = -1, live_out: bool = False) -> Buffer:
    return Buffer(name, size, origin, live_out, fast_allowed=True)


def program(
    capacity: int, steps: list[Instruction], buffers: list[Buffer], loops: tuple[Loop, ...] = ()
) -> Program:
    """One byte is one tick on the bus."""
    machine = Machine("golden", capacity, 1, 1.0)
    return Program("golden", machine, 1.0, tuple(steps), tuple(buffers), loops)


READ, UPDATE, WRITE = AccessKind.READ, AccessKind.UPDATE, AccessKind.WRITE


def test_a_prefetch_takes_the_latest_idle_time() -> None:
    # Idle 10, 4, 4, then a read of 6 bytes: the window is steps 1 and 2, two ticks of 1 remain.
    golden = program(8, [step(10), step(4), step(4), step(0, access(0, READ, 6))], [buffer("w", 6)])
    game = FastGame(golden)
    wishes = game.wishes(Action.COPY)
    assert game.map_of(wishes).residencies == (Residency(0, 0, 1, 4, Source.COPIED, 3),)
    assert game.latency_ticks(wishes) == 18


def test_idle_time_of_very_many_trips_is_not_lost() -> None:
    # 2**24 idle ticks on each of 2**40 trips: the product takes more than 64 bits.
    golden = program(
        4,
        [step(2**24, repeat=2.0**40), step(0, access(0, READ, 4))],
        [buffer("w", 4)],
        (Loop(0, 1, 2**40),),
    )
    game = FastGame(golden)
    memory_map = game.map_of(game.wishes(Action.COPY))
    assert memory_map.residencies == (Residency(0, 0, 0, 2, Source.COPIED, 1),)


def test_evictions_that_take_no_time_need_no_idle_time() -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        drawn = drawn_program(40_000 + seed)
        machine = replace(drawn.machine, slow_bytes_per_second=float("inf"))
        game = FastGame(replace(drawn, machine=machine))
        assert_same_game(game, drawn_wishes(game, rng))


def test_an_eviction_waits_for_idle_time_of_later_steps() -> None:
    # Written at 0, leaves, needed at the end: queued at 1, idle 3 + 3 serve its 5 bytes.
    golden = program(
        5, [step(0, access(0, WRITE, 5)), step(3), step(3)], [buffer("out", 5, 0, live_out=True)]
    )
    game = FastGame(golden)
    memory_map = game.map_of(game.wishes(Action.COPY))
    assert memory_map.residencies == (Residency(0, 0, 0, 3, Source.PRODUCED, 0),)
    assert memory_map.evictions == (Eviction(0, 1, 3),)
    assert game.latency_ticks(game.wishes(Action.COPY)) == 6


def test_what_the_end_finds_in_the_queue_is_a_stall() -> None:
    golden = program(5, [step(0, access(0, WRITE, 5)), step(3)], [buffer("out", 5, 0, True)])
    record = FastGame(golden).play(np.array([Action.COPY], dtype=np.int8))
    assert (record.latency_ticks, record.stall_ticks) == (5, 2)


def test_keep_at_loop_entry_pays_one_copy_for_all_trips() -> None:
    # No idle time before the loop: the copy of 4 is a stall, 10 reads of 4 are saved.
    golden = program(
        4, [step(1, access(0, READ, 4), repeat=10.0)], [buffer("w", 4)], (Loop(0, 1, 10),)
    )
    game = FastGame(golden)
    assert [turn.kind for turn in game.turns] == [TurnKind.ENTRY, TurnKind.ACCESS, TurnKind.EXIT]
    record = game.play(game.wishes(Action.KEEP))
    assert record.taken.tolist() == [Action.KEEP, NOT_ASKED, Action.DROP]
    assert (record.latency_ticks, record.stall_ticks) == (14, 4)
    assert game.latency_ticks(game.wishes(Action.DROP)) == 40
    memory_map = game.map_of(game.wishes(Action.KEEP))
    assert memory_map.residencies == (Residency(0, 0, 0, 1, Source.COPIED, 0),)


def test_a_write_spoils_the_eviction_under_way() -> None:
    # Dropped at 0, written again at 1 before its 4 bytes are out: a second eviction follows.
    golden = program(
        4,
        [step(0, access(0, WRITE, 4)), step(2, access(0, UPDATE, 4)), step(8)],
        [buffer("state", 4, 0, live_out=True)],
    )
    game = FastGame(golden)
    wishes = np.array([Action.COPY, Action.DROP], dtype=np.int8)
    memory_map = game.map_of(wishes)
    assert memory_map.evictions == (Eviction(0, 1, 3), Eviction(0, 2, 3))
    assert memory_map.residencies == (Residency(0, 0, 0, 3, Source.PRODUCED, 0),)
    assert game.latency_ticks(wishes) == 10


def test_best_fit_takes_the_smallest_gap() -> None:
    # a, b, c, d side by side; a (3) and c (2) leave: a tensor of 2 goes where c was.
    steps = [
        step(0, *(access(b, WRITE, size) for b, size in enumerate((3, 1, 2, 1)))),
        step(0, access(4, WRITE, 2)),
        step(0, access(1, READ, 1), access(3, READ, 1), access(4, READ, 2)),
    ]
    buffers = [buffer(n, size, 0) for n, size in zip("abcd", (3, 1, 2, 1), strict=True)]
    golden = program(10, steps, [*buffers, buffer("e", 2, 1)])
    game = FastGame(golden)
    drop, copy, keep = Action.DROP, Action.COPY, Action.KEEP
    memory_map = game.map_of(np.array([copy, keep, copy, keep, keep, drop, drop, drop], np.int8))
    offsets = {r.buffer: r.offset_bytes for r in memory_map.residencies}
    assert offsets == {0: 0, 1: 3, 2: 4, 3: 6, 4: 4}


def test_clean_writes_back_early_so_that_a_drop_frees_the_place() -> None:
    # Written at 0, read at 2, needed at the end. Kept clean it is out by 2 and leaves at 3, so the
    # 4 bytes written at 3 find room; kept plainly its eviction begins at 3 and they do not.
    golden = program(
        4,
        [
            step(0, access(0, WRITE, 4)),
            step(4),
            step(0, access(0, READ, 4)),
            step(0, access(1, WRITE, 4)),
            step(8),
        ],
        [buffer("a", 4, 0, live_out=True), buffer("b", 4, 3, live_out=True)],
    )
    game = FastGame(golden, allow_clean=True)
    clean = game.map_of(np.array([CLEAN, Action.DROP, Action.COPY], dtype=np.int8))
    assert clean.evictions == (Eviction(0, 1, 2), Eviction(1, 4, 5))
    assert {(r.buffer, r.start, r.end) for r in clean.residencies} == {(0, 0, 3), (1, 3, 5)}
    assert validate(golden, clean) == ()
    plain = game.map_of(np.array([Action.KEEP, Action.DROP, Action.COPY], dtype=np.int8))
    assert {r.buffer for r in plain.residencies} == {0}
    by_the_rules = FastGame(golden).play(np.array([CLEAN, Action.DROP, Action.COPY], np.int8))
    assert by_the_rules.taken.tolist() == [Action.KEEP, Action.DROP, Action.DROP]


def test_a_read_waits_for_its_copy_only_where_that_is_faster() -> None:
    # A slow read that costs 9 ticks waits for its copy of 4 ticks; one that costs 4 does not.
    for lane_ticks, latency in ((9, 4), (4, 4)):
        slow_read = Access(0, READ, size_bytes=4, bus_ticks=4, lane_ticks=(lane_ticks,))
        golden = program(4, [step(0, slow_read)], [buffer("table", 4)])
        record = FastGame(golden).play(np.array([Action.COPY], dtype=np.int8))
        assert record.latency_ticks == latency
        assert (record.taken[0] == Action.COPY) == (lane_ticks == 9)
        assert record.stall_ticks == (4 if lane_ticks == 9 else 0)


def test_a_copy_is_hidden_as_far_as_idle_time_goes() -> None:
    # Step 0 leaves 3 idle ticks for the 4 of the copy; the slow read would cost 9.
    slow_read = Access(0, READ, size_bytes=4, bus_ticks=4, lane_ticks=(9,))
    golden = program(4, [step(3), step(0, slow_read)], [buffer("table", 4)])
    game, copy_it = FastGame(golden), np.array([Action.COPY], dtype=np.int8)
    record = game.play(copy_it)
    assert (record.latency_ticks, record.stall_ticks) == (4, 1)
    assert game.map_of(copy_it).residencies == (Residency(0, 0, 0, 2, Source.COPIED, 1),)


def test_a_copy_at_loop_entry_is_hidden_as_far_as_idle_time_goes() -> None:
    # Step 0 leaves 3 idle ticks for the 4 of the copy, which 10 slow reads of 4 ticks need.
    golden = program(
        4, [step(3), step(1, access(0, READ, 4), repeat=10.0)], [buffer("w", 4)], (Loop(1, 2, 10),)
    )
    record = FastGame(golden).play(np.full(3, Action.KEEP, dtype=np.int8))
    assert (record.latency_ticks, record.stall_ticks) == (3 + 1 + 10, 1)


def test_what_nothing_was_written_to_is_not_copied() -> None:
    # Ten trips update a buffer that holds nothing before; in the second trip it does.
    slow_update = Access(0, UPDATE, size_bytes=8, bus_ticks=8, lane_ticks=(9,))
    filled = buffer("out", 4, live_out=True)
    golden = program(4, [step(3), step(1, slow_update, repeat=10.0)], [filled], (Loop(1, 2, 10),))
    empty = replace(golden, buffers=(replace(filled, is_undefined=True),))
    around, inside = (Action.KEEP, Action.DROP, Action.DROP), (Action.DROP, Action.COPY)
    for case, wishes, source, stall_ticks in (
        (golden, around, Source.COPIED, (4 - 3) + 4),
        (empty, around, Source.PRODUCED, 4),
        (empty, inside, Source.COPIED, 10 * (4 + 4)),
    ):
        game = FastGame(case)
        actions = game.wishes()
        actions[: len(wishes)] = wishes
        assert game.play(actions).stall_ticks == stall_ticks
        memory_map = game.map_of(actions)
        assert [residency.source for residency in memory_map.residencies] == [source]
        assert validate(case, memory_map) == ()
        assert simulate(case, memory_map).stall_ticks == stall_ticks


def test_a_copy_waits_whole_while_an_eviction_is_under_way() -> None:
    # x is written at 0 and leaves: 2 of its 4 ticks are served in step 1. The copy of the table
    # may not take part of step 1, or earliest deadline first would serve it before x.
    slow_read = Access(1, READ, size_bytes=4, bus_ticks=4, lane_ticks=(9,))
    golden = program(
        8,
        [step(3, access(0, WRITE, 4)), step(2), step(0, slow_read)],
        [buffer("x", 4, 0, live_out=True), buffer("table", 4)],
    )
    game, copy_both = FastGame(golden), np.array([Action.COPY, Action.COPY], dtype=np.int8)
    memory_map = game.map_of(copy_both)
    assert {(r.buffer, r.start, r.ready) for r in memory_map.residencies} == {(0, 0, 0), (1, 2, 2)}
    assert game.latency_ticks(copy_both) == simulate(golden, memory_map).latency_ticks


def test_a_copy_begins_as_soon_as_its_place_is_free() -> None:
    # Steps 1 and 2 leave 6 and 3 idle ticks for the 4 of w's copy, but a is in its place until 2.
    slow_read = Access(1, READ, size_bytes=4, bus_ticks=4, lane_ticks=(9,))
    golden = program(
        4,
        [step(0, access(0, WRITE, 4)), step(6, access(0, READ, 4)), step(3), step(0, slow_read)],
        [buffer("a", 4, 0), buffer("w", 4)],
    )
    game = FastGame(golden)
    wishes = np.array([Action.KEEP, Action.DROP, Action.COPY], dtype=np.int8)
    record = game.play(wishes)
    assert record.taken.tolist() == wishes.tolist()
    assert (record.latency_ticks, record.stall_ticks) == (10, 1)
    copied = Residency(1, 0, 2, 4, Source.COPIED, 3)
    assert copied in game.map_of(wishes).residencies


@pytest.mark.parametrize("dear", [9, 1])
def test_a_write_waits_for_an_eviction_where_that_is_faster(dear: int) -> None:
    # Step 1 serves 3 of the 4 ticks of a's eviction. Waiting for the last makes room for b, whose
    # slow write costs 9 ticks, or 1 only.
    slow_write = Access(1, WRITE, size_bytes=4, bus_ticks=0, lane_ticks=(dear,))
    golden = program(
        4,
        [step(0, access(0, WRITE, 4)), step(3), step(0, slow_write), step(0, access(1, READ, 4))],
        [buffer("a", 4, 0, live_out=True), buffer("b", 4, 2)],
    )
    game = FastGame(golden)
    wishes = np.array([Action.COPY, Action.KEEP, Action.DROP], dtype=np.int8)
    record, memory_map = game.play(wishes), game.map_of(wishes)
    if dear == 1:
        assert record.taken.tolist() == [Action.COPY, Action.DROP, Action.DROP]
        return
    assert record.taken.tolist() == wishes.tolist()
    assert (record.latency_ticks, record.stall_ticks) == (4, 1)
    assert memory_map.evictions == (Eviction(0, 1, 2),)
    assert {(r.buffer, r.start, r.end) for r in memory_map.residencies} == {(0, 0, 2), (1, 2, 4)}


def test_nothing_waits_for_a_buffer_that_the_step_itself_uses() -> None:
    # As above, but the step that writes b reads a, which can only leave after it.
    slow_write = Access(1, WRITE, size_bytes=4, bus_ticks=0, lane_ticks=(9,))
    golden = program(
        4,
        [step(0, access(0, WRITE, 4)), step(3), step(0, access(0, READ, 4), slow_write)],
        [buffer("a", 4, 0, live_out=True), buffer("b", 4, 2, live_out=True)],
    )
    wishes = np.array([Action.COPY, Action.DROP, Action.COPY], dtype=np.int8)
    assert FastGame(golden).play(wishes).taken.tolist() == [Action.COPY, Action.DROP, Action.DROP]


def test_games_with_clean_are_valid_maps_with_the_simulated_latency() -> None:
    for game, _ in games(40_000, 150):
        cleaning = FastGame(game.program, allow_clean=True)
        rng = np.random.default_rng(cleaning.num_turns)
        wishes = rng.choice(4, size=cleaning.num_turns, p=[0.2, 0.2, 0.4, 0.2]).astype(np.int8)
        memory_map = cleaning.map_of(wishes)
        assert validate(game.program, memory_map) == ()
        simulated = simulate(game.program, memory_map).latency_ticks
        assert cleaning.latency_ticks(wishes) == pytest.approx(simulated, rel=1e-12)


def test_a_walk_agrees_with_whole_games() -> None:
    for game, wishes in games(50_000, 40):
        rng = np.random.default_rng(3)
        walk = GameWalk(game, wishes)
        for _ in range(4):
            turns = rng.integers(-1, game.num_turns, (8, 3))
            actions = rng.integers(0, 3, (8, 3)).astype(np.int8)
            hints = rng.integers(-1, 12, (8, 3))
            walk.propose(turns, actions, rng.exponential(50.0, 8), hints=hints)
            assert game.latency_ticks(walk.wishes) == pytest.approx(walk.latency_ticks, rel=1e-12)
            assert (game.play(walk.wishes).taken == walk.taken).all()
        game.hints[:] = walk.best_hints
        best = game.latency_ticks(walk.best_wishes)
        assert best == pytest.approx(walk.best_latency_ticks, rel=1e-12)
        game.hints[:] = -1


def test_where_each_turn_left_its_buffer_is_of_this_game_alone() -> None:
    program = program_of(
        {"a": 2, "b": 4},
        [(9, "wb wa"), (9, "rb"), (9, "ra"), (9, "ra")],
        loops=[Loop(start_step=2, end_step=3, trip_count=3)],
    )
    game = FastGame(program)
    kinds = [(turn.kind, "ab"[turn.buffer]) for turn in game.turns]
    access, entry, leave = TurnKind.ACCESS, TurnKind.ENTRY, TurnKind.EXIT
    assert kinds[:3] == [(access, "b"), (access, "a"), (access, "b")]
    assert kinds[3:] == [(entry, "a"), (access, "a"), (leave, "a"), (access, "a")]
    game.play(game.wishes(Action.KEEP))
    assert game.placed.tolist() == [0, 4, 0, 4, 4, 4, 4]
    fetched = game.wishes()
    fetched[3] = Action.KEEP
    game.play(fetched)
    assert game.placed.tolist() == [-1, -1, -1, 0, 0, -1, -1]
    game.play(game.wishes())
    assert game.placed.tolist() == [-1] * 7


def test_a_game_costs_in_proportion_to_its_turns() -> None:
    rates = []
    for accesses in (400, 3200):
        game = FastGame(random_program(1, family="training", num_accesses=accesses))
        table = np.full((game.num_turns, 3), 1 / 3)
        game.sample(table, 5, np.random.default_rng(0))
        started = time.process_time()
        game.sample(table, 100, np.random.default_rng(0))
        rates.append((time.process_time() - started) / game.num_turns)
    assert rates[1] < 2.5 * rates[0]
