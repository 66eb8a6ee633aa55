"""The networks: representation of an observation, dynamics of latent states, predictions.

Source: MuZero (Schrittwieser et al. 2020); docs/game.md, "Observation". The heavy part, reading the
memory image, runs once per move; the dynamics, which runs once per simulation, is three dense
layers. The image is coarsened as by a strided convolution and then mixed by products over all of
its cells (as MLP-Mixer, Tolstikhin et al. 2021): small convolutions take several times as long on a
CPU, most of all inside a compiled loop. Arrays have a leading batch axis `B`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from agents.config import NetworkConfig
from agents.programs import OUTLOOK_COLUMNS
from agents.transforms import from_logits
from malloc_game.observation import Observation, observation_specs
from malloc_game.state import NUM_ACTIONS

Params = Any
"""A flax parameter tree."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class View:
    """What a network is given, all `[B, ...]`.

    Attributes:
      observation: of the game.
      outlook: `[B, OUTLOOK_COLUMNS]` what the incumbent gains from here (`agents.programs`).
    """

    observation: Observation
    outlook: jax.Array

    @staticmethod
    def empty() -> View:
        """Of nothing, `B = 1`: tells the shapes."""
        observation: Observation = jax.tree.map(
            lambda spec: np.zeros((1, *spec.shape), dtype=spec.dtype), observation_specs()
        )
        return View(observation, jnp.asarray(np.zeros((1, OUTLOOK_COLUMNS), dtype=np.float32)))


class Prediction(NamedTuple):
    """What a network says about a latent state.

    Attributes:
      policy_logits: `[B, 3]`, not masked.
      value_logits: `[B, bins]` of the return to come, in return units.
      legality_logits: `[B, 3]` that each action is legal; Drop always is.
      going_logits: `[B]` that the game is not over.
    """

    policy_logits: jax.Array
    value_logits: jax.Array
    legality_logits: jax.Array
    going_logits: jax.Array


class Transition(NamedTuple):
    """A latent step: the next latent state `[B, width]` and reward logits `[B, bins]`."""

    latent: jax.Array
    reward_logits: jax.Array


class _ImageBlock(nn.Module):
    """Mixes an image `[B, cells, channels]` over its cells, then its channels, around a skip."""

    channels: int

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        across = nn.Dense(image.shape[1])(image.swapaxes(1, 2)).swapaxes(1, 2)
        return nn.relu(image + nn.Dense(self.channels)(nn.relu(across)))


class _DenseBlock(nn.Module):
    """A dense layer around a skip connection, normalised."""

    width: int

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        hidden = nn.Dense(self.width)(nn.relu(nn.Dense(self.width)(latent)))
        normal: jax.Array = nn.LayerNorm()(latent + hidden)
        return normal


_CELL_TIMES, _CELL_PLACES = 4, 8
"""Sides of the cells that the image is read in."""


def _padded_times(image: jax.Array) -> jax.Array:
    """`[B, times, ...]` with times made up to whole cells."""
    short = -image.shape[1] % _CELL_TIMES
    return jnp.pad(image, [(0, 0), (0, short)] + [(0, 0)] * (image.ndim - 2))


