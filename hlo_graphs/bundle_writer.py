"""Writes a bundle out of the compiler's dumps: cleaned, joined by name, compressed, atomic.

Cleaning drops what says nothing about memory or time and would carry machine paths: the tables of
source files and stack frames, all metadata but `op_name`, and most of `backend_config`
(`docs/extract.md` lists what stays). Compiles are joined by instruction name, and only where
opcode, operand count and all shapes agree, memory spaces apart: another setting may have changed
what the name means.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hlo_graphs.bundle import PART_SUFFIXES, Placement
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule, Shape
from hlo_graphs.parser import parse_module


@dataclass(frozen=True, slots=True)
class Dump:
    """The texts one compile left behind; None where the compiler printed none."""

    setting: str
    options: tuple[tuple[str, str], ...]
    seconds: float
    before: str | None
    production: str | None
    buffer_assignment: str | None
    live_range: str | None
    bufferinfo: str | None
    allocinfo: str | None
    scheduleinfo: str | None


@dataclass(frozen=True, slots=True)
class BundleSource:
    """All compiles of one program and how they came about.

    `vmem_bytes` is the fast memory that was asked for (None: the chip's own), `capacity_bytes`
    what the assignment had of it. Extra compiles are further points for cost models.
    """

    name: str
    chip: str
    vmem_bytes: int | None
    capacity_bytes: int
    clock_hz: float
    fast_memory_space: int
    command: str
    jax_version: str
    libtpu_version: str
    production: Dump
    no_fast_memory: Dump
    huge: Dump | None
    huge_failure: str | None
    extra: tuple[Dump, ...]

    @property
    def key(self) -> str:
        """`NAME.CHIP[.64MiB]`, what the bundle's files begin with."""
        tag = "" if self.vmem_bytes is None else f".{self.vmem_bytes // 2**20}MiB"
        return f"{self.name}.{self.chip}{tag}"


def write_bundle(source: BundleSource, output_dir: Path) -> str:
    """Writes all files of the bundle, in place of one of the same name; returns its key.

    Every part is written beside its place and renamed. `before.hlo`, which makes a bundle visible,
    is the first to go and the last to come: an interruption leaves no bundle, never a mixture of
    two. The same dumps give the same bytes.

    Raises `InputError` if the production compile left no module behind.
    """
    parts = _parts(source)
    output_dir.mkdir(parents=True, exist_ok=True)
    finals = {part: output_dir / _file_name(source.key, part) for part in parts}
    temporaries = {part: final.with_name(f".{final.name}.tmp") for part, final in finals.items()}
    try:
        for part, text in parts.items():
            temporaries[part].write_bytes(_data(finals[part], text))
        for suffix in PART_SUFFIXES.values():  # before.hlo is the first
            for ending in ("", ".gz"):
                (output_dir / f"{source.key}.{suffix}{ending}").unlink(missing_ok=True)
        for part, final in finals.items():
            os.replace(temporaries[part], final)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
    return source.key


def clean_hlo(text: str) -> str:
    """HLO text without source tables, and with metadata and backend_config reduced."""
    text = "\n".join(_without_tables(text)) + "\n"
    return _short_configs(_METADATA.sub(_short_metadata, text))


def instruction_points(
    module: HloModule, reference: HloModule, fast_memory_space: int
) -> tuple[dict[str, int], dict[str, str]]:
    """Cycles and placements of a compiled module, by the names of the reference module.

    Returns the compiler's `estimated_cycles` of each instruction that states them, and for each
    instruction with an array in fast memory which leaves of its operands and output those are
    (`"0110>1"`). Instructions inside fusions are part of the fusion. Only instructions that mean
    the same in both modules appear.
    """
    known = {i.name: (c, i) for c, i in _scheduled_instructions(reference)}
    cycles: dict[str, int] = {}
    placements: dict[str, str] = {}
    for computation, instruction in _scheduled_instructions(module):
        same = known.get(instruction.name)
        if same is None or _signature(computation, instruction) != _signature(*same):
            continue
        stated = _estimated_cycles(instruction)
        if stated is not None:
            cycles[instruction.name] = stated
        placed = Placement.of(computation, instruction, fast_memory_space)
        if "1" in placed.operands + placed.outputs:
            placements[instruction.name] = f"{placed.operands}>{placed.outputs}"
    return cycles, placements


# --- parts -----------------------------------------------------------------------------------


def _parts(source: BundleSource) -> dict[str, str]:
    """Text of every part, in the order in which they are put in place."""
    production, before = source.production.production, source.production.before
    if production is None or before is None:
        raise InputError(f"{source.key}: the compiler dumped no scheduled module")
    before, production = clean_hlo(before), clean_hlo(production)
    reference = parse_module(before, source.key)
    live_range, live_range_module = _live_range(source)
    document = _cycles_document(source, reference, production, live_range_module)
    parts = {"production": production, "cycles": _json_text(document)}
    optional = {
        "bufferinfo": source.production.bufferinfo,
        "allocinfo": source.production.allocinfo,
        "scheduleinfo": source.production.scheduleinfo,
        "buffer_assignment": source.production.buffer_assignment,
        "live_range": live_range,
    }
    parts |= {part: text for part, text in optional.items() if text is not None}
    if source.extra:
        parts["points"] = _json_text({"extra": _extra_points(source, reference)})
    return {**parts, "before": before}


def _live_range(source: BundleSource) -> tuple[str | None, str]:
    """XLA's live ranges of the before module if a compile printed them, and whose they are.

    The compile without memory-space assignment schedules the before module as it is, so its live
    ranges are those; its printed schedule must equal the one the assignment printed.
    """
    own, plain = source.production, source.no_fast_memory
    if plain.live_range is not None and own.scheduleinfo is not None:
        rows = own.scheduleinfo.splitlines()[1:]
        schedule = [row.partition(",")[2] for row in rows]
        listed = re.findall(r"^    \d+:(.+)$", plain.live_range, re.MULTILINE)
        if listed == schedule:
            return _without_stacks(plain.live_range), "before"
    text = own.live_range
    return (None if text is None else _without_stacks(text)), "production"


def _without_stacks(text: str) -> str:
    return text.partition("  Stack trace breakdown")[0]


def _cycles_document(
    source: BundleSource, reference: HloModule, production: str, live_range_module: str
) -> dict[str, Any]:
    size = f"production_{source.capacity_bytes // 2**20}MiB"
    compiles = {"no_fast_memory": source.no_fast_memory.production, size: production}
    if source.huge is not None:
        compiles["fast_memory_1GiB"] = source.huge.production
    document: dict[str, Any] = {
        "unit": f"cycles at {source.clock_hz / 1e9:g} GHz, the compiler's own estimated_cycles "
        "per instruction"
    }
    placements: dict[str, Mapping[str, str]] = {}
    for key, text in compiles.items():
        document[key], placements[key] = _points_of(source, reference, text)
    if source.huge is None:
        document["fast_memory_1GiB"] = None
        document["fast_memory_1GiB_failure"] = source.huge_failure
    return {**document, "placements": placements, "meta": _meta(source, live_range_module)}


def _points_of(
    source: BundleSource, reference: HloModule, text: str | None
) -> tuple[dict[str, int], dict[str, str]]:
    if text is None:
        return {}, {}
    module = parse_module(clean_hlo(text), source.key)
    return instruction_points(module, reference, source.fast_memory_space)


def _meta(source: BundleSource, live_range_module: str) -> dict[str, Any]:
    dumps = [source.production, source.no_fast_memory, *source.extra]
    dumps += [] if source.huge is None else [source.huge]
    return {
        "chip": source.chip,
        "clock_hz": source.clock_hz,
        "jax_version": source.jax_version,
        "libtpu_version": source.libtpu_version,
        "capacity_bytes": source.capacity_bytes,
        "fast_memory_space": source.fast_memory_space,
        "vmem_bytes": source.vmem_bytes,
        "command": source.command,
        "seconds": round(sum(dump.seconds for dump in dumps), 1),
        "live_range_module": live_range_module,
        "settings": {dump.setting: dict(dump.options) for dump in dumps},
    }


def _extra_points(source: BundleSource, reference: HloModule) -> list[dict[str, Any]]:
    points = []
    for dump in source.extra:
        cycles, placements = _points_of(source, reference, dump.production)
        points.append({"setting": dump.setting, "cycles": cycles, "placements": placements})
    return points


def _json_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=0, separators=(",", ":")) + "\n"


