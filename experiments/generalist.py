"""Trains the generalist: one network for all programs, on the train split and generated ones.

    python -m experiments.generalist --out RUN [--time-limit 3000] [--seed 0] [--resume]
        [--programs NAME...] [--variants 6] [--generated 640] [--preset generalist] [--ship]

No program of the test split is looked at, and of every third family of the train split none is
trained on: those tell when the network learns the others by heart (`Validation`). Beside each
program there are variants of it, with other capacities and faster or slower copies. Each
program's first game is a demonstration, which becomes its first elite: the best of what the
greedy solver and a table find (`--demonstrations`, `agents.adaptation`), in the form that plays
by price where that costs nothing (`agents.canonical`). A run is a folder: `settings.json`,
`programs.json` (names of what is played), `metrics.jsonl` (a line every twenty seconds),
`validation.jsonl`, `checkpoint.msgpack`, and `best.msgpack`: the averaged weights that played best
on the families kept apart. `--ship` puts those where `solve --solver agent` finds them, with what
they were trained on beside them. docs/agent.md has the curves of the shipped one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.checkpoint import (
    BEST,
    CHECKPOINT,
    read_document,
    read_weights,
    write_document,
    write_weights,
)
from agents.compilation import keep_compiled_code
from agents.config import AgentConfig, preset_named
from agents.games import Plan, Source
from agents.generalist import ABOUT, WEIGHTS
from agents.league import League
from agents.networks import Params
from agents.programs import PlayedProgram
from agents.trainer import Trainer, TrainReport
from experiments.console import told_in_a_line
from experiments.demonstrations import TABLE, demonstrated, tasks_of
from experiments.files import write_atomically
from experiments.inputs import load_program, read_json
from experiments.interrupts import interrupts_awaited
from experiments.metrics import (
    METRICS,
    VALIDATION,
    append_metrics,
    forget_metrics_after,
    read_metrics,
)
from experiments.parallel import on_all_processors
from hlo_graphs import corpus
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.generator import Family, random_program
from malloc_game.turn_table import turn_table
from solvers.solver import SolveRequest, solver_named

SETTINGS, PROGRAMS = "settings.json", "programs.json"

UNSEEN_SEED = 10_000
"""Added to a seed: programs drawn from it are in no training, which draws from small ones."""

_PART_SEEDS = 10_000
"""Between the seeds of two parts' demonstrations."""

_VALIDATION_PERIOD = 3
"""Every how many families of the train split one is kept apart."""

_MOST_VALIDATION_ITEMS, _VALIDATION_GAMES = 1536, 4

_MOST_TRAINED_ACCESSES = 1600
"""Of generated programs."""

_LEAST_ITEMS = 8
"""Programs with fewer are left out: they teach nothing and finish in a move or two."""


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


def train_generalist(
    settings: GeneralistSettings, *, resume: bool = False, say: Callable[[str], None] = print
) -> Path:
    """Trains until the time is up or it is interrupted; the folder, which `--resume` goes on with.

    Raises:
      InputError: for programs of the test split, or a folder that cannot be used.
      MallocGameError: if training diverges, when the last checkpoint stays, or if a process that
        looks for demonstrations is ended from outside.
    """
    _check(settings)
    deadline = time.monotonic() + settings.time_limit_seconds
    keep_compiled_code()
    _begin_folder(settings, resume)
    programs, validation = training_programs(settings), Validation.of(settings)
    league = League(programs, preset_named(settings.preset), seed=settings.seed)
    say(_parts_text(league))
    run = _Run(settings, league, validation, say)
    if resume:
        document = read_document(settings.out / CHECKPOINT)
        run.restore(document)
        say(f"resumed after {league.num_games} games")
    else:
        names = [program.name for program in programs]
        write_atomically(settings.out / PROGRAMS, json.dumps(names) + "\n")
        show_demonstrations(league, settings, say)
        run.save(validate=False)
    with interrupts_awaited() as interrupted:
        while time.monotonic() < deadline and not interrupted():
            run.note(*league.run_chunk())
        if interrupted():
            say("interrupted: saving")
        run.save(validate=not interrupted())
    return settings.out


def _check(settings: GeneralistSettings) -> None:
    """Raises InputError for settings that make no sense, before anything is begun."""
    if not settings.time_limit_seconds >= 0:
        raise InputError(f"time limit is {settings.time_limit_seconds} seconds, must be >= 0")
    if settings.seed < 0:
        raise InputError(f"seed is {settings.seed}, must be >= 0")
    preset_named(settings.preset)


def training_programs(settings: GeneralistSettings) -> list[Program]:
    """Corpus programs, then generated ones, with something to decide.

    Raises:
      InputError: for a corpus program that is not trained on.
    """
    known = corpus_programs(validation=False)
    chosen = [
        load_program(name).program for name in _chosen(settings.programs, known, "to train on")
    ]
    fitting = [p for p in chosen if p.num_accesses <= settings.most_accesses]
    rng = np.random.default_rng(settings.seed)
    variants = [variant(program, rng) for program in fitting for _ in range(settings.num_variants)]
    generated = generated_programs(settings.num_generated, settings.seed, _MOST_TRAINED_ACCESSES)
    programs = [*fitting, *variants, *generated]
    played = (p for p in programs if turn_table(p).num_items >= _LEAST_ITEMS)
    return [program for program in played if not PlayedProgram.of(program).is_decided]


