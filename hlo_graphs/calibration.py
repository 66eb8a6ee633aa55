"""Times from the compiler's own cycle estimates.

The TPU compiler states `estimated_cycles` for most instructions, for the placement it compiled.
Compiled without fast memory that is an instruction's all-slow time; the least over all compiles
is its floor, taken for the all-fast time (TPU_AOT.md). Between the two, and for every other
placement, a form with few coefficients decides; `docs/times.md` has its error on placements it
was not fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hlo_graphs.bundle import CyclePoint, CycleTable
from hlo_graphs.chips import Chip
from hlo_graphs.hlo import HloModule
from hlo_graphs.times import AnalyticTimes, LeafKey, LeafTimes, StepTimes, analytic_times


@dataclass(frozen=True, slots=True)
class Anchors:
    """What the compiler's cycles say of one instruction.

    Attributes:
      slow_seconds: everything in slow memory.
      floor_seconds: the least over the compiles, at most `slow_seconds`.
    """

    slow_seconds: float
    floor_seconds: float


@dataclass(frozen=True)
class CalibratedTimes:
    """The compiler's figures where it states them, the analytic ones elsewhere.

    Attributes:
      analytic: stands in, and gives the bytes.
      anchors: by instruction name.
    """

    analytic: AnalyticTimes
    anchors: Mapping[str, Anchors]
    _steps: dict[tuple[str, str], StepTimes] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The model's name."""
        return "calibrated"

    @property
    def num_lanes(self) -> int:
        """Floor and memory."""
        return 2

    def step(self, computation: str, instruction: str) -> StepTimes:
        """See `Times.step`."""
        key = (computation, instruction)
        if key not in self._steps:
            plain = self.analytic.step(computation, instruction)
            anchors = self.anchors.get(instruction)
            self._steps[key] = plain if anchors is None else _two_point(plain, anchors)
        return self._steps[key]


def _two_point(plain: StepTimes, anchors: Anchors) -> StepTimes:
    """max(floor, slow time x slow bytes / all bytes)."""
    total_bytes = sum(leaf.size_bytes for leaf in plain.leaves.values())
    total_bus = sum(leaf.bus_seconds for leaf in plain.leaves.values())
    scale = min(1.0, anchors.slow_seconds / total_bus) if total_bus else 1.0
    leaves: dict[LeafKey, LeafTimes] = {}
    for key, leaf in plain.leaves.items():
        share = leaf.size_bytes / total_bytes if total_bytes else 0.0
        slow = anchors.slow_seconds * share
        leaves[key] = LeafTimes(leaf.size_bytes, leaf.bus_seconds * scale, (0.0, slow))
    return StepTimes((anchors.floor_seconds, 0.0), leaves, stated=True)


def calibrated_times(
    module: HloModule,
    table: CycleTable,
    chip: Chip,
    points: Sequence[CyclePoint] = (),
    *,
    with_production: bool = False,
) -> CalibratedTimes:
    """Times of `module` on `chip` from the compiler's cycles.

    Args:
      module: the program before memory-space assignment.
      table: the bundle's cycles.
      chip: of the bundle; gives the clock, and the analytic times of what states no cycles.
      points: further compiles of the same program.
      with_production: use the production compile's cycles too. Off by default, so that the error
        at production's placement is an error on a placement that was not fitted; where no
        other compile has an instruction's floor, production's is used all the same.
    """
    used = [table.none, *([table.huge] if table.huge else []), *points]
    if with_production or len(used) == 1:
        used.append(table.production)
    return CalibratedTimes(analytic_times(module, chip), _anchors(table.none, used, chip))


def _anchors(none: CyclePoint, used: Sequence[CyclePoint], chip: Chip) -> dict[str, Anchors]:
    anchors: dict[str, Anchors] = {}
    for name, slow_cycles in none.cycles.items():
        floor = min(point.cycles.get(name, slow_cycles) for point in used)
        anchors[name] = Anchors(chip.seconds(slow_cycles), chip.seconds(min(floor, slow_cycles)))
    return anchors
