"""Flattened schedules and live ranges against XLA's own, value for value.

The reference sets are programs scheduled for CPU with XLA's printed live ranges; every bundle of
the corpus has the TPU compiler's own for its module before assignment.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hlo_graphs import corpus
from hlo_graphs.aliasing import analyse_aliases
from hlo_graphs.bundle import find_bundle, read_live_range
from hlo_graphs.live_range import flatten_schedule, live_ranges
from hlo_graphs.parser import read_module
from tests.shared_data import shared_data_path

REFERENCE_SETS = (
    "dynamic_slice_loop_1x2048x768_bf16",
    "gemma2_2b_keras_jax",
    "gemma3_1b_flax_call",
    "layer_norm_1x4096x768_bf16",
    "mha_block_1x12x128x64_bf16",
    "mobilenet_v2",
    "nv_maxtext_1n1g_jit_train_step_before_optimization",
)


def assert_same_as_printed(module_path: Path, printed_path: Path) -> None:
    module = read_module(module_path)
    aliases = analyse_aliases(module)
    schedule = flatten_schedule(module)
    ranges = live_ranges(module, aliases, schedule)
    printed = read_live_range(printed_path)
    assert tuple(p.instruction.name for p in schedule.positions) == printed.schedule
    ours = {str(aliases.values[value]): tuple(found) for value, found in ranges.items()}
    assert ours == dict(printed.ranges)


@pytest.mark.parametrize("name", REFERENCE_SETS)
def test_every_value_of_the_reference_sets(name: str) -> None:
    directory = shared_data_path("hlo_scheduled_cpu")
    assert_same_as_printed(directory / f"{name}.hlo.gz", directory / f"{name}.live-range.txt.gz")


@pytest.mark.parametrize("name", corpus.names())
def test_every_value_of_the_corpus(name: str) -> None:
    bundle = find_bundle(name)
    assert bundle.live_range is not None
    assert_same_as_printed(bundle.before, bundle.live_range)
