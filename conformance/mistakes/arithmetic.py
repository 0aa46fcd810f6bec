"""Special cases, and rarer mistakes, in scale, softmax and output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf, log

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import MISTAKES, enter, special


def weights(s: Array, pivot: Array | float | None = None, summed: Callable[[Array], Array] = lambda e: e) -> Array:
    """Softmax with another maximum or row sum, in the range of float32; 0 where nothing is seen."""
    m = s.max(-1, keepdims=True) if pivot is None else pivot
    e = np.exp(s - np.where(np.isfinite(m), m, 0.0))
    e = np.where(e > 3.4e38, inf, np.where(e < 1e-45, 0.0, e))
    total = summed(e).sum(-1, keepdims=True)
    return e / np.where(total == 0, 1.0, total)


# SCALE

for n in (8, 16, 64):
    special(
        f"scale_of_width_padded_to_{n}",
        f"the default scale uses the width padded to a multiple of {n}",
        lambda x, n=n: x.with_scale((-(-x.problem.d // n) * n) ** -0.5, given=False),
        of="scale_of_width_padded_to_8",
    )
special(
    "scale_on_top", "a given scale is applied on top of the default", lambda x: x.with_scale(x.scale * x.default_scale, given=True)
)
special(
    "scale_default_twice",
    "the default scale is applied twice",
    lambda x: x.with_scale(x.scale**2, given=False),
    of="scale_1_over_d",
)
special("scale_inverted", "the scores are divided by the scale", lambda x: x.with_scale(1 / x.scale) if x.scale else None)
special("scale_of_width", "the default scale is d", lambda x: x.with_scale(float(x.problem.d), given=False))
special(
    "scale_of_kv_heads",
    "the default scale uses the width d·g/h",
    lambda x: x.with_scale((x.problem.d * x.g / x.h) ** -0.5, given=False),
)
special("scale_of_queries", "the default scale uses the number of queries", lambda x: x.with_scale(x.i**-0.5, given=False))
special(
    "scale_of_keys",
    "the default scale uses the number of keys",
    lambda x: x.with_scale(x.j**-0.5, given=False),
    of="scale_of_queries",
)
special("scale_base_two", "exp uses base 2", lambda x: base(x, log(2)))
special(
    "scale_base_two_twice",
    "the scores are multiplied by log₂ e, but exp uses base e",
    lambda x: base(x, 1 / log(2)),
    of="scale_base_two",
)
special("scale_base_two_rounded", "log₂ e is rounded to 1.4427", lambda x: x.with_scale(x.scale * 1.4427 * log(2)), of="scale_off")
special("scale_halved", "the scale is half of what it should be", lambda x: x.with_scale(x.scale / 2), of="scale_off")
special(
    "scale_in_bfloat16",
    "the scale is rounded to bfloat16",
    lambda x: x.with_scale(float(torch.tensor(x.scale).bfloat16())),
    of="scale_off",
)
special(
    "scale_ignored_with_bias",
    "a given scale is not used beside a bias",
    lambda x: x.with_scale(x.default_scale),
    "bias",
    of="scale_ignored",
)
special(
    "scale_of_output",
    "the output is multiplied by the scale",
    lambda x: {"o": x.scale * (x.p @ x.heads_v)} if x.scale != 1 else None,
)
special(
    "scale_of_tail_twice",
    "keys after the last full block of 16 are scaled twice",
    lambda x: x.on(k=x.k * np.where(np.arange(x.j) < x.j - x.j % 16, 1.0, x.scale)[:, None]) if x.j % 16 else None,
)


def base(x: Kernel, factor: float) -> Wrong:
    """The scores times a factor, bias and all."""
    return x.with_weights(weights(x.s * factor))


for default, name, says in ((True, "float32_default_scale", "the default scale"), (False, "float32_scale", "the scale")):
    special(
        name,
        f"{says} is rounded to float32",
        lambda x, default=default: (
            x.with_scale(float(np.float32(x.scale)), given=False if default else None) if x.problem.dtype == torch.float64 else None
        ),
        of="float32_scale",
    )

# SOFTMAX


def clamped(x: Kernel, limit: float) -> Wrong:
    """Scores within ±limit."""
    return (
        x.with_weights(weights(np.where(x.s == -inf, -inf, np.clip(x.s, -limit, limit)))) if (np.abs(x.s) > limit).any() else None
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
    lambda x: x.with_weights(weights(x.s, np.maximum(x.m, -5e4))),
    of="maximum_from_zero",
)
special(
    "maximum_of_first_block",
    "the maximum is that of the first 16 keys",
    lambda x: x.with_weights(weights(x.s, first_block(x))) if x.j > 16 else None,
)
special(
    "maximum_of_tensor",
    "the maximum of all rows is subtracted from each",
    lambda x: x.with_weights(weights(x.s, x.s.max(keepdims=True))),
)
special("scores_clamped", "the scores are kept within ±80", lambda x: clamped(x, 80.0))
special(
    "scores_capped",
    "the scores are capped softly at 50",
    lambda x: x.with_weights(weights(np.where(x.s == -inf, -inf, 50 * np.tanh(x.s / 50)))),
)
special("softmax_over_queries", "the softmax runs over the queries", over_queries)
special(
    "one_in_row_sum", "exp(0) is added to the row sum", lambda x: x.with_weights(x.e / (x.e.sum(-1, keepdims=True) + np.exp(-x.m)))
)
for n in (5, 6, 7, 8, 9, 10, 12):
    special(
        f"row_sum_plus_1e-{n}",
        f"1e-{n} is added to the row sum",
        lambda x, n=n: x.with_weights(x.e / (x.e.sum(-1, keepdims=True) + 10.0**-n)),
        of="row_sum_plus_1e-6",
    )
special("row_sum_of_last_block", "the output is divided by the row sum of the last block of keys", sum_of_last_block)
special(
    "row_sum_of_first_head",
    "the output is divided by the row sum of head 0",
    lambda x: {"o": (x.e * np.exp(x.m) / (x.e * np.exp(x.m)).sum(-1, keepdims=True)[:, :1]) @ x.heads_v},
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

# OUTPUT


def every(x: Kernel, number: float) -> Wrong:
    """One number in all of the output."""
    return {"o": np.full((x.b, x.h, x.i, x.problem.e), number)}


special("output_zero", "the output is zero", partial(every, number=0.0), coarse=True, of="output_zero")
special("output_nan", "the output is NaN", partial(every, number=np.nan), coarse=True, of="output_nan")
for name, says, number in (("no_keys_nan", "NaN", np.nan), ("no_keys_one", "one", 1.0)):
    enter(name, f"without any key the output is {says}", lambda x, n=number: None if x.j else every(x, n))
    MISTAKES[name] = replace(MISTAKES[name], special=True)
for n in (32, 64, 128):
    special(
        f"row_tail_zero_{n}",
        f"rows after the last full block of {n} are zero",
        lambda x, n=n: x.zeroed(np.s_[:, :, x.i - x.i % n or x.i :]),
        coarse=True,
    )
for n in (16, 32, 64):
    special(
        f"value_tail_zero_{n}",
        f"output channels after the last full block of {n} are zero",
        lambda x, n=n: x.zeroed(np.s_[..., x.problem.e - x.problem.e % n :]) if x.problem.e % n < x.problem.e else None,
        coarse=True,
        of="value_tail_zero_64",
    )
special(
    "output_of_query_before",
    "each row of the output is that of the previous query",
    lambda x: {"o": np.roll(x.p @ x.heads_v, 1, 2)} if x.i > 1 else None,
)
special(
    "output_axes_swapped",
    "the output is (b i h e), read as (b h i e)",
    lambda x: {"o": (x.p @ x.heads_v).swapaxes(1, 2).reshape(x.b, x.h, x.i, -1)} if x.h > 1 and x.i > 1 else None,
)
special(
    "empty_row_first_value",
    "a query without a key gives the first value",
    lambda x: {"o": np.where(x.empty, x.heads_v[:, :, :1], x.p @ x.heads_v)} if x.empty.any() else None,
)
special(
    "empty_row_last_value",
    "a query without a key sees the last one",
    lambda x: {"o": np.where(x.empty, x.heads_v[:, :, -1:], x.p @ x.heads_v)} if x.empty.any() else None,
    of="empty_row_first_value",
)
for n in (2, 32, 64):
    special(
        f"width_tail_of_{n}",
        f"scores skip channels after the last full block of {n}",
        lambda x, n=n: x.on(q=x.q * (np.arange(x.problem.d) < x.problem.d // n * n)) if x.problem.d % n else None,
        of="width_tail_of_16",
    )
