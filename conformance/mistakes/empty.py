"""Mistakes in rows without a visible key (EMPTY)."""

from __future__ import annotations

import numpy as np

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter

EMPTY = Chapter()
enter, special = EMPTY.enter, EMPTY.special


def empty_rows(x: Kernel, rule: str) -> Wrong:
    """Another rule for rows without a key, where there are such rows."""
    return x.with_choice("empty_row", rule) if x.empty.any() and x.j else None


enter("empty_row_zero", "a query without a key gives zero", lambda x: empty_rows(x, "zero"))
enter("empty_row_uniform", "a query without a key gives the mean of all values", lambda x: empty_rows(x, "uniform"))
enter("empty_row_nan", "a query without a key gives NaN", lambda x: empty_rows(x, "nan"))
special(
    "empty_row_first_value",
    "a query without a key gives the first value",
    lambda x: {"o": np.where(x.empty, x.heads_v[:, :, :1], x.p @ x.heads_v)} if x.empty.any() else None,
)
special(
    "empty_row_last_value",
    "a query without a key sees the last one",
    lambda x: {"o": np.where(x.empty, x.heads_v[:, :, -1:], x.p @ x.heads_v)} if x.empty.any() else None,
    of="empty_row_first_value",
)
