"""Choosing a move: Gumbel MuZero's search, or the network's policy where no simulation is spent.

Source: Danihelka et al. 2022, "Policy improvement by planning with Gumbel", as in mctx. Q values
are scaled by one constant everywhere (docs/agent.md, "How it works"): rescaling in each node would
magnify noise where all actions are worth nearly the same.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mctx

from agents.config import SearchConfig
from agents.models import Boards, Context, Model
from agents.networks import Params, View


class Choice(NamedTuple):
    """What a search says, `[B]` and `[B, 3]`.

    Attributes:
      action: chosen, always legal.
      policy: the improved policy, the target of learning; 0 for illegal actions.
      prior: the network's own policy.
      visits: of the root's actions, as shares; the prior where there is no search.
    """

    action: jax.Array
    policy: jax.Array
    prior: jax.Array
    visits: jax.Array


def choose(
    model: Model, config: SearchConfig, params: Params, boards: Boards, view: View, key: jax.Array
) -> Choice:
    """A move for each of `boards`."""
    mask = view.observation.action_mask
    root = model.root(params, boards, view)
    prior = jax.nn.softmax(root.prior_logits)
    if config.simulations == 0:
        noise = gumbel_scales(config, len(mask)) * jax.random.gumbel(key, mask.shape)
        action = jnp.argmax(jnp.where(mask, root.prior_logits + noise, -jnp.inf), axis=-1)
        return Choice(action.astype(jnp.int32), prior, prior, prior)
    output = search_tree(model, config, Context(params, boards), root, mask, key)
    policy = jnp.where(mask, output.action_weights, 0.0)
    return Choice(
        action=output.action,
        policy=policy / jnp.sum(policy, axis=-1, keepdims=True),
        prior=prior,
        visits=output.search_tree.summary().visit_probs,
    )


def gumbel_scales(config: SearchConfig, actors: int) -> jax.Array:
    """`[B, 1]` of the noise at each actor's root."""
    most = config.gumbel_scale
    least = most if config.least_gumbel_scale is None else config.least_gumbel_scale
    return jnp.linspace(least, most, actors)[:, None]


def search_tree(
    model: Model,
    config: SearchConfig,
    context: Context,
    root: mctx.RootFnOutput,
    action_mask: jax.Array,
    key: jax.Array,
) -> mctx.PolicyOutput:
    """mctx's search with our settings; `action_mask` `[B, 3]` is True where legal."""
    return mctx.gumbel_muzero_policy(
        params=context,
        rng_key=key,
        root=root,
        recurrent_fn=model.step,
        num_simulations=config.simulations,
        invalid_actions=~action_mask,
        max_num_considered_actions=config.max_num_considered_actions,
        gumbel_scale=gumbel_scales(config, len(action_mask)),
        qtransform=partial(
            mctx.qtransform_completed_by_mix_value,
            value_scale=config.value_scale,
            maxvisit_init=config.maxvisit_init,
            rescale_values=False,
        ),
    )
