"""Random programs with controllable pressure.

`random_program` draws a small accelerator program of a chosen family: the same seed and
settings give the same program on every machine. Every tensor is wholly written before it is
read, loops nest, in-place buffers are updated, and branches may be skipped, so that whatever
holds for these programs is worth something for real ones.

Programs whose optimum is known by construction are in `known_optimum.py`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from hlo_graphs.errors import InputError, require_integers
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

UNIT_BYTES = 1024
"""Alignment of generated programs; every size is a multiple of it."""

TICKS_PER_UNIT = 16
"""Ticks that a copy of `UNIT_BYTES` takes."""

TICK_SECONDS = 2.0**-34
"""Tick of generated programs: a power of two, so that `copy_ticks` has nothing to round."""

SLOW_BYTES_PER_SECOND = UNIT_BYTES / (TICKS_PER_UNIT * TICK_SECONDS)
"""Bandwidth of slow memory, for copies."""


class Family(enum.StrEnum):
    """What kind of program is drawn."""

    CHAIN = "chain"
    """One operation after another, each with a weight of its own."""
    RESIDUAL = "residual"
    """Pairs of operations with a skip connection around them."""
    ATTENTION = "attention"
    """Attention blocks: projections, scores, weighted sum, skip connection."""
    TRAINING = "training"
    """A chain forward, then backward: activations wait long for their second use."""
    LOOP = "loop"
    """Nested loops around the other blocks, with carried state."""
    IN_PLACE = "in_place"
    """Caches that are updated in place and read."""
    BRANCH = "branch"
    """Conditionals with two branches that write the same result."""
    MIXED = "mixed"
    """All of the above, one block after another."""


@dataclass(frozen=True, slots=True)
class GeneratorSettings:
    """What `random_program` draws from.

    Attributes:
      family: kind of program.
      num_accesses: blocks are added until the program has at least so many accesses.
      pressure: largest sum of live sizes over the capacity. Below 1 everything fits at once.
      intensity: typical compute time over the time of a step's bytes on the bus: small values
        leave no idle time, large ones leave nothing to gain.
      max_size_units: largest buffer, in `UNIT_BYTES`.
      max_loop_depth: deepest nest of loops, in whose bodies there may be branches besides; 0 leaves
        loops and branches out of mixed programs.
      max_trip_count: most trips of a loop.
      num_lanes: 1 is the plain roofline; more add lanes in which slow accesses add up beyond
        their bytes, as calibrated times do.
      forbidden_share: probability that a buffer must not be in fast memory.
      copy_share: probability that a plain copy precedes a block (`Instruction.async_copy`).
    """

    family: Family
    num_accesses: int
    pressure: float
    intensity: float
    max_size_units: int
    max_loop_depth: int
    max_trip_count: int
    num_lanes: int
    forbidden_share: float
    copy_share: float

    def __post_init__(self) -> None:
        limits = ("max_size_units", "max_loop_depth", "max_trip_count")
        for name in ("num_accesses", *limits, "num_lanes"):
            require_integers("generator setting", **{name: getattr(self, name)})
        positive = ("num_accesses", "pressure", "max_size_units", "max_trip_count", "num_lanes")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"generator setting {name} is {getattr(self, name)}, must be > 0")
        for name in ("intensity", "max_loop_depth"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"generator setting {name} is {getattr(self, name)}, must be >= 0")
        for name in ("forbidden_share", "copy_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"generator setting {name} is {getattr(self, name)}: not a share")


def random_program(
    seed: int,
    *,
    family: Family | str = Family.MIXED,
    num_accesses: int = 60,
    pressure: float = 2.0,
    intensity: float = 1.0,
    max_size_units: int = 8,
    max_loop_depth: int = 2,
    max_trip_count: int = 5,
    num_lanes: int = 1,
    forbidden_share: float = 0.05,
    copy_share: float = 0.1,
) -> Program:
    """A random program; see `GeneratorSettings` for the arguments. Deterministic per seed.

    Raises:
      InputError: for settings outside their range.
    """
    try:
        chosen = Family(family)
    except ValueError as error:
        known = ", ".join(Family)
        raise InputError(f"no generator family {family!r}; choose one of {known}") from error
    settings = GeneratorSettings(
        family=chosen,
        num_accesses=num_accesses,
        pressure=pressure,
        intensity=intensity,
        max_size_units=max_size_units,
        max_loop_depth=max_loop_depth,
        max_trip_count=max_trip_count,
        num_lanes=num_lanes,
        forbidden_share=forbidden_share,
        copy_share=copy_share,
    )
    draft = _Draft(generator_of(seed), settings)
    _emit_family(draft)
    return draft.program(f"{chosen}-{seed}")


def generator_of(seed: int) -> np.random.Generator:
    """Random numbers for `seed`; raises InputError if it is none."""
    require_integers("generator", seed=seed)
    if seed < 0:
        raise InputError(f"generator: seed is {seed}, must be >= 0")
    return np.random.default_rng(seed)


@dataclass
class _DraftBuffer:
    """A buffer under construction; `first_write` is filled when a step writes it."""

    size_units: int
    is_parameter: bool
    fast_allowed: bool
    live_out: bool = False
    first_write: int | None = None


@dataclass
class _DraftStep:
    opcode: str
    kinds: dict[int, AccessKind]
    is_copy: bool


@dataclass
class _Draft:
    """A program under construction; blocks add buffers, steps and loops in program order."""

    rng: np.random.Generator
    settings: GeneratorSettings
    buffers: list[_DraftBuffer] = field(default_factory=list)
    steps: list[_DraftStep] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    open_loops: list[int] = field(default_factory=list)
    num_accesses: int = 0

    def size_units(self) -> int:
        """Mostly small, sometimes up to the largest: tensors differ by orders of magnitude."""
        largest = self.settings.max_size_units
        return max(1, min(largest, math.ceil(largest * self.rng.beta(1.2, 2.0))))

    def parameter(self, *, updated: bool = False) -> int:
        """A new entry parameter."""
        return self._buffer(is_parameter=True, live_out=updated)

    def tensor(self) -> int:
        """A new tensor, to be written by a later step."""
        return self._buffer(is_parameter=False, live_out=False)

    def _buffer(self, *, is_parameter: bool, live_out: bool) -> int:
        allowed = bool(self.rng.random() >= self.settings.forbidden_share)
        self.buffers.append(_DraftBuffer(self.size_units(), is_parameter, allowed, live_out))
        return len(self.buffers) - 1

    def step(
        self,
        opcode: str,
        *,
        reads: Sequence[int] = (),
        updates: Sequence[int] = (),
        writes: Sequence[int] = (),
        is_copy: bool = False,
    ) -> None:
        """Adds a step; a buffer both read and written counts as updated."""
        kinds: dict[int, AccessKind] = {}
        for buffers, kind in (
            (reads, AccessKind.READ),
            (writes, AccessKind.WRITE),
            (updates, AccessKind.UPDATE),
        ):
            for buffer in buffers:
                clash = kinds.get(buffer, kind) is not kind
                kinds[buffer] = AccessKind.UPDATE if clash else kind
        for buffer, kind in kinds.items():
            if kind.writes and self.buffers[buffer].first_write is None:
                self.buffers[buffer].first_write = len(self.steps)
        self.steps.append(_DraftStep(opcode, kinds, is_copy))
        self.num_accesses += len(kinds)

    def op(self, opcode: str, *reads: int) -> int:
        """Adds a step that reads `reads` and writes a new tensor, which is returned."""
        result = self.tensor()
        self.step(opcode, reads=reads, writes=(result,))
        return result

    @contextmanager
    def loop(self, trip_count: int, probability: float = 1.0) -> Iterator[None]:
        """The steps added inside the `with` are the loop's body."""
        index = len(self.loops)
        parent = self.open_loops[-1] if self.open_loops else None
        start = len(self.steps)
        self.loops.append(Loop(start, start + 1, trip_count, probability, parent))
        self.open_loops.append(index)
        yield
        self.open_loops.pop()
        self.loops[index] = Loop(start, len(self.steps), trip_count, probability, parent)

    def program(self, name: str) -> Program:
        """The finished program."""
        instructions = tuple(self._instruction(step) for step in range(len(self.steps)))
        return Program(
            name=name,
            machine=Machine(
                chip="generated",
                capacity_bytes=self._capacity_units() * UNIT_BYTES,
                alignment_bytes=UNIT_BYTES,
                slow_bytes_per_second=SLOW_BYTES_PER_SECOND,
            ),
            tick_seconds=TICK_SECONDS,
            instructions=instructions,
            buffers=tuple(self._finished_buffer(index) for index in range(len(self.buffers))),
            loops=tuple(self.loops),
            times="generated",
        )

    def _capacity_units(self) -> int:
        change = np.zeros(len(self.steps) + 1, dtype=np.int64)
        seen: dict[int, tuple[int, int]] = {}
        for step, draft in enumerate(self.steps):
            for buffer in draft.kinds:
                seen[buffer] = (seen.get(buffer, (step, step))[0], step)
        for buffer, (first, last) in seen.items():
            change[first] += self.buffers[buffer].size_units
            change[last + 1] -= self.buffers[buffer].size_units
        return max(1, math.ceil(int(np.cumsum(change).max()) / self.settings.pressure))

    def _finished_buffer(self, index: int) -> Buffer:
        draft = self.buffers[index]
        origin = BEFORE_PROGRAM if draft.first_write is None else draft.first_write
        return Buffer(
            name=f"{'parameter' if draft.is_parameter else 'tensor'}.{index}",
            size_bytes=draft.size_units * UNIT_BYTES,
            origin=BEFORE_PROGRAM if draft.is_parameter else origin,
            live_out=draft.live_out,
            fast_allowed=draft.fast_allowed,
            is_parameter=draft.is_parameter,
            shape=f"s8[{draft.size_units * UNIT_BYTES}]",
        )

    def _instruction(self, step: int) -> Instruction:
        draft = self.steps[step]
        order = (AccessKind.READ, AccessKind.UPDATE, AccessKind.WRITE)
        accesses = tuple(
            self._access(buffer, kind)
            for wanted in order
            for buffer, kind in draft.kinds.items()
            if kind is wanted
        )
        repeat = math.prod(loop.weight for loop in self.loops if loop.contains_step(step))
        return Instruction(
            name=f"{draft.opcode}.{step}",
            opcode=draft.opcode,
            shape="",
            repeat=float(repeat),
            base_ticks=self._base_ticks(draft, sum(a.bus_ticks for a in accesses)),
            accesses=accesses,
            async_copy=draft.is_copy,
        )

    def _access(self, buffer: int, kind: AccessKind) -> Access:
        units = self.buffers[buffer].size_units
        if kind is not AccessKind.WRITE and self.rng.random() < 0.2:
            units = int(self.rng.integers(1, units + 1))  # a slice of it
        moved = units * (2 if kind is AccessKind.UPDATE else 1)
        bus_ticks = moved * TICKS_PER_UNIT
        extra = [int(self.rng.integers(0, 2 * bus_ticks)) for _ in range(self.settings.num_lanes)]
        return Access(buffer, kind, moved * UNIT_BYTES, bus_ticks, (0, *extra[1:]))

    def _base_ticks(self, draft: _DraftStep, bus_ticks: int) -> tuple[int, ...]:
        lanes = self.settings.num_lanes
        if draft.is_copy:
            return (0,) * lanes
        typical = self.settings.intensity * bus_ticks
        return tuple(int(typical * self.rng.lognormal(-0.2, 0.7)) for _ in range(lanes))


