"""How often a `while` runs its body, where the module says so or a counter shows it.

The compiler may state the count in the loop's `backend_config` (`known_trip_count`). Otherwise a
loop that counts an integer of its state from a constant by a constant step up (or down) to a
constant is recognised; it may do so through copies, conversions and fusions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule

_STATED = re.compile(r'\\?"known_trip_count\\?"\s*:\s*\{\s*\\?"n\\?"\s*:\s*(?:\\?")?(\d{1,18})')
"""As JSON, or as JSON within a quoted string."""

_MOST_TRIPS = 10**9
"""A larger count is taken for this one: no program runs so long."""

_PASSED_ON = frozenset({"bitcast", "convert", "copy", "opt-barrier", "reshape"})
"""Opcodes whose scalar result is their operand's value."""


@dataclass(frozen=True, slots=True)
class _Linear:
    """A scalar integer: element `element` of the loop's state (none: 0) plus `offset`."""

    element: int | None
    offset: int


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A predicate between two scalars; `direction` as HLO spells it ("LT", ...)."""

    left: _Linear
    right: _Linear
    direction: str


_Expression = _Linear | _Comparison | None


def known_trip_count(
    module: HloModule, computation: HloComputation, loop: HloInstruction
) -> int | None:
    """Executions of the body of `loop`, a `while` of `computation`; None if they are not known."""
    stated = _STATED.search(loop.attributes.get("backend_config", ""))
    if stated is not None:
        return min(int(stated[1]), _MOST_TRIPS)
    condition = _root(module, loop, "condition")
    if not isinstance(condition, _Comparison):
        return None
    trips = _counted(_Loop(module, computation, loop), condition)
    return None if trips is None else min(trips, _MOST_TRIPS)


@dataclass(frozen=True, slots=True)
class _Loop:
    """A loop whose counter is looked for."""

    module: HloModule
    computation: HloComputation
    loop: HloInstruction

    def initial(self, value: _Linear) -> int | None:
        """A scalar of the state before the first trip, if it is a constant."""
        if value.element is None:
            return value.offset
        state = self.computation.instruction(self.loop.operands[0])
        if state.opcode != "tuple":
            return None
        reader = _Reader(self.module, self.computation)
        found = reader.scalar(state.operands[value.element])
        constant = isinstance(found, _Linear) and found.element is None
        return found.offset + value.offset if constant and isinstance(found, _Linear) else None

    def step(self, element: int) -> int | None:
        """What a trip adds to an element of the state, if that is a constant."""
        name = self.loop.attributes["body"].removeprefix("%")
        body = self.module.computations[name]
        if body.root.opcode != "tuple":
            return None
        found = _Reader(self.module, body).scalar(body.root.operands[element])
        follows = isinstance(found, _Linear) and found.element == element
        return found.offset if follows and isinstance(found, _Linear) else None


def _root(module: HloModule, loop: HloInstruction, role: str) -> _Expression:
    computation = module.computations[loop.attributes[role].removeprefix("%")]
    return _Reader(module, computation).scalar(computation.root.name)


_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


def _counted(loop: _Loop, condition: _Comparison) -> int | None:
    """Trips until the condition fails; the moving side of it is brought to the left."""
    left, right, direction = condition.left, condition.right, condition.direction
    if direction not in _MIRRORED:
        return None
    if left.element is None or loop.step(left.element) == 0:
        left, right, direction = right, left, _MIRRORED[direction]
    if left.element is None:
        return None
    if right.element is not None and loop.step(right.element) != 0:
        return None
    start, limit, step = loop.initial(left), loop.initial(right), loop.step(left.element)
    if start is None or limit is None or not step:
        return None
    return _trips(start, limit, step, direction)


def _trips(start: int, limit: int, step: int, direction: str) -> int | None:
    """Trips of `for (i = start; i <direction> limit; i += step)`; None if it never ends."""
    if direction == "NE":
        trips, rest = divmod(limit - start, step)
        return trips if rest == 0 and trips >= 0 else None
    if direction in ("LE", "GE"):
        limit += 1 if direction == "LE" else -1
    upwards = direction in ("LT", "LE")
    if upwards != (step > 0):
        return None if (start < limit) == upwards and start != limit else 0
    return max(-(-(limit - start) // step), 0)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads scalars of one computation.

    Attributes:
      parameters: of a fusion, what its operands are; a loop's state otherwise.
      known: what has been read, by name.
    """

    module: HloModule
    computation: HloComputation
    parameters: Mapping[int, _Expression] = field(default_factory=dict)
    known: dict[str, _Expression] = field(default_factory=dict)

    def scalar(self, name: str) -> _Expression:
        """What an instruction's value is, None if that is not known."""
        pending = [name]
        while pending:
            instruction = self.computation.instruction(pending[-1])
            unread = [source for source in _sources(instruction) if source not in self.known]
            pending += unread
            if not unread:
                self.known[pending.pop()] = self._value(instruction)
        return self.known[name]

    def _value(self, instruction: HloInstruction) -> _Expression:
        """Likewise, once its sources are known."""
        match instruction.opcode:
            case "parameter":
                return self.parameters.get(instruction.parameter_number or 0)
            case "constant":
                return _constant(instruction)
            case "get-tuple-element":
                return self._element(instruction)
            case "add":
                return self._sum(instruction)
            case "compare":
                return self._comparison(instruction)
            case "fusion":
                return self._fused(instruction)
            case opcode if opcode in _PASSED_ON:
                return self.known[instruction.operands[0]]
            case _:
                return None

    def _element(self, instruction: HloInstruction) -> _Expression:
        """An element of the loop's state; nested tuples are not followed."""
        source = self.computation.instruction(instruction.operands[0])
        if source.opcode != "parameter" or self.parameters:
            return None
        return _Linear(int(instruction.attributes["index"]), 0)

    def _sum(self, instruction: HloInstruction) -> _Expression:
        terms = [self.known[operand] for operand in instruction.operands]
        linear = [term for term in terms if isinstance(term, _Linear)]
        elements = [term.element for term in linear if term.element is not None]
        if len(linear) != 2 or len(elements) > 1:
            return None
        return _Linear(elements[0] if elements else None, sum(term.offset for term in linear))

    def _comparison(self, instruction: HloInstruction) -> _Expression:
        left, right = (self.known[operand] for operand in instruction.operands)
        if not isinstance(left, _Linear) or not isinstance(right, _Linear):
            return None
        return _Comparison(left, right, instruction.attributes.get("direction", ""))

    def _fused(self, instruction: HloInstruction) -> _Expression:
        callee = self.module.computations[instruction.called_computations[0]]
        operands = {i: self.known[name] for i, name in enumerate(instruction.operands)}
        return _Reader(self.module, callee, operands).scalar(callee.root.name)


def _sources(instruction: HloInstruction) -> tuple[str, ...]:
    """The operands that a scalar is worked out from."""
    if instruction.opcode in _PASSED_ON:
        return instruction.operands[:1]
    return instruction.operands if instruction.opcode in ("add", "compare", "fusion") else ()


def _constant(instruction: HloInstruction) -> _Expression:
    try:
        return _Linear(None, int(instruction.literal or ""))
    except ValueError:
        return None
