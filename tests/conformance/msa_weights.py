"""Is a parameter a weight? Only what looks like one may stay in place between runs.

Source: `LooksLikeAnActivation` in `xla/service/memory_space_assignment/algorithm.cc`.
"""

from __future__ import annotations

from collections.abc import Iterator

from hlo_graphs.aliasing import AliasAnalysis
from hlo_graphs.dataflow import HloValue
from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule

ACTIVATION_OPERANDS = {
    "convolution": frozenset({0}),
    "dot": frozenset({0}),
    "gather": frozenset({1}),
    "dynamic-slice": frozenset(range(1, 99)),
    "dynamic-update-slice": frozenset(range(1, 99)),
    "copy": frozenset({0}),
}
"""Operands that are activations, of opcodes whose other operands are weights."""

PASSING_ON = frozenset({"bitcast", "get-tuple-element", "slice", "tuple"})
"""What does not say; what they are used for does."""

TAKING_OVER = frozenset({"call", "while"})
"""What takes a value over: its uses inside are uses of the same value."""


def looks_like_a_weight(aliases: AliasAnalysis, value: HloValue, permissive: bool) -> bool:
    """Whether no use of a parameter makes it an activation.

    Args:
      aliases: of the module.
      value: the parameter's value.
      permissive: users of which nothing is known do not disqualify it.
    """
    uses = aliases.uses[value.id]
    computations = aliases.module.computations
    users = [computations[use.computation].instruction(use.instruction) for use in uses]
    return bool(uses) and all(
        user.opcode in TAKING_OVER
        or _is_weight_use(
            aliases.module, computations[use.computation], user, use.operand_number, permissive
        )
        for use, user in zip(uses, users, strict=True)
    )


def _is_weight_use(
    module: HloModule,
    computation: HloComputation,
    user: HloInstruction,
    operand: int,
    permissive: bool,
) -> bool:
    if user.opcode == "reduce":
        # The second half of the operands are where the sums start.
        return 2 * operand < len(user.operands)
    if user.opcode in ACTIVATION_OPERANDS:
        return operand not in ACTIVATION_OPERANDS[user.opcode]
    if user.opcode == "fusion":
        callee = module.computations[user.called_computations[0]]
        parameter = callee.parameters[operand]
        return all(
            (inner.opcode == "copy" and permissive)
            or _is_weight_use(module, callee, inner, number, permissive)
            for inner, number in _users(callee, parameter.name)
        )
    if user.opcode in PASSING_ON:
        return all(
            _is_weight_use(module, computation, inner, number, permissive)
            for inner, number in _users(computation, user.name)
        )
    return permissive


def _users(computation: HloComputation, name: str) -> Iterator[tuple[HloInstruction, int]]:
    for user in computation.instructions:
        for number, operand in enumerate(user.operands):
            if operand == name:
                yield user, number
