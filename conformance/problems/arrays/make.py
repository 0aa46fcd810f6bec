"""Make covering arrays: python conformance/problems/arrays/make.py EXTENSION … together, or core for the next of the core's.

They are kept as data because making all triples takes longer than testing them; tests/test_arrays.py checks that they cover what
they claim. The arrays of the core are frozen: whoever makes them anew changes what every gate asks, so they then have a new
version, with their hashes in core/versions.lock.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy import ndarray as Array

from attnspec.adapters import Adapter
from attnspec.conformance.problems.array import ARRAYS
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.coverage import Space
from attnspec.conformance.problems.extension import ALONE, CARRIED, TOGETHER, Arrays
from attnspec.conformance.problems.factors import ALIKE, COST, LEVELS, alike
from attnspec.conformance.problems.fit import decodes, fit
from attnspec.spec.words import FEATURES

ROOM = COST // 4  # what a row may cost where its levels leave a choice: what is drawn by the search is rarer than a row
CANDIDATES = 12  # rows that are tried for each one that is taken
STRENGTH = {"pairs": 2, "triples": 3}
LOCK = ARRAYS / "core" / "versions.lock"  # a line for each version and what it froze: version, levels or an array, hash
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


EVERYTHING = Everything()


class Covering:
    """Rows of level numbers in which every combination of levels of any `strength` factors occurs that makes sense.

    beside: the extensions whose combinations are wanted, where it is not those of all factors.
    """

    def __init__(self, levels: Levels, strength: int, beside: Arrays | None = None) -> None:
        self.names, self.levels, self.random = list(levels), list(levels.values()), Random(strength)
        self.sizes, self.beside = [len(some) for some in self.levels], beside
        self.together = self._together()
        chosen = list(combinations(range(len(self.sizes)), strength))
        if beside is not None:
            chosen = [tuple(sorted(map(self.names.index, some))) for some in beside.meetings(strength)]
        shapes = [[self.sizes[n] for n in some] for some in chosen]
        starts = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
        # For each factor, the combinations that it is part of: the other factors, their strides, its own, and where they start.
        self.others, self.strides, self.own, self.start = [], [], [], []
        for factor in range(len(self.sizes)):
            mine = [n for n, some in enumerate(chosen) if factor in some]
            places = [[k for k, x in enumerate(chosen[n]) if x != factor] for n in mine]
            strides = [np.cumprod([1, *shapes[n][:0:-1]])[::-1] for n in mine]
            sets = (len(mine), strength - 1)  # a factor may be part of none
            self.others.append(np.array([[chosen[n][k] for k in places[m]] for m, n in enumerate(mine)], int).reshape(sets))
            self.strides.append(np.array([[strides[m][k] for k in places[m]] for m in range(len(mine))], int).reshape(sets))
            self.own.append(np.array([strides[m][chosen[n].index(factor)] for m, n in enumerate(mine)], int))
            self.start.append(starts[mine])
        self.missing = np.ones(starts[-1], bool)
        for n, some in enumerate(chosen):
            possible = np.ones(shapes[n], bool)
            for x, y in combinations(range(strength), 2):
                shape = [size if k in (x, y) else 1 for k, size in enumerate(shapes[n])]
                possible &= self.together[some[x]][some[y]].reshape(shape)
            for place in np.argwhere(possible) if beside is not None else ():
                possible[tuple(place)] = self._wanted({self.names[x]: self.levels[x][y] for x, y in zip(some, place, strict=True)})
            self.missing[starts[n] : starts[n + 1]] = possible.ravel()
        self.chosen, self.shapes, self.starts = chosen, shapes, starts

    def _wanted(self, chosen: dict[str, Any]) -> bool:
        """Whether a combination has an extension, and some problem holds it."""
        assert self.beside is not None
        problems = (replace(case, **chosen) for case in hosts(self.beside))
        return bool(self.beside.there(chosen)) and self.beside.goes(chosen) and any(map(stands, problems))

    def _together(self) -> list[list[Array]]:
        """For two factors which of their levels go together, (first, second)."""
        space = Space.of(EVERYTHING, LEVELS["dtype"])
        found = [[np.ones((x, y), bool) for y in self.sizes] for x in self.sizes]
        for a, b in combinations(range(len(self.names)), 2):
            names = self.names[a], self.names[b]
            if all(tuple(self.levels[n]) == LEVELS.get(name) for n, name in zip((a, b), names, strict=True)):
                found[a][b] = space.pairs[names]
                found[b][a] = space.pairs[names].T
            elif self.beside is not None:
                some = [[self.beside.goes({names[0]: x, names[1]: y}) for y in self.levels[b]] for x in self.levels[a]]
                found[a][b], found[b][a] = np.array(some), np.array(some).T
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
            tried = [row for row in (self._candidate() for _ in range(CANDIDATES)) if row is not None]
            gains = [len(set(self._new(row).tolist())) / (1 + self.dear(row)) for row in tried]
            if not max(gains, default=0):
                continue
            rows.append(tried[int(np.argmax(gains))])
            self.missing[self._new(rows[-1])] = False
        return self._spread(rows)

    def _new(self, row: Array) -> Array:
        """The missing combinations that a row holds."""
        found = [start + row[factor] * own for factor in range(len(row)) for start, own in [self.indices(row, factor)]]
        held = np.concatenate(found)
        return held[self.missing[held]]

    def _candidate(self) -> Array | None:
        """A row that holds one missing combination, and of the others as many as one factor after the other can add.

        What some levels together take away from it, such as an lse beside slopes and causal, is taken away. None where nothing
        of an extension is left then.
        """
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
        fitted = fit(self.case(row), EVERYTHING)
        levels = [getattr(fitted, name) for name in self.names]
        if any(level not in some for level, some in zip(levels, self.levels, strict=True)):
            return None
        return np.array([some.index(level) for level, some in zip(levels, self.levels, strict=True)])

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

            def rank(level: int, row: Array = row, n: int = n) -> tuple[bool, float, bool, int]:
                trial = row.copy()
                trial[n] = level
                case = self.case(trial)
                return not stands(case), self.dear(trial), blind(case), used[n][level] - (level == row[n])

            best = min((int(x) for x in np.flatnonzero(self.possible(row, n))), key=rank)
            if rank(best) < rank(int(row[n])):
                count[held(row, n)] -= 1
                used[n].subtract([int(row[n])])
                row[n] = best
                count[held(row, n)] += 1
                used[n].update([best])
        return rows


def hosts(beside: Arrays) -> list[Case]:
    """Problems in one of which each combination that makes sense makes sense."""
    if beside.about is None:
        return [Case(mask="ij", bias="ij", wrt="all", window=window) for window in ("none", "3:")]
    return [Case(b=3, i=8, j=17, carrier=x, lengths="mixed", wrt=wrt) for x in beside.own["carrier"] for wrt in ("all", "none")]


def stands(case: Case) -> bool:
    """Whether it says nothing that makes no sense beside the rest, such as holes without a mask."""
    return fit(case, EVERYTHING) == case


def blind(case: Case) -> bool:
    """Whether scores can't show in the answer: no query sees two keys, or all are scaled by zero."""
    alone = case.window == "0:0" and not case.first_tokens
    return case.keys == 1 or alone or (case.causal and case.i == 1) or case.scale == 0


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


