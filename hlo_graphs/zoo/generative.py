"""Generators of images and sound: adversarial, diffusion, radiance field, autoregressive."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from hlo_graphs.zoo.building import Target, applied, bf16, f32, forward, init_shapes, train_step
from hlo_graphs.zoo.transformer import Attention


class Generator(nn.Module):
    """DCGAN's generator: noise to images by transposed convolutions."""

    @nn.compact
    def __call__(self, noise: jax.Array) -> jax.Array:
        """[B, 128] to [B, 64, 64, 3]."""
        x = nn.Dense(4 * 4 * 1024, dtype=jnp.bfloat16)(noise).reshape(-1, 4, 4, 1024)
        for width in (512, 256, 128):
            x = nn.ConvTranspose(width, (4, 4), strides=(2, 2), dtype=jnp.bfloat16)(x)
            x = jax.nn.relu(nn.GroupNorm(16, dtype=jnp.bfloat16)(x))
        return jnp.tanh(nn.ConvTranspose(3, (4, 4), strides=(2, 2), dtype=jnp.bfloat16)(x))


class Discriminator(nn.Module):
    """DCGAN's discriminator."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, 64, 64, 3] to logits [B, 1]."""
        x = images
        for width in (128, 256, 512, 1024):
            x = nn.Conv(width, (4, 4), strides=2, dtype=jnp.bfloat16)(x)
            x = jax.nn.leaky_relu(nn.GroupNorm(16, dtype=jnp.bfloat16)(x))
        return nn.Dense(1, dtype=jnp.bfloat16)(x.reshape(x.shape[0], -1))


def dcgan_train() -> Target:
    """One adversarial step with Adam: generator and discriminator, 128 images of 64 x 64."""
    generator, discriminator = Generator(), Discriminator()
    noise, images = bf16(128, 128), bf16(128, 64, 64, 3)
    optimizer = optax.adam(2e-4)
    params = (
        init_shapes(generator, noise, dtype=jnp.float32),
        init_shapes(discriminator, images, dtype=jnp.float32),
    )

    def judged(params: Any, images: jax.Array, sign: float) -> jax.Array:
        logits = applied(discriminator, params, images).astype(jnp.float32)
        return jax.nn.softplus(-sign * logits).mean()

    def step(params: Any, states: Any, noise: jax.Array, images: jax.Array) -> Any:
        def fool(own: Any) -> Any:
            fakes = applied(generator, own, noise)
            return judged(params[1], fakes, 1.0), fakes

        def tell(own: Any) -> jax.Array:
            return judged(own, images, 1.0) + judged(own, fakes, -1.0)

        (lost, fakes), first = jax.value_and_grad(fool, has_aux=True)(params[0])
        caught, second = jax.value_and_grad(tell)(params[1])
        results = [
            optimizer.update(gradient, state)
            for gradient, state in zip((first, second), states, strict=True)
        ]
        after = tuple(
            optax.apply_updates(own, update)
            for own, (update, _) in zip(params, results, strict=True)
        )
        return after, tuple(state for _, state in results), lost, caught

    states = tuple(jax.eval_shape(optimizer.init, own) for own in params)
    return step, (params, states, noise, images), (0, 1)


class DiffusionTransformer(nn.Module):
    """A DiT: transformer layers whose norms are shifted and scaled by the noise level."""

    depth: int = 12
    width: int = 768

    @nn.compact
    def __call__(self, latents: jax.Array, condition: jax.Array) -> jax.Array:
        """Latents [B, 32, 32, 4] and condition [B, 768] to the predicted noise."""
        x = nn.Conv(self.width, (2, 2), strides=2, dtype=jnp.bfloat16)(latents)
        x = x.reshape(x.shape[0], -1, self.width)
        for _ in range(self.depth):
            shifts = nn.Dense(6 * self.width, dtype=jnp.bfloat16)(jax.nn.silu(condition))
            one, two, three, four, five, six = jnp.split(shifts[:, None], 6, -1)
            x = x + three * Attention(12)(self._norm(x) * (1 + one) + two)
            hidden = self._norm(x) * (1 + four) + five
            hidden = jax.nn.gelu(nn.Dense(4 * self.width, dtype=jnp.bfloat16)(hidden))
            x = x + six * nn.Dense(self.width, dtype=jnp.bfloat16)(hidden)
        return nn.Dense(16, dtype=jnp.bfloat16)(self._norm(x))

    def _norm(self, x: jax.Array) -> jax.Array:
        normed: jax.Array = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.bfloat16)(x)
        return normed


