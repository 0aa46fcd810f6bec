"""The factor of ALIBI: the slopes of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from attnspec.conformance.problems.factors.factor import Changes, Factor, Failing, Offer

if TYPE_CHECKING:
    from torch import Tensor

    from attnspec.conformance.problems.case import Case


def published(heads: int) -> np.ndarray:
    """The slopes (h) of Press et al., 2^(−8/h), 2^(−16/h) …; where h is no power of two, first those of the one below it.

    Then every other one of the power above, from its first on, as TransformerEngine's get_alibi has them.
    """
    below = 1 << heads.bit_length() - 1 if heads else 1

    def series(n: int) -> np.ndarray:
        return 2.0 ** (-8 * np.arange(1, n + 1) / n)

    return np.concatenate([series(below), series(2 * below)[::2]])[:heads]


def slopes(case: Case, rng: Generator) -> np.ndarray:
    """Slopes (h), or (b h), all different, which no half type holds: the published ones, moved and in another order.

    "steep" ones are half a unit and more; "mixed" ones have one below zero, and one of zero where there are so many.
    """
    shape = (case.b, case.h) if case.alibi_slopes == "bh" else (case.h,)
    found = rng.permuted(published(int(np.prod(shape)))).reshape(shape) * rng.uniform(0.8, 1.6, shape)
    if case.alibi_slopes == "steep":
        return found * 6 + 0.5
    if case.alibi_slopes == "mixed":
        found[::2] *= -1
        found[1:2] = 0
    return found


def level(found: Tensor) -> str:
    """The nearest level to slopes."""
    if found.ndim == 2:
        return "bh"
    if bool((found <= 0).any()):
        return "mixed"
    return "steep" if found.numel() and float(found.max()) > 1 else "h"


def offered(case: Case, offer: Offer) -> str:
    """Slopes as far as they are offered: (h), or none."""
    if "alibi" not in offer.features:
        return "none"
    return "h" if case.alibi_slopes == "bh" and "alibi_batch" not in offer.features else case.alibi_slopes


def in_words(case: Case) -> str:
    """The form of slopes, and their numbers."""
    return {
        "none": "",
        "h": "slopes (h)",
        "bh": "slopes (b h)",
        "steep": "steep slopes (h)",
        "mixed": "slopes (h), some of zero or below",
    }[case.alibi_slopes]


def alibi_clause(case: Case, failing: Failing) -> str:
    """Of slopes, by what is beside them and by what is wrong."""
    if case.alibi_slopes == "none":
        return ""
    if failing.output == "dalibi_slopes":
        return "ALIBI-11"
    if failing.gradient and failing.kind != "raised":
        return "ALIBI-10"
    if case.alibi_slopes == "bh" and case.b > 1:
        return "ALIBI-7"
    if case.mask != "none" or case.window != "none" or (case.bias != "none" and case.biases == "inf"):
        return "ALIBI-9"
    if case.q_start != "none":
        return "ALIBI-24"
    if case.softcap is not None or case.bias != "none" or case.scale is not None:
        return "ALIBI-8"
    if case.i != case.keys:
        return "ALIBI-6"
    if case.h > 1:
        return "ALIBI-7"
    if case.causal:
        return "ALIBI-1"
    return {"distance": "ALIBI-2", "signed": "ALIBI-3", "column": "ALIBI-4"}[failing.dialect.alibi_form]


def other_slopes(case: Case) -> Mapping[str, Changes]:
    """With slopes, without them, and with others."""
    if case.alibi_slopes == "none":
        return {"with slopes": {"alibi_slopes": "h"}}
    return {
        "with other slopes": {"alibi_slopes": "steep" if case.alibi_slopes != "steep" else "h"},
        "without its slopes": {"alibi_slopes": "none"},
    }


# Of heads, of heads in each batch item, so steep that the keys of one block outweigh all others, and of both signs.
ALIBI = Factor(
    "alibi_slopes",
    ("none", "h", "bh", "steep", "mixed"),
    array="alibi",
    makes=slopes,
    found=level,
    needs="alibi",
    rule=offered,
    examples={"alibi": "h", "alibi_batch": "bh"},
    turn=53,
    says=in_words,
    traits={"alibi": lambda case: case.alibi_slopes != "none"},
    flags={"sloped": lambda case: case.alibi_slopes != "none"},  # slopes are given
    conditions=("sloped",),
    option=True,
    probed=True,
    another=("steep", "h"),
    otherwise=other_slopes,
    blames={33: alibi_clause},
)
