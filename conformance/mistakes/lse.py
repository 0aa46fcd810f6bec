"""Mistakes of the lse, and of the gradients that go through it (LSE)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter
from attnspec.reference.stages.lse import LN2, SENTINEL, returned, unit

LSE = Chapter()
enter, special = LSE.enter, LSE.special
HALVES = (torch.float16, torch.bfloat16)


def right(x: Kernel) -> Array:
    """The lse as it is returned (b h i)."""
    return returned(x.forward.lse, x.forward.empty, x.dialect)


def of_natural(x: Kernel, lse: Array) -> Wrong:
    """Another natural lse in rows that see a key."""
    return {"lse": returned(np.where(x.forward.empty, -inf, lse), x.forward.empty, x.dialect)}


def of_empty(x: Kernel, number: float) -> Wrong:
    """Another number in rows without a key; None where there are none, or it is theirs."""
    if not x.empty.any() or x.dialect.lse_empty == "sentinel":
        return None
    lse = np.where(x.forward.empty, number, right(x))
    return None if np.array_equal(lse, right(x)) else {"lse": lse}


def other_base(x: Kernel) -> Wrong:
    """In base 2 in the place of the natural one, or the other way round."""
    return x.with_choice("lse_base", "e" if x.dialect.lse_base == "2" else "2") if x.j else None


def rounded(x: Kernel) -> Wrong:
    """The lse rounded to the dtype of the queries; None where that is as wide."""
    if x.problem.dtype not in HALVES or x.dialect.lse_dtype == "operand":
        return None
    return {"lse": torch.from_numpy(right(x)).to(x.problem.dtype).double().numpy()}


def summed(x: Kernel, keys: slice) -> Wrong:
    """The sum over some of the keys; None where those are all, or beside sinks."""
    s = x.s[..., keys]
    if s.shape[-1] == x.j or x.problem.sinks is not None:
        return None
    with np.errstate(divide="ignore"):
        m = np.max(s, -1, initial=-inf)
        pivot = np.where(np.isneginf(m), 0.0, m)
        return of_natural(x, pivot + np.log(np.exp(s - pivot[..., None]).sum(-1)))


def other_sum(x: Kernel) -> Wrong:
    """With the sink in the sum where it is not, or without it."""
    if x.problem.dlse is not None:
        return None  # no gradients go through the lse of the keys alone
    return x.with_choice("lse_includes_sink", "no" if x.dialect.lse_includes_sink == "yes" else "yes")


def with_sink(x: Kernel, times: int) -> Wrong:
    """With so many terms of the sink."""
    alone = x.forward.lse_of_keys
    with np.errstate(divide="ignore"):
        return None if alone is None else of_natural(x, np.logaddexp(alone, x.z[..., 0] + np.log(times)))


def without_bias(x: Kernel) -> Wrong:
    """The lse of a call without its bias."""
    return {"lse": x.on(bias=np.where(x.bias == -inf, -inf, 0.0))["lse"]}


def of_scale(x: Kernel, scale: float) -> Wrong:
    """The lse of a call with another scale; None where it is the same."""
    return {"lse": x.on(scale=scale)["lse"]} if scale != x.scale else None


def rolled(x: Kernel, axis: int) -> Wrong:
    """The lse of the place before; None where there is no other."""
    return {"lse": np.roll(right(x), 1, axis)} if right(x).shape[axis] > 1 else None


def turned(x: Kernel) -> Wrong:
    """Written as (b i h) and read as (b h i); None where that is the same."""
    lse = right(x)
    return {"lse": lse.swapaxes(1, 2).reshape(lse.shape)} if min(lse.shape[1:]) > 1 else None


def with_cotangent(x: Kernel, change: Callable[[Array], Array]) -> Wrong:
    """The gradients where the cotangent of the lse is another one."""
    assert x.lam is not None
    lam = x.lam[..., None]
    other = np.where(x.empty, 0.0, change(lam))
    if np.array_equal(other, lam):
        return None
    return x.of_scores(x.ds + x.p * (other - lam))


def in_part(x: Kernel, names: tuple[str, ...]) -> Wrong:
    """Some of the gradients without the cotangent of the lse."""
    return {name: value for name, value in (with_cotangent(x, np.zeros_like) or {}).items() if name in names}


def first_row(lam: Array) -> Array:
    """The first row's, everywhere."""
    return np.broadcast_to(lam[:, :, :1], lam.shape)


