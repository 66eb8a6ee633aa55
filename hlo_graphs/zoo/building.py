"""What all model programs share: shapes without values, and a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Target = tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]
"""A function, its arguments' shapes, and the positions of the donated arguments."""


def array(dimensions: Sequence[int], dtype: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    """Any array's shape."""
    return jax.ShapeDtypeStruct(tuple(dimensions), dtype, sharding=sharding)  # type: ignore[no-untyped-call]


def bf16(*dimensions: int) -> jax.ShapeDtypeStruct:
    """A bfloat16 array's shape."""
    return array(dimensions, jnp.bfloat16)


def f32(*dimensions: int) -> jax.ShapeDtypeStruct:
    """A float32 array's shape."""
    return array(dimensions, jnp.float32)


def int32(*dimensions: int) -> jax.ShapeDtypeStruct:
    """An int32 array's shape."""
    return array(dimensions, jnp.int32)


def init_shapes(module: Any, *inputs: Any, dtype: Any = jnp.bfloat16) -> Any:
    """Shapes of a Flax module's parameters for these inputs, stored as `dtype`."""
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: array(leaf.shape, dtype), variables["params"])


def applied(module: Any, params: Any, *inputs: Any) -> Any:
    """The module's output; Flax's own type says it might be a tuple with its variables."""
    return module.apply({"params": params}, *inputs)


def forward(module: Any, *inputs: Any) -> Target:
    """The program that applies a Flax module."""

    def apply(params: Any, *values: Any) -> Any:
        return applied(module, params, *values)

    return apply, (init_shapes(module, *inputs), *inputs), ()


def train_step(
    loss: Callable[..., jax.Array],
    params: Any,
    batch: tuple[Any, ...],
    optimizer: optax.GradientTransformation | None = None,
) -> Target:
    """One step of gradient descent on `loss(params, *batch)`; parameters and state are donated."""
    chosen = optimizer or optax.adam(1e-3)
    state = jax.eval_shape(chosen.init, params)

    def step(params: Any, state: Any, *batch: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, *batch)
        updates, state = chosen.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    return step, (params, state, *batch), (0, 1)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy of integer labels, in float32."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    mean: jax.Array = losses.mean()
    return mean


def classifier_train_step(
    module: Any, inputs: Any, labels: Any, dtype: Any = jnp.float32
) -> Target:
    """A training step of a Flax module that returns logits; its weights are kept in `dtype`."""

    def loss(params: Any, inputs: Any, labels: Any) -> jax.Array:
        return cross_entropy(applied(module, params, inputs), labels)

    return train_step(loss, init_shapes(module, inputs, dtype=dtype), (inputs, labels))
