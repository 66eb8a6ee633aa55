"""Settings of mallocMuZero: frozen, keyword-only, with four presets.

What one may want to change of play, search and learning is here (docs/agent.md, "How it works"); a
checkpoint carries its settings. The table has settings of its own (`agents.adaptation`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hlo_graphs.errors import InputError, did_you_mean


class ModelKind(enum.StrEnum):
    """What the search tree steps."""

    LEARNED = "learned"
    """A network that has learned how latent states follow each other (MuZero)."""
    EXACT = "exact"
    """The game itself; the network only gives priors and values (AlphaZero)."""
    RULES = "rules"
    """The game itself and no network: a control, in which nothing is learned."""


def _check_least(name: str, value: int, least: int) -> None:
    """Raises InputError for a setting that is too small."""
    if value < least:
        raise InputError(f"{name} is {value}, must be at least {least}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """Widths of the networks.

    Attributes:
      width: of the latent state, and of every hidden layer that leads to it.
      channels: of the coarsened memory image.
      image_blocks: residual blocks over it.
      window_width: what each coming turn is described by.
      blocks: residual layers of the representation; the dynamics has one.
      support_bins: bins of categorical values and rewards, odd.
      support_limit: the outermost bins, in transformed units (`agents.transforms`).
    """

    width: int = 64
    channels: int = 8
    image_blocks: int = 1
    window_width: int = 16
    blocks: int = 1
    support_bins: int = 41
    support_limit: float = 8.0

    def __post_init__(self) -> None:
        if self.support_bins < 3 or self.support_bins % 2 == 0:
            raise InputError(f"support_bins is {self.support_bins}, must be odd and at least 3")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Gumbel MuZero's settings.

    Attributes:
      model: what the tree steps.
      simulations: per move; 0 plays the network's policy without search.
      max_num_considered_actions: at the root.
      value_scale: Q counts `(maxvisit_init + most visits) * value_scale * Q` beside the logits;
        Q is in return units (`agents.programs`), the same in every node of every tree.
      maxvisit_init: see there.
      gumbel_scale: of the noise at the root; 0 plays greedily.
      least_gumbel_scale: of the first actor, going up evenly to that of the last; None for the
        same noise everywhere.
    """

    model: ModelKind = ModelKind.LEARNED
    simulations: int = 16
    max_num_considered_actions: int = 3
    value_scale: float = 0.2
    maxvisit_init: float = 50.0
    gumbel_scale: float = 1.0
    least_gumbel_scale: float | None = None

    def __post_init__(self) -> None:
        _check_least("simulations", self.simulations, 0)

    def policy_alone(self) -> SearchConfig:
        """The same without search; the first actor plays without noise."""
        return replace(self, simulations=0, least_gumbel_scale=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayConfig:
    """How games are played.

    Attributes:
      actors: games side by side.
      moves: of every actor in a chunk, which is compiled as one; then the network learns.
      restart_fraction: games that begin with a prefix of an elite game.
      follow_fraction: games that stay close to an elite game: all of its moves are kept but for a
        few, which are left to the search.
      free_moves: mean number of moves left to the search in such a game.
      reanalyse_fraction: games that repeat a remembered one move by move, for nothing but to have
        today's search say what it recommends there (MuZero Reanalyse).
    """

    actors: int = 32
    moves: int = 16
    restart_fraction: float = 0.25
    follow_fraction: float = 0.25
    free_moves: float = 8.0
    reanalyse_fraction: float = 0.0

    def __post_init__(self) -> None:
        _check_least("actors", self.actors, 1)
        _check_least("moves", self.moves, 1)
        if not 0 <= self.reanalyse_fraction < 1:
            raise InputError(
                f"reanalyse_fraction is {self.reanalyse_fraction}, must be from 0 to below 1: "
                "else nothing new is played"
            )

    def without_old_games(self) -> PlayConfig:
        """The same, but no game begins at another, stays near one or repeats one."""
        return replace(self, restart_fraction=0.0, follow_fraction=0.0, reanalyse_fraction=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """What is remembered and how it is drawn.

    Attributes:
      capacity_decisions: the oldest games leave when more are held.
      priority_exponent: 0 draws uniformly.
      importance_exponent: 1 corrects fully for the priorities.
      td_steps: rewards summed before the value network takes over; None for full returns.
      unroll_steps: of the learned model in training; the exact model needs none.
    """

    capacity_decisions: int = 50_000
    priority_exponent: float = 0.6
    importance_exponent: float = 0.4
    td_steps: int | None = None
    unroll_steps: int = 3

    def __post_init__(self) -> None:
        _check_least("capacity_decisions", self.capacity_decisions, 1)
        _check_least("unroll_steps", self.unroll_steps, 0)
        if self.td_steps is not None:
            _check_least("td_steps", self.td_steps, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnConfig:
    """The learner's settings.

    Attributes:
      batch_size: positions per update.
      learning_rate: after warm-up; it decays to a tenth over `decay_updates`.
      warmup_updates, decay_updates: of the schedule.
      weight_decay: of AdamW.
      max_gradient_norm: gradients are clipped to it.
      updates_per_chunk: updates after each `PlayConfig.moves` moves of all actors.
      elite_fraction: of all positions learned from, drawn from elite games, whose actions are
        imitated. Their share of the loss is larger: what is drawn by priority has importance
        weights of at most 1, these have 1.
      elite_games: kept per program.
      outlook_dropout: share of positions at which the network is not told what the incumbent
        gains: a program that is played for the first time has none.
      policy_weight, value_weight, reward_weight, legality_weight: of the losses.
    """

    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_updates: int = 20
    decay_updates: int = 20_000
    weight_decay: float = 1e-4
    max_gradient_norm: float = 5.0
    updates_per_chunk: int = 12
    elite_fraction: float = 0.4
    elite_games: int = 8
    outlook_dropout: float = 0.0
    policy_weight: float = 1.0
    value_weight: float = 0.5
    reward_weight: float = 0.5
    legality_weight: float = 0.25

    def __post_init__(self) -> None:
        _check_least("batch_size", self.batch_size, 1)
        _check_least("updates_per_chunk", self.updates_per_chunk, 0)
        _check_least("elite_games", self.elite_games, 1)
        share = self.elite_fraction
        if not 0 <= share < 1 or round(share * self.batch_size) == self.batch_size:
            raise InputError(
                f"elite_fraction is {share}, must be from 0 to below 1, and not nearly 1: "
                "else a batch has no place for other games"
            )
        if not 0 <= self.outlook_dropout <= 1:
            raise InputError(f"outlook_dropout is {self.outlook_dropout}, must be from 0 to 1")


_LONG_TURNS = 4096
"""Of programs with more turns fewer games are played side by side: the time of a batch of games
grows as the square of their turns."""

_LEAST_ACTORS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    """All settings of one agent.

    Attributes:
      preset: name that the settings began with.
      relative_returns: count rewards against the incumbent (`agents.programs.Baselines`).
      shuffle_returns: a control that must not learn: games get each other's returns.
    """

    preset: str = "tiny"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    play: PlayConfig = field(default_factory=PlayConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    relative_returns: bool = True
    shuffle_returns: bool = False

    @property
    def unroll_steps(self) -> int:
        """Steps of the dynamics in training: none if the tree steps the game itself."""
        return self.replay.unroll_steps if self.search.model is ModelKind.LEARNED else 0

    def for_turns(self, num_turns: int) -> AgentConfig:
        """With so few actors that a batch of their games takes no longer than of `_LONG_TURNS`."""
        share = min(1.0, (_LONG_TURNS / max(num_turns, 1)) ** 2)
        actors = max(min(_LEAST_ACTORS, self.play.actors), round(share * self.play.actors))
        return replace(self, play=replace(self.play, actors=actors))

    def to_document(self) -> dict[str, Any]:
        """As plain JSON values."""
        document = asdict(self)
        document["search"]["model"] = self.search.model.value
        return document

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> AgentConfig:
        """What `to_document` wrote.

        Raises:
          InputError: for settings that are not ours.
        """
        parts = dict(document)
        try:
            search = dict(parts.pop("search"))
            search["model"] = ModelKind(search["model"])
            return AgentConfig(
                network=NetworkConfig(**parts.pop("network")),
                search=SearchConfig(**search),
                play=PlayConfig(**parts.pop("play")),
                replay=ReplayConfig(**parts.pop("replay")),
                learn=LearnConfig(**parts.pop("learn")),
                **parts,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not the settings of an agent: {error}") from error


PRESETS: Mapping[str, AgentConfig] = {
    "tiny": AgentConfig(),
    "small": AgentConfig(
        preset="small",
        network=NetworkConfig(width=128, channels=16, image_blocks=2, window_width=32, blocks=2),
        play=PlayConfig(actors=64),
    ),
    "generalist": AgentConfig(
        preset="generalist",
        network=NetworkConfig(width=128, channels=16, window_width=32, blocks=2),
        search=SearchConfig(simulations=8, least_gumbel_scale=0.0),
        play=PlayConfig(actors=32, moves=32),
        replay=ReplayConfig(capacity_decisions=100_000),
        learn=LearnConfig(
            batch_size=256,
            learning_rate=1e-3,
            warmup_updates=100,
            decay_updates=20_000,
            weight_decay=1e-2,
            updates_per_chunk=4,
            elite_fraction=0.5,
            elite_games=4,
            outlook_dropout=0.4,
        ),
    ),
    "large": AgentConfig(
        preset="large",
        network=NetworkConfig(width=512, channels=64, image_blocks=4, window_width=64, blocks=4),
        search=SearchConfig(simulations=32),
        play=PlayConfig(actors=512, moves=32),
        replay=ReplayConfig(capacity_decisions=1_000_000, unroll_steps=5),
        learn=LearnConfig(batch_size=1024, learning_rate=1e-3, updates_per_chunk=16),
    ),
}
"""tiny: two CPU cores, minutes. small: an hour of them. generalist: many programs, an hour.
large: an accelerator."""


_TRAINED = (ModelKind.LEARNED, ModelKind.EXACT)


def preset_named(
    name: str, *, simulations: int | None = None, model: ModelKind | str | None = None
) -> AgentConfig:
    """A preset, with another search if asked for.

    Raises:
      InputError: for an unknown preset or model, or a negative number of simulations.
    """
    if name not in PRESETS:
        near = did_you_mean(name, PRESETS)
        raise InputError(f"no preset is called {name!r}{near}; presets: {', '.join(PRESETS)}")
    config = PRESETS[name]
    search = config.search
    if simulations is not None:
        search = replace(search, simulations=simulations)
    if model is not None:
        if model not in _TRAINED:
            raise InputError(f"no model is called {model!r}: use {' or '.join(_TRAINED)}")
        search = replace(search, model=ModelKind(model))
    return replace(config, search=search)
