"""The flattened schedule and when each value lives.

Source: `xla/hlo/utils/hlo_live_range.cc`, module scope. Times are places in the flattened schedule;
live ranges include both ends, as XLA prints them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hlo_graphs.aliasing import AliasAnalysis
from hlo_graphs.call_graph import AsyncChain, CallGraph, async_part, control_flow_calls
from hlo_graphs.dataflow import Dataflow, HloValue
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule


class Span(NamedTuple):
    """Half-open range of times; nested spans lie within those of their callers."""

    start: int
    end: int


class LiveRange(NamedTuple):
    """First and last time a value must be kept; both included."""

    start: int
    end: int


class ScheduledInstruction(NamedTuple):
    """One place of the flattened schedule."""

    computation: str
    instruction: HloInstruction


@dataclass(frozen=True, slots=True)
class ControlFlow:
    """A `while` or `conditional` of the schedule with the times of what it runs.

    Attributes:
      time: of the instruction itself, which comes after what it runs.
      computation: name of the computation it is in.
      instruction: the `while` or `conditional`.
      spans: of a `while` those of condition and body; of a `conditional` one per branch.
    """

    time: int
    computation: str
    instruction: HloInstruction
    spans: tuple[Span, ...]

    @property
    def is_loop(self) -> bool:
        """Whether it is a `while`."""
        return self.instruction.opcode == "while"


@dataclass(frozen=True)
class FlatSchedule:
    """All instructions of a module in one line, callees before the calling instruction.

    Attributes:
      positions: by time.
      time_of: per (computation, instruction name) its time.
      spans: per computation name the times of its instructions and of what they call.
      async_done: per computation that runs inside an asynchronous operation the time of the
        operation's done.
    """

    positions: tuple[ScheduledInstruction, ...]
    time_of: Mapping[tuple[str, str], int]
    spans: Mapping[str, Span]
    async_done: Mapping[str, int]

    @property
    def end_time(self) -> int:
        """One past the last time: how long what the program returns lives."""
        return len(self.positions)

    def control_flow(self) -> tuple[ControlFlow, ...]:
        """All loops and conditionals, by time."""
        found = []
        for time, (computation, instruction) in enumerate(self.positions):
            if instruction.opcode in ("while", "conditional"):
                spans = tuple(self.spans[name] for _, name in control_flow_calls(instruction))
                found.append(ControlFlow(time, computation, instruction, spans))
        return tuple(found)


def flatten_schedule(module: HloModule) -> FlatSchedule:
    """The module's schedule with called computations in place, each once.

    Called computations come before the instruction that calls them: of a `while` the condition,
    then the body; of an asynchronous operation before the first link that binds everything.

    Raises:
      InputError: if the module is not scheduled.
    """
    if not module.is_scheduled:
        raise InputError(
            f"{module.path}: module {module.name} is not scheduled; text order is a schedule only "
            "with is_scheduled=true in the header"
        )
    return _Flattener(CallGraph(module)).run()


class _Flattener:
    """Walks the computations depth first."""

    def __init__(self, graph: CallGraph) -> None:
        self._graph = graph
        self._positions: list[ScheduledInstruction] = []
        self._time_of: dict[tuple[str, str], int] = {}
        self._spans: dict[str, Span] = {}
        self._context: dict[str, str] = {}
        self._chains: dict[str, tuple[str, AsyncChain]] = {}

    def run(self) -> FlatSchedule:
        """The flattened schedule of the module."""
        self._visit(self._graph.module.entry, None)
        return FlatSchedule(
            tuple(self._positions), self._time_of, self._spans, dict(self._async_done())
        )

    def _visit(self, computation: HloComputation, context: str | None) -> None:
        """Appends a computation; `context` is the wrapped computation it runs within, if any."""
        if computation.name in self._spans:
            return
        if context is not None:
            self._context[computation.name] = context
        start = len(self._positions)
        for instruction in computation.instructions:
            for name, inner in self._callees(computation, instruction, context):
                self._visit(self._graph.module.computations[name], inner)
            self._time_of[computation.name, instruction.name] = len(self._positions)
            self._positions.append(ScheduledInstruction(computation.name, instruction))
        self._spans[computation.name] = Span(start, len(self._positions))

    def _callees(
        self, computation: HloComputation, instruction: HloInstruction, context: str | None
    ) -> list[tuple[str, str | None]]:
        """What to append before `instruction`, each with its asynchronous context."""
        if async_part(instruction.opcode) is None:
            return [(name, context) for _, name in control_flow_calls(instruction)]
        chain = self._graph.chain(computation, instruction)
        if chain is None or chain.wrapped is None:
            return []
        wrapped = self._graph.module.computations[chain.wrapped]
        if first_bound_link(chain, wrapped) is not instruction:
            return []
        self._chains[wrapped.name] = (computation.name, chain)
        return [(wrapped.name, wrapped.name)]

    def _async_done(self) -> list[tuple[str, int]]:
        """Per computation within an asynchronous operation when that is done.

        Without a done in the same computation the operation is taken to end with its own span.
        """
        found = []
        for computation, context in self._context.items():
            caller, chain = self._chains[context]
            done = chain.done
            time = self._spans[computation].end
            if done is not None:
                time = self._time_of[caller, done.name]
            found.append((computation, time))
        return found


def first_bound_link(chain: AsyncChain, wrapped: HloComputation) -> HloInstruction | None:
    """The first link at which all operands and the output are bound; None if there is none."""
    for link in chain.links:
        bound = chain.operands_before(link) + len(chain.own_operands(link))
        if bound >= len(wrapped.parameters) and _is_output_bound(chain, link, wrapped):
            return link
    return None


def _is_output_bound(chain: AsyncChain, link: HloInstruction, wrapped: HloComputation) -> bool:
    """Whether the link's result has a place for everything the wrapped computation returns."""
    if link is chain.done:
        return True
    if len(link.shape.elements) < 2:
        return False
    output = link.shape.elements[1]
    nodes = sum(1 for _ in output.subshapes())
    return nodes >= sum(1 for _ in wrapped.root.shape.subshapes()) and (
        output.is_tuple == wrapped.root.shape.is_tuple
    )


