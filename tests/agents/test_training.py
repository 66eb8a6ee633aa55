"""Self-play, learning and resuming on a program whose optimum is known. One compilation."""

from __future__ import annotations

import errno
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.checkpoint import CHECKPOINT, read_document, write_document
from agents.config import (
    AgentConfig,
    LearnConfig,
    ModelKind,
    PlayConfig,
    ReplayConfig,
    SearchConfig,
    preset_named,
)
from agents.games import NO_ACTION, Plan, Source
from agents.health import Health, warnings_of
from agents.models import Boards, Context, ExactModel
from agents.networks import Networks
from agents.search import search_tree
from agents.solver import (
    AgentSolver,
    Learning,
)
from agents.trainer import Trainer
from hlo_graphs.errors import InputError
from malloc_game.known_optimum import KnownOptimum, known_optimum_program
from malloc_game.rules import advance
from malloc_game.simulate import simulate
from malloc_game.state import first_state
from malloc_game.validate import check
from solvers.solver import SolveRequest
from tests.agents.conftest import CHANCE_GAMES

MOST_CHUNKS = 60


def saved(trainer: Trainer, chunks: int) -> list[float]:
    means = [trainer.run_chunk().mean_saved for _ in range(chunks)]
    return [mean for mean in means if mean is not None]


def test_training_reaches_the_optimum(known: KnownOptimum, config: AgentConfig) -> None:
    trainer = Trainer([known.program], config)
    means = saved(trainer, 4)
    for _ in range(MOST_CHUNKS):
        means += saved(trainer, 1)
        best = trainer.best(0, own=True)
        if best is not None and best.latency_ticks <= known.optimal_ticks and len(means) > 20:
            break
    assert best is not None
    assert best.latency_ticks == known.optimal_ticks
    assert best.source is Source.SELF_PLAY
    memory_map = trainer.programs.members[0].fast_game.map_of(best.wishes)
    check(known.program, memory_map)
    assert simulate(known.program, memory_map).latency_ticks == known.optimal_ticks
    assert best.total == pytest.approx(1 - best.latency_ticks / known.program.all_slow_ticks)
    assert np.mean(means[-5:]) > np.mean(means[:4]) + 0.05


def test_returns_that_belong_to_other_games_teach_nothing(
    known: KnownOptimum, config: AgentConfig
) -> None:
    # Without games that repeat others': only what the network has learned can raise the mean.
    alone = replace(config, play=replace(config.play, restart_fraction=0.0, follow_fraction=0.0))
    at_random = replace(alone, shuffle_returns=True)
    taught = saved(Trainer([known.program], alone), 24)
    misled = [saved(Trainer([known.program], at_random, seed=seed), 24) for seed in range(4)]
    gain = np.mean(taught[-6:]) - np.mean(taught[:4])
    # A policy that is taught rubbish drifts, up or down by chance (0.1 either way in one run).
    drifts = [np.mean(means[-6:]) - np.mean(means[:4]) for means in misled]
    assert gain > 0.1
    assert np.mean(drifts) < gain * 0.75
    assert np.mean([means[-6:] for means in misled]) < np.mean(taught[-6:]) - 0.1


def whole_document(trainer: Trainer) -> dict[str, Any]:
    return {"trainer": trainer.to_document(), "learner": trainer.learner.to_document()}


def test_two_and_two_chunks_are_four(
    known: KnownOptimum, config: AgentConfig, tmp_path: Path
) -> None:
    config = replace(config, play=replace(config.play, reanalyse_fraction=0.25))
    whole = Trainer([known.program], config, seed=3)
    parted = Trainer([known.program], config, seed=3)
    parted.demonstrate(0, known.memory_map)
    whole.demonstrate(0, known.memory_map)
    saved(whole, 4)
    saved(parted, 2)
    write_document(tmp_path / CHECKPOINT, whole_document(parted))
    resumed = Trainer([known.program], config, seed=99)
    document = read_document(tmp_path / CHECKPOINT)
    resumed.restore(document["trainer"])
    resumed.learner.restore(document["learner"])
    saved(resumed, 2)
    first, second = whole_document(whole), whole_document(resumed)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert any(lane["repeats"] is not None for lane in first["trainer"]["self_play"]["lanes"])


