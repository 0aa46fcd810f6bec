"""Which clause a reduced failure breaks: what is left of the problem says what the failure needs."""

from __future__ import annotations

from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.spec import CHOICES, Dialect

# A backward that raises gives no gradient; the first speaks for all.
GRADIENT = {"call": "GRAD-1", "dq": "GRAD-1", "dk": "GRAD-2", "dv": "GRAD-3", "dbias": "GRAD-4"}
MASK_FORMS = {"padding": "MASK-2", "bhij": "MASK-1"}
FORM_CLAUSE = {"type": "SHAPE-1", "shape": "SHAPE-1", "dtype": "DTYPE-1", "device": "DTYPE-3", "changed": "PURITY-1"}
ROUNDED = ("float32_", "row_sum_plus_")  # mistakes that are too small for anything but float64 to show
LAYOUT_CLAUSE = {"fused": "LAYOUT-2", "offset": "LAYOUT-2", "expanded": "LAYOUT-3"}


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
    return "ACCURACY-1" if finding.output == "o" else "ACCURACY-2"


def rounded_clause(finding: Finding, dtype: str, names: tuple[str, ...]) -> str:
    """ACCURACY-4 for an answer in float64 that is right in class A of float32 and has no name, or one of :data:`ROUNDED`; or ''.

    What is so small is the arithmetic or a constant of it, whatever the problem has beside.
    """
    small = dtype == "float64" and finding.kind == "value" and finding.class_ == "A of float32" and not finding.hint
    return "ACCURACY-4" if small and all(name.startswith(ROUNDED) for name in names) else ""


def blame(case: Case, finding: Finding, dialect: Dialect, observed: frozenset[str], has_empty: bool) -> str:
    """The id of the clause that a reduced case breaks.

    `observed` are the choices that nobody promised, `has_empty` whether the case has a row without a visible key.
    """
    if finding.hint:  # another dialect explains the answer
        return choice_clause(finding, dialect, observed)
    gradient = finding.of_gradient
    if finding.kind in FORM_CLAUSE:
        return "DTYPE-2" if gradient else FORM_CLAUSE[finding.kind]
    plain = case.keys <= 8 and all(trait.startswith(("values=", "e≠d", "b>1", "h>1", "i<j", "i>j")) for trait in case.traits())
    # A row without a key that is off by little has no fault of arithmetic that other rows have not: what is left would lack it.
    accuracy = "" if has_empty and not gradient else accuracy_clause(finding, case.dtype, plain)
    return accuracy or _by_what_is_left(case, finding, dialect, has_empty, gradient)


def _by_what_is_left(case: Case, finding: Finding, dialect: Dialect, has_empty: bool, gradient: bool) -> str:
    if finding.kind == "raised":  # options that are refused together, or here; not what would have come out
        if case.causal and (case.mask != "none" or case.bias != "none"):
            return "CAUSAL-6"
        has_empty = has_empty and not case.causal
    if case.layout != "contiguous":
        return LAYOUT_CLAUSE.get(case.layout, "LAYOUT-1")
    if gradient and case.do in ("turned", "expanded"):
        return "GRAD-6"
    if gradient and case.do == "one_row":
        return "GRAD-8"
    if gradient and case.wrt not in ("all", "none"):
        return "GRAD-5"
    if finding.output == "dbias":
        return "GRAD-4"
    if case.bias != "none" and case.biases == "lowest":
        return "SOFTMAX-2"
    if has_empty:
        return "EMPTY-3" if gradient else "EMPTY-1"
    if case.scale is not None and case.scale <= 0:
        return "SCALE-3"
    if case.causal:
        if case.mask != "none" or case.bias != "none":
            return "CAUSAL-6"
        if case.i == case.keys:
            return "CAUSAL-1"
        return "CAUSAL-2" if dialect.causal_alignment == "bottom_right" else "CAUSAL-3"
    if case.mask != "none":
        if gradient and finding.kind == "zero":
            return "MASK-6"
        return MASK_FORMS.get(case.mask, "MASK-3")
    if case.bias != "none":
        by_values = {"inf": "BIAS-3", "shift": "BIAS-4"}
        return by_values.get(case.biases) or ("BIAS-1" if case.bias in ("bhij", "ij") else "BIAS-2")
    if case.sharing != "mha":
        if finding.output in ("dk", "dv"):
            return "SHARED-4"
        return {"mqa": "SHARED-1", "gqa": "SHARED-2", "shared_kv": "SHARED-3"}[case.sharing]
    if case.scale is not None:
        return "SCALE-2"
    if case.values in ("large", "negative") or finding.kind == "nonfinite":
        return GRADIENT[finding.output] if gradient else "SOFTMAX-2"
    if case.width != case.d:
        return "SHAPE-3"
    if gradient:
        return GRADIENT[finding.output]
    if finding.kind == "raised":
        return "SHAPE-2"
    if case.b > 1:
        return "SHAPE-5"
    if case.h > 1:
        return "SCALE-1" if finding.output == "o" and case.d > 1 and case.b == 1 else "SHAPE-5"
    return "SHAPE-2" if case.keys > 4 or case.i > 4 else "SOFTMAX-1"
