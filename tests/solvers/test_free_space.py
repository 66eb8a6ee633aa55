"""Best fit against a look at every unit, step and address."""

from __future__ import annotations

import random
from collections.abc import Sequence

from solvers.free_space import Piece, Space

STEPS = 12
CAPACITY = 16


Held = set[tuple[int, int]]
"""Pairs of a step and a unit."""


def rectangle(start: int, end: int, low: int, size: int) -> Held:
    return {(step, unit) for step in range(start, end) for unit in range(low, low + size)}


def all_of(pieces: Sequence[Piece], address: int) -> Held:
    return set().union(*(rectangle(p.start, p.end, address + p.low, p.size) for p in pieces))


def fits(held: Held, pieces: Sequence[Piece], address: int) -> bool:
    wanted = all_of(pieces, address)
    return not wanted & held and all(0 <= unit < CAPACITY for _, unit in wanted)


def best_fit_by_looking(held: Held, pieces: Sequence[Piece], size: int) -> int:
    """The lowest address of the shortest run of addresses that fit, -1 if none does."""
    runs: list[tuple[int, int]] = []
    for address in range(CAPACITY - size + 1):
        if not fits(held, pieces, address):
            continue
        if address > 0 and fits(held, pieces, address - 1):
            runs[-1] = runs[-1][0] + 1, runs[-1][1]
        else:
            runs.append((1, address))
    return min(runs)[1] if runs else -1


def random_pieces(rng: random.Random) -> tuple[list[Piece], int]:
    """A rectangle, or slices that begin one after the other; and their size."""
    start = rng.randrange(STEPS)
    end = rng.randrange(start, STEPS) + 1
    sizes = [rng.randrange(1, 4) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
    starts = sorted(rng.randrange(start, end) for _ in sizes)
    lows = [sum(sizes[:place]) for place in range(len(sizes))]
    if rng.random() < 0.5:
        lows = [sum(sizes) - low - size for low, size in zip(lows, sizes, strict=True)]
    pieces = [Piece(s, end, low, n) for s, low, n in zip(starts, lows, sizes, strict=True)]
    return pieces, sum(sizes)


def test_best_fit_is_what_looking_finds() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        space = Space(STEPS, CAPACITY)
        placed: dict[int, Held] = {}
        for _ in range(60):
            held: Held = set().union(*placed.values())
            if placed and rng.random() < 0.4:
                slot = rng.choice(sorted(placed))
                space.remove(slot)
                del placed[slot]
                continue
            pieces, size = random_pieces(rng)
            address = space.best_fit(pieces, size)
            assert address == best_fit_by_looking(held, pieces, size)
            guess = rng.randrange(CAPACITY)
            assert space.is_free(pieces, guess) == fits(held, pieces, guess)
            start, end = pieces[0].start, pieces[0].end
            per_step = [sum(step == s for s, _ in held) for step in range(start, end)]
            assert space.peak(start, end) == max(per_step)
            for start, end, low, size in pieces if address >= 0 else ():
                slot = space.add(start, end, address + low, size)
                placed[slot] = rectangle(start, end, address + low, size)
