"""Models of science: matrix multiplication, protein structure, meshes, molecules."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hlo_graphs.zoo.building import (
    Target,
    applied,
    bf16,
    cross_entropy,
    f32,
    forward,
    init_shapes,
    int32,
    train_step,
)
from hlo_graphs.zoo.transformer import Attention, EncoderLayer, causal_mask


class AxialTorso(nn.Module):
    """AlphaTensor-like torso: three grids of features that attend to each other in pairs."""

    size: int = 16
    width: int = 512
    depth: int = 8

    @nn.compact
    def __call__(self, tensors: jax.Array) -> jax.Array:
        """Tensors [B, S, S, S] to features [B, 3 S S, C]."""
        grids = []
        for axis in (1, 2, 3):
            view = jnp.moveaxis(tensors, axis, -1)
            grids.append(nn.Dense(self.width, dtype=jnp.bfloat16)(view))
        for _ in range(self.depth):
            for first, second in ((0, 1), (2, 0), (1, 2)):
                joined = jnp.concatenate([grids[first], grids[second].swapaxes(1, 2)], axis=2)
                joined = EncoderLayer(16)(joined)
                grids[first], other = jnp.split(joined, 2, axis=2)
                grids[second] = other.swapaxes(1, 2)
        return jnp.concatenate([g.reshape(g.shape[0], -1, self.width) for g in grids], 1)


class AxialPolicy(nn.Module):
    """The torso with a policy head (an autoregressive transformer) and a value head."""

    depth: int = 4

    @nn.compact
    def __call__(self, tensors: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tensors [B, S, S, S], actions [B, A] to policy logits [B, A, 512] and values [B]."""
        features = AxialTorso(depth=self.depth)(tensors)
        x = nn.Embed(512, 512, dtype=jnp.bfloat16)(actions)
        for _ in range(2):
            x = EncoderLayer(8)(x, causal_mask(actions.shape[1]), features)
        value = nn.Dense(1, dtype=jnp.bfloat16)(features.mean(1))[:, 0]
        return nn.Dense(512, dtype=jnp.bfloat16)(x), value


def alphatensor_infer() -> Target:
    """An axial-attention torso of 8 layers over 32 tensors of 16 x 16 x 16."""
    return forward(AxialTorso(), bf16(32, 16, 16, 16))


def alphatensor_train() -> Target:
    """Adam step of torso (4 layers), policy and value heads, 8 tensors of 16 x 16 x 16."""
    module = AxialPolicy()
    inputs = (bf16(8, 16, 16, 16), int32(8, 24))

    def loss(params: Any, tensors: Any, actions: Any, labels: Any, returns: Any) -> jax.Array:
        logits, values = applied(module, params, tensors, actions)
        error = values.astype(jnp.float32) - returns.astype(jnp.float32)
        return cross_entropy(logits, labels) + jnp.square(error).mean()

    params = init_shapes(module, *inputs, dtype=jnp.float32)
    return train_step(loss, params, (*inputs, int32(8, 24), bf16(8)))


class TriangleUpdate(nn.Module):
    """Evoformer's triangle multiplication over a pair representation."""

    outgoing: bool
    width: int = 128

    @nn.compact
    def __call__(self, pairs: jax.Array) -> jax.Array:
        """[N, N, C] to [N, N, C]."""
        normed = nn.LayerNorm(dtype=jnp.bfloat16)(pairs)
        sides = nn.Dense(2 * self.width, dtype=jnp.bfloat16)(normed)
        sides = sides * jax.nn.sigmoid(nn.Dense(2 * self.width, dtype=jnp.bfloat16)(normed))
        left, right = jnp.split(sides, 2, -1)
        equation = "ikc,jkc->ijc" if self.outgoing else "kic,kjc->ijc"
        product = nn.LayerNorm(dtype=jnp.bfloat16)(jnp.einsum(equation, left, right))
        gate = jax.nn.sigmoid(nn.Dense(pairs.shape[-1], dtype=jnp.bfloat16)(normed))
        return gate * nn.Dense(pairs.shape[-1], dtype=jnp.bfloat16)(product)


