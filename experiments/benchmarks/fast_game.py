"""How fast the compiled game plays: games a second, and how the cost grows with the program.

    python -m experiments.benchmarks.fast_game [--sizes 100 300 1000 3000] [PROGRAM...]

Plays random games on generated train steps and mixed programs of about so many accesses, or on
the programs named (corpus names or files). *games/s* are whole games with wishes drawn turn by
turn, *replays/s* trials of `GameWalk` that change one wish of the game before. Figures are per
second of processor time on one core, so that a busy machine does not blur them. The last line
fits games' cost to a power of their turns: 1 is linear. The aim is
5,000 games a second at 1,000 accesses: the ratio to it is printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.console import told_in_a_line
from experiments.inputs import load_program
from hlo_graphs.program import Program
from malloc_game.fast_game import Action, FastGame, GameWalk
from malloc_game.generator import random_program

DEFAULT_SIZES = (100, 300, 1000, 3000)
DEFAULT_SECONDS = 1.0

AIM_GAMES_PER_SECOND = 5000.0
AIM_TURNS = 1000

_BATCH = 50


@dataclass(frozen=True, slots=True)
class Row:
    """One program's figures.

    Attributes:
      games_per_second: whole games, drawn and played.
      replays_per_second: one-wish changes of a running game.
    """

    name: str
    num_turns: int
    games_per_second: float
    replays_per_second: float

    @property
    def nanoseconds_per_turn(self) -> float:
        """Of a whole game."""
        return 1e9 / (self.games_per_second * self.num_turns)

    @property
    def over_aim(self) -> float:
        """Speed over the aim's, the aim scaled to the program's number of turns."""
        return self.games_per_second * self.num_turns / (AIM_GAMES_PER_SECOND * AIM_TURNS)


def measure(program: Program, seconds: float) -> Row:
    """Plays for about `seconds` of processor time each way."""
    game = FastGame(program)
    rng = np.random.default_rng(0)
    table = np.full((game.num_turns, len(Action)), 1 / len(Action))
    games = _rate(lambda: game.sample(table, _BATCH, rng)[0].size, seconds)
    walk = GameWalk(game, game.wishes(Action.COPY))

    def one_batch() -> int:
        turns = rng.integers(0, game.num_turns, (_BATCH, 1))
        actions = rng.integers(0, len(Action), (_BATCH, 1)).astype(np.int8)
        return walk.propose(turns, actions, np.zeros(_BATCH))

    return Row(program.name, game.num_turns, games, _rate(one_batch, seconds))


def _rate(play: Callable[[], int], seconds: float) -> float:
    play()  # loads the machine code
    played, started = 0, time.process_time()
    while True:
        played += play()
        elapsed = time.process_time() - started
        if elapsed >= seconds:
            return played / elapsed


def growth_exponent(rows: Sequence[Row]) -> float:
    """Slope of the logarithm of a game's cost over that of its turns."""
    turns = np.log([row.num_turns for row in rows])
    costs = np.log([1 / row.games_per_second for row in rows])
    return float(np.polyfit(turns, costs, 1)[0])


def _programs(names: Sequence[str], sizes: Sequence[int]) -> Iterator[Program]:
    for name in names:
        yield load_program(name).program
    if not names:
        for size in sizes:
            for family in ("training", "mixed"):
                yield random_program(1, family=family, num_accesses=size, max_size_units=200)


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one line per program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("programs", nargs="*", help="corpus names or files; default: generated")
    parser.add_argument("--sizes", nargs="+", type=int, default=DEFAULT_SIZES)
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS)
    options = parser.parse_args(arguments)
    print(
        f"{'program':32} {'turns':>6} {'games/s':>9} {'ns/turn':>8} {'replays/s':>10} {'x aim':>6}"
    )
    rows = []
    for program in _programs(options.programs, options.sizes):
        row = measure(program, options.seconds)
        rows.append(row)
        print(
            f"{row.name:32.32} {row.num_turns:6d} {row.games_per_second:9.0f} "
            f"{row.nanoseconds_per_turn:8.0f} {row.replays_per_second:10.0f} {row.over_aim:6.2f}",
            flush=True,
        )
    if len({row.num_turns for row in rows}) > 1:
        print(f"cost of a game grows as turns ** {growth_exponent(rows):.2f}")


if __name__ == "__main__":
    main()
