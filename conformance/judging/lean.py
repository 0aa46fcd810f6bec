"""How far outputs lie from the exact ones in rows of many keys, where the class asked of half precision allows per cents."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

LONG = 2048  # keys: beyond, a float16 or bfloat16 that sums in blocks may lose more than a hundredth in class C


class LongRows(NamedTuple):
    """Of all right outputs in rows of more than LONG keys.

    keys: of the longest. share: the largest error, as a share of class B's bound. lean: Σ error · exact / Σ exact² of the output
    that leans furthest, the part by which it is too large.
    """

    keys: int
    share: float
    lean: float

    def words(self) -> str:
        """What a reader is told."""
        said = f"no: the largest error is {self.share:.3g} times its bound" if self.share > 1 else "yes"
        lean = f"the output that leans furthest is too {'large' if self.lean > 0 else 'small'} by {abs(self.lean):.2g} of itself"
        return f"rows of up to {self.keys} keys are right in class C; class B would say {said}; {lean}"

    def with_(self, other: LongRows | None) -> LongRows:
        """The worst of both."""
        if other is None:
            return self
        return LongRows(max(self.keys, other.keys), max(self.share, other.share), max(self.lean, other.lean, key=abs))


def long_rows(got: Array, exact: Array, bound: Array, exempt: Array, keys: int) -> LongRows:
    """Of one output: what it was, the exact values, the bounds of class B, and what is exempt, all of one shape."""
    counts = ~exempt & np.isfinite(exact) & np.isfinite(got)
    error, exact = np.where(counts, got - exact, 0.0), np.where(counts, exact, 0.0)
    share = np.abs(error) / np.where(counts & (bound > 0), bound, np.inf)
    norm = float((exact**2).sum())
    return LongRows(keys, float(share.max(initial=0.0)), float((error * exact).sum()) / norm if norm else 0.0)
