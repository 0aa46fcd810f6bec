"""The soft cap: each score z becomes c·tanh(z/c)."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.bounds.accuracy import Arithmetic
from attnspec.reference.stages.given import Given
from attnspec.spec import implements


def cap_of(given: Given) -> float:
    """c, of a problem that has one."""
    assert given.problem.softcap is not None
    return float(given.problem.softcap)


def quotient(a: Arithmetic) -> float:
    """The absolute error of tanh y from exponentials, such as 1 − 2/(E + 1) or 2·sigmoid(2y) − 1, with E = exp 2y.

    Where E is off by the factor 1 + ε, 2/(E + 1) is off by 2Eε/(E + 1)² ≤ ε/2; sum, quotient and difference are rounded.
    """
    return a.rescale / 2 + 4 * a.u_acc


class Softcap:
    """c·tanh(z/c), with y = z/c and t = tanh y."""

    option = "softcap"
    gradient = False

    @implements("SOFTCAP-1", "SOFTCAP-2", "SOFTCAP-3", "SOFTCAP-4", "SOFTCAP-8", "SOFTCAP-9", "SOFTCAP-10")
    def value(self, z: Array, given: Given) -> Array:
        """The capped score, at most c."""
        c = cap_of(given)
        with np.errstate(over="ignore"):  # the quotient may be infinite; tanh is 1 there
            return c * np.tanh(z / c)

    @implements("SOFTCAP-7")
    def slope(self, z: Array, given: Given) -> Array:
        """1 − t² = 4E/(1 + E)² with E = exp(−2|y|), which keeps its digits where 1 − t² has none left."""
        with np.errstate(under="ignore", over="ignore"):
            e = np.exp(-2 * np.abs(z / cap_of(given)))
        return 4 * e / (1 + e) ** 2

    def weight(self, given: Given) -> None:
        """The cap is a constant."""

    def common(self, given: Given) -> tuple[float, float]:
        """Nothing."""
        return 0.0, 0.0

    def steepest(self, given: Given) -> float:
        """1, at zero."""
        return 1.0

    def curvature(self, given: Given) -> float:
        """The largest of |−2t(1 − t²)/c|, which is at t² = 1/3."""
        return 4 / (3 * 3**0.5 * cap_of(given))

    def rounding(self, a: Arithmetic) -> tuple[float, ...]:
        """What is relative to the capped score.

        A relative error ε of y moves it by at most c |y| (1 − t²) ε ≤ c |t| ε, for sinh 2y ≥ 2y. In y: c, scale/c and a product;
        behind it tanh, c and a product. The eager classes store y, t and c·t.
        """
        return a.tanh, 6 * a.u_acc, 3 * a.u_s

    def slope_rounding(self, a: Arithmetic) -> float:
        """1 − t² from a t that is off by δ is off by 2δ + δ², and t² and the difference are rounded, and stored."""
        off = a.tanh + 4 * a.u_acc + 2 * a.u_s + quotient(a)
        return 2 * off + off**2 + 2 * a.u_acc + 2 * a.u_s

    def detour(self, given: Given) -> float:
        """c: the autograd of c·tanh(z/c) multiplies by it and divides by it."""
        return cap_of(given)

    def constant(self, given: Given, a: Arithmetic) -> Array:
        """What is not: tanh from exponentials, and y, t and c·t where they underflow."""
        c = cap_of(given)
        return np.array(c * quotient(a) + (2 * c + 1) * (a.eta_acc + a.eta_s))
