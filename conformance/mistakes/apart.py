"""Mistakes of keys and values apart: where only one of them is another sequence's, and rows that a weight of zero does not hide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.caches import of_own_number, slotted
from attnspec.conformance.mistakes.kernel import Wrong
from attnspec.conformance.mistakes.ragged import ALL, RAGGED, Rows, appends, enter, several
from attnspec.conformance.mistakes.sequences import Sequences, sequences_at
from attnspec.conformance.mistakes.table import Mistake
from attnspec.reference import Exact, solve
from attnspec.reference.ragged import RaggedExact
from attnspec.spec import Dialect, Problem


def own(x: Sequences, n: int) -> Array:
    """The rows of a sequence."""
    return x.rows(n)


def of_first(x: Sequences, n: int) -> Array:
    """The rows of the first sequence, as many as it has, and then the sequence's own."""
    first = x.rows(x.turn[0])[: x.j[n]]
    return np.concatenate([first, x.rows(n)[len(first) :]])


def new_of_first(x: Sequences, n: int) -> Array:
    """A sequence's rows with the new ones of the first."""
    new = x.rows(0)[x.j[0] - x.new[0] :]
    return np.concatenate([x.rows(n)[: x.j[n] - x.new[n]], new]) if x.new[n] == x.new[0] else x.rows(n)


enter(
    "keys_of_first_alone",
    "keys, and not values, are those of the first sequence",
    of_first,
    None,
    ALL,
    several,
    special=True,
    values=own,
)
enter(
    "values_of_first_alone",
    "values, and not keys, are those of the first sequence",
    own,
    None,
    ALL,
    several,
    special=True,
    values=of_first,
)
enter(
    "new_values_of_first",
    "new values are those of the first sequence",
    own,
    None,
    ("cached",),
    appends,
    special=True,
    values=new_of_first,
)
enter(
    "new_keys_of_first",
    "new keys, and not values, are those of the first sequence",
    new_of_first,
    None,
    ("cached",),
    appends,
    special=True,
    values=own,
)
enter(
    "values_slots_ignored",
    "each sequence has the values of the slot of its own number",
    own,
    None,
    ("cached",),
    slotted,
    special=True,
    values=of_own_number,
)
enter(
    "keys_slots_ignored",
    "each sequence has the keys of the slot of its own number, and its own values",
    of_own_number,
    None,
    ("cached",),
    slotted,
    special=True,
    values=own,
)


def without_strides(x: Sequences, n: int) -> Array:
    """The rows where memory is taken for contiguous."""
    return x.rows(n) + 2 * x.count


def strided(x: Sequences) -> bool:
    """The memory is not contiguous, and the call writes nothing into it."""
    return x.strided and not appends(x)


enter("rows_without_strides", "keys and values are read as if they were contiguous", without_strides, None, ALL, strided)
enter("rows_of_keys_without_strides", "keys are read as if they were contiguous", without_strides, None, ALL, strided, values=own)
enter(
    "rows_of_values_without_strides", "values are read as if they were contiguous", own, None, ALL, strided, values=without_strides
)


# OUTPUTS


