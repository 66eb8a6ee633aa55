"""Programs kept apart, and how well weights play them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from agents.config import AgentConfig
from agents.networks import Params
from agents.trainer import Trainer
from experiments.generalist.programs import (
    UNSEEN_SEED,
    chosen_names,
    corpus_programs,
    variant,
)
from experiments.generalist.settings import GeneralistSettings
from experiments.inputs import load_program
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.turn_table import turn_table
from solvers.solver import SolveRequest, solver_named

_MOST_VALIDATION_ITEMS, _VALIDATION_GAMES = 1536, 4


@dataclass(frozen=True)
class Validation:
    """Programs that are not trained on tell when a network begins to learn the others by heart.

    Attributes:
      programs: of families of the train split that are kept apart, and a variant of each; those
        of which greedy saves nothing are left out.
      greedy_saved: share of the all-slow latency that the greedy solver saves, of each.
    """

    programs: tuple[Program, ...]
    greedy_saved: tuple[float, ...]

    @staticmethod
    def of(settings: GeneralistSettings) -> Validation:
        """Those the settings name.

        Raises:
          InputError: for a program that is not kept apart, or if none is left.
        """
        apart = corpus_programs(validation=True)
        names = chosen_names(settings.validation, apart, "kept apart")
        chosen = [load_program(name).program for name in names]
        rng = np.random.default_rng(UNSEEN_SEED + settings.seed)
        both = [one for program in chosen for one in (program, variant(program, rng))]
        kept = [one for one in both if turn_table(one).num_items <= _MOST_VALIDATION_ITEMS]
        greedy = [solver_named("greedy").solve(SolveRequest(program)) for program in kept]
        judged = [
            (program, program.saved_share(solution.latency_ticks))
            for program, solution in zip(kept, greedy, strict=True)
            if solution.latency_ticks < program.all_slow_ticks
        ]
        if not judged:
            raise InputError(f"greedy saves nothing of {', '.join(names)}: name other programs")
        programs, saved = zip(*judged, strict=True)
        return Validation(programs, saved)

    def score(self, config: AgentConfig, params: Params) -> float:
        """What the best of a few games by the policy saves, as a share of what greedy does: the
        mean over the programs. The same weights have the same score.

        A program has `_VALIDATION_GAMES` games in the mean: actors that finish take the next one,
        so short programs have more, long ones fewer.
        """
        config = replace(config, play=config.play.without_old_games())
        trainer = Trainer(self.programs, config, params=params)
        policy = config.search.policy_alone()
        enough = _VALIDATION_GAMES * len(self.programs)
        while trainer.num_games < enough or None in map(trainer.best, range(len(self.programs))):
            trainer.run_chunk(policy, learn=False)
        best = [trainer.best(index) for index in range(len(self.programs))]
        saved = [
            program.saved_share(game.latency_ticks)
            for game, program in zip(best, self.programs, strict=True)
            if game is not None
        ]
        return float(np.mean(np.array(saved) / np.array(self.greedy_saved)))
