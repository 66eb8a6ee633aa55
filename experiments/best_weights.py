"""The weights of a run that played best when it was saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.config import AgentConfig
    from agents.networks import Params


@dataclass
class BestWeights:
    """What scored highest of all that was offered, and its file, `best.msgpack`.

    A checkpoint that holds score and weights is written before the file is: a kill in between
    then leaves no file that the checkpoint does not know of, and resuming writes it again.

    Attributes:
      out: the run's folder.
      config: settings, which the file holds too.
      score: None before the first.
      params: the weights that had it.
    """

    out: Path
    config: AgentConfig
    score: float | None = None
    params: Params | None = None

    def offer(self, score: float, params: Params) -> bool:
        """Takes weights that are better than all before; says whether they are."""
        if self.score is not None and score <= self.score:
            return False
        self.score, self.params = score, params
        return True

    def restore(self, score: float | None, params: Params | None) -> None:
        """What a checkpoint says they are, in the file too."""
        self.score, self.params = score, params
        if params is not None:
            self.write()

    def write(self) -> None:
        """The file of the best so far."""
        from agents.checkpoint import BEST, write_weights

        write_weights(self.out / BEST, self.config, self.params)
