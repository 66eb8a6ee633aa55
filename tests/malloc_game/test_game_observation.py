"""What observations say, against the slow witness at the same decision."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hlo_graphs.program import Loop
from malloc_game.env import MallocGame
from malloc_game.observation import ADDRESS_BINS, TIME_EDGES, NowFeature, Observation
from malloc_game.turn_features import (
    TurnFeature,
    copy_scale_ticks,
    idle_curve,
    log_count,
    log_share,
    squash,
    turn_features,
)
from malloc_game.turn_table import turn_table
from tests.malloc_game.game_batches import SMALL
from tests.malloc_game.reference_game import (
    Arrival,
    ReferenceGame,
    TurnKind,
    is_produced,
    with_rare_cases,
)
from tests.malloc_game.small import program_of
from tests.strategies import small_program


def compare_all_decisions(seed: int) -> None:
    """Plays both games side by side and compares at every decision."""
    program = with_rare_cases(small_program(seed, max_accesses=24), seed)
    game, witness = MallocGame(program, bucket=SMALL), ReferenceGame(program)
    state, time_step = game.reset()
    rng = np.random.default_rng(seed)
    while witness.turn is not None:
        check(witness, time_step.observation)
        legal = np.flatnonzero(witness.legal())
        action = int(rng.choice(legal, p=(legal + 1) / (legal + 1).sum()))
        witness.play(action)
        state, time_step = game.step(state, action)


def check(witness: ReferenceGame, observation: Observation) -> None:
    turn = witness.turn
    assert turn is not None
    program, buffer = witness.program, witness.program.buffers[turn.buffer]
    past = np.array(TIME_EDGES) <= 0
    times = turn.position + np.array(TIME_EDGES)
    assert np.array_equal(np.asarray(observation.memory)[past], taken(witness, times[past]))
    later = np.asarray(observation.memory)[~past]
    assert np.all(np.diff(later, axis=0) <= 0), "what is kept now can only end"
    copy_ticks = program.copy_ticks(buffer.size_bytes)
    left = [
        sum(s.ticks for s in witness.frames[-1].supplies if s.position >= time)
        for time in times[times < turn.position]
    ]
    wanted = [squash(ticks, copy_ticks) for ticks in left]
    assert np.asarray(observation.idle)[: len(left)] == pytest.approx(wanted, abs=1e-6)
    now = np.asarray(observation.now)
    queue = sum(pending.remaining_ticks for pending in witness.queue)
    assert now[NowFeature.RESIDENT] == (turn.buffer in witness.at)
    assert now[NowFeature.STALE] == (turn.buffer in witness.stale)
    assert now[NowFeature.LEAVING] == (turn.buffer in witness.leaving)
    assert now[NowFeature.QUEUE_TO_COPY] == pytest.approx(squash(queue, copy_ticks), abs=1e-6)
    idle = sum(s.ticks for s in witness.frames[-1].supplies)
    assert now[NowFeature.IDLE_TO_COPY] == pytest.approx(squash(idle, copy_ticks), abs=1e-6)
    assert np.array_equal(np.asarray(observation.action_mask), witness.legal())
    assert now[NowFeature.HIDDEN] == pytest.approx(hidden_share(witness), abs=1e-6)
    assert now[NowFeature.STALL_TO_SAVING] == pytest.approx(stall_to_saving(witness), abs=1e-6)
    static = np.asarray(observation.turn)
    assert static[TurnFeature.SIZE_SHARE] == pytest.approx(
        buffer.size_bytes / program.capacity_bytes
    )
    assert np.array_equal(np.asarray(observation.window)[0, : len(static)], static)


def hidden_share(witness: ReferenceGame) -> float:
    """Of the copy that bringing the buffer at hand takes."""
    turn = witness.turn
    assert turn is not None
    arrival = arrival_of(witness)
    if arrival is None or is_produced(witness.program, turn):
        return 0
    return arrival.hidden_ticks / (arrival.hidden_ticks + arrival.stall_ticks)


def stall_to_saving(witness: ReferenceGame) -> float:
    """What bringing the buffer at hand makes the program wait for: what its access saves."""
    turn, arrival = witness.turn, arrival_of(witness)
    assert turn is not None
    if arrival is None:
        return 0
    evictions = sum(pending.remaining_ticks for pending in witness.queue[: arrival.evictions])
    saving = witness._saving(turn) if turn.kind is TurnKind.ACCESS else 0
    return squash(arrival.stall_ticks + evictions, saving)


def arrival_of(witness: ReferenceGame) -> Arrival | None:
    """How the buffer at hand would be copied or produced; None if that is no choice."""
    turn = witness.turn
    assert turn is not None
    if turn.kind is TurnKind.CARRIED or turn.buffer in witness.at or not any(witness.legal()[1:]):
        return None
    return witness._arrival(turn)


def taken(witness: ReferenceGame, times: NDArray[np.int64]) -> NDArray[np.float32]:
    alignment = witness.program.machine.alignment_bytes
    units = witness.program.capacity_bytes // alignment
    image = np.zeros((len(times), ADDRESS_BINS), dtype=np.float32)
    for column in range(ADDRESS_BINS):
        address = units * (2 * column + 1) // (2 * ADDRESS_BINS) * alignment
        for place in witness.places:
            if place.offset <= address < place.offset + place.size:
                image[:, column] += [place.end is None or place.end > time for time in times]
    image[times < 0] = 1  # no prefetch reaches back before the program
    return np.minimum(image, 1)


@pytest.mark.parametrize("seed", range(12))
def test_observations_say_what_the_witness_knows(seed: int) -> None:
    compare_all_decisions(seed)


def test_features_by_eye() -> None:
    program = program_of({"p": 4, "x": 2}, [(10, "rp wx"), (10, "rx"), (0, "rp")], capacity=8)
    game = MallocGame(program, bucket=SMALL)
    first = game.table.items[:, 0].tolist().index(1)
    features = np.asarray(game.arrays.features)[first]
    assert features[TurnFeature.IS_ACCESS] == 1
    assert features[TurnFeature.READS] == 1
    assert features[TurnFeature.WRITES] == 0
    assert features[TurnFeature.SIZE_SHARE] == 0.5
    assert features[TurnFeature.COPY_TO_STEP] == pytest.approx(4 / 14)
    assert features[TurnFeature.HAS_NEXT] == 1
    assert features[TurnFeature.STEPS_TO_NEXT] == pytest.approx(log_count(2, most=2**16))
    assert features[TurnFeature.TIME_TO_NEXT] == pytest.approx(20 / 24)
    assert features[TurnFeature.SAVING_OF_STEP] == 0, "compute hides the slow access"
    assert features[TurnFeature.PARAMETER] == 1
    assert idle_curve(program).tolist() == pytest.approx([0, 4 / 8, 12 / 8, 12 / 8])
    assert copy_scale_ticks(program) == 8


def test_scales() -> None:
    assert squash(0, 0) == 0
    assert squash(3, 3) == 0.5
    assert log_share(1, digits=6) == 1
    assert log_share(1e-3, digits=6) == pytest.approx(0.5)
    assert log_share(1e-9, digits=6) == 0
    assert log_count(0, most=8) == 0
    assert log_count(8, most=8) == 1
    assert log_count(1e9, most=8) == 1


def test_depth_stays_within_one_however_deep() -> None:
    loops = [Loop(0, 1, 2, parent=depth - 1 if depth else None) for depth in range(10)]
    program = program_of({"a": 4}, [(1, "ra")], loops=loops)
    features = turn_features(turn_table(program))
    assert features[:, TurnFeature.DEPTH].max() == 1.0
    assert features.max() <= 1.0
