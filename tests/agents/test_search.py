"""Searches of models whose every number is known, drawn as trees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.config import SearchConfig, preset_named
from agents.models import Context, LearnedModel
from agents.networks import Networks, Prediction, Transition, mask_logits
from agents.search import search_tree

DEPTH = 4


class NumberGame:
    """A game of `DEPTH` moves; its state is how many were played.

    `context.params` is `(rewards, legal)`: `rewards[depth, a]` is what playing `a` is worth,
    `legal` `[3]` what may be played below the root. At the end everything is over.
    """

    def root(self, mask: jax.Array) -> mctx.RootFnOutput:
        count = mask.shape[0]
        return mctx.RootFnOutput(
            prior_logits=mask_logits(jnp.zeros((count, 3)), mask),
            value=jnp.zeros(count),
            embedding=jnp.zeros(count, dtype=jnp.int32),
        )

    def step(
        self, context: Context, key: jax.Array, action: jax.Array, embedding: jax.Array
    ) -> tuple[mctx.RecurrentFnOutput, jax.Array]:
        del key
        rewards, legal = context.params
        over = embedding >= DEPTH
        gained = rewards[jnp.minimum(embedding, DEPTH - 1), action]
        mask = jnp.broadcast_to(legal, (action.shape[0], 3))
        output = mctx.RecurrentFnOutput(
            reward=jnp.where(over, 0.0, gained),
            discount=jnp.where(embedding + 1 >= DEPTH, 0.0, 1.0),
            prior_logits=mask_logits(jnp.zeros((action.shape[0], 3)), mask),
            value=jnp.zeros(action.shape[0]),
        )
        return output, embedding + 1


@partial(jax.jit, static_argnums=(0, 1))
def _searched(
    simulations: int, gumbel_scale: float, params: Any, action_mask: jax.Array, key: jax.Array
) -> mctx.PolicyOutput:
    config = SearchConfig(simulations=simulations, gumbel_scale=gumbel_scale, value_scale=0.1)
    boards: Any = None
    game: Any = NumberGame()
    context = Context(params, boards)
    return search_tree(game, config, context, game.root(action_mask), action_mask, key)


def searched(
    rewards: Any,
    simulations: int,
    mask: Sequence[bool],
    legal: Sequence[bool] = (True, True, True),
    key: int = 0,
    gumbel_scale: float = 0.0,
) -> mctx.PolicyOutput:
    """Compiled once per number of simulations and scale of the noise."""
    params = (jnp.asarray(rewards, dtype=jnp.float32), jnp.array(legal))
    return _searched(simulations, gumbel_scale, params, jnp.array([mask]), jax.random.key(key))


def tree_text(tree: Any) -> str:
    """`action:visits(value)` per child, children in brackets."""

    def node(index: int) -> str:
        parts = []
        for action in range(3):
            child = int(tree.children_index[0, index, action])
            if child >= 0:
                value = float(tree.node_values[0, child])
                below = node(child)
                visits = int(tree.children_visits[0, index, action])
                parts.append(f"{action}:{visits}({value:g})" + (f"[{below}]" if below else ""))
        return " ".join(parts)

    return node(0)


REWARDS = ((0, 0, 1), (0, 2, 0), (0, 0, 0), (4, 0, 0))
FREE = (True, True, True)


def test_golden_tree() -> None:
    # Every root action is tried once; the better two, 0 (ties to the first) and 2, once more;
    # then 2, which is worth 1 itself. Below it 0 and 1 are tried, and 1 is worth 2: its value is
    # the mean of 0 (unsearched), 0 and 2.
    output = searched(REWARDS, 6, FREE)
    assert tree_text(output.search_tree) == "0:2(0)[0:1(0)] 1:1(0) 2:3(0.666667)[0:1(0) 1:1(0)]"
    assert int(output.action[0]) == 2
    assert float(output.search_tree.node_values[0, 0]) == pytest.approx((3 * 1 + 2) / 7)


def test_golden_tree_with_a_mask_at_the_root() -> None:
    # Two actions share the visits; 1 at depth 1 is worth 2 and found under both.
    output = searched(REWARDS, 6, (True, True, False))
    text = "0:3(0.666667)[0:1(0) 1:1(0)] 1:3(0.666667)[0:1(0) 1:1(0)]"
    assert tree_text(output.search_tree) == text
    assert output.action_weights[0, 2] == 0


def test_the_key_is_all_that_is_random() -> None:
    trees = [
        [
            tree_text(searched(REWARDS, 6, FREE, key=key, gumbel_scale=5.0).search_tree)
            for key in range(8)
        ]
        for _ in range(2)
    ]
    assert trees[0] == trees[1]
    assert len(set(trees[0])) > 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**20), st.sampled_from([1, 2]))
def test_no_tree_visits_an_illegal_action(seed: int, forbidden: int) -> None:
    rewards = np.random.default_rng(seed).normal(size=(DEPTH, 3))
    rewards[:, forbidden] = 100.0
    mask = [action != forbidden for action in range(3)]
    visits = np.asarray(searched(rewards, 24, mask, mask, seed).search_tree.children_visits)
    assert visits[..., forbidden].sum() == 0
    assert visits[0, 0].sum() == 24


def test_an_unmasked_illegal_action_would_be_visited() -> None:
    # The test above can fail: without the mask inside the tree the free action is taken.
    tree = searched([(0, 100, 0)] * DEPTH, 24, (True, False, True)).search_tree
    assert np.asarray(tree.children_visits)[..., 1].sum() > 0


def test_what_the_learned_model_predicts_is_masked_and_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = preset_named("tiny").network
    bins, networks = config.support_bins, Networks(config)
    one = jax.nn.one_hot(jnp.full(3, bins - 1), bins) * 50.0  # A return far above 0.
    prediction = Prediction(
        policy_logits=jnp.zeros((3, 3)),
        value_logits=one,
        legality_logits=jnp.array([[-9.0, 9, -9], [9, 9, 9], [-9, -9, -9]]),
        going_logits=jnp.array([2.0, -2.0, 2.0]),
    )
    monkeypatch.setattr("agents.models.predict", lambda *_: prediction)
    monkeypatch.setattr("agents.models.transit", lambda *_: Transition(jnp.zeros((3, 4)), one))
    context: Any = Context(None, None)
    output, _ = LearnedModel(networks).step(
        context, jax.random.key(0), jnp.zeros(3, dtype=jnp.int32), jnp.zeros((3, 4))
    )
    # Drop is always legal; what is not has no weight at all.
    weights = np.asarray(jax.nn.softmax(output.prior_logits))
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0], [1 / 3] * 3, [1, 0, 0]], atol=1e-6)
    assert output.discount.tolist() == [1, 0, 1]
    assert float(output.value[0]) > 1
    assert float(output.value[1]) == 0
    # The move that ends the game is still paid for.
    assert float(output.reward[1]) == float(output.value[0])
