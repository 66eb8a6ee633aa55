"""Which computations run as part of the program's control flow, and who calls them.

Source: `xla/service/call_graph.cc`. `while`, `conditional`, `call` and asynchronous operations run
other computations; fusions, reductions and the like embed theirs, which have no buffers of their
own and are not looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule


class Role(NamedTuple):
    """As what a computation is called.

    Attributes:
      kind: "condition" or "body" of a `while`, "branch" of a `conditional`, "call", or "async".
      branch: which branch, 0 for the other kinds.
    """

    kind: str
    branch: int = 0


@dataclass(frozen=True, slots=True)
class CallSite:
    """One call of a computation.

    Attributes:
      caller: the computation the calling instruction is in.
      instruction: the caller's instruction.
      role: as what it calls.
    """

    caller: HloComputation
    instruction: HloInstruction
    role: Role


@dataclass(frozen=True)
class AsyncChain:
    """An asynchronous operation: its start, any updates, its done.

    Operands may be bound late: updates and the done add theirs after the chaining operand.

    Attributes:
      links: start, updates and done, in order; the done may be missing.
      wrapped: name of the computation it runs, None where the text does not name one.
    """

    links: tuple[HloInstruction, ...]
    wrapped: str | None

    @property
    def start(self) -> HloInstruction:
        """The first link."""
        return self.links[0]

    @property
    def done(self) -> HloInstruction | None:
        """The last link, None if the chain leaves the computation unfinished."""
        return self.links[-1] if async_part(self.links[-1].opcode) == "done" else None

    def own_operands(self, link: HloInstruction) -> tuple[str, ...]:
        """The operands that `link` itself binds."""
        return link.operands if link is self.start else link.operands[1:]

    def operands_before(self, link: HloInstruction) -> int:
        """How many operands the links before `link` bind."""
        count = 0
        for earlier in self.links:
            if earlier is link:
                break
            count += len(self.own_operands(earlier))
        return count

    @cached_property
    def bound_operands(self) -> tuple[str, ...]:
        """All operands, by the wrapped computation's parameter number."""
        return tuple(name for link in self.links for name in self.own_operands(link))


def async_part(opcode: str) -> str | None:
    """Which link of an asynchronous chain `opcode` is: "start", "update", "done", None if no link.

    Operations with a start of their own (copies, some collectives, send and recv) make no
    chains; the sugar `slice-start` is gone once a module is read.
    """
    return opcode.removeprefix("async-") if opcode.startswith("async-") else None


def control_flow_calls(instruction: HloInstruction) -> tuple[tuple[Role, str], ...]:
    """The computations `instruction` runs, in the order in which the schedule has them."""
    match instruction.opcode:
        case "while":
            return (
                (Role("condition"), _named_computation(instruction, "condition")),
                (Role("body"), _named_computation(instruction, "body")),
            )
        case "call":
            return ((Role("call"), instruction.called_computations[0]),)
        case "conditional":
            called = instruction.called_computations
            return tuple((Role("branch", number), name) for number, name in enumerate(called))
        case "async-start":
            return tuple((Role("async"), name) for name in instruction.called_computations[:1])
        case _:
            return ()


def _named_computation(instruction: HloInstruction, attribute: str) -> str:
    return instruction.attributes[attribute].removeprefix("%")


class CallGraph:
    """The computations that run, and the calls between them.

    Attributes:
      module: what it was made from.
      computations: those reached from the entry by control flow, callees before callers.
    """

    def __init__(self, module: HloModule) -> None:
        self.module = module
        self._callers: dict[str, list[CallSite]] = {}
        reached = self._reach()
        self.computations: tuple[HloComputation, ...] = tuple(
            c for name, c in module.computations.items() if name in reached
        )

    def _reach(self) -> set[str]:
        """Names of what the entry runs, directly or not; notes the callers on the way.

        Raises:
          InputError: if a called computation is missing or calls itself.
        """
        reached: set[str] = set()
        on_path: set[str] = set()
        pending: list[tuple[HloComputation, bool]] = [(self.module.entry, False)]
        while pending:
            computation, left = pending.pop()
            if left:
                on_path.discard(computation.name)
                continue
            if computation.name in reached:
                continue
            reached.add(computation.name)
            on_path.add(computation.name)
            pending.append((computation, True))
            for site, callee in self._calls_from(computation):
                if callee.name in on_path:
                    raise InputError(
                        f"{self.module.path}:{site.instruction.line}: {callee.name} calls itself"
                    )
                self._callers.setdefault(callee.name, []).append(site)
                pending.append((callee, False))
        return reached

    def _calls_from(self, caller: HloComputation) -> Iterator[tuple[CallSite, HloComputation]]:
        for instruction in caller.instructions:
            for role, name in control_flow_calls(instruction):
                callee = self.module.computations.get(name)
                if callee is None:
                    raise InputError(
                        f"{self.module.path}:{instruction.line}: {instruction.name} calls "
                        f"{name}, which is not in the module"
                    )
                yield CallSite(caller, instruction, role), callee

    def callers(self, computation: str) -> tuple[CallSite, ...]:
        """All calls of `computation`, none for the entry."""
        return tuple(self._callers.get(computation, ()))

    @cached_property
    def _chains(self) -> Mapping[tuple[str, str], AsyncChain]:
        found: dict[tuple[str, str], AsyncChain] = {}
        for computation in self.computations:
            for chain in async_chains(computation):
                for link in chain.links:
                    found[computation.name, link.name] = chain
        return found

    def chain(self, computation: HloComputation, link: HloInstruction) -> AsyncChain | None:
        """The asynchronous chain `link` belongs to; None if its start is elsewhere."""
        return self._chains.get((computation.name, link.name))


def async_chains(computation: HloComputation) -> list[AsyncChain]:
    """The asynchronous operations started in `computation`."""
    links_of_start: dict[str, list[HloInstruction]] = {}
    start_of_link: dict[str, str] = {}
    for instruction in computation.instructions:
        part = async_part(instruction.opcode)
        if part == "start":
            links_of_start[instruction.name] = [instruction]
            start_of_link[instruction.name] = instruction.name
        elif part is not None and instruction.operands[0] in start_of_link:
            start = start_of_link[instruction.operands[0]]
            links_of_start[start].append(instruction)
            start_of_link[instruction.name] = start
    return [
        AsyncChain(tuple(links), _wrapped_computation(links[0]))
        for links in links_of_start.values()
    ]


def _wrapped_computation(start: HloInstruction) -> str | None:
    calls = control_flow_calls(start)
    return calls[0][1] if calls else None
