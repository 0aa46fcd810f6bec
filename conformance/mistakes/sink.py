"""Mistakes of the sink (SINK)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.conformance.mistakes.gradients import again
from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter
from attnspec.reference.stages import sink

SINK = Chapter()
enter, special = SINK.enter, SINK.special
SPLITS = (16, 32, 64, 128, 256)  # keys of one worker


def ignored(x: Kernel) -> Wrong:
    """No sinks, whose gradient is zero then."""
    wrong = x.on(sinks=None)
    return wrong | ({"dsinks": np.zeros(x.h)} if "sinks" in x.problem.wrt and "dq" in wrong else {})


def without_in_backward(x: Kernel) -> Wrong:
    """The gradients of a call without sinks."""
    return {name: gradient for name, gradient in (ignored(x) or {}).items() if name not in ("o", "lse")}


def with_sinks(x: Kernel, of: Callable[[Array], Array]) -> Wrong:
    """With other sinks (h); None where they are the same."""
    z = x.z[:, 0, 0]
    other = of(z)
    return None if np.array_equal(other, z) else x.on(sinks=other)


def rounded(z: Array) -> Array:
    """As bfloat16 has them."""
    return torch.from_numpy(z).bfloat16().double().numpy()


def counted(x: Kernel, times: Array) -> Wrong:
    """The output where the sink counts so often in each row (b h i 1); None where that is once everywhere it matters."""
    if (np.where(x.z > -inf, times, 1.0) == 1).all():
        return None
    return {"o": x.over(x.e, x.e, x.e_sink * times) @ x.heads_v}


def filled(x: Kernel, n: int) -> Array:
    """How many splits of n keys have one that a row sees, of each split (b h i splits)."""
    return np.add.reduceat((x.s > -inf).astype(float), np.arange(0, x.j, n), axis=-1) > 0


def first_empty(x: Kernel, times: float) -> Wrong:
    """The sink counts so often where the first 16 keys are hidden, and later ones are not."""
    seen = x.s > -inf
    rows = ~seen[..., :16].any(-1, keepdims=True) & seen.any(-1, keepdims=True)
    return counted(x, np.where(rows, times, 1.0))


def without_maximum(x: Kernel) -> Wrong:
    """π from e^(z − the largest score of a key) over a sum of it, in the range of what the dtype is computed in: ∞/∞ is NaN."""
    high = 709.78 if x.problem.dtype == torch.float64 else 88.72
    top = x.s.max(-1, keepdims=True, initial=-inf)
    over = (x.z - np.where(top > -inf, top, 0.0) > high) & (top > -inf)
    return of_each_row(x, np.where(over, np.nan, each(x))) if over.any() else None


def empty_rows(x: Kernel, number: Callable[[Array], Array | float]) -> Wrong:
    """Something else in rows without a key whose head has a sink; None where there are none."""
    rows = x.empty & (x.z > -inf)
    return {"o": np.where(rows, number(x.heads_v), x.p @ x.heads_v)} if rows.any() and x.j else None


def lse_of_keys(x: Kernel) -> Array:
    """log Σ exp s of the keys alone (b h i 1); 0 where there is none."""
    top = x.s.max(-1, keepdims=True, initial=-inf)
    top = np.where(top == -inf, 0.0, top)
    total = np.exp(x.s - top).sum(-1, keepdims=True)
    return np.where(total > 0, top + np.log(np.where(total > 0, total, 1.0)), 0.0)


def of_each_row(x: Kernel, each: Array) -> Wrong:
    """The gradient of the sinks from what each row adds to it (b h i 1); None where nobody asks for it."""
    return {"dsinks": each.sum((0, 2, 3))} if "sinks" in x.problem.wrt and x.problem.differentiated else None


def each(x: Kernel) -> Array:
    """What each row adds to the gradient of its head's sink (b h i 1)."""
    if x.forward.pi is None or not x.problem.differentiated:  # nobody asks for it
        return np.zeros(x.empty.shape)
    return sink.gradient(x.forward.pi[..., None], x.delta)


def of_groups(x: Kernel) -> Wrong:
    """Each head of a group with the gradient of all of them."""
    wrong = of_each_row(x, each(x))
    if wrong is None or x.h == x.g:
        return None
    groups = np.bincount(x.kv_head, wrong["dsinks"], max(x.g, 1))
    return {"dsinks": groups[x.kv_head]}


enter("sinks_ignored", "the sinks are ignored", ignored, "sinks")
enter("sinks_twice", "each sink counts twice", lambda x: with_sinks(x, lambda z: z + log(2)), "sinks")
enter(
    "sinks_scaled",
    "the sinks are scaled as the scores are",
    lambda x: with_sinks(x, lambda z: np.where(z > -inf, z * x.scale, z)),
    "sinks",
)
enter(
    "sinks_of_key_heads",
    "a query head has the sink with the number of its key head",
    lambda x: with_sinks(x, lambda z: z[x.kv_head]),
    "sinks",
)
enter(
    "sinks_missing_in_backward",
    "backward recomputes the probabilities from the lse of the keys alone",
    lambda x: again(x, lse=lambda own: lse_of_keys(x)),
    "sinks do",
)
special(
    "sinks_ignored_in_backward",
    "the gradients are those of a call without sinks",
    without_in_backward,
    "sinks do",
)
enter("sink_gradient_zero", "the gradient of the sinks is zero", lambda x: of_each_row(x, 0 * each(x)), "sinks do")
enter(
    "sinks_not_in_maximum", "the sink joins the row sum but not the maximum, and overflows", without_maximum, "sinks", special=True
)

