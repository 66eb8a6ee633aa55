"""The tensor-lifetime graph: what a solver, the game, the validator and the simulator all read.

A `Program` is a straight line of steps with loops marked on it, buffers that must live somewhere,
and accesses of buffers by steps. All times are integer *ticks* of `Program.tick_seconds`, so that
every reader agrees to the last bit on what is legal; all sizes are bytes. Step and time ranges are
half open.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hlo_graphs.errors import InputError, require_booleans, require_integers, require_texts

if TYPE_CHECKING:
    import networkx as nx

SCHEMA = "malloc-game/program/1"

BEFORE_PROGRAM = -1
"""`Buffer.origin` of what exists before step 0 (parameters and constants)."""


MAX_UNITS = 2**31 - 2
"""Most alignment units of fast memory: addresses and gaps are counted in 32 bits, one to spare."""

MAX_SIZE_BYTES = 2**50
"""Largest buffer, so that sums over a program stay exact in 64 bits."""

MAX_INSTRUCTION_TICKS = 2**48
"""Longest time of an instruction or access, for the same reason."""

MAX_TRIPS = 2**53
"""Most trips of a loop, so that a float holds their number."""


class AccessKind(enum.StrEnum):
    """How a step touches a buffer; the order is the order of effects within one step."""

    READ = "read"
    UPDATE = "update"
    WRITE = "write"

    @property
    def reads(self) -> bool:
        """Whether the old content matters: true of reads and updates."""
        return self is not AccessKind.WRITE

    @property
    def writes(self) -> bool:
        """Whether the content changes: true of updates and writes."""
        return self is not AccessKind.READ


KIND_ORDER = {kind: place for place, kind in enumerate(AccessKind)}
"""How a step's accesses are sorted."""