def _file_name(key: str, part: str) -> str:
    suffix = PART_SUFFIXES[part]
    return f"{key}.{suffix}" if part == "cycles" else f"{key}.{suffix}.gz"


def _data(path: Path, text: str) -> bytes:
    data = text.encode("utf-8")
    if path.suffix != ".gz":
        return data
    # No time and no name inside: the same text gives the same bytes.
    return gzip.compress(data, mtime=0)


# --- cleaning --------------------------------------------------------------------------------

_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_METADATA = re.compile(r', metadata=\{(?:[^{}"]|"(?:[^"\\]|\\.)*"|\{[^{}]*\})*\}')
_OP_NAME = re.compile(r'op_name="(?:[^"\\]|\\.)*"')
_BACKEND_CONFIG = ", backend_config="
_DECODER = json.JSONDecoder()


def _without_tables(text: str) -> Iterator[str]:
    inside_table = False
    for line in text.splitlines():
        if line in _TABLES:
            inside_table = True
        elif inside_table and (not line or line[0].isdigit()):
            continue
        else:
            inside_table = False
            yield line


def _short_configs(text: str) -> str:
    """The text with every `backend_config` object reduced; one may span several lines.

    Custom calls may have configs that are no JSON; they stay as they are.
    """
    pieces: list[str] = []
    done = 0
    while (start := text.find(_BACKEND_CONFIG + "{", done)) >= 0:
        opening = start + len(_BACKEND_CONFIG)
        try:
            config, end = _DECODER.raw_decode(text, opening)
        except (ValueError, RecursionError):
            pieces.append(text[done:opening])
            done = opening
            continue
        kept = _short_config(config)
        shown = _BACKEND_CONFIG + json.dumps(kept, separators=(",", ":")) if kept else ""
        pieces += [text[done:start], shown]
        done = end
    return "".join([*pieces, text[done:]])


