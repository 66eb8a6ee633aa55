"""What each part of the agent is worth: trainings that differ in one thing, at equal CPU time.

    python -m experiments.benchmarks.ablations PROGRAM... [--seconds 60] [--seeds 0 1 2]
        [--only base exact ...]

Every variant begins with random weights and plays one program. Counted is the CPU time of all
threads but for two chunks, the first and the first with updates, in which everything is compiled:
the machine's other work, and its compiler, do not matter. Printed are the saving over all-slow of
the best game and of the last games in the mean, as shares of what the greedy solver saves,
production's latency over the best game's, and how many games were played: with more than one
seed, the medians.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.compilation import keep_compiled_code
from agents.config import AgentConfig, ModelKind, preset_named
from agents.games import Source
from agents.trainer import Trainer
from experiments.console import told_in_a_line
from experiments.inputs import LoadedProgram, load_program
from hlo_graphs.errors import InputError, did_you_mean
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import simulate
from solvers.solver import SolveRequest, solver_named

TEACHERS = ("greedy", "xla-msa")

_TEACHER_SECONDS = 10.0
_LAST_GAMES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What is different.

    Attributes:
      changed: settings made from the preset's.
      teachers: solvers whose maps are shown.
      learns: whether there are updates.
    """

    changed: Callable[[AgentConfig], AgentConfig] = lambda config: config
    teachers: Sequence[str] = ()
    learns: bool = True


def _with(part: str, **values: Any) -> Callable[[AgentConfig], AgentConfig]:
    """Other values of one part of the settings."""
    return lambda config: replace(config, **{part: replace(getattr(config, part), **values)})


VARIANTS: Mapping[str, Variant] = {
    "base": Variant(),
    "exact": Variant(changed=_with("search", model=ModelKind.EXACT)),
    "0 simulations": Variant(changed=_with("search", simulations=0)),
    "8 simulations": Variant(changed=_with("search", simulations=8)),
    "32 simulations": Variant(changed=_with("search", simulations=32)),
    "demonstrations": Variant(teachers=TEACHERS),
    "no imitation": Variant(changed=_with("learn", elite_fraction=0.0)),
    "no restarts": Variant(changed=_with("play", restart_fraction=0.0, follow_fraction=0.0)),
    "plain returns": Variant(changed=lambda config: replace(config, relative_returns=False)),
    "32-step returns": Variant(changed=_with("replay", td_steps=32)),
    "reanalysis": Variant(changed=_with("play", reanalyse_fraction=0.25)),
    "no learning": Variant(changed=_with("search", model=ModelKind.RULES), learns=False),
    "shuffled rewards": Variant(changed=lambda config: replace(config, shuffle_returns=True)),
}
"""`base` is the preset with the learned model, 16 simulations, elites, and no demonstrations. With
`plain returns` the network is not told what an incumbent gains either: there is none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One training, savings as shares of the all-slow latency.

    Attributes:
      best: of the best game; games that repeat moves of a map that was shown count.
      mean: of the last games, of those that repeat none.
      speedup: production's latency over the best game's; nan without a production map.
      num_games, num_updates: that the time was enough for.
    """

    best: float
    mean: float
    speedup: float
    num_games: int
    num_updates: int


@dataclass(frozen=True, slots=True)
class Subject:
    """A program with what results are compared to.

    Attributes:
      loaded: the program.
      greedy: share of the all-slow latency that the greedy solver saves.
      production_ticks: latency of production's map, None if not known.
      shown: maps of the teachers.
    """

    loaded: LoadedProgram
    greedy: float
    production_ticks: float | None
    shown: tuple[MemoryMap, ...]

    @staticmethod
    def of(name: str) -> Subject:
        """The program called `name`.

        Raises:
          InputError: if there is none.
        """
        loaded = load_program(name)
        program, production = loaded.program, loaded.production_map
        request = SolveRequest(program, time_limit_seconds=_TEACHER_SECONDS)
        solutions = [solver_named(teacher).solve(request) for teacher in TEACHERS]
        return Subject(
            loaded=loaded,
            greedy=program.saved_share(solutions[0].latency_ticks),
            production_ticks=(
                None if production is None else simulate(program, production).latency_ticks
            ),
            shown=tuple(solution.memory_map for solution in solutions),
        )


def train(subject: Subject, variant: Variant, seconds: float, seed: int) -> Outcome:
    """Trains for `seconds` of CPU time, compilation apart."""
    program = subject.loaded.program
    trainer = Trainer([program], variant.changed(preset_named("tiny")), seed=seed)
    for teacher, memory_map in zip(TEACHERS, subject.shown, strict=True):
        if teacher in variant.teachers:
            trainer.demonstrate(0, memory_map)
    last: deque[float] = deque(maxlen=_LAST_GAMES)
    spent, had_updates = 0.0, False
    while spent < seconds or (best := trainer.best(0)) is None:
        began = time.process_time()
        report = trainer.run_chunk(learn=variant.learns)
        report.check_learning()
        first_updates = report.learn is not None and not had_updates
        had_updates = had_updates or first_updates
        if trainer.num_chunks > 1 and not first_updates:
            spent += time.process_time() - began
        own = [game for game in report.finished if game.source is Source.SELF_PLAY]
        last.extend(program.saved_share(game.latency_ticks) for game in own)
    production = subject.production_ticks
    return Outcome(
        best=program.saved_share(best.latency_ticks),
        mean=float(np.mean(last)) if last else float("nan"),
        speedup=float("nan") if production is None else production / best.latency_ticks,
        num_games=trainer.num_games,
        num_updates=trainer.learner.num_updates,
    )


HEADER = f"{'program':<28}{'variant':<18}" + "".join(
    f"{name:>{width}}"
    for name, width in (("best", 9), ("mean", 9), ("speed-up", 10), ("games", 8), ("updates", 9))
)


def row(subject: Subject, variant: str, outcomes: Sequence[Outcome]) -> str:
    """One line: medians over the seeds."""

    def median(name: str) -> float:
        return float(np.median([getattr(outcome, name) for outcome in outcomes]))

    scale = max(subject.greedy, 1e-9)
    return (
        f"{subject.loaded.program.name:<28}{variant:<18}{median('best') / scale:>9.4f}"
        f"{median('mean') / scale:>9.4f}{median('speedup'):>10.4f}"
        f"{median('num_games'):>8.0f}{median('num_updates'):>9.0f}"
    )


def chosen_variants(names: Sequence[str]) -> Mapping[str, Variant]:
    """Those called `names`, all if there are none.

    Raises:
      InputError: if one does not exist.
    """
    for name in names:
        if name not in VARIANTS:
            near = did_you_mean(name, VARIANTS)
            raise InputError(f"no variant is called {name!r}{near}: use {', '.join(VARIANTS)}")
    return {name: VARIANTS[name] for name in names or VARIANTS}


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row as soon as a variant has been trained with all seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("programs", nargs="+", help="corpus names, HLO files or programs as JSON")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT")
    chosen = parser.parse_args(arguments)
    variants = chosen_variants(chosen.only)
    subjects = [Subject.of(name) for name in chosen.programs]
    keep_compiled_code()
    sys.stdout.write(f"{HEADER}\n")
    for subject in subjects:
        for name, variant in variants.items():
            outcomes = [train(subject, variant, chosen.seconds, seed) for seed in chosen.seeds]
            sys.stdout.write(f"{row(subject, name, outcomes)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
