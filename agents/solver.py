"""The agent behind the solvers' interface: raw in three forms, taught in two, and a control.

Every map of a raw agent was played by its own network, search and table (`agents.adaptation`);
none comes from another solver. A taught agent is first shown the maps of classical solvers:
`agent-demonstrations` begins from scratch otherwise, and returns what was played; `agent-prod` is
how one would deploy it, and returns the best of all. `mcts` searches with the rules of the game
alone and learns nothing.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.errors import JaxRuntimeError

from agents.adaptation import (
    AdaptationConfig,
    Found,
    adapt,
    from_nothing,
    near,
)
from agents.checkpoint import read_weights
from agents.compilation import CompilationClock, keep_compiled_code
from agents.config import AgentConfig, ModelKind, SearchConfig, preset_named
from agents.demonstrations import Demonstration
from agents.games import BestGame, Game, Plan, Source, Thoughts
from agents.generalist import WEIGHTS
from agents.programs import NothingToPlayError, nothing_to_decide
from agents.trainer import Trainer
from hlo_graphs.errors import InputError, MallocGameError
from malloc_game.memory_map import MemoryMap
from malloc_game.turn_table import turn_table
from solvers.children import usable_processors
from solvers.incumbent import Incumbent
from solvers.solver import Solution, SolveRequest, solver_named


class Learning(enum.Enum):
    """What an agent does with the time it is given."""

    SCRATCH = "agent-scratch"
    """Knows nothing: a table from uniform probabilities, then random weights that learn."""
    ADAPTED = "agent"
    """Begins with a trained network: a table from its policy, then the weights learn too. While
    that policy is compiled a table from nothing plays."""
    NONE = "agent-generalist"
    """Plays with a trained network as it is, first its policy, then with search."""
    RULES = "mcts"
    """Has no network: search in the game itself, elites to begin from, nothing learned."""


DEPLOYED = "agent-prod"

_TAUGHT = {"agent-demonstrations": Learning.SCRATCH, DEPLOYED: Learning.ADAPTED}
"""Agents that are first shown other solvers' maps, and what they do then."""

SOLVERS = (*(learning.value for learning in Learning), *_TAUGHT)
"""Names that `agent_named` knows."""

_WITHOUT_WEIGHTS = (Learning.SCRATCH, Learning.RULES)

_BASELINE_SHARE = 0.1
"""Part of the time limit that each classical solver of a taught agent may take."""

_COMPILE_SECONDS = 30.0
"""What search and learning may take to be compiled: with less time left they are not begun, but by
`mcts`, which has nothing else."""

_LEARN_COMPILE_SECONDS = 10.0
"""What of that the updates may take, which are compiled once a first game has ended."""

_LOADING_SECONDS = 5.0
"""What loading the policy takes if it was compiled before. With one processor nothing else runs
meanwhile; if it takes longer it is being compiled."""

_POLICY_SHARE = 0.5
"""Part of the time after which the policy's first games end, whole or not, if a table is to
come."""

_TABLE_SHARE = 0.6
"""Part of the time after the first games that the table gets, if there is enough."""

_LEAST_TABLE_SECONDS = 10.0
"""What it keeps where there is not, and search and learning are to come all the same."""


class _AgentIncumbent(Incumbent):
    """The best map so far and how it came about."""

    def __init__(self, request: SolveRequest, name: str) -> None:
        super().__init__(request, name)
        self.games_played = 0
        self.notes: list[str] = []

    def as_it_stands(self) -> Solution:
        """What is returned when time is up; the agent proves no bound."""
        return self.solution(self.games_played, notes=tuple(self.notes))


