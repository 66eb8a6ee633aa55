"""Schedules, live ranges and shared memory against what the compilers themselves printed.

`*.live-range.txt` is XLA's own HloLiveRange, `*.buffer-assignment.txt` where its values ended up.
The TPU compiler prints its live ranges of the module before memory-space assignment, and its
buffer assignment of the one after.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from hlo_graphs.aliasing import AliasAnalysis, analyse_aliases
from hlo_graphs.live_range import FlatSchedule, LiveRange, flatten_schedule, live_ranges
from hlo_graphs.parser import read_module
from tests.shared_data import shared_data_path

CPU_SETS = {
    "dynamic_slice_loop_1x2048x768_bf16": 68,
    "gemma2_2b_keras_jax": 2847,
    "gemma3_1b_flax_call": 2487,
    "layer_norm_1x4096x768_bf16": 2,
    "mha_block_1x12x128x64_bf16": 15,
    "mobilenet_v2": 1606,
    "nv_maxtext_1n1g_jit_train_step_before_optimization": 501,
}
"""Programs scheduled for the CPU, with how many values their live-range files list."""

CORPUS = Path(__file__).resolve().parents[2] / "hlo_graphs" / "corpus"

TPU_LIVE_RANGES = sorted(path.name.split(".live-range")[0] for path in CORPUS.glob("*.live-range*"))

TPU_PLACEMENTS = ("lstm_forward.v5e", "gpt_decode.v5e", "dlrm_infer.v5e", "llama_train.v5e")
"""A loop, donated caches updated in place, a scatter, and donated weights."""


@dataclass(frozen=True, slots=True)
class Analysed:
    """One module through the whole analysis."""

    aliases: AliasAnalysis
    schedule: FlatSchedule
    ranges: dict[int, LiveRange]

    @property
    def by_name(self) -> dict[str, LiveRange]:
        """Ranges under the names the dumps use; the names of real modules are unique."""
        named = {str(self.aliases.values[value]): found for value, found in self.ranges.items()}
        assert len(named) == len(self.ranges)
        return named


@cache
def analysed(path: Path) -> Analysed:
    module = read_module(path)
    aliases = analyse_aliases(module)
    schedule = flatten_schedule(module)
    return Analysed(aliases, schedule, live_ranges(module, aliases, schedule))


def printed_live_ranges(path: Path) -> tuple[list[str], dict[str, LiveRange]]:
    """The instruction sequence and the ranges by value name."""
    text = gzip.decompress(path.read_bytes()).decode()
    sequence, _, rest = text.partition("  BufferLiveRange:\n")
    names = re.findall(r"^    \d+:(.*)$", sequence, re.MULTILINE)
    table = rest.partition("  Live ranges at")[0]
    rows = re.findall(r"^    (.+):(\d+)-(\d+)$", table, re.MULTILINE)
    assert len(rows) == len(table.splitlines())
    return names, {name: LiveRange(int(start), int(end)) for name, start, end in rows}


def check_live_ranges(module: Path, printed: Path) -> int:
    names, ranges = printed_live_ranges(printed)
    found = analysed(module)
    assert [place.instruction.name for place in found.schedule.positions] == names
    assert found.by_name == ranges
    return len(ranges)


@pytest.mark.parametrize("name", CPU_SETS)
def test_cpu_live_ranges_are_those_of_xla(name: str) -> None:
    folder = shared_data_path("hlo_scheduled_cpu")
    count = check_live_ranges(folder / f"{name}.hlo.gz", folder / f"{name}.live-range.txt.gz")
    assert count == CPU_SETS[name]


@pytest.mark.parametrize("name", TPU_LIVE_RANGES)
def test_tpu_live_ranges_are_those_of_the_compiler(name: str) -> None:
    module = CORPUS / f"{name}.before.hlo.gz"
    assert check_live_ranges(module, CORPUS / f"{name}.live-range.txt.gz") > 50


def test_the_corpus_has_loops_and_branches_to_compare() -> None:
    opcodes = {
        flow.instruction.opcode
        for name in TPU_LIVE_RANGES
        for flow in analysed(CORPUS / f"{name}.before.hlo.gz").schedule.control_flow()
    }
    assert opcodes == {"while", "conditional"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value ended up."""

    allocation: int
    color: int
    offset: int
    size_bytes: int
    is_phi: bool


