"""Mistakes of the softmax: maximum, row sum, rescaling (SOFTMAX)."""

from __future__ import annotations

from functools import partial
from math import inf

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter

SOFTMAX = Chapter()
enter, special = SOFTMAX.enter, SOFTMAX.special


def other_exp(x: Kernel, pivot: Array) -> Wrong:
    """exp(s − pivot) in the range of what the dtype is computed in; None where nothing leaves it."""
    s = x.s - pivot
    high, low = (709.78, -745.13) if x.problem.dtype == torch.float64 else (88.72, -103.97)
    if not ((s > high) | ((s < low) & (x.e > 0))).any():
        return None
    e, e_sink = (np.where(y > high, inf, np.where(y < low, 0.0, np.exp(np.minimum(y, high)))) for y in (s, x.z - pivot))
    return x.with_weights(x.over(e, e, e_sink))


def never_rescaled(x: Kernel, output_alone: bool) -> Wrong:
    """exp(s − the maximum so far) over blocks of 16 keys, never rescaled; None where the maximum is in the first."""
    starts = np.arange(0, x.j, 16)
    if len(starts) < 2:
        return None
    so_far = np.maximum.accumulate(np.maximum.reduceat(x.s, starts, axis=-1), axis=-1).repeat(16, -1)[..., : x.j]
    e = np.exp(x.s - np.where(so_far == -inf, 0.0, so_far))
    if np.array_equal(e, x.e):
        return None
    return {"o": x.over(e, x.e) @ x.heads_v} if output_alone else x.with_weights(x.over(e, e))


enter("maximum_missing", "the row's maximum is not subtracted before exp", lambda x: other_exp(x, np.zeros(1)))
enter("maximum_from_zero", "the running maximum starts at 0", lambda x: other_exp(x, np.maximum(x.m, 0.0)))
enter("rescale_missing", "an online softmax does not rescale when the maximum changes", lambda x: never_rescaled(x, False))
enter("rescale_of_output_missing", "an online softmax rescales the row sum but not the output", lambda x: never_rescaled(x, True))


def clamped(x: Kernel, limit: float) -> Wrong:
    """Scores within ±limit."""
    return (
        x.with_weights(x.weights(np.where(x.s == -inf, -inf, np.clip(x.s, -limit, limit)))) if (np.abs(x.s) > limit).any() else None
    )


def first_block(x: Kernel) -> Array:
    """The maximum of the first 16 keys."""
    return x.s[..., :16].max(-1, keepdims=True)


def over_queries(x: Kernel) -> Wrong:
    """A softmax along the queries."""
    m = x.s.max(-2, keepdims=True, initial=-inf)
    e = np.exp(x.s - np.where(m == -inf, 0.0, m))
    total = e.sum(-2, keepdims=True)
    return {"o": (e / np.where(total == 0, 1.0, total)) @ x.heads_v}


def sum_of_last_block(x: Kernel) -> Wrong:
    """Probabilities over the row sum of the last 16 keys that have weight."""
    if x.j <= 16:
        return None
    starts = np.arange(0, x.j, 16)
    sums = np.add.reduceat(x.e, starts, axis=-1)
    last = (sums > 0) * (1 + np.arange(len(starts)))
    total = np.take_along_axis(sums, np.maximum(last.max(-1, keepdims=True) - 1, 0), -1)
    return {"o": np.where(x.empty, x.p, x.e / np.where(total == 0, 1.0, total)) @ x.heads_v}


def online(x: Kernel, n: int, output: bool, row_sum: bool) -> Wrong:
    """An online softmax over blocks of n keys, in which output or row sum or both are not rescaled."""
    starts = np.arange(0, x.j, n)
    if len(starts) < 2:
        return None
    so_far = np.maximum.accumulate(np.maximum.reduceat(x.s, starts, axis=-1), axis=-1).repeat(n, -1)[..., : x.j]
    e = np.exp(x.s - np.where(so_far == -inf, 0.0, so_far))
    return {"o": x.over(e if output else x.e, e if row_sum else x.e) @ x.heads_v}


def overflowing(x: Kernel) -> Wrong:
    """The unscaled product in float16."""
    s = x.q @ x.heads_k.swapaxes(-1, -2)
    if (np.abs(s) <= 65504).all():
        return None
    s = np.where(np.abs(s) > 65504, np.sign(s) * inf, s) * x.scale + (0.0 if x.bias is None else x.bias)
    s = np.where(x.allowed, s, -inf)
    m = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(m == -inf, 0.0, m))
    return {"o": x.over(e, e) @ x.heads_v}


special(
    "maximum_from_minus_50000",
    "the running maximum starts at −50000",
    lambda x: x.with_weights(x.weights(x.s, np.maximum(x.m, -5e4))),
    of="maximum_from_zero",
)
special(
    "maximum_of_first_block",
    "the maximum is that of the first 16 keys",
    lambda x: x.with_weights(x.weights(x.s, first_block(x))) if x.j > 16 else None,
)
special(
    "maximum_of_tensor",
    "the maximum of all rows is subtracted from each",
    lambda x: x.with_weights(x.weights(x.s, x.s.max(keepdims=True))),
)
special("scores_clamped", "the scores are kept within ±80", lambda x: clamped(x, 80.0))
special(
    "scores_capped",
    "the scores are capped softly at 50",
    lambda x: x.with_weights(x.weights(np.where(x.s == -inf, -inf, 50 * np.tanh(x.s / 50)))),
)
special("softmax_over_queries", "the softmax runs over the queries", over_queries)
special(
    "one_in_row_sum",
    "exp(0) is added to the row sum",
    lambda x: x.with_weights(x.e / (x.e.sum(-1, keepdims=True) + x.e_sink + np.exp(-x.m))),
)
for n in (5, 6, 7, 8, 9, 10, 12):
    special(
        f"row_sum_plus_1e-{n}",
        f"1e-{n} is added to the row sum",
        lambda x, n=n: x.with_weights(x.e / (x.e.sum(-1, keepdims=True) + x.e_sink + 10.0**-n)),
        of="row_sum_plus_1e-6",
    )
special("row_sum_of_last_block", "the output is divided by the row sum of the last block of keys", sum_of_last_block)
special(
    "row_sum_of_first_head",
    "the output is divided by the row sum of head 0",
    lambda x: {"o": (x.e * np.exp(x.m) / ((x.e * np.exp(x.m)).sum(-1, keepdims=True) + np.exp(x.z))[:, :1]) @ x.heads_v},
)
special("product_overflows", "the unscaled product overflows in float16", overflowing)
for n in (16, 32, 64, 128):
    special(
        f"rescale_of_output_missing_{n}",
        f"an online softmax in blocks of {n} rescales the row sum but not the output",
        partial(online, n=n, output=True, row_sum=False),
        of="rescale_of_output_missing",
    )
    special(
        f"rescale_of_row_sum_missing_{n}",
        f"an online softmax in blocks of {n} rescales the output but not the row sum",
        partial(online, n=n, output=False, row_sum=True),
        of="rescale_of_row_sum_missing_16",
    )
    if n != 16:
        special(
            f"rescale_missing_{n}",
            f"an online softmax in blocks of {n} does not rescale when the maximum changes",
            partial(online, n=n, output=True, row_sum=True),
            of="rescale_missing",
        )