@dataclass(frozen=True)
class AgentSolver:
    """Plays the program within the time limit, and returns the best game.

    The first chunk of a new size has to be compiled, which the time limit cannot cut short: tens
    of seconds of CPU time the first time, some four seconds from then on. Before that a round of
    games is played by chance, so that there is something to return.

    Attributes:
      learning: what it does beside playing.
      config: settings; the checkpoint's own if None, without one the tiny preset.
      checkpoint: weights to begin with, a run's folder or a file of one; None for those that
        come with the package. From scratch, and without a network, there are none.
      follow_initial_maps: shows the request's maps to the agent. Then games that repeat their
        moves count too, and the answer is not raw.
    """

    learning: Learning = Learning.ADAPTED
    config: AgentConfig | None = None
    checkpoint: Path | None = None
    follow_initial_maps: bool = False

    @property
    def name(self) -> str:
        """The name it is found by."""
        return self.learning.value

    def solve(self, request: SolveRequest) -> Solution:
        """The best map that was played within the time limit.

        Raises:
          InputError: if the checkpoint cannot be read, or the program does not fit 32 bits.
        """
        found = _AgentIncumbent(request, self.name)
        self.search(found)
        return found.as_it_stands()

    def search(self, found: _AgentIncumbent) -> None:
        """Plays until the deadline of `found`, offering what is played."""
        keep_compiled_code()
        config, params = self.begin()
        request = found.request
        config = config.for_turns(turn_table(request.program).num_turns)
        try:
            trainer = Trainer([request.program], config, seed=request.seed, params=params)
            with CompilationClock() as compilation:
                playing = _Playing(trainer, found, compilation, own=not self.follow_initial_maps)
                if self.follow_initial_maps:
                    playing.show(request.initial_maps)
                elif request.initial_maps:
                    found.notes.append("the agent is raw: it was not shown the initial maps")
                self._play(playing)
        except NothingToPlayError as error:
            found.notes.append(str(error))
        except JaxRuntimeError as error:  # No memory for the games side by side, for instance.
            if found.offers == 0:
                raise MallocGameError(f"{self.name}: {error}") from error
            found.notes.append(f"ended early: {error}")

    def _play(self, playing: _Playing) -> None:
        """Stage after stage."""
        playing.play_at_random()
        if playing.member.is_decided:
            raise nothing_to_decide(playing.member.program)
        if self.learning is Learning.NONE:
            playing.play_policy()
        if self.learning is Learning.ADAPTED:
            playing.compile_policy()
            playing.play_policy(_POLICY_SHARE)
        if self.learning in (Learning.SCRATCH, Learning.ADAPTED):
            if playing.learn_table(must_search=self.learning is Learning.SCRATCH):
                playing.play_on(learn=True)
        elif self.learning is Learning.RULES or playing.may_compile():
            playing.play_on(learn=False)
        else:
            playing.play_policy_on()

    def begin(self) -> tuple[AgentConfig, Any]:
        """Settings, and weights if there are any.

        Raises:
          InputError: if the checkpoint cannot be read, or is of other networks.
        """
        if self.learning is Learning.SCRATCH:
            return self.config or preset_named("tiny"), None
        if self.learning is Learning.RULES:
            config = self.config or preset_named("tiny")
            search = replace(config.search, model=ModelKind.RULES)
            return replace(config, search=search), None
        path = self.checkpoint or WEIGHTS
        stored, params = read_weights(path)
        config = self.config or stored
        if config.network != stored.network:
            raise InputError(f"{path}: has networks of other widths")
        return config, params