def test_a_checkpoint_of_something_else_is_refused(
    known: KnownOptimum, config: AgentConfig, tmp_path: Path
) -> None:
    trainer = Trainer([known.program], config)
    saved(trainer, 2)
    document = trainer.to_document()
    other = known_optimum_program(3, kind="knapsack", size=4).program
    with pytest.raises(InputError, match="checkpoint is of knapsack-2, not of knapsack-3"):
        Trainer([other], config).restore(document)
    changed = known.program.with_capacity(known.program.capacity_bytes // 2)
    with pytest.raises(InputError, match="knapsack-2 has changed since the checkpoint"):
        Trainer([changed], config).restore(document)
    half = replace(config, relative_returns=False)
    with pytest.raises(InputError, match="other settings"):
        Trainer([known.program], half).restore(document)
    faster = {**document["best"][0], "latency_ticks": 0.0}
    with pytest.raises(InputError, match="knapsack-2: the checkpoint's best game takes another"):
        Trainer([known.program], config).restore({**document, "best": [faster]})
    path = tmp_path / "torn"
    path.write_bytes(b"\x81\xa7ver")
    with pytest.raises(InputError, match="not a checkpoint"):
        read_document(path)


def test_weights_of_other_networks_are_refused(known: KnownOptimum, config: AgentConfig) -> None:
    trainer = Trainer([known.program], config)
    params = trainer.learner.to_document()["params"]
    Trainer([known.program], config, params=params)
    narrow = jax.tree.map(lambda leaf: leaf[..., :-1], params)
    with pytest.raises(InputError, match="older version's networks"):
        Trainer([known.program], config, params=narrow)
    with pytest.raises(InputError, match="older version's networks"):
        trainer.learner.restore({**trainer.learner.to_document(), "params": {"params": {}}})


def test_a_disk_that_is_full_is_told_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / CHECKPOINT
    write_document(path, {"count": 1})
    monkeypatch.setattr("agents.checkpoint.os.fsync", full)
    with pytest.raises(InputError, match=r"checkpoint\.msgpack: cannot write there: No space left"):
        write_document(path, {"count": 2})
    assert list(tmp_path.iterdir()) == [path]
    assert read_document(path) == {"count": 1}


def test_any_seed_will_do(known: KnownOptimum, config: AgentConfig) -> None:
    trainers = [Trainer([known.program], config, seed=seed) for seed in (0, 2**63 + 5, 2**63 + 5)]
    drawn = [[leaf.tolist() for leaf in jax.tree.leaves(t.learner.params)] for t in trainers]
    assert drawn[0] != drawn[1] == drawn[2]


def test_weights_to_begin_with_stay_the_callers(known: KnownOptimum, config: AgentConfig) -> None:
    first = Trainer([known.program], config)
    weights = first.learner.params
    before = [leaf.tolist() for leaf in jax.tree.leaves(weights)]
    second = Trainer([known.program], config, params=weights)
    while second.learner.num_updates == 0:
        second.run_chunk()
    assert [leaf.tolist() for leaf in jax.tree.leaves(weights)] == before
    assert jax.tree.leaves(second.learner.params)[0].tolist() != before[0]


def test_demonstrations_are_played_as_shown(known: KnownOptimum, config: AgentConfig) -> None:
    trainer = Trainer([known.program], config)
    shown = trainer.demonstrate(0, known.memory_map)
    for _ in range(5):
        trainer.run_chunk()
    best = trainer.best(0)
    assert best is not None
    assert best.latency_ticks == shown.latency_ticks == known.optimal_ticks
    sources = {game.source for game in trainer.replay.games}
    assert Source.DEMONSTRATION in sources
    assert Source.SELF_PLAY in sources


def test_demonstrations_under_way_are_shown_again(known: KnownOptimum, config: AgentConfig) -> None:
    trainer = Trainer([known.program], config)
    shown = trainer.demonstrate(0, known.memory_map)
    trainer.self_play.restart()  # An actor has taken the plan up.
    assert len(trainer.self_play.shown_under_way()) == 1
    trainer.restart()
    assert len(trainer.self_play.shown_under_way()) == 1
    games = [game for _ in range(3) for game in trainer.run_chunk(learn=False).finished]
    played = [game.latency_ticks for game in games if game.source is Source.DEMONSTRATION]
    assert played[0] == shown.latency_ticks
    trainer.self_play.restart()
    assert trainer.self_play.shown_under_way() == [], "what was played is not shown again"


def test_search_without_a_network_is_better_than_chance(
    known: KnownOptimum, config: AgentConfig
) -> None:
    control = replace(config, search=replace(config.search, model=ModelKind.RULES))
    play = replace(config.play, restart_fraction=0.0, follow_fraction=0.0)
    searched = Trainer([known.program], replace(control, play=play))
    chance = replace(control.search, simulations=0)
    by_chance = Trainer([known.program], replace(control, play=play))
    weights = jax.tree.map(np.asarray, searched.learner.params)
    with_search, without = (
        np.mean(
            [
                report.mean_saved
                for report in (trainer.run_chunk(search, learn=False) for _ in range(6))
                if report.mean_saved is not None
            ]
        )
        for trainer, search in ((searched, None), (by_chance, chance))
    )
    assert with_search > without + 0.02
    jax.tree.map(np.testing.assert_array_equal, weights, searched.learner.params)
    # What is compiled is there, but for a lone program's first search.
    solution = AgentSolver(Learning.RULES, config).solve(
        SolveRequest(known.program, time_limit_seconds=4.0)
    )
    check(known.program, solution.memory_map)
    assert solution.solver == "mcts"
    assert solution.games_played > CHANCE_GAMES
    assert solution.latency_ticks < known.program.all_slow_ticks


def test_what_is_searched_anew_is_no_new_game(known: KnownOptimum, config: AgentConfig) -> None:
    play = replace(config.play, reanalyse_fraction=0.0)
    trainer = Trainer([known.program], replace(config, play=play))
    while not len(trainer.replay):
        trainer.run_chunk()
    before = {name: np.array(column) for name, column in trainer.replay.rows.to_document().items()}
    games, best = trainer.num_games, trainer.best(0)
    trainer.config = replace(config, play=replace(play, reanalyse_fraction=0.999999))
    trainer.self_play.restart()
    for _ in range(4):
        report = trainer.run_chunk()
        assert report.finished == ()
    assert trainer.num_games == games
    assert trainer.best(0) is best
    after = trainer.replay.rows.to_document()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"policy", "priority"}
    anew = [game for game in trainer.replay.games if game.birth_update > 0]
    assert len(anew) > games / 2


