"""What one problem costs against its size: python benchmarks/size_cost.py [--longest 13] [--into FOLDER]

The seconds of the reference, of its bounds and of the judge for float32 problems of one head, width 64, forward and backward,
beside torch's own forward and backward of the same problem. Two rows of sizes: 16 queries of n keys, and squares of n up to 2^11,
which take n² numbers an array. The exponent is the slope of the last two doublings: 1 is linear in the keys, 2 in the square.
FOLDER gets the table (cost.md) and the plot (cost.svg, needs matplotlib).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from picture import INK, picture

from attnspec.adapters import resolve
from attnspec.conformance.judging.judge import judge
from attnspec.reference import solve
from attnspec.spec import CANONICAL, Problem

QUERIES, WIDTH, SQUARE = 16, 64, 11  # the largest square is 2^SQUARE
SHORTEST = 4
SERIES = ("reference", "bounds", "judge", "torch")
Seconds = dict[str, dict[int, dict[str, float]]]  # kind of size → exponent → what → seconds


def problem_of(queries: int, keys: int) -> Problem:
    """Plain attention with a cotangent."""
    g = torch.Generator().manual_seed(keys)
    q, do = (torch.randn(1, 1, queries, WIDTH, generator=g) for _ in range(2))
    k, v = (torch.randn(1, 1, keys, WIDTH, generator=g) for _ in range(2))
    return Problem(q, k, v, do=do, wrt=("q", "k", "v"))


def least(run: Callable[[], object], repeats: int) -> float:
    """The seconds of the fastest of some runs."""
    found = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found = min(found, time.perf_counter() - start)
    return found


def measure(queries: int, keys: int) -> dict[str, float]:
    """Seconds of each part for one problem."""
    problem = problem_of(queries, keys)
    (adapter,) = resolve("sdpa-math")
    answer, repeats = adapter.run(problem), 7 if queries * keys <= 1 << 16 else 3
    seconds = {"reference": least(lambda: solve(problem, CANONICAL), repeats), "bounds": math.inf}
    for _ in range(repeats):
        exact = solve(problem, CANONICAL)  # it remembers its bounds
        seconds["bounds"] = min(seconds["bounds"], least(lambda exact=exact: exact.tolerance("A"), 1))  # type: ignore[misc]
    judgement = judge(answer, exact, "A")
    assert not judgement.findings, judgement.findings
    seconds["judge"] = least(lambda: judge(answer, exact, "A"), repeats)
    return seconds | {"torch": least(lambda: adapter.run(problem), repeats)}


def exponent(of_size: dict[int, dict[str, float]], part: str) -> float:
    """The slope over the last two doublings."""
    last = max(of_size)
    return math.log2(of_size[last][part] / of_size[last - 2][part]) / 2


def table(found: Seconds) -> list[str]:
    """A row a size: milliseconds, and the exponents below."""
    lines: list[str] = []
    for kind, of_size in found.items():
        lines += ["", f"| {kind} | {' | '.join(f'{part}, ms' for part in SERIES)} |", "|---|" + "---|" * len(SERIES)]
        for n, seconds in of_size.items():
            lines.append(f"| 2^{n} | " + " | ".join(f"{1e3 * seconds[part]:.3g}" for part in SERIES) + " |")
        lines.append("| exponent | " + " | ".join(f"{exponent(of_size, part):.2f}" for part in SERIES) + " |")
    return lines[1:]


def draw(found: Seconds, path: Path) -> None:
    """Seconds against the length, one panel a kind of size. Readable on white and black."""
    colours = dict(zip(SERIES, ("#3b82c4", "#c9772b", "#3f9a64", INK), strict=True))
    with picture(path, 1, len(found), size=(10, 3.6), sharey=True) as (_, panels):
        for (kind, of_size), axes in zip(found.items(), panels, strict=True):
            for part in SERIES:
                label = f"{part}, exponent {exponent(of_size, part):.1f}"
                axes.plot([2**n for n in of_size], [x[part] for x in of_size.values()], ".-", color=colours[part], label=label)
            axes.set(xscale="log", yscale="log", title=kind, xlabel="length n")
            axes.set_xticks([2**n for n in of_size][::2], [f"$2^{{{n}}}$" for n in of_size][::2])
            axes.minorticks_off()
            axes.grid(color=INK, alpha=0.25, linewidth=0.5)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, labelcolor=INK)
        panels[0].set_ylabel("seconds a problem")


def main() -> None:
    """Print the table, and write it and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=13)
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: Seconds = {
        f"{QUERIES} queries of n keys": {n: measure(QUERIES, 2**n) for n in range(SHORTEST, options.longest + 1)},
        "n queries of n keys": {n: measure(2**n, 2**n) for n in range(SHORTEST, min(SQUARE, options.longest) + 1)},
    }
    lines = ["# What one problem costs against its size", "", "    python benchmarks/size_cost.py", "", *table(found)]
    print("\n".join(lines))
    if options.into:
        (options.into / "cost.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        draw(found, options.into / "cost.svg")


if __name__ == "__main__":
    main()
