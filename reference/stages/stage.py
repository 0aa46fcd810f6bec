"""What a stage owes. Attention has five kinds of them, and a new option is one more of a kind.

*Score map*: changes each score by itself (:mod:`softcap`, :mod:`bias`, :mod:`alibi`; the scale is part of the product in
:mod:`scores`). It is a :class:`ScoreMap` in the table `SCORE_MAPS` of :mod:`maps`, which fixes the order.
*Visibility*: says which key a query may see. It is a function in the table `VISIBILITY` of :mod:`visible`.
*Denominator*: a term of the row sum without a value (:mod:`sink`). It owes a score for each row, which :func:`softmax.softmax` gets
beside those of the keys, and what a row adds to its gradient. It moves with nothing but itself, so the bounds take it for one more
key whose value is zero; what it may be off by stands in :func:`attnspec.reference.bounds.output.sink_error`.
*Output*: a further tensor that is returned, with its cotangent (:mod:`lse`).
*Handover*: the same problem in other tensors, without mathematics (:mod:`heads`: one shared 3-D head, groups of heads).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from numpy import ndarray as Array

if TYPE_CHECKING:
    from attnspec.reference.bounds.accuracy import Arithmetic
    from attnspec.reference.stages.given import Given


class ScoreMap(Protocol):
    """A map of scores z ↦ f(z), element by element, (b h i j); f is differentiable wherever a key is visible.

    option: the field of a problem that turns it on. gradient: True where that field is a tensor with a gradient of its own, which
    is the sum of the gradients of f(z), each times what :meth:`weight` says.

    The bounds need no more than what is here: where z is off by Δ, f(z) is off by at most (largest slope) · Δ + rounding, and where
    the gradient dS of f(z) is off by ε, that of z is off by at most slope · ε + |dS| · (curvature · Δ + rounding of the slope).
    """

    option: str
    gradient: bool

    def value(self, z: Array, given: Given) -> Array:
        """f(z)."""

    def slope(self, z: Array, given: Given) -> Array | None:
        """f′(z), at most :meth:`steepest`; None where it is 1 everywhere."""

    def weight(self, given: Given) -> Array | None:
        """∂f/∂(the option's element), (b h i j) or what broadcasts to it; None where it is 1, or has no gradient."""

    def common(self, given: Given) -> tuple[Array | float, float]:
        """What a kernel may add to all scores of a row, (b h 1 1), and to all weights of it, at most: softmax does not see it."""

    def steepest(self, given: Given) -> float:
        """The largest |f′|."""

    def curvature(self, given: Given) -> float:
        """The largest |f″|."""

    def slope_rounding(self, a: Arithmetic) -> float:
        """What rounding adds to the error of f′(z)."""

    def detour(self, given: Given) -> float:
        """What the gradient of f(z) may be multiplied by before it meets f′, and divided by afterwards; 1 for nothing."""

    def rounding(self, a: Arithmetic) -> tuple[float, ...]:
        """What rounding adds to the error of f(z), as multiples of |f(z)|: for each operation one."""

    def constant(self, given: Given, a: Arithmetic) -> Array | None:
        """What rounding adds beside that, (b h i j) or what broadcasts to it; None where it adds nothing."""
