"""What `malloc-game train` leaves on disk, and that it goes on from there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agents.checkpoint import BEST, read_weights
from agents.config import preset_named
from experiments.train import METRICS, TrainSettings, train
from hlo_graphs.errors import InputError
from malloc_game.known_optimum import known_optimum_program
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import simulate


def chunks_of(out: Path) -> list[int]:
    lines = (out / METRICS).read_text().splitlines()
    return [json.loads(line)["num_chunks"] for line in lines]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    known = known_optimum_program(2, kind="knapsack", size=8)
    source, out = tmp_path / "program.json", tmp_path / "run"
    source.write_text(known.program.to_json())
    settings = TrainSettings(
        programs=(str(source),),
        out=out,
        simulations=4,
        demonstrations=("greedy",),
        time_limit_seconds=1.0,
    )
    said: list[str] = []
    first = train(settings, said.append)
    assert any("greedy shows a game" in line for line in said)
    assert said[0].startswith("memory ")
    with pytest.raises(InputError, match="holds a run already"):
        train(settings, said.append)

    # A kill in the middle of a line, after the last checkpoint.
    before = chunks_of(out)
    with (out / METRICS).open("a") as file:
        file.write('{"num_chunks": 99999}\n{"num_chu')
    second = train(replace(settings, programs=(), resume=True), said.append)
    assert second.num_games > first.num_games
    assert chunks_of(out) == list(range(1, len(chunks_of(out)) + 1))
    assert len(chunks_of(out)) > len(before)

    memory_map = MemoryMap.from_json((out / "maps" / "knapsack-2.json").read_text())
    best = second.best_latency_ticks[0]
    assert simulate(known.program, memory_map).latency_ticks == best
    assert read_weights(out)[0] == preset_named("tiny", simulations=4)
    assert (out / BEST).exists()
    assert list((out / "tensorboard").iterdir())


def test_resuming_with_other_programs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"programs": ["one"]}')
    settings = TrainSettings(programs=("two",), out=tmp_path, resume=True)
    with pytest.raises(InputError, match="checkpoint"):
        train(settings)
