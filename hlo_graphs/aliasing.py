"""Buffers: sets of values that must share memory.

Source: `xla/hlo/analysis/hlo_alias_analysis.cc`. Two values must share memory where a loop carries
one into the other, where branches of a conditional meet, where an operation works in place, and
where the module gives an output the memory of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hlo_graphs.call_graph import async_part, control_flow_calls
from hlo_graphs.dataflow import Dataflow, HloValue, Use, analyse_dataflow
from hlo_graphs.dataflow_rules import Position
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule, ShapeIndex
from hlo_graphs.in_place import InPlacePair, async_pairs, in_place_pairs


@dataclass(frozen=True, slots=True)
class HloBuffer:
    """Values that must share memory.

    Attributes:
      id: index into `AliasAnalysis.buffers`.
      values: ids of the values, ascending.
    """

    id: int
    values: tuple[int, ...]


class _Link(NamedTuple):
    """Two positions whose values must share memory."""

    one: Position
    other: Position


class AliasAnalysis:
    """The buffers of a module.

    Attributes:
      dataflow: the values.
      buffers: by id, ordered by their first value.
      buffer_of_value: per value the id of its buffer.
    """

    def __init__(self, dataflow: Dataflow) -> None:
        self.dataflow = dataflow
        groups = _Groups(len(dataflow.values))
        for link in self._links():
            ids = (*dataflow.values_at(*link.one), *dataflow.values_at(*link.other))
            for value in ids[1:]:
                groups.merge(ids[0], value)
        self.buffer_of_value, self.buffers = groups.buffers()

    @property
    def module(self) -> HloModule:
        """What was analysed."""
        return self.dataflow.module

    @property
    def values(self) -> tuple[HloValue, ...]:
        """All values, by id."""
        return self.dataflow.values

    def defining(self, value: HloValue) -> HloInstruction:
        """The instruction that defines a value."""
        return self.module.computations[value.computation].instruction(value.instruction)

    @property
    def uses(self) -> tuple[tuple[Use, ...], ...]:
        """Per value its uses, as XLA counts them."""
        return self.dataflow.uses

    def values_at(self, computation: str, instruction: str, index: ShapeIndex) -> tuple[int, ...]:
        """Ids of the values that may be at a position.

        Raises:
          InputError: if there is no such position.
        """
        return self.dataflow.values_at(computation, instruction, index)

    def buffers_at(self, computation: str, instruction: str, index: ShapeIndex) -> tuple[int, ...]:
        """Ids of the buffers that may be at a position, ascending.

        Raises:
          InputError: if there is no such position.
        """
        values = self.values_at(computation, instruction, index)
        if len(values) == 1:
            return (self.buffer_of_value[values[0]],)
        return tuple(sorted({self.buffer_of_value[value] for value in values}))

    def buffer_at(self, computation: str, instruction: str, index: ShapeIndex) -> int:
        """The id of the buffer at a position.

        Raises:
          InputError: if there is no such position, or not exactly one buffer at it.
        """
        buffers = self.buffers_at(computation, instruction, index)
        if len(buffers) != 1:
            raise InputError(
                f"{self.module.path}: {len(buffers)} buffers at {instruction}{index} in "
                f"{computation}: a computation with several callers? Inline or clone it"
            )
        return buffers[0]

    @cached_property
    def in_place(self) -> dict[tuple[str, str], tuple[InPlacePair, ...]]:
        """The must-share pairs of every instruction that has any, by computation and name."""
        found = {}
        for computation in self.dataflow.graph.computations:
            for instruction in computation.instructions:
                if pairs := self._pairs_of(computation, instruction):
                    found[computation.name, instruction.name] = pairs
        return found

    def _pairs_of(
        self, computation: HloComputation, instruction: HloInstruction
    ) -> tuple[InPlacePair, ...]:
        if async_part(instruction.opcode) is not None:
            return async_pairs(self.dataflow.graph, computation, instruction)
        return in_place_pairs(self.module, computation, instruction)

    def _links(self) -> Iterator[_Link]:
        for computation in self.dataflow.graph.computations:
            for instruction in computation.instructions:
                if instruction.opcode == "while":
                    yield from self._loop_links(computation, instruction)
                elif instruction.opcode == "conditional":
                    yield from self._branch_links(computation, instruction)
        yield from self._in_place_links()
        yield from self._input_output_links()

    def _loop_links(self, caller: HloComputation, loop: HloInstruction) -> Iterator[_Link]:
        """The loop's result, its initial value, the parameters, and what the body returns."""
        called = {role.kind: self.module.computations[n] for role, n in control_flow_calls(loop)}
        condition, body = called["condition"], called["body"]
        for index, _ in loop.shape.subshapes():
            result = Position(caller.name, loop.name, index)
            yield _Link(result, Position(caller.name, loop.operands[0], index))
            yield _Link(result, Position(body.name, body.root.name, index))
            for callee in (condition, body):
                yield _Link(result, Position(callee.name, callee.parameters[0].name, index))

    def _branch_links(self, caller: HloComputation, choice: HloInstruction) -> Iterator[_Link]:
        """The conditional's result and what each branch returns."""
        for name in choice.called_computations:
            root = self.module.computations[name].root
            for index, _ in choice.shape.subshapes():
                yield _Link(
                    Position(caller.name, choice.name, index), Position(name, root.name, index)
                )

    def _in_place_links(self) -> Iterator[_Link]:
        for (computation, name), pairs in self.in_place.items():
            operands = self.dataflow.computation(computation).instruction(name).operands
            for pair in pairs:
                operand = operands[pair.operand_number]
                yield _Link(
                    Position(computation, name, pair.output_index),
                    Position(computation, operand, pair.operand_index),
                )

    def _input_output_links(self) -> Iterator[_Link]:
        entry = self.module.entry
        for alias in self.module.input_output_alias:
            parameter = entry.parameters[alias.parameter_number]
            yield _Link(
                Position(entry.name, entry.root.name, alias.output_index),
                Position(entry.name, parameter.name, alias.parameter_index),
            )


def analyse_aliases(module: HloModule) -> AliasAnalysis:
    """The values of `module` and the buffers they must share.

    Raises:
      InputError: if calls, shapes and operands of the module contradict each other.
    """
    return AliasAnalysis(analyse_dataflow(module))


class _Groups:
    """Disjoint sets of values (union-find; the smallest member stands for its set)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, value: int) -> int:
        """The smallest member of the set of `value`."""
        parent = self._parent
        while parent[value] != value:
            parent[value] = parent[parent[value]]
            value = parent[value]
        return value

    def merge(self, one: int, other: int) -> None:
        """Makes one set of two."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low

    def buffers(self) -> tuple[tuple[int, ...], tuple[HloBuffer, ...]]:
        """Per value its buffer's id, and the buffers."""
        members: dict[int, list[int]] = {}
        for value in range(len(self._parent)):
            members.setdefault(self.find(value), []).append(value)
        number = {smallest: i for i, smallest in enumerate(members)}
        of_value = tuple(number[self.find(value)] for value in range(len(self._parent)))
        return of_value, tuple(HloBuffer(i, tuple(m)) for i, m in enumerate(members.values()))
