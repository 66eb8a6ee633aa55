"""Options of the memory-space assignment: OpenXLA's names, defaults and meaning.

Source: `options.h`, `cost_analysis.h` and `memory_space_assignment.proto` in
`xla/service/memory_space_assignment/`. What a backend hands over as callbacks is either part of the
problem (`msa_problem`), or given here as a function of logical times.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from hlo_graphs.errors import InputError


class BufferOrder(enum.StrEnum):
    """In which order buffers are tried (`buffer_interval_comparator.cc`)."""

    MEMORY_BOUNDEDNESS = "memory-boundedness"
    """Time saved over the square root of the size, largest first."""
    SIZE = "size"
    """Largest first, then longest: without a comparator."""


class PickerKind(enum.StrEnum):
    """How prefetch windows are proposed (`prefetch_interval_picker.cc`)."""

    COST_ANALYSIS = "cost-analysis"
    INSTRUCTION_COUNT = "instruction-count"


class ElapsedModel(enum.StrEnum):
    """How long steps take, to the pickers and the copies' bandwidth."""

    PROGRAM = "program"
    """As the Program says, everything slow."""
    ROOFLINE = "roofline"
    """The longer of compute, operations over peak, and bytes over bandwidth."""


@dataclass(frozen=True, slots=True)
class PickerOptions:
    """Parameters of the prefetch interval picker.

    Attributes:
      kind: by time, or by number of instructions.
      min_overlap: least time under a copy, over the copy's own (less what the use gains).
      preferred_overlap: what is aimed at.
      max_overlap: the longest wait, over the copy time of `max_overlap_size_bytes`.
      max_overlap_size_bytes: XLA's `mem_size`; None: the alternate memory's size.
      size_override_bytes: stands for every buffer's size in copy times; None: the real sizes.
      min_count, max_count: of instructions, for `INSTRUCTION_COUNT`.
    """

    kind: PickerKind = PickerKind.COST_ANALYSIS
    min_overlap: float = 1.0
    preferred_overlap: float = 2.0
    max_overlap: float = 10.0
    max_overlap_size_bytes: int | None = None
    size_override_bytes: int | None = None
    min_count: int = 2
    max_count: int = 10


@dataclass(frozen=True, slots=True)
class PrefetchOverride:
    """Preferred prefetch start of some uses (`PreferredPrefetchOverrides`): the first match wins.

    Attributes:
      instruction_regex: full match of the using instruction's name; None matches all.
      operand_number: of the use; None matches all.
      size_gte, size_lte: bounds on the buffer's bytes; None: none.
      prefetch_eagerness: 0 the earliest time, 1 the latest.
      after_instruction, before_instruction: full match of a name; the copy is issued after it,
        or before it. Exactly one of the three is given.
    """

    instruction_regex: str | None = None
    operand_number: int | None = None
    size_gte: int | None = None
    size_lte: int | None = None
    prefetch_eagerness: float | None = None
    after_instruction: str | None = None
    before_instruction: str | None = None


@dataclass(frozen=True, slots=True)
class SortOverride:
    """Priority of some buffers (`MsaSortOrderOverrides`): first match wins, lower comes earlier.

    Attributes:
      instruction_regex: full match of the defining instruction's name; None matches all.
      size_gte, size_lte: bounds on the buffer's bytes; None: none.
      use_regex: some use's instruction name must match; None: no matter.
      priority: `ASSIGN_FIRST`, `ASSIGN_LAST` or any number; 0 is everyone else's.
    """

    priority: int
    instruction_regex: str | None = None
    size_gte: int | None = None
    size_lte: int | None = None
    use_regex: str | None = None


