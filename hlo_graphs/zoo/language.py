"""Language models: dense, grouped-query, mixture of experts, encoder only, encoder-decoder."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hlo_graphs.zoo.building import (
    Target,
    applied,
    bf16,
    classifier_train_step,
    cross_entropy,
    forward,
    init_shapes,
    int32,
    train_step,
)
from hlo_graphs.zoo.transformer import EncoderLayer, attend, causal_mask

_VOCABULARY = 16384


class Gpt(nn.Module):
    """A decoder-only transformer with learned positions."""

    depth: int = 12
    width: int = 1024
    heads: int = 16

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, N] to logits [B, N, vocabulary]."""
        length = tokens.shape[1]
        x = nn.Embed(_VOCABULARY, self.width, dtype=jnp.bfloat16)(tokens)
        x = x + self.param("positions", nn.initializers.normal(), (length, self.width)).astype(
            x.dtype
        )
        for _ in range(self.depth):
            x = EncoderLayer(self.heads)(x, causal_mask(length))
        x = nn.LayerNorm(dtype=jnp.bfloat16)(x)
        return nn.Dense(_VOCABULARY, use_bias=False, dtype=jnp.bfloat16)(x)


def gpt_prefill() -> Target:
    """12 layers of width 1024 over 8 prompts of 512 tokens."""
    return forward(Gpt(), int32(8, 512))


def gpt_train() -> Target:
    """Adam step of a 6-layer model of width 1024, 4 x 512 tokens."""
    return classifier_train_step(Gpt(depth=6), int32(4, 512), int32(4, 512), jnp.bfloat16)


def gpt24_train() -> Target:
    """Adam step of a 24-layer model of width 512, 8 x 256 tokens: thousands of accesses."""
    module = Gpt(depth=24, width=512, heads=8)
    return classifier_train_step(module, int32(8, 256), int32(8, 256), jnp.bfloat16)


def gpt_decode() -> Target:
    """One token for 8 sequences through 12 layers; the KV cache of 1024 positions is donated."""
    return _decode(layers=12, width=1024, heads=16, kv_heads=16, gated=False)


def _decode(layers: int, width: int, heads: int, kv_heads: int, gated: bool) -> Target:
    head, hidden = width // heads, 4 * width
    batch, length = 8, 1024
    layer = {
        "query": bf16(width, heads * head),
        "key": bf16(width, kv_heads * head),
        "value": bf16(width, kv_heads * head),
        "out": bf16(heads * head, width),
        "up": bf16(width, hidden),
        "down": bf16(hidden, width),
        "norms": bf16(2, width),
    }
    if gated:
        layer["gate"] = bf16(width, hidden)
    params = {
        "layers": [layer] * layers,
        "embedding": bf16(_VOCABULARY, width),
        "norm": bf16(width),
    }
    cache = [(bf16(batch, length, kv_heads, head),) * 2] * layers

    def step(params: Any, cache: Any, tokens: jax.Array, position: jax.Array) -> Any:
        x = params["embedding"][tokens]
        visible = jnp.arange(length) <= position
        filled = []
        for layer, (keys, values) in zip(params["layers"], cache, strict=True):
            normed = rms_norm(x, layer["norms"][0])
            query = (normed @ layer["query"]).reshape(batch, 1, heads, head)
            key = (normed @ layer["key"]).reshape(batch, 1, kv_heads, head)
            value = (normed @ layer["value"]).reshape(batch, 1, kv_heads, head)
            keys = jax.lax.dynamic_update_slice(keys, key, (0, position, 0, 0))
            values = jax.lax.dynamic_update_slice(values, value, (0, position, 0, 0))
            filled.append((keys, values))
            mixed = _grouped_attend(query, keys, values, visible)
            x = x + mixed.reshape(batch, heads * head) @ layer["out"]
            normed = rms_norm(x, layer["norms"][1])
            inner = jax.nn.silu(normed @ (layer["gate"] if gated else layer["up"]))
            inner = inner * (normed @ layer["up"]) if gated else inner
            x = x + inner @ layer["down"]
        logits = rms_norm(x, params["norm"]) @ params["embedding"].T
        return jnp.argmax(logits, -1).astype(jnp.int32), filled

    return step, (params, cache, int32(batch), int32()), (1,)


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Root-mean-square normalisation over the last axis, in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)
    return wide.astype(x.dtype) * scale


