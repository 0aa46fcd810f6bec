"""Mistakes in which head and which batch item keys and values are taken from (SHARED)."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.places import first_alone, of_first
from attnspec.conformance.mistakes.table import Chapter

HEADS = Chapter()
enter, special = HEADS.enter, HEADS.special


def head_map(x: Kernel) -> Wrong:
    """The other grouping, where it is another."""
    other = "strided" if x.dialect.head_grouping == "blocked" else "blocked"
    return x.with_choice("head_grouping", other) if 1 < x.g < x.h else None


def next_kv_head(x: Kernel) -> Wrong:
    """Keys and values of the following head."""
    return x.with_kv(lambda k: np.roll(k, -1, 1), lambda dk: np.roll(dk, 1, 1)) if x.g > 1 else None


def of_first_kv(x: Kernel, axis: int) -> Wrong:
    """Keys and values that stand first along an axis, which get the gradients of all."""
    return x.with_kv(lambda k: of_first(k, axis - k.ndim), lambda dk: first_alone(dk, axis))


enter("head_map", "query heads are grouped the other way (n % g instead of n // (h / g))", head_map)
enter("next_kv_head", "each query head uses the next key/value head", next_kv_head)
enter("first_kv_head", "all query heads use key/value head 0", lambda x: of_first_kv(x, 1) if x.g > 1 else None)
enter("first_item", "all batch items use the keys and values of item 0", lambda x: of_first_kv(x, 0))


def kv_at(x: Kernel, head: Array, keys: bool = True, values: bool = True) -> Wrong:
    """Query head n uses keys and values of head[n], or one of them; None where those are its own."""
    if np.array_equal(head, x.kv_head) or x.k.ndim == 3:
        return None
    of_keys, of_values = (head if asked else x.kv_head for asked in (keys, values))
    wrong = x.on(k=x.k[:, of_keys], v=x.v[:, of_values])
    for name, a, at in (("dk", x.k, of_keys), ("dv", x.v, of_values)):
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


def of_item(x: Kernel, step: int) -> Wrong:
    """Keys and values of the batch item beside."""
    if x.b == 1:
        return None
    wrong = x.on(k=np.roll(x.k, step, 0), v=np.roll(x.v, step, 0))
    return wrong | {n: np.roll(wrong[n], -step, 0) for n in wrong.keys() & {"dk", "dv"}}


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
special("keys_of_first_head", "all query heads use the keys of head 0", lambda x: kv_at(x, np.zeros_like(x.kv_head), values=False))
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
