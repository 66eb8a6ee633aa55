"""Batched self-play: many games side by side, a chunk of moves at a time.

A chunk is one compiled function; between chunks finished games are handed out and their actors
begin anew. A game may begin under a *plan*: items at which the action is given. The search looks
at those moves too, so a demonstration, or a prefix of an elite game, also teaches the network
what the search thinks of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from agents.config import AgentConfig, SearchConfig
from agents.games import NO_ACTION, OBSERVED, Game, Plan, Source, Thoughts, compact
from agents.models import Boards, Model, model_for, play_boards, view_of
from agents.networks import Params
from agents.programs import Baselines, ProgramSet, nothing_to_decide
from agents.search import choose
from malloc_game.observation import Observation, observation_specs
from malloc_game.state import Action, ProgramArrays, State, first_state


class Moves(NamedTuple):
    """What one move of every actor left behind, `[B, ...]`; of a chunk, `[moves, B, ...]`."""

    observation: Observation
    going: jax.Array
    cursor: jax.Array
    action: jax.Array
    reward: jax.Array
    policy: jax.Array
    prior: jax.Array
    visits: jax.Array


Planner = Callable[[int], Plan]
"""Gives the plan of the next game of a program."""


@dataclass(frozen=True)
class PlayStatistics:
    """Sums over the moves of a chunk; a move counts if its game was not over.

    Attributes:
      num_moves: decisions.
      visit_entropy: mean entropy of root visits over that of equal visits to legal actions,
        over decisions where two or more are legal.
      policy_entropy: likewise of the improved policy: sequential halving spreads visits evenly
        even where the search is sure, so this is what tells a collapse.
      search_divergence: mean KL divergence of the improved policy from the prior, nats.
      commonest_action: share of the action that is played most.
    """

    num_moves: int
    visit_entropy: float
    policy_entropy: float
    search_divergence: float
    commonest_action: float

    @staticmethod
    def of(moves: Moves) -> PlayStatistics:
        """Of a chunk's moves on the host."""
        going = np.asarray(moves.going & (moves.cursor > 0))
        legal = np.asarray(moves.observation.action_mask)
        open_choice = going & (legal.sum(axis=-1) > 1)
        most = np.log(np.maximum(legal.sum(axis=-1), 2))
        entropy = _entropy(np.asarray(moves.visits)) / most
        policy, prior = np.asarray(moves.policy), np.asarray(moves.prior)
        ratio = np.log(np.maximum(policy, 1e-20)) - np.log(np.maximum(prior, 1e-20))
        divergence = np.sum(policy * ratio, axis=-1)
        counts = np.bincount(np.asarray(moves.action)[open_choice], minlength=3)
        return PlayStatistics(
            num_moves=int(going.sum()),
            visit_entropy=_mean(entropy[open_choice]),
            policy_entropy=_mean((_entropy(policy) / most)[open_choice]),
            search_divergence=_mean(divergence[open_choice]),
            commonest_action=float(counts.max() / max(1, counts.sum())),
        )


def _entropy(shares: NDArray[np.floating]) -> NDArray[np.floating]:
    result: NDArray[np.floating] = -np.sum(shares * np.log(np.maximum(shares, 1e-20)), axis=-1)
    return result


def _mean(values: NDArray[np.floating]) -> float:
    return float(values.mean()) if values.size else 0.0


@dataclass
class _Lane:
    """One actor's game so far, on the host."""

    program: int
    source: Source
    repeats: int | None
    pieces: list[Moves] = field(default_factory=list)


