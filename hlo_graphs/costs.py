"""Work of every instruction as XLA counts it: flops, transcendentals, bytes per operand and output.

Source: the rules of XLA's `xla/service/hlo_cost_analysis.cc`, tested against the `HloCostAnalysis`
inside jaxlib. Deliberate differences: a custom call counts its operands and outputs in full (XLA:
-1 for everything); updates in place are recognised through bitcasts and nested fusions; what a
fusion only passes on, at its operand's memory, does not move; gathers and scatters touch what they
move inside any fusion (XLA: custom ones only); an `opt-barrier` moves nothing; a `ragged-dot` and a
`reduce-window` over a whole dimension count the operations they do, where XLA's short cuts
miscount.

Sizes come from a function, so that the same rules give XLA's unpadded bytes (`byte_size_of`, for
the tests) and the physical ones of a chip's tiled layouts (`padded_size_bytes`, for times).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from hlo_graphs.attributes import computation_names
from hlo_graphs.errors import InputError
from hlo_graphs.fusion_costs import fusion_writes, parameter_reads, passed_through
from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule, Shape, ShapeIndex
from hlo_graphs.leaves import elements, leaves
from hlo_graphs.opcodes import words
from hlo_graphs.shapes import POINTER_SIZE_BYTES, padded_size_bytes
from hlo_graphs.windows import WindowDimension, braces, convolution_flops, parse_window

SizeOf = Callable[[Shape], int]
"""Bytes of an array shape."""

IDLE_TARGETS = frozenset({"AllocateBuffer", "ConcatBitcast"})
"""Custom calls that move nothing: a buffer of undefined content, slices that lie side by side."""


@dataclass(frozen=True, slots=True)
class InstructionCost:
    """The work of one execution of one instruction.

    Attributes:
      flops: floating point operations, a multiply-add counted as two.
      matrix_flops: the part of `flops` that dots and convolutions do.
      matrix_type: HLO element type of their operands, "" without any.
      transcendentals: exponentials, logarithms, square roots and the like.
      total_bytes: everything read and written ("bytes accessed").
      operands: per operand, the bytes read of each leaf, by shape index.
      outputs: bytes written of each output leaf, by shape index.
      known: False where XLA's own analysis gives up (custom calls).
    """

    flops: float = 0.0
    matrix_flops: float = 0.0
    matrix_type: str = ""
    transcendentals: float = 0.0
    total_bytes: float = 0.0
    operands: tuple[Mapping[ShapeIndex, float], ...] = ()
    outputs: Mapping[ShapeIndex, float] = field(default_factory=dict)
    known: bool = True

    def operand_bytes(self, operand: int, index: ShapeIndex = ()) -> float:
        """Bytes read of a leaf of an operand, or of all leaves below `index`."""
        return _below(self.operands[operand], index)

    def output_bytes(self, index: ShapeIndex = ()) -> float:
        """Bytes written to an output leaf, or to all leaves below `index`."""
        return _below(self.outputs, index)


def _below(leaves: Mapping[ShapeIndex, float], index: ShapeIndex) -> float:
    return sum(size for leaf, size in leaves.items() if leaf[: len(index)] == index)


class CostAnalysis:
    """Costs of the instructions of a module, worked out on demand and kept.

    Args:
      module: scheduled or not.
      size_of: bytes of an array shape; None counts no bytes at all.
    """

    def __init__(self, module: HloModule, size_of: SizeOf | None) -> None:
        self._module = module
        self._size_of = size_of
        self._costs: dict[tuple[str, str], InstructionCost] = {}
        self._totals: dict[str, InstructionCost] = {}
        self._users: dict[str, dict[str, list[tuple[HloInstruction, int]]]] = {}
        self._weightless: CostAnalysis | None = None

    @property
    def module(self) -> HloModule:
        """The module analysed."""
        return self._module

    def cost(self, computation: str, instruction: str) -> InstructionCost:
        """The cost of one instruction by name.

        A `while` costs one trip of its body and condition, a `call` its computation, a
        `conditional` the worst of its branches; those who flatten the schedule skip them.

        Raises:
          KeyError: for a computation or instruction that the module does not have.
          InputError: if its attributes do not fit its shapes, or a size is unknown.
        """
        key = (computation, instruction)
        if key not in self._costs:
            place = self._module.computations[computation]
            self._costs[key] = self._work_out(place, place.instruction(instruction))
        return self._costs[key]

    def _work_out(
        self, computation: HloComputation, instruction: HloInstruction
    ) -> InstructionCost:
        try:
            return _cost(self, computation, instruction)
        except (ValueError, IndexError, KeyError, ArithmeticError) as error:
            raise InputError(
                f"{self._module.path}:{instruction.line}: {instruction.opcode} "
                f"{instruction.name}: its attributes do not fit its shapes "
                f"({type(error).__name__}: {error}); is the module whole?"
            ) from error

    def step_cost(self, computation: str, instruction: str) -> InstructionCost:
        """The cost of an instruction that is a step of its own; raises as `cost`.

        A transposition that layouts make a renaming is nothing to XLA, yet its result has a
        buffer of its own here: it is priced as the copy it then is.
        """
        place = self._module.computations[computation]
        found = place.instruction(instruction)
        if found.opcode == "transpose":
            return _default(_Place(self, place, found))
        return self.cost(computation, instruction)

    def total(self, computation: str) -> InstructionCost:
        """Sums over a computation's instructions, without bytes per operand."""
        if computation not in self._totals:
            place = self._module.computations[computation]
            costs = [self.cost(computation, inner.name) for inner in place.instructions]
            self._totals[computation] = _sum(costs)
        return self._totals[computation]

    def work(self, computation: str) -> InstructionCost:
        """Like `total` without the bytes: what a fusion's inside costs (much faster)."""
        if self._weightless is None:
            self._weightless = CostAnalysis(self._module, None)
            self._weightless._weightless = self._weightless
        return self._weightless.total(computation)

    def size_of(self, shape: Shape) -> int:
        """Bytes of an array; nothing for tokens, opaques and tuples."""
        return self._size_of(shape) if self._size_of is not None and shape.is_array else 0

    @property
    def counts_bytes(self) -> bool:
        """Whether bytes are counted, not only the work."""
        return self._size_of is not None

    def users(self, computation: str) -> Mapping[str, list[tuple[HloInstruction, int]]]:
        """Per instruction of a computation its (user, operand position) pairs."""
        if computation not in self._users:
            users: dict[str, list[tuple[HloInstruction, int]]] = {}
            for user in self._module.computations[computation].instructions:
                for position, operand in enumerate(user.operands):
                    users.setdefault(operand, []).append((user, position))
            self._users[computation] = users
        return self._users[computation]


