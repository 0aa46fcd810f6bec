"""Mistakes of windows (WINDOW)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Any

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.gradients import again, gradients_alone, scores
from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter
from attnspec.reference.stages.visible import reach
from attnspec.spec import CHOICES

WINDOW = Chapter()
enter, special = WINDOW.enter, WINDOW.special
Rule = Callable[[Array, Array, float, float], Any]  # of query positions (i 1), key positions (j), and how far the window reaches


def other_band(x: Kernel, band: Array) -> Wrong:
    """With another band (i j) in the place of the window, beside mask and causal."""
    return x.seeing(x.masked & x.triangle() & band if x.problem.causal else x.masked & band)


def as_rule(rule: Rule, corner: str = "") -> Callable[[Kernel], Wrong]:
    """The keys of another rule, and the first tokens. corner: the alignment of the positions, where it is another."""

    def wrong(x: Kernel) -> Wrong:
        own, j = x.own(corner), np.arange(x.j)
        left, right = reach(x.problem.window, x.dialect.window_count)
        return other_band(x, rule(own, j, left, right) | (first(x, j) & (j <= own + right)))

    return wrong


def first(x: Kernel, j: Array, more: int = 0) -> Array:
    """Which keys are first tokens (j), so many more of them."""
    few: Array = j < x.problem.first_tokens + more
    return few


def within(p: Array, j: Array, left: float, right: float) -> Array:
    """The keys of a window that reaches so far."""
    inside: Array = (j >= p - left) & (j <= p + right)
    return inside


def where(holds: Callable[[Kernel], Any], wrong: Callable[[Kernel], Wrong]) -> Callable[[Kernel], Wrong]:
    """A mistake that is made at some problems only."""
    return lambda x: wrong(x) if holds(x) else None


def other_corner(rule: Rule) -> Callable[[Kernel], Wrong]:
    """A rule at the positions of the other alignment."""
    other = {"bottom_right": "top_left", "top_left": "bottom_right"}
    return lambda x: as_rule(rule, other[x.dialect.causal_alignment])(x)


def numbers(x: Kernel) -> tuple[int | None, int | None]:
    """The two numbers of the window, as they were given."""
    left, right = x.problem.window
    return left, right


def given(change: Callable[[int | None, int | None], tuple[int | None, int | None]]) -> Callable[[Kernel], Wrong]:
    """As if the window's numbers were others."""

    def wrong(x: Kernel) -> Wrong:
        changed = change(*numbers(x))
        return None if changed == numbers(x) else x.on(window=changed)

    return wrong


def as_band(x: Kernel, more: int = 0) -> Array:
    """The keys of the window (i j), so many more on its left."""
    own, j = x.own(), np.arange(x.j)
    left, right = reach(x.problem.window, x.dialect.window_count)
    return within(own, j, left + more, right) | (first(x, j) & (j <= own + right))


def without_window(x: Kernel) -> Wrong:
    """All keys that mask and causal show."""
    return other_band(x, np.ones((x.i, x.j), bool))


# COUNTS: those of the other choices first, for what would look the same has their name.

for value in CHOICES["window_count"].values:
    enter(
        f"window_count_{value}",
        {
            "inclusive": "the numbers of the window are how far it reaches",
            "total": "the numbers of the window count the query's own key",
            "exclusive": "the left end of the window is open",
        }[value],
        lambda x, value=value: x.with_choice("window_count", value),
        "window",
    )
enter(
    "window_left_one_more",
    "a window shows one key too many before the query",
    as_rule(lambda p, j, x, y: within(p, j, x + 1, y)),
    "window",
)
enter(
    "window_right_one_more",
    "a window shows one key too many behind the query",
    as_rule(lambda p, j, x, y: within(p, j, x, y + 1)),
    "window",
)
enter(
    "window_right_one_less",
    "a window shows one key too few behind the query",
    as_rule(lambda p, j, x, y: within(p, j, x, y - 1)),
    "window",
)
special(
    "window_left_one_less",
    "a window shows one key too few before the query",
    as_rule(lambda p, j, x, y: within(p, j, x - 1, y)),
    "window",
    of="window_count_exclusive",
)
special(
    "window_one_more",
    "a window shows one key too many on both sides",
    as_rule(lambda p, j, x, y: within(p, j, x + 1, y + 1)),
    "window",
    of="window_left_one_more",
)

# WHERE IT LIES

