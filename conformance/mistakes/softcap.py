"""Mistakes of the soft cap (SOFTCAP)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray as Array

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
    bias = 0.0 if x.bias is None else np.where(x.bias == -inf, 0.0, x.bias)
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
    bias = 0.0 if x.bias is None or x.dialect.softcap_order == "after_bias" else np.where(x.bias == -inf, 0.0, x.bias)
    return with_scores(x, x.s, np.broadcast_to(bias - cap(x), x.s.shape))


def slope(x: Kernel) -> Array:
    """That of the cap."""
    before = x.dialect.softcap_order == "before_bias" or x.bias is None
    return Softcap().slope(x.forward.z if before else x.forward.scores[1], x.given)


def with_slope(x: Kernel, power: int) -> Wrong:
    """dq and dk with the slope so often."""
    if x.problem.do is None:
        return None
    dz = np.where(x.empty, 0.0, x.ds) * slope(x) ** power
    dq, each = dense.product_gradients(x.q, x.heads_k, dz, x.scale)
    return {"dq": dq, "dk": x.summed(each, x.k)}


def bias_gradient(x: Kernel) -> Wrong:
    """dbias with the slope where the bias is outside of the cap, and without it where it is inside."""
    if x.problem.do is None or "bias" not in x.problem.wrt:
        return None
    ds = np.where(x.empty, 0.0, x.ds)
    ds = ds * slope(x) if x.dialect.softcap_order == "before_bias" else ds
    return {"dbias": dense.reduce_to(ds, tuple(x.bias.shape))}


enter("softcap_ignored", "the soft cap is ignored", lambda x: x.on(softcap=None), "softcap")
enter("softcap_order", "the bias stands on the other side of the soft cap", other_order, "softcap bias")
enter("softcap_slope_missing", "dq and dk lack the slope of the soft cap", lambda x: with_slope(x, 0), "softcap do")

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
special("softcap_slope_twice", "dq and dk have the slope of the soft cap twice", lambda x: with_slope(x, 2), "softcap do")
special(
    "softcap_slope_in_dbias", "dbias has the slope of the soft cap where it must not, or lacks it", bias_gradient, "softcap bias"
)
