"""From a scheduled HLO module to the `Program` that solvers read.

Real instructions become steps, alias sets become buffers, `while` bodies and conditional branches
become loops, and the seconds of a cost model become integer ticks.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hlo_graphs.accesses import LeafAccess, is_forwarding, leaf_accesses
from hlo_graphs.aliasing import AliasAnalysis, analyse_aliases
from hlo_graphs.bundle import AllocationInfo, BufferInfo
from hlo_graphs.call_graph import CallGraph
from hlo_graphs.chips import Chip
from hlo_graphs.dataflow import HloValue
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import (
    COMBINED_TILE_DIMENSION,
    UNBOUNDED_DIMENSION,
    HloInstruction,
    HloModule,
    Shape,
    ShapeIndex,
)
from hlo_graphs.in_flight import buffers_in_flight
from hlo_graphs.live_range import FlatSchedule, flatten_schedule
from hlo_graphs.program import (
    BEFORE_PROGRAM,
    KIND_ORDER,
    Access,
    AccessKind,
    Buffer,
    Instruction,
    Loop,
    Machine,
    Program,
)
from hlo_graphs.shapes import padded_size_bytes
from hlo_graphs.times import LeafKey, LeafTimes, StepTimes, Times
from hlo_graphs.trip_counts import known_trip_count

DEFAULT_TRIP_COUNT = 5
"""Trips assumed of a loop whose count is unknown: XLA's `while_execution_count`."""

ALWAYS_LISTED_BYTES = 64 * 1024
"""The compiler's table lists every buffer it may place that is larger than this."""

FINEST_TICK_EXPONENT = -10
"""Ticks are 0.1 ns long, or the next power of ten that keeps a program's sums small."""

MAX_TICKS = 2**29
"""The ticks of one pass over a program stay below this, so that sums fit in 32 bits."""


BUSY = ("bytes", "slow")
"""What `LoweringOptions.busy` may be."""


@dataclass(frozen=True, slots=True)
class LoweringOptions:
    """What may be chosen when a module becomes a program.

    Attributes:
      name: of the program.
      capacity_bytes: fast memory for tensors; the chip's assignable bytes if None.
      busy: "bytes": a slow access keeps the bus busy for bytes / bandwidth, the rest of a step
        can serve copies; "slow": for its whole slow time (the strict reading of docs/times.md).
      default_trip_count: of loops whose count is unknown.
    """

    name: str
    capacity_bytes: int | None = None
    busy: str = "bytes"
    default_trip_count: int = DEFAULT_TRIP_COUNT


@dataclass(frozen=True)
class Lowered:
    """A program with the way back to its module.

    Attributes:
      program: the result.
      module: what it was made from.
      aliases: the module's alias sets.
      schedule: the module's flattened schedule.
      chip: the machine.
      times: the cost model.
      buffer_ids: per HLO alias set its `Program` buffer, for those that became one.
      step_times: per step, its schedule position.
    """

    program: Program
    module: HloModule
    aliases: AliasAnalysis
    schedule: FlatSchedule
    chip: Chip
    times: Times
    buffer_ids: Mapping[int, int]
    step_times: tuple[int, ...]

    @cached_property
    def step_of(self) -> Mapping[tuple[str, str], int]:
        """(computation, instruction) -> step."""
        positions = self.schedule.positions
        return {
            (positions[time].computation, positions[time].instruction.name): step
            for step, time in enumerate(self.step_times)
        }


def lower(
    module: HloModule,
    chip: Chip,
    times: Times,
    options: LoweringOptions,
    buffer_info: Collection[BufferInfo] = (),
    allocations: Collection[AllocationInfo] = (),
) -> Lowered:
    """The program of a scheduled module on a chip.

    Args:
      module: scheduled, before memory-space assignment.
      chip: the machine.
      times: the cost model of this module.
      options: see there.
      buffer_info: the compiler's own table of the buffers it considered; decides
        `fast_allowed` where given, XLA's rules do otherwise.
      allocations: the blocks of fast memory it gave away, if `buffer_info` is given.

    Raises:
      InputError: if the module has no entry computation to schedule, has been through the
        assignment already, has an array of unknown size, runs a computation from two
        places, or its figures do not fit.
    """
    _require_unassigned(module, chip)
    _require_bounded(module)
    aliases = analyse_aliases(module)
    _require_single_callers(aliases.dataflow.graph)
    schedule = flatten_schedule(module)
    lowering = _Lowering(module, chip, times, options, aliases, schedule)
    return lowering.run(_considered(buffer_info, allocations) if buffer_info else None)


