"""Training the agent from the command line: one program or many, resumable after any kill.

A run is a folder: `settings.json`, `metrics.jsonl` (one line a chunk), `tensorboard/`,
`checkpoint.msgpack` (everything), `best.msgpack` (weights), and under `maps/` the best map of
each program, validated by code that did not make it. docs/agent.md says how to read the curves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.files import write_atomically
from experiments.inputs import LoadedProgram, load_program, read_json
from experiments.interrupts import interrupts_awaited
from experiments.live_training import LiveTraining
from experiments.run_folder import run_folder
from experiments.training_run import Reference, TrainingRun
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.simulate import simulate
from malloc_game.turn_table import turn_table
from solvers.bounds import bound_program
from solvers.solver import SolveRequest, solver_named

if TYPE_CHECKING:
    from agents.config import AgentConfig
    from agents.networks import Params
    from agents.trainer import Trainer

SETTINGS = "settings.json"
DEFAULT_PRESET = "tiny"

_BOUND_SECONDS = 3.0
_DEMONSTRATION_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """What a run does.

    Attributes:
      programs: as on the command line; empty takes up those of the run.
      preset: of `agents.config.PRESETS`; None for that of what is resumed or begun from, else
        `DEFAULT_PRESET`.
      time_limit_seconds: of this call, compilation included; bounds and demonstrations get what
        is left of it at most. One chunk is played in any case.
      simulations: per move, None for the preset's.
      model: "learned" or "exact", None for the preset's.
      demonstrations: solvers whose maps are shown; none is from scratch.
      weights: a run or checkpoint to begin from, None for random weights.
      out: the run's folder.
      resume: go on with what is in the folder.
      seed: of everything random; None for 0, or that of what is resumed.
      save_seconds: between checkpoints; a kill loses no more than that.
    """

    programs: tuple[str, ...]
    out: Path
    preset: str | None = None
    time_limit_seconds: float = 300.0
    simulations: int | None = None
    model: str | None = None
    demonstrations: tuple[str, ...] = ()
    weights: Path | None = None
    resume: bool = False
    seed: int | None = None
    save_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run has come to.

    Attributes:
      references: per program.
      best_latency_ticks: per program, None if no game was finished.
      num_games: so far, earlier calls included.
      num_moves: likewise.
    """

    references: tuple[Reference, ...]
    best_latency_ticks: tuple[float | None, ...]
    num_games: int
    num_moves: int


def train(settings: TrainSettings, say: Callable[[str], None] = print) -> TrainResult:
    """Trains until the time is up or the user interrupts, and saves.

    Args:
      settings: what to do.
      say: told one line at a time what a user should know.

    Raises:
      InputError: for programs, settings or folders that cannot be used.
      MallocGameError: if training diverges; the last checkpoint stays.
    """
    _check(settings)
    deadline = time.monotonic() + settings.time_limit_seconds
    loaded = _loaded(settings)
    with (
        run_folder(settings.out, resume=settings.resume),
        closing(_prepare(settings, loaded, deadline, say)) as run,
        interrupts_awaited() as interrupted,
    ):
        with LiveTraining(run.references) as live:
            while True:
                report = run.trainer.run_chunk()
                run.note(report)
                live.update(report)
                if interrupted() or time.monotonic() >= deadline:
                    break
        if interrupted():
            # A terminal that was closed takes no words.
            with suppress(OSError):
                say("interrupted: saving")
        run.save()
    best = tuple(run.best_ticks())
    return TrainResult(run.references, best, run.trainer.num_games, run.trainer.num_moves)


def _check(settings: TrainSettings) -> None:
    """Raises InputError for settings that make no sense, before anything is begun."""
    if not settings.time_limit_seconds >= 0:
        raise InputError(f"time limit is {settings.time_limit_seconds} seconds, must be >= 0")
    if settings.seed is not None and settings.seed < 0:
        raise InputError(f"seed is {settings.seed}, must be >= 0")
    for name in settings.demonstrations:
        solver_named(name)


def print_training(result: TrainResult) -> None:
    """One line per program: what was reached."""
    for reference, ticks in zip(result.references, result.best_latency_ticks, strict=True):
        if ticks is None:
            print(f"{reference.name}: no game was finished")
            continue
        parts = [f"{1 - ticks / max(reference.all_slow_ticks, 1e-30):.2%} of all-slow saved"]
        if reference.production_ticks is not None:
            parts.append(f"{reference.production_ticks / max(ticks, 1e-30):.4f} over production")
        parts.append(f"{ticks / max(reference.bound_ticks, 1e-30) - 1:.2%} above the bound")
        print(f"{reference.name}: {', '.join(parts)}")
    print(f"{result.num_games} games, {result.num_moves} moves")


def _loaded(settings: TrainSettings) -> list[LoadedProgram]:
    """What is trained on, programs that cannot be refused: nothing is written yet."""
    from agents.programs import PlayedProgram, nothing_to_decide

    loaded = [load_program(source) for source in _sources(settings)]
    _check_names([one.program for one in loaded])
    for one in loaded:
        if PlayedProgram.of(one.program).is_decided:
            raise nothing_to_decide(one.program)
    return loaded


