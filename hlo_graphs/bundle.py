"""A *bundle*: the files one compiled program consists of, found by name and read as records.

A bundle is a set of sibling files `NAME.CHIP[.64MiB].PART`. The parts are the scheduled HLO before
memory-space assignment (`before.hlo.gz`), the production compiler's answer
(`production.hlo.gz`), its stated cycles (`cycles.json`, more points in `points.json.gz`) and the
tables it printed (`bufferinfo`, `allocinfo`, `scheduleinfo`, `buffer-assignment`, `live-range`).
The tables have the form in which XLA prints them (`MsaAlgorithm::DumpDebugStringsIfEnabled`,
`BufferAssignment::ToString`, `HloLiveRange::ToString`). `docs/extract.md` says what `extract` puts
into each part.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hlo_graphs.errors import InputError, SourceLocation
from hlo_graphs.hlo import HloComputation, HloInstruction, Layout, Shape
from hlo_graphs.leaves import leaves
from hlo_graphs.text_files import read_text

PART_SUFFIXES: Mapping[str, str] = {
    "before": "before.hlo",
    "production": "production.hlo",
    "cycles": "cycles.json",
    "points": "points.json",
    "bufferinfo": "bufferinfo.csv",
    "allocinfo": "allocinfo.csv",
    "scheduleinfo": "scheduleinfo.csv",
    "buffer_assignment": "buffer-assignment.txt",
    "live_range": "live-range.txt",
}
"""File name ending of each part of a bundle, without the optional `.gz`."""

ChipName = Literal["v2", "v3", "v4", "v5e", "v5p", "v6e", "tpu7x"]
CHIP_NAMES: tuple[str, ...] = get_args(ChipName)
_CAPACITY_TAG = re.compile(r"\d+(?:KiB|MiB|GiB)\Z")
_UNIT_BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, slots=True)
class Bundle:
    """Where the parts of one compiled program lie; a part that is absent is None.

    `chip` and `capacity_tag` come from the file names: `resnet50.v5e.64MiB` is the model
    `resnet50` compiled for a v5e whose fast memory was set to 64 MiB. A file that names no chip has
    `chip` None.
    """

    name: str
    chip: str | None
    capacity_tag: str | None
    before: Path
    production: Path | None
    cycles: Path | None
    points: Path | None
    bufferinfo: Path | None
    allocinfo: Path | None
    scheduleinfo: Path | None
    buffer_assignment: Path | None
    live_range: Path | None

    @property
    def key(self) -> str:
        """The name the corpus lists it under: `NAME.CHIP[.64MiB]`."""
        parts = (self.name, self.chip, self.capacity_tag)
        return ".".join(part for part in parts if part is not None)


@dataclass(frozen=True, slots=True)
class ValueName:
    """How XLA names a value in its tables: `<81 while{3} (phi) @1>`; index () is the root."""

    value_id: int
    instruction: str
    index: tuple[int, ...]
    is_phi: bool

    def __str__(self) -> str:
        """As `Buffer.values` of a `Program` has it."""
        return f"{self.instruction}{{{','.join(map(str, self.index))}}}"


@dataclass(frozen=True, slots=True)
class BufferUse:
    """A use of a buffer: `instruction` at schedule `time` reads it as `operand`, at `index`."""

    time: int
    instruction: str
    operand: int
    index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BufferInfo:
    """A row of `bufferinfo`: a buffer the assignment considered.

    `benefit` is XLA's alternate-memory benefit (seconds per byte-like units of its sort order, 0
    where its picker states none); scoped rows are instructions' own scratch.
    """

    buffer_id: int
    name: ValueName | None
    label: str
    benefit: float
    size_bytes: int
    definition_time: int
    uses: tuple[BufferUse, ...]
    is_scoped: bool


@dataclass(frozen=True, slots=True)
class AllocationInfo:
    """A row of `allocinfo`: a block of fast memory; `end_time` is inclusive, as XLA prints it."""

    buffer_id: int
    size_bytes: int
    offset_bytes: int
    start_time: int
    end_time: int


@dataclass(frozen=True, slots=True)
class AssignedValue:
    """A value inside an allocation of the buffer assignment: `color` is its memory space."""

    name: ValueName
    color: int
    size_bytes: int
    offset_bytes: int
    shape: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """An allocation of the final buffer assignment; `kind` is the text after its size."""

    index: int
    size_bytes: int
    color: int
    kind: str
    values: tuple[AssignedValue, ...]


@dataclass(frozen=True, slots=True)
class LiveRangeTable:
    """XLA's flattened schedule and the inclusive `(start, end)` of every value, by its name.

    Keys are `instruction{index}` as XLA prints them (`while.5{1}`, `copy.2{}`).
    """

    end_time: int
    schedule: tuple[str, ...]
    ranges: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Placement:
    """Which leaves of an instruction's operands and output lay in fast memory.

    Strings of "0" and "1", one character per array leaf: operands in order (tuples flattened in
    pre-order), then the leaves of the output.
    """

    operands: str
    outputs: str

    @classmethod
    def of(
        cls, computation: HloComputation, instruction: HloInstruction, memory_space: int
    ) -> Placement:
        """As the layouts of a compiled module have it; `memory_space` is the fast one's number."""

        def bits(shape: Shape) -> str:
            layouts = (leaf.layout for _, leaf in leaves(shape))
            return "".join("01"[_is_in(layout, memory_space)] for layout in layouts)

        operands = (computation.instruction(name).shape for name in instruction.operands)
        return cls("".join(map(bits, operands)), bits(instruction.shape))


