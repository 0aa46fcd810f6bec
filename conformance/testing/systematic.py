"""Whether errors lean in one direction, though each of them is within its bound.

Truncating where others round, a scale that is off by a thousandth, an epsilon in the row sum: smaller than the worst case of
honest rounding, and there in every element. Each problem's errors are projected on a direction, r = Σ err·g/σ² / (Σ g²/σ²)^½,
and the r of many problems make t = Σ r / (Σ r²)^½. If the errors have no preferred sign, then P(t ≥ x) ≤ exp(−x²/2) for any
number of problems and any sizes of errors (Hoeffding's inequality for the signs, given the sizes), so the limit follows from
the probability of a false alarm. Elements of one problem may depend on each other in any way.

Roundings have no preferred sign, but an exp may be wrong by the same relative error in every call: as far as an honest float32
exp may go, so far r is moved towards zero first. In float32 and float64 nothing would be left, and the bound itself is that
narrow. And all this holds for generic numbers only: where many numbers are equal, so are their roundings.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from math import log, sqrt

import numpy as np
from numpy import ndarray as Array
from numpy.random import default_rng

from attnspec.adapters import Answer
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.reference import Exact, arithmetic, to_float64

FALSE_ALARM = 1e-7  # probability that errors without a preferred sign are called biased, in one direction
LIMIT = sqrt(2 * log(2 / FALSE_ALARM))
DTYPES = ("bfloat16", "float16")
# An arithmetic that rounds nothing, with the exp of float32.
EXP = replace(arithmetic("R", "float32"), name="exp", u_out=0.0, eta_out=0.0, exp=arithmetic("A", "float32").exp)

# Output and what it would lean towards, in a reader's words.
DIRECTIONS = {
    ("o", "gain"): "the output is too {large} throughout",
    ("o", "temperature"): "the output is that of a {larger} scale",
    ("dq", "gain"): "the gradient of q is too {large} throughout",
    ("dk", "gain"): "the gradient of k is too {large} throughout",
    ("dv", "gain"): "the gradient of v is too {large} throughout",
}


def generic(subject: Subject, dtype: str, number: int) -> Case:
    """A problem of standard normal numbers, no two of them alike: 8 to 40 queries, 17 to 130 keys."""
    rng = default_rng([17, number])
    case = Case(
        dtype=dtype,
        heads="2/2",
        i=int(rng.integers(8, 41)),
        j=int(rng.integers(17, 131)),
        d=int(rng.choice([16, 32, 64])),
        causal=bool(number % 3 == 0),
        seed=number,
    )
    return fit(case, subject.adapter)


@dataclass
class Meter:
    """Projections of the errors of many problems, by direction."""

    shares: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))  # r, allowed
    numbers: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))  # which problem each is of
    problems: int = 0

    def add(self, answer: Answer, exact: Exact, class_: str) -> None:
        """Project the errors of one answer, weighted by the bounds of a class."""
        tolerance, (honest, _), f = exact.tolerance(class_), exact.bounds(EXP), exact.forward
        got = {"o": answer.o, **answer.gradients}
        self.problems += 1
        for output, kind in DIRECTIONS:
            if got.get(output) is None or output not in exact.values:
                continue
            direction = exact.values[output] if kind == "gain" else temperature(f.p, f.z, exact)
            bound = tolerance.bound[output]
            counts = (bound > 0) & ~tolerance.exempt[output]
            error = to_float64(got[output]) - exact.values[output]
            weight = np.where(counts, direction / np.where(counts, bound, 1.0) ** 2, 0.0)
            norm = sqrt(float((weight * direction).sum()))
            if norm > 0:
                allowed = float((honest[output] * np.abs(weight)).sum()) / norm
                self.numbers[output, kind].append(self.problems - 1)
                self.shares[output, kind].append((float((error * weight).sum()) / norm, allowed))

    def leaning(self) -> dict[tuple[str, str], float]:
        """t of each direction, nearer to zero by what is allowed. It is at most the root of the number of problems."""

        def t(some: list[tuple[float, float]], sign: int) -> float:
            rest = [sign * r - allowed for r, allowed in some]
            squares = sum(x * x for x in rest)
            return max(0.0, sum(rest) / sqrt(squares)) if squares else 0.0

        return {key: t(some, 1) - t(some, -1) for key, some in self.shares.items()}

    def clearest(self, key: tuple[str, str]) -> int:
        """The number of the problem, counted from 0, that leans furthest the way in which all of them lean."""
        sign = 1 if self.leaning()[key] > 0 else -1
        rest = [sign * r - allowed for r, allowed in self.shares[key]]
        return self.numbers[key][int(np.argmax(rest))]

    def biased(self) -> dict[tuple[str, str], str]:
        """What leans further than LIMIT, in words."""
        found = {}
        for key, t in self.leaning().items():
            if abs(t) > LIMIT:
                words = {"large": "large" if t > 0 else "small", "larger": "larger" if t > 0 else "smaller"}
                found[key] = (
                    f"biased: {DIRECTIONS[key].format(**words)}, each error within its bound; t = {t:.1f} over "
                    f"{len(self.shares[key])} problems, where errors of no preferred sign stay below {LIMIT:.1f}"
                )
        return found


def temperature(p: Array, z: Array, exact: Exact) -> Array:
    """∂o/∂log scale = Σ_j p z (v − o), (b h i e)."""
    pz = np.where(exact.forward.visible, p * z, 0.0)
    return pz @ exact.heads_of_values - pz.sum(-1, keepdims=True) * exact.values["o"]
