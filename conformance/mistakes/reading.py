"""Special cases, and rarer mistakes, in what a kernel reads: keys, mask, causal, heads, bias."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, log
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.conformance.mistakes.arithmetic import weights
from attnspec.conformance.mistakes.kernel import Kernel, Wrong, first_alone, of_first
from attnspec.conformance.mistakes.table import special

LETTERS = "bhij"
OVER = {"b": "batch items", "h": "heads", "i": "queries", "j": "keys"}

# KEYS

for n in (32, 64, 128):
    special(
        f"tail_of_{n}_dropped",
        f"keys after the last full block of {n} are skipped",
        lambda x, n=n: x.with_keys(np.arange(x.j - x.j % n or x.j)),
        of="tail_of_16_dropped",
    )
    special(
        f"tail_of_zeros_{n}",
        f"the last block of {n} is padded with zero keys that count in the row sum",
        lambda x, n=n: x.with_keys(np.pad(np.arange(x.j), (0, -x.j % n), constant_values=-1)),
        of="tail_of_zeros",
    )
for n in (16, 32, 64, 128, 256, 512):
    special(
        f"keys_end_at_{n}",
        f"keys after the first {n} are skipped",
        lambda x, n=n: x.with_keys(np.arange(min(n, x.j))),
        of="keys_end_at_16",
    )
special("last_key_twice", "the last key is read twice", lambda x: x.with_keys(np.r_[: x.j, x.j - 1]), of="key_twice")
special(
    "last_key_replaced",
    "the last key is read as the one before it",
    lambda x: x.with_keys(np.r_[: x.j - 1, x.j - 2]) if x.j > 1 else None,
)

# CAUSAL


def rows(x: Kernel) -> tuple[Array, Array]:
    """Query positions (i 1), and those of the keys that causal lets them see last (i 1)."""
    i = np.arange(x.i)[:, None]
    return i, i + (x.j - x.i if x.dialect.causal_alignment == "bottom_right" else 0)


def causal_as(rule: Callable[..., Any]) -> Callable[[Kernel], Wrong]:
    """Another triangle: of the rows (i 1), the last visible keys (i 1) and all keys (j)."""
    return lambda x: x.seeing(x.masked & rule(*rows(x), np.arange(x.j)))


special(
    "causal_ignored_with_bias", "causal is ignored beside a bias", lambda x: x.seeing(x.masked), "causal bias", of="causal_ignored"
)
special(
    "causal_transposed",
    "with causal, each query sees its own key and the later ones",
    causal_as(lambda i, last, j: j >= last),
    "causal",
)
for n in (16, 32, 64, 128):
    special(
        f"causal_by_blocks_of_{n}",
        f"with causal, the {n} by {n} tile that the diagonal crosses is not masked",
        causal_as(lambda i, last, j, n=n: (j <= last) | (j // n == last // n)),
        "causal",
        of="causal_by_blocks_of_16",
    )
    special(
        f"causal_without_block_of_{n}",
        f"with causal, the block of {n} keys that the diagonal crosses is skipped",
        causal_as(lambda i, last, j, n=n: (j <= last) & (j // n < last // n)),
        "causal",
        of="causal_without_block_of_16",
    )
    special(
        f"causal_less_{n}",
        f"with causal, each query sees {n} keys too few",
        lambda x, n=n: x.seeing(x.masked & x.triangle(-n)),
        "causal",
        of="causal_one_less",
    )
    special(
        f"causal_window_of_{n}",
        f"with causal, each query sees the last {n} keys only",
        causal_as(lambda i, last, j, n=n: (j <= last) & (j > last - n)),
        "causal",
        of="causal_window_of_16",
    )
special(
    "mask_or_causal", "a query sees a key if mask or causal allows it", lambda x: x.seeing(x.masked | x.triangle()), "causal mask"
)
special(
    "causal_corner_with_mask",
    "causal is aligned at the other corner beside a mask",
    lambda x: x.seeing(
        x.masked & x.triangle(corner="top_left" if x.dialect.causal_alignment == "bottom_right" else "bottom_right")
    ),
    "causal mask",
    of="causal_corner",
)

# MASK


def shifted(x: Array | None, letter: str, step: int) -> Array | None:
    """A mask or bias read at its neighbour along an axis; None where it does not vary there."""
    axis = LETTERS.index(letter) - 4
    return None if x is None or x.ndim < -axis or x.shape[axis] < 2 else np.roll(x, step, axis)


def as_four(x: Kernel) -> Array:
    """The mask with all four axes."""
    mask: Array = x.mask
    return mask[:, None, None, :] if mask.ndim == 2 else mask[(None,) * (4 - mask.ndim)]


def of_kv_head(x: Kernel, operand: Array) -> Array | None:
    """What stands at the number of the key/value head in the place of the query head's."""
    return operand.take(x.kv_head, -3) if operand.ndim > 2 and operand.shape[-3] > 1 and x.g < x.h else None


