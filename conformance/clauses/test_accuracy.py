"""ACCURACY: each element within the bound that its class of arithmetic has for these operands."""

from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import Broken, NotApplicable
from attnspec.conformance.testing.plan import agrees, once
from attnspec.conformance.testing.systematic import DTYPES, Meter, generic
from attnspec.spec.words import INPUT_OF, OUTPUTS

GRADIENTS = tuple(INPUT_OF)


@clause("ACCURACY-1")
@agrees("o")
def test_each_output_element_lies_within_its_bound(subject: Subject, case: Case) -> None:
    """Every case."""


@clause("ACCURACY-2")
@agrees(*GRADIENTS, offering=("backward",), where=lambda case: case.wrt != "none")
def test_each_gradient_element_lies_within_its_bound(subject: Subject, case: Case) -> None:
    """Every case that asks for gradients."""


@clause("ACCURACY-3")
@agrees(*OUTPUTS, where=lambda case: case.causal or case.mask != "none" or case.biases == "inf" or case.do == "one_row")
def test_what_must_be_zero_is_zero(subject: Subject, case: Case) -> None:
    """Rows, keys and pairs to which nothing contributes."""


@clause("ACCURACY-4")
@agrees(*OUTPUTS, where=lambda case: case.dtype == "float64")
def test_float64_is_computed_in_float64(subject: Subject, case: Case) -> None:
    """The bound of float64 is 2²⁹ times narrower than that of float32."""


@clause("ACCURACY-5")
@once()
def test_errors_have_no_preferred_sign(subject: Subject, case: Case) -> None:
    """Generic problems only: among equal numbers all roundings are equal."""
    if not subject.generic or case.dtype not in DTYPES:
        raise NotApplicable
    meter, class_ = Meter(), subject.required_class(case.dtype)
    for number in range(subject.generic):
        problem = subject.problem(generic(subject, case.dtype, number))
        answer, exact = subject.run(problem), subject.solve(problem)
        if judge(answer, exact, class_).findings:
            raise NotApplicable  # wrong beyond its bound
        meter.add(answer, exact, class_)
    for key, message in meter.biased().items():
        shown = subject.problem(generic(subject, case.dtype, meter.clearest(key)))
        raise Broken(Finding("biased", key[0], f"{message}; the problem shown here leans furthest"), shown)
