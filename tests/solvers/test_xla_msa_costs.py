"""How steps' times are read, and OpenXLA's own example of a roofline (`cost_analysis_test.cc`)."""

from __future__ import annotations

from dataclasses import replace

from hlo_graphs.costs import analyse_costs
from hlo_graphs.parser import parse_module
from hlo_graphs.program import Access, AccessKind, Instruction
from hlo_graphs.shapes import byte_size_of
from solvers.msa_options import ElapsedModel, MsaOptions
from solvers.msa_step_costs import StepCost
from tests.conformance.msa_hlo_costs import TICKS_PER_SECOND, RooflineHloCosts

READ = Access(0, AccessKind.READ, 40, 40, (10, 60))
WRITE = Access(1, AccessKind.WRITE, 20, 20, (0, 30))
MATMUL = Instruction("dot", "fusion", "", 1.0, (100, 20), (READ, WRITE))
COPY = Instruction("copy", "copy", "", 1.0, (20, 20), (READ, WRITE))


def cost(instruction: Instruction, **changes: object) -> StepCost:
    return StepCost.of(instruction, replace(MsaOptions(), **changes))  # type: ignore[arg-type]


def test_compute_is_what_only_one_lane_has_where_it_is_not_stated() -> None:
    assert cost(MATMUL).compute_ticks == 80
    assert cost(COPY).compute_ticks == 0
    assert cost(MATMUL).benefit(READ) == 60 - 80
    assert cost(COPY).benefit(READ) == 40


def test_compute_that_is_stated_decides_what_is_memory_bound() -> None:
    assert cost(replace(MATMUL, compute_ticks=50)).benefit(READ) == 40
    assert cost(replace(MATMUL, compute_ticks=70)).benefit(READ) == 60 - 70
    assert cost(replace(MATMUL, compute_ticks=50)).elapsed_ticks == 60


def test_half_of_an_update_is_read() -> None:
    update = replace(READ, kind=AccessKind.UPDATE)
    assert cost(replace(COPY, accesses=(update, WRITE))).benefit(update) == 20


def test_elapsed_by_roofline_or_by_the_program() -> None:
    assert cost(COPY).elapsed_ticks == 60
    assert cost(COPY).reduction(READ) == 40
    by_program = cost(COPY, elapsed_model=ElapsedModel.PROGRAM)
    assert by_program.elapsed_ticks == 20 + 90
    assert by_program.reduction(READ) == 110 - 50


ADD = """HloModule m, is_scheduled=true
ENTRY e {
  p0 = f32[2,4] parameter(0)
  p1 = f32[2,4] parameter(1)
  ROOT add = f32[2,4] add(p0, p1)
}"""


def test_openxlas_roofline_example() -> None:
    """96 bytes at 32 B/s: 3 s; an operand in memory at 128 B/s saves 0.75 s."""
    module = parse_module(ADD, "add.hlo")
    costs = RooflineHloCosts(analyse_costs(module, byte_size_of), 32.0, 128.0, 128.0, 8.0, 16.0)
    add = module.entry.instruction("add")
    assert costs.elapsed_ticks("e", add) == 3 * TICKS_PER_SECOND
    assert costs.operand_reduction("e", add, 0, ()) == 0.75 * TICKS_PER_SECOND
    assert costs.operand_benefit("e", add, 0, ()) == 0.75
    assert costs.output_benefit("e", add, ()) == 0.75
    assert costs.elapsed_ticks("e", module.entry.instruction("p0")) == 0
