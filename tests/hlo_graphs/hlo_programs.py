"""Random small scheduled modules with loops, branches, calls and in-place updates, as HLO text.

Every array is f32[4]; computations take and return one tuple of arrays, so that any may serve as
a body, a branch or a callee; each is called once.
"""

from __future__ import annotations

import random

ARRAY = "f32[4]"


def random_module(choices: random.Random, width: int = 3, depth: int = 3) -> str:
    """The text of a module whose state has `width` arrays, nested at most `depth` deep."""
    writer = _Writer(choices, width)
    entry = writer.computation(depth, is_entry=True)
    header = "HloModule random, is_scheduled=true"
    if choices.random() < 0.3:
        header += ", input_output_alias={ {0}: (0, {0}, may-alias) }"
    return "\n\n".join([header, *writer.finished, entry])


class _Writer:
    """Writes computations; callees are finished before their callers."""

    def __init__(self, choices: random.Random, width: int) -> None:
        self.choices = choices
        self.width = width
        self.finished: list[str] = []
        self._names = 0

    def name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}.{self._names}"

    @property
    def state(self) -> str:
        return f"({', '.join([ARRAY] * self.width)})"

    def computation(self, depth: int, is_entry: bool = False) -> str:
        """Text of one computation, which calls others while `depth` lasts."""
        parameter = self.name("param")
        lines = [f"{parameter} = {self.state} parameter(0)"]
        arrays = self._elements(lines, parameter)
        for _ in range(self.choices.randrange(1, 5)):
            self._operation(lines, arrays, depth)
        chosen = [self.choices.choice(arrays) for _ in range(self.width)]
        lines.append(f"ROOT {self.name('root')} = {self.state} tuple({', '.join(chosen)})")
        keyword = "ENTRY " if is_entry else ""
        body = "\n".join(f"  {line}" for line in lines)
        return f"{keyword}{self.name('computation')} {{\n{body}\n}}"

    def callee(self, depth: int) -> str:
        text = self.computation(depth)
        self.finished.append(text)
        return text.split(" ", 1)[0]

    def condition(self) -> str:
        name = self.name("condition")
        self.finished.append(
            f"{name} {{\n  {self.name('param')} = {self.state} parameter(0)\n"
            f"  ROOT {self.name('more')} = pred[] constant(false)\n}}"
        )
        return name

    def _elements(self, lines: list[str], source: str) -> list[str]:
        names = []
        for number in range(self.width):
            names.append(self.name("element"))
            lines.append(f"{names[-1]} = {ARRAY} get-tuple-element({source}), index={number}")
        return names

    def _operation(self, lines: list[str], arrays: list[str], depth: int) -> None:
        kinds = ["negate", "copy", "bitcast", "update"]
        if depth > 0:
            kinds += ["while", "conditional", "call"] * 2
        kind = self.choices.choice(kinds)
        operand = self.choices.choice(arrays)
        if kind in ("negate", "copy", "bitcast"):
            arrays.append(self.name(kind))
            lines.append(f"{arrays[-1]} = {ARRAY} {kind}({operand})")
        elif kind == "update":
            part, at, result = self.name("part"), self.name("at"), self.name("update")
            lines.append(f"{part} = f32[2] slice({self.choices.choice(arrays)}), slice={{[0:2]}}")
            lines.append(f"{at} = s32[] constant(0)")
            lines.append(f"{result} = {ARRAY} dynamic-update-slice({operand}, {part}, {at})")
            arrays.append(result)
        else:
            arrays.extend(self._control_flow(lines, arrays, kind, depth - 1))

    def _control_flow(
        self, lines: list[str], arrays: list[str], kind: str, depth: int
    ) -> list[str]:
        packed, result = self.name("packed"), self.name(kind)
        chosen = ", ".join(self.choices.choice(arrays) for _ in range(self.width))
        lines.append(f"{packed} = {self.state} tuple({chosen})")
        if kind == "while":
            called = f"while({packed}), condition={self.condition()}, body={self.callee(depth)}"
        elif kind == "call":
            called = f"call({packed}), to_apply={self.callee(depth)}"
        else:
            which = self.name("which")
            lines.append(f"{which} = s32[] constant(0)")
            branches = [self.callee(depth) for _ in range(self.choices.randrange(1, 4))]
            operands = ", ".join([which, *[packed] * len(branches)])
            names = ", ".join(branches)
            called = f"conditional({operands}), branch_computations={{{names}}}"
        lines.append(f"{result} = {self.state} {called}")
        return self._elements(lines, result)
