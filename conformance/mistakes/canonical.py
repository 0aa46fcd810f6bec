"""Canonical mistakes: for each, the answer that an otherwise exact kernel that makes it would give.

A mistake that is a call on another problem is the reference's answer to that one, with its gradients put where the caller's
tensors are; one inside the arithmetic changes a step of :class:`Kernel`. All values are float64 and not rounded, so that
what differs from the exact answer is the mistake alone. :func:`power` says by how many bounds it does;
:mod:`attnspec.conformance.diagnosis.diagnose` compares a failing answer with each of them.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.conformance.judging.judge import compare, together
from attnspec.conformance.mistakes import arithmetic, gradients, reading  # noqa: F401  they enter their own
from attnspec.conformance.mistakes.kernel import Kernel, Wrong, first_alone, of_first, reduced, swapped
from attnspec.conformance.mistakes.table import MISTAKES as MISTAKES  # full, once this module is imported
from attnspec.conformance.mistakes.table import enter, filled, special, without
from attnspec.reference import Exact
from attnspec.spec import Problem
from attnspec.spec.words import INPUT_OF

# POWER


def power(problem: Problem, exact: Exact, class_: str) -> dict[str, float]:
    """How far from right each mistake that applies is, as the judge would see it: the largest multiple of the bound.

    0 where it changes nothing, infinite where the answer must be exactly zero or the wrong one is not finite. With dropout
    in training nothing applies: what is right depends on what was drawn.
    """
    found: dict[str, float] = {}
    for name, one in MISTAKES.items() if not (problem.training and problem.dropout) else ():
        if one.special:
            continue
        wrong = one.wrong(problem, exact.dialect, exact)
        if wrong is not None and wrong.keys() & set(asked_outputs(problem)):
            found[name] = multiple(wrong, exact, class_)
    return found


def asked_outputs(problem: Problem) -> tuple[str, ...]:
    """The outputs that an answer to the problem has."""
    return ("o", *(f"d{name}" for name in problem.wrt)) if problem.do is not None else ("o",)


def multiple(wrong: dict[str, Array], exact: Exact, class_: str) -> float:
    """The largest error of an answer as a multiple of its bound; outputs that are not given are right."""
    tolerance, worst = exact.tolerance(class_), 0.0
    for name in asked_outputs(exact.problem):
        limits = together(exact, tolerance.bound, tolerance.exempt, name)
        worst = max(worst, compare(combined(wrong, exact, name), *limits, name)[1])
    return worst


def combined(wrong: dict[str, Array], exact: Exact, name: str) -> Array:
    """One output of an answer, right where it is not given; where one tensor was given twice, the sum of its parts."""
    own = getattr(exact.problem, INPUT_OF[name]) if name != "o" else None
    parts = [name] if own is None else [n for n in exact.values if n != "o" and getattr(exact.problem, INPUT_OF[n]) is own]
    return np.sum([wrong.get(part, exact.values[part]) for part in parts], axis=0)


# KEYS


enter("first_key_dropped", "the first key is skipped", lambda x: x.with_keys(without(x.j, 0, 1)))
enter("last_key_dropped", "the last key is skipped", lambda x: x.with_keys(without(x.j, x.j - 1, x.j)))
enter(
    "tail_of_16_dropped",
    "keys after the last full block of 16 are skipped",
    lambda x: x.with_keys(np.arange(x.j - x.j % 16 or x.j)),
)
enter(
    "tail_of_64_dropped",
    "keys after the last full block of 64 are skipped",
    lambda x: x.with_keys(np.arange(x.j - x.j % 64 or x.j)),
)
enter("block_dropped", "the second block of 16 keys is skipped", lambda x: x.with_keys(without(x.j, 16, 32)))
enter(
    "key_twice", "the last of the first 16 keys is read twice", lambda x: x.with_keys(np.sort(np.r_[: x.j, 15 : 16 * (x.j > 16)]))
)
enter(
    "tail_of_zeros", "the last block of 16 is padded with zero keys that count in the row sum", lambda x: x.with_keys(filled(x.j))
)

# CAUSAL, MASK, EMPTY


def mask_as_bias(x: Kernel) -> Wrong:
    """0 and 1 added to the scores, and nothing hidden but by the bias; None where the mask hides nothing."""
    if x.masked.all():
        return None
    wrong = x.on(mask=None, bias=x.masked + (0.0 if x.bias is None else x.bias))
    if "dbias" in wrong:
        gradient = wrong.pop("dbias")
        return wrong if x.bias is None else wrong | {"dbias": reduced(gradient, x.bias.shape)}
    return wrong


def as_lengths(x: Kernel) -> Array | None:
    """The mask that shows as many keys of a row, but the first ones."""
    return np.arange(x.j) < x.mask.sum(-1, keepdims=True) if x.mask.shape[-1] == x.j else None


def other_corner(x: Kernel) -> Wrong:
    """The triangle of the other alignment."""
    corner = "top_left" if x.dialect.causal_alignment == "bottom_right" else "bottom_right"
    return x.seeing(x.masked & x.triangle(corner=corner))


def empty_rows(x: Kernel, rule: str) -> Wrong:
    """Another rule for rows without a key, where there are such rows."""
    return x.with_choice("empty_row", rule) if x.empty.any() and x.j else None


def by_item(x: Kernel) -> Array | None:
    """The mask (h i j) as one for each batch item."""
    return x.mask[:, None] if x.mask.ndim == 3 and len(x.mask) == x.problem.b else None


enter("causal_one_more", "with causal, each query sees one key too many", lambda x: x.seeing(x.masked & x.triangle(1)), "causal")
enter("causal_one_less", "with causal, each query sees one key too few", lambda x: x.seeing(x.masked & x.triangle(-1)), "causal")
enter("causal_corner", "causal is aligned at the other corner", other_corner, "causal")
enter("causal_ignored", "causal is ignored", lambda x: x.seeing(x.masked), "causal")
enter("causal_ignored_with_mask", "causal is ignored beside a mask", lambda x: x.seeing(x.masked), "causal mask")
enter("mask_ignored_with_causal", "a mask is ignored beside causal", lambda x: x.with_mask(np.ones_like(x.mask)), "causal mask")
enter("mask_ignored", "the mask is ignored", lambda x: x.with_mask(np.ones_like(x.mask)), "mask")
enter("mask_inverted", "the mask hides keys where it is True", lambda x: x.with_mask(~x.mask), "mask")
enter("mask_transposed", "the mask is read with queries and keys swapped", lambda x: x.with_mask(swapped(x.mask, 3)), "mask")
enter(
    "mask_of_neighbour",
    "the mask of another batch item is used",
    lambda x: x.with_mask(np.roll(x.mask, x.mask.ndim != 3, 0)),
    "mask",
)
enter("mask_of_first_head", "the mask of head 0 is used for all", lambda x: x.with_mask(of_first(x.mask, -3)), "mask")
enter(
    "mask_as_lengths",
    "only the number of visible keys in each row of the mask is used",
    lambda x: x.with_mask(as_lengths(x)),
    "mask",
)
enter("mask_by_item", "a mask (h i j) is read as (b i j)", lambda x: x.with_mask(by_item(x)), "mask")
enter("mask_as_bias", "the mask is added to the scores as 0 and 1", mask_as_bias, "mask")
enter("empty_row_zero", "a query without a key gives zero", lambda x: empty_rows(x, "zero"))
enter("empty_row_uniform", "a query without a key gives the mean of all values", lambda x: empty_rows(x, "uniform"))
enter("empty_row_nan", "a query without a key gives NaN", lambda x: empty_rows(x, "nan"))

# HEADS AND BATCH ITEMS


def head_map(x: Kernel) -> Wrong:
    """The other grouping, where it is another."""
    other = "strided" if x.dialect.head_grouping == "blocked" else "blocked"
    return x.with_choice("head_grouping", other) if 1 < x.g < x.h else None


def next_kv_head(x: Kernel) -> Wrong:
    """Keys and values of the following head."""
    return x.with_kv(lambda k: np.roll(k, -1, 1), lambda dk: np.roll(dk, 1, 1)) if x.g > 1 else None


def of_first_kv(x: Kernel, axis: int) -> Wrong:
    """Keys and values that stand first along an axis, which get the gradients of all."""
    return x.with_kv(lambda k: of_first(k, axis - k.ndim), lambda dk: first_alone(dk, axis))


enter("head_map", "query heads are grouped the other way (n % g instead of n // (h / g))", head_map)
enter("next_kv_head", "each query head uses the next key/value head", next_kv_head)
enter("first_kv_head", "all query heads use key/value head 0", lambda x: of_first_kv(x, 1) if x.g > 1 else None)
enter("first_item", "all batch items use the keys and values of item 0", lambda x: of_first_kv(x, 0))

# SCALE, BIAS


def bias_of_first_head(x: Kernel) -> Wrong:
    """Head 0's bias, which gets the gradient of all."""
    return x.with_bias(of_first(x.bias, -3), lambda dx: first_alone(dx, -3))


