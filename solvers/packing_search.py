"""Offset packing by exhaustive search over canonical packings.

A packing in which no item can move down is *canonical*, and there is one wherever there is any:
move items down until none can. Taken in the order of their offsets, each item of it lies at the
lowest place above the items before it, its *floor*. So it is enough to decide which item is the
next: that is what the search branches on, lowest floors first, ties by an order that is given.
The scheme is MiniMalloc's (Moffitt, ASPLOS 2023). What is cut off:

* an item that would lie no lower than where another one would end: that one could move down;
* a section (the items that live at one time, if no other time has all of these and more) in which
  the lowest floor and the sizes of what is to be placed add up to more than the capacity;
* an item whose floor the order has passed already, and which no other item can lift any more;
* of like items all but the first;
* what has failed before: the same items, on the same floors, after an offset no higher.

Wherever items yet to be placed fall apart in time, the parts are searched one after the other,
and a part that fails takes the whole with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from malloc_game.fast_game_kernels import compiled
from solvers.pack_items import MOST_UNITS, PackItem

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint64]

RUNNING, PACKED, IMPOSSIBLE = 0, 1, 2
"""What a search knows: nothing yet, a packing, or that there is none."""

_ENTER, _BRANCH, _DESCEND, _SUCCEED, _FAIL = 0, 1, 2, 3, 4
_ENDLESS = MOST_UNITS
_REMEMBERED = 2**17


class _Problem(NamedTuple):
    """What does not change. Items are numbered in the order that breaks ties.

    Attributes:
      capacity: addresses, in the unit of sizes.
      size, alignment: per item.
      first, end: per item the range of sections it lives in.
      twin: per item the one before it that is like it in all, else -1.
      neighbour_begin, neighbour: per item those that live at a time with it, as ranges of one list.
      fixed_begin, fixed_low, fixed_high: per item the addresses that are not to be had, likewise,
        in order.
    """

    capacity: int
    size: Integers
    alignment: Integers
    first: Numbers
    end: Numbers
    twin: Numbers
    neighbour_begin: Integers
    neighbour: Numbers
    fixed_begin: Integers
    fixed_low: Integers
    fixed_high: Integers


class _State(NamedTuple):
    """Where the search stands: one frame per item on the way, stacks, and what has failed.

    Attributes:
      floor: per item the lowest place above all items placed that it shares a time with.
      is_placed, offset: per item.
      remaining: per section the sizes of items not placed.
      lowest: per section, scratch.
      frame_*: per depth its items (a range of `items`), the offset and number of the item placed
        last, the candidates and the parts that are left (ranges likewise), the heights of the
        stacks when it was entered, and the key of what it is to solve.
      items, candidates, part_begin, part_end, trail, lifted, lifted_from: stacks.
      top: heights of the stacks: items, candidates, parts, trail, lifted.
      at: depth, and what to do there.
      seen_*: a table of what has failed, by key.
    """

    floor: Integers
    is_placed: npt.NDArray[np.int8]
    offset: Integers
    remaining: Integers
    lowest: Integers
    frame_begin: Integers
    frame_end: Integers
    frame_offset: Integers
    frame_item: Integers
    frame_candidate: Integers
    frame_candidates: Integers
    frame_part: Integers
    frame_parts: Integers
    frame_top: Integers
    frame_key: Keys
    items: Numbers
    candidates: Numbers
    part_begin: Integers
    part_end: Integers
    trail: Numbers
    lifted: Numbers
    lifted_from: Integers
    top: Integers
    at: Integers
    seen_key: Keys
    seen_offset: Integers
    seen_item: Integers


_ITEMS, _CANDIDATES, _PARTS, _TRAIL, _LIFTED = 0, 1, 2, 3, 4


class PackingSearch:
    """A search that can be run piece by piece, from any thread.

    Args:
      items: what to place; of no size, or at a fixed offset, is none of it.
      fixed: what has its place already.
      capacity: addresses from 0 up.
      order: numbers of `items`, those first that are to be placed first where floors are equal.
    """

    def __init__(
        self,
        items: Sequence[PackItem],
        fixed: Sequence[PackItem],
        capacity: int,
        order: Sequence[int],
    ) -> None:
        self._order = order
        ordered = [items[index] for index in order]
        self._problem = _problem_of(ordered, fixed, capacity)
        self._state = _start_of(self._problem)
        self.status = RUNNING if items else PACKED

    def run(self, max_nodes: int) -> int:
        """Goes on for so many nodes at most; what is known then."""
        if self.status == RUNNING:
            self.status = int(_search(self._problem, self._state, max_nodes))
        return self.status

    def offsets(self) -> list[int]:
        """Of each item, once it is packed."""
        found = [0] * len(self._order)
        for position, index in enumerate(self._order):
            found[index] = int(self._state.offset[position])
        return found


def _sections(items: Sequence[PackItem]) -> Integers:
    """A time in each section: those at which an item has begun and the next event is an end."""
    events = sorted(
        [(item.start, 1) for item in items] + [(item.end, 0) for item in items]
    )  # What ends at a time does so before what begins.
    found = [
        time for (time, begins), (_, begins_next) in pairwise(events) if begins and not begins_next
    ]
    return np.array(found, np.int64)


def _problem_of(items: Sequence[PackItem], fixed: Sequence[PackItem], capacity: int) -> _Problem:
    sections = _sections(items)
    start = np.array([item.start for item in items], np.int64)
    end = np.array([item.end for item in items], np.int64)
    neighbours = [
        np.flatnonzero((start < item.end) & (end > item.start) & (np.arange(len(items)) != index))
        for index, item in enumerate(items)
    ]
    blocked = [
        sorted(
            (other.fixed_offset or 0, (other.fixed_offset or 0) + other.size)
            for other in fixed
            if other.start < item.end and item.start < other.end and other.size > 0
        )
        for item in items
    ]
    flat = [span for spans in blocked for span in spans]
    return _Problem(
        capacity=capacity,
        size=np.array([item.size for item in items], np.int64),
        alignment=np.array([item.alignment for item in items], np.int64),
        first=np.searchsorted(sections, start, "left").astype(np.int32),
        end=np.searchsorted(sections, end, "left").astype(np.int32),
        twin=_twins(items),
        neighbour_begin=_begins(neighbours),
        neighbour=np.concatenate([*neighbours, np.zeros(0, np.int64)]).astype(np.int32),
        fixed_begin=_begins(blocked),
        fixed_low=np.array([low for low, _ in flat], np.int64),
        fixed_high=np.array([high for _, high in flat], np.int64),
    )


def _begins(rows: Sequence[Sequence[object] | Integers]) -> Integers:
    """Where each row begins in the list of all, and where the last one ends."""
    return np.cumsum([0, *map(len, rows)])


def _twins(items: Sequence[PackItem]) -> Numbers:
    latest: dict[tuple[int, int, int, int], int] = {}
    found = np.full(len(items), -1, np.int32)
    for index, item in enumerate(items):
        look = (item.start, item.end, item.size, item.alignment)
        found[index] = latest.get(look, -1)
        latest[look] = index
    return found


def _start_of(problem: _Problem) -> _State:
    """Nothing placed, the first node to be entered. Stacks are as high as they can ever get."""
    count = len(problem.size)
    num_sections = int(problem.end.max(initial=0))
    num_pairs = len(problem.neighbour)

    def frames() -> Integers:
        return np.zeros(count + 1, np.int64)

    stack = count * (count + 1) // 2 + count + 1
    state = _State(
        floor=np.zeros(count, np.int64),
        is_placed=np.zeros(count, np.int8),
        offset=np.zeros(count, np.int64),
        remaining=np.zeros(num_sections, np.int64),
        lowest=np.zeros(num_sections, np.int64),
        frame_begin=frames(),
        frame_end=frames(),
        frame_offset=frames(),
        frame_item=frames(),
        frame_candidate=frames(),
        frame_candidates=frames(),
        frame_part=frames(),
        frame_parts=frames(),
        frame_top=np.zeros((count + 1, 5), np.int64),
        frame_key=np.zeros((count + 1, 2), np.uint64),
        items=np.empty(stack, np.int32),
        candidates=np.empty(stack, np.int32),
        part_begin=np.empty(2 * count + 1, np.int64),
        part_end=np.empty(2 * count + 1, np.int64),
        trail=np.empty(count + 1, np.int32),
        lifted=np.empty(num_pairs + 1, np.int32),
        lifted_from=np.empty(num_pairs + 1, np.int64),
        top=np.zeros(5, np.int64),
        at=np.array([0, _ENTER], np.int64),
        seen_key=np.zeros((_REMEMBERED, 2), np.uint64),
        seen_offset=np.zeros(_REMEMBERED, np.int64),
        seen_item=np.zeros(_REMEMBERED, np.int64),
    )
    state.items[:count] = np.argsort(problem.first, kind="stable")
    state.top[_ITEMS] = count
    state.frame_end[0] = count
    state.frame_item[0] = -1
    for item in range(count):
        state.remaining[problem.first[item] : problem.end[item]] += problem.size[item]
        state.floor[item] = _settled(problem, item, 0)
    return state


@compiled
def _settled(problem: _Problem, item: int, floor: int) -> int:
    """The lowest offset from `floor` up that is aligned and free of what is fixed."""
    alignment, size = problem.alignment[item], problem.size[item]
    offset = -(-floor // alignment) * alignment
    for k in range(problem.fixed_begin[item], problem.fixed_begin[item + 1]):
        if offset < problem.fixed_high[k] and problem.fixed_low[k] < offset + size:
            offset = -(-problem.fixed_high[k] // alignment) * alignment
    return int(offset)


@compiled
def _key(problem: _Problem, state: _State, begin: int, end: int, key: Keys) -> None:
    """What tells items on their floors from others: two sums of mixed words, in `key`."""
    key[0] = key[1] = np.uint64(0)
    for k in range(begin, end):
        item = state.items[k]
        word = np.uint64(state.floor[item]) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(item + 1)
        for part in range(2):
            word ^= word >> np.uint64(31)
            word *= np.uint64(0xBF58476D1CE4E5B9)
            word ^= word >> np.uint64(29)
            word *= np.uint64(0x94D049BB133111EB)
            key[part] += word ^ (word >> np.uint64(32))


@compiled
def _least_start(problem: _Problem, state: _State, item: int, offset: int, last: int) -> int:
    """No lower than this will the item lie, after item `last` at `offset`.

    One that the order has passed has to be lifted by another that is still to be placed.
    """
    floor = state.floor[item]
    if floor > offset or (floor == offset and item > last):
        return int(floor)
    lifted = _ENDLESS
    for k in range(problem.neighbour_begin[item], problem.neighbour_begin[item + 1]):
        other = problem.neighbour[k]
        if state.is_placed[other] == 0:
            lifted = min(lifted, max(state.floor[other], offset) + problem.size[other])
    return lifted


@compiled
def _is_cut(problem: _Problem, state: _State, depth: int) -> bool:
    """Whether what is left at this depth cannot be packed, or need not be packed this way."""
    offset, last = state.frame_offset[depth], state.frame_item[depth]
    first, end = problem.first[state.items[state.frame_begin[depth]]], 0
    for k in range(state.frame_begin[depth], state.frame_end[depth]):
        item = state.items[k]
        if last >= 0 and state.floor[item] + problem.size[item] <= offset:
            return True
        end = max(end, problem.end[item])
    for section in range(first, end):
        state.lowest[section] = _ENDLESS
    for k in range(state.frame_begin[depth], state.frame_end[depth]):
        item = state.items[k]
        least = _least_start(problem, state, item, offset, last)
        if least + problem.size[item] > problem.capacity:
            return True
        for section in range(problem.first[item], problem.end[item]):
            state.lowest[section] = min(state.lowest[section], least)
    for section in range(first, end):
        remaining = state.remaining[section]
        if remaining > 0 and state.lowest[section] + remaining > problem.capacity:
            return True
    return False


@compiled
def _is_known_to_fail(state: _State, depth: int) -> bool:
    key = state.frame_key[depth]
    slot = np.int64(key[0] % np.uint64(len(state.seen_offset)))
    if state.seen_key[slot, 0] != key[0] or state.seen_key[slot, 1] != key[1]:
        return False
    offset, item = state.seen_offset[slot], state.seen_item[slot]
    reached = state.frame_offset[depth]
    return bool(offset < reached or (offset == reached and item <= state.frame_item[depth]))


@compiled
def _remember(state: _State, depth: int) -> None:
    key = state.frame_key[depth]
    slot = np.int64(key[0] % np.uint64(len(state.seen_offset)))
    state.seen_key[slot, 0], state.seen_key[slot, 1] = key[0], key[1]
    state.seen_offset[slot] = state.frame_offset[depth]
    state.seen_item[slot] = state.frame_item[depth]


@compiled
def _list_candidates(problem: _Problem, state: _State, depth: int) -> None:
    """Who may be next, lowest first: nobody that lies no lower than where another would end."""
    offset, last = state.frame_offset[depth], state.frame_item[depth]
    limit = _ENDLESS
    for k in range(state.frame_begin[depth], state.frame_end[depth]):
        item = state.items[k]
        limit = min(limit, state.floor[item] + problem.size[item])
    begin = top = state.top[_CANDIDATES]
    for k in range(state.frame_begin[depth], state.frame_end[depth]):
        item = state.items[k]
        floor, twin = state.floor[item], problem.twin[item]
        if floor >= limit or floor < offset or (floor == offset and item < last):
            continue
        if twin >= 0 and state.is_placed[twin] == 0:
            continue
        place = top
        while place > begin:
            other = state.candidates[place - 1]
            if state.floor[other] < floor or (state.floor[other] == floor and other < item):
                break
            state.candidates[place] = other
            place -= 1
        state.candidates[place] = item
        top += 1
    state.frame_candidate[depth], state.frame_candidates[depth] = begin, top
    state.top[_CANDIDATES] = top


@compiled
def _place(problem: _Problem, state: _State, item: int) -> None:
    """Puts the item on its floor, and lifts those that share a time with it."""
    state.is_placed[item] = 1
    state.offset[item] = state.floor[item]
    state.trail[state.top[_TRAIL]] = item
    state.top[_TRAIL] += 1
    for section in range(problem.first[item], problem.end[item]):
        state.remaining[section] -= problem.size[item]
    high = state.floor[item] + problem.size[item]
    for k in range(problem.neighbour_begin[item], problem.neighbour_begin[item + 1]):
        other = problem.neighbour[k]
        if state.is_placed[other] == 0 and state.floor[other] < high:
            state.lifted[state.top[_LIFTED]] = other
            state.lifted_from[state.top[_LIFTED]] = state.floor[other]
            state.top[_LIFTED] += 1
            state.floor[other] = _settled(problem, other, high)


@compiled
def _unwind(problem: _Problem, state: _State, depth: int) -> None:
    """Takes back all that was placed since the node was entered, and the parts it made."""
    state.top[_PARTS] = state.frame_top[depth, _PARTS]
    state.top[_ITEMS] = state.frame_top[depth, _ITEMS]
    while state.top[_TRAIL] > state.frame_top[depth, _TRAIL]:
        state.top[_TRAIL] -= 1
        item = state.trail[state.top[_TRAIL]]
        state.is_placed[item] = 0
        for section in range(problem.first[item], problem.end[item]):
            state.remaining[section] += problem.size[item]
    while state.top[_LIFTED] > state.frame_top[depth, _LIFTED]:
        state.top[_LIFTED] -= 1
        state.floor[state.lifted[state.top[_LIFTED]]] = state.lifted_from[state.top[_LIFTED]]


@compiled
def _split(problem: _Problem, state: _State, depth: int, placed: int) -> None:
    """The items of the node but one, in the parts into which they fall by time."""
    top, parts = state.top[_ITEMS], state.top[_PARTS]
    state.frame_part[depth] = parts
    reach = -1
    for k in range(state.frame_begin[depth], state.frame_end[depth]):
        item = state.items[k]
        if item == placed:
            continue
        if problem.first[item] >= reach:
            state.part_begin[parts] = top
            parts += 1
        reach = max(reach, problem.end[item])
        state.items[top] = item
        top += 1
        state.part_end[parts - 1] = top
    state.top[_ITEMS], state.top[_PARTS], state.frame_parts[depth] = top, parts, parts


@compiled
def _descend(state: _State, depth: int) -> None:
    """Makes the frame of the next part."""
    part, item = state.frame_part[depth], state.trail[state.frame_top[depth, _TRAIL]]
    state.frame_begin[depth + 1] = state.part_begin[part]
    state.frame_end[depth + 1] = state.part_end[part]
    state.frame_offset[depth + 1] = state.offset[item]
    state.frame_item[depth + 1] = item


@compiled
def _search(problem: _Problem, state: _State, max_nodes: int) -> int:
    """Goes on from where the state stands; `RUNNING` if the nodes are used up."""
    depth, action = state.at[0], state.at[1]
    nodes = 0
    while True:
        if action == _ENTER:
            if nodes >= max_nodes:
                state.at[0], state.at[1] = depth, action
                return RUNNING
            nodes += 1
            begin, end = state.frame_begin[depth], state.frame_end[depth]
            _key(problem, state, begin, end, state.frame_key[depth])
            for stack in range(len(state.top)):
                state.frame_top[depth, stack] = state.top[stack]
            action = _FAIL
            if not _is_known_to_fail(state, depth) and not _is_cut(problem, state, depth):
                _list_candidates(problem, state, depth)
                action = _BRANCH
        elif action == _BRANCH:
            candidate = state.frame_candidate[depth]
            if candidate == state.frame_candidates[depth]:
                _remember(state, depth)
                action = _FAIL
            else:
                state.frame_candidate[depth] += 1
                item = state.candidates[candidate]
                _place(problem, state, item)
                _split(problem, state, depth, item)
                action = _DESCEND
        elif action == _DESCEND:
            action = _SUCCEED
            if state.frame_part[depth] < state.frame_parts[depth]:
                _descend(state, depth)
                depth += 1
                action = _ENTER
        elif depth == 0:
            return PACKED if action == _SUCCEED else IMPOSSIBLE
        else:
            # What is placed stays on its stacks until it is taken back.
            for stack in (_ITEMS, _CANDIDATES, _PARTS):
                state.top[stack] = state.frame_top[depth, stack]
            depth -= 1
            if action == _SUCCEED:
                state.frame_part[depth] += 1
                action = _DESCEND
            else:
                _unwind(problem, state, depth)
                action = _BRANCH