class _Representation(nn.Module):
    """View to latent state: image, window and turn are read apart, then summed and mixed."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, view: View) -> jax.Array:
        latent = self._image(view) + self._window(view) + self._turn(view)
        latent = nn.LayerNorm()(nn.relu(latent))
        for _ in range(self.config.blocks):
            latent = _DenseBlock(self.config.width)(latent)
        return latent

    def _image(self, view: View) -> jax.Array:
        """Memory and idle time share the time axis: an image, read cell by cell."""
        memory = _padded_times(view.observation.memory.astype(jnp.float32))
        idle = _padded_times(view.observation.idle.astype(jnp.float32))
        count, times, places = memory.shape
        rows, columns = times // _CELL_TIMES, places // _CELL_PLACES
        cells = memory.reshape(count, rows, _CELL_TIMES, columns, _CELL_PLACES).swapaxes(2, 3)
        image = nn.Dense(self.config.channels)(cells.reshape(count, rows, columns, -1))
        beside = nn.Dense(self.config.channels)(idle.reshape(count, rows, 1, _CELL_TIMES))
        image = nn.relu(image + beside).reshape(count, rows * columns, self.config.channels)
        for _ in range(self.config.image_blocks):
            image = _ImageBlock(self.config.channels)(image)
        dense: jax.Array = nn.Dense(self.config.width)(image.reshape(count, -1))
        return dense

    def _window(self, view: View) -> jax.Array:
        """Each coming turn by itself, then all in their order."""
        window = view.observation.window.astype(jnp.float32)
        turns = nn.relu(nn.Dense(self.config.window_width)(window))
        dense: jax.Array = nn.Dense(self.config.width)(turns.reshape(turns.shape[0], -1))
        return dense

    def _turn(self, view: View) -> jax.Array:
        observation = view.observation
        parts = [observation.turn, observation.now, observation.idle, view.outlook]
        features = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)
        hidden = nn.relu(nn.Dense(self.config.width)(features))
        dense: jax.Array = nn.Dense(self.config.width)(hidden)
        return dense


class Networks(nn.Module):
    """All networks of an agent; apply with `method=Networks.represent` and so on."""

    config: NetworkConfig

    def setup(self) -> None:
        """Names the parts."""
        width, bins = self.config.width, self.config.support_bins
        self.representation = _Representation(self.config)
        self.mix = nn.Dense(width)
        self.step_block = _DenseBlock(width)
        # Heads begin at zero: an untrained agent values nothing and plays all actions alike.
        zero = nn.initializers.zeros_init()
        self.reward_head = nn.Dense(bins, kernel_init=zero)
        self.trunk = nn.Dense(width)
        self.policy_head = nn.Dense(NUM_ACTIONS, kernel_init=zero)
        self.value_head = nn.Dense(bins, kernel_init=zero, bias_init=_centred(self.config))
        self.legality_head = nn.Dense(NUM_ACTIONS, kernel_init=zero)
        self.going_head = nn.Dense(1, kernel_init=zero)

    def __call__(self, view: View) -> tuple[Prediction, Transition]:
        """Everything once, to make the parameters."""
        latent = self.represent(view)
        action = jnp.zeros(latent.shape[0], dtype=jnp.int32)
        return self.predict(latent), self.dynamics(latent, action)

    def represent(self, view: View) -> jax.Array:
        """Latent states `[B, width]`."""
        latent: jax.Array = self.representation(view)
        return latent

    def predict(self, latent: jax.Array) -> Prediction:
        """Heads over latent states `[B, width]`."""
        hidden = nn.relu(self.trunk(latent))
        return Prediction(
            policy_logits=self.policy_head(hidden),
            value_logits=self.value_head(hidden),
            legality_logits=self.legality_head(hidden),
            going_logits=self.going_head(hidden)[..., 0],
        )

    def dynamics(self, latent: jax.Array, action: jax.Array) -> Transition:
        """The latent states `[B, width]` after `action` `[B]`."""
        played = jax.nn.one_hot(action, NUM_ACTIONS)
        mixed = nn.relu(self.mix(jnp.concatenate([latent, played], axis=-1)))
        following = self.step_block(latent + mixed)
        return Transition(following, self.reward_head(following))

    def value(self, logits: jax.Array) -> jax.Array:
        """Numbers `[...]` that value or reward logits `[..., bins]` stand for."""
        return from_logits(logits, self.config.support_limit)


def represent(networks: Networks, params: Params, view: View) -> jax.Array:
    """`Networks.represent` under `params`."""
    return cast(jax.Array, networks.apply(params, view, method=Networks.represent))


def predict(networks: Networks, params: Params, latent: jax.Array) -> Prediction:
    """`Networks.predict` under `params`."""
    return cast(Prediction, networks.apply(params, latent, method=Networks.predict))


def transit(networks: Networks, params: Params, latent: jax.Array, action: jax.Array) -> Transition:
    """`Networks.dynamics` under `params`."""
    return cast(Transition, networks.apply(params, latent, action, method=Networks.dynamics))


def _centred(config: NetworkConfig) -> Any:
    """Initial bias that makes an untrained value peak at 0 instead of spreading over the bins."""

    def initial(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        del key
        distance = jnp.abs(jnp.linspace(-config.support_limit, config.support_limit, shape[0]))
        return -distance.astype(dtype)

    return initial


def first_params(networks: Networks, view: View, key: jax.Array) -> Params:
    """Parameters for views like `view`."""
    # Compiled as a whole, op by op takes ten times as long; and in haste, it runs only once.
    hasty = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(networks.init, compiler_options=hasty)(key, view)


_LEAST = float(np.finfo(np.float32).min)


def mask_logits(logits: jax.Array, action_mask: jax.Array) -> jax.Array:
    """float32 logits, those of illegal actions at the least float: softmax gives them exactly 0."""
    return jnp.where(action_mask, logits, _LEAST)