def in_blocks(x: Kernel, n: int, rule: Callable[[Array], Array]) -> Array:
    """For each block of n keys a rule on the mask of its keys (… n), as (b h i j)."""
    mask = x.masked.copy()
    for start in range(0, x.j, n):
        mask[..., start : start + n] = rule(mask[..., start : start + n])
    return mask


def filled_with(x: Kernel, number: float) -> Wrong:
    """Hidden scores are a number."""
    s = np.where(x.allowed, x.s, number)
    return x.with_weights(weights(s)) if not x.allowed.all() else None


def filled_less(x: Kernel, number: float) -> Wrong:
    """A number is added to hidden scores, as rounded as in the arithmetic of the dtype."""
    s = x.scale * (x.q @ x.heads_k.swapaxes(-1, -2)) + (0.0 if x.bias is None else x.bias)
    low = s + number if x.problem.dtype == torch.float64 else (s + number).astype(np.float32).astype(float)
    return x.with_weights(weights(np.where(x.allowed, s, low))) if not x.allowed.all() else None


def lowest_hidden(x: Kernel, zero: bool) -> Wrong:
    """What the bias pushes to the dtype's lowest number is hidden; None where each row has another key."""
    low = np.broadcast_to(x.bias <= torch.finfo(x.problem.dtype).min / 2, x.s.shape)
    rows = ((low | ~x.allowed).all(-1, keepdims=True)) & ~x.empty
    if not rows.any():
        return None
    return x.with_weights(np.where(rows, 0.0 if zero else 1 / x.j, x.p))


def before_scale(x: Kernel, empty: bool) -> Wrong:
    """Hidden scores are −∞ before the scale multiplies them: of a negative one +∞, of zero no number."""
    shown = x.allowed if empty else x.allowed | x.empty
    if x.scale > 0 or shown.all():
        return None
    return x.with_weights(np.where(shown.all(-1, keepdims=True), x.p, np.nan))


def after_softmax(x: Kernel) -> Wrong:
    """Probabilities of all keys that causal shows, of which those that the mask hides are zeroed."""
    s = x.scale * (x.q @ x.heads_k.swapaxes(-1, -2)) + (0.0 if x.bias is None else x.bias)
    s = np.where(x.triangle(), s, -inf) if x.problem.causal else s
    return x.with_weights(np.where(x.allowed, weights(s), 0.0)) if not x.allowed.all() else None


def in_maximum(x: Kernel) -> Wrong:
    """Hidden keys take part in the maximum, below which the visible ones underflow."""
    s = x.scale * (x.q @ x.heads_k.swapaxes(-1, -2)) + (0.0 if x.bias is None else x.bias)
    return x.with_weights(weights(x.s, s.max(-1, keepdims=True)))


for letter in LETTERS:
    for step in (1, -1):
        special(
            f"mask_of_neighbour_{letter}{'' if step == 1 else '_back'}",
            f"the mask is read at the neighbouring position along {OVER[letter]}",
            lambda x, letter=letter, step=step: x.with_mask(shifted(as_four(x), letter, step)),
            "mask",
            of="mask_of_neighbour",
        )
        special(
            f"bias_of_neighbour_{letter}{'' if step == 1 else '_back'}",
            f"the bias is read at the neighbouring position along {OVER[letter]}",
            lambda x, letter=letter, step=step: x.with_bias(
                shifted(x.bias, letter, step), partial(shifted, letter=letter, step=-step)
            ),
            "bias",
            of="bias_of_neighbour_h",
        )
