"""What a run needs before it can start: memory, and compiled code kept from the last time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import jax

from agents.config import AgentConfig, ModelKind
from agents.trainer import Trainer

CACHE_VARIABLE = "MALLOC_GAME_CACHE"
"""Environment variable with another folder for compiled code."""

_NODE_BYTES = 3 * 24
"""Of a tree node beside its embedding: visits, priors, values, rewards of three actions."""

_SAVING_COPIES = 4.5
"""Times what is remembered that a checkpoint takes while it is written, measured: flax and msgpack
copy each column several times."""

_COMPILE_SECONDS = {ModelKind.LEARNED: 20.0, ModelKind.EXACT: 40.0, ModelKind.RULES: 40.0}
"""CPU seconds measured for the functions of one bucket on the processors of 2024."""


def keep_compiled_code() -> Path:
    """Lets compiled functions survive the process; the folder they are kept in.

    If the process has such a folder already, it stays that.
    """
    known = getattr(jax.config, "jax_compilation_cache_dir", None)
    if known:
        return Path(known)
    default = Path.home() / ".cache" / "malloc-game" / "compiled"
    folder = Path(os.environ.get(CACHE_VARIABLE, default))
    jax.config.update("jax_compilation_cache_dir", str(folder))  # type: ignore[no-untyped-call]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # type: ignore[no-untyped-call]
    return folder


class CompilationClock:
    """Adds up the seconds that JAX spends on compiling, or on loading what was compiled."""

    _EVENTS = frozenset(
        f"/jax/core/compile/{part}_duration"
        for part in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
    )

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> CompilationClock:
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in self._EVENTS:
            self.seconds += duration_secs


@dataclass(frozen=True, slots=True)
class Needs:
    """What training takes.

    Attributes:
      games_bytes: states of the games under way.
      moves_bytes: what is remembered of them, if all are near their ends.
      elites_bytes: the elite games, and once more as rows to draw from.
      tree_bytes: of the search, at its largest.
      replay_bytes: once it is full.
      saving_bytes: while a checkpoint is written, with a full replay, all elites, and the games
        under way near their ends.
      parameters: numbers in the weights; with the optimiser three times as many are kept.
      compile_seconds: CPU time of the first chunk and update, roughly; less if compiled code of
        the same sizes was kept.
    """

    games_bytes: int
    moves_bytes: int
    elites_bytes: int
    tree_bytes: int
    replay_bytes: int
    saving_bytes: int
    parameters: int
    compile_seconds: float

    @property
    def total_bytes(self) -> int:
        """All together."""
        games = self.games_bytes + self.moves_bytes + self.elites_bytes
        remembered = self.replay_bytes + self.saving_bytes
        return games + self.tree_bytes + remembered + 12 * self.parameters

    def __str__(self) -> str:
        parts = {
            "games": self.games_bytes,
            "their moves": self.moves_bytes,
            "elites": self.elites_bytes,
            "search trees": self.tree_bytes,
            "replay when full": self.replay_bytes,
            "saving it": self.saving_bytes,
            "weights and optimiser": 12 * self.parameters,
        }
        listed = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in parts.items())
        return (
            f"memory {self.total_bytes / 2**20:.0f} MiB ({listed}); {self.parameters:,} weights; "
            f"first compilation about {self.compile_seconds:.0f} CPU seconds"
        )


def needs_of(trainer: Trainer) -> Needs:
    """What training with `trainer` takes."""
    config: AgentConfig = trainer.config
    games = trainer.self_play.num_bytes
    actors, nodes = config.play.actors, config.search.simulations + 1
    turns = [member.table.num_turns for member in trainer.programs.members]
    decision = trainer.self_play.decision_bytes
    latent = config.search.model is ModelKind.LEARNED
    embedding = 4 * config.network.width if latent else games // actors
    moves = actors * max(turns) * decision
    elites = config.learn.elite_games * sum(turns) * decision
    replay = config.replay.capacity_decisions * decision
    return Needs(
        games_bytes=games,
        moves_bytes=moves,
        elites_bytes=2 * elites,
        tree_bytes=actors * nodes * (_NODE_BYTES + embedding) if nodes > 1 else 0,
        # Room to move in: `agents.rows.RowStore` is some two times what it holds.
        replay_bytes=2 * replay,
        saving_bytes=round(_SAVING_COPIES * (replay + elites + moves)),
        parameters=trainer.learner.num_parameters,
        compile_seconds=_COMPILE_SECONDS[config.search.model],
    )