@jax.jit
def _exact_tree(params: Any, boards: Boards, root: Any, key: jax.Array) -> Any:
    config = preset_named("tiny", model="exact", simulations=24)
    model = ExactModel(Networks(config.network))
    mask = boards.state.legal
    return search_tree(model, config.search, Context(params, boards), root, mask, key).search_tree


def test_no_tree_of_the_real_game_visits_an_illegal_action(
    known: KnownOptimum, config: AgentConfig
) -> None:
    import mctx

    trainer = Trainer([known.program], config)
    arrays = jax.tree.map(lambda leaf: leaf[0], trainer.programs.arrays)
    play = jax.jit(advance)

    def searched_from(begun: Any) -> Any:
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), begun)
        curves = jnp.asarray(trainer.baselines.curves[[0, 0]])
        boards = Boards(arrays, state, curves, trainer.programs.units[jnp.array([0, 0])])
        # Priors that want what may be illegal.
        root = mctx.RootFnOutput(
            prior_logits=jnp.zeros((2, 3)), value=jnp.zeros(2), embedding=boards.state
        )
        return _exact_tree(trainer.learner.params, boards, root, jax.random.key(0))

    state, _ = play(arrays, first_state(arrays), jnp.int32(0))
    tree = searched_from(state)
    visits, legal = np.asarray(tree.children_visits), np.asarray(tree.embeddings.legal)
    reached = np.asarray(tree.node_visits) > 0
    assert not legal[reached].all()
    assert visits[reached][~legal[reached]].sum() == 0

    # Two turns before the end the tree goes beyond it, where nothing is to be had.
    num_items = trainer.programs.members[0].table.num_items
    while True:
        after, _ = play(arrays, state, jnp.int32(0))
        if int(after.cursor) >= num_items:
            break
        before, state = state, after
    tree = searched_from(before)
    over = (np.asarray(tree.embeddings.cursor) >= num_items) & (np.asarray(tree.node_visits) > 0)
    assert over.sum() > 2
    assert np.abs(np.asarray(tree.children_rewards)[over]).sum() == 0
    assert np.abs(np.asarray(tree.children_values)[over]).sum() == 0


