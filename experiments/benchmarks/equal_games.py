"""What the cross-entropy method finds in as many games as an agent played.

    python -m experiments.benchmarks.equal_games TABLE [--solver agent-scratch] [--time-limit 60]

TABLE is the folder of an evaluation. For each of the solver's rows with that time limit, else the
longest, the method plays as many games as that row says were played, twice: as the registered
solver, which first tries games that keep what saves most per byte and step, and from uniform
probabilities, which knows as little as an agent from scratch. Printed is production's latency over
each one's, medians over the seeds, and who is ahead by more than the share that counts as a tie.
`agent-scratch` plays most of its games by a table too (`agents.adaptation`): so this compares two
ways to learn a table, what network and search add included.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.adaptation import CROSS_ENTROPY, from_nothing
from agents.programs import PlayedProgram
from experiments.console import told_in_a_line
from experiments.inputs import load_program
from experiments.report.statistics import TIE
from experiments.results import Row, read_rows
from hlo_graphs.errors import InputError
from solvers.cross_entropy import CrossEntropySolver
from solvers.solver import SolveRequest

_NO_LIMIT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One program: production's latency over each one's, medians over the seeds.

    Attributes:
      program: its name.
      num_games: of the agent.
      agent: the agent's.
      registered: of the registered solver after as many games.
      uniform: of the method from uniform probabilities after as many games.
    """

    program: str
    num_games: int
    agent: float
    registered: float
    uniform: float

    def row(self) -> str:
        """One line."""
        numbers = f"{self.agent:>10.4f}{self.registered:>12.4f}{self.uniform:>10.4f}"
        return f"{self.program:<28}{self.num_games:>9,}{numbers}"


HEADER = f"{'program':<28}{'games':>9}{'agent':>10}{'registered':>12}{'uniform':>10}"


def rows_of(table: Path, solver: str, time_limit_seconds: float | None) -> list[Row]:
    """The solver's rows with that limit, None for the longest, that can be compared.

    Raises:
      InputError: if there are none.
    """
    rows = [row for row in read_rows(table) if row.solver == solver]
    rows = [row for row in rows if row.games_played and row.production_seconds]
    limits = {row.time_limit_seconds for row in rows}
    limit = max(limits, default=None) if time_limit_seconds is None else time_limit_seconds
    if limit not in limits:
        within = "" if limit is None else f" within {limit:g} s"
        raise InputError(f"{table}: no games of {solver}{within} beside production's map")
    rows = [row for row in rows if row.time_limit_seconds == limit]
    if len({row.workers_per_task for row in rows}) > 1:
        raise InputError(f"{table}: {solver} ran with several numbers of processes there")
    if any(row.copy_order != "deadline" for row in rows):
        raise InputError(f"{table}: its copies are not in order of deadlines, which the game's are")
    return rows


def compare(rows: Sequence[Row]) -> Comparison:
    """The rows of one program, which differ in their seeds; in the table's own times."""
    program = load_program(rows[0].source, times=rows[0].times, busy=rows[0].busy).program
    played = PlayedProgram.of(program)
    agent, registered, uniform = [], [], []
    for row in rows:
        assert row.games_played
        assert row.latency_seconds
        assert row.production_seconds
        production_ticks = row.production_seconds / program.tick_seconds
        agent.append(row.production_seconds / row.latency_seconds)
        request = SolveRequest(
            program,
            time_limit_seconds=_NO_LIMIT_SECONDS,
            seed=row.seed,
            max_games=row.games_played,
        )
        solution = CrossEntropySolver().solve(request)
        registered.append(production_ticks / solution.latency_ticks)
        uniform.append(production_ticks / from_uniform(played, row.games_played, row.seed))
    return Comparison(
        program=rows[0].program,
        num_games=round(float(np.median([row.games_played for row in rows if row.games_played]))),
        agent=float(np.median(agent)),
        registered=float(np.median(registered)),
        uniform=float(np.median(uniform)),
    )


def from_uniform(played: PlayedProgram, num_games: int, seed: int) -> float:
    """Latency in ticks of the best of the first `num_games` games, to a whole round."""
    rounds = from_nothing(played, CROSS_ENTROPY, np.random.default_rng(seed))
    return next(found for found in rounds if found.num_games >= num_games).latency_ticks


def verdict(comparisons: Sequence[Comparison], against: str) -> str:
    """How often the agent is ahead, level or behind."""
    ratios = [one.agent / getattr(one, against) for one in comparisons]
    ahead, behind = sum(r > 1 + TIE for r in ratios), sum(r < 1 / (1 + TIE) for r in ratios)
    level = len(ratios) - ahead - behind
    return f"against {against}: ahead on {ahead}, level on {level}, behind on {behind}"


def show(rows: Sequence[Row]) -> list[Comparison]:
    """Prints a line a program."""
    sys.stdout.write(f"{HEADER}\n")
    comparisons = []
    for program in dict.fromkeys(row.program for row in rows):
        comparisons.append(compare([row for row in rows if row.program == program]))
        sys.stdout.write(f"{comparisons[-1].row()}\n")
        sys.stdout.flush()
    return comparisons


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row a program, then the verdicts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--solver", default="agent-scratch")
    parser.add_argument("--time-limit", type=float)
    chosen = parser.parse_args(arguments)
    comparisons = show(rows_of(chosen.table, chosen.solver, chosen.time_limit))
    for against in ("registered", "uniform"):
        sys.stdout.write(f"{verdict(comparisons, against)}\n")


if __name__ == "__main__":
    main()