ASSIGN_FIRST = -(2**63)
ASSIGN_LAST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class MsaOptions:
    """Everything that may be chosen. Defaults are OpenXLA's where it has one.

    Attributes:
      order: of buffers.
      elapsed_model: how long steps take, on a Program.
      large_buffer_scaling: divide the benefit by the square root of the size ("SQRT"), or not.
      while_execution_count: trips assumed per loop level by picker and benefit.
      async_copy_bandwidth_scaling: share of the bandwidth that copies are taken to reach.
      default_cross_program_prefetch_heuristic: order its candidates like other buffers.
      picker: of prefetch intervals.
      max_outstanding_prefetches, max_outstanding_evictions: negative is unlimited, 0 disables.
      while_use_extra_outstanding_prefetch_limit: added to the former for uses by loops.
      max_retries: attempts per buffer; each lets evictions take longer, the last ignores the
        bandwidth that they lack.
      max_repacks: calls of the repacker in the whole run.
      repack_after_every_allocation: for testing.
      verify: check at the end that nothing overlaps.
      enable_cross_program_prefetch: leave a parameter in place for the next run.
      enable_cross_program_prefetch_freeing: use its place between last use and end if scarce.
      cross_program_prefetch_permissive_mode: unknown users do not disqualify a parameter.
      max_cross_program_prefetches: negative is unlimited; on a Program only 0 or 1.
      enforce_prefetch_fifo_order: no prefetch may overtake another.
      inefficient_use_to_copy_ratio: times bytes copied, may not exceed bytes used; 0 is off.
      enable_while_redundant_eviction_elimination: what has a copy in default memory when it
        enters a loop needs no eviction after it.
      preferred_prefetch_overrides: hints for prefetch starts; such copies reserve no bandwidth.
      sort_order_overrides: hints for the order.
      autotuning_config: permutation of the sorted buffers: position `i` gets `config[i]`.
      reserved_scoped_bytes: per logical time, bytes at offset 0 that are taken (missing: none).
      post_module_scoped_bytes: bytes taken at the end of the schedule.
      allocate_reserved_scoped_memory_at_same_offset: the repacker
        moves them all together.
    """

    order: BufferOrder = BufferOrder.MEMORY_BOUNDEDNESS
    elapsed_model: ElapsedModel = ElapsedModel.ROOFLINE
    large_buffer_scaling: str = "SQRT"
    while_execution_count: int = 5
    async_copy_bandwidth_scaling: float = 1.0
    default_cross_program_prefetch_heuristic: bool = False
    picker: PickerOptions = field(default_factory=PickerOptions)
    max_outstanding_prefetches: int = -1
    max_outstanding_evictions: int = -1
    while_use_extra_outstanding_prefetch_limit: int = 0
    max_retries: int = 1
    max_repacks: int = 0
    repack_after_every_allocation: bool = False
    verify: bool = False
    enable_cross_program_prefetch: bool = True
    enable_cross_program_prefetch_freeing: bool = True
    cross_program_prefetch_permissive_mode: bool = False
    max_cross_program_prefetches: int = 1
    enforce_prefetch_fifo_order: bool = False
    inefficient_use_to_copy_ratio: float = 0.0
    enable_while_redundant_eviction_elimination: bool = True
    preferred_prefetch_overrides: tuple[PrefetchOverride, ...] = ()
    sort_order_overrides: tuple[SortOverride, ...] = ()
    autotuning_config: tuple[int, ...] | None = None
    reserved_scoped_bytes: tuple[tuple[int, int], ...] = ()
    post_module_scoped_bytes: int = 0
    allocate_reserved_scoped_memory_at_same_offset: bool = True

    def __post_init__(self) -> None:
        if self.large_buffer_scaling not in ("SQRT", "NO_SCALE"):
            raise InputError(
                f"large_buffer_scaling is {self.large_buffer_scaling!r}: use SQRT or NO_SCALE"
            )
        if not 0 < self.async_copy_bandwidth_scaling <= 1:
            raise InputError(
                f"async_copy_bandwidth_scaling is {self.async_copy_bandwidth_scaling}, "
                "must be above 0 and at most 1"
            )
        if self.max_retries < 1:
            raise InputError(f"max_retries is {self.max_retries}, must be at least 1")
