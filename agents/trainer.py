"""Training: chunks of self-play and updates in turn, with everything they share.

One class for all modes: one program (the paper's), several of like size (of many, `agents.league`
has several trainers), and either from given weights (adaptation).
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from agents.config import AgentConfig, SearchConfig
from agents.demonstrations import Demonstration, demonstration_of
from agents.elites import Elites
from agents.games import BestGame, Game, Plan, Source
from agents.health import Health, warnings_of
from agents.learner import Learner, LearnReport
from agents.networks import Params
from agents.programs import Baselines, ProgramSet
from agents.replay import Replay, Targets
from agents.self_play import PlayStatistics, SelfPlay
from hlo_graphs.errors import InputError, MallocGameError
from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainReport:
    """One chunk of self-play and its updates.

    Attributes:
      num_chunks, num_updates, num_games, num_moves: so far.
      finished: games that ended in this chunk.
      best_latency_ticks: per program, of all games so far; None before the first.
      mean_saved: mean over the finished games of 1 - latency / all-slow latency; None if none.
      is_best: some program's best improved.
      play: statistics of the chunk's moves.
      learn: mean of the updates, None while there is nothing to learn from.
      health: None while there is nothing to learn from.
      warnings: what is out of bounds.
      play_seconds, learn_seconds: of this chunk.
    """

    num_chunks: int
    num_updates: int
    num_games: int
    num_moves: int
    finished: tuple[Game, ...]
    best_latency_ticks: tuple[float | None, ...]
    mean_saved: float | None
    is_best: bool
    play: PlayStatistics
    learn: LearnReport | None
    health: Health | None
    warnings: tuple[str, ...]
    play_seconds: float
    learn_seconds: float

    @property
    def has_diverged(self) -> bool:
        """Whether the updates have made weights that are no numbers."""
        learn = self.learn
        # A loss is of the weights before an update, a gradient makes those after it.
        return learn is not None and not math.isfinite(learn.loss + learn.gradient_norm)

    def check_learning(self) -> None:
        """Raises MallocGameError if training has diverged."""
        if self.learn is not None and self.has_diverged:
            raise MallocGameError(
                f"training has diverged: after {self.num_updates} updates the loss is "
                f"{self.learn.loss:g} and its gradient {self.learn.gradient_norm:g}; the last "
                "checkpoint is from before: begin another run from its weights, with another seed "
                "or preset"
            )


class Trainer:
    """An agent that plays and learns.

    Args:
      programs: what is played, padded to one bucket.
      config: settings.
      seed: of everything random; the same seed gives the same training.
      params: weights to begin with.
      learner: one that others share, in place of one of its own; then `params` is not looked at.

    Raises:
      InputError: if a program cannot be played.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        config: AgentConfig,
        *,
        seed: int = 0,
        params: Params | None = None,
        learner: Learner | None = None,
    ) -> None:
        self.config = config
        self.programs = ProgramSet.of(programs)
        self.baselines = Baselines(self.programs)
        self.elites = Elites(len(self.programs), config.learn.elite_games)
        self.replay = Replay(config.replay)
        # Of seeds beyond 63 bits, which numpy takes, jax takes the rest.
        self._key, first_key = jax.random.split(jax.random.key(seed % 2**63))
        self._rng = np.random.default_rng(seed)
        self._demonstrations: list[deque[Plan]] = [deque() for _ in self.programs.members]
        self._best: list[BestGame | None] = [None] * len(self.programs)
        self._best_own: list[BestGame | None] = [None] * len(self.programs)
        self.num_chunks, self.num_games, self.num_moves = 0, 0, 0
        self.self_play = SelfPlay(self.programs, config, self._plan)
        self.learner = learner or Learner(config, first_key, params)
        self._targets = Targets(self.baselines, config.replay, config.unroll_steps)

    def demonstrate(self, program: int, memory_map: MemoryMap) -> Demonstration:
        """Has a valid map of a program played as one of its next games."""
        member = self.programs.members[program]
        shown = demonstration_of(member, memory_map, self.programs.bucket.num_items)
        self.show(program, shown.plan)
        return shown

    def show(self, program: int, plan: Plan) -> None:
        """Has a plan of a program played as one of its next games."""
        self._demonstrations[program].append(plan)

    def restart(self) -> None:
        """Has every actor begin a game; demonstrations under way are shown again."""
        for program, plan in self.self_play.shown_under_way():
            self.show(program, plan)
        self.self_play.restart()

    def best(self, program: int, *, own: bool = False) -> BestGame | None:
        """The fastest game; if `own`, of those in which no other solver chose a move."""
        return self._best_own[program] if own else self._best[program]

    def run_chunk(self, search: SearchConfig | None = None, *, learn: bool = True) -> TrainReport:
        """Plays a chunk of moves, then learns.

        Args:
          search: settings of the search, where other than the agent's own.
          learn: False leaves the weights as they are.
        """
        began = time.monotonic()
        if self.num_chunks == 0 and any(self._demonstrations):
            self.restart()  # The games that wait to begin make room for what is shown.
        key = jax.random.fold_in(self._key, self.num_chunks)
        games, statistics = self.self_play.play(
            self.learner.params, self.baselines, key, self.learner.num_updates, search
        )
        games = self._refreshed(games)
        is_best = self._remember(games)
        played = time.monotonic()
        learned = self.learn() if learn else None
        self.num_chunks += 1
        self.num_moves += statistics.num_moves
        health = None if learned is None else self._health(statistics, learned)
        return TrainReport(
            num_chunks=self.num_chunks,
            num_updates=self.learner.num_updates,
            num_games=self.num_games,
            num_moves=self.num_moves,
            finished=tuple(games),
            best_latency_ticks=tuple(
                None if game is None else game.latency_ticks for game in self._best
            ),
            mean_saved=self._mean_saved(games),
            is_best=is_best,
            play=statistics,
            learn=learned,
            health=health,
            warnings=() if health is None else warnings_of(health, self.learner.num_updates),
            play_seconds=played - began,
            learn_seconds=time.monotonic() - played,
        )

    def compile(self, search: SearchConfig) -> None:
        """Has chunks with these settings of the search compiled; nothing else changes."""
        self.self_play.compile(self.learner.params, self.baselines, search)

    def _plan(self, program: int) -> Plan:
        if self._demonstrations[program]:
            return self._demonstrations[program].popleft()
        num_items = self.programs.bucket.num_items
        if self._rng.random() < self.config.play.reanalyse_fraction:
            again = self.replay.repetition(program, num_items, self._rng)
            if again is not None:
                return again
        return self.elites.plan(program, self.config.play, num_items, self._rng)

    def _refreshed(self, games: list[Game]) -> list[Game]:
        """Files what was searched anew; the games that are new."""
        for game in games:
            if game.repeats is not None:
                self.replay.refresh(game)
        return [game for game in games if game.repeats is None]

    def _remember(self, games: list[Game]) -> bool:
        """Files new games; says whether one is faster than all before it."""
        self.num_games += len(games)
        is_best = False
        for game in games:
            is_best |= self._keep_best(self._best, game)
            if game.source is Source.SELF_PLAY:
                self._keep_best(self._best_own, game)
        believed = _shuffled(games, self._rng) if self.config.shuffle_returns else games
        for game in believed:
            self.replay.add(game)
            if self.elites.add(game) and self.config.relative_returns:
                self.baselines.set_incumbent(game.program, game.cursors, game.gained)
        return is_best

    def _keep_best(self, best: list[BestGame | None], game: Game) -> bool:
        """Puts a game in the place of a slower one of its program; says whether it did."""
        known = best[game.program]
        if known is not None and known.latency_ticks <= game.latency_ticks:
            return False
        best[game.program] = BestGame.of(game, self.programs.members[game.program])
        return True

    def learn(self) -> LearnReport | None:
        """A chunk's updates; their mean, None if there is nothing to learn from."""
        if not len(self.replay):
            return None
        settings = self.config.learn
        if not settings.updates_per_chunk:
            return None
        count, size = settings.updates_per_chunk, settings.batch_size
        imitated = self.elites.sample(count * round(settings.elite_fraction * size), self._rng)
        drawn = self.replay.sample(count * size - sum(map(len, imitated)), self._rng)
        # Elites come program by program: mixed, so that no update is of one program alone.
        order = self._rng.permutation(count * size)
        flat = self._targets.batch([drawn, *imitated])
        flat.outlook[self._rng.random(len(flat.outlook)) < settings.outlook_dropout] = 0
        batches = jax.tree.map(lambda leaf: leaf[order].reshape(count, size, *leaf.shape[1:]), flat)
        report, errors = self.learner.update(batches)
        by_place = np.empty(count * size, dtype=np.float32)
        by_place[order] = errors.ravel()
        self.replay.update(drawn, by_place[: len(drawn)])
        return report

    def _health(self, play: PlayStatistics, learn: LearnReport) -> Health:
        return Health(
            visit_entropy=play.visit_entropy,
            policy_entropy=play.policy_entropy,
            search_divergence=play.search_divergence,
            commonest_action=play.commonest_action,
            value_bias=learn.value_bias,
            value_explained=learn.value_explained,
            reward_error=learn.reward_error,
            replay_age=self.replay.mean_age(self.learner.num_updates),
        )

    def _mean_saved(self, games: list[Game]) -> float | None:
        members = self.programs.members
        saved = [members[game.program].program.saved_share(game.latency_ticks) for game in games]
        return float(np.mean(saved)) if saved else None

    def to_document(self) -> dict[str, Any]:
        """The state but for the learner, which may be shared, for a checkpoint."""
        return {
            "config": self.config.to_document(),
            "programs": [member.program.name for member in self.programs.members],
            "digests": [member.digest for member in self.programs.members],
            "replay": self.replay.to_document(),
            "elites": self.elites.to_document(),
            "best": [None if best is None else best.to_document() for best in self._best],
            "best_own": [None if own is None else own.to_document() for own in self._best_own],
            "curves": self.baselines.curves,
            "self_play": self.self_play.to_document(),
            "demonstrations": [
                [{"actions": p.actions, "source": int(p.source)} for p in plans]
                for plans in self._demonstrations
            ],
            "key": np.asarray(jax.random.key_data(self._key)),
            "random": json.dumps(self._rng.bit_generator.state),
            "counts": [self.num_chunks, self.num_games, self.num_moves],
        }

    def restore(self, document: dict[str, Any]) -> None:
        """Goes on where `to_document` was called, with the learner as it is.

        Raises:
          InputError: if that was of other programs or settings.
        """
        self._check_programs(document)
        if AgentConfig.from_document(document["config"]) != self.config:
            raise InputError("the checkpoint was made with other settings: resume with the same")
        self.replay.restore(document["replay"])
        self.elites.restore(document["elites"])
        self._best = _best_games(document["best"])
        self._check_rules()
        self._best_own = _best_games(document["best_own"])
        self.baselines.curves[:] = document["curves"]
        self.self_play.restore(document["self_play"])
        self._demonstrations = [
            deque(Plan(p["actions"], Source(p["source"])) for p in plans)
            for plans in document["demonstrations"]
        ]
        self._key = jax.random.wrap_key_data(document["key"])
        self._rng.bit_generator.state = json.loads(document["random"])
        self.num_chunks, self.num_games, self.num_moves = document["counts"]

    def _check_rules(self) -> None:
        """Raises InputError if the best games remembered take another time now."""
        for member, best in zip(self.programs.members, self._best, strict=True):
            if best is None:
                continue
            if member.fast_game.latency_ticks(best.wishes) != best.latency_ticks:
                raise InputError(
                    f"{member.program.name}: the checkpoint's best game takes another time now: "
                    "the rules have changed since; begin a new run"
                )

    def _check_programs(self, document: dict[str, Any]) -> None:
        """Raises InputError if `to_document` was called on other programs."""
        names = [member.program.name for member in self.programs.members]
        if document["programs"] != names:
            found = ", ".join(document["programs"])
            raise InputError(f"the checkpoint is of {found}, not of {', '.join(names)}")
        for member, digest in zip(self.programs.members, document["digests"], strict=True):
            if member.digest != digest:
                raise InputError(f"{member.program.name} has changed since the checkpoint")


def _best_games(documents: Sequence[dict[str, Any] | None]) -> list[BestGame | None]:
    return [None if one is None else BestGame.from_document(one) for one in documents]


def _shuffled(games: list[Game], rng: np.random.Generator) -> list[Game]:
    """A control: rewards no longer belong to the moves. Each game's rewards are put in another
    order and shifted to sum to what another game of the chunk summed to."""
    others = rng.permutation(len(games))
    believed = []
    for game, other in zip(games, others.tolist(), strict=True):
        shift = (games[other].total - game.total) / max(1, len(game))
        rewards = rng.permutation(game.rewards) + np.float32(shift)
        believed.append(replace(game, rewards=rewards.astype(np.float32)))
    return believed
