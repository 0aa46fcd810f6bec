"""Mistakes of the soft cap (SOFTCAP)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.conformance.mistakes.gradients import again
from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter
from attnspec.reference import dense
from attnspec.reference.stages.softcap import Softcap
from attnspec.spec import CHOICES

SOFTCAP = Chapter()
enter, special = SOFTCAP.enter, SOFTCAP.special


def other_order(x: Kernel) -> Wrong:
    """The bias on the other side of the cap."""
    (other,) = (value for value in CHOICES["softcap_order"].values if value != x.dialect.softcap_order)
    return x.with_choice("softcap_order", other)


def cap(x: Kernel) -> float:
    """Of a problem that has one."""
    return float(x.problem.softcap or inf)


def bent(x: Kernel, bend: Callable[[Array], Array]) -> Array:
    """The scores with something else in the place of the cap, on its side of the bias."""
    z = x.forward.z
    bias = x.sloped + (0.0 if x.bias is None else np.where(x.bias == -inf, 0.0, x.bias))
    return bend(z) + bias if x.dialect.softcap_order == "before_bias" else bend(z + bias)


def with_scores(x: Kernel, s: Array, hidden: Array | float = -inf) -> Wrong:
    """The output and dv with other scores of the visible keys, and these of the hidden ones; of other gradients nothing is said."""
    wrong = x.with_weights(x.weights(np.where(x.s > -inf, s, hidden)))
    return {name: wrong[name] for name in ("o", "dv") if name in wrong}


def with_bend(x: Kernel, bend: Callable[[Array], Array]) -> Wrong:
    """With something else in the place of the cap."""
    return with_scores(x, bent(x, bend))


def leaking(x: Kernel) -> Wrong:
    """−∞ goes through tanh, and comes back as −c; None where nothing is hidden."""
    if (x.s > -inf).all():
        return None
    before = x.dialect.softcap_order == "before_bias"
    bias = (x.sloped if before else 0.0) + (np.where(x.bias == -inf, 0.0, x.bias) if before and x.bias is not None else 0.0)
    return with_scores(x, x.s, np.broadcast_to(bias - cap(x), x.s.shape))


def slope(x: Kernel) -> Array:
    """That of the cap."""
    before = x.dialect.softcap_order == "before_bias"
    return Softcap().slope(x.forward.z if before else x.forward.scores[-2], x.given)


def with_slope(x: Kernel, other: Array) -> Wrong:
    """dq and dk with another slope."""
    dq, each = dense.product_gradients(x.q, x.heads_k, np.where(x.empty, 0.0, x.ds) * other, x.scale)
    return {"dq": dq, "dk": x.summed(each, x.k)}


def slope_of_first_head(x: Kernel) -> Wrong:
    """That of head 0 for all; None where there is no other."""
    return with_slope(x, np.broadcast_to(slope(x)[:, :1], x.s.shape)) if x.h > 1 else None


def overflown(y: Array, largest: float) -> Array:
    """tanh of exponentials that are infinite behind the largest argument."""
    return np.where(np.abs(y) > largest, np.nan, np.tanh(y))


def partly(x: Kernel, keys: Array) -> Wrong:
    """The cap for some keys alone; None where those are all."""
    return None if keys.all() else with_scores(x, np.where(keys, x.s, bent(x, lambda z: z)))


def behind(x: Kernel, n: int) -> Array:
    """The keys behind the last full block of n."""
    return np.arange(x.j) >= x.j - x.j % n


def bias_gradient(x: Kernel) -> Wrong:
    """dbias with the slope where the bias is outside of the cap, and without it where it is inside."""
    if "bias" not in x.problem.wrt:
        return None
    ds = np.where(x.empty, 0.0, x.ds)
    ds = ds * slope(x) if x.dialect.softcap_order == "before_bias" else ds
    return {"dbias": dense.reduce_to(ds, tuple(x.bias.shape))}


def in_bfloat16(x: Kernel) -> Wrong:
    """With the cap of eight bits; None where it has no more."""
    rounded = float(torch.tensor(cap(x)).bfloat16())
    return x.on(softcap=rounded) if rounded != cap(x) else None


enter("softcap_ignored", "the soft cap is ignored", lambda x: x.on(softcap=None), "softcap")
enter("softcap_order", "the bias stands on the other side of the soft cap", other_order, "softcap bias")
enter("softcap_slope_missing", "dq and dk lack the slope of the soft cap", lambda x: with_slope(x, np.ones(1)), "softcap do")

special(
    "softcap_ignored_with_bias",
    "the soft cap is ignored beside a bias",
    lambda x: x.on(softcap=None),
    "softcap bias",
    of="softcap_ignored",
)
special(
    "softcap_ignored_with_mask",
    "the soft cap is ignored beside a mask",
    lambda x: x.on(softcap=None),
    "softcap mask",
    of="softcap_ignored",
)
special(
    "softcap_ignored_with_causal",
    "the soft cap is ignored beside causal",
    lambda x: x.on(softcap=None),
    "softcap causal",
    of="softcap_ignored",
)
special("softcap_hidden_leak", "what is hidden gets the score −c and weighs something", leaking, "softcap")
special("softcap_clamps", "scores are cut off at the cap", lambda x: with_bend(x, lambda z: np.clip(z, -cap(x), cap(x))), "softcap")
special(
    "softcap_before_scale",
    "the product is capped before it is scaled",
    lambda x: with_bend(x, lambda z: x.scale * cap(x) * np.tanh(z / x.scale / cap(x))) if x.scale not in (0, 1) else None,
    "softcap",
)
special(
    "softcap_not_divided",
    "tanh meets the score, not its quotient by c",
    lambda x: with_bend(x, lambda z: cap(x) * np.tanh(z)),
    "softcap",
)
special("softcap_not_multiplied", "tanh is not multiplied by c", lambda x: with_bend(x, lambda z: np.tanh(z / cap(x))), "softcap")
special(
    "softcap_twice",
    "the soft cap is applied twice",
    lambda x: with_bend(x, lambda z: cap(x) * np.tanh(np.tanh(z / cap(x)))),
    "softcap",
)
special(
    "softcap_slope_twice",
    "dq and dk have the slope of the soft cap twice",
    lambda x: with_slope(x, slope(x) ** 2),
    "softcap do",
)
special(
    "softcap_slope_in_dbias",
    "dbias has the slope of the soft cap where it must not, or lacks it",
    bias_gradient,
    "softcap bias do",
)
special(
    "softcap_slope_not_divided",
    "the slope of the soft cap is 1 − s², not 1 − (s/c)²",
    lambda x: with_slope(x, 1 - cap(x) ** 2 * (1 - slope(x))),
    "softcap do",
)
special("softcap_slope_of_first_head", "all heads have the slope of head 0", slope_of_first_head, "softcap do")
special(
    "softcap_slope_ends_at_tail",
    "dq and dk lack the slope of the soft cap after the last full block of 16 keys",
    lambda x: with_slope(x, np.where(behind(x, 16), 1.0, slope(x))) if x.j % 16 else None,
    "softcap do",
    of="softcap_slope_missing",
)
special(
    "softcap_forgotten_in_backward",
    "backward computes the probabilities without the soft cap",
    lambda x: again(x, np.where(x.s > -inf, bent(x, lambda z: z), -inf)),
    "softcap do",
)
special("softcap_in_bfloat16", "the soft cap is rounded to bfloat16", in_bfloat16, "softcap")
special(
    "softcap_overflows",
    "tanh is made of exponentials that overflow",
    lambda x: with_bend(x, lambda z: cap(x) * overflown(z / cap(x), 709.0 if x.problem.dtype == torch.float64 else 88.7)),
    "softcap",
)
for n in (16, 32, 64):
    special(
        f"softcap_ends_at_{n}",
        f"keys from {n} on have no soft cap",
        lambda x, n=n: partly(x, np.arange(x.j) < n),
        "softcap",
        of="softcap_ends_at_16",
    )
    special(
        f"softcap_ends_at_tail_of_{n}",
        f"keys after the last full block of {n} have no soft cap",
        lambda x, n=n: partly(x, ~behind(x, n)),
        "softcap",
        of="softcap_ends_at_tail_of_16",
    )
