"""The chip table and users' chip files."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo_graphs.bundle import read_allocinfo
from hlo_graphs.chips import CHIPS, Chip, chip_to_json, find_chip, read_chip
from hlo_graphs.errors import InputError
from tests.shared_data import shared_data_path

NUMBERS = {field.name for field in fields(Chip)} - {"name", "sources"}


@pytest.mark.parametrize("name", sorted(CHIPS))
def test_every_number_of_the_table_has_a_source(name: str) -> None:
    sources = dict(CHIPS[name].sources)
    assert set(sources) == NUMBERS
    assert all(len(text) > 10 for text in sources.values())


@pytest.mark.parametrize("name", ["v4", "v5e", "v5p", "v6e"])
def test_chips_are_sane(name: str) -> None:
    chip = find_chip(name)
    assert chip.name == name
    assert chip.fast_read_bytes_per_second > chip.slow_bytes_per_second
    assert chip.fast_write_bytes_per_second > chip.slow_bytes_per_second
    assert chip.assignable_bytes % chip.alignment_bytes == 0


def test_v5e_leaves_112_mib_to_the_assignment() -> None:
    assert CHIPS["v5e"].assignable_bytes == 117_440_512


def test_the_others_leave_what_their_assignments_were_seen_to_use() -> None:
    assert CHIPS["v4"].assignable_bytes == 64 * 2**20
    assert CHIPS["v6e"].assignable_bytes == 96 * 2**20


def test_v5e_clock_follows_from_its_peak() -> None:
    flops_per_cycle = 4 * 128 * 128 * 2
    assert CHIPS["v5e"].peak_flops_per_second / flops_per_cycle == pytest.approx(1.5e9, rel=0.01)


def test_v4_places_into_cmem() -> None:
    assert CHIPS["v4"].fast_memory_space == 3
    assert CHIPS["v5e"].fast_memory_space == 1


def test_assignable_bytes_are_rounded_down_to_the_alignment(tmp_path: Path) -> None:
    path = tmp_path / "chip.toml"
    path.write_text('name = "odd"\nbase = "v5e"\nfast_capacity_bytes = 20_000_001\n')
    chip = read_chip(path)
    left_bytes = 20_000_001 - chip.reserved_bytes
    assert chip.assignable_bytes <= left_bytes < chip.assignable_bytes + chip.alignment_bytes


def test_matrix_speed_depends_on_the_operand_type() -> None:
    chip = CHIPS["v5e"]
    assert chip.matrix_flops_per_second("bf16") == 197e12
    assert chip.matrix_flops_per_second("s8") == 2 * 197e12


@pytest.mark.parametrize("name", sorted(CHIPS))
def test_a_chip_written_out_reads_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "chip.json"
    path.write_text(chip_to_json(CHIPS[name]))
    back = find_chip(str(path))
    assert all(getattr(back, key) == getattr(CHIPS[name], key) for key in NUMBERS)
    assert dict(back.sources) == dict.fromkeys(NUMBERS, str(path))


def test_a_base_fills_in_what_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "half.toml"
    path.write_text('name = "half"\nbase = "v5e"\nslow_bytes_per_second = 4.0e11\n')
    chip = read_chip(path)
    assert (chip.name, chip.slow_bytes_per_second) == ("half", 4.0e11)
    assert chip.clock_hz == CHIPS["v5e"].clock_hz
    assert dict(chip.sources)["slow_bytes_per_second"] == str(path)
    assert "docs.cloud.google.com" in dict(chip.sources)["peak_flops_per_second"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('name = "x"\nbase = "v5e"\nclok_hz = 1e9\n', "did you mean 'clock_hz'"),
        ('name = "x"\nbase = "v5"\n', "bad.toml: base: no chip is called 'v5' (did you mean 'v5"),
        ('name = "x"\nbase = "v5e"\nslow_bytes_per_second = true\n', "slow_bytes_per_second"),
        ('name = "x"\nbase = "v5e"\nclock_hz = -1\n', "clock_hz is -1"),
        ('name = "x"\nbase = "v5e"\nfast_capacity_bytes = 1\n', "reserved_bytes is 16777216"),
        ('name = "x"\nclock_hz = 1e9\n', "missing peak_flops_per_second"),
        ('base = "v5e"\n', "name"),
        ('name = "x\n', "not valid TOML"),
        ("clock_hz = " + "1" * 5000, "bad.toml: not valid TOML"),
        ("clock_hz = " + "[" * 99999, "bad.toml: not valid TOML"),
    ],
)
def test_bad_chip_files_say_what_is_wrong(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.toml|no chip") as caught:
        read_chip(path)
    assert expected in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        find_chip(str(tmp_path / "absent.toml"))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        find_chip(str(binary))
    for text in ('{"clock_hz": ' + "1" * 5000 + "}", "[" * 99999):
        binary.write_text(text)
        with pytest.raises(InputError, match=r"binary\.json: not valid JSON"):
            find_chip(str(binary))
    binary.write_text("[1, 2]")
    with pytest.raises(InputError, match="the file"):
        find_chip(str(binary))


def test_offsets_of_the_compilers_tables_are_aligned() -> None:
    paths = sorted(shared_data_path("tpu_examples").glob("*.v5e.allocinfo.csv.gz"))
    offsets = [row.offset_bytes for path in paths for row in read_allocinfo(path)]
    assert len(offsets) == 1594
    assert math.gcd(*offsets) == CHIPS["v5e"].alignment_bytes


def test_the_documentation_has_every_figure_and_source() -> None:
    page = (Path(__file__).parents[2] / "docs" / "times.md").read_text(encoding="utf-8")
    for chip in CHIPS.values():
        cells = (
            chip.name,
            f"{chip.clock_hz / 1e9:g}",
            f"{chip.peak_flops_per_second / 1e12:g}",
            f"{chip.int8_factor:g}",
            f"{chip.vector_flops_per_second / 1e12:.2f}",
            f"{chip.slow_bytes_per_second / 1e9:g}",
            f"{chip.fast_read_bytes_per_second / 1e12:.1f} / "
            f"{chip.fast_write_bytes_per_second / 1e12:.1f}",
            str(chip.fast_capacity_bytes // 2**20),
            str(chip.assignable_bytes // 2**20),
            str(chip.alignment_bytes),
            f"S({chip.fast_memory_space})",
        )
        assert f"| {' | '.join(cells)} |" in page
        assert all(text in page for _, text in chip.sources)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean 'v5e'"):
        find_chip("v5ee")


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9))
KEYS = st.sampled_from(["name", "base", *sorted(NUMBERS), "nonsense"])


@given(st.dictionaries(KEYS, SCALARS))
def test_any_json_object_is_read_or_refused(document: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chip.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        with contextlib.suppress(InputError):
            chip = read_chip(path)
            assert chip.name == document["name"]
            assert chip.assignable_bytes >= 0
            assert chip.clock_hz > 0
