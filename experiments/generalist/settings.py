"""What a run that trains the generalist is told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents.config import preset_named
from experiments.demonstrations import TABLE
from hlo_graphs.errors import InputError
from solvers.solver import solver_named


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneralistSettings:
    """What a run does.

    Attributes:
      out: the run's folder.
      programs: corpus programs; if empty, all of the train split but the families kept apart.
      validation: of those families, what is played whenever a checkpoint is written; all but the
        largest if empty. Of each there is a variant, too.
      num_variants: of each corpus program, see `variant`.
      num_generated: generated programs beside them.
      most_accesses: corpus programs with more are left out.
      preset: of `agents.config.PRESETS`.
      time_limit_seconds: of this call: no chunk begins after it. Demonstrations, which are counted
        in games, and the last validation take what they take.
      demonstrations: who finds what is shown, solvers and `TABLE`; none is from scratch.
      demonstration_games: that the table has for each program.
      seed: of everything random.
      save_seconds, log_seconds: between checkpoints, and between lines of metrics.
    """

    out: Path
    programs: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    num_variants: int = 6
    num_generated: int = 640
    most_accesses: int = 4000
    preset: str = "generalist"
    time_limit_seconds: float = 3000.0
    demonstrations: tuple[str, ...] = ("greedy", TABLE)
    demonstration_games: int = 4000
    seed: int = 0
    save_seconds: float = 120.0
    log_seconds: float = 20.0

    def check(self) -> None:
        """Raises InputError for settings that make no sense."""
        if not self.time_limit_seconds >= 0:
            raise InputError(f"time limit is {self.time_limit_seconds} seconds, must be >= 0")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, must be >= 0")
        preset_named(self.preset)
        for name in self.demonstrations:
            if name != TABLE:
                solver_named(name)

    def to_document(self) -> dict[str, Any]:
        """As JSON has them."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return document
