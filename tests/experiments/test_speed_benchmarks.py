"""Benchmarks that the command line does not know: each runs, on something small."""

from __future__ import annotations

from types import ModuleType

import pytest

pytest.importorskip("mctx", reason="the agent's packages are not installed")

from agents.trainer import Trainer
from experiments.benchmarks import (
    ablations,
    adaptation,
    agent,
    fast_game,
    game,
    production,
    xla_msa,
)
from hlo_graphs.errors import InputError
from malloc_game.generator import random_program
from malloc_game.turn_table import turn_table


@pytest.mark.parametrize(
    "benchmark", [ablations, adaptation, agent, fast_game, game, production, xla_msa]
)
def test_a_program_that_is_not_there_is_told_in_a_line(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["no_such_program"])
    assert stop.value.code == InputError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("malloc-game: error: ")
    assert "no_such_program" in line


def test_the_game_is_timed_from_the_decision_it_says() -> None:
    table = turn_table(random_program(3, num_accesses=20))
    timing = game.time_game(table, batch=2, num_decisions=2)
    assert timing.num_decisions == 2 * 2
    assert timing.num_played_items >= timing.num_decisions
    assert timing.first_decision == 2 * min(10, table.num_turns // 8) > 0
    row = dict(zip(game._HEADER, timing.row(), strict=True))
    assert (row["batch"], row["from"]) == ("2", str(timing.first_decision))
    assert row["turns"] == str(table.num_turns)
    assert timing.cost.cpu_seconds > 0


def test_the_compiled_game_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    fast_game.main(["--sizes", "20", "60", "--seconds", "0.0"])
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert len(rows) == 4
    assert all(len(row.split()) == len(head.split()) - 1 for row in rows)
    assert last.startswith("cost of a game grows as turns ** ")


def test_productions_map_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert production.main(["lstm_forward.v5e"]) == 0
    head, row, *_ = capsys.readouterr().out.splitlines()
    cells = dict(zip(head.split(), row.split(), strict=True))
    assert cells["program"] == "lstm_forward.v5e"
    assert (cells["valid"], cells["missed"]) == ("yes", "0")
    assert int(cells["marked"]) > 0


def test_the_agents_moves_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agent, "_RUNS", 1)
    monkeypatch.setattr(Trainer, "learn", lambda self: None)  # Half a minute of compilation.
    agent.main(["--accesses", "20", "--models", "learned", "--simulations", "0"])
    head, row = capsys.readouterr().out.splitlines()
    assert head == agent.HEADER
    model, simulations, actors, *rates = row.split()
    assert (model, simulations, actors) == ("learned", "0", "32")
    assert all(float(rate.replace(",", "")) > 0 for rate in rates[:3])
    assert sum(float(share.rstrip("%")) for share in rates[3:]) > 97
