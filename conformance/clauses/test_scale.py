"""SCALE: one factor stands before the product of query and key."""

from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.plan import agrees
from attnspec.spec.words import OUTPUTS


@clause("SCALE-1")
@agrees("o", scale=None)
def test_the_default_is_one_over_the_root_of_the_query_width(subject: Subject, case: Case) -> None:
    """With several heads and values of other widths, so that other roots differ."""


@clause("SCALE-2")
@agrees(*OUTPUTS, offering=("scale",), where=lambda case: (case.scale or 0) > 0)
def test_a_given_scale_is_used_once(subject: Subject, case: Case) -> None:
    """In forward and in backward."""


@clause("SCALE-3")
@agrees(*OUTPUTS, offering=("scale",), where=lambda case: case.scale is not None and case.scale <= 0)
def test_zero_and_negative_scales(subject: Subject, case: Case) -> None:
    """Zero is a scale, not the absence of one."""
