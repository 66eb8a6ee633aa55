"""The table of the corpus, and one program described."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import programs
from experiments.inputs import load_program
from experiments.programs import (
    CorpusRow,
    committed_table,
    corpus_row,
    describe,
    measured_table,
    unmeasured,
)
from hlo_graphs import corpus
from hlo_graphs.errors import InputError


def test_the_committed_table_is_of_this_corpus_and_can_be_measured_again() -> None:
    rows = {row.name: row for row in committed_table()}
    assert tuple(rows) == corpus.names()
    kept = rows["lstm_forward.v5e.32MiB"]
    again = corpus_row(kept.name, kept.split)
    assert again.production_seconds == pytest.approx(kept.production_seconds)
    assert again.lower_bound_seconds == pytest.approx(kept.lower_bound_seconds, rel=1e-3)
    assert (again.num_steps, again.num_accesses) == (kept.num_steps, kept.num_accesses)


def test_a_program_that_is_not_measured_yet_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "TABLE", tmp_path / "table.json")
    assert committed_table() == []
    row = CorpusRow("lstm_forward.v5e", "test", "v5e", 0, 1, 1, 1, 3.0, 2.0, 1.0, 1.0)
    rows = [row.to_document(), replace(row, name="gone.v5e").to_document()]
    programs.TABLE.write_text(json.dumps(rows))
    assert committed_table() == [row]
    names = [name for name, _ in unmeasured([row])]
    assert sorted([*names, row.name]) == list(corpus.names())
    programs.TABLE.write_text("[{}]")
    with pytest.raises(InputError, match="--measure"):
        committed_table()


def test_only_what_has_no_figures_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [row for row in committed_table() if row.name != "lstm_forward.v5e"]
    (left_out,) = (row for row in committed_table() if row.name == "lstm_forward.v5e")
    monkeypatch.setattr(programs, "corpus_row", lambda name, split: replace(left_out, split=split))
    told: list[CorpusRow] = []
    assert measured_table(kept, told.append) == committed_table()
    assert told == [left_out]


def test_no_bound_is_above_production() -> None:
    rows = committed_table()
    assert rows
    for row in rows:
        assert 0 < row.lower_bound_seconds <= row.production_seconds < row.all_slow_seconds, row


def test_a_description_names_the_costliest_accesses_first() -> None:
    description = describe(load_program("lstm_forward"))
    figures = dict(description.figures)
    assert figures["program"] == "lstm_forward.v5e"
    assert figures["loops and branches"] == "1"
    costs = [cost.seconds for cost in description.costliest]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 0
