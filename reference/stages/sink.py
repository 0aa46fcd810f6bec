"""The sink: one logit a query head that stands in the row sum of the softmax and has no value.

It is one more key, which every query of its head sees, whose score is z and whose value is zero. What the bounds say of a row's
keys holds with it (:func:`attnspec.reference.bounds.tile.with_sink`). π = exp(z − lse) is its probability.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.stages.given import Given
from attnspec.spec import implements


@implements("SINK-2", "SINK-3", "SINK-7")
def logits(given: Given) -> Array | None:
    """z (h 1), which broadcasts to rows (b h i); −∞ where a head has none. None where the problem has no sinks."""
    sinks = given.operand("sinks")
    return None if sinks is None else sinks[:, None]


@implements("SINK-11", "SINK-12")
def gradient(pi: Array, centre: Array) -> Array:
    """What each row adds to the gradient of its head's sink: π (0 − Δ), for its value is zero. (b h i).

    centre: Δ, less the cotangent of the natural lse, which holds the sink.
    """
    return np.where(pi == 0, 0.0, -pi * centre)