def test_plans_are_followed(known: KnownOptimum, config: AgentConfig) -> None:
    trainer = Trainer([known.program], config)
    size = trainer.programs.bucket.num_items
    trainer.self_play.planner = lambda program: Plan(
        np.zeros(size, dtype=np.int8), Source.SELF_PLAY
    )
    trainer.self_play.restart()
    games = [game for _ in range(3) for game in trainer.run_chunk().finished]
    assert games
    assert all(game.latency_ticks == known.program.all_slow_ticks for game in games)
    assert not any(game.free for game in games)

    one_given = np.full(size, NO_ACTION, dtype=np.int8)
    one_given[trainer.programs.members[0].item_of_turn[-1]] = 0
    plans = itertools.cycle([Plan.free(size), Plan(one_given, Source.SELF_PLAY)])
    trainer.self_play.planner = lambda program: next(plans)
    trainer.self_play.restart()
    free = [game.free for _ in range(3) for game in trainer.run_chunk().finished]
    assert 0.4 < np.mean(free) < 0.6


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (LearnConfig, {"elite_fraction": 1.0}),
        (LearnConfig, {"elite_fraction": 0.999}),
        (LearnConfig, {"elite_fraction": -0.1}),
        (LearnConfig, {"elite_fraction": np.nan}),
        (LearnConfig, {"elite_games": 0}),
        (LearnConfig, {"batch_size": 0}),
        (LearnConfig, {"updates_per_chunk": -1}),
        (LearnConfig, {"outlook_dropout": 1.1}),
        (ReplayConfig, {"td_steps": 0}),
        (ReplayConfig, {"unroll_steps": -1}),
        (ReplayConfig, {"capacity_decisions": 0}),
        (PlayConfig, {"actors": 0}),
        (PlayConfig, {"moves": 0}),
        (SearchConfig, {"simulations": -1}),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, values: dict[str, float]) -> None:
    ((name, value),) = values.items()
    with pytest.raises(InputError, match=f"{name} is {value}, must be"):
        settings(**values)


def test_a_share_of_old_games_leaves_some_that_are_new() -> None:
    with pytest.raises(InputError, match="from 0 to below 1"):
        PlayConfig(reanalyse_fraction=1.0)
    play = PlayConfig(reanalyse_fraction=0.5).without_old_games()
    assert (play.restart_fraction, play.follow_fraction, play.reanalyse_fraction) == (0, 0, 0)


def test_health_warns_of_what_is_out_of_bounds() -> None:
    fine = Health(
        visit_entropy=0.8,
        policy_entropy=0.5,
        search_divergence=0.1,
        commonest_action=0.5,
        value_bias=0.1,
        value_explained=0.7,
        reward_error=0.1,
        replay_age=100,
    )
    assert warnings_of(fine, 1000) == ()
    wrong = {
        "visit_entropy": 0.0,
        "policy_entropy": 0.0,
        "search_divergence": 3.0,
        "commonest_action": 1.0,
        "value_bias": -3.0,
        "value_explained": -1.0,
        "reward_error": 2.0,
        "replay_age": 1e6,
    }
    for name, value in wrong.items():
        assert len(warnings_of(replace(fine, **{name: value}), 1000)) == 1, name
