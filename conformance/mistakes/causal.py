"""Mistakes of causal masking (CAUSAL)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter

CAUSAL = Chapter()
enter, special = CAUSAL.enter, CAUSAL.special


def other_corner(x: Kernel) -> Wrong:
    """The triangle of the other alignment."""
    corner = "top_left" if x.dialect.causal_alignment == "bottom_right" else "bottom_right"
    return x.seeing(x.unplaced & x.triangle(corner=corner))


enter("causal_one_more", "with causal, each query sees one key too many", lambda x: x.seeing(x.unplaced & x.triangle(1)), "causal")
enter("causal_one_less", "with causal, each query sees one key too few", lambda x: x.seeing(x.unplaced & x.triangle(-1)), "causal")
enter("causal_corner", "causal is aligned at the other corner", other_corner, "causal")
enter("causal_ignored", "causal is ignored", lambda x: x.seeing(x.unplaced), "causal")
enter("causal_ignored_with_mask", "causal is ignored beside a mask", lambda x: x.seeing(x.unplaced), "causal mask")


def rows(x: Kernel) -> tuple[Array, Array]:
    """The places of the queries in the call (i 1), and the keys that causal lets them see last (i 1) or (b 1 i 1)."""
    return np.arange(x.i)[:, None], x.own()


def causal_as(rule: Callable[..., Any]) -> Callable[[Kernel], Wrong]:
    """Another triangle: of the rows (i 1), the last visible keys (i 1) and all keys (j)."""
    return lambda x: x.seeing(x.unplaced & rule(*rows(x), np.arange(x.j)))


special(
    "causal_ignored_with_bias",
    "causal is ignored beside a bias",
    lambda x: x.seeing(x.unplaced),
    "causal bias",
    of="causal_ignored",
)
special(
    "causal_transposed",
    "with causal, each query sees its own key and the later ones",
    causal_as(lambda i, last, j: j >= last),
    "causal",
)
for n in (16, 32, 64, 128):
    special(
        f"causal_by_blocks_of_{n}",
        f"with causal, the {n} by {n} tile that the diagonal crosses is not masked",
        causal_as(lambda i, last, j, n=n: (j <= last) | (j // n == last // n)),
        "causal",
        of="causal_by_blocks_of_16",
    )
    special(
        f"causal_without_block_of_{n}",
        f"with causal, the block of {n} keys that the diagonal crosses is skipped",
        causal_as(lambda i, last, j, n=n: (j <= last) & (j // n < last // n)),
        "causal",
        of="causal_without_block_of_16",
    )
    special(
        f"causal_less_{n}",
        f"with causal, each query sees {n} keys too few",
        lambda x, n=n: x.seeing(x.unplaced & x.triangle(-n)),
        "causal",
        of="causal_one_less",
    )
    special(
        f"causal_window_of_{n}",
        f"with causal, each query sees the last {n} keys only",
        causal_as(lambda i, last, j, n=n: (j <= last) & (j > last - n)),
        "causal",
        of="causal_window_of_16",
    )
special(
    "mask_or_causal", "a query sees a key if mask or causal allows it", lambda x: x.seeing(x.unplaced | x.triangle()), "causal mask"
)
special(
    "causal_corner_with_mask",
    "causal is aligned at the other corner beside a mask",
    lambda x: x.seeing(
        x.unplaced & x.triangle(corner="top_left" if x.dialect.causal_alignment == "bottom_right" else "bottom_right")
    ),
    "causal mask",
    of="causal_corner",
)
