"""Learning one program by a table: probabilities of the actions, turn by turn.

Few parameters are adapted to a program, from a policy trained on many (efficient active search,
Hottung et al. 2022, here with a table beside the network's output). It begins as the network's
policy, which the network's games tell, or uniform. The games are played by the compiled game,
thousands a second, without the network.

**Credit.** The cross-entropy method (Rubinstein and Kroese 2004) moves the whole table towards
the games with the least latency. What one turn decided is lost there among the thousand others.
Most of what an action gains or costs falls between its turn and the step of the buffer's next one,
or shortly after, where the place it took is missing. So each turn has its own best games: those
that spent least from that turn until some turns (`AdaptationConfig.windows_turns`) past that step.

**The walk.** A game that is drawn from a table that has nearly made up its mind still differs from
the best one at several turns, and one of these is mostly for the worse. So between one table and
the next as many games exchange one move each of the best game, and every one that is no slower
takes its place: moves that make no difference now may make one later. Some of them play one
passage of the game as it plays another that looks alike instead (`agents.passages`). Such a game is
played only from its first other move on, and given up once it is clearly behind. With several
threads each walks by itself for a while, and then all go on from where their changes lead together.

**Populations.** Tables lead to the same game again and again, from wherever they begin. Where
several have found nothing better, games have children (`solvers.evolution`), which lead elsewhere,
slowly: they begin as the first table and chance would have it, and know nothing of the best game.
Once they get no better, a walk goes on from the best of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agents.games import Game, Thoughts
from agents.passages import MOST_CHANGES, Passages
from agents.programs import PlayedProgram
from malloc_game.fast_game import NOT_ASKED, FastGame, GameWalk, TurnKind
from malloc_game.state import NUM_ACTIONS
from solvers.cross_entropy import moved_towards
from solvers.evolution import EvolutionSettings, Population, drawn_games, random_games

Table = NDArray[np.float64]
"""`[num_turns, 3]` probabilities."""

Changes = tuple[NDArray[np.int64], NDArray[np.int8]]
"""`[count, most]` turns, -1 where there are no more, and their moves: of `count` other games."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptationConfig:
    """How the table moves.

    Attributes:
      games_per_round: games drawn from one table.
      windows_turns: turns beyond the step of the buffer's next one for which a turn's games are
        compared, the next of them whenever the table begins anew; None compares whole games, as
        the cross-entropy method does.
      elite_share: share of the games in which a turn came up that it moves towards.
      smoothing: how far.
      trust: in the network's probabilities at first; the rest goes to the table around the best
        game.
      best_weight: probability of the best game's moves where the table begins anew around it.
      opening_period: every how many starts it begins as it first did instead; None for never.
      least_probability: of any action.
      decided: mean of the largest probabilities at which it begins anew.
      patience: rounds in which its games got no better, after which it begins anew.
      walk_share: games that walk from the best one before it begins anew, as a share of those
        that it was given.
      walk_margin: share of the latency by which such a game may be behind on the way.
      transfer_share: of those games, how many carry moves over from one passage to another.
      idle_starts: tables, one after another, that found nothing better before a population is
        tried; None for never.
      generations: of a population without a better game, after which it is given up.
      bred_walk_share: games that walk from its best one, as a share of those that it was given.
    """

    games_per_round: int = 200
    windows_turns: tuple[int | None, ...] = (16, 64, 256, None)
    elite_share: float = 0.05
    smoothing: float = 0.3
    trust: float = 0.9
    best_weight: float = 0.7
    opening_period: int | None = 3
    least_probability: float = 0.003
    decided: float = 0.985
    patience: int = 4
    walk_share: float = 1.0
    walk_margin: float = 1e-4
    transfer_share: float = 0.25
    idle_starts: int | None = 3
    generations: int = 100
    bred_walk_share: float = 0.25


CROSS_ENTROPY = AdaptationConfig(
    windows_turns=(None,),
    elite_share=0.1,
    best_weight=0.6,
    opening_period=None,
    patience=20,
    walk_share=0.0,
    idle_starts=None,
)
"""A control: the cross-entropy method, begun anew around its best game once it has made up its
mind, or its games have got no better for 20 rounds, as the solver `cross-entropy` is. It draws from
the game's three actions; the solver's fourth, Clean, is none."""