special("mask_of_first_item", "the mask of batch item 0 is used for all", lambda x: x.with_mask(of_first(as_four(x), -4)), "mask")
special("mask_of_first_query", "the mask of query 0 is used for all", lambda x: x.with_mask(of_first(as_four(x), -2)), "mask")
special(
    "mask_of_kv_head",
    "the mask is indexed by the key/value head",
    lambda x: x.with_mask(of_kv_head(x, as_four(x))),
    "mask",
)
special(
    "mask_of_all_items",
    "a key that the mask hides in one batch item is hidden in all",
    lambda x: x.with_mask(np.broadcast_to(as_four(x).all(0, keepdims=True), as_four(x).shape)),
    "mask",
)
special(
    "mask_over_queries",
    "a mask over keys is read over queries",
    lambda x: x.with_mask(as_four(x).swapaxes(-1, -2)) if as_four(x).shape[-2] == 1 and x.i == x.j > 1 else None,
    "mask",
)
special(
    "mask_over_heads",
    "a mask (b j) is read as (h j)",
    lambda x: x.with_mask(as_four(x).swapaxes(0, 1)) if as_four(x).shape[1] == 1 < x.b == x.h else None,
    "mask",
)
for n in (16, 64, 512):
    special(
        f"mask_ends_at_{n}",
        f"the mask is not read for keys from {n} on",
        lambda x, n=n: x.with_mask(as_four(x) | (np.arange(as_four(x).shape[-1]) >= n)),
        "mask",
        of="mask_ends_at_16",
    )
for n in (8, 16, 32, 64):
    special(
        f"mask_of_tail_of_{n}_ignored",
        f"the mask is not read for keys after the last full block of {n}",
        lambda x, n=n: x.with_mask(x.masked | (np.arange(x.j) >= x.j - x.j % n)),
        "mask",
        of="mask_of_tail_of_16_ignored",
    )
special(
    "mask_of_last_key_ignored",
    "the mask of the last key is not read",
    lambda x: x.with_mask(x.masked | (np.arange(x.j) == x.j - 1)),
    "mask",
)
special(
    "mask_all_hidden_ignored",
    "a row of the mask that hides all keys is ignored",
    lambda x: x.with_mask(x.masked | ~x.masked.any(-1, keepdims=True)),
    "mask",
)
special(
    "mask_ignored_with_bias",
    "the mask is ignored beside a bias",
    lambda x: x.with_mask(np.ones_like(x.mask)),
    "mask bias",
    of="mask_ignored",
)
special(
    "block_skipped_by_first_key",
    "a block of 16 keys is skipped if the mask hides its first key",
    lambda x: x.with_mask(in_blocks(x, 16, lambda m: m & m[..., :1])),
    "mask",
)
special(
    "block_skipped_by_first_query",
    "a block of 16 keys is skipped for 16 queries if the mask hides it from the first of them",
    lambda x: x.with_mask(in_blocks(x, 16, lambda m: m & np.repeat(m[..., ::16, :].any(-1, keepdims=True), 16, -2)[..., : x.i, :])),
    "mask",
)
special(
    "partial_block_unmasked",
    "a block of 16 keys is not masked if the mask shows its first and its last key",
    lambda x: x.with_mask(in_blocks(x, 16, lambda m: m | (m[..., :1] & m[..., -1:]))),
    "mask",
)
special("mask_after_softmax", "hidden probabilities are zeroed after the softmax and not normalised again", after_softmax)
for name, empty in (("mask_before_scale", False), ("mask_before_scale_everywhere", True)):  # in rows without a key, too
    special(
        name,
        "hidden scores are set to −∞ before scaling and become +∞ or NaN",
        partial(before_scale, empty=empty),
        of="mask_before_scale",
    )
special("hidden_in_maximum", "hidden keys take part in the row's maximum", in_maximum)
for number in (-50.0, -1e4, -1e9):
    special(
        f"hidden_scores_of_{-number:g}",
        f"hidden scores are {number:g} instead of −∞",
        partial(filled_with, number=number),
        of="hidden_scores_of_10000",
    )

    special(
        f"hidden_scores_less_{-number:g}",
        f"hidden scores are lowered by {-number:g} instead of set to −∞",
        partial(filled_less, number=number),
        of="hidden_scores_of_10000",
    )
for name, zero in (("lowest_row_zero", True), ("lowest_row_mean", False)):
    special(
        name,
        "a row whose biases are all the lowest number is treated as a row without a key",
        partial(lowest_hidden, zero=zero),
        "bias",
        of="lowest_row_zero",
    )