def _emit_family(draft: _Draft) -> None:
    """Adds blocks of the wanted family, each fed by the one before, until large enough."""
    family = draft.settings.family
    activation = draft.op("embed", draft.parameter())
    while draft.num_accesses < draft.settings.num_accesses:
        chosen = family
        if family is Family.MIXED:
            chosen = _any_block(draft)
        activation = _maybe_copy(draft, activation)
        activation = _BLOCKS[chosen](draft, activation)
    draft.buffers[activation].live_out = True
    for buffer in draft.buffers:
        if not buffer.is_parameter and draft.rng.random() < 0.05:
            buffer.live_out = True


def _any_block(draft: _Draft) -> Family:
    loops = (Family.LOOP, Family.BRANCH)
    choices = [f for f in _BLOCKS if draft.settings.max_loop_depth > 0 or f not in loops]
    return choices[int(draft.rng.integers(len(choices)))]


def _maybe_copy(draft: _Draft, activation: int) -> int:
    if draft.rng.random() >= draft.settings.copy_share:
        return activation
    copied = draft.tensor()
    draft.buffers[copied].size_units = draft.buffers[activation].size_units
    draft.step("copy", reads=(activation,), writes=(copied,), is_copy=True)
    return copied


def _chain(draft: _Draft, activation: int) -> int:
    return draft.op("dot", activation, draft.parameter())


