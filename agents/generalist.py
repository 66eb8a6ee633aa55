"""The generalist that comes with the package: where its weights are, and what they were made of.

`experiments.generalist` trains it and writes both files; docs/agent_results.md says what it is
worth.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "generalist.msgpack"
"""Settings and weights, in half precision (`agents.checkpoint.read_weights`)."""

ABOUT = Path(__file__).parent / "generalist.json"
"""Settings of its training, its score, and that run's line of metrics next to when it had it."""
