"""Mistakes of the mask (MASK)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.places import LETTERS, OVER, of_first, of_kv_head, shifted, swapped
from attnspec.conformance.mistakes.table import Chapter
from attnspec.reference.dense import reduce_to

MASK = Chapter()
enter, special = MASK.enter, MASK.special


def mask_as_bias(x: Kernel) -> Wrong:
    """0 and 1 added to the scores, and nothing hidden but by the bias; None where the mask hides nothing."""
    if x.masked.all():
        return None
    wrong = x.on(mask=None, bias=x.masked + (0.0 if x.bias is None else x.bias))
    if "dbias" in wrong:
        gradient = wrong.pop("dbias")
        return wrong if x.bias is None else wrong | {"dbias": reduce_to(gradient, x.bias.shape)}
    return wrong


def as_lengths(x: Kernel) -> Array | None:
    """The mask that shows as many keys of a row, but the first ones."""
    return np.arange(x.j) < x.mask.sum(-1, keepdims=True) if x.mask.shape[-1] == x.j else None


def by_item(x: Kernel) -> Array | None:
    """The mask (h i j) as one for each batch item."""
    return x.mask[:, None] if x.mask.ndim == 3 and len(x.mask) == x.problem.b else None


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


def as_four(x: Kernel) -> Array:
    """The mask with all four axes."""
    mask: Array = x.mask
    return mask[:, None, None, :] if mask.ndim == 2 else mask[(None,) * (4 - mask.ndim)]


def in_blocks(x: Kernel, n: int, rule: Callable[[Array], Array]) -> Array:
    """For each block of n keys a rule on the mask of its keys (… n), as (b h i j)."""
    mask = x.masked.copy()
    for start in range(0, x.j, n):
        mask[..., start : start + n] = rule(mask[..., start : start + n])
    return mask


def filled_with(x: Kernel, number: float) -> Wrong:
    """Hidden scores are a number."""
    s = np.where(x.allowed, x.s, number)
    return x.with_weights(x.weights(s)) if not x.allowed.all() else None


def filled_less(x: Kernel, number: float) -> Wrong:
    """A number is added to hidden scores, as rounded as in the arithmetic of the dtype."""
    s = x.scores()
    low = s + number if x.problem.dtype == torch.float64 else (s + number).astype(np.float32).astype(float)
    return x.with_weights(x.weights(np.where(x.allowed, s, low))) if not x.allowed.all() else None


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
    """Probabilities of all keys that causal and window show, of which those that the mask hides are zeroed."""
    s = x.scores()
    s = np.where(x.placed(), s, -inf)
    return x.with_weights(np.where(x.allowed, x.weights(s), 0.0)) if not x.allowed.all() else None


def in_maximum(x: Kernel) -> Wrong:
    """Hidden keys take part in the maximum, below which the visible ones underflow."""
    s = x.scores()
    return x.with_weights(x.weights(x.s, s.max(-1, keepdims=True)))


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
