"""mallocGame as a Gymnasium environment (optional extra `gym`).

The observation is a dictionary of the arrays of `malloc_game.observation.Observation`; its
`action_mask` is an int8 array, 1 where an action is legal. An action that is not legal counts as
Drop, so that players without masks can play too. `info` has the mask again and, at the end, the
latency in seconds.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hlo_graphs.errors import InputError, MissingExtraError
from hlo_graphs.program import Program
from malloc_game.env import MallocGame, TimeStep
from malloc_game.memory_map import MemoryMap
from malloc_game.observation import Observation
from malloc_game.render import draw_state
from malloc_game.state import NUM_ACTIONS, Bucket, State

try:
    import gymnasium
except ModuleNotFoundError as error:
    raise MissingExtraError("gym", "malloc_game.gym") from error

if TYPE_CHECKING:
    _Base = gymnasium.Env[Any, np.int64]
else:
    _Base = gymnasium.Env

Arrays = dict[str, NDArray[Any]]


class MallocGameEnv(_Base):
    """One program's game.

    Args:
      program: what is played; every episode is the same deterministic game.
      bucket: sizes to pad to, so that programs share compiled code; by default the smallest.
      render_mode: "ansi" makes `render` draw the fast memory as text; None draws nothing.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - Gymnasium's interface

    def __init__(
        self, program: Program, render_mode: str | None = None, *, bucket: Bucket | None = None
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise InputError(f"render mode {render_mode!r}: choose ansi or none")
        self.game = MallocGame(program, bucket=bucket)
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        self.observation_space = _space(self.game.observation_spec)
        self._state: State | None = None
        self._share_saved = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """A new game at its first decision. The game has no chance in it: `seed` changes nothing.

        Raises:
          InputError: if the program has nothing to decide: there is no first decision.
        """
        super().reset(seed=seed)
        self._state, time_step = self.game.reset()
        self._share_saved = 0.0
        if bool(time_step.last()):
            raise InputError(
                f"{self.game.program.name}: nothing to decide; fast memory is too small for its "
                f"tensors, or nothing may be in it"
            )
        return _arrays(time_step.observation), self._info(time_step)

    def step(self, action: np.int64) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """Plays one decision and all that plays itself after it."""
        if self._state is None:
            raise InputError("step before reset: call reset first")
        self._state, time_step = self.game.step(self._state, int(action))
        reward = float(time_step.reward)
        self._share_saved += reward
        over = bool(time_step.last())
        return _arrays(time_step.observation), reward, over, False, self._info(time_step)

    def render(self) -> str | None:
        """The picture of the state as text, if the render mode is "ansi"."""
        if self.render_mode is None or self._state is None:
            return None
        return draw_state(self.game.table, self._state)

    def memory_map(self) -> MemoryMap:
        """The map that the finished game is. Raises InputError if it is not over."""
        if self._state is None:
            raise InputError("no game yet: call reset first")
        return self.game.memory_map(self._state)

    def _info(self, time_step: TimeStep) -> dict[str, Any]:
        info: dict[str, Any] = {
            "action_mask": np.asarray(time_step.observation.action_mask, dtype=np.int8)
        }
        if bool(time_step.last()):
            program = self.game.program
            ticks = program.all_slow_ticks * (1 - self._share_saved)
            info["latency_seconds"] = ticks * program.tick_seconds
        return info


def _space(spec: Observation) -> gymnasium.spaces.Dict:
    spaces: dict[str, gymnasium.spaces.Space[Any]] = {}
    for field in dataclasses.fields(spec):
        array = getattr(spec, field.name)
        spaces[field.name] = gymnasium.spaces.Box(0.0, 1.0, array.shape, np.float32)
    spaces["action_mask"] = gymnasium.spaces.MultiBinary(NUM_ACTIONS)
    return gymnasium.spaces.Dict(spaces)


def _arrays(observation: Observation) -> Arrays:
    arrays = {
        field.name: np.asarray(getattr(observation, field.name))
        for field in dataclasses.fields(observation)
    }
    arrays["action_mask"] = arrays["action_mask"].astype(np.int8)
    return arrays
