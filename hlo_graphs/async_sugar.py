"""`slice-start` and `slice-done` as the async-start and async-done they stand for.

Source: XLA_MSA.md section G.3: any opcode without native start and done wraps into a computation
of its own. With late binding (2026) operands may come with the updates, and the output's shape
may be `()` until the end, so a chain's computation is made when the caller is complete.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from hlo_graphs.hlo import HloComputation, HloInstruction, Shape
from hlo_graphs.opcodes import split_async_opcode

_KEPT_ON_START = ("async_execution_thread", "metadata", "frontend_attributes", "backend_config")
_ONLY_ON_START = ("async_execution_thread", "control-predecessors")
_PHASES = ("async-start", "async-update", "async-done")


def computation_of(
    name: str,
    instructions: list[HloInstruction],
    is_entry: bool = False,
    execution_thread: str | None = None,
) -> HloComputation:
    """A computation whose root is the instruction marked so, or the last one."""
    marked = [index for index, instruction in enumerate(instructions) if instruction.is_root]
    root = marked[-1] if marked else len(instructions) - 1
    for index in marked[:-1]:
        instructions[index] = replace(instructions[index], is_root=False)
    if not marked:
        instructions[root] = replace(instructions[root], is_root=True)
    return HloComputation(name, tuple(instructions), instructions[root], is_entry, execution_thread)


@dataclass(slots=True)
class _Chain:
    """A start and what follows from it.

    Attributes:
      computation: name of the computation to make.
      opcode: what it wraps.
      start: the async-start.
      attributes: of the wrapped instruction.
      operands: names of all operands bound so far.
      output: shape of the result, as far as known.
    """

    computation: str
    opcode: str
    start: HloInstruction
    attributes: Mapping[str, str]
    operands: tuple[str, ...]
    output: Shape


@dataclass(slots=True)
class AsyncChains:
    """The async chains of one computation under construction."""

    _by_member: dict[str, _Chain] = field(default_factory=dict)
    _chains: list[_Chain] = field(default_factory=list)

    def resolve(
        self,
        instruction: HloInstruction,
        values: Mapping[str, str],
        known: Mapping[str, HloInstruction],
        taken: Collection[str],
    ) -> HloInstruction | str:
        """The instruction without sugar, or what was expected where it is wrong.

        Args:
          instruction: as read.
          values: its attributes.
          known: the instructions above it.
          taken: names of computations that exist.
        """
        split = split_async_opcode(instruction.opcode)
        if split is None:
            if instruction.opcode in ("async-update", "async-done"):
                return self._continue(instruction, None, known)
            return instruction
        wrapped, phase = split
        if phase == "start":
            return self._begin(instruction, wrapped, values, taken)
        renamed = replace(instruction, opcode=f"async-{phase}")
        return self._continue(renamed, wrapped, known)

    def _begin(
        self,
        instruction: HloInstruction,
        wrapped: str,
        values: Mapping[str, str],
        taken: Collection[str],
    ) -> HloInstruction | str:
        elements = instruction.shape.elements
        if len(elements) < 2 or not elements[0].is_tuple:
            return "an async shape: ((operands), output, context...)"
        used = {chain.computation for chain in self._chains} | set(taken)
        number = 0
        name = "async_wrapped"
        while name in used:
            number += 1
            name = f"async_wrapped.{number}"
        kept = {key: values[key] for key in _KEPT_ON_START if key in values}
        kept |= {key: values[key] for key in _ONLY_ON_START if key in values}
        text = "".join(f", {key}={value}" for key, value in kept.items())
        start = replace(
            instruction,
            opcode="async-start",
            attribute_text=f", calls=%{name}{text}",
            called_computations=(name,),
        )
        inner = {key: value for key, value in values.items() if key not in _ONLY_ON_START}
        chain = _Chain(name, wrapped, instruction, inner, instruction.operands, elements[1])
        self._chains.append(chain)
        self._by_member[instruction.name] = chain
        return start

    def _continue(
        self, instruction: HloInstruction, wrapped: str | None, known: Mapping[str, HloInstruction]
    ) -> HloInstruction | str:
        first = known.get(instruction.operands[0]) if instruction.operands else None
        if first is None or first.opcode not in ("async-start", "async-update"):
            return "an async-start or async-update as its first operand"
        chain = self._by_member.get(first.name)
        if chain is None:
            return instruction
        if wrapped is not None and wrapped != chain.opcode:
            return f"the end of {chain.opcode}-start"
        self._by_member[instruction.name] = chain
        chain.operands += instruction.operands[1:]
        is_done = instruction.opcode == "async-done"
        elements = instruction.shape.elements
        output = instruction.shape if is_done else elements[1] if len(elements) > 1 else None
        if output is not None and (is_done or output.elements or not output.is_tuple):
            chain.output = output
        return instruction

    def computations(
        self, known: Mapping[str, HloInstruction]
    ) -> Iterator[tuple[str, HloComputation]]:
        """The wrapped computations, by name, once every chain is complete."""
        for chain in self._chains:
            yield chain.computation, _wrapped_computation(chain, known)


def _wrapped_computation(chain: _Chain, known: Mapping[str, HloInstruction]) -> HloComputation:
    line = chain.start.line
    body = [
        HloInstruction(
            f"param_{i}", "parameter", known[name].shape, (), str(i), "", (), False, line
        )
        for i, name in enumerate(chain.operands)
    ]
    parameters = tuple(parameter.name for parameter in body)
    text = "".join(f", {key}={value}" for key, value in chain.attributes.items())
    called = chain.start.called_computations
    body.append(
        HloInstruction(
            chain.opcode, chain.opcode, chain.output, parameters, "", text, called, True, line
        )
    )
    thread = chain.start.attributes.get("async_execution_thread")
    return computation_of(chain.computation, body, False, thread.strip('"') if thread else None)