def _is_in(layout: Layout | None, memory_space: int) -> bool:
    return layout is not None and layout.memory_space == memory_space


@dataclass(frozen=True, slots=True)
class CyclePoint:
    """One compile of the program: what each instruction costs under that compile's placement.

    `cycles` are the compiler's own `estimated_cycles` by instruction name; `placements` hold only
    instructions with something in fast memory (all others: everything slow), and is None where
    the file states no placements at all (bundles made before placements were recorded).
    """

    setting: str
    cycles: Mapping[str, int]
    placements: Mapping[str, Placement] | None


@dataclass(frozen=True, slots=True)
class CompileMeta:
    """How a bundle was compiled: enough to make it again.

    `live_range_module` says to which module the stored live ranges belong: "before" (schedule
    identical to the before module) or "production".
    """

    chip: str
    clock_hz: float
    jax_version: str
    libtpu_version: str
    capacity_bytes: int
    fast_memory_space: int
    vmem_bytes: int | None
    command: str
    seconds: float
    live_range_module: str


@dataclass(frozen=True, slots=True)
class CycleTable:
    """`cycles.json`: the compiler's cycles with no, the real, and a huge fast memory.

    `huge` is None where that compile failed; `huge_failure` then says why. `meta` is None for
    bundles that do not state it.
    """

    unit: str
    none: CyclePoint
    production: CyclePoint
    production_size_bytes: int
    huge: CyclePoint | None
    huge_failure: str | None
    meta: CompileMeta | None


def bundle_of(path: Path) -> Bundle:
    """The bundle that a file is a part of.

    Of a part that lies there both plain and as `.gz`, it is the file named that counts.

    Raises `InputError` if the file is not named like a part, or the bundle lacks its `before.hlo`.
    """
    found = _key_and_part(path)
    if found is None:
        endings = ", ".join(f".{suffix}[.gz]" for suffix in PART_SUFFIXES.values())
        raise InputError(f"{path}: not a part of a bundle; such files end in {endings}")
    key, part = found
    named: dict[str, Any] = {part: path}
    return replace(bundle_in(path.parent, key), **named)


def is_part(path: Path) -> bool:
    """Whether a file is named like a part of a bundle."""
    return key_of(path) is not None


