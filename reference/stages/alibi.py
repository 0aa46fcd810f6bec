"""ALiBi: a slope of its head, times how far the key is from the query, is added to each score."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.bounds.accuracy import Arithmetic
from attnspec.reference.stages.given import Given
from attnspec.reference.stages.visible import own_positions, reach
from attnspec.spec import Problem, implements


def per_head(slopes: Array) -> Array:
    """Slopes (h) or (b h) as what broadcasts to (b h i j)."""
    return slopes[..., None, None]


@implements("ALIBI-2", "ALIBI-3", "ALIBI-4", "ALIBI-6", "ALIBI-24")
def distances(given: Given) -> Array:
    """What a slope is multiplied with, (i j), or (b 1 i j) with a start for each batch item: −|p − j|, j − p, or j alone."""
    ahead = given.positions - own_positions(given)
    form = given.dialect.alibi_form
    if form == "column":
        return np.broadcast_to(given.positions.astype(float), ahead.shape)
    return -np.abs(ahead).astype(float) if form == "distance" else ahead.astype(float)


def farthest(problem: Problem) -> float:
    """How far a position may be from another one, or from 0, at most."""
    starts = problem.q_start if isinstance(problem.q_start, tuple) else (problem.q_start or 0,)
    return float(max(problem.i, problem.j) + max(map(abs, starts), default=0))


class Alibi:
    """z + a·w, with a slope a for each head and the distance w."""

    option = "alibi_slopes"
    gradient = True

    @implements("ALIBI-1", "ALIBI-7", "ALIBI-8", "ALIBI-9", "ALIBI-10")
    def value(self, z: Array, given: Given) -> Array:
        """The sum."""
        return z + self._added(given)

    def slope(self, z: Array, given: Given) -> None:
        """1."""

    @implements("ALIBI-11")
    def weight(self, given: Given) -> Array:
        """w."""
        return distances(given)

    def common(self, given: Given) -> tuple[Array | float, float]:
        """What another form adds to the scores of a row, and to the distances, where that does not change the answer.

        A column is j, or j less the number of keys, or less that of the context: no position is further from another than there are
        keys or queries, and a start. No form is another one where a key behind the query has a distance without a sign, nor inside
        a cap. A sink is not moved with the scores, so that beside sinks a row has nothing in common.
        """
        problem, dialect = given.problem, given.dialect
        if problem.sinks is not None:
            return 0.0, 0.0
        if problem.softcap is not None and dialect.softcap_order == "after_bias":
            return 0.0, 0.0
        _, right = reach(problem.window, dialect.window_count)
        if dialect.alibi_form == "distance" and not problem.causal and right > 0:
            return 0.0, 0.0
        longest = farthest(problem)
        return per_head(np.abs(self._slopes(given))) * longest, longest

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

    def constant(self, given: Given, a: Arithmetic) -> Array:
        """What is relative to a·w, in the form in which a kernel has it, and what underflows of it.

        The slope may be divided by the scale, multiplied with the distance, and by scale, log₂e and the constant of both. The eager
        classes store the slope, the distance and what is added. float32 has no distance above 2²⁴. Beside a bias either of them
        comes first, or both together.
        """
        longest = farthest(given.problem)
        size = np.abs(self._added(given)) + a.column * self.common(given)[0]
        lost = (a.eta_acc * (1 + abs(given.scale)) + a.eta_s) * (2 + longest)
        wide = 6 + (longest > 2**24)
        error = (wide * a.u_acc * (1 + 3 * a.u_acc) + 3 * a.u_s * (1 + 2 * a.u_s)) * size + lost  # so many, and three roundings
        bias = given.operand("bias")
        if bias is None:
            return error
        return error + (a.u_acc + a.u_s) * (size + np.where(np.isfinite(bias), np.abs(bias), 0.0))

    def _slopes(self, given: Given) -> Array:
        slopes = given.slopes
        assert slopes is not None
        return slopes

    def _added(self, given: Given) -> Array:
        return per_head(self._slopes(given)) * distances(given)