@dataclass
class _Playing:
    """One program's games, by network, search and table, against the clock.

    Attributes:
      trainer: of the one program.
      found: where games are offered, and the clock.
      compilation: what of the time was spent on compiling.
      own: only games that no other solver's moves are in count.
      shown: the best of other solvers' maps, if any was shown.
    """

    trainer: Trainer
    found: _AgentIncumbent
    compilation: CompilationClock
    own: bool
    shown: Demonstration | None = None
    _offered: BestGame | None = None
    _table_games: int = 0
    _table_ticks: float = math.inf

    def __post_init__(self) -> None:
        played = self.trainer.programs.members[0]
        self.member = played.with_threads(self.found.request.workers)
        self._rng = np.random.default_rng(self.found.request.seed)
        self._from_nothing = from_nothing(self.member, AdaptationConfig(), self._rng)
        self._known = next(self._from_nothing)

    def show(self, maps: Iterable[MemoryMap]) -> None:
        """Has other solvers' maps played; the best game that repeats one is offered at once."""
        shown = [self.trainer.demonstrate(0, memory_map) for memory_map in maps]
        self.shown = min(shown, key=lambda one: one.latency_ticks, default=None)
        if self.shown is not None:
            wishes = self.member.wishes(self.shown.plan.actions)
            self.found.offer(self.member.fast_game.map_of(wishes))

    def play_at_random(self) -> None:
        """A round of games by chance, so that there is an answer before play is compiled."""
        self._take(self._known, 0)

    def compile_policy(self) -> None:
        """Meanwhile a table that knows nothing plays: neither needs the interpreter for long."""
        deadline = self.found.deadline
        if deadline.expired:
            return
        background = ThreadPoolExecutor(1)
        try:
            compiled = background.submit(self.trainer.compile, self._policy)
            if min(self.found.request.workers, usable_processors()) == 1:
                wait([compiled], timeout=min(_LOADING_SECONDS, deadline.remaining_seconds))
            while not compiled.done() and not deadline.expired:
                self._known = next(self._from_nothing)
                self._take(self._known, 0)
            if compiled.done():
                compiled.result()
        finally:
            # The answer waits for nothing; only the process cannot end before the compilation does.
            background.shutdown(wait=False)
        self._note("table from nothing, while the policy was compiled")

    def play_policy(self, share: float = 1.0) -> None:
        """Every actor plays once what the network's policy says, the first without any noise.

        Args:
          share: part of the time that is left after which these games end, finished or not.
        """
        rest = (1 - share) * self.found.deadline.remaining_seconds
        actors = self.trainer.config.play.actors
        self._play_chunks(self._policy, rest, lambda: self.trainer.num_games >= actors)
        self._note("policy alone")

    def learn_table(self, *, must_search: bool) -> bool:
        """Games by a table, which begins as what is known; then has its best game played.

        Args:
          must_search: leaves time for search and learning if at all possible.

        Returns:
          Whether that time is left.
        """
        if self.found.deadline.remaining_seconds <= 0:
            return False
        rest = self._search_seconds(must_search)
        rounds, source, played_before = self._table()
        before, longest_seconds = self.found.deadline.remaining_seconds, 0.0
        for last in rounds:
            self._take(last, played_before)
            remaining = self.found.deadline.remaining_seconds
            longest_seconds = max(longest_seconds, before - remaining)
            if remaining <= rest + longest_seconds:
                break
            before = remaining
        num_items = self.trainer.programs.bucket.num_items
        self.trainer.show(0, Plan(self.member.by_item(last.wishes, num_items), source))
        self.trainer.restart()
        self._note("table")
        return rest > 0

    def _table(self) -> tuple[Iterator[Found], Source, int]:
        """Rounds from what is known best, whose moves that is, and games played before."""
        config = AdaptationConfig()
        games = [game for game in self.trainer.elites.games(0) if self._counts(game)]
        thoughts = [game.thoughts for game in games] or self._unfinished_thoughts()
        if thoughts:
            best, source = self._best_known(games)
            rounds = adapt(self.member, best, thoughts, config, self._rng)
            return rounds, source, self._table_games
        if self.shown is not None:
            best, source = self._best_known([])
            rounds = near(self.member, best.wishes, config, self._rng)
            return rounds, source, self._table_games
        return self._from_nothing, Source.SELF_PLAY, 0

    def _unfinished_thoughts(self) -> list[Thoughts]:
        """If the policy had no time for a whole game: what it thought of the turns it came to."""
        thoughts = self.trainer.self_play.under_way()
        if thoughts:
            reached = max(int(one.cursors.max(initial=-1)) + 1 for one in thoughts)
            share = reached / self.member.table.num_items
            self.found.notes.append(f"the policy had time for {share:.0%} of a game")
        return thoughts

    def _best_known(self, games: Sequence[Game]) -> tuple[Found, Source]:
        """Of what was played without search so far, and whose moves that is."""
        known = [(replace(self._known, num_games=0), Source.SELF_PLAY)]
        known += [(Found.of(self.member, game), game.source) for game in games[:1]]
        if self.shown is not None:
            plan = self.shown.plan
            wishes = self.member.wishes(plan.actions)
            known.append((Found(0, self.shown.latency_ticks, wishes), plan.source))
        return min(known, key=lambda one: one[0].latency_ticks)

    def _search_seconds(self, must_search: bool) -> float:
        """How much of the time to leave for search and learning."""
        remaining = self.found.deadline.remaining_seconds
        share = (1 - _TABLE_SHARE) * remaining
        if share >= _COMPILE_SECONDS:
            return share
        enough = remaining >= _COMPILE_SECONDS + _LEAST_TABLE_SECONDS
        return _COMPILE_SECONDS if must_search and enough else 0.0

    def _take(self, last: Found, played_before: int) -> None:
        """Counts a round of the table's games, and offers their best if it is new."""
        self._table_games = played_before + last.num_games
        self.found.games_played = self.trainer.num_games + self._table_games
        if last.latency_ticks < self._table_ticks:
            self._table_ticks = last.latency_ticks
            self.found.offer(self.member.fast_game.map_of(last.wishes))

    def may_compile(self) -> bool:
        """Whether enough time is left for search to be compiled, and be of some use."""
        return self.found.deadline.remaining_seconds >= _COMPILE_SECONDS

    def play_on(self, *, learn: bool) -> None:
        """Games with search until the time is up."""
        self._play_chunks(learn=learn)
        self._note("search and learning" if learn else "search")

    def play_policy_on(self) -> None:
        """More games by the policy until the time is up: of each other's beginnings, and near."""
        self._play_chunks(self._policy)
        self._note("policy near its best")

    def _play_chunks(
        self,
        search: SearchConfig | None = None,
        rest: float = 0.0,
        enough: Callable[[], bool] = lambda: False,
        *,
        learn: bool = False,
    ) -> None:
        """As long as another chunk like the last, which need not be compiled, fits the time.

        Ends where the weights are no numbers any more, which is noted.

        Args:
          search: settings, where other than the agent's own.
          rest: seconds that are to be left.
          enough: says that there have been enough.
          learn: whether the weights learn, once that cannot take longer than there is time.
        """
        seconds, is_first = 0.0, True
        while not enough() and self.found.deadline.remaining_seconds - rest > seconds:
            compiled_before = self.compilation.seconds
            # If the first chunk has to be compiled, what is left then for updates is not known.
            learns = learn and not is_first and self._may_learn()
            report = self.trainer.run_chunk(search, learn=learns)
            is_first = False
            compiled = self.compilation.seconds - compiled_before
            seconds = report.play_seconds + report.learn_seconds - compiled
            self._offer()
            if report.has_diverged:
                self.found.notes.append(
                    f"training diverged after {report.num_updates} updates and was ended"
                )
                return

    def _may_learn(self) -> bool:
        """Whether updates are compiled, or can be within the time."""
        remaining = self.found.deadline.remaining_seconds
        return self.trainer.learner.num_updates > 0 or remaining >= _LEARN_COMPILE_SECONDS

    @property
    def _policy(self) -> SearchConfig:
        return self.trainer.config.search.policy_alone()

    def _counts(self, game: Game) -> bool:
        return not self.own or game.source is Source.SELF_PLAY

    def _offer(self) -> None:
        """Counts games, and offers the best if it is new."""
        self.found.games_played = self.trainer.num_games + self._table_games
        game = self.trainer.best(0, own=self.own)
        if game is not None and game is not self._offered:
            self._offered = game
            self.found.offer(self.member.fast_game.map_of(game.wishes))

    def _note(self, stage: str) -> None:
        """What was reached by the end of a stage."""
        self.found.games_played = self.trainer.num_games + self._table_games
        saved = self.found.request.program.saved_share(self.found.ticks)
        elapsed = self.found.deadline.elapsed_seconds
        self.found.notes.append(
            f"{stage}: {saved:.3%} of all-slow saved after {self.found.games_played} games, "
            f"{elapsed:.1f} s"
        )


