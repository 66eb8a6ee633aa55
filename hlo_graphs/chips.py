"""Accelerator chips: how fast they compute, how fast their memories are, how much fits.

One `Chip` is one *device* as the compiler sees it. On v5p that is a chip, whose two tensor cores
work as one ("megacore"): their figures are added. On v4, as the `tpu` extra compiles for it
(topology v4:2x2x1), it is one tensor core, with half of the chip's bandwidth and CMEM. *Slow
memory* is HBM; *fast memory* is the scratchpad the compiler assigns tensors to: VMEM, or CMEM on
v4. Every figure of the table carries its source; `docs/times.md` prints them. A user's own chip
comes from a TOML or JSON file (`read_chip`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hlo_graphs.errors import InputError, did_you_mean

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chip:
    """What the cost model and the memory map need to know about one device.

    Attributes:
      name: short name, as in `--chip v5e`.
      clock_hz: frequency of the cycles that the compiler's `estimated_cycles` count.
      peak_flops_per_second: matrix units, bf16 operands.
      f32_factor: f32 matrix speed over bf16 (several bf16 passes per f32 product).
      int8_factor: int8 matrix speed over bf16.
      vector_flops_per_second: everything that is not a matrix product.
      transcendentals_per_second: exponentials, logarithms and the like.
      slow_bytes_per_second: slow memory's bandwidth, reads and writes together.
      fast_read_bytes_per_second: fast memory's read bandwidth.
      fast_write_bytes_per_second: fast memory's write bandwidth.
      fast_capacity_bytes: whole fast memory.
      reserved_bytes: the part of it set aside for the instructions' own scratch.
      alignment_bytes: offsets in fast memory are multiples of it.
      fast_memory_space: the `S(n)` that marks fast memory in layouts.
      sources: (field name, where its number comes from), one per number.
    """

    name: str
    clock_hz: float
    peak_flops_per_second: float
    f32_factor: float
    int8_factor: float
    vector_flops_per_second: float
    transcendentals_per_second: float
    slow_bytes_per_second: float
    fast_read_bytes_per_second: float
    fast_write_bytes_per_second: float
    fast_capacity_bytes: int
    reserved_bytes: int
    alignment_bytes: int
    fast_memory_space: int
    sources: tuple[tuple[str, str], ...] = ()

    @property
    def assignable_bytes(self) -> int:
        """Fast memory left for tensors, a multiple of the alignment."""
        left_bytes = self.fast_capacity_bytes - self.reserved_bytes
        return left_bytes - left_bytes % self.alignment_bytes

    def matrix_flops_per_second(self, element_type: str) -> float:
        """Peak of the matrix units on operands of an HLO element type."""
        if element_type in _INTEGER_TYPES:
            return self.peak_flops_per_second * self.int8_factor
        if element_type in _WIDE_TYPES:
            return self.peak_flops_per_second * self.f32_factor
        return self.peak_flops_per_second

    def seconds(self, cycles: float) -> float:
        """Length of `cycles` of the compiler's estimates."""
        return cycles / self.clock_hz


_INTEGER_TYPES = frozenset({"s8", "u8", "s4", "u4", "s2", "u2", "pred"})
_WIDE_TYPES = frozenset({"f32", "f64", "c64", "c128", "s32", "u32", "s64", "u64"})


_TPU_INFO = "JAX 0.10.2, jax/_src/pallas/mosaic/tpu_info.py"
_CLOUD = "docs.cloud.google.com/tpu/docs"
_LANES = (
    "assumed: 8 x 128 lanes at clock_hz, 4 arithmetic slots, 1/4 transcendental, 3 vector loads "
    "and 1 store a cycle (three loads make the 22 x HBM that is commonly stated for v5e)"
)
_LANE_FIELDS = (
    "vector_flops_per_second",
    "transcendentals_per_second",
    "fast_read_bytes_per_second",
    "fast_write_bytes_per_second",
)
_COMMON_SOURCES = {
    **dict.fromkeys(_LANE_FIELDS, _LANES),
    "f32_factor": "assumed: at the default precision an f32 product is one bf16 pass",
    "alignment_bytes": "greatest common divisor of all offsets in the compiler's assignment "
    "tables (1,594 allocations of six v5e programs, 1,100 on the other chips); sizes are "
    "multiples of 512",
    "reserved_bytes": "compiler option xla_tpu_scoped_vmem_limit_kib, default 16384",
}


