"""Make the covering arrays anew: python conformance/arrays/make.py (needs covertable, in the extra `dev`).

They are kept as data because making all triples takes longer than testing them; tests/test_arrays.py checks that they
cover what they claim.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from covertable import make

from attnspec.adapters import FEATURES, Adapter
from attnspec.conformance.case import ALIKE, COST, LEVELS, Case, alike
from attnspec.conformance.coverage import Space

NAMES = list(LEVELS)
ROOM = COST // 4  # what a row may cost where its levels leave a choice: what is drawn by the search is rarer than a row


class Everything(Adapter):
    """Offers all that there is: no row may say what makes no sense, such as holes without a mask."""

    offers = frozenset(FEATURES)


APART = [  # (factor, level, factor, level), by number: what does not go together
    (NAMES.index(a), int(x), NAMES.index(b), int(y))
    for (a, b), together in Space.of(Everything(), LEVELS["dtype"]).pairs.items()
    for x, y in zip(*(~together).nonzero(), strict=True)
]


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

    def rank(row: list[int], n: int, level: int) -> tuple[bool, bool, int]:
        trial = [*row[:n], level, *row[n + 1 :]]
        apart = any(trial[a] == x and trial[b] == y for a, x, b, y in APART)
        return apart, blind(trial), used[n][level] - (level == row[n])

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


def in_turn(rows: list[list[int]]) -> list[Case]:
    """Cases in which each level is one of the values that it stands for: the rarest so far in the dtype that is affordable."""
    cases = [Case(**{name: LEVELS[name][level] for name, level in zip(LEVELS, row, strict=True)}) for row in rows]
    used: Counter[tuple[str, ...]] = Counter()

    def rarest(case: Case, name: str) -> Any:
        values = [x for x in alike(name, getattr(case, name)) if name != "e" or x != case.d]
        trials = {x: replace(case, **{name: x}) for x in values}
        within = [x for x in values if trials[x].cost <= ROOM] or [min(values, key=lambda x: trials[x].cost)]
        return min(within, key=lambda x: (used[name, str(x), case.dtype], used[name, str(x), "any"]))

    for n, case in enumerate(cases):
        # A length that few rows can afford comes before the widths.
        for name in (*(x for x in ("i", "j") if x in ALIKE), *(x for x in ALIKE if x not in ("i", "j"))):
            case = replace(case, **{name: rarest(case, name)})
            value = str(getattr(case, name))
            used.update([(name, value, case.dtype), (name, value, "any")])
        cases[n] = case
    return cases


def main() -> None:
    """Write pairs.csv and triples.csv: a row a case, a column a factor."""
    apart = [
        {
            "operator": "or",
            "conditions": [{"operator": "ne", "left": NAMES[a], "value": x}, {"operator": "ne", "left": NAMES[b], "value": y}],
        }
        for a, x, b, y in APART
    ]
    factors = {name: list(range(len(levels))) for name, levels in LEVELS.items()}
    for name, strength in (("pairs", 2), ("triples", 3)):
        made = [[row[factor] for factor in NAMES] for row in make(factors, strength=strength, constraints=apart)]
        cases = in_turn(spread(made, strength))
        with (Path(__file__).parent / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            file.write(f"# every {strength} factors take every combination of their levels that makes sense; made by make.py\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(LEVELS)
            writer.writerows([str(getattr(case, factor)) for factor in NAMES] for case in cases)
        print(name, len(cases), "rows")


if __name__ == "__main__":
    main()
