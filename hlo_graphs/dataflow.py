"""Which value is where: definitions, positions, phis and uses of every value of a module.

Source: `xla/hlo/analysis/hlo_dataflow_analysis.cc`, `xla/service/hlo_value.cc` and
`hlo_phi_graph.cc`. Only computations that run as part of the control flow are looked at; inside a
fusion there are no buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hlo_graphs.call_graph import CallGraph
from hlo_graphs.dataflow_rules import Origin, Position, Site, origin_of
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule, Shape, ShapeIndex


class Use(NamedTuple):
    """An instruction that reads a value.

    Attributes:
      computation: name of the computation the user is in.
      instruction: the user's name.
      operand_number: which operand carries the value.
      operand_index: where in that operand's shape.
    """

    computation: str
    instruction: str
    operand_number: int
    operand_index: ShapeIndex


@dataclass(frozen=True, slots=True)
class HloValue:
    """One value: what one node of one instruction's result defines.

    Attributes:
      id: index into `Dataflow.values`; definitions come first, phis after them.
      computation: name of the computation it is defined in.
      instruction: name of the defining instruction.
      index: which node of the instruction's shape.
      is_phi: it stands for whichever of several values arrives there.
    """

    id: int
    computation: str
    instruction: str
    index: ShapeIndex
    is_phi: bool

    @property
    def position(self) -> Position:
        """Where it is defined."""
        return Position(self.computation, self.instruction, self.index)

    def __str__(self) -> str:
        return f"{self.instruction}{{{','.join(map(str, self.index))}}}"


class _Nodes(NamedTuple):
    """The nodes of a shape in pre-order, and the place of each index in that order."""

    indices: tuple[ShapeIndex, ...]
    place: dict[ShapeIndex, int]


class _Numbering:
    """Numbers all positions: computations in text order, instructions, indices in pre-order."""

    def __init__(self, graph: CallGraph) -> None:
        self.path = graph.module.path
        self.sites: list[tuple[int, Site]] = []
        self._first: dict[tuple[str, str], tuple[int, HloInstruction]] = {}
        self._nodes: dict[int, _Nodes] = {}
        self.count = 0
        for computation in graph.computations:
            for instruction in computation.instructions:
                self.sites.append((self.count, Site(graph, computation, instruction)))
                self._first[computation.name, instruction.name] = (self.count, instruction)
                self.count += len(self.nodes(instruction.shape).indices)

    def nodes(self, shape: Shape) -> _Nodes:
        """The nodes of `shape`; shapes are shared, so remembered by identity."""
        found = self._nodes.get(id(shape))
        if found is None:
            indices = tuple(index for index, _ in shape.subshapes())
            found = _Nodes(indices, {index: i for i, index in enumerate(indices)})
            self._nodes[id(shape)] = found
        return found

    def number(self, position: Position) -> int:
        """The number of `position`.

        Raises:
          InputError: if the module has no such position.
        """
        computation, name, index = position
        first = self._first.get((computation, name))
        if first is None:
            raise InputError(f"{self.path}: no instruction {name} in computation {computation}")
        number, instruction = first
        if not index:
            return number
        place = self.nodes(instruction.shape).place.get(index)
        if place is None:
            raise InputError(
                f"{self.path}:{instruction.line}: {name} has shape {instruction.shape}, "
                f"which has no index {index}: shapes of a caller and its callee differ?"
            )
        return number + place

    def positions(self) -> Iterator[tuple[Site, ShapeIndex]]:
        """Every position, by number."""
        for _, site in self.sites:
            for index in self.nodes(site.instruction.shape).indices:
                yield site, index


class Dataflow:
    """The values of a module.

    Attributes:
      graph: the computations looked at.
      values: by id.
    """

    def __init__(self, graph: CallGraph) -> None:
        self.graph = graph
        self._numbering = _Numbering(graph)
        self._sets, self.values = _solve(self._numbering)

    @property
    def module(self) -> HloModule:
        """What was analysed."""
        return self.graph.module

    def values_at(self, computation: str, instruction: str, index: ShapeIndex) -> tuple[int, ...]:
        """Ids of the values that may be at a position: one, where each computation has one caller.

        Raises:
          InputError: if there is no such position.
        """
        return self._sets[self._numbering.number(Position(computation, instruction, index))]

    @cached_property
    def positions(self) -> tuple[tuple[Position, ...], ...]:
        """Per value everywhere it is, the definition first, then in text order.

        As in XLA, other nodes of the defining instruction itself are left out.
        """
        found: list[list[Position]] = [[value.position] for value in self.values]
        for number, (site, index) in enumerate(self._numbering.positions()):
            computation, instruction = site.computation.name, site.instruction.name
            for value_id in self._sets[number]:
                value = self.values[value_id]
                if value.instruction != instruction or value.computation != computation:
                    found[value_id].append(Position(computation, instruction, index))
        return tuple(tuple(positions) for positions in found)

    @cached_property
    def _users(self) -> dict[tuple[str, str], list[tuple[HloInstruction, int]]]:
        """Per instruction its users, each with the operand number."""
        users: dict[tuple[str, str], list[tuple[HloInstruction, int]]] = {}
        for computation in self.graph.computations:
            for user in computation.instructions:
                for number, operand in enumerate(user.operands):
                    users.setdefault((computation.name, operand), []).append((user, number))
        return users

    @cached_property
    def _users_of_parts(self) -> dict[tuple[str, str], list[tuple[HloInstruction, int]]]:
        """Those of `_users` that may use more than the outermost node of a tuple.

        The elements of a large tuple have hundreds of users that only take one of them out.
        """
        return {
            (computation, operand): [
                (user, number)
                for user, number in users
                if _may_use(user, (0,)) or self.is_root(computation, user.name)
            ]
            for (computation, operand), users in self._users.items()
        }

    @cached_property
    def uses(self) -> tuple[tuple[Use, ...], ...]:
        """Per value its uses as XLA counts them (`xla/service/hlo_value.cc`)."""
        return tuple(tuple(self._uses_of(positions)) for positions in self.positions)

    def _uses_of(self, positions: Sequence[Position]) -> Iterator[Use]:
        roots = {p[:2] for p in positions if self.is_root(p.computation, p.instruction)}
        for computation, instruction, index in positions:
            users = self._users_of_parts if index else self._users
            for user, number in users.get((computation, instruction), ()):
                if _may_use(user, index) or (computation, user.name) in roots:
                    yield Use(computation, user.name, number, index)

    def is_root(self, computation: str, instruction: str) -> bool:
        """Whether the instruction is its computation's root."""
        return self.computation(computation).root.name == instruction

    def computation(self, name: str) -> HloComputation:
        """The computation called `name`."""
        return self.module.computations[name]


