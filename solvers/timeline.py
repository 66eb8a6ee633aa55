"""A buffer's life as a tree of items: what the residencies of one scope can cover.

Inside one scope (the program, or one loop's body) a buffer's life is a sequence of *items*: its
direct accesses, and whole inner loops that access it. A residency of that scope covers a
contiguous run of items, an inner loop wholly or not at all (docs/simulator.md, rule 5). A `Lane` is
that sequence for one buffer and one scope.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hlo_graphs.program import Access, AccessKind, Program


@dataclass(frozen=True, slots=True)
class Item:
    """One direct access, or one inner loop with everything it does to the buffer.

    Attributes:
      start_step: the access's step, or the loop's first.
      end_step: one past the last step.
      loop: the loop's index, None for a direct access.
      kind: of a direct access, None for a loop.
      uses: the accesses covered, as (step, access), in program order.
      reads_first: the content before the item matters to it.
      always_writes: nothing of the content before survives it.
      writes: it may change the content.
    """

    start_step: int
    end_step: int
    loop: int | None
    kind: AccessKind | None
    uses: tuple[tuple[int, Access], ...]
    reads_first: bool
    always_writes: bool
    writes: bool


@dataclass(frozen=True, slots=True)
class Lane:
    """One buffer's items in one scope.

    Attributes:
      buffer: index into `Program.buffers`.
      loop: the scope: a loop's index, None for the program.
      start_step: the scope's first step.
      end_step: one past its last step (the virtual end for the program).
      repeat: how often the scope's body runs.
      items: in program order, disjoint.
      needed_after: per item whether the buffer is needed after it on some path.
      needed_before: whether the content at the start of the scope's body is needed.
      parent: index of the lane around it and of this loop's item there, None for the program.
    """

    buffer: int
    loop: int | None
    start_step: int
    end_step: int
    repeat: float
    items: tuple[Item, ...]
    needed_after: tuple[bool, ...]
    needed_before: bool
    parent: tuple[int, int] | None


def lanes_of(program: Program, buffer: int) -> tuple[Lane, ...]:
    """The buffer's lanes, a scope before the scopes inside it; empty if nothing accesses it.

    Whether the buffer is needed after an item assumes that every loop of several trips may run
    again, every branch may be skipped, and a loop of unknown trips may do both (docs/simulator.md,
    "Legal").
    """
    uses = program.accesses_of_buffer[buffer]
    if not uses:
        return ()
    lanes: list[Lane] = []
    live_out = program.buffers[buffer].live_out
    _add_lane(program, buffer, None, uses, live_out, None, lanes)
    return tuple(lanes)


def _add_lane(
    program: Program,
    buffer: int,
    scope: int | None,
    uses: Sequence[tuple[int, Access]],
    needed_at_end: bool,
    parent: tuple[int, int] | None,
    lanes: list[Lane],
) -> None:
    items = _items(program, scope, uses)
    if scope is not None and not needed_at_end and program.loops[scope].may_repeat:
        needed_at_end = _needed(items, False)[1]
    needed_after, needed_before = _needed(items, needed_at_end)
    loop = None if scope is None else program.loops[scope]
    index = len(lanes)
    lanes.append(
        Lane(
            buffer=buffer,
            loop=scope,
            start_step=0 if loop is None else loop.start_step,
            end_step=program.num_steps if loop is None else loop.end_step,
            repeat=program.repeat_of(scope),
            items=items,
            needed_after=needed_after,
            needed_before=needed_before,
            parent=parent,
        )
    )
    for position, item in enumerate(items):
        if item.loop is not None:
            around = (index, position)
            _add_lane(program, buffer, item.loop, item.uses, needed_after[position], around, lanes)


def _items(
    program: Program, scope: int | None, uses: Sequence[tuple[int, Access]]
) -> tuple[Item, ...]:
    items: list[Item] = []
    position = 0
    while position < len(uses):
        step, access = uses[position]
        inner = outermost_loop_within(program, scope, step)
        if inner is None:
            items.append(_direct_item(step, access))
            position += 1
            continue
        loop = program.loops[inner]
        first = position
        while position < len(uses) and uses[position][0] < loop.end_step:
            position += 1
        items.append(_loop_item(program, inner, tuple(uses[first:position])))
    return tuple(items)


def _direct_item(step: int, access: Access) -> Item:
    kind = access.kind
    return Item(
        start_step=step,
        end_step=step + 1,
        loop=None,
        kind=kind,
        uses=((step, access),),
        reads_first=kind.reads,
        always_writes=kind is AccessKind.WRITE,
        writes=kind.writes,
    )


def _loop_item(program: Program, index: int, uses: tuple[tuple[int, Access], ...]) -> Item:
    loop = program.loops[index]
    body = _items(program, index, uses)
    return Item(
        start_step=loop.start_step,
        end_step=loop.end_step,
        loop=index,
        kind=None,
        uses=uses,
        reads_first=_needed(body, False)[1],
        always_writes=not loop.may_skip and any(item.always_writes for item in body),
        writes=any(item.writes for item in body),
    )


def _needed(items: Sequence[Item], needed_at_end: bool) -> tuple[tuple[bool, ...], bool]:
    """Per item whether the content after it is needed, and whether that before the first is."""
    after: list[bool] = []
    needed = needed_at_end
    for item in reversed(items):
        after.append(needed)
        needed = item.reads_first or (needed and not item.always_writes)
    return tuple(reversed(after)), needed


def live_ranges_within(program: Program, lane: Lane, index: int) -> tuple[tuple[int, int], ...]:
    """Steps of an item at which a residency over it must hold its bytes: all but dead stretches.

    With every branch taken, a stretch is dead (`Residency.holes`) if the next access writes the
    whole buffer, if nothing was ever written to it, or if neither another access nor a trip that
    begins with a read follows. A copy instruction that may be replaced binds no bytes at its own
    step: what it writes may arrive as late as the next access, and it may read slow memory. No
    step is named at which some residency over the item may hold nothing: bounds rest on that.
    """
    item = lane.items[index]
    if item.loop is None:
        return ((item.start_step, item.end_step),)
    repeats = program.loops[item.loop].may_repeat
    has_content = not may_hold_nothing_before(program, lane, index) or (repeats and item.writes)
    returns = repeats and has_content and needs_entry_content(program, item)
    ranges: list[tuple[int, int]] = []
    start: int | None = item.start_step
    end = item.start_step
    for step, access, moves in _binding_uses(program, item):
        overwrites = moves or access.kind is AccessKind.WRITE
        if start is not None and (overwrites or not has_content):
            ranges.append((start, end))
            start = None
        has_content = has_content or access.kind.writes
        if not moves:
            start = step if start is None else start
            end = step + 1
    if start is not None:
        ranges.append((start, item.end_step if returns else end))
    return tuple((low, high) for low, high in ranges if low < high)


def needs_entry_content(program: Program, item: Item) -> bool:
    """Whether the first access, with every branch taken, reads what must be in fast memory.

    Provided that a residency covers the item; a copy that may be replaced may read slow memory.
    """
    first = next(_binding_uses(program, item), None)
    if first is None:
        return False
    _, access, moves = first
    return access.kind.reads and not moves


def _binding_uses(program: Program, item: Item) -> Iterator[tuple[int, Access, bool]]:
    """Accesses that say where content must be, each with whether it may move to another step."""
    for step, access in item.uses:
        moves = program.instructions[step].async_copy
        if access.kind.writes or not moves:
            yield step, access, moves


def needs_content(program: Program, lane: Lane, index: int) -> bool:
    """Whether a residency that begins with item `index` must be filled by a copy.

    Not if the first access, with every branch taken, writes the whole buffer; nor before
    anything was ever written to a buffer that has no content at the start. Weaker than
    `Item.reads_first`, which lets branches be skipped: the path that takes them all is one of
    those on which a map must be valid, so what follows from it is a relaxation.
    """
    if lane.items[index].uses[0][1].kind is AccessKind.WRITE:
        return False
    return not is_undefined_before(program, lane, index)


def begins_with_write(item: Item) -> bool:
    """Whether a residency over the item may be produced at its start: a write of the whole buffer.

    Of a loop: if its first step is one, on every path, and nothing it reads is older.
    """
    step, access = item.uses[0]
    is_written = step == item.start_step and access.kind is AccessKind.WRITE
    return is_written and item.always_writes and not item.reads_first


def is_undefined_before(program: Program, lane: Lane, index: int) -> bool:
    """Whether nothing has given the buffer any content before item `index` of its outer lane."""
    return lane.loop is None and may_hold_nothing_before(program, lane, index)


def may_hold_nothing_before(program: Program, lane: Lane, index: int) -> bool:
    """Whether the buffer never has any content before item `index`, on no trip of any loop."""
    around = (program.loops[loop] for loop in program.loops_around(lane.loop))
    ends = [loop.end_step for loop in around if loop.may_repeat]
    latest = max([lane.items[index].start_step, *ends])
    return not program.has_content_before(lane.buffer, latest)


def outermost_loop_within(program: Program, scope: int | None, step: int) -> int | None:
    """The largest loop inside `scope` that contains `step`; None if there is none, or the step is
    not in the scope."""
    found: int | None = None
    for loop in program.loops_around(program.loop_of_step[step]):
        if loop == scope:
            return found
        found = loop
    return found if scope is None else None