def _residual(draft: _Draft, activation: int) -> int:
    hidden = draft.op("convolution", activation, draft.parameter())
    hidden = draft.op("convolution", hidden, draft.parameter())
    return draft.op("add", hidden, activation)


def _attention(draft: _Draft, activation: int) -> int:
    query, key, value = (draft.op("dot", activation, draft.parameter()) for _ in range(3))
    scores = draft.op("dot", query, key)
    draft.step("softmax", updates=(scores,))
    mixed = draft.op("dot", scores, value)
    projected = draft.op("dot", mixed, draft.parameter())
    return draft.op("add", projected, activation)


def _training(draft: _Draft, activation: int) -> int:
    """Forward through a few layers, then backward with in-place weight updates."""
    layers: list[tuple[int, int]] = []
    for _ in range(int(draft.rng.integers(2, 6))):
        weight = draft.parameter(updated=True)
        layers.append((activation, weight))
        activation = draft.op("dot", activation, weight)
    gradient = draft.op("loss", activation)
    for saved, weight in reversed(layers):
        weight_gradient = draft.op("dot", saved, gradient)
        gradient = draft.op("dot", gradient, weight)
        draft.step("update", reads=(weight_gradient,), updates=(weight,))
    return gradient


def _in_place(draft: _Draft, activation: int) -> int:
    """A cache gets a new row, then it is read."""
    cache = draft.parameter(updated=True)
    row = draft.op("dot", activation, draft.parameter())
    draft.step("dynamic-update-slice", reads=(row,), updates=(cache,))
    return draft.op("dot", activation, cache)


