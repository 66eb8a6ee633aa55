from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from agents.adaptation import AdaptationConfig, from_nothing
from agents.compilation import CACHE_VARIABLE
from agents.config import AgentConfig, preset_named
from agents.learner import LearnReport
from agents.programs import PlayedProgram
from agents.self_play import PlayStatistics
from agents.trainer import TrainReport
from malloc_game.known_optimum import KnownOptimum, known_optimum_program


@pytest.fixture(autouse=True, scope="session")
def _compiled_code_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps tests from writing into the user's cache."""
    folder: Path = tmp_path_factory.mktemp("compiled")
    patch = pytest.MonkeyPatch()
    patch.setenv(CACHE_VARIABLE, str(folder))


CHANCE_GAMES = 200
"""What every agent begins with, so that there is an answer."""


GRACE_SECONDS = 5.0
"""By which an agent may be late on a busy machine, if nothing is left to compile."""


def disturbed(params: Any) -> Any:
    """Weights whose policy is not uniform and which value positions, as untrained ones do not."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), params
    )


@pytest.fixture(scope="session")
def known() -> KnownOptimum:
    """A program whose optimum is known."""
    return known_optimum_program(2, kind="knapsack", size=8)


@pytest.fixture(scope="session")
def config() -> AgentConfig:
    """Settings with few simulations."""
    return preset_named("tiny", simulations=4)


@pytest.fixture(scope="session")
def small_config() -> AgentConfig:
    """Fewer simulations, actors and updates; an outlook that is not always told."""
    tiny = preset_named("tiny", simulations=2)
    learn = replace(tiny.learn, updates_per_chunk=2, outlook_dropout=0.5)
    return replace(tiny, play=replace(tiny.play, actors=8), learn=learn)


@pytest.fixture(scope="session")
def hidden() -> KnownOptimum:
    """A program whose optimum is not found by an agent's first games, which are chance's."""
    hidden = known_optimum_program(2, kind="knapsack", size=12)
    member = PlayedProgram.of(hidden.program)
    chance = next(from_nothing(member, AdaptationConfig(), np.random.default_rng(0)))
    assert chance.num_games == CHANCE_GAMES
    assert chance.latency_ticks > hidden.optimal_ticks
    return hidden


@pytest.fixture
def diverged() -> TrainReport:
    """A chunk whose updates left weights that are no numbers."""
    learn = LearnReport(
        loss=math.nan,
        policy_loss=math.nan,
        value_loss=math.nan,
        reward_loss=math.nan,
        legality_loss=math.nan,
        gradient_norm=math.nan,
        value_bias=math.nan,
        value_explained=math.nan,
        reward_error=math.nan,
        learning_rate=0.1,
    )
    return TrainReport(
        num_chunks=1,
        num_updates=3,
        num_games=0,
        num_moves=8,
        finished=(),
        best_latency_ticks=(None,),
        mean_saved=None,
        is_best=False,
        play=PlayStatistics(8, 0.5, 0.5, 0.1, 0.5),
        learn=learn,
        health=None,
        warnings=(),
        play_seconds=1.0,
        learn_seconds=1.0,
    )
