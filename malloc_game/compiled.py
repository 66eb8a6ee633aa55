"""A compiled module read against the program it was made from.

Memory-space assignment keeps the program's instructions, their names and their order; it changes
layouts, and inserts copies and the forwarding around them (docs/production.md). This module answers
where in the program a place of the compiled module is: which step, which buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from hlo_graphs.aliasing import AliasAnalysis, analyse_aliases
from hlo_graphs.dataflow import HloValue
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloInstruction, HloModule, Shape, ShapeIndex
from hlo_graphs.live_range import FlatSchedule, LiveRange, flatten_schedule, live_ranges
from hlo_graphs.lower import Lowered

_STARTS = frozenset({"copy-start", "async-start", "slice-start"})
_DONES = frozenset({"copy-done", "async-done", "slice-done"})


class ProductionError(InputError):
    """The compiled module does not fit the program, or does something the reader does not know."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One copy or slice that the copy engine makes.

    Attributes:
      computation: where its instructions are.
      start: the instruction that issues it.
      target_index: where in the start's shape the copied array is.
      start_time: of `start` in the compiled schedule.
      done_time: of the matching done.
      crosses_programs: it fetches a parameter before the program's first step.
    """

    computation: str
    start: HloInstruction
    target_index: ShapeIndex
    start_time: int
    done_time: int
    crosses_programs: bool

    @property
    def source(self) -> str:
        """Name of the instruction whose array is copied."""
        return self.start.operands[0]

    @property
    def target_shape(self) -> Shape:
        """Shape of the copy."""
        return self.start.shape.at(self.target_index)


class CompiledModule:
    """The compiled module beside its program.

    Attributes:
      lowered: the program and its module before assignment.
      module: the compiled one.
    """

    def __init__(self, lowered: Lowered, module: HloModule) -> None:
        self.lowered = lowered
        self.module = module
        self._own = {
            name: {instruction.name: instruction for instruction in computation.instructions}
            for name, computation in lowered.module.computations.items()
        }

    @cached_property
    def aliases(self) -> AliasAnalysis:
        """Alias sets of the compiled module."""
        return analyse_aliases(self.module)

    @cached_property
    def schedule(self) -> FlatSchedule:
        """Flattened schedule of the compiled module."""
        return flatten_schedule(self.module)

    @cached_property
    def ranges(self) -> Mapping[int, LiveRange]:
        """Live ranges of the compiled module's values."""
        return live_ranges(self.module, self.aliases, self.schedule)

    @cached_property
    def step_at(self) -> tuple[int | None, ...]:
        """Per time of the compiled schedule the program's step that runs then, if one does."""
        return tuple(
            self.lowered.step_of.get((position.computation, position.instruction.name))
            for position in self.schedule.positions
        )

    @cached_property
    def next_step(self) -> tuple[int, ...]:
        """Per time, and the end, the program's first step at or after it; T past the last.

        Raises:
          ProductionError: if the compiled module runs the steps in another order.
        """
        following = [self.lowered.program.num_steps]
        for step in reversed(self.step_at):
            following.append(following[-1] if step is None else step)
        following.reverse()
        if any(one > other for one, other in pairwise(following)):
            raise ProductionError(
                f"{self.module.path}: its instructions run in another order than the program's"
            )
        return tuple(following)

    @cached_property
    def missing_steps(self) -> frozenset[int]:
        """Steps of the program that the compiled module does not have."""
        return frozenset(range(self.lowered.program.num_steps)) - frozenset(self.step_at)

    @cached_property
    def _loop_of_computation(self) -> Mapping[str, int | None]:
        program = self.lowered.program
        return {
            computation: program.loop_of_step[step]
            for (computation, _), step in self.lowered.step_of.items()
        }

    def loop_of(self, computation: str) -> int | None:
        """The innermost loop that the steps of a computation are in."""
        return self._loop_of_computation.get(computation)

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """The copy engine's work that assignment inserted, by start time."""
        starts: dict[tuple[str, str], int] = {}
        found: list[Transfer] = []
        for time, (computation, instruction) in enumerate(self.schedule.positions):
            if instruction.name in self._own.get(computation, {}):
                continue
            if instruction.opcode in _STARTS:
                starts[computation, instruction.name] = time
            elif instruction.opcode in _DONES:
                start_time = starts.get((computation, instruction.operands[0]))
                if start_time is not None:
                    found.append(self._transfer(computation, start_time, time))
        return tuple(sorted(found, key=lambda transfer: transfer.start_time))

    def _transfer(self, computation: str, start_time: int, done_time: int) -> Transfer:
        start = self.schedule.positions[start_time].instruction
        return Transfer(
            computation=computation,
            start=start,
            target_index=(0,) if start.opcode == "copy-start" else (1,),
            start_time=start_time,
            done_time=done_time,
            crosses_programs="cross_program_prefetch_index" in start.attributes,
        )

    def is_fast(self, shape: Shape) -> bool:
        """Whether an array of this shape lies in fast memory."""
        space = self.lowered.chip.fast_memory_space
        return shape.is_array and shape.layout is not None and shape.layout.memory_space == space

    def shape_of(self, value: HloValue) -> Shape:
        """Shape of a value of the compiled module."""
        return self.aliases.defining(value).shape.at(value.index)

    def occupied(self, value: HloValue) -> LiveRange:
        """When a value must be kept in its place, both ends included.

        XLA's live range, but for what is handed to a conditional: the branches free its place
        after their own last use of it.
        """
        found = self.ranges[value.id]
        uses = self.aliases.uses[value.id]
        users = [self.schedule.time_of[use.computation, use.instruction] for use in uses]
        opcodes = [self.schedule.positions[time].instruction.opcode for time in users]
        lasting = {"while", "call", "tuple"}
        if "conditional" not in opcodes or lasting.intersection(opcodes):
            return found
        ends = [t for t, op in zip(users, opcodes, strict=True) if op != "conditional"]
        return LiveRange(found.start, max(ends, default=found.start))

    def loop_around(self, values: Iterable[HloValue]) -> int | None:
        """The innermost loop that all the computations of some values are in."""
        loops = self.lowered.program.loops_around
        chains = [list(loops(self.loop_of(value.computation))) for value in values]
        return next((loop for loop in chains[0] if all(loop in chain for chain in chains)), None)

    def set_at(self, computation: str, instruction: str, index: ShapeIndex) -> int:
        """The compiled module's alias set at a place."""
        return self.aliases.buffer_at(computation, instruction, index)

    def own_buffer(self, computation: str, instruction: str, index: ShapeIndex) -> int | None:
        """The program's buffer at a place that the program's own module has too, else None."""
        own = self._own.get(computation, {}).get(instruction)
        if own is None:
            return None
        try:
            own.shape.at(index)
        except IndexError:  # assignment appends elements to the tuples of loops
            return None
        hlo_buffer = self.lowered.aliases.buffer_at(computation, instruction, index)
        return self.lowered.buffer_ids.get(hlo_buffer)

    def buffers_of_set(self, alias_set: int) -> frozenset[int]:
        """The program's buffers that an alias set stands for, by who defines and who uses it."""
        found: set[int | None] = set()
        for value_id in self.aliases.buffers[alias_set].values:
            value = self.aliases.values[value_id]
            found.add(self.own_buffer(value.computation, value.instruction, value.index))
            for use in self.aliases.uses[value_id]:
                own = self._own.get(use.computation, {}).get(use.instruction)
                if own is not None and use.operand_number < len(own.operands):
                    operand = own.operands[use.operand_number]
                    found.add(self.own_buffer(use.computation, operand, use.operand_index))
        return frozenset(buffer for buffer in found if buffer is not None)

    def copied_buffer(self, computation: str, instruction: str) -> int | None:
        """The program's buffer that an array holds, looking through inserted copies."""
        while True:
            buffers = self.buffers_of_set(self.set_at(computation, instruction, ()))
            if len(buffers) == 1:
                return next(iter(buffers))
            operands = self._inserted_operands(computation, instruction)
            if not operands:
                return None
            instruction = operands[0]

    def _inserted_operands(self, computation: str, instruction: str) -> tuple[str, ...]:
        if instruction in self._own.get(computation, {}):
            return ()
        return self.module.computations[computation].instruction(instruction).operands

    def marked_fast(self) -> Iterator[tuple[int, int]]:
        """(step, buffer) of the accesses whose every operand and result is marked fast."""
        program = self.lowered.program
        for time, step in enumerate(self.step_at):
            if step is None:
                continue
            places = list(self._places(time))
            slow = {buffer for buffer, shape in places if not self.is_fast(shape)}
            accessed = {access.buffer for access in program.instructions[step].accesses}
            fast = {buffer for buffer, _ in places} - slow
            yield from ((step, buffer) for buffer in sorted(fast & accessed))

    def _places(self, time: int) -> Iterator[tuple[int, Shape]]:
        """Buffer and compiled shape of every array a step reads or writes."""
        computation, instruction = self.schedule.positions[time]
        own = self._own[computation][instruction.name]
        for own_operand, operand in zip(own.operands, instruction.operands, strict=True):
            shape = self.module.computations[computation].instruction(operand).shape
            yield from self._arrays(computation, own_operand, shape)
        yield from self._arrays(computation, instruction.name, instruction.shape)

    def _arrays(self, computation: str, own_name: str, shape: Shape) -> Iterable[tuple[int, Shape]]:
        for index, leaf in shape.subshapes():
            buffer = self.own_buffer(computation, own_name, index) if leaf.is_array else None
            if buffer is not None:
                yield buffer, leaf
