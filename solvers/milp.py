"""COSMA-style integer programming on a `Program`: residency by branch and bound, then addresses.

The order of the steps is fixed and the goal is latency. The relaxation of `solvers.relaxation`
with whole items (kept or not, fast or not, carried or not) is solved by HiGHS; addresses come
afterwards, by packing the chosen residencies largest first into the plan, whatever failed to fit
going first in the next attempt; what is left is repaired and improved by large neighbourhood
search. Small programs are solved exactly instead (`solvers.exact`). Source: COSMA (Li, Gupta,
Malik, arXiv 2311.18246); docs/solvers.md, "milp", says what is done otherwise.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from hlo_graphs.program import Program
from solvers.bounds import Bound, bound_program
from solvers.children import end_with_parent, start_child
from solvers.greedy import construct
from solvers.large_neighbourhood import (
    NeighbourhoodSearch,
    NeighbourhoodSettings,
    guide_by,
    lanes_within_buffer,
)
from solvers.plan import Plan
from solvers.relaxation import IntegerSolution, Relaxation
from solvers.solver import Deadline, Progress, Solution, SolveRequest
from solvers.timeline import Lane, begins_with_write

NAME = "milp"

_LEAST_INTEGER_SECONDS = 1.0
"""With less time left no process for the integer program is started: that takes as long."""

_LONGEST_POLL_SECONDS = 1e6
"""More than the system counts to is an error."""


@dataclass(frozen=True, slots=True)
class MilpSettings:
    """Shares of the time limit.

    Attributes:
      bound_share: for the certified bound, whose columns the integer program takes over.
      integer_share: of what is left then, for branch and bound; the rest is for addresses.
      relative_gap: at which branch and bound stops.
      packing_attempts: orders tried when addresses are assigned.
      own_share: of the rounds that go on from there, after which they go on from the initial maps,
        or greedy's, should these still be faster.
      exact_accesses: programs with at most so many accesses are tried exactly first.
      exact_share: of the time that is left then.
    """

    bound_share: float = 0.25
    integer_share: float = 0.35
    relative_gap: float = 1e-3
    packing_attempts: int = 12
    own_share: float = 0.7
    exact_accesses: int = 40
    exact_share: float = 0.6


class MilpSolver:
    """Integer program for residency, then addresses, then repair."""

    name = NAME

    def __init__(self, settings: MilpSettings | None = None) -> None:
        self.settings = settings or MilpSettings()

    def solve(self, request: SolveRequest) -> Solution:
        """The fastest map found within the time limit, with the certified bound."""
        deadline = Deadline.after(request.time_limit_seconds)
        request = replace(request, max_games=None)
        search = NeighbourhoodSearch(request, NeighbourhoodSettings(), NAME)
        for memory_map in request.initial_maps:
            search.incumbent.offer(memory_map)
        settings = self.settings
        seconds = deadline.remaining_seconds * settings.bound_share
        bound = bound_program(request.program, seconds, branching=False)
        request.report(Progress(deadline.elapsed_seconds, NAME, bound_ticks=bound.ticks))
        search.bound_ticks = bound.ticks
        notes: list[str] = []
        if search.is_proven():
            return search.incumbent.solution(search.rounds, bound.ticks)
        if not search.lanes:  # nothing may be resident, but copies may be replaced
            search.seed()
            return search.incumbent.solution(search.rounds, bound.ticks)
        if self._solve_small(request, search, deadline, notes):
            return search.incumbent.solution(search.rounds, bound.ticks, tuple(notes))
        found = None
        if deadline.remaining_seconds >= _LEAST_INTEGER_SECONDS:
            limit = deadline.remaining_seconds * settings.integer_share
            relative_gap = max(settings.relative_gap, request.gap)
            found = integer_solution(request.program, bound, limit, relative_gap, deadline)
        if found is None:
            notes.append("branch and bound found nothing in time")
            search.seed()
        else:
            notes.append(
                f"integer program without addresses: {found.value_ticks:.6g} ticks, "
                f"its own bound {found.bound_ticks:.6g} (not certified)"
            )
            search.guide = guide_by(found, search.lanes)
            until = Deadline.after(deadline.remaining_seconds * 0.3)
            for plan in assign_addresses(search.new_plan, found, settings.packing_attempts, until):
                search.offer(plan)
            search.run(settings.own_share)
            search.seed_known()
        search.run()
        return search.incumbent.solution(search.rounds, bound.ticks, tuple(notes))

    def _solve_small(
        self,
        request: SolveRequest,
        search: NeighbourhoodSearch,
        deadline: Deadline,
        notes: list[str],
    ) -> bool:
        """Exactly, if the program is small enough; True if nothing is left to do."""
        program = request.program
        accesses = program.num_accesses
        if accesses > self.settings.exact_accesses:
            return False
        from solvers.exact import solve_exactly

        limit = deadline.remaining_seconds * self.settings.exact_share
        found = solve_exactly(program, limit, seed=request.seed, workers=request.workers)
        if found is None:
            return False
        search.incumbent.offer(found.memory_map)
        proven = found.proven and request.copy_order == "deadline"
        if proven:
            notes.append(
                "CP-SAT: no map without slices, holes, replaced copies and copies of what "
                "nothing reads is faster"
            )
        beyond = any(step.async_copy for step in program.instructions) or any(
            search.sliced.is_sliced(lane.buffer) for lane in search.lanes
        )
        return proven and not beyond


def integer_solution(
    program: Program,
    bound: Bound,
    time_limit_seconds: float,
    relative_gap: float,
    deadline: Deadline | None = None,
) -> IntegerSolution | None:
    """The integer program's solution; in a child process unless this is one already.

    HiGHS neither reacts to Ctrl-C nor keeps to its limit to the second: the process is given a
    little longer, though not beyond the deadline.
    """
    if multiprocessing.current_process().daemon:
        return _integer_solution(program, bound, time_limit_seconds, relative_gap)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, program, bound, time_limit_seconds, relative_gap)
    child = start_child(_send_integer_solution, arguments)
    sender.close()
    try:
        patience = time_limit_seconds + 1.5
        if deadline is not None:
            patience = min(patience, deadline.remaining_seconds)
        if receiver.poll(min(patience, _LONGEST_POLL_SECONDS)):
            found: IntegerSolution | None = receiver.recv()
            return found
    except EOFError:
        return None
    finally:
        child.kill()  # It has nothing to put in order.
        child.join()
        receiver.close()
    return None


def _send_integer_solution(
    sender: Connection, program: Program, bound: Bound, seconds: float, gap: float
) -> None:
    end_with_parent()
    sender.send(_integer_solution(program, bound, seconds, gap))


def _integer_solution(
    program: Program, bound: Bound, time_limit_seconds: float, relative_gap: float
) -> IntegerSolution | None:
    deadline = Deadline.after(time_limit_seconds)
    relaxation = Relaxation(program)
    relaxation.add_services(bound.leaves[0].prices)
    relaxation.solve_refined(deadline)
    return relaxation.solve_integer(deadline.remaining_seconds, relative_gap)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run of items that the integer program has resident."""

    lane: int
    first: int
    last: int
    area: int


