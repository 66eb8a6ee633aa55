"""The answer: which buffer lies in fast memory, from when to when, at which address.

docs/simulator.md says which maps are legal. Sliced prefetches, holes and replaced copies are there
so that production's own maps can be expressed (docs/production.md).
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from hlo_graphs.errors import InputError, require_integers

SCHEMA = "malloc-game/memory-map/1"


class Source(enum.StrEnum):
    """How a residency's content got into fast memory."""

    PRODUCED = "produced"
    """Written there by the access at step `start`, or by the replaced copy that fills it."""
    COPIED = "copied"
    """Prefetched from slow memory."""
    CARRIED = "carried"
    """Left there by the previous run of the program (XLA's cross-program prefetch)."""


@dataclass(frozen=True, slots=True)
class Part:
    """A slice of a prefetched residency with a copy of its own (XLA's sliced prefetch).

    Attributes:
      offset_bytes: relative to the residency's offset.
      size_bytes: bytes of the slice.
      start: step at whose beginning its copy is issued; it holds its bytes from then on.
    """

    offset_bytes: int
    size_bytes: int
    start: int


@dataclass(frozen=True, slots=True)
class Residency:
    """A buffer in fast memory at `[offset, offset + size)` during steps `[start, end)`.

    Attributes:
      buffer: index into `Program.buffers`.
      offset_bytes: address in fast memory.
      start: first step at which it holds (any of) its bytes. A prefetch is issued at its beginning.
      end: one past the last step; `T + 1` holds to the virtual end of the program (carried ones).
      source: how it was filled.
      ready: the copy is complete before this step; equals `start` unless copied. A copied
        residency with `start == ready` is a copy that nothing hides: all of it is a stall.
      loop: index of the loop in `Program.loops` on whose every trip it happens; None: once.
      parts: the slices of a sliced prefetch, or of the replaced copy that fills it, covering the
        buffer; empty for one whole copy.
      holes: half-open ranges of steps, after `ready` and in order, in which the content is dead
        and the bytes are free for others: until the next write. A value carried around a loop
        has one between its last use of a trip and the write of its successor.
    """

    buffer: int
    offset_bytes: int
    start: int
    end: int
    source: Source
    ready: int
    loop: int | None = None
    parts: tuple[Part, ...] = ()
    holes: tuple[tuple[int, int], ...] = ()

    def occupied(self, size_bytes: int) -> Iterator[tuple[int, int, int, int]]:
        """The bytes a buffer of this size holds: (start, end, low byte, high byte) per piece.

        A slice holds its bytes from its own start; nothing holds any in a hole.
        """
        parts = self.parts or (Part(0, size_bytes, self.start),)
        starts = [None, *(end for _, end in self.holes)]
        ends = [*(start for start, _ in self.holes), self.end]
        for start, end in zip(starts, ends, strict=True):
            for part in parts:
                low = self.offset_bytes + part.offset_bytes
                first = part.start if start is None else start
                if first < end:
                    yield first, end, low, low + part.size_bytes


@dataclass(frozen=True, slots=True)
class Eviction:
    """A copy from the buffer's residency to slow memory.

    Issued at the beginning of step `issue`, complete before step `done`; the residency that
    covers `issue` lasts until `done` at least.
    """

    buffer: int
    issue: int
    done: int


