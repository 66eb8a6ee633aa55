"""Operations that write over an operand: which output must share memory with which operand.

Source: `xla/hlo/analysis/alias_info.cc`, default rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from hlo_graphs.call_graph import AsyncChain, CallGraph
from hlo_graphs.dataflow_rules import is_in_place_permute
from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule, ShapeIndex
from hlo_graphs.lexer import COMMENT


class InPlacePair(NamedTuple):
    """An operand's node and the output's node that must share its memory."""

    operand_number: int
    operand_index: ShapeIndex
    output_index: ShapeIndex


_COMMENT = re.compile(COMMENT)
_ALIASING_ENTRY = re.compile(r"\{([\d,\s]*)\}\s*:\s*\(\s*(\d+)\s*,\s*\{([\d,\s]*)\}")


def in_place_pairs(
    module: HloModule, computation: HloComputation, instruction: HloInstruction
) -> tuple[InPlacePair, ...]:
    """The must-share pairs of `instruction`, which is in `computation`.

    For asynchronous operations see `async_pairs`.
    """
    rule = _RULES.get(instruction.opcode)
    return tuple(rule(module, computation, instruction)) if rule is not None else ()


def stated_aliasing(instruction: HloInstruction) -> tuple[InPlacePair, ...]:
    """The attribute `output_to_operand_aliasing`."""
    text = instruction.attributes.get("output_to_operand_aliasing", "")
    return tuple(
        InPlacePair(int(number), _index(operand), _index(output))
        for output, number, operand in _ALIASING_ENTRY.findall(_COMMENT.sub(" ", text))
    )


def async_pairs(
    graph: CallGraph, computation: HloComputation, link: HloInstruction
) -> tuple[InPlacePair, ...]:
    """The must-share pairs of one link of an asynchronous chain.

    The start states them for the whole operation; each holds at the first link at which both
    operand and output are bound.
    """
    chain = graph.chain(computation, link)
    if chain is None:
        return ()
    first = chain.operands_before(link)
    own = chain.own_operands(link)
    pairs = []
    for pair in _chain_aliasing(graph.module, chain):
        number = pair.operand_number - first
        if not 0 <= number < len(own):
            continue
        output = _bound_output(link is chain.done, link, pair.output_index)
        if output is not None:
            shift = 0 if link is chain.start else 1
            pairs.append(InPlacePair(number + shift, pair.operand_index, output))
    return tuple(pairs)


def _chain_aliasing(module: HloModule, chain: AsyncChain) -> tuple[InPlacePair, ...]:
    """What the start states; the sugar `call-start` leaves it at the wrapped call."""
    stated = stated_aliasing(chain.start)
    if stated or chain.wrapped is None:
        return stated
    root = module.computations[chain.wrapped].root
    return stated_aliasing(root) if root.opcode == "call" else ()


def _bound_output(is_done: bool, link: HloInstruction, index: ShapeIndex) -> ShapeIndex | None:
    """Where the operation's output `index` is in the link's result, None if not there yet."""
    if is_done:
        return index[1:] if index[:1] == (1,) else None
    shape = link.shape
    for step in index:
        if not shape.is_tuple or step >= len(shape.elements):
            return None
        shape = shape.elements[step]
    return index


def _index(text: str) -> ShapeIndex:
    return tuple(int(step) for step in text.split(",") if step.strip())


Rule = Callable[[HloModule, HloComputation, HloInstruction], Iterator[InPlacePair]]


def _first_operand(
    module: HloModule, computation: HloComputation, instruction: HloInstruction
) -> Iterator[InPlacePair]:
    yield InPlacePair(0, (), ())


def _second_operand(
    module: HloModule, computation: HloComputation, instruction: HloInstruction
) -> Iterator[InPlacePair]:
    yield InPlacePair(1, (), ())


def _each_operand(count: int) -> Iterator[InPlacePair]:
    """Operand i and output i; the output is no tuple if there is only one."""
    if count == 1:
        yield InPlacePair(0, (), ())
    else:
        yield from (InPlacePair(number, (), (number,)) for number in range(count))


def _scatter(
    module: HloModule, computation: HloComputation, instruction: HloInstruction
) -> Iterator[InPlacePair]:
    """Operands are the targets, one array of indices, and as many updates as targets."""
    return _each_operand(len(instruction.operands) // 2)


def _all_reduce_start(
    module: HloModule, computation: HloComputation, instruction: HloInstruction
) -> Iterator[InPlacePair]:
    """NVSHMEM's algorithm needs separate buffers."""
    if "nvshmem" not in instruction.attributes.get("backend_config", "").lower():
        yield from _each_operand(len(instruction.operands))


