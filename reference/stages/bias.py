"""The bias: a number that is added to each scaled score."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.bounds.accuracy import Arithmetic
from attnspec.reference.stages.given import Given
from attnspec.spec import implements


class Bias:
    """z + bias, aligned from the right. Where the bias is −∞ the score stays; BIAS-3 hides it."""

    option = "bias"
    gradient = True

    @implements("BIAS-1", "BIAS-2", "BIAS-4")
    def value(self, z: Array, given: Given) -> Array:
        """The sum."""
        bias = given.operand("bias")
        assert bias is not None
        return z + np.where(bias == -np.inf, 0.0, bias)

    def slope(self, z: Array, given: Given) -> None:
        """1."""

    def weight(self, given: Given) -> None:
        """1: it is added."""

    def common(self, given: Given) -> tuple[float, float]:
        """Nothing."""
        return 0.0, 0.0

    def steepest(self, given: Given) -> float:
        """1."""
        return 1.0

    def curvature(self, given: Given) -> float:
        """0: the map is a shift."""
        return 0.0

    def slope_rounding(self, a: Arithmetic) -> float:
        """0."""
        return 0.0

    def detour(self, given: Given) -> float:
        """1."""
        return 1.0

    def rounding(self, a: Arithmetic) -> tuple[float, ...]:
        """The sum is rounded, and stored by the eager classes."""
        return a.u_acc, a.u_s

    def constant(self, given: Given, a: Arithmetic) -> Array | None:
        """The bias may be converted to the dtype in which scores are stored."""
        bias = given.operand("bias")
        if not a.u_s or bias is None:
            return None
        return a.u_s * np.where(np.isfinite(bias), np.abs(bias), 0.0)
