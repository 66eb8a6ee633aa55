"""A training run on disk: checkpoints, metrics, best weights, and the best map of each program."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from experiments.best_weights import BestWeights
from experiments.files import write_atomically
from experiments.metrics import METRICS, append_metrics, forget_metrics_after
from malloc_game.memory_map import MemoryMap, to_document
from malloc_game.validate import check

if TYPE_CHECKING:
    from agents.config import AgentConfig
    from agents.games import BestGame, Game
    from agents.trainer import Trainer, TrainReport

_SMOOTHING = 0.9


@dataclass(frozen=True, slots=True)
class Reference:
    """What a program's latency is compared with, in ticks; None where not known."""

    name: str
    all_slow_ticks: float
    production_ticks: float | None
    bound_ticks: float


@dataclass
class TrainingRun:
    """A run on disk.

    Attributes:
      out: its folder.
      config: that weights are kept with; the trainer's may have fewer actors.
      trainer: what is trained.
      references: per program.
      save_seconds: between checkpoints.
      smooth_saved: see `smoothed`.
      best: by the mean of them at all saves at which each program had one.
      trained_seconds: in self-play and updates, earlier calls included.
    """

    out: Path
    config: AgentConfig
    trainer: Trainer
    references: tuple[Reference, ...]
    save_seconds: float
    smooth_saved: list[float | None]
    best: BestWeights = field(init=False)
    trained_seconds: float = 0.0
    _written: dict[int, BestGame] = field(default_factory=dict)
    _saved_at: float = field(default_factory=time.monotonic)
    _first_move: int | None = None
    _board: Any = None

    def __post_init__(self) -> None:
        self.best = BestWeights(self.out, self.config)

    def best_ticks(self) -> list[float | None]:
        """Per program."""
        games = [self.trainer.best(index) for index in range(len(self.references))]
        return [None if game is None else game.latency_ticks for game in games]

    def note(self, report: TrainReport) -> None:
        """Logs and, if it is time, saves; raises as `TrainReport.check_learning`."""
        report.check_learning()
        self.trained_seconds += report.play_seconds + report.learn_seconds
        self.smooth_saved = smoothed(self.smooth_saved, report.finished, self.references)
        self._log(metrics_of(report, self.trained_seconds, self.references))
        if time.monotonic() - self._saved_at >= self.save_seconds:
            self.save()

    def save(self) -> None:
        """Writes everything, then the best weights so far and maps that are new."""
        from agents.checkpoint import CHECKPOINT, write_document

        saved = mean_of_all(self.smooth_saved)
        learner = self.trainer.learner.to_document()
        is_best = saved is not None and self.best.offer(saved, learner["params"])
        document = {
            "config": self.config.to_document(),
            "learner": learner,
            "trainer": self.trainer.to_document(),
            "run": [self.trained_seconds, self.smooth_saved, self.best.score],
            "best_params": self.best.params,
        }
        write_document(self.out / CHECKPOINT, document)
        # The checkpoint holds these too: whatever a kill leaves, they agree once resumed.
        if is_best:
            self.best.write()
        self._write_maps()
        self._saved_at = time.monotonic()

    def restore(self, document: dict[str, Any]) -> None:
        """Goes on from a checkpoint; metrics written after it are dropped."""
        self.trainer.restore(document["trainer"])
        self.trainer.learner.restore(document["learner"])
        self.trained_seconds, self.smooth_saved, best_saved = document["run"]
        self.best.restore(best_saved, document["best_params"])
        forget_metrics_after(self.out / METRICS, "num_chunks", self.trainer.num_chunks)
        self._first_move = self.trainer.num_moves + 1

    def close(self) -> None:
        """Closes what was opened."""
        if self._board is not None:
            self._board.close()

    def _log(self, row: dict[str, Any]) -> None:
        if self._board is None:
            from tensorboardX import SummaryWriter

            # Where the disk is full its writer ends: with a bounded queue training waited for it.
            # Points that a run wrote after its checkpoint are hidden: they are made again.
            # Files are named by the second: a restart within it would write over the one before.
            self._board = SummaryWriter(
                str(self.out / "tensorboard"),
                max_queue=0,
                purge_step=self._first_move,
                filename_suffix=f".{self._first_move or 0:012d}",
            )
        append_metrics(self.out / METRICS, row)
        for name, value in row.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, row["num_moves"])

    def _write_maps(self) -> None:
        for index, (member, reference) in enumerate(
            zip(self.trainer.programs.members, self.references, strict=True)
        ):
            game = self.trainer.best(index)
            if game is not None and self._written.get(index) is not game:
                self._written[index] = game
                self._write_map(reference.name, index, member.fast_game.map_of(game.wishes))

    def _write_map(self, name: str, index: int, memory_map: MemoryMap) -> None:
        check(self.trainer.programs.members[index].program, memory_map)
        (self.out / "maps").mkdir(exist_ok=True)
        text = json.dumps(to_document(memory_map)) + "\n"
        write_atomically(self.out / "maps" / f"{name}.json", text)


def metrics_of(
    report: TrainReport, trained_seconds: float, references: Sequence[Reference]
) -> dict[str, Any]:
    """One line of `metrics.jsonl`; docs/agent.md explains each name."""
    row: dict[str, Any] = {
        "num_chunks": report.num_chunks,
        "num_updates": report.num_updates,
        "num_games": report.num_games,
        "num_moves": report.num_moves,
        "trained_seconds": trained_seconds,
        "moves_per_second": report.play.num_moves / (report.play_seconds + report.learn_seconds),
        "learn_share": report.learn_seconds / (report.play_seconds + report.learn_seconds),
        "mean_saved": report.mean_saved,
    }
    for reference, ticks in zip(references, report.best_latency_ticks, strict=True):
        if ticks is not None:
            row[f"best_over_bound/{reference.name}"] = ticks / max(reference.bound_ticks, 1e-30)
            if reference.production_ticks is not None:
                row[f"speedup/{reference.name}"] = reference.production_ticks / max(ticks, 1e-30)
    for part in (report.learn, report.health):
        if part is not None:
            row |= asdict(part)
    row["warnings"] = list(report.warnings)
    return row


def smoothed(
    before: Sequence[float | None], finished: Sequence[Game], references: Sequence[Reference]
) -> list[float | None]:
    """Per program, what games of the last chunks save over all-slow; None before the first.

    Games that begin like another one, or repeat most of it, do not count: they are not how the
    weights play.
    """
    after = list(before)
    own = [game for game in finished if game.free]
    for index, (old, reference) in enumerate(zip(before, references, strict=True)):
        slow = max(reference.all_slow_ticks, 1e-30)
        saved = [1 - game.latency_ticks / slow for game in own if game.program == index]
        if saved:
            new = fmean(saved)
            after[index] = new if old is None else _SMOOTHING * old + (1 - _SMOOTHING) * new
    return after


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """Their mean, None if one is missing: means of different programs do not compare."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
