"""BATCH: what else is in a call is none of a batch item's business."""

from __future__ import annotations

from collections.abc import Iterator

from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.companions import Asked, carried_companies, dense_companies, forms_of, must_be_the_same, pieces
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
    must_be_the_same(subject, *_with_gradients(subject, case), bits=False, gradients=True)


@clause("BATCH-1")
@once()
def test_other_sequences_change_nothing_beyond_the_bound(subject: Subject, case: Case) -> None:
    """Shorter and longer sequences, and more room."""
    must_be_the_same(subject, *(carried_companies(subject, case, form) for form in forms_of(subject)), bits=False)


@clause("BATCH-2")
@once()
def test_a_row_is_the_same_beside_other_queries(subject: Subject, case: Case) -> None:
    """One of five, two and three, in each form that is offered."""
    must_be_the_same(subject, *(pieces(subject, case, form) for form in ("", *forms_of(subject))), bits=False)


@clause("BATCH-3")
@once("batch_invariant")
def test_companions_change_no_bit(subject: Subject, case: Case) -> None:
    """Dense: one, four and 21 companions."""
    must_be_the_same(subject, dense_companies(subject, case), bits=True)


@clause("BATCH-3")
@once("batch_invariant")
def test_other_sequences_change_no_bit(subject: Subject, case: Case) -> None:
    """Shorter and longer sequences, other places and more room."""
    must_be_the_same(subject, *(carried_companies(subject, case, form) for form in forms_of(subject)), bits=True)


@clause("BATCH-4")
@once("batch_invariant_backward", "backward")
def test_companions_change_no_bit_of_a_gradient(subject: Subject, case: Case) -> None:
    """Dense, packed and padded."""
    must_be_the_same(subject, *_with_gradients(subject, case), bits=True, gradients=True)


@clause("BATCH-5")
@once("row_invariant")
def test_other_queries_change_no_bit_of_a_row(subject: Subject, case: Case) -> None:
    """One of five, two and three, in each form that is offered."""
    must_be_the_same(subject, *(pieces(subject, case, form) for form in ("", *forms_of(subject))), bits=True)


def _with_gradients(subject: Subject, case: Case) -> Iterator[Asked]:
    yield dense_companies(subject, case, wrt="all", lse="both")
    for form in forms_of(subject):
        if form in ("packed", "padded"):
            yield carried_companies(subject, case, form, wrt="all", lse="both")
