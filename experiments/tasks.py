"""What an evaluation runs: its settings, the programs they name, and one task per row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from experiments.inputs import DEFAULT_CHIP, is_program_document, lone_name
from experiments.results import TimeModel
from hlo_graphs import bundle as bundles
from hlo_graphs import corpus
from hlo_graphs.bundle import Bundle
from hlo_graphs.errors import InputError


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What one run of an evaluation does.

    Attributes:
      programs: corpus names, or paths of a user's own bundles and scheduled HLO files.
      solvers: registered names.
      seeds: each solver runs once per seed.
      time_limit_seconds: per task.
      workers_per_task: processes each solver may use.
      times: cost model.
      copy_order: "deadline" or "fifo".
      busy: which part of a slow access keeps the bus busy, "bytes" or "slow".
    """

    programs: tuple[str, ...]
    solvers: tuple[str, ...]
    seeds: tuple[int, ...]
    time_limit_seconds: float
    workers_per_task: int
    times: str
    copy_order: str
    busy: str

    @property
    def model(self) -> TimeModel:
        """How maps are timed: the same for all rows of a table."""
        return TimeModel(self.times, self.copy_order, self.busy)


@dataclass(frozen=True, slots=True)
class ProgramSource:
    """A program to evaluate.

    Attributes:
      name: its name in the table: a corpus name, or that of the user's bundle or file.
      path: what `load_program` takes for it: the corpus name, or an absolute path.
      bundle: its files, None for a lone HLO file.
      is_corpus: whether it is a program of the corpus.
      digest: of its files, 12 hex digits; None in the corpus.
    """

    name: str
    path: str
    bundle: Bundle | None
    is_corpus: bool
    digest: str | None = None

    @property
    def chip(self) -> str:
        """What it was compiled for; of a lone file, what it is taken for."""
        return (self.bundle and self.bundle.chip) or DEFAULT_CHIP


@dataclass(frozen=True, slots=True)
class Task:
    """One solver on one program with one seed."""

    source: ProgramSource
    solver: str
    seed: int


def source_of(text: str) -> ProgramSource:
    """The program that a corpus name or a path means.

    Raises:
      InputError: if it is neither, or a `Program`.
    """
    path = Path(text)
    if not path.is_file():
        bundle = corpus.bundle(text)
        return ProgramSource(bundle.key, bundle.key, bundle, is_corpus=True)
    found = bundles.bundle_of(path) if bundles.is_part(path) else None
    if found is None and is_program_document(path):
        raise InputError(
            f"{path}: is a Program or another document, not HLO: an evaluation times programs "
            "itself, so give their HLO (`solve` takes a Program too)"
        )
    name = lone_name(path) if found is None else found.key
    return ProgramSource(
        name, str(path.resolve()), found, is_corpus=False, digest=_digest(path, found)
    )


def _digest(path: Path, bundle: Bundle | None) -> str:
    """Of a program's file, or of all of its bundle."""
    parts = (getattr(bundle, part) for part in bundles.PART_SUFFIXES) if bundle else (path,)
    digest = hashlib.sha256()
    for part in parts:
        if part is not None:
            digest.update(part.read_bytes())
    return digest.hexdigest()[:12]
