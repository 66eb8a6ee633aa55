"""Extracting: dumps cleaned and joined by name; targets checked; a real compile when slow."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hlo_graphs import compile as compile_module
from hlo_graphs.bundle import Placement, bundle_of, read_cycles, read_live_range, read_points
from hlo_graphs.bundle_writer import (
    BundleSource,
    Dump,
    clean_hlo,
    instruction_points,
    write_bundle,
)
from hlo_graphs.compile import CompileError, default_name, extract
from hlo_graphs.compile_child import line_of
from hlo_graphs.compiler_dumps import Compile, keep_dumps
from hlo_graphs.errors import InputError, MissingExtraError
from hlo_graphs.parser import parse_module

HEADER = "HloModule m, is_scheduled=true, entry_computation_layout={(f32[8])->f32[8]}"

BEFORE = f"""{HEADER}

FileNames
1 "/home/somebody/model.py"

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}


%fused (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0:T(256)}} parameter(0)
  ROOT %n = f32[8]{{0:T(256)}} negate(%p), metadata={{op_name="jit(f)/neg" stack_frame_id=1}}
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0:T(256)}} parameter(0), metadata={{op_name="x" source_file="/a/b{{c}}.py"}}
  %a = f32[8]{{0:T(256)}} fusion(%x), kind=kLoop, calls=%fused
  ROOT %b = f32[8]{{0:T(256)}} fusion(%a), kind=kLoop, calls=%fused, metadata={{stack_frame_id=1}}
}}
"""


def compiled(cycles: tuple[int, int], spaces: tuple[str, str]) -> str:
    """The module after assignment: `x` copied into `spaces[0]`, `a` placed in `spaces[1]`."""
    config = (
        '{{"flag_configs":[],"window_config":{{"kernel_window_bounds":["8"],'
        '"estimated_cycles":"{}"}},"used_scoped_memory_configs":[],'
        '"aliasing_operands":{{"lists":[]}}}}'
    )
    first, second = (config.format(count) for count in cycles)
    return f"""{HEADER}

