"""What fusions read and write of memory, and which of their operands feed matrix products.

Source: `FusionParameterReadBytes` and `HandleFusion` of XLA's
`xla/service/hlo_cost_analysis.cc`; the differences are named in `costs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule, Shape, ShapeIndex
from hlo_graphs.in_place import stated_aliasing
from hlo_graphs.leaves import leaves


class SizedModule(Protocol):
    """What is asked of a cost analysis here."""

    @property
    def module(self) -> HloModule:
        """The module analysed."""
        ...

    def size_of(self, shape: Shape) -> int:
        """Bytes of an array shape."""
        ...

    def users(self, computation: str) -> Mapping[str, Sequence[tuple[HloInstruction, int]]]:
        """Per value of a computation, who takes it, and as which operand."""
        ...


def passed_through(inner: HloComputation, fusion: HloInstruction) -> frozenset[ShapeIndex]:
    """Output leaves that are a parameter of the fusion, at whose memory they stay: nothing moves.

    Only a root tuple's elements, and only where `output_to_operand_aliasing` says so.
    """
    if inner.root.opcode != "tuple":
        return frozenset()
    found = set()
    for pair in stated_aliasing(fusion):
        if len(pair.output_index) != 1 or pair.operand_index:
            continue
        producer = inner.instruction(inner.root.operands[pair.output_index[0]])
        while producer.opcode == "bitcast":
            producer = inner.instruction(producer.operands[0])
        if producer is inner.parameters[pair.operand_number]:
            found.add(pair.output_index)
    return frozenset(found)


def fusion_writes(
    analysis: SizedModule,
    inner: HloComputation,
    shape: Shape,
    passed: frozenset[ShapeIndex] = frozenset(),
) -> dict[ShapeIndex, float]:
    """Output leaves: their size, the update's where the leaf is updated in place, 0 if `passed`."""
    written: dict[ShapeIndex, float] = {}
    for index, leaf in leaves(shape):
        if index in passed:
            written[index] = 0.0
            continue
        producer = inner.root
        if len(index) == 1 and producer.opcode == "tuple":
            producer = inner.instruction(producer.operands[index[0]])
        update = _update_of(analysis, inner, producer)
        written[index] = float(analysis.size_of(update.shape if update else leaf))
    return written


def _update_of(
    analysis: SizedModule, inner: HloComputation, producer: HloInstruction
) -> HloInstruction | None:
    """What is written where a fusion's value is an update in place, seen through bitcasts."""
    if producer.opcode == "bitcast":
        return _update_of(analysis, inner, inner.instruction(producer.operands[0]))
    if producer.opcode == "fusion":
        callee = analysis.module.computations[producer.called_computations[0]]
        return _update_of(analysis, callee, callee.root)
    if producer.opcode == "dynamic-update-slice":
        return inner.instruction(producer.operands[1])
    if producer.opcode == "scatter" and not producer.shape.is_tuple:
        return _updates(inner, producer, 0)
    return None


def _updates(inner: HloComputation, scatter: HloInstruction, position: int) -> HloInstruction:
    """What a scatter puts into its operand at `position`."""
    count = len(scatter.operands) // 2
    return inner.instruction(scatter.operands[count + 1 + position])


def parameter_reads(
    analysis: SizedModule,
    inner: HloComputation,
    parameter: HloInstruction,
    passed: frozenset[ShapeIndex] = frozenset(),
) -> dict[ShapeIndex, float]:
    """Bytes a fusion reads of each leaf of one of its parameters; none for `passed` outputs."""
    if not parameter.shape.is_tuple:
        return {(): _value_reads(analysis, inner, parameter, passed)}
    reads = {index: 0.0 for index, _ in leaves(parameter.shape)}
    for value, index in _elements_of(analysis, inner, parameter, ()):
        if index in reads:
            reads[index] += _value_reads(analysis, inner, value)
    return reads


def _elements_of(
    analysis: SizedModule, inner: HloComputation, value: HloInstruction, index: ShapeIndex
) -> Iterator[tuple[HloInstruction, ShapeIndex]]:
    """The get-tuple-elements below a tuple-shaped value, with the index each one selects."""
    for user, _ in analysis.users(inner.name).get(value.name, ()):
        if user.opcode == "get-tuple-element":
            below = (*index, int(user.attributes["index"]))
            yield user, below
            yield from _elements_of(analysis, inner, user, below)