@dataclass(frozen=True, slots=True)
class Access:
    """One step's use of one buffer.

    Attributes:
      buffer: index into `Program.buffers`.
      kind: read, update (reads and writes, any mix) or write (of the whole buffer).
      size_bytes: bytes moved between the buffer and the compute units, reads plus writes.
      bus_ticks: how long the slow memory's bus is busy when this access is slow. What is left
        of the step is idle time, in which copies are served.
      lane_ticks: per lane of the step, what the access adds when it is slow.
    """

    buffer: int
    kind: AccessKind
    size_bytes: int
    bus_ticks: int
    lane_ticks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step: a real instruction of the flattened schedule.

    With `slow` the set of its accesses served from slow memory the step takes

        max( max over lanes k of base_ticks[k] + sum over slow of lane_ticks[k],
             sum over slow of bus_ticks )

    ticks: convex and monotone in `slow`. The plain roofline has one lane, whose base is the
    compute time and whose accesses add nothing; the times of docs/times.md have two.

    Attributes:
      name: the HLO instruction's name.
      opcode: the HLO opcode.
      shape: result shape as HLO text, for people.
      repeat: how often the step runs: product of trip counts and branch probabilities around it.
      base_ticks: per lane, the ticks with every access fast.
      accesses: at most one per buffer, ordered reads, updates, writes.
      async_copy: this is a plain copy or slice that the copy engine could do instead
        (docs/simulator.md, rule 8).
      stated_cycles: the times come from the compiler, not from the analytic model.
      compute_ticks: the compute units' own time by the roofline, operations over their peak: what
        XLA's heuristic goes by. No part of the times above; None where it is not known.
    """

    name: str
    opcode: str
    shape: str
    repeat: float
    base_ticks: tuple[int, ...]
    accesses: tuple[Access, ...]
    async_copy: bool = False
    stated_cycles: bool = False
    compute_ticks: int | None = None

    def elapsed_ticks(self, slow: Sequence[Access]) -> int:
        """Duration of one execution with exactly the accesses in `slow` served slowly."""
        longest = sum(access.bus_ticks for access in slow)
        for lane, base in enumerate(self.base_ticks):
            longest = max(longest, base + sum(access.lane_ticks[lane] for access in slow))
        return longest


@dataclass(frozen=True, slots=True)
class Buffer:
    """One alias set: every HLO value that must share this memory.

    Attributes:
      name: the name of a representative value, for people: values of two computations may share
        it.
      size_bytes: physical size, padded to the layout's tiles and rounded up to the alignment.
      origin: `BEFORE_PROGRAM`, or the step that first writes it.
      live_out: must be current in slow memory at the program's end.
      fast_allowed: may have residencies at all.
      is_parameter: an entry parameter; if nothing writes it, a candidate to be carried over from
        the previous run.
      is_undefined: whatever it holds before its first write means nothing (`AllocateBuffer`).
      shape: shape of the representative value as HLO text, for people.
      values: names of the HLO values of the alias set, `instruction{index}`.
    """

    name: str
    size_bytes: int
    origin: int
    live_out: bool
    fast_allowed: bool
    is_parameter: bool = False
    is_undefined: bool = False
    shape: str = ""
    values: tuple[str, ...] = ()

    @property
    def has_content_at_start(self) -> bool:
        """Whether what it holds before step 0 may be read."""
        return self.origin == BEFORE_PROGRAM and not self.is_undefined


@dataclass(frozen=True, slots=True)
class Loop:
    """A stretch of steps that runs several times, or a conditional's branch that may be skipped.

    Attributes:
      start_step: first step inside.
      end_step: one past the last step inside.
      trip_count: executions, each time the loop is reached; 1 for a branch.
      probability: chance that it runs at all: 1 except for branches.
      parent: index of the innermost loop around it in `Program.loops`, or None.
      trips_known: the count is certain. Else it is an estimate that only weighs times: contents
        must be right for any number of trips, none included.
    """

    start_step: int
    end_step: int
    trip_count: int
    probability: float = 1.0
    parent: int | None = None
    trips_known: bool = True

    @property
    def weight(self) -> float:
        """Expected executions of a step inside per execution of what is around the loop."""
        return self.trip_count * self.probability

    @property
    def is_branch(self) -> bool:
        """Whether it runs by chance."""
        return self.probability < 1.0

    @property
    def may_skip(self) -> bool:
        """Whether what follows it may be reached without a trip."""
        return self.is_branch or not self.trips_known

    @property
    def may_repeat(self) -> bool:
        """Whether a trip may follow another."""
        return self.trip_count > 1 or not self.trips_known

    def contains_step(self, step: int) -> bool:
        """Whether `step` is inside."""
        return self.start_step <= step < self.end_step


@dataclass(frozen=True, slots=True)
class Machine:
    """What the memory map must fit and what copies cost.

    Attributes:
      chip: name, for people.
      capacity_bytes: fast memory available to residencies.
      alignment_bytes: offsets and sizes are multiples of it.
      slow_bytes_per_second: bandwidth of slow memory, for copies.
    """

    chip: str
    capacity_bytes: int
    alignment_bytes: int
    slow_bytes_per_second: float


@dataclass(frozen=True, slots=True, eq=False)
class AccessTable:
    """The accesses of a program as arrays, for readers that sum over thousands of them.

    With `A` accesses in program order, `T` steps and `K` lanes:

    Attributes:
      step: [A] step of each access.
      buffer: [A] its buffer.
      size_bytes: [A] bytes moved.
      bus_ticks: [A] bus time when slow.
      lane_ticks: [A, K] what it adds per lane when slow.
      base_ticks: [T, K] ticks per lane with every access fast.
      by_buffer: [A] the accesses ordered by buffer, then step.
      keys: [A] `buffer * (T + 1) + step` in that order, for binary search.
    """

    step: NDArray[np.int64]
    buffer: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    bus_ticks: NDArray[np.int64]
    lane_ticks: NDArray[np.int64]
    base_ticks: NDArray[np.int64]
    by_buffer: NDArray[np.int64]
    keys: NDArray[np.int64]


@dataclass(frozen=True)
class Program:
    """A scheduled program over tensors; the input of every solver.

    Attributes:
      name: for people.
      machine: the memories.
      tick_seconds: length of one tick.
      instructions: the steps 0..T-1; `T`, one past the last, is the virtual end.
      buffers: alias sets.
      loops: sorted by start, outer before inner.
      times: which cost model made the ticks ("analytic", "calibrated", ...).
    """

    name: str
    machine: Machine
    tick_seconds: float
    instructions: tuple[Instruction, ...]
    buffers: tuple[Buffer, ...]
    loops: tuple[Loop, ...] = ()
    times: str = "analytic"

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_steps(self) -> int:
        """`T`: the number of real steps, and the index of the virtual last one."""
        return len(self.instructions)

    @property
    def capacity_bytes(self) -> int:
        """Fast memory available to residencies."""
        return self.machine.capacity_bytes

    @property
    def num_lanes(self) -> int:
        """Lanes of every instruction's cost."""
        return len(self.instructions[0].base_ticks) if self.instructions else 1

    def copy_ticks(self, size_bytes: int) -> int:
        """Ticks of undisturbed bus time that a copy of `size_bytes` takes, rounded up."""
        seconds = size_bytes / self.machine.slow_bytes_per_second
        return math.ceil(seconds / self.tick_seconds)

    def may_be_resident(self, buffer: int) -> bool:
        """Whether rule 7 of docs/simulator.md lets `buffer` have residencies."""
        candidate = self.buffers[buffer]
        return candidate.fast_allowed and candidate.size_bytes <= self.capacity_bytes

    @cached_property
    def loop_of_step(self) -> tuple[int | None, ...]:
        """Per step (the virtual end included) the index of the innermost loop around it."""
        innermost: list[int | None] = [None] * (self.num_steps + 1)
        for index, loop in enumerate(self.loops):
            for step in range(loop.start_step, loop.end_step):
                innermost[step] = index
        return tuple(innermost)

    def loops_around(self, loop: int | None) -> Iterator[int]:
        """`loop` itself and the loops around it, innermost first."""
        while loop is not None:
            yield loop
            loop = self.loops[loop].parent

    def repeat_of(self, loop: int | None) -> float:
        """How often what happens once per trip of `loop` happens in one run (once for None)."""
        return 1.0 if loop is None else self._loop_repeats[loop]

    @cached_property
    def _loop_repeats(self) -> tuple[float, ...]:
        repeats: list[float] = []
        for loop in self.loops:
            repeats.append(loop.weight * (1.0 if loop.parent is None else repeats[loop.parent]))
        return tuple(repeats)

    @cached_property
    def structure_digest(self) -> str:
        """12 hex digits of what maps of the program refer to: steps, accesses, buffers and loops.

        Not of the machine, nor of any times: a map may be checked and timed under others.
        """
        structure = [
            [
                (b.size_bytes, b.origin, b.live_out, b.fast_allowed, b.is_parameter, b.is_undefined)
                for b in self.buffers
            ],
            [
                (i.async_copy, [(a.buffer, a.kind.value) for a in i.accesses])
                for i in self.instructions
            ],
            [
                (loop.start_step, loop.end_step, loop.may_repeat, loop.may_skip)
                for loop in self.loops
            ],
        ]
        return hashlib.sha256(json.dumps(structure).encode()).hexdigest()[:12]

    @cached_property
    def num_accesses(self) -> int:
        """Accesses of all buffers, also of those that may not be resident."""
        return sum(len(instruction.accesses) for instruction in self.instructions)

    @cached_property
    def accesses_of_buffer(self) -> tuple[tuple[tuple[int, Access], ...], ...]:
        """Per buffer its accesses as (step, access), in program order."""
        found: list[list[tuple[int, Access]]] = [[] for _ in self.buffers]
        for step, instruction in enumerate(self.instructions):
            for access in instruction.accesses:
                found[access.buffer].append((step, access))
        return tuple(tuple(accesses) for accesses in found)

    def has_content_before(self, buffer: int, step: int) -> bool:
        """Whether the buffer holds anything at the start, or a step before `step` writes it."""
        if self.buffers[buffer].has_content_at_start:
            return True
        for earlier, access in self.accesses_of_buffer[buffer]:
            if access.kind.writes:
                return earlier < step
        return False

    @cached_property
    def access_table(self) -> AccessTable:
        """The accesses as arrays, made once."""
        pairs = [(step, a) for step, i in enumerate(self.instructions) for a in i.accesses]
        lanes = self.num_lanes
        step = np.array([step for step, _ in pairs], dtype=np.int64)
        buffer = np.array([a.buffer for _, a in pairs], dtype=np.int64)
        keys = buffer * (self.num_steps + 1) + step
        by_buffer = np.argsort(keys, kind="stable")
        lane_rows = [a.lane_ticks for _, a in pairs]
        base_rows = [i.base_ticks for i in self.instructions]
        return AccessTable(
            step=step,
            buffer=buffer,
            size_bytes=np.array([a.size_bytes for _, a in pairs], dtype=np.int64),
            bus_ticks=np.array([a.bus_ticks for _, a in pairs], dtype=np.int64),
            lane_ticks=np.array(lane_rows, dtype=np.int64).reshape(len(pairs), lanes),
            base_ticks=np.array(base_rows, dtype=np.int64).reshape(self.num_steps, lanes),
            by_buffer=by_buffer,
            keys=keys[by_buffer],
        )

    @cached_property
    def all_slow_ticks(self) -> float:
        """Latency in ticks with everything in slow memory."""
        return sum(i.repeat * i.elapsed_ticks(i.accesses) for i in self.instructions)

    @property
    def all_slow_seconds(self) -> float:
        """Latency in seconds with everything in slow memory."""
        return self.all_slow_ticks * self.tick_seconds

    def saved_share(self, latency_ticks: float) -> float:
        """Share of the all-slow latency that a map saves; 0 if the program takes no time at all."""
        return 1 - latency_ticks / self.all_slow_ticks if self.all_slow_ticks else 0.0

    @cached_property
    def all_fast_ticks(self) -> float:
        """Latency in ticks if every access that may be fast were fast and no copy cost anything."""
        return sum(
            i.repeat
            * i.elapsed_ticks([a for a in i.accesses if not self.may_be_resident(a.buffer)])
            for i in self.instructions
        )

    def with_capacity(self, capacity_bytes: int) -> Program:
        """The same program on a machine with another fast memory, rounded down to alignment.

        Raises:
          InputError: for a negative capacity.
        """
        if capacity_bytes < 0:
            raise InputError(f"capacity is {capacity_bytes} bytes: it cannot be negative")
        aligned = capacity_bytes - capacity_bytes % self.machine.alignment_bytes
        return replace(self, machine=replace(self.machine, capacity_bytes=aligned))

    def to_json(self) -> str:
        """One JSON object; `Program.from_json` reads it back."""
        return json.dumps(_to_document(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Program:
        """Reads what `to_json` wrote.

        Raises:
          InputError: if the text is not JSON, of another schema, or breaks a rule of the class.
        """
        try:
            document = json.loads(text)
        # Of integers with too many digits JSON makes a plain ValueError.
        except (ValueError, RecursionError) as error:
            raise InputError(f"not a Program: invalid JSON: {error}") from error
        return _from_document(document)

    def to_networkx(self) -> nx.MultiDiGraph:
        """Steps and buffers as nodes, accesses as edges (reads buffer to step, writes back).

        Nodes are `("step", t)` and `("buffer", b)` with the dataclass as attribute `data`;
        edges carry `access`.
        """
        import networkx as nx

        graph = nx.MultiDiGraph(name=self.name)
        for step, instruction in enumerate(self.instructions):
            graph.add_node(("step", step), data=instruction)
        for index, buffer in enumerate(self.buffers):
            graph.add_node(("buffer", index), data=buffer)
        for step, instruction in enumerate(self.instructions):
            for access in instruction.accesses:
                if access.kind.reads:
                    graph.add_edge(("buffer", access.buffer), ("step", step), access=access)
                if access.kind.writes:
                    graph.add_edge(("step", step), ("buffer", access.buffer), access=access)
        return graph


def _check(program: Program) -> None:
    """Raises InputError where the fields contradict each other."""
    if not 0 < program.tick_seconds < math.inf:
        raise InputError(
            f"{program.name}: tick_seconds is {program.tick_seconds}, must be > 0 and finite"
        )
    _check_machine(program.machine)
    lanes = program.num_lanes
    for index, buffer in enumerate(program.buffers):
        _check_buffer(program, index, buffer)
    for step, instruction in enumerate(program.instructions):
        _check_instruction(program, step, instruction, lanes)
    _check_loops(program)
    _check_repeats(program)


def _check_machine(machine: Machine) -> None:
    if machine.capacity_bytes < 0:
        raise InputError(f"capacity is {machine.capacity_bytes} bytes: it cannot be negative")
    if machine.alignment_bytes <= 0 or machine.capacity_bytes % machine.alignment_bytes:
        raise InputError(
            f"capacity {machine.capacity_bytes} is not a multiple of the alignment "
            f"{machine.alignment_bytes}"
        )
    if machine.capacity_bytes // machine.alignment_bytes > MAX_UNITS:
        raise InputError(
            f"capacity {machine.capacity_bytes} is more than {MAX_UNITS} times the alignment "
            f"{machine.alignment_bytes}, in which addresses are counted"
        )
    if not machine.slow_bytes_per_second > 0:
        raise InputError(f"slow bandwidth is {machine.slow_bytes_per_second}, must be > 0")


def _check_instruction(program: Program, step: int, instruction: Instruction, lanes: int) -> None:
    where = f"{program.name}: step {step} ({instruction.name})"
    if len(instruction.base_ticks) != lanes or min(instruction.base_ticks) < 0:
        raise InputError(f"{where}: base_ticks {instruction.base_ticks}, expected {lanes} >= 0")
    if max(instruction.base_ticks) > MAX_INSTRUCTION_TICKS:
        raise InputError(
            f"{where}: base_ticks {instruction.base_ticks}, more than {MAX_INSTRUCTION_TICKS}"
        )
    if not 0 <= (instruction.compute_ticks or 0) <= MAX_INSTRUCTION_TICKS:
        raise InputError(f"{where}: compute_ticks is {instruction.compute_ticks}")
    if not 0 <= instruction.repeat < math.inf:
        raise InputError(f"{where}: repeat is {instruction.repeat}, must be >= 0 and finite")
    touched = [access.buffer for access in instruction.accesses]
    if len(set(touched)) != len(touched):
        raise InputError(f"{where}: more than one access to a buffer")
    kinds = [KIND_ORDER[access.kind] for access in instruction.accesses]
    if kinds != sorted(kinds):
        raise InputError(f"{where}: accesses must be ordered reads, updates, writes")
    for access in instruction.accesses:
        if not 0 <= access.buffer < len(program.buffers):
            raise InputError(f"{where}: no buffer {access.buffer}")
        if not 0 <= access.size_bytes <= 2 * MAX_SIZE_BYTES:  # in and out again at most
            raise InputError(f"{where}: {access.size_bytes} bytes of buffer {access.buffer}")
        if len(access.lane_ticks) != lanes or min(access.lane_ticks) < 0 or access.bus_ticks < 0:
            raise InputError(f"{where}: ticks of the access to buffer {access.buffer}: {access}")
        if max(*access.lane_ticks, access.bus_ticks) > MAX_INSTRUCTION_TICKS:
            raise InputError(
                f"{where}: more than {MAX_INSTRUCTION_TICKS} ticks of buffer {access.buffer}"
            )


def _check_buffer(program: Program, index: int, buffer: Buffer) -> None:
    where = f"{program.name}: buffer {index} ({buffer.name})"
    if buffer.size_bytes < 0 or buffer.size_bytes % program.machine.alignment_bytes:
        raise InputError(
            f"{where}: size {buffer.size_bytes} is not a multiple of the alignment "
            f"{program.machine.alignment_bytes}"
        )
    if buffer.size_bytes > MAX_SIZE_BYTES:
        raise InputError(
            f"{where}: {buffer.shape} takes {buffer.size_bytes} bytes, more than {MAX_SIZE_BYTES}: "
            "no machine has that memory; is the shape right?"
        )
    copy_ticks = buffer.size_bytes / program.machine.slow_bytes_per_second / program.tick_seconds
    if not copy_ticks <= MAX_INSTRUCTION_TICKS:
        raise InputError(
            f"{where}: a copy of its {buffer.size_bytes} bytes takes {copy_ticks:.3g} ticks, more "
            f"than {MAX_INSTRUCTION_TICKS}"
        )
    if not BEFORE_PROGRAM <= buffer.origin < max(program.num_steps, 1):
        raise InputError(f"{where}: origin {buffer.origin} is not a step")


def _check_repeats(program: Program) -> None:
    """Steps run as often as the loops around them say: times are summed by the one, copies and
    stalls counted by the other."""
    for step, instruction in enumerate(program.instructions):
        expected = program.repeat_of(program.loop_of_step[step])
        if not math.isclose(instruction.repeat, expected, rel_tol=1e-12):
            raise InputError(
                f"{program.name}: step {step} ({instruction.name}): repeat is "
                f"{instruction.repeat}, the loops around it make it {expected}"
            )


def _check_loops(program: Program) -> None:
    order = [(loop.start_step, -loop.end_step) for loop in program.loops]
    if order != sorted(order):
        raise InputError(f"{program.name}: loops must be sorted by start, outer before inner")
    for index, loop in enumerate(program.loops):
        where = f"{program.name}: loop {index} [{loop.start_step}, {loop.end_step})"
        if not 0 <= loop.start_step < loop.end_step <= program.num_steps:
            raise InputError(f"{where}: empty or outside the program")
        if loop.trip_count < 1 or not 0 <= loop.probability <= 1:
            raise InputError(f"{where}: trip count {loop.trip_count}, p={loop.probability}")
        if loop.trip_count > MAX_TRIPS:
            raise InputError(f"{where}: trip count {loop.trip_count} is more than {MAX_TRIPS}")
        for other in program.loops[:index]:
            if other.end_step > loop.start_step and loop.end_step > other.end_step:
                raise InputError(f"{where}: crosses loop [{other.start_step}, {other.end_step})")
        around = [i for i, o in enumerate(program.loops[:index]) if o.end_step >= loop.end_step]
        if loop.parent != (around[-1] if around else None):
            raise InputError(f"{where}: parent is {loop.parent}, expected the innermost around it")


def _to_document(program: Program) -> dict[str, Any]:
    """Instructions and accesses as short rows: real programs have thousands."""
    return {
        "schema": SCHEMA,
        "name": program.name,
        "times": program.times,
        "tick_seconds": program.tick_seconds,
        "machine": {
            "chip": program.machine.chip,
            "capacity_bytes": program.machine.capacity_bytes,
            "alignment_bytes": program.machine.alignment_bytes,
            "slow_bytes_per_second": program.machine.slow_bytes_per_second,
        },
        "instructions": [
            {
                "name": i.name,
                "opcode": i.opcode,
                "shape": i.shape,
                "repeat": i.repeat,
                "base_ticks": i.base_ticks,
                "async_copy": i.async_copy,
                "stated_cycles": i.stated_cycles,
                **({} if i.compute_ticks is None else {"compute_ticks": i.compute_ticks}),
                "accesses": [
                    [a.buffer, a.kind.value, a.size_bytes, a.bus_ticks, *a.lane_ticks]
                    for a in i.accesses
                ],
            }
            for i in program.instructions
        ],
        "buffers": [
            {
                "name": b.name,
                "size_bytes": b.size_bytes,
                "origin": b.origin,
                "live_out": b.live_out,
                "fast_allowed": b.fast_allowed,
                "is_parameter": b.is_parameter,
                "is_undefined": b.is_undefined,
                "shape": b.shape,
                "values": b.values,
            }
            for b in program.buffers
        ],
        "loops": [
            {
                "start_step": loop.start_step,
                "end_step": loop.end_step,
                "trip_count": loop.trip_count,
                "probability": loop.probability,
                "parent": loop.parent,
                "trips_known": loop.trips_known,
            }
            for loop in program.loops
        ],
    }


def _from_document(document: Any) -> Program:
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise InputError(f"not a Program: schema is {found!r}, this version reads {SCHEMA!r}")
    try:
        require_texts("the program", name=document["name"], times=document["times"])
        return Program(
            name=document["name"],
            times=document["times"],
            tick_seconds=document["tick_seconds"],
            machine=_row("machine", document["machine"], _machine),
            instructions=_rows(document, "instructions", _instruction),
            buffers=_rows(document, "buffers", _buffer),
            loops=_rows(document, "loops", _loop),
        )
    except KeyError as error:
        raise InputError(f"not a Program: it has no {error}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"not a Program: {error}") from error


_Row = TypeVar("_Row")


def _rows(
    document: dict[str, Any], name: str, read: Callable[[dict[str, Any]], _Row]
) -> tuple[_Row, ...]:
    rows = document[name]
    if not isinstance(rows, list):
        raise InputError(f"not a Program: {name} is {type(rows).__name__}, not a list")
    return tuple(_row(f"{name}[{index}]", row, read) for index, row in enumerate(rows))


def _row(where: str, row: Any, read: Callable[[dict[str, Any]], _Row]) -> _Row:
    """One part of the document; errors name it."""
    try:
        return read(row)
    except KeyError as error:
        raise InputError(f"not a Program: {where} has no {error}") from error
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"not a Program: {where}: {error}") from error


def _instruction(row: dict[str, Any]) -> Instruction:
    accesses = tuple(
        Access(buffer, AccessKind(kind), size, bus, tuple(lanes))
        for buffer, kind, size, bus, *lanes in row["accesses"]
    )
    where = f"instruction {row['name']}"
    require_texts(where, **{name: row[name] for name in ("name", "opcode", "shape")})
    for access in accesses:
        require_integers(
            where, buffer=access.buffer, bytes=access.size_bytes, bus_ticks=access.bus_ticks
        )
    for ticks in (row["base_ticks"], *(access.lane_ticks for access in accesses)):
        for tick in ticks:
            require_integers(where, ticks=tick)
    made = Instruction(**{**row, "base_ticks": tuple(row["base_ticks"]), "accesses": accesses})
    require_booleans(where, async_copy=made.async_copy, stated_cycles=made.stated_cycles)
    if made.compute_ticks is not None:
        require_integers(where, compute_ticks=made.compute_ticks)
    return made


def _machine(row: dict[str, Any]) -> Machine:
    sizes = {name: row[name] for name in ("capacity_bytes", "alignment_bytes")}
    require_integers("machine", **sizes)
    require_texts("machine", chip=row["chip"])
    return Machine(**row)


def _loop(row: dict[str, Any]) -> Loop:
    loop = Loop(**row)
    require_integers(
        "loop", start_step=loop.start_step, end_step=loop.end_step, trip_count=loop.trip_count
    )
    if loop.parent is not None:
        require_integers("loop", parent=loop.parent)
    require_booleans("loop", trips_known=loop.trips_known)
    return loop


def _buffer(row: dict[str, Any]) -> Buffer:
    where = f"buffer {row['name']}"
    buffer = Buffer(**{**row, "values": tuple(row["values"])})
    require_texts(where, name=buffer.name, shape=buffer.shape)
    for value in buffer.values:
        require_texts(where, value=value)
    require_integers(where, size_bytes=buffer.size_bytes, origin=buffer.origin)
    require_booleans(
        where,
        live_out=buffer.live_out,
        fast_allowed=buffer.fast_allowed,
        is_parameter=buffer.is_parameter,
        is_undefined=buffer.is_undefined,
    )
    return buffer
