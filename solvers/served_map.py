"""A memory map with, for every copy, the idle time that the simulator serves it from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hlo_graphs.program import Program
from malloc_game.memory_map import Eviction, MemoryMap, Residency, Source
from malloc_game.residency_index import ResidencyIndex
from malloc_game.simulate import CopyService, simulate


@dataclass(frozen=True, slots=True)
class ServedResidency:
    """A residency of a map, and how the copy engine serves its copies.

    Attributes:
      residency: the residency.
      prefetches: its copy, or those of its slices; none if it is produced or carried over.
      evictions: copies out of it.
    """

    residency: Residency
    prefetches: tuple[CopyService, ...]
    evictions: tuple[tuple[Eviction, CopyService], ...]


@dataclass(frozen=True, slots=True)
class ServedMap:
    """A map and how the copy engine serves it.

    Attributes:
      program: the program.
      residencies: by start.
      replaced: per replaced copy's step the transfers that it is.
    """

    program: Program
    residencies: tuple[ServedResidency, ...]
    replaced: Mapping[int, Sequence[CopyService]]

    @staticmethod
    def of(program: Program, memory_map: MemoryMap) -> ServedMap:
        """What the simulator says of a map."""
        services = iter(simulate(program, memory_map).services)
        index = ResidencyIndex(memory_map.residencies)
        prefetches = {
            id(residency): tuple(itertools.islice(services, max(len(residency.parts), 1)))
            for residency in memory_map.residencies
            if residency.source is Source.COPIED
        }
        evictions: dict[int, list[tuple[Eviction, CopyService]]] = {}
        for eviction in memory_map.evictions:
            origin = index.evicted(eviction)
            evictions.setdefault(id(origin), []).append((eviction, next(services)))
        replaced: dict[int, list[CopyService]] = {c.step: [] for c in memory_map.replaced_copies}
        for service in services:
            assert service.copy.replaced_step is not None
            replaced[service.copy.replaced_step].append(service)
        rows = [
            ServedResidency(r, prefetches.get(id(r), ()), tuple(evictions.get(id(r), ())))
            for r in sorted(memory_map.residencies, key=lambda r: (r.start, r.buffer))
        ]
        return ServedMap(program, tuple(rows), replaced)

    def pinned(self) -> list[ServedResidency]:
        """Those of carried parameters that are there at the start, or at the end."""
        last = self.program.num_steps
        carried = {
            row.residency.buffer
            for row in self.residencies
            if row.residency.source is Source.CARRIED
        }
        return [
            row
            for row in self.residencies
            if row.residency.buffer in carried
            and (row.residency.source is Source.CARRIED or row.residency.end > last)
        ]