class SelfPlay:
    """Actors that play the programs of a set in turn.

    Args:
      programs: what is played; actors take the next program whenever they begin a game.
      config: settings.
      planner: gives each new game's plan.

    """

    def __init__(self, programs: ProgramSet, config: AgentConfig, planner: Planner) -> None:
        self.programs, self.config, self.planner = programs, config, planner
        self._starts: State = jax.device_get(_first_states(programs.arrays))
        self._next_program = 0
        self.restart()

    def restart(self) -> None:
        """Every actor begins a game; games under way are forgotten.

        The last actor is the first to ask for a plan: what is shown leaves alone the first, which
        may be the one without noise.
        """
        actors = self.config.play.actors
        self._plans = np.empty((actors, self.programs.bucket.num_items), dtype=np.int8)
        self._lanes = [self._new_game(actor) for actor in reversed(range(actors))][::-1]
        index = self._index()
        self._states: State = jax.tree.map(lambda leaf: leaf[index], self._starts)
        self._arrays: tuple[NDArray[np.intp], ProgramArrays] | None = None

    def play(
        self,
        params: Params,
        baselines: Baselines,
        key: jax.Array,
        birth_update: int,
        search: SearchConfig | None = None,
    ) -> tuple[list[Game], PlayStatistics]:
        """One chunk of moves; the games that finished, and statistics.

        Args:
          params: weights.
          baselines: the incumbents.
          key: of everything random.
          birth_update: updates of the learner so far.
          search: settings, where other than the agent's own.

        Raises:
          NothingToPlayError: if a program asks for no decision.
        """
        boards, plans = self.position(baselines)
        states, moves = play_chunk(
            model_for(self.config),
            search or self.config.search,
            self.config.play.moves,
            params,
            boards,
            plans,
            key,
        )
        moves = jax.device_get(moves)
        statistics = PlayStatistics.of(moves)
        for actor, lane in enumerate(self._lanes):
            # A view would keep all actors' moves for as long as this one's game lasts.
            lane.pieces.append(jax.tree.map(lambda leaf, a=actor: leaf[:, a].copy(), moves))
        ends = np.asarray(self.programs.arrays.num_items)[self._index()]
        finished = np.flatnonzero(np.asarray(states.cursor) >= ends)
        games = [self._game(actor, birth_update) for actor in finished.tolist()]
        for actor in finished.tolist():
            self._lanes[actor] = self._new_game(actor)
        self._states = self._restarted(states, finished)
        return games, statistics

    def compile(self, params: Params, baselines: Baselines, search: SearchConfig) -> None:
        """Has a chunk compiled: one is played, and forgotten."""
        boards, plans = self.position(baselines)
        key = jax.random.key(0)
        model, moves = model_for(self.config), self.config.play.moves
        state, _ = play_chunk(model, search, moves, params, boards, plans, key)
        state.cursor.block_until_ready()

    def position(self, baselines: Baselines) -> tuple[Boards, jax.Array]:
        """The boards as they stand, and their plans `[B, items]`."""
        return self._boards(baselines), jnp.asarray(self._plans)

    def under_way(self) -> list[Thoughts]:
        """What was recommended so far in games that have not ended."""
        return [_thoughts(lane.pieces) for lane in self._lanes if lane.pieces]

    def shown_under_way(self) -> list[tuple[int, Plan]]:
        """Demonstrations that are not played to their ends yet: program and plan of each."""
        shown = []
        for lane, plan in zip(self._lanes, self._plans, strict=True):
            turns = self.programs.members[lane.program].item_of_turn
            # Games that repeat a part of one, or search it anew, are of its source, too.
            if lane.repeats is not None or lane.source is not Source.DEMONSTRATION:
                continue
            if (plan[turns] != NO_ACTION).all():
                shown.append((lane.program, Plan(plan.copy(), lane.source)))
        return shown

    @property
    def num_bytes(self) -> int:
        """Memory of the games' states."""
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self._states))

    @property
    def decision_bytes(self) -> int:
        """Memory of one remembered decision, compact (`agents.games.compact`)."""
        specs = observation_specs()
        sizes = {name: int(math.prod(getattr(specs, name).shape)) for name in OBSERVED}
        bits = {name: 1 if name == "memory" else 16 for name in OBSERVED}
        return sum(size * bits[name] // 8 for name, size in sizes.items()) + 36

    def to_document(self) -> dict[str, Any]:
        """Games under way, for a checkpoint."""
        return {
            "next_program": self._next_program,
            "plans": self._plans,
            "states": _leaves(self._states),
            "lanes": [
                {
                    "program": lane.program,
                    "source": int(lane.source),
                    "repeats": lane.repeats,
                    "pieces": [_leaves(piece) for piece in lane.pieces],
                }
                for lane in self._lanes
            ],
        }

    def restore(self, document: dict[str, Any]) -> None:
        """Takes up the games of `to_document`."""
        self._next_program = int(document["next_program"])
        self._plans = np.array(document["plans"])
        structure = jax.tree.structure(self._states)
        leaves = [jnp.asarray(leaf) for leaf in document["states"]]
        self._states = jax.tree.unflatten(structure, leaves)
        self._lanes = [
            _Lane(
                lane["program"],
                Source(lane["source"]),
                lane["repeats"],
                [jax.tree.unflatten(_MOVES_STRUCTURE, piece) for piece in lane["pieces"]],
            )
            for lane in document["lanes"]
        ]

    def _index(self) -> NDArray[np.intp]:
        """`[B]` program of each actor."""
        return np.array([lane.program for lane in self._lanes], dtype=np.intp)

    def _boards(self, baselines: Baselines) -> Boards:
        index = self._index()
        curves, units = baselines.curves[index], self.programs.units[index]
        chosen = self._chosen(index)
        return Boards(chosen, self._states, jnp.asarray(curves), jnp.asarray(units))

    def _chosen(self, index: NDArray[np.intp]) -> ProgramArrays:
        """Arrays of the programs `[B]`, on the device; kept while actors play the same."""
        if self._arrays is None or not np.array_equal(self._arrays[0], index):
            # Games of one program share its arrays, which the compiled game reads faster.
            chosen = 0 if len(self.programs) == 1 else index
            arrays = jax.tree.map(lambda leaf: leaf[chosen], self.programs.arrays)
            self._arrays = (index, jax.device_put(arrays))
        return self._arrays[1]

    def _new_game(self, actor: int) -> _Lane:
        program = self._next_program
        self._next_program = (program + 1) % len(self.programs)
        plan = self.planner(program)
        self._plans[actor] = plan.actions
        return _Lane(program, plan.source, plan.repeats)

    def _restarted(self, states: State, finished: NDArray[np.intp]) -> State:
        """States with those of `finished` actors put back to the start of their new programs."""
        if not finished.size:
            return states
        again = np.zeros(len(self._lanes), dtype=bool)
        again[finished] = True
        begun = jax.tree.map(lambda leaf: leaf[self._index()], self._starts)
        restarted: State = _put_back(states, begun, again)
        return restarted

    def _game(self, actor: int, birth_update: int) -> Game:
        lane = self._lanes[actor]
        whole: Moves = jax.tree.map(lambda *parts: np.concatenate(parts), *lane.pieces)
        opening, moves = _without_opening(whole)
        member = self.programs.members[lane.program]
        if not len(moves.action):
            raise nothing_to_decide(member.program)
        cursors = np.append(moves.cursor, member.table.num_items).astype(np.int32)
        game = Game(
            program=lane.program,
            source=lane.source,
            observations=moves.observation,
            cursors=cursors,
            actions=np.asarray(moves.action, dtype=np.int8),
            rewards=np.asarray(moves.reward),
            opening=opening,
            policies=np.asarray(moves.policy),
            latency_ticks=0.0,
            birth_update=birth_update,
            repeats=lane.repeats,
            free=bool((self._plans[actor] == NO_ACTION).all()),
        )
        return replace(game, latency_ticks=member.fast_game.latency_ticks(game.wishes(member)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def play_chunk(
    model: Model,
    config: SearchConfig,
    num_moves: int,
    params: Params,
    boards: Boards,
    plans: jax.Array,
    key: jax.Array,
) -> tuple[State, Moves]:
    """`num_moves` moves of every board; `plans` is `[B, items]`, see `Plan`."""

    def move(boards: Boards, key: jax.Array) -> tuple[Boards, Moves]:
        view = view_of(boards)
        choice = choose(model, config, params, boards, view, key)
        cursor = boards.state.cursor
        action = _planned(plans, cursor, view.observation.action_mask, choice.action)
        after, reward = play_boards(boards, action)
        going = cursor < boards.num_items
        seen = compact(view.observation)
        return after, Moves(
            seen, going, cursor, action, reward, choice.policy, choice.prior, choice.visits
        )

    boards, moves = jax.lax.scan(move, boards, jax.random.split(key, num_moves))
    return boards.state, moves


def _planned(plans: jax.Array, cursor: jax.Array, mask: jax.Array, chosen: jax.Array) -> jax.Array:
    """Planned actions where there are any: the first legal of what is asked, Copy, Drop."""
    rows = jnp.arange(cursor.shape[0])
    wish = plans[rows, jnp.minimum(cursor, plans.shape[1] - 1)].astype(jnp.int32)
    asked = jnp.maximum(wish, 0)
    copy = jnp.where(mask[:, Action.COPY], Action.COPY, Action.DROP)
    granted = jnp.where(mask[rows, asked], asked, copy)
    return jnp.where(wish >= 0, granted, chosen).astype(jnp.int32)


def _without_opening(moves: Moves) -> tuple[float, Moves]:
    """The reward before the first decision, and the decisions.

    A game starts before item 0, where Drop alone is legal and begins it: that is a move of the
    chunk, so that beginning is not compiled apart, but no decision.
    """
    decisions = moves.going & (moves.cursor > 0)
    opening = float(moves.reward[moves.going & (moves.cursor == 0)].sum())
    kept: Moves = jax.tree.map(lambda leaf: leaf[decisions], moves)
    return opening, kept


def _thoughts(pieces: list[Moves]) -> Thoughts:
    """Of one game's chunks, decisions only."""
    cursors = np.concatenate([piece.cursor for piece in pieces])
    decisions = np.concatenate([piece.going for piece in pieces]) & (cursors > 0)
    policies = np.concatenate([piece.policy for piece in pieces])
    return Thoughts(cursors[decisions], policies[decisions])


_first_states = jax.jit(jax.vmap(first_state))


@jax.jit
def _put_back(states: State, begun: State, again: jax.Array) -> State:
    """`begun` where `again` `[B]`, else `states`."""

    def choose_leaf(state: jax.Array, start: jax.Array) -> jax.Array:
        return jnp.where(again.reshape(-1, *([1] * (state.ndim - 1))), start, state)

    put: State = jax.tree.map(choose_leaf, states, begun)
    return put


def _leaves(tree: Any) -> list[NDArray[Any]]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


_NOTHING: Any = 0
_MOVES_STRUCTURE = jax.tree.structure(Moves(Observation(*([_NOTHING] * 6)), *([_NOTHING] * 7)))
