"""Mistakes of where the queries start (POSITION)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.gradients import again, gradients_alone, scores
from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter
from attnspec.reference.stages.visible import query_positions, reach
from attnspec.spec.problem import FARTHEST

POSITION = Chapter()
enter, special = POSITION.enter, POSITION.special


def moves(x: Kernel) -> bool:
    """Whether there is something that a start moves."""
    return x.problem.causal or x.problem.window is not None


def each(x: Kernel) -> list[int]:
    """The start of each batch item."""
    start = x.problem.q_start
    return list(start) if isinstance(start, tuple) else [start or 0] * x.b


def at(change: Callable[[Kernel, int], int], holds: Callable[[Kernel], bool] = moves) -> Callable[[Kernel], Wrong]:
    """As if the start of each batch item were another. holds: where the mistake is made."""

    def wrong(x: Kernel) -> Wrong:
        if not moves(x) or not holds(x):
            return None
        changed = [int(np.clip(change(x, start), 1 - FARTHEST, FARTHEST - 1)) for start in each(x)]
        return None if changed == each(x) else x.on(q_start=tuple(changed))

    return wrong


def of_item(choose: Callable[[list[int]], int]) -> Callable[[Kernel], Wrong]:
    """As if the start of one batch item were that of all."""
    return at(lambda x, start: choose(each(x)), lambda x: x.b > 1)


def aligned(x: Kernel) -> Array:
    """The positions of the queries (i 1) without a start."""
    return query_positions(x.problem.replace(q_start=None), x.dialect.causal_alignment)[:, None]


def placed(x: Kernel, causal: Array, window: Array) -> Array:
    """The keys that mask, causal and window show, each around positions (i 1) or (b 1 i 1) of its own."""
    keys = np.arange(x.j)
    left, right = reach(x.problem.window, x.dialect.window_count)
    late_enough = (keys >= window - left) | (keys < x.problem.first_tokens)
    shown: Array = x.masked & late_enough & (keys <= window + right)
    return shown & (keys <= causal) if x.problem.causal else shown


def ignored(x: Kernel) -> Wrong:
    """The positions of a call without a start."""
    return x.seeing(placed(x, aligned(x), aligned(x)))


def where(holds: Callable[[Kernel], bool], wrong: Callable[[Kernel], Wrong]) -> Callable[[Kernel], Wrong]:
    """A mistake that is made at some problems only."""
    return lambda x: wrong(x) if holds(x) else None


enter("q_start_ignored", "the start of the queries is ignored", ignored, "q_start")
enter("q_start_one_more", "the queries start one position too late", at(lambda x, start: start + 1), "q_start")
enter("q_start_one_less", "the queries start one position too early", at(lambda x, start: start - 1), "q_start")
enter("q_start_of_first_item", "all batch items have the start of the first", of_item(lambda some: some[0]), "q_start")

# OTHER STARTS

special("q_start_of_last_item", "all batch items have the start of the last", of_item(lambda some: some[-1]), "q_start")
special("q_start_largest", "all batch items have the largest start", of_item(max), "q_start")
special("q_start_smallest", "all batch items have the smallest start", of_item(min), "q_start")
special("q_start_negated", "the start is subtracted instead of added", at(lambda x, start: -start), "q_start")
special("q_start_twice", "the start is added twice", at(lambda x, start: 2 * start), "q_start")
special(
    "q_start_zero",
    "the queries start at the first key, whatever the start is",
    at(lambda x, start: 0),
    "q_start",
    of="q_start_ignored",
)
special(
    "q_start_at_the_end",
    "the last query stands at the last key, whatever the start is",
    at(lambda x, start: x.j - x.i),
    "q_start",
    of="q_start_ignored",
)
special(
    "q_start_from_the_end",
    "the start is added to where the last query stands at the last key",
    at(lambda x, start: start + x.j - x.i),
    "q_start",
)
special(
    "q_start_of_last_query",
    "the start is taken for the position of the last query",
    at(lambda x, start: start - x.i + 1),
    "q_start",
)
special("q_start_not_below_zero", "a negative start is taken for 0", at(lambda x, start: max(start, 0)), "q_start")
special("q_start_negative_is_huge", "a negative start is taken for a huge one", at(lambda x, start: start % (1 << 29)), "q_start")
special("q_start_negative_positive", "a negative start is taken without its sign", at(lambda x, start: abs(start)), "q_start")
special(
    "q_start_at_most_keys", "the queries start behind the last key at the latest", at(lambda x, start: min(start, x.j)), "q_start"
)
special(
    "q_start_at_most_last_key",
    "the queries start at the last key at the latest",
    at(lambda x, start: min(start, x.j - 1)),
    "q_start",
)
special(
    "q_start_fits_the_keys",
    "the last query stands at the last key at the latest",
    at(lambda x, start: min(start, max(x.j - x.i, 0))),
    "q_start",
)
for n in (16, 32, 64, 128):
    special(
        f"q_start_rounded_to_{n}",
        f"the start is rounded down to a multiple of {n}",
        at(lambda x, start, n=n: start // n * n),
        "q_start",
        of="q_start_rounded_to_16",
    )

# WHERE IT IS READ

for name, says, holds in (
    ("with_window", "beside a window", lambda x: x.problem.window is not None),
    ("with_mask", "beside a mask", lambda x: x.problem.mask is not None),
    ("with_bias", "beside a bias", lambda x: x.problem.bias is not None),
    ("of_one_query", "of a single query", lambda x: x.i == 1),
    ("of_several_queries", "where there are several queries", lambda x: x.i > 1),
):
    special(f"q_start_ignored_{name}", f"the start is ignored {says}", where(holds, ignored), "q_start", of="q_start_ignored")
special(
    "q_start_ignored_by_window",
    "the window lies where it lies without a start, and causal where the start says",
    lambda x: x.seeing(placed(x, x.own(), aligned(x))),
    "q_start window",
)
special(
    "q_start_ignored_by_causal",
    "causal is aligned as without a start, and the window lies where the start says",
    lambda x: x.seeing(placed(x, aligned(x), x.own())),
    "q_start causal",
)
special(
    "q_start_window_at_the_call",
    "the window lies around the places of the queries in the call, and causal where the start says",
    lambda x: x.seeing(placed(x, x.own(), np.arange(x.i)[:, None])),
    "q_start window",
)
special(
    "q_start_one_window_for_the_chunk",
    "the window of the first query is that of all, and causal is right",
    lambda x: x.seeing(placed(x, x.own(), x.own()[..., :1, :] + np.zeros((x.i, 1), int))),
    "q_start window",
)
special(
    "q_start_single_query_sees_all",
    "a single query sees all keys, whatever its position is",
    where(lambda x: x.i == 1, lambda x: x.on(causal=False)),
    "q_start causal",
)
special(
    "q_start_before_the_keys_sees_all",
    "a query before the first key sees all keys",
    lambda x: x.seeing(placed(x, x.own(), x.own()) | (x.masked & (x.own() < 0))),
    "q_start",
)
special(
    "q_start_before_the_keys_sees_first",
    "a query before the first key sees the first one",
    lambda x: x.seeing(placed(x, np.maximum(x.own(), 0), x.own())),
    "q_start causal",
)
special(
    "q_start_turns_causal_on",
    "with a start every call is causal",
    where(lambda x: not x.problem.causal, lambda x: x.on(causal=True)),
    "q_start",
)

special(
    "q_start_hides_what_lies_before",
    "with a start, the keys before the first query are hidden",
    where(moves, lambda x: x.seeing(placed(x, x.own(), x.own()) & (np.arange(x.j) >= x.own()[..., :1, :]))),
    "q_start",
)
special(
    "q_start_behind_the_keys_sees_none",
    "queries that start behind the last key see none",
    where(moves, lambda x: x.seeing(placed(x, x.own(), x.own()) & (x.own()[..., :1, :] < x.j))),
    "q_start",
)


def counting_visible_keys(x: Kernel) -> Wrong:
    """Each start moved by the keys before all others that the mask hides from every query of the item."""
    hidden = (~x.masked.any((1, 2))).cumprod(-1).sum(-1)
    if not moves(x) or not hidden.any():
        return None
    return x.on(q_start=tuple(int(start + n) for start, n in zip(each(x), hidden, strict=True)))


special(
    "q_start_counts_visible_keys",
    "the start counts the keys that the mask shows, and leaves out hidden ones before them",
    counting_visible_keys,
    "q_start mask",
)

# BACKWARD

special(
    "q_start_forgotten_in_backward",
    "backward computes the probabilities without the start",
    where(moves, lambda x: again(x, scores(x, placed(x, aligned(x), aligned(x))))),
    "do q_start",
)
for name, says, step in (("more", "late", 1), ("less", "early", -1)):
    special(
        f"q_start_one_{name}_in_backward",
        f"backward lets the queries start one position too {says}",
        where(moves, lambda x, step=step: again(x, scores(x, placed(x, x.own() + step, x.own() + step)))),
        "do q_start",
    )
special(
    "q_start_of_first_item_in_backward",
    "backward has the start of the first batch item for all",
    where(lambda x: moves(x) and len(set(each(x))) > 1, lambda x: again(x, scores(x, placed(x, x.own()[:1], x.own()[:1])))),
    "do q_start",
)
for name, says, wrong, of in (
    ("without_start", "without the start", where(moves, ignored), "q_start_forgotten_in_backward"),
    ("one_more", "whose queries start one position later", at(lambda x, start: start + 1), "q_start_one_more_in_backward"),
    ("one_less", "whose queries start one position earlier", at(lambda x, start: start - 1), "q_start_one_less_in_backward"),
    (
        "of_first_item",
        "in which all batch items have the start of the first",
        of_item(lambda some: some[0]),
        "q_start_of_first_item_in_backward",
    ),
    (
        "window_at_the_call",
        "whose window lies around the places of the queries in the call",
        where(lambda x: x.problem.window is not None, lambda x: x.seeing(placed(x, x.own(), np.arange(x.i)[:, None]))),
        "",
    ),
):
    special(f"q_start_gradients_{name}", f"the gradients are those of a call {says}", gradients_alone(wrong), "do q_start", of=of)
