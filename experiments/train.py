"""Training the agent from the command line: one program or many, resumable after any kill.

A run is a folder: `settings.json`, `metrics.jsonl` (one line a chunk), `tensorboard/`,
`checkpoint.msgpack` (everything), `best.msgpack` (weights), and under `maps/` the best map of
each program, validated by code that did not make it. docs/agent.md says how to read the curves.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from experiments.console import fitted
from experiments.files import write_atomically
from experiments.inputs import LoadedProgram, load_program, read_json
from experiments.interrupts import interrupts_awaited
from experiments.metrics import METRICS, append_metrics, forget_metrics_after
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap, to_document
from malloc_game.simulate import simulate
from malloc_game.turn_table import turn_table
from malloc_game.validate import check
from solvers.bounds import bound_program
from solvers.solver import SolveRequest, solver_named

if TYPE_CHECKING:
    from agents.games import BestGame, Game
    from agents.trainer import Trainer, TrainReport

SETTINGS = "settings.json"
DEFAULT_PRESET = "tiny"

_BOUND_SECONDS = 3.0
_DEMONSTRATION_SECONDS = 10.0
_LIVE_SECONDS = 1.0
_QUIET_LIVE_SECONDS = 10.0
_SMOOTHING = 0.9


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
class Reference:
    """What a program's latency is compared with, in ticks; None where not known."""

    name: str
    all_slow_ticks: float
    production_ticks: float | None
    bound_ticks: float


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
    with closing(_prepare(settings, deadline, say)) as run, interrupts_awaited() as interrupted:
        with _Live(run.references) as live:
            while True:
                report = run.trainer.run_chunk()
                run.note(report, live)
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


def _prepare(settings: TrainSettings, deadline: float, say: Callable[[str], None]) -> _Run:
    from agents.checkpoint import CHECKPOINT, read_document, read_weights
    from agents.compilation import keep_compiled_code, needs_of
    from agents.config import AgentConfig, preset_named
    from agents.programs import nothing_to_decide
    from agents.trainer import Trainer

    keep_compiled_code()
    kept = read_document(settings.out / CHECKPOINT) if settings.resume else None
    loaded = [load_program(source) for source in _sources(settings)]
    programs = [one.program for one in loaded]
    _check_names(programs)
    params = None
    seed = settings.seed or 0
    if kept is not None:
        _refuse_other_settings(settings, "--resume")
        if "trainer" not in kept:
            raise InputError(f"{settings.out}: not a run of `malloc-game train`")
        config = AgentConfig.from_document(kept["trainer"]["config"])
    elif settings.weights is not None:
        _refuse_other_settings(settings, "--weights")
        config, params = read_weights(settings.weights)
    else:
        preset = settings.preset or DEFAULT_PRESET
        config = preset_named(preset, simulations=settings.simulations, model=settings.model)
    if kept is None:
        config = config.for_turns(max(turn_table(program).num_turns for program in programs))
    trainer = Trainer(programs, config, seed=seed, params=params)
    for member in trainer.programs.members:
        if member.is_decided:
            raise nothing_to_decide(member.program)
    say(str(needs_of(trainer)))
    references = []
    for one in loaded:
        references.append(_reference(one, deadline))
        if len(loaded) > 1:
            say(f"{references[-1].name}: bounded")
    run = _Run(
        settings.out, trainer, tuple(references), settings.save_seconds, [None] * len(references)
    )
    if kept is not None:
        run.restore(kept)
        say(f"resumed after {trainer.num_games} games, {trainer.num_moves} moves")
        return run
    _begin_folder(replace(settings, programs=_sources(settings), seed=seed))
    for name in settings.demonstrations:
        _demonstrate(name, trainer, seed, deadline, say)
    run.save()
    return run


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


