"""What memory-space assignment works on: values over logical times, wherever they come from.

Source: `MsaAlgorithm` (`xla/service/memory_space_assignment/algorithm.cc`), its allocation values,
their uses and required assignments. A `MsaProblem` is made from a `Program`
(`msa_program`: steps are the logical times) or, for the conformance tests, from a scheduled HLO
module (the flattened schedule is). Times are inclusive at both ends, as in XLA.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MsaUse:
    """One use of a value.

    Attributes:
      time: when the value must be there: XLA's corrected use time.
      latest_prefetch_time: a prefetch for it is done before this time.
      hold_until: last time at which fast memory that serves it must still be held; beyond `time`
        only for a loop that a residency can cover as a whole only.
      name: of the using instruction.
      operand: operand number; for hints and reports.
      size_bytes: bytes it reads.
      result_elements: of the using instruction's result.
      reduction_ticks: by which its instruction gets faster when it is served fast.
      required_default: it may not be served from fast memory.
      aliases: (value, time) of definitions and positions that share its place.
      is_while: a loop takes the value over.
      conditional: identifies the conditional that takes the value over, None: none does.
      first_inside: per computation entered, (its parameter's time, first use inside or None);
        what decides whether entering in fast memory is of use.
    """

    time: int
    latest_prefetch_time: int
    hold_until: int
    name: str
    operand: int = 0
    size_bytes: int = 0
    result_elements: int = 0
    reduction_ticks: float = 0.0
    required_default: bool = False
    aliases: tuple[tuple[int, int], ...] = ()
    is_while: bool = False
    conditional: int | None = None
    first_inside: tuple[tuple[int, int | None], ...] = ()


@dataclass(frozen=True, slots=True)
class MsaValue:
    """A place where a value is defined or arrives, with the uses that see it from there.

    Attributes:
      value: identifies the value; required assignments are kept per value and time.
      name: of the defining instruction.
      time: definition time; -1 (or one before a loop) for what is there before.
      scope: identifies the computation (or loop) it belongs to.
      nest: computation nest level of that.
      uses: by time.
      required_default: it is defined in default memory and nowhere else.
      precolored: it must be in fast memory all its life.
      contiguous: it may not change its place between definition and last use.
      size_bytes: bytes its definition writes, 0 if it only arrives here.
      covered_by: uses that stand for all of this value when they are served fast, as
        (index in the group, index of the use).
    """

    value: int
    name: str
    time: int
    scope: int
    nest: int
    uses: tuple[MsaUse, ...]
    required_default: bool = False
    precolored: bool = False
    contiguous: bool = False
    size_bytes: int = 0
    covered_by: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class MsaBuffer:
    """Values that share memory: tried as one (XLA's joint proposal).

    Attributes:
      id: for ties.
      name: of its first value's instruction.
      size_bytes: in fast memory.
      start, end: first and last time of its life.
      values: by time.
      boundedness: time saved by fast memory, before scaling by the size.
      copy_ticks: of one copy of it.
      unrounded_bytes: its size before that was rounded up to the alignment, which it is ordered
        and weighed by; 0: `size_bytes`.
      allowed: whether it may be in fast memory at all.
      cross_program: a parameter that could be left in place for the next run.
    """

    id: int
    name: str
    size_bytes: int
    start: int
    end: int
    values: tuple[MsaValue, ...]
    boundedness: float = 0.0
    copy_ticks: int = 0
    unrounded_bytes: int = 0
    allowed: bool = True
    cross_program: bool = False

    @property
    def latest_use_time(self) -> int:
        """Of all its values."""
        return max((use.time for value in self.values for use in value.uses), default=self.end)

    @property
    def content_bytes(self) -> int:
        """What there is to copy."""
        return self.unrounded_bytes or self.size_bytes

    @property
    def result_elements(self) -> int:
        """Elements of the results that it is used for."""
        return sum(use.result_elements for value in self.values for use in value.uses)


@dataclass(frozen=True)
class MsaProblem:
    """Everything the algorithm needs to know.

    Attributes:
      num_times: logical times are 0..num_times-1; num_times is the end of the schedule.
      capacity_bytes: of fast memory.
      alignment_bytes: of offsets.
      elapsed_ticks: [num_times] of each instruction in default memory; 0 for loops. Also the
        time in which copies may be served.
      while_nest: [num_times] loops around each.
      nest: [num_times] computation nest level.
      max_copy_ticks: copy time of as much as fast memory holds.
      buffers: in any order.
      names: [num_times] instruction names, for hints.
      one_place_at_a_time: a value is never at two places in fast memory.
      inside: per scope, times at which a loop is under way that is not around it: no copy of
        that scope may end there, nor one begin that is issued after the time before.
      required: per value the times at which it must be in default memory.
    """

    num_times: int
    capacity_bytes: int
    alignment_bytes: int
    elapsed_ticks: tuple[int, ...]
    while_nest: tuple[int, ...]
    nest: tuple[int, ...]
    max_copy_ticks: float
    buffers: tuple[MsaBuffer, ...]
    names: tuple[str, ...] = ()
    one_place_at_a_time: bool = False
    inside: dict[int, frozenset[int]] = field(default_factory=dict)
    required: dict[int, tuple[int, ...]] = field(default_factory=dict)
