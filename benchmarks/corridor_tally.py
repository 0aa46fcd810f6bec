"""What the corridor counts: how the errors are distributed, as shares of their bounds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# log10 of error/bound in steps of STEP, from LEAST on; the last bin is all that is outside.
LEAST, STEP = -9.0, 0.05
BINS = round(-LEAST / STEP) + 1


@dataclass
class Share:
    """How the error/bound of one output of one implementation is distributed."""

    bins: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    exact: int = 0  # elements without an error
    largest: float = 0.0
    number: int = -1  # the problem that has the largest

    def merge(self, other: Share) -> None:
        self.bins += other.bins
        self.exact += other.exact
        if other.largest > self.largest:
            self.largest, self.number = other.largest, other.number

    def quantile(self, q: float) -> float:
        """The upper edge of the bin that holds this quantile of the elements with an error; never above the largest."""
        total = np.cumsum(self.bins)
        if not total[-1]:
            return 0.0
        return min(10 ** (LEAST + STEP * int(np.searchsorted(total, q * total[-1]))), self.largest)

    def to_json(self) -> list[Any]:
        used = np.flatnonzero(self.bins)
        return [
            self.exact,
            self.largest,
            self.number,
            *([int(used[0]), *self.bins[used[0] : used[-1] + 1].tolist()] if used.size else []),
        ]

    @classmethod
    def of_json(cls, data: list[Any]) -> Share:
        share = cls(exact=data[0], largest=data[1], number=data[2])
        if len(data) > 3:
            share.bins[data[3] : data[3] + len(data) - 4] = data[4:]
        return share


@dataclass
class Tally:
    """What was found on a number of problems. Keys of shares: implementation, class, dtype, output."""

    problems: int = 0
    seconds: float = 0.0
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)  # implementation, dtype → answers
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)  # implementation, reason → problems
    shares: defaultdict[tuple[str, str, str, str], Share] = field(default_factory=lambda: defaultdict(Share))
    exempt: Counter[tuple[str, str]] = field(default_factory=Counter)  # class, dtype → elements
    elements: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)

    def merge(self, other: Tally) -> None:
        self.problems += other.problems
        self.seconds += other.seconds
        for name in ("asked", "left_out", "exempt", "elements"):
            getattr(self, name).update(getattr(other, name))
        for key, share in other.shares.items():
            self.shares[key].merge(share)
        self.violations += other.violations

    def to_json(self) -> dict[str, Any]:
        counters = ("asked", "left_out", "exempt", "elements")
        return {
            "problems": self.problems,
            "seconds": round(self.seconds, 2),
            **{name: {"|".join(key): n for key, n in getattr(self, name).items()} for name in counters},
            "shares": {"|".join(key): share.to_json() for key, share in self.shares.items()},
            "violations": self.violations,
        }

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> Tally:
        tally = cls(data["problems"], data["seconds"], violations=data["violations"])
        for name in ("asked", "left_out", "exempt", "elements"):
            getattr(tally, name).update({tuple(key.split("|")): n for key, n in data[name].items()})
        tally.shares.update({tuple(key.split("|")): Share.of_json(x) for key, x in data["shares"].items()})
        return tally


def shares(got: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Error/bound as the judge has it, of every element: infinite where a number is missing, 0 where the error is."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.abs(got - expected)
        ratio = np.where(error == 0, 0.0, error / bound)
    same = (np.isnan(got) & np.isnan(expected)) | (got == expected)  # an lse may be infinite
    missing = ~(np.isfinite(got) & np.isfinite(expected)) | np.isnan(ratio)
    return np.where(same, 0.0, np.where(missing, np.inf, ratio))


def distributions(ratio: np.ndarray, number: int) -> Iterator[Share]:
    """A Share for each row; −1 stands for what does not count."""
    wrong = ratio > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.clip(np.ceil((np.log10(ratio) - LEAST) / STEP), 0, BINS - 1)
    place = (np.where(wrong, place, 0) + BINS * np.arange(len(ratio))[:, None]).astype(np.int64)
    bins = np.bincount(place[wrong], minlength=BINS * len(ratio)).reshape(-1, BINS)
    exact, largest = (ratio == 0).sum(1), ratio.max(1)
    return (Share(b, int(n), max(float(x), 0.0), number if x > 0 else -1) for b, n, x in zip(bins, exact, largest, strict=True))