@dataclass(frozen=True, slots=True)
class ReplacedCopy:
    """A copy or slice instruction that the copy engine does instead (docs/simulator.md, rule 8).

    The step takes no time. The transfer of the written buffer's bytes is issued at the
    beginning of step `issue` and complete before step `done`. During the transfer nothing
    writes its source, and nothing else touches what it writes.

    Attributes:
      step: the step it replaces; `Instruction.async_copy` is true there.
      issue: step at whose beginning the transfer starts.
      done: the transfer is complete before this step.
    """

    step: int
    issue: int
    done: int

    @property
    def window(self) -> tuple[int, int]:
        """Steps `[start, end)` in which it needs both of its ends in place: at least one."""
        return self.issue, max(self.done, self.issue + 1)


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """Where every tensor lives. The empty map leaves everything in slow memory."""

    residencies: tuple[Residency, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    replaced_copies: tuple[ReplacedCopy, ...] = ()

    def to_json(self) -> str:
        """One JSON object; `MemoryMap.from_json` reads it back."""
        return json.dumps(to_document(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> MemoryMap:
        """Reads what `to_json` wrote.

        Raises:
          InputError: if the text is not JSON, of another schema, or lacks fields.
        """
        return from_document(parsed(text))


def parsed(text: str) -> Any:
    """JSON values of a map's text. Raises InputError if it is not JSON."""
    try:
        return json.loads(text)
    # Of integers with too many digits JSON makes a plain ValueError.
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a memory map: invalid JSON: {error}") from error


def to_document(memory_map: MemoryMap) -> dict[str, Any]:
    """The map as plain JSON values."""
    return {
        "schema": SCHEMA,
        "residencies": [_residency_row(r) for r in memory_map.residencies],
        "evictions": [
            {"buffer": e.buffer, "issue": e.issue, "done": e.done} for e in memory_map.evictions
        ],
        "replaced_copies": [
            {"step": c.step, "issue": c.issue, "done": c.done} for c in memory_map.replaced_copies
        ],
    }


def from_document(document: Any) -> MemoryMap:
    """The map of `to_document`'s values. Raises InputError on anything else."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise InputError(f"not a memory map: schema is {found!r}, this version reads {SCHEMA!r}")
    return MemoryMap(
        residencies=_rows(document, "residencies", _residency),
        evictions=_rows(document, "evictions", _eviction),
        replaced_copies=_rows(document, "replaced_copies", _replaced),
    )


_Row = TypeVar("_Row")


def _rows(
    document: dict[str, Any], name: str, read: Callable[[dict[str, Any]], _Row]
) -> tuple[_Row, ...]:
    """The rows of one list of the document; errors name the row."""
    rows = document.get(name)
    if not isinstance(rows, list):
        raise InputError(f"not a memory map: {name} is {type(rows).__name__}, not a list")
    found = []
    for index, row in enumerate(rows):
        where = f"not a memory map: {name}[{index}]"
        try:
            found.append(read(row))
        except (TypeError, ValueError, InputError) as error:
            raise InputError(f"{where}: {error}") from error
    return tuple(found)


def _residency_row(residency: Residency) -> dict[str, Any]:
    return {
        "buffer": residency.buffer,
        "offset_bytes": residency.offset_bytes,
        "start": residency.start,
        "end": residency.end,
        "source": residency.source.value,
        "ready": residency.ready,
        "loop": residency.loop,
        "parts": [[p.offset_bytes, p.size_bytes, p.start] for p in residency.parts],
        "holes": [list(hole) for hole in residency.holes],
    }


_RESIDENCY_FIELDS = (
    *("buffer", "offset_bytes", "start", "end", "source", "ready"),
    *("loop", "parts", "holes"),
)


def _require_fields(row: Any, names: tuple[str, ...]) -> None:
    if not isinstance(row, dict):
        raise InputError(f"is {type(row).__name__}, not an object")
    missing, unknown = set(names) - row.keys(), row.keys() - set(names)
    if missing:
        raise InputError(f"lacks {', '.join(sorted(missing))}")
    if unknown:
        raise InputError(f"has unknown fields: {', '.join(sorted(unknown))}")


def _residency(row: dict[str, Any]) -> Residency:
    _require_fields(row, _RESIDENCY_FIELDS)
    fields = {**row, "source": Source(row["source"])}
    fields["parts"] = tuple(Part(*part) for part in row["parts"])
    fields["holes"] = tuple((start, end) for start, end in row["holes"])
    residency = Residency(**fields)
    require_integers(
        "residency",
        buffer=residency.buffer,
        offset_bytes=residency.offset_bytes,
        start=residency.start,
        end=residency.end,
        ready=residency.ready,
        loop=0 if residency.loop is None else residency.loop,
    )
    for part in residency.parts:
        require_integers(
            "part", offset_bytes=part.offset_bytes, size_bytes=part.size_bytes, start=part.start
        )
    for start, end in residency.holes:
        require_integers("hole", start=start, end=end)
    return residency


def _eviction(row: dict[str, Any]) -> Eviction:
    _require_fields(row, ("buffer", "issue", "done"))
    require_integers("eviction", **row)
    return Eviction(**row)


def _replaced(row: dict[str, Any]) -> ReplacedCopy:
    _require_fields(row, ("step", "issue", "done"))
    require_integers("replaced copy", **row)
    return ReplacedCopy(**row)