def key_of(path: Path) -> str | None:
    """`NAME.CHIP[.64MiB]` of a bundle's file, None if it is not named like a part."""
    found = _key_and_part(path)
    return None if found is None else found[0]


def sibling(path: Path, part: str) -> Path | None:
    """Another part (a key of `PART_SUFFIXES`) beside a bundle's file, None if it is not there.

    Unlike `bundle_of` it asks for no `before.hlo`; a file that is no part has no siblings.
    """
    key = key_of(path)
    return None if key is None else _part_path(path.parent, key, PART_SUFFIXES[part])


def bundle_in(directory: Path, key: str) -> Bundle:
    """The bundle whose files in `directory` begin with `key` (`NAME.CHIP[.64MiB]`)."""
    paths = {part: _part_path(directory, key, suffix) for part, suffix in PART_SUFFIXES.items()}
    before = paths.pop("before")
    if before is None:
        raise InputError(f"{directory}: no {key}.before.hlo.gz there; a bundle needs it")
    name, chip, tag = split_key(key)
    return Bundle(name=name, chip=chip, capacity_tag=tag, before=before, **paths)


def split_key(key: str) -> tuple[str, str | None, str | None]:
    """`NAME.CHIP[.64MiB]` as name, chip and capacity tag; what is absent is None."""
    parts = key.split(".")
    tag = parts.pop() if len(parts) > 1 and _CAPACITY_TAG.match(parts[-1]) else None
    chip = parts.pop() if len(parts) > 1 and parts[-1] in CHIP_NAMES else None
    return ".".join(parts), chip, tag


def parse_capacity_tag(tag: str) -> int:
    """Bytes of a tag such as `64MiB`; raises `InputError` on anything else."""
    if not _CAPACITY_TAG.match(tag):
        raise InputError(f"{tag!r} is not a size; write it like 64MiB")
    return int(tag[:-3]) * _UNIT_BYTES[tag[-3:]]


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except InputError as error:
        raise InputError(f"{error}; make the bundle again") from error


def read_allocinfo(path: Path) -> tuple[AllocationInfo, ...]:
    """The blocks of fast memory the production assignment made, in file order."""
    columns = ("buffer_id", "size", "offset", "start_time", "end_time")
    return tuple(
        AllocationInfo(*(row.integer(column) for column in columns)) for row in _rows(path, columns)
    )


def read_scheduleinfo(path: Path) -> tuple[str, ...]:
    """Instruction names in schedule order; position = the time the other tables speak of."""
    names: list[str] = []
    for row in _rows(path, ("time", "instruction_name")):
        if row.integer("time") != len(names):
            raise row.error("time", str(len(names)))
        names.append(row.text("instruction_name"))
    return tuple(names)


def read_bufferinfo(path: Path) -> tuple[BufferInfo, ...]:
    """The buffers the production assignment considered, in its order (rows may repeat)."""
    columns = (
        "buffer_id",
        "buffer_name",
        "alt_mem_benefit",
        "size",
        "definition_time",
        "use_times",
        "use_names",
        "is_scoped",
    )
    return tuple(_buffer_info(row) for row in _rows(path, columns))


def read_buffer_assignment(path: Path) -> tuple[Allocation, ...]:
    """The final buffer assignment: every allocation with its values, offsets and memory space."""
    allocations: list[tuple[int, int, int, str, list[AssignedValue]]] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.startswith("allocation "):
            allocations.append(_allocation_header(path, number, line))
        elif line.startswith(" value: "):
            if not allocations:
                raise _error(path, number, 1, line, "an allocation before its values")
            allocations[-1][4].append(_assigned_value(path, number, line))
        elif line.startswith(("Total bytes used", "Used values:")):
            break
    return tuple(
        Allocation(index, size_bytes, color, kind, tuple(values))
        for index, size_bytes, color, kind, values in allocations
    )