def rows(levels: Levels, strength: int, as_it_is: tuple[str, ...] = (), beside: Arrays | None = None) -> list[Case]:
    """The cases of a covering array, the values of their levels in turn."""
    covering = Covering(levels, strength, beside)
    return in_turn([covering.case(row) for row in covering.made()], as_it_is)


def write(path: Path, levels: Levels, cases: list[Case], *about: str) -> None:
    """A file of rows: a row a case, a column a factor."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in about)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(levels)
        writer.writerows([str(getattr(case, factor)) for factor in levels] for case in cases)
    print(f"{path.parent.name}/{path.name}: {len(cases)} rows")


def make_core() -> None:
    """Write the arrays of the core anew, and the version that they are."""
    for name, strength in STRENGTH.items():
        cases, decode = rows(LEVELS, strength), rows(DECODE[name], 2, ("i", "j"))
        every = f"every {strength} factors take every combination of their levels that makes sense;"
        then = f"then every two, of a few queries against up to {max(DECODE[name]['j'])} keys; made by make.py"
        write(LOCK.parent / f"{name}.csv", LEVELS, [*cases, *decode], every, then)
    version = max(versions(), default=0) + 1
    with LOCK.open("a", encoding="utf-8") as file:
        file.writelines(f"{version} {what} {hash_}\n" for what, hash_ in digests().items())


def make(beside: Arrays, into: Path = ARRAYS) -> None:
    """Write the arrays of an extension, or of all together."""
    own = f"each level of {', '.join(beside.own)}"
    for name, strength in STRENGTH.items():
        cases = rows(beside.levels, strength, beside=beside)
        about = f"{own} with every combination of {strength - 1} of what it meets; by make.py"
        write(into / beside.name / f"{name}.csv", beside.levels, cases, about)


def digests() -> dict[str, str]:
    """Hashes of the levels of the core, with the values that they stand for, and of the arrays that were made of them."""
    levels = {factor: [list(alike(factor, level)) for level in some] for factor, some in LEVELS.items()}
    decode = {name: {factor: list(some) for factor, some in few.items()} for name, few in DECODE.items()}
    contents = {"levels": json.dumps([levels, decode]).encode()}
    contents |= {name: (LOCK.parent / f"{name}.csv").read_bytes().replace(b"\r\n", b"\n") for name in STRENGTH}
    return {what: hashlib.sha256(content).hexdigest()[:16] for what, content in contents.items()}


def versions() -> dict[int, dict[str, str]]:
    """What each version of the core's arrays froze."""
    found: dict[int, dict[str, str]] = {}
    for line in LOCK.read_text(encoding="utf-8").splitlines() if LOCK.exists() else ():
        version, what, hash_ = line.split()
        found.setdefault(int(version), {})[what] = hash_
    return found


def main(names: list[str]) -> None:
    """Make the arrays of what is named."""
    makers: dict[str, Callable[[], None]] = {"core": make_core}
    makers |= {beside.name: partial(make, beside) for beside in (*ALONE.values(), *CARRIED.values(), TOGETHER)}
    if not names or set(names) - makers.keys():
        sys.exit(f"{__doc__}\nThere are {', '.join(makers)}.")
    for name in names:
        makers[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
