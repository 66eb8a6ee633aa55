"""What a scheduled instruction touches: which alias sets it reads and writes, leaf by leaf.

Instructions that only forward values take no step; a step's accesses name every array leaf of its
operands and results, so that a cost model's figures can be looked up and added per buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hlo_graphs.aliasing import AliasAnalysis
from hlo_graphs.call_graph import async_part
from hlo_graphs.costs import IDLE_TARGETS
from hlo_graphs.hlo import HloInstruction
from hlo_graphs.live_range import ScheduledInstruction
from hlo_graphs.program import AccessKind
from hlo_graphs.times import FORWARDING, LeafKey


class LeafAccess(NamedTuple):
    """One array leaf of an operand or result.

    Attributes:
      buffer: the alias set, index into `AliasAnalysis.buffers`.
      kind: read of an operand, write of a result.
      leaf: which leaf, as cost models name it.
    """

    buffer: int
    kind: AccessKind
    leaf: LeafKey


def is_forwarding(instruction: HloInstruction) -> bool:
    """Whether it takes no step: it passes values on, or its callees do the work."""
    opcode = instruction.opcode
    if opcode == "custom-call":
        return instruction.custom_call_target in IDLE_TARGETS
    return opcode in FORWARDING or opcode.endswith("-done") or async_part(opcode) == "update"


def leaf_accesses(aliases: AliasAnalysis, position: ScheduledInstruction) -> tuple[LeafAccess, ...]:
    """Reads of the operands, then writes of the results that the step makes, not forwards."""
    return (*_reads(aliases, position), *_writes(aliases, position))


def _reads(aliases: AliasAnalysis, position: ScheduledInstruction) -> Iterator[LeafAccess]:
    computation = aliases.module.computations[position.computation]
    for number, operand in enumerate(position.instruction.operands):
        for index, shape in computation.instruction(operand).shape.subshapes():
            if shape.is_array:
                buffer = aliases.buffer_at(computation.name, operand, index)
                yield LeafAccess(buffer, AccessKind.READ, ("operand", number, index))


def _writes(aliases: AliasAnalysis, position: ScheduledInstruction) -> Iterator[LeafAccess]:
    computation, instruction = position
    is_start = async_part(instruction.opcode) == "start"
    given = set(_operand_values(aliases, position)) if is_start else set()
    for index, shape in instruction.shape.subshapes():
        if not shape.is_array:
            continue
        values = aliases.values_at(computation, instruction.name, index)
        own = (aliases.values[v].position for v in values)
        is_own = any((p.computation, p.instruction) == (computation, instruction.name) for p in own)
        # An asynchronous chain's result is made by what its start wraps, which takes no steps.
        if is_own or (is_start and given.isdisjoint(values)):
            buffer = aliases.buffer_at(computation, instruction.name, index)
            yield LeafAccess(buffer, AccessKind.WRITE, ("output", index))


def _operand_values(aliases: AliasAnalysis, position: ScheduledInstruction) -> Iterator[int]:
    computation = aliases.module.computations[position.computation]
    for operand in position.instruction.operands:
        for index, _ in computation.instruction(operand).shape.subshapes():
            yield from aliases.values_at(computation.name, operand, index)