def _prepare(
    settings: TrainSettings,
    loaded: Sequence[LoadedProgram],
    deadline: float,
    say: Callable[[str], None],
) -> TrainingRun:
    from agents.checkpoint import CHECKPOINT, read_document
    from agents.compilation import keep_compiled_code, needs_of

    keep_compiled_code()
    kept = read_document(settings.out / CHECKPOINT) if settings.resume else None
    trainer, config = _trainer(settings, kept, [one.program for one in loaded])
    say(str(needs_of(trainer)))
    references = []
    for one in loaded:
        references.append(_reference(one, deadline))
        if len(loaded) > 1:
            say(f"{references[-1].name}: bounded")
    run = TrainingRun(
        settings.out,
        config,
        trainer,
        tuple(references),
        settings.save_seconds,
        [None] * len(references),
    )
    if kept is not None:
        run.restore(kept)
        say(f"resumed after {trainer.num_games} games, {trainer.num_moves} moves")
        return run
    seed = settings.seed or 0
    _write_settings(replace(settings, programs=_sources(settings), seed=seed))
    for name in settings.demonstrations:
        _demonstrate(name, trainer, seed, deadline, say)
    run.save()
    return run


def _trainer(
    settings: TrainSettings, kept: dict[str, Any] | None, programs: Sequence[Program]
) -> tuple[Trainer, AgentConfig]:
    """What is trained, not yet restored, and the settings that its weights are kept with: those of
    any program, however long; `kept` is the checkpoint to resume."""
    from agents.trainer import Trainer

    config, params = _begun_from(settings, kept)
    turns = max(turn_table(program).num_turns for program in programs)
    trainer = Trainer(programs, config.for_turns(turns), seed=settings.seed or 0, params=params)
    return trainer, config


def _begun_from(
    settings: TrainSettings, kept: dict[str, Any] | None
) -> tuple[AgentConfig, Params | None]:
    """Settings, and weights if they are not random: a checkpoint's, a run's, or a preset's."""
    from agents.checkpoint import read_weights
    from agents.config import AgentConfig, preset_named

    if kept is not None:
        _refuse_other_settings(settings, "--resume")
        if "trainer" not in kept:
            raise InputError(f"{settings.out}: not a run of `malloc-game train`")
        return AgentConfig.from_document(kept["config"]), None
    if settings.weights is not None:
        _refuse_other_settings(settings, "--weights")
        return read_weights(settings.weights)
    preset = settings.preset or DEFAULT_PRESET
    return preset_named(preset, simulations=settings.simulations, model=settings.model), None


def _refuse_other_settings(settings: TrainSettings, option: str) -> None:
    """What is begun from has settings of its own."""
    given: dict[str, object] = {
        "--preset": settings.preset,
        "--simulations": settings.simulations,
        "--model": settings.model,
    }
    if settings.resume:
        given |= {
            "--weights": settings.weights,
            "--seed": settings.seed,
            "--demonstrations": settings.demonstrations or None,
        }
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{option} brings its own settings: {name} cannot be given with it")


def _sources(settings: TrainSettings) -> tuple[str, ...]:
    if not settings.resume:
        if not settings.programs:
            raise InputError("no program to train on")
        return _lasting(settings.programs)
    path = settings.out / SETTINGS
    names = read_json(path, dict).get("programs")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise InputError(f"{path}: names no programs: not the settings of a run")
    known = tuple(names)
    if settings.programs and _lasting(settings.programs) != known:
        raise InputError(f"{settings.out}: is a run on {', '.join(known)}; name those, or none")
    return known


def _lasting(sources: Sequence[str]) -> tuple[str, ...]:
    """The sources by names that say the same in another folder, at another time.

    Raises:
      InputError: for the standard input, which is read but once.
    """
    if "-" in sources:
        raise InputError("-: a run reads its programs again when it is resumed: name a file")
    return tuple(str(Path(name).resolve()) if Path(name).is_file() else name for name in sources)


def _check_names(programs: Sequence[Program]) -> None:
    """Raises InputError for names that maps and metrics cannot be filed by."""
    names = [program.name for program in programs]
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{name!r}: a map cannot be filed by this program's name: rename it")
        if names.count(name) > 1:
            raise InputError(f"{name}: several programs have this name: rename all but one")


def _write_settings(settings: TrainSettings) -> None:
    text = json.dumps(asdict(settings), indent=2, default=str)
    write_atomically(settings.out / SETTINGS, text + "\n")


def _at_most(seconds: float, deadline: float) -> float:
    """`seconds`, or what is left until the deadline."""
    return max(0.0, min(seconds, deadline - time.monotonic()))


def _reference(loaded: LoadedProgram, deadline: float) -> Reference:
    program, theirs = loaded.program, loaded.production_map
    return Reference(
        name=program.name,
        all_slow_ticks=program.all_slow_ticks,
        production_ticks=None if theirs is None else simulate(program, theirs).latency_ticks,
        bound_ticks=bound_program(program, _at_most(_BOUND_SECONDS, deadline)).ticks,
    )


def _demonstrate(
    name: str, trainer: Trainer, seed: int, deadline: float, say: Callable[[str], None]
) -> None:
    solver = solver_named(name)
    for index, member in enumerate(trainer.programs.members):
        program = member.program
        limit = _at_most(_DEMONSTRATION_SECONDS, deadline)
        request = SolveRequest(program, time_limit_seconds=limit, seed=seed)
        shown = trainer.demonstrate(index, solver.solve(request).memory_map)
        saved = program.saved_share(shown.latency_ticks)
        say(f"{program.name}: {name} shows a game that saves {saved:.2%} ({shown.loss:+.2%})")
