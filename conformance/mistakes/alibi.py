"""Mistakes of slopes (ALIBI)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter
from attnspec.conformance.problems.factors.alibi import published
from attnspec.reference.stages.alibi import per_head
from attnspec.reference.stages.visible import query_positions
from attnspec.spec import CHOICES

ALIBI = Chapter()
enter, special = ALIBI.enter, ALIBI.special


def adding(x: Kernel, added: Array) -> Wrong:
    """With something else (b h i j) in the place of what slopes add; None where a row has that in common, which changes nothing."""
    seen, more = x.s > -inf, np.broadcast_to(added - x.sloped, x.s.shape)
    most, least = (choose(more, -1, initial=start, where=seen) for choose, start in ((np.max, -inf), (np.min, inf)))
    if not (most > least).any():
        return None
    bias = np.broadcast_to(added + (0.0 if x.bias is None else x.bias), x.s.shape)
    wrong = x.on(alibi_slopes=None, bias=bias)
    return {name: value for name, value in wrong.items() if name != "dbias"}


def slopes(x: Kernel) -> Array:
    """Those of the call, (1 h) or (b h)."""
    return np.atleast_2d(x.given.slopes)  # type: ignore[arg-type]


def other_slopes(change: Callable[[Kernel, Array], Array | None]) -> Callable[[Kernel], Wrong]:
    """As if the slopes (1 h) or (b h) were others."""

    def wrong(x: Kernel) -> Wrong:
        changed = change(x, slopes(x))
        return None if changed is None else adding(x, per_head(changed) * x.far)

    return wrong


def other_distances(change: Callable[[Kernel, Array, Array], Array | float]) -> Callable[[Kernel], Wrong]:
    """As if the slopes met something else than the distance, made of that and of j − p, (i j) or (b 1 i j)."""
    return lambda x: adding(x, per_head(slopes(x)) * change(x, x.far, ahead(x)))


def ahead(x: Kernel, corner: str = "") -> Array:
    """How far a key lies behind each query, (i j) or (b 1 i j). corner: under another alignment."""
    return (np.arange(x.j) - x.own(corner)).astype(float)


def other_corner(x: Kernel) -> Wrong:
    """Distances from where the other alignment has the query."""
    other = {"bottom_right": "top_left", "top_left": "bottom_right"}[x.dialect.causal_alignment]
    if x.i == x.j or x.problem.q_start is not None or x.dialect.alibi_form != "distance":
        return None
    return adding(x, per_head(slopes(x)) * -np.abs(ahead(x, other)))


def ignored(x: Kernel) -> Wrong:
    """Nothing is added."""
    return adding(x, np.zeros_like(x.sloped))


def where(holds: Callable[[Kernel], bool], wrong: Callable[[Kernel], Wrong]) -> Callable[[Kernel], Wrong]:
    """A mistake that is made at some problems only."""
    return lambda x: wrong(x) if holds(x) else None


def rolled(x: Kernel, own: Array) -> Array | None:
    """Those of the next head."""
    return np.roll(own, -1, 1) if x.h > 1 else None


def of_kv_head(x: Kernel, own: Array) -> Array | None:
    """Those at the number of the key/value head."""
    return own[:, x.kv_head] if 1 <= x.g < x.h else None


def batch_as_heads(x: Kernel, own: Array) -> Array | None:
    """(b h) read as (h): the first row for all batch items."""
    return own[:1] if len(own) > 1 else None


def transposed(x: Kernel, own: Array) -> Array | None:
    """(b h) in the order of (h b)."""
    return own.T.reshape(own.shape) if len(own) > 1 < x.h else None


def made_anew(x: Kernel, own: Array) -> Array | None:
    """The published ones of so many heads."""
    return published(x.h)[None]


def powers_of_two_alone(x: Kernel, own: Array) -> Array | None:
    """As if the number of heads were a power of two."""
    return 2.0 ** (-8 * np.arange(1, x.h + 1) / max(x.h, 1))[None] if x.h & (x.h - 1) else None


# FORMS: those of the other choices first, for what would look the same has their name.

for value in CHOICES["alibi_form"].values:
    enter(
        f"alibi_form_{value}",
        {
            "distance": "what slopes add falls on both sides of the query",
            "signed": "what slopes add grows behind the query",
            "column": "what slopes add depends on the key alone, and grows with it",
        }[value],
        lambda x, value=value: x.with_choice("alibi_form", value),
        "alibi_slopes",
    )
enter("alibi_ignored", "the slopes are ignored", ignored, "alibi_slopes")
enter("alibi_sign", "slopes raise the scores that they should lower", other_slopes(lambda x, own: -own), "alibi_slopes")
enter("alibi_corner", "distances begin where the other alignment has the query", other_corner, "alibi_slopes")
enter("alibi_of_next_head", "each head has the slope of the next one", other_slopes(rolled), "alibi_slopes")
enter(
    "alibi_scaled",
    "what slopes add is multiplied by the scale",
    other_slopes(lambda x, own: own * x.scale if x.scale != 1 else None),
    "alibi_slopes",
)

# NUMBERS

special("alibi_of_first_head", "all heads have the slope of the first", other_slopes(lambda x, own: own[:, :1]), "alibi_slopes")
special("alibi_of_kv_head", "slopes are read at the number of the key/value head", other_slopes(of_kv_head), "alibi_slopes")
special("alibi_batch_as_heads", "slopes (b h) are read as (h)", other_slopes(batch_as_heads), "alibi_slopes")
special("alibi_batch_transposed", "slopes (b h) are read as (h b)", other_slopes(transposed), "alibi_slopes")
special("alibi_made_anew", "the slopes of the call are replaced by the published ones", other_slopes(made_anew), "alibi_slopes")
special(
    "alibi_powers_of_two_alone",
    "the slopes of the call are replaced by 2^(−8n/h), also where h is no power of two",
    other_slopes(powers_of_two_alone),
    "alibi_slopes",
    of="alibi_made_anew",
)
special(
    "alibi_unscaled",
    "what slopes add is divided by the scale",
    other_slopes(lambda x, own: own / x.scale if x.scale not in (0, 1) else None),
    "alibi_slopes",
)
special("alibi_base_two", "what slopes add is taken for a power of two", other_slopes(lambda x, own: own * log(2)), "alibi_slopes")
special(
    "alibi_log2e_twice",
    "what slopes add is multiplied by log₂ e once too often",
    other_slopes(lambda x, own: own / log(2)),
    "alibi_slopes",
)
special(
    "alibi_unsigned",
    "the sign of slopes is lost",
    other_slopes(lambda x, own: np.abs(own) if (own < 0).any() else None),
    "alibi_slopes",
)
special(
    "alibi_doubled",
    "what slopes add is added twice",
    other_slopes(lambda x, own: 2 * own),
    "alibi_slopes",
)
special(
    "alibi_in_bfloat16",
    "slopes are rounded to bfloat16",
    other_slopes(lambda x, own: (own.astype("f4").view("u4") + 0x8000 & 0xFFFF0000).view("f4").astype(float)),
    "alibi_slopes",
)

# DISTANCES

special(
    "alibi_distance_in_bfloat16",
    "distances above 256 are rounded to bfloat16",
    other_distances(lambda x, far, y: (far.astype("f4").view("u4") + 0x8000 & 0xFFFF0000).view("f4").astype(float)),
    "alibi_slopes",
)
special("alibi_squared", "slopes meet the square of the distance", other_distances(lambda x, far, y: -(y**2)), "alibi_slopes")
special(
    "alibi_root",
    "slopes meet the root of the distance",
    other_distances(lambda x, far, y: np.where(y <= 0, -np.sqrt(np.abs(y)), 0.0)),
    "alibi_slopes",
)
special(
    "alibi_nothing_behind",
    "slopes add nothing to keys behind the query",
    other_distances(lambda x, far, y: np.where(y > 0, 0.0, far)),
    "alibi_slopes",
)
for step, says in ((1, "one too many"), (-1, "one too few")):
    special(
        f"alibi_distance_{'more' if step > 0 else 'less'}",
        f"distances begin {says} positions behind the query",
        other_distances(lambda x, far, y, step=step: -np.abs(y + step) if x.dialect.alibi_form == "distance" else far),
        "alibi_slopes",
    )


def within_blocks(x: Kernel, far: Array, y: Array, n: int) -> Array:
    """What slopes meet where a key's place is that in its block of n."""
    begins = np.arange(x.j) // n * n
    return -np.abs(y - begins) if x.dialect.alibi_form == "distance" else far - begins


