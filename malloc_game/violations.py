"""What can be wrong with a memory map: the rules of docs/simulator.md, "Legal", by name."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hlo_graphs.errors import MallocGameError


class Rule(enum.IntEnum):
    """The rules by their numbers in docs/simulator.md, "Legal"."""

    DEFINITION = 0
    """A residency, eviction or part is not what the definitions say (ranges, sources, tiling)."""
    PLACE = 1
    """Offsets are aligned and inside fast memory."""
    OVERLAP = 2
    """No byte is used twice; a buffer has one residency at a time."""
    CONTENT = 3
    """Whoever reads, reads the newest content."""
    LIVE_OUT = 4
    """What leaves the program is current in slow memory at its end."""
    LOOP = 5
    """Residencies and copies contain a loop, avoid it, or lie inside it on every trip."""
    CARRIED = 6
    """Carried residencies are few, read-only, and back in place at the end."""
    NOT_ALLOWED = 7
    """The buffer may not be in fast memory at all."""
    REPLACED_COPY = 8
    """A copy done by the copy engine keeps the meaning of the instruction it replaces."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule.

    Attributes:
      rule: which.
      message: one line for people.
      buffers: indices into `Program.buffers`, of those involved.
      steps: the steps at which it is seen.
    """

    rule: Rule
    message: str
    buffers: tuple[int, ...]
    steps: tuple[int, ...]

    def __str__(self) -> str:
        return f"rule {int(self.rule)} ({self.rule.name.lower()}): {self.message}"


class InvalidMapError(MallocGameError):
    """The memory map breaks rules; `violations` has all of them, the message the first few."""

    exit_code = 4
    num_shown = 5

    def __init__(self, program_name: str, violations: tuple[Violation, ...]) -> None:
        self.violations = violations
        shown = "".join(f"\n  {violation}" for violation in violations[: self.num_shown])
        hidden = len(violations) - self.num_shown
        more = f"\n  and {hidden} more" if hidden > 0 else ""
        super().__init__(
            f"the memory map is not valid for {program_name}: "
            f"{len(violations)} violations{shown}{more}"
        )
