"""Trains the generalist: one network for all programs, on the train split and generated ones.

    python -m experiments.generalist --out RUN [--time-limit 3000] [--seed 0] [--resume]
        [--programs NAME...] [--variants 2] [--generated 192] [--preset generalist] [--ship]

No program of the test split is looked at. Beside each program of the train split there are
variants of it, with other capacities and faster or slower copies, so that the network cannot learn
the programs by heart. Each program's games begin with demonstrations, which become the first
elites (`--demonstrations`, each `--demonstration-seconds` long): maps of classical solvers, and
what a table finds that begins uniform (`table`, see `agents.adaptation`). A run is a folder:
`settings.json`, `programs.json` (names of what is played), `metrics.jsonl` (a line every twenty
seconds), `checkpoint.msgpack`, and `best.msgpack`: the weights that played best on generated
programs that are not trained on (`Validation`). `--ship` puts those where `solve --solver agent`
finds them, with what they were trained on beside them. docs/agent.md has the curves of the shipped
one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.files import write_atomically
from experiments.inputs import load_program
from experiments.metrics import (
    METRICS,
    VALIDATION,
    append_metrics,
    forget_metrics_after,
    read_metrics,
)
from hlo_graphs import corpus
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.generator import Family, random_program
from malloc_game.turn_table import turn_table
from solvers.solver import Deadline, SolveRequest, solver_named

if TYPE_CHECKING:
    from agents.league import League
    from agents.trainer import Trainer, TrainReport

TABLE = "table"
"""The demonstration that is no solver's map: the best game of a table that began uniform."""

SETTINGS, PROGRAMS = "settings.json", "programs.json"

UNSEEN_SEED = 10_000
"""Added to a seed: programs drawn from it are in no training, which draws from small ones."""

_VALIDATION_SEED = 2 * UNSEEN_SEED
_MOST_VALIDATION_ITEMS, _LEAST_SAVED, _VALIDATION_GAMES = 384, 0.02, 4

_LEAST_ITEMS = 8
"""Programs with fewer are left out: they teach nothing and finish in a move or two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneralistSettings:
    """What a run does.

    Attributes:
      out: the run's folder.
      programs: corpus programs; all of the train split if empty.
      num_variants: of each corpus program, see `variant`.
      num_generated: generated programs beside them.
      num_validation: generated programs that are not trained on, the small ones of which are played
        whenever a checkpoint is written.
      most_accesses: corpus programs with more are left out.
      preset: of `agents.config.PRESETS`.
      time_limit_seconds: of this call, demonstrations and compilation included.
      demonstrations: solvers whose maps are shown, and `TABLE`.
      demonstration_seconds: for each of them and each corpus program; generated ones get a
        quarter.
      seed: of everything random.
      save_seconds, log_seconds: between checkpoints, and between lines of metrics.
    """

    out: Path
    programs: tuple[str, ...] = ()
    num_variants: int = 2
    num_generated: int = 192
    num_validation: int = 32
    most_accesses: int = 4000
    preset: str = "generalist"
    time_limit_seconds: float = 3000.0
    demonstrations: tuple[str, ...] = ("greedy", TABLE)
    demonstration_seconds: float = 4.0
    seed: int = 0
    save_seconds: float = 240.0
    log_seconds: float = 20.0


def train_generalist(
    settings: GeneralistSettings, *, resume: bool = False, say: Callable[[str], None] = print
) -> Path:
    """Trains until the time is up; the folder, which `--resume` goes on with.

    Raises:
      InputError: for programs of the test split, or a folder that cannot be used.
    """
    from agents.checkpoint import CHECKPOINT, read_document
    from agents.compilation import keep_compiled_code
    from agents.config import preset_named
    from agents.league import League

    deadline = time.monotonic() + settings.time_limit_seconds
    keep_compiled_code()
    _begin_folder(settings, resume)
    programs = training_programs(settings)
    names = [program.name for program in programs]
    write_atomically(settings.out / PROGRAMS, json.dumps(names) + "\n")
    league = League(programs, preset_named(settings.preset), seed=settings.seed)
    say(_parts_text(league))
    run = _Run(settings, league, Validation.of(settings.num_validation, settings.seed), say)
    if resume:
        document = read_document(settings.out / CHECKPOINT)
        run.restore(document)
        say(f"resumed after {league.num_games} games")
    else:
        show_demonstrations(league, settings, say)
    while time.monotonic() < deadline:
        run.note(*league.run_chunk())
    run.save()
    return settings.out


def training_programs(settings: GeneralistSettings) -> list[Program]:
    """Corpus programs, then generated ones, with something to decide.

    Raises:
      InputError: for a corpus program of the test split.
    """
    train = corpus.split().train
    for name in settings.programs:
        if name not in train:
            raise InputError(f"{name}: not a program of the train split ({', '.join(train)})")
    chosen = [load_program(name).program for name in settings.programs or train]
    fitting = [p for p in chosen if _num_accesses(p) <= settings.most_accesses]
    rng = np.random.default_rng(settings.seed)
    variants = [variant(program, rng) for program in fitting for _ in range(settings.num_variants)]
    generated = generated_programs(settings.num_generated, settings.seed)
    programs = [*fitting, *variants, *generated]
    return [program for program in programs if turn_table(program).num_items >= _LEAST_ITEMS]


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
      programs: generated.
      greedy_saved: share of the all-slow latency that the greedy solver saves, of each.
    """

    programs: tuple[Program, ...]
    greedy_saved: tuple[float, ...]

    @staticmethod
    def of(count: int, seed: int) -> Validation:
        """Small ones, of which greedy saves something, of `count` that are drawn.

        Raises:
          InputError: if there are none.
        """
        found = []
        for program in generated_programs(count, _VALIDATION_SEED + seed):
            if turn_table(program).num_items <= _MOST_VALIDATION_ITEMS:
                solution = solver_named("greedy").solve(SolveRequest(program))
                found.append((program, 1 - solution.latency_ticks / program.all_slow_ticks))
        kept = [(program, saved) for program, saved in found if saved >= _LEAST_SAVED]
        if not kept:
            raise InputError(f"none of {count} generated programs is of use for validation")
        return Validation(tuple(p for p, _ in kept), tuple(saved for _, saved in kept))

    def score(self, league: League) -> float:
        """What the best of a few games by the policy saves, as a share of what greedy does: the
        mean over the programs. The same weights have the same score."""
        from agents.trainer import Trainer

        config = replace(league.config, play=league.config.play.without_old_games())
        trainer = Trainer(self.programs, config, learner=league.learner)
        policy = config.search.policy_alone()
        enough = _VALIDATION_GAMES * len(self.programs)
        while trainer.num_games < enough or not all(map(trainer.best, range(len(self.programs)))):
            trainer.run_chunk(policy, learn=False)
        best = [trainer.best(index) for index in range(len(self.programs))]
        saved = [
            1 - game.latency_ticks / program.all_slow_ticks
            for game, program in zip(best, self.programs, strict=True)
            if game is not None
        ]
        return float(np.mean(np.array(saved) / np.array(self.greedy_saved)))


