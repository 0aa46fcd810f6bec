"""Which clause a reduced failure breaks: what is left of the problem says what the failure needs."""

from __future__ import annotations

from collections.abc import Callable

from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.factors.core import GRADIENT
from attnspec.conformance.problems.factors.factor import Failing
from attnspec.spec import CHOICES, Dialect

FORM_CLAUSE = {"type": "SHAPE-1", "shape": "SHAPE-1", "dtype": "DTYPE-1", "device": "DTYPE-3", "changed": "PURITY-1"}
ALONE = frozenset({"SOFTMAX-7"})  # a SHOULD that no MUST outranks: of what it blames nothing else asks for more (EMPTY-1)
ROUNDED = ("float32_", "row_sum_plus_")  # mistakes that are too small for anything but float64 to show


def choice_clause(finding: Finding, dialect: Dialect, observed: frozenset[str]) -> str:
    """The clause of the choice that explains an answer: the promise, or where there was none that it be one choice always."""
    choice = CHOICES[finding.hint.partition("=")[0]]
    return choice.consistent if choice.name in observed else choice.stated[getattr(dialect, choice.name)]


def accuracy_clause(finding: Finding, dtype: str, plain: bool) -> str:
    """The clause of a value that would be right in coarser arithmetic, or ''.

    In the arithmetic of another dtype only where nothing else is left to blame: small semantic errors fit in there, too.
    """
    if finding.kind != "value" or not finding.class_ or not (plain or finding.class_.endswith(f" of {dtype}")):
        return ""
    if dtype == "float64":
        return "ACCURACY-4"
    return "ACCURACY-1" if not finding.of_gradient else "ACCURACY-2"


def rounded_clause(finding: Finding, dtype: str, names: tuple[str, ...]) -> str:
    """ACCURACY-4 for an answer in float64 that is right in class A of float32 and has no name, or one of :data:`ROUNDED`; or ''.

    What is so small is the arithmetic or a constant of it, whatever the problem has beside.
    """
    small = dtype == "float64" and finding.kind == "value" and finding.class_ == "A of float32" and not finding.hint
    return "ACCURACY-4" if small and all(name.startswith(ROUNDED) for name in names) else ""


def blame(
    case: Case, finding: Finding, dialect: Dialect, observed: frozenset[str], has_empty: bool, outranked: bool = False
) -> str:
    """The id of the clause that a reduced case breaks.

    `observed` are the choices that nobody promised, `has_empty` whether the case has a row without a visible key, `outranked`
    whether the failure is in a row whose visible keys all have the lowest number, beside hidden ones.
    """
    if finding.hint:  # another dialect explains the answer
        return choice_clause(finding, dialect, observed)
    gradient = finding.of_gradient
    if finding.kind in FORM_CLAUSE:
        return "DTYPE-2" if gradient else "LSE-5" if finding.output == "lse" else FORM_CLAUSE[finding.kind]
    plain = case.keys <= 8 and all(trait.startswith(("values=", "e≠d", "b>1", "h>1", "i<j", "i>j")) for trait in case.traits())
    # A row without a key that is off by little has no fault of arithmetic that other rows have not: what is left would lack it.
    accuracy = "" if has_empty else accuracy_clause(finding, case.dtype, plain)
    failing = Failing("raised" if finding.ended else finding.kind, finding.output, gradient, has_empty, dialect, outranked)
    return accuracy or next(filter(None, (clause(case, failing) for _, clause in IN_TURN)))


def _empty(case: Case, failing: Failing) -> str:
    """Of a row without a visible key; where causal made it, a refusal is of causal."""
    if not failing.has_empty or (failing.kind == "raised" and case.causal):
        return ""
    return "EMPTY-3" if failing.gradient else "EMPTY-1"


def _nothing_left(case: Case, failing: Failing) -> str:
    """Of a problem that has nothing special."""
    return "SHAPE-2" if case.keys > 4 or case.i > 4 else "SOFTMAX-1"


# Who is asked for the clause, beside the factors: each with its number among theirs.
BESIDE: tuple[tuple[int, Callable[[Case, Failing], str]], ...] = (
    (40, lambda case, failing: "GRAD-4" if failing.output == "dbias" else ""),
    (60, _empty),
    (150, lambda case, failing: GRADIENT[failing.output] if failing.gradient else ""),
    (160, lambda case, failing: "SHAPE-2" if failing.kind == "raised" else ""),
    (1000, _nothing_left),
)
IN_TURN = sorted((*BESIDE, *(who for own in FACTORS.values() for who in own.blames.items())), key=lambda who: who[0])
