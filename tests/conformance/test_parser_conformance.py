"""Our parser against XLA's own, in a child process: it aborts on some modules."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hlo_graphs.errors import HloSyntaxError, InputError
from hlo_graphs.hlo import HloComputation, HloModule
from hlo_graphs.parser import parse_modules, read_module
from tests.hlo_graphs.sample_module import SAMPLE
from tests.shared_data import shared_data_path

NEWER_THAN_JAXLIB = frozenset(
    """
    alias_info_test__GetInPlaceInputOutputPairsTest.AsyncStart_LateBinding
    hlo_alias_analysis_test__HloAliasAnalysisTest.MegachipLateBindingAsyncChain_CrossCall_2
    hlo_alias_analysis_test__HloAliasAnalysisTest.MegachipLateBindingAsyncChain_CrossCall_3
    hlo_alias_analysis_test__HloAliasAnalysisTest.MegachipLateBindingAsyncChain_CrossOperands
    hlo_dataflow_analysis_test__HloDataflowAnalysisTest.AsyncStartValueSet
    hlo_dataflow_analysis_test__HloDataflowAnalysisTest.AsyncUpdateMismatchedContextShape
    hlo_dataflow_analysis_test__HloDataflowAnalysisTest.DUSAndAsyncInLoop
    hlo_dataflow_analysis_test__HloDataflowAnalysisTest.LateBoundAsyncUpdateTypeSafety
    hlo_dataflow_analysis_test__HloDataflowAnalysisTest.LateBoundOperandDataflow
    hlo_dataflow_analysis_test__HloDataflowAnalysisTest.LateBoundOutputBufferDataflow
    hlo_dataflow_analysis_test__HloDataflowAnalysisTest.LateBoundOutputDataflow
    hlo_live_range_test__HloLiveRangeTest.LateBoundAsyncCall
    hlo_live_range_test__HloLiveRangeTest.ProgressiveLateBoundAsyncCall
    hlo_parser_test__HloParserTest.AsyncOps_LateBinding_NonDesugared
    hlo_parser_test__HloParserTest.AsyncOps_ParserGuard
    hlo_parser_test__HloParserTest.AsyncStartWithOneOperand
    hlo_parser_test__HloParserTest.AsyncStartWithZeroOperands
    hlo_parser_test__HloParserTest.AsyncUpdate_AsyncStart_ShapeMismatch_Allowed
    hlo_parser_test__HloParserTest.CompactGteOnTupleRoundTrip
    hlo_parser_test__HloParserTest.CompactGteRoundTrip
    hlo_parser_test__HloParserTest.DesugarParsingTest_CallStart_MixedBinding
    hlo_parser_test__HloParserTest.DesugarParsingTest_CallStart_MultipleUpdates
    hlo_parser_test__HloParserTest.DesugarParsingTest_CallStart_OverBinding
    hlo_parser_test__HloParserTest.DesugarParsingTest_DotStart_WithOneOperand
    hlo_parser_test__HloParserTest.DesugarParsingTest_DotStart_WithZeroOperands
    hlo_parser_test__HloParserTest.DesugarParsingTest_Dot_Incomplete_Chain
    hlo_parser_test__HloParserTest.DesugarParsingTest_FusionStart_Incomplete_Binding
    hlo_parser_test___toplevel_104
    hlo_parser_test___toplevel_106
    hlo_parser_test___toplevel_107
    hlo_parser_test___toplevel_108
    hlo_parser_test___toplevel_123
    hlo_parser_test___toplevel_124
    hlo_parser_test___toplevel_152
    hlo_parser_test___toplevel_153
    hlo_parser_test___toplevel_185
    hlo_parser_test___toplevel_189
    hlo_parser_test___toplevel_191
    hlo_parser_test___toplevel_193
    hlo_parser_test___toplevel_195
    """.split()  # noqa: SIM905 - a column of names reads better
)
"""Syntax of 2026 that jaxlib 0.10.2 does not know: late-binding async, `%a#0`, new attributes."""

SEMANTIC_ONLY = frozenset(
    """
    hlo_parser_test__HloParserTest.AllGatherEmptyDimensions
    hlo_parser_test__HloParserTest.AsyncDoneWrongDefaultThread
    hlo_parser_test__HloParserTest.AsyncUpdateWrongDefaultThread
    hlo_parser_test__HloParserTest.CheckIndexedConditionalDimension
    hlo_parser_test__HloParserTest.CheckIndexedConditionalElementType
    hlo_parser_test__HloParserTest.CheckPredicatedConditionalRequiresTrueAndFalseComputation
    hlo_parser_test__HloParserTest.MeshReplicaGroupAxisIndexOutOfBounds
    hlo_parser_test__HloParserTest.NontupleInfeed
    """.split()  # noqa: SIM905 - a column of names reads better
)
"""Well-formed text whose meaning XLA rejects and ours does not ask about."""

DELIBERATE = {
    "hlo_parser_test__HloParserTest.DesugarParsingTest_CallStart_CallDone_Bind_Output": (
        "an output slot () is filled by the done's shape, where jaxlib 0.10.2 keeps ()"
    )
}
"""Modules whose structure differs from XLA's, and why."""

