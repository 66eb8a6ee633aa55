"""Best fit against a look at every unit and step."""

from __future__ import annotations

import random

from solvers.free_space import Space

STEPS = 12
CAPACITY = 16


def best_fit_by_looking(held: set[tuple[int, int]], start: int, end: int, size: int) -> int:
    """`held` are (step, unit) pairs; the lowest offset in the smallest gap, -1 if none."""
    taken = {unit for step, unit in held if start <= step < end}
    gaps: list[tuple[int, int]] = []
    low = 0
    for unit in range(CAPACITY + 1):
        if unit == CAPACITY or unit in taken:
            if unit - low >= size and unit > low:
                gaps.append((unit - low, low))
            low = unit + 1
    return min(gaps)[1] if gaps else -1


def rectangle(start: int, end: int, low: int, size: int) -> set[tuple[int, int]]:
    return {(step, unit) for step in range(start, end) for unit in range(low, low + size)}


def test_best_fit_is_what_looking_finds() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        space = Space(STEPS, CAPACITY)
        placed: dict[int, set[tuple[int, int]]] = {}
        for _ in range(60):
            held = set().union(*placed.values())
            if placed and rng.random() < 0.3:
                slot = rng.choice(sorted(placed))
                space.remove(slot)
                del placed[slot]
                continue
            start = rng.randrange(STEPS)
            end = rng.randrange(start, STEPS) + 1
            size = rng.randrange(1, 8)
            low = space.best_fit(start, end, size)
            assert low == best_fit_by_looking(held, start, end, size)
            guess = rng.randrange(CAPACITY)
            free = not rectangle(start, end, guess, size) & held and guess + size <= CAPACITY
            assert space.is_free(start, end, guess, size) == free
            per_step = [sum(step == s for s, _ in held) for step in range(start, end)]
            assert space.peak(start, end) == max(per_step)
            if low >= 0:
                placed[space.add(start, end, low, size)] = rectangle(start, end, low, size)
