"""How far from right a mistake is on a problem, as the judge would see it."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.judging.judge import compare, together
from attnspec.conformance.mistakes.vocabulary import MISTAKES
from attnspec.reference import Exact
from attnspec.reference.check import parts_of
from attnspec.spec import Problem


def power(problem: Problem, exact: Exact, class_: str) -> dict[str, float]:
    """How far from right each mistake that applies is, as the judge would see it: the largest multiple of the bound.

    0 where it changes nothing, infinite where the answer must be exactly zero or the wrong one is not finite. With dropout
    in training nothing applies: what is right depends on what was drawn.
    """
    found: dict[str, float] = {}
    for name, one in MISTAKES.items() if not (problem.training and problem.dropout) else ():
        if one.special:
            continue
        wrong = one.wrong(problem, exact.dialect, exact)
        if wrong is not None and wrong.keys() & set(problem.outputs):
            found[name] = multiple(wrong, exact, class_)
    return found


def multiple(wrong: dict[str, Array], exact: Exact, class_: str) -> float:
    """The largest error of an answer as a multiple of its bound; outputs that are not given are right."""
    tolerance, worst = exact.tolerance(class_), 0.0
    for name in exact.problem.outputs:
        limits = together(exact, tolerance.bound, tolerance.exempt, name)
        worst = max(worst, compare(combined(wrong, exact, name), *limits, name)[1])
    return worst


def combined(wrong: dict[str, Array], exact: Exact, name: str) -> Array:
    """One output of an answer, right where it is not given; where one tensor was given twice, the sum of its parts."""
    return np.sum([wrong.get(part, exact.values[part]) for part in parts_of(exact, name)], axis=0)
