"""How training goes, in one line on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from experiments.console import fitted
from experiments.training_run import Reference

if TYPE_CHECKING:
    from agents.trainer import TrainReport

_SECONDS = 1.0
_QUIET_SECONDS = 10.0


class LiveTraining:
    """One line on standard error that shows how training goes."""

    def __init__(self, references: Sequence[Reference]) -> None:
        self._references = references
        self._in_place = sys.stderr.isatty()
        self._began = time.monotonic()
        self._shown_at = -float("inf")
        self._moves = 0

    def __enter__(self) -> LiveTraining:
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        if self._in_place:
            self._write("\n")
        return False

    def update(self, report: TrainReport) -> None:
        """Shows a chunk, if the last one shown is old enough."""
        self._moves += report.play.num_moves
        now = time.monotonic()
        if now - self._shown_at < (_SECONDS if self._in_place else _QUIET_SECONDS):
            return
        self._shown_at = now
        text = live_text(report, now - self._began, self._moves, self._references)
        self._write(f"\r\x1b[2K{fitted(text)}" if self._in_place else f"{text}\n")

    def _write(self, text: str) -> None:
        # A terminal that was closed must not keep a run from being saved.
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def live_text(
    report: TrainReport, seconds: float, num_moves: int, references: Sequence[Reference]
) -> str:
    """Games, turns a second, health, best latency over bound and production, loss, a warning."""
    parts = [
        f"{seconds:6.0f} s",
        f"{report.num_games} games",
        f"{num_moves / max(seconds, 1e-9):,.0f} turns/s",
        "warning" if report.warnings else "healthy",
    ]
    known = [
        (reference, ticks)
        for reference, ticks in zip(references, report.best_latency_ticks, strict=True)
        if ticks
    ]
    if known:
        over_bound = sum(ticks / max(r.bound_ticks, 1e-30) for r, ticks in known) / len(known)
        parts.append(f"best/bound {over_bound:.4f}")
        speedups = [r.production_ticks / ticks for r, ticks in known if r.production_ticks]
        if speedups:
            parts.append(f"production/best {sum(speedups) / len(speedups):.4f}")
    if report.learn is not None:
        parts.append(f"loss {report.learn.loss:.3f}")
    parts += report.warnings[:1]
    return "  ".join(parts)