def _chip(
    name: str,
    *,
    cores: int,
    clock_hz: float,
    peak_flops_per_second: float,
    int8_factor: float,
    slow_bytes_per_second: float,
    fast_mib: int,
    reserved_mib: int,
    fast_memory_space: int,
    sources: Mapping[str, str],
) -> Chip:
    """A chip whose vector units and scratchpad are those of `cores` tensor cores.

    Each has 8 x 128 lanes of 4 bytes: four arithmetic slots; three vector loads and one vector
    store a cycle; one transcendental in four cycles.
    """
    lanes_per_second = cores * 8 * 128 * clock_hz
    return Chip(
        name=name,
        clock_hz=clock_hz,
        peak_flops_per_second=peak_flops_per_second,
        f32_factor=1.0,
        int8_factor=int8_factor,
        vector_flops_per_second=4 * lanes_per_second,
        transcendentals_per_second=lanes_per_second / 4,
        fast_read_bytes_per_second=3 * 4 * lanes_per_second,
        fast_write_bytes_per_second=4 * lanes_per_second,
        slow_bytes_per_second=slow_bytes_per_second,
        fast_capacity_bytes=fast_mib * _MIB,
        reserved_bytes=reserved_mib * _MIB,
        alignment_bytes=4096,
        fast_memory_space=fast_memory_space,
        sources=tuple(sorted({**_COMMON_SOURCES, **sources}.items())),
    )


_V4 = _chip(
    "v4",
    cores=1,
    clock_hz=1.05e9,
    peak_flops_per_second=137.5e12,
    int8_factor=1.0,
    slow_bytes_per_second=614e9,
    fast_mib=64,
    reserved_mib=0,
    fast_memory_space=3,
    sources={
        "clock_hz": "275 Tflop/s over 2 cores x 4 MXUs x 128 x 128 x 2 flop a cycle",
        "peak_flops_per_second": f"{_CLOUD}/v4: 275 Tflop/s a chip, bf16 or int8; half for a core",
        "int8_factor": f"{_CLOUD}/v4: the same peak for bf16 and int8",
        "slow_bytes_per_second": "TPU v4 paper (arXiv:2304.01433): HBM 1,228 GB/s; half for a core",
        "fast_capacity_bytes": f"CMEM, {_TPU_INFO}: 134 MB a chip, half for a core; the assignment "
        "of a program with too much to place ends at 64 MiB exactly",
        "fast_memory_space": "CMEM is written S(3) in compiled modules",
        "reserved_bytes": "scratch lives in VMEM, CMEM is all assignable",
    },
)
_V5E = _chip(
    "v5e",
    cores=1,
    clock_hz=1.5e9,
    peak_flops_per_second=197e12,
    int8_factor=2.0,
    slow_bytes_per_second=819e9,
    fast_mib=128,
    reserved_mib=16,
    fast_memory_space=1,
    sources={
        "clock_hz": "197 Tflop/s over 4 MXUs x 128 x 128 x 2 flop a cycle",
        "peak_flops_per_second": f"{_CLOUD}/v5e: 197 Tflop/s",
        "int8_factor": f"{_CLOUD}/v5e: 393 Top/s int8",
        "slow_bytes_per_second": f"{_CLOUD}/v5e: 819 GB/s",
        "fast_capacity_bytes": f"VMEM, {_TPU_INFO}: 128 MiB a core",
        "fast_memory_space": "VMEM is written S(1) in compiled modules",
    },
)
_V5P = _chip(
    "v5p",
    cores=2,
    clock_hz=1.75e9,
    peak_flops_per_second=459e12,
    int8_factor=2.0,
    slow_bytes_per_second=2765e9,
    fast_mib=64,
    reserved_mib=16,
    fast_memory_space=1,
    sources={
        "clock_hz": "459 Tflop/s over 2 cores x 4 MXUs x 128 x 128 x 2 flop a cycle",
        "peak_flops_per_second": f"{_CLOUD}/v5p: 459 Tflop/s",
        "int8_factor": f"{_TPU_INFO}: 918 Top/s int8",
        "slow_bytes_per_second": f"{_CLOUD}/v5p: 2,765 GB/s",
        "fast_capacity_bytes": f"VMEM, {_TPU_INFO}: 64 MiB a core",
        "fast_memory_space": "VMEM is written S(1) in compiled modules",
        "reserved_bytes": "as v5e; the compiler was seen to place up to 18 MiB only",
    },
)
_V6E = _chip(
    "v6e",
    cores=1,
    clock_hz=1.75e9,
    peak_flops_per_second=918e12,
    int8_factor=2.0,
    slow_bytes_per_second=1638e9,
    fast_mib=128,
    reserved_mib=32,
    fast_memory_space=1,
    sources={
        "clock_hz": "918 Tflop/s over 524,288 flop a cycle; the compiler states 69,632 cycles "
        "for a product of 34.4 Gflop, 94 % of that",
        "peak_flops_per_second": f"{_CLOUD}/v6e: 918 Tflop/s",
        "int8_factor": f"{_CLOUD}/v6e: 1,836 Top/s int8",
        "slow_bytes_per_second": f"{_CLOUD}/v6e: 1,638 GB/s",
        "fast_capacity_bytes": f"VMEM, {_TPU_INFO}: 128 MiB a core",
        "fast_memory_space": "VMEM is written S(1) in compiled modules",
        "reserved_bytes": "observed: the assignment of a program with too much to place ends below "
        "96 MiB",
    },
)

