"""How fast mallocGame plays: turns a second, compile seconds and bytes a state, by size and batch.

    python -m experiments.benchmarks.game [--batches 1 64 512] [--sizes 100 400 4000] [PROGRAM...]

Random legal play of generated programs with about so many accesses, or of the programs named:
a hundred decisions, after as many hundreds as go into the first quarter of the game, but ten at
most (*from*: the decision that they begin at), so that memory fills where games are long. A *turn*
is a decision: what plays itself is not counted. Beside it, where `jumanji` is installed, the steps
a second of its BinPack environment under the same random play on the same machine. Rates are the
best of several runs, per second of wall-clock and per second of CPU (over all threads): the latter
is what other processes of a shared machine disturb least. Compile seconds are CPU seconds too.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from experiments.console import told_in_a_line
from experiments.inputs import load_program
from hlo_graphs.program import Program
from malloc_game.generator import random_program
from malloc_game.rules import advance
from malloc_game.state import Action, ProgramArrays, State, first_state, program_arrays
from malloc_game.turn_table import TurnTable, turn_table

DEFAULT_SIZES = (100, 400, 1000, 4000)
DEFAULT_BATCHES = (1, 64, 512)
_RUNS = 3
_DECISIONS = 100
_WARM_UPS = 10
_HEADER = (
    "program",
    "turns",
    "items",
    "batch",
    "from",
    "compile s",
    "turns/s",
    "turns/cpu s",
    "cpu us/turn",
    "items/cpu s",
    "KiB/state",
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one run: on the clock, and of all threads together."""

    wall_seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class GameTiming:
    """One program at one batch size.

    Attributes:
      name: of the program.
      num_turns: turns that may come up in a game.
      num_items: items of the game, see docs/game.md.
      batch: games played side by side.
      first_decision: decisions of each game before those that are timed.
      compile_seconds: CPU time of tracing and compiling the loop over decisions.
      num_decisions: turns played, all games together.
      num_played_items: items played, all games together.
      cost: what that took.
      state_bytes: of one game's state.
    """

    name: str
    num_turns: int
    num_items: int
    batch: int
    first_decision: int
    compile_seconds: float
    num_decisions: int
    num_played_items: int
    cost: Cost
    state_bytes: int

    def row(self) -> tuple[str, ...]:
        """As text, in the order of the header."""
        return (
            self.name,
            str(self.num_turns),
            str(self.num_items),
            str(self.batch),
            str(self.first_decision),
            f"{self.compile_seconds:.1f}",
            f"{self.num_decisions / self.cost.wall_seconds:,.0f}",
            f"{self.num_decisions / self.cost.cpu_seconds:,.0f}",
            f"{1e6 * self.cost.cpu_seconds / max(1, self.num_decisions):.1f}",
            f"{self.num_played_items / self.cost.cpu_seconds:,.0f}",
            f"{self.state_bytes / 1024:.0f}",
        )


def time_game(table: TurnTable, batch: int, num_decisions: int = _DECISIONS) -> GameTiming:
    """Times `num_decisions` of `batch` random games of `table`'s program; see the module."""
    arrays = program_arrays(table)
    start: State = jax.jit(_start, static_argnums=1)(arrays, batch)
    _wait(start)
    began = time.process_time()
    played = jax.jit(_play, static_argnums=3)
    compiled = played.lower(arrays, start, jax.random.key(0), num_decisions).compile()
    compile_seconds = time.process_time() - began
    num_warm_ups = min(_WARM_UPS, table.num_turns // (4 * num_decisions))
    for warm_up in range(num_warm_ups):
        start = compiled(arrays, start, jax.random.key(warm_up))
    end, cost = _best_of(lambda: compiled(arrays, start, jax.random.key(1)))
    return GameTiming(
        name=table.program.name,
        num_turns=table.num_turns,
        num_items=table.num_items,
        batch=batch,
        first_decision=num_warm_ups * num_decisions,
        compile_seconds=compile_seconds,
        num_decisions=int((end.num_decisions - start.num_decisions).sum()),
        num_played_items=int((end.cursor - start.cursor).sum()),
        cost=cost,
        state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(start)) // batch,
    )


