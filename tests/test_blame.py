"""The clause of what is too small for a name, and of gradients that drop what the output kept."""

from __future__ import annotations

import pytest
import torch
from judging import judge
from mutants.base import load

from attnspec.adapters import resolve
from attnspec.conformance.diagnosis.blame import blame, rounded_clause
from attnspec.conformance.diagnosis.explain import Explainer
from attnspec.conformance.diagnosis.explained import in_empty_row
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.subject.meeting import meet
from attnspec.reference import solve
from attnspec.spec import Dialect


def test_only_a_row_without_a_key_is_about_rows_without_a_key() -> None:
    """EMPTY-1 was said of a wrong row that had a key, where another row of the problem had none."""
    problem = build(Case(i=2, j=3, d=4, mask="bhij"), "cpu", ())
    problem.mask[...] = torch.tensor([[True, False, True], [False, False, False]])
    exact = solve(problem, Dialect(empty_row="zero"))
    assert [in_empty_row(Finding("value", "o", "", index=(0, 0, row, 1)), exact) for row in (0, 1)] == [False, True]
    assert in_empty_row(Finding("value", "dq", "", index=(0, 0, 0, 1)), exact)


def test_a_row_without_a_key_that_is_off_by_little_is_no_coarse_arithmetic() -> None:
    """The mean of 1024 of 1025 values was called ACCURACY-1: in float32 with products in TF32 it would be allowed."""
    case, finding = Case(j=1025, mask="padding", causal=True), Finding("value", "o", "", class_="T of float32")
    clauses = [blame(case, finding, Dialect(empty_row="uniform"), frozenset(), has_empty) for has_empty in (True, False)]
    assert clauses == ["EMPTY-1", "ACCURACY-1"]


@pytest.mark.parametrize(
    ("dtype", "class_", "names", "clause"),
    [
        ("float64", "A of float32", (), "ACCURACY-4"),
        ("float64", "A of float32", ("float32_scale",), "ACCURACY-4"),
        ("float64", "A of float32", ("mask_ignored",), ""),
        ("float64", "C of bfloat16", (), ""),
        ("float32", "A of float32", (), ""),
    ],
)
def test_what_is_right_in_float32_is_the_arithmetic_of_float64(
    dtype: str, class_: str, names: tuple[str, ...], clause: str
) -> None:
    assert rounded_clause(Finding("value", "dk", "", class_=class_), dtype, names) == clause


@pytest.mark.parametrize("name", ["default_scale_in_float32", "small_constant_in_row_sum"])
@pytest.mark.parametrize(
    "token",
    ["i=5,j=7", "b=2,heads=2/2,i=5,mask=bhij", "i=5,j=7,bias=bhij,layout=bihd", "i=5,causal=True,e=9", "i=1,j=40,values=offset"],
)
def test_a_constant_in_float32_is_one_fault_whatever_the_problem_has_beside(name: str, token: str) -> None:
    subject = meet(resolve(load()[name].make())[0], "cpu", {}, None, None)
    case = Case.parse(f"dtype=float64,{token}")
    found = Explainer(subject).explain(case, subject.judgement(case).findings[0])[0].explained
    assert found.clause == "ACCURACY-4"


@pytest.mark.parametrize(
    ("name", "token", "clause"),
    [
        ("SoftcapIgnoredBesideBias", "j=2,d=1,bias=bhij,softcap=0.7", "SOFTCAP-3"),
        ("SoftcapIgnoredBesideMask", "j=2,d=1,mask=padding,softcap=0.7", "SOFTCAP-6"),
    ],
)
def test_a_cap_that_is_missed_by_little_is_no_coarse_arithmetic(name: str, token: str, clause: str) -> None:
    """Products in TF32 would be allowed as much as a cap bends small scores."""
    subject, case = meet(resolve(load()[name].make())[0], "cpu", {}, None, None), Case.parse(token)
    found = Explainer(subject).explain(case, subject.judgement(case).findings[0])[0].explained
    assert found.clause == clause


@pytest.mark.parametrize(("cap", "clause"), [(3.1, "SOFTCAP-1"), (2048.0, "SOFTCAP-8")])
def test_a_cap_that_no_score_reaches_has_its_clause(cap: float, clause: str) -> None:
    assert blame(Case(softcap=cap), Finding("value", "o", ""), Dialect(), frozenset(), False) == clause


def test_gradients_that_drop_otherwise_than_the_output_are_no_fault_of_forward(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = judge("mutants.implementations.DropoutDrawnAgainForScores", "--clauses=DROPOUT-1", "--impl-dtypes=float32")
    assert {failure.clause for failure in outcome.failures} == {"DROPOUT-2"}
