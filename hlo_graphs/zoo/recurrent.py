"""Recurrent and state-space models: loops over time, and associative scans."""

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
    forward,
    int32,
    train_step,
)

_VOCABULARY = 8192


def _lstm_params(layers: int, width: int) -> list[dict[str, Any]]:
    return [
        {"input": bf16(width, 4 * width), "state": bf16(width, 4 * width), "bias": bf16(4 * width)}
        for _ in range(layers)
    ]


def _lstm(params: Any, inputs: jax.Array) -> jax.Array:
    """Inputs [N, B, C] through stacked LSTM layers, all of them in one loop over time."""

    def step(states: Any, x: jax.Array) -> Any:
        after = []
        for layer, (hidden, cell) in zip(params, states, strict=True):
            gates = x @ layer["input"] + hidden @ layer["state"] + layer["bias"]
            enter, forget, output, candidate = jnp.split(gates, 4, -1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            x = jax.nn.sigmoid(output) * jnp.tanh(cell)
            after.append((x, cell))
        return after, x

    zeros = jnp.zeros(inputs.shape[1:], inputs.dtype)
    outputs: jax.Array = jax.lax.scan(step, [(zeros, zeros)] * len(params), inputs)[1]
    return outputs


def lstm_forward() -> Target:
    """Three LSTM layers of width 1024, 128 steps, batch 64."""
    return _lstm, (_lstm_params(3, 1024), bf16(128, 64, 1024)), ()


def lstm_train() -> Target:
    """Adam step of two LSTM layers of width 1024, 64 steps, batch 32."""

    def loss(params: Any, inputs: jax.Array, wanted: jax.Array) -> jax.Array:
        return jnp.square((_lstm(params, inputs) - wanted).astype(jnp.float32)).mean()

    sequence = bf16(64, 32, 1024)
    return train_step(loss, _lstm_params(2, 1024), (sequence, sequence))


class GruTranslator(nn.Module):
    """A GRU encoder and a GRU decoder that attends to it."""

    width: int = 1024

    @nn.compact
    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        """Tokens [B, N] of both languages to logits [B, N, vocabulary]."""
        embed = nn.Embed(_VOCABULARY, self.width, dtype=jnp.bfloat16)
        memory: Any = nn.RNN(nn.GRUCell(self.width, dtype=jnp.bfloat16))(embed(source))
        memory = nn.RNN(nn.GRUCell(self.width, dtype=jnp.bfloat16), reverse=True)(memory)
        states: Any = nn.RNN(nn.GRUCell(self.width, dtype=jnp.bfloat16))(embed(target))
        weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", states, memory), -1)
        context = jnp.concatenate([states, jnp.einsum("bqk,bkc->bqc", weights, memory)], -1)
        hidden = jnp.tanh(nn.Dense(self.width, dtype=jnp.bfloat16)(context))
        return nn.Dense(_VOCABULARY, dtype=jnp.bfloat16)(hidden)


def gru_train() -> Target:
    """Adam step of a GRU sequence-to-sequence model with attention, 32 x 64 tokens."""
    from hlo_graphs.zoo.building import cross_entropy, init_shapes

    module, tokens = GruTranslator(), int32(32, 64)

    def loss(params: Any, source: Any, target: Any, labels: Any) -> jax.Array:
        return cross_entropy(applied(module, params, source, target), labels)

    return train_step(loss, init_shapes(module, tokens, tokens), (tokens, tokens, tokens))


class MambaLayer(nn.Module):
    """A selective state-space layer; the recurrence runs as a loop over chunks of time."""

    expansion: int = 2
    states: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] to [B, N, C]."""
        inner = self.expansion * x.shape[-1]
        normed = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        signal, gate = jnp.split(nn.Dense(2 * inner, dtype=jnp.bfloat16)(normed), 2, -1)
        signal = nn.Conv(
            inner, (4,), padding="CAUSAL", feature_group_count=inner, dtype=jnp.bfloat16
        )(signal)
        signal = jax.nn.silu(signal)
        steps = jax.nn.softplus(nn.Dense(inner, dtype=jnp.bfloat16)(signal))
        mixers = nn.Dense(2 * self.states, dtype=jnp.bfloat16)(signal)
        decay = self.param("decay", nn.initializers.normal(), (inner, self.states))
        outputs = self._recurrence(signal, steps, mixers, -jnp.exp(decay))
        return x + nn.Dense(x.shape[-1], dtype=jnp.bfloat16)(outputs * jax.nn.silu(gate))

    def _recurrence(
        self, signal: jax.Array, steps: jax.Array, mixers: jax.Array, decay: jax.Array
    ) -> jax.Array:
        """State h[t] = exp(steps decay) h[t-1] + steps B[t] x[t], output C[t] h[t]."""
        chunk = 64

        def chunked(part: jax.Array) -> jax.Array:
            batch, length, width = part.shape
            return part.reshape(batch, length // chunk, chunk, width).swapaxes(0, 1)

        def body(state: jax.Array, parts: Any) -> Any:
            x, step, mixer = parts
            enter, leave = jnp.split(mixer.astype(jnp.float32), 2, -1)
            fade = jnp.exp(step.astype(jnp.float32)[..., None] * decay)
            added = (step * x).astype(jnp.float32)[..., None] * enter[:, :, None]
            fades, sums = jax.lax.associative_scan(_combine, (fade, added), axis=1)
            states = fades * state[:, None] + sums
            return states[:, -1], jnp.einsum("btcs,bts->btc", states, leave).astype(x.dtype)

        start = jnp.zeros((signal.shape[0], signal.shape[2], self.states))
        pieces = (chunked(signal), chunked(steps), chunked(mixers))
        _, outputs = jax.lax.scan(body, start, pieces)
        joined: jax.Array = outputs.swapaxes(0, 1).reshape(signal.shape)
        return joined


def _combine(left: Any, right: Any) -> Any:
    """Composition of two affine maps h -> a h + b."""
    return left[0] * right[0], left[1] * right[0] + right[1]


class Mamba(nn.Module):
    """A language model of selective state-space layers."""

    depth: int = 6
    width: int = 512

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, N] to logits [B, N, vocabulary]."""
        x = nn.Embed(_VOCABULARY, self.width, dtype=jnp.bfloat16)(tokens)
        for _ in range(self.depth):
            x = MambaLayer()(x)
        return nn.Dense(_VOCABULARY, use_bias=False, dtype=jnp.bfloat16)(x)


