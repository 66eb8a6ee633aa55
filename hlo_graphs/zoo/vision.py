"""Convolutional and attention networks for images (Keras applications, and Flax for the rest)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from hlo_graphs.zoo.building import (
    Target,
    applied,
    array,
    bf16,
    classifier_train_step,
    cross_entropy,
    forward,
    int32,
    train_step,
)
from hlo_graphs.zoo.transformer import EncoderLayer

_IMAGE_PIXELS = 224


def _shapes(variables: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    return [array(v.shape, jnp.dtype(v.dtype)) for v in variables]


def _keras_model(name: str, policy: str, pixels: int) -> Any:
    import keras

    keras.config.set_dtype_policy(policy)
    options: dict[str, Any] = {"weights": None, "input_shape": (pixels, pixels, 3)}
    if name.startswith("ConvNeXt"):
        options["include_preprocessing"] = False
    return getattr(keras.applications, name)(**options)


def _keras_infer(name: str, batch: int, pixels: int = _IMAGE_PIXELS) -> Target:
    model = _keras_model(name, "bfloat16", pixels)

    def apply(trainable: Any, frozen: Any, images: Any) -> Any:
        return model.stateless_call(trainable, frozen, images, training=False)[0]

    weights = (_shapes(model.trainable_variables), _shapes(model.non_trainable_variables))
    return apply, (*weights, bf16(batch, pixels, pixels, 3)), ()


def _keras_train(name: str, batch: int, pixels: int = _IMAGE_PIXELS) -> Target:
    """A step of SGD with momentum; batch statistics and weights are donated."""
    model = _keras_model(name, "mixed_bfloat16", pixels)
    optimizer = optax.sgd(0.1, momentum=0.9)

    def loss(trainable: Any, frozen: Any, images: Any, labels: Any) -> Any:
        outputs, frozen = model.stateless_call(trainable, frozen, images, training=True)
        return cross_entropy(outputs, labels), frozen

    def step(trainable: Any, frozen: Any, state: Any, images: Any, labels: Any) -> Any:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, frozen), gradients = gradient(trainable, frozen, images, labels)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(trainable, updates), frozen, state, value

    trainable = _shapes(model.trainable_variables)
    frozen = _shapes(model.non_trainable_variables)
    state = jax.eval_shape(optimizer.init, trainable)
    inputs = (bf16(batch, pixels, pixels, 3), int32(batch))
    return step, (trainable, frozen, state, *inputs), (0, 1, 2)


def resnet50_infer() -> Target:
    """ResNet-50, 32 images."""
    return _keras_infer("ResNet50", 32)


def resnet50_train() -> Target:
    """ResNet-50 training step, 16 images."""
    return _keras_train("ResNet50", 16)


def densenet121_infer() -> Target:
    """DenseNet-121, 16 images: many concatenations of long-lived tensors."""
    return _keras_infer("DenseNet121", 16)


def densenet121_train() -> Target:
    """DenseNet-121 training step, 8 images."""
    return _keras_train("DenseNet121", 8)


def efficientnet_b0_infer() -> Target:
    """EfficientNet-B0, 32 images."""
    return _keras_infer("EfficientNetB0", 32)


def efficientnet_b0_train() -> Target:
    """EfficientNet-B0 training step, 16 images."""
    return _keras_train("EfficientNetB0", 16)


def mobilenet_v2_infer() -> Target:
    """MobileNet-V2, 32 images."""
    return _keras_infer("MobileNetV2", 32)


def mobilenet_v2_train() -> Target:
    """MobileNet-V2 training step, 16 images."""
    return _keras_train("MobileNetV2", 16)


def vgg16_infer() -> Target:
    """VGG-16, 8 images: few, very large tensors."""
    return _keras_infer("VGG16", 8)


def convnext_tiny_infer() -> Target:
    """ConvNeXt-Tiny, 32 images."""
    return _keras_infer("ConvNeXtTiny", 32)


class VisionTransformer(nn.Module):
    """A ViT: patches of 16 x 16, learned positions, mean pooling."""

    width: int = 768
    depth: int = 12
    heads: int = 12

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] to logits [B, 1000]."""
        x = nn.Conv(self.width, (16, 16), strides=16, dtype=jnp.bfloat16)(images)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("positions", nn.initializers.normal(), x.shape[1:], jnp.bfloat16)
        for _ in range(self.depth):
            x = EncoderLayer(self.heads)(x)
        return nn.Dense(1000, dtype=jnp.bfloat16)(nn.LayerNorm(dtype=jnp.bfloat16)(x).mean(1))