def generated_programs(count: int, seed: int) -> list[Program]:
    """Programs of all families, sizes, pressures and intensities, drawn from `seed`."""
    rng = np.random.default_rng(seed)
    families = list(Family)
    return [
        random_program(
            int(rng.integers(2**31)),
            family=families[number % len(families)],
            num_accesses=int(np.exp(rng.uniform(np.log(40), np.log(500)))),
            pressure=float(np.exp(rng.uniform(np.log(1.2), np.log(8)))),
            intensity=float(np.exp(rng.uniform(np.log(0.2), np.log(3)))),
            max_size_units=int(rng.integers(4, 64)),
            num_lanes=int(rng.integers(1, 3)),
        )
        for number in range(count)
    ]


def _num_accesses(program: Program) -> int:
    return sum(len(instruction.accesses) for instruction in program.instructions)


def show_demonstrations(
    league: League, settings: GeneralistSettings, say: Callable[[str], None]
) -> None:
    """Has what each demonstrator finds for each program played as one of its first games."""
    for part, trainer in enumerate(league.trainers):
        for index, member in enumerate(trainer.programs.members):
            program = member.program
            for name in settings.demonstrations:
                share = 1.0 if program.times == "calibrated" else 0.25
                seconds = share * settings.demonstration_seconds
                if name == TABLE:
                    rng = np.random.default_rng((settings.seed, part, index))
                    ticks = _show_table(trainer, index, seconds, rng)
                else:
                    ticks = _show_solver(trainer, index, name, seconds)
                say(f"{program.name}: {name} saves {1 - ticks / program.all_slow_ticks:.2%}")


def _show_solver(trainer: Trainer, index: int, solver: str, seconds: float) -> float:
    """Latency in ticks of the game that repeats the solver's map."""
    request = SolveRequest(trainer.programs.members[index].program, time_limit_seconds=seconds)
    memory_map = solver_named(solver).solve(request).memory_map
    return trainer.demonstrate(index, memory_map).latency_ticks


def _show_table(trainer: Trainer, index: int, seconds: float, rng: np.random.Generator) -> float:
    """Latency in ticks of the best game of a table that had this long."""
    from agents.adaptation import AdaptationConfig, actions_by_item, from_nothing
    from agents.games import Plan, Source

    member = trainer.programs.members[index]
    rounds = from_nothing(member, AdaptationConfig(), rng)
    next(rounds)  # Machine code is loaded now.
    deadline = Deadline.after(seconds)
    found = next(found for found in rounds if deadline.remaining_seconds <= 0)
    actions = actions_by_item(member, found.wishes, trainer.programs.bucket.num_items)
    trainer.show(index, Plan(actions, Source.DEMONSTRATION))
    return found.latency_ticks


def _parts_text(league: League) -> str:
    parts = []
    for trainer in league.trainers:
        turns = sum(member.table.num_turns for member in trainer.programs.members)
        parts.append(f"{len(trainer.programs)} programs of {turns} turns")
    return f"{'; '.join(parts)}; {league.learner.num_parameters:,} weights"


