"""The parts of a scheduled HLO module: shapes, layouts, instructions, computations.

Source: `xla/shape.h`, `xla/layout.h` and `xla/hlo/ir/hlo_instruction.h`. Everything is immutable;
names are without the leading `%`. Attributes stay the text they were: what a reader needs of them
it parses itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

ShapeIndex = tuple[int, ...]
"""Path into a tuple shape: () is the whole, (1, 0) the first element of the second element."""

UNBOUNDED_DIMENSION = -1
"""In `Shape.dimensions`: a size that only run time knows, written `?`."""

COMBINED_TILE_DIMENSION = -1
"""In `Layout.tiles`: the dimension is merged into the next more minor one, written `*`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array lies in memory; `{1,0:T(8,128)(2,1)S(1)}` in text.

    Attributes:
      minor_to_major: dimension numbers, the fastest varying first.
      tiles: each tile's sizes, most major first; the first pads, the others only reorder.
      memory_space: 0 is the default (slow) memory.
      element_size_bits: bits an element takes, 0 for the natural size of its type.
      tail_alignment: the number of elements is a multiple of it.
      dim_levels: per dimension the storage kind (`D`, `C`, ...) of sparse arrays.
      index_type: element type of sparse indices, or "".
      pointer_type: element type of sparse pointers, or "".
      split_configs: (dimension, split indices) of arrays split over memories.
      physical_shape: shape of the sparse array's storage.
      dynamic_prefix_bytes: size of the header that holds dynamic sizes.
    """

    minor_to_major: tuple[int, ...]
    tiles: tuple[tuple[int, ...], ...] = ()
    memory_space: int = 0
    element_size_bits: int = 0
    tail_alignment: int = 1
    dim_levels: tuple[str, ...] = ()
    index_type: str = ""
    pointer_type: str = ""
    split_configs: tuple[tuple[int, tuple[int, ...]], ...] = ()
    physical_shape: Shape | None = None
    dynamic_prefix_bytes: int = 0

    def __str__(self) -> str:
        properties = "".join(self._properties())
        order = ",".join(map(str, self.minor_to_major))
        return f"{{{order}:{properties}}}" if properties else f"{{{order}}}"

    def _properties(self) -> Iterator[str]:
        """What follows the colon, in the order XLA prints it."""
        if self.dim_levels:
            yield f"D({','.join(self.dim_levels)})"
        if self.tiles:
            yield "T" + "".join(f"({_tile_text(tile)})" for tile in self.tiles)
        if self.tail_alignment != 1:
            yield f"L({self.tail_alignment})"
        if self.index_type:
            yield f"#({self.index_type})"
        if self.pointer_type:
            yield f"*({self.pointer_type})"
        if self.element_size_bits:
            yield f"E({self.element_size_bits})"
        if self.memory_space:
            yield f"S({self.memory_space})"
        for dimension, indices in self.split_configs:
            yield f"SC({dimension}:{','.join(map(str, indices))})"
        if self.physical_shape is not None:
            yield f"P({self.physical_shape})"
        if self.dynamic_prefix_bytes:
            yield f"M({self.dynamic_prefix_bytes})"


def _tile_text(tile: tuple[int, ...]) -> str:
    return ",".join("*" if size == COMBINED_TILE_DIMENSION else str(size) for size in tile)


@dataclass(frozen=True, slots=True)
class Shape:
    """Type, sizes and layout of a value.

    Attributes:
      element_type: "f32", "bf16", ..., or "tuple", "token", "opaque", "buffer".
      dimensions: size in elements per dimension; `UNBOUNDED_DIMENSION` where unknown.
      layout: None for what is not an array; arrays written without one have the row-major one.
      elements: of a tuple its members, of a buffer the one shape it holds.
      dynamic_dimensions: per dimension whether the size is only an upper bound; () if none is.
    """

    element_type: str
    dimensions: tuple[int, ...] = ()
    layout: Layout | None = None
    elements: tuple[Shape, ...] = ()
    dynamic_dimensions: tuple[bool, ...] = ()

    @property
    def is_tuple(self) -> bool:
        """Whether it is a tuple, possibly empty."""
        return self.element_type == "tuple"

    @property
    def is_array(self) -> bool:
        """Whether it holds numbers: not a tuple, token, opaque or buffer."""
        return self.element_type not in ("tuple", "token", "opaque", "buffer")

    @property
    def num_elements(self) -> int:
        """Product of the dimensions: 1 for a scalar."""
        product = 1
        for size in self.dimensions:
            product *= size
        return product

    def subshapes(self) -> Iterator[tuple[ShapeIndex, Shape]]:
        """Every node of the tuple tree with its index, parents before children, root first."""
        pending: list[tuple[ShapeIndex, Shape]] = [((), self)]
        while pending:
            index, shape = pending.pop()
            yield index, shape
            if shape.is_tuple:
                members = [((*index, i), element) for i, element in enumerate(shape.elements)]
                pending.extend(reversed(members))

    def at(self, index: ShapeIndex) -> Shape:
        """The node at `index`.

        Raises:
          IndexError: if there is none.
        """
        shape = self
        for step in index:
            if not shape.is_tuple or not 0 <= step < len(shape.elements):
                raise IndexError(f"shape {self} has no index {index}")
            shape = shape.elements[step]
        return shape

    def __str__(self) -> str:
        if self.is_tuple:
            return f"({_members_text(self.elements)})"
        if self.element_type == "buffer":
            return f"b({_members_text(self.elements)})"
        layout = "" if self.layout is None else str(self.layout)
        return f"{self.element_type}[{self._sizes_text()}]{'' if layout == '{}' else layout}"

    def _sizes_text(self) -> str:
        dynamic = self.dynamic_dimensions or (False,) * len(self.dimensions)
        return ",".join(
            "?" if size == UNBOUNDED_DIMENSION else f"<={size}" if bounded else str(size)
            for size, bounded in zip(self.dimensions, dynamic, strict=True)
        )


def _members_text(elements: tuple[Shape, ...]) -> str:
    """Comma separated, with XLA's index comment before every fifth."""
    return ", ".join(
        f"/*index={i}*/{element}" if i and i % 5 == 0 else str(element)
        for i, element in enumerate(elements)
    )


