"""Attention layers that several model programs share (Flax, bfloat16)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Softmax attention: query [..., Q, H, D], key and value [..., K, H, D] to [..., Q, H, D]."""
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.asarray(-1e9, scores.dtype))
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(query.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value)


def causal_mask(length: int) -> jax.Array:
    """[length, length], True where a position may look."""
    return jnp.tril(jnp.ones((length, length), bool))


class Attention(nn.Module):
    """Multi-head attention from `x` to `memory` (self-attention if that is None)."""

    heads: int

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """[..., Q, C] and [..., K, C] to [..., Q, C]."""
        width = x.shape[-1]
        source = x if memory is None else memory
        parts = []
        for tokens in (x, source, source):
            projected = nn.Dense(width, dtype=jnp.bfloat16)(tokens)
            parts.append(projected.reshape(*tokens.shape[:-1], self.heads, width // self.heads))
        query, key, value = parts
        joined = attend(query, key, value, mask).reshape(x.shape)
        return nn.Dense(width, dtype=jnp.bfloat16)(joined)


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer; with `memory` it has cross-attention too."""

    heads: int
    expansion: int = 4

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, memory: jax.Array | None = None
    ) -> jax.Array:
        """[..., N, C] to [..., N, C]."""
        x = x + Attention(self.heads)(nn.LayerNorm(dtype=jnp.bfloat16)(x), mask=mask)
        if memory is not None:
            x = x + Attention(self.heads)(nn.LayerNorm(dtype=jnp.bfloat16)(x), memory)
        hidden = nn.LayerNorm(dtype=jnp.bfloat16)(x)
        hidden = jax.nn.gelu(nn.Dense(self.expansion * x.shape[-1], dtype=jnp.bfloat16)(hidden))
        return x + nn.Dense(x.shape[-1], dtype=jnp.bfloat16)(hidden)
