"""Where the value at each position comes from: one rule per opcode.

Source: `xla/hlo/analysis/hlo_dataflow_analysis.cc`, in SSA form, with bitcasts forwarding. A
position is an instruction and an index into its shape; at it a value is either defined, or
forwarded from other positions, or (rarely) there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hlo_graphs.call_graph import CallGraph, CallSite, async_part
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloComputation, HloInstruction, ShapeIndex


class Position(NamedTuple):
    """A node of an instruction's result.

    Attributes:
      computation: name of the computation the instruction is in.
      instruction: its name.
      shape_index: into its shape; () is the whole.
    """

    computation: str
    instruction: str
    shape_index: ShapeIndex


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the value at a position comes from.

    Attributes:
      sources: positions whose values it has; none if it is defined here, or nowhere.
      is_defined: a new value begins here.
      is_phi: where several different values arrive, a new one stands for them.
    """

    sources: tuple[Position, ...] = ()
    is_defined: bool = False
    is_phi: bool = False


DEFINED = Origin(is_defined=True)
NOTHING = Origin()
"""No value: XLA tracks none at some nodes of asynchronous operations, such as tokens."""


@dataclass(frozen=True, slots=True)
class Site:
    """An instruction and what surrounds it: the argument of every rule."""

    graph: CallGraph
    computation: HloComputation
    instruction: HloInstruction

    def from_operand(self, number: int, index: ShapeIndex) -> Origin:
        """The value of operand `number` at `index`.

        Raises:
          InputError: if there is no such operand.
        """
        if number >= len(self.instruction.operands):
            raise InputError(
                f"{self.graph.module.path}:{self.instruction.line}: {self.instruction.name} has "
                f"{len(self.instruction.operands)} operands, operand {number} is needed"
            )
        return self.from_local(self.instruction.operands[number], index)

    def from_local(self, name: str, index: ShapeIndex) -> Origin:
        """The value of the instruction `name` of the same computation at `index`."""
        return Origin((Position(self.computation.name, name, index),))

    def from_root(self, computation: str, index: ShapeIndex) -> Origin:
        """The value the computation called `computation` returns at `index`."""
        return Origin((self.root_position(computation, index),))

    def root_position(self, computation: str, index: ShapeIndex) -> Position:
        """`index` at the root of the computation called `computation`."""
        root = self.graph.module.computations[computation].root
        return Position(computation, root.name, index)


Rule = Callable[[Site, ShapeIndex], Origin]


def origin_of(site: Site, index: ShapeIndex) -> Origin:
    """Where the value of `site.instruction` at `index` comes from."""
    opcode = site.instruction.opcode
    rule = _RULES.get(opcode)
    if rule is not None:
        return rule(site, index)
    part = async_part(opcode)
    return _ASYNC_RULES[part](site, index) if part is not None else DEFINED


def _same_index(site: Site, index: ShapeIndex) -> Origin:
    return site.from_operand(0, index)


def _copy(site: Site, index: ShapeIndex) -> Origin:
    """A copy of a tuple is shallow."""
    return site.from_operand(0, index) if index else DEFINED


def _tuple(site: Site, index: ShapeIndex) -> Origin:
    return site.from_operand(index[0], index[1:]) if index else DEFINED


def _get_tuple_element(site: Site, index: ShapeIndex) -> Origin:
    return site.from_operand(0, (int(site.instruction.attributes["index"]), *index))


def _while(site: Site, index: ShapeIndex) -> Origin:
    """What the body returns, or the initial value."""
    body = site.instruction.attributes["body"].removeprefix("%")
    initial = site.from_operand(0, index).sources
    return Origin((site.root_position(body, index), *initial), is_phi=True)


def _conditional(site: Site, index: ShapeIndex) -> Origin:
    roots = [site.root_position(name, index) for name in site.instruction.called_computations]
    return Origin(tuple(roots), is_phi=True)


def _call(site: Site, index: ShapeIndex) -> Origin:
    return site.from_root(site.instruction.called_computations[0], index)


def _parameter(site: Site, index: ShapeIndex) -> Origin:
    """What the callers hand over; loops and branches make phis, several calls a union."""
    callers = site.graph.callers(site.computation.name)
    if not callers:
        return DEFINED
    sources: list[Position] = []
    for call in callers:
        sources.extend(_argument(site, call, index))
    is_phi = any(call.role.kind not in ("call", "async") for call in callers)
    return Origin(tuple(dict.fromkeys(sources)), is_phi=is_phi)


def _argument(site: Site, call: CallSite, index: ShapeIndex) -> tuple[Position, ...]:
    """What reaches the parameter `site` through one call."""
    number = site.instruction.parameter_number or 0
    caller = Site(site.graph, call.caller, call.instruction)
    if call.role.kind == "branch":
        return caller.from_operand(call.role.branch + 1, index).sources
    if call.role.kind == "call":
        return caller.from_operand(number, index).sources
    if call.role.kind == "async":
        return _async_argument(caller, number, index)
    initial = caller.from_operand(0, index).sources
    body = site.graph.module.computations[call.instruction.attributes["body"].removeprefix("%")]
    if body.root is site.instruction:
        return initial
    return (*initial, caller.root_position(body.name, index))


def _async_argument(caller: Site, number: int, index: ShapeIndex) -> tuple[Position, ...]:
    """Operand `number` of the chain, whichever of its links binds it."""
    chain = caller.graph.chain(caller.computation, caller.instruction)
    if chain is None or number >= len(chain.bound_operands):
        return ()
    return caller.from_local(chain.bound_operands[number], index).sources


