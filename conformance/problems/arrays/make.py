"""Make the covering arrays anew: python conformance/problems/arrays/make.py [pairs] [triples]

They are kept as data because making all triples takes longer than testing them; tests/test_arrays.py checks that they
cover what they claim.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy import ndarray as Array

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.coverage import Space
from attnspec.conformance.problems.factors import ALIKE, COST, LEVELS, alike
from attnspec.conformance.problems.fit import decodes
from attnspec.spec.words import FEATURES

ROOM = COST // 4  # what a row may cost where its levels leave a choice: what is drawn by the search is rarer than a row
CANDIDATES = 12  # rows that are tried for each one that is taken
Levels = dict[str, tuple[Any, ...]]

# Few queries against many keys, as a cache of keys asks: every two of these meet, too. The lengths are values of LEVELS["j"].
# In the smaller array there are no gradients, which such problems rarely ask for, and no keys that a loop over blocks is long at.
DECODE: dict[str, Levels] = {
    "pairs": {**LEVELS, "i": (1, 2, 3, 8), "j": (33, 64, 129, 256, 513, 1024), "wrt": ("none",), "do": ("dense",)},
    "triples": {**LEVELS, "i": (1, 2, 3, 8), "j": (33, 64, 129, 256, 513, 1024, 2049, 4096)},
}


class Everything(Adapter):
    """Offers all that there is: no row may say what makes no sense, such as holes without a mask."""

    offers = frozenset(FEATURES)


class Covering:
    """Rows of level numbers in which every combination of levels of any `strength` factors occurs that makes sense."""

    def __init__(self, levels: Levels, strength: int) -> None:
        self.names, self.levels, self.random = list(levels), list(levels.values()), Random(strength)
        self.sizes = [len(some) for some in self.levels]
        self.together = self._together()
        chosen = list(combinations(range(len(self.sizes)), strength))
        shapes = [[self.sizes[n] for n in some] for some in chosen]
        starts = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
        # For each factor, the combinations that it is part of: the other factors, their strides, its own, and where they start.
        self.others, self.strides, self.own, self.start = [], [], [], []
        for factor in range(len(self.sizes)):
            mine = [n for n, some in enumerate(chosen) if factor in some]
            places = [[k for k, x in enumerate(chosen[n]) if x != factor] for n in mine]
            strides = [np.cumprod([1, *shapes[n][:0:-1]])[::-1] for n in mine]
            self.others.append(np.array([[chosen[n][k] for k in places[m]] for m, n in enumerate(mine)]))
            self.strides.append(np.array([[strides[m][k] for k in places[m]] for m in range(len(mine))]))
            self.own.append(np.array([strides[m][chosen[n].index(factor)] for m, n in enumerate(mine)]))
            self.start.append(starts[mine])
        self.missing = np.ones(starts[-1], bool)
        for n, some in enumerate(chosen):
            possible = np.ones(shapes[n], bool)
            for x, y in combinations(range(strength), 2):
                shape = [size if k in (x, y) else 1 for k, size in enumerate(shapes[n])]
                possible &= self.together[some[x]][some[y]].reshape(shape)
            self.missing[starts[n] : starts[n + 1]] = possible.ravel()
        self.chosen, self.shapes, self.starts = chosen, shapes, starts

    def _together(self) -> list[list[Array]]:
        """For two factors which of their levels go together, (first, second)."""
        space = Space.of(Everything(), LEVELS["dtype"])
        found = [[np.ones((x, y), bool) for y in self.sizes] for x in self.sizes]
        for a, b in combinations(range(len(self.names)), 2):
            names = self.names[a], self.names[b]
            if all(tuple(self.levels[n]) == LEVELS[name] for n, name in zip((a, b), names, strict=True)):
                found[a][b] = space.pairs[names]
                found[b][a] = space.pairs[names].T
        return found

    def indices(self, row: Array, factor: int) -> tuple[Array, Array]:
        """Of all combinations that a factor is part of and whose other factors are set, the first index, and its stride."""
        others = row[self.others[factor]]
        known = (others >= 0).all(1)
        return (self.start[factor] + (others * self.strides[factor]).sum(1))[known], self.own[factor][known]

    def possible(self, row: Array, factor: int) -> Array:
        """Which levels of a factor go together with the others of a row."""
        fits = np.ones(self.sizes[factor], bool)
        for other, level in enumerate(row):
            if level >= 0 and other != factor:
                fits &= self.together[other][factor][level]
        return fits

    def case(self, row: Array) -> Case:
        """The case of a row; what is not set is the simplest."""
        return Case(**{name: some[level] for name, some, level in zip(self.names, self.levels, row, strict=True) if level >= 0})

    def dear(self, row: Array) -> float:
        """How far a row costs more than it should, in powers of two."""
        return max(0.0, float(np.log2(self.case(row).cost / ROOM)))

    def made(self) -> list[Array]:
        """The rows."""
        rows = []
        while self.missing.any():
            tried = [self._candidate() for _ in range(CANDIDATES)]
            gains = [len(set(self._new(row).tolist())) / (1 + self.dear(row)) for row in tried]
            rows.append(tried[int(np.argmax(gains))])
            self.missing[self._new(rows[-1])] = False
        return self._spread(rows)

    def _new(self, row: Array) -> Array:
        """The missing combinations that a row holds."""
        found = [start + row[factor] * own for factor in range(len(row)) for start, own in [self.indices(row, factor)]]
        held = np.concatenate(found)
        return held[self.missing[held]]

    def _candidate(self) -> Array:
        """A row that holds one missing combination, and of the others as many as one factor after the other can add."""
        row = np.full(len(self.sizes), -1)
        at = self.random.choice(np.flatnonzero(self.missing))
        n = int(np.searchsorted(self.starts, at, "right")) - 1
        row[list(self.chosen[n])] = np.unravel_index(at - self.starts[n], self.shapes[n])
        for factor in self.random.sample(range(len(row)), len(row)):
            if row[factor] >= 0:
                continue
            start, own = self.indices(row, factor)
            gains = self.missing[start[:, None] + own[:, None] * np.arange(self.sizes[factor])].sum(0)
            best, most = [0], -np.inf
            for level in map(int, np.flatnonzero(self.possible(row, factor))):
                row[factor] = level
                gain = gains[level] - 2 * self.dear(row) - blind(self.case(row))
                best, most = ([level], gain) if gain > most else ([*best, level], most) if gain == most else (best, most)
            row[factor] = self.random.choice(best)
        return row

    def _spread(self, rows: list[Array]) -> list[Array]:
        """Give each entry that no combination needs a level with which the row is not blind nor dear, and of those the rarest."""
        count = np.zeros(self.starts[-1], int)

        def held(row: Array, factor: int) -> Array:
            start, own = self.indices(row, factor)
            return start + own * row[factor]

        for row in rows:
            count[np.unique(np.concatenate([held(row, factor) for factor in range(len(row))]))] += 1
        used = [Counter(int(row[n]) for row in rows) for n in range(len(self.sizes))]
        entries = [(r, n) for r in range(len(rows)) for n in range(len(self.sizes))]
        self.random.shuffle(entries)
        for r, n in 3 * entries:  # what one change frees another one uses
            row = rows[r]
            if (count[held(row, n)] < 2).any():
                continue

            def rank(level: int, row: Array = row, n: int = n) -> tuple[float, bool, int]:
                trial = row.copy()
                trial[n] = level
                return self.dear(trial), blind(self.case(trial)), used[n][level] - (level == row[n])

            best = min((int(x) for x in np.flatnonzero(self.possible(row, n))), key=rank)
            if rank(best) < rank(int(row[n])):
                count[held(row, n)] -= 1
                used[n].subtract([int(row[n])])
                row[n] = best
                count[held(row, n)] += 1
                used[n].update([best])
        return rows


def blind(case: Case) -> bool:
    """Whether scores can't show in the answer: no query sees two keys, or all are scaled by zero."""
    return case.keys == 1 or (case.causal and case.i == 1) or case.scale == 0