def wanted_runs(program: Program, lanes: Sequence[Lane], found: IntegerSolution) -> list[Wanted]:
    """Runs of fast items that are kept from one to the next, largest area first.

    What an item writes without reading it first is kept from nowhere: a run begins there. What
    lives and dies within a trip of a loop is wanted in the loop, for as long as it lives.
    """
    within = lanes_within_buffer(lanes)
    inside = {lane.parent: index for index, lane in enumerate(lanes) if lane.parent is not None}
    runs: list[tuple[int, int, int]] = []
    for index, lane in enumerate(lanes):
        carried = lane.buffer in found.carried and lane.loop is None
        first: int | None = None
        for position in range(len(lane.items)):
            key = (lane.buffer, within[index], position)
            fast = found.fast.get(key, 0.0) > 0.5
            kept = found.kept.get(key, 0.0) > 0.5 and not begins_with_write(lane.items[position])
            if first is not None and not (fast and kept):
                if first > 0 or not carried:  # else it is there from the start
                    runs.extend(_narrowed(lanes, inside, index, first, position - 1))
                first = None
            if fast and first is None:
                first = position
        if first is not None and (first > 0 or not carried):
            runs.extend(_narrowed(lanes, inside, index, first, len(lane.items) - 1))
    wanted = [_wanted(program, lanes, *run) for run in runs]
    return sorted(wanted, key=lambda run: (-run.area, run.lane, run.first))


def _narrowed(
    lanes: Sequence[Lane], inside: Mapping[tuple[int, int], int], index: int, first: int, last: int
) -> Iterator[tuple[int, int, int]]:
    """The run (lane, first, last), or those in the loop that it is around if they suffice."""
    inner = inside.get((index, first)) if first == last else None
    if (
        inner is None
        or lanes[inner].needed_after[-1]
        or not begins_with_write(lanes[inner].items[0])
    ):
        yield index, first, last
        return
    items = lanes[inner].items
    starts = [position for position, item in enumerate(items) if begins_with_write(item)]
    for start, following in itertools.pairwise([*starts, len(items)]):
        yield from _narrowed(lanes, inside, inner, start, following - 1)


def _last_carried_use(lanes: Sequence[Lane], found: IntegerSolution, buffer: int) -> int:
    """Index of the last use of a carried parameter before the solution lets go of it."""
    items = next(lane.items for lane in lanes if lane.buffer == buffer and lane.loop is None)
    last = 0
    while last + 1 < len(items) and found.kept.get((buffer, 0, last + 1), 0.0) > 0.5:
        last += 1
    return sum(len(item.uses) for item in items[: last + 1]) - 1


def _wanted(program: Program, lanes: Sequence[Lane], index: int, first: int, last: int) -> Wanted:
    lane = lanes[index]
    steps = lane.items[last].end_step - lane.items[first].start_step
    return Wanted(index, first, last, steps * program.buffers[lane.buffer].size_bytes)


def assign_addresses(
    new_plan: Callable[[bool], Plan], found: IntegerSolution, attempts: int, deadline: Deadline
) -> list[Plan]:
    """Plans that realise the wanted runs as far as they fit, the rest filled greedily.

    Squeaky wheel: runs that found no place are placed first in the next attempt. Every other
    attempt may fetch in slices.

    Args:
      new_plan: makes an empty plan of the program, one that may have slices if told so.
      found: which runs are wanted.
      attempts: orders tried, at most.
      deadline: no attempt begins after it.
    """
    empty = new_plan(False)
    program, lanes = empty.program, empty.lanes
    guide = guide_by(found, lanes)
    plans: list[Plan] = []
    replaceable = any(step.async_copy for step in program.instructions)
    for replacing in (False, True) if replaceable else (False,):
        order = wanted_runs(program, lanes, found)
        for attempt in range(attempts):
            plan = new_plan(attempt % 2 == 1)
            if replacing:
                plan.replace_copies()
            for buffer in found.carried:
                plan.pin(plan.carried(buffer, _last_carried_use(lanes, found, buffer)))
            failed = [run for run in order if plan.cover(run.lane, run.first, run.last) is None]
            plans.append(construct(plan, bonus=guide))
            if not failed or deadline.elapsed_seconds > deadline.limit_seconds / (2 - replacing):
                break
            order = failed + [run for run in order if run not in failed]
    return plans