def bias_scaled(x: Kernel) -> Wrong:
    """The bias times the scale; −∞ stays."""
    return x.with_bias(np.where(np.isinf(x.bias), x.bias, np.nan_to_num(x.bias) * x.scale), lambda dx: dx * x.scale)


def bias_inf_finite(x: Kernel) -> Wrong:
    """A finite number for −∞; None where −∞ leaves each row a key, beside which such a number weighs nothing."""
    emptied = x.empty[..., 0] & x.allowed.any(-1)
    return x.with_bias(np.maximum(x.bias, torch.finfo(x.problem.dtype).min)) if emptied.any() else None


enter("scale_missing", "the scores are not scaled", lambda x: x.with_scale(1.0))
enter("scale_ignored", "a given scale is not used", lambda x: x.with_scale(x.default_scale))
enter("scale_twice", "a given scale is applied twice", lambda x: x.with_scale(x.scale**2, given=True))
enter("scale_1_over_d", "the default scale is 1/d instead of 1/√d", lambda x: x.with_scale(x.scale**2, given=False))
enter(
    "scale_of_model",
    "the default scale uses the width of all heads together",
    lambda x: x.with_scale(x.scale * max(x.h, 1) ** -0.5, given=False),
)
enter(
    "scale_of_values",
    "the default scale uses the width of the values",
    lambda x: x.with_scale(max(x.problem.e, 1) ** -0.5, given=False),
)
enter("scale_unsigned", "the sign of the scale is lost", lambda x: x.with_scale(abs(x.scale)))
enter("scale_off", "the scale is off by 0.1 %", lambda x: x.with_scale(1.001 * x.scale))
enter("bias_ignored", "the bias is ignored", lambda x: x.with_bias(np.zeros_like(x.bias), np.zeros_like), "bias")
enter("bias_twice", "the bias is added twice", lambda x: x.with_bias(2 * x.bias, lambda dx: 2 * dx), "bias")
enter("bias_scaled", "the bias is scaled with the scores", bias_scaled, "bias")
enter("bias_transposed", "the bias is read with queries and keys swapped", lambda x: x.with_bias(swapped(x.bias), swapped), "bias")
enter("bias_of_first_head", "the bias of head 0 is used for all", bias_of_first_head, "bias")
enter("bias_inf_finite", "−∞ in the bias is read as the dtype's lowest number", bias_inf_finite, "bias")