for n in (16, 32, 64, 128):
    special(
        f"alibi_within_blocks_of_{n}",
        f"slopes meet the place of the key in its block of {n}",
        other_distances(lambda x, far, y, n=n: within_blocks(x, far, y, n)),
        "alibi_slopes",
        of="alibi_within_blocks_of_16",
    )
    special(
        f"alibi_first_{n}_keys_alone",
        f"slopes add nothing to keys behind the first {n}",
        other_distances(lambda x, far, y, n=n: np.where(np.arange(x.j) < n, far, 0.0)),
        "alibi_slopes",
        of="alibi_first_16_keys_alone",
    )


def without_start(x: Kernel) -> Wrong:
    """Distances from where the lengths have the query, whatever its start."""
    return started_at(x, None)


def of_first_start(x: Kernel) -> Wrong:
    """Distances from the start of the first batch item."""
    starts = x.problem.q_start
    return started_at(x, starts[0]) if isinstance(starts, tuple) and len(set(starts)) > 1 else None


def started_at(x: Kernel, start: int | None) -> Wrong:
    """Distances from another start than that of the problem."""
    if x.problem.q_start is None or x.dialect.alibi_form != "distance":
        return None
    own = query_positions(x.problem.replace(q_start=start), x.dialect.causal_alignment)
    return adding(x, per_head(slopes(x)) * -np.abs(np.arange(x.j) - own[:, None]).astype(float))