def live_ranges(
    module: HloModule, aliases: AliasAnalysis, schedule: FlatSchedule
) -> dict[int, LiveRange]:
    """Per value id when it lives, for all values defined in the schedule.

    The ranges of one buffer's values do not overlap beyond their ends: each is cut where the
    next begins.
    """
    ranges = _Ranges(module, aliases.dataflow, schedule)
    found = {
        value.id: ranges.of(value)
        for value in aliases.values
        if (value.computation, value.instruction) in schedule.time_of
    }
    for buffer in aliases.buffers:
        if len(buffer.values) > 1:
            _normalise([value for value in buffer.values if value in found], found)
    return found


def _normalise(values: list[int], found: dict[int, LiveRange]) -> None:
    """Makes the ranges of one buffer follow each other (NormalizeAliasedBuffers)."""
    values.sort(key=lambda value: (found[value], value))
    for this, following in itertools.pairwise(values):
        end = found[this].end
        start = found[following].start
        found[following] = LiveRange(start, max(end, found[following].end))
        found[this] = LiveRange(found[this].start, min(end, start))


class _Ranges:
    """Live ranges of single values, before those of one buffer are made to follow each other."""

    def __init__(self, module: HloModule, dataflow: Dataflow, schedule: FlatSchedule) -> None:
        self._module = module
        self._dataflow = dataflow
        self._schedule = schedule
        self._donated = {
            (module.entry.parameters[alias.parameter_number].name, alias.parameter_index)
            for alias in module.input_output_alias
        }

    def of(self, value: HloValue) -> LiveRange:
        """The range of one value."""
        start = self._schedule.time_of[value.computation, value.instruction]
        if self._is_parameter(value):
            start = self._schedule.spans[value.computation].start
            if self._is_kept_parameter(value):
                return LiveRange(start, self._schedule.end_time)
        return LiveRange(start, self._end(value))

    def _is_parameter(self, value: HloValue) -> bool:
        computation = self._dataflow.computation(value.computation)
        return computation.instruction(value.instruction).opcode == "parameter"

    def _is_kept_parameter(self, value: HloValue) -> bool:
        """Whether it is a parameter of the program that no output replaces."""
        is_entry = value.computation == self._module.entry.name
        return is_entry and (value.instruction, value.index) not in self._donated

    def _end(self, value: HloValue) -> int:
        """The last time at which it is somewhere or used."""
        times = [self._held_until(*p[:2]) for p in self._dataflow.positions[value.id]]
        times.append(self._schedule.async_done.get(value.computation, -1))
        for use in self._dataflow.uses[value.id]:
            user = self._dataflow.computation(use.computation).instruction(use.instruction)
            times.append(self._use_time(use.computation, user))
        return max(times)

    def _held_until(self, computation: str, instruction: str) -> int:
        """A root's value stays until its computation ends."""
        if self._dataflow.is_root(computation, instruction):
            return self._schedule.spans[computation].end
        return self._schedule.time_of[computation, instruction]

    def _use_time(self, computation: str, user: HloInstruction) -> int:
        """When a use happens: a loop takes its initial value over as its body begins."""
        if user.opcode == "call":
            return -1
        if user.opcode == "while":
            body = self._dataflow.computation(control_flow_calls(user)[1][1])
            return self._schedule.time_of[body.name, body.parameters[0].name]
        return self._schedule.time_of[computation, user.name]
