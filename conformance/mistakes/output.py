"""Mistakes in the output as a whole, and in the widths that scores and output have (SHAPE)."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

import numpy as np

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter

OUTPUT = Chapter()
enter, special = OUTPUT.enter, OUTPUT.special


def scores_ignored(x: Kernel, everywhere: bool) -> Wrong:
    """Equal weights, for all keys or for those that are seen; the bias has no gradient."""
    bias = None if x.bias is None or everywhere else np.where(x.bias == -inf, -inf, 0.0)
    changes: dict[str, Any] = {"bias": bias} | ({"mask": None, "causal": False} if everywhere else {})
    wrong = x.on(scale=0.0, **changes)
    return wrong | ({"dbias": np.zeros_like(x.bias)} if x.bias is not None and "dq" in wrong else {})


def narrow(x: Kernel, channels: int) -> Wrong:
    """Of queries and keys only the first channels."""
    used = np.arange(x.problem.d) < channels
    return None if used.all() else x.on(q=x.q * used, k=x.k * used)


enter("mean_of_values", "the output is the mean of all values", lambda x: scores_ignored(x, True), coarse=True)
enter("scores_ignored", "all visible keys weigh the same", lambda x: scores_ignored(x, False))
enter("last_row_zero", "the last row of the output is zero", lambda x: x.zeroed(np.s_[:, :, -1:]), coarse=True)
enter(
    "row_tail_zero",
    "rows after the last full block of 16 are zero",
    lambda x: x.zeroed(np.s_[:, :, x.i - x.i % 16 or x.i :]),
    coarse=True,
)
enter(
    "value_tail_zero",
    "output channels after the first d are zero",
    lambda x: x.zeroed(np.s_[..., x.problem.d :]) if 0 < x.problem.d < x.problem.e else None,
    coarse=True,
)
enter("width_tail_of_8", "scores skip channels after the last full block of 8", lambda x: narrow(x, x.problem.d // 8 * 8))
enter("width_tail_of_16", "scores skip channels after the last full block of 16", lambda x: narrow(x, x.problem.d // 16 * 16))


def every(x: Kernel, number: float) -> Wrong:
    """One number in all of the output."""
    return {"o": np.full((x.b, x.h, x.i, x.problem.e), number)}


special("output_zero", "the output is zero", partial(every, number=0.0), coarse=True, of="output_zero")
special("output_nan", "the output is NaN", partial(every, number=np.nan), coarse=True, of="output_nan")
for name, says, number in (("no_keys_nan", "NaN", np.nan), ("no_keys_one", "one", 1.0)):
    enter(name, f"without any key the output is {says}", lambda x, n=number: None if x.j else every(x, n), special=True)
for n in (32, 64, 128):
    special(
        f"row_tail_zero_{n}",
        f"rows after the last full block of {n} are zero",
        lambda x, n=n: x.zeroed(np.s_[:, :, x.i - x.i % n or x.i :]),
        coarse=True,
    )
for n in (16, 32, 64):
    special(
        f"value_tail_zero_{n}",
        f"output channels after the last full block of {n} are zero",
        lambda x, n=n: x.zeroed(np.s_[..., x.problem.e - x.problem.e % n :]) if x.problem.e % n < x.problem.e else None,
        coarse=True,
        of="value_tail_zero_64",
    )
special(
    "output_of_query_before",
    "each row of the output is that of the previous query",
    lambda x: {"o": np.roll(x.p @ x.heads_v, 1, 2)} if x.i > 1 else None,
)
special(
    "output_axes_swapped",
    "the output is (b i h e), read as (b h i e)",
    lambda x: {"o": (x.p @ x.heads_v).swapaxes(1, 2).reshape(x.b, x.h, x.i, -1)} if x.h > 1 and x.i > 1 else None,
)
for n in (2, 32, 64):
    special(
        f"width_tail_of_{n}",
        f"scores skip channels after the last full block of {n}",
        lambda x, n=n: x.on(q=x.q * (np.arange(x.problem.d) < x.problem.d // n * n)) if x.problem.d % n else None,
        of="width_tail_of_16",
    )
