"""What an instruction must have so that its readers need not ask: operands, attributes, callees.

Source: `HloParserImpl::CreateInstruction` and `xla/hlo/ir/hlo_opcode.h` (arities).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hlo_graphs.hlo import HloComputation, HloInstruction, Shape
from hlo_graphs.in_place import stated_aliasing
from hlo_graphs.opcodes import BINARY, UNARY, words

_EXACT_OPERANDS: dict[str, int] = {
    **dict.fromkeys(UNARY, 1),
    **dict.fromkeys(BINARY, 2),
    **dict.fromkeys(
        words("""
            all-gather-done all-reduce-done bitcast broadcast collective-permute-done
            copy-done copy-start domain fft get-dimension-size get-tuple-element infeed
            recv recv-done reshape reverse rng-bit-generator send-done slice topk
            transpose while
        """),
        1,
    ),
    **dict.fromkeys(
        words("""
            add-dependency convolution gather outfeed pad send set-dimension-size
            stochastic-convert triangular-solve
        """),
        2,
    ),
    **dict.fromkeys(("batch-norm-training", "clamp", "select", "select-and-scatter"), 3),
    **dict.fromkeys(("batch-norm-grad", "batch-norm-inference"), 5),
    **dict.fromkeys(("iota", "partition-id", "replica-id", "rng-get-and-update-state"), 0),
}
_LEAST_OPERANDS: dict[str, int] = {
    **dict.fromkeys(
        words("""
            async-done async-update collective-permute collective-permute-start
            concatenate dynamic-slice sort
        """),
        1,
    ),
    **dict.fromkeys(
        words("""
            conditional dot dynamic-update-slice ragged-all-to-all reduce reduce-window rng
        """),
        2,
    ),
    "scatter": 3,
}
_REQUIRED_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "async-start": ("calls",),
    "concatenate": ("dimensions",),
    "convolution": ("dim_labels",),
    "reverse": ("dimensions",),
    "transpose": ("dimensions",),
    "call": ("to_apply",),
    "custom-call": ("custom_call_target",),
    "fusion": ("calls", "kind"),
    "get-tuple-element": ("index",),
    "map": ("to_apply",),
    "reduce": ("to_apply", "dimensions"),
    "reduce-window": ("to_apply",),
    "scatter": ("to_apply",),
    "slice": ("slice",),
    "sort": ("to_apply",),
    "while": ("condition", "body"),
}


def missing_part(
    instruction: HloInstruction,
    known: Mapping[str, HloInstruction],
    computations: Mapping[str, HloComputation],
) -> str | None:
    """What was expected of `instruction` and is not so; None if all is well.

    Args:
      instruction: its operands and called computations exist.
      known: the instructions above it.
      computations: the computations above its own.
    """
    opcode = instruction.opcode
    expected = _expected_operands(opcode, len(instruction.operands))
    if expected is not None:
        return expected
    expected = missing_attribute(opcode, instruction.attributes)
    if expected is not None:
        return expected
    if opcode in ("custom-call", "fusion"):  # the starts of chains may bind operands later
        for pair in stated_aliasing(instruction):
            if pair.operand_number >= len(instruction.operands):
                return f"an operand {pair.operand_number} to alias with, of"
    if opcode == "get-tuple-element":
        shape = known[instruction.operands[0]].shape
        index = int(instruction.attributes["index"])
        if not 0 <= index < len(shape.elements):
            return f"an index of the operand's shape {shape}"
        return _expected_shape(instruction, shape.elements[index])
    if opcode == "tuple":
        elements = tuple(known[name].shape for name in instruction.operands)
        return _expected_shape(instruction, Shape("tuple", elements=elements))
    if opcode == "broadcast":
        return _expected_of_broadcast(instruction, known)
    if opcode in ("fusion", "call", "while", "conditional"):
        return _expected_callees(instruction, computations) or _expected_passing(
            instruction, known, computations
        )
    return None


def _expected_shape(instruction: HloInstruction, shape: Shape) -> str | None:
    if compatible(instruction.shape, shape):
        return None
    return f"the result's shape to be {shape}, not {instruction.shape}, of"


def _expected_passing(
    instruction: HloInstruction,
    known: Mapping[str, HloInstruction],
    computations: Mapping[str, HloComputation],
) -> str | None:
    """Whether shapes fit where values pass into callees and out of them.

    A call's arrays may differ in size from its callee's: the caller may hold them sharded.
    """
    fits = same_structure if instruction.opcode == "call" else compatible
    operands = [known[name].shape for name in instruction.operands]
    state = operands[0] if instruction.opcode == "while" else instruction.shape
    results = [instruction.shape]
    for place, name in enumerate(instruction.called_computations):
        callee = computations[name]
        is_condition = instruction.opcode == "while" and place == 0
        if not is_condition:
            results.append(callee.root.shape)
        given = operands[place + 1 : place + 2] if instruction.opcode == "conditional" else operands
        for shape, parameter in zip(given, callee.parameters, strict=True):
            if not fits(shape, parameter.shape):
                return f"{parameter.shape} for {parameter.name!r} of {name!r}, not {shape}, of"
    if all(fits(shape, state) for shape in results):
        return None
    return f"the shape {state} from what it calls, of"


def missing_attribute(opcode: str, attributes: Mapping[str, str]) -> str | None:
    """An attribute that `opcode` needs and is not there."""
    for name in _REQUIRED_ATTRIBUTES.get(opcode, ()):
        if name not in attributes:
            return f"the attribute {name}= of {opcode}"
    return None


def _expected_operands(opcode: str, number: int) -> str | None:
    exact = _EXACT_OPERANDS.get(opcode)
    if exact is not None:
        return None if number == exact else f"{exact} operands of {opcode}, not {number}"
    least = _LEAST_OPERANDS.get(opcode, 0)
    return None if number >= least else f"at least {least} operands of {opcode}, not {number}"


def _expected_of_broadcast(
    instruction: HloInstruction, known: Mapping[str, HloInstruction]
) -> str | None:
    """A scalar may be broadcast without saying where its dimensions go."""
    if "dimensions" in instruction.attributes:
        return None
    is_scalar = not known[instruction.operands[0]].shape.dimensions
    return None if is_scalar else "the attribute dimensions= of broadcast"


def _expected_callees(
    instruction: HloInstruction, computations: Mapping[str, HloComputation]
) -> str | None:
    """Whether each callee takes what it is given."""
    called = instruction.called_computations
    operands = len(instruction.operands)
    given = 1 if instruction.opcode in ("while", "conditional") else operands
    if instruction.opcode == "conditional" and operands != len(called) + 1:
        return f"one operand more than the conditional's {len(called)} branches"
    if instruction.opcode in ("fusion", "call") and len(called) != 1:
        return f"one computation called by {instruction.opcode}"
    for name in called:
        taken = sum(i.opcode == "parameter" for i in computations[name].instructions)
        if taken != given:
            return f"{given} parameters of {name!r}, which has {taken}"
    return None


def expected_parameters(instructions: Iterable[HloInstruction]) -> str | None:
    """What the parameters' numbers should be, None if they are 0, 1, ... in any order."""
    numbers = [i.parameter_number for i in instructions if i.opcode == "parameter"]
    if sorted(number for number in numbers if number is not None) == list(range(len(numbers))):
        return None
    return f"parameters numbered 0 to {len(numbers) - 1}, each once"


def compatible(first: Shape, second: Shape) -> bool:
    """Whether two shapes agree but for layouts and which dimensions are dynamic."""
    pending: list[tuple[Shape, Shape]] = [(first, second)]
    while pending:
        one, other = pending.pop()
        if one is other:
            continue
        if one.element_type != other.element_type or one.dimensions != other.dimensions:
            return False
        if len(one.elements) != len(other.elements):
            return False
        pending.extend(zip(one.elements, other.elements, strict=True))
    return True


def same_structure(first: Shape, second: Shape) -> bool:
    """Whether two shapes are tuples of the same form, whatever arrays they hold."""
    nodes = [
        [(index, shape.is_tuple) for index, shape in whole.subshapes()] for whole in (first, second)
    ]
    return nodes[0] == nodes[1]


def async_start_expected(elements: Sequence[Shape]) -> str | None:
    """What the shape of an async-start or async-update should be, None if it is."""
    if len(elements) >= 2 and elements[0].is_tuple:
        return None
    return "an async shape: ((operands), output, context...)"
