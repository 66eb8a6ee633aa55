"""The error table of the cost models."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.benchmarks.cost_model import (
    HEADER,
    TABLE_END,
    TABLE_START,
    Judged,
    judge,
    main,
    markdown,
    models,
    read_case,
    rows_of,
    score,
    side_of,
    targets_of,
    write_into,
)
from hlo_graphs.bundle import bundle_in
from hlo_graphs.calibration import COMPILER_FORM
from hlo_graphs.errors import InputError
from tests.shared_data import shared_data_path


def test_scores_of_a_hand_made_case() -> None:
    found = score([Judged(1.0, 2.0), Judged(3.0, 2.0), Judged(6.0, 6.0)])
    assert found.total_error == pytest.approx(0.0)
    assert found.spread == pytest.approx(0.2)
    assert found.median_error == 0.0
    assert score([Judged(1.1, 1.0)]).median_error == pytest.approx(0.1)


def test_the_pipeline_beats_the_two_points_on_resnet() -> None:
    bundle = bundle_in(shared_data_path("tpu_examples"), "resnet50_infer.v5e")
    case = read_case(bundle)
    assert case is not None
    spreads = {name: score(judge(case, times)).spread for name, times in models(case).items()}
    assert spreads["pipeline"] < 0.03 < spreads["two-point"] < spreads["analytic"]
    assert targets_of(case)
    rows = list(rows_of([case], COMPILER_FORM))
    assert [row[0] for row in rows] == [case.name, "all train", "all"]
    assert all(len(row) == len(HEADER) for row in rows)


@pytest.mark.parametrize(("name", "knows_production"), [("lstm", True), ("resnet50_infer", False)])
def test_nothing_is_unseen_where_the_floors_are_productions_own(
    name: str, knows_production: bool
) -> None:
    case = read_case(bundle_in(shared_data_path("tpu_examples"), f"{name}.v5e"))
    assert case is not None
    judged = judge(case, models(case)["pipeline + points"])
    assert any(item.unseen for item in judged) is not knows_production


def test_sides_follow_the_committed_split() -> None:
    assert (side_of("gpt_decode.v4"), side_of("llama_decode.v5e.64MiB")) == ("test", "train")
    assert side_of("mine.v5e") == "-"


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no bundle"):
        main([str(tmp_path)])


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{TABLE_START}old\nrows{TABLE_END}\nafter\n")
    table = markdown([("a",) * len(HEADER)])
    write_into(page, table)
    assert page.read_text() == f"before\n{TABLE_START}{table}{TABLE_END}\nafter\n"
    assert table.splitlines()[-1] == "| " + " | ".join("a" * len(HEADER)) + " |"
    page.write_text("nothing to write into")
    with pytest.raises(InputError, match="no <!-- corpus table"):
        write_into(page, table)
