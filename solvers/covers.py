"""Cover inequalities: what cannot be in fast memory together during one step.

A set of buffers that do not fit is a *cover*. Wholly there, one of them at least is away; buffers
that are large for such a set count once or more in the same inequality (sequential lifting, exact).
In a *flow cover* some of them are on their way, there in part: what may have arrived depends on
which of the others are away. The linear relaxation keeps nearly all of each; these rows cut that
off. Source: Balas, "Facets of the knapsack polytope", 1975; Padberg, Van Roy, Wolsey, "Valid linear
inequalities for fixed charge problems", 1985; Gu, Nemhauser, Savelsbergh, "Lifted cover
inequalities", 1998.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cover:
    """A cover inequality: what buffers weigh together during a step is at most `limit`.

    Attributes:
      weights: of buffers that are wholly held, as (buffer, weight), sorted, none of weight 0.
      limit: what buffers that fit into fast memory together weigh at most.
      parts: those of which a part that is held weighs its share, sorted.
    """

    weights: tuple[tuple[int, int], ...]
    limit: int
    parts: tuple[int, ...] = ()


def violated_cover(
    held: Mapping[int, float], sizes: Sequence[int], capacity: int, least: float
) -> Cover | None:
    """A cover inequality that shares of buffers break by `least` or more; None if none is found.

    Args:
      held: per buffer the share of it that is held; what it leaves out is not.
      sizes: per buffer, none more than the capacity.
      capacity: in the same unit.
      least: violation to look for.
    """
    best: tuple[float, Cover] | None = None
    for order in _orders(held, sizes):
        members = _minimal_cover(order, sizes, capacity)
        if members is None:
            return None
        cover = lifted_cover(members, order, sizes, capacity)
        violation = _weight(cover, held, {}) - cover.limit
        if violation >= least and (best is None or violation > best[0]):
            best = (violation, cover)
    return None if best is None else best[1]


def violated_flow_cover(
    whole: Mapping[int, float],
    part: Mapping[int, float],
    sizes: Sequence[int],
    capacity: int,
    least: float,
) -> Cover | None:
    """A flow cover inequality that shares break by `least` or more; None if none is found.

    Args:
      whole: per buffer the share of it that is held as a whole.
      part: per buffer the share that has arrived of one on its way.
      sizes: per buffer, none more than the capacity.
      capacity: in the same unit.
      least: violation to look for, as a share of that by which the cover does not fit.
    """
    best: tuple[float, Cover] | None = None
    for cover, excess in _flow_covers(whole, part, sizes, capacity):
        violation = (_weight(cover, whole, part) - cover.limit) / excess
        if violation >= least and (best is None or violation > best[0]):
            best = (violation, cover)
    return None if best is None else best[1]


def _flow_covers(
    whole: Mapping[int, float], part: Mapping[int, float], sizes: Sequence[int], capacity: int
) -> Iterator[tuple[Cover, int]]:
    """Those that may be broken, each with the excess by which its buffers do not fit."""
    share = {b: _share(b, whole, part) for b in whole.keys() | part.keys()}
    for order in _orders(share, sizes):
        for count, total in enumerate(itertools.accumulate(sizes[b] for b in order), start=1):
            excess = total - capacity
            if excess <= 0:
                continue
            # As large or as fluid, whichever weighs more against the limit.
            large = [
                b
                for b in order[:count]
                if (sizes[b] - excess) * (1 - whole.get(b, 0.0)) > sizes[b] * part.get(b, 0.0)
            ]
            if not large:
                break
            fluid = [b for b in order[:count] if b not in large]
            yield flow_cover(large, fluid, sizes, capacity), excess


def _weight(cover: Cover, whole: Mapping[int, float], part: Mapping[int, float]) -> float:
    """Of what is held."""
    return sum(
        weight * (_share(b, whole, part) if b in cover.parts else whole.get(b, 0.0))
        for b, weight in cover.weights
    )


def _share(buffer: int, whole: Mapping[int, float], part: Mapping[int, float]) -> float:
    return min(whole.get(buffer, 0.0) + part.get(buffer, 0.0), 1.0)


def flow_cover(
    large: Sequence[int], fluid: Sequence[int], sizes: Sequence[int], capacity: int
) -> Cover:
    """The inequality of a cover whose `large` buffers count if wholly held, `fluid` ones in part.

    Each of the large ones is larger than what does not fit. If one of them is away, all that is
    fluid may be there; if none is, less by what does not fit.
    """
    excess = sum(sizes[b] for b in itertools.chain(large, fluid)) - capacity
    weights = {**dict.fromkeys(large, excess), **{b: sizes[b] for b in fluid}}
    limit = capacity - sum(sizes[b] - excess for b in large)
    return Cover(tuple(sorted(weights.items())), limit, tuple(sorted(fluid)))


def _orders(held: Mapping[int, float], sizes: Sequence[int]) -> Iterable[list[int]]:
    """In which buffers are tried as members of a cover: the fullest first, or by size too."""
    yield sorted(held, key=lambda buffer: (-held[buffer], -sizes[buffer], buffer))
    yield sorted(held, key=lambda buffer: ((1 - held[buffer]) / sizes[buffer], buffer))


def _minimal_cover(order: Sequence[int], sizes: Sequence[int], capacity: int) -> list[int] | None:
    """The first buffers that do not fit together, less those without which they still do not."""
    members: list[int] = []
    total = 0
    for buffer in order:
        members.append(buffer)
        total += sizes[buffer]
        if total > capacity:
            break
    else:
        return None
    for buffer in reversed(members[:-1]):
        if total - sizes[buffer] > capacity:
            members.remove(buffer)
            total -= sizes[buffer]
    return members


def lifted_cover(
    members: Sequence[int], others: Iterable[int], sizes: Sequence[int], capacity: int
) -> Cover:
    """The inequality of a minimal cover, with as much weight as possible on others in turn."""
    limit = len(members) - 1
    weights = dict.fromkeys(members, 1)
    # Per weight the smallest size of a set, of those weighed so far, that has it or more.
    least = [0, *itertools.accumulate(sorted(sizes[buffer] for buffer in members))]
    for buffer in others:
        if buffer in weights:
            continue
        # What fits beside it, of those weighed so far, weighs no more than the limit leaves it.
        beside = bisect.bisect_right(least, capacity - sizes[buffer]) - 1
        weight = limit - beside
        if weight > 0:
            weights[buffer] = weight
            least = [
                min(size, least[max(w - weight, 0)] + sizes[buffer]) for w, size in enumerate(least)
            ]
    return Cover(tuple(sorted(weights.items())), limit)