def _value_reads(
    analysis: SizedModule,
    inner: HloComputation,
    value: HloInstruction,
    passed: frozenset[ShapeIndex] = frozenset(),
) -> float:
    """XLA's FusionParameterReadBytes: slices read their result, the others share one full read."""
    size = float(analysis.size_of(value.shape))
    read, shared = _reads(analysis, inner, value, size, passed)
    return read + (float(analysis.size_of(value.shape)) if shared else 0.0)


def _reads(
    analysis: SizedModule,
    inner: HloComputation,
    value: HloInstruction,
    size: float,
    passed: frozenset[ShapeIndex],
) -> tuple[float, bool]:
    """Bytes read by users that read on their own, and whether any user shares a full read.

    Bitcasts and fusions that only copy or bitcast are looked through (XLA: the latter only).
    """
    read, shared = 0.0, inner.root is value
    for user, position in analysis.users(inner.name).get(value.name, ()):
        opcode = user.opcode
        if opcode == "bitcast" or (opcode == "fusion" and _only_forwards(analysis, user)):
            below, below_shared = _reads(analysis, inner, user, size, passed)
            read, shared = read + below, shared or below_shared
        elif opcode == "fusion":
            callee = analysis.module.computations[user.called_computations[0]]
            read += _value_reads(analysis, callee, callee.parameters[position])
        elif opcode in ("slice", "dynamic-slice") and position == 0:
            read += analysis.size_of(user.shape)
        elif opcode == "dynamic-update-slice" and position == 0:
            continue
        elif opcode == "tuple" and user is inner.root:
            shared = shared or (position,) not in passed
        elif opcode == "gather" and position == 0:
            read += analysis.size_of(user.shape)
        elif opcode == "scatter" and position < len(user.operands) // 2:
            read += analysis.size_of(_updates(inner, user, position).shape)
        elif opcode in ("broadcast", "reshape"):
            read += size
        else:
            shared = True
    return read, shared


def _only_forwards(analysis: SizedModule, fusion: HloInstruction) -> bool:
    inner = analysis.module.computations[fusion.called_computations[0]]
    return all(i.opcode in ("parameter", "bitcast", "copy") for i in inner.instructions)


# --- roles of operands ----------------------------------------------------------------------------

_MATRIX = frozenset(["convolution", "dot", "ragged-dot", "scaled-dot"])


def matrix_operands(
    analysis: SizedModule, computation: str, instruction: str
) -> frozenset[tuple[int, ShapeIndex]]:
    """The (operand, leaf index) pairs whose values reach the matrix units.

    That is a dot's or convolution's own operands, or a fusion's parameters that flow into one
    through anything but a broadcast. They may be read again for every tile of the result.
    """
    place = analysis.module.computations[computation]
    found = place.instruction(instruction)
    if found.opcode in _MATRIX:
        return frozenset((position, ()) for position in range(len(found.operands)))
    if found.opcode != "fusion":
        return frozenset()
    inner = analysis.module.computations[found.called_computations[0]]
    reaching = _reaching(analysis, inner, root_reaches=False)
    return frozenset(
        (parameter.parameter_number or 0, index)
        for parameter in inner.parameters
        for value, index in _leaf_values(analysis, inner, parameter)
        if value.name in reaching
    )


def _leaf_values(
    analysis: SizedModule, inner: HloComputation, parameter: HloInstruction
) -> Iterator[tuple[HloInstruction, ShapeIndex]]:
    if parameter.shape.is_tuple:
        yield from _elements_of(analysis, inner, parameter, ())
    else:
        yield parameter, ()


def _reaching(
    analysis: SizedModule, inner: HloComputation, *, root_reaches: bool
) -> frozenset[str]:
    """Names of the values of a fused computation that flow into a dot or convolution.

    `root_reaches` says that the computation's own value does, outside. What is broadcast on the
    way is small and read once: it does not count.
    """
    reaching: set[str] = {inner.root.name} if root_reaches else set()
    for user in reversed(inner.instructions):
        if user.opcode == "fusion":
            callee = analysis.module.computations[user.called_computations[0]]
            inside = _reaching(analysis, callee, root_reaches=user.name in reaching)
            reaching.update(
                operand
                for operand, parameter in zip(user.operands, callee.parameters, strict=True)
                if parameter.name in inside
            )
        elif user.opcode in _MATRIX or (user.name in reaching and user.opcode != "broadcast"):
            reaching.update(user.operands)
    return frozenset(reaching)
