"""Which alias sets an asynchronous operation reads or fills while other steps run.

An operation that starts at one instruction and is done at a later one uses its operands and
results in between. A step of a `Program` touches its buffers during that step alone, so nothing
in it would keep a map from moving such a buffer, or from using its room, too early.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hlo_graphs.aliasing import AliasAnalysis
from hlo_graphs.call_graph import async_part
from hlo_graphs.hlo import HloComputation, HloInstruction
from hlo_graphs.live_range import FlatSchedule


@dataclass(frozen=True, slots=True)
class _Operation:
    """An asynchronous operation.

    Attributes:
      computation: where it is.
      links: its instructions, the start first.
      is_finished: the last of them is its done; else it may be under way to the end.
    """

    computation: HloComputation
    links: tuple[HloInstruction, ...]
    is_finished: bool


def buffers_in_flight(
    aliases: AliasAnalysis, schedule: FlatSchedule, step_times: Sequence[int]
) -> frozenset[int]:
    """Alias sets of the operands and results of operations that other steps run beside.

    Args:
      aliases: of the module.
      schedule: likewise.
      step_times: the schedule times of the steps, ascending.
    """
    found: set[int] = set()
    for operation in _operations(aliases):
        name = operation.computation.name
        if name not in schedule.spans:  # an asynchronous computation whose operands nobody binds
            continue
        start = schedule.time_of[name, operation.links[0].name]
        end = schedule.end_time
        if operation.is_finished:
            end = schedule.time_of[name, operation.links[-1].name]
        if bisect_right(step_times, start) < bisect_left(step_times, end):
            for link in operation.links:
                for instruction in (link.name, *link.operands):
                    found.update(_arrays(aliases, operation.computation, instruction))
    return frozenset(found)


def _operations(aliases: AliasAnalysis) -> Iterator[_Operation]:
    graph = aliases.dataflow.graph
    for computation in graph.computations:
        dones = {i.operands[0]: i for i in computation.instructions if _is_lone_done(i)}
        for instruction in computation.instructions:
            if async_part(instruction.opcode) == "start":
                chain = graph.chain(computation, instruction)
                assert chain is not None  # its own start is a link of it
                yield _Operation(computation, chain.links, chain.done is not None)
            elif instruction.opcode.endswith("-start") or instruction.opcode in ("send", "recv"):
                done = dones.get(instruction.name)
                links = (instruction,) if done is None else (instruction, done)
                yield _Operation(computation, links, done is not None)


def _is_lone_done(instruction: HloInstruction) -> bool:
    """Whether it ends an operation whose start has an opcode of its own."""
    return instruction.opcode.endswith("-done") and async_part(instruction.opcode) is None


def _arrays(aliases: AliasAnalysis, computation: HloComputation, name: str) -> Iterator[int]:
    for index, shape in computation.instruction(name).shape.subshapes():
        if shape.is_array:
            yield from aliases.buffers_at(computation.name, name, index)
