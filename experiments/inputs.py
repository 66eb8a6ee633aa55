"""Loading what a user names on the command line: programs in all their forms, and maps."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from experiments.sizes import format_size
from hlo_graphs import bundle as bundles
from hlo_graphs import corpus
from hlo_graphs.bundle import Bundle
from hlo_graphs.calibration import calibrated_times
from hlo_graphs.chips import CHIPS, Chip, find_chip
from hlo_graphs.errors import InputError, MissingExtraError
from hlo_graphs.hlo import HloModule
from hlo_graphs.lower import Lowered, LoweringOptions, lower
from hlo_graphs.parser import parse_module, require_scheduled
from hlo_graphs.program import Program
from hlo_graphs.text_files import read_text
from hlo_graphs.times import Times, analytic_times
from malloc_game.memory_map import MemoryMap, from_document, parsed
from malloc_game.production import read_production_map
from malloc_game.validate import validate

DEFAULT_CHIP = "v5e"

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class LoadedProgram:
    """A program with what is known beside it.

    Attributes:
      program: the problem.
      lowered: how it came from its module; None for a Program that was given as such.
      production_map: XLA's own map over the same program, None if not known.
      notes: why production is not compared, or is compared by times that it was not made for,
        where nobody asked for that.
    """

    program: Program
    lowered: Lowered | None = None
    production_map: MemoryMap | None = None
    notes: tuple[str, ...] = ()


def load_program(
    source: str | Path | Program | LoadedProgram,
    *,
    chip: str | None = None,
    capacity_bytes: int | None = None,
    times: str | None = None,
    busy: str = "bytes",
    production: str | Path | None = None,
    cycles: str | Path | None = None,
) -> LoadedProgram:
    """Loads a program, with all that is known beside it.

    Args:
      source: a corpus name, a bundle's `.before.hlo.gz`, any scheduled HLO file, a Program JSON
        file, `-` for standard input, a `Program`; a `LoadedProgram` comes back as it is.
      chip: chip name or chip file; the bundle's own, else that of the cycles, else v5e, if None.
      capacity_bytes: another fast memory than the chip's.
      times: "analytic" or "calibrated"; the latter where cycles are known if None.
      busy: `LoweringOptions.busy`: which part of a slow access keeps the bus busy.
      production: production's compiled module, `NAME.production.hlo[.gz]`, if it is not beside the
        program; its buffer assignment must lie beside it.
      cycles: the compiler's cycles, if they are not beside the program; the points beside them
        count, not those beside the program.

    Raises:
      InputError: naming the file, the place and the remedy.
    """
    if isinstance(source, LoadedProgram):
        return source
    given = {"chip": chip, "times": times, "production": production, "cycles": cycles}
    if isinstance(source, Program):
        return _as_given(source, capacity_bytes, given)
    bundle = bundle_beside(str(source))
    text = read_text(source if bundle is None else bundle.before)
    if text.lstrip().startswith("{"):
        return _as_given(_program_json(text, str(source)), capacity_bytes, given)
    machine = find_chip(chip or _compiled_for(bundle, cycles) or DEFAULT_CHIP)
    if production is not None:
        _check_same_compile(Path(production), bundle, machine, cycles)
    files = _files(bundle, source, machine, production, cycles)
    try:
        loaded = _from_hlo(text, str(source), files, machine, capacity_bytes, times, busy)
    except RecursionError as error:
        raise InputError(
            f"{source}: computations call each other too deeply to be followed; inline some"
        ) from error
    if cycles is not None:
        _check_cycles(loaded, Path(cycles))
    if production is not None and loaded.production_map is None:
        raise InputError(f"{production}: {loaded.notes[-1]}; leave out --production or --capacity")
    if production is not None or cycles is not None:
        _check_production(loaded, files.production, cycles)
    return loaded


def has_cycles(source: str) -> bool:
    """Whether the compiler's cycles lie beside a program, so that its times may be calibrated.

    Raises:
      InputError: if there is no such program.
    """
    bundle = bundle_beside(source)
    return bundle is not None and bundle.cycles is not None


def is_program_document(path: Path) -> bool:
    """Whether a file holds a `Program`, not HLO text.

    Raises:
      InputError: if it cannot be read.
    """
    return read_text(path).lstrip().startswith("{")


def need_extra(module: str, extra: str, needed_for: str) -> None:
    """Raises MissingExtraError if an optional package is not installed."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(extra, needed_for)