def _grouped_attend(
    query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array
) -> jax.Array:
    """Attention where groups of query heads share a key and value head."""
    groups = query.shape[2] // keys.shape[2]
    if groups > 1:
        keys, values = (jnp.repeat(part, groups, axis=2) for part in (keys, values))
    return attend(query, keys, values, mask)


def rotate(x: jax.Array) -> jax.Array:
    """Rotary position embedding of [B, N, H, D]."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * jnp.exp(-jnp.arange(half) * (9.2 / half))
    cosine = jnp.cos(angles).astype(x.dtype)[:, None]
    sine = jnp.sin(angles).astype(x.dtype)[:, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


class LlamaLayer(nn.Module):
    """RMS norms, rotary positions, grouped-query attention, a gated feed-forward layer."""

    heads: int = 16
    kv_heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        """[B, N, C] to [B, N, C]; the second result is for `nn.scan`."""
        batch, length, width = x.shape
        head = width // self.heads
        normed = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        query = self._dense(self.heads * head)(normed).reshape(batch, length, self.heads, head)
        key = self._dense(self.kv_heads * head)(normed).reshape(batch, length, -1, head)
        value = self._dense(self.kv_heads * head)(normed).reshape(batch, length, -1, head)
        mixed = _grouped_attend(rotate(query), rotate(key), value, causal_mask(length))
        x = x + self._dense(width)(mixed.reshape(batch, length, -1))
        normed = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        inner = jax.nn.silu(self._dense(3 * width)(normed)) * self._dense(3 * width)(normed)
        return x + self._dense(width)(inner), None

    def _dense(self, width: int) -> nn.Dense:
        return nn.Dense(width, use_bias=False, dtype=jnp.bfloat16)


class Llama(nn.Module):
    """A Llama-like model; with `scanned` its layers are one loop over stacked weights."""

    depth: int = 8
    width: int = 1024
    scanned: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, N] to logits [B, N, vocabulary]."""
        x = nn.Embed(_VOCABULARY, self.width, dtype=jnp.bfloat16)(tokens)
        if self.scanned:
            layers = nn.scan(
                nn.remat(LlamaLayer),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = layers()(x, None)
        else:
            for _ in range(self.depth):
                x, _ = LlamaLayer()(x)
        x = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        return nn.Dense(_VOCABULARY, use_bias=False, dtype=jnp.bfloat16)(x)


def llama_prefill() -> Target:
    """8 layers of width 1024 over 8 prompts of 512 tokens."""
    return forward(Llama(), int32(8, 512))


def llama_decode() -> Target:
    """One token for 8 sequences, 4 of 16 heads cached; the KV cache is donated."""
    return _decode(layers=12, width=1024, heads=16, kv_heads=4, gated=True)


def llama_train() -> Target:
    """Adam step of 8 layers in a loop over stacked weights, recomputed in the backward pass."""
    return classifier_train_step(Llama(scanned=True), int32(4, 512), int32(4, 512))


class MoeLayer(nn.Module):
    """Attention and a mixture of experts, the two best of 8 for every token (as GShard)."""

    experts: int = 8
    heads: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] to [B, N, C]."""
        from hlo_graphs.zoo.transformer import Attention

        length, width = x.shape[1:]
        normed = nn.LayerNorm(dtype=jnp.bfloat16)(x)
        x = x + Attention(self.heads)(normed, mask=causal_mask(length))
        normed = nn.LayerNorm(dtype=jnp.bfloat16)(x)
        dispatch, combine = self._route(normed, capacity=length // 4)
        inputs = jnp.einsum("bnec,bnd->ebcd", dispatch, normed)
        up = self.param("up", nn.initializers.normal(), (self.experts, width, 4 * width))
        down = self.param("down", nn.initializers.normal(), (self.experts, 4 * width, width))
        hidden = jax.nn.gelu(jnp.einsum("ebcd,edh->ebch", inputs, up.astype(x.dtype)))
        outputs = jnp.einsum("ebch,ehd->ebcd", hidden, down.astype(x.dtype))
        return x + jnp.einsum("bnec,ebcd->bnd", combine, outputs)

    def _route(self, x: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
        """One-hot dispatch and weighted combine tensors, [B, N, experts, capacity] each."""
        gates = jax.nn.softmax(nn.Dense(self.experts)(x.astype(jnp.float32)), -1)
        weights, chosen = jax.lax.top_k(gates, 2)
        masks = jax.nn.one_hot(chosen, self.experts).sum(2)
        places = jnp.cumsum(masks, axis=1) * masks - 1
        dispatch = jax.nn.one_hot(places, capacity) * masks[..., None]
        share = (gates * masks / weights.sum(-1, keepdims=True))[..., None]
        return dispatch.astype(jnp.bfloat16), (dispatch * share).astype(jnp.bfloat16)


class Moe(nn.Module):
    """A language model of mixture-of-experts layers."""

    depth: int = 4
    width: int = 768

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, N] to logits [B, N, vocabulary]."""
        x = nn.Embed(_VOCABULARY, self.width, dtype=jnp.bfloat16)(tokens)
        for _ in range(self.depth):
            x = MoeLayer()(x)
        return nn.Dense(_VOCABULARY, use_bias=False, dtype=jnp.bfloat16)(x)