enter("window_ignored", "the window is ignored", without_window, "window")
enter("window_swapped", "the two numbers of the window are swapped", given(lambda left, right: (right, left)), "window")
enter("window_corner", "the window is aligned at the other corner", other_corner(within), "window")
enter("window_left_ignored", "a window has no left end", as_rule(lambda p, j, x, y: within(p, j, inf, y)), "window")
enter("window_right_ignored", "a window has no right end", as_rule(lambda p, j, x, y: within(p, j, x, inf)), "window")
special(
    "window_of_first_query",
    "all queries have the window of the first",
    as_rule(lambda p, j, x, y: within(p[..., :1, :] + 0 * p, j, x, y)),
    "window",
)
special(
    "window_of_last_query",
    "all queries have the window of the last",
    as_rule(lambda p, j, x, y: within(p[..., -1:, :] + 0 * p, j, x, y)),
    "window",
)
special(
    "window_from_the_ends",
    "all queries see the last keys that the window of the last query holds",
    as_rule(lambda p, j, x, y: (j >= len(j) - 1 - x) & (j <= p + y)),
    "window",
)
special(
    "window_left_on_both_sides",
    "the left number of the window is used on both sides",
    given(lambda left, right: (left, left)),
    "window",
)
special(
    "window_right_on_both_sides",
    "the right number of the window is used on both sides",
    given(lambda left, right: (right, right)),
    "window",
)
special(
    "window_inverted",
    "the keys of the window are hidden, and the others shown",
    as_rule(lambda p, j, x, y: ~within(p, j, x, y)),
    "window",
)
special(
    "window_shows_first_key",
    "the first key stays visible in every window",
    as_rule(lambda p, j, x, y: within(p, j, x, y) | (j == 0)),
    "window",
)
special(
    "window_or_causal",
    "a query sees a key if the window or causal allows it",
    where(lambda x: x.problem.causal, lambda x: x.seeing(x.masked & (x.triangle() | as_band(x)))),
    "window",
)

# FIRST TOKENS


def of_first_tokens(wrong: Callable[[Kernel], Wrong]) -> Callable[[Kernel], Wrong]:
    """A mistake that is made where there are first tokens."""
    return where(lambda x: x.problem.first_tokens, wrong)


enter(
    "first_tokens_ignored",
    "the first tokens are hidden as all keys before the window are",
    of_first_tokens(lambda x: x.on(first_tokens=0)),
    "window",
)
for more, says in ((1, "many"), (-1, "few")):
    enter(
        f"first_tokens_one_{'more' if more > 0 else 'less'}",
        f"one first token too {says} stays visible",
        of_first_tokens(lambda x, more=more: x.on(first_tokens=x.problem.first_tokens + more)),
        "window",
    )
special(
    "first_tokens_in_the_future",
    "first tokens are seen by queries that stand before them, whatever causal and the right end of the window say",
    of_first_tokens(lambda x: x.seeing(x.masked & (x.placed() | first(x, np.arange(x.j))))),
    "window",
)
special(
    "first_tokens_in_the_place_of_the_mask",
    "first tokens are seen though the mask hides them",
    of_first_tokens(lambda x: x.seeing(x.allowed | (x.placed() & first(x, np.arange(x.j))))),
    "window mask",
)

# BESIDE OTHER OPTIONS

for name, says, holds in (
    ("without_causal", "without causal", lambda x: not x.problem.causal),
    ("with_causal", "beside causal", lambda x: x.problem.causal),
    ("with_mask", "beside a mask", lambda x: x.problem.mask is not None),
    ("with_bias", "beside a bias", lambda x: x.problem.bias is not None),
    ("of_one_query", "of a single query", lambda x: x.i == 1),
    ("with_lengths_apart", "where there are more keys than queries, or fewer", lambda x: x.i != x.j),
):
    special(f"window_ignored_{name}", f"the window is ignored {says}", where(holds, without_window), "window", of="window_ignored")
special(
    "causal_ignored_with_window",
    "causal is ignored beside a window",
    lambda x: x.on(causal=False),
    "window causal",
    of="causal_ignored",
)
special(
    "mask_ignored_with_window",
    "a mask is ignored beside a window",
    lambda x: x.on(mask=None) if not x.masked.all() else None,
    "window mask",
    of="mask_ignored",
)

# NO LIMIT


def literal(x: Kernel) -> Wrong:
    """No limit on one side is −1, and −1 is a number as any other."""
    left, right = numbers(x)
    if (left is None) == (right is None):
        return None
    return as_rule(lambda p, j, a, b: within(p, j, -1 if left is None else a, -1 if right is None else b))(x)


def long_is_none(left_is: Callable[[Kernel, int], bool], right_is: Callable[[Kernel, int], bool]) -> Callable[[Kernel], Wrong]:
    """A number that is so large is no limit."""
    return lambda x: given(
        lambda left, right: (
            None if left is None or left_is(x, left) else left,
            None if right is None or right_is(x, right) else right,
        )
    )(x)


