"""The factor of SOFTCAP: the cap of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attnspec.conformance.problems.factors.factor import Changes, Factor, Failing, number

if TYPE_CHECKING:
    from attnspec.conformance.problems.case import Case


FAR = 1000.0  # no level is; from here on a cap is asked as one that no score reaches


def read_cap(text: str) -> float:
    """Reads a cap. Raises ValueError for what is none."""
    value = number("softcap")(text)
    if value <= 0:
        raise ValueError(f"softcap can't be {text[:40]!r}; it is a positive finite number, or None for none")
    return value


def softcap_clause(case: Case, failing: Failing) -> str:
    """Of a cap, by what is beside it and by what is wrong."""
    if case.softcap is None:
        return ""
    if failing.gradient and failing.kind != "raised":
        return "SOFTCAP-7"
    if case.softcap >= FAR:
        return "SOFTCAP-8"
    if failing.kind == "nonfinite" or case.values in ("large", "negative"):
        return "SOFTCAP-2"
    if failing.kind == "zero" or case.mask != "none" or case.causal or (case.bias != "none" and case.biases == "inf"):
        return "SOFTCAP-6"
    if case.bias != "none":
        return "SOFTCAP-3" if failing.dialect.softcap_order == "before_bias" else "SOFTCAP-4"
    return "SOFTCAP-10" if case.scale is not None and case.scale < 0 else "SOFTCAP-1"


def other_cap(case: Case) -> Mapping[str, Changes]:
    """With a cap, without it, and with another."""
    if case.softcap is None:
        return {"with a soft cap": {"softcap": 3.0}}
    return {"with another soft cap": {"softcap": 50.0 if case.softcap < 10 else 0.7}, "without its soft cap": {"softcap": None}}


# One far below the scores, one among them, and one that bends the large ones only; two that no half type holds exactly.
SOFTCAP = Factor(
    "softcap",
    (None, 0.7, 3.1, 50.0),
    array="softcap",
    reads=read_cap,
    needs="softcap",
    examples={"softcap": 0.7},
    turn=55,
    says=lambda case: "" if case.softcap is None else f"soft cap {case.softcap}",
    traits={"softcap": lambda case: case.softcap is not None},
    flags={"capped": lambda case: case.softcap is not None},  # a soft cap is given
    conditions=("capped",),
    option=True,
    probed=True,
    another=(3.1, 0.7),
    otherwise=other_cap,
    blames={35: softcap_clause},
)