def mamba_forward() -> Target:
    """6 selective state-space layers of width 512, 4 x 512 tokens."""
    return forward(Mamba(), int32(4, 512))


def mamba_train() -> Target:
    """Adam step of 2 selective state-space layers, 4 x 256 tokens."""
    return classifier_train_step(Mamba(depth=2), int32(4, 256), int32(4, 256))


class GriffinLayer(nn.Module):
    """A gated linear recurrence (associative scan over all of time) and a gated MLP."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] to [B, N, C]."""
        width = x.shape[-1]
        normed = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        branch = jax.nn.gelu(nn.Dense(width, dtype=jnp.bfloat16)(normed))
        signal = nn.Dense(width, dtype=jnp.bfloat16)(normed)
        signal = nn.Conv(
            width, (4,), padding="CAUSAL", feature_group_count=width, dtype=jnp.bfloat16
        )(signal)
        gates = jax.nn.sigmoid(nn.Dense(2 * width, dtype=jnp.bfloat16)(signal))
        remember, enter = jnp.split(gates, 2, -1)
        decay = self.param("decay", nn.initializers.normal(), (width,)).astype(x.dtype)
        fade = jnp.exp(-8 * jax.nn.softplus(decay) * remember)
        added = jnp.sqrt(1 - fade * fade) * enter * signal
        _, states = jax.lax.associative_scan(_combine, (fade, added), axis=1)
        x = x + nn.Dense(width, dtype=jnp.bfloat16)(states * branch)
        normed = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        inner = jax.nn.gelu(nn.Dense(3 * width, dtype=jnp.bfloat16)(normed))
        inner = inner * nn.Dense(3 * width, dtype=jnp.bfloat16)(normed)
        return x + nn.Dense(width, dtype=jnp.bfloat16)(inner)


class Griffin(nn.Module):
    """A language model of gated linear recurrences."""

    depth: int = 6
    width: int = 1024

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, N] to logits [B, N, vocabulary]."""
        x = nn.Embed(_VOCABULARY, self.width, dtype=jnp.bfloat16)(tokens)
        for _ in range(self.depth):
            x = GriffinLayer()(x)
        return nn.Dense(_VOCABULARY, use_bias=False, dtype=jnp.bfloat16)(x)


def griffin_forward() -> Target:
    """6 gated linear recurrence layers of width 1024, 8 x 1,024 tokens."""
    return forward(Griffin(), int32(8, 1024))
