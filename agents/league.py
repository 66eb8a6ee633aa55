"""Many programs of any size, one network: a trainer per size, and a learner that all share.

Games are played by functions compiled for one bucket, and a program padded to a bucket several
times its size plays slowly. So programs are parted by size; each part has its own actors, replay
and elites, and the parts take turns to play a chunk and to teach the one learner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents.config import AgentConfig
from agents.learner import Learner
from agents.networks import Params
from agents.trainer import Trainer, TrainReport
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.turn_table import turn_table

SIZES = (384, 1536, 6144)
"""Items of the largest program of a part; what is larger makes a last part."""

_AVERAGED_UPDATES = 1300.0
"""How far back the mean of the weights reaches, in updates."""


class League:
    """Trainers that share a learner.

    Args:
      programs: of any sizes.
      config: settings, of all parts.
      seed: of everything random.

    Attributes:
      trainers: one per part, small programs first.
      learner: theirs.
      averaged: mean of its weights over the last updates, which plays more evenly than any of them.

    Raises:
      InputError: if there is no program, or one cannot be played.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        config: AgentConfig,
        *,
        seed: int = 0,
    ) -> None:
        parts = parted_by_size(programs)
        if not parts:
            raise InputError("no program to play")
        self.config = config
        self.trainers: list[Trainer] = []
        learner: Learner | None = None
        for number, part in enumerate(parts):
            trainer = Trainer(part, config, seed=seed + 1000 * number, learner=learner)
            learner = trainer.learner
            self.trainers.append(trainer)
        self.learner = self.trainers[0].learner
        # A copy: the learner's own are overwritten in place.
        self.averaged: Params = jax.tree.map(np.array, self.learner.params)
        self._next = 0

    @property
    def num_games(self) -> int:
        """Played so far."""
        return sum(trainer.num_games for trainer in self.trainers)

    @property
    def num_moves(self) -> int:
        """Played so far."""
        return sum(trainer.num_moves for trainer in self.trainers)

    def run_chunk(self) -> tuple[Trainer, TrainReport]:
        """A chunk of the part whose turn it is."""
        trainer = self.trainers[self._next]
        self._next = (self._next + 1) % len(self.trainers)
        updates_before = self.learner.num_updates
        report = trainer.run_chunk()
        self._average(self.learner.num_updates - updates_before)
        return trainer, report

    def _average(self, num_updates: int) -> None:
        """Takes the weights in that `num_updates` have made; at first all count alike."""
        if num_updates > 0:
            share = 1 - math.exp(-num_updates / _AVERAGED_UPDATES)
            share = max(share, num_updates / self.learner.num_updates)
            self.averaged = _moved_towards(self.averaged, self.learner.params, share)

    def to_document(self) -> dict[str, Any]:
        """The whole state, for a checkpoint."""
        return {
            "learner": self.learner.to_document(),
            "parts": [trainer.to_document() for trainer in self.trainers],
            "averaged": jax.tree.map(np.asarray, self.averaged),
            "next": np.int64(self._next),
        }

    def restore(self, document: dict[str, Any]) -> None:
        """Goes on where `to_document` was called.

        Raises:
          InputError: if that was of other programs or settings.
        """
        if len(document["parts"]) != len(self.trainers):
            raise InputError("the checkpoint is of programs of other sizes: resume with the same")
        for trainer, part in zip(self.trainers, document["parts"], strict=True):
            trainer.restore(part)
        self.learner.restore(document["learner"])
        self.averaged = jax.tree.map(jnp.asarray, document["averaged"])
        self._next = int(document["next"])


@jax.jit
def _moved_towards(old: Params, new: Params, share: float) -> Params:
    return optax.incremental_update(new, old, share)


def parted_by_size(programs: Sequence[Program]) -> list[list[Program]]:
    """Programs of like size together, in their order; small ones first, no part empty."""
    sizes = [turn_table(program).num_items for program in programs]
    part_of = np.searchsorted(SIZES, sizes)
    parts = [
        [program for program, part in zip(programs, part_of, strict=True) if part == number]
        for number in range(len(SIZES) + 1)
    ]
    return [part for part in parts if part]
