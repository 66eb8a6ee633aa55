"""Random programs and memory maps: by seed for sweeps, as strategies for hypothesis.

Maps are made by proposing pieces (a residency with what it needs, a replaced copy) and keeping
those under which the map stays valid; broken ones are valid ones with something changed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from hlo_graphs.program import AccessKind, Program
from malloc_game.generator import Family, random_program
from malloc_game.memory_map import Eviction, MemoryMap, Part, ReplacedCopy, Residency, Source
from malloc_game.validate import validate

_SEEDS = st.integers(0, 2**32 - 1)


def small_program(seed: int, *, branches: bool = True, max_accesses: int = 24) -> Program:
    """A program of a random family and setting, small enough for the slow references."""
    rng = np.random.default_rng([seed, 1])
    families = [f for f in Family if branches or f not in (Family.BRANCH, Family.MIXED)]
    families += [Family.LOOP] * 4
    if not branches:
        return _without_branches(seed, rng, families, max_accesses)
    program = _draw(seed, rng, families, max_accesses)
    return _with_unknown_trips(program, rng) if rng.random() < 0.2 else program


def _with_unknown_trips(program: Program, rng: np.random.Generator) -> Program:
    """Of some loops nobody knows how often they run."""
    known = [bool(rng.random() < 0.5) for _ in program.loops]
    loops = tuple(
        replace(loop, trips_known=loop.is_branch or certain)
        for loop, certain in zip(program.loops, known, strict=True)
    )
    return replace(program, loops=loops)


def _draw(seed: int, rng: np.random.Generator, families: list[Family], most: int) -> Program:
    return random_program(
        seed,
        family=families[int(rng.integers(len(families)))],
        num_accesses=int(rng.integers(1, most + 1)),
        pressure=float(rng.choice([0.5, 1.0, 2.0, 4.0])),
        intensity=float(rng.choice([0.0, 0.5, 1.0, 3.0])),
        max_size_units=int(rng.choice([1, 4, 8])),
        max_loop_depth=int(rng.integers(1, 4)),
        max_trip_count=int(rng.integers(1, 5)),
        num_lanes=int(rng.integers(1, 3)),
        copy_share=0.3,
    )


def _without_branches(
    seed: int, rng: np.random.Generator, families: list[Family], most: int
) -> Program:
    """Loops may contain branches by chance: draw again until none does."""
    for attempt in range(1000):
        program = _draw(seed + attempt, rng, families, most)
        if not any(loop.is_branch for loop in program.loops):
            return program
    raise AssertionError(f"no program without branches near seed {seed}")


@st.composite
def programs(draw: st.DrawFn, *, branches: bool = True, max_accesses: int = 24) -> Program:
    """Small random programs of all families."""
    size = draw(st.integers(1, max_accesses))
    return small_program(draw(_SEEDS), branches=branches, max_accesses=size)


@st.composite
def programs_with_maps(
    draw: st.DrawFn, *, branches: bool = True, max_accesses: int = 24
) -> tuple[Program, MemoryMap]:
    """Small programs, each with a valid map."""
    program = draw(programs(branches=branches, max_accesses=max_accesses))
    rng = np.random.default_rng(draw(_SEEDS))
    return program, random_valid_map(program, rng, draw(st.integers(0, 25)))


def random_valid_map(program: Program, rng: np.random.Generator, proposals: int = 20) -> MemoryMap:
    """A valid map of up to `proposals` pieces."""
    current = MemoryMap()
    for _ in range(proposals):
        candidate = with_proposal(program, current, rng)
        if not validate(program, candidate):
            current = candidate
    return current


def with_proposal(program: Program, current: MemoryMap, rng: np.random.Generator) -> MemoryMap:
    """`current` and one more piece, valid or not."""
    copies = [step for step, i in enumerate(program.instructions) if i.async_copy]
    if copies and rng.random() < 0.2:
        step = int(rng.choice(copies))
        issue, done = _window(program, step, rng)
        added = replace(
            current,
            replaced_copies=(*current.replaced_copies, ReplacedCopy(step, issue, done)),
        )
        return added if rng.random() < 0.5 else _with_fast_result(program, added, rng)
    return _with_residency(program, current, rng)


def _window(program: Program, step: int, rng: np.random.Generator) -> tuple[int, int]:
    issue = max(0, min(program.num_steps - 1, step + int(rng.integers(-2, 3))))
    return issue, min(program.num_steps, issue + int(rng.integers(0, 4)))


def _with_fast_result(program: Program, current: MemoryMap, rng: np.random.Generator) -> MemoryMap:
    """A residency for the result of the replaced copy that was added last."""
    copy = current.replaced_copies[-1]
    buffer = program.instructions[copy.step].accesses[-1].buffer
    last = program.accesses_of_buffer[buffer][-1][0]
    residency = Residency(
        buffer,
        _offset(program, current, buffer, copy.issue, last + 1, rng),
        copy.issue,
        max(last + 1, copy.done, copy.issue + 1),
        Source.PRODUCED,
        copy.issue,
        program.loop_of_step[copy.step],
    )
    if rng.random() < 0.3:
        residency = replace(residency, parts=_parts(program, residency, copy.done, rng))
    return replace(current, residencies=(*current.residencies, residency))


def _with_residency(program: Program, current: MemoryMap, rng: np.random.Generator) -> MemoryMap:
    used = [b for b, accesses in enumerate(program.accesses_of_buffer) if accesses]
    buffer = int(rng.choice(used))
    accesses = program.accesses_of_buffer[buffer]
    first = int(rng.integers(len(accesses)))
    last = int(rng.integers(first, len(accesses)))
    step, access = accesses[first]
    scopes = [*program.loops_around(program.loop_of_step[step]), None]
    scope = scopes[int(rng.integers(len(scopes)))] if rng.random() < 0.8 else None
    source = Source.COPIED
    if access.kind is AccessKind.WRITE and rng.random() < 0.8:
        source = Source.PRODUCED
    elif program.buffers[buffer].is_parameter and rng.random() < 0.1:
        source = Source.CARRIED
    start, ready, end = _times(program, source, step, accesses[last][0], scope, rng)
    offset = _offset(program, current, buffer, start, end, rng)
    residency = Residency(buffer, offset, start, end, source, ready, scope)
    if source is Source.COPIED and rng.random() < 0.2:
        residency = replace(residency, parts=_parts(program, residency, residency.ready, rng))
    if rng.random() < 0.3:
        residency = replace(residency, holes=_holes(program, residency, rng))
    evictions = current.evictions
    wrote = any(a.kind.writes for _, a in accesses[first : last + 1])
    if rng.random() < (0.8 if wrote else 0.1):
        evictions = (*evictions, _eviction(residency, accesses[last][0], rng))
    return replace(current, residencies=(*current.residencies, residency), evictions=evictions)


def _times(
    program: Program,
    source: Source,
    first: int,
    last: int,
    scope: int | None,
    rng: np.random.Generator,
) -> tuple[int, int, int]:
    """Start, ready and end around the accesses `first` to `last`, mostly fitted to the loops."""
    low, high = 0, program.num_steps + 1
    if scope is not None:
        low, high = program.loops[scope].start_step, program.loops[scope].end_step
    if source is Source.CARRIED:
        return 0, 0, high
    end = min(high, last + 1 + int(rng.integers(0, 4)))
    start = ready = first
    if source is Source.COPIED:
        start = max(low, first - int(rng.integers(0, int(rng.choice([3, 6, 25])))))
        earlier = [x.start_step for x in program.loops if low <= x.start_step < x.end_step <= first]
        if earlier and rng.random() < 0.5:
            start = int(rng.choice(earlier))
        ready = int(rng.integers(start, first + 1)) if rng.random() < 0.3 else first
    if rng.random() < 0.9:
        start = _snapped(program, start, scope, outwards=-1)
        ready = max(start, _snapped(program, ready, scope, outwards=-1))
        end = _snapped(program, end, scope, outwards=1)
    return start, ready, end


def _snapped(program: Program, step: int, scope: int | None, *, outwards: int) -> int:
    """`step` moved out of loops that are not around `scope`."""
    around = set(program.loops_around(scope))
    for index, loop in enumerate(program.loops):
        if index not in around and loop.start_step < step < loop.end_step:
            return loop.start_step if outwards < 0 else loop.end_step
    return step


def _offset(
    program: Program,
    current: MemoryMap,
    buffer: int,
    start: int,
    end: int,
    rng: np.random.Generator,
) -> int:
    """First fit beside what is there, sometimes anywhere."""
    unit = program.machine.alignment_bytes
    size = program.buffers[buffer].size_bytes
    if rng.random() < 0.1:
        return int(rng.integers(0, program.capacity_bytes // unit + 1)) * unit
    busy = sorted(
        (r.offset_bytes, r.offset_bytes + program.buffers[r.buffer].size_bytes)
        for r in current.residencies
        if r.start < end and start < r.end and 0 <= r.buffer < len(program.buffers)
    )
    offset = 0
    for low, high in busy:
        if low < offset + size and offset < high:
            offset = high
    return offset


def _holes(program: Program, r: Residency, rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """Some of the gaps before writes."""
    steps = [step for step, _ in program.accesses_of_buffer[r.buffer] if r.start <= step < r.end]
    holes = []
    for before, (step, access) in zip(
        [r.start - 1, *steps],
        [(s, a) for s, a in program.accesses_of_buffer[r.buffer] if s in steps],
        strict=False,
    ):
        start = max(before + 1, r.ready)
        if start < step and access.kind is AccessKind.WRITE and rng.random() < 0.7:
            holes.append((start, step))
    if steps and rng.random() < 0.4:
        holes.append((steps[-1] + 1, r.end - int(rng.integers(0, 2))))
    return tuple(holes)


def _parts(program: Program, r: Residency, last: int, rng: np.random.Generator) -> tuple[Part, ...]:
    """Two slices, one of them issued at the residency's start, the other up to `last`."""
    size = program.buffers[r.buffer].size_bytes
    unit = program.machine.alignment_bytes
    if size < 2 * unit:
        return ()
    cut = int(rng.integers(1, size // unit)) * unit
    late = int(rng.integers(r.start, max(r.start, last) + 1))
    starts = (r.start, late) if rng.random() < 0.5 else (late, r.start)
    return (Part(0, cut, starts[0]), Part(cut, size - cut, starts[1]))


def _eviction(residency: Residency, last: int, rng: np.random.Generator) -> Eviction:
    if rng.random() < 0.3:
        return Eviction(residency.buffer, residency.end, residency.end)
    issue = min(residency.end, last + 1)
    return Eviction(residency.buffer, issue, int(rng.integers(issue, residency.end + 1)))


def mutated(program: Program, current: MemoryMap, rng: np.random.Generator) -> MemoryMap:
    """`current` with one thing added, dropped or changed a little: valid or not."""
    kinds = [
        kind
        for kind, pieces in (
            ("residencies", current.residencies),
            ("evictions", current.evictions),
            ("replaced_copies", current.replaced_copies),
        )
        if pieces
    ]
    if not kinds or rng.random() < 0.3:
        return with_proposal(program, current, rng)
    kind = kinds[int(rng.integers(len(kinds)))]
    pieces = list(getattr(current, kind))
    at = int(rng.integers(len(pieces)))
    if rng.random() < 0.25:
        del pieces[at]
    else:
        pieces[at] = _nudged(program, pieces[at], rng)
    return replace(current, **{kind: tuple(pieces)})


def _nudged(
    program: Program, piece: Residency | Eviction | ReplacedCopy, rng: np.random.Generator
) -> Residency | Eviction | ReplacedCopy:
    """One field moved by a step, an address or a loop."""
    by = int(rng.choice([-3, -2, -1, 1, 2, 3]))
    unit = program.machine.alignment_bytes
    match piece:
        case Residency():
            sources = [s for s in Source if s is not piece.source]
            loops = [None, *range(len(program.loops))]
            changes = [
                {"start": piece.start + by},
                {"start": piece.start + by, "ready": piece.ready + by},
                {"end": piece.end + by},
                {"ready": piece.ready + by},
                {"offset_bytes": piece.offset_bytes + by * unit},
                {"offset_bytes": piece.offset_bytes + by * unit // 2},
                {"loop": loops[int(rng.integers(len(loops)))]},
                {"source": sources[int(rng.integers(len(sources)))]},
                {"buffer": piece.buffer + by},
                {"parts": piece.parts[:-1]},
                {"holes": tuple((start, end + by) for start, end in piece.holes)},
                {"holes": ((piece.start + abs(by), piece.start + 2 * abs(by)),)},
                {"parts": tuple(replace(p, start=p.start + by) for p in piece.parts)},
            ]
        case Eviction():
            changes = [
                {"issue": piece.issue + by},
                {"done": piece.done + by},
                {"issue": piece.issue + by, "done": piece.done + by},
                {"issue": piece.done},
            ]
        case ReplacedCopy():
            changes = [
                {"issue": piece.issue + by},
                {"done": piece.done + by},
                {"issue": piece.issue + by, "done": piece.done + by},
            ]
    return replace(piece, **changes[int(rng.integers(len(changes)))])