def analyse_costs(module: HloModule, size_of: SizeOf = padded_size_bytes) -> CostAnalysis:
    """Flops and bytes of every instruction of `module`; `size_of` gives the bytes of an array."""
    return CostAnalysis(module, size_of)


def _sum(costs: list[InstructionCost]) -> InstructionCost:
    return InstructionCost(
        flops=sum(cost.flops for cost in costs),
        matrix_flops=sum(cost.matrix_flops for cost in costs),
        matrix_type=_widest(costs),
        transcendentals=sum(cost.transcendentals for cost in costs),
        total_bytes=sum(cost.total_bytes for cost in costs),
        known=all(cost.known for cost in costs),
    )


def _widest(costs: list[InstructionCost]) -> str:
    """The matrix operand type that most of the matrix flops have."""
    flops: dict[str, float] = {}
    for cost in costs:
        flops[cost.matrix_type] = flops.get(cost.matrix_type, 0.0) + cost.matrix_flops
    return max(flops, key=lambda name: flops[name], default="")


# --- one instruction -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """An instruction within its computation, with its operands resolved."""

    analysis: CostAnalysis
    computation: HloComputation
    instruction: HloInstruction

    def operand(self, position: int) -> HloInstruction:
        return self.computation.instruction(self.instruction.operands[position])

    def operand_shape(self, position: int) -> Shape:
        return self.operand(position).shape

    def called(self, role: str) -> InstructionCost:
        name, *_ = computation_names(self.instruction.attributes[role])
        return self.analysis.total(name)