def _short_metadata(match: re.Match[str]) -> str:
    op_name = _OP_NAME.search(match[0])
    return "" if op_name is None else f", metadata={{{op_name[0]}}}"


def _short_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that say something about time, memory, aliasing or trip counts."""
    window = config.get("window_config") or {}
    custom = config.get("custom_call_config") or {}
    kept = {
        "known_trip_count": config.get("known_trip_count"),
        "window_config": {k: v for k, v in window.items() if k == "estimated_cycles"},
        "custom_call_config": {k: v for k, v in custom.items() if k == "cost_estimate"},
        "used_scoped_memory_configs": config.get("used_scoped_memory_configs"),
        "aliasing_operands": _nonempty_lists(config.get("aliasing_operands")),
        "integer_config": config.get("integer_config"),
    }
    return {key: value for key, value in kept.items() if value}


def _nonempty_lists(aliasing: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return aliasing if aliasing and aliasing.get("lists") else None


# --- joining ---------------------------------------------------------------------------------


def _scheduled_instructions(module: HloModule) -> Iterator[tuple[HloComputation, HloInstruction]]:
    """Instructions outside of fusions (and of the reducers inside them), in text order."""
    inner: set[str] = set()
    for computation in module.computations.values():
        for instruction in computation.instructions:
            if instruction.opcode not in _CONTROL_FLOW:
                inner.update(instruction.called_computations)
    for computation in module.computations.values():
        if computation.name not in inner:
            for instruction in computation.instructions:
                yield computation, instruction


_CONTROL_FLOW = frozenset({"while", "conditional", "call"})


def _signature(
    computation: HloComputation, instruction: HloInstruction
) -> tuple[str, Shape, tuple[Shape, ...]]:
    operands = tuple(
        _plain_shape(computation.instruction(name).shape) for name in instruction.operands
    )
    return instruction.opcode, _plain_shape(instruction.shape), operands


def _plain_shape(shape: Shape) -> Shape:
    """The shape with all of it in the default memory."""
    layout = None if shape.layout is None else replace(shape.layout, memory_space=0)
    elements = tuple(_plain_shape(element) for element in shape.elements)
    return replace(shape, layout=layout, elements=elements)


def _estimated_cycles(instruction: HloInstruction) -> int | None:
    raw = instruction.attributes.get("backend_config")
    if raw is None or "estimated_cycles" not in raw:
        return None
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):  # a custom call's own config, see `_short_configs`
        return None
    return int(config["window_config"]["estimated_cycles"])