@dataclass(frozen=True, slots=True)
class Found:
    """After a round of games.

    Attributes:
      num_games: played so far.
      latency_ticks: of the best game so far, those it began from included.
      wishes: `[num_turns]` int8 of that game.
    """

    num_games: int
    latency_ticks: float
    wishes: NDArray[np.int8]

    @staticmethod
    def of(member: PlayedProgram, game: Game) -> Found:
        """A game of the program, before any other."""
        return Found(0, game.latency_ticks, game.wishes(member))


def network_table(member: PlayedProgram, thoughts: Iterable[Thoughts]) -> Table:
    """What the network thinks of each turn, in the mean over games of the program.

    Uniform at turns that came up in none of them.
    """
    turn_of_item = np.full(member.table.num_items, -1)
    turn_of_item[member.item_of_turn] = np.arange(len(member.item_of_turn))
    total = np.zeros((len(member.item_of_turn), NUM_ACTIONS))
    for cursors, policies in thoughts:
        np.add.at(total, turn_of_item[cursors], policies)
    asked = total.sum(axis=1, keepdims=True)
    mean = np.where(asked > 0, total / np.maximum(asked, 1e-9), 1 / NUM_ACTIONS)
    kept = np.maximum(mean, 1e-4)
    table: Table = kept / kept.sum(axis=1, keepdims=True)
    return table


def adapt(
    member: PlayedProgram,
    found: Found,
    thoughts: Iterable[Thoughts],
    config: AdaptationConfig,
    rng: np.random.Generator,
) -> Iterator[Found]:
    """Rounds of games, without end, from what the network thought.

    Args:
      member: the program.
      found: so far.
      thoughts: the network's, of games that need not have ended.
      config: settings.
      rng: of the games.
    """
    network = network_table(member, thoughts)
    best = around(found.wishes, config.best_weight)
    return improve(member, config.trust * network + (1 - config.trust) * best, found, config, rng)


def near(
    member: PlayedProgram,
    wishes: NDArray[np.int8],
    config: AdaptationConfig,
    rng: np.random.Generator,
) -> Iterator[Found]:
    """Rounds of games, without end, from one game."""
    found = Found(0, member.fast_game.latency_ticks(wishes), wishes)
    return improve(member, around(wishes, config.best_weight), found, config, rng)


def from_nothing(
    member: PlayedProgram, config: AdaptationConfig, rng: np.random.Generator
) -> Iterator[Found]:
    """Rounds of games, without end, from uniform probabilities."""
    table = np.full((member.table.num_turns, NUM_ACTIONS), 1 / NUM_ACTIONS)
    slow = Found(0, member.program.all_slow_ticks, member.fast_game.wishes())
    return improve(member, table, slow, config, rng)


def improve(
    member: PlayedProgram,
    table: Table,
    found: Found,
    config: AdaptationConfig,
    rng: np.random.Generator,
) -> Iterator[Found]:
    """Rounds of games, without end; each begins where the one before left off.

    Args:
      member: the program.
      table: of the first round.
      found: so far.
      config: settings.
      rng: of the games.
    """
    ends = [window_ends(member.fast_game, turns) for turns in config.windows_turns]
    passages = Passages(member.fast_game)
    opening, period = table, config.opening_period
    idle_starts = 0
    for start in itertools.count():
        if idle_starts == config.idle_starts:
            found = yield from _bred(member.fast_game, passages, opening, found, config, rng)
            idle_starts = 0
        known_ticks = found.latency_ticks
        if start > 0:
            opens = period is not None and start % period == 0
            table = opening if opens else around(found.wishes, config.best_weight)
        until, before = ends[start % len(ends)], found.num_games
        found = yield from _converge(member.fast_game, table, until, found, config, rng)
        num_games = round(config.walk_share * (found.num_games - before))
        found = yield from _walk(member.fast_game, passages, found, num_games, config, rng)
        idle_starts = idle_starts + 1 if found.latency_ticks == known_ticks else 0


