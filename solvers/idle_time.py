"""How long each step takes under a plan, and the idle time in which copies are served.

A copy takes idle time from the steps of its own scope, and of whole loops inside it, as the
simulator serves it (docs/simulator.md, "Copies and loops"); what others have reserved is gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hlo_graphs.program import Access, Program
from solvers.timeline import outermost_loop_within

MAX_WINDOW_STEPS = 512
"""A copy looks no further than this for idle time: longer windows only hold space."""


@dataclass(frozen=True, slots=True)
class Window:
    """Where a copy is served: steps `[start, end)`.

    Attributes:
      start: step at whose beginning it is issued.
      end: it is complete before this step.
      taken: (step, ticks of one execution of the step).
      lacking_ticks: what no step serves.
      arrivals: of a prefetch, latest first, (step, ticks of the copy that are served from its
        beginning on, by itself or by the loop that begins there).
    """

    start: int
    end: int
    taken: tuple[tuple[int, int], ...]
    lacking_ticks: int
    arrivals: tuple[tuple[int, int], ...] = ()


class Clock:
    """Durations of the steps with the current fast accesses, and idle time not yet reserved.

    Attributes:
      fast: (step, buffer) of the accesses served from fast memory.
      elapsed: per step the ticks of one execution.
      total: sum of repeat times elapsed.
      overcommitted: weighted reserved ticks that their steps no longer have.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.loop_of_step = program.loop_of_step
        self.fast: set[tuple[int, int]] = set()
        steps = program.instructions
        self.repeat = [step.repeat for step in steps]
        self.bus = [sum(a.bus_ticks for a in step.accesses) for step in steps]
        self.lanes = [
            [b + sum(a.lane_ticks[k] for a in step.accesses) for k, b in enumerate(step.base_ticks)]
            for step in steps
        ]
        self.elapsed = [max(self.bus[t], *self.lanes[t]) for t in range(len(steps))]
        self.reserved = [0] * len(steps)
        self.overcommitted = 0.0
        self.total = sum(r * e for r, e in zip(self.repeat, self.elapsed, strict=True))

    def set_fast(self, uses: Iterable[tuple[int, Access]]) -> None:
        """Serves accesses, all of them slow now, from fast memory."""
        for step, access in uses:
            self.fast.add((step, access.buffer))
            self._shift(step, access, -1)

    def set_slow(self, uses: Iterable[tuple[int, Access]]) -> None:
        """Serves accesses, all of them fast now, from slow memory."""
        for step, access in uses:
            self.fast.discard((step, access.buffer))
            self._shift(step, access, 1)

    def vanish(self, step: int) -> None:
        """The step takes no time any more, and its accesses cost nothing."""
        over = self._over(step)
        self.total -= self.repeat[step] * self.elapsed[step]
        self.elapsed[step] = self.bus[step] = 0
        self.lanes[step] = [0] * len(self.lanes[step])
        self.overcommitted += self.repeat[step] * (self._over(step) - over)
        for access in self.program.instructions[step].accesses:
            self.fast.add((step, access.buffer))

    def _shift(self, step: int, access: Access, sign: int) -> None:
        lanes = self.lanes[step]
        over = self._over(step) if self.reserved[step] else 0
        self.bus[step] += sign * access.bus_ticks
        longest = self.bus[step]
        for k, ticks in enumerate(access.lane_ticks):
            lanes[k] += sign * ticks
            if lanes[k] > longest:
                longest = lanes[k]
        self.total += self.repeat[step] * (longest - self.elapsed[step])
        self.elapsed[step] = longest
        if self.reserved[step]:
            self.overcommitted += self.repeat[step] * (self._over(step) - over)

    def _over(self, step: int) -> int:
        """Reserved ticks that the step no longer has: they will be stalls."""
        return max(self.reserved[step] - self.elapsed[step] + self.bus[step], 0)

    def saving(self, uses: Iterable[tuple[int, Access]]) -> float:
        """Weighted ticks that each of the slow `uses` would save by itself, summed."""
        saved = 0.0
        for step, access in uses:
            longest = self.bus[step] - access.bus_ticks
            for have, less in zip(self.lanes[step], access.lane_ticks, strict=True):
                if have - less > longest:
                    longest = have - less
            saved += self.repeat[step] * (self.elapsed[step] - longest)
        return saved

    def free(self, step: int) -> int:
        """Idle ticks of one execution of `step` that nobody has reserved."""
        return max(self.elapsed[step] - self.bus[step] - self.reserved[step], 0)

    def reserve(self, taken: Iterable[tuple[int, int]], sign: int = 1) -> None:
        """Takes (step, ticks) out of the idle time; `sign` -1 gives them back."""
        for step, ticks in taken:
            over = self._over(step)
            self.reserved[step] += sign * ticks
            self.overcommitted += self.repeat[step] * (self._over(step) - over)

    def release(self, taken: Iterable[tuple[int, int]]) -> None:
        """Gives back what `reserve` took."""
        self.reserve(taken, -1)

    def window_before(self, ready: int, floor: int, ticks: int, scope: int | None) -> Window:
        """The latest window that ends at `ready` and serves a copy, not before `floor`.

        What cannot be served is lacking; a window that would only lengthen the residency
        without serving anything is left empty.
        """
        lowest = max(floor, ready - MAX_WINDOW_STEPS)
        step, start = ready, ready
        taken: list[tuple[int, int]] = []
        arrivals: list[tuple[int, int]] = []
        while ticks > 0 and step > lowest:
            step -= 1
            if self.loop_of_step[step] == scope:
                free = min(self.elapsed[step] - self.bus[step] - self.reserved[step], ticks)
                if free > 0:
                    taken.append((step, free))
                    arrivals.append((step, free))
                    ticks -= free
                    start = step
                continue
            begin, _ = self._inner_loop(step, scope)
            if begin < lowest:
                break
            served = self._take_loop(step, ticks, scope, taken)
            ticks -= served
            step = begin
            if served:
                arrivals.append((begin, served))
                start = begin
        return Window(start, ready, tuple(taken), max(ticks, 0), tuple(arrivals))

    def window_after(self, issue: int, limit: int, ticks: int, scope: int | None) -> Window:
        """The earliest window from `issue` that serves a copy, at the latest until `limit`.

        Empty, a stall from beginning to end, if no step serves it.
        """
        step, end = issue, issue
        highest = min(limit, issue + MAX_WINDOW_STEPS)
        taken: list[tuple[int, int]] = []
        while ticks > 0 and step < highest:
            if self.loop_of_step[step] == scope:
                free = min(self.elapsed[step] - self.bus[step] - self.reserved[step], ticks)
                step += 1
                if free > 0:
                    taken.append((step - 1, free))
                    ticks -= free
                    end = step
                continue
            _, finish = self._inner_loop(step, scope)
            if finish > limit:
                break
            served = self._take_loop(step, ticks, scope, taken)
            ticks -= served
            step = finish
            end = finish if served else end
        return Window(issue, end, tuple(taken), max(ticks, 0))

    def _inner_loop(self, step: int, scope: int | None) -> tuple[int, int]:
        inner = outermost_loop_within(self.program, scope, step)
        assert inner is not None
        loop = self.program.loops[inner]
        return loop.start_step, loop.end_step

    def _take_loop(
        self, step: int, ticks: int, scope: int | None, taken: list[tuple[int, int]]
    ) -> int:
        """Adds what the loop around `step` can serve of a copy outside it; returns the ticks."""
        before = ticks
        for inside in range(*self._inner_loop(step, scope)):
            weight = self._weight(inside, scope)
            free = self.free(inside)
            use = min(int(free * weight), ticks)
            if use > 0:
                taken.append((inside, min(free, math.ceil(use / weight))))
                ticks -= use
        return before - ticks

    def share(self, ticks: int, step: int, scope: int | None) -> int:
        """Ticks of one execution of `step` that give a copy of `scope` so many, rounded up."""
        return math.ceil(ticks / self._weight(step, scope))

    def _weight(self, step: int, scope: int | None) -> float:
        """Executions of `step` per execution of the scope's body."""
        weight = 1.0
        for loop in self.program.loops_around(self.loop_of_step[step]):
            if loop == scope:
                break
            weight *= self.program.loops[loop].weight
        return weight
