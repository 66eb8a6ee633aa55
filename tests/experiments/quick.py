"""An evaluation that takes seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments.tasks import EvaluationSettings

PROGRAM = "lstm_forward.v5e.32MiB"


def quick_settings(**changes: Any) -> EvaluationSettings:
    """greedy on one small program, unless changed."""
    plain = EvaluationSettings(
        programs=(PROGRAM,),
        solvers=("greedy",),
        seeds=(0,),
        time_limit_seconds=2.0,
        workers_per_task=1,
        times="calibrated",
        copy_order="deadline",
        busy="bytes",
    )
    return replace(plain, **changes)
