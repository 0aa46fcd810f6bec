"""BATCH: what else is in a call is none of a batch item's business."""

from __future__ import annotations

from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.companions import carried_companies, dense_companies, forms_of, must_be_the_same, pieces
from attnspec.conformance.testing.outcomes import NotApplicable
from attnspec.conformance.testing.plan import once


@clause("BATCH-1")
@once()
def test_companions_change_nothing_beyond_the_bound(subject: Subject, case: Case) -> None:
    """Dense: one, four and 21 companions."""
    must_be_the_same(subject, dense_companies(subject, case), bits=False)


@clause("BATCH-1")
@once("backward")
def test_companions_change_no_gradient_beyond_the_bound(subject: Subject, case: Case) -> None:
    """Dense, packed and padded."""
    must_be_the_same(subject, dense_companies(subject, case, wrt="all", lse="both"), bits=False, gradients=True)
    for form in _with_gradients(subject):
        must_be_the_same(subject, carried_companies(subject, case, form, wrt="all", lse="both"), bits=False, gradients=True)


@clause("BATCH-1")
@once()
def test_other_sequences_change_nothing_beyond_the_bound(subject: Subject, case: Case) -> None:
    """Shorter and longer sequences, and more room."""
    for form in _forms(subject):
        must_be_the_same(subject, carried_companies(subject, case, form), bits=False)


@clause("BATCH-2")
@once()
def test_a_row_is_the_same_beside_other_queries(subject: Subject, case: Case) -> None:
    """One of five, two and three, in each form that is offered."""
    for form in ("", *forms_of(subject)):
        must_be_the_same(subject, pieces(subject, case, form), bits=False)


@clause("BATCH-3")
@once("batch_invariant")
def test_companions_change_no_bit(subject: Subject, case: Case) -> None:
    """Dense: one, four and 21 companions."""
    must_be_the_same(subject, dense_companies(subject, case), bits=True)


@clause("BATCH-3")
@once("batch_invariant")
def test_other_sequences_change_no_bit(subject: Subject, case: Case) -> None:
    """Shorter and longer sequences, other places and more room."""
    for form in _forms(subject):
        must_be_the_same(subject, carried_companies(subject, case, form), bits=True)


@clause("BATCH-4")
@once("batch_invariant_backward", "backward")
def test_companions_change_no_bit_of_a_gradient(subject: Subject, case: Case) -> None:
    """Dense, packed and padded."""
    must_be_the_same(subject, dense_companies(subject, case, wrt="all", lse="both"), bits=True, gradients=True)
    for form in _with_gradients(subject):
        must_be_the_same(subject, carried_companies(subject, case, form, wrt="all", lse="both"), bits=True, gradients=True)


@clause("BATCH-5")
@once("row_invariant")
def test_other_queries_change_no_bit_of_a_row(subject: Subject, case: Case) -> None:
    """One of five, two and three, in each form that is offered."""
    for form in ("", *forms_of(subject)):
        must_be_the_same(subject, pieces(subject, case, form), bits=True)


def _forms(subject: Subject) -> list[str]:
    if not forms_of(subject):
        raise NotApplicable
    return forms_of(subject)


def _with_gradients(subject: Subject) -> list[str]:
    return [form for form in forms_of(subject) if form in ("packed", "padded")]
