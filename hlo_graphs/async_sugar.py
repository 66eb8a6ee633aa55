"""`slice-start` and `slice-done` as the async-start and async-done they stand for.

Source: `xla/hlo/parser/hlo_parser.cc`: any opcode without native start and done wraps into a
computation of its own. With late binding (2026) operands may come with the updates, and the
output's shape may be `()` until the end, so a chain's computation is made when the caller is
complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from hlo_graphs.checks import async_start_expected, missing_attribute
from hlo_graphs.fresh_names import WRAPPED, FreshNames
from hlo_graphs.hlo import HloComputation, HloInstruction, Shape
from hlo_graphs.opcodes import OPCODES, split_async_opcode

_ON_START = ("async_execution_thread", "metadata", "frontend_attributes", "backend_config")
_ONLY_ON_START = ("async_execution_thread", "control-predecessors")
_CHAIN_OPCODES = ("async-start", "async-update")


@dataclass(slots=True)
class _Chain:
    """A start and what follows from it.

    Attributes:
      computation: name of the computation to make.
      opcode: what it wraps.
      start: as written, with the attributes of the wrapped instruction.
      operands: names of all operands bound so far.
      output: shape of the result, as far as known.
    """

    computation: str
    opcode: str
    start: HloInstruction
    operands: tuple[str, ...]
    output: Shape


@dataclass(slots=True)
class AsyncChains:
    """The async chains of one computation under construction.

    Attributes:
      names: of the computations to make, one for all of a module.
    """

    names: FreshNames
    _by_member: dict[str, _Chain] = field(default_factory=dict)
    _chains: dict[str, _Chain] = field(default_factory=dict)

    def resolve(
        self,
        instruction: HloInstruction,
        known: Mapping[str, HloInstruction],
    ) -> HloInstruction | str:
        """The instruction without sugar, or what was expected where it is wrong.

        Args:
          instruction: as read.
          known: the instructions above it.
        """
        if instruction.opcode in OPCODES:
            return self._resolve_plain(instruction, known)
        split = split_async_opcode(instruction.opcode)
        if split is None:
            return instruction
        wrapped, phase = split
        if phase == "start":
            return self._begin(instruction, wrapped)
        native = f"{wrapped}-start"
        if native in OPCODES:
            return f"{native} has no {phase}; an opcode"
        renamed = replace(instruction, opcode=f"async-{phase}", called_computations=())
        return self._continue(renamed, wrapped, known)

    def _resolve_plain(
        self, instruction: HloInstruction, known: Mapping[str, HloInstruction]
    ) -> HloInstruction | str:
        if instruction.opcode in ("async-start", "async-update"):
            expected = async_start_expected(instruction.shape.elements)
            if expected is not None:
                return f"{expected}, before"
        if instruction.opcode in ("async-update", "async-done"):
            return self._continue(instruction, None, known)
        return instruction

    def _begin(self, instruction: HloInstruction, wrapped: str) -> HloInstruction | str:
        expected = async_start_expected(instruction.shape.elements) or missing_attribute(
            wrapped, instruction.attributes
        )
        if expected is not None:
            return f"{expected}, before"
        name = self.names.make(WRAPPED)
        written = instruction.attributes
        kept = {key: written[key] for key in (*_ON_START, *_ONLY_ON_START) if key in written}
        chain = _Chain(
            name, wrapped, instruction, instruction.operands, instruction.shape.elements[1]
        )
        self._chains[name] = chain
        self._by_member[instruction.name] = chain
        return replace(
            instruction,
            opcode="async-start",
            attributes={"calls": f"%{name}", **kept},
            called_computations=(name,),
        )

    def _continue(
        self, instruction: HloInstruction, wrapped: str | None, known: Mapping[str, HloInstruction]
    ) -> HloInstruction | str:
        first = known.get(instruction.operands[0]) if instruction.operands else None
        if first is None or first.opcode not in _CHAIN_OPCODES:
            return "an async-start or async-update as its first operand, before"
        chain = self._by_member.get(first.name)
        if chain is None:
            return instruction
        if wrapped is not None and wrapped != chain.opcode:
            return f"the end of {chain.opcode}-start, not"
        self._by_member[instruction.name] = chain
        chain.operands += instruction.operands[1:]
        _update_output(chain, instruction)
        return instruction

    def computations(
        self, known: Mapping[str, HloInstruction]
    ) -> Iterator[tuple[str, HloComputation]]:
        """The wrapped computations, by name, once every chain is complete."""
        for name, chain in self._chains.items():
            yield name, _wrapped_computation(chain, known)


def _update_output(chain: _Chain, instruction: HloInstruction) -> None:
    """Learns the output's shape; `()` in an update means that it is still open."""
    elements = instruction.shape.elements
    if instruction.opcode == "async-done":
        chain.output = instruction.shape
    elif len(elements) > 1 and not (elements[1].is_tuple and not elements[1].elements):
        chain.output = elements[1]


def _wrapped_computation(chain: _Chain, known: Mapping[str, HloInstruction]) -> HloComputation:
    line = chain.start.line
    body: list[HloInstruction] = []
    for number, operand in enumerate(chain.operands):
        name = f"async_param.{number}" if number else "async_param"
        shape = known[operand].shape
        body.append(HloInstruction(name, "parameter", shape, (), str(number), {}, (), False, line))
    written = chain.start.attributes
    wrapped = HloInstruction(
        chain.opcode,
        chain.opcode,
        chain.output,
        tuple(parameter.name for parameter in body),
        "",
        {key: value for key, value in written.items() if key not in _ONLY_ON_START},
        chain.start.called_computations,
        True,
        line,
    )
    thread = written.get("async_execution_thread")
    return HloComputation(
        chain.computation,
        (*body, wrapped),
        wrapped,
        False,
        None if thread is None else thread.strip("\"'"),
    )