def dit_infer() -> Target:
    """One denoising step of a DiT-B/2, 32 latents of 32 x 32."""
    return forward(DiffusionTransformer(), bf16(32, 32, 32, 4), bf16(32, 768))


class RadianceField(nn.Module):
    """NeRF: position and direction to density and colour."""

    @nn.compact
    def __call__(self, points: jax.Array, directions: jax.Array) -> jax.Array:
        """Points and directions [R, S, 3] to [R, S, 4]."""
        inputs = self._waves(points, 10)
        x = inputs
        for layer in range(8):
            x = jnp.concatenate([x, inputs], -1) if layer == 4 else x
            x = jax.nn.relu(nn.Dense(256, dtype=jnp.bfloat16)(x))
        density = nn.Dense(1, dtype=jnp.bfloat16)(x)
        x = jnp.concatenate([nn.Dense(256, dtype=jnp.bfloat16)(x), self._waves(directions, 4)], -1)
        x = jax.nn.relu(nn.Dense(128, dtype=jnp.bfloat16)(x))
        return jnp.concatenate([nn.Dense(3, dtype=jnp.bfloat16)(x), density], -1)

    def _waves(self, x: jax.Array, count: int) -> jax.Array:
        angles = jnp.concatenate([x * 2.0**power for power in range(count)], -1)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).astype(jnp.bfloat16)


def nerf_train() -> Target:
    """Adam step of a radiance field: 1,024 rays of 64 samples, composited."""
    module, points = RadianceField(), f32(1024, 64, 3)

    def loss(params: Any, points: Any, directions: Any, depths: Any, wanted: Any) -> jax.Array:
        out = applied(module, params, points, directions).astype(jnp.float32)
        opacity = 1 - jnp.exp(-jax.nn.relu(out[..., 3]) * depths)
        left = jnp.cumprod(1 - opacity + 1e-10, axis=-1)
        colours = (left * opacity)[..., None] * jax.nn.sigmoid(out[..., :3])
        return jnp.square(colours.sum(1) - wanted).mean()

    params = init_shapes(module, points, points, dtype=jnp.float32)
    return train_step(loss, params, (points, points, f32(1024, 64), f32(1024, 3)))


class WaveNet(nn.Module):
    """Gated dilated causal convolutions with skip connections."""

    width: int = 128
    blocks: int = 2
    depth: int = 9

    @nn.compact
    def __call__(self, samples: jax.Array) -> jax.Array:
        """Samples [B, N, 1] to logits [B, N, 256]."""
        x = nn.Conv(self.width, (2,), padding="CAUSAL", dtype=jnp.bfloat16)(samples)
        skips = jnp.zeros((*x.shape[:2], 256), jnp.bfloat16)
        for level in list(range(self.depth)) * self.blocks:
            gates = nn.Conv(
                2 * self.width,
                (2,),
                kernel_dilation=2**level,
                padding="CAUSAL",
                dtype=jnp.bfloat16,
            )(x)
            signal, gate = jnp.split(gates, 2, -1)
            hidden = jnp.tanh(signal) * jax.nn.sigmoid(gate)
            skips = skips + nn.Dense(256, dtype=jnp.bfloat16)(hidden)
            x = x + nn.Dense(self.width, dtype=jnp.bfloat16)(hidden)
        out = nn.Dense(256, dtype=jnp.bfloat16)(jax.nn.relu(skips))
        return nn.Dense(256, dtype=jnp.bfloat16)(jax.nn.relu(out))


def wavenet_infer() -> Target:
    """WaveNet over 8 sequences of 8,192 samples."""
    return forward(WaveNet(), bf16(8, 8192, 1))
