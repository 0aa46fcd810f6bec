"""The factors of the core that are options of a call: mask, bias, causal, scale, and what a mask and a bias hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attnspec.conformance.problems.factors.factor import Changes, Factor, Failing, Offer, number

if TYPE_CHECKING:
    from attnspec.conformance.problems.case import Case


def mask_form(case: Case, offer: Offer) -> str:
    """A form of the mask that is offered, as many of its axes as there are."""
    mask = case.mask
    if mask == "rank3" and "rank3" not in offer.features:
        mask = "hij"
    if mask not in ("none", "padding") and "mask" not in offer.features:
        mask = "padding"
    if mask == "padding" and "key_padding" not in offer.features:
        mask = "bj" if "mask" in offer.features else "none"
    return mask


def mask_in_words(case: Case) -> str:
    """The form of a mask, and what it hides."""
    if case.mask == "none":
        return ""
    form = {"padding": "key padding (b j)", "rank3": "mask (h i j)"}.get(case.mask) or f"mask over {case.mask}"
    return form + {"random": "", "all": ", all True"}.get(case.holes, f", {case.holes.replace('_', ' ')}")


def mask_clause(case: Case, failing: Failing) -> str:
    """Of a mask in its form."""
    if case.mask == "none":
        return ""
    if failing.gradient and failing.kind == "zero":
        return "MASK-6"
    return {"padding": "MASK-2", "bhij": "MASK-1"}.get(case.mask, "MASK-3")


def other_mask(case: Case) -> Mapping[str, Changes]:
    """With the mask or without it, and with another."""
    if case.mask == "none":
        return {"with a mask": {"mask": "padding"}}
    holes = {"holes": "random" if case.holes != "random" else "prefix", "seed": case.seed + 1}
    return {"without its mask": {"mask": "none"}, "with another mask": holes}


def bias_form(case: Case, offer: Offer) -> str:
    """A form of the bias that is offered."""
    if "bias" not in offer.features:
        return "none"
    return "hij" if case.bias == "rank3" and "rank3" not in offer.features else case.bias


def bias_in_words(case: Case) -> str:
    """The form of a bias, and its numbers."""
    return "" if case.bias == "none" else f"bias over {case.bias}" + ("" if case.biases == "normal" else f", {case.biases}")


def bias_clause(case: Case, failing: Failing) -> str:
    """Of a bias, by its numbers or its form."""
    if case.bias == "none":
        return ""
    by_values = {"inf": "BIAS-3", "shift": "BIAS-4"}
    return by_values.get(case.biases) or ("BIAS-1" if case.bias in ("bhij", "ij") else "BIAS-2")


def lowest_clause(case: Case, failing: Failing) -> str:
    """Of the lowest number: a SHOULD where it has to outrank what is hidden."""
    if case.bias == "none" or case.biases != "lowest":
        return ""
    return "SOFTMAX-7" if failing.outranked else "SOFTMAX-2"


def other_bias(case: Case) -> Mapping[str, Changes]:
    """With a bias or without it."""
    return {"with a bias": {"bias": "bhij"}} if case.bias == "none" else {"without its bias": {"bias": "none"}}


def beside(case: Case) -> bool:
    """Whether causal has a mask or a bias beside it."""
    return case.mask != "none" or case.bias != "none"


def refused_beside(case: Case, failing: Failing) -> str:
    """Of options that are refused together: not what would have come out."""
    return "CAUSAL-6" if failing.kind == "raised" and case.causal and beside(case) else ""


def causal_clause(case: Case, failing: Failing) -> str:
    """Of causal, by what is beside it and by lengths."""
    if not case.causal:
        return ""
    if beside(case):
        return "CAUSAL-6"
    if case.i == case.keys:
        return "CAUSAL-1"
    return "CAUSAL-2" if failing.dialect.causal_alignment == "bottom_right" else "CAUSAL-3"


MASK = Factor(
    "mask",
    ("none", "padding", "bhij", "ij", "bj", "hij", "bij", "bhj", "bhi", "j", "rank3"),
    alike={"bhj": ("bhj", "hj"), "bhi": ("bhi", "hi", "bi", "i", "bh", "h", "b", "one")},
    rule=mask_form,
    examples={"mask": "bhij", "rank3": "rank3", "key_padding": "padding"},
    turn=30,
    says=mask_in_words,
    named=True,
    conditions=('mask != "none"',),
    option=True,
    probed=True,
    otherwise=other_mask,
    blames={90: mask_clause},
)
HOLES = Factor(
    "holes",
    ("random", "prefix", "suffix", "band", "single", "first_block", "empty_row", "all"),
    alike={"first_block": ("first_block", "inner_blocks")},
    of=MASK,
    turn=40,
    named=True,
)
BIAS = Factor(
    "bias",
    ("none", "bhij", "ij", "hij", "bj", "hj", "bhi", "rank2", "rank3"),
    alike={"hij": ("hij", "bij"), "bj": ("bj", "bhj"), "hj": ("hj", "j"), "bhi": ("bhi", "hi", "bi", "i", "bh", "h", "b", "one")},
    rule=bias_form,
    examples={"bias": "bhij"},
    turn=10,
    says=bias_in_words,
    named=True,
    conditions=('bias != "none"',),
    option=True,
    probed=True,
    otherwise=other_bias,
    blames={100: bias_clause},
)
BIASES = Factor(
    "biases",
    ("normal", "steep", "inf", "shift", "lowest"),
    of=BIAS,
    turn=20,
    named=True,
    blames={50: lowest_clause},
)
CAUSAL = Factor(
    "causal",
    (False, True),
    needs="causal",
    examples={"causal": True},
    turn=50,
    says=lambda case: "causal" if case.causal else "",
    foremost=True,
    named=True,
    flags={"causal": lambda case: case.causal},
    conditions=("causal", "not causal"),
    option=True,
    probed=True,
    otherwise=lambda case: {"causal" if not case.causal else "without causal": {"causal": not case.causal}},
    blames={0: refused_beside, 80: causal_clause},
)
SCALE = Factor(
    "scale",
    (None, 1.0, 0.3, -0.5, 0.0),
    reads=number("scale"),
    needs="scale",
    examples={"scale": 0.3},
    turn=60,
    says=lambda case: "" if case.scale is None else f"scale {case.scale}",
    traits={"scale": lambda case: case.scale is not None, "scale≤0": lambda case: case.scale is not None and case.scale <= 0},
    numbers={"scale": lambda case: case.d**-0.5 if case.scale is None else case.scale},
    flags={"scaled": lambda case: case.scale is not None},  # a scale is given
    conditions=("scale <= 0", "scale < 0", "scaled", "not scaled"),
    option=True,
    probed=True,
    another=(0.7, 0.3),
    otherwise=lambda case: {"with another scale": {"scale": 0.3 if case.scale is None else None}},
    blames={
        70: lambda case, failing: "SCALE-3" if case.scale is not None and case.scale <= 0 else "",
        120: lambda case, failing: "SCALE-2" if case.scale is not None else "",
    },
)