class EvoformerBlock(nn.Module):
    """Row and column attention, outer product mean, triangle updates and attention."""

    @nn.compact
    def __call__(self, msa: jax.Array, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """MSA [S, N, C] and pairs [N, N, P], both updated."""
        msa = msa + Attention(8)(nn.LayerNorm(dtype=jnp.bfloat16)(msa))
        columns = nn.LayerNorm(dtype=jnp.bfloat16)(msa).swapaxes(0, 1)
        msa = msa + Attention(8)(columns).swapaxes(0, 1)
        msa = msa + self._transition(msa)
        normed = nn.LayerNorm(dtype=jnp.bfloat16)(msa)
        left, right = jnp.split(nn.Dense(64, dtype=jnp.bfloat16)(normed), 2, -1)
        outer = jnp.einsum("sic,sjd->ijcd", left, right) / msa.shape[0]
        flat = outer.reshape(*outer.shape[:2], -1)
        pairs = pairs + nn.Dense(pairs.shape[-1], dtype=jnp.bfloat16)(flat)
        pairs = pairs + TriangleUpdate(outgoing=True)(pairs)
        pairs = pairs + TriangleUpdate(outgoing=False)(pairs)
        pairs = pairs + Attention(4)(nn.LayerNorm(dtype=jnp.bfloat16)(pairs))
        turned = nn.LayerNorm(dtype=jnp.bfloat16)(pairs).swapaxes(0, 1)
        pairs = pairs + Attention(4)(turned).swapaxes(0, 1)
        return msa, pairs + self._transition(pairs)

    def _transition(self, x: jax.Array) -> jax.Array:
        hidden = nn.Dense(4 * x.shape[-1], dtype=jnp.bfloat16)(nn.LayerNorm(dtype=jnp.bfloat16)(x))
        return nn.Dense(x.shape[-1], dtype=jnp.bfloat16)(jax.nn.relu(hidden))


class Evoformer(nn.Module):
    """A stack of Evoformer blocks."""

    depth: int = 4

    @nn.compact
    def __call__(self, msa: jax.Array, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """MSA [S, N, C] and pairs [N, N, P], both updated."""
        for _ in range(self.depth):
            msa, pairs = EvoformerBlock()(msa, pairs)
        return msa, pairs


def evoformer_infer() -> Target:
    """4 Evoformer blocks: 64 sequences of 192 residues, pairs of width 128."""
    return forward(Evoformer(), bf16(64, 192, 256), bf16(192, 192, 128))


def evoformer_train() -> Target:
    """Adam step of 2 Evoformer blocks: 64 sequences of 128 residues."""
    module, inputs = Evoformer(depth=2), (bf16(64, 128, 256), bf16(128, 128, 128))

    def loss(params: Any, msa: Any, pairs: Any) -> jax.Array:
        changed, bonds = applied(module, params, msa, pairs)
        both = (changed - msa).astype(jnp.float32), (bonds - pairs).astype(jnp.float32)
        return jnp.square(both[0]).mean() + jnp.square(both[1]).mean()

    return train_step(loss, init_shapes(module, *inputs, dtype=jnp.float32), inputs)


class GraphNetwork(nn.Module):
    """Message passing over a mesh: edges from their nodes, nodes from their edges."""

    width: int = 128
    rounds: int = 6

    @nn.compact
    def __call__(
        self, nodes: jax.Array, edges: jax.Array, senders: jax.Array, receivers: jax.Array
    ) -> jax.Array:
        """Nodes [N, F], edges [E, F], their ends [E] to [N, 3]."""
        nodes, edges = self._mlp(nodes), self._mlp(edges)
        for _ in range(self.rounds):
            ends = [edges, nodes[senders], nodes[receivers]]
            edges = edges + self._mlp(jnp.concatenate(ends, -1))
            sums = jax.ops.segment_sum(edges, receivers, nodes.shape[0])
            nodes = nodes + self._mlp(jnp.concatenate([nodes, sums], -1))
        return nn.Dense(3, dtype=jnp.bfloat16)(nodes)

    def _mlp(self, x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(nn.Dense(self.width, dtype=jnp.bfloat16)(x))
        out = nn.Dense(self.width, dtype=jnp.bfloat16)(hidden)
        normed: jax.Array = nn.LayerNorm(dtype=jnp.bfloat16)(out)
        return normed


def _mesh() -> tuple[Any, ...]:
    return bf16(16384, 16), bf16(98304, 8), int32(98304), int32(98304)


def graphnet_infer() -> Target:
    """6 rounds of message passing over 16,384 nodes and 98,304 edges."""
    return forward(GraphNetwork(), *_mesh())


def graphnet_train() -> Target:
    """Adam step of 4 rounds of message passing over 16,384 nodes and 98,304 edges."""
    module, mesh = GraphNetwork(rounds=4), _mesh()

    def loss(params: Any, wanted: Any, *mesh: Any) -> jax.Array:
        moved = applied(module, params, *mesh)
        return jnp.square((moved - wanted).astype(jnp.float32)).mean()

    params = init_shapes(module, *mesh, dtype=jnp.float32)
    return train_step(loss, params, (bf16(16384, 3), *mesh))


class SchNet(nn.Module):
    """Continuous-filter convolutions over atoms: filters from distances, summed over neighbours."""

    width: int = 256
    rounds: int = 4

    @nn.compact
    def __call__(self, kinds: jax.Array, positions: jax.Array, neighbours: jax.Array) -> jax.Array:
        """Kinds [B, N], positions [B, N, 3], neighbours [B, N, K] to energies [B]."""
        x = nn.Embed(100, self.width, dtype=jnp.bfloat16)(kinds)
        near = jax.vmap(lambda table, index: table[index])(positions, neighbours)
        distances = jnp.sqrt(jnp.square(near - positions[:, :, None]).sum(-1) + 1e-6)
        basis = jnp.exp(-10 * jnp.square(distances[..., None] - jnp.linspace(0, 6, 64)))
        basis = basis.astype(jnp.bfloat16)
        for _ in range(self.rounds):
            filters = jax.nn.softplus(nn.Dense(self.width, dtype=jnp.bfloat16)(basis))
            filters = nn.Dense(self.width, dtype=jnp.bfloat16)(filters)
            sent = nn.Dense(self.width, dtype=jnp.bfloat16)(x)
            received = jax.vmap(lambda table, index: table[index])(sent, neighbours)
            summed = (received * filters).sum(2)
            hidden = jax.nn.softplus(nn.Dense(self.width, dtype=jnp.bfloat16)(summed))
            x = x + nn.Dense(self.width, dtype=jnp.bfloat16)(hidden)
        return nn.Dense(1, dtype=jnp.bfloat16)(x).sum((1, 2))


def schnet_train() -> Target:
    """Adam step on energies of 64 molecules of 64 atoms with 16 neighbours each."""
    module = SchNet()
    inputs = (int32(64, 64), f32(64, 64, 3), int32(64, 64, 16))

    def loss(params: Any, wanted: Any, *molecules: Any) -> jax.Array:
        energies = applied(module, params, *molecules)
        return jnp.square((energies - wanted).astype(jnp.float32)).mean()

    params = init_shapes(module, *inputs, dtype=jnp.float32)
    return train_step(loss, params, (bf16(64), *inputs))
