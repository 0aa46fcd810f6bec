"""DTYPE: the dtype says how the numbers are stored, and nothing else about the answer."""

from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.plan import agrees
from attnspec.spec.words import INPUT_OF


@clause("DTYPE-1", "DTYPE-3")
@agrees("o", form=True)
def test_output_has_the_dtype_and_device_of_the_query(subject: Subject, case: Case) -> None:
    """The judge asks for dtype and device before it looks at a value."""


@clause("DTYPE-2")
@agrees(*INPUT_OF, offering=("backward",), where=lambda case: case.wrt != "none", form=True)
def test_a_gradient_has_the_dtype_and_shape_of_its_input(subject: Subject, case: Case) -> None:
    """For every option, because broadcast operands are where shapes go wrong."""