def corpus_programs(*, validation: bool) -> tuple[str, ...]:
    """Names of the train split: of the families kept apart for validation, or of the others."""
    train = [family for family in corpus.families().values() if family.split == "train"]
    apart = {family.name for family in train[_VALIDATION_PERIOD - 1 :: _VALIDATION_PERIOD]}
    names = corpus.split().train
    return tuple(name for name in names if (corpus.family_of(name).name in apart) == validation)


def _chosen(names: tuple[str, ...], known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """`names`, or all that are known.

    Raises:
      InputError: for one that is not known.
    """
    for name in names:
        if name not in known:
            raise InputError(f"{name}: not one of the programs {what} ({', '.join(known)})")
    return names or known


def variant(program: Program, rng: np.random.Generator) -> Program:
    """`program` with a sixth of its fast memory or more, and faster or slower copies.

    Slow accesses take as long as they did.
    """
    capacity_bytes = int(program.capacity_bytes * np.exp(rng.uniform(np.log(1 / 6), 0)))
    speed = program.machine.slow_bytes_per_second * float(
        np.exp(rng.uniform(np.log(0.5), np.log(2)))
    )
    smaller = program.with_capacity(capacity_bytes)
    machine = replace(smaller.machine, slow_bytes_per_second=speed)
    name = f"{program.name}@{capacity_bytes / 2**20:.1f}MiB,{speed / 1e9:.0f}GB/s"
    return replace(smaller, name=name, machine=machine)


@dataclass(frozen=True)
class Validation:
    """Programs that are not trained on tell when a network begins to learn the others by heart.

    Attributes:
      programs: of families of the train split that are kept apart, and a variant of each; those
        of which greedy saves nothing are left out.
      greedy_saved: share of the all-slow latency that the greedy solver saves, of each.
    """

    programs: tuple[Program, ...]
    greedy_saved: tuple[float, ...]

    @staticmethod
    def of(settings: GeneralistSettings) -> Validation:
        """Those the settings name.

        Raises:
          InputError: for a program that is not kept apart, or if none is left.
        """
        apart = corpus_programs(validation=True)
        names = _chosen(settings.validation, apart, "kept apart")
        chosen = [load_program(name).program for name in names]
        rng = np.random.default_rng(UNSEEN_SEED + settings.seed)
        both = [one for program in chosen for one in (program, variant(program, rng))]
        kept = [one for one in both if turn_table(one).num_items <= _MOST_VALIDATION_ITEMS]
        greedy = [solver_named("greedy").solve(SolveRequest(program)) for program in kept]
        judged = [
            (program, program.saved_share(solution.latency_ticks))
            for program, solution in zip(kept, greedy, strict=True)
            if solution.latency_ticks < program.all_slow_ticks
        ]
        if not judged:
            raise InputError(f"greedy saves nothing of {', '.join(names)}: name other programs")
        programs, saved = zip(*judged, strict=True)
        return Validation(programs, saved)

    def score(self, config: AgentConfig, params: Params) -> float:
        """What the best of a few games by the policy saves, as a share of what greedy does: the
        mean over the programs. The same weights have the same score.

        A program has `_VALIDATION_GAMES` games in the mean: actors that finish take the next one,
        so short programs have more, long ones fewer.
        """
        config = replace(config, play=config.play.without_old_games())
        trainer = Trainer(self.programs, config, params=params)
        policy = config.search.policy_alone()
        enough = _VALIDATION_GAMES * len(self.programs)
        while trainer.num_games < enough or None in map(trainer.best, range(len(self.programs))):
            trainer.run_chunk(policy, learn=False)
        best = [trainer.best(index) for index in range(len(self.programs))]
        saved = [
            program.saved_share(game.latency_ticks)
            for game, program in zip(best, self.programs, strict=True)
            if game is not None
        ]
        return float(np.mean(np.array(saved) / np.array(self.greedy_saved)))


def generated_programs(count: int, seed: int, most_accesses: int = 500) -> list[Program]:
    """Programs of all families, sizes, pressures and intensities, drawn from `seed`."""
    rng = np.random.default_rng(seed)
    families = list(Family)
    return [
        random_program(
            int(rng.integers(2**31)),
            family=families[number % len(families)],
            num_accesses=int(np.exp(rng.uniform(np.log(40), np.log(most_accesses)))),
            pressure=float(np.exp(rng.uniform(np.log(1.2), np.log(8)))),
            intensity=float(np.exp(rng.uniform(np.log(0.2), np.log(3)))),
            max_size_units=int(rng.integers(4, 64)),
            num_lanes=int(rng.integers(1, 3)),
        )
        for number in range(count)
    ]


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


def _begin_folder(settings: GeneralistSettings, resume: bool) -> None:
    path = settings.out / SETTINGS
    document = json.loads(json.dumps(asdict(settings), default=str))
    if resume:
        known = read_json(path, dict)
        free = {"out", "time_limit_seconds", "save_seconds", "log_seconds"}
        if any(known.get(k) != document[k] for k in document.keys() - free):
            raise InputError(f"{settings.out}: no run with these settings to go on with")
        return
    # A run that was killed before its first checkpoint has nothing to lose.
    if (settings.out / CHECKPOINT).exists():
        raise InputError(f"{settings.out}: holds a run already: use --resume, or another folder")
    settings.out.mkdir(parents=True, exist_ok=True)
    for name in (METRICS, VALIDATION):
        (settings.out / name).unlink(missing_ok=True)
    write_atomically(path, json.dumps(document, indent=2) + "\n")


@dataclass
class _Run:
    """A run on disk, and what has happened since its last line of metrics.

    Attributes:
      best_score: of the averaged weights at all saves so far, the highest.
      best_params: the weights that had it, None before the first save.
    """

    settings: GeneralistSettings
    league: League
    validation: Validation
    say: Callable[[str], None]
    trained_seconds: float = 0.0
    best_score: float = -math.inf
    best_params: Params | None = None
    _reports: list[tuple[Trainer, TrainReport]] = field(default_factory=list)
    _logged_at: float = field(default_factory=time.monotonic)
    _saved_at: float = field(default_factory=time.monotonic)

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
                "best_score": self.best_score,
                "best_params": self.best_params,
                **league,
            },
        )
        # After the checkpoint: a kill in between must not leave a best that it does not know of.
        if is_best:
            self._write_best()
        self._saved_at = time.monotonic()

    def _validated(self, params: Params) -> bool:
        """Whether the averaged weights play better than at all saves before."""
        num_updates = self.league.learner.num_updates
        score = self.validation.score(self.league.config, params)
        self.say(f"{num_updates} updates  validation {score:.4f}")
        # Before the checkpoint: a kill in between leaves a line that a resumed run drops.
        line = {"num_updates": num_updates, "score": score}
        append_metrics(self.settings.out / VALIDATION, line)
        if score <= self.best_score:
            return False
        self.best_score, self.best_params = score, params
        return True

    def restore(self, document: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.league.restore(document)
        self.trained_seconds = float(document["trained_seconds"])
        self.best_score = float(document["best_score"])
        self.best_params = document["best_params"]
        if self.best_params is not None:
            self._write_best()
        for name in (METRICS, VALIDATION):
            path = self.settings.out / name
            forget_metrics_after(path, "num_updates", self.league.learner.num_updates)

    def _write_best(self) -> None:
        write_weights(self.settings.out / BEST, self.league.config, self.best_params)

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
      InputError: if there is no finished run in `out`, or it is damaged.
    """
    config, params = read_weights(out)
    settings = read_json(out / SETTINGS, dict)
    best = max(read_metrics(out / VALIDATION), key=lambda line: float(line["score"]))
    metrics = min(
        read_metrics(out / METRICS), key=lambda line: abs(line["num_updates"] - best["num_updates"])
    )
    about = {
        "settings": {name: value for name, value in settings.items() if name != "out"},
        "programs": read_json(out / PROGRAMS, list),
        "validation": best,
        "metrics": metrics,
    }
    write_weights(WEIGHTS, config, params, half=True)
    write_atomically(ABOUT, json.dumps(about, indent=2) + "\n")
    return WEIGHTS


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and ships if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--programs", nargs="*", default=())
    parser.add_argument("--validation", nargs="*", default=())
    parser.add_argument("--variants", type=int, default=6)
    parser.add_argument("--generated", type=int, default=640)
    parser.add_argument("--most-accesses", type=int, default=4000)
    parser.add_argument("--preset", default="generalist")
    parser.add_argument("--time-limit", type=float, default=3000.0)
    parser.add_argument("--demonstrations", nargs="*", default=("greedy", TABLE))
    parser.add_argument("--demonstration-games", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--ship", action="store_true", help="afterwards, or alone with limit 0")
    chosen = parser.parse_args(arguments)
    settings = GeneralistSettings(
        out=chosen.out,
        programs=tuple(chosen.programs),
        validation=tuple(chosen.validation),
        num_variants=chosen.variants,
        num_generated=chosen.generated,
        most_accesses=chosen.most_accesses,
        preset=chosen.preset,
        time_limit_seconds=chosen.time_limit,
        demonstrations=tuple(chosen.demonstrations),
        demonstration_games=chosen.demonstration_games,
        seed=chosen.seed,
    )
    if chosen.time_limit != 0:
        train_generalist(settings, resume=chosen.resume, say=_say)
    if chosen.ship:
        _say(f"shipped as {ship(chosen.out)}")


def _say(line: str) -> None:
    # A terminal that was closed must not keep a run from being saved.
    with suppress(OSError):
        print(line, flush=True)


if __name__ == "__main__":
    main()
