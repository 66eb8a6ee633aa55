"""How fast the agent plays and learns: moves a second, and where the time goes.

    python -m experiments.benchmarks.agent [--preset tiny] [--simulations 0 16] [PROGRAM]

Self-play with search on the program named, or on a generated one of about `--accesses`.
The parts are timed by themselves on the same boards: the *game* is a step of the rules and its
observation, the *network* one representation and prediction, *learning* one chunk's updates;
the *search* is what is left of a move; *trained* are moves per CPU second of training as a whole.
Times are the best of several runs, per second of wall-clock and, as other processes of a shared
machine disturb that less, per second of CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax

from agents.config import preset_named
from agents.models import Boards, model_for, play_boards, view_of
from agents.networks import Networks, Params, predict, represent
from agents.self_play import play_chunk
from agents.trainer import Trainer
from experiments.benchmarks.game import generated
from experiments.console import told_in_a_line
from experiments.inputs import load_program
from hlo_graphs.program import Program

_RUNS = 5


@dataclass(frozen=True, slots=True)
class AgentTiming:
    """Seconds of one move of all actors, by part, the best of several runs.

    Attributes:
      model: "learned" or "exact".
      simulations: per move.
      actors: games side by side.
      moves_per_second: decisions, learning left out.
      moves_per_cpu_second: likewise, of all threads.
      trained_moves_per_cpu_second: likewise with the updates that go with them.
      game_seconds, network_seconds: of the parts by themselves.
      move_seconds: of a move with search.
      learn_seconds: the updates that go with a move.
    """

    model: str
    simulations: int
    actors: int
    moves_per_second: float
    moves_per_cpu_second: float
    trained_moves_per_cpu_second: float
    game_seconds: float
    network_seconds: float
    move_seconds: float
    learn_seconds: float

    def row(self) -> str:
        """One line."""
        whole = self.move_seconds + self.learn_seconds
        search = max(self.move_seconds - self.game_seconds - self.network_seconds, 0.0)
        shares = [
            f"{part / whole:6.0%}"
            for part in (self.game_seconds, self.network_seconds, search, self.learn_seconds)
        ]
        return (
            f"{self.model:<8}{self.simulations:>5}{self.actors:>8}{self.moves_per_second:>12,.0f}"
            f"{self.moves_per_cpu_second:>14,.0f}{self.trained_moves_per_cpu_second:>14,.0f}   "
            + "   ".join(shares)
        )


HEADER = (
    f"{'model':<8}{'sims':>5}{'actors':>8}{'moves/s':>12}{'moves/cpu s':>14}{'trained':>14}"
    "     game   network  search  learning"
)


@partial(jax.jit, static_argnums=2)
def _game_alone(boards: Boards, actions: jax.Array, moves: int) -> Any:
    def move(boards: Boards, _: None) -> tuple[Boards, jax.Array]:
        after, reward = play_boards(boards, actions)
        return after, reward + view_of(after).observation.turn.sum()

    return jax.lax.scan(move, boards, None, length=moves)


@partial(jax.jit, static_argnums=(0, 3))
def _network_alone(networks: Networks, params: Params, boards: Boards, moves: int) -> Any:
    def move(total: jax.Array, _: None) -> tuple[jax.Array, None]:
        view = view_of(boards)
        # Depends on the last round, so that rounds are not merged into one.
        view = replace(view, outlook=view.outlook + 1e-20 * total)
        prediction = predict(networks, params, represent(networks, params, view))
        return total + prediction.policy_logits.sum(), None

    return jax.lax.scan(move, jax.numpy.float32(0), None, length=moves)


def time_agent(program: Program, preset: str, simulations: int, model: str) -> AgentTiming:
    """Times self-play and learning on one program."""
    config = preset_named(preset, simulations=simulations, model=model)
    trainer = Trainer([program], config)
    while not len(trainer.replay):
        trainer.run_chunk()
    moves, actors = config.play.moves, config.play.actors
    boards, plans = trainer.self_play.position(trainer.baselines)
    params, key = trainer.learner.params, jax.random.key(0)
    search = partial(play_chunk, model_for(config), config.search, moves)
    chunk, chunk_cpu = _best(lambda: search(params, boards, plans, key))
    game, _ = _best(lambda: _game_alone(boards, boards.state.legal[:, 2].astype(int) * 2, moves))
    network, _ = _best(lambda: _network_alone(Networks(config.network), params, boards, moves))
    learn, _ = _best(trainer.learn)
    trained = min(_trained_cpu_seconds(trainer) for _ in range(_RUNS))
    return AgentTiming(
        model=model,
        simulations=simulations,
        actors=actors,
        moves_per_second=moves * actors / chunk,
        moves_per_cpu_second=moves * actors / chunk_cpu,
        trained_moves_per_cpu_second=1 / trained,
        game_seconds=game / moves,
        network_seconds=network / moves,
        move_seconds=chunk / moves,
        learn_seconds=learn / moves,
    )


def _trained_cpu_seconds(trainer: Trainer) -> float:
    """CPU seconds a move of training, all told, over several chunks."""
    began, moves = time.process_time(), trainer.num_moves
    for _ in range(_RUNS):
        trainer.run_chunk()
    return (time.process_time() - began) / (trainer.num_moves - moves)


def _best(run: Callable[[], Any]) -> tuple[float, float]:
    """Least wall and CPU seconds of several runs; the first, which compiles, does not count."""
    jax.block_until_ready(run())  # type: ignore[no-untyped-call]
    wall, cpu = float("inf"), float("inf")
    for _ in range(_RUNS):
        began, began_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())  # type: ignore[no-untyped-call]
        wall = min(wall, time.perf_counter() - began)
        cpu = min(cpu, time.process_time() - began_cpu)
    return wall, cpu


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("program", nargs="?", help="corpus name, HLO file or program as JSON")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--models", nargs="+", default=["learned", "exact"])
    parser.add_argument("--simulations", type=int, nargs="+", default=[0, 16])
    parser.add_argument("--accesses", type=int, default=100)
    chosen = parser.parse_args(arguments)
    program = (
        generated(chosen.accesses)
        if chosen.program is None
        else load_program(chosen.program).program
    )
    sys.stdout.write(f"{HEADER}\n")
    for model in chosen.models:
        for simulations in chosen.simulations:
            timing = time_agent(program, chosen.preset, simulations, model)
            sys.stdout.write(f"{timing.row()}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
