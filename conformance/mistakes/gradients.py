"""Mistakes of the backward (GRAD)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter
from attnspec.reference.dense import reduce_to

GRADIENTS = Chapter()
enter, special = GRADIENTS.enter, GRADIENTS.special


def of_part(x: Kernel, part: Array) -> Wrong:
    """dk and dv of a part of the rows or heads; None where it is all that see a key."""
    return None if (part | x.empty).all() else {"dk": x.of_scores(x.ds * part)["dk"], **x.of_values(x.p * part)}


def last_of_group(x: Kernel) -> Array:
    """The last query head of each group, (h 1 1)."""
    last = {int(g): n for n, g in enumerate(x.kv_head)}.values()
    return np.isin(np.arange(x.h), list(last))[:, None, None]


def full(length: int, n: int) -> Array:
    """All but what is behind the last full n, where there is a full one."""
    return np.arange(length) < (length - length % n or length)


def key_tail_not_in_dq(x: Kernel) -> Wrong:
    """dq without the last keys; None where 16 divides their number, or they are not seen."""
    return None if (full(x.j, 16) | (x.s == -inf)).all() else {"dq": x.of_scores(x.ds * full(x.j, 16))["dq"]}


def bias_gradient(x: Kernel, averaged: bool) -> Wrong:
    """dbias as the mean of what was to be summed, or the first of it; None where there is nothing to sum."""
    if x.bias.size >= x.s.size:
        return None
    shape, ds = (1,) * (4 - x.bias.ndim) + x.bias.shape, np.where(x.empty, 0.0, x.ds)
    if averaged:
        return {"dbias": reduce_to(ds, x.bias.shape) * x.bias.size / x.s.size}
    return {"dbias": ds[tuple(slice(n) for n in shape)].reshape(x.bias.shape)}


def delta_of_neighbour(x: Kernel) -> Wrong:
    """dS with the delta of the row before."""
    return x.of_scores(x.p * (x.dp - np.roll(x.delta, 1, 2))) if x.i > 1 else None


def not_scaled(x: Kernel, name: str) -> Wrong:
    """dq or dk as if the scale were one."""
    return {name: x.of_scores(x.ds, scale=1.0)[name]} if x.scale != 1 else None


enter("delta_missing", "dS is P dP: the row sum is not subtracted", lambda x: x.of_scores(x.p * x.dp), "do")
enter("delta_of_neighbour", "dS uses the row sum of the previous row", delta_of_neighbour, "do")
enter("dq_not_scaled", "dq is not scaled", lambda x: not_scaled(x, "dq"), "do")
enter("dk_not_scaled", "dk is not scaled", lambda x: not_scaled(x, "dk"), "do")
enter("group_not_summed", "dk and dv are those of the last query head of a group", lambda x: of_part(x, last_of_group(x)), "do")
enter(
    "query_tail_not_in_dk",
    "dk and dv skip queries after the last full block of 16",
    lambda x: of_part(x, full(x.i, 16)[:, None]),
    "do",
)
enter("key_tail_not_in_dq", "dq skips keys after the last full block of 16", key_tail_not_in_dq, "do")
enter(
    "dv_not_normalised",
    "dv uses exp(s − m) without dividing by the row sum",
    lambda x: x.of_values(np.where(x.empty, x.p, x.e)),
    "do",
)
enter("dbias_of_first", "the gradient of a broadcast bias is not summed", lambda x: bias_gradient(x, False), "do bias")
enter("dbias_averaged", "the gradient of a broadcast bias is averaged", lambda x: bias_gradient(x, True), "do bias")


def changed(x: Kernel, change: Callable[[Array], Array]) -> Wrong:
    """Every gradient changed alike."""
    return {name: change(value) for name, value in (x.of_scores(x.ds) | x.of_values(x.p)).items()}


def nothing_but(x: Kernel, rows: Array) -> Wrong:
    """Gradients that come from a part of (b h i j) alone."""
    part = np.broadcast_to(rows, x.s.shape)
    return x.of_scores(x.ds * part) | x.of_values(x.p * part)


def moved(gradient: Array, step: int) -> Array:
    """A gradient of other positions; slopes have none."""
    return np.roll(gradient, step, -2) if gradient.ndim > 2 else gradient


CHANGES: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "zero": ("is zero", np.zeros_like),
    "nan": ("is NaN", lambda g: np.full(g.shape, np.nan)),
    "twice": ("is twice what it should be", lambda g: 2 * g),
    "negated": ("has the other sign", lambda g: -g),
    "channels_reversed": ("has its channels reversed", lambda g: g[..., ::-1]),
    "of_previous_key": ("is that of the previous position", lambda g: moved(g, 1)),
    "of_next_key": ("is that of the next position", lambda g: moved(g, -1)),
}


def one(x: Kernel, name: str, change: Callable[[Array], Array]) -> Wrong:
    """One gradient changed."""
    return {name: change((x.of_scores(x.ds) | x.of_values(x.p))[name])}


for name, (says, change) in CHANGES.items():
    for gradient, fields in (("dq", "do"), ("dk", "do"), ("dv", "do"), ("dbias", "do bias")):
        special(
            f"{gradient}_{name}",
            f"{gradient} {says}",
            partial(one, name=gradient, change=change),
            fields,
            coarse=name in ("zero", "nan"),
        )
    special(f"gradient_{name}", f"every gradient {says}", partial(changed, change=change), "do", coarse=name in ("zero", "nan"))
special(
    "gradient_averaged_over_items",
    "the gradient is divided by the number of batch items",
    lambda x: changed(x, lambda g: g / x.b),
    "do",
)


def of_keys(x: Kernel, rows: Array) -> Wrong:
    """dk and dv that come from a part of the rows."""
    return {name: value for name, value in (nothing_but(x, rows) or {}).items() if name in ("dk", "dv")}


special(
    "gradient_of_first_head",
    "gradients come from head 0 alone",
    lambda x: nothing_but(x, (np.arange(x.h) == 0)[:, None, None]),
    "do",
)
special(
    "gradient_of_first_item",
    "gradients come from batch item 0 alone",
    lambda x: nothing_but(x, (np.arange(x.b) == 0)[:, None, None, None]),
    "do",
)
special("gradient_items_in_first", "the gradients of all batch items are added to the first", lambda x: changed(x, in_first), "do")


def in_first(g: Array) -> Array:
    """The sum over batch items in the first place, zero elsewhere."""
    return np.concatenate([g.sum(0, keepdims=True), np.zeros_like(g[1:])]) if g.ndim == 4 else g


def of_ones(x: Kernel) -> Wrong:
    """The gradients for a cotangent of ones."""
    dp = np.ones_like(x.do) @ x.heads_v.swapaxes(-1, -2)
    ds = x.p * (dp - (x.p * dp).sum(-1, keepdims=True))
    return x.of_scores(ds) | {"dv": x.summed(x.p.swapaxes(-1, -2) @ np.ones_like(x.do), x.v)}


special("cotangent_of_ones", "the cotangent is treated as ones", of_ones, "do")


def with_delta(x: Kernel, delta: Array) -> Wrong:
    """dS with another delta."""
    return x.of_scores(x.p * (x.dp - delta))


def delta_of_width(x: Kernel, n: int) -> Wrong:
    """Delta over the first n channels of the values."""
    if n >= x.problem.e:
        return None
    return with_delta(x, (x.do * (x.p @ x.heads_v))[..., :n].sum(-1, keepdims=True))


special(
    "delta_of_first_head",
    "dS uses the row sum of head 0",
    lambda x: with_delta(x, np.broadcast_to(x.delta[:, :1], x.delta.shape)),
    "do",
)
special(
    "delta_without_last_channel",
    "the row sum of dO · O skips the last channel",
    lambda x: delta_of_width(x, x.problem.e - 1),
    "do",
)
special(
    "delta_of_query_width",
    "the row sum of dO · O uses as many channels as the queries have",
    lambda x: delta_of_width(x, x.problem.d),
    "do",
    of="delta_without_last_channel",
)
special(
    "delta_missing_behind_16",
    "after the first 16 keys dS is P dP: the row sum is not subtracted",
    lambda x: with_delta(x, x.delta * (np.arange(x.j) < 16)),
    "do",
    of="delta_missing",
)


def gradients_alone(wrong: Callable[[Kernel], Wrong]) -> Callable[[Kernel], Wrong]:
    """What a mistake gives beside the output."""

    def other(x: Kernel) -> Wrong:
        given = wrong(x)
        return None if given is None else {name: value for name, value in given.items() if name != "o"}

    return other


def again(x: Kernel, s: Array | None = None, lse: Callable[[Array], Array] | None = None) -> Wrong:
    """Gradients with P = exp(s − lse) of other scores or another lse."""
    s, own = x.s if s is None else s, np.where(x.forward.bare, 0.0, x.forward.lse)[..., None]
    with np.errstate(over="ignore"):  # another lse may be far below the scores
        p = np.where(x.empty, 0.0, np.exp(s - (own if lse is None else lse(own))))
    return x.of_scores(p * (x.dp - x.delta)) | x.of_values(p)


def scores(x: Kernel, seen: Array) -> Array:
    """The scores where other keys are seen."""
    return np.where(seen, x.scores(), -inf)


def padded(d: int, n: int) -> float:
    """The default scale of a width padded to a multiple of n."""
    return float((-(-d // n) * n) ** -0.5)


special(
    "mask_forgotten_in_backward",
    "backward computes the probabilities without the mask",
    lambda x: again(x, scores(x, x.placed())),
    "do mask",
)
special(
    "causal_forgotten_in_backward",
    "backward computes the probabilities without causal",
    lambda x: again(x, scores(x, x.unplaced)),
    "do causal",
)
special(
    "causal_less_in_backward",
    "with causal, backward lets each query see one key too few",
    lambda x: again(x, scores(x, x.unplaced & x.triangle(-1))),
    "do causal",
)
special(
    "bias_forgotten_in_backward",
    "backward computes the probabilities without the bias",
    lambda x: again(x, np.where(x.s == -inf, -inf, x.s - np.where(x.bias == -inf, 0.0, x.bias))),
    "do bias",
)
special("lse_of_row_before", "backward uses the lse of the previous row", lambda x: again(x, lse=lambda y: np.roll(y, 1, 2)), "do")
special("lse_of_first_head", "backward uses the lse of head 0", lambda x: again(x, lse=lambda y: y[:, :1]), "do")
special("lse_without_maximum_in_backward", "backward's lse lacks the maximum", lambda x: again(x, lse=lambda y: y - x.m), "do")


def other_scale(x: Kernel, scale: float) -> Wrong:
    """Backward with another scale: in its probabilities and in dq and dk, or in the latter alone."""
    if scale == x.scale:
        return None
    wrong = x.of_scores(x.ds, scale)
    return {name: wrong[name] for name in ("dq", "dk")}


special("scale_default_in_backward", "backward multiplies by the default scale", lambda x: other_scale(x, x.default_scale), "do")
special("scale_twice_in_backward", "backward multiplies by the scale twice", lambda x: other_scale(x, x.scale**2), "do")
for n in (8, 16, 64):
    special(
        f"scale_padded_to_{n}_in_backward",
        f"backward uses the scale of the width padded to a multiple of {n}",
        lambda x, n=n: other_scale(x, padded(x.problem.d, n)) if x.problem.scale is None else None,
        "do",
        of="scale_padded_to_8_in_backward",
    )
special(
    "values_of_ones_in_dv",
    "dv uses equal weights",
    lambda x: x.of_values((x.s > -inf) / np.maximum((x.s > -inf).sum(-1, keepdims=True), 1)),
    "do",
)


def some(x: Kernel, name: str, part: Array) -> Wrong:
    """One gradient from a part of (i j)."""
    return {name: (x.of_values(x.p * part) if name == "dv" else x.of_scores(x.ds * part))[name]}


def key_part(x: Kernel, n: int) -> Array:
    """Keys of the last block of n."""
    return np.arange(x.j) >= (x.j - 1) // n * n


for n in (16, 32, 64, 128):
    special(
        f"dq_of_last_{n}_keys",
        f"dq of the last block of {n} keys overwrites that of the others",
        lambda x, n=n: some(x, "dq", key_part(x, n)),
        "do",
        of="dq_of_last_16_keys",
    )
for n in (8, 32, 64, 128):
    special(
        f"queries_behind_{n}_not_in_dk",
        f"dk and dv skip queries after the last full block of {n}",
        lambda x, n=n: of_keys(x, full(x.i, n)[:, None]),
        "do",
        of="query_tail_not_in_dk",
    )
    special(
        f"keys_behind_{n}_not_in_dq",
        f"dq skips keys after the last full block of {n}",
        lambda x, n=n: some(x, "dq", full(x.j, n)),
        "do",
        of="key_tail_not_in_dq",
    )
for n in (16, 32, 64):
    special(
        f"queries_from_{n}_not_in_dk",
        f"dk and dv skip queries from {n} on",
        lambda x, n=n: of_keys(x, (np.arange(x.i) < n)[:, None]),
        "do",
        of="query_tail_not_in_dk",
    )


def from_heads(x: Kernel, which: Callable[[int], list[int]], share: float = 1.0) -> Wrong:
    """dk and dv of each key/value head as the sum over some query heads."""
    if x.h == x.g:
        return None
    wrong = {}
    ds, p = np.where(x.empty, 0.0, x.ds), x.p
    for name, each, a in (("dk", x.scale * (ds.swapaxes(-1, -2) @ x.q), x.k), ("dv", p.swapaxes(-1, -2) @ x.do, x.v)):
        total = [each[:, which(n)].sum(1, keepdims=True) * share for n in range(x.g)]
        wrong[name] = np.concatenate(total, axis=1).reshape(a.shape)
    return wrong


def group(x: Kernel, n: int) -> list[int]:
    """The query heads of key/value head n."""
    return [int(h) for h in np.flatnonzero(x.kv_head == n)]


special(
    "group_gradient_of_first",
    "dk and dv are those of the first query head of a group",
    lambda x: from_heads(x, lambda n: group(x, n)[:1]),
    "do",
    of="group_not_summed",
)
special(
    "group_averaged",
    "dk and dv are means over the query heads of a group, not sums",
    lambda x: from_heads(x, partial(group, x), x.g / x.h),
    "do",
)
special(
    "group_gradient_of_head_map",
    "backward groups query heads the other way",
    lambda x: (
        from_heads(x, lambda n: list(range(n, x.h, x.g)) if x.dialect.head_grouping == "blocked" else group(x, n))
        if x.g > 1
        else None
    ),
    "do",
)


def first_along(x: Kernel, axis: int) -> Wrong:
    """dbias as the first of what was to be summed along one axis."""
    shape = (1,) * (4 - x.bias.ndim) + x.bias.shape
    if shape[axis] > 1 or x.s.shape[axis] == 1:
        return None
    ds = np.where(x.empty, 0.0, x.ds)
    return {"dbias": reduce_to(ds.take([0], axis), x.bias.shape)}


def dbias(x: Kernel, ds: Array) -> Wrong:
    """dbias from another dS."""
    return {"dbias": reduce_to(np.broadcast_to(np.where(x.empty, 0.0, ds), x.s.shape), x.bias.shape)}


for axis, over in enumerate(("batch items", "heads", "queries", "keys")):
    special(
        f"dbias_of_first_along_{over.replace(' ', '_')}",
        f"the gradient of a broadcast bias is not summed over {over}",
        lambda x, axis=axis: first_along(x, axis),
        "do bias",
        of="dbias_of_first",
    )
    for step in (1, -1):
        special(
            f"dbias_of_neighbour_{axis}{'' if step == 1 else '_back'}",
            f"the gradient of the bias is written to the neighbouring position along {over}",
            lambda x, axis=axis, step=step: dbias(x, np.roll(x.ds, step, axis)),
            "do bias",
            of="dbias_of_neighbour_0",
        )
special("dbias_scaled", "the gradient of the bias is multiplied by the scale", lambda x: dbias(x, x.scale * x.ds), "do bias")
special(
    "dbias_unscaled",
    "the gradient of the bias is divided by the scale",
    lambda x: dbias(x, x.ds / x.scale) if x.scale else None,
    "do bias",
    of="dbias_scaled",
)
for n in (16, 32, 64):
    special(
        f"dbias_of_last_{n}_keys",
        f"the gradient of the bias comes from the last block of {n} keys alone",
        lambda x, n=n: dbias(x, x.ds * key_part(x, n)),
        "do bias",
        of="dbias_of_last_16_keys",
    )


def spilled(x: Kernel, n: int) -> Wrong:
    """dk and dv where the store of a head, in blocks of n columns, zeroes the first columns of the next head."""
    spill = min(-x.problem.d % n, x.problem.d)
    if x.k.ndim == 3 or x.g < 2 or not spill:
        return None
    right = x.of_scores(x.ds) | x.of_values(x.p)
    wrong = {name: right[name].copy() for name in ("dk", "dv")}
    for gradient in wrong.values():
        gradient[:, 1:, :, :spill] = 0.0
    return wrong


for n in (8, 16, 32, 64):
    special(
        f"gradient_spills_{n}",
        f"dk and dv are stored {n} columns at a time, over the first columns of the next head",
        lambda x, n=n: spilled(x, n),
        "do",
        of="gradient_spills_32",
    )