def load_map(path: Path, program: Program) -> MemoryMap:
    """A memory map of a program: that `solve -o` wrote, or one that does not say what it is of.

    Raises:
      InputError: on anything else, a map of another program too.
    """
    text = read_text(path)
    try:
        document = parsed(text)
        memory_map = from_document(document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    result = document.get("result")
    if isinstance(result, dict):
        made_for = result.get("program_digest", program.structure_digest)
        if made_for != program.structure_digest:
            names = f"{result.get('program')}, not for {program.name}"
            raise InputError(f"{path}: is a map for {names}: their steps or tensors differ")
    return memory_map


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """The one object (`dict`) or `list` in a file. Raises InputError on anything else."""
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise InputError(f"{place}: not JSON: {error.msg}") from error
    # An integer of thousands of digits, or lists in lists in lists.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, kind):
        raise InputError(f"{path}: holds a {type(document).__name__}, not a {kind.__name__}")
    return document


@dataclass(frozen=True)
class _Files:
    """What may lie beside a module: each a path or None; `chip` is the one it was compiled for."""

    name: str
    chip: str | None
    production: Path | None
    cycles: Path | None
    bufferinfo: Path | None
    allocinfo: Path | None
    notes: tuple[str, ...] = ()


def bundle_beside(source: str) -> Bundle | None:
    """The bundle a source names: a corpus program, or one of a bundle's own files."""
    if not source:
        raise InputError("no program is named: give a corpus name, a file, or -")
    path = Path(source)
    is_there = path.exists() and not path.is_dir()  # A folder may be called like a program.
    if source == "-" or (is_there and not bundles.is_part(path)):
        return None
    return bundles.bundle_of(path) if is_there else corpus.bundle(source)


def _compiled_for(bundle: Bundle | None, cycles: str | Path | None) -> str | None:
    """The chip that what lies beside a program was compiled for."""
    if bundle is not None and bundle.chip is not None:
        return bundle.chip
    meta = None if cycles is None else bundles.read_cycles(Path(cycles)).meta
    return None if meta is None else meta.chip


def _check_same_compile(
    production: Path, bundle: Bundle | None, machine: Chip, cycles: str | Path | None
) -> None:
    """A map for less memory is valid in more, and compared with it production looks slow."""
    key = bundles.key_of(production)
    if key is None:
        return
    _, chip, tag = bundles.split_key(key)
    beside = None if bundle is None else bundle.before
    memory = beside if cycles is None else cycles
    memory_key = None if memory is None else bundles.key_of(Path(memory))
    expected_tag = None if memory_key is None else bundles.split_key(memory_key)[2]
    is_other_chip = chip is not None and machine.name in CHIPS and chip != machine.name
    if is_other_chip or (tag != expected_tag and (memory is None or memory_key is not None)):
        raise InputError(
            f"{production}: was compiled for {chip or machine.name}{_sized(tag)}, the program "
            f"is for {machine.name}{_sized(expected_tag)}: its map is no answer there; give the "
            "--cycles of the same compile, or leave it out"
        )


def _sized(tag: str | None) -> str:
    return "" if tag is None else f" with {tag} of memory"


def _files(
    bundle: Bundle | None,
    source: str | Path,
    machine: Chip,
    production: str | Path | None,
    cycles: str | Path | None,
) -> _Files:
    given_production = None if production is None else Path(production)
    given_cycles = None if cycles is None else Path(cycles)
    if bundle is None:
        name = "stdin" if str(source) == "-" else lone_name(Path(source))
        return _Files(name, None, given_production, given_cycles, None, None)
    is_its_chip = bundle.chip in (None, machine.name)
    is_left_out = not is_its_chip and given_production is None and bundle.production is not None
    return _Files(
        name=bundle.key,
        chip=bundle.chip,
        # What another chip's compiler decided is no answer on this one.
        production=given_production or (bundle.production if is_its_chip else None),
        cycles=given_cycles or bundle.cycles,
        bufferinfo=bundle.bufferinfo if is_its_chip else None,
        allocinfo=bundle.allocinfo if is_its_chip else None,
        notes=(f"production's map is for {bundle.chip}: not compared",) if is_left_out else (),
    )


def _from_hlo(
    text: str,
    path: str,
    files: _Files,
    machine: Chip,
    capacity_bytes: int | None,
    times: str | None,
    busy: str,
) -> LoadedProgram:
    if times not in (None, "analytic", "calibrated"):
        raise InputError(f"unknown times {times!r}: use analytic or calibrated")
    if times == "calibrated" and files.cycles is None:
        raise InputError(
            f"{path}: no compiler cycles beside it: give --cycles, or use --times analytic"
        )
    module = require_scheduled(_parsed(text, path))
    cycles = None if files.cycles is None else bundles.read_cycles(files.cycles)
    options = LoweringOptions(
        files.name, capacity_bytes=_native_capacity(machine, files.chip, cycles), busy=busy
    )
    lowered = lower(
        module,
        machine,
        _times(module, machine, cycles, files, times),
        options,
        () if files.bufferinfo is None else bundles.read_bufferinfo(files.bufferinfo),
        () if files.allocinfo is None else bundles.read_allocinfo(files.allocinfo),
    )
    program, production_map = lowered.program, _production_map(lowered, files.production)
    notes = list(files.notes)
    if capacity_bytes is not None:
        program = program.with_capacity(capacity_bytes)
        if production_map is not None and capacity_bytes != lowered.program.capacity_bytes:
            # It was made for another memory: comparing with it would mean nothing.
            production_map = None
            made_for = format_size(lowered.program.capacity_bytes)
            notes.append(f"production's map is for {made_for} of fast memory: not compared")
    if production_map is not None and cycles is None and times is None:
        notes.append(
            "no compiler cycles beside it: times are a roofline's, for which production's map "
            "was not made"
        )
    assumed = sum(not loop.trips_known for loop in program.loops)
    if assumed:
        notes.append(
            f"loops whose trip count is not known: {assumed}; times are for "
            f"{options.default_trip_count} trips of each"
        )
    return LoadedProgram(program, lowered, production_map, tuple(notes))


@lru_cache(maxsize=2)
def _parsed(text: str, path: str) -> HloModule:
    """The module; a program and production's are kept, to be loaded again with other times."""
    return parse_module(text, path)


def _times(
    module: HloModule,
    machine: Chip,
    cycles: bundles.CycleTable | None,
    files: _Files,
    times: str | None,
) -> Times:
    """The cost model that was asked for; by default the compiler's figures where known."""
    if cycles is None or times == "analytic":
        return analytic_times(module, machine)
    beside = None if files.cycles is None else bundles.sibling(files.cycles, "points")
    points = () if beside is None else bundles.read_points(beside)
    return calibrated_times(module, cycles, machine, points)


def _native_capacity(
    machine: Chip, compiled_for: str | None, cycles: bundles.CycleTable | None
) -> int:
    """What production had for tensors: the compile's own figure where the bundle states it."""
    if cycles is not None and cycles.meta is not None:
        compiled_for = compiled_for or cycles.meta.chip
    if cycles is None or compiled_for not in (None, machine.name):
        return machine.assignable_bytes
    if cycles.meta is not None:
        return cycles.meta.capacity_bytes
    return cycles.production_size_bytes


def _production_map(lowered: Lowered, production: Path | None) -> MemoryMap | None:
    """Production's map, with the addresses that lie beside its module."""
    if production is None:
        return None
    module = _parsed(read_text(production), str(production))
    assignment = bundles.sibling(production, "buffer_assignment")
    if assignment is None:
        key = bundles.key_of(production) or "NAME"
        raise InputError(
            f"{production}: no {key}.buffer-assignment.txt.gz beside {key}.production.hlo.gz; the "
            "addresses are in there"
        )
    return read_production_map(lowered, module, bundles.read_buffer_assignment(assignment))


def _check_cycles(loaded: LoadedProgram, cycles: Path) -> None:
    """Whoever pairs files by hand may mistake them: all that has cycles must be there."""
    assert loaded.lowered is not None
    computations = loaded.lowered.module.computations.values()
    there = {instruction.name for c in computations for instruction in c.instructions}
    stated = bundles.read_cycles(cycles).none.cycles
    missing = [name for name in stated if name not in there]
    if missing:
        raise InputError(
            f"{cycles}: not the cycles of {loaded.program.name}: {len(missing)} of {len(stated)} "
            f"instructions are not in it, the first: {missing[0]}"
        )


def _check_production(
    loaded: LoadedProgram, production: Path | None, cycles: str | Path | None
) -> None:
    """Likewise: production's map must at least be a valid one, in the memory the cycles are for."""
    found = loaded.production_map
    broken = () if found is None else validate(loaded.program, found)
    if broken:
        memory = "" if cycles is None else f" in the memory that {cycles} is for"
        raise InputError(
            f"{production}: no answer to {loaded.program.name}{memory}: {len(broken)} violations, "
            f"the first: {broken[0]}"
        )


def _program_json(text: str, path: str) -> Program:
    try:
        return Program.from_json(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _as_given(
    program: Program, capacity_bytes: int | None, given: Mapping[str, object]
) -> LoadedProgram:
    """A finished Program: its chip and its times are in it, only its capacity may be changed."""
    useless = [name for name, value in given.items() if value is not None]
    if useless:
        raise InputError(
            f"{program.name} is a Program already: its times on {program.machine.chip} are in it; "
            f"give its HLO instead to choose {', '.join(useless)}"
        )
    if capacity_bytes is None:
        return LoadedProgram(program)
    return LoadedProgram(program.with_capacity(capacity_bytes))


def lone_name(path: Path) -> str:
    """What the program of a file without a bundle is called: the file's name, to the first dot."""
    name = path.name.lstrip(".").split(".")[0] or path.name
    return name.encode(errors="replace").decode()  # A file's name may be no text.