def _require_unassigned(module: HloModule, chip: Chip) -> None:
    """What already lies in fast memory is not to be placed, and its room is not free."""
    space = chip.fast_memory_space
    for computation in module.computations.values():
        for instruction in computation.instructions:
            shapes = (shape for _, shape in instruction.shape.subshapes())
            if any(s.is_array and s.layout and s.layout.memory_space == space for s in shapes):
                raise InputError(
                    f"{module.path}:{instruction.line}: {instruction.name} lies in {chip.name}'s "
                    f"fast memory already (S({space})): give the module from before memory-space "
                    "assignment, in a TPU dump *after_optimizations_before_buffer_assignment.txt; "
                    "a program that itself asks for this memory cannot be read"
                )


def _require_bounded(module: HloModule) -> None:
    """An array whose size only run time knows takes nobody knows how much memory."""
    for computation in module.computations.values():
        for instruction in computation.instructions:
            for _, shape in instruction.shape.subshapes():
                if UNBOUNDED_DIMENSION in shape.dimensions:
                    raise InputError(
                        f"{module.path}:{instruction.line}: {instruction.name} has shape {shape}: "
                        "the size of a dimension '?' is unknown; give a bound"
                    )


def _require_single_callers(graph: CallGraph) -> None:
    """What runs from two places would be two stretches of the schedule; there is room for one."""
    for computation in graph.computations:
        callers = graph.callers(computation.name)
        if len(callers) > 1:
            names = " and ".join(site.instruction.name for site in callers[:2])
            raise InputError(
                f"{graph.module.path}:{callers[1].instruction.line}: {computation.name} is called "
                f"by {names}: give each a copy of its own (the compiler's flatten-call-graph does)"
            )


@dataclass(frozen=True, slots=True)
class _Considered:
    """What the compiler may have placed in fast memory.

    Attributes:
      listed: the (instruction, index) of what its table lists.
      unlisted_sizes_bytes: sizes of what it placed although no row lists it: the parameter that
        it prefetches across programs.
    """

    listed: frozenset[tuple[str, ShapeIndex]]
    unlisted_sizes_bytes: frozenset[int]


def _considered(
    buffer_info: Collection[BufferInfo], allocations: Collection[AllocationInfo]
) -> _Considered:
    ids = {info.buffer_id for info in buffer_info}
    unlisted = {block.size_bytes for block in allocations if block.buffer_id not in ids}
    return _Considered(frozenset(_listed_values(buffer_info)), frozenset(unlisted))


def _listed_values(buffer_info: Iterable[BufferInfo]) -> Iterator[tuple[str, ShapeIndex]]:
    for info in buffer_info:
        if info.name is not None:
            yield info.name.instruction, info.name.index