# SOFTMAX


def other_exp(x: Kernel, pivot: Array) -> Wrong:
    """exp(s − pivot) in the range of what the dtype is computed in; None where nothing leaves it."""
    s = x.s - pivot
    high, low = (709.78, -745.13) if x.problem.dtype == torch.float64 else (88.72, -103.97)
    if not ((s > high) | ((s < low) & (x.e > 0))).any():
        return None
    e = np.where(s > high, inf, np.where(s < low, 0.0, np.exp(np.minimum(s, high))))
    return x.with_weights(x.over(e, e))


def online(x: Kernel, output_alone: bool) -> Wrong:
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
enter("rescale_missing", "an online softmax does not rescale when the maximum changes", lambda x: online(x, False))
enter("rescale_of_output_missing", "an online softmax rescales the row sum but not the output", lambda x: online(x, True))

# OUTPUT


def scores_ignored(x: Kernel, everywhere: bool) -> Wrong:
    """Equal weights, for all keys or for those that are seen; the bias has no gradient."""
    bias = None if x.bias is None or everywhere else np.where(x.bias == -inf, -inf, 0.0)
    changes: dict[str, Any] = {"bias": bias} | ({"mask": None, "causal": False} if everywhere else {})
    wrong = x.on(scale=0.0, **changes)
    return wrong | ({"dbias": np.zeros_like(x.bias)} if x.bias is not None and "dq" in wrong else {})


def narrow(x: Kernel, channels: int) -> Wrong:
    """Of queries and keys only the first channels."""
    used = np.arange(x.problem.d) < channels
    return None if used.all() else x.on(q=x.q * used, k=x.k * used)


