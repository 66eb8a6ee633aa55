"""Programs written by hand, in units: one byte takes one tick to copy, addresses are bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hlo_graphs.program import (
    BEFORE_PROGRAM,
    Access,
    AccessKind,
    Buffer,
    Instruction,
    Loop,
    Machine,
    Program,
)

_KINDS = {"r": AccessKind.READ, "u": AccessKind.UPDATE, "w": AccessKind.WRITE}


def program_of(
    sizes: Mapping[str, int],
    steps: Sequence[tuple[int, str]],
    *,
    capacity: int = 8,
    loops: Sequence[Loop] = (),
    live_out: str = "",
    forbidden: str = "",
    copies: Sequence[int] = (),
) -> Program:
    """A roofline program: buffers are letters, each step is (compute ticks, "ra ub wc").

    What is first written by a step originates there; the rest are parameters. Slow accesses
    take a tick per byte of their buffer (updates two). `copies` are the steps that the copy
    engine could do.
    """
    names = list(sizes)
    parsed = [
        [(names.index(word[1]), _KINDS[word[0]]) for word in text.split()] for _, text in steps
    ]
    origin = {}
    for step in reversed(range(len(steps))):
        for buffer, kind in parsed[step]:
            origin[buffer] = step if kind is AccessKind.WRITE else BEFORE_PROGRAM
    return Program(
        name="small",
        machine=Machine("test", capacity, 1, 1.0),
        tick_seconds=1.0,
        instructions=tuple(
            Instruction(
                name=f"op{step}",
                opcode="copy" if step in copies else "fusion",
                shape="",
                repeat=_repeat(loops, step),
                base_ticks=(compute,),
                accesses=tuple(_access(sizes[names[b]], b, kind) for b, kind in parsed[step]),
                async_copy=step in copies,
            )
            for step, (compute, _) in enumerate(steps)
        ),
        buffers=tuple(
            Buffer(
                name=name,
                size_bytes=size,
                origin=origin.get(index, BEFORE_PROGRAM),
                live_out=name in live_out,
                fast_allowed=name not in forbidden,
                is_parameter=origin.get(index, BEFORE_PROGRAM) == BEFORE_PROGRAM,
            )
            for index, (name, size) in enumerate(sizes.items())
        ),
        loops=tuple(loops),
    )


def _access(size: int, buffer: int, kind: AccessKind) -> Access:
    moved = size * (2 if kind is AccessKind.UPDATE else 1)
    return Access(buffer, kind, moved, moved, (0,))


def _repeat(loops: Sequence[Loop], step: int) -> float:
    repeat = 1.0
    for loop in loops:
        if loop.contains_step(step):
            repeat *= loop.weight
    return repeat