def read_live_range(path: Path) -> LiveRangeTable:
    """XLA's `HloLiveRange::ToString`: schedule and live ranges."""
    lines = _text(path).splitlines()
    header = re.match(r"HloLiveRange \(max (\d+)\):", lines[0] if lines else "")
    if header is None:
        raise _error(path, 1, 1, lines[0] if lines else "end of file", "HloLiveRange (max N):")
    schedule: list[str] = []
    ranges: dict[str, tuple[int, int]] = {}
    section = ""
    for number, line in enumerate(lines[1:], start=2):
        if not line.startswith("    "):
            section = line.strip()
        elif section == "InstructionSequence:":
            schedule.append(_matched(path, number, line, r" +\d+:(.+)", "time:instruction")[1])
        elif section == "BufferLiveRange:":
            found = _matched(path, number, line, r" +(.+):(-?\d+)-(\d+)", "value{index}:start-end")
            ranges[found[1]] = (int(found[2]), int(found[3]))
    return LiveRangeTable(end_time=int(header[1]), schedule=tuple(schedule), ranges=ranges)


def read_cycles(path: Path) -> CycleTable:
    """The compiler's cycles of the three compiles every bundle states.

    Raises `InputError`, naming the key, where the file is not of that form.
    """
    document = _json_object(path)
    placements = _optional_object(path, document, "placements")
    production_key = _production_key(path, document)
    none = _cycle_point(path, document, "no_fast_memory", placements)
    production = _cycle_point(path, document, production_key, placements)
    huge_cycles = document.get("fast_memory_1GiB")
    huge = (
        None
        if huge_cycles is None
        else _cycle_point(path, document, "fast_memory_1GiB", placements)
    )
    meta = _optional_object(path, document, "meta")
    return CycleTable(
        unit=str(document.get("unit", "cycles")),
        none=none,
        production=production,
        production_size_bytes=parse_capacity_tag(production_key.removeprefix("production_")),
        huge=huge,
        huge_failure=document.get("fast_memory_1GiB_failure"),
        meta=None if meta is None else _compile_meta(path, meta),
    )


def read_points(path: Path) -> tuple[CyclePoint, ...]:
    """Further compiles of the same program (`points.json.gz`), each a placement with cycles."""
    document = _json_object(path)
    extra = document.get("extra")
    if not isinstance(extra, list):
        raise InputError(f"{path}: key 'extra' is missing or no list; make the bundle again")
    points: list[CyclePoint] = []
    for position, entry in enumerate(extra):
        if not isinstance(entry, dict) or not isinstance(entry.get("setting"), str):
            raise InputError(f"{path}: extra[{position}] has no 'setting'; make the bundle again")
        setting = entry["setting"]
        renamed = {setting: entry.get("cycles")}
        points.append(_cycle_point(path, renamed, setting, {setting: entry.get("placements")}))
    return tuple(points)


# --- names and files -------------------------------------------------------------------------


def _key_and_part(path: Path) -> tuple[str, str] | None:
    plain = path.name.removesuffix(".gz")
    for part, suffix in PART_SUFFIXES.items():
        if plain.endswith("." + suffix):
            return plain.removesuffix("." + suffix), part
    return None


def _part_path(directory: Path, key: str, suffix: str) -> Path | None:
    for ending in (".gz", ""):
        path = directory / f"{key}.{suffix}{ending}"
        if path.exists():
            return path
    return None


def _error(path: Path, line: int, column: int, found: str, expected: str) -> InputError:
    shown = found if len(found) <= 80 else found[:77] + "..."
    location = SourceLocation(str(path), line, column)
    return InputError(f"{location}: found {shown!r}, expected {expected}; make the bundle again")


def _matched(path: Path, number: int, text: str, pattern: str, expected: str) -> re.Match[str]:
    match = re.fullmatch(pattern, text)
    if match is None:
        raise _error(path, number, 1, text.strip(), expected)
    return match