enter("mean_of_values", "the output is the mean of all values", lambda x: scores_ignored(x, True), coarse=True)
enter("scores_ignored", "all visible keys weigh the same", lambda x: scores_ignored(x, False))
enter("last_row_zero", "the last row of the output is zero", lambda x: x.zeroed(np.s_[:, :, -1:]), coarse=True)
enter(
    "row_tail_zero",
    "rows after the last full block of 16 are zero",
    lambda x: x.zeroed(np.s_[:, :, x.i - x.i % 16 or x.i :]),
    coarse=True,
)
enter(
    "value_tail_zero",
    "output channels after the first d are zero",
    lambda x: x.zeroed(np.s_[..., x.problem.d :]) if 0 < x.problem.d < x.problem.e else None,
    coarse=True,
)
enter("width_tail_of_8", "scores skip channels after the last full block of 8", lambda x: narrow(x, x.problem.d // 8 * 8))
enter("width_tail_of_16", "scores skip channels after the last full block of 16", lambda x: narrow(x, x.problem.d // 16 * 16))

# GRADIENTS


def of_part(x: Kernel, part: Array) -> Wrong:
    """dk and dv of a part of the rows or heads; None where it is all that see a key."""
    return None if (part | x.empty).all() else {"dk": x.of_scores(x.ds * part)["dk"], **x.of_values(x.p * part)}


def last_of_group(x: Kernel) -> Array:
    """The last query head of each group, (h 1 1)."""
    last = {int(g): n for n, g in enumerate(x.kv_head)}.values()
    return np.isin(np.arange(x.h), list(last))[:, None, None]


def head_of(n: int) -> Array:
    """All of n but what is behind the last full 16."""
    return np.arange(n) < (n - n % 16 or n)


def key_tail_not_in_dq(x: Kernel) -> Wrong:
    """dq without the last keys; None where 16 divides their number, or they are not seen."""
    return None if (head_of(x.j) | (x.s == -inf)).all() else {"dq": x.of_scores(x.ds * head_of(x.j))["dq"]}


def bias_gradient(x: Kernel, averaged: bool) -> Wrong:
    """dbias as the mean of what was to be summed, or the first of it; None where there is nothing to sum."""
    if x.bias.size >= x.s.size:
        return None
    shape, ds = (1,) * (4 - x.bias.ndim) + x.bias.shape, np.where(x.empty, 0.0, x.ds)
    if averaged:
        return {"dbias": reduced(ds, x.bias.shape) * x.bias.size / x.s.size}
    return {"dbias": ds[tuple(slice(n) for n in shape)].reshape(x.bias.shape)}


def delta_of_neighbour(x: Kernel) -> Wrong:
    """dS with the delta of the row before."""
    return x.of_scores(x.p * (x.dp - np.roll(x.delta, 1, 2))) if x.i > 1 else None


def not_scaled(x: Kernel, name: str) -> Wrong:
    """dq or dk as if the scale were one."""
    ds = np.where(x.empty, 0.0, x.ds)
    wrong = {"dq": ds @ x.heads_k, "dk": x.summed(ds.swapaxes(-1, -2) @ x.q, x.k)}
    return {name: wrong[name]} if x.scale != 1 else None


enter("delta_missing", "dS is P dP: the row sum is not subtracted", lambda x: x.of_scores(x.p * x.dp), "do")
enter("delta_of_neighbour", "dS uses the row sum of the previous row", delta_of_neighbour, "do")
enter("dq_not_scaled", "dq is not scaled", lambda x: not_scaled(x, "dq"), "do")
enter("dk_not_scaled", "dk is not scaled", lambda x: not_scaled(x, "dk"), "do")
enter("group_not_summed", "dk and dv are those of the last query head of a group", lambda x: of_part(x, last_of_group(x)), "do")
enter(
    "query_tail_not_in_dk",
    "dk and dv skip queries after the last full block of 16",
    lambda x: of_part(x, head_of(x.i)[:, None]),
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

# MEMORY


def misread(x: Kernel, name: str, at_start: bool) -> Wrong:
    """What stands in a tensor's memory if it were contiguous, or began with the memory; None where it is so, or memory ends."""
    tensor = getattr(x.problem, name).detach()
    strides, offset = torch.empty(tensor.shape, device="meta").stride(), tensor.storage_offset()
    room = tensor.untyped_storage().nbytes() // tensor.element_size()
    if (not offset) if at_start else (tensor.is_contiguous() or offset + tensor.numel() > room):
        return None
    wrong = x.on(**{name: tensor.as_strided(tensor.shape, tensor.stride() if at_start else strides, 0 if at_start else offset)})
    return {output: value for output, value in wrong.items() if name != "do" or output != "o"}


for name in ("q", "k", "v", "do"):
    enter(f"strides_of_{name}", f"{name} is read as if it were contiguous", partial(misread, name=name, at_start=False), name)
for name in ("q", "k", "v"):
    enter(f"offset_of_{name}", f"{name} is read from the start of its memory", partial(misread, name=name, at_start=True))
for name in ("mask", "bias"):
    special(f"strides_of_{name}", f"the {name} is read as if it were contiguous", partial(misread, name=name, at_start=False), name)
    special(
        f"offset_of_{name}", f"the {name} is read from the start of its memory", partial(misread, name=name, at_start=True), name
    )
