"""The factor of SINK: what the sinks of the query heads hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from attnspec.conformance.problems.factors.factor import Changes, Factor, Failing

if TYPE_CHECKING:
    from torch import Tensor

    from attnspec.conformance.problems.case import Case

FAR = 15.0  # beyond which a sink is far from scores of ordinary size
MIXED = (5.0, -np.inf, -0.7, 20.0, -20.0, 1.3)  # of one head after the other, which no two of a group share


def made(case: Case, rng: Generator) -> np.ndarray:
    """The sinks (h), float64. No two heads have the same, but for zeros and −∞."""
    normal = rng.standard_normal(case.h)
    match case.sinks:
        case "zero":
            return np.zeros(case.h)
        case "above":
            return 20 + np.abs(normal)
        case "below":
            return -20 - 10 * np.abs(normal)
        case "inf":
            return np.full(case.h, -np.inf)
        case "mixed":
            return np.resize(MIXED, case.h) + normal / 10
    return 1 + normal


def found(sinks: Tensor) -> str:
    """The level that is like these sinks."""
    z = sinks.detach().double().cpu().numpy()
    if np.isneginf(z).all() and z.size:
        return "inf"
    if np.isneginf(z).any():
        return "mixed"
    if not z.any():
        return "zero"
    return "above" if z.min() > FAR else "below" if z.max() < -FAR else "normal"


def in_words(case: Case) -> str:
    """What the sinks hold."""
    said = {
        "none": "",
        "normal": "sinks",
        "inf": "sinks, all −∞",
        "above": "sinks above the scores",
        "below": "sinks below the scores",
    }
    return said.get(case.sinks, f"sinks, {case.sinks}")


def sink_clause(case: Case, failing: Failing) -> str:
    """Of a sink, by what is wrong and by what it holds."""
    if case.sinks == "none":
        return ""
    if failing.gradient and failing.kind != "raised":
        return "SINK-12" if failing.output == "dsinks" else "SINK-11"
    by_values = {"inf": "SINK-7", "zero": "SINK-8", "above": "SINK-6", "below": "SINK-6"}
    if case.sinks in by_values:
        return by_values[case.sinks]
    if failing.has_empty:
        return "SINK-5"
    if case.mask != "none" and case.holes in ("first_block", "suffix"):
        return "SINK-4"
    if case.scale is not None or case.softcap is not None or case.bias != "none" or case.mask != "none" or case.causal:
        return "SINK-3"
    if case.h > 1 and case.sharing != "mha":
        return "SINK-2"
    return "SINK-4" if case.keys > 16 or case.i > 1 else "SINK-1"


def other_sinks(case: Case) -> Mapping[str, Changes]:
    """With sinks, without them, and with others."""
    if case.sinks == "none":
        return {"with sinks": {"sinks": "normal"}}
    return {"with other sinks": {"sinks": "mixed" if case.sinks != "mixed" else "normal"}, "without its sinks": {"sinks": "none"}}


# Among the scores, the zero of softmax1, far above all scores and far below, none at all, and one of each.
SINKS = Factor(
    "sinks",
    ("none", "normal", "zero", "above", "below", "inf", "mixed"),
    array="sinks",
    makes=made,
    found=found,
    needs="sinks",
    examples={"sinks": "normal"},
    turn=53,
    says=in_words,
    named=True,
    flags={"sunk": lambda case: case.sinks != "none"},  # sinks are given
    conditions=("sunk",),
    option=True,
    probed=True,
    another=("normal", "mixed"),
    otherwise=other_sinks,
    blames={27: sink_clause},
)
