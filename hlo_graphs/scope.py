"""What the reader of one computation knows while it reads.

Source: `HloParserImpl::Scope`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hlo_graphs.async_sugar import AsyncChains
from hlo_graphs.fresh_names import FreshNames
from hlo_graphs.hlo import HloComputation, HloInstruction


@dataclass(slots=True)
class Scope:
    """Instructions so far.

    Attributes:
      chains: the async chains begun.
      by_name: in the order of the text.
      root: name of the instruction marked ROOT.
    """

    chains: AsyncChains
    by_name: dict[str, HloInstruction] = field(default_factory=dict)
    root: str | None = None
    _names: FreshNames = field(init=False)

    def __post_init__(self) -> None:
        self._names = FreshNames(self.by_name)

    def add(self, instruction: HloInstruction) -> None:
        """Appends to the schedule."""
        self.by_name[instruction.name] = instruction
        if instruction.is_root:
            self.root = instruction.name

    def fresh_name(self, wanted: str) -> str:
        """`wanted`, with a number behind it where it is taken."""
        return self._names.make(wanted)

    def wrapped_computations(self) -> Mapping[str, HloComputation]:
        """Those that async sugar stands for, once the computation is complete."""
        return dict(self.chains.computations(self.by_name))

    def computation(self, name: str, is_entry: bool) -> HloComputation:
        """The complete computation; the last instruction is the root if none is marked."""
        if self.root is None:
            last = next(reversed(self.by_name))
            self.add(replace(self.by_name[last], is_root=True))
            self.root = last
        instructions = tuple(self.by_name.values())
        return HloComputation(name, instructions, self.by_name[self.root], is_entry)
