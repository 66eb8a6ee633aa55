"""Greedy by time saved per byte and step: fast, never worse than all-slow, a seed for the rest.

Candidates are single accesses and gaps between consecutive accesses of a buffer (an inner loop
counts as one access). The best density, the time a candidate saves now over the space it holds,
is taken first, with its prefetch or eviction in unreserved idle time and a best-fit offset; a
candidate is re-evaluated when it comes up, because steps get shorter and memory fills
(docs/solvers.md, "greedy").
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hlo_graphs.program import Access, Instruction, Program
from malloc_game.memory_map import Source
from solvers.incumbent import Incumbent
from solvers.lane_table import LaneTable
from solvers.plan import Plan, Proposal, Run
from solvers.solver import Solution, SolveRequest

Uses = Sequence[tuple[int, Access]]
Key = tuple[int, int, int]
"""A candidate: lane, first and last item."""


@dataclass(frozen=True, slots=True)
class GreedySettings:
    """What the density of a candidate is made of.

    Attributes:
      share: weight, 0 to 1, of an access's share of what its step could save at most, against
        what it saves alone now. Where several slow accesses overlap, one alone may save nothing.
      idle_price: cost of a weighted tick of copy work, in ticks: idle time is scarce too.
      area_power: density is gain / area ** area_power.
    """

    share: float = 0.3
    idle_price: float = 0.05
    area_power: float = 1.0


VARIANTS = (
    GreedySettings(),
    GreedySettings(share=0.7, idle_price=0.1),
    GreedySettings(share=0.3, idle_price=0.0, area_power=0.7),
    GreedySettings(share=0.1, idle_price=0.3, area_power=1.2),
)
"""Settings tried in turn on small programs; larger ones get the first only."""

MAX_ACCESSES_FOR_EFFORT = (1500, 700)
"""Programs with no more accesses than the first get a carried parameter tried as well, than the
second two, and all of `VARIANTS`: larger ones would take over a second."""


class GreedySolver:
    """Greedy construction; tries a few settings and one carried parameter on small programs."""

    name = "greedy"

    def solve(self, request: SolveRequest) -> Solution:
        """The best of the constructed maps, the initial ones and the empty one."""
        best = Incumbent(request, self.name)
        for memory_map in request.initial_maps:
            best.offer(memory_map)
        for plan in greedy_plans(request.program, LaneTable.of(request.program)):
            best.offer(plan.memory_map())
            if best.deadline.expired:
                break
        return best.solution(best.offers)


def greedy_plans(program: Program, table: LaneTable) -> Iterator[Plan]:
    """Plans of the settings in `VARIANTS`, then with one parameter carried over.

    Fewer for programs with many accesses.
    """
    accesses = program.num_accesses
    effort = sum(accesses <= most for most in MAX_ACCESSES_FOR_EFFORT)
    replaceable = any(step.async_copy for step in program.instructions)
    for settings in VARIANTS[: (1, 1, 4)[effort]]:
        for replacing in (False, True) if replaceable else (False,):
            plan = Plan(program, table)
            if replacing:
                plan.replace_copies()
            yield construct(plan, settings)
    first_two = carried_choices(program)[:2]
    choices: list[tuple[int, int | None]] = [(buffer, 0) for buffer in first_two]
    choices += [(buffer, None) for buffer in first_two[:1]]
    for buffer, last_use in choices[: (0, 1, 3)[effort]]:
        plan = Plan(program, table)
        if replaceable:
            plan.replace_copies()
        if plan.pin(plan.carried(buffer, last_use)):
            yield construct(plan)


def carried_choices(program: Program) -> list[int]:
    """Parameters worth carrying over, best first.

    By what their first use could save per byte held until then: nothing can be prefetched
    before the program starts, so early uses gain most.
    """
    shares = shares_of(program)
    scored: list[tuple[float, int]] = []
    for buffer, found in enumerate(program.buffers):
        uses = program.accesses_of_buffer[buffer]
        read_only = bool(uses) and not any(access.kind.writes for _, access in uses)
        if found.is_parameter and read_only and program.may_be_resident(buffer):
            saved = shares.get((uses[0][0], buffer), 0.0)
            held = found.size_bytes * (uses[0][0] + 1)
            if saved > 0:
                scored.append((-saved / max(held, 1), buffer))
    return [buffer for _, buffer in sorted(scored)]


def construct(
    plan: Plan,
    settings: GreedySettings = VARIANTS[0],
    bonus: Callable[[int, int, int], float] | None = None,
) -> Plan:
    """The plan, filled greedily.

    Args:
      plan: what is there stays, unless it turns out to be useless.
      settings: what a density is made of.
      bonus: factor on the density of covering items `first..last` of a lane, e.g. from a
        linear relaxation; 0 forbids a candidate.
    """
    greedy = _Greedy(Filler(plan, settings, shares_of(plan.program), bonus))
    greedy.fill()
    greedy.refill()
    return plan


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of trying a candidate.

    Attributes:
      proposal: the change, if it was made.
      density: of the change that was not made because it was too low; 0 if it was impossible or
        worth nothing.
      impossible: whether there was no room, or no way at all.
    """

    proposal: Proposal | None
    density: float
    impossible: bool


