"""The factors of the core: what a case is made of, in the order of the columns of the core arrays."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from attnspec.conformance.problems.factors.factor import Factor, Failing, Offer, whole
from attnspec.conformance.problems.factors.options import BIAS, BIASES, CAUSAL, HOLES, MASK, SCALE
from attnspec.conformance.problems.factors.sizes import HEADS, B, D, E, I, J
from attnspec.spec import OPTIONS
from attnspec.spec.words import DTYPES

if TYPE_CHECKING:
    from attnspec.conformance.problems.case import Case

NOT_DENSE = ("strided", "turned")  # layouts whose last dimension is not dense
NUMBERS_TEXT = re.compile(r"((q|k|v|bias|do|dlse):(zeros|ones|rounded|hot|at\d+)(\+|$))+")
# A backward that raises gives no gradient; the first speaks for all.
GRADIENT = {"call": "GRAD-1", "dq": "GRAD-1", "dk": "GRAD-2", "dv": "GRAD-3", "dbias": "GRAD-4"}
GRADIENT |= {"dalibi_slopes": "ALIBI-11", "dsinks": "SINK-12"}


def spaced(name: str, plain: str) -> Callable[[Case], str]:
    """Says "layout: first block" of a level that is not the simplest."""
    return lambda case: f"{name}: {level.replace('_', ' ')}" if (level := getattr(case, name)) != plain else ""


def layout_form(case: Case, offer: Offer) -> str:
    """A layout whose last dimension is dense, where others are not offered."""
    return case.layout if case.layout not in NOT_DENSE or "strided" in offer.features else "bihd"


def layout_clause(case: Case, failing: Failing) -> str:
    """Of a layout."""
    known = {"contiguous": "", "fused": "LAYOUT-2", "offset": "LAYOUT-2", "expanded": "LAYOUT-3"}
    return known.get(case.layout, "LAYOUT-1")


def values_clause(case: Case, failing: Failing) -> str:
    """Of scores far from zero, and of answers that are no numbers."""
    if case.values not in ("large", "negative") and failing.kind != "nonfinite":
        return ""
    return GRADIENT[failing.output] if failing.gradient else "SOFTMAX-2"


def offered_gradients(case: Case, offer: Offer) -> str:
    """Gradients that are offered, of tensors that are there."""
    if "backward" not in offer.features:
        return "none"
    own = OPTIONS.get(case.wrt)
    if own is not None and (own.gradient not in offer.features or getattr(case, case.wrt) == getattr(type(case), case.wrt)):
        return "all"
    return case.wrt


def read_wrt(text: str) -> str:
    """An option of the call with a gradient of its own. Raises ValueError for what is none."""
    if text in OPTIONS and OPTIONS[text].gradient:
        return text
    raise ValueError(f"wrt can't be {text[:40]!r}; it is {', '.join(WRT.levels)}, or an option of the call that has a gradient")


def wrt_in_words(case: Case) -> str:
    """Which inputs require grad."""
    if case.wrt == "none":
        return "no input requires grad"
    return "" if case.wrt == "all" else f"only {case.wrt if case.wrt in OPTIONS else ' and '.join(case.wrt)} require grad"


def do_clause(case: Case, failing: Failing) -> str:
    """Of a cotangent that is not dense."""
    return {"turned": "GRAD-6", "expanded": "GRAD-6", "one_row": "GRAD-8"}.get(case.do, "") if failing.gradient else ""


def read_numbers(text: str) -> str:
    """What was made of the numbers. Raises ValueError."""
    if not NUMBERS_TEXT.fullmatch(text):
        raise ValueError(f"numbers can't be {text!r}; it is like q:ones+k:rounded+v:at3, of zeros, ones, rounded, hot and at…")
    return text


def numbers_in_words(case: Case) -> str:
    """What was made of the numbers, tensor by tensor."""

    def of(name: str, what: str) -> str:
        return f"{name} one at {what[2:]}, else zero" if what.startswith("at") else f"{name} {what.replace('hot', 'one-hot')}"

    return "numbers: " + ", ".join(of(*part.split(":")) for part in case.numbers.split("+")) if case.numbers else ""


DTYPE = Factor("dtype", DTYPES)
LAYOUT = Factor(
    "layout",
    ("contiguous", "bihd", "fused", "offset", "strided", "turned", "expanded"),
    rule=layout_form,
    examples={"strided": "strided"},
    turn=70,
    says=spaced("layout", "contiguous"),
    named=True,
    probed=True,
    blames={10: layout_clause},
)
VALUES = Factor(
    "values",
    ("normal", "peaked", "needle", "integers", "one_hot", "ties", "large", "negative", "offset", "tiny"),
    turn=100,
    says=spaced("values", "normal"),
    named=True,
    blames={130: values_clause},
)
WRT = Factor(
    "wrt",
    ("all", "q", "k", "v", "bias", "qv", "none"),
    reads=read_wrt,
    rule=offered_gradients,
    turn=90,
    says=wrt_in_words,
    named=True,
    blames={30: lambda case, failing: "GRAD-5" if failing.gradient and case.wrt not in ("all", "none") else ""},
)
DO = Factor(
    "do",
    ("dense", "turned", "expanded", "one_row"),
    rule=lambda case, offer: case.do if case.wrt != "none" else "dense",
    turn=80,
    says=lambda case: "" if case.do == "dense" else f"cotangent: {case.do.replace('_', ' ')}",
    named=True,
    probed=True,
    blames={20: do_clause},
)
SEED = Factor(
    "seed", (0,), array="", reads=whole("seed", 0), turn=170, simpler=lambda case: [{"seed": n} for n in range(min(case.seed, 2))]
)
NUMBERS = Factor("numbers", ("",), array="", reads=read_numbers, says=numbers_in_words)

CORE = (DTYPE, HEADS, B, I, J, D, E, MASK, HOLES, BIAS, BIASES, CAUSAL, SCALE, LAYOUT, VALUES, WRT, DO)