# --- tables ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    path: Path
    line: int
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        return self.cells[column]

    def integer(self, column: str) -> int:
        try:
            return int(self.cells[column])
        except ValueError as error:
            raise self.error(column, "an integer") from error

    def number(self, column: str) -> float:
        try:
            return float(self.cells[column])
        except ValueError as error:
            raise self.error(column, "a number") from error

    def error(self, column: str, expected: str) -> InputError:
        position = list(self.cells).index(column) + 1
        return _error(self.path, self.line, position, self.cells[column], f"{expected} ({column})")


csv.field_size_limit(2**31 - 1)
"""A buffer's uses are one cell, longer than the module's 128 KiB where they are thousands."""


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line of a table."""
    reader = csv.reader(io.StringIO(_text(path)))
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise _error(path, reader.line_num, 1, str(error), "cells between commas") from error


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[_Row]:
    """Rows of a table with exactly these columns; an error's column counts cells, from 1."""
    lines = _lines(path)
    _, header = next(lines, (1, []))
    if tuple(header) != columns:
        raise _error(path, 1, 1, ",".join(header) or "end of file", ",".join(columns))
    for number, cells in lines:
        if len(cells) != len(columns):
            expected = f"{len(columns)} cells"
            raise _error(path, number, len(cells), ",".join(cells), expected)
        yield _Row(path, number, dict(zip(columns, cells, strict=True)))