def _cost(
    analysis: CostAnalysis, computation: HloComputation, instruction: HloInstruction
) -> InstructionCost:
    place = _Place(analysis, computation, instruction)
    opcode = instruction.opcode
    if opcode in _FREE:
        return _nothing(place)
    if opcode in _HANDLERS:
        return _HANDLERS[opcode](place)
    flops = float(elements(instruction.shape)) if opcode in _ELEMENTWISE else 0.0
    return _default(place, flops=flops)


def _nothing(place: _Place) -> InstructionCost:
    return InstructionCost(operands=tuple({} for _ in place.instruction.operands))


def _default(
    place: _Place,
    *,
    flops: float = 0.0,
    matrix_flops: float = 0.0,
    transcendentals: float = 0.0,
    reads: Mapping[int, float] | None = None,
    written: float | None = None,
) -> InstructionCost:
    """Every operand read once and every output written once, but for the overrides given.

    Args:
      reads: bytes by operand position, in place of the operand's size.
      written: bytes of the (array) output, in place of its size.
    """
    analysis, instruction = place.analysis, place.instruction
    matrix_type = place.operand_shape(0).element_type if matrix_flops else ""
    if not analysis.counts_bytes:
        return InstructionCost(flops, matrix_flops, matrix_type, transcendentals)
    operands: list[dict[ShapeIndex, float]] = []
    for position in range(len(instruction.operands)):
        if reads is not None and position in reads:
            operands.append({(): reads[position]})
        else:
            operands.append(_operand_sizes(analysis, place.operand_shape(position)))
    outputs = _leaf_sizes(analysis, instruction.shape)
    if written is not None:
        outputs = {(): written}
    return InstructionCost(
        flops=flops,
        matrix_flops=matrix_flops,
        matrix_type=matrix_type,
        transcendentals=transcendentals,
        total_bytes=sum(sum(sizes.values()) for sizes in operands) + sum(outputs.values()),
        operands=tuple(operands),
        outputs=outputs,
    )


def _operand_sizes(analysis: CostAnalysis, shape: Shape) -> dict[ShapeIndex, float]:
    """An array is read whole; of a tuple only the pointer table, whoever uses it."""
    if shape.is_tuple:
        return {(): float(POINTER_SIZE_BYTES * len(shape.elements))}
    return _leaf_sizes(analysis, shape)


def _leaf_sizes(analysis: CostAnalysis, shape: Shape) -> dict[ShapeIndex, float]:
    return {index: float(analysis.size_of(leaf)) for index, leaf in leaves(shape)}


def _tuple(place: _Place) -> InstructionCost:
    table_bytes = float(POINTER_SIZE_BYTES * len(place.instruction.operands))
    return replace(_nothing(place), outputs={(): table_bytes}, total_bytes=table_bytes)


def _transcendental(place: _Place) -> InstructionCost:
    return _default(place, transcendentals=float(elements(place.instruction.shape)))


def _slice(place: _Place) -> InstructionCost:
    return _default(place, reads={0: _output_bytes(place)})


def _dynamic_slice(place: _Place) -> InstructionCost:
    """The slice is read and written."""
    return _without_later_indices(_default(place, reads={0: _output_bytes(place)}), 2)


def _dynamic_update_slice(place: _Place) -> InstructionCost:
    update_bytes = float(place.analysis.size_of(place.operand_shape(1)))
    return _without_later_indices(_default(place, reads={0: 0.0}, written=update_bytes), 3)


def _without_later_indices(cost: InstructionCost, start: int) -> InstructionCost:
    """Of several index operands XLA's total counts the first only; `start` is the second."""
    later = sum(sum(sizes.values()) for sizes in cost.operands[start:])
    return replace(cost, total_bytes=cost.total_bytes - later)


def _output_bytes(place: _Place) -> float:
    return float(place.analysis.size_of(place.instruction.shape))


def _gather(place: _Place) -> InstructionCost:
    return _default(place, reads={0: _output_bytes(place)})


