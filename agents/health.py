"""Is learning healthy? Figures with the bounds beyond which someone should look.

docs/agent.md, "Curves, and what healthy looks like", has them in a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """Figures of one chunk of self-play and the updates after it.

    Attributes:
      visit_entropy: of the root's visits, 1 is all legal actions alike, 0 always the same.
      policy_entropy: of the search's policy, on the same scale.
      search_divergence: KL of the search's policy from the network's, nats.
      commonest_action: share of the action played most, where there was a choice.
      value_bias: value less return, return units.
      value_explained: share of the variance of returns that values explain.
      reward_error: of the learned model, return units.
      replay_age: learner updates since remembered decisions were searched, mean.
    """

    visit_entropy: float
    policy_entropy: float
    search_divergence: float
    commonest_action: float
    value_bias: float
    value_explained: float
    reward_error: float
    replay_age: float


def warnings_of(health: Health, num_updates: int) -> tuple[str, ...]:
    """What is out of bounds, one line each; less is asked for in the first 50 updates."""
    return tuple(_warnings(health, num_updates))


def _warnings(health: Health, num_updates: int) -> Iterator[str]:
    if health.commonest_action > 0.99:
        yield (
            f"one action is played {health.commonest_action:.1%} of the time: "
            "the policy has collapsed, or the program leaves no choice"
        )
    if num_updates < 50:
        return
    if health.visit_entropy < 0.02:
        yield f"visit entropy is {health.visit_entropy:.3f}: the search explores nothing"
    if health.policy_entropy < 0.001:
        yield f"policy entropy is {health.policy_entropy:.4f}: nothing new is tried any more"
    if health.search_divergence > 1.0:
        yield (
            f"the search departs from the prior by {health.search_divergence:.2f} nats: "
            "the policy does not keep up; more updates per move"
        )
    if health.value_explained < 0.0:
        yield (
            f"values explain {health.value_explained:.2f} of the returns' variance: "
            "worse than a constant"
        )
    if abs(health.value_bias) > 1.0:
        yield f"values are off by {health.value_bias:+.2f} return units in the mean"
    if health.reward_error > 1.0:
        yield f"the learned model's rewards are off by {health.reward_error:.2f} return units"
    if health.replay_age > 2_000:
        yield f"replay is {health.replay_age:.0f} updates old: fewer updates or less memory"