WITHOUT_SHAPE = (
    "add(a, b)",
    "tuple(a, b, t)",
    "get-tuple-element(t), index=1",
    "compare(a, b), direction=LT",
    "is-finite(b)",
    "select(p, a, b)",
    "clamp(a, b, a)",
    "complex(a, b)",
    "real(c)",
    "imag(a)",
    "exponential(b)",
    "copy(a)",
    "reverse(a), dimensions={0}",
    "transpose(a), dimensions={2,0,1}",
    "concatenate(a, b), dimensions={1}",
    "pad(a, s), padding=1_0x0_2_1x-1_0",
    "reduce(a, s), dimensions={0,2}, to_apply=f",
    "dot(a, b), lhs_batch_dims={0}, rhs_batch_dims={0}, lhs_contracting_dims={2}, "
    "rhs_contracting_dims={2}",
    "call(s, s), to_apply=f",
    "after-all()",
    "partition-id()",
    "replica-id()",
)
"""Right-hand sides that leave out the result's shape."""

_NUMBERED = re.compile(r"(?:\.\d+)+$")


@pytest.fixture(scope="module")
def folder() -> Path:
    return shared_data_path("hlo_conformance")


@pytest.fixture(scope="module")
def xla_answers(folder: Path) -> Mapping[str, Any]:
    """What XLA says of every module, by file stem."""
    return _ask_xla(sorted(folder.glob("*.hlo")))


def _ask_xla(paths: list[Path]) -> Mapping[str, Any]:
    if importlib.util.find_spec("jaxlib") is None:
        pytest.skip("jaxlib, whose parser is the reference, is not installed")
    child = Path(__file__).with_name("xla_parser_child.py")
    command = [sys.executable, str(child), *map(str, paths)]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=300)
    return {Path(path).stem: result for path, result in json.loads(answer.stdout).items()}


def test_accepts_all_that_xla_accepts(folder: Path, xla_answers: Mapping[str, Any]) -> None:
    accepted = [stem for stem, answer in xla_answers.items() if "error" not in answer]
    assert len(accepted) >= 500
    rejected = {}
    for stem in accepted:
        try:
            read_module(folder / f"{stem}.hlo")
        except InputError as error:
            rejected[stem] = str(error)
    assert rejected == {}


def test_finds_the_same_structure_as_xla(folder: Path, xla_answers: Mapping[str, Any]) -> None:
    different = {}
    compared = 0
    for stem, answer in xla_answers.items():
        if "error" in answer:
            continue
        module = read_module(folder / f"{stem}.hlo")
        compared += sum(len(c.instructions) for c in module.computations.values())
        difference = _difference(module, answer["computations"])
        if difference:
            different[stem] = difference
    assert different.keys() == DELIBERATE.keys()
    assert compared > 5000


@pytest.mark.parametrize("folder_name", ["tpu_examples", "hlo_scheduled_cpu"])
def test_finds_the_same_structure_as_xla_in_real_modules(folder_name: str) -> None:
    paths = sorted(shared_data_path(folder_name).glob("*.hlo.gz"))
    answers = _ask_xla(paths)
    assert len(answers) == len(paths) > 0
    for path in paths:
        answer = answers[path.stem]
        assert "error" not in answer, answer
        assert _difference(read_module(path), answer["computations"]) is None


def test_finds_the_same_structure_as_xla_in_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "sample.hlo"
    path.write_text(SAMPLE)
    answer = _ask_xla([path])["sample"]
    assert "error" not in answer, answer
    assert _difference(read_module(path), answer["computations"]) is None


