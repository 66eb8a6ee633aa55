"""The training of the generalist, from an empty folder or a checkpoint, until the time is up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from agents.checkpoint import CHECKPOINT, read_document
from agents.compilation import keep_compiled_code
from agents.config import preset_named
from agents.games import Plan, Source
from agents.league import League
from experiments.demonstrations import demonstrated, tasks_of
from experiments.files import write_atomically
from experiments.generalist.programs import training_programs
from experiments.generalist.run import PROGRAMS, SETTINGS, GeneralistRun
from experiments.generalist.settings import GeneralistSettings
from experiments.generalist.validation import Validation
from experiments.inputs import read_json
from experiments.interrupts import interrupts_awaited
from experiments.parallel import on_all_processors
from experiments.run_folder import run_folder
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program

_PART_SEEDS = 10_000
"""Between the seeds of two parts' demonstrations."""


def train_generalist(
    settings: GeneralistSettings, *, resume: bool = False, say: Callable[[str], None] = print
) -> Path:
    """Trains until the time is up or it is interrupted; the folder, which `--resume` goes on with.

    Raises:
      InputError: for programs of the test split, or a folder that cannot be used.
      MallocGameError: if training diverges, when the last checkpoint stays, or if a process that
        looks for demonstrations is ended from outside.
    """
    settings.check()
    deadline = time.monotonic() + settings.time_limit_seconds
    keep_compiled_code()
    with run_folder(settings.out, resume=resume):
        run = _resumed(settings, say) if resume else _begun(settings, say)
        with interrupts_awaited() as interrupted:
            while time.monotonic() < deadline and not interrupted():
                run.note(*run.league.run_chunk())
            if interrupted():
                say("interrupted: saving")
            run.save(validate=not interrupted())
    return settings.out


def _begun(settings: GeneralistSettings, say: Callable[[str], None]) -> GeneralistRun:
    write_atomically(settings.out / SETTINGS, json.dumps(settings.to_document(), indent=2) + "\n")
    run, programs = _new_run(settings, say)
    names = [program.name for program in programs]
    write_atomically(settings.out / PROGRAMS, json.dumps(names) + "\n")
    show_demonstrations(run.league, settings, say)
    run.save(validate=False)
    return run


def _resumed(settings: GeneralistSettings, say: Callable[[str], None]) -> GeneralistRun:
    _check_resumed(settings)
    run, _ = _new_run(settings, say)
    run.restore(read_document(settings.out / CHECKPOINT))
    say(f"resumed after {run.league.num_games} games")
    return run


def _new_run(
    settings: GeneralistSettings, say: Callable[[str], None]
) -> tuple[GeneralistRun, Sequence[Program]]:
    """A run that has not played, and what it is to play."""
    programs, validation = training_programs(settings), Validation.of(settings)
    league = League(programs, preset_named(settings.preset), seed=settings.seed)
    say(_parts_text(league))
    return GeneralistRun(settings, league, validation, say), programs


def _check_resumed(settings: GeneralistSettings) -> None:
    """Raises InputError if the run in the folder has other settings."""
    known, document = read_json(settings.out / SETTINGS, dict), settings.to_document()
    free = {"out", "time_limit_seconds", "save_seconds", "log_seconds"}
    if any(known.get(k) != document[k] for k in document.keys() - free):
        raise InputError(f"{settings.out}: no run with these settings to go on with")


def show_demonstrations(
    league: League, settings: GeneralistSettings, say: Callable[[str], None]
) -> None:
    """Has the best that the demonstrators find for each program played as its first game."""
    if not settings.demonstrations:
        return
    for part, trainer in enumerate(league.trainers):
        members = trainer.programs.members
        seed = settings.seed + part * _PART_SEEDS
        tasks = tasks_of(
            [member.program for member in members],
            settings.demonstrations,
            settings.demonstration_games,
            seed,
        )
        games = on_all_processors(demonstrated, tasks, f"demonstrations of part {part}", say)
        for index, (member, shown) in enumerate(zip(members, games, strict=True)):
            actions = member.by_item(shown.wishes, trainer.programs.bucket.num_items)
            trainer.show(index, Plan(actions, Source.DEMONSTRATION))
            share = member.program.saved_share
            saved = (f"{share(ticks):.2%}" for ticks in shown.by_demonstrator)
            by_whom = ", ".join(map(" ".join, zip(settings.demonstrations, saved, strict=True)))
            say(f"{member.program.name}: shown {share(shown.latency_ticks):.2%} ({by_whom})")


def _parts_text(league: League) -> str:
    parts = []
    for trainer in league.trainers:
        turns = sum(member.table.num_turns for member in trainer.programs.members)
        parts.append(f"{len(trainer.programs)} programs of {turns} turns")
    return f"{'; '.join(parts)}; {league.learner.num_parameters:,} weights"