def _bred(
    game: FastGame,
    passages: Passages,
    opening: Table,
    found: Found,
    config: AdaptationConfig,
    rng: np.random.Generator,
) -> Generator[Found, None, Found]:
    """Generations of games until they get no better, then a walk from the best of them."""
    settings = EvolutionSettings(patience=config.generations)
    genes = random_games(settings.population, game.num_turns, rng)
    half = settings.population // 2
    genes[:half] = drawn_games(opening[None], half, game.num_turns, rng)
    population = Population(settings, genes, game.play_many(genes))
    begun = found.num_games
    found = _better(found, population.latencies, population.genes)
    yield found
    while not population.is_spent:
        children = population.offspring(rng)
        latencies = game.play_many(children)
        population.succeed(children, latencies)
        found = _better(found, latencies, children)
        yield found
    best = population.best
    bred = Found(found.num_games, float(population.latencies[best]), population.genes[best])
    num_games = round(config.bred_walk_share * (found.num_games - begun))
    for walked in _walk(game, passages, bred, num_games, config, rng):
        is_better = walked.latency_ticks < found.latency_ticks
        found = walked if is_better else replace(found, num_games=walked.num_games)
        yield found
    return found


def _converge(
    game: FastGame,
    table: Table,
    ends: NDArray[np.int64] | None,
    found: Found,
    config: AdaptationConfig,
    rng: np.random.Generator,
) -> Generator[Found, None, Found]:
    """Rounds of games until the table has made up its mind, or its games get no better."""
    count = max(1, round(config.elite_share * config.games_per_round))
    fastest, idle_rounds = math.inf, 0
    while True:
        spent, taken = game.sample_along(table, config.games_per_round, rng)
        found = _better(found, spent[:, -1], taken)
        yield found
        elite = _elites(spent, taken, ends, count)
        table = moved_towards(table, elite, config.smoothing, config.least_probability)
        idle_rounds = 0 if spent[:, -1].min() < fastest else idle_rounds + 1
        fastest = min(fastest, float(spent[:, -1].min()))
        if idle_rounds >= config.patience or table.max(axis=1).mean() >= config.decided:
            return found