def analyse_dataflow(module: HloModule) -> Dataflow:
    """The values of `module`, where they are and who uses them.

    Raises:
      InputError: if calls, shapes and operands of the module contradict each other.
    """
    return Dataflow(CallGraph(module))


def _may_use(user: HloInstruction, index: ShapeIndex) -> bool:
    """Whether `user` reads what its operand holds at `index`, rather than pass it on."""
    if user.opcode in ("tuple", "domain"):
        return False
    return not index or user.opcode not in ("get-tuple-element", "copy")


def _solve(numbering: _Numbering) -> tuple[list[tuple[int, ...]], tuple[HloValue, ...]]:
    """Per position the ids of its values, and the values."""
    origins = [origin_of(site, index) for site, index in numbering.positions()]
    flow = _Flow(origins, [[numbering.number(p) for p in o.sources] for o in origins])
    arriving = flow.arriving()
    defined = [n for n, origin in enumerate(origins) if origin.is_defined]
    phis = sorted({n for nodes in arriving for n in nodes if origins[n].is_phi})
    id_of = {number: i for i, number in enumerate([*defined, *phis])}
    values = tuple(_values(numbering, id_of, phis))
    return [tuple(sorted(id_of[n] for n in nodes)) for nodes in arriving], values


def _values(
    numbering: _Numbering, id_of: dict[int, int], phis: Iterable[int]
) -> Iterator[HloValue]:
    where: dict[int, tuple[Site, ShapeIndex]] = {
        number: place for number, place in enumerate(numbering.positions()) if number in id_of
    }
    is_phi = set(phis)
    for number, value_id in id_of.items():
        site, index = where[number]
        yield HloValue(
            value_id, site.computation.name, site.instruction.name, index, number in is_phi
        )