def moe_forward() -> Target:
    """4 mixture-of-experts layers of width 768, 8 experts, 8 x 512 tokens."""
    return forward(Moe(), int32(8, 512))


def moe_train() -> Target:
    """Adam step of 2 mixture-of-experts layers, 4 x 256 tokens."""
    return classifier_train_step(Moe(depth=2), int32(4, 256), int32(4, 256))


class Bert(nn.Module):
    """BERT-Base with a masked-token head."""

    depth: int = 12
    width: int = 768

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, N] to logits [B, N, vocabulary]."""
        x = nn.Embed(_VOCABULARY, self.width, dtype=jnp.bfloat16)(tokens)
        x = x + nn.Embed(512, self.width, dtype=jnp.bfloat16)(jnp.arange(tokens.shape[1]))
        x = nn.LayerNorm(dtype=jnp.bfloat16)(x)
        for _ in range(self.depth):
            x = EncoderLayer(12)(x)
        return nn.Dense(_VOCABULARY, dtype=jnp.bfloat16)(nn.LayerNorm(dtype=jnp.bfloat16)(x))


def bert_base_train() -> Target:
    """BERT-Base Adam step, 32 x 128 tokens."""
    return classifier_train_step(Bert(), int32(32, 128), int32(32, 128))


class T5(nn.Module):
    """An encoder and a decoder with cross-attention."""

    depth: int = 6
    width: int = 512

    @nn.compact
    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        """Source and target tokens [B, N] to logits [B, N, vocabulary]."""
        embed = nn.Embed(_VOCABULARY, self.width, dtype=jnp.bfloat16)
        memory, x = embed(source), embed(target)
        for _ in range(self.depth):
            memory = EncoderLayer(8)(memory)
        memory = nn.LayerNorm(dtype=jnp.bfloat16)(memory)
        for _ in range(self.depth):
            x = EncoderLayer(8)(x, causal_mask(target.shape[1]), memory)
        return embed.attend(nn.LayerNorm(dtype=jnp.bfloat16)(x))


def t5_train() -> Target:
    """Adam step of a T5-Small-like model, 16 x 256 source and target tokens."""
    module, tokens = T5(), int32(16, 256)

    def loss(params: Any, source: Any, target: Any, labels: Any) -> jax.Array:
        return cross_entropy(applied(module, params, source, target), labels)

    return train_step(loss, init_shapes(module, tokens, tokens), (tokens, tokens, tokens))