def output(name: str, says: str, change: Callable[[Sequences, Array], None], forms: tuple[str, ...] = ALL) -> None:
    """Enter a mistake of the output: what it changes in a copy of the right one (b h i e)."""

    def wrong(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
        if problem.carrier is None or problem.carrier.feature not in forms or not isinstance(exact, RaggedExact) or not problem.g:
            return None
        x, o = sequences_at(problem, dialect), exact.values["o"].copy()
        change(x, o)
        return None if np.array_equal(o, exact.values["o"], equal_nan=True) else {"o": o}

    RAGGED.add(Mistake(name, says, wrong, special=True))


def fewer(x: Sequences, o: Array) -> None:
    """Zero in as many of the last sequences as there are without rows."""
    there = sum(i > 0 or j > 0 for i, j in zip(x.i, x.j, strict=True))
    for n in x.turn[there:]:
        o[n] = 0.0


def mean_of_room(x: Sequences, o: Array) -> None:
    """The mean of its room in a sequence without keys."""
    for n in range(x.b):
        rows = x.rows(n, x.room)
        if not x.j[n] and len(rows):
            o[n, :, : x.i[n]] = x.values[rows].mean(0).repeat(x.problem.h // x.problem.g, 0)[:, None]


def mean_of_next(x: Sequences, o: Array) -> None:
    """The mean of the next four rows in a sequence without keys."""
    for n in range(x.b):
        rows = np.arange(x.starts[n], min(x.starts[n] + 4, x.count))
        if not x.j[n] and len(rows):
            o[n, :, : x.i[n]] = x.values[rows].mean(0).repeat(x.problem.h // x.problem.g, 0)[:, None]


def nothing_before(x: Sequences, o: Array) -> None:
    """NaN in a sequence of which nothing was there before the call."""
    for n in range(x.b):
        if x.j[n] == x.new[n]:
            o[n, :, : x.i[n]] = np.nan


def lse_by_rows(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
    """The lse of a pack, (h n), written as (n h) and read as it is."""
    carrier = problem.carrier
    if carrier is None or carrier.feature not in ("packed", "paged") or not problem.lse or problem.h < 2:
        return None
    x, lse = sequences_at(problem, dialect), exact.values["lse"]
    begins, n = x.given["cu_q"].tolist(), x.given["q"].shape[0]
    memory, found = np.zeros((n, problem.h)), lse.copy()
    rows = {m: slice(begins[place], begins[place] + x.i[m]) for place, m in enumerate(x.turn)}
    for m, own in rows.items():
        memory[own] = lse[m, :, : x.i[m]].T
    for m, own in rows.items():
        found[m, :, : x.i[m]] = memory.reshape(problem.h, n)[:, own]
    return {"lse": found}


RAGGED.add(Mistake("lse_by_rows", "the memory of the lse is (n h) where it is read as (h n)", lse_by_rows, special=True))
says = "without a key before the call the output is NaN, also where there are new keys"
output("nothing_before_nan", says, nothing_before, ("cached", "paged"))
output("no_keys_mean_of_next", "a sequence without keys gets the mean of the values behind it", mean_of_next, ("packed",))


def second_without_options(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
    """The second sequence without causal, window, cap and sinks where the first has no queries."""
    if problem.carrier is None or not isinstance(exact, RaggedExact) or problem.b < 2:
        return None
    x, o = sequences_at(problem, dialect), exact.values["o"].copy()
    first, second = x.turn[:2]
    if x.i[first] or not x.i[second]:
        return None
    plain = {"causal": False, "window": None, "first_tokens": 0, "softcap": None, "sinks": None, "lse": False}
    other = x.each[second].replace(**plain, do=None, dlse=None, wrt=("q", "k", "v"))
    o[second, :, : x.i[second]] = solve(other, dialect).values["o"][0]
    return {"o": o}


says = "the sequence behind a first one without queries has no window, cap or sink, and is not causal"
RAGGED.add(Mistake("second_without_options", says, second_without_options, special=True))
output("last_sequences_left_out", "as many sequences are attended to as have rows, from the first on; the others are zero", fewer)
output("no_keys_mean_of_room", "a sequence without keys gets the mean of what lies in its room", mean_of_room, ("padded", "cached"))

# A WEIGHT OF ZERO


def weighed(name: str, says: str, rest: Rows, forms: tuple[str, ...]) -> None:
    """Enter a mistake in which values of these rows have a weight of zero: NaN and infinity come through.

    Where several explain a failure, it is told as the first of them.
    """

    def wrong(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
        if problem.carrier is None or problem.carrier.feature not in forms or not isinstance(exact, RaggedExact):
            return None
        x, o = sequences_at(problem, dialect), exact.values["o"].copy()
        for n in range(problem.b):
            rows = rest(x, n)
            if rows is not None and x.i[n] and problem.g:
                spread = (0.0 * x.values[rows]).sum(0).repeat(problem.h // problem.g, 0)  # (h e)
                o[n, :, : x.i[n]] += spread[:, None]
        return {"o": o} if np.isnan(o).any() else None

    RAGGED.add(Mistake(name, says, wrong, of="nobodys_rows_weighed_with_zero"))


def nobodys(x: Sequences, n: int) -> Array:
    """The rows that no sequence has."""
    return np.setdiff1d(np.arange(x.count), list(x.owners))


def behind(x: Sequences, n: int, step: int) -> Array:
    """The rows behind a sequence's last key, up to a multiple of `step`."""
    return x.rows(n, -(-x.j[n] // step) * step)[x.j[n] :] if step else x.rows(n)[:0]


def free(x: Sequences, n: int) -> Array:
    """The rows of slots that no sequence has."""
    taken = {x.slot(m) for m in range(x.b)}
    return np.array([row for row in range(x.count) if row // x.room not in taken], int)


def unused(x: Sequences, n: int) -> Array | None:
    """The page in the first entry of the table that is not used, or the nearest that there is."""
    column, pages = -(-x.j[n] // x.size), x.count // x.size
    if column >= x.table.shape[1] or not pages:
        return None
    page = int(np.clip(x.table[n, column], 0, pages - 1))
    return np.arange(page * x.size, (page + 1) * x.size)


weighed(
    "nobodys_rows_weighed_with_zero",
    "values of rows that no sequence has are weighed with zero, and NaN there comes through",
    nobodys,
    ALL,
)
weighed(
    "rest_of_block_weighed_with_zero",
    "values behind the last key, up to a multiple of 16, are weighed with zero, and NaN there comes through",
    lambda x, n: behind(x, n, 16),
    ALL,
)
weighed(
    "rest_of_slot_weighed_with_zero",
    "all values behind the last key of a slot are weighed with zero, and NaN there comes through",
    lambda x, n: x.rows(n, x.room)[x.j[n] :],
    ("padded", "cached"),
)
weighed(
    "rest_of_page_weighed_with_zero",
    "values of the last page behind the last key are weighed with zero, and NaN there comes through",
    lambda x, n: behind(x, n, x.size),
    ("paged",),
)
weighed(
    "pool_weighed_with_zero",
    "values of all rows that there are have a weight, zero where they are another's, and NaN there comes through",
    lambda x, n: np.arange(x.count),
    ALL,
)
weighed(
    "free_slots_weighed_with_zero",
    "values of slots that no sequence has are weighed with zero, and NaN there comes through",
    free,
    ("cached",),
)
weighed(
    "unused_entry_weighed_with_zero",
    "values of the page in an entry that is not used are weighed with zero, and NaN there comes through",
    unused,
    ("paged",),
)
