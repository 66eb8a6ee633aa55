"""The parsing benchmark runs, and its enlarged modules are what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from experiments.benchmarks.parsing import Growth, Timing, main, measure, repeat_computations
from hlo_graphs.parser import parse_module
from tests.hlo_graphs.sample_module import SAMPLE


def test_repeated_module_has_every_instruction_so_many_times() -> None:
    single, triple = (parse_module(repeat_computations(SAMPLE, copies)) for copies in (1, 3))
    names = {name.rpartition(".copy")[0] for name in triple.computations if ".copy" in name}
    assert names == {name for name in parse_module(SAMPLE).computations if name != "async_wrapped"}
    for module, copies in ((single, 1), (triple, 3)):
        assert len(module.computations) == copies * 7
        assert [c.name for c in module.computations.values() if c.is_entry] == [
            f"main.1.copy{copies - 1}"
        ]


def test_measures_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sample.hlo"
    path.write_text(SAMPLE)
    timing = measure(path, runs=1)
    assert timing.size_bytes == len(SAMPLE)
    assert timing.instructions == sum(
        len(computation.instructions) for computation in parse_module(SAMPLE).computations.values()
    )
    assert timing.ours_seconds > 0
    if importlib.util.find_spec("jaxlib") is None:
        assert timing.ratio is None
    else:
        assert timing.xla_seconds is not None
        assert timing.ratio == timing.ours_seconds / timing.xla_seconds


def test_ratio_and_time_per_byte() -> None:
    assert Timing("a", 10, 1, 3.0, 1.5, 0.1).ratio == 2
    assert Timing("a", 10, 1, 3.0, None, 0.1).ratio is None
    assert Growth(2, 1000, 1e-6).nanoseconds_per_byte == pytest.approx(1)


def test_prints_ratios_and_growth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sample.hlo"
    path.write_text(SAMPLE)
    main([str(path), "--runs", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("sample.hlo") for line in lines)
    assert [line.split()[0] for line in lines[-4:]] == ["x1:", "x2:", "x4:", "x8:"]


def test_bad_file_is_an_error_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.hlo"
    path.write_text("HloModule m {")
    with pytest.raises(SystemExit) as ended:
        main([str(path)])
    assert ended.value.code == 3
    assert "bad.hlo:1:13: found '{'" in capsys.readouterr().err
