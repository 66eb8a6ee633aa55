"""Values and rewards as distributions over bins.

Source: MuZero (Schrittwieser et al. 2020), appendix F: a value is squashed by
`h(x) = sign(x) * (sqrt(|x| + 1) - 1) + eps * x`, which is invertible, and the result is written
as the two neighbouring bins of a fixed support whose mean it is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

EPSILON = 1e-3


def squash(value: jax.Array) -> jax.Array:
    """`h` of any array."""
    return jnp.sign(value) * (jnp.sqrt(jnp.abs(value) + 1) - 1) + EPSILON * value


def unsquash(value: jax.Array) -> jax.Array:
    """The inverse of `squash`.

    Written so that float32 keeps small values: with `y = |h(x)|` the root `u = sqrt(|x| + 1) - 1`
    of `eps u^2 + (1 + 2 eps) u - y = 0` comes without a difference of near equals.
    """
    magnitude = jnp.abs(value)
    linear = 1 + 2 * EPSILON
    root = 2 * magnitude / (linear + jnp.sqrt(linear**2 + 4 * EPSILON * magnitude))
    return jnp.sign(value) * root * (root + 2)


def to_bins(value: jax.Array, num_bins: int, limit: float) -> jax.Array:
    """Two-hot distributions `[..., num_bins]` of values `[...]`.

    The support is `num_bins` equidistant points of the squashed axis in [-limit, limit]; values
    beyond are held at its ends.
    """
    place = (jnp.clip(squash(value), -limit, limit) + limit) * ((num_bins - 1) / (2 * limit))
    distance = jnp.abs(place[..., None] - jnp.arange(num_bins, dtype=jnp.float32))
    return jnp.maximum(1 - distance, 0)


def from_logits(logits: jax.Array, limit: float) -> jax.Array:
    """Values `[...]` that distributions with `logits` `[..., num_bins]` stand for."""
    return from_bins(jax.nn.softmax(logits), limit)


def from_bins(distribution: jax.Array, limit: float) -> jax.Array:
    """Values `[...]` of distributions `[..., num_bins]`; the inverse of `to_bins`."""
    support = jnp.linspace(-limit, limit, distribution.shape[-1])
    return unsquash(jnp.sum(distribution * support, axis=-1))
