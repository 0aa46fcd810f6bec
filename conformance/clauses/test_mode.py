"""MODE: the surroundings of a call never choose another answer."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from attnspec.adapters import device
from attnspec.adapters.within import CAPTURED, COMPILED, STREAM, Within
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import compare, no_answer
from attnspec.conformance.problems.case import OPTIONS, Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import (
    Broken,
    NotApplicable,
    NotOffered,
    may_answer,
    must_agree,
    must_answer,
    must_be_right,
)
from attnspec.conformance.testing.plan import on_cases, once
from attnspec.reference import solve, to_float64
from attnspec.spec import CHOICES, SCALARS


@clause("MODE-1")
@on_cases()
def test_without_gradients_the_answer_is_the_same(subject: Subject, case: Case) -> None:
    """no_grad, inference_mode, and inputs that require no gradient."""
    problem = subject.problem(case).replace(wrt=(), do=None)
    for name in ("no_grad", "inference_mode"):
        must_be_right(subject, problem, f"under {name}", ("o",), within=Within(name))
    must_be_right(subject, problem, "with inputs that require no gradient", ("o",))


@clause("MODE-2")
@on_cases(offering=("module",))
def test_training_and_evaluation_back_and_forth(subject: Subject, case: Case) -> None:
    """Train with dropout, evaluate, train, evaluate; the evaluations are right."""
    problem = subject.problem(case)
    rate = 0.5 if subject.offers("dropout") else 0.0
    for n in (1, 2):
        training, evaluation = (problem.replace(dropout=rate, training=mode) for mode in (True, False))
        subject.run(training)
        must_be_right(subject, evaluation, f"evaluation after training, round {n}", earlier=n * (training,))
    if not rate:
        must_be_right(subject, problem.replace(training=True), "in training mode, without dropout")


@clause("MODE-3")
@on_cases(right=())
def test_all_paths_agree(subject: Subject, case: Case) -> None:
    """The other variants of the same implementation, on the same problem."""
    problem = subject.problem(case)
    compared = 0
    for other in subject.siblings:
        if fit(case, other.adapter) != case or case.dtype not in other.dtypes:
            continue
        try:
            mine, theirs = may_answer(subject, problem), may_answer(other, problem)
        except NotApplicable:  # other clauses speak of refusals
            continue
        compared += 1
        what = f"{subject.label} against {other.label}"
        exact = subject.solve(problem)
        must_agree(subject, mine.o, theirs.o, exact, "o", what)
        for name, gradient in mine.gradients.items():
            if gradient is not None and theirs.gradients.get(name) is not None:
                must_agree(subject, gradient, theirs.gradients[name], exact, name, what)
    if not subject.siblings:
        raise NotOffered("there is one path only")
    if not compared:
        raise NotApplicable


@clause("MODE-3")
@once()
def test_all_paths_make_the_same_choices(subject: Subject, case: Case) -> None:
    """What the variants promised or were seen to do, choice by choice."""
    for other in subject.siblings:
        for name in CHOICES:
            known = all(name in s.sources.keys() - s.assumed for s in (subject, other))
            mine, theirs = getattr(subject.dialect, name), getattr(other.dialect, name)
            if known and mine != theirs:
                what = f"{name} is {mine} with {subject.label}, and {theirs} with {other.label}"
                raise Broken(Finding("relation", "call", what), subject.problem(case))
    if not subject.siblings:
        raise NotOffered("there is one path only")


@clause("MODE-4")
@on_cases(where=lambda case: case.dtype == "float32" and case.values in ("normal", "peaked", "integers"), wrt="none")
def test_autocast_is_only_a_dtype(subject: Subject, case: Case) -> None:
    """float32 inputs that bfloat16 can hold, under autocast to bfloat16: within class C of bfloat16."""
    half = build(replace(case, dtype="bfloat16"), subject.device, ())
    wide = half.replace(**{name: x.float() for name, x in half.inputs().items() if name != "mask"})
    within = Within("autocast")
    answer = must_answer(subject, wide, within, any_dtype=True)
    exact = solve(half, subject.dialect)
    tolerance = exact.tolerance("C")
    finding, _ = compare(to_float64(answer.o), exact.values["o"], tolerance.bound["o"], tolerance.exempt["o"], "o")
    if finding is not None:
        margin = np.where(tolerance.exempt["o"], np.inf, tolerance.bound["o"])
        said = replace(finding, message="under autocast to bfloat16, against class C")
        raise Broken(said, wide, exact, margin=margin, within=within)


@clause("MODE-5")
@once()
def test_compiled_is_the_same_function(subject: Subject, case: Case) -> None:
    """torch.compile of the call, with each offered option: traced in standard, down to generated code from thorough on."""
    if not subject.compiled or case.dtype not in ("float32", "bfloat16"):
        raise NotApplicable
    # Options that are no tensors, and one that is: for a compiler one tensor is like another.
    names = [name for name in (*SCALARS, "mask") if name in OPTIONS and subject.offers(name)]
    changes: list[dict[str, Any]] = [{}, *({name: OPTIONS[name].examples[name]} for name in names)]
    compared = 0
    for change in changes:
        asked = replace(Case(dtype=case.dtype, heads=case.heads, b=2, i=9, j=17, d=case.d, wrt="none"), **change)
        problem = subject.problem(asked)
        exact = subject.solve(problem)
        if subject.judge(subject.run(problem), exact).findings:
            continue  # wrong as it is: another clause says so
        compared += 1
        within = Within(COMPILED + subject.compiled)
        answer = subject.run(problem, within)
        if answer.raised:
            raise NotOffered(f"torch.compile raised {answer.raised}")
        wrong = no_answer(answer, problem)
        if wrong is not None:
            raise Broken(replace(wrong, message=f"compiled, with {change or 'no option'}: {wrong.message}"), problem, exact)
        tolerance = exact.tolerance(subject.required_class(case.dtype))
        finding, _ = compare(to_float64(answer.o), exact.values["o"], tolerance.bound["o"], tolerance.exempt["o"], "o")
        if finding is not None:
            said = replace(finding, message=f"compiled, with {change or 'no option'}")
            raise Broken(said, problem, exact, within=within)
    if not compared:
        raise NotApplicable


@clause("MODE-6")
@on_cases(lse="none")
def test_work_goes_to_the_stream_of_the_caller(subject: Subject, case: Case) -> None:
    """The inputs are written late, on a stream that is not the default one, and hold NaN until then; the call is on that stream."""
    _must_have_streams(subject)
    must_be_right(subject, subject.problem(case), "on another stream than the default one", within=Within(STREAM))


@clause("MODE-7")
@on_cases(lse="none")
def test_a_captured_graph_answers_anew(subject: Subject, case: Case) -> None:
    """The graph is captured with other numbers, and replayed with those and then with the problem's own.

    The output alone where a call and its gradients can't be captured together.
    """
    _must_have_streams(subject)
    whole = subject.problem(case)
    try:
        must_be_right(subject, whole, "as a captured graph, replayed", within=Within(CAPTURED))
    except NotOffered:
        forward = whole.replace(wrt=(), do=None)
        must_be_right(subject, forward, "as a captured graph, replayed, without gradients", within=Within(CAPTURED))


def _must_have_streams(subject: Subject) -> None:
    if device.streams(torch.device(subject.device)) is None:
        raise NotOffered(f"{subject.device} has no streams")