def _scatter(place: _Place) -> InstructionCost:
    """Every updated place is read, the updates are read, the places are written."""
    count = len(place.instruction.operands) // 2
    size_of = place.analysis.size_of
    updates = [place.operand_shape(count + 1 + i) for i in range(count)]
    sub = place.called("to_apply")
    times = elements(updates[0])
    cost = _default(
        place,
        flops=sub.flops * times,
        transcendentals=sub.transcendentals * times,
        reads={i: float(size_of(updates[i])) for i in range(count)},
    )
    written = sum(size_of(update) for update in updates)
    indices = [index for index, _ in leaves(place.instruction.shape)]
    outputs = {index: float(size_of(updates[i])) for i, index in enumerate(indices)}
    total = cost.total_bytes - sum(cost.outputs.values()) + written
    return replace(cost, outputs=outputs, total_bytes=total)


def _dot(place: _Place) -> InstructionCost:
    lhs = place.operand_shape(0).dimensions
    contracted = braces(place.instruction.attributes.get("lhs_contracting_dims", "{}"))
    depth = math.prod(lhs[dimension] for dimension in contracted)
    flops = 2.0 * elements(place.instruction.shape) * depth
    return _default(place, flops=flops, matrix_flops=flops)


def _ragged_dot(place: _Place) -> InstructionCost:
    """Every row of the left side meets the matrix of its own group only.

    XLA's own count drops a dimension of the result instead, which is too low for ragged rows and
    too high for a ragged contraction.
    """
    numbers = place.instruction.attributes
    roles = ("rhs_contracting_dims", "rhs_batch_dims", "rhs_group_dims")
    bound = {dimension for role in roles for dimension in braces(numbers.get(role, "{}"))}
    rhs = place.operand_shape(1).dimensions
    free = math.prod(size for dimension, size in enumerate(rhs) if dimension not in bound)
    flops = 2.0 * elements(place.operand_shape(0)) * free
    return _default(place, flops=flops, matrix_flops=flops)


def _reduce(place: _Place) -> InstructionCost:
    applied = elements(place.operand_shape(0)) - elements(place.instruction.shape)
    return _applied(place, float(applied))


def _map(place: _Place) -> InstructionCost:
    return _applied(place, float(elements(place.instruction.shape)))


