"""Recommendation models: large embedding tables, then small dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from hlo_graphs.zoo.building import Target, applied, bf16, forward, init_shapes, int32, train_step

_TABLES, _ROWS, _WIDTH = 16, 20000, 64


def _mlp(x: jax.Array, widths: Sequence[int]) -> jax.Array:
    for width in widths:
        x = jax.nn.relu(nn.Dense(width, dtype=jnp.bfloat16)(x))
    return x


class Dlrm(nn.Module):
    """DLRM: embeddings and dense features meet in pairwise products."""

    @nn.compact
    def __call__(self, dense: jax.Array, categories: jax.Array) -> jax.Array:
        """Dense [B, 13] and categories [B, tables] to click logits [B]."""
        bottom = _mlp(dense, (512, 256, _WIDTH))
        vectors = [bottom]
        for table in range(_TABLES):
            embed = nn.Embed(_ROWS, _WIDTH, dtype=jnp.bfloat16)
            vectors.append(embed(categories[:, table]))
        stacked = jnp.stack(vectors, 1)
        products = jnp.einsum("bic,bjc->bij", stacked, stacked)
        rows, columns = jnp.tril_indices(len(vectors), -1)
        top = jnp.concatenate([bottom, products[:, rows, columns]], -1)
        return nn.Dense(1, dtype=jnp.bfloat16)(_mlp(top, (1024, 1024, 512, 256)))[:, 0]


class DeepFm(nn.Module):
    """DeepFM: a factorisation machine and a deep network over shared embeddings."""

    @nn.compact
    def __call__(self, categories: jax.Array) -> jax.Array:
        """Categories [B, fields] to click logits [B]."""
        rows = categories + _ROWS * jnp.arange(categories.shape[1])
        count = _ROWS * categories.shape[1]
        vectors = nn.Embed(count, 32, dtype=jnp.bfloat16)(rows)
        first = nn.Embed(count, 1, dtype=jnp.bfloat16)(rows)[..., 0].sum(1)
        crossed = (jnp.square(vectors.sum(1)) - jnp.square(vectors).sum(1)).sum(-1) / 2
        deep = _mlp(vectors.reshape(vectors.shape[0], -1), (1024, 1024, 512))
        return first + crossed + nn.Dense(1, dtype=jnp.bfloat16)(deep)[:, 0]


def _click_loss(module: Any) -> Any:
    def loss(params: Any, clicked: jax.Array, *inputs: Any) -> jax.Array:
        logits = applied(module, params, *inputs).astype(jnp.float32)
        losses: jax.Array = optax.sigmoid_binary_cross_entropy(logits, clicked.astype(jnp.float32))
        return losses.mean()

    return loss


def dlrm_infer() -> Target:
    """DLRM with 16 tables of 20,000 rows, batch 16,384."""
    return forward(Dlrm(), bf16(16384, 13), int32(16384, _TABLES))


def dlrm_train() -> Target:
    """DLRM step of plain gradient descent, batch 16,384."""
    module, inputs = Dlrm(), (bf16(16384, 13), int32(16384, _TABLES))
    params = init_shapes(module, *inputs, dtype=jnp.float32)
    return train_step(_click_loss(module), params, (bf16(16384), *inputs), optax.sgd(0.1))


def deepfm_train() -> Target:
    """DeepFM step of Adagrad over 24 fields, batch 16,384."""
    module, inputs = DeepFm(), (int32(16384, 24),)
    params = init_shapes(module, *inputs, dtype=jnp.float32)
    return train_step(_click_loss(module), params, (bf16(16384), *inputs), optax.adagrad(0.1))