def _branch(draft: _Draft, activation: int) -> int:
    """Two branches write the same result, one of them from further operands."""
    result = draft.op("broadcast", activation)
    with draft.loop(1, 0.5):
        draft.step("dot", reads=(activation, draft.parameter()), writes=(result,))
    with draft.loop(1, 0.5):
        hidden = _simple_block(draft, activation)
        draft.step("add", reads=(hidden,), updates=(result,))
    return draft.op("multiply", result)


def _loop(draft: _Draft, activation: int) -> int:
    """A while loop: weights from outside, state carried from trip to trip, fresh temporaries."""
    state = draft.op("initial", activation)
    shared = draft.parameter()
    with draft.loop(int(draft.rng.integers(1, draft.settings.max_trip_count + 1))):
        hidden = draft.op("dot", state, shared)
        if draft.rng.random() < 0.5:
            hidden = draft.op("add", hidden, activation)
        if len(draft.open_loops) < draft.settings.max_loop_depth and draft.rng.random() < 0.5:
            hidden = _loop(draft, hidden)
        elif draft.rng.random() < 0.5:
            hidden = (_simple_block, _branch)[int(draft.rng.integers(2))](draft, hidden)
        if draft.rng.random() < 0.5:
            draft.step("next", reads=(hidden,), writes=(state,))
        else:
            draft.step("next", reads=(hidden,), updates=(state,))
    return draft.op("tanh", state)


def _simple_block(draft: _Draft, activation: int) -> int:
    blocks = (_chain, _residual, _in_place)
    return blocks[int(draft.rng.integers(len(blocks)))](draft, activation)


_BLOCKS: dict[Family, Callable[[_Draft, int], int]] = {
    Family.CHAIN: _chain,
    Family.RESIDUAL: _residual,
    Family.ATTENTION: _attention,
    Family.TRAINING: _training,
    Family.LOOP: _loop,
    Family.IN_PLACE: _in_place,
    Family.BRANCH: _branch,
}