@dataclass(frozen=True)
class HloInstruction:
    """One instruction.

    Attributes:
      name: unique in its computation.
      opcode: as XLA spells it ("add", "dynamic-update-slice", ...).
      shape: of the result.
      operands: names of instructions of the same computation.
      argument_text: what stood between the parentheses, for parameters and constants.
      attributes: raw text of each attribute by name; strings keep their quotes.
      called_computations: names; condition before body, true branch before false branch, else
        as written. Only the start of an async chain has any.
      is_root: whether its value is the computation's.
      line: where it stands in its file, from 1.
    """

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    argument_text: str
    attributes: Mapping[str, str] = field(hash=False)
    called_computations: tuple[str, ...]
    is_root: bool
    line: int = field(compare=False)

    @property
    def parameter_number(self) -> int | None:
        """Which parameter it is, None if it is none."""
        return int(self.argument_text) if self.opcode == "parameter" else None

    @property
    def literal(self) -> str | None:
        """The text of a constant's value (`{...}` where the printer left it out), else None."""
        return self.argument_text if self.opcode == "constant" else None

    @property
    def custom_call_target(self) -> str | None:
        """What a custom call calls, without quotes; None of other instructions."""
        if self.opcode != "custom-call":
            return None
        return self.attributes.get("custom_call_target", "").strip("\"'")


@dataclass(frozen=True)
class HloComputation:
    """A named sequence of instructions.

    Attributes:
      name: unique in the module.
      instructions: in text order, which is the schedule if the module is scheduled.
      root: the instruction whose value the computation returns.
      is_entry: whether the program starts here.
      execution_thread: None is the main thread.
    """

    name: str
    instructions: tuple[HloInstruction, ...]
    root: HloInstruction
    is_entry: bool
    execution_thread: str | None = None

    @cached_property
    def _by_name(self) -> dict[str, HloInstruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    def instruction(self, name: str) -> HloInstruction:
        """The instruction called `name`.

        Raises:
          KeyError: if there is none.
        """
        return self._by_name[name]

    @cached_property
    def parameters(self) -> tuple[HloInstruction, ...]:
        """The parameters, by number."""
        found = [i for i in self.instructions if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda parameter: parameter.parameter_number or 0))


class InputOutputAlias(NamedTuple):
    """An output that shall live where a parameter lived.

    Attributes:
      output_index: into the entry root's shape.
      parameter_number: which parameter.
      parameter_index: into that parameter's shape.
      kind: "may-alias" or "must-alias".
    """

    output_index: ShapeIndex
    parameter_number: int
    parameter_index: ShapeIndex
    kind: str


@dataclass(frozen=True)
class HloModule:
    """A whole program.

    Attributes:
      name: as written, "" for a text without header.
      attributes: raw text of the header's attributes by name.
      computations: by name, in text order (callees before callers).
      entry: the computation the program starts in.
      is_scheduled: whether text order is the order of execution.
      input_output_alias: outputs that reuse parameters' memory.
      path: where it was read from.
    """

    name: str
    attributes: Mapping[str, str]
    computations: Mapping[str, HloComputation]
    entry: HloComputation
    is_scheduled: bool
    input_output_alias: tuple[InputOutputAlias, ...]
    path: str = field(default="<string>", compare=False)