special("window_no_limit_is_minus_one", "no limit on a side is read as −1, which shifts the window's end", literal, "window")
special(
    "window_no_limit_is_zero",
    "no limit on a side is read as 0",
    given(lambda left, right: (left or 0, right or 0) if (left, right) != (None, None) else (None, None)),
    "window",
)
special(
    "window_half_open_is_none",
    "a window that has no limit on one side is ignored",
    where(lambda x: None in numbers(x), without_window),
    "window",
    of="window_ignored",
)
special(
    "window_zero_is_none",
    "0 is read as no limit",
    given(lambda left, right: (left or None, right or None)),
    "window",
)
special(
    "window_left_zero_is_none",
    "0 before the query is read as no limit",
    given(lambda left, right: (left or None, right)),
    "window",
    of="window_zero_is_none",
)
special(
    "window_causal_is_none",
    "a window that begins anywhere and ends at the query is read as none",
    where(lambda x: numbers(x)[0] is None and reach(x.problem.window, x.dialect.window_count)[1] == 0, without_window),
    "window",
)
for n in (16, 32, 64, 128):
    special(
        f"window_of_at_most_{n}",
        f"a window reaches {n} keys back at most",
        as_rule(lambda p, j, x, y, n=n: within(p, j, min(x, n), y) if x < inf else within(p, j, x, y)),
        "window",
        of="window_of_at_most_16",
    )
special(
    "window_as_long_as_keys_is_none",
    "a window that is as long as the keys has no end, though there are more queries",
    long_is_none(lambda x, n: n >= x.j, lambda x, n: n >= x.j),
    "window",
)
special(
    "window_as_long_as_queries_is_none",
    "a window that is as long as the queries has no end, though there are more keys",
    long_is_none(lambda x, n: n >= x.i, lambda x, n: n >= x.i),
    "window",
)

# BLOCKS

for n in (16, 32, 64, 128):
    special(
        f"window_by_blocks_of_{n}",
        f"the blocks of {n} keys that an end of the window crosses are not masked",
        as_rule(lambda p, j, x, y, n=n: (j // n >= np.floor((p - x) / n)) & (j // n <= np.floor((p + y) / n))),
        "window",
        of="window_by_blocks_of_16",
    )
    special(
        f"window_without_block_of_{n}",
        f"the block of {n} keys that the left end of the window crosses is skipped",
        as_rule(lambda p, j, x, y, n=n: within(p, j, x, y) & ((j // n > np.floor((p - x) / n)) | (p - x <= 0))),
        "window",
        of="window_without_block_of_16",
    )
    special(
        f"window_begins_late_of_{n}",
        f"a window that begins in the last of a block of {n} keys lacks that key",
        as_rule(lambda p, j, x, y, n=n: within(p, j, x, y) & ((j != p - x) | (j % n < n - 1))),
        "window",
        of="window_begins_late_of_16",
    )
    special(
        f"window_ends_early_of_{n}",
        f"a window does not reach beyond the block of {n} keys that its query stands in",
        as_rule(lambda p, j, x, y, n=n: within(p, j, x, y) & ((j // n <= p // n) | (y == inf))),
        "window",
        of="window_ends_early_of_16",
    )


def leading_tile(x: Kernel) -> Wrong:
    """What is seen after a first block of 16 keys of which none is: exp(−∞ + ∞)."""
    rows = ~x.allowed[..., :16].any(-1) & ~x.empty[..., 0]
    return {"o": np.where(rows[..., None], nan, x.p @ x.heads_v)} if rows.any() else None


special("window_leading_tile_nan", "a row is NaN if the window hides its first 16 keys", leading_tile, "window")

# BACKWARD


def beside(x: Kernel) -> Array:
    """What mask and causal show."""
    return x.masked & x.triangle() if x.problem.causal else x.masked


special(
    "window_forgotten_in_backward",
    "backward computes the probabilities without the window",
    lambda x: again(x, scores(x, beside(x))),
    "do window",
)
for name, says, step in (("less", "few", -1), ("more", "many", 1)):
    special(
        f"window_left_one_{name}_in_backward",
        f"backward lets each query see one key too {says} before it",
        lambda x, step=step: again(x, scores(x, beside(x) & as_band(x, step))),
        "do window",
    )


for name, says, wrong, of in (
    ("without_window", "without the window", without_window, "window_forgotten_in_backward"),
    ("left_one_more", "whose window shows one key more before the query", as_rule(lambda p, j, x, y: within(p, j, x + 1, y)), ""),
    ("left_one_less", "whose window shows one key less before the query", as_rule(lambda p, j, x, y: within(p, j, x - 1, y)), ""),
    ("without_right_end", "whose window has no right end", as_rule(lambda p, j, x, y: within(p, j, x, inf)), ""),
):
    special(f"window_gradients_{name}", f"the gradients are those of a call {says}", gradients_alone(wrong), "do window", of=of)