def _begin_folder(settings: TrainSettings) -> None:
    from agents.checkpoint import CHECKPOINT

    out = settings.out
    # A run that was killed before its first checkpoint has nothing to lose.
    if (out / CHECKPOINT).exists():
        raise InputError(f"{out}: holds a run already: use --resume, or another folder")
    (out / "maps").mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(settings), indent=2, default=str)
    write_atomically(out / SETTINGS, text + "\n")


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


@dataclass
class _Run:
    """A run on disk.

    Attributes:
      smooth_saved: see `smoothed`.
      best_saved: the highest mean of them at a save, None before each program has one.
      best_params: the weights that had it.
    """

    out: Path
    trainer: Trainer
    references: tuple[Reference, ...]
    save_seconds: float
    smooth_saved: list[float | None]
    trained_seconds: float = 0.0
    best_saved: float | None = None
    best_params: Any = None
    _written: dict[int, BestGame] = field(default_factory=dict)
    _saved_at: float = field(default_factory=time.monotonic)
    _first_move: int | None = None
    _board: Any = None

    def best_ticks(self) -> list[float | None]:
        """Per program."""
        games = [self.trainer.best(index) for index in range(len(self.references))]
        return [None if game is None else game.latency_ticks for game in games]

    def note(self, report: TrainReport, live: _Live) -> None:
        """Logs, shows and, if it is time, saves; raises as `TrainReport.check_learning`."""
        report.check_learning()
        self.trained_seconds += report.play_seconds + report.learn_seconds
        self.smooth_saved = smoothed(self.smooth_saved, report.finished, self.references)
        self._log(metrics_of(report, self.trained_seconds, self.references))
        live.update(report)
        if time.monotonic() - self._saved_at >= self.save_seconds:
            self.save()

    def save(self) -> None:
        """Writes everything, then the best weights so far and maps that are new."""
        from agents.checkpoint import CHECKPOINT, write_document

        saved = mean_of_all(self.smooth_saved)
        learner = self.trainer.learner.to_document()
        is_best = saved is not None and (self.best_saved is None or saved > self.best_saved)
        if is_best:
            self.best_saved, self.best_params = saved, learner["params"]
        document = {
            "config": self.trainer.config.to_document(),
            "learner": learner,
            "trainer": self.trainer.to_document(),
            "run": [self.trained_seconds, self.smooth_saved, self.best_saved],
            "best_params": self.best_params,
        }
        write_document(self.out / CHECKPOINT, document)
        # The checkpoint holds these too: whatever a kill leaves, they agree once resumed.
        if is_best:
            self._write_best()
        self._write_maps()
        self._saved_at = time.monotonic()

    def restore(self, document: dict[str, Any]) -> None:
        """Goes on from a checkpoint; metrics written after it are dropped."""
        self.trainer.restore(document["trainer"])
        self.trainer.learner.restore(document["learner"])
        self.trained_seconds, self.smooth_saved, self.best_saved = document["run"]
        self.best_params = document["best_params"]
        if self.best_params is not None:
            self._write_best()
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

    def _write_best(self) -> None:
        from agents.checkpoint import BEST, write_weights

        write_weights(self.out / BEST, self.trainer.config, self.best_params)

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

    Games with moves of other solvers do not count: they are not how the weights play.
    """
    from agents.games import Source

    after = list(before)
    own = [game for game in finished if game.source is Source.SELF_PLAY]
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


class _Live:
    """One line on standard error that shows how training goes."""

    def __init__(self, references: Sequence[Reference]) -> None:
        self._references = references
        self._in_place = sys.stderr.isatty()
        self._began = time.monotonic()
        self._shown_at = -float("inf")
        self._moves = 0

    def __enter__(self) -> _Live:
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        if self._in_place:
            self._write("\n")
        return False

    def update(self, report: TrainReport) -> None:
        """Shows a chunk, if the last one shown is old enough."""
        self._moves += report.play.num_moves
        now = time.monotonic()
        if now - self._shown_at < (_LIVE_SECONDS if self._in_place else _QUIET_LIVE_SECONDS):
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
