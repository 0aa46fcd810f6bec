"""How much was asked: combinations of levels that the judged problems hold, of those that an implementation can be asked.

What can be asked is read off :func:`fit`, which takes away what is not offered or makes no sense (holes without a mask, the
gradient of a bias that is not there). Each of its rules ties two factors to each other, so a combination of more is possible
where each two of its levels are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from typing import Any

import numpy as np
from numpy import ndarray as Array

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.factors import LEVELS, alike, level_of
from attnspec.conformance.problems.fit import fit


@dataclass(frozen=True)
class Space:
    """levels: of each factor those that can be asked. pairs: for two factors which levels (first, second) go together."""

    levels: dict[str, tuple[Any, ...]]
    pairs: dict[tuple[str, str], Array]

    @classmethod
    def of(cls, adapter: Adapter, dtypes: tuple[str, ...]) -> Space:
        """What an adapter can be asked in these dtypes."""
        holding = {
            own.of.name: own.of for own in FACTORS.values() if own.of is not None and own.of.array == "core"
        }  # without these others have no say
        most = {name: next((x for x in own.levels[1:] if _offered(adapter, name, x)), own.plain) for name, own in holding.items()}
        # Where options exclude each other no case has them all: the seed says which are left.
        free = [Case(dtype=dtypes[0], seed=n, **most) for n in range(8 if adapter.restrictions else 1)]
        values: dict[str, dict[Any, Any]] = {}  # of each factor level → a value of it that is offered
        for name in LEVELS:
            values[name] = {}
            for value in dtypes if name == "dtype" else _widths(adapter) if name == "d" else LEVELS[name]:
                for freest in free:
                    got = getattr(fit(replace(freest, **{name: value}), adapter), name)  # type: ignore[arg-type]
                    values[name].setdefault(level_of(name, got), got)
        pairs = {}
        for a, b in combinations(LEVELS, 2):
            stays = []
            for x, y in ((x, y) for x in values[a].values() for y in values[b].values()):
                fitted = (fit(replace(freest, **{a: x, b: y}), adapter) for freest in free)
                stays.append(any((getattr(case, a), getattr(case, b)) == (x, y) for case in fitted))
            pairs[a, b] = np.array(stays).reshape(len(values[a]), len(values[b]))
        return cls({name: tuple(some) for name, some in values.items()}, pairs)

    def possible(self, factors: tuple[str, ...]) -> Array:
        """Which combinations of the levels of these factors can be asked, one axis for each factor."""
        found = np.ones([len(self.levels[name]) for name in factors], bool)
        for m, n in combinations(range(len(factors)), 2):
            shape = [size if axis in (m, n) else 1 for axis, size in enumerate(found.shape)]
            found &= self.pairs[factors[m], factors[n]].reshape(shape)
        return found

    def reached(self, cases: Iterable[Case], strength: int) -> tuple[int, int]:
        """How many combinations of levels of `strength` factors some case holds, and how many there are."""
        place = {name: {level: n for n, level in enumerate(levels)} for name, levels in self.levels.items()}
        rows = [[place[name].get(level_of(name, getattr(case, name)), -1) for name in place] for case in cases]
        column = dict(zip(place, np.array(rows, int).reshape(-1, len(place)).T, strict=True))
        held = total = 0
        for factors in combinations(place, strength):
            possible = self.possible(factors)
            code = np.zeros(len(rows), int)
            known = np.ones(len(rows), bool)
            for name, size in zip(factors, possible.shape, strict=True):
                code, known = code * size + column[name], known & (column[name] >= 0)
            seen = np.zeros(prod(possible.shape), bool)
            seen[code[known]] = True
            held, total = held + int((seen & possible.ravel()).sum()), total + int(possible.sum())
        return held, total


def _offered(adapter: Adapter, name: str, value: Any) -> bool:
    return getattr(fit(Case(**{name: value}), adapter), name) == value


def _widths(adapter: Adapter) -> tuple[int, ...]:
    """Of each level of d the first width that is offered; all that are offered where no level knows them."""
    if adapter.widths is None:
        return LEVELS["d"]
    some = (next((x for x in alike("d", level) if x in adapter.widths), None) for level in LEVELS["d"])
    return tuple(x for x in some if x is not None) or tuple(adapter.widths)


def share_in_words(held: int, total: int, what: str) -> str:
    """In words: 'all 5000 pairs', '61234 of 98765 triples (62.0 %)', rounded down."""
    return f"all {total} {what}" if held == total else f"{held} of {total} {what} ({1000 * held // total / 10} %)"