class Filler:
    """Rates candidates of a plan and takes them.

    Args:
      plan: the plan to fill.
      settings: what a density is made of.
      shares: `shares_of` the program.
      bonus: factor on the density of covering items `first..last` of a lane.
    """

    def __init__(
        self,
        plan: Plan,
        settings: GreedySettings,
        shares: Mapping[tuple[int, int], float],
        bonus: Callable[[int, int, int], float] | None = None,
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.shares = shares
        self.share = settings.share
        self.bonus = bonus

    def estimate(self, lane_index: int, first: int, last: int) -> float:
        """The density, about: with every copy hidden by one step, and nothing in the way.

        0 if the candidate is taken already, cannot be, or brings nothing.
        """
        plan = self.plan
        if plan.covered[lane_index]:
            return 0.0
        lane = plan.lanes[lane_index]
        begin, finish = lane.items[first], lane.items[last]
        runs = plan.run_at[lane_index]
        uses = begin.uses if first == last else (*begin.uses, *finish.uses)
        fast, buffer = plan.fast_accesses, lane.buffer
        new = [use for use in uses if (use[0], buffer) not in fast]
        if not new and (first == last or runs[first] is runs[last]):
            return 0.0
        copies = self._more_copies(lane_index, first, last)
        gain = self._blend(plan.saving(new), new) if new else 0.0
        gain -= self.settings.idle_price * copies * plan.copy_ticks[lane.buffer] * lane.repeat
        for run in (runs[first], runs[last]):
            if run is not None:
                gain += run.stall_ticks
        if gain <= 0:
            return 0.0
        held = finish.end_step - begin.start_step + max(copies, 0)
        if runs[first] is not None:
            held -= begin.end_step - begin.start_step
        if first < last and runs[last] is not None:
            held -= finish.end_step - finish.start_step
        score = self.density(gain, max(held, 1) * max(plan.size[lane.buffer], 1))
        return score * self.bonus(lane_index, first, last) if self.bonus else score

    def _more_copies(self, lane_index: int, first: int, last: int) -> int:
        """Copies that covering two neighbouring items, or one, adds at least; may be negative."""
        plan = self.plan
        before, after = plan.run_at[lane_index][first], plan.run_at[lane_index][last]
        more = 0
        if before is None:
            more += not plan.table.starts_empty[lane_index][first]
        elif first < last:
            more -= before.eviction is not None
        if after is None or after is before:
            more += plan.table.must_evict(lane_index, first, last)
        elif first < last:
            more -= after.source is Source.COPIED
        return more

    def take(self, lane_index: int, first: int, last: int, least: float = 0.0) -> Attempt:
        """Makes the change if it is possible, worth something and of density `least` or more."""
        density, refused = 0.0, False

        def accepts(proposal: Proposal) -> bool:
            nonlocal density, refused
            value = self.value(proposal)
            density = self.density(value, proposal.added_area) if value > 0 else 0.0
            refused = value <= 0 or density < least
            return not refused

        proposal = self.plan.cover(lane_index, first, last, accepts=accepts)
        return Attempt(proposal, density if refused else 0.0, proposal is None and not refused)

    def value(self, proposal: Proposal) -> float:
        """Gain of a change that has been made, in ticks, with the price of idle time."""
        saved = self._blend(proposal.saved_ticks, proposal.uses)
        price = self.settings.idle_price * proposal.fewer_copy_ticks
        return saved + proposal.fewer_stall_ticks + price

    def density(self, gain: float, area: int) -> float:
        """Gain over area, the area to the power that the settings say."""
        return float(gain / max(area, 1) ** self.settings.area_power)

    def _blend(self, saving: float, uses: Uses) -> float:
        if self.share <= 0:
            return saving
        shares = 0.0
        for step, access in uses:
            shares += self.shares.get((step, access.buffer), 0.0)
        return (1 - self.share) * saving + self.share * max(shares, saving)


class _Greedy:
    """One filling of a plan."""

    def __init__(self, filler: Filler) -> None:
        self.filler = filler
        self.plan = filler.plan
        self.heap: list[tuple[float, int, int, int]] = []
        self.current: dict[Key, float] = {}
        self.homeless: set[Key] = set()

    def fill(self, skipped: Collection[Key] = ()) -> None:
        """Takes candidates, but for those `skipped`, by density until none helps."""
        for lane_index, lane in enumerate(self.plan.lanes):
            for first in range(len(lane.items)):
                for last in range(first, min(first + 2, len(lane.items))):
                    if (lane_index, first, last) not in skipped:
                        self._push(lane_index, first, last)
        while self.heap:
            self._step()

    def refill(self) -> None:
        """Drops what is useless, then counts only what a candidate saves alone, now.

        What found no place before finds none now, unless something was dropped there.
        """
        freed = [0] * (self.plan.program.num_steps + 1)
        for run in self._drop_useless():
            freed[run.start : run.end] = [1] * (run.end - run.start)
        self.filler.share = 0.0
        self.current.clear()
        self.fill({key for key in self.homeless if not self._any_step(freed, key)})

    def _any_step(self, flags: Sequence[int], key: Key) -> bool:
        items = self.plan.lanes[key[0]].items
        return any(flags[items[key[1]].start_step : items[key[2]].end_step])

    def _drop_useless(self) -> list[Run]:
        """Takes out the residencies without which the program is no slower."""
        dropped = []
        for run in sorted(self.plan.runs.values(), key=_by_length):
            proposal = self.plan.uncover(run)
            if proposal.gain_ticks < 0:
                proposal.undo()
            else:
                dropped.append(run)
        return dropped

    def _step(self) -> None:
        negative, lane_index, first, last = heapq.heappop(self.heap)
        key = (lane_index, first, last)
        if self.current.get(key) != -negative:
            return
        score = self.filler.estimate(lane_index, first, last)
        if score <= 0:
            return
        if score < -negative * 0.999:
            self._push_scored(key, score)
            return
        least = 0.8 * -self.heap[0][0] if self.heap else 0.0
        attempt = self.filler.take(lane_index, first, last, least)
        if attempt.proposal is not None:
            self._push_neighbours(attempt.proposal)
        elif attempt.density > 0:
            self._push_scored(key, attempt.density)
        elif attempt.impossible:
            self.homeless.add(key)

    def _push_neighbours(self, proposal: Proposal) -> None:
        run = proposal.run
        assert run is not None
        if run.first > 0:
            self._push(run.lane, run.first - 1, run.first)
        if run.last + 1 < len(self.plan.lanes[run.lane].items):
            self._push(run.lane, run.last, run.last + 1)

    def _push(self, lane_index: int, first: int, last: int) -> None:
        score = self.filler.estimate(lane_index, first, last)
        if score > 0:
            self._push_scored((lane_index, first, last), score)

    def _push_scored(self, key: Key, score: float) -> None:
        self.current[key] = score
        heapq.heappush(self.heap, (-score, *key))


def _by_length(run: Run) -> tuple[int, int, int]:
    return (run.start - run.end, run.lane, run.first)


def shares_of(program: Program) -> dict[tuple[int, int], float]:
    """Per access its part of what its step saves if everything that may be is fast."""
    shares: dict[tuple[int, int], float] = {}
    for step, instruction in enumerate(program.instructions):
        allowed = [a for a in instruction.accesses if program.may_be_resident(a.buffer)]
        weights = [_weight(access) for access in allowed]
        saving = _largest_saving(instruction, allowed)
        if saving > 0 and sum(weights) > 0:
            for access, weight in zip(allowed, weights, strict=True):
                shares[step, access.buffer] = saving * weight / sum(weights)
    return shares


def _weight(access: Access) -> int:
    return max(access.bus_ticks, *access.lane_ticks)


def _largest_saving(instruction: Instruction, allowed: Uses | Sequence[Access]) -> float:
    fast = {id(access) for access in allowed}
    slow = [access for access in instruction.accesses if id(access) not in fast]
    longest = instruction.elapsed_ticks(instruction.accesses)
    return instruction.repeat * (longest - instruction.elapsed_ticks(slow))
