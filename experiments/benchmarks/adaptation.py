"""What the trained network is worth at equal numbers of games.

    python -m experiments.benchmarks.adaptation [--games 1000 4000 12000] [--checkpoint RUN]
        [--generated 8] [--seed 0] [PROGRAM...]

The network plays 32 games by its policy alone (policy); its table then moves as in
`agents.adaptation` (net). Beside them the one game of a rule that knows no network: what saves at
least what its place costs, which the network is told as features, is fast (prices). And, with as
many games: the same table begun from uniform probabilities (uni), that one with a walk that changes
single moves only (single) or with games compared whole in place of windows (whole), and the
cross-entropy method (`CROSS_ENTROPY`), which has other settings too (ce). Without programs,
generated ones that no training saw. Printed is the share of the all-slow latency saved, as a share
of what greedy saves, and the mean of these shares.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agents.adaptation import CROSS_ENTROPY, AdaptationConfig, Found, adapt, from_nothing
from agents.canonical import wishes_by_price
from agents.checkpoint import read_weights
from agents.compilation import keep_compiled_code
from agents.games import Game
from agents.generalist import WEIGHTS
from agents.programs import PlayedProgram
from agents.trainer import Trainer
from experiments.console import told_in_a_line
from experiments.generalist.programs import UNSEEN_SEED, generated_programs
from experiments.inputs import load_program
from hlo_graphs.program import Program
from solvers.solver import SolveRequest, solver_named

DEFAULT_GAMES = (1000, 4000, 12_000)

WHOLE_GAMES = replace(AdaptationConfig(), windows_turns=(None,))
"""What the table would be without credit, all else equal."""

SINGLE_MOVES = replace(AdaptationConfig(), transfer_share=0.0)
"""What it would be if nothing were carried over from one passage to another."""

_TABLES = ("net", "uni", "single", "whole", "ce")

_WIDTH = 14


@dataclass(frozen=True, slots=True)
class Comparison:
    """One program: what each saves of the all-slow latency, as a share of what greedy saves.

    Attributes:
      name: of the program.
      num_turns: of its game.
      greedy: share of the all-slow latency that the greedy solver saves.
      prices: by the game of `agents.canonical.wishes_by_price`, which knows no network.
      policy: by the best of the network's games.
      policy_cpu_seconds: that those games took, compilation included.
      adapted: after each number of games, by the table that began as the network's.
      uniform: likewise, by the one that began uniform.
      single: likewise, by the one that began uniform and carries nothing over.
      whole: likewise, by the one that began uniform and compares whole games.
      cross_entropy: likewise, by the cross-entropy method.
    """

    name: str
    num_turns: int
    greedy: float
    prices: float
    policy: float
    policy_cpu_seconds: float
    adapted: tuple[float, ...]
    uniform: tuple[float, ...]
    single: tuple[float, ...]
    whole: tuple[float, ...]
    cross_entropy: tuple[float, ...]

    def row(self) -> str:
        """One line."""
        tables = (self.adapted, self.uniform, self.single, self.whole, self.cross_entropy)
        columns = zip(*tables, strict=True)
        parts = [self.prices, self.policy, *(part for column in columns for part in column)]
        shares = "".join(f"{part:>{_WIDTH}.4f}" for part in parts)
        start = f"{self.name:<36}{self.num_turns:>6}{self.greedy:>10.2%}"
        return f"{start}{shares}{self.policy_cpu_seconds:>8.1f}"


def header(num_games: Sequence[int]) -> str:
    """Above the rows."""
    columns = "".join(f"{f'{what} {n}':>{_WIDTH}}" for n in num_games for what in _TABLES)
    parts = "".join(f"{what:>{_WIDTH}}" for what in ("prices", "policy"))
    return f"{'program':<36}{'turns':>6}{'greedy':>10}{parts}{columns}{'cpu s':>8}"


def compare(program: Program, num_games: Sequence[int], weights: Path, seed: int) -> Comparison:
    """Plays one program with each table."""
    greedy = solver_named("greedy").solve(SolveRequest(program, time_limit_seconds=10.0))
    began = time.process_time()
    member, games = play_policy(program, weights, seed)
    seconds = time.process_time() - began
    settings, slow = AdaptationConfig(), program.all_slow_ticks
    saved_by_greedy = max(slow - greedy.latency_ticks, 1e-9 * slow)

    def share(ticks: float) -> float:
        return (slow - ticks) / saved_by_greedy

    def shares(rounds: Iterator[Found]) -> tuple[float, ...]:
        return tuple(share(ticks) for ticks in _best_ticks(rounds, num_games))

    thoughts = [game.thoughts for game in games]
    best = Found.of(member, games[0])
    adapted = adapt(member, best, thoughts, settings, np.random.default_rng(seed))
    uniform = from_nothing(member, settings, np.random.default_rng(seed))
    single = from_nothing(member, SINGLE_MOVES, np.random.default_rng(seed))
    whole = from_nothing(member, WHOLE_GAMES, np.random.default_rng(seed))
    control = from_nothing(member, CROSS_ENTROPY, np.random.default_rng(seed))
    return Comparison(
        name=program.name,
        num_turns=member.table.num_turns,
        greedy=program.saved_share(greedy.latency_ticks),
        prices=share(member.fast_game.latency_ticks(wishes_by_price(member))),
        policy=share(games[0].latency_ticks),
        policy_cpu_seconds=seconds,
        adapted=shares(adapted),
        uniform=shares(uniform),
        single=shares(single),
        whole=shares(whole),
        cross_entropy=shares(control),
    )


def play_policy(program: Program, weights: Path, seed: int) -> tuple[PlayedProgram, list[Game]]:
    """The best of the games that all actors play by the policy alone, the best first."""
    config, params = read_weights(weights)
    play = config.play.without_old_games()
    trainer = Trainer([program], replace(config, play=play), seed=seed, params=params)
    while trainer.num_games < play.actors:
        trainer.run_chunk(config.search.policy_alone(), learn=False)
    return trainer.programs.members[0], list(trainer.elites.games(0))


def _best_ticks(rounds: Iterator[Found], num_games: Sequence[int]) -> Iterator[float]:
    """The least latency by the end of the round in which each number of games was reached."""
    found = next(rounds)
    for wanted in sorted(num_games):
        while found.num_games < wanted:
            found = next(rounds)
        yield found.latency_ticks


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and the means of its columns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("programs", nargs="*", help="corpus names, HLO files or programs as JSON")
    parser.add_argument("--games", type=int, nargs="+", default=list(DEFAULT_GAMES))
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS)
    parser.add_argument("--generated", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    keep_compiled_code()
    programs = [load_program(name).program for name in chosen.programs]
    programs = programs or generated_programs(chosen.generated, UNSEEN_SEED + chosen.seed)
    sys.stdout.write(f"{header(sorted(chosen.games))}\n")
    rows = []
    for program in programs:
        rows.append(compare(program, chosen.games, chosen.checkpoint, chosen.seed))
        sys.stdout.write(f"{rows[-1].row()}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{mean_of(rows).row()}\n")


def mean_of(rows: Sequence[Comparison]) -> Comparison:
    """Column by column."""
    return Comparison(
        name="mean",
        num_turns=round(np.mean([row.num_turns for row in rows])),
        greedy=float(np.mean([row.greedy for row in rows])),
        prices=float(np.mean([row.prices for row in rows])),
        policy=float(np.mean([row.policy for row in rows])),
        policy_cpu_seconds=float(np.mean([row.policy_cpu_seconds for row in rows])),
        adapted=tuple(np.mean([row.adapted for row in rows], axis=0).tolist()),
        uniform=tuple(np.mean([row.uniform for row in rows], axis=0).tolist()),
        single=tuple(np.mean([row.single for row in rows], axis=0).tolist()),
        whole=tuple(np.mean([row.whole for row in rows], axis=0).tolist()),
        cross_entropy=tuple(np.mean([row.cross_entropy for row in rows], axis=0).tolist()),
    )


if __name__ == "__main__":
    main()