CHIPS: Mapping[str, Chip] = {chip.name: chip for chip in (_V4, _V5E, _V5P, _V6E)}
"""The chips known by name."""


def find_chip(name_or_path: str) -> Chip:
    """The chip of this name, or the one described in the `.toml` or `.json` file of this path.

    Raises:
      InputError: for an unknown name, or whatever `read_chip` raises.
    """
    if not name_or_path.endswith((".toml", ".json")):
        return _known_chip(name_or_path)
    chip = read_chip(name_or_path)
    known = CHIPS.get(chip.name)
    # What is known of a chip's programs is found by its name.
    if known is not None and replace(chip, sources=known.sources) != known:
        raise InputError(f"{name_or_path}: differs from the known {chip.name}: name it otherwise")
    return chip


def _known_chip(name: str) -> Chip:
    if name in CHIPS:
        return CHIPS[name]
    raise InputError(
        f"no chip is called {name!r}{did_you_mean(name, CHIPS)}; known are "
        f"{', '.join(sorted(CHIPS))}, or give a .toml or .json file with your own"
    )


class _ChipFile(BaseModel):
    """Schema of a user's chip file: all fields, or some of them beside `base`."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)

    name: str = Field(min_length=1)
    base: str | None = None
    clock_hz: float | None = Field(default=None, gt=0)
    peak_flops_per_second: float | None = Field(default=None, gt=0)
    f32_factor: float | None = Field(default=None, gt=0)
    int8_factor: float | None = Field(default=None, gt=0)
    vector_flops_per_second: float | None = Field(default=None, gt=0)
    transcendentals_per_second: float | None = Field(default=None, gt=0)
    slow_bytes_per_second: float | None = Field(default=None, gt=0)
    fast_read_bytes_per_second: float | None = Field(default=None, gt=0)
    fast_write_bytes_per_second: float | None = Field(default=None, gt=0)
    fast_capacity_bytes: int | None = Field(default=None, ge=0)
    reserved_bytes: int | None = Field(default=None, ge=0)
    alignment_bytes: int | None = Field(default=None, gt=0)
    fast_memory_space: int | None = Field(default=None, gt=0)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("true and false are no numbers")
        return value


def read_chip(path: str | Path) -> Chip:
    """Reads a chip from a TOML or JSON file.

    The file's keys are the fields of `Chip` but `sources`; with `base = "v5e"` every field that
    is not given is taken from that chip.

    Raises:
      InputError: if the file cannot be read, is not TOML / JSON, has an unknown, missing or
        impossible field, or reserves more fast memory than there is.
    """
    path = Path(path)
    document = _load(path)
    try:
        parsed = _ChipFile.model_validate(document)
    except ValidationError as error:
        _raise_readable(path, error)
    given = parsed.model_dump(exclude_none=True, exclude={"base"})
    chip = _merge(path, parsed.base, given)
    if chip.reserved_bytes > chip.fast_capacity_bytes:
        raise InputError(
            f"{path}: reserved_bytes is {chip.reserved_bytes}, more than the "
            f"{chip.fast_capacity_bytes} bytes of fast_capacity_bytes"
        )
    return chip


def chip_to_json(chip: Chip) -> str:
    """The chip as a file that `read_chip` reads back (without the sources)."""
    document = {key: value for key, value in asdict(chip).items() if key != "sources"}
    return json.dumps(document, indent=2) + "\n"


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the chip file: {error}") from error
    try:
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    # Integers with too many digits and deep nesting have no error of their own in either format.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid {path.suffix[1:].upper()}: {error}") from error


def _merge(path: Path, base: str | None, given: dict[str, Any]) -> Chip:
    sources = tuple((key, str(path)) for key in sorted(given) if key != "name")
    if base is not None:
        if base not in CHIPS:
            known = ", ".join(sorted(CHIPS))
            near = did_you_mean(base, CHIPS)
            raise InputError(f"{path}: base: no chip is called {base!r}{near}; known are {known}")
        chip = CHIPS[base]
        kept = tuple(entry for entry in chip.sources if entry[0] not in given)
        return replace(chip, **given, sources=tuple(sorted((*kept, *sources))))
    required = [field.name for field in fields(Chip) if field.name != "sources"]
    missing = [name for name in required if name not in given]
    if missing:
        raise InputError(
            f'{path}: missing {", ".join(missing)}; give them, or base = "v5e" (or another '
            f"of {', '.join(sorted(CHIPS))}) to take them from"
        )
    return Chip(**given, sources=sources)


def _raise_readable(path: Path, error: ValidationError) -> NoReturn:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "the file"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown field {key!r}{did_you_mean(key, _ChipFile.model_fields)}")
        else:
            lines.append(f"{key} is {problem['input']!r}: {problem['msg']}")
    raise InputError(f"{path}: " + "; ".join(lines)) from error