def _collective_permute(
    module: HloModule, computation: HloComputation, instruction: HloInstruction
) -> Iterator[InPlacePair]:
    if len(instruction.operands) == 4:
        yield from _permute_target(computation, instruction, ())


def _collective_permute_start(
    module: HloModule, computation: HloComputation, instruction: HloInstruction
) -> Iterator[InPlacePair]:
    if is_in_place_permute(instruction):
        yield from _permute_target(computation, instruction, (1,))


def _permute_target(
    computation: HloComputation, instruction: HloInstruction, output: ShapeIndex
) -> Iterator[InPlacePair]:
    """The second operand, written slice by slice, and its elements if it is a tuple."""
    yield InPlacePair(1, (), output)
    target = computation.instruction(instruction.operands[1]).shape
    for number in range(len(target.elements)):
        yield InPlacePair(1, (number,), (*output, number))


def _custom_call(
    module: HloModule, computation: HloComputation, instruction: HloInstruction
) -> Iterator[InPlacePair]:
    return iter(stated_aliasing(instruction))


def _fusion(
    module: HloModule, computation: HloComputation, instruction: HloInstruction
) -> Iterator[InPlacePair]:
    yield from fusion_body_pairs(module, instruction)
    yield from stated_aliasing(instruction)


def fusion_body_pairs(module: HloModule, fusion: HloInstruction) -> Iterator[InPlacePair]:
    """Outputs that an in-place operation inside the fusion writes over a parameter.

    Such an operation is looked for behind tuples and bitcasts at the fusion's root; its target
    behind tuples, bitcasts and one nested fusion that works in place itself.
    """
    fused = module.computations[fusion.called_computations[0]]
    for index, shape in fusion.shape.subshapes():
        if shape.is_tuple:
            continue
        source, source_index, through_bitcast = _follow(fused, fused.root, index)
        if source.opcode == "fusion" and through_bitcast:
            pairs = tuple(fusion_body_pairs(module, source))
        else:
            pairs = in_place_pairs(module, fused, source)
        for pair in pairs:
            if pair.output_index == source_index:
                target, target_index = _target(module, fused, source, pair)
                if target.parameter_number is not None:
                    yield InPlacePair(target.parameter_number, target_index, index)


def _target(
    module: HloModule, fused: HloComputation, source: HloInstruction, pair: InPlacePair
) -> tuple[HloInstruction, ShapeIndex]:
    """What the in-place operation `source` inside a fusion writes over."""
    operand = fused.instruction(source.operands[pair.operand_number])
    target, index, _ = _follow(fused, operand, pair.operand_index)
    if target.opcode != "fusion":
        return target, index
    for nested in in_place_pairs(module, fused, target):
        if nested.output_index == index:
            operand = fused.instruction(target.operands[nested.operand_number])
            target, index, _ = _follow(fused, operand, nested.operand_index)
            break
    return target, index


def _follow(
    fused: HloComputation, instruction: HloInstruction, index: ShapeIndex
) -> tuple[HloInstruction, ShapeIndex, bool]:
    """Back through tuples, then get-tuple-elements, then bitcasts; whether there were bitcasts."""
    while instruction.opcode == "tuple" and index:
        instruction, index = fused.instruction(instruction.operands[index[0]]), index[1:]
    while instruction.opcode == "get-tuple-element":
        index = (int(instruction.attributes["index"]), *index)
        instruction = fused.instruction(instruction.operands[0])
    through_bitcast = False
    while instruction.opcode == "bitcast" and not index:
        instruction = fused.instruction(instruction.operands[0])
        through_bitcast = True
    return instruction, index, through_bitcast


_RULES: Mapping[str, Rule] = {
    "dynamic-update-slice": _first_operand,
    "set-dimension-size": _first_operand,
    "ragged-all-to-all": _second_operand,
    "scatter": _scatter,
    "all-reduce-start": _all_reduce_start,
    "collective-permute": _collective_permute,
    "collective-permute-start": _collective_permute_start,
    "custom-call": _custom_call,
    "fusion": _fusion,
}