def _copy_start(site: Site, index: ShapeIndex) -> Origin:
    """(destination, operand, context)."""
    return site.from_operand(0, ()) if index == (1,) else DEFINED


def _copy_done(site: Site, index: ShapeIndex) -> Origin:
    return site.from_operand(0, (0, *index))


def _all_gather_start(site: Site, index: ShapeIndex) -> Origin:
    """((operands), (destinations)); not nested if there is only one."""
    if index[:1] != (0,) or site.instruction.shape.at(index).is_tuple:
        return DEFINED
    return site.from_operand(index[1] if len(index) > 1 else 0, ())


def _collective_done(site: Site, index: ShapeIndex) -> Origin:
    """Of all-gather and collective-permute: the destinations."""
    if site.instruction.shape.at(index).is_tuple:
        return DEFINED
    return site.from_operand(0, (1, *index))


def _collective_permute_start(site: Site, index: ShapeIndex) -> Origin:
    """((operands), (destinations), contexts...); not nested if there is only one."""
    if index[:1] != (0,):
        return DEFINED
    nested = site.instruction.shape.at(index[:1]).is_tuple
    if not nested:
        return site.from_operand(0, ())
    if len(index) == 1:
        return NOTHING
    if is_in_place_permute(site.instruction) or len(site.instruction.operands) == 1:
        return site.from_operand(0, index[1:])
    return site.from_operand(index[1], index[2:])


def is_in_place_permute(instruction: HloInstruction) -> bool:
    """Whether a collective-permute(-start) writes slices into its second operand."""
    return len(instruction.operands) == 4 and "slice_sizes" in instruction.attributes


def _send(site: Site, index: ShapeIndex) -> Origin:
    """(operand, context, token)."""
    return site.from_operand(0, index[1:]) if index[:1] == (0,) else DEFINED


def _recv_done(site: Site, index: ShapeIndex) -> Origin:
    """(received, token)."""
    return site.from_operand(0, index) if index[:1] == (0,) else DEFINED


def _async_start(site: Site, index: ShapeIndex) -> Origin:
    """((operands), result, contexts...): the result is the wrapped computation's."""
    shape = site.instruction.shape.at(index)
    if shape.is_tuple or index[:1] not in ((0,), (1,)):
        return DEFINED
    if index[0] == 1:
        return _async_result(site, index[1:])
    return _async_operand(site, index)


def _async_update(site: Site, index: ShapeIndex) -> Origin:
    shape = site.instruction.shape.at(index)
    if shape.is_tuple:
        return DEFINED
    if index[0] == 0:
        return _async_operand(site, index)
    chain = site.graph.chain(site.computation, site.instruction)
    if index[0] == 1 and chain is not None and chain.wrapped is not None:
        return _async_result(site, index[1:])
    return site.from_operand(0, index) if _previous_has(site, index) else DEFINED


def _async_done(site: Site, index: ShapeIndex) -> Origin:
    if site.instruction.shape.at(index).is_tuple:
        return DEFINED
    chain = site.graph.chain(site.computation, site.instruction)
    if chain is not None and chain.wrapped is not None:
        return _async_result(site, index)
    return site.from_operand(0, (1, *index)) if _previous_has(site, (1, *index)) else DEFINED


def _async_operand(site: Site, index: ShapeIndex) -> Origin:
    """{0, i, ...}: operand i, bound by this link or an earlier one."""
    chain = site.graph.chain(site.computation, site.instruction)
    if chain is None:
        return site.from_operand(0, index)
    number = index[1]
    if not site.instruction.shape.at(index).is_array or number >= len(chain.bound_operands):
        return NOTHING
    return site.from_local(chain.bound_operands[number], index[2:])


def _async_result(site: Site, index: ShapeIndex) -> Origin:
    """The wrapped computation's result; defined here if the text names no computation."""
    chain = site.graph.chain(site.computation, site.instruction)
    if chain is None or chain.wrapped is None:
        return DEFINED
    root = site.graph.module.computations[chain.wrapped].root
    return site.from_root(chain.wrapped, index) if root.shape.at(index).is_array else NOTHING


def _previous_has(site: Site, index: ShapeIndex) -> bool:
    """Whether the link before `site` has a node at `index` (late binding adds nodes)."""
    shape = site.computation.instruction(site.instruction.operands[0]).shape
    for step in index:
        if not shape.is_tuple or step >= len(shape.elements):
            return False
        shape = shape.elements[step]
    return True


_RULES: Mapping[str, Rule] = {
    "bitcast": _same_index,
    "add-dependency": _same_index,
    "domain": _same_index,
    "opt-barrier": _same_index,
    "all-reduce-done": _same_index,
    "copy": _copy,
    "tuple": _tuple,
    "get-tuple-element": _get_tuple_element,
    "while": _while,
    "conditional": _conditional,
    "call": _call,
    "parameter": _parameter,
    "copy-start": _copy_start,
    "copy-done": _copy_done,
    "all-gather-start": _all_gather_start,
    "all-gather-done": _collective_done,
    "collective-permute-start": _collective_permute_start,
    "collective-permute-done": _collective_done,
    "send": _send,
    "recv-done": _recv_done,
}

_ASYNC_RULES: Mapping[str, Rule] = {
    "start": _async_start,
    "update": _async_update,
    "done": _async_done,
}
