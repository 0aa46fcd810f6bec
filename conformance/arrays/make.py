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


def spread(rows: list[list[int]], strength: int) -> list[list[int]]:
    """Give each entry that no combination needs the level that its factor has least often.

    The generator fills such entries with the first level, which would make most rows float32, contiguous and plain.
    """

    def combinations_with(row: list[int], factor: int) -> Iterator[tuple[tuple[int, int], ...]]:
        others = [n for n in range(len(row)) if n != factor]
        for chosen in combinations(others, strength - 1):
            yield tuple(sorted((n, row[n]) for n in (*chosen, factor)))

    count = Counter(tuple((n, row[n]) for n in chosen) for row in rows for chosen in combinations(range(len(row)), strength))
    sizes = [len(levels) for levels in LEVELS.values()]
    used = [Counter(row[n] for row in rows) for n in range(len(sizes))]
    entries = [(r, n) for r in range(len(rows)) for n in range(len(sizes))]
    Random(0).shuffle(entries)
    for r, n in entries:
        row, rarest = rows[r], min(range(sizes[n]), key=lambda level, n=n: used[n][level])  # type: ignore[misc]
        if used[n][rarest] + 1 >= used[n][row[n]] or any(count[c] < 2 for c in combinations_with(row, n)):
            continue
        count.subtract(combinations_with(row, n))
        used[n].subtract([row[n]])
        row[n] = rarest
        count.update(combinations_with(row, n))
        used[n].update([rarest])
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
