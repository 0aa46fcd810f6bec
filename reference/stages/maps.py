"""The score maps in their order, and what they make of a score and of its gradient."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.stages.alibi import Alibi
from attnspec.reference.stages.bias import Bias
from attnspec.reference.stages.given import Given
from attnspec.reference.stages.softcap import Softcap
from attnspec.reference.stages.stage import ScoreMap

SCORE_MAPS: tuple[ScoreMap, ...] = (Softcap(), Bias(), Alibi())  # the first is the first that a scaled product meets


def active(given: Given) -> tuple[ScoreMap, ...]:
    """The maps whose option the problem has. Where softcap_order says so, the cap comes last."""
    some = [one for one in SCORE_MAPS if getattr(given.problem, one.option) is not None]
    if given.dialect.softcap_order == "after_bias":
        some.sort(key=lambda one: one.option == "softcap")
    return tuple(some)


def through(z: Array, given: Given) -> tuple[Array, ...]:
    """The scaled product z, and what it is after each active map: the last is the score. (b h i j) each."""
    scores = [z]
    for one in active(given):
        scores.append(one.value(scores[-1], given))
    return tuple(scores)


def back_through(ds: Array, scores: tuple[Array, ...], given: Given) -> tuple[Array, ...]:
    """The gradients of what :func:`through` gives, from that of the score: each meets the slope of the map behind it."""
    gradients = [ds]
    for one, before in zip(reversed(active(given)), reversed(scores[:-1]), strict=True):
        slope = one.slope(before, given)
        gradients.append(gradients[-1] if slope is None else np.where(gradients[-1] == 0, 0.0, gradients[-1] * slope))
    return tuple(reversed(gradients))
