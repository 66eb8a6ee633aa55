"""The default solver: several solvers beside each other, sharing incumbents and one bound.

Greedy runs first, in this process, so that there is always an answer. Then a schedule of
members runs in child processes, as many at a time as there are workers, while this process works
out the certified bound; what they find is validated and timed here, by code that did not make
it, before it becomes the incumbent and is handed to the others; bounds are believed of our own
solvers only. A member that fails is noted and the portfolio goes on. The answer is never worse
than greedy, than any map handed in, or than any member's.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap
from malloc_game.validate import validate
from solvers.evaluate import simulated_latency
from solvers.greedy import GreedySolver
from solvers.member_process import Noticeboard, guarded, start_member
from solvers.solver import (
    Deadline,
    Progress,
    Solution,
    Solver,
    SolveRequest,
    Status,
    exceeds,
    solver_named,
    status_of,
)

_BOUND_SHARE = 0.25
"""Part of the time limit that the certified bound may take."""

_CHILDREN_FROM_SECONDS = 3.0
"""With less time than this, starting processes is not worth it."""

_SHARING_FROM_SECONDS = 20.0
"""With less time than this a member keeps its worker to the end: starting another costs more."""

_RESERVE_SECONDS = 0.15
"""Kept back from the time limit for collecting the answer."""

_LAST_WORDS_SECONDS = 0.1
"""Of these, how long members that end with the run are listened to."""

_GRACE_SECONDS = 0.3
"""How long a member may take to end by itself once its time is up."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the schedule.

    Attributes:
      solver: a registered name, or a solver handed in from outside.
      share: of the time that is left when it starts; 1 is all of it. With little time left
        every member gets all of it.
      seed: added to the request's seed.
      share_alone: in place of `share` where there is one worker.
    """

    solver: str | Solver
    share: float = 1.0
    seed: int = 0
    share_alone: float | None = None

    @property
    def name(self) -> str:
        """For messages and for the solution's `solver`."""
        return self.solver if isinstance(self.solver, str) else self.solver.name


DEFAULT_SCHEDULE = (
    Member("milp"),
    Member("xla-msa", share=0.25),
    Member("large-neighbourhood", share=0.4),
    Member("local-search", share=0.5),
    Member("large-neighbourhood", seed=1),
    Member("cross-entropy", share=0.5),
    Member("local-search", seed=1, share=0.5),
    Member("large-neighbourhood", seed=2),
    Member("cross-entropy", seed=2),
)
"""Members in the order in which workers take them up; it is gone through again while time lasts."""

_EXTRA_SHARE = 0.4
"""Of the time, for a solver from outside if there is one worker: the others would never begin
else (nor do they where members keep their worker to the end)."""

_MAX_ROUNDS = 20

_SEEDS_A_ROUND = 1_000
"""Apart from those of the round before, so that no member is another one again."""


class PortfolioSolver:
    """Runs a schedule of solvers; see the module's docstring.

    Args:
      schedule: members in order; by default all classical solvers.
      extra: solvers handed in from outside (a trained agent), taken up first.
    """

    name = "portfolio"

    def __init__(
        self,
        schedule: Sequence[Member] = DEFAULT_SCHEDULE,
        extra: Sequence[Solver] = (),
    ) -> None:
        members = (Member(solver, share_alone=_EXTRA_SHARE) for solver in extra)
        self.schedule = (*members, *schedule)

    def solve(self, request: SolveRequest) -> Solution:
        """The best map any member found, with the best certified bound."""
        run = _PortfolioRun(replace(request, max_games=None), self.schedule)
        try:
            run.begin()
            if run.deadline.remaining_seconds >= _CHILDREN_FROM_SECONDS:
                run.start_members()
                run.find_bound()
                run.loop()
            else:
                run.find_bound()
                run.finish_here()
        finally:
            run.stop_all()
        return run.solution()


@dataclass
class _Incumbent:
    """The best map so far and who found it."""

    memory_map: MemoryMap
    ticks: float
    who: str


@dataclass(eq=False)
class _Running:
    """A member at work, in a child process or in a thread."""

    member: Member
    deadline: Deadline
    inbox: Connection | None = None
    process: Any = None
    thread: threading.Thread | None = None
    events: queue.Queue[object] = field(default_factory=queue.Queue)


