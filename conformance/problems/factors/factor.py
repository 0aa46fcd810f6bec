"""What a factor of a case owes: everything that is said of it anywhere, said once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from attnspec.spec import Dialect

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator

    from attnspec.conformance.problems.case import Case

DIGITS = 10  # of a size or a seed
Changes = Mapping[str, Any]  # of a case: factor → value


class Offer(NamedTuple):
    """What a case is fitted to."""

    features: frozenset[str]
    widths: Iterable[int] | None = None


class Failing(NamedTuple):
    """What is known of a reduced failure beside its case: what blames a factor reads it. gradient: it is in one, or in backward.

    outranked: it is in a row of which SOFTMAX-7 speaks.
    """

    kind: str
    output: str
    gradient: bool
    has_empty: bool
    dialect: Dialect
    outranked: bool = False


def nothing(case: Case) -> str:
    """No words."""
    return ""


def itself(value: Any) -> Any:
    """The same."""
    return value


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of a case. Where one of these can't be said of a factor alone, it is said of the one that has to give way.

    levels: the simplest first, which is the default. alike: what a level stands for beside itself. array: the covering array that
    has a column for it; '' for none. reads: a value that no level stands for, from its text; raises ValueError. given: what stands
    in the problem of a case, where that is not the value itself; makes: of an option that is a tensor, its numbers, float64; found:
    the other way round, the nearest value of the factor to what stands in a problem and is not None.

    Fitting. needs: the feature that every level but the simplest needs; of: the factor without which it says nothing; rule: the
    nearest level that an offer leaves, where it is more than these. examples: a level for each feature that has one.
    Simplifying. turn: the lower, the sooner; None for never. simpler: changes of a case, the greatest simplification first.
    Words. says: of a case, '' where there is nothing to say. shape: it stands among the sizes. foremost: before its neighbours.
    Traits. named: "bias=hj" is a trait wherever the level is not the simplest; traits: others, each with what it holds of.
    Regions. words, numbers, flags: what a region may say beside the levels; conditions: those that a draft tries.
    Diagnosis. option: it is an option of the call. probed: a probe leaves it out; another: a value that a probe takes instead, of
    two the one that the case has not. otherwise: what an earlier call may have had otherwise, in words.
    blames: the clause that a failure breaks which needs this factor, or ''; those with the lowest number are asked first.
    """

    name: str
    levels: tuple[Any, ...]
    alike: Mapping[Any, tuple[Any, ...]] = field(default_factory=dict)
    array: str = "core"
    size: bool = False  # any whole number will do
    reads: Callable[[str], Any] | None = None
    given: Callable[[Case], Any] | None = None
    makes: Callable[[Case, Generator], np.ndarray] | None = None
    found: Callable[[Any], Any] = itself

    needs: str = ""
    of: Factor | None = None
    rule: Callable[[Case, Offer], Any] | None = None
    examples: Mapping[str, Any] = field(default_factory=dict)

    turn: int | None = None
    simpler: Callable[[Case], Iterable[Changes]] | None = None

    says: Callable[[Case], str] = nothing
    shape: bool = False
    foremost: bool = False

    named: bool = False
    traits: Mapping[str, Callable[[Case], bool]] = field(default_factory=dict)

    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[str, Callable[[Case], float]] = field(default_factory=dict)
    flags: Mapping[str, Callable[[Case], bool]] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()

    option: bool = False
    probed: bool = False
    another: tuple[Any, Any] | None = None
    otherwise: Callable[[Case], Mapping[str, Changes]] | None = None
    blames: Mapping[int, Callable[[Case, Failing], str]] = field(default_factory=dict)

    @property
    def plain(self) -> Any:
        """The simplest level."""
        return self.levels[0]

    def values(self, level: Any) -> tuple[Any, ...]:
        """The values that a level stands for, itself first."""
        return self.alike.get(level, (level,))

    @property
    def in_words(self) -> bool:
        """Whether an array has levels of it that are words."""
        return bool(self.array) and all(isinstance(level, str) for level in self.levels)

    @cached_property
    def level_by_value(self) -> dict[Any, Any]:
        """The level of each value that one stands for."""
        return {value: level for level in self.levels for value in self.values(level)}

    def level_of(self, value: Any) -> Any:
        """The level that a value belongs to; a value that no level stands for is its own."""
        return self.level_by_value.get(value, value)

    @cached_property
    def _by_text(self) -> dict[str, Any]:
        return {str(value): value for value in self.level_by_value}

    def read(self, text: str) -> Any:
        """The value that a text stands for. Raises ValueError for what is none."""
        if text and text in self._by_text:
            return self._by_text[text]
        if self.reads is not None:
            return self.reads(text)
        raise ValueError(f"{self.name} can't be {text!r}; it can be {', '.join(self._by_text)}")

    def fitting(self, features: frozenset[str]) -> Callable[[Case, Offer], Any] | None:
        """How the nearest value to that of a case is found which an offer of these features leaves; None where every value stays.

        It reads a case of which the factors before this one are fitted already.
        """
        if self.rule is not None:
            return self.rule
        if self.needs and self.needs not in features:
            return lambda case, offer: self.plain
        if self.of is None:
            return None
        name, plain, of, idle = self.name, self.plain, self.of.name, self.of.plain
        return lambda case, offer: plain if getattr(case, of) == idle else getattr(case, name)

    def simplified(self, case: Case) -> Iterable[Changes]:
        """Changes that make this factor of a case simpler, the greatest simplification first."""
        if self.simpler is not None:
            return self.simpler(case)
        value = getattr(case, self.name)
        level = self.level_of(value)
        known = level in self.levels
        levels = self.levels[: self.levels.index(level) + (level != value)] if known else self.levels[:2]
        return [{self.name: simple} for simple in levels]


def whole(name: str, least: int) -> Callable[[str], int]:
    """Reads a whole number of at least this."""

    def reads(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS):
            raise ValueError(f"{name} can't be {text[:40]!r}; it is a whole number below 10 000 000 000")
        if int(text) < least:
            raise ValueError(f"{name} can't be 0; it is at least 1")
        return int(text)

    return reads


def number(name: str) -> Callable[[str], float]:
    """Reads a finite number."""

    def reads(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not isfinite(value):
            raise ValueError(f"{name} can't be {text[:40]!r}; it is a finite number, such as 0.3 or -0.5, or None for the default")
        return value

    return reads


def factor(of: Factor) -> Any:
    """The line of a factor in :class:`attnspec.conformance.problems.case.Case`."""
    return field(default=of.plain, metadata={"factor": of})
