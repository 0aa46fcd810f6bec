"""docs/bounds.svg: a correct and a wrong kernel beside the bound and beside a tolerance, for values of many sizes.

python benchmarks/bounds_picture.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy import ndarray as Array
from picture import INK, picture

from attnspec.reference import solve, to_float64
from attnspec.spec import CANONICAL, Problem

PICTURE = Path(__file__).parent.parent / "docs" / "bounds.svg"
SIZES = tuple(10.0**n for n in range(-6, 4))  # of the values, one for each head
KEYS, QUERIES, WIDTH, TOLERANCE = 17, 2, 8, 1e-3


def points() -> dict[str, Array]:
    """Bound, error of a correct kernel and of one that forgets the last key, for each element: (1, heads, queries, width).

    Normal numbers in float32, torch's own attention, the bound of class A. "tolerance": what allclose allows.
    """
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, len(SIZES), n, WIDTH) for n in (QUERIES, KEYS, KEYS))
    v = v * torch.tensor(SIZES)[:, None, None]
    exact, attend = solve(Problem(q, k, v), CANONICAL), torch.nn.functional.scaled_dot_product_attention
    right = exact.values["o"]
    return {
        "bound": exact.tolerance("A").bound["o"],
        "correct": np.abs(to_float64(attend(q, k, v)) - right),
        "wrong": np.abs(to_float64(attend(q, k[..., :-1, :], v[..., :-1, :])) - right),
        "tolerance": TOLERANCE + TOLERANCE * np.abs(right),
    }


def draw(path: Path) -> None:
    """The picture, readable on white and on black."""
    at = {name: x.reshape(len(SIZES), -1) for name, x in points().items()}
    spread = np.array(SIZES)[:, None] * np.logspace(-0.35, 0.35, QUERIES * WIDTH)  # the elements of a head side by side
    with picture(path, size=(8, 5), font=12) as (_, axes):
        axes.plot(spread, at["wrong"], "x", color="#d0342c", markersize=4)
        axes.plot(spread, at["correct"], "o", color="#3b82c4", markersize=2.5)
        axes.plot(spread, at["bound"], "_", color="#3f9a64", markersize=5)
        axes.plot(SIZES, at["tolerance"].mean(1), color="#c9772b", linewidth=1.5, linestyle="--")
        for text, x, y, colour in (
            ("× a kernel that forgets the last key", 2e-4, 3e1, "#d0342c"),
            ("-- a tolerance, atol = rtol = 10⁻³", 5e-7, 3e-3, "#c9772b"),
            ("– the bound of each element", 3e-1, 1e-12, "#3f9a64"),
            ("• a correct kernel", 3e-1, 2e-14, "#3b82c4"),
        ):
            axes.text(x, y, text, color=colour)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(1e-16, 1e4)
        axes.set_xlabel("size of the values")
        axes.set_ylabel("error of an element of the output")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=INK, alpha=0.2, linewidth=0.5)


if __name__ == "__main__":
    draw(PICTURE)
