"""Mistakes of pages: how their table is read, and where they end (PAGED)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Wrong
from attnspec.conformance.mistakes.ragged import RAGGED, Rows, bottom, enter, from_rows, longer, several
from attnspec.conformance.mistakes.sequences import Sequences
from attnspec.conformance.mistakes.table import Mistake, kernel_at, of_each
from attnspec.reference import Exact
from attnspec.reference.stages.visible import reach
from attnspec.spec import Dialect, Problem
from attnspec.spec.ragged import Paged


def through(pages: Callable[[Sequences, int], Array]) -> Rows:
    """With these pages in the place of those that the table names."""

    def rows(x: Sequences, n: int) -> Array:
        found = x.in_pages(pages(x, n), np.arange(x.j[n]))
        return found[found >= 0]

    return rows


def in_order(x: Sequences, n: int) -> Array:
    """The pages of a sequence where all are dealt out one after the other."""
    counts = [-(-j // x.size) for j in x.j]
    return np.arange(counts[n]) + sum(counts[:n])


def exchanged(x: Sequences, n: int) -> Array:
    """A row of the table whose memory is read column by column."""
    return x.table.reshape(-1)[(n + np.arange(x.table.shape[1]) * x.b) % max(x.table.size, 1)]


enter("table_ignored", "the table is not read: pages are taken one after the other", through(in_order), None, ("paged",))
enter(
    "table_from_page_zero",
    "the table is not read: each sequence's pages begin with the first one",
    through(lambda x, n: np.arange(x.count // x.size)),
    None,
    ("paged",),
    special=True,
    of="table_ignored",
)


def turned_over(x: Sequences, n: int) -> Array:
    """A row of the table as it is read where the table is taken to be written column by column."""
    width = x.table.shape[1]
    return x.table.T.reshape(-1)[n * width : (n + 1) * width]


enter("table_turned", "the rows and columns of the table are exchanged", through(exchanged), None, ("paged",), several)
enter(
    "table_written_by_columns",
    "the table is written column by column, and read row by row",
    through(turned_over),
    None,
    ("paged",),
    several,
    special=True,
    of="table_turned",
)


def first_of_previous(x: Sequences, n: int) -> Array:
    """A sequence's pages, the first of which is that of the sequence before."""
    before = x.neighbour(n, -1)
    return x.table[n] if before is None else np.concatenate([x.table[before][:1], x.table[n][1:]])


enter(
    "first_page_of_previous",
    "the first page of each sequence is that of the one before it",
    through(first_of_previous),
    None,
    ("paged",),
    several,
    special=True,
)
enter(
    "first_page_for_all",
    "each sequence's first page is read in the place of all of its pages",
    through(lambda x, n: np.repeat(x.table[n][:1], x.table.shape[1])),
    None,
    ("paged",),
)
enter(
    "pages_reversed",
    "the pages of each sequence are read in reverse order",
    through(lambda x, n: x.table[n][: -(-x.j[n] // x.size)][::-1]),
    None,
    ("paged",),
    special=True,
)
enter(
    "page_of_16",
    "pages are read as if they had 16 rows",
    lambda x, n: np.array(
        [
            row
            for j in range(x.j[n])
            if j // 16 < x.table.shape[1] and 0 <= (row := x.table[n][j // 16] * x.size + j % 16) < x.count
        ],
        int,
    ),
    None,
    ("paged",),
    lambda x: x.size != 16,
    special=True,
)


def behind_the_first(x: Sequences, n: int) -> Array:
    """Pages that follow a sequence's first one in the pool."""
    return (x.table[n][:1] + np.arange(x.table.shape[1])) % max(x.count // x.size, 1)


def full_sorted(x: Sequences, n: int) -> Array:
    """The full pages in the order of the pool."""
    full = x.j[n] // x.size
    return np.concatenate([np.sort(x.table[n][:full]), x.table[n][full:]])


def width_in_use(x: Sequences, n: int) -> Array:
    """A row of the table that is found by the columns in use."""
    used = max(-(-j // x.size) for j in x.j)
    return x.table.reshape(-1)[(n * used + np.arange(used)) % max(x.table.size, 1)]


def earlier(x: Sequences, n: int) -> set[int]:
    """The pages that sequences before this one have."""
    return {int(row) // x.size for m in range(n) for row in x.rows(m)}


enter(
    "pages_behind_the_first",
    "the table is read for the first page alone, and the others are taken to follow it",
    through(behind_the_first),
    None,
    ("paged",),
    special=True,
    of="table_ignored",
)
enter(
    "pages_of_values_behind_the_first",
    "the table is read for keys, and the pages of values are taken to follow the first one",
    lambda x, n: x.rows(n),
    None,
    ("paged",),
    special=True,
    values=through(behind_the_first),
)
enter("pages_sorted", "full pages are read in the order of the pool", through(full_sorted), None, ("paged",), special=True)
enter(
    "table_width_in_use",
    "rows of the table are taken to be as wide as the pages in use",
    through(width_in_use),
    None,
    ("paged",),
    special=True,
)
enter(
    "page_zero_skipped",
    "the first page of the pool is skipped",
    lambda x, n: x.rows(n)[(x.rows(n) >= x.size) | (np.arange(x.j[n]) < x.size)],
    from_rows,
    ("paged",),
    special=True,
)
enter(
    "shared_pages_skipped",
    "pages that an earlier sequence has are skipped",
    lambda x, n: np.array([row for row in x.rows(n) if int(row) // x.size not in earlier(x, n)], int),
    None,
    ("paged",),
    several,
    special=True,
)
enter(
    "last_page_dropped",
    "the last of several pages is not read",
    longer(lambda x, n: (-(-x.j[n] // x.size) - 1) * x.size or x.j[n]),
    None,
    ("paged",),
    special=True,
)
enter(
    "single_row_page_skipped",
    "a last page of a single row is not read",
    longer(lambda x, n: x.j[n] - (x.size > 1 and x.j[n] > x.size and x.j[n] % x.size == 1)),
    None,
    ("paged",),
    special=True,
)
enter(
    "pages_of_first_at_most",
    "no sequence has more pages than the first",
    longer(lambda x, n: min(x.j[n], -(-x.j[0] // x.size) * x.size or x.j[n])),
    None,
    ("paged",),
    several,
    special=True,
)


def from_page(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
    """The window of a single query begins with the page in which its first key lies."""
    carrier, window = problem.carrier, problem.window
    if not isinstance(carrier, Paged) or window is None or window[0] is None:
        return None

    def one(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
        x, keys = kernel_at(problem, dialect), np.arange(problem.j)
        left, right = reach(problem.window, dialect.window_count)
        first = np.maximum(x.own() - left, 0) // carrier.size * carrier.size
        seen = (keys >= first) & (keys <= x.own() + right)
        return x.seeing(x.masked & (seen & x.triangle() if problem.causal else seen)) if x.i == 1 and x.j else None

    return of_each(one, problem, dialect, exact)


RAGGED.add(
    Mistake("window_begins_with_page", "the window of a single query begins at the first row of a page", from_page, special=True)
)
enter(
    "placed_by_table",
    "positions follow from the rows that a row of the table has room for",
    None,
    lambda x, n: x.table.shape[1] * x.size - x.i[n],
    ("paged",),
    bottom,
    special=True,
)