class _PortfolioRun:
    """One call of `PortfolioSolver.solve`."""

    def __init__(self, request: SolveRequest, schedule: Sequence[Member]) -> None:
        self.request = request
        self.program: Program = request.program
        self.deadline = Deadline.after(max(request.time_limit_seconds - _RESERVE_SECONDS, 0.0))
        self.best = _Incumbent(MemoryMap(), self.program.all_slow_ticks, "all-slow")
        self.bound: float | None = None
        self.notes: list[str] = []
        self.games = 0
        self.running: list[_Running] = []
        self.failed: set[str] = set()
        self.useless: set[str] = set()
        self.pending = [
            replace(member, seed=member.seed + _SEEDS_A_ROUND * number)
            for number in range(_MAX_ROUNDS)
            for member in schedule
        ]
        self.board = Noticeboard()

    def begin(self) -> None:
        """The maps handed in, and greedy."""
        for memory_map in self.request.initial_maps:
            self._offer(memory_map, "given")
        started = Deadline.after(self.deadline.remaining_seconds)
        limited = replace(
            self.request,
            time_limit_seconds=started.limit_seconds,
            initial_maps=(),
            on_progress=None,
            best_known=None,
        )
        solution = GreedySolver().solve(limited)
        self.games += solution.games_played
        self._offer(solution.memory_map, solution.solver)

    def find_bound(self) -> None:
        """The certified bound, in this process."""
        from solvers.bounds import bound_program

        limit = self.deadline.remaining_seconds * _BOUND_SHARE
        bound = bound_program(
            self.program, limit, on_bound=self._take_bound, target_ticks=self._target_ticks
        )
        self._take_bound(bound.ticks)

    def _target_ticks(self) -> float:
        """Where a better bound has no use any more; also hears what members have found."""
        self._listen(0.0)
        return self.best.ticks / (1 + self.request.gap)

    def finish_here(self) -> None:
        """Large neighbourhood search in this process for what little time there is."""
        if self._proven() or self.deadline.expired:
            return
        request = replace(
            self.request,
            time_limit_seconds=self.deadline.remaining_seconds,
            initial_maps=(self.best.memory_map,),
            on_progress=None,
        )
        solution = solver_named("large-neighbourhood").solve(request)
        self.games += solution.games_played
        self._offer(solution.memory_map, solution.solver)

    def loop(self) -> None:
        """Starts members and listens to them until time is up or the optimum is proven."""
        while not self.deadline.expired and not self._proven():
            self.start_members()
            if not self.running:
                return
            self._listen(min(self.deadline.remaining_seconds, 0.2))
            self._stop_overdue()
        if not self._proven():
            self._hear_last_words()

    def _hear_last_words(self) -> None:
        """Members whose time is up with ours say what they did: their games and notes."""
        patience = Deadline.after(_LAST_WORDS_SECONDS)
        while self.running and not patience.expired:
            self._listen(patience.remaining_seconds)

    def stop_all(self) -> None:
        """Ends whatever still runs; what it sent is kept."""
        for running in list(self.running):
            self._drain(running)
            self._stop(running)
        self.board.close()

    def solution(self) -> Solution:
        """The incumbent, timed with the requested copy order."""
        return Solution(
            memory_map=self.best.memory_map,
            latency_ticks=self.best.ticks,
            lower_bound_ticks=self.bound,
            status=status_of(self.best.ticks, self.bound, self.request.gap),
            solver=f"portfolio/{self.best.who}",
            wall_seconds=self.deadline.elapsed_seconds,
            games_played=self.games,
            notes=tuple(self.notes),
        )

    def _proven(self) -> bool:
        return status_of(self.best.ticks, self.bound, self.request.gap) is Status.OPTIMAL

    # -- members ------------------------------------------------------------------------------

    def start_members(self) -> None:
        """Starts members while there are idle workers."""
        while self.pending and len(self.running) < self.request.workers:
            member = self.pending.pop(0)
            busy = any(other.member.name == member.name for other in self.running)
            if member.name in self.failed or member.name in self.useless:
                continue
            if busy and member.name in ("milp", "xla-msa"):
                continue
            self._start(member)

    def _start(self, member: Member) -> None:
        left = self.deadline.remaining_seconds
        share = member.share
        if self.request.workers == 1 and member.share_alone is not None:
            share = member.share_alone
        seconds = max(left * share if left >= _SHARING_FROM_SECONDS else left, 0.05)
        request = replace(
            self.request,
            time_limit_seconds=seconds,
            seed=self.request.seed + member.seed,
            workers=1,
            initial_maps=(self.best.memory_map,),
            on_progress=None,
            best_known=None,
        )
        running = _Running(member, Deadline.after(seconds + _GRACE_SECONDS))
        if isinstance(member.solver, str) or _can_be_sent(member.solver):
            try:
                running.process, running.inbox = start_member(member.solver, request, self.board)
            except OSError as error:
                self._fail(running, f"its process could not be started: {error}")
                return
        else:
            self._start_thread(running, member.solver, request)
        self.running.append(running)

    def _start_thread(self, running: _Running, solver: Solver, request: SolveRequest) -> None:
        """A solver that cannot be sent to another process (a jax agent) runs in this one."""
        connected = replace(
            request,
            on_progress=running.events.put,
            best_known=lambda: self.best.memory_map,
        )

        def work() -> None:
            running.events.put(guarded(lambda: solver.solve(connected)))

        running.thread = threading.Thread(target=work, daemon=True)
        running.thread.start()

    def _listen(self, seconds: float) -> None:
        inboxes = [running.inbox for running in self.running if running.inbox is not None]
        if inboxes:
            wait(inboxes, timeout=max(seconds, 0.0))
        elif seconds > 0:
            time.sleep(min(seconds, 0.02))
        for running in list(self.running):
            self._drain(running)

    def _drain(self, running: _Running) -> None:
        """Takes in what has arrived from a member: its bounds, its latest map, its end."""
        maps: list[MemoryMap] = []
        ended: object | None = None
        try:
            while ended is None and (message := self._next_message(running)) is not None:
                if isinstance(message, Progress):
                    self._believe_bound(message.bound_ticks, running.member)
                    if message.memory_map is not None:
                        maps.append(message.memory_map)
                else:
                    ended = message
        except (EOFError, OSError):
            ended = "its process ended without an answer"
        if isinstance(ended, Solution):
            maps.append(ended.memory_map)
        self._offer_latest(maps, running.member.name)
        if ended is not None and running in self.running:
            self._end(running, ended)

    def _offer_latest(self, maps: Sequence[MemoryMap], who: str) -> None:
        """Members only report improvements, so older maps matter only if the latest is invalid.

        To check every one of a large program takes longer than the member took to find them.
        """
        for memory_map in reversed(maps):
            if self._offer(memory_map, who):
                return

    def _next_message(self, running: _Running) -> object | None:
        if running.inbox is None:
            with contextlib.suppress(queue.Empty):
                return running.events.get_nowait()
            return None
        return running.inbox.recv() if running.inbox.poll() else None

    def _end(self, running: _Running, ended: object) -> None:
        """A member's last message: its solution, or what went wrong."""
        if not isinstance(ended, Solution):
            self._fail(running, str(ended))
            return
        self.games += ended.games_played
        self.notes.extend(f"{ended.solver}: {note}" for note in ended.notes)
        self._believe_bound(ended.lower_bound_ticks, running.member)
        if running.member.name == "xla-msa":
            self.useless.add(running.member.name)  # the same answer every time
        self._stop(running)

    def _offer(self, memory_map: MemoryMap, who: str) -> bool:
        """Makes a map the incumbent if it is valid and faster; whether it is valid."""
        ticks = self._checked_latency(memory_map, who)
        if ticks is not None and ticks < self.best.ticks:
            self.best = _Incumbent(memory_map, ticks, who)
            try:
                self.board.post(memory_map)
            except OSError as error:  # members go on with what they have
                self.notes.append(f"the best map could not be shown to members: {error}")
            self._report()
        return ticks is not None

    def _checked_latency(self, memory_map: MemoryMap, who: str) -> float | None:
        """Simulated ticks, None if the map is not valid."""
        if memory_map == self.best.memory_map:
            return self.best.ticks
        broken = validate(self.program, memory_map)
        if broken:
            self.notes.append(f"{who}: an invalid map was refused: {broken[0]}")
            return None
        return simulated_latency(self.program, memory_map, self.request.copy_order)

    def _believe_bound(self, ticks: float | None, member: Member) -> None:
        """Takes a member's bound, unless nobody vouches for it."""
        if ticks is None or not isinstance(member.solver, str):
            return
        self._take_bound(ticks, member.name)

    def _take_bound(self, ticks: float, who: str = PortfolioSolver.name) -> None:
        if exceeds(ticks, self.best.ticks):
            note = f"{who}: a bound above a valid map's latency was refused"
            self.notes += [] if note in self.notes else [note]
            return
        if self.bound is None or ticks > self.bound:
            self.bound = ticks
            self._report()

    def _report(self) -> None:
        self.request.report(
            Progress(
                seconds=self.deadline.elapsed_seconds,
                who=f"portfolio/{self.best.who}",
                incumbent_ticks=self.best.ticks,
                bound_ticks=self.bound,
                memory_map=self.best.memory_map,
            )
        )

    def _fail(self, running: _Running, why: str) -> None:
        self.failed.add(running.member.name)
        self.notes.append(f"{running.member.name} failed: {why}")
        self._stop(running)

    def _stop_overdue(self) -> None:
        for running in list(self.running):
            if running.deadline.expired:
                self._drain(running)
                self._stop(running)

    def _stop(self, running: _Running) -> None:
        if running in self.running:
            self.running.remove(running)
        if running.process is not None:
            running.process.terminate()
            running.process.join(timeout=_GRACE_SECONDS)
            if running.process.is_alive():
                running.process.kill()
                running.process.join()
        if running.inbox is not None:
            running.inbox.close()
        if running.thread is not None:
            running.thread.join(timeout=_GRACE_SECONDS)
            if running.thread.is_alive():
                self.notes.append(f"{running.member.name} goes on: a thread cannot be ended")


def _can_be_sent(solver: Solver) -> bool:
    try:
        pickle.dumps(solver)
    except Exception:  # whatever pickling raises, the answer is no
        return False
    return True