special(
    "hidden_scores_of_lowest",
    "hidden scores are the lowest finite number instead of −∞",
    lambda x: filled_with(x, torch.finfo(x.problem.dtype).min),
    of="hidden_scores_of_10000",
)

# HEADS AND BATCH ITEMS


def kv_at(x: Kernel, head: Array, keys: bool = True, values: bool = True) -> Wrong:
    """Query head n uses keys and values of head[n]; None where those are its own."""
    if np.array_equal(head, x.kv_head) or x.k.ndim == 3:
        return None
    k, v = (a[:, head if other else x.kv_head] for a, other in ((x.k, keys), (x.v, values)))
    wrong = x.on(k=k, v=v)
    for name, a, at in (("dk", x.k, head if keys else x.kv_head), ("dv", x.v, head if values else x.kv_head)):
        if name in wrong:
            total = np.zeros_like(a)
            for n, g in enumerate(at):
                total[:, g] += wrong[name][:, n]
            wrong[name] = total
    return wrong


def other_map(x: Kernel) -> Array:
    """The key/value head of each query head, grouped the other way."""
    n = np.arange(x.h)
    return n % x.g if x.dialect.head_grouping == "blocked" else n // max(x.h // x.g, 1)


def of_item(x: Kernel, step: int, keys: bool = True) -> Wrong:
    """Keys and values of the batch item beside."""
    if x.b == 1:
        return None
    k, v = (np.roll(x.k, step, 0) if keys else x.k), np.roll(x.v, step, 0)
    wrong = x.on(k=k, v=v)
    return wrong | {n: np.roll(wrong[n], -step, 0) for n in wrong.keys() & ({"dk", "dv"} if keys else {"dv"})}


special(
    "values_of_head_map",
    "values are grouped the other way, but keys are not",
    lambda x: kv_at(x, other_map(x), keys=False),
    of="head_map",
)
special(
    "previous_kv_head",
    "each query head uses the previous key/value head",
    lambda x: kv_at(x, (x.kv_head - 1) % x.g),
    of="next_kv_head",
)
special(
    "last_head_of_neighbour",
    "the last query head uses the previous key/value head",
    lambda x: kv_at(x, np.r_[x.kv_head[:-1], (x.kv_head[-1:] - 1) % x.g]),
    of="next_kv_head",
)
special(
    "group_for_count", "query head n uses key/value head n // g", lambda x: kv_at(x, np.minimum(np.arange(x.h) // x.g, x.g - 1))
)
special(
    "values_of_first_head", "all query heads use the values of head 0", lambda x: kv_at(x, np.zeros_like(x.kv_head), keys=False)
)
special("next_item", "keys and values of the next batch item are used", lambda x: of_item(x, -1))
special("previous_item", "keys and values of the previous batch item are used", lambda x: of_item(x, 1), of="next_item")
special(
    "values_of_first_item",
    "all batch items use the values of item 0",
    lambda x: x.on(v=np.broadcast_to(x.v[:1], x.v.shape)) if x.b > 1 else None,
    of="first_item",
)
special(
    "keys_along_time",
    "shared heads are expanded along the key axis",
    lambda x: (
        {"o": x.on(k=repeated(x, x.k), v=repeated(x, x.v))["o"]}
        if x.k.ndim == 4 and 1 < x.g < x.h and x.dialect.head_grouping == "blocked"
        else None
    ),
)
special(
    "keys_and_values_swapped",
    "keys and values are swapped",
    lambda x: {"o": x.on(k=x.v, v=x.k)["o"]} if x.problem.d == x.problem.e else None,
)
special(
    "shared_as_heads",
    "keys (b j d) are read as (h j d)",
    lambda x: (
        {"o": x.on(k=np.broadcast_to(x.k, (x.b, *x.k.shape)), v=np.broadcast_to(x.v, (x.b, *x.v.shape)))["o"]}
        if x.k.ndim == 3 and x.b == x.h > 1
        else None
    ),
)


def repeated(x: Kernel, a: Array) -> Array:
    """Heads repeated along keys and viewed as heads."""
    n = x.h // x.g
    return np.repeat(a, n, axis=2).reshape(a.shape[0], x.h, *a.shape[2:])


# BIAS


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