def _reduce_window(place: _Place) -> InstructionCost:
    window = parse_window(place.instruction.attributes.get("window", "{}"))
    shape = place.operand_shape(0)
    whole = _whole_dimension(window, shape)
    if whole is not None:
        length = shape.dimensions[whole]
        return _applied(place, float(elements(shape) // max(1, length) * (length - 1)))
    size = math.prod(dimension.size for dimension in window)
    return _applied(place, float(elements(place.instruction.shape) * max(0, size - 1)))


def _whole_dimension(window: tuple[WindowDimension, ...], shape: Shape) -> int | None:
    """The one dimension that every window covers whole: a reduction, then a broadcast.

    XLA knows this case too, and adds up sizes where they multiply; here the reduction counts.
    """
    wide = [number for number, dimension in enumerate(window) if dimension.size > 1]
    if len(wide) != 1:
        return None
    length, dimension = shape.dimensions[wide[0]], window[wide[0]]
    covers = dimension.size == 2 * length - 1
    centred = dimension.pad_low == dimension.pad_high == length - 1
    return wide[0] if covers and centred and dimension.stride == 1 else None


def _applied(place: _Place, times: float) -> InstructionCost:
    sub = place.called("to_apply")
    return _default(place, flops=sub.flops * times, transcendentals=sub.transcendentals * times)


def _select_and_scatter(place: _Place) -> InstructionCost:
    window = parse_window(place.instruction.attributes.get("window", "{}"))
    size = math.prod(dimension.size for dimension in window)
    select, scatter = place.called("select"), place.called("scatter")
    count = elements(place.operand_shape(1))
    return _default(
        place,
        flops=count * (select.flops * (size - 1) + scatter.flops),
        transcendentals=count * (select.transcendentals * (size - 1) + scatter.transcendentals),
    )


def _sort(place: _Place) -> InstructionCost:
    count = elements(place.operand_shape(0))
    return _default(place, flops=float(count * _log2_ceiling(count)))


def _log2_ceiling(count: int) -> int:
    return (count - 1).bit_length() if count > 0 else 0


def _fft(place: _Place) -> InstructionCost:
    lengths = braces(place.instruction.attributes.get("fft_length", "{}"))
    depth = math.prod(max(0, length.bit_length() - 1) for length in lengths)
    return _default(place, flops=8.0 * depth * elements(place.operand_shape(0)))


def _triangular_solve(place: _Place) -> InstructionCost:
    """Half of the triangular operand is read; n multiply-adds an element of the result."""
    rank = place.operand_shape(0).dimensions[-1]
    half = place.analysis.size_of(place.operand_shape(0)) / 2
    return _default(
        place, flops=2.0 * rank * elements(place.instruction.shape), reads={0: float(half)}
    )


def _cholesky(place: _Place) -> InstructionCost:
    """Half of the matrix is read and half written."""
    shape = place.operand_shape(0)
    half = place.analysis.size_of(shape) / 2
    flops = float(elements(shape) * shape.dimensions[-1] // 3)
    return _default(place, flops=flops, reads={0: half}, written=half)


def _all_reduce(place: _Place) -> InstructionCost:
    flops = sum(elements(leaf) for _, leaf in leaves(place.instruction.shape))
    return _default(place, flops=float(flops))


def _outfeed(place: _Place) -> InstructionCost:
    """Leaves the chip leaf by leaf: not the pointer table, all that it points to is read."""
    sizes = _leaf_sizes(place.analysis, place.operand_shape(0))
    return replace(_nothing(place), operands=(sizes, {}), total_bytes=sum(sizes.values()))


def _rng(place: _Place) -> InstructionCost:
    count = sum(elements(leaf) for _, leaf in leaves(place.instruction.shape))
    return _default(place, transcendentals=float(count))


def _transpose(place: _Place) -> InstructionCost:
    return _nothing(place) if transpose_is_bitcast(place) else _default(place)


def transpose_is_bitcast(place: _Place) -> bool:
    """Whether the layouts make a transpose a mere renaming of dimensions (untiled shapes)."""
    source, result = place.operand_shape(0), place.instruction.shape
    if source.layout is None or result.layout is None:
        return False
    if source.element_type != result.element_type:
        return False
    permutation = braces(place.instruction.attributes.get("dimensions", "{}"))
    renamed = tuple(permutation[dimension] for dimension in result.layout.minor_to_major)
    same_order = renamed == source.layout.minor_to_major
    return same_order and source.layout.tiles == result.layout.tiles


def _custom_call(place: _Place) -> InstructionCost:
    if place.instruction.custom_call_target in IDLE_TARGETS:
        return _nothing(place)
    operands = tuple(
        _leaf_sizes(place.analysis, place.operand_shape(position))
        for position in range(len(place.instruction.operands))
    )
    outputs = _leaf_sizes(place.analysis, place.instruction.shape)
    total = sum(sum(sizes.values()) for sizes in (*operands, outputs))
    work = _stated_work(place.instruction)
    first = place.operand_shape(0) if operands else None
    return InstructionCost(
        flops=work.get("flops", 0.0),
        matrix_flops=work.get("flops", 0.0),
        matrix_type=first.element_type if first is not None and first.is_array else "",
        transcendentals=work.get("transcendentals", 0.0),
        total_bytes=total,
        operands=operands,
        outputs=outputs,
        known=False,
    )


_COST_ESTIMATE = re.compile(r'"cost_estimate\\?"\s*:\s*\{([^{}]*)\}')
_STATED_WORK = re.compile(r'"(flops|transcendentals)\\?"\s*:\s*(?:\\?")?(\d{1,18})')


def _stated_work(instruction: HloInstruction) -> dict[str, float]:
    """What a kernel says of itself, as those of Pallas do; nothing if it does not.

    Its flops are taken to be those of matrix products.
    """
    stated = _COST_ESTIMATE.search(instruction.attributes.get("backend_config", ""))
    return {} if stated is None else {n: float(v) for n, v in _STATED_WORK.findall(stated[1])}


def _while(place: _Place) -> InstructionCost:
    parts = [place.called("body"), place.called("condition")]
    return replace(_sum(parts), operands=tuple({} for _ in place.instruction.operands))


def _call(place: _Place) -> InstructionCost:
    parts = [place.analysis.total(name) for name in place.instruction.called_computations]
    return replace(_sum(parts), operands=tuple({} for _ in place.instruction.operands))


def _conditional(place: _Place) -> InstructionCost:
    branches = [place.analysis.total(name) for name in place.instruction.called_computations]
    return InstructionCost(
        flops=max(branch.flops for branch in branches),
        matrix_flops=max(branch.matrix_flops for branch in branches),
        matrix_type=_widest(branches),
        transcendentals=max(branch.transcendentals for branch in branches),
        total_bytes=max(branch.total_bytes for branch in branches),
        operands=tuple({} for _ in place.instruction.operands),
        known=all(branch.known for branch in branches),
    )


def _convolution(place: _Place) -> InstructionCost:
    flops = convolution_flops(place.operand_shape(0), place.operand_shape(1), place.instruction)
    return _default(place, flops=flops, matrix_flops=flops)


# --- fusions -------------------------------------------------------------------------------------


def _fusion(place: _Place) -> InstructionCost:
    """Inner flops; outside bytes: intermediate values never reach memory."""
    analysis, instruction = place.analysis, place.instruction
    inner = analysis.module.computations[instruction.called_computations[0]]
    work = analysis.work(inner.name)
    if not analysis.counts_bytes:
        return work
    passed = passed_through(inner, instruction)
    operands: list[dict[ShapeIndex, float]] = [{} for _ in instruction.operands]
    constants = 0.0
    for parameter in inner.instructions:
        if parameter.opcode == "parameter" and parameter.parameter_number is not None:
            reads = parameter_reads(analysis, inner, parameter, passed)
            operands[parameter.parameter_number] = reads
        elif parameter.opcode == "constant" and elements(parameter.shape) > 1:
            constants += analysis.size_of(parameter.shape)
    outputs = fusion_writes(analysis, inner, instruction.shape, passed)
    read = sum(sum(sizes.values()) for sizes in operands)
    return replace(
        work,
        total_bytes=read + sum(outputs.values()) + constants,
        operands=tuple(operands),
        outputs=outputs,
    )


# --- the opcodes ---------------------------------------------------------------------------------


_FREE = words(
    "parameter constant get-tuple-element bitcast domain after-all add-dependency opt-barrier"
)

_ELEMENTWISE = words(
    "abs add and bitcast-convert ceil clamp clz compare complex convert count-leading-zeros "
    "divide floor imag is-finite maximum minimum multiply multiply-add negate not or "
    "popcnt real reduce-precision remainder round-nearest-afz round-nearest-even select "
    "shift-left shift-right-arithmetic shift-right-logical sign stochastic-convert subtract "
    "xor"
)
_TRANSCENDENTAL = words(
    "acos acosh asin asinh atan2 atanh cbrt cosh cosine erf exponential exponential-minus-one "
    "log log-plus-one logistic power rsqrt sine sinh sqrt tan tanh"
)
_HANDLERS: Mapping[str, Callable[[_Place], InstructionCost]] = {
    **dict.fromkeys(_TRANSCENDENTAL, _transcendental),
    "tuple": _tuple,
    "slice": _slice,
    "dynamic-slice": _dynamic_slice,
    "dynamic-update-slice": _dynamic_update_slice,
    "gather": _gather,
    "scatter": _scatter,
    "dot": _dot,
    "scaled-dot": _dot,
    "ragged-dot": _ragged_dot,
    "convolution": _convolution,
    "reduce": _reduce,
    "reduce-window": _reduce_window,
    "select-and-scatter": _select_and_scatter,
    "map": _map,
    "sort": _sort,
    "fft": _fft,
    "triangular-solve": _triangular_solve,
    "cholesky": _cholesky,
    "all-reduce": _all_reduce,
    "all-reduce-start": _all_reduce,
    "outfeed": _outfeed,
    "rng": _rng,
    "rng-bit-generator": _rng,
    "transpose": _transpose,
    "custom-call": _custom_call,
    "while": _while,
    "call": _call,
    "async-start": _call,
    "conditional": _conditional,
    "fusion": _fusion,
}