def _index(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


_VALUE_NAME = re.compile(
    r"<(?P<id>\d+) (?P<name>[^\s{]+)(?:\{(?P<index>[\d,]*)\})?"
    r"(?P<phi> \(phi\))?(?: @(?P<color>\d+))?>"
)


def _value_name(match: re.Match[str]) -> ValueName:
    return ValueName(
        value_id=int(match["id"]),
        instruction=match["name"],
        index=_index(match["index"] or ""),
        is_phi=match["phi"] is not None,
    )


def _buffer_info(row: _Row) -> BufferInfo:
    label = row.text("buffer_name")
    match = _VALUE_NAME.fullmatch(label)
    is_scoped = row.integer("is_scoped") == 1
    if match is None and not is_scoped:
        raise row.error("buffer_name", "<ID INSTRUCTION{INDEX}>")
    return BufferInfo(
        buffer_id=row.integer("buffer_id"),
        name=None if match is None else _value_name(match),
        label=label,
        benefit=row.number("alt_mem_benefit"),
        size_bytes=row.integer("size"),
        definition_time=row.integer("definition_time"),
        uses=_buffer_uses(row),
        is_scoped=is_scoped,
    )


_USE_TIME = re.compile(r"[0-9]{1,18}")
_USE_NAME = re.compile(r"(?P<name>\S+), operand (?P<operand>\d+)(?: \{(?P<index>[\d,]*)\})?")


def _buffer_uses(row: _Row) -> tuple[BufferUse, ...]:
    times = [text for text in row.text("use_times").split(";") if text]
    names = [text for text in row.text("use_names").split(";") if text]
    if len(times) != len(names):
        raise row.error("use_names", f"{len(times)} uses, one for each use time")
    uses: list[BufferUse] = []
    for time, text in zip(times, names, strict=True):
        match = _USE_NAME.fullmatch(text)
        if match is None or not _USE_TIME.fullmatch(time):
            raise row.error("use_names", "INSTRUCTION, operand N")
        index = _index(match["index"] or "")
        uses.append(BufferUse(int(time), match["name"], int(match["operand"]), index))
    return tuple(uses)


_ALLOCATION = re.compile(
    r"allocation (?P<index>\d+): size (?P<size>\d+)(?:, color (?P<color>\d+))?(?P<kind>.*?):?"
)
_ASSIGNED = re.compile(
    r" value: (?P<value><.*>) \(size=(?P<size>\d+),offset=(?P<offset>\d+)\): (?P<shape>.*)"
)


def _allocation_header(
    path: Path, number: int, line: str
) -> tuple[int, int, int, str, list[AssignedValue]]:
    found = _ALLOCATION.fullmatch(line)
    if found is None:
        raise _error(path, number, 1, line, "allocation N: size BYTES, ...")
    kind = found["kind"].removeprefix(", ")
    return int(found["index"]), int(found["size"]), int(found["color"] or 0), kind, []


def _assigned_value(path: Path, number: int, line: str) -> AssignedValue:
    found = _ASSIGNED.fullmatch(line)
    name = None if found is None else _VALUE_NAME.fullmatch(found["value"])
    if found is None or name is None or name["color"] is None:
        raise _error(path, number, 1, line, "value: <ID NAME @COLOR> (size=N,offset=N): SHAPE")
    return AssignedValue(
        name=_value_name(name),
        color=int(name["color"]),
        size_bytes=int(found["size"]),
        offset_bytes=int(found["offset"]),
        shape=found["shape"],
    )


# --- cycles ----------------------------------------------------------------------------------


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise _error(path, error.lineno, error.colno, error.msg, "a JSON object") from error
    # Of integers with too many digits JSON makes a plain ValueError.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}; make the bundle again") from error
    if not isinstance(document, dict):
        raise _error(path, 1, 1, type(document).__name__, "a JSON object")
    return document


def _optional_object(path: Path, document: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    value = document.get(key)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{path}: key {key!r} is no object; make the bundle again")
    return value


def _production_key(path: Path, document: Mapping[str, Any]) -> str:
    keys = [key for key in document if re.fullmatch(r"production_\d+(?:KiB|MiB|GiB)", key)]
    if len(keys) != 1:
        raise InputError(f"{path}: {len(keys)} keys like production_112MiB, expected exactly one")
    return keys[0]


def _cycle_point(
    path: Path, document: Mapping[str, Any], key: str, placements: Mapping[str, Any] | None
) -> CyclePoint:
    cycles = document.get(key)
    if not isinstance(cycles, dict) or not all(type(value) is int for value in cycles.values()):
        raise InputError(f"{path}: key {key!r} must map instruction names to integer cycles")
    placed = None if placements is None else placements.get(key)
    if placements is not None and not isinstance(placed, dict):
        raise InputError(f"{path}: no placements for {key!r}; make the bundle again")
    return CyclePoint(setting=key, cycles=cycles, placements=_placements(path, key, placed))


def _placements(
    path: Path, key: str, placed: Mapping[str, Any] | None
) -> Mapping[str, Placement] | None:
    if placed is None:
        return None
    result: dict[str, Placement] = {}
    for name, text in placed.items():
        if not isinstance(text, str) or not re.fullmatch(r"[01]*>[01]*", text):
            raise InputError(f"{path}: placement of {name!r} under {key!r} is {text!r}, not 01>1")
        operands, _, outputs = text.partition(">")
        result[name] = Placement(operands, outputs)
    return result


class _MetaFile(BaseModel):
    """Schema of `meta`; what else stands there is for people."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    chip: ChipName
    clock_hz: float = Field(gt=0)
    jax_version: str
    libtpu_version: str
    capacity_bytes: int = Field(ge=0)
    fast_memory_space: int = Field(gt=0)
    vmem_bytes: int | None = Field(ge=0)
    command: str
    seconds: float = Field(ge=0)
    live_range_module: Literal["before", "production"]


def _compile_meta(path: Path, meta: Mapping[str, Any]) -> CompileMeta:
    missing = [field for field in _MetaFile.model_fields if field not in meta]
    if missing:
        raise InputError(f"{path}: meta lacks {', '.join(missing)}; make the bundle again")
    try:
        return CompileMeta(**_MetaFile.model_validate(meta).model_dump())
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InputError(
            f"{path}: meta.{wrong['loc'][0]} is {wrong['input']!r:.80}: {wrong['msg']}; make the "
            "bundle again"
        ) from error
