"""A run of the generalist on disk: checkpoints, metrics, validation, and its best weights."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.checkpoint import CHECKPOINT, read_document, write_document, write_weights
from agents.config import AgentConfig
from agents.games import Source
from agents.generalist import ABOUT, WEIGHTS
from agents.league import League
from agents.networks import Params
from agents.trainer import Trainer, TrainReport
from experiments.best_weights import BestWeights
from experiments.files import write_atomically
from experiments.generalist.settings import GeneralistSettings
from experiments.generalist.validation import Validation
from experiments.inputs import read_json
from experiments.metrics import (
    METRICS,
    VALIDATION,
    append_metrics,
    forget_metrics_after,
    read_metrics,
)
from hlo_graphs.errors import InputError

SETTINGS, PROGRAMS = "settings.json", "programs.json"


@dataclass
class GeneralistRun:
    """A run on disk, and what has happened since its last line of metrics.

    Attributes:
      best: of the averaged weights at all saves so far, by what they score on `validation`.
      trained_seconds: in self-play and updates, earlier calls included.
    """

    settings: GeneralistSettings
    league: League
    validation: Validation
    say: Callable[[str], None]
    best: BestWeights = field(init=False)
    trained_seconds: float = 0.0
    _reports: list[tuple[Trainer, TrainReport]] = field(default_factory=list)
    _logged_at: float = field(default_factory=time.monotonic)
    _saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.best = BestWeights(self.settings.out, self.league.config)

    def note(self, trainer: Trainer, report: TrainReport) -> None:
        """Takes a chunk in; logs and saves when it is time.

        Raises:
          MallocGameError: see `TrainReport.check_learning`.
        """
        report.check_learning()
        self.trained_seconds += report.play_seconds + report.learn_seconds
        self._reports.append((trainer, report))
        now = time.monotonic()
        learned = any(one.learn is not None for _, one in self._reports)
        if learned and now - self._logged_at >= self.settings.log_seconds:
            self._log()
            self._logged_at = now
        if now - self._saved_at >= self.settings.save_seconds:
            self.save()

    def save(self, *, validate: bool = True) -> None:
        """Writes everything; having validated, the weights apart if none before played as well."""
        league = self.league.to_document()
        is_best = validate and self._validated(league["averaged"])
        write_document(
            self.settings.out / CHECKPOINT,
            {
                "config": self.league.config.to_document(),
                "trained_seconds": self.trained_seconds,
                "best_score": self.best.score,
                "best_params": self.best.params,
                **league,
            },
        )
        if is_best:
            self.best.write()
        self._saved_at = time.monotonic()

    def _validated(self, params: Params) -> bool:
        """Whether the averaged weights play better than at all saves before."""
        num_updates = self.league.learner.num_updates
        score = self.validation.score(self.league.config, params)
        self.say(f"{num_updates} updates  validation {score:.4f}")
        # Before the checkpoint: a kill in between leaves a line that a resumed run drops.
        line = {"num_updates": num_updates, "score": score}
        append_metrics(self.settings.out / VALIDATION, line)
        return self.best.offer(score, params)

    def restore(self, document: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.league.restore(document)
        self.trained_seconds = float(document["trained_seconds"])
        self.best.restore(document["best_score"], document["best_params"])
        for name in (METRICS, VALIDATION):
            path = self.settings.out / name
            forget_metrics_after(path, "num_updates", self.league.learner.num_updates)

    def _log(self) -> None:
        row = metrics_of(self._reports) | {
            "trained_seconds": self.trained_seconds,
            "num_games": self.league.num_games,
            "num_moves": self.league.num_moves,
            "num_updates": self.league.learner.num_updates,
        }
        self._reports.clear()
        append_metrics(self.settings.out / METRICS, row)
        self.say(
            f"{row['trained_seconds']:6.0f} s  {row['num_games']} games  "
            f"{row['num_updates']} updates  of the best {row['share_of_best'] or 0:.3f}  "
            f"policy loss {row['policy_loss']:.3f}  value explained {row['value_explained']:.2f}"
        )


def metrics_of(reports: Sequence[tuple[Trainer, TrainReport]]) -> dict[str, Any]:
    """A line of metrics from chunks of several parts.

    `share_of_best` is the mean, over finished games that no other solver's moves are in, of what
    the game saves over what the best known game of its program saves; `new_bests` are programs'
    records in these chunks.
    """
    shares, learned = [], [report.learn for _, report in reports if report.learn is not None]
    for trainer, report in reports:
        for game in report.finished:
            best = trainer.best(game.program)
            if game.source is Source.SELF_PLAY and best is not None and best.total > 0:
                shares.append(game.total / best.total)
    names = ("loss", "policy_loss", "value_loss", "reward_loss", "legality_loss")
    return {
        "share_of_best": float(np.mean(shares)) if shares else None,
        "new_bests": sum(report.is_best for _, report in reports),
        **{
            name: float(np.mean([getattr(one, name) for one in learned]))
            for name in (*names, "value_explained", "value_bias", "reward_error")
        },
        "learn_share": sum(r.learn_seconds for _, r in reports)
        / max(sum(r.learn_seconds + r.play_seconds for _, r in reports), 1e-9),
    }


def ship(out: Path) -> Path:
    """Puts a run's best weights where the agent finds them; the file.

    Raises:
      InputError: if there is no run in `out` that was validated, or it is damaged.
    """
    document = read_document(out / CHECKPOINT)
    settings = read_json(out / SETTINGS, dict)
    score, params = document.get("best_score"), document.get("best_params")
    # Lines that a kill left after the checkpoint are of weights that it does not hold.
    of_best = [line for line in read_metrics(out / VALIDATION) if line.get("score") == score]
    if score is None or params is None or not of_best:
        raise InputError(f"{out}: has no weights that were validated")
    best = of_best[0]
    metrics = min(
        read_metrics(out / METRICS), key=lambda line: abs(line["num_updates"] - best["num_updates"])
    )
    about = {
        "settings": {name: value for name, value in settings.items() if name != "out"},
        "programs": read_json(out / PROGRAMS, list),
        "validation": best,
        "metrics": metrics,
    }
    config = AgentConfig.from_document(document["config"])
    write_weights(WEIGHTS, config, params, half=True)
    write_atomically(ABOUT, json.dumps(about, indent=2) + "\n")
    return WEIGHTS