def vit_base_infer() -> Target:
    """ViT-Base/16, 64 images."""
    return forward(VisionTransformer(), bf16(64, 224, 224, 3))


def vit_base_train() -> Target:
    """ViT-Base/16 training step with Adam, 32 images."""
    return classifier_train_step(VisionTransformer(), bf16(32, 224, 224, 3), int32(32))


class MlpMixer(nn.Module):
    """MLP-Mixer: dense layers over patches and over channels in turn."""

    width: int = 512
    depth: int = 8

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] to logits [B, 1000]."""
        x = nn.Conv(self.width, (16, 16), strides=16, dtype=jnp.bfloat16)(images)
        x = x.reshape(x.shape[0], -1, self.width)
        for _ in range(self.depth):
            mixed = nn.LayerNorm(dtype=jnp.bfloat16)(x).swapaxes(1, 2)
            x = x + self._mlp(mixed, 256).swapaxes(1, 2)
            x = x + self._mlp(nn.LayerNorm(dtype=jnp.bfloat16)(x), 2048)
        return nn.Dense(1000, dtype=jnp.bfloat16)(x.mean(1))

    def _mlp(self, x: jax.Array, hidden: int) -> jax.Array:
        inner = jax.nn.gelu(nn.Dense(hidden, dtype=jnp.bfloat16)(x))
        return nn.Dense(x.shape[-1], dtype=jnp.bfloat16)(inner)


def mlp_mixer_train() -> Target:
    """MLP-Mixer S/16 training step with Adam, 64 images."""
    return classifier_train_step(MlpMixer(), bf16(64, 224, 224, 3), int32(64))


class UNet(nn.Module):
    """A diffusion U-Net: residual convolutions, skip connections, attention at the bottom."""

    widths: tuple[int, ...] = (128, 256, 512)

    @nn.compact
    def __call__(self, images: jax.Array, times: jax.Array) -> jax.Array:
        """Noisy images [B, H, W, 3] and noise levels [B] to the predicted noise."""
        frequencies = jnp.exp(-jnp.arange(64) / 8.0)
        angles = times[:, None] * frequencies
        embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).astype(jnp.bfloat16)
        embedding = jax.nn.silu(nn.Dense(512, dtype=jnp.bfloat16)(embedding))
        x = nn.Conv(self.widths[0], (3, 3), dtype=jnp.bfloat16)(images)
        skips = []
        for width in self.widths:
            for _ in range(2):
                x = self._residual(x, embedding, width)
                skips.append(x)
            x = nn.Conv(width, (3, 3), strides=2, dtype=jnp.bfloat16)(x)
        batch, height, width, channels = x.shape
        tokens = EncoderLayer(8)(x.reshape(batch, height * width, channels))
        x = tokens.reshape(x.shape)
        for width in reversed(self.widths):
            x = nn.ConvTranspose(width, (2, 2), strides=(2, 2), dtype=jnp.bfloat16)(x)
            for _ in range(2):
                x = self._residual(jnp.concatenate([x, skips.pop()], -1), embedding, width)
        return nn.Conv(3, (3, 3), dtype=jnp.bfloat16)(x)

    def _residual(self, x: jax.Array, embedding: jax.Array, width: int) -> jax.Array:
        h = jax.nn.silu(nn.GroupNorm(32, dtype=jnp.bfloat16)(x))
        h = nn.Conv(width, (3, 3), dtype=jnp.bfloat16)(h)
        h = h + nn.Dense(width, dtype=jnp.bfloat16)(embedding)[:, None, None]
        h = jax.nn.silu(nn.GroupNorm(32, dtype=jnp.bfloat16)(h))
        h = nn.Conv(width, (3, 3), dtype=jnp.bfloat16)(h)
        return h + nn.Conv(width, (1, 1), dtype=jnp.bfloat16)(x)


def unet_infer() -> Target:
    """One denoising step of a diffusion U-Net, 32 images of 64 x 64."""
    return forward(UNet(), bf16(32, 64, 64, 3), bf16(32))


def unet_train() -> Target:
    """A diffusion U-Net's training step with Adam, 8 images of 64 x 64."""
    module = UNet()

    def loss(params: Any, images: Any, times: Any, noise: Any) -> jax.Array:
        noisy = images + noise * times[:, None, None, None]
        predicted = applied(module, params, noisy, times)
        return jnp.square((predicted - noise).astype(jnp.float32)).mean()

    images, times = bf16(8, 64, 64, 3), bf16(8)
    params = forward(module, images, times)[1][0]
    return train_step(loss, params, (images, times, images))
