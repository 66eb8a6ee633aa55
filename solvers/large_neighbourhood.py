"""Large neighbourhood search on plans: tear out a part of the map, refill it greedily, repeat.

Each round removes the residencies around a few steps, or those in the way of an access that is
slow and dear, which then comes first, and refills the hole by density with random factors,
guided where it is known by the linear relaxation. A round that makes the plan slower is undone,
with the exception of small steps up early in the search (threshold accepting). Source: Shaw,
"Using constraint programming and local search methods to solve vehicle routing problems", 1998;
Dueck and Scheuer, 1990.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap
from solvers.greedy import (
    VARIANTS,
    Filler,
    GreedySettings,
    carried_choices,
    construct,
    greedy_plans,
    shares_of,
)
from solvers.incumbent import Incumbent
from solvers.lane_table import LaneTable
from solvers.plan import PinChange, Plan, Proposal, Run
from solvers.relaxation import IntegerSolution, Relaxation, RelaxedSolution
from solvers.slices import Slicing
from solvers.solver import Deadline, Solution, SolveRequest, Status, status_of
from solvers.timeline import Lane, begins_with_write

NAME = "large-neighbourhood"

MOST_CARRIED = 12
"""Parameters, the most promising ones, that may be carried over."""

MOST_PLACES = 16
"""Addresses looked at, at most, when room is made for an access."""

WHOLE_VALUES = 0.1
"""Share of the rounds with a dear access in which all uses of its value are made fast at once."""

MOST_STEPS = 60
"""Steps around a hole from which further candidates to fill it are taken."""

Key = tuple[int, int, int]
Change = Proposal | PinChange


@dataclass(frozen=True, slots=True)
class NeighbourhoodSettings:
    """How the search goes about it.

    Attributes:
      relaxation_share: part of the time limit that the guiding linear programs may take; all of it
        where rounds are counted, since a clock would decide otherwise.
      mean_removed: residencies torn out per round, on average.
      noise: standard deviation of the logarithm of the random factors on densities.
      start_temperature: share of the latency by which a round may first be worse.
      restart_rounds: after so many rounds undone since the last improvement, back to the best plan.
      slicing_rounds: after so many rounds undone since the last improvement what is fetched anew
        comes in slices, after as many more as a whole again.
      ejection_share: part of the rounds that make room for one dear access.
      carried_share: part of the rounds that carry another parameter over, where there is one.
    """

    relaxation_share: float = 0.2
    mean_removed: float = 7.0
    noise: float = 0.7
    start_temperature: float = 3e-4
    restart_rounds: int = 400
    slicing_rounds: int = 100
    ejection_share: float = 0.4
    carried_share: float = 0.04


class LargeNeighbourhoodSolver:
    """Ruin and recreate from the best of greedy, the relaxation's rounding and initial maps."""

    name = NAME

    def __init__(self, settings: NeighbourhoodSettings | None = None) -> None:
        self.settings = settings or NeighbourhoodSettings()

    def solve(self, request: SolveRequest) -> Solution:
        """The fastest map found within the time limit."""
        search = NeighbourhoodSearch(request, self.settings)
        search.seed()
        search.run()
        return search.incumbent.solution(search.rounds)


