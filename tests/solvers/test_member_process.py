"""Members in processes of their own: neither side waits for the other, however long the maps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from malloc_game.generator import random_program
from malloc_game.memory_map import MemoryMap, Residency, Source
from solvers.member_process import Noticeboard, start_member
from solvers.solver import Progress, Solution, SolveRequest, Status
from tests.malloc_game.small import program_of

PROGRAM = program_of({"a": 4}, [(1, "wa"), (1, "ra")])


def long_map(length: int) -> MemoryMap:
    """About 60 bytes a residency in a message: a thousand are more than a pipe holds."""
    return MemoryMap(
        tuple(Residency(i, 4096 * i, i, i + 1, Source.PRODUCED, i) for i in range(length))
    )


def answer(memory_map: MemoryMap) -> Solution:
    return Solution(memory_map, 0.0, None, Status.FEASIBLE, "member", 0.0)


@dataclass(frozen=True)
class Chatty:
    """Reports long maps, then leaves a file behind, then answers."""

    done: Path
    name: str = "chatty"

    def solve(self, request: SolveRequest) -> Solution:
        for _ in range(20):
            request.report(Progress(0.0, self.name, 0.0, memory_map=long_map(3_000)))
        self.done.touch()
        return answer(MemoryMap())


@dataclass(frozen=True)
class Listening:
    """Answers with the posted map once it is as long as it waits for."""

    length: int
    name: str = "listening"

    def solve(self, request: SolveRequest) -> Solution:
        assert request.best_known is not None
        while True:
            known = request.best_known()
            if known is not None and len(known.residencies) == self.length:
                return answer(known)
            time.sleep(0.01)


@pytest.fixture
def board() -> Iterator[Noticeboard]:
    board = Noticeboard()
    yield board
    board.close()
    assert not board.path.parent.exists()


def test_a_member_goes_on_while_nobody_listens(board: Noticeboard, tmp_path: Path) -> None:
    done = tmp_path / "done"
    process, inbox = start_member(Chatty(done), SolveRequest(PROGRAM), board)
    patience = time.monotonic() + 60.0
    while not done.exists():
        assert process.is_alive()
        assert time.monotonic() < patience, "the member waits for a listener"
        time.sleep(0.05)
    messages = [inbox.recv() for _ in range(21)]
    assert all(message.memory_map == long_map(3_000) for message in messages[:-1])
    assert messages[-1] == answer(MemoryMap())
    process.join(timeout=30.0)
    assert process.exitcode == 0


def test_posting_never_waits_and_the_last_map_is_seen(board: Noticeboard) -> None:
    process, inbox = start_member(Listening(5_000), SolveRequest(PROGRAM), board)
    for length in range(4_950, 5_001):
        board.post(long_map(length))
    assert inbox.poll(60.0)
    assert inbox.recv() == answer(long_map(5_000))
    process.join(timeout=30.0)


def test_a_member_ends_when_nobody_will_ever_listen(board: Noticeboard, tmp_path: Path) -> None:
    process, inbox = start_member(Chatty(tmp_path / "done"), SolveRequest(PROGRAM), board)
    inbox.close()
    process.join(timeout=60.0)
    assert process.exitcode == 1


def test_the_limit_counts_from_the_start_of_the_process() -> None:
    """So a member has given its answer when its time is up, whatever it took to start."""
    limit = 5.0
    with_board = Noticeboard()
    program = random_program(1, num_accesses=60)
    process, inbox = start_member(
        "large-neighbourhood", SolveRequest(program, time_limit_seconds=limit), with_board
    )
    while not isinstance(message := inbox.recv(), Solution):
        assert isinstance(message, Progress)
    process.join()
    with_board.close()
    assert message.wall_seconds < limit - 0.02  # no process starts in less
