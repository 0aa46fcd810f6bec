"""Make the covering arrays anew: python conformance/arrays/make.py (needs covertable, in the extra `dev`).

They are kept as data because making all triples takes longer than testing them; tests/test_arrays.py checks that they
cover what they claim.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from random import Random

from covertable import make

from attnspec.conformance.case import LEVELS


def blind(row: list[int]) -> bool:
    """Whether scores can't show in the answer: no query sees two keys, or all are scaled by zero."""
    at = {name: LEVELS[name][level] for name, level in zip(LEVELS, row, strict=True)}
    one_key = (at["j"] or at["i"]) == 1 or (at["causal"] and at["i"] == 1)
    return one_key or at["scale"] == 0


def spread(rows: list[list[int]], strength: int) -> list[list[int]]:
    """Give each entry that no combination needs a level with which the row is not blind, and of those the rarest.

    The generator fills such entries with the first level, which would make most rows float32, contiguous and plain.
    """

    def combinations_with(row: list[int], factor: int) -> Iterator[tuple[tuple[int, int], ...]]:
        others = [n for n in range(len(row)) if n != factor]
        for chosen in combinations(others, strength - 1):
            yield tuple(sorted((n, row[n]) for n in (*chosen, factor)))

    def rank(row: list[int], n: int, level: int) -> tuple[bool, int]:
        return blind([*row[:n], level, *row[n + 1 :]]), used[n][level] - (level == row[n])

    count = Counter(tuple((n, row[n]) for n in chosen) for row in rows for chosen in combinations(range(len(row)), strength))
    sizes = [len(levels) for levels in LEVELS.values()]
    used = [Counter(row[n] for row in rows) for n in range(len(sizes))]
    entries = [(r, n) for r in range(len(rows)) for n in range(len(sizes))]
    Random(0).shuffle(entries)
    for r, n in 3 * entries:  # what one change frees another one uses
        row = rows[r]
        best = min(range(sizes[n]), key=lambda level, row=row, n=n: rank(row, n, level))  # type: ignore[misc]
        if rank(row, n, best) >= rank(row, n, row[n]) or any(count[c] < 2 for c in combinations_with(row, n)):
            continue
        count.subtract(combinations_with(row, n))
        used[n].subtract([row[n]])
        row[n] = best
        count.update(combinations_with(row, n))
        used[n].update([best])
    return rows


def main() -> None:
    """Write pairs.csv and triples.csv: a row a case, a column a factor, each entry the number of a level."""
    for name, strength in (("pairs", 2), ("triples", 3)):
        rows = spread(
            [list(row) for row in make([list(range(len(levels))) for levels in LEVELS.values()], strength=strength)], strength
        )
        with (Path(__file__).parent / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            file.write(f"# every {strength} factors take every combination of their levels; made by make.py\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(LEVELS)
            writer.writerows(rows)
        print(name, len(rows), "rows")


if __name__ == "__main__":
    main()
