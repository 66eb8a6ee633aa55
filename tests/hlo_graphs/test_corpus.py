"""The corpus: complete, split by family, and every bundle consistent with itself."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import re
from functools import cache

import pytest

from hlo_graphs import corpus
from hlo_graphs.bundle import (
    Bundle,
    CycleTable,
    read_allocinfo,
    read_buffer_assignment,
    read_bufferinfo,
    read_cycles,
    read_live_range,
    read_points,
    read_scheduleinfo,
    split_key,
)
from hlo_graphs.bundle_writer import clean_hlo
from hlo_graphs.corpus.table import headroom_rows, markdown_table
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloModule
from hlo_graphs.parser import read_module
from hlo_graphs.text_files import read_text
from tests.shared_data import shared_data_path

NAMES = corpus.names()
QUICK = tuple(name for name in NAMES if name.startswith(("lstm_forward", "dlrm_infer")))
"""Programs whose every number is checked by default; the others in the slow tests."""

needs_jax = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in ("jax", "flax", "optax")),
    reason="the zoo needs the tpu extra",
)


@cache
def cycles_of(name: str) -> CycleTable:
    path = corpus.bundle(name).cycles
    assert path is not None
    return read_cycles(path)


@cache
def before_of(name: str) -> HloModule:
    return read_module(corpus.bundle(name).before)


def test_the_corpus_is_large_and_small() -> None:
    assert len(NAMES) >= 50
    size_bytes = sum(path.stat().st_size for path in corpus.DIRECTORY.iterdir() if path.is_file())
    assert size_bytes < 30e6
    families = {corpus.family_of(name) for name in NAMES}
    assert families == set(corpus.families().values())


def test_there_are_all_chips_sizes_and_kinds() -> None:
    chips = {split_key(name)[1] for name in NAMES}
    assert {"v4", "v5e", "v6e"} <= chips
    tags = {split_key(name)[2] for name in NAMES}
    assert {None, "64MiB"} <= tags
    assert len({corpus.family_of(name).domain for name in NAMES}) >= 4


def test_files_belong_to_bundles_that_are_whole() -> None:
    for name in NAMES:
        bundle = corpus.bundle(name)
        assert bundle.key == name
        parts = (
            bundle.production,
            bundle.cycles,
            bundle.bufferinfo,
            bundle.allocinfo,
            bundle.scheduleinfo,
            bundle.buffer_assignment,
            bundle.live_range,
        )
        assert None not in parts, name
    known = set(NAMES)
    others = {"split.json"}
    for path in corpus.DIRECTORY.iterdir():
        if path.is_file() and path.suffix != ".py" and path.name not in others:
            key = re.sub(r"\.[a-z-]+\.(hlo|csv|txt|json)\.gz$|\.cycles\.json$", "", path.name)
            assert key in known, path.name


def test_every_program_is_in_exactly_one_family() -> None:
    programs = [p for family in corpus.families().values() for p in family.programs]
    assert len(programs) == len(set(programs))
    assert {split_key(name)[0] for name in NAMES} <= set(programs)


def test_the_split_follows_its_rule() -> None:
    document = json.loads((corpus.DIRECTORY / "split.json").read_text(encoding="utf-8"))
    assert "2nd, 5th, 8th" in document["rule"]
    families = list(corpus.families().values())
    for position, family in enumerate(families, start=1):
        assert family.split == ("test" if position % 3 == 2 else "train"), family.name
    by_domain: dict[str, list[str]] = {}
    for family in families:
        by_domain.setdefault(family.domain, []).append(family.name)
    assert all(names == sorted(names) for names in by_domain.values())


def test_the_split_divides_the_corpus() -> None:
    split = corpus.split()
    assert sorted(split.train + split.test) == list(NAMES)
    assert {corpus.family_of(n).name for n in split.train}.isdisjoint(
        corpus.family_of(n).name for n in split.test
    )
    assert split.test
    assert split.train


def test_unknown_programs_are_refused_with_near_names() -> None:
    with pytest.raises(InputError, match=r"did you mean .*resnet50_infer\.v5e"):
        corpus.bundle("resnet50_infr.v5e")
    with pytest.raises(InputError, match="no family"):
        corpus.family_of("nobody.v5e")
    assert corpus.bundle("resnet50_infer") == corpus.bundle("resnet50_infer.v5e")
    with pytest.raises(InputError, match="neither a file nor a corpus program"):
        corpus.bundle("no_such_program_anywhere")


def test_no_machine_path_is_in_any_file() -> None:
    foreign = re.compile(rb"/work|/tmp/|/home/|/root/|site-packages|\.py\b")
    for path in corpus.DIRECTORY.iterdir():
        if path.suffix in (".gz", ".json"):
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            found = foreign.search(data)
            assert found is None, f"{path.name}: {found and found[0]!r}"


def test_compressed_files_carry_no_time_and_no_name() -> None:
    for path in corpus.DIRECTORY.glob("*.gz"):
        header = path.read_bytes()[:10]
        assert header[3] == 0, f"{path.name}: a name is inside"
        assert header[4:8] == bytes(4), f"{path.name}: a time is inside"


@pytest.mark.parametrize("name", NAMES)
def test_cycles_name_their_compile(name: str) -> None:
    table = cycles_of(name)
    meta = table.meta
    assert meta is not None
    program, chip, tag = split_key(name)
    assert meta.chip == chip
    assert f":{program} --chip {chip}" in meta.command
    assert (tag is None) == (meta.vmem_bytes is None)
    assert table.production_size_bytes == meta.capacity_bytes
    assert (table.huge is None) == (table.huge_failure is not None)
    assert meta.live_range_module == "before"
    assert table.none.placements == {}, "nothing is fast where nothing may be"
    slow, fast = (sum(point.cycles.values()) for point in (table.none, table.production))
    assert 0 < fast <= slow * 1.005


@pytest.mark.parametrize("name", NAMES)
def test_blocks_fit_into_the_capacity(name: str) -> None:
    bundle = corpus.bundle(name)
    assert bundle.allocinfo is not None
    meta = cycles_of(name).meta
    assert meta is not None
    for block in read_allocinfo(bundle.allocinfo):
        assert 0 <= block.offset_bytes <= meta.capacity_bytes - block.size_bytes


def check_against_modules(name: str) -> None:
    bundle = corpus.bundle(name)
    check_tables(bundle, before_of(name))
    table = cycles_of(name)
    instructions = {
        i.name: (c, i) for c in before_of(name).computations.values() for i in c.instructions
    }
    points = [table.none, table.production]
    points += [] if table.huge is None else [table.huge]
    points += [] if bundle.points is None else read_points(bundle.points)
    for point in points:
        assert point.cycles.keys() <= instructions.keys()
        assert point.placements is not None
        for instruction_name, placement in point.placements.items():
            computation, instruction = instructions[instruction_name]
            shapes = [computation.instruction(n).shape for n in instruction.operands]
            leaves = sum(leaf.is_array for s in shapes for _, leaf in s.subshapes())
            assert len(placement.operands) == leaves
            outputs = sum(leaf.is_array for _, leaf in instruction.shape.subshapes())
            assert len(placement.outputs) == outputs


def check_tables(bundle: Bundle, before: HloModule) -> None:
    assert bundle.scheduleinfo is not None
    assert bundle.live_range is not None
    assert bundle.bufferinfo is not None
    assert bundle.buffer_assignment is not None
    schedule = read_scheduleinfo(bundle.scheduleinfo)
    names = {i.name for c in before.computations.values() for i in c.instructions}
    assert set(schedule) <= names
    assert {i.name for i in before.entry.instructions} <= set(schedule)
    live = read_live_range(bundle.live_range)
    assert live.schedule == schedule
    for buffer in read_bufferinfo(bundle.bufferinfo):
        assert all(schedule[use.time] == use.instruction for use in buffer.uses)
        assert buffer.name is None or buffer.name.instruction in names
    for allocation in read_buffer_assignment(bundle.buffer_assignment):
        for value in allocation.values:
            assert value.offset_bytes + value.size_bytes <= allocation.size_bytes


@pytest.mark.parametrize("name", QUICK)
def test_the_modules_are_clean(name: str) -> None:
    bundle = corpus.bundle(name)
    for path in (bundle.before, bundle.production):
        assert path is not None
        text = read_text(path)
        assert clean_hlo(text) == text


@pytest.mark.parametrize("name", QUICK)
def test_tables_fit_the_modules(name: str) -> None:
    check_against_modules(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_tables_fit_the_modules_of_all_programs(name: str) -> None:
    check_against_modules(name)


def test_two_thirds_of_the_corpus_have_headroom() -> None:
    rows = headroom_rows()
    known = [row.headroom for row in rows if row.headroom is not None]
    assert len(known) >= 0.8 * len(rows)
    assert min(known) >= 1.0
    assert sum(headroom > 1.02 for headroom in known) >= 2 * len(known) / 3
    assert max(row.accesses for row in rows) > 3000
    text = markdown_table(rows)
    assert len(text.splitlines()) == len(rows) + 2
    assert all(f"| {name} |" in text for name in NAMES)


def test_the_example_resnet_compiles_to_the_same_cycles_again() -> None:
    """The example is the same network written another way: totals agree within 0.1 %."""
    examples = shared_data_path("tpu_examples")
    example = read_cycles(examples / "resnet50_infer.v5e.cycles.json")
    ours = cycles_of("resnet50_infer.v5e")
    for mine, given in ((ours.none, example.none), (ours.production, example.production)):
        assert sum(mine.cycles.values()) == pytest.approx(sum(given.cycles.values()), rel=1e-3)


@needs_jax
def test_the_build_table_is_the_corpus() -> None:
    from hlo_graphs.zoo import build

    assert sorted(build.CORPUS) == list(NAMES)
    for name, random_orders in build.CORPUS.items():
        points = corpus.bundle(name).points
        assert (0 if points is None else len(read_points(points))) == random_orders
        program = split_key(name)[0]
        module, _, function = build.target_of(program).partition(":")
        assert hasattr(importlib.import_module(module), function)
    with pytest.raises(InputError, match="no family"):
        build.target_of("nobody")