_ALLOCATION = re.compile(r"allocation (\d+):")
_VALUE = re.compile(
    r" value: <\d+ ([^ {]+)(\{[\d,]*\})?( \(phi\))? @(\d+)> \(size=(\d+),offset=(\d+)\)"
)


def printed_places(path: Path) -> dict[str, Place]:
    places: dict[str, Place] = {}
    allocation = -1
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        if match := _ALLOCATION.match(line):
            allocation = int(match[1])
        elif match := _VALUE.match(line):
            name = match[1] + (match[2] or "{}")
            size, offset = int(match[5]), int(match[6])
            places[name] = Place(allocation, int(match[4]), offset, size, match[3] is not None)
    return places


def check_places(found: Analysed, places: dict[str, Place]) -> int:
    """Checks both directions; returns how many buffers hold several values."""
    ours = {str(found.aliases.values[value]): value for value in found.ranges}
    assert set(ours) <= set(places)
    assert {n for n in ours if found.aliases.values[ours[n]].is_phi} == {
        name for name in ours if places[name].is_phi
    }
    shared = 0
    at: dict[tuple[int, int], list[int]] = {}
    for buffer in found.aliases.buffers:
        values = [value for value in buffer.values if value in found.ranges]
        where = {_where(places[str(found.aliases.values[value])]) for value in values}
        assert len(where) <= 1, [str(found.aliases.values[value]) for value in values]
        shared += len(values) > 1
    for name, value in ours.items():
        place = places[name]
        if place.size_bytes > 0 and place.color == 0:
            at.setdefault(_where(place), []).append(value)
    for values in at.values():
        assert not list(overlapping(found, values))
    return shared


def _where(place: Place) -> tuple[int, int]:
    return place.allocation, place.offset


def overlapping(found: Analysed, values: list[int]) -> list[tuple[str, str]]:
    """Values of different buffers that live at the same time, beyond handing over at one."""
    wrong = []
    latest: int | None = None
    for value in sorted(values, key=lambda v: found.ranges[v]):
        if latest is not None and found.ranges[value].start < found.ranges[latest].end:
            of = found.aliases.buffer_of_value
            if of[value] != of[latest]:
                names = (str(found.aliases.values[v]) for v in (latest, value))
                wrong.append((next(names), next(names)))
        if latest is None or found.ranges[value].end > found.ranges[latest].end:
            latest = value
    return wrong


@pytest.mark.parametrize("name", CPU_SETS)
def test_cpu_values_share_memory_where_they_must(name: str) -> None:
    folder = shared_data_path("hlo_scheduled_cpu")
    places = printed_places(folder / f"{name}.buffer-assignment.txt.gz")
    check_places(analysed(folder / f"{name}.hlo.gz"), places)


@pytest.mark.parametrize("name", TPU_PLACEMENTS)
def test_tpu_values_share_memory_where_they_must(name: str) -> None:
    places = printed_places(CORPUS / f"{name}.buffer-assignment.txt.gz")
    assert check_places(analysed(CORPUS / f"{name}.production.hlo.gz"), places) > 0


def test_a_wrong_merge_would_be_noticed() -> None:
    name = TPU_PLACEMENTS[0]
    found = analysed(CORPUS / f"{name}.production.hlo.gz")
    places = printed_places(CORPUS / f"{name}.buffer-assignment.txt.gz")
    shared = next(b for b in found.aliases.buffers if len(b.values) > 1)
    moved = str(found.aliases.values[shared.values[0]])
    places[moved] = Place(10**6, 0, 0, 1, places[moved].is_phi)
    with pytest.raises(AssertionError):
        check_places(found, places)