class _Flow:
    """Resolves forwarding: which definitions and phis arrive at each position."""

    def __init__(self, origins: list[Origin], sources: list[list[int]]) -> None:
        self._origins = origins
        self._sources = sources
        self._end: list[int | None] = [None] * len(origins)

    def arriving(self) -> list[tuple[int, ...]]:
        """Per position the definitions and surviving phis whose value it has."""
        phis = [n for n, origin in enumerate(self._origins) if origin.is_phi]
        inputs = {n: self._expand(self._sources[n]) for n in phis}
        kept = simplify_phis(inputs)
        known: dict[int, tuple[int, ...]] = {}
        result = []
        for number in range(len(self._origins)):
            end = self._end_of(number)
            if end not in known:
                nodes = self._expand([end])
                known[end] = tuple(sorted({kept.get(node, node) for node in nodes}))
            result.append(known[end])
        return result

    def _end_of(self, number: int) -> int:
        """Follows single sources back to a definition, phi, union, or nothing."""
        path = []
        end = self._end[number]
        while end is None:
            path.append(number)
            if self._origins[number].is_phi or len(self._sources[number]) != 1:
                end = number
            else:
                number = self._sources[number][0]
                end = self._end[number]
        for passed in path:
            self._end[passed] = end
        return end

    def _expand(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """The definitions and phis behind positions, through unions of several callers."""
        found: dict[int, None] = {}
        seen: set[int] = set()
        pending = [self._end_of(n) for n in numbers]
        while pending:
            number = pending.pop()
            if number in seen:
                continue
            seen.add(number)
            origin = self._origins[number]
            if origin.is_defined or origin.is_phi:
                found[number] = None
            else:
                pending.extend(self._end_of(n) for n in self._sources[number])
        return tuple(found)


def simplify_phis(inputs: dict[int, tuple[int, ...]]) -> dict[int, int]:
    """Which node each phi stands for, once superfluous phis are gone (PhiGraph::Optimize).

    A phi goes if, following phis backwards, only one non-phi is ever reached, or if all its
    inputs but itself are the same node.

    Args:
      inputs: per phi the nodes that flow into it; nodes that are no keys are no phis.

    Returns:
      Per phi the node that replaces it, itself if it stays.
    """
    kept = {phi: phi for phi in inputs}
    users: dict[int, list[int]] = {}
    for phi, nodes in inputs.items():
        for node in nodes:
            users.setdefault(node, []).append(phi)
    kept.update(_sole_definitions(inputs, users))
    pending = [phi for phi, node in kept.items() if phi == node]
    while pending:
        phi = pending.pop()
        others = {_final(kept, node) for node in inputs[phi]} - {phi}
        if kept[phi] == phi and len(others) == 1:
            kept[phi] = others.pop()
            moved = users.get(phi, [])
            users.setdefault(kept[phi], []).extend(moved)
            pending.extend(moved)
    return {phi: _final(kept, phi) for phi in inputs}


def _final(kept: dict[int, int], node: int) -> int:
    while kept.get(node, node) != node:
        node = kept[node]
    return node


def _sole_definitions(
    inputs: dict[int, tuple[int, ...]], users: dict[int, list[int]]
) -> dict[int, int]:
    """Phis that reach a single non-phi, with it."""
    reached: dict[int, set[int]] = {phi: set() for phi in inputs}
    pending = [(node, phi) for phi, nodes in inputs.items() for node in nodes]
    pending = [(node, phi) for node, phi in pending if node not in inputs]
    while pending:
        definition, phi = pending.pop()
        if definition in reached[phi] or len(reached[phi]) > 1:
            continue
        reached[phi].add(definition)
        pending.extend((definition, user) for user in users.get(phi, ()))
    return {phi: next(iter(found)) for phi, found in reached.items() if len(found) == 1}
