"""Every HLO opcode as text spells it, and the forms written `opcode-start` and so on.

Source: `xla/hlo/ir/hlo_opcode.h` (133 opcodes in jaxlib 0.10.2).
"""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


UNARY = words("""
    abs acos acosh asin asinh atanh bitcast-convert cbrt ceil cholesky convert copy cosh cosine
    count-leading-zeros erf exponential exponential-minus-one floor imag is-finite log log-plus-one
    logistic negate not opt-barrier popcnt real reduce-precision round-nearest-afz
    round-nearest-even rsqrt sign sine sinh sqrt tan tanh
""")
"""One operand; elementwise but for opt-barrier and cholesky, which keep their operand's shape."""

BINARY = words("""
    add and atan2 compare complex divide maximum minimum mulhi multiply or power remainder
    shift-left shift-right-arithmetic shift-right-logical subtract xor
""")
"""Two operands of one shape, elementwise."""

COLLECTIVE_AND_ASYNC = words("""
    all-gather all-gather-done all-gather-start all-reduce all-reduce-done all-reduce-start
    all-to-all async-done async-start async-update collective-broadcast collective-permute
    collective-permute-done collective-permute-start copy-done copy-start infeed outfeed
    partition-id ragged-all-to-all recv recv-done reduce-scatter replica-id send send-done
""")
"""What talks to other devices or runs beside the program."""

OTHER = words("""
    add-dependency after-all batch-norm-grad batch-norm-inference batch-norm-training bitcast
    broadcast call clamp concatenate conditional constant convolution custom-call domain dot
    dynamic-reshape dynamic-slice dynamic-update-slice fft fusion gather get-dimension-size
    get-tuple-element iota map pad parameter ragged-dot reduce reduce-window reshape reverse rng
    rng-bit-generator rng-get-and-update-state scaled-dot scan scatter select select-and-scatter
    set-dimension-size slice sort stochastic-convert topk transpose triangular-solve tuple
    while
""")

OPCODES = UNARY | BINARY | COLLECTIVE_AND_ASYNC | OTHER
"""All opcodes."""

ASYNC_PHASES = ("start", "update", "done")


def split_async_opcode(opcode: str) -> tuple[str, str] | None:
    """("slice", "start") for "slice-start", None for what is no such form.

    Opcodes with native forms (copy-start, ...) are not split.
    """
    if opcode in OPCODES:
        return None
    wrapped, _, phase = opcode.rpartition("-")
    return (wrapped, phase) if phase in ASYNC_PHASES and wrapped in OPCODES else None