enter("lse_base", "the lse has another base", other_base, "lse")
special("lse_rounded", "the lse is rounded to the dtype of the queries", rounded, "lse")
enter("lse_sink", "the lse has the term of the sink where it must not, or lacks it", other_sum, "lse sinks")
special("lse_sink_twice", "the lse has the term of the sink twice", lambda x: with_sink(x, 2), "lse sinks")
enter("lse_is_the_maximum", "the lse is the largest score of the row", lambda x: of_natural(x, x.forward.m), "lse")
enter("lse_cotangent_ignored", "the cotangent of the lse is ignored", lambda x: with_cotangent(x, np.zeros_like), "lse dlse")
enter("lse_empty_minus_inf", "the lse of a row without a key is −∞", lambda x: of_empty(x, -inf), "lse")
enter("lse_empty_plus_inf", "the lse of a row without a key is +∞", lambda x: of_empty(x, inf), "lse")
enter("lse_empty_sentinel", "the lse of a row without a key is a very negative number", lambda x: of_empty(x, 5 * SENTINEL), "lse")

enter("lse_empty_zero", "the lse of a row without a key is zero", lambda x: of_empty(x, 0.0), "lse", special=True)
special("lse_zero", "the lse is zero", lambda x: {"lse": np.zeros_like(right(x))}, "lse", coarse=True)
special("lse_nan", "the lse is NaN", lambda x: {"lse": np.full(right(x).shape, np.nan)}, "lse", coarse=True)
special("lse_negated", "the lse has the other sign", lambda x: {"lse": -right(x)}, "lse")
special(
    "lse_without_log",
    "the lse is the sum, and not its log",
    lambda x: of_natural(x, np.exp(np.minimum(x.forward.lse, 700.0))),
    "lse",
)
special("lse_without_maximum", "the lse lacks the maximum of the row", lambda x: of_natural(x, x.forward.lse - x.forward.m), "lse")
special(
    "lse_times_ln2",
    "the lse is multiplied by ln 2 once more",
    lambda x: {"lse": right(x) * LN2} if unit(x.dialect) == 1 else None,
    "lse",
)
special("lse_not_scaled", "the lse is that of a scale of one", lambda x: of_scale(x, 1.0), "lse")
special("lse_default_scale", "the lse is that of the default scale", lambda x: of_scale(x, x.default_scale), "lse scale")
special("lse_without_bias", "the lse is that of a call without the bias", without_bias, "lse bias")
special(
    "lse_without_softcap",
    "the lse is that of a call without the soft cap",
    lambda x: {"lse": x.on(softcap=None)["lse"]},
    "lse softcap",
)
for block in (16, 32, 64, 128):
    special(
        f"lse_without_tail_{block}",
        f"the lse lacks the keys after the last full block of {block}",
        lambda x, block=block: summed(x, slice(0, x.j - x.j % block or x.j)),
        "lse",
        of="lse_without_tail_16",
    )
    special(
        f"lse_of_first_{block}",
        f"the lse is that of the first {block} keys",
        lambda x, block=block: summed(x, slice(0, block)) if x.j > block else None,
        "lse",
        of="lse_of_first_16",
    )
special("lse_of_previous_head", "the lse is that of the head before", partial(rolled, axis=1), "lse")
special("lse_of_previous_row", "the lse is that of the row before", partial(rolled, axis=2), "lse")
special("lse_turned", "the lse is written as (b i h) and read as (b h i)", turned, "lse")
special(
    "lse_cotangent_negated", "the cotangent of the lse has the other sign", lambda x: with_cotangent(x, np.negative), "lse dlse"
)
special("lse_cotangent_twice", "the cotangent of the lse counts twice", lambda x: with_cotangent(x, lambda y: 2 * y), "lse dlse")
special(
    "lse_cotangent_of_first_row", "the cotangent of the lse is that of row 0", lambda x: with_cotangent(x, first_row), "lse dlse"
)
special("lse_cotangent_not_in_dq", "dq lacks the cotangent of the lse", lambda x: in_part(x, ("dq",)), "lse dlse")
special("lse_cotangent_not_in_dk", "dk lacks the cotangent of the lse", lambda x: in_part(x, ("dk",)), "lse dlse")
special(
    "lse_cotangent_in_another_base",
    "the cotangent of the lse is taken for one in another base",
    lambda x: with_cotangent(x, lambda y: y / LN2 if unit(x.dialect) == 1 else y * LN2),
    "lse dlse",
)
