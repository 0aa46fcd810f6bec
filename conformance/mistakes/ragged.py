"""Mistakes of calls of many sequences: whose rows a sequence gets, how many, and where its queries stand (VARLEN, CACHE, PAGED)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Wrong
from attnspec.conformance.mistakes.sequences import Sequences, reads, sequences_at
from attnspec.conformance.mistakes.table import Chapter, Mistake
from attnspec.reference import Exact
from attnspec.reference.ragged import RaggedExact
from attnspec.spec import Dialect, Problem

RAGGED = Chapter()
Rows = Callable[[Sequences, int], Array | None]
Start = Callable[[Sequences, int], int | None]
ALL = ("packed", "padded", "cached", "paged")


def enter(
    name: str,
    says: str,
    rows: Rows | None = None,
    start: Start | None = None,
    forms: tuple[str, ...] = ALL,
    holds: Callable[[Sequences], object] = lambda x: True,
    *,
    special: bool = False,
    of: str = "",
    values: Rows | None = None,
) -> None:
    """Enter a mistake: the rows that each sequence reads, where its queries start, in which forms, and where it can be made.

    values: as many rows, where those of the values are others.
    """

    def wrong(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
        if problem.carrier is None or problem.carrier.feature not in forms or not isinstance(exact, RaggedExact):
            return None
        x = sequences_at(problem, dialect)
        if not holds(x) or (rows is None and values is None and not x.placed):
            return None
        read = reads(
            x,
            lambda n: x.rows(n) if rows is None else rows(x, n),
            None if start is None else lambda n: start(x, n),
            None if values is None else lambda n: values(x, n),
        )
        return x.reading(exact, read)

    RAGGED.add(Mistake(name, says, wrong, special=special, of=of))


def from_rows(x: Sequences, n: int) -> None:
    """Queries stand where the number of rows that are read puts them."""


def both(name: str, says: str, rows: Rows, forms: tuple[str, ...] = ALL, **of: object) -> None:
    """Enter a mistake of the rows, and a special case in which the queries stand at their end, too."""
    enter(name, says, rows, None, forms, **of)  # type: ignore[arg-type]
    aligned = {**of, "special": True, "of": of.get("of") or name}
    enter(f"{name}_aligned", f"{says}, and its queries stand where these end", rows, from_rows, forms, **aligned)  # type: ignore[arg-type]


def several(x: Sequences) -> bool:
    """There is more than one sequence."""
    return x.b > 1


# Mistakes that read what belongs to nobody because they read too far; others may come upon it where they look for something else.
TOO_FAR = ("length_", "slot_read_whole", "page_read_whole", "table_read_whole", "new_keys_", "left_")

# HOW MANY KEYS


def longer(by: Callable[[Sequences, int], int]) -> Rows:
    """As many keys as this."""
    return lambda x, n: x.rows(n, by(x, n))


def told(x: Sequences) -> int:
    """The most keys that a sequence has, as the call is told."""
    return int(x.given["max_k"]) if x.form == "packed" else max(x.j)


def told_queries(x: Sequences) -> int:
    """The most queries that a sequence has, as the call is told."""
    return int(x.given["max_q"]) if x.form == "packed" else max(x.i)


both("length_one_more", "each sequence is read one key further than its length", longer(lambda x, n: x.j[n] + 1))
both(
    "length_one_less",
    "each sequence is read one key less than its length",
    longer(lambda x, n: x.j[n] - 1),
    special=True,
    of="last_key_dropped",
)
both("length_of_longest", "the longest sequence's number of keys is that of all", longer(lambda x, n: told(x)), holds=several)
both(
    "length_of_longest_backwards",
    "the longest sequence's number of keys is that of all, counted back from the end of each",
    lambda x, n: np.arange(max(0, x.starts[n] + x.j[n] - told(x)), x.starts[n] + x.j[n]),
    ("packed",),
    holds=several,
    special=True,
)
both(
    "length_of_shortest",
    "the shortest sequence's number of keys is that of all",
    longer(lambda x, n: min(x.j)),
    holds=several,
    special=True,
)
both("length_of_first", "the first sequence's number of keys is that of all", longer(lambda x, n: x.j[0]), holds=several)
both(
    "length_of_next",
    "each sequence has the next one's number of keys",
    longer(lambda x, n: x.j[(n + 1) % x.b]),
    holds=several,
    special=True,
)
both(
    "length_of_previous",
    "each sequence has the number of keys of the one before it",
    longer(lambda x, n: x.j[n - 1]),
    holds=several,
    special=True,
)
both(
    "length_of_slot", "the room of a slot is taken for the number of keys in it", longer(lambda x, n: x.room), ("padded", "cached")
)
both(
    "length_of_first_at_most",
    "no sequence has more keys than the first",
    longer(lambda x, n: min(x.j[n], x.j[x.turn[0]] or x.j[n])),
    holds=several,
    special=True,
)
both("length_of_queries", "no sequence has more keys than queries", longer(lambda x, n: min(x.i[n], x.j[n])), special=True)
both(
    "length_to_the_end",
    "the keys of the last sequence go on to the end of the tensor",
    lambda x, n: np.arange(x.starts[n], x.count) if n == x.turn[-1] else x.rows(n),
    ("packed",),
    special=True,
)
enter(
    "no_keys_is_one_key",
    "a sequence without keys attends to one row, the first of its room or of the pool",
    lambda x, n: x.rows(n) if x.j[n] else np.zeros(min(x.count, 1), int) if x.form == "paged" else x.rows(n, 1),
    special=True,
)
both(
    "slot_read_whole",
    "the rows behind a sequence in its own slot are read as its keys",
    longer(lambda x, n: x.j[n] + getattr(x.carrier, "k_gap", 0)),
    ("packed",),
)
both(
    "page_read_whole",
    "the last page of each sequence is read to its end",
    longer(lambda x, n: -(-x.j[n] // x.size) * x.size),
    ("paged",),
)
both("last_page_skipped", "keys in a page that is not full are skipped", longer(lambda x, n: x.j[n] // x.size * x.size), ("paged",))
both(
    "table_read_whole",
    "all pages in a row of the table are read, used or not",
    longer(lambda x, n: x.table.shape[1] * x.size),
    ("paged",),
    special=True,
)

# NEW KEYS


def appends(x: Sequences) -> bool:
    """Some sequence gets new keys."""
    return any(x.new)


def stale(x: Sequences, n: int) -> Array:
    """The rows as they were before the call."""
    found = x.rows(n)
    return np.concatenate([found[: x.j[n] - x.new[n]], found[x.j[n] - x.new[n] :] + x.count])


both(
    "new_keys_unseen",
    "the new keys are not attended to: the length before the call is used",
    longer(lambda x, n: x.j[n] - x.new[n]),
    ("cached", "paged"),
    holds=appends,
)
enter(
    "new_keys_stale",
    "what stood in the rows of the new keys before the call is attended to instead of them",
    stale,
    None,
    ("cached", "paged"),
    appends,
)
both(
    "new_keys_counted_twice",
    "the number of the new keys is added to the length twice",
    longer(lambda x, n: x.j[n] + x.new[n]),
    ("cached", "paged"),
    holds=appends,
)
both(
    "new_keys_as_many_as_first",
    "no sequence has more new keys than the first",
    longer(lambda x, n: x.j[n] - x.new[n] + min(x.new[n], x.new[0])),
    ("paged",),
    holds=appends,
    special=True,
)
enter(
    "new_keys_alone",
    "the new keys alone are attended to",
    lambda x, n: x.rows(n)[x.j[n] - x.new[n] :],
    from_rows,
    ("cached", "paged"),
    appends,
    special=True,
)
enter(
    "placed_before_new_keys",
    "the last query stands at the last key that was there before the call",
    None,
    lambda x, n: x.start(n) - x.new[n],
    ("cached", "paged"),
    appends,
)
enter(
    "placed_far_behind",
    "beside new keys the queries stand far behind all keys, as where what is added up goes on from call to call",
    None,
    lambda x, n: x.start(n) + (1 << 12),
    ("cached", "paged"),
    appends,
)
enter(
    "placed_behind_new_keys",
    "the queries stand as many places too late as there are new keys",
    None,
    lambda x, n: x.start(n) + x.new[n],
    ("cached", "paged"),
    appends,
    special=True,
)

# WHOSE KEYS


def of(other: Callable[[Sequences, int], int | None], *, own_length: bool = False) -> Rows:
    """The keys of another sequence, as many as it has, or as the sequence itself has."""

    def rows(x: Sequences, n: int) -> Array | None:
        m = other(x, n)
        return None if m is None else x.rows(m, x.j[n] if own_length else None)

    return rows


def following(x: Sequences, n: int) -> int | None:
    """Who is carried behind a sequence."""
    return x.neighbour(n)


def preceding(x: Sequences, n: int) -> int | None:
    """Who is carried before a sequence."""
    return x.neighbour(n, -1)


for who, says, other in (
    ("next", "the keys of the next one", following),
    ("previous", "the keys of the one before it", preceding),
    ("first", "the keys of the first one", lambda x, n: x.turn[0]),
    ("last", "the keys of the last one", lambda x, n: x.turn[-1]),
):
    rare = who in ("previous", "last")
    whole = f"keys_of_{who}"
    enter(whole, f"each sequence attends to {says}", of(other), from_rows, ALL, several, special=rare)
    enter(f"{whole}_placed", f"each sequence attends to {says}", of(other), None, ALL, several, special=True, of=whole)
    both(
        f"{whole}_own_length",
        f"each sequence attends to {says}, to as many as it has itself",
        of(other, own_length=True),
        holds=several,
        special=True,
        of=whole,
    )


def all_keys(x: Sequences, n: int) -> Array:
    """The keys of all sequences."""
    return np.concatenate([x.rows(m) for m in x.turn])


enter(
    "no_borders",
    "all sequences are attended as one",
    all_keys,
    lambda x, n: (
        sum(x.i[m] for m in x.turn[: x.turn.index(n)])
        + (sum(x.j) - sum(x.i) if x.dialect.causal_alignment == "bottom_right" else 0)
    ),
    ("packed",),
    several,
)
enter("no_borders_placed", "all sequences are attended as one", all_keys, None, ("packed",), several, special=True, of="no_borders")
enter(
    "keys_before_begin",
    "each sequence attends to the keys of those before it, too",
    lambda x, n: np.concatenate([x.rows(m) for m in x.turn[: x.turn.index(n) + 1]]),
    from_rows,
    ("packed",),
    several,
    special=True,
)
enter(
    "one_key_late",
    "each sequence's keys begin one row too late",
    lambda x, n: np.append(x.rows(n)[1:], x.rows(n, x.j[n] + 1)[x.j[n] :]),
    special=True,
)
enter(
    "one_key_early",
    "each sequence attends to the row before its first key, too",
    lambda x, n: np.append(x.rows(n)[:1] - 1, x.rows(n)) if x.j[n] and x.rows(n)[0] else x.rows(n),
    from_rows,
    ("packed", "cached"),
    special=True,
)
enter(
    "gaps_ignored",
    "where a sequence begins is computed from lengths, as if there were no room between them",
    lambda x, n: np.arange(x.j[n]) + sum(x.j[m] for m in x.turn[: x.turn.index(n)]),
    None,
    ("packed",),
    special=True,
)


def compressed(x: Sequences, n: int) -> Array | None:
    """The keys of the sequence that has this number among those that have rows."""
    there = [m for m in x.turn if x.i[m] and x.j[m]]
    place = x.turn.index(n)
    return x.rows(there[place]) if place < len(there) and len(there) < x.b else None


enter(
    "empty_sequence_counted_out",
    "sequences behind one without rows get the keys of the one behind them",
    compressed,
    from_rows,
    ALL,
    several,
)

# WHERE THE QUERIES STAND


def bottom(x: Sequences) -> bool:
    """The last query stands at the last key."""
    return x.b > 0 and x.dialect.causal_alignment == "bottom_right"


for name, says, start, forms in (
    ("longest", "positions follow from the longest sequences' lengths", lambda x, n: told(x) - told_queries(x), ALL),
    ("longest_keys", "positions follow from the longest sequence's keys", lambda x, n: told(x) - x.i[n], ALL),
    ("longest_queries", "positions follow from the most queries that a sequence has", lambda x, n: x.j[n] - told_queries(x), ALL),
    ("totals", "positions follow from how many queries and keys there are in all", lambda x, n: sum(x.j) - sum(x.i), ("packed",)),
    ("room", "positions follow from the room of a slot", lambda x, n: x.room - x.i[n], ("padded", "cached")),
    ("first", "positions follow from the first sequence's lengths", lambda x, n: x.j[0] - x.i[0], ALL),
):
    enter(
        f"placed_by_{name}", says, None, start, forms, bottom, special=name not in ("longest", "longest_keys", "room"), of=""
    )  # fmt: skip
for name, says, start in (
    ("sizes", "positions follow from the padded numbers of queries and keys", lambda x, n: x.problem.j - x.problem.i),
    ("queries", "positions follow from the padded number of queries", lambda x, n: x.j[n] - x.problem.i),
):
    enter(f"placed_by_padded_{name}", says, None, start, ("padded",), bottom, special=True)
for name, says, step in (("late", "late", 1), ("early", "early", -1)):
    enter(
        f"placed_one_{name}",
        f"queries stand one position too {says}",
        None,
        lambda x, n, step=step: x.start(n) + step,
        ALL,
        bottom,
        special=True,
    )
enter(
    "placed_by_slack",
    "queries stand as many places too late as the longest length that the call gives exceeds the true one",
    None,
    lambda x, n: x.start(n) + told(x) - max(x.j),
    ("packed",),
    special=True,
)
enter(
    "placed_by_slots",
    "positions follow from the room of slots, and not from the rows that are used",
    None,
    lambda x, n: x.start(n) + getattr(x.carrier, "k_gap", 0) - getattr(x.carrier, "q_gap", 0),
    ("packed",),
    bottom,
    special=True,
)
enter(
    "placed_in_pack",
    "positions are places in the pack, and not in the sequence",
    None,
    lambda x, n: x.start(n) + x.query_starts[n] - x.starts[n],
    ("packed",),
    special=True,
)
enter(
    "placed_at_rows_of_pack",
    "queries and keys stand at their rows of the pack",
    None,
    lambda x, n: x.query_starts[n] - x.starts[n],
    ("packed",),
    special=True,
    of="placed_in_pack",
)
enter(
    "placed_at_zero",
    "the first query stands at the first key, whatever the lengths",
    None,
    lambda x, n: 0,
    ALL,
    bottom,
    special=True,
)

# SLOPES


def slopes_of(name: str, says: str, other: Callable[[Sequences, int], int | None], *, special: bool = False) -> None:
    """Enter a mistake of whose slopes a sequence has."""

    def wrong(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
        slopes = problem.alibi_slopes
        if problem.carrier is None or slopes is None or slopes.ndim < 2 or not isinstance(exact, RaggedExact):
            return None
        x = sequences_at(problem, dialect)
        wrong = x.reading(exact, lambda n: None if (m := other(x, n)) is None else x.own(n)._replace(slopes=m))
        return None if wrong is None else {key: value for key, value in wrong.items() if key != "dalibi_slopes"}

    RAGGED.add(Mistake(name, says, wrong, special=special))


slopes_of("slopes_of_first_sequence", "all sequences have the slopes of the first", lambda x, n: 0)
slopes_of("slopes_of_next_sequence", "each sequence has the slopes of the next one", following, special=True)
slopes_of(
    "slopes_of_previous_sequence",
    "each sequence has the slopes of the one before, and the first those of the last",
    lambda x, n: x.turn[x.turn.index(n) - 1],
    special=True,
)
