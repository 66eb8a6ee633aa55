"""A scheduled HLO module as memory-space assignment sees it, and the answer read back.

Source: `CreateAllocationValues` and `FindAliases` of `MsaAlgorithm`, `ScheduleAsynchronousCopies`
of `MemorySpaceAssignment` (`algorithm.cc` and `memory_space_assignment.cc` in
`xla/service/memory_space_assignment/`). Logical times are the places of the flattened schedule.
Every value has one place per non-trivial position (not get-tuple-element, tuple, bitcast); a use is
attached to the last of them in its computation. What a use shares its place with (in-place results,
parameters and results of loops and branches) becomes an alias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hlo_graphs.aliasing import AliasAnalysis, analyse_aliases
from hlo_graphs.call_graph import control_flow_calls
from hlo_graphs.dataflow import HloValue, Use
from hlo_graphs.hlo import HloInstruction, HloModule, Shape, ShapeIndex
from hlo_graphs.live_range import FlatSchedule, flatten_schedule, live_ranges
from hlo_graphs.lower import is_barred
from hlo_graphs.shapes import byte_size_of, elements_in
from solvers.msa_algorithm import MsaResult, Placed, assign
from solvers.msa_attempt import Allocation
from solvers.msa_options import MsaOptions
from solvers.msa_problem import MsaBuffer, MsaProblem, MsaUse, MsaValue
from tests.conformance.msa_hlo_costs import HloCosts, UncostedHlo
from tests.conformance.msa_weights import looks_like_a_weight

TRIVIAL = frozenset({"get-tuple-element", "tuple", "bitcast"})
"""Opcodes at which a value is but passed on."""

FAST_SPACE = 1
"""Layout memory space of alternate memory."""

Where = tuple[str, str, ShapeIndex]
"""(computation, instruction, index): a position."""


@dataclass(frozen=True, slots=True)
class HloMsaInput:
    """What a backend tells about a module.

    Attributes:
      capacity_bytes: of fast memory.
      alignment_bytes: of offsets.
      costs: seconds of instructions and copies.
      may_be_fast: filter on values, beside XLA's own rules; None: all.
      use_may_be_fast: filter on uses (using instruction's name, operand number).
    """

    capacity_bytes: int = 128
    alignment_bytes: int = 8
    costs: HloCosts = field(default_factory=UncostedHlo)
    may_be_fast: Callable[[HloValue], bool] | None = None
    use_may_be_fast: Callable[[str, int], bool] | None = None


@dataclass(frozen=True, slots=True)
class CopyOp:
    """One copy of the answer.

    Attributes:
      name: of the instruction that defines what is copied.
      to_fast: prefetch, or eviction.
      after: issued after this time.
      before: done before this time.
      offset: bytes, of the fast end.
    """

    name: str
    to_fast: bool
    after: int
    before: int
    offset: int


@dataclass(frozen=True)
class HloAssignment:
    """Where everything lies.

    Attributes:
      module: the module.
      schedule: its flattened schedule.
      result: the raw answer.
      copies: those that serve someone, by start.
    """

    module: HloModule
    schedule: FlatSchedule
    result: MsaResult
    copies: tuple[CopyOp, ...]
    _defined: Mapping[Where, int | None]
    _served: Mapping[tuple[str, str, int, ShapeIndex], int | None]

    def offset_at(
        self, instruction: str, index: ShapeIndex = (), computation: str | None = None
    ) -> int | None:
        """Offset of what an instruction defines; None in default memory."""
        where = (computation or self.module.entry.name, instruction, index)
        return self._defined.get(where)

    def operand_offset(
        self,
        instruction: str,
        operand: int,
        index: ShapeIndex = (),
        computation: str | None = None,
    ) -> int | None:
        """Offset of what serves an operand; None in default memory."""
        found = (computation or self.module.entry.name, instruction, operand, index)
        return self._served.get(found)

    def sequence(self) -> list[str]:
        """The flattened schedule with copies: dones before, starts after an instruction."""
        lines: list[str] = []
        for time in range(-1, len(self.schedule.positions) + 1):
            lines += [f"copy-done({c.name})" for c in self.copies if c.before == time]
            if 0 <= time < len(self.schedule.positions):
                lines.append(self.schedule.positions[time].instruction.name)
            lines += [f"copy-start({c.name})" for c in self.copies if c.after == time]
        return lines


def assign_hlo(module: HloModule, given: HloMsaInput, options: MsaOptions) -> HloAssignment:
    """Runs memory-space assignment on a scheduled module.

    Raises:
      PrecoloredError: if a value whose layout says S(1) does not fit.
      InputError: if the module is not scheduled, or an option does not fit it.
    """
    builder = _Builder(module, given, options)
    problem = builder.problem()
    return _read_back(builder, assign(problem, options))


@dataclass(frozen=True, slots=True)
class _Placement:
    """A value at one of its non-trivial positions."""

    value: HloValue
    where: Where
    time: int


class _Builder:
    """Makes the problem of one module."""

    def __init__(self, module: HloModule, given: HloMsaInput, options: MsaOptions) -> None:
        self.module = module
        self.given = given
        self.options = options
        self.aliases: AliasAnalysis = analyse_aliases(module)
        self.schedule = flatten_schedule(module)
        self.ranges = live_ranges(module, self.aliases, self.schedule)
        self.placements: dict[int, list[_Placement]] = {}
        self.use_keys: dict[tuple[int, int, int], Use] = {}
        self._callers = {
            name: (position.computation, position.instruction)
            for position in self.schedule.positions
            for _, name in control_flow_calls(position.instruction)
        }

    # -- the whole ------------------------------------------------------------------------------

    def problem(self) -> MsaProblem:
        """The module as the algorithm wants it."""
        costs, given = self.given.costs, self.given
        positions = self.schedule.positions
        levels = [self._levels(position.computation) for position in positions]
        elapsed = tuple(
            0
            if position.instruction.opcode in ("while", "conditional", "call")
            else costs.elapsed_ticks(*position)
            for position in positions
        )
        buffers = [self._buffer(b.id) for b in self.aliases.buffers]
        mem_size = self.options.picker.max_overlap_size_bytes or given.capacity_bytes
        return MsaProblem(
            num_times=len(positions),
            capacity_bytes=given.capacity_bytes,
            alignment_bytes=given.alignment_bytes,
            elapsed_ticks=elapsed,
            while_nest=tuple(loops for loops, _ in levels),
            nest=tuple(calls for _, calls in levels),
            max_copy_ticks=self._copy_ticks(mem_size),
            buffers=tuple(b for b in buffers if b is not None),
            names=tuple(position.instruction.name for position in positions),
            required=self._required(),
        )

    def _copy_ticks(self, size_bytes: int) -> int:
        ticks = self.given.costs.copy_ticks(size_bytes)
        return round(ticks / self.options.async_copy_bandwidth_scaling)

    def _levels(self, computation: str) -> tuple[int, int]:
        """Loops around a computation, and calls of any kind."""
        loops = calls = 0
        while computation in self._callers:
            computation, caller = self._callers[computation]
            calls += 1
            loops += caller.opcode == "while"
        return loops, calls

    def _required(self) -> dict[int, tuple[int, ...]]:
        """Per value the times at which it must be in default memory."""
        times: dict[int, tuple[int, ...]] = {}
        for value, time in (*self._entry_and_exit(), *self._conditional_results()):
            times[value] = (*times.get(value, ()), time)
        return times

    def _entry_and_exit(self) -> Iterator[tuple[int, int]]:
        """(value, time) of what the program takes in and gives out."""
        entry = self.module.entry
        for value in self.aliases.values:
            opcode = self.aliases.defining(value).opcode
            time = self.schedule.time_of.get((value.computation, value.instruction))
            is_parameter = value.computation == entry.name and opcode == "parameter"
            if time is not None and (is_parameter or opcode == "constant"):
                yield value.id, time
        root_time = self.schedule.time_of[entry.name, entry.root.name]
        for index, shape in entry.root.shape.subshapes():
            if shape.is_array and _space(shape) != FAST_SPACE:
                for buffer in self.aliases.buffers_at(entry.name, entry.root.name, index):
                    for value_id in self.aliases.buffers[buffer].values:
                        yield value_id, root_time

    def _conditional_results(self) -> Iterator[tuple[int, int]]:
        """(value, time) of results of branches whose root is no tuple: they cannot be fast."""
        for time, (computation, instruction) in enumerate(self.schedule.positions):
            if instruction.opcode != "conditional":
                continue
            branches = [name for _, name in control_flow_calls(instruction)]
            if all(self.module.computations[b].root.opcode == "tuple" for b in branches):
                continue
            for index, shape in instruction.shape.subshapes():
                if shape.is_array:
                    values = self.aliases.values_at(computation, instruction.name, index)
                    yield from ((value, time) for value in values)

    # -- buffers --------------------------------------------------------------------------------

    def _buffer(self, buffer_id: int) -> MsaBuffer | None:
        values = [
            self.aliases.values[v]
            for v in self.aliases.buffers[buffer_id].values
            if v in self.ranges
        ]
        shapes = [self._shape(value) for value in values]
        if not shapes or not all(shape.is_array for shape in shapes):
            return None
        values.sort(key=lambda value: (self.ranges[value.id], value.id))
        placements = [p for value in values for p in self._placements(value)]
        self.placements[buffer_id] = placements
        made = tuple(
            self._value(buffer_id, number, placements) for number in range(len(placements))
        )
        size = max(byte_size_of(shape) for shape in shapes)
        override = self.options.picker.size_override_bytes
        return MsaBuffer(
            id=buffer_id,
            name=values[0].instruction,
            size_bytes=size,
            start=min(self.ranges[value.id].start for value in values),
            end=max(self.ranges[value.id].end for value in values),
            values=made,
            boundedness=self._boundedness(values),
            copy_ticks=self._copy_ticks(size if override is None else override),
            allowed=self._is_allowed(values, shapes),
            cross_program=self._may_be_carried(values),
        )

    def _is_allowed(self, values: Sequence[HloValue], shapes: Sequence[Shape]) -> bool:
        may_be_fast = self.given.may_be_fast
        return (
            all(shape.num_elements > 1 for shape in shapes)
            and all(_space(shape) in (0, FAST_SPACE) for shape in shapes)
            and not any(is_barred(self.aliases, value) for value in values)
            and (may_be_fast is None or all(may_be_fast(value) for value in values))
        )

    def _may_be_carried(self, values: Sequence[HloValue]) -> bool:
        """A read-only entry parameter, at most one tuple deep, that is used like a weight."""
        first = values[0]
        is_parameter = self.aliases.defining(first).opcode == "parameter"
        if len(values) != 1 or not is_parameter or first.computation != self.module.entry.name:
            return False
        entry = self.module.entry
        at_root = any(
            p.instruction == entry.root.name for p in self.aliases.dataflow.positions[first.id]
        )
        permissive = self.options.cross_program_prefetch_permissive_mode
        return (
            len(first.index) <= 1
            and not at_root
            and looks_like_a_weight(self.aliases, first, permissive)
        )

    def _boundedness(self, values: Sequence[HloValue]) -> float:
        """Gains of the first definition and of all uses but by loops and conditionals."""
        costs = self.given.costs
        defining = self.aliases.defining(values[0])
        total = costs.output_benefit(values[0].computation, defining, values[0].index)
        total *= self._weight(values[0].computation) if total > 0 else 1
        for value in values:
            for use in self.aliases.uses[value.id]:
                user = self._user(use)
                if user.opcode in ("while", "conditional"):
                    continue
                gain = costs.operand_benefit(
                    use.computation, user, use.operand_number, use.operand_index
                )
                gain *= self._weight(use.computation) if gain > 0 else 1
                total = total + gain if total > 0 and gain > 0 else max(total, gain)
        return total

    def _weight(self, computation: str) -> int:
        return int(self.options.while_execution_count ** self._levels(computation)[0])

    # -- values ---------------------------------------------------------------------------------

    def _placements(self, value: HloValue) -> list[_Placement]:
        found = []
        for position in self.aliases.dataflow.positions[value.id]:
            computation, name, index = position
            time = self.schedule.time_of.get((computation, name))
            if time is None:
                continue
            opcode = self.module.computations[computation].instruction(name).opcode
            if opcode not in TRIVIAL:
                found.append(_Placement(value, (computation, name, index), time))
        return sorted(found, key=lambda p: p.time)

    def _value(self, buffer_id: int, number: int, placements: Sequence[_Placement]) -> MsaValue:
        placement = placements[number]
        computation, name, index = placement.where
        instruction = self.module.computations[computation].instruction(name)
        uses = sorted(
            (
                (self._use(use), use)
                for use in self.aliases.uses[placement.value.id]
                if self._seen_from(use, placements) == number and not self._is_skipped(use)
            ),
            key=lambda pair: (pair[0].time, self._time(pair[1])),
        )
        for position, (_, use) in enumerate(uses):
            self.use_keys[buffer_id, number, position] = use
        costs = self.given.costs
        return MsaValue(
            value=placement.value.id,
            name=name,
            time=placement.time,
            scope=0,
            nest=self._levels(computation)[1],
            uses=tuple(use for use, _ in uses),
            precolored=_space(instruction.shape.at(index)) == FAST_SPACE,
            contiguous=_is_async_start(instruction),
            size_bytes=round(costs.output_bytes(computation, instruction, index))
            if placement.value.position == placement.where
            else 0,
        )

    def _seen_from(self, use: Use, placements: Sequence[_Placement]) -> int:
        """The placement a use sees: the last before it in its computation."""
        time = self._time(use)
        value_id = next(
            v
            for v in self.aliases.values_at(use.computation, self._operand(use), use.operand_index)
        )
        done = self._user(use).opcode.endswith("-done")
        best = -1
        for number, placement in enumerate(placements):
            computation, name, _ = placement.where
            if placement.value.id != value_id or computation != use.computation:
                continue
            starts = _is_async_start(self.module.computations[computation].instruction(name))
            if placement.time < time and (not starts or done):
                best = number
        return best

    def _is_skipped(self, use: Use) -> bool:
        """Bitcasts use nothing, unless they are what a computation returns."""
        user = self._user(use)
        root = self.module.computations[use.computation].root.name
        return user.opcode == "bitcast" and user.name != root

    # -- uses -----------------------------------------------------------------------------------

    def _use(self, use: Use) -> MsaUse:
        user = self._user(use)
        own_time = self._time(use)
        callees = [name for _, name in control_flow_calls(user)]
        parameter_times = [self._parameter_time(name) for name in callees]
        time, latest = own_time, own_time
        if user.opcode == "while":
            time = parameter_times[1]
        elif user.opcode == "conditional":
            time = min(parameter_times)
        if user.opcode in ("while", "conditional", "call"):
            latest = min(self.schedule.spans[name].start for name in callees) - 1
        allowed = self.given.use_may_be_fast
        costs = self.given.costs
        arguments = (use.computation, user, use.operand_number, use.operand_index)
        return MsaUse(
            time=time,
            latest_prefetch_time=min(time, own_time, latest),
            hold_until=time,
            name=user.name,
            operand=use.operand_number,
            size_bytes=round(costs.operand_bytes(*arguments)),
            result_elements=elements_in(user.shape),
            reduction_ticks=costs.operand_reduction(*arguments),
            required_default=allowed is not None and not allowed(user.name, use.operand_number),
            aliases=tuple(self._aliases_of(use, user)),
            is_while=user.opcode == "while",
            conditional=own_time if user.opcode == "conditional" else None,
            first_inside=tuple(self._first_inside(use, user)),
        )

    def _aliases_of(self, use: Use, user: HloInstruction) -> Iterator[tuple[int, int]]:
        """(value, time) at the positions that share the use's place."""
        value_id = self.aliases.values_at(use.computation, self._operand(use), use.operand_index)[0]
        buffer = self.aliases.buffer_of_value[value_id]
        for where in self._alias_positions(use, user):
            time = self.schedule.time_of[where[:2]]
            for value in self.aliases.values_at(*where):
                if self.aliases.buffer_of_value[value] == buffer:
                    yield value, time

    def _alias_positions(self, use: Use, user: HloInstruction) -> Iterator[Where]:
        index = use.operand_index
        if user.opcode not in TRIVIAL:
            for leaf, shape in user.shape.subshapes():
                if shape.is_array:
                    yield use.computation, user.name, leaf
        for role, name in control_flow_calls(user):
            callee = self.module.computations[name]
            if role.kind == "branch" and role.branch + 1 != use.operand_number:
                continue
            number = use.operand_number if role.kind == "call" else 0
            if role.kind == "async":
                continue
            yield name, callee.parameters[number].name, index
            if role.kind == "body":
                yield name, callee.root.name, index
        caller = self._callers.get(use.computation)
        is_root = self.module.computations[use.computation].root.name == user.name
        if caller is not None and is_root and user.opcode == "tuple":
            computation, instruction = caller
            if instruction.opcode in ("conditional", "call"):
                yield computation, instruction.name, (use.operand_number, *index)

    def _first_inside(self, use: Use, user: HloInstruction) -> Iterator[tuple[int, int | None]]:
        """(parameter's time, first real use) in the body or branch that takes the value over."""
        for role, name in control_flow_calls(user):
            takes = role.kind == "body" or (
                role.kind == "branch" and role.branch + 1 == use.operand_number
            )
            if not takes:
                continue
            parameter = self.module.computations[name].parameters[0].name
            times = [
                self._use_time(inner)
                for value in self.aliases.values_at(name, parameter, use.operand_index)
                for inner in self.aliases.uses[value]
                if inner.computation == name and self._user(inner).opcode not in TRIVIAL
            ]
            yield self.schedule.time_of[name, parameter], min(times, default=None)

    def _use_time(self, use: Use) -> int:
        """When a use takes place, loops and conditionals at their parameter."""
        user = self._user(use)
        times = [self._parameter_time(name) for _, name in control_flow_calls(user)]
        return min([self._time(use), *times])

    # -- looking up -----------------------------------------------------------------------------

    def _parameter_time(self, computation: str) -> int:
        parameters = self.module.computations[computation].parameters
        if not parameters:
            return self.schedule.spans[computation].start
        return self.schedule.time_of[computation, parameters[0].name]

    def _shape(self, value: HloValue) -> Shape:
        return self.aliases.defining(value).shape.at(value.index)

    def _user(self, use: Use) -> HloInstruction:
        return self.module.computations[use.computation].instruction(use.instruction)

    def _operand(self, use: Use) -> str:
        return self._user(use).operands[use.operand_number]

    def _time(self, use: Use) -> int:
        return self.schedule.time_of[use.computation, use.instruction]


def _space(shape: Shape) -> int:
    return 0 if shape.layout is None else shape.layout.memory_space


def _is_async_start(instruction: HloInstruction) -> bool:
    return instruction.opcode.endswith("-start") and instruction.opcode != "copy-start"


def _read_back(builder: _Builder, result: MsaResult) -> HloAssignment:
    """Offsets of definitions and operands, and the copies that serve someone."""
    defined: dict[Where, int | None] = {}
    served: dict[tuple[str, str, int, ShapeIndex], int | None] = {}
    copies: list[CopyOp] = []
    for buffer_id, placed in result.placed.items():
        for number, placement in enumerate(builder.placements[buffer_id]):
            defined[placement.where] = _defined_offset(placed, number, placement.time)
            for use_number in range(len(placed.buffer.values[number].uses)):
                use = builder.use_keys[buffer_id, number, use_number]
                served[use.computation, use.instruction, use.operand_number, use.operand_index] = (
                    _served_offset(placed, number, use_number)
                )
        copies.extend(_copies(placed))
    copies.sort(key=lambda copy: (copy.before, copy.after))
    return HloAssignment(builder.module, builder.schedule, result, tuple(copies), defined, served)


def _defined_offset(placed: Placed, number: int, time: int) -> int | None:
    if placed.carried is not None or not placed.sequences:
        return None
    for allocation in placed.sequences[number]:
        if allocation.place is not None and allocation.start == time and allocation.copy is None:
            return allocation.place.offset
    return None


def _served_offset(placed: Placed, number: int, use: int) -> int | None:
    if placed.carried is not None:
        return placed.carried.place.offset
    allocation = placed.serving.get((number, use))
    return None if allocation is None or allocation.place is None else allocation.place.offset


def _copies(placed: Placed) -> Iterator[CopyOp]:
    """Copies whose result is used, or is the source of one that is."""
    buffer = placed.buffer
    if placed.carried is not None:
        carried = placed.carried
        first_use = min(use.time for value in buffer.values for use in value.uses)
        yield CopyOp(buffer.name, True, -1, first_use, carried.place.offset)
        if carried.fetched_after is not None:
            end = carried.place.held[-1][1].end
            yield CopyOp(buffer.name, True, carried.fetched_after, end, carried.place.offset)
    for value, sequence in zip(buffer.values, placed.sequences, strict=False):
        needed = {id(a) for a in sequence if a.uses}
        needed |= {id(a.source) for a in sequence if a.uses and a.source is not None}
        for allocation in sequence:
            if allocation.copy is None or id(allocation) not in needed:
                continue
            yield CopyOp(value.name, allocation.fast, *allocation.copy, _fast_offset(allocation))


def _fast_offset(allocation: Allocation) -> int:
    place = allocation.place
    if place is None and allocation.source is not None:
        place = allocation.source.place
    assert place is not None
    return place.offset
