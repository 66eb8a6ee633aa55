"""The agent behind the solvers' interface: `agent` raw, and `agent-prod`, as it would be deployed.

Source: issue "mallocMuZero", item 5. `agent` plays and learns on the one program it is given,
from random weights or a checkpoint's, until the time is up; every map it returns was played by
its own network and search. `agent-prod` first runs classical solvers, shows the agent their maps,
and returns the best of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.checkpoint import read_weights
from agents.compilation import keep_compiled_code
from agents.config import AgentConfig, preset_named
from agents.games import Game
from agents.programs import NothingToPlayError
from agents.trainer import Trainer
from hlo_graphs.errors import InputError, MallocGameError
from malloc_game.memory_map import MemoryMap
from solvers.evaluate import simulated_latency
from solvers.solver import Deadline, Progress, Solution, SolveRequest, solver_named, status_of

SOLVERS = ("agent", "agent-prod")
"""Names that `agent_named` knows."""

_BASELINE_SHARE = 0.1
"""Part of the time limit that each classical solver of `agent-prod` may take."""


@dataclass
class _Found:
    """The best map so far and how it came about."""

    request: SolveRequest
    deadline: Deadline
    who: str
    memory_map: MemoryMap = field(default_factory=MemoryMap)
    latency_ticks: float = 0.0
    games_played: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.latency_ticks = self.request.program.all_slow_ticks

    def offer(self, memory_map: MemoryMap, who: str) -> None:
        """Keeps the map if it is faster than all before; times it here, whatever made it."""
        request = self.request
        ticks = simulated_latency(request.program, memory_map, request.copy_order)
        if ticks < self.latency_ticks:
            self.memory_map, self.latency_ticks = memory_map, ticks
            elapsed = self.deadline.elapsed_seconds
            request.report(Progress(elapsed, who, ticks, memory_map=memory_map))

    def solution(self) -> Solution:
        """As it stands."""
        return Solution(
            memory_map=self.memory_map,
            latency_ticks=self.latency_ticks,
            lower_bound_ticks=None,
            status=status_of(self.latency_ticks, None, self.request.gap),
            solver=self.who,
            wall_seconds=self.deadline.elapsed_seconds,
            games_played=self.games_played,
            notes=tuple(self.notes),
        )


@dataclass(frozen=True)
class AgentSolver:
    """Trains on the program within the time limit, and returns the best game it played.

    The first chunk of a new size bucket has to be compiled, which the time limit cannot cut
    short: tens of seconds of CPU time the first time, a second or two from then on.

    Attributes:
      config: settings; a checkpoint's own if None and there is one, else the tiny preset.
      checkpoint: weights to begin with: a run's folder or a file of one.
      learn: False plays with the weights as they are.
      follow_initial_maps: shows the request's maps to the agent. Then games that repeat their
        moves count too, and the answer is not raw.
    """

    config: AgentConfig | None = None
    checkpoint: Path | None = None
    learn: bool = True
    follow_initial_maps: bool = False

    @property
    def name(self) -> str:
        """The name it is found by."""
        return "agent"

    def solve(self, request: SolveRequest) -> Solution:
        """The best map that was played within the time limit.

        Raises:
          InputError: if the checkpoint cannot be read, or the program does not fit 32 bits.
        """
        found = _Found(request, Deadline.after(request.time_limit_seconds), self.name)
        self.search(found)
        return found.solution()

    def search(self, found: _Found) -> None:
        """Plays until the deadline of `found`, offering what is played."""
        keep_compiled_code()
        config, params = self._begin()
        request = found.request
        try:
            trainer = Trainer([request.program], config, seed=request.seed, params=params)
            if self.follow_initial_maps:
                for memory_map in request.initial_maps:
                    trainer.demonstrate(0, memory_map)
            elif request.initial_maps:
                found.notes.append("the agent is raw: it was not shown the initial maps")
            self._play(trainer, found)
        except NothingToPlayError as error:
            found.notes.append(str(error))

    def _begin(self) -> tuple[AgentConfig, Any]:
        """Settings, and weights if there are any."""
        if self.checkpoint is None:
            config, params = self.config or preset_named("tiny"), None
        else:
            stored, params = read_weights(self.checkpoint)
            config = self.config or stored
            if config.network != stored.network:
                raise InputError(f"{self.checkpoint}: has networks of other widths")
        if not self.learn:
            config = replace(config, learn=replace(config.learn, updates_per_chunk=0))
        return config, params

    def _play(self, trainer: Trainer, found: _Found) -> None:
        """Chunks while the next one fits the time that is left."""
        last: Game | None = None
        longest = 0.0
        while True:
            report = trainer.run_chunk()
            found.games_played = report.num_games
            game = trainer.best(0, own=not self.follow_initial_maps)
            if game is not None and game is not last:
                last = game
                found.offer(trainer.map_of(game), self.name)
            if report.num_chunks > 1:
                longest = max(longest, report.play_seconds + report.learn_seconds)
            if found.deadline.remaining_seconds <= longest:
                break
        if last is None:
            found.notes.append("no game of its own was finished in time")


@dataclass(frozen=True)
class AgentProdSolver:
    """The better of the agent and classical solvers, whose maps the agent is shown.

    Attributes:
      agent: who plays.
      baselines: registered solvers that run first.
    """

    agent: AgentSolver = field(default_factory=lambda: AgentSolver(follow_initial_maps=True))
    baselines: Sequence[str] = ("greedy", "xla-msa")

    @property
    def name(self) -> str:
        """The name it is found by."""
        return "agent-prod"

    def solve(self, request: SolveRequest) -> Solution:
        """The best map of all; never worse than an initial one or a baseline's."""
        found = _Found(request, Deadline.after(request.time_limit_seconds), self.name)
        maps = list(request.initial_maps)
        for memory_map in maps:
            found.offer(memory_map, "given")
        for name in self.baselines:
            limit = _BASELINE_SHARE * request.time_limit_seconds
            asked = replace(request, time_limit_seconds=limit, on_progress=None)
            try:
                solution = solver_named(name).solve(asked)
            except MallocGameError as error:
                found.notes.append(f"{name}: {error}")
                continue
            maps.append(solution.memory_map)
            found.offer(solution.memory_map, name)
        found.request = replace(request, initial_maps=tuple(maps))
        self.agent.search(found)
        return found.solution()


def agent_named(name: str, checkpoint: Path | None = None) -> AgentSolver | AgentProdSolver:
    """The agent's solver called `name`, one of `SOLVERS`.

    Raises:
      InputError: if there is none.
    """
    if name == "agent":
        return AgentSolver(checkpoint=checkpoint)
    if name == "agent-prod":
        return AgentProdSolver(AgentSolver(checkpoint=checkpoint, follow_initial_maps=True))
    raise InputError(f"no agent is called {name!r}: use {' or '.join(SOLVERS)}")