@dataclass(frozen=True)
class TaughtAgentSolver:
    """An agent that is first shown the maps of classical solvers.

    Attributes:
      name: the name it is found by.
      agent: who plays; it follows initial maps.
      returns_shown: the maps shown count as found, so the answer is never worse than the best of
        them; else it is the best game played, of which a shown map is the first.
      teachers: registered solvers that run first.
    """

    name: str
    agent: AgentSolver
    returns_shown: bool
    teachers: Sequence[str] = ("greedy", "xla-msa")

    def solve(self, request: SolveRequest) -> Solution:
        """The best map within the time limit.

        Raises:
          InputError: as `AgentSolver.solve`; for the program only where no map was offered.
        """
        self.agent.begin()  # A checkpoint that cannot be read is said before anybody has worked.
        found = _AgentIncumbent(request, self.name)
        maps = list(request.initial_maps)
        for memory_map in maps:
            self._offer(found, memory_map, "given")
        for name in self.teachers:
            limit = _BASELINE_SHARE * request.time_limit_seconds
            asked = replace(request, time_limit_seconds=limit, on_progress=None)
            try:
                solution = solver_named(name).solve(asked)
            except MallocGameError as error:
                found.notes.append(f"{name}: {error}")
                continue
            maps.append(solution.memory_map)
            self._offer(found, solution.memory_map, name)
        found.request = replace(request, initial_maps=tuple(maps))
        try:
            self.agent.search(found)
        except InputError as error:
            if found.offers == 0:
                raise
            found.notes.append(f"{self.agent.name}: {error}")
        return found.as_it_stands()

    def _offer(self, found: _AgentIncumbent, memory_map: MemoryMap, who: str) -> None:
        if self.returns_shown:
            found.offer(memory_map, who)


def agent_named(name: str, checkpoint: Path | None = None) -> AgentSolver | TaughtAgentSolver:
    """The agent's solver called `name`, one of `SOLVERS`.

    Raises:
      InputError: if there is none, or it begins without weights and is given some.
    """
    if name not in SOLVERS:
        known = ", ".join(SOLVERS[:-1])
        raise InputError(f"no agent is called {name!r}: use {known} or {SOLVERS[-1]}")
    taught = name in _TAUGHT
    learning = _TAUGHT[name] if taught else Learning(name)
    if learning in _WITHOUT_WEIGHTS and checkpoint is not None:
        raise InputError(f"solver {name!r} has no use for a checkpoint: it begins without weights")
    agent = AgentSolver(learning, checkpoint=checkpoint, follow_initial_maps=taught)
    return TaughtAgentSolver(name, agent, returns_shown=name == DEPLOYED) if taught else agent