%fused (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0:T(256)}} parameter(0)
  ROOT %n = f32[8]{{0:T(256)}} negate(%p), backend_config={first}
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0:T(256){spaces[0]}}} parameter(0)
  %a = f32[8]{{0:T(256){spaces[1]}}} fusion(%x), kind=kLoop, calls=%fused, backend_config={first}
  ROOT %b = f32[8]{{0:T(256)}} fusion(%a), kind=kLoop, calls=%fused, backend_config={second}
}}
"""


SCHEDULE = "time,instruction_name\n0,x\n1,a\n2,b\n"
LIVE_RANGE = (
    "HloLiveRange (max 2):\n  InstructionSequence:\n    0:x\n    1:a\n    2:b\n"
    "  BufferLiveRange:\n    x{}:0-1\n  Stack trace breakdown for peak usage:\n    /home/x.py\n"
)


def dump(setting: str, production: str | None, live_range: str | None = None) -> Dump:
    tables = {"bufferinfo": None, "allocinfo": None, "buffer_assignment": None}
    return Dump(
        setting=setting,
        options=(),
        seconds=1.0,
        before=BEFORE,
        production=production,
        live_range=live_range,
        scheduleinfo=SCHEDULE,
        **tables,
    )


def source(**changes: object) -> BundleSource:
    fields: dict[str, object] = {
        "name": "tiny",
        "chip": "v5e",
        "vmem_bytes": 64 * 2**20,
        "capacity_bytes": 48 * 2**20,
        "clock_hz": 1.5e9,
        "fast_memory_space": 1,
        "command": "malloc-game extract m:f --chip v5e",
        "jax_version": "1",
        "libtpu_version": "2",
        "production": dump("production", compiled((7, 5), ("", "S(1)"))),
        "no_fast_memory": dump("no_fast_memory", compiled((9, 9), ("", "")), LIVE_RANGE),
        "huge": dump("huge", compiled((4, 5), ("S(1)", "S(1)"))),
        "huge_failure": None,
        "extra": (dump("random_order_1", compiled((6, 6), ("S(1)", ""))),),
    }
    return BundleSource(**{**fields, **changes})  # type: ignore[arg-type]


def test_cleaning_drops_source_places_and_keeps_names() -> None:
    text = clean_hlo(BEFORE)
    assert "somebody" not in text
    assert ".py" not in text
    assert "StackFrames" not in text
    assert 'metadata={op_name="jit(f)/neg"}' in text
    assert 'metadata={op_name="x"}' in text
    assert "calls=%fused\n}" in text, "metadata without op_name goes wholly"
    assert set(parse_module(text).computations) == {"fused", "main"}


def test_cleaning_keeps_what_the_backend_config_says_about_time_and_memory() -> None:
    config = {
        "known_trip_count": {"n": "5"},
        "window_config": {"estimated_cycles": "12", "cost_model_type": "X"},
        "used_scoped_memory_configs": [{"memory_space": "1", "offset": "0", "size": "4096"}],
        "aliasing_operands": {"lists": [{"indices": ["0"]}]},
        "custom_call_config": {"body": "bytes", "cost_estimate": {"flops": "3"}},
        "float_type_correction_info": {"original_type": "BF16"},
    }
    line = f"  %a = f32[] add(%x, %x), backend_config={json.dumps(config)}, extra={{1}}"
    cleaned = clean_hlo(line).rstrip("\n")
    assert cleaned.endswith(", extra={1}")
    kept = json.loads(cleaned.partition("backend_config=")[2].removesuffix(", extra={1}"))
    assert kept == {
        **{key: config[key] for key in ("known_trip_count", "used_scoped_memory_configs")},
        "window_config": {"estimated_cycles": "12"},
        "custom_call_config": {"cost_estimate": {"flops": "3"}},
        "aliasing_operands": config["aliasing_operands"],
    }
    spread = json.dumps(config, indent=2)
    assert clean_hlo(f"  %a = f32[] add(%x, %x), backend_config={spread}, extra={{1}}") == (
        clean_hlo(line)
    )
    bare = '  %a = f32[] add(%x, %x), backend_config={"flag_configs":[]}'
    assert clean_hlo(bare) == "  %a = f32[] add(%x, %x)\n"


@pytest.mark.parametrize(
    "config",
    ["{num_threads = 4 : i64}", f'{{"a":{"1" * 5000}}}', f'{{"a":{"[" * 99999}{"]" * 99999}}}'],
    ids=["mlir", "digits", "nesting"],
)
def test_a_config_that_is_no_json_stays(config: str) -> None:
    line = f'  %a = f32[] custom-call(%x), custom_call_target="f", backend_config={config}'
    after = '  %b = f32[] add(%a, %a), backend_config={"flag_configs":[]}'
    assert clean_hlo(f"{line}\n{after}") == f"{line}\n  %b = f32[] add(%a, %a)\n"


def test_a_config_that_is_no_json_states_no_cycles() -> None:
    module = parse_module(
        "ENTRY e { x = f32[8] parameter(0)\n ROOT c = f32[8] custom-call(x), "
        'custom_call_target="f", backend_config={estimated_cycles = 4 : i64} }'
    )
    assert instruction_points(module, module, fast_memory_space=1) == ({}, {})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    config=st.dictionaries(st.sampled_from(["retry_config", "known_trip_count", "x"]), JSON_VALUES),
    op_name=st.text(st.characters(blacklist_categories=["Cc", "Cs"], blacklist_characters="\x85")),
    indent=st.sampled_from([None, 2]),
)
def test_cleaning_any_config_and_name_leaves_the_rest_alone(
    config: dict[str, object], op_name: str, indent: int | None
) -> None:
    assume(not set(op_name) & {"\u2028", "\u2029"})
    quoted = op_name.replace("\\", "\\\\").replace('"', '\\"')
    start, end = "  %a = f32[2]{0} add(%x, %x), to_apply=%r", ", sharding={replicated}"
    metadata = f', metadata={{op_type="t{{" op_name="{quoted}" stack_frame_id=7}}'
    text = f"{start}{metadata}, backend_config={json.dumps(config, indent=indent)}{end}\n"
    cleaned = clean_hlo(text)
    assert cleaned.startswith(f'{start}, metadata={{op_name="{quoted}"}}')
    assert cleaned.endswith(f"{end}\n")
    kept = config.get("known_trip_count")
    assert ("known_trip_count" in cleaned.removeprefix(start)) >= bool(kept)
    assert clean_hlo(cleaned) == cleaned


def test_points_say_cycles_and_where_each_array_lay() -> None:
    reference = parse_module(clean_hlo(BEFORE))
    module = parse_module(clean_hlo(compiled((7, 5), ("S(1)", "S(1)"))))
    cycles, placements = instruction_points(module, reference, fast_memory_space=1)
    assert cycles == {"a": 7, "b": 5}, "instructions inside the fusion state none of their own"
    assert placements == {"x": ">1", "a": "1>1", "b": "1>0"}
    assert instruction_points(module, reference, fast_memory_space=3)[1] == {}


@pytest.mark.parametrize(
    "change",
    [
        ("%a = f32[8]{0:T(256)} fusion(%x)", "%a = f32[8]{0:T(128)} fusion(%x)"),
        ("%a = f32[8]{0:T(256)} fusion(%x), kind=kLoop, calls=%fused", "%a = f32[8]{0} copy(%x)"),
        ("%a", "%other"),
    ],
)
def test_names_that_changed_their_meaning_do_not_join(change: tuple[str, str]) -> None:
    reference = parse_module(clean_hlo(BEFORE).replace(*change))
    module = parse_module(clean_hlo(compiled((7, 5), ("", "S(1)"))))
    assert "a" not in instruction_points(module, reference, fast_memory_space=1)[0]


def test_a_bundle_holds_every_compile(tmp_path: Path) -> None:
    key = write_bundle(source(), tmp_path)
    assert key == "tiny.v5e.64MiB"
    bundle = bundle_of(tmp_path / f"{key}.before.hlo.gz")
    assert bundle.cycles is not None
    assert bundle.points is not None
    assert bundle.live_range is not None
    table = read_cycles(bundle.cycles)
    assert table.none.cycles == {"a": 9, "b": 9}
    assert table.production.cycles == {"a": 7, "b": 5}
    assert table.production.placements == {"a": Placement("0", "1"), "b": Placement("1", "0")}
    assert table.production_size_bytes == 48 * 2**20
    assert table.huge is not None
    assert table.huge.cycles == {"a": 4, "b": 5}
    assert table.meta is not None
    assert table.meta.live_range_module == "before"
    assert [point.setting for point in read_points(bundle.points)] == ["random_order_1"]
    assert read_live_range(bundle.live_range).ranges == {"x{}": (0, 1)}
    assert "home" not in gzip.decompress(bundle.live_range.read_bytes()).decode()


def test_the_same_dumps_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_bundle(source(), first)
    time.sleep(1.1)  # gzip headers count whole seconds
    write_bundle(source(), second)
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_what_a_later_bundle_lacks_is_removed(tmp_path: Path) -> None:
    write_bundle(source(), tmp_path)
    key = write_bundle(source(extra=(), huge=None, huge_failure="no room"), tmp_path)
    bundle = bundle_of(tmp_path / f"{key}.before.hlo.gz")
    assert bundle.points is None
    assert bundle.cycles is not None
    table = read_cycles(bundle.cycles)
    assert table.huge is None
    assert table.huge_failure == "no room"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_later_bundle_leaves_no_other_spelling_behind(tmp_path: Path) -> None:
    key = write_bundle(source(), tmp_path)
    for suffix in ("before.hlo", "production.hlo", "cycles.json.gz", "points.json"):
        (tmp_path / f"{key}.{suffix}").write_text("stale")
    write_bundle(source(extra=()), tmp_path)
    bundle = bundle_of(tmp_path / f"{key}.cycles.json")
    assert bundle.points is None
    assert bundle.cycles is not None
    assert bundle.cycles.suffix == ".json"
    assert not [path for path in tmp_path.iterdir() if path.read_bytes() == b"stale"]


def test_a_scalar_in_another_memory_is_the_same_scalar() -> None:
    reference, module = (
        parse_module(
            f"ENTRY e {{ x = f32[8] parameter(0)\n ROOT t = {shape} custom-call(x), "
            'custom_call_target="f", backend_config={"window_config":{"estimated_cycles":"7"}} }'
        )
        for shape in ("(f32[8], u32[])", "(f32[8]{0:S(1)}, u32[]{:S(2)})")
    )
    assert instruction_points(module, reference, fast_memory_space=1) == ({"t": 7}, {"t": "0>10"})


@pytest.mark.parametrize("num_done", range(6))
def test_an_interrupted_bundle_is_none_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_done: int
) -> None:
    key = write_bundle(source(), tmp_path)
    replaced: list[Path] = []

    def replace(temporary: Path, final: Path) -> None:
        if len(replaced) == num_done:
            raise KeyboardInterrupt
        os.rename(temporary, final)
        replaced.append(final)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(source(), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in replaced)
    assert f"{key}.before.hlo.gz" not in names


@pytest.mark.parametrize("name", ["a/b", "../c", "/a", "a/"])
def test_a_name_that_is_a_path_is_refused_at_once(
    tmp_path: Path, done: list[str], name: str
) -> None:
    (tmp_path / "m.hlo").write_text(BEFORE)
    with pytest.raises(InputError, match="is a path, not a name"):
        extract(str(tmp_path / "m.hlo"), "v5e", tmp_path / "out", name=name)
    assert done == []


def test_a_folder_that_cannot_be_is_refused_at_once(tmp_path: Path, done: list[str]) -> None:
    path = tmp_path / "m.hlo"
    path.write_text(BEFORE)
    for output_dir in (path, path / "below"):
        with pytest.raises(InputError, match=r"cannot write there"):
            extract(str(path), "v5e", output_dir)
    assert done == []


def test_foreign_live_ranges_are_not_taken_for_the_before_module(tmp_path: Path) -> None:
    strange = LIVE_RANGE.replace("1:a", "1:z")
    plain = dump("no_fast_memory", compiled((9, 9), ("", "")), strange)
    own = dump("production", compiled((7, 5), ("", "")), LIVE_RANGE.replace("(max 2)", "(max 3)"))
    key = write_bundle(source(no_fast_memory=plain, production=own), tmp_path)
    bundle = bundle_of(tmp_path / f"{key}.before.hlo.gz")
    assert bundle.cycles is not None
    assert bundle.live_range is not None
    meta = read_cycles(bundle.cycles).meta
    assert meta is not None
    assert meta.live_range_module == "production"
    assert read_live_range(bundle.live_range).end_time == 3


def test_a_compile_without_a_module_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dumped no scheduled module"):
        write_bundle(source(production=dump("production", None)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "chip", "vmem_bytes", "message"),
    [
        ("m:f", "v9", None, "'v9' cannot be compiled for; known are v4"),
        ("m:f", "v4", 2**26, "cannot be resized"),
        ("m:f", "v5e", 2**26 + 1, "whole MiB"),
        ("m:f", "v5e", 2**24, "more than the 16 MiB that v5e sets aside"),
        ("m:f", "v6e", 2**25, "more than the 32 MiB that v6e sets aside"),
        ("module", "v5e", None, "'module' is no target"),
        ("module:", "v5e", None, "is no target"),
        ("absent.hlo.gz", "v5e", None, "no such file"),
    ],
)
def test_impossible_requests_say_what_to_write(
    tmp_path: Path, target: str, chip: str, vmem_bytes: int | None, message: str
) -> None:
    if importlib.util.find_spec("libtpu") is None and vmem_bytes is None and chip == "v5e":
        pytest.skip("the tpu extra is not installed")
    with pytest.raises(InputError, match=message):
        extract(target, chip, tmp_path / "out", vmem_bytes=vmem_bytes)
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"malloc-game\[tpu\]"):
        extract("m:f", "v5e", tmp_path)


def test_names_come_from_the_function_or_the_file() -> None:
    assert default_name("package.module:model") == "model"
    assert default_name("folder/gemma.v1.hlo.gz") == "gemma"


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings that were compiled, by a compiler that says the same of every program."""
    names: list[str] = []

    def child(job: compile_module._Job, compiles: Sequence[Compile]) -> None:
        for each in compiles:
            folder, tables = job.directory / each.setting.name, job.directory / "tables"
            dumps = folder / "dumps"
            for path in (dumps, tables):
                path.mkdir(parents=True, exist_ok=True)
            (dumps / "m.after_optimizations_before_buffer_assignment.txt").write_text(BEFORE)
            (dumps / "m.after_codegen.txt").write_text(compiled((7, 5), ("", "S(1)")))
            keep_dumps(dumps, tables, folder, 1.0, each.to_document())
            names.append(each.setting.name)

    monkeypatch.setattr(compile_module, "_run_child", child)
    monkeypatch.setattr(compile_module, "_require_tpu_extra", lambda: None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    return names


def test_kept_dumps_stand_for_an_equal_compile_only(
    tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.hlo"
    target.write_text(BEFORE)
    every = ["production", "no_fast_memory", "huge"]

    def compiled_anew(chip: str, vmem_bytes: int | None = None) -> list[str]:
        done.clear()
        folders = {"output_dir": tmp_path / "out", "dumps_dir": tmp_path / "dumps"}
        extract(str(target), chip, vmem_bytes=vmem_bytes, random_orders=0, **folders)
        return list(done)

    assert compiled_anew("v5e") == every
    assert compiled_anew("v5e") == []
    assert compiled_anew("v5p") == every
    assert compiled_anew("v5p", 2**25) == every[:2], "the huge memory is as huge as before"
    target.write_text(BEFORE + "\n")
    assert compiled_anew("v5p", 2**25) == every
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2")
    assert compiled_anew("v5p", 2**25) == every
    (tmp_path / "dumps" / "production" / "done.json").write_text('{"seconds": 1}')
    assert compiled_anew("v5p", 2**25) == every[:1]


@pytest.mark.parametrize("broken", ["production", "no_fast_memory"])
def test_nothing_more_is_compiled_when_what_the_bundle_needs_fails(
    tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    del done  # only for its compiler
    target = tmp_path / "m.hlo"
    target.write_text(BEFORE)
    works = compile_module._run_child
    asked: list[list[str]] = []

    def child(job: compile_module._Job, compiles: Sequence[Compile]) -> str:
        names = [each.setting.name for each in compiles]
        asked.append(names)
        works(job, compiles[: names.index(broken)] if broken in names else compiles)
        return "it always fails"

    monkeypatch.setattr(compile_module, "_run_child", child)
    with pytest.raises(CompileError, match=r"m\.hlo for v5e: it always fails"):
        extract(str(target), "v5e", tmp_path / "out", random_orders=1)
    assert asked == [["production", "no_fast_memory", "random_order_1"]]


def test_a_target_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some_package" / "model.py"
    path.parent.mkdir()
    (path.parent / "__init__.py").write_text("raise ImportError")
    path.write_text("def f(): ...")
    wanted = hashlib.sha256(path.read_bytes()).hexdigest()
    assert compile_module._source_sha256("some_package.model:f") == wanted
    assert compile_module._source_sha256("some_package/model.py:f") == wanted


def failing_child(log: str, code: int) -> str:
    return compile_module._failure(code, log)


def test_a_failed_check_becomes_one_line() -> None:
    log = "INFO\nF1122 22:45 x.cc:5] Check failed: a <= b (2 vs. 1)\nE1122 Raising signal 6\n"
    message = failing_child(log, -6)
    assert message.startswith("the compiler's process ended by signal 6: ")
    assert "Check failed: a <= b" in message
    assert "Raising" not in message
    assert failing_child("Traceback\nValueError: no\n", 1).endswith("exit code 1: ValueError: no")


def test_an_error_of_many_lines_becomes_the_telling_one() -> None:
    wrong = "INVALID_ARGUMENT: Syntax error:\nwas parsing 3:9: error: expects ')'\n  f32[8\n     ^"
    assert line_of(RuntimeError(wrong)) == "RuntimeError: was parsing 3:9: error: expects ')'"
    assert line_of(TypeError("dot got (2,) and (3,)\nhint")) == "TypeError: dot got (2,) and (3,)"
    assert line_of(AssertionError()) == "AssertionError: no message"


def test_xlas_own_parser_is_quoted_with_the_place() -> None:
    hlo = pytest.importorskip("jaxlib._hlo")
    with pytest.raises(Exception, match="error: ") as wrong:
        hlo.hlo_module_from_text("HloModule m\n\nENTRY e {\n  ROOT x = f32[8 parameter(0)\n}\n")
    assert re.search(r"4:\d+: error: ", line_of(wrong.value))


def test_the_compilers_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    os.mkfifo(request)  # Nobody writes into it: the child waits for what to do.
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "hlo_graphs.compile_child", request, str(reading)],
        pass_fds=(reading,),
    )
    os.close(reading)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    os.close(writing)
    assert child.wait(30) == 1


TINY = """
import jax, jax.numpy as jnp

def tiny():
    def f(x, weights):
        for weight in weights:
            x = jax.nn.relu(x @ weight)
        return x
    square = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16)
    return f, (square, [square] * 3)

def broken():
    raise ValueError("no such model")

def not_a_target(x):
    return x

number = 1
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("libtpu", "jax"):
        if importlib.util.find_spec(module) is None:
            pytest.skip("the tpu extra is not installed")
    path = tmp_path_factory.mktemp("target") / "tiny_model.py"
    path.write_text(TINY)
    return path


@pytest.mark.slow
def test_a_real_compile_makes_a_whole_bundle(tiny: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    bundle = extract(f"{tiny}:tiny", "v5e", tmp_path, random_orders=1, progress=lines.append)
    assert bundle.key == "tiny.v5e"
    assert None not in (bundle.production, bundle.bufferinfo, bundle.live_range, bundle.points)
    assert bundle.cycles is not None
    table = read_cycles(bundle.cycles)
    assert table.none.cycles.keys() == table.production.cycles.keys()
    assert sum(table.production.cycles.values()) < sum(table.none.cycles.values())
    assert table.none.placements == {}
    assert table.production.placements
    assert table.meta is not None
    assert table.meta.live_range_module == "before"
    assert len(lines) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not_a_target", r"it returned list \(a target is a function that returns \(fn, args\)"),
        ("number", "has no function number"),
        ("nothing", "has no function nothing"),
    ],
)
def test_what_is_no_target_is_said_in_one_line(
    tiny: Path, tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(CompileError, match=words):
        extract(f"{tiny}:{name}", "v5e", tmp_path / "out")


def test_a_missing_target_file_is_named_before_anything_is_compiled(tmp_path: Path) -> None:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the tpu extra is not installed")
    with pytest.raises(InputError, match=r"gone\.py: no such file"):
        extract(f"{tmp_path}/gone.py:model", "v5e", tmp_path)


@pytest.mark.slow
def test_a_broken_target_is_an_error_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="ValueError: no such model"):
        extract(f"{tiny}:broken", "v5e", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_time_limit_ends_the_compiler(tiny: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CompileError, match="time limit"):
        extract(f"{tiny}:tiny", "v5e", tmp_path / "out", time_limit_seconds=1.0)
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_an_hlo_file_compiles_too(tiny: Path, tmp_path: Path) -> None:
    del tiny  # only for its skips
    text = (
        "HloModule from_file\n\nENTRY main {\n  x = bf16[512,512] parameter(0)\n"
        "  w = bf16[512,512] parameter(1)\n  d = bf16[512,512] dot(x, w), "
        "lhs_contracting_dims={1}, rhs_contracting_dims={0}\n  ROOT t = bf16[512,512] tanh(d)\n}\n"
    )
    path = tmp_path / "from_file.hlo"
    path.write_text(text)
    bundle = extract(str(path), "v5e", tmp_path / "out", random_orders=0)
    assert bundle.name == "from_file"
    assert bundle.cycles is not None
    assert sum(read_cycles(bundle.cycles).none.cycles.values()) > 0