@dataclass(frozen=True)
class _Lowering:
    """The inputs of one lowering; each method makes one part of the program."""

    module: HloModule
    chip: Chip
    times: Times
    options: LoweringOptions
    aliases: AliasAnalysis
    schedule: FlatSchedule

    def run(self, considered: _Considered | None) -> Lowered:
        step_times = tuple(self.accesses)
        buffer_ids = {hlo_buffer: i for i, hlo_buffer in enumerate(self._placeable_buffers())}
        tick_seconds = self._tick_seconds()
        loops = self._loops(step_times)
        repeats = _repeats(loops, len(step_times))
        instructions = tuple(
            self._instruction(time, repeats[step], buffer_ids, tick_seconds)
            for step, time in enumerate(step_times)
        )
        origins = _first_writes(instructions)
        buffers = tuple(
            self._buffer(hlo_buffer, origins.get(i), considered)
            for hlo_buffer, i in buffer_ids.items()
        )
        program = Program(
            name=self.options.name,
            machine=self._machine(),
            tick_seconds=tick_seconds,
            instructions=instructions,
            buffers=buffers,
            loops=loops,
            times=self.times.name,
        )
        return Lowered(
            program=program,
            module=self.module,
            aliases=self.aliases,
            schedule=self.schedule,
            chip=self.chip,
            times=self.times,
            buffer_ids=buffer_ids,
            step_times=step_times,
        )

    def _placeable_buffers(self) -> list[int]:
        """Alias sets that some step touches and that lie in slow memory unless moved."""
        touched = {access.buffer for steps in self.accesses.values() for access in steps}
        return sorted(b for b in touched if all(_is_slow_array(s) for s in self._shapes(b)))

    def _shapes(self, hlo_buffer: int) -> list[Shape]:
        values = (self.aliases.values[v] for v in self.aliases.buffers[hlo_buffer].values)
        return [self.aliases.defining(value).shape.at(value.index) for value in values]

    @cached_property
    def accesses(self) -> Mapping[int, tuple[LeafAccess, ...]]:
        """Per schedule time of a step what it touches."""
        return {
            time: leaf_accesses(self.aliases, position)
            for time, position in enumerate(self.schedule.positions)
            if not is_forwarding(position.instruction)
            and position.computation not in self.schedule.async_done
        }

    @cached_property
    def in_flight(self) -> frozenset[int]:
        """Alias sets that asynchronous operations use while other steps run."""
        return buffers_in_flight(self.aliases, self.schedule, tuple(self.accesses))

    @cached_property
    def capacity_bytes(self) -> int:
        """Fast memory for tensors, a multiple of the alignment."""
        capacity = self.options.capacity_bytes
        if capacity is None:
            return self.chip.assignable_bytes
        return capacity - capacity % self.chip.alignment_bytes

    def _machine(self) -> Machine:
        return Machine(
            chip=self.chip.name,
            capacity_bytes=self.capacity_bytes,
            alignment_bytes=self.chip.alignment_bytes,
            slow_bytes_per_second=self.chip.slow_bytes_per_second,
        )

    def _step_seconds(self, time: int) -> StepTimes:
        position = self.schedule.positions[time]
        return self.times.step(position.computation, position.instruction.name)

    def _tick_seconds(self) -> float:
        """The shortest power of ten for which one pass fits into `MAX_TICKS`."""
        total_seconds = sum(self._step_seconds(time).all_slow_seconds for time in self.accesses)
        exponent = FINEST_TICK_EXPONENT
        while total_seconds / 10.0**exponent > MAX_TICKS:
            exponent += 1
        return 10.0**exponent

    def _instruction(
        self, time: int, repeat: float, buffer_ids: Mapping[int, int], tick_seconds: float
    ) -> Instruction:
        instruction = self.schedule.positions[time].instruction
        seconds = self._step_seconds(time)
        merged = _merge(self.accesses[time], buffer_ids)
        accesses = [
            self._access(buffer, kind, [seconds.leaves[key] for key in keys], tick_seconds)
            for buffer, (kind, keys) in merged.items()
        ]
        return Instruction(
            name=instruction.name,
            opcode=instruction.opcode,
            shape=str(instruction.shape),
            repeat=repeat,
            base_ticks=tuple(round(base / tick_seconds) for base in seconds.base_seconds),
            accesses=tuple(sorted(accesses, key=lambda a: (KIND_ORDER[a.kind], a.buffer))),
            async_copy=self._is_plain_copy(time),
            stated_cycles=seconds.stated,
            compute_ticks=round(seconds.compute_seconds / tick_seconds),
        )

    def _access(
        self, buffer: int, kind: AccessKind, leaves: Sequence[LeafTimes], tick_seconds: float
    ) -> Access:
        lanes = [sum(lane) for lane in zip(*(leaf.lane_seconds for leaf in leaves), strict=True)]
        bus_seconds = sum(leaf.bus_seconds for leaf in leaves)
        if self.options.busy == "slow":
            bus_seconds = max(bus_seconds, *lanes)
        return Access(
            buffer=buffer,
            kind=kind,
            size_bytes=sum(leaf.size_bytes for leaf in leaves),
            bus_ticks=round(bus_seconds / tick_seconds),
            lane_ticks=tuple(round(lane / tick_seconds) for lane in lanes),
        )

    def _is_plain_copy(self, time: int) -> bool:
        """Whether the copy engine could do it: bytes move, their order stays."""
        computation, instruction = self.schedule.positions[time]
        if instruction.opcode not in ("copy", "slice"):
            return False
        if any(access.buffer in self.in_flight for access in self.accesses[time]):
            return False  # The engine would begin early, beside the operation under way.
        source = self.module.computations[computation].instruction(instruction.operands[0]).shape
        if not _is_slow_array(source) or source.layout != instruction.shape.layout:
            return False
        return instruction.opcode == "copy" or _is_of_whole_tiles(source, instruction)

    def _buffer(
        self,
        hlo_buffer: int,
        first_write: int | None,
        considered: _Considered | None,
    ) -> Buffer:
        values = [self.aliases.values[v] for v in self.aliases.buffers[hlo_buffer].values]
        shapes = self._shapes(hlo_buffer)
        size_bytes = max(padded_size_bytes(shape) for shape in shapes)
        is_parameter = any(self._is_entry_parameter(value) for value in values)
        filled = is_parameter or any(self._is_constant(value) for value in values)
        allocated = any(self._is_allocation(value) for value in values)
        given = first_write is None or filled or allocated
        largest = max(range(len(shapes)), key=lambda i: padded_size_bytes(shapes[i]))
        return Buffer(
            name=str(values[0]),
            size_bytes=-(-size_bytes // self.chip.alignment_bytes) * self.chip.alignment_bytes,
            origin=BEFORE_PROGRAM if given or first_write is None else first_write,
            live_out=hlo_buffer in self._live_out,
            fast_allowed=hlo_buffer not in self.in_flight
            and self._may_be_fast(values, shapes, size_bytes, is_parameter, considered),
            is_parameter=is_parameter,
            is_undefined=allocated and not filled,
            shape=str(shapes[largest]),
            values=tuple(str(value) for value in values),
        )

    def _is_entry_parameter(self, value: HloValue) -> bool:
        is_entry = value.computation == self.module.entry.name
        return is_entry and self.aliases.defining(value).opcode == "parameter"

    def _is_constant(self, value: HloValue) -> bool:
        return self.aliases.defining(value).opcode == "constant"

    def _is_allocation(self, value: HloValue) -> bool:
        instruction = self.aliases.defining(value)
        return instruction.opcode == "custom-call" and is_forwarding(instruction)

    def _may_be_fast(
        self,
        values: Sequence[HloValue],
        shapes: Sequence[Shape],
        size_bytes: int,
        is_parameter: bool,
        considered: _Considered | None,
    ) -> bool:
        """What the compiler's table lists, where there is one; XLA's own rule otherwise.

        The table leaves out what is larger than its memory, and the one parameter that it
        prefetches across programs.
        """
        if all(shape.num_elements <= 1 for shape in shapes):
            return False
        if any(is_barred(self.aliases, value) for value in values):
            return False
        if considered is None:
            return True
        if any((v.instruction, v.index) in considered.listed for v in values):
            return True
        if size_bytes > self.capacity_bytes:
            return True
        is_unlisted = size_bytes > ALWAYS_LISTED_BYTES
        return is_parameter and (is_unlisted or size_bytes in considered.unlisted_sizes_bytes)

    @cached_property
    def _live_out(self) -> frozenset[int]:
        entry = self.module.entry
        leaves = (index for index, shape in entry.root.shape.subshapes() if shape.is_array)
        return frozenset(
            self.aliases.buffer_at(entry.name, entry.root.name, index) for index in leaves
        )

    def _loops(self, step_times: Sequence[int]) -> tuple[Loop, ...]:
        """The loops and branches that hold steps, outer before inner."""
        spans = sorted(self._loop_spans(), key=lambda s: (s.start, -s.end, -s.time))
        loops: list[Loop] = []
        for span in spans:
            start, end = bisect_left(step_times, span.start), bisect_left(step_times, span.end)
            if start < end:
                around = [i for i, loop in enumerate(loops) if loop.end_step >= end]
                parent = around[-1] if around else None
                trips, chance = span.trip_count, span.probability
                loops.append(Loop(start, end, trips, chance, parent, span.trips_known))
        return tuple(loops)

    def _loop_spans(self) -> Iterator[_LoopSpan]:
        for flow in self.schedule.control_flow():
            start = min(span.start for span in flow.spans)
            end = max(span.end for span in flow.spans)
            if flow.is_loop:
                computation = self.module.computations[flow.computation]
                known = known_trip_count(self.module, computation, flow.instruction)
                trips = self.options.default_trip_count if known is None else known
                chance = float(min(trips, 1))
                yield _LoopSpan(start, end, flow.time, max(trips, 1), chance, known is not None)
            else:
                for span in flow.spans:
                    yield _LoopSpan(span.start, span.end, flow.time, 1, 1 / len(flow.spans), True)


@dataclass(frozen=True, slots=True)
class _LoopSpan:
    """A loop or branch by the times of what it runs; `time` is the instruction's own."""

    start: int
    end: int
    time: int
    trip_count: int
    probability: float
    trips_known: bool


def _merge(
    accesses: Iterable[LeafAccess], buffer_ids: Mapping[int, int]
) -> dict[int, tuple[AccessKind, list[LeafKey]]]:
    """One access per program buffer: reading and writing one buffer is an update of it."""
    merged: dict[int, tuple[AccessKind, list[LeafKey]]] = {}
    for access in accesses:
        buffer = buffer_ids.get(access.buffer)
        if buffer is None:
            continue
        kind, keys = merged.get(buffer, (access.kind, []))
        merged[buffer] = (
            kind if kind is access.kind else AccessKind.UPDATE,
            [*keys, access.leaf],
        )
    return merged


_RANGE = re.compile(r"\[\s*(\d+)\s*:\s*(\d+)\s*(?::\s*(\d+)\s*)?\]", re.ASCII)


def _is_of_whole_tiles(source: Shape, piece: HloInstruction) -> bool:
    """Whether a slice takes no part of a tile: then elements lie in the result as in the source."""
    tiled: dict[int, int] = {}
    if source.layout is not None and source.layout.tiles:
        tile = source.layout.tiles[0]
        if COMBINED_TILE_DIMENSION in tile:
            return False
        tiled = dict(zip(source.layout.minor_to_major, reversed(tile), strict=False))
    for dimension, found in enumerate(_RANGE.finditer(piece.attributes["slice"])):
        start, limit, stride = (int(number or 1) for number in found.groups())
        size = tiled.get(dimension, 1)
        ends_whole = limit % size == 0 or limit == source.dimensions[dimension]
        if stride != 1 or start % size or not ends_whole:
            return False
    return True


def is_barred(aliases: AliasAnalysis, value: HloValue) -> bool:
    """Whether a value is anywhere that the compiler keeps out of fast memory.

    Source: `MemorySpaceAssignmentUtils::IsValueAllowedInAlternateMemory`
    (`xla/service/memory_space_assignment/utils.cc`).
    """
    for position in aliases.dataflow.positions[value.id]:
        computation = aliases.module.computations[position.computation]
        instruction = computation.instruction(position.instruction)
        if instruction.opcode == "add-dependency" or _is_host_transfer(instruction):
            return True
    return False


def _is_host_transfer(instruction: HloInstruction) -> bool:
    is_transfer = instruction.opcode in ("send", "recv")
    return is_transfer and instruction.attributes.get("is_host_transfer") == "true"


def _is_slow_array(shape: Shape) -> bool:
    return shape.is_array and (shape.layout is None or shape.layout.memory_space == 0)


def _repeats(loops: Sequence[Loop], num_steps: int) -> list[float]:
    repeats = [1.0] * num_steps
    for loop in loops:
        for step in range(loop.start_step, loop.end_step):
            repeats[step] *= loop.weight
    return repeats


def _first_writes(instructions: Sequence[Instruction]) -> dict[int, int]:
    """Per buffer that some step writes before any step reads it: that step."""
    first: dict[int, int | None] = {}
    for step, instruction in enumerate(instructions):
        for access in instruction.accesses:
            first.setdefault(access.buffer, None if access.kind.reads else step)
    return {buffer: step for buffer, step in first.items() if step is not None}