def test_infers_the_shapes_that_xla_infers(tmp_path: Path) -> None:
    paths = []
    for place, right_hand_side in enumerate(WITHOUT_SHAPE):
        path = tmp_path / f"{place}.hlo"
        path.write_text(
            "HloModule m\n"
            "f { x = f32[] parameter(0)\n y = f32[] parameter(1)\n ROOT z = add(x, y) }\n"
            "ENTRY e {\n"
            " a = f32[2,3,4]{2,0,1} parameter(0)\n b = f32[2,3,4]{0,1,2} parameter(1)\n"
            " p = pred[2,3,4]{2,1,0} parameter(2)\n c = c64[3]{0} parameter(3)\n"
            " s = f32[] parameter(4)\n t = (f32[5]{0}, s32[]) parameter(5)\n"
            f" ROOT r = {right_hand_side}\n}}"
        )
        paths.append(path)
    answers = _ask_xla(paths)
    for path in paths:
        answer = answers[path.stem]
        assert "error" not in answer, answer
        assert _difference(read_module(path), answer["computations"]) is None


def test_differs_from_xla_only_where_listed(folder: Path, xla_answers: Mapping[str, Any]) -> None:
    rejected = {stem for stem, answer in xla_answers.items() if "error" in answer}
    for stem in rejected - NEWER_THAN_JAXLIB - SEMANTIC_ONLY:
        with pytest.raises(HloSyntaxError) as caught:
            parse_modules((folder / f"{stem}.hlo").read_text(), stem)
        assert caught.value.location.line >= 1
        assert caught.value.location.column >= 1
    for stem in SEMANTIC_ONLY:
        assert parse_modules((folder / f"{stem}.hlo").read_text(), stem)
    assert rejected >= NEWER_THAN_JAXLIB | SEMANTIC_ONLY


@pytest.mark.parametrize("stem", sorted(NEWER_THAN_JAXLIB))
def test_reads_newer_syntax(folder: Path, stem: str) -> None:
    module = read_module(folder / f"{stem}.hlo")
    for computation in module.computations.values():
        for instruction in computation.instructions:
            assert not instruction.opcode.endswith("-update") or instruction.operands
            assert set(instruction.called_computations) <= set(module.computations)


def _difference(module: HloModule, expected: list[Any]) -> str | None:
    ours = list(module.computations.values())
    if sorted(map(_base, module.computations)) != sorted(_base(c["name"]) for c in expected):
        return f"computations {[c.name for c in ours]} and {[c['name'] for c in expected]}"
    pending = {c["name"]: c for c in expected}
    for computation in ours:
        candidates = [c for c in (pending.get(computation.name),) if c is not None]
        if not candidates or _computation_difference(computation, candidates[0]):
            base = _base(computation.name)
            candidates += [c for c in pending.values() if _base(c["name"]) == base]
        same = [c for c in candidates if not _computation_difference(computation, c)]
        if not same:
            return _computation_difference(computation, candidates[0])
        del pending[same[0]["name"]]
    return None


def _computation_difference(ours: HloComputation, expected: Any) -> str | None:
    """XLA makes names unique in the module; ours are as written, so places are compared."""
    theirs = expected["instructions"]
    if _base(ours.name) != _base(expected["name"]):
        return f"{ours.name} and {expected['name']}"
    if len(ours.instructions) != len(theirs):
        return f"{ours.name}: {[i.name for i in ours.instructions]}, {[i[0] for i in theirs]}"
    our_place = {i.name: place for place, i in enumerate(ours.instructions)}
    their_place = {i[0]: place for place, i in enumerate(theirs)}
    for mine, (name, opcode, operands, text) in zip(ours.instructions, theirs, strict=True):
        if _base(mine.name) != _base(name):
            return f"name {mine.name}, {name}"
        if _enumerator(mine.opcode) != opcode.lower():
            return f"{name}: opcode {mine.opcode}, {opcode}"
        if [our_place[o] for o in mine.operands] != [their_place[o] for o in operands]:
            return f"{name}: operands {mine.operands}, {operands}"
        if not text.startswith(f"%{name} = {mine.shape} "):
            return f"{name}: shape {mine.shape} in {text[:200]}"
    root = expected["root"]
    if root is not None and our_place[ours.root.name] != their_place[root]:
        return f"{ours.name}: root {ours.root.name}, {root}"
    return None


def _base(name: str) -> str:
    return _NUMBERED.sub("", name)


_SHORT_ENUMERATORS = {
    "cosine": "cos",
    "sine": "sin",
    "exponential": "exp",
    "exponential-minus-one": "expm1",
    "log-plus-one": "log1p",
    "count-leading-zeros": "clz",
    "popcnt": "populationcount",
    "opt-barrier": "optimizationbarrier",
}


def _enumerator(opcode: str) -> str:
    """The opcode as XLA's C++ names it, in lower case: kGetTupleElement."""
    return "k" + _SHORT_ENUMERATORS.get(opcode, opcode).replace("-", "")
