"""Bundles: found by name, read as records, damaged files refused with their place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from hlo_graphs.bundle import (
    BufferUse,
    Placement,
    ValueName,
    bundle_in,
    bundle_of,
    parse_capacity_tag,
    read_allocinfo,
    read_buffer_assignment,
    read_bufferinfo,
    read_cycles,
    read_live_range,
    read_points,
    read_scheduleinfo,
    split_key,
)
from hlo_graphs.errors import InputError
from tests.shared_data import shared_data_path

EXAMPLES = ("decode", "lm_infer", "lm_train", "lstm", "mlp6", "resnet50_infer")


@pytest.fixture(scope="module")
def examples() -> Path:
    return shared_data_path("tpu_examples")


def zipped(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


@pytest.mark.parametrize("name", EXAMPLES)
def test_siblings_are_found_from_any_part(examples: Path, name: str) -> None:
    whole = bundle_in(examples, f"{name}.v5e")
    for part in (whole.before, whole.production, whole.cycles, whole.buffer_assignment):
        assert part is not None
        assert bundle_of(part) == whole
    assert (whole.name, whole.chip, whole.capacity_tag) == (name, "v5e", None)
    assert whole.points is None
    assert whole.key == f"{name}.v5e"


@pytest.mark.parametrize("name", EXAMPLES)
def test_tables_of_the_examples_agree_with_each_other(examples: Path, name: str) -> None:
    bundle = bundle_in(examples, f"{name}.v5e")
    assert bundle.scheduleinfo is not None
    assert bundle.bufferinfo is not None
    assert bundle.allocinfo is not None
    assert bundle.buffer_assignment is not None
    schedule = read_scheduleinfo(bundle.scheduleinfo)
    for buffer in read_bufferinfo(bundle.bufferinfo):
        for use in buffer.uses:
            assert schedule[use.time] == use.instruction
    capacity = 112 * 2**20
    for block in read_allocinfo(bundle.allocinfo):
        assert block.offset_bytes >= 0
        assert block.offset_bytes + block.size_bytes <= capacity
        assert block.start_time <= block.end_time < len(schedule) + 1
    for allocation in read_buffer_assignment(bundle.buffer_assignment):
        for value in allocation.values:
            assert value.offset_bytes + value.size_bytes <= allocation.size_bytes
            assert "thread-local" in allocation.kind or value.color == allocation.color


def test_the_mlp_example_reads_as_it_looks(examples: Path) -> None:
    bundle = bundle_in(examples, "mlp6.v5e")
    assert bundle.bufferinfo is not None
    assert bundle.allocinfo is not None
    assert bundle.cycles is not None
    first = read_bufferinfo(bundle.bufferinfo)[0]
    assert first.name == ValueName(81, "ws_1_.1", (), is_phi=False)
    assert (first.size_bytes, first.definition_time) == (32 * 2**20, 4)
    assert first.uses == (BufferUse(8, "convolution_maximum_fusion.4", 1, ()),)
    assert read_allocinfo(bundle.allocinfo)[1].start_time == 12
    table = read_cycles(bundle.cycles)
    assert sum(table.none.cycles.values()) == 2_019_672
    assert sum(table.production.cycles.values()) == 1_629_060
    assert table.production_size_bytes == 112 * 2**20
    assert table.huge is None
    assert table.meta is None
    assert table.production.placements is None


def test_tuple_positions_and_phis_are_read(examples: Path) -> None:
    bundle = bundle_in(examples, "lstm.v5e")
    assert bundle.buffer_assignment is not None
    assert bundle.bufferinfo is not None
    values = [v for a in read_buffer_assignment(bundle.buffer_assignment) for v in a.values]
    phis = [v for v in values if v.name.is_phi and v.name.instruction == "while"]
    assert {v.name.index for v in phis if v.color == 1} == {(n,) for n in range(1, 7)}
    uses = [u for b in read_bufferinfo(bundle.bufferinfo) for u in b.uses]
    assert BufferUse(63, "while", 0, (9,)) in uses


def test_live_ranges_of_a_cpu_program(tmp_path: Path) -> None:
    folder = shared_data_path("hlo_scheduled_cpu")
    table = read_live_range(folder / "layer_norm_1x4096x768_bf16.live-range.txt.gz")
    assert table.end_time >= len(table.schedule) - 1
    assert all(start <= end <= table.end_time for start, end in table.ranges.values())
    plain = zipped(
        tmp_path / "a.gz",
        "HloLiveRange (max 3):\n  InstructionSequence:\n    0:x\n    1:w.2\n  BufferLiveRange:\n"
        "    x{}:0-3\n    w.2{1,0}:1-2\n  Live ranges at 1 (peak):\n    x{}: 4 bytes\n",
    )
    read = read_live_range(plain)
    assert read.schedule == ("x", "w.2")
    assert read.ranges == {"x{}": (0, 3), "w.2{1,0}": (1, 2)}


def test_names_split_into_model_chip_and_size() -> None:
    assert split_key("resnet50.v5e.64MiB") == ("resnet50", "v5e", "64MiB")
    assert split_key("my.model.v4") == ("my.model", "v4", None)
    assert split_key("plain") == ("plain", None, None)
    assert parse_capacity_tag("64MiB") == 64 * 2**20


@pytest.mark.parametrize("tag", ["64", "64MB", "MiB", "-1MiB"])
def test_sizes_that_are_none_are_refused(tag: str) -> None:
    with pytest.raises(InputError, match="64MiB"):
        parse_capacity_tag(tag)


def test_a_file_of_no_bundle_is_refused(tmp_path: Path) -> None:
    lonely = tmp_path / "model.v5e.cycles.json"
    lonely.write_text("{}")
    with pytest.raises(InputError, match=r"no model\.v5e\.before\.hlo\.gz"):
        bundle_of(lonely)
    other = tmp_path / "notes.txt"
    other.write_text("")
    with pytest.raises(InputError, match="not a part of a bundle"):
        bundle_of(other)


def test_of_two_spellings_the_one_named_is_read(tmp_path: Path) -> None:
    spellings = [tmp_path / f"m.v5e.before.hlo{ending}" for ending in ("", ".gz")]
    for path in spellings:
        path.touch()
    assert [bundle_of(path).before for path in spellings] == spellings


def test_damaged_gzip_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "a.allocinfo.csv.gz"
    path.write_bytes(gzip.compress(b"buffer_id,size,offset,start_time,end_time\n" * 99)[:40])
    with pytest.raises(InputError, match=r"a\.allocinfo\.csv\.gz: cannot be read"):
        read_allocinfo(path)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(InputError, match=r"a\.allocinfo\.csv\.gz:1:1: found 'no gzip at all'"):
        read_allocinfo(path)


def test_what_is_gzipped_is_seen_by_its_bytes(tmp_path: Path) -> None:
    table = b"buffer_id,size,offset,start_time,end_time\n7,64,0,1,3\n"
    named, unnamed = tmp_path / "a.csv.gz", tmp_path / "a.csv"
    named.write_bytes(table)
    unnamed.write_bytes(gzip.compress(table))
    assert read_allocinfo(named) == read_allocinfo(unnamed)
    assert [row.size_bytes for row in read_allocinfo(named)] == [64]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r":1:1: found 'end of file'"),
        ("id,size\n", r":1:1: found 'id,size', expected buffer_id"),
        ("buffer_id,size,offset,start_time,end_time\n1,2,3\n", r":2:3: found '1,2,3'"),
        (
            "buffer_id,size,offset,start_time,end_time\n1,2,3,4,5\n1,two,3,4,5\n",
            r":3:2: found 'two', expected an integer \(size\)",
        ),
    ],
)
def test_damaged_tables_name_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_allocinfo(zipped(tmp_path / "a.gz", text))


BUFFER_COLUMNS = (
    "buffer_id,buffer_name,alt_mem_benefit,size,definition_time,use_times,use_names,is_scoped"
)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('1,"x",0,4,0,"","",0', "ID INSTRUCTION"),
        ('1,"<1 x>",0,4,0,"3","",0', "1 uses"),
        ('1,"<1 x>",0,4,0,"3","y operand 0",0', "INSTRUCTION, operand N"),
        ('1,"<1 x>",much,4,0,"","",0', "a number"),
        ('1,"<1 x>",0,4,0,"²","y, operand 0",0', "INSTRUCTION, operand N"),
        ("1,<1 x>,0,4,0,\r,,0", r":2:1: .*cells between commas"),
    ],
)
def test_damaged_buffer_rows_are_refused(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_bufferinfo(zipped(tmp_path / "a.gz", f"{BUFFER_COLUMNS}\n{row}\n"))


def test_a_buffer_may_have_thousands_of_uses(tmp_path: Path) -> None:
    names = [f"fusion.of.a.long.name.{time}" for time in range(6000)]
    times = ";".join(map(str, range(len(names))))
    uses = ";".join(f"{name}, operand 0" for name in names)
    text = f'{BUFFER_COLUMNS}\n1,"<1 x>",0,4,0,"{times}","{uses}",0\n'
    (buffer,) = read_bufferinfo(zipped(tmp_path / "a.gz", text))
    assert [use.instruction for use in buffer.uses] == names


def test_damaged_assignments_schedules_and_ranges_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    with pytest.raises(InputError, match=r":1:1: .*an allocation before its values"):
        read_buffer_assignment(zipped(path, " value: <1 x @0> (size=1,offset=0): f32[]\n"))
    with pytest.raises(InputError, match=r":2:1: .*value: <ID NAME @COLOR>"):
        read_buffer_assignment(zipped(path, "allocation 0: size 4:\n value: rubbish\n"))
    with pytest.raises(InputError, match=r":3:1: found '7', expected 1"):
        read_scheduleinfo(zipped(path, "time,instruction_name\n0,a\n7,b\n"))
    with pytest.raises(InputError, match="HloLiveRange"):
        read_live_range(zipped(path, "HloLiveRang"))
    with pytest.raises(InputError, match=r":3:1: .*start-end"):
        read_live_range(zipped(path, "HloLiveRange (max 1):\n  BufferLiveRange:\n    x{}:0\n"))


def test_cycles_with_placements_are_read(tmp_path: Path) -> None:
    document = {
        "no_fast_memory": {"a": 10},
        "production_48MiB": {"a": 7},
        "fast_memory_1GiB": None,
        "fast_memory_1GiB_failure": "the compiler ended by signal 6",
        "placements": {"no_fast_memory": {}, "production_48MiB": {"a": "10>1"}},
    }
    path = tmp_path / "a.cycles.json"
    path.write_text(json.dumps(document))
    table = read_cycles(path)
    assert table.production.placements == {"a": Placement("10", "1")}
    assert table.none.placements == {}
    assert table.production_size_bytes == 48 * 2**20
    assert table.huge_failure == "the compiler ended by signal 6"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "a JSON object"),
        ("{", ":1:2: "),
        ('{"a": ' + "1" * 5000 + "}", r"a\.cycles\.json: not valid JSON"),
        ("[" * 99999, r"a\.cycles\.json: not valid JSON"),
        ("{}", "0 keys like production_112MiB"),
        ('{"production_1MiB": {}, "no_fast_memory": {"a": 1.5}}', "integer cycles"),
        ('{"production_1MiB": {}}', "'no_fast_memory' must map"),
        (
            '{"production_1MiB": {}, "no_fast_memory": {}, "placements": {"no_fast_memory": {}}}',
            "no placements for 'production_1MiB'",
        ),
        ('{"production_1MiB": {}, "no_fast_memory": {}, "meta": {}}', "meta lacks chip"),
    ],
)
def test_damaged_cycles_are_refused(tmp_path: Path, document: str, message: str) -> None:
    path = tmp_path / "a.cycles.json"
    path.write_text(document)
    with pytest.raises(InputError, match=message):
        read_cycles(path)


META = {
    "chip": "v5e",
    "clock_hz": 1.5e9,
    "jax_version": "1",
    "libtpu_version": "2",
    "capacity_bytes": 2**20,
    "fast_memory_space": 1,
    "vmem_bytes": None,
    "command": "malloc-game extract m:f",
    "seconds": 1,
    "live_range_module": "before",
    "settings": {},
}


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("chip", "v99"),
        ("chip", None),
        ("clock_hz", "x"),
        ("clock_hz", float("nan")),
        ("capacity_bytes", "112MiB"),
        ("capacity_bytes", 1.5),
        ("capacity_bytes", -5),
        ("capacity_bytes", True),
        ("vmem_bytes", 0.5),
        ("live_range_module", "after"),
    ],
)
def test_how_a_bundle_was_compiled_is_checked(tmp_path: Path, field: str, wrong: object) -> None:
    path = tmp_path / "a.cycles.json"
    document = {"no_fast_memory": {}, "production_1MiB": {}, "meta": META}
    path.write_text(json.dumps(document))
    meta = read_cycles(path).meta
    assert meta is not None
    assert meta.capacity_bytes == 2**20
    path.write_text(json.dumps({**document, "meta": {**META, field: wrong}}))
    with pytest.raises(InputError, match=rf"a\.cycles\.json: meta\.{field} is "):
        read_cycles(path)


def test_points_need_settings_and_placements(tmp_path: Path) -> None:
    path = tmp_path / "a.points.json"
    path.write_text('{"extra": [{"setting": "s", "cycles": {"a": 1}, "placements": {"a": "1>"}}]}')
    (point,) = read_points(path)
    assert (point.setting, point.cycles) == ("s", {"a": 1})
    assert point.placements == {"a": Placement("1", "")}
    path.write_text('{"extra": [{}]}')
    with pytest.raises(InputError, match=r"extra\[0\]"):
        read_points(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="'extra'"):
        read_points(path)
    path.write_text('{"extra": [{"setting": "s", "cycles": {}, "placements": {"a": "2>1"}}]}')
    with pytest.raises(InputError, match="'2>1', not 01>1"):
        read_points(path)