special(
    "alibi_of_first_start", "distances of all batch items begin at the start of the first", of_first_start, "alibi_slopes q_start"
)
special("alibi_without_start", "distances do not begin at the start", without_start, "alibi_slopes q_start")

# WHERE IT IS IGNORED

CASES: dict[str, tuple[str, Callable[[Kernel], bool]]] = {
    "with_causal": ("under causal", lambda x: x.problem.causal),
    "without_causal": ("without causal", lambda x: not x.problem.causal),
    "with_mask": ("beside a mask", lambda x: x.mask is not None),
    "with_bias": ("beside a bias", lambda x: x.bias is not None),
    "with_window": ("beside a window", lambda x: x.problem.window is not None),
    "with_softcap": ("beside a soft cap", lambda x: x.problem.softcap is not None),
    "in_decode": ("of a single query", lambda x: x.i == 1),
    "of_a_batch": ("of each batch item", lambda x: x.given.slopes is not None and x.given.slopes.ndim == 2),
}
for name, (says, holds) in CASES.items():
    special(f"alibi_ignored_{name}", f"slopes are ignored {says}", where(holds, ignored), "alibi_slopes", of="alibi_ignored")
special(
    "bias_ignored_with_alibi",
    "a bias is ignored beside slopes",
    lambda x: x.on(bias=None, mask=x.allowed & (x.s > -inf), causal=False, window=None),
    "alibi_slopes bias",
)

# BACKWARD: rows of an array rarely ask for all gradients, so that none of these is asked of every problem


def backward_without(x: Kernel) -> Wrong:
    """Backward computes the probabilities anew, without slopes, and normalises them by the lse that forward stored."""
    if x.problem.do is None or x.forward.empty.all():
        return None
    lse = np.where(x.forward.empty, 0.0, x.forward.lse)[..., None]
    p = np.where(x.s > -inf, np.exp(np.minimum(x.s - x.sloped - lse, 300.0)), 0.0)
    return x.of_scores(p * (x.dp - x.delta)) | x.of_values(p)


def gradients_without(x: Kernel) -> Wrong:
    """Those of a problem whose slopes are zero; None where a slope of zero is all that there is."""
    if not slopes(x).any():
        return None
    wrong = x.on(alibi_slopes=np.zeros_like(x.given.slopes))
    return {name: value for name, value in wrong.items() if name != "o"}


def of_slopes(change: Callable[[Kernel, Array], Array]) -> Callable[[Kernel], Wrong]:
    """The gradient of the slopes, changed."""
    return lambda x: {"dalibi_slopes": change(x, x.of_scores(x.ds)["dalibi_slopes"])}


def of_part(part: Callable[[Kernel], Array]) -> Callable[[Kernel], Wrong]:
    """The gradient of the slopes from a part of (b h i j); None where that is all."""
    return lambda x: None if part(x).all() else {"dalibi_slopes": x.of_scores(x.ds * part(x))["dalibi_slopes"]}


special("dalibi_zero", "the gradient of the slopes is zero", of_slopes(lambda x, g: np.zeros_like(g)), "alibi_slopes do")
special("dalibi_negated", "the gradient of the slopes has the other sign", of_slopes(lambda x, g: -g), "alibi_slopes do")
special(
    "dalibi_of_first_item",
    "the gradient of the slopes is that of the first batch item",
    of_part(lambda x: (np.arange(x.b) == 0)[:, None, None, None]),
    "alibi_slopes do",
)
special("alibi_not_in_backward", "backward has no slopes", backward_without, "alibi_slopes do")
special("alibi_gradients_without_slopes", "the gradients are those without slopes", gradients_without, "alibi_slopes do")
special("dalibi_doubled", "the gradient of the slopes is twice what it should be", of_slopes(lambda x, g: 2 * g), "alibi_slopes do")
special("dalibi_scaled", "the gradient of the slopes is scaled", of_slopes(lambda x, g: g * x.scale), "alibi_slopes do")
special("dalibi_averaged", "the gradient of the slopes is divided by the batch", of_slopes(lambda x, g: g / x.b), "alibi_slopes do")
special(
    "dalibi_of_next_head",
    "the gradient of the slopes is that of the next head",
    of_slopes(lambda x, g: np.roll(g, -1, -1)),
    "alibi_slopes do",
)
special(
    "dalibi_of_last_row",
    "the gradient of the slopes is that of the last query",
    of_part(lambda x: (np.arange(x.i) == x.i - 1)[:, None]),
    "alibi_slopes do",
)
for n in (16, 32, 64, 128):
    special(
        f"dalibi_of_first_{n}_keys",
        f"the gradient of the slopes is that of the first {n} keys",
        of_part(lambda x, n=n: np.arange(x.j) < n),
        "alibi_slopes do",
        of="dalibi_of_first_16_keys",
    )
special(
    "dalibi_lacks_tail_of_16",
    "the gradient of the slopes lacks the keys behind the last full block of 16",
    of_part(lambda x: np.arange(x.j) < (x.j - x.j % 16 or x.j)),
    "alibi_slopes do",
)
