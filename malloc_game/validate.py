"""Is a memory map legal? Every rule of docs/simulator.md, independent of all map makers.

`validate` returns what is wrong, naming rule, buffers and steps; `check` raises it. Rules 3 and
4 and the dataflow over loops are in `staleness.py`.

What the rules leave open is read like this:

* Every loop with a trip count above 1 has a second trip; a loop of trip count 1 has none.
* A buffer that nothing has written yet is current in slow memory; if it has no content yet
  either (`Buffer.has_content_at_start`), a produced residency may begin before its first write.
* A copy window may be empty (`start == ready`, `issue == done`): all of it is a stall just
  before that step. An empty eviction belongs to the residency that held the buffer until then.
* An eviction is issued when its residency is ready, not before.
* A replaced copy reads its source and writes its result anywhere in `[issue, done)` (the step
  `issue` at least). From the first of `issue` and its step to the last of `done` and the step's
  end nothing else writes what it reads or touches what it writes, and all that lies on the same
  trip of the step's innermost loop. The result is wholly fast or wholly slow meanwhile; the
  source is read from slow memory unless it is fast all the while.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from hlo_graphs.program import AccessKind, Program
from malloc_game.loop_nest import LoopNest
from malloc_game.memory_map import Eviction, MemoryMap, ReplacedCopy, Residency, Source
from malloc_game.residency_index import ResidencyIndex
from malloc_game.staleness import WriteTimes, check_contents, starts_without_content
from malloc_game.violations import InvalidMapError, Rule, Violation

__all__ = ["InvalidMapError", "Rule", "Violation", "check", "validate"]


def validate(
    program: Program, memory_map: MemoryMap, *, max_carried: int = 1
) -> tuple[Violation, ...]:
    """All rules that `memory_map` breaks; empty if and only if it is valid.

    What is not even well formed (rule 0) is reported and left out of the other checks. What the
    contents are at each step (rules 3 and 4) is asked only of maps that are well formed and in
    order with the loops (rule 5): of others it has no answer. Takes time in proportion to the
    map and the accesses of its buffers, times a logarithm.

    Args:
      program: the program that the map is for.
      memory_map: the map.
      max_carried: most residencies carried over from the previous run (rule 6).
    """
    nest = LoopNest(program)
    broken: list[Violation] = []
    residencies = []
    for residency in memory_map.residencies:
        wrong = _malformed_residency(program, residency)
        if wrong:
            broken.append(wrong)
        else:
            residencies.append(residency)
    index = ResidencyIndex(residencies)
    evictions = list(_well_formed_evictions(program, memory_map.evictions, index, broken))
    copies = list(_well_formed_copies(program, memory_map.replaced_copies, broken))
    writes = WriteTimes(program, copies)
    for residency in residencies:
        broken.extend(_check_residency(program, nest, residency, copies, writes))
    for eviction in evictions:
        broken.extend(_check_eviction_loop(program, nest, eviction, index))
    broken.extend(_check_overlap(program, residencies, index))
    broken.extend(_check_carried(program, residencies, index, max_carried))
    broken.extend(_check_copies(program, nest, copies, index))
    if not any(violation.rule in (Rule.LOOP, Rule.DEFINITION) for violation in broken):
        broken.extend(check_contents(program, nest, index, evictions, copies))
    return tuple(broken)


def check(program: Program, memory_map: MemoryMap, *, max_carried: int = 1) -> None:
    """Raises InvalidMapError with the first few violations unless the map is valid."""
    broken = validate(program, memory_map, max_carried=max_carried)
    if broken:
        raise InvalidMapError(program.name, broken)


def _name(program: Program, buffer: int) -> str:
    return program.buffers[buffer].name


def _one(rule: Rule, message: str, buffer: int, *steps: int) -> Violation:
    return Violation(rule, message, (buffer,), steps)


def _malformed_residency(program: Program, residency: Residency) -> Violation | None:
    """What contradicts the definition of a residency, if anything."""
    buffer = residency.buffer
    if not 0 <= buffer < len(program.buffers):
        return Violation(Rule.DEFINITION, f"residency of buffer {buffer}: no such buffer", (), ())
    wrong = (
        _wrong_range(program, residency)
        or _wrong_parts(program, residency)
        or _wrong_holes(program, residency)
    )
    if wrong is None:
        return None
    message = f"residency of {_name(program, buffer)} [{residency.start}, {residency.end}): {wrong}"
    return _one(Rule.DEFINITION, message, buffer, residency.start)


def _wrong_range(program: Program, residency: Residency) -> str | None:
    if residency.loop is not None and not 0 <= residency.loop < len(program.loops):
        return f"no loop {residency.loop}"
    if not 0 <= residency.start < residency.end <= program.num_steps + 1:
        return f"not a range of steps of 0..{program.num_steps}"
    if residency.source is Source.COPIED:
        if not residency.start <= residency.ready < residency.end:
            return f"ready {residency.ready} is outside"
        if residency.ready > program.num_steps:
            return f"ready {residency.ready} is after the program"
    elif residency.ready != residency.start:
        return f"ready {residency.ready} differs from the start though nothing is copied"
    return None


def _wrong_parts(program: Program, residency: Residency) -> str | None:
    """Parts tile the buffer, and the first of them starts the residency."""
    if not residency.parts:
        return None
    if residency.source is Source.CARRIED:
        return "what is carried has no parts"
    copied = residency.source is Source.COPIED
    last = residency.ready if copied else residency.end - 1
    covered = 0
    for part in sorted(residency.parts, key=lambda part: part.offset_bytes):
        if part.offset_bytes != covered or part.size_bytes <= 0:
            return f"its parts do not tile it at byte {covered}"
        covered += part.size_bytes
        if not residency.start <= part.start <= last:
            return f"a part starts at {part.start}, not in [{residency.start}, {last}]"
    if covered != program.buffers[residency.buffer].size_bytes:
        return f"its parts cover {covered} bytes"
    if min(part.start for part in residency.parts) != residency.start:
        return "no part starts with it"
    return None


def _wrong_holes(program: Program, residency: Residency) -> str | None:
    """Holes lie inside, in order, each within one trip, and nothing is accessed in them."""
    last = residency.ready
    for start, end in residency.holes:
        if not last <= start < end <= residency.end:
            return f"hole [{start}, {end}) is empty, out of order or outside"
        if program.loop_of_step[start] != program.loop_of_step[end - 1]:
            return f"hole [{start}, {end}) leaves or enters a loop"
        for step, _ in program.accesses_of_buffer[residency.buffer]:
            if start <= step < end:
                return f"it is accessed at step {step}, in its hole [{start}, {end})"
        last = end
    return None


def _well_formed_evictions(
    program: Program,
    evictions: Iterable[Eviction],
    index: ResidencyIndex,
    broken: list[Violation],
) -> Iterator[Eviction]:
    """Those evictions that copy out of a residency; the others are added to `broken`."""
    for eviction in evictions:
        buffer, issue, done = eviction.buffer, eviction.issue, eviction.done
        if not 0 <= buffer < len(program.buffers):
            message = f"eviction of buffer {buffer}: no such buffer"
            broken.append(Violation(Rule.DEFINITION, message, (), (issue,)))
            continue
        where = f"eviction of {_name(program, buffer)} [{issue}, {done})"
        if not 0 <= issue <= done <= program.num_steps:
            message = f"{where}: not a range of steps of 0..{program.num_steps}"
            broken.append(_one(Rule.DEFINITION, message, buffer, issue))
        elif (residency := index.evicted(eviction)) is None:
            message = f"{where}: no residency is ready at its issue and lasts until it is done"
            broken.append(_one(Rule.DEFINITION, message, buffer, issue))
        elif any(issue < end and start < done for start, end in residency.holes):
            message = f"{where}: its residency holds nothing meanwhile"
            broken.append(_one(Rule.DEFINITION, message, buffer, issue))
        else:
            yield eviction


def _check_residency(
    program: Program,
    nest: LoopNest,
    residency: Residency,
    copies: Sequence[ReplacedCopy],
    writes: WriteTimes,
) -> Iterator[Violation]:
    """Rules 1, 3 (writes during a copy, what produces), 5 and 7 of one residency."""
    buffer, start = residency.buffer, residency.start
    where = f"residency of {_name(program, buffer)} [{start}, {residency.end})"
    if not program.may_be_resident(buffer):
        yield _one(
            Rule.NOT_ALLOWED, f"{where}: the buffer may not be in fast memory", buffer, start
        )
    wrong_place = _wrong_place(program, residency)
    if wrong_place:
        yield _one(Rule.PLACE, f"{where}: {wrong_place}", buffer, start)
    windows = [(start, residency.end, "it")]
    windows += [(s, residency.ready, "its copy") for s in _issues(residency)]
    windows += [(part.start, residency.end, "its slice") for part in residency.parts]
    for low, high, what in windows:
        loop = nest.broken_by(low, high, residency.loop)
        if loop is not None:
            yield _one(Rule.LOOP, f"{where}: {what} {_crosses(program, loop)}", buffer, start)
    if residency.source is Source.PRODUCED and not _is_produced(program, residency, copies, writes):
        yield _one(
            Rule.CONTENT, f"{where}: no access writes the whole buffer at its start", buffer, start
        )
    step = writes.first_in(buffer, start, residency.ready)
    if step is not None:
        yield _one(Rule.CONTENT, f"{where}: written at {step}, during its copy", buffer, step)


def _wrong_place(program: Program, residency: Residency) -> str | None:
    offset = residency.offset_bytes
    end = offset + program.buffers[residency.buffer].size_bytes
    if offset < 0 or end > program.capacity_bytes:
        return f"bytes [{offset}, {end}) are not in fast memory of {program.capacity_bytes}"
    alignment = program.machine.alignment_bytes
    return f"offset {offset} is not a multiple of {alignment}" if offset % alignment else None


def _crosses(program: Program, loop: int) -> str:
    found = program.loops[loop]
    return f"neither contains nor avoids loop [{found.start_step}, {found.end_step})"


def _issues(residency: Residency) -> list[int]:
    """The steps at which copies into the residency are issued."""
    if residency.source is not Source.COPIED:
        return []
    return [part.start for part in residency.parts] or [residency.start]


def _is_produced(
    program: Program, residency: Residency, copies: Sequence[ReplacedCopy], writes: WriteTimes
) -> bool:
    """Whether a write of the whole buffer begins where the residency does.

    The slices of a replaced copy may begin later, as long as it lasts.
    """
    start, buffer = residency.start, residency.buffer
    if starts_without_content(program, residency, writes):
        return True
    last = max((part.start for part in residency.parts), default=start)
    steps = {copy.step for copy in copies if copy.issue == start and last <= copy.done}
    is_step = start < program.num_steps and all(copy.step != start for copy in copies)
    if is_step and not residency.parts:
        steps.add(start)
    return any(
        access.buffer == buffer and access.kind is AccessKind.WRITE
        for step in steps
        for access in program.instructions[step].accesses
    )


def _writes(program: Program, step: int, buffer: int) -> bool:
    accesses = program.instructions[step].accesses
    return any(access.buffer == buffer and access.kind.writes for access in accesses)


def _check_eviction_loop(
    program: Program, nest: LoopNest, eviction: Eviction, index: ResidencyIndex
) -> Iterator[Violation]:
    residency = index.evicted(eviction)
    assert residency is not None  # well-formed evictions have one
    loop = nest.broken_by(eviction.issue, eviction.done, residency.loop)
    if loop is not None:
        message = (
            f"eviction of {_name(program, eviction.buffer)} [{eviction.issue}, {eviction.done}) "
            f"{_crosses(program, loop)}"
        )
        yield _one(Rule.LOOP, message, eviction.buffer, eviction.issue)


def _check_overlap(
    program: Program, residencies: Sequence[Residency], index: ResidencyIndex
) -> Iterator[Violation]:
    """Rule 2: a sweep over the steps with the bytes in use sorted by address."""
    for buffer in index.buffers:
        several = index.of_buffer(buffer)
        for first, second in pairwise(several):
            if second.start < first.end:
                message = f"{_name(program, buffer)} has two residencies at step {second.start}"
                yield _one(Rule.OVERLAP, message, buffer, second.start)
    begins: dict[int, list[tuple[int, int, int, int]]] = {}
    for residency in residencies:
        size_bytes = program.buffers[residency.buffer].size_bytes
        for start, end, low, high in residency.occupied(size_bytes):
            if low < high:
                begins.setdefault(start, []).append((low, high, residency.buffer, end))
    yield from _sweep(program, begins)


def _sweep(
    program: Program, begins: dict[int, list[tuple[int, int, int, int]]]
) -> Iterator[Violation]:
    """Finds a byte used twice, if any; what collides is left out of the rest of the sweep."""
    in_use: list[tuple[int, int, int, int]] = []
    ends: dict[int, list[tuple[int, int, int, int]]] = {}
    steps = sorted({*begins, *(entry[3] for entries in begins.values() for entry in entries)})
    for step in steps:
        for entry in ends.pop(step, ()):
            in_use.remove(entry)
        for entry in begins.get(step, ()):
            at = bisect_right(in_use, entry)
            other = _collision(in_use, at, entry)
            if other is None:
                insort(in_use, entry)
                ends.setdefault(entry[3], []).append(entry)
            elif other[2] != entry[2]:
                names = f"{_name(program, other[2])} and {_name(program, entry[2])}"
                shared = f"[{max(other[0], entry[0])}, {min(other[1], entry[1])})"
                message = f"{names} share bytes {shared} at step {step}"
                yield Violation(Rule.OVERLAP, message, (other[2], entry[2]), (step,))


def _collision(
    in_use: list[tuple[int, int, int, int]], at: int, entry: tuple[int, int, int, int]
) -> tuple[int, int, int, int] | None:
    """The neighbour by address that shares bytes with `entry`; those in use are disjoint."""
    if at > 0 and in_use[at - 1][1] > entry[0]:
        return in_use[at - 1]
    if at < len(in_use) and in_use[at][0] < entry[1]:
        return in_use[at]
    return None


def _check_carried(
    program: Program, residencies: Sequence[Residency], index: ResidencyIndex, max_carried: int
) -> Iterator[Violation]:
    """Rule 6."""
    carried = [r for r in residencies if r.source is Source.CARRIED]
    if len(carried) > max_carried:
        buffers = tuple(r.buffer for r in carried)
        message = f"{len(carried)} residencies are carried over, at most {max_carried} may be"
        yield Violation(Rule.CARRIED, message, buffers, (0,))
    for residency in carried:
        wrong = _wrong_carried(program, residency, index)
        if wrong:
            message = f"carried {_name(program, residency.buffer)}: {wrong}"
            yield _one(Rule.CARRIED, message, residency.buffer, residency.start)


def _wrong_carried(program: Program, residency: Residency, index: ResidencyIndex) -> str | None:
    if not program.buffers[residency.buffer].is_parameter:
        return "it is not a parameter"
    if residency.start != 0 or residency.loop is not None:
        return "it does not cover step 0"
    for step, access in program.accesses_of_buffer[residency.buffer]:
        if access.kind.writes:
            return f"it is written at step {step}"
    last = index.ready_at(residency.buffer, program.num_steps)
    if last is None:
        return "it is not resident and ready at the program's end"
    if last.holes:
        return "its content does not last to the program's end"
    if last.offset_bytes != residency.offset_bytes:
        return f"it ends at offset {last.offset_bytes}, it began at {residency.offset_bytes}"
    return None


def _well_formed_copies(
    program: Program, copies: Iterable[ReplacedCopy], broken: list[Violation]
) -> Iterator[ReplacedCopy]:
    """Those replaced copies that replace a copy, once; the others are added to `broken`."""
    seen: set[int] = set()
    for copy in copies:
        wrong = _malformed_copy(program, copy)
        if wrong is None and copy.step in seen:
            wrong = "is replaced twice"
        if wrong is None:
            seen.add(copy.step)
            yield copy
        else:
            message = f"step {copy.step} {wrong}"
            broken.append(Violation(Rule.REPLACED_COPY, message, (), (copy.step,)))


def _malformed_copy(program: Program, copy: ReplacedCopy) -> str | None:
    if not 0 <= copy.step < program.num_steps:
        return "does not exist"
    instruction = program.instructions[copy.step]
    if not instruction.async_copy:
        return f"({instruction.name}) is no copy that the copy engine could do"
    if any(access.kind is AccessKind.UPDATE for access in instruction.accesses):
        return f"({instruction.name}) updates in place"
    if not any(access.kind is AccessKind.WRITE for access in instruction.accesses):
        return f"({instruction.name}) writes nothing that could be copied"
    if not 0 <= copy.issue <= copy.done <= program.num_steps or copy.issue == program.num_steps:
        return f"is replaced in [{copy.issue}, {copy.done}), not a range of steps"
    return None


def _hull(copy: ReplacedCopy) -> tuple[int, int]:
    low, high = copy.window
    return min(low, copy.step), max(high, copy.step + 1)


def _check_copies(
    program: Program, nest: LoopNest, copies: Sequence[ReplacedCopy], index: ResidencyIndex
) -> Iterator[Violation]:
    """Rules 5 and 8 of the replaced copies."""
    by_step = {copy.step: copy for copy in copies}
    for copy in copies:
        buffers = tuple(a.buffer for a in program.instructions[copy.step].accesses)
        name = program.instructions[copy.step].name
        for low, high in (_hull(copy), copy.window):
            loop = nest.broken_by(low, high, program.loop_of_step[copy.step])
            if loop is not None:
                message = f"the replaced {name} {_crosses(program, loop)}"
                yield Violation(Rule.LOOP, message, buffers, (copy.step,))
        for buffer, step in _disturbances(program, copy, by_step):
            message = f"step {step} disturbs {_name(program, buffer)} of the replaced {name}"
            yield Violation(Rule.REPLACED_COPY, message, (buffer,), (copy.step, step))
        for buffer in buffers:
            if _in_hole(copy, index, buffer):
                message = f"{_name(program, buffer)} holds nothing while {name} is copied"
                yield _one(Rule.REPLACED_COPY, message, buffer, copy.step)
            if _is_torn(copy, index, buffer, _writes(program, copy.step, buffer)):
                message = f"{_name(program, buffer)} moves while {name} is copied"
                yield _one(Rule.REPLACED_COPY, message, buffer, copy.step)


def _disturbances(
    program: Program, copy: ReplacedCopy, by_step: dict[int, ReplacedCopy]
) -> Iterator[tuple[int, int]]:
    """(buffer, step) of what touches the copy's result, or writes its source, meanwhile."""
    low, high = _hull(copy)
    for access in program.instructions[copy.step].accesses:
        for step, other in program.accesses_of_buffer[access.buffer]:
            start, end = _hull(by_step[step]) if step in by_step else (step, step + 1)
            together = step != copy.step and start < high and low < end
            if together and (access.kind.writes or other.kind.writes):
                yield access.buffer, step


def _in_hole(copy: ReplacedCopy, index: ResidencyIndex, buffer: int) -> bool:
    """Whether a residency of the buffer has given up its bytes during the transfer."""
    low, high = copy.window
    return any(
        start < high and low < end
        for residency in index.overlapping(buffer, low, high)
        for start, end in residency.holes
    )


def _is_torn(copy: ReplacedCopy, index: ResidencyIndex, buffer: int, written: bool) -> bool:
    """Whether the buffer is in fast memory for a part of the transfer only.

    A source may be resident for a part of it as long as it can be read from slow memory, which
    the contents' check sees to.
    """
    low, high = copy.window
    residency = index.ready_at(buffer, low)
    wholly_fast = residency is not None and high <= residency.end
    return written and not wholly_fast and bool(index.overlapping(buffer, low, high))
