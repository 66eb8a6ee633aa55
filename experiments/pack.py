"""Packing one file of fixed lifetimes: read it, find offsets, check them, and say what came out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hlo_graphs.errors import MallocGameError
from solvers.pack_items import (
    PackItem,
    check_packing,
    peak_load,
    read_minimalloc_file,
    write_minimalloc_csv,
)
from solvers.packing import Packing, pack
from solvers.solver import Status, check_effort

EXIT_CODES = {Status.OPTIMAL: 0, Status.INFEASIBLE: 10, Status.UNKNOWN: 11}
"""Exit code of `pack` per status."""


class WrongPackingError(MallocGameError):
    """A packing that breaks a rule, or a proof that there is none beside a packing: our bug."""


@dataclass(frozen=True, slots=True)
class PackResult:
    """One packed file.

    Attributes:
      items: what was to be packed, sizes in bytes or whatever unit the file has.
      capacity: addresses there are, in the same unit.
      packing: the offsets found, checked, and what is known of them.
      seed: of the searches.
    """

    items: tuple[PackItem, ...]
    capacity: int
    packing: Packing
    seed: int

    @property
    def num_placed(self) -> int:
        """How many items have a place; all of them only if the status is optimal."""
        return sum(offset is not None for offset in self.packing.offsets)

    @property
    def height(self) -> int:
        """The end of the highest item that has a place."""
        offsets = zip(self.items, self.packing.offsets, strict=True)
        return max(
            (offset + item.size for item, offset in offsets if offset is not None), default=0
        )

    def to_document(self) -> dict[str, Any]:
        """The result as plain JSON values, without the offsets."""
        return {
            "buffers": len(self.items),
            "placed": self.num_placed,
            "capacity": self.capacity,
            "height": self.height,
            "peak_load": peak_load(self.items),
            "status": self.packing.status.value,
            "wall_seconds": self.packing.wall_seconds,
            "seed": self.seed,
        }

    def to_json(self) -> str:
        """`to_document` as one line of JSON."""
        return json.dumps(self.to_document())

    def to_csv(self) -> str:
        """The items with their offsets, as MiniMalloc writes them."""
        return write_minimalloc_csv(self.items, self.packing.offsets)

    def to_sentence(self) -> str:
        """The result for people."""
        placed = f"{self.num_placed} of {len(self.items)} buffers placed"
        heights = f"height {self.height} of {self.capacity}, peak load {peak_load(self.items)}"
        status = self.packing.status
        known = {Status.INFEASIBLE: "no packing exists", Status.UNKNOWN: "out of time"}.get(status)
        ending = "" if known is None else f": {known}"
        return f"{placed}, {heights}, {self.packing.wall_seconds:.2f} s{ending}"


def pack_file(
    path: str | Path,
    capacity: int,
    *,
    time_limit_seconds: float = 10.0,
    seed: int = 0,
    workers: int = 1,
) -> PackResult:
    """Packs the items of a MiniMalloc file below `capacity`.

    Raises:
      InputError: for a file or a number that cannot be used.
      WrongPackingError: if what was found is wrong (a bug of ours).
    """
    check_effort(time_limit_seconds, seed, workers)
    items = read_minimalloc_file(path)
    packing = pack(
        items, capacity, time_limit_seconds=time_limit_seconds, seed=seed, workers=workers
    )
    wrong = check_packing(items, capacity, packing.offsets)
    if wrong or packing.complete != (None not in packing.offsets):
        raise WrongPackingError(f"{path}: {'; '.join(wrong) or packing.status}: please report this")
    return PackResult(items, capacity, packing, seed)
