"""The folder of a training run: one run at a time, begun in an empty one or gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.files import held
from experiments.metrics import METRICS, VALIDATION
from hlo_graphs.errors import InputError


@contextmanager
def run_folder(out: Path, *, resume: bool) -> Iterator[None]:
    """Keeps other runs out of the folder; what one without a checkpoint left there is removed.

    Raises:
      InputError: if there is no run to resume, or one where another is to begin; if another
        process writes into it, or nobody can.
    """
    from agents.checkpoint import BEST, CHECKPOINT

    if resume and not out.is_dir():
        raise InputError(f"{out}: no such folder, so no run to resume")
    with held(out):
        if not resume:
            if (out / CHECKPOINT).exists():
                raise InputError(f"{out}: holds a run already: use --resume, or another folder")
            # A run that was killed before its first checkpoint has nothing to lose.
            for name in (METRICS, VALIDATION, BEST):
                (out / name).unlink(missing_ok=True)
        yield
