"""What faults hide behind, and with what probability the suite's problems contain it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import comb

import numpy as np
from numpy import ndarray as Array

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.drawn import Asked
from attnspec.conformance.problems.fit import decodes
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.run.run import Run
from attnspec.conformance.run.tier import Tier
from attnspec.conformance.subject.subject import Subject
from attnspec.reference import solve
from attnspec.reference.dense import Forward
from attnspec.spec import CANONICAL, Problem
from attnspec.spec.words import FEATURES, RAGGED

EDGES = (15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)


class Everything(Adapter):
    """Offers all that there is in dense calls."""

    offers = frozenset(FEATURES) - set(RAGGED)


@dataclass(frozen=True)
class Drawn:
    """A case, the problem that is built from it, and what the reference makes of it in the canonical dialect."""

    case: Case

    @cached_property
    def problem(self) -> Problem:
        return build(self.case)

    @cached_property
    def forward(self) -> Forward:
        return solve(self.problem.replace(do=None, wrt=()), CANONICAL).forward

    @cached_property
    def visible(self) -> Array:
        """(b h i j)"""
        return self.forward.visible

    @cached_property
    def many(self) -> Array:
        """(b h i): how many keys each query sees."""
        return self.visible.sum(-1)

    @cached_property
    def only(self) -> Array:
        """(b h i): the key of a query that sees one of several, −1 elsewhere."""
        return np.where((self.many == 1) & (self.visible.shape[-1] > 1), self.visible.argmax(-1), -1)

    @cached_property
    def scores(self) -> Array:
        """(b h i j), those of hidden keys NaN."""
        return np.where(self.visible, self.forward.s, np.nan)

    def beyond(self, limit: float) -> bool:
        """Whether some score is further from zero than a limit, on its side."""
        return bool((self.scores / limit > 1).any())

    def minus_infinity(self) -> Array:
        """(b h i j): where the bias is −∞."""
        bias = self.problem.bias
        return np.broadcast_to(np.array(False) if bias is None else (bias == -np.inf).numpy(), self.visible.shape)


def grouped(x: Drawn) -> int:
    """Query heads for each key/value head, where there is more than one of both."""
    return x.case.h // x.case.g if x.case.sharing == "gqa" and x.case.g else 1


@dataclass(frozen=True)
class Situation:
    """What a problem can contain, and how often the suite's problems do, at least.

    drawn: the probability that one test's search in tier standard draws it, in one dtype. pairs: rows of the array that
    contain it, of all dtypes. triples: rows in each dtype.
    """

    drawn: float
    pairs: int
    triples: int
    holds: Callable[[Drawn], bool]


SITUATIONS: dict[str, Situation] = {
    "a row without a key": Situation(0.85, 57, 129, lambda x: bool((x.many == 0).any())),
    "a row without a key beside one with": Situation(0.85, 56, 129, lambda x: 0 < (x.many == 0).mean() < 1),
    "a batch item without a key beside one with": Situation(0.1, 5, 3, lambda x: 0 < (x.many == 0).all((1, 2)).mean() < 1),
    "more queries than keys (i > j)": Situation(0.8, 42, 118, lambda x: x.problem.i > x.problem.j),
    "fewer queries than keys (i < j)": Situation(0.9, 243, 368, lambda x: x.problem.i < x.problem.j),
    "causal, i > j": Situation(0.55, 24, 68, lambda x: x.case.causal and x.problem.i > x.problem.j),
    "causal, i < j": Situation(0.65, 104, 144, lambda x: x.case.causal and x.problem.i < x.problem.j),
    "a single query": Situation(0.25, 62, 102, lambda x: x.problem.i == 1),
    "a single key": Situation(0.15, 15, 39, lambda x: x.problem.j == 1),
    "a query that sees one key of several": Situation(0.9, 58, 140, lambda x: bool((x.only >= 0).any())),
    "… and that one at a block edge": Situation(0.35, 20, 31, lambda x: bool(np.isin(x.only, EDGES).any())),
    "a window of one: queries of a head that each see one key, not the same": Situation(
        0.45, 12, 34, lambda x: window_of_one(x.only)
    ),
    "the last key only, of several": Situation(0.4, 17, 49, lambda x: bool((x.only == x.problem.j - 1).any())),
    "the first key hidden, others not": Situation(0.9, 143, 250, lambda x: bool((~x.visible[..., 0] & (x.many > 0)).any())),
    "the first 16 keys hidden, others not": Situation(
        0.5, 50, 82, lambda x: bool((~x.visible[..., :16].any(-1) & (x.many > 0)).any())
    ),
    "the first 128 keys hidden, others not": Situation(
        0.15, 15, 29, lambda x: bool((~x.visible[..., :128].any(-1) & (x.many > 0)).any())
    ),
    "64 keys in a row hidden between others": Situation(0.15, 24, 29, lambda x: gap(x.visible, 64)),
    "a mask and causal": Situation(0.9, 129, 232, lambda x: x.case.causal and x.case.mask != "none"),
    "a mask and a bias": Situation(0.95, 252, 451, lambda x: x.case.mask != "none" and x.case.bias != "none"),
    "a mask (h i j) and b = h > 1": Situation(0.05, 5, 3, lambda x: x.case.mask == "rank3" and x.case.b == x.case.h > 1),
    "a bias of −∞": Situation(0.4, 46, 68, lambda x: bool(x.minus_infinity().any())),
    "a bias of −∞ for the first key, not for others": Situation(
        0.3, 37, 46, lambda x: bool((x.minus_infinity()[..., 0] & ~x.minus_infinity().all(-1)).any())
    ),
    "the dtype's lowest number as a bias": Situation(0.55, 56, 101, lambda x: x.case.bias != "none" and x.case.biases == "lowest"),
    "a score beyond 88": Situation(0.8, 74, 131, lambda x: x.beyond(88)),
    "a score below −88": Situation(0.9, 132, 239, lambda x: x.beyond(-88)),
    "a score beyond 10⁴": Situation(0.4, 50, 76, lambda x: x.beyond(1e4)),
    "a score below −10⁴": Situation(0.75, 99, 170, lambda x: x.beyond(-1e4)),
    "a row of several scores, all negative": Situation(
        0.95, 123, 225, lambda x: bool(((x.many > 1) & (np.nan_to_num(x.scores, nan=-1.0) < 0).all(-1)).any())
    ),
    "a row of several scores, all below −88": Situation(
        0.7, 74, 123, lambda x: bool(((x.many > 1) & (np.nan_to_num(x.scores, nan=-99.0) < -88).all(-1)).any())
    ),
    "a needle: one key of more than 16 has a third of the weight": Situation(
        0.25, 18, 19, lambda x: x.case.values == "needle" and bool(((x.forward.p.max(-1) > 1 / 3) & (x.many > 16)).any())
    ),
    "a scale of zero": Situation(0.6, 33, 83, lambda x: x.case.scale == 0),
    "a negative scale": Situation(0.6, 67, 114, lambda x: x.case.scale is not None and x.case.scale < 0),
    "b ≠ h, both more than one": Situation(0.95, 138, 254, lambda x: x.case.b != x.case.h and min(x.case.b, x.case.h) > 1),
    "groups of heads (GQA)": Situation(0.7, 78, 133, lambda x: grouped(x) > 1),
    "groups of three heads": Situation(0.45, 42, 67, lambda x: grouped(x) == 3),
    "one key/value head for several": Situation(0.85, 113, 204, lambda x: x.case.h > 1 and x.case.g in (1, None)),
    "heads no power of two": Situation(0.85, 115, 199, lambda x: x.case.h & (x.case.h - 1) > 0),
    "more than 128 keys": Situation(0.6, 132, 170, lambda x: x.problem.j > 128),
    "more than 128 queries": Situation(0.45, 6, 21, lambda x: x.problem.i > 128),
    "more than 1000 keys": Situation(0.3, 29, 38, lambda x: x.problem.j > 1000),
    "few queries, more keys and no gradients": Situation(0.35, 183, 170, lambda x: not x.problem.wrt and decodes(x.case)),
    "… and a mask": Situation(0.35, 169, 154, lambda x: not x.problem.wrt and decodes(x.case) and x.case.mask != "none"),
    "… in a layout that is not contiguous": Situation(
        0.3, 158, 149, lambda x: not x.problem.wrt and decodes(x.case) and x.case.layout != "contiguous"
    ),
    "more than 8 heads": Situation(0.6, 39, 73, lambda x: x.problem.h > 8),
    "one key more than whole blocks of 16": Situation(0.6, 115, 165, lambda x: x.problem.j > 16 and x.problem.j % 16 == 1),
    "one key less than whole blocks of 16": Situation(0.55, 35, 78, lambda x: x.problem.j % 16 == 15),
    "a width that is no multiple of 8": Situation(0.9, 149, 259, lambda x: x.problem.d % 8 > 0),
    "a width of 64 or more": Situation(0.55, 89, 161, lambda x: x.problem.d >= 64),
    "a width beyond 128": Situation(0.25, 45, 76, lambda x: x.problem.d > 128),
    "values narrower than keys": Situation(0.8, 105, 188, lambda x: x.problem.e < x.problem.d),
    "values wider than keys": Situation(0.75, 98, 164, lambda x: x.problem.e > x.problem.d),
    "a stride of zero in k and v": Situation(
        0.4, 31, 59, lambda x: any(0 in t.stride() for t in (x.problem.k, x.problem.v) if t.numel() > 1)
    ),
    "a stride of zero in the cotangent": Situation(0.6, 27, 82, lambda x: x.problem.do is not None and 0 in x.problem.do.stride()),
    "a last dimension that is not dense": Situation(0.7, 71, 127, lambda x: x.problem.d > 1 and x.problem.q.stride(-1) != 1),
    "an offset into a larger tensor": Situation(0.75, 90, 148, lambda x: x.problem.k.storage_offset() > 0),
    "gradients of some inputs only": Situation(
        0.95, 92, 284, lambda x: bool(x.problem.wrt) and not {"q", "k", "v"} <= set(x.problem.wrt)
    ),
    "a cotangent that is zero but for one row": Situation(
        0.6, 32, 87, lambda x: x.problem.do is not None and x.case.do == "one_row"
    ),
}


def window_of_one(only: Array) -> bool:
    """Whether in some head two queries see one key each, and not the same."""
    some = only >= 0
    return bool((some.any(-1) & (np.where(some, only, -1).max(-1) != np.where(some, only, 10**9).min(-1))).any())


def gap(visible: Array, length: int) -> bool:
    """Whether in some row at least so many hidden keys follow each other between visible ones."""
    first, last = visible.argmax(-1), visible.shape[-1] - 1 - visible[..., ::-1].argmax(-1)
    key = np.arange(visible.shape[-1])
    seen = np.where(visible, key, -1)
    before = np.maximum.accumulate(seen, -1)
    inside = visible.any(-1)[..., None] & (key > first[..., None]) & (key <= last[..., None])
    distance = np.where(inside, key - np.concatenate([before[..., :1], before[..., :-1]], -1), 0)
    return bool((distance > length).any())


# WHAT IS BUILT FOR A LEVEL

# Levels that are there for a situation, and the probability, at least, that a problem built for them contains it. The rest of
# the problem is PLAIN, and the seed is any.
PLAIN = Case(b=2, heads="4/2", i=17, j=65, d=16)
BUILT: dict[str, tuple[dict[str, str | bool], float]] = {
    "a row without a key beside one with": ({"mask": "bhij", "holes": "empty_row"}, 0.99),
    "a batch item without a key beside one with": ({"mask": "padding", "holes": "empty_row"}, 0.2),
    "a query that sees one key of several": ({"mask": "bhij", "holes": "single"}, 0.99),
    "… and that one at a block edge": ({"mask": "bhij", "holes": "single"}, 0.99),
    "a window of one: queries of a head that each see one key, not the same": ({"mask": "bhij", "holes": "single"}, 0.99),
    "the last key only, of several": ({"mask": "bhij", "holes": "single"}, 0.99),
    "the first key hidden, others not": ({"mask": "bj", "holes": "suffix"}, 0.9),
    "the first 16 keys hidden, others not": ({"mask": "ij", "holes": "first_block"}, 0.99),
    "a bias of −∞": ({"bias": "bhij", "biases": "inf"}, 0.99),
    "a bias of −∞ for the first key, not for others": ({"bias": "bhij", "biases": "inf"}, 0.99),
    "a score beyond 88": ({"values": "large"}, 0.99),
    "a score below −10⁴": ({"bias": "bhij", "biases": "shift"}, 0.99),
    "a score beyond 10⁴": ({"bias": "bhij", "biases": "shift"}, 0.99),
    "a row of several scores, all below −88": ({"values": "negative"}, 0.9),
    "a needle: one key of more than 16 has a third of the weight": ({"values": "needle"}, 0.99),
    "a stride of zero in k and v": ({"layout": "expanded"}, 0.99),
    "a stride of zero in the cotangent": ({"do": "expanded"}, 0.99),
    "a last dimension that is not dense": ({"layout": "strided"}, 0.99),
    "an offset into a larger tensor": ({"layout": "offset"}, 0.99),
}

# DRAWING


def searches(number: int, examples: int, dtype: str, adapter: Adapter | None = None) -> list[list[Drawn]]:
    """What so many searches draw, each of so many examples and with a seed of its own: independent of each other."""
    found = []
    for n in range(number):
        drawn: list[Drawn] = []
        run = Run("", [], Tier("pairs", searched=examples, narrowed=0, rows=0), seed=n)

        def ask(case: Case, drawn: list[Drawn] = drawn) -> Asked:
            drawn.append(Drawn(case))
            return Asked(True)

        assert not list(run.search(Subject(adapter or Everything()), dtype, ask, lambda case: case, ""))
        found.append(drawn)
    return found


def tail(successes: int, number: int, probability: float) -> float:
    """P(X ≤ successes) where X is binomial."""
    return sum(comb(number, k) * probability**k * (1 - probability) ** (number - k) for k in range(successes + 1))
