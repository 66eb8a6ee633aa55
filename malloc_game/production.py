"""Production's answer: XLA's own assignment, read out of its compiled module as a `MemoryMap`.

Every set of values that shares a place in fast memory becomes one residency of the program's own
buffer (docs/production.md):

* filled by an instruction: produced; by `copy-start`: copied; by slices that a `ConcatBitcast`
  joins: copied in parts; by a copy that crosses programs: carried;
* a copy back to slow memory is an eviction;
* a plain copy or slice that is gone from the compiled module was done by the copy engine instead:
  a `ReplacedCopy`.

Layouts say what is fast, the schedule says when, the buffer assignment says where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hlo_graphs.bundle import Allocation
from hlo_graphs.hlo import HloInstruction, HloModule, ShapeIndex
from hlo_graphs.live_range import LiveRange
from hlo_graphs.lower import Lowered
from hlo_graphs.program import Program
from hlo_graphs.shapes import padded_size_bytes
from malloc_game.compiled import CompiledModule, ProductionError, Transfer
from malloc_game.memory_map import Eviction, MemoryMap, Part, ReplacedCopy, Residency, Source

_CONCAT = "ConcatBitcast"
"""Target of the custom call that joins the slices of a sliced prefetch; it moves nothing."""


def read_production_map(
    lowered: Lowered, module: HloModule, assignment: Sequence[Allocation]
) -> MemoryMap:
    """XLA's own memory map over the program of `lowered`.

    Args:
      lowered: the program, from the module before memory-space assignment.
      module: the same module after it.
      assignment: its buffer assignment, for the addresses.

    Raises:
      ProductionError: if the two modules do not belong together, an address is missing, or the
        compiler did something that this reader does not know.
    """
    return _Reader(CompiledModule(lowered, module), _addresses(assignment)).read()


def marked_fast(lowered: Lowered, module: HloModule) -> frozenset[tuple[int, int]]:
    """(step, buffer) of the accesses that the compiled layouts mark fast: a witness for the map."""
    return frozenset(CompiledModule(lowered, module).marked_fast())


def _addresses(assignment: Iterable[Allocation]) -> dict[tuple[str, ShapeIndex], int]:
    return {
        (value.name.instruction, value.name.index): value.offset_bytes
        for allocation in assignment
        for value in allocation.values
        if value.color != 0
    }


@dataclass(frozen=True, slots=True)
class _Fill:
    """How a place in fast memory was filled by the copy engine.

    Attributes:
      source_buffer: the program's buffer that was copied, None if unknown.
      parts: slices; empty for one whole copy.
      start: step at whose beginning the first copy is issued.
      ready: step before which the last is complete.
      crosses_programs: the content was left by the previous run.
    """

    source_buffer: int | None
    parts: tuple[Part, ...]
    start: int
    ready: int
    crosses_programs: bool


class _Reader:
    """Reads one compiled module; `read` does everything."""

    def __init__(
        self, compiled: CompiledModule, addresses: Mapping[tuple[str, ShapeIndex], int]
    ) -> None:
        self._compiled = compiled
        self._addresses = addresses
        self._program: Program = compiled.lowered.program
        self._transfer_of = {(t.computation, t.start.name): t for t in compiled.transfers}
        self._replaced: dict[int, ReplacedCopy] = {}

    def read(self) -> MemoryMap:
        places = {
            alias_set.id: residency
            for alias_set in self._compiled.aliases.buffers
            if (residency := self._residency(alias_set.id)) is not None
        }
        evictions = list(self._evictions(places))
        lasting = _lasting_until_evicted(places, evictions)
        residencies = _updated_in_place(self._with_kept_parameters(lasting))
        missing = self._compiled.missing_steps - self._replaced.keys()
        if missing:
            names = ", ".join(self._program.instructions[step].name for step in sorted(missing))
            raise ProductionError(f"{self._path}: nothing there does the work of {names}")
        return MemoryMap(
            residencies=tuple(sorted(residencies, key=lambda r: (r.start, r.offset_bytes))),
            evictions=tuple(e for _, e in sorted(evictions, key=lambda e: (e[1].issue, e[0]))),
            replaced_copies=tuple(self._replaced[step] for step in sorted(self._replaced)),
        )

    def _with_kept_parameters(self, residencies: Sequence[Residency]) -> list[Residency]:
        """Carried parameters that are not fetched again at the end stay to the end."""
        end = self._program.num_steps + 1
        fetched = {r.buffer for r in residencies if r.end == end}
        return [
            replace(r, end=end) if r.source is Source.CARRIED and r.buffer not in fetched else r
            for r in residencies
        ]

    @property
    def _path(self) -> str:
        return self._compiled.module.path

    def _residency(self, alias_set: int) -> Residency | None:
        """The residency that an alias set is; None if it is none of its own."""
        compiled = self._compiled
        values = [compiled.aliases.values[v] for v in compiled.aliases.buffers[alias_set].values]
        if not all(compiled.is_fast(compiled.shape_of(value)) for value in values):
            return None
        if self._is_slice(alias_set):
            return None
        fill = self._fill(alias_set)
        buffer = self._buffer(alias_set, fill)
        if buffer is None:
            return None
        loop = compiled.loop_around(values)
        times = sorted(compiled.occupied(value) for value in values)
        start = self._step(times[0].start, loop)
        end = self._step(max(time.end for time in times) + 1, loop)
        first, last = self._whole_loops(start, end, loop)
        residency = Residency(
            buffer=buffer,
            offset_bytes=self._offset(alias_set),
            start=first,
            end=last,
            source=Source.PRODUCED,
            ready=first,
            loop=loop,
            holes=tuple(self._holes(times, first, last, loop)),
        )
        return self._filled(residency, fill)

    def _whole_loops(self, start: int, end: int, loop: int | None) -> tuple[int, int]:
        """The range `[start, end)` widened so that it cuts no loop inside its own `loop`."""
        first, last = start, end
        around = set(self._program.loops_around(loop))
        for point in (start, end - 1):
            for index in self._program.loops_around(self._program.loop_of_step[point]):
                if index not in around:
                    found = self._program.loops[index]
                    if found.start_step < start < found.end_step:
                        first = min(first, found.start_step)
                    if found.start_step < end < found.end_step:
                        last = max(last, found.end_step)
        return first, last

    def _holes(
        self, times: Sequence[LiveRange], first: int, last: int, loop: int | None
    ) -> Iterator[tuple[int, int]]:
        """Ranges of steps in `[first, last)` in which none of a place's values lives."""
        free = first
        for time in times:
            start = self._step(time.start, loop)
            if free < start:
                yield free, start
            free = max(free, self._step(time.end + 1, loop))
        if free < last:
            yield free, last

    def _filled(self, residency: Residency, fill: _Fill | None) -> Residency:
        """The residency with what is known of its copies."""
        if fill is None:
            return replace(residency, ready=residency.start)
        start, ready = fill.start, fill.ready
        end = max(residency.end, ready)
        parts = self._aligned(fill.parts, residency.buffer)
        filled = replace(
            residency, start=start, ready=ready, end=end, parts=parts, source=Source.COPIED
        )
        if fill.crosses_programs:
            return replace(filled, source=Source.CARRIED, start=0, ready=0, parts=())
        if ready == self._program.num_steps:  # fetched for the next run of the program
            return replace(filled, end=ready + 1)
        if fill.source_buffer is not None and fill.source_buffer != residency.buffer:
            self._replace(fill.source_buffer, residency.buffer, start, ready)
            return replace(filled, source=Source.PRODUCED, ready=start)
        return filled

    def _aligned(self, parts: tuple[Part, ...], buffer: int) -> tuple[Part, ...]:
        """The slices, the last one rounded up to the alignment like the buffer itself."""
        if not parts:
            return parts
        last = parts[-1]
        padding = -last.size_bytes % self._program.machine.alignment_bytes
        end_bytes = last.offset_bytes + last.size_bytes
        if end_bytes + padding != self._program.buffers[buffer].size_bytes:
            return parts
        return (*parts[:-1], replace(last, size_bytes=last.size_bytes + padding))

    def _step(self, time: int, loop: int | None) -> int:
        """The first step at or after a time, no later than the end of the loop."""
        step = self._compiled.next_step[min(time, len(self._compiled.next_step) - 1)]
        return step if loop is None else min(step, self._program.loops[loop].end_step)

    def _is_slice(self, alias_set: int) -> bool:
        """Whether it is only a part of a place that a `ConcatBitcast` makes."""
        uses = [
            use
            for value in self._compiled.aliases.buffers[alias_set].values
            for use in self._compiled.aliases.uses[value]
        ]
        users = {(use.computation, use.instruction) for use in uses}
        joined = [user for user in users if self._joins(*user)]
        return bool(joined)

    def _joins(self, computation: str, instruction: str) -> bool:
        found = self._compiled.module.computations[computation].instruction(instruction)
        return _is_concat(found)

    def _buffer(self, alias_set: int, fill: _Fill | None) -> int | None:
        """The program's buffer that lies at a place."""
        buffers = self._compiled.buffers_of_set(alias_set)
        if not buffers:
            return None if fill is None else fill.source_buffer
        if len(buffers) > 1:
            names = ", ".join(sorted(self._program.buffers[b].name for b in buffers))
            value = self._compiled.aliases.values[
                self._compiled.aliases.buffers[alias_set].values[0]
            ]
            raise ProductionError(f"{self._path}: {value} stands for several buffers: {names}")
        return next(iter(buffers))

    def _offset(self, alias_set: int) -> int:
        values = [
            self._compiled.aliases.values[v]
            for v in self._compiled.aliases.buffers[alias_set].values
        ]
        offsets = {
            self._addresses[value.instruction, value.index]
            for value in values
            if (value.instruction, value.index) in self._addresses
        }
        if len(offsets) != 1:
            raise ProductionError(
                f"{self._path}: {len(offsets)} addresses for {values[0]} in the buffer "
                "assignment, expected one"
            )
        return next(iter(offsets))

    # --- how places are filled ------------------------------------------------------------------

    def _fill(self, alias_set: int) -> _Fill | None:
        """The copies that fill a place, None if an instruction of the program does."""
        for value_id in self._compiled.aliases.buffers[alias_set].values:
            value = self._compiled.aliases.values[value_id]
            instruction = self._compiled.aliases.defining(value)
            if value.is_phi:
                continue
            transfer = self._transfer_of.get((value.computation, instruction.name))
            if transfer is not None:
                return self._whole_fill(transfer)
            if _is_concat(instruction):
                return self._sliced_fill(value.computation, instruction, alias_set)
        return None

    def _whole_fill(self, transfer: Transfer) -> _Fill:
        loop = self._compiled.loop_of(transfer.computation)
        return _Fill(
            source_buffer=self._compiled.copied_buffer(transfer.computation, transfer.source),
            parts=(),
            start=self._step(transfer.start_time, loop),
            ready=self._step(transfer.done_time, loop),
            crosses_programs=transfer.crosses_programs,
        )

    def _sliced_fill(self, computation: str, joined: HloInstruction, alias_set: int) -> _Fill:
        loop = self._compiled.loop_of(computation)
        transfers = [self._slice_transfer(computation, done) for done in joined.operands]
        base = self._offset(alias_set)
        parts = [self._part(transfer, base, loop) for transfer in transfers]
        return _Fill(
            source_buffer=self._compiled.copied_buffer(computation, transfers[0].source),
            parts=tuple(sorted(parts, key=lambda part: part.offset_bytes)),
            start=min(part.start for part in parts),
            ready=self._step(max(t.done_time for t in transfers), loop),
            crosses_programs=False,
        )

    def _slice_transfer(self, computation: str, done: str) -> Transfer:
        """The transfer behind an operand of `ConcatBitcast`, looking through forwarding."""
        body = self._compiled.module.computations[computation]
        instruction = body.instruction(done)
        while (computation, instruction.name) not in self._transfer_of:
            if len(instruction.operands) != 1:
                raise ProductionError(f"{self._path}:{instruction.line}: {done} is no slice")
            instruction = body.instruction(instruction.operands[0])
        return self._transfer_of[computation, instruction.name]

    def _part(self, transfer: Transfer, base_bytes: int, loop: int | None) -> Part:
        place = self._compiled.set_at(
            transfer.computation, transfer.start.name, transfer.target_index
        )
        return Part(
            offset_bytes=self._offset(place) - base_bytes,
            size_bytes=padded_size_bytes(transfer.target_shape),
            start=self._step(transfer.start_time, loop),
        )

    # --- copies out of fast memory, and copies that stand in for instructions ---------------------

    def _evictions(self, places: Mapping[int, Residency]) -> Iterator[tuple[int, Eviction]]:
        """(alias set it leaves, eviction) of every copy to slow memory."""
        for transfer in self._compiled.transfers:
            if self._compiled.is_fast(transfer.target_shape):
                continue
            loop = self._compiled.loop_of(transfer.computation)
            issue = self._step(transfer.start_time, loop)
            done = self._step(transfer.done_time, loop)
            place = self._compiled.set_at(transfer.computation, transfer.source, ())
            source = self._compiled.copied_buffer(transfer.computation, transfer.source)
            target = self._target_buffer(transfer)
            if source is not None and target is not None and source != target:
                self._replace(source, target, issue, done)
            elif place in places:
                yield place, Eviction(places[place].buffer, issue, done)

    def _target_buffer(self, transfer: Transfer) -> int | None:
        """The program's buffer a copy to slow memory becomes, if its users say so."""
        target = self._compiled.set_at(
            transfer.computation, transfer.start.name, transfer.target_index
        )
        buffers = self._compiled.buffers_of_set(target)
        return next(iter(buffers)) if len(buffers) == 1 else None

    def _replace(self, source: int, target: int, issue: int, done: int) -> None:
        """Notes that the copy engine did the missing step that copies `source` to `target`."""
        for step in sorted(self._compiled.missing_steps - self._replaced.keys()):
            touched = {a.buffer: a.kind for a in self._program.instructions[step].accesses}
            if source in touched and target in touched and touched[target].writes:
                self._replaced[step] = ReplacedCopy(step, issue, done)
                return
        names = [self._program.buffers[buffer].name for buffer in (source, target)]
        raise ProductionError(
            f"{self._path}: copies {names[0]} to {names[1]}, which no missing step does"
        )