def in_turn(cases: list[Case], as_it_is: tuple[str, ...] = ()) -> list[Case]:
    """Cases in which each level is one of the values that it stands for: the rarest so far in the dtype that is affordable."""
    used: Counter[tuple[str, ...]] = Counter()

    def rarest(case: Case, name: str) -> Any:
        values = [x for x in alike(name, getattr(case, name)) if name != "e" or x != case.d]
        trials = {x: replace(case, **{name: x}) for x in values}
        within = [x for x in values if trials[x].cost <= ROOM] or [min(values, key=lambda x: trials[x].cost)]
        if decodes(case):
            within = [x for x in within if decodes(trials[x])]
        return min(within, key=lambda x: (used[name, str(x), case.dtype], used[name, str(x), "any"]))

    # A length that few rows can afford comes before the heads, and those before the widths.
    first = ("i", "j", "heads")
    for n, case in enumerate(cases):
        for name in (*(x for x in first if x in ALIKE), *(x for x in ALIKE if x not in first)):
            if name not in as_it_is:
                case = replace(case, **{name: rarest(case, name)})
            value = str(getattr(case, name))
            used.update([(name, value, case.dtype), (name, value, "any")])
        cases[n] = case
    return cases


def rows(levels: Levels, strength: int, as_it_is: tuple[str, ...] = ()) -> list[Case]:
    """The cases of a covering array, the values of their levels in turn."""
    covering = Covering(levels, strength)
    return in_turn([covering.case(row) for row in covering.made()], as_it_is)


def main(names: list[str]) -> None:
    """Write pairs.csv and triples.csv, or one of them: a row a case, a column a factor."""
    for name, strength in (("pairs", 2), ("triples", 3)):
        if names and name not in names:
            continue
        cases, decode = rows(LEVELS, strength), rows(DECODE[name], 2, ("i", "j"))
        with (Path(__file__).parent / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            file.write(f"# every {strength} factors take every combination of their levels that makes sense;\n")
            file.write(f"# then every two, of a few queries against up to {max(DECODE[name]['j'])} keys; made by make.py\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(LEVELS)
            writer.writerows([str(getattr(case, factor)) for factor in LEVELS] for case in (*cases, *decode))
        print(name, len(cases), "rows, and", len(decode), "of many keys")


if __name__ == "__main__":
    main(sys.argv[1:])
