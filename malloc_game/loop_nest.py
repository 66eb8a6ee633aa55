"""How step ranges and the loops of a program lie to each other (docs/simulator.md, rule 5)."""

from __future__ import annotations

from hlo_graphs.program import Program


class LoopNest:
    """Answers, per program, which ranges of steps make sense in which loop.

    A range of steps that belongs to loop `scope` (None: to the program) must lie inside `scope`
    and contain or avoid every other loop: neither of its ends lies strictly inside a loop that
    is not `scope` or around it.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._around: dict[int | None, frozenset[int]] = {None: frozenset()}
        for index in range(len(program.loops)):
            self._around[index] = frozenset(program.loops_around(index))
        steps = program.loop_of_step
        self._inside = [self._common(steps[p - 1], steps[p]) for p in range(1, len(steps))]

    def _common(self, first: int | None, second: int | None) -> int | None:
        around = self._around[second]
        return next((x for x in self._program.loops_around(first) if x in around), None)

    def depth(self, scope: int | None) -> int:
        """Number of loops around, `scope` included."""
        return len(self._around[scope])

    def around(self, scope: int | None) -> frozenset[int]:
        """`scope` and the loops around it."""
        return self._around[scope]

    def bounds(self, scope: int | None) -> tuple[int, int]:
        """Steps `[start, end)` of one trip; the program's include the virtual end."""
        if scope is None:
            return 0, self._program.num_steps + 1
        return self._program.loops[scope].start_step, self._program.loops[scope].end_step

    def broken_by(self, start: int, end: int, scope: int | None) -> int | None:
        """A loop that forbids the range `[start, end)` of `scope`, or None if it is in order."""
        low, high = self.bounds(scope)
        if start < low or end > high:
            return scope
        for point in (start, end):
            inside = self._inside[point - 1] if 0 < point <= len(self._inside) else None
            if inside is not None and inside not in self._around[scope]:
                return inside
        return None
