"""Trains the generalist: one network for all programs, on the train split and generated ones.

    python -m experiments.generalist --out RUN [--time-limit 3000] [--seed 0] [--resume]
        [--programs NAME...] [--variants 6] [--generated 640] [--preset generalist] [--ship]

No program of the test split is looked at, and of every third family of the train split none is
trained on: those tell when the network learns the others by heart (`Validation`). Beside each
program there are variants of it, with other capacities and faster or slower copies. Each
program's first game is a demonstration, which becomes its first elite: the best of what the
greedy solver and a table find (`--demonstrations`, `agents.adaptation`), in the form that plays
by price where that costs nothing (`agents.canonical`). A run is a folder: `settings.json`,
`programs.json` (names of what is played), `metrics.jsonl` (a line every twenty seconds),
`validation.jsonl`, `checkpoint.msgpack`, and `best.msgpack`: the averaged weights that played best
on the families kept apart. `--ship` puts those where `solve --solver agent` finds them, with what
they were trained on beside them. docs/agent.md has the curves of the shipped one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from experiments.console import told_in_a_line
from experiments.demonstrations import TABLE
from experiments.generalist.run import ship
from experiments.generalist.settings import GeneralistSettings
from experiments.generalist.training import train_generalist


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and ships if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--programs", nargs="*", default=())
    parser.add_argument("--validation", nargs="*", default=())
    parser.add_argument("--variants", type=int, default=6)
    parser.add_argument("--generated", type=int, default=640)
    parser.add_argument("--most-accesses", type=int, default=4000)
    parser.add_argument("--preset", default="generalist")
    parser.add_argument("--time-limit", type=float, default=3000.0)
    parser.add_argument("--demonstrations", nargs="*", default=("greedy", TABLE))
    parser.add_argument("--demonstration-games", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--ship", action="store_true", help="afterwards, or alone with limit 0")
    chosen = parser.parse_args(arguments)
    settings = GeneralistSettings(
        out=chosen.out,
        programs=tuple(chosen.programs),
        validation=tuple(chosen.validation),
        num_variants=chosen.variants,
        num_generated=chosen.generated,
        most_accesses=chosen.most_accesses,
        preset=chosen.preset,
        time_limit_seconds=chosen.time_limit,
        demonstrations=tuple(chosen.demonstrations),
        demonstration_games=chosen.demonstration_games,
        seed=chosen.seed,
    )
    if chosen.time_limit != 0:
        train_generalist(settings, resume=chosen.resume, say=_say)
    else:
        settings.check()
    if chosen.ship:
        _say(f"shipped as {ship(chosen.out)}")


def _say(line: str) -> None:
    # A terminal that was closed must not keep a run from being saved.
    with suppress(OSError):
        print(line, flush=True)


if __name__ == "__main__":
    main()
