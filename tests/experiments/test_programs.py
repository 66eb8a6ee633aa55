"""The table of the corpus, and one program described."""

from __future__ import annotations

import pytest

from experiments.inputs import load_program
from experiments.programs import committed_table, corpus_row, describe


def test_the_committed_table_is_of_this_corpus_and_can_be_measured_again() -> None:
    rows = {row.name: row for row in committed_table()}
    kept = rows["lstm_forward.v5e.32MiB"]
    again = corpus_row(kept.name, kept.split)
    assert again.production_seconds == pytest.approx(kept.production_seconds)
    assert again.lower_bound_seconds == pytest.approx(kept.lower_bound_seconds, rel=1e-3)
    assert (again.num_steps, again.num_accesses) == (kept.num_steps, kept.num_accesses)


def test_no_bound_is_above_production() -> None:
    for row in committed_table():
        assert 0 < row.lower_bound_seconds <= row.production_seconds < row.all_slow_seconds, row


def test_a_description_names_the_costliest_accesses_first() -> None:
    description = describe(load_program("lstm_forward"))
    figures = dict(description.figures)
    assert figures["program"] == "lstm_forward.v5e"
    assert figures["loops and branches"] == "1"
    costs = [cost.seconds for cost in description.costliest]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 0
