"""The factor of LSE: whether the log of each row's sum is asked for, and which cotangents there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attnspec.conformance.problems.factors import window
from attnspec.conformance.problems.factors.factor import Changes, Factor, Failing, Offer

if TYPE_CHECKING:
    from attnspec.conformance.problems.case import Case

GRADED = ("both", "alone")  # levels with a cotangent of the lse


def written(returned: bool) -> str:
    """The level of a problem without a cotangent of the lse."""
    return "returned" if returned else "none"


def sees_behind(case: Case) -> bool:
    """Whether queries may see keys behind them.

    Where they don't, all forms of ALiBi give one output: a kernel may take another form there, and its lse is then off by what that
    adds to a whole row, which is no fault of its output (flash-attention takes the column's form under causal alone).
    """
    sides = window.meant(case.window)
    return not case.causal and (sides is None or sides[1] is None or sides[1] > 0)


def offered(case: Case, offer: Offer) -> str:
    """The level as far as it is offered.

    Values have no gradient from the lse alone.
    """
    if case.lse == "none" or "lse" not in offer.features or (case.alibi_slopes != "none" and not sees_behind(case)):
        return "none"
    if case.lse in GRADED and ("lse_grad" not in offer.features or case.wrt == "none"):
        return "returned"
    return "both" if case.lse == "alone" and case.wrt in ("v", "qv") else case.lse


def in_words(case: Case) -> str:
    """What is asked for beside the output."""
    return {
        "none": "",
        "returned": "with its lse",
        "both": "with its lse, which has a cotangent",
        "alone": "with its lse, which alone has a cotangent",
    }[case.lse]


def lse_clause(case: Case, failing: Failing) -> str:
    """Of an lse, or of what asking for it changes."""
    if failing.output == "lse" and failing.kind != "raised":
        if failing.kind in ("type", "shape", "dtype", "device", "missing"):
            return "LSE-5"
        return "LSE-18" if case.sinks != "none" else "LSE-4" if failing.has_empty else "LSE-1"
    if case.lse == "none":
        return ""
    if failing.gradient and case.lse in GRADED:
        return "LSE-14" if failing.has_empty else "LSE-12"
    return "LSE-7"


def other_lse(case: Case) -> Mapping[str, Changes]:
    """With the lse and without it."""
    if case.lse == "none":
        return {"with its lse": {"lse": "returned"}}
    return {"without its lse": {"lse": "none"}}


LSE = Factor(
    "lse",
    ("none", "returned", "both", "alone"),
    array="lse",
    given=lambda case: case.lse != "none",
    found=written,
    needs="lse",
    rule=offered,
    examples={"lse": "returned"},  # to drop its cotangent in silence is ordinary: who offers no gradient is not asked for one
    turn=53,
    says=in_words,
    traits={
        "lse": lambda case: case.lse != "none",
        "dlse": lambda case: case.lse in GRADED,
    },
    flags={"with_lse": lambda case: case.lse != "none"},  # the lse is asked for
    conditions=("with_lse",),
    option=True,
    probed=True,
    another=("both", "returned"),
    otherwise=other_lse,
    blames={5: lse_clause},
)