for name, says, needs in (
    ("with_bias", "beside a bias", "bias"),
    ("with_mask", "beside a mask", "mask"),
    ("with_causal", "beside causal", "causal"),
):
    special(f"sinks_ignored_{name}", f"the sinks are ignored {says}", ignored, f"sinks {needs}", of="sinks_ignored")
special(
    "sinks_ignored_in_decode",
    "the sinks are ignored where there is one query",
    lambda x: ignored(x) if x.i == 1 else None,
    "sinks",
    of="sinks_ignored",
)
special(
    "sinks_of_first_head",
    "all heads have the sink of the first",
    lambda x: with_sinks(x, lambda z: np.broadcast_to(z[:1], z.shape)),
    "sinks",
)
special(
    "sinks_of_first_in_group",
    "all heads of a group have the sink of its first",
    lambda x: with_sinks(x, lambda z: z[np.searchsorted(x.kv_head, x.kv_head)]) if (np.diff(x.kv_head) >= 0).all() else None,
    "sinks",
)
special("sinks_reversed", "the sinks are read from the end", lambda x: with_sinks(x, lambda z: z[::-1]), "sinks")
special("sinks_in_bfloat16", "the sinks pass through bfloat16", lambda x: with_sinks(x, rounded), "sinks")
special("sinks_of_zero", "all sinks are zero", lambda x: with_sinks(x, np.zeros_like), "sinks")
special("sinks_in_base_two", "the sinks are taken for logits in base two", lambda x: with_sinks(x, lambda z: z * log(2)), "sinks")
special("sinks_times_log2_e", "the sinks are brought into base two twice", lambda x: with_sinks(x, lambda z: z / log(2)), "sinks")
special(
    "sinks_limited",
    "the sinks are kept within ±16",
    lambda x: with_sinks(x, lambda z: np.where(z > -inf, z.clip(-16, 16), z)),
    "sinks",
)
special(
    "sinks_of_minus_infinity_zero",
    "a sink of −∞ is read as zero",
    lambda x: with_sinks(x, lambda z: np.where(z > -inf, z, 0.0)),
    "sinks",
)
special(
    "sinks_twice_behind_hidden",
    "the sink counts twice where the first 16 keys are hidden",
    lambda x: first_empty(x, 2.0),
    "sinks",
    of="sinks_twice",
)
special(
    "sinks_lost_behind_hidden",
    "the sink is lost where the first 16 keys are hidden",
    lambda x: first_empty(x, 0.0),
    "sinks",
    of="sinks_ignored",
)
for n in SPLITS:
    special(
        f"sinks_of_every_{n}_keys",
        f"every {n} keys count the sink once more",
        lambda x, n=n: counted(x, np.full((1, 1, 1, 1), float(-(-x.j // n)))),
        "sinks",
        of="sinks_twice",
    )
    special(
        f"sinks_of_filled_{n}_keys",
        f"every {n} keys of which a row sees one count the sink once more",
        lambda x, n=n: counted(x, np.maximum(filled(x, n).sum(-1, keepdims=True), 1.0)),
        "sinks",
        of="sinks_twice",
    )
special("sinks_empty_row_nan", "a row without a key is NaN beside a sink", lambda x: empty_rows(x, lambda v: np.nan), "sinks")
special(
    "sinks_empty_row_mean",
    "a row without a key is the mean of the values beside a sink",
    lambda x: empty_rows(x, lambda v: v.mean(-2, keepdims=True)),
    "sinks",
)
special("sink_gradient_positive", "the gradient of the sinks lacks its sign", lambda x: of_each_row(x, -each(x)), "sinks do")
special(
    "sink_gradient_of_last_item",
    "the gradient of the sinks is that of the last batch item",
    lambda x: of_each_row(x, each(x)[-1:]),
    "sinks do",
)
special(
    "sink_not_in_maximum",
    "the sink joins the row sum but not the maximum, and where it overflows its gradient is NaN",
    without_maximum,
    "sinks do",
)
special(
    "sink_gradient_averaged",
    "the gradient of the sinks is the mean over batch items",
    lambda x: of_each_row(x, each(x) / x.b),
    "sinks do",
)
special(
    "sink_gradient_of_full_blocks",
    "rows behind the last full block of 16 add nothing to the gradient of the sinks",
    lambda x: of_each_row(x, each(x)[:, :, : x.i // 16 * 16 or x.i]),
    "sinks do",
)
special(
    "sink_gradient_of_first_keys",
    "rows of which the first 16 keys are hidden add nothing to the gradient of the sinks",
    lambda x: of_each_row(x, np.where((x.s > -inf)[..., :16].any(-1, keepdims=True), each(x), 0.0)),
    "sinks do",
)
special("sink_gradient_of_groups", "each head has the gradient of all sinks of its group", of_groups, "sinks do")
special(
    "sink_gradient_of_keys",
    "the probability of the sink is taken from the lse of the keys alone",
    lambda x: of_each_row(x, np.where(x.empty, 0.0, -np.exp(np.minimum(x.z - lse_of_keys(x), 700.0)) * x.delta)),
    "sinks do",
)