def _begin_folder(settings: GeneralistSettings, resume: bool) -> None:
    from agents.checkpoint import CHECKPOINT

    path = settings.out / SETTINGS
    document = json.loads(json.dumps(asdict(settings), default=str))
    if resume:
        known = json.loads(path.read_text()) if path.exists() else {}
        free = {"out", "time_limit_seconds", "save_seconds", "log_seconds"}
        if any(known.get(k) != document[k] for k in document.keys() - free):
            raise InputError(f"{settings.out}: no run with these settings to go on with")
        return
    # A run that was killed before its first checkpoint has nothing to lose.
    if (settings.out / CHECKPOINT).exists():
        raise InputError(f"{settings.out}: holds a run already: use --resume, or another folder")
    settings.out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(document, indent=2) + "\n")


@dataclass
class _Run:
    """A run on disk, and what has happened since its last line of metrics."""

    settings: GeneralistSettings
    league: League
    validation: Validation
    say: Callable[[str], None]
    trained_seconds: float = 0.0
    best_score: float = -math.inf
    _reports: list[tuple[Trainer, TrainReport]] = field(default_factory=list)
    _logged_at: float = field(default_factory=time.monotonic)
    _saved_at: float = field(default_factory=time.monotonic)

    def note(self, trainer: Trainer, report: TrainReport) -> None:
        """Takes a chunk in; logs and saves when it is time."""
        self.trained_seconds += report.play_seconds + report.learn_seconds
        self._reports.append((trainer, report))
        now = time.monotonic()
        learned = any(one.learn is not None for _, one in self._reports)
        if learned and now - self._logged_at >= self.settings.log_seconds:
            self._log()
            self._logged_at = now
        if now - self._saved_at >= self.settings.save_seconds:
            self.save()

    def save(self) -> None:
        """Writes everything, and the weights apart if none before played as well."""
        from agents.checkpoint import BEST, CHECKPOINT, write_document, write_weights

        learner, score = self.league.learner, self.validation.score(self.league)
        self.say(f"{learner.num_updates} updates  validation {score:.4f}")
        is_best = score > self.best_score
        self.best_score = max(score, self.best_score)
        write_document(
            self.settings.out / CHECKPOINT,
            {
                "config": self.league.config.to_document(),
                "trained_seconds": self.trained_seconds,
                "best_score": self.best_score,
                **self.league.to_document(),
            },
        )
        # After the checkpoint: a kill in between must not leave a best that it does not know of.
        if is_best:
            write_weights(self.settings.out / BEST, self.league.config, learner.params)
        line = {"num_updates": learner.num_updates, "score": score}
        append_metrics(self.settings.out / VALIDATION, line)
        self._saved_at = time.monotonic()

    def restore(self, document: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.league.restore(document)
        self.trained_seconds = float(document["trained_seconds"])
        self.best_score = float(document["best_score"])
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
    from agents.games import Source

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
      InputError: if there is no finished run in `out`.
    """
    from agents.checkpoint import read_weights, write_weights
    from agents.generalist import ABOUT, WEIGHTS

    config, params = read_weights(out)
    best = max(read_metrics(out / VALIDATION), key=lambda line: float(line["score"]))
    metrics = min(
        read_metrics(out / METRICS), key=lambda line: abs(line["num_updates"] - best["num_updates"])
    )
    write_weights(WEIGHTS, config, params, half=True)
    about = {
        "settings": json.loads((out / SETTINGS).read_text()),
        "programs": json.loads((out / PROGRAMS).read_text()),
        "validation": best,
        "metrics": metrics,
    }
    del about["settings"]["out"]
    write_atomically(ABOUT, json.dumps(about, indent=2) + "\n")
    return WEIGHTS


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and ships if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--programs", nargs="*", default=())
    parser.add_argument("--variants", type=int, default=2)
    parser.add_argument("--generated", type=int, default=192)
    parser.add_argument("--most-accesses", type=int, default=4000)
    parser.add_argument("--preset", default="generalist")
    parser.add_argument("--time-limit", type=float, default=3000.0)
    parser.add_argument("--demonstrations", nargs="*", default=("greedy", TABLE))
    parser.add_argument("--demonstration-seconds", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--ship", action="store_true", help="afterwards, or alone with limit 0")
    chosen = parser.parse_args(arguments)
    settings = GeneralistSettings(
        out=chosen.out,
        programs=tuple(chosen.programs),
        num_variants=chosen.variants,
        num_generated=chosen.generated,
        most_accesses=chosen.most_accesses,
        preset=chosen.preset,
        time_limit_seconds=chosen.time_limit,
        demonstrations=tuple(chosen.demonstrations),
        demonstration_seconds=chosen.demonstration_seconds,
        seed=chosen.seed,
    )
    try:
        if chosen.time_limit > 0:
            train_generalist(settings, resume=chosen.resume, say=_say)
        if chosen.ship:
            _say(f"shipped as {ship(chosen.out)}")
    except InputError as error:
        sys.exit(f"error: {error}")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
