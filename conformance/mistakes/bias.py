"""Mistakes of the bias (BIAS)."""

from __future__ import annotations

from math import inf, log

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.places import first_alone, of_first, of_kv_head, swapped
from attnspec.conformance.mistakes.table import Chapter

BIAS = Chapter()
enter, special = BIAS.enter, BIAS.special


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


enter("bias_ignored", "the bias is ignored", lambda x: x.with_bias(np.zeros_like(x.bias), np.zeros_like), "bias")
enter("bias_twice", "the bias is added twice", lambda x: x.with_bias(2 * x.bias, lambda dx: 2 * dx), "bias")
enter("bias_scaled", "the bias is scaled with the scores", bias_scaled, "bias")
enter("bias_transposed", "the bias is read with queries and keys swapped", lambda x: x.with_bias(swapped(x.bias), swapped), "bias")
enter("bias_of_first_head", "the bias of head 0 is used for all", bias_of_first_head, "bias")
enter("bias_inf_finite", "−∞ in the bias is read as the dtype's lowest number", bias_inf_finite, "bias")


def bias_mask(x: Kernel, shown: Array) -> Wrong:
    """The bias as a mask."""
    wrong = x.on(bias=np.where(shown, 0.0, -inf))
    return {"o": wrong["o"]}


def like_bias(x: Kernel, number: float) -> Array:
    """A number in the bias's shape where it is finite, −∞ where it is −∞."""
    return np.where(x.bias == -inf, -inf, number)


def with_bias_of(x: Kernel, bias: Array) -> Wrong:
    """With a bias of another shape; its own gradient is not told."""
    wrong = x.on(bias=np.broadcast_to(bias, (x.b, x.h, x.i, x.j)))
    return {name: value for name, value in wrong.items() if name != "dbias"}


special(
    "bias_values_ignored",
    "only −∞ is read from the bias",
    lambda x: x.with_bias(like_bias(x, 0.0), np.zeros_like),
    "bias",
    of="bias_ignored",
)
special(
    "bias_ignored_with_mask",
    "the bias is ignored beside a mask",
    lambda x: x.with_bias(np.zeros_like(x.bias), np.zeros_like),
    "bias mask",
    of="bias_ignored",
)
special(
    "bias_ignored_with_causal",
    "the bias is ignored beside causal",
    lambda x: x.with_bias(np.zeros_like(x.bias), np.zeros_like),
    "bias causal",
    of="bias_ignored",
)
special(
    "bias_shows_where_not_zero",
    "the bias is cast to bool: a key is visible where it is not zero",
    lambda x: bias_mask(x, x.bias != 0),
    "bias",
)
special("bias_hides_where_not_zero", "the bias hides keys where it is not zero", lambda x: bias_mask(x, x.bias == 0), "bias")
special(
    "bias_subtracted",
    "the bias is subtracted",
    lambda x: x.with_bias(np.where(x.bias == -inf, -inf, -x.bias), lambda dx: -dx),
    "bias",
)
special(
    "bias_base_two",
    "the scores use base 2, but the bias does not",
    lambda x: x.with_bias(x.bias * log(2), lambda dx: dx * log(2)),
    "bias",
)
special(
    "bias_over_scale",
    "the bias is divided by the scale",
    lambda x: x.with_bias(np.where(x.bias == -inf, -inf, x.bias / x.scale), lambda dx: dx / x.scale) if x.scale else None,
    "bias scale",
)
for n in (16, 32, 64):
    special(
        f"bias_ends_at_{n}",
        f"the bias is zero for keys from {n} on",
        lambda x, n=n: x.with_bias(np.where(np.arange(x.bias.shape[-1]) < n, x.bias, 0.0)) if x.bias.shape[-1] > n else None,
        "bias",
        of="bias_ends_at_16",
    )
special("bias_inf_as_zero", "−∞ in the bias is read as zero", lambda x: x.with_bias(np.where(x.bias == -inf, 0.0, x.bias)), "bias")
special(
    "bias_of_first_item",
    "the bias of batch item 0 is used for all",
    lambda x: x.with_bias(of_first(x.bias, -4), lambda dx: first_alone(dx, -4)),
    "bias",
)
special("bias_of_kv_head", "the bias is indexed by the key/value head", lambda x: x.with_bias(of_kv_head(x, x.bias)), "bias")
special(
    "bias_by_item",
    "a bias (h i j) is read as (b i j)",
    lambda x: with_bias_of(x, x.bias[:, None]) if x.bias.ndim == 3 and len(x.bias) == x.b > 1 else None,
    "bias",
)
special(
    "bias_clamped",
    "the bias is kept within ±1000",
    lambda x: x.with_bias(
        np.where(x.bias == -inf, -inf, np.clip(x.bias, -1000, 1000)), lambda dx: np.where(np.abs(x.bias) > 1000, 0.0, dx)
    ),
    "bias",
)
special(
    "bias_in_bfloat16",
    "the bias is rounded to bfloat16",
    lambda x: x.with_bias(torch.from_numpy(np.array(x.bias)).bfloat16().double().numpy()),
    "bias",
)