class NeighbourhoodSearch:
    """State of one search; `offer` plans or `seed`, then `run`.

    Args:
      request: what to solve.
      settings: how.
      name: reported with improvements.

    Attributes:
      bound_ticks: a certified bound, if one is known: within the requested gap of it `run` ends.
    """

    def __init__(
        self, request: SolveRequest, settings: NeighbourhoodSettings, name: str = NAME
    ) -> None:
        self.request = request
        self.settings = settings
        self.program: Program = request.program
        self.incumbent = Incumbent(request, name)
        self.bound_ticks: float | None = None
        self.deadline = self.incumbent.deadline
        self.rng = random.Random(request.seed)
        self.table = LaneTable.of(self.program)
        self.lanes = self.table.lanes
        self.whole, self.sliced = Slicing(self.program, most_slices=1), Slicing(self.program)
        self.plan = self.new_plan()
        self.rounds = 0
        self.shares = shares_of(self.program)
        self.guide: Callable[[int, int, int], float] | None = None
        self.adopted: MemoryMap | None = None
        self.by_step = _lanes_by_step(self.program, self.lanes)
        self.carried = carried_choices(self.program)[:MOST_CARRIED]
        self.items_of = _items_of_accesses(self.lanes)
        self.worth = [_worth_until(lane, self.shares) for lane in self.lanes]

    def new_plan(self, in_slices: bool = False) -> Plan:
        """A plan without residencies."""
        return Plan(self.program, self.table, self._slicing(in_slices))

    def _slicing(self, in_slices: bool) -> Slicing:
        return self.sliced if in_slices else self.whole

    # -- seeds --------------------------------------------------------------------------------

    def seed(self) -> None:
        """The best of what is known and the rounded relaxation."""
        self.seed_known()
        relaxed = self._relaxed()
        if relaxed is not None:
            self.guide = guide_by(relaxed, self.lanes)
            for settings in (VARIANTS[0], GreedySettings(share=0.6)):
                self.offer(construct(self.new_plan(), settings, self.guide))

    def seed_known(self) -> None:
        """The best of the initial maps, or of greedy plans if there are none."""
        for memory_map in self.request.initial_maps:
            self.incumbent.offer(memory_map)
        for memory_map in self.request.initial_maps:
            if self.deadline.expired:
                return
            self.offer(self._taken_over(memory_map))
        if not self.request.initial_maps:
            for plan in greedy_plans(self.program, self.table):
                self.offer(plan)
                if self.deadline.expired:
                    return

    def _relaxed(self) -> RelaxedSolution | None:
        counted = self.request.max_games is not None
        share = 1.0 if counted else self.settings.relaxation_share
        if self.deadline.expired or not self.program.num_steps:
            return None
        until = Deadline.after(self.deadline.remaining_seconds * share)
        return Relaxation(self.program).solve_refined(until)

    def _taken_over(self, memory_map: MemoryMap) -> Plan:
        """The plan of a map, and what still fits beside it."""
        plan = self.new_plan()
        plan.load(memory_map)
        return construct(plan)

    def offer(self, plan: Plan) -> None:
        """Takes a plan as the current one if it is faster."""
        if plan.latency_estimate() < self.plan.latency_estimate():
            self.plan = plan
        self.incumbent.offer(plan.memory_map())

    # -- rounds -------------------------------------------------------------------------------

    def run(self, share: float = 1.0) -> None:
        """Rounds until the time, or their number, is up, or nothing is left to find.

        They end at the best plan.

        Args:
          share: of what is left of the time, or of the rounds, to use up.
        """
        begun = self._progress()
        end = begun + share * (1 - begun)
        current = best = self.plan.latency_estimate()
        stack: list[Change] = []
        undone = 0
        while self._progress() < end and self.lanes and not self.is_proven():
            self.rounds += 1
            self.plan.slicing = self._slicing(undone // self.settings.slicing_rounds % 2 == 1)
            changes = self._round()
            ticks = self.plan.latency_estimate()
            if ticks > current + self._threshold(current):
                _undo(changes)
                undone += 1
            else:
                current = ticks
                stack.extend(changes)
            if current < best * (1 - 1e-9):
                best, undone = current, 0
                stack.clear()
                self.incumbent.offer(self.plan.memory_map())
            elif undone > self.settings.restart_rounds:
                _undo(stack)
                stack.clear()
                self._adopt_known()
                current = best = self.plan.latency_estimate()
                undone = 0
        _undo(stack)

    def is_proven(self) -> bool:
        """Whether the incumbent is known to be within the requested gap of the optimum."""
        proven = status_of(self.incumbent.ticks, self.bound_ticks, self.request.gap)
        return proven is Status.OPTIMAL

    def _adopt_known(self) -> None:
        """Goes on from what another solver found, if it is clearly better."""
        known = self.request.best_known() if self.request.best_known is not None else None
        if known is None or known is self.adopted:
            return
        self.adopted = known
        plan = self._taken_over(known)
        self.incumbent.offer(known)
        if plan.latency_estimate() < self.plan.latency_estimate():
            self.plan = plan
            self.incumbent.offer(plan.memory_map())

    def _progress(self) -> float:
        """Share of the rounds, or else of the time, that is used up; 1 is the end."""
        limit = self.deadline.limit_seconds
        if self.deadline.expired:
            return 1.0
        if self.request.max_games is not None:
            return min(self.rounds / self.request.max_games, 1.0)
        return min(self.deadline.elapsed_seconds / limit, 1.0)

    def _threshold(self, current: float) -> float:
        left = 1 - self._progress()
        return current * self.settings.start_temperature * left * left * self.rng.random()

    def _round(self) -> list[Change]:
        changes: list[Change] = []
        dear: Key | None = None
        if self.carried and self.rng.random() < self.settings.carried_share:
            removed = self._carry_another(changes)
        else:
            if self.rng.random() < self.settings.ejection_share:
                dear = self._dear_item()
            removed = self._choose() if dear is None else self._in_the_way(dear)
            changes.extend(self.plan.uncover(run) for run in removed)
        wanted = self._candidates_near(removed)
        self._refill(wanted, changes, dear)
        return changes

    def _carry_another(self, changes: list[Change]) -> list[Run]:
        """Carries another parameter, or none; returns the runs that had to go for it."""
        plan = self.plan
        let_go = plan.unpin()
        if let_go is not None:
            changes.append(let_go)
            if self.rng.random() < 0.2:
                return []
        buffer = self.rng.choice(self.carried)
        last_use = self.rng.choice((None, 0, self.rng.randrange(self._uses_of(buffer))))
        removed = [r for r in plan.runs.values() if plan.lanes[r.lane].buffer == buffer]
        changes.extend(plan.uncover(run) for run in removed)
        top = plan.capacity - plan.size[buffer]
        new = plan.carried(buffer, last_use, self.rng.choice((0, top)))
        met = [run for run in plan.runs.values() if any(plan.overlaps(run, r) for r in new)]
        changes.extend(plan.uncover(run) for run in met)
        pinned = plan.pin(new)
        if pinned is not None:
            changes.append(pinned)
        return [*removed, *met]

    def _uses_of(self, buffer: int) -> int:
        return len(self.program.accesses_of_buffer[buffer])

    def _dear_item(self) -> Key | None:
        """A slow access that costs time, as an item of one of its scopes, or with a neighbour, or
        with all uses of its value: of those in between none may be worth its copies."""
        step = self._dear_step()
        slow = [
            (self.shares.get((step, access.buffer), 0.0) * self.rng.random(), access.buffer)
            for access in self.program.instructions[step].accesses
            if not self.plan.is_fast(step, access.buffer)
        ]
        if not slow or max(slow)[0] <= 0:
            return None
        lane_index, position = self.rng.choice(self.items_of[step, max(slow)[1]])
        if self.rng.random() < WHOLE_VALUES:
            return (lane_index, *_value_around(self.lanes[lane_index], position))
        last = len(self.lanes[lane_index].items) - 1
        before, after = self.rng.choice(((0, 0), (0, 0), (1, 0), (0, 1)))
        return lane_index, max(position - before, 0), min(position + after, last)

    def _in_the_way(self, key: Key) -> list[Run]:
        """The runs whose place `key` can take at the least loss, some steps before it included."""
        lane_index, first, last = key
        items = self.lanes[lane_index].items
        size = self.plan.size[self.lanes[lane_index].buffer]
        start = items[first].start_step - self.rng.randrange(4)
        end = items[last].end_step + self.rng.randrange(2)
        near = [run for run in self.plan.runs.values() if run.start < end and run.end > start]
        highs = [run.offset + self.plan.size[self.lanes[run.lane].buffer] for run in near]
        places = {0, *highs, *(max(run.offset - size, 0) for run in near)}
        places = {low for low in places if low + size <= self.plan.capacity}
        best: tuple[float, list[Run]] = (math.inf, [])
        for low in self.rng.sample(sorted(places), min(len(places), MOST_PLACES)):
            removed = [
                run
                for run, high in zip(near, highs, strict=True)
                if run.offset < low + size and high > low
            ]
            loss = sum(map(self._worth, removed)) * self.rng.uniform(0.5, 1.0)
            if loss < best[0]:
                best = (loss, removed)
        return best[1]

    def _worth(self, run: Run) -> float:
        """What its accesses save, about, less the stalls of its copies."""
        until = self.worth[run.lane]
        return max(until[run.last + 1] - until[run.first] - run.stall_ticks, 0.0)

    def _choose(self) -> list[Run]:
        """Residencies to tear out: around a step, or in the way of a dear slow access."""
        count = 1 + int(self.rng.expovariate(1.0 / self.settings.mean_removed))
        runs = list(self.plan.runs.values())
        if not runs:
            return []
        if self.rng.random() < 0.15:
            return self.rng.sample(runs, min(count, len(runs)))
        step = self._dear_step()
        width = max(2, int(self.rng.expovariate(1.0 / 12.0)))
        near = [run for run in runs if run.start < step + width and run.end > step - width]
        if len(near) <= count:
            return near
        return self.rng.sample(near, count)

    def _dear_step(self) -> int:
        """A random step, with more weight where time could still be saved."""
        steps = self.program.num_steps
        tries = [self.rng.randrange(steps) for _ in range(4)]
        return max(tries, key=self._could_save)

    def _could_save(self, step: int) -> float:
        instruction = self.program.instructions[step]
        slow = [
            self.shares.get((step, access.buffer), 0.0)
            for access in instruction.accesses
            if not self.plan.is_fast(step, access.buffer)
        ]
        return sum(slow) * self.rng.random()

    def _candidates_near(self, removed: Sequence[Run]) -> set[Key]:
        """Items and gaps that may use the room that was made."""
        wanted: set[Key] = set()
        low = min((run.start for run in removed), default=0)
        high = max((run.end for run in removed), default=self.program.num_steps)
        for run in removed:
            for first in range(run.first, run.last + 1):
                wanted.add((run.lane, first, first))
                if first < run.last:
                    wanted.add((run.lane, first, first + 1))
        steps = range(max(low, 0), min(high, self.program.num_steps))
        if len(steps) > MOST_STEPS:
            first = self.rng.randrange(len(steps) - MOST_STEPS + 1)
            steps = steps[first : first + MOST_STEPS]
        for step in steps:
            for lane_index, position in self.by_step[step]:
                if not self.plan.covered[lane_index]:
                    wanted.update(self._around(lane_index, position))
        return wanted

    def _around(self, lane_index: int, position: int) -> list[Key]:
        """A slow item and the gaps beside it; nothing for what is resident already."""
        run = self.plan.run_at[lane_index][position]
        if run is not None and position not in (run.first, run.last):
            return []
        found = [] if run is not None else [(lane_index, position, position)]
        if position + 1 < len(self.lanes[lane_index].items):
            found.append((lane_index, position, position + 1))
        if position > 0:
            found.append((lane_index, position - 1, position))
        return found

    def _refill(self, wanted: set[Key], changes: list[Change], dear: Key | None) -> None:
        """Covers candidates by randomised density until none helps, `dear` before all others."""
        factor: dict[Key, float] = {}
        noise = self.settings.noise
        share = self.rng.choice((0.0, 0.3, 0.6))
        price = self.rng.choice((0.0, 0.05, 0.3))
        power = self.rng.choice((0.6, 1.0, 1.0))
        guided = self.guide is not None and self.rng.random() < 0.4
        filler = Filler(self.plan, GreedySettings(share, price, power), self.shares)
        if dear is not None:
            change = filler.take(*dear).proposal
            if change is not None:
                changes.append(change)
        heap: list[tuple[float, Key]] = []
        for key in sorted(wanted):
            factor[key] = math.exp(noise * self.rng.gauss(0.0, 1.0))
            if guided and self.guide is not None:
                factor[key] *= self.guide(*key)
            score = filler.estimate(*key) * factor[key]
            if score > 0:
                heap.append((-score, key))
        heapq.heapify(heap)
        while heap:
            negative, key = heapq.heappop(heap)
            score = filler.estimate(*key) * factor[key]
            if score <= 0:
                continue
            if score < -negative * 0.98 and heap and score < -heap[0][0]:
                heapq.heappush(heap, (-score, key))
                continue
            change = filler.take(*key).proposal
            if change is None:
                continue
            changes.append(change)
            run = change.run
            assert run is not None
            for first in (run.first - 1, run.last):
                near = (run.lane, first, first + 1)
                if near in factor:
                    score = filler.estimate(*near) * factor[near]
                    if score > 0:
                        heapq.heappush(heap, (-score, near))


def _value_around(lane: Lane, position: int) -> tuple[int, int]:
    """First and last item from the write before an item to the one after, the latter left out."""
    first, last = position, position
    while first > 0 and not begins_with_write(lane.items[first]):
        first -= 1
    while last + 1 < len(lane.items) and not begins_with_write(lane.items[last + 1]):
        last += 1
    return first, last


def _undo(changes: list[Change]) -> None:
    while changes:
        changes.pop().undo()


def _lanes_by_step(program: Program, lanes: Sequence[Lane]) -> list[list[tuple[int, int]]]:
    """Per step the (lane, item) pairs that begin there."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(program.num_steps)]
    for lane_index, lane in enumerate(lanes):
        for position, item in enumerate(lane.items):
            found[item.start_step].append((lane_index, position))
    return found


def _items_of_accesses(lanes: Sequence[Lane]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Per (step, buffer) the (lane, item) pairs that cover the access, one for each scope."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for lane_index, lane in enumerate(lanes):
        for position, item in enumerate(lane.items):
            for step, _ in item.uses:
                found.setdefault((step, lane.buffer), []).append((lane_index, position))
    return found


def _worth_until(lane: Lane, shares: Mapping[tuple[int, int], float]) -> list[float]:
    """Per item, and at the end, the shares of all items before it."""
    worth = [sum(shares.get((step, lane.buffer), 0.0) for step, _ in i.uses) for i in lane.items]
    return [0.0, *itertools.accumulate(worth)]


def guide_by(
    relaxed: RelaxedSolution | IntegerSolution, lanes: Sequence[Lane]
) -> Callable[[int, int, int], float]:
    """Factors on densities: high where the relaxation has an item fast, or keeps over a gap."""
    within = lanes_within_buffer(lanes)

    def factor(lane_index: int, first: int, last: int) -> float:
        key = (lanes[lane_index].buffer, within[lane_index], last)
        share = relaxed.fast.get(key, 0.0) if first == last else relaxed.kept.get(key, 0.0)
        return 0.1 + share

    return factor


def lanes_within_buffer(lanes: Sequence[Lane]) -> list[int]:
    """Per lane its index among the lanes of its buffer."""
    within: list[int] = []
    count: dict[int, int] = {}
    for lane in lanes:
        within.append(count.get(lane.buffer, 0))
        count[lane.buffer] = within[-1] + 1
    return within
