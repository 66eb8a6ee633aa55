"""The learner: losses over unrolled latent steps, and an optimiser with a schedule.

Source: MuZero (Schrittwieser et al. 2020), appendix G: cross-entropies of policy, value and
reward; gradients through the dynamics are halved at each step, and those of unrolled steps share
one weight. Legality and the end of the game are learned as well, because the learned model needs
them inside its tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from agents.config import AgentConfig, LearnConfig, NetworkConfig
from agents.games import expanded
from agents.networks import (
    Networks,
    Params,
    View,
    first_params,
    mask_logits,
    predict,
    represent,
    transit,
)
from agents.replay import Batch
from agents.transforms import to_bins
from hlo_graphs.errors import InputError


@dataclass(frozen=True, slots=True)
class LearnReport:
    """The mean over some updates.

    Attributes:
      loss: what is minimised.
      policy_loss, value_loss, reward_loss, legality_loss: its parts, not weighted, nats.
      gradient_norm: before clipping.
      value_bias: mean of value less target, return units.
      value_explained: 1 - variance of that over variance of the target, of all positions
        together; 1 is perfect, 0 is no better than a constant.
      reward_error: mean absolute error of the learned model's rewards, return units.
      learning_rate: of the update.
    """

    loss: float
    policy_loss: float
    value_loss: float
    reward_loss: float
    legality_loss: float
    gradient_norm: float
    value_bias: float
    value_explained: float
    reward_error: float
    learning_rate: float


class _Losses(NamedTuple):
    """Parts of the loss `[]`, and what is reported beside them."""

    policy: jax.Array
    value: jax.Array
    reward: jax.Array
    legality: jax.Array
    value_errors: jax.Array
    value_targets: jax.Array
    reward_error: jax.Array


class Learner:
    """Weights and optimiser.

    Args:
      config: settings.
      key: of the first weights.
      params: weights to begin with, e.g. a generalist's, in place of random ones.

    Raises:
      InputError: if those are of other networks.
    """

    def __init__(self, config: AgentConfig, key: jax.Array, params: Params | None = None) -> None:
        self.config = config
        networks, view = Networks(config.network), View.empty()
        if params is None:
            self.params = first_params(networks, view, key)
        else:
            wanted = jax.eval_shape(networks.init, key, view)
            # Copied: updates give up the weights they improve on, and the caller keeps these.
            self.params = jax.tree.map(jnp.array, _alike(params, wanted))
        self.optimiser_state = jax.jit(optimiser_of(config.learn).init)(self.params)
        self.num_updates = 0

    @property
    def num_parameters(self) -> int:
        """Numbers in the weights."""
        return sum(int(leaf.size) for leaf in jax.tree.leaves(self.params))

    def update(self, batches: Batch) -> tuple[LearnReport, NDArray[np.float32]]:
        """One step per batch, all in one call.

        Args:
          batches: each array with a leading axis of updates, `[U, N, ...]`.

        Returns:
          What the updates were like in the mean, and value errors `[U, N]`.
        """
        self.params, self.optimiser_state, numbers, errors = _updates(
            self.config.network, self.config.learn, self.params, self.optimiser_state, batches
        )
        rates = schedule_of(self.config.learn)
        # One call for a chunk: each look at the device costs more than a small update's share.
        values, errors, rate = jax.device_get((numbers, errors, rates(self.num_updates)))
        self.num_updates += len(errors)
        means = {name: float(value) for name, value in values.items()}
        return LearnReport(**means, learning_rate=float(rate)), errors

    def to_document(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "params": _host(self.params),
            "optimiser": [np.asarray(x) for x in jax.tree.leaves(self.optimiser_state)],
            "num_updates": self.num_updates,
        }

    def restore(self, document: dict[str, Any]) -> None:
        """What `to_document` made; raises InputError if it is of other networks."""
        self.params = jax.tree.map(jnp.asarray, _alike(document["params"], self.params))
        structure = jax.tree.structure(self.optimiser_state)
        leaves = [jnp.asarray(leaf) for leaf in document["optimiser"]]
        self.optimiser_state = jax.tree.unflatten(structure, leaves)
        self.num_updates = int(document["num_updates"])


def _alike(params: Params, wanted: Any) -> Params:
    """`params`; raises InputError if they have other shapes than `wanted`."""
    found, expected = (jax.tree.map(np.shape, weights) for weights in (params, wanted))
    if found != expected:
        raise InputError("the weights are of an older version's networks: train anew")
    return params


def schedule_of(config: LearnConfig) -> optax.Schedule:
    """Warm-up, then a cosine down to a tenth."""
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / 10,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_updates,
        decay_steps=config.decay_updates,
        end_value=config.learning_rate / 10,
    )


def optimiser_of(config: LearnConfig) -> optax.GradientTransformation:
    """AdamW on clipped gradients, of all weights as one vector: many small ones take longer."""
    return optax.flatten(
        optax.chain(
            optax.clip_by_global_norm(config.max_gradient_norm),
            optax.adamw(schedule_of(config), weight_decay=config.weight_decay),
        )
    )


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _updates(
    network: NetworkConfig,
    settings: LearnConfig,
    params: Params,
    optimiser_state: Any,
    batches: Any,
) -> tuple[Params, Any, dict[str, jax.Array], jax.Array]:
    """An update per batch `[U, N, ...]`: weights and optimiser after, means, errors `[U, N]`."""

    def step(carry: tuple[Params, Any], batch: Any) -> tuple[tuple[Params, Any], Any]:
        params, optimiser_state, numbers, losses = _update(network, settings, *carry, batch)
        return (params, optimiser_state), (numbers, losses.value_errors, losses.value_targets)

    carry, (numbers, errors, targets) = jax.lax.scan(step, (params, optimiser_state), batches)
    means = jax.tree.map(jnp.mean, numbers)
    means["value_explained"] = 1 - jnp.var(errors) / jnp.maximum(jnp.var(targets), 1e-8)
    return *carry, means, errors


def _update(
    network: NetworkConfig,
    settings: LearnConfig,
    params: Params,
    optimiser_state: Any,
    batch: Any,
) -> tuple[Params, Any, dict[str, jax.Array], _Losses]:
    def total(params: Params) -> tuple[jax.Array, _Losses]:
        losses = _losses(network, params, batch)
        loss = settings.policy_weight * losses.policy + settings.value_weight * losses.value
        loss += settings.reward_weight * losses.reward
        return loss + settings.legality_weight * losses.legality, losses

    (loss, losses), gradient = jax.value_and_grad(total, has_aux=True)(params)
    updates, optimiser_state = optimiser_of(settings).update(gradient, optimiser_state, params)
    numbers = {
        "loss": loss,
        "policy_loss": losses.policy,
        "value_loss": losses.value,
        "reward_loss": losses.reward,
        "legality_loss": losses.legality,
        "gradient_norm": optax.tree.norm(gradient),
        "value_bias": jnp.mean(losses.value_errors),
        "reward_error": losses.reward_error,
    }
    return optax.apply_updates(params, updates), optimiser_state, numbers, losses


def _losses(network: NetworkConfig, params: Params, batch: Any) -> _Losses:
    """All parts of the loss over the unrolled steps; `batch` is a traced `Batch`."""
    networks = Networks(network)
    unroll = batch.actions.shape[1]
    targets = jnp.asarray(batch.returns) + _bootstrap_values(networks, params, batch)
    latent = represent(networks, params, View(expanded(batch.observation), batch.outlook))
    zero = jnp.float32(0)
    policy, value, reward, legality, reward_error = zero, zero, zero, zero, zero
    errors = jnp.zeros_like(targets[:, 0])
    for k in range(unroll + 1):
        prediction = predict(networks, params, latent)
        scale = 1.0 if k == 0 else 1.0 / unroll
        here = batch.weights * batch.going[:, k] * scale
        policy += _weighted_mean(here, _policy_loss(prediction.policy_logits, batch, k))
        bins = to_bins(targets[:, k], network.support_bins, network.support_limit)
        value += _weighted_mean(here, optax.softmax_cross_entropy(prediction.value_logits, bins))
        legal = optax.sigmoid_binary_cross_entropy(
            prediction.legality_logits, batch.legal[:, k].astype(jnp.float32)
        )
        legality += _weighted_mean(here, legal.sum(axis=-1))
        if k == 0:
            errors = networks.value(prediction.value_logits) - targets[:, 0]
        else:
            # The end is looked for where the game still went on a step before.
            was = batch.weights * batch.going[:, k - 1] / unroll
            going = batch.going[:, k].astype(jnp.float32)
            legality += _weighted_mean(
                was, optax.sigmoid_binary_cross_entropy(prediction.going_logits, going)
            )
        if k < unroll:
            transition = transit(networks, params, _half_gradient(latent), batch.actions[:, k])
            latent = transition.latent
            was = batch.weights * batch.going[:, k] / unroll
            bins = to_bins(batch.rewards[:, k], network.support_bins, network.support_limit)
            logits = transition.reward_logits
            reward += _weighted_mean(was, optax.softmax_cross_entropy(logits, bins))
            wrong = jnp.abs(networks.value(logits) - batch.rewards[:, k])
            reward_error += jnp.sum(wrong * batch.going[:, k]) / (
                jnp.maximum(jnp.sum(batch.going[:, k]), 1) * unroll
            )
    return _Losses(policy, value, reward, legality, errors, targets[:, 0], reward_error)


def _policy_loss(logits: jax.Array, batch: Any, k: int) -> jax.Array:
    """Cross-entropy `[N]` of step `k`'s policy targets against masked logits."""
    masked = mask_logits(logits, batch.legal[:, k])
    return -jnp.sum(batch.policies[:, k] * jax.nn.log_softmax(masked), axis=-1)


def _bootstrap_values(networks: Networks, params: Params, batch: Any) -> jax.Array:
    """`[N, K + 1]` the network's present value where the n-step return leaves off, else 0."""
    count, steps = batch.bootstraps.shape
    if batch.bootstrap_outlook.shape[1] == 0:
        return jnp.zeros((count, steps))
    view = View(expanded(batch.bootstrap_observation), batch.bootstrap_outlook)
    flat = jax.tree.map(lambda leaf: leaf.reshape(count * steps, *leaf.shape[2:]), view)
    latent = represent(networks, params, flat)
    prediction = predict(networks, params, latent)
    values = networks.value(prediction.value_logits).reshape(count, steps)
    return jax.lax.stop_gradient(jnp.where(batch.bootstraps, values, 0.0))


def _half_gradient(latent: jax.Array) -> jax.Array:
    return 0.5 * latent + 0.5 * jax.lax.stop_gradient(latent)


def _weighted_mean(weights: jax.Array, losses: jax.Array) -> jax.Array:
    return jnp.mean(weights * losses)


def _host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
