"""Programs that exercise the compiler: conditionals, custom kernels, several devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlo_graphs.zoo.building import Target, applied, array, bf16, cross_entropy, init_shapes
from hlo_graphs.zoo.language import rms_norm
from hlo_graphs.zoo.transformer import EncoderLayer, attend, causal_mask


def early_exit_infer() -> Target:
    """Six encoder layers, two more after every second one unless it is sure, 16 x 196 tokens."""
    module, tokens = EncoderLayer(12), bf16(16, 196, 768)
    layer = init_shapes(module, tokens)
    params = {"layers": [[layer] * 4] * 3, "heads": [bf16(768, 1000)] * 3}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        def through(layers: Any, x: jax.Array) -> jax.Array:
            for weights in layers:
                x = applied(module, weights, x)
            return x

        for layers, head in zip(params["layers"], params["heads"], strict=True):
            x = through(layers[:2], x)
            logits = (x.mean(1) @ head).astype(jnp.float32)
            unsure = jax.nn.softmax(logits).max(-1).min() < 0.9
            x = jax.lax.cond(unsure, through, lambda _, x: x, layers[2:], x)
        last: jax.Array = params["heads"][-1]
        return x.mean(1) @ last

    return apply, (params, tokens), ()


def flash_attention_forward() -> Target:
    """Four transformer layers whose attention is a hand-written kernel, 2 x 1,024 tokens."""
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    width, heads, batch, length = 1024, 8, 2, 1024
    layer = {
        "mix": bf16(width, 3 * width),
        "out": bf16(width, width),
        "up": bf16(width, 4 * width),
        "down": bf16(4 * width, width),
        "norms": bf16(2, width),
    }

    def apply(layers: Any, x: jax.Array) -> jax.Array:
        for weights in layers:
            mixed = rms_norm(x, weights["norms"][0]) @ weights["mix"]
            split = mixed.reshape(batch, length, 3, heads, width // heads)
            query, key, value = (split[:, :, part].swapaxes(1, 2) for part in range(3))
            joined = flash_attention(query, key, value, causal=True, sm_scale=1 / 128**0.5)
            x = x + joined.swapaxes(1, 2).reshape(x.shape) @ weights["out"]
            hidden = jax.nn.gelu(rms_norm(x, weights["norms"][1]) @ weights["up"])
            x = x + hidden @ weights["down"]
        return x

    return apply, ([layer] * 4, bf16(batch, length, width)), ()


def sharded_lm_train(devices: Sequence[Any]) -> Target:
    """A language model's step on 2 x 2 devices: 2 shares of the batch, 2 of every layer."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.asarray(devices[:4]).reshape(2, 2), ("data", "model"))
    width, heads, vocabulary, depth = 1024, 16, 16384, 4

    spec_of: Any = PartitionSpec  # its constructor is untyped

    def shape(spec: Any, *dimensions: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return array(dimensions, dtype, sharding=NamedSharding(mesh, spec))

    layer = {
        "mix": shape(spec_of(None, None, "model"), width, 3, width),
        "out": shape(spec_of("model", None), width, width),
        "up": shape(spec_of(None, "model"), width, 4 * width),
        "down": shape(spec_of("model", None), 4 * width, width),
        "norms": shape(spec_of(), 2, width),
    }
    params = {
        "layers": [layer] * depth,
        "embedding": shape(spec_of(None, "model"), vocabulary, width),
        "head": shape(spec_of(None, "model"), width, vocabulary),
    }
    tokens = shape(spec_of("data"), 8, 512, dtype=jnp.int32)

    def loss(params: Any, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        x = params["embedding"][tokens]
        for weights in params["layers"]:
            mixed = jnp.einsum("bnc,cpd->pbnd", rms_norm(x, weights["norms"][0]), weights["mix"])
            query, key, value = mixed.reshape(3, *x.shape[:2], heads, width // heads)
            joined = attend(query, key, value, causal_mask(x.shape[1])).reshape(x.shape)
            x = x + joined @ weights["out"]
            hidden = jax.nn.gelu(rms_norm(x, weights["norms"][1]) @ weights["up"])
            x = x + hidden @ weights["down"]
        return cross_entropy(x @ params["head"], labels)

    optimizer = optax.sgd(0.1, momentum=0.9)

    def step(params: Any, momenta: Any, tokens: jax.Array, labels: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, tokens, labels)
        state = (optax.TraceState(momenta), optax.EmptyState())
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state[0].trace, value

    return step, (params, params, tokens, tokens), (0, 1)