def _walk(
    game: FastGame,
    passages: Passages,
    found: Found,
    num_games: int,
    config: AdaptationConfig,
    rng: np.random.Generator,
) -> Generator[Found, None, Found]:
    """Rounds of games, each the best one but for a change, which give way to as fast ones."""
    walks = [GameWalk(player, found.wishes) for player in game.players]
    margin_ticks = config.walk_margin * found.latency_ticks
    until = found.num_games + num_games
    while found.num_games < until:
        size = -(-min(config.games_per_round, until - found.num_games) // len(walks))
        changes = [_changes(passages, walk.wishes, size, config, rng) for walk in walks]
        played = _tried(game, walks, changes, margin_ticks)
        found = _joined(game, replace(found, num_games=found.num_games + played), walks)
        yield found
    return found


def _changes(
    passages: Passages,
    wishes: NDArray[np.int8],
    count: int,
    config: AdaptationConfig,
    rng: np.random.Generator,
) -> Changes:
    """`count` of a game: each exchanges one move, or is a transfer (`agents.passages`)."""
    turns = np.full((count, MOST_CHANGES), -1, dtype=np.int64)
    actions = np.zeros(turns.shape, dtype=np.int8)
    turns[:, 0] = rng.integers(len(wishes), size=count)
    others = rng.integers(1, NUM_ACTIONS, size=count)
    actions[:, 0] = (wishes[turns[:, 0]] + others) % NUM_ACTIONS
    carried = passages.transfers(wishes, round(config.transfer_share * count), rng)
    rows = rng.choice(count, size=len(carried), replace=False)
    for row, (where, moves) in zip(rows.tolist(), carried, strict=True):
        turns[row, : len(where)], actions[row, : len(moves)] = where, moves
    return turns, actions


def _tried(
    game: FastGame, walks: Sequence[GameWalk], changes: Sequence[Changes], margin_ticks: float
) -> int:
    """Each walk tries its changes, one after another, in its thread; games played in all."""

    def go_on(row: int) -> int:
        turns, actions = changes[row]
        return walks[row].propose(turns, actions, np.zeros(len(turns)), margin_ticks=margin_ticks)

    return sum(game.in_threads(go_on))


def _joined(game: FastGame, before: Found, walks: Sequence[GameWalk]) -> Found:
    """The walks' changes together if that is no slower than the best walk, else that walk.

    All walks go on from there.
    """
    best = min(walks, key=lambda walk: walk.latency_ticks)
    found = Found(before.num_games, best.latency_ticks, best.wishes.copy())
    if len(walks) == 1:
        return found
    together = before.wishes.copy()
    for walk in walks:
        np.copyto(together, walk.wishes, where=walk.wishes != before.wishes)
    ticks, num_games = game.latency_ticks(together), before.num_games + 1
    if ticks <= found.latency_ticks:
        found = Found(num_games, ticks, together)
    for walk in walks:
        if (walk.wishes != found.wishes).any():
            walk.restart(found.wishes)
    return replace(found, num_games=num_games)


def window_ends(game: FastGame, window_turns: int | None) -> NDArray[np.int64] | None:
    """`[num_turns]` the turn before which each turn's window ends; `num_turns` is the game's end.

    A step is paid for after its turns, and a loop after its entry's: so windows count from the end
    of the step of the buffer's next turn, or of the loop that this enters. A parameter carried from
    the start holds its place to the end, and so does its window. None if whole games are compared.
    """
    if window_turns is None:
        return None
    kinds = np.array([turn.kind for turn in game.turns], dtype=np.int64)
    steps = np.array([turn.step for turn in game.turns], dtype=np.int64)
    following = _next_or_itself(game, np.arange(game.num_turns))
    enters = kinds[following] == TurnKind.ENTRY
    following = np.where(enters, _next_or_itself(game, following), following)
    paid = np.searchsorted(steps, steps[following], side="right")
    ends = np.minimum(paid + window_turns, game.num_turns)
    return np.where(kinds == TurnKind.CARRY, game.num_turns, ends)


def _next_or_itself(game: FastGame, turns: NDArray[np.int64]) -> NDArray[np.int64]:
    """The turn until which Keep at each of `turns` keeps the buffer; itself if there is none."""
    following = game.next_turn[turns]
    return np.where(following >= 0, following, turns)


def _better(found: Found, latencies: NDArray[np.float64], taken: NDArray[np.int8]) -> Found:
    """`found` after a round."""
    num_games, first = found.num_games + len(latencies), int(latencies.argmin())
    if latencies[first] >= found.latency_ticks:
        return replace(found, num_games=num_games)
    wishes = np.where(taken[first] == NOT_ASKED, found.wishes, taken[first])
    return Found(num_games, float(latencies[first]), wishes.astype(np.int8))


def _elites(
    spent: NDArray[np.float64],
    taken: NDArray[np.int8],
    ends: NDArray[np.int64] | None,
    count: int,
) -> NDArray[np.int8]:
    """`[count, num_turns]` what the best games played: at each turn those best in its window.

    Args:
      spent: `[games, num_turns + 1]` ticks before each turn, and in all.
      taken: `[games, num_turns]` actions.
      ends: `[num_turns]` of the windows; None for the same games at every turn, the fastest.
      count: how many, of games in which a turn came up; of fewer the same share, at least one, and
        `NOT_ASKED` for the rest.
    """
    if ends is None:
        return taken[np.argpartition(spent[:, -1], count - 1)[:count]]
    within = np.where(taken == NOT_ASKED, np.inf, spent[:, ends] - spent[:, :-1])
    rows = np.argpartition(within, count - 1, axis=0)[:count]
    order = np.argsort(np.take_along_axis(within, rows, axis=0), axis=0)
    best = np.take_along_axis(taken, np.take_along_axis(rows, order, axis=0), axis=0)
    asked = np.count_nonzero(taken != NOT_ASKED, axis=0)
    wanted = np.maximum(np.rint(count * asked / len(taken)), 1)
    chosen: NDArray[np.int8] = np.where(np.arange(count)[:, None] < wanted, best, NOT_ASKED)
    return chosen.astype(np.int8)


def around(wishes: NDArray[np.int8], weight: float) -> Table:
    """`weight` on the wished actions, the rest shared by the others."""
    table = np.full((len(wishes), NUM_ACTIONS), (1 - weight) / (NUM_ACTIONS - 1))
    table[np.arange(len(wishes)), wishes] = weight
    return table
