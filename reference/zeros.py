"""Which elements of an answer must be exactly zero, and which are undefined."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.reference import dense
from attnspec.reference.bounds.accuracy import LARGEST
from attnspec.reference.stages import heads, maps, sink
from attnspec.reference.stages.given import Given
from attnspec.reference.stages.stage import ScoreMap
from attnspec.spec import OPTIONS, Dialect, Problem, implements


@implements("ACCURACY-3")
def must_be_zero(
    problem: Problem,
    dialect: Dialect,
    values: dict[str, Array],
    live: Array,
    f: dense.Forward,
    given: Given,
    do: Array | None,
    lam: Array | None = None,
) -> dict[str, Array]:
    """Where nothing contributes to an output, so that it is exactly zero. What dropout removed contributes nothing.

    lam (b h i): the cotangent of the lse, which dropout does not reach.
    """
    grouping = dialect.head_grouping
    kept = np.broadcast_to(np.not_equal(given.factor, 0), live.shape)

    def nothing_reaches(pairs: Array, like: tuple[int, ...]) -> Array:
        """Keys (b h j) that no row reaches, in the shape of keys or values."""
        each = np.broadcast_to(
            np.any(pairs, axis=-2, keepdims=True).swapaxes(-1, -2), (*pairs.shape[:2], pairs.shape[3], like[-1])
        ).astype(float)
        return heads.sum_over_group(each, like, grouping) == 0

    live = live & kept
    not_a_number = f.bare & (dialect.empty_row == "nan") & (problem.j > 0)
    zero = {"o": np.broadcast_to(~(live.any(-1) | not_a_number)[..., None], f.o.shape)}
    if "lse" in values:
        zero["lse"] = np.zeros(values["lse"].shape, bool)
    if do is None:
        return zero
    asked = (do != 0).any(-1)[..., None]
    # Where dropout removed a whole row, dP and D are zero, and with them all of dS.
    scored = f.visible & asked & (f.visible & kept).any(-1)[..., None]
    if lam is not None:
        scored = scored | (f.visible & (lam != 0)[..., None])
    zero["dq"] = np.broadcast_to(np.logical_not(scored.any(-1, keepdims=True)), values["dq"].shape)
    zero["dk"] = nothing_reaches(scored, tuple(problem.k.shape))
    zero["dv"] = nothing_reaches(live & asked, tuple(problem.v.shape))
    for one in maps.active(given):
        if one.gradient:
            output, reached = f"d{one.option}", weighs(one, scored, given)
            zero[output] = dense.reduce_to(reached.astype(float), values[output].shape, OPTIONS[one.option].axes) == 0
    z = sink.logits(given)
    if z is not None:
        zero["dsinks"] = dense.of_rows(reaches_sink(scored.any(-1), z, lam).astype(float), "sinks", given) == 0
    return zero


def reaches_sink(scored: Array, z: Array, lam: Array | None) -> Array:
    """Rows (b h i) that add to the gradient of a sink: none of a head without one, and none without a key, where Δ is zero.

    scored: rows in which a key's score has a gradient. Of a row without a key the lse is the sink, and has a cotangent.
    """
    asked: Array = scored if lam is None else scored | (lam != 0)
    return asked & (z > -np.inf)


def weighs(one: ScoreMap, scored: Array, given: Given) -> Array:
    """Which of the scored elements (b h i j) add something to the gradient of a score map's own tensor.

    A weight of zero is none where a kernel may add a number to all weights of a row.
    """
    weight = one.weight(given)
    return scored if weight is None or one.common(given)[1] else scored & (weight != 0)


def _low(problem: Problem) -> float:
    """A number from which on a bias is as good as the lowest of the dtype: half of it."""
    return -LARGEST[str(problem.dtype).removeprefix("torch.")] / 2


def outranked(given: Given, f: dense.Forward) -> Array:
    """Rows (b h i) of which SOFTMAX-7 speaks: some keys are hidden, and all that are visible have a bias near the lowest number."""
    bias = given.operand("bias")
    if bias is None:
        return np.zeros(f.empty.shape, bool)
    low = bias <= _low(given.problem)
    return np.asarray(f.visible.any(-1) & ~f.visible.all(-1) & np.logical_not(f.visible & ~low).all(-1))


def is_undefined(
    problem: Problem, dialect: Dialect, operands: list[Array], given: Given, f: dense.Forward, values: dict[str, Array]
) -> dict[str, Array]:
    """Where the clauses promise nothing: a visible operand is NaN or infinite, or a NaN row reaches a gradient."""
    undefined = {name: np.zeros(value.shape, bool) for name, value in values.items()}
    poisoned = f.bare & (dialect.empty_row == "nan")
    bias, z = given.operand("bias"), sink.logits(given)
    if bias is not None and dialect.empty_row == "uniform":
        # A fill value decides among keys that it hides and keys that −∞ hides; EMPTY-1 leaves that open. The lowest number
        # is such a value, where a row has no better key and some are hidden.
        open_rows: Array = outranked(given, f) | (f.empty & np.broadcast_to((bias == -np.inf), f.visible.shape).any(-1))
        if z is not None:  # beside a sink neither the lowest number nor a fill value weighs anything
            open_rows = np.asarray(open_rows & ~(z > _low(problem)))
        undefined["o"] |= open_rows[..., None]
        if "lse" in values:
            undefined["lse"] |= open_rows
        poisoned = poisoned | open_rows
    bad_q, bad_k, bad_v = (~np.isfinite(x).all(-1) for x in operands)
    if bad_q.any() or bad_k.any() or bad_v.any():
        bad = heads.per_query_head((bad_k | bad_v)[..., None], problem.h, dialect.head_grouping)[..., 0]
        rows = (f.visible & (bad[:, :, None, :] | bad_q[..., None])).any(-1)
        undefined["o"] |= rows[..., None]
        if "lse" in values:  # to which no value belongs
            no_score = heads.per_query_head(bad_k[..., None], problem.h, dialect.head_grouping)[..., 0]
            undefined["lse"] |= (f.visible & (no_score[:, :, None, :] | bad_q[..., None])).any(-1)
        poisoned = poisoned | rows
    if bias is not None and (np.isnan(bias) | (bias == np.inf)).any():
        rows = (np.broadcast_to(np.isnan(bias) | (bias == np.inf), f.visible.shape) & f.visible).any(-1)
        undefined["o"] |= rows[..., None]
        if "lse" in values:
            undefined["lse"] |= rows
        poisoned = poisoned | rows
    if z is not None and not (z < np.inf).all():
        rows = np.broadcast_to(~(z < np.inf), f.empty.shape)
        undefined["o"] |= rows[..., None]
        if "lse" in values:
            undefined["lse"] |= rows
        poisoned = poisoned | rows
    if "lse" in values and dialect.lse_empty == "sentinel":
        undefined["lse"] |= f.bare
    if "dq" in values and poisoned.any():
        undefined["dq"] |= poisoned[..., None]
        reached = np.broadcast_to(np.asarray(poisoned.any(-1))[..., None, None], (*poisoned.shape[:2], problem.j, 1)).astype(float)
        for name, x in (("dk", problem.k), ("dv", problem.v)):
            like = (*x.shape[:-1], 1)
            undefined[name] |= heads.sum_over_group(reached, like, dialect.head_grouping) > 0
        rows = np.broadcast_to(poisoned[..., None], f.visible.shape).astype(float)
        for name, own in OPTIONS.items():
            if f"d{name}" in values:
                undefined[f"d{name}"] |= dense.reduce_to(rows, values[f"d{name}"].shape, own.axes) > 0
    return undefined
