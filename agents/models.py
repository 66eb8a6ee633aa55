"""Two models that a search tree can step, behind one interface: learned, and the game itself.

Legal masks hold inside the tree, not only at its root, and past the end of the game nothing is
gained: reward 0, discount 0, value 0 (docs/agent.md, "How it works").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import mctx

from agents.config import AgentConfig, ModelKind
from agents.networks import (
    Networks,
    Params,
    Prediction,
    View,
    mask_logits,
    predict,
    represent,
    transit,
)
from agents.programs import outlook
from malloc_game.observation import observe
from malloc_game.rules import advance_batch
from malloc_game.state import ProgramArrays, State


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Boards:
    """A batch of games on the device, with what is known of their programs.

    Attributes:
      arrays: `ProgramArrays` with a leading axis `[B]`, or without where all play one program.
      state: `State` `[B, ...]`.
      curves: `[B, items + 1]` the incumbents' (`agents.programs.Baselines`).
      units: `[B]` return units.
    """

    arrays: ProgramArrays
    state: State
    curves: jax.Array
    units: jax.Array

    @property
    def shared(self) -> bool:
        """Whether all games are of one program."""
        return self.arrays.items.ndim == 2

    @property
    def num_items(self) -> jax.Array:
        """`[B]` of each game's program."""
        return jnp.broadcast_to(self.arrays.num_items, self.units.shape)


class Context(NamedTuple):
    """What a model's step needs besides the tree: parameters, and the boards at the root."""

    params: Params
    boards: Boards


class Model(Protocol):
    """What a search steps. `embedding` is what a tree node keeps, a pytree of `[B, ...]`."""

    def root(self, params: Params, boards: Boards, view: View) -> mctx.RootFnOutput:
        """The root: masked priors `[B, 3]`, values `[B]` and embeddings."""
        ...

    def step(
        self, context: Context, key: jax.Array, action: jax.Array, embedding: Any
    ) -> tuple[mctx.RecurrentFnOutput, Any]:
        """mctx's `recurrent_fn`."""
        ...


def view_of(boards: Boards) -> View:
    """What networks see of `boards`."""
    axis = None if boards.shared else 0
    observation = jax.vmap(observe, in_axes=(axis, 0))(boards.arrays, boards.state)
    ahead = outlook(boards.curves, boards.state.cursor, boards.num_items, boards.units)
    return View(observation, ahead)


def play_boards(boards: Boards, action: jax.Array) -> tuple[Boards, jax.Array]:
    """Plays `action` `[B]`; the boards after, and rewards `[B]`, shares of the all-slow latency."""
    state, reward = advance_batch(boards.arrays, boards.state, action)
    return replace(boards, state=state), reward


def relative_rewards(before: Boards, after: Boards, reward: jax.Array) -> jax.Array:
    """Rewards `[B]` in return units, less what the incumbents gain over the same items."""
    rows = jnp.arange(reward.shape[0])
    expected = before.curves[rows, after.state.cursor] - before.curves[rows, before.state.cursor]
    return (reward - expected) / before.units


@dataclass(frozen=True)
class LearnedModel:
    """MuZero: latent states, with legality and the end of the game predicted like all else."""

    networks: Networks

    def root(self, params: Params, boards: Boards, view: View) -> mctx.RootFnOutput:
        """See `Model.root`; the root's mask is the game's own."""
        latent = represent(self.networks, params, view)
        prediction = predict(self.networks, params, latent)
        return mctx.RootFnOutput(
            prior_logits=mask_logits(prediction.policy_logits, view.observation.action_mask),
            value=_value(self.networks, prediction),
            embedding=latent,
        )

    def step(
        self, context: Context, key: jax.Array, action: jax.Array, embedding: jax.Array
    ) -> tuple[mctx.RecurrentFnOutput, jax.Array]:
        """See `Model.step`. Once a path is past the end all it leads to is worth nothing."""
        del key
        transition = transit(self.networks, context.params, embedding, action)
        prediction = predict(self.networks, context.params, transition.latent)
        going = prediction.going_logits >= 0
        output = mctx.RecurrentFnOutput(
            reward=self.networks.value(transition.reward_logits),
            discount=going.astype(jnp.float32),
            prior_logits=mask_logits(prediction.policy_logits, predicted_legal(prediction)),
            value=jnp.where(going, _value(self.networks, prediction), 0.0),
        )
        return output, transition.latent


def predicted_legal(prediction: Prediction) -> jax.Array:
    """`[B, 3]` bool: Drop, and what is likelier legal than not."""
    return (prediction.legality_logits >= 0).at[..., 0].set(True)


@dataclass(frozen=True)
class ExactModel:
    """The game in the tree; the network gives priors and values of the boards it reaches.

    Without `networks` every legal action is as likely, and no board is better than the incumbent's.
    """

    networks: Networks | None

    def root(self, params: Params, boards: Boards, view: View) -> mctx.RootFnOutput:
        """See `Model.root`; the embedding is the game's state."""
        logits, value = self._judged(params, view)
        return mctx.RootFnOutput(prior_logits=logits, value=value, embedding=boards.state)

    def step(
        self, context: Context, key: jax.Array, action: jax.Array, embedding: State
    ) -> tuple[mctx.RecurrentFnOutput, State]:
        """See `Model.step`."""
        del key
        before = replace(context.boards, state=embedding)
        after, reward = play_boards(before, action)
        logits, value = self._judged(context.params, view_of(after))
        going = after.state.cursor < after.num_items
        output = mctx.RecurrentFnOutput(
            reward=relative_rewards(before, after, reward),
            discount=going.astype(jnp.float32),
            prior_logits=logits,
            value=jnp.where(going, value, 0.0),
        )
        return output, after.state

    def _judged(self, params: Params, view: View) -> tuple[jax.Array, jax.Array]:
        """Masked priors `[B, 3]` and values `[B]`."""
        mask = view.observation.action_mask
        if self.networks is None:
            return mask_logits(jnp.zeros(mask.shape), mask), jnp.zeros(mask.shape[0])
        latent = represent(self.networks, params, view)
        prediction = predict(self.networks, params, latent)
        return mask_logits(prediction.policy_logits, mask), _value(self.networks, prediction)


def _value(networks: Networks, prediction: Prediction) -> jax.Array:
    return networks.value(prediction.value_logits)


def model_for(config: AgentConfig) -> Model:
    """The model that `config` asks for."""
    networks = Networks(config.network)
    models: dict[ModelKind, Model] = {
        ModelKind.LEARNED: LearnedModel(networks),
        ModelKind.EXACT: ExactModel(networks),
        ModelKind.RULES: ExactModel(None),
    }
    return models[config.search.model]