def _is_concat(instruction: HloInstruction) -> bool:
    return instruction.custom_call_target == _CONCAT


def _updated_in_place(residencies: Iterable[Residency]) -> list[Residency]:
    """One residency where a step writes its buffer's new content over the old.

    The compiler has two values there, a copy of the old content and the new one, at one address;
    they meet at the step that reads the one and writes the other.
    """
    joined: list[Residency] = []
    for later in sorted(residencies, key=lambda r: (r.buffer, r.start)):
        earlier = joined[-1] if joined else None
        if (
            earlier is not None
            and (earlier.buffer, earlier.offset_bytes) == (later.buffer, later.offset_bytes)
            and later.source is Source.PRODUCED
            and later.start < earlier.end
        ):
            end, holes = max(earlier.end, later.end), (*earlier.holes, *later.holes)
            joined[-1] = replace(earlier, end=end, holes=holes)
        else:
            joined.append(later)
    return joined


def _lasting_until_evicted(
    places: Mapping[int, Residency], evictions: Iterable[tuple[int, Eviction]]
) -> list[Residency]:
    """The residencies, each at least as long as its evictions take."""
    lasting = dict(places)
    for place, eviction in evictions:
        end = max(lasting[place].end, eviction.done)
        lasting[place] = replace(lasting[place], end=end)
    return list(lasting.values())