def _start(arrays: ProgramArrays, batch: int) -> State:
    """`batch` games at their first decision."""
    first = first_state(arrays)
    states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), first)
    begun: State
    begun, _ = jax.vmap(advance, in_axes=(None, 0, None))(arrays, states, jnp.int32(Action.DROP))
    return begun


def _play(arrays: ProgramArrays, states: State, key: jax.Array, num_decisions: int) -> State:
    """Random legal play."""

    def turn(states: State, key: jax.Array) -> tuple[State, None]:
        actions = jax.random.categorical(key, jnp.where(states.legal, 0.0, -jnp.inf))
        after, _ = jax.vmap(advance, in_axes=(None, 0, 0))(arrays, states, actions)
        return after, None

    end: State
    end, _ = jax.lax.scan(turn, states, jax.random.split(key, num_decisions))
    return end


def _best_of(run: Callable[[], Any]) -> tuple[Any, Cost]:
    """The last result of several runs and the least cost."""
    result = run()
    _wait(result)
    wall, cpu = float("inf"), float("inf")
    for _ in range(_RUNS):
        began, began_cpu = time.perf_counter(), time.process_time()
        result = run()
        _wait(result)
        wall = min(wall, time.perf_counter() - began)
        cpu = min(cpu, time.process_time() - began_cpu)
    return result, Cost(wall, cpu)


def _wait(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        leaf.block_until_ready()


def time_jumanji(batch: int, num_steps: int = _DECISIONS) -> Cost | None:
    """`num_steps` random legal steps of Jumanji's BinPack; None if it is not installed."""
    if importlib.util.find_spec("jumanji") is None:
        return None
    env = importlib.import_module("jumanji").make("BinPack-v2")

    def play(key: jax.Array) -> Any:
        states, first = jax.vmap(env.reset)(jax.random.split(key, batch))

        def turn(carry: Any, key: jax.Array) -> tuple[Any, None]:
            states, mask = carry
            flat = jnp.where(mask.reshape(batch, -1), 0.0, -jnp.inf)
            chosen = jax.random.categorical(key, flat)
            actions = jnp.stack(jnp.unravel_index(chosen, mask.shape[1:]), axis=-1)
            states, after = jax.vmap(env.step)(states, actions)
            return (states, after.observation.action_mask), None

        carry = (states, first.observation.action_mask)
        return jax.lax.scan(turn, carry, jax.random.split(key, num_steps))[0]

    compiled = jax.jit(play)
    return _best_of(lambda: compiled(jax.random.key(2)))[1]


def generated(num_accesses: int) -> Program:
    """A program of all kinds of blocks with about so many accesses."""
    return random_program(5, num_accesses=num_accesses, pressure=2.0, max_size_units=64)


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("programs", nargs="*", help="bundles, HLO files or programs as JSON")
    parser.add_argument("--batches", type=int, nargs="+", default=list(DEFAULT_BATCHES))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(DEFAULT_SIZES))
    chosen = parser.parse_args(arguments)
    programs = [load_program(source).program for source in chosen.programs]
    programs = programs or [generated(size) for size in chosen.sizes]
    print_rows([_HEADER])
    for program in programs:
        table = turn_table(program)
        for batch in chosen.batches:
            print_rows([time_game(table, batch).row()])
    for batch in chosen.batches:
        cost = time_jumanji(batch)
        if cost is None:
            sys.stdout.write("jumanji is not installed: no peer to compare with\n")
            return
        steps = batch * _DECISIONS
        sys.stdout.write(
            f"Jumanji BinPack-v2, batch {batch}: {steps / cost.wall_seconds:,.0f} steps/s, "
            f"{steps / cost.cpu_seconds:,.0f} steps/cpu s\n"
        )


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Writes rows in columns."""
    for row in rows:
        sys.stdout.write(f"{row[0]:<22}" + "".join(f"{cell:>12}" for cell in row[1:]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
