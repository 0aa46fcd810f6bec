"""What a mistake is: a name, words, and the answer that an otherwise exact kernel gives that makes it; and a chapter of them.

:mod:`vocabulary` has all of them. Canonical are those of which every problem of the suite is asked whether it shows them; special
are special cases of them, or rarer: a diagnosis knows both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.reference import Exact
from attnspec.reference.ragged import RaggedExact, as_it_turns, joined
from attnspec.spec import Dialect, Problem
from attnspec.spec.ragged import sequences


@dataclass(frozen=True)
class Mistake:
    """A mistake by name, what it is in words, and what it gives.

    `wrong` gives the outputs (o, dq, dk, dv, dbias) that the mistake can change, in the answer's shapes, or None where it
    cannot show by construction. `coarse`: nearly any problem shows it, so one that shows nothing else is as good as blind.
    `special`: a special case or a rarer one, by which no problem is measured. `of`: the name that it shares with its like.
    """

    name: str
    says: str
    wrong: Callable[[Problem, Dialect, Exact], Wrong]
    coarse: bool = False
    special: bool = False
    of: str = ""


# All mistakes are asked of one problem after the other, as given and as presented, or of its sequences.
kernel_at = lru_cache(maxsize=12)(Kernel)


@lru_cache(maxsize=4)
def sequences_of(problem: Problem, dialect: Dialect) -> tuple[Problem, ...]:
    """The sequences of a ragged problem as a call of this dialect attends to them, each as a dense problem."""
    return tuple(as_it_turns(problem, dialect, n, one) for n, one in enumerate(sequences(problem)))


class Chapter:
    """The mistakes of one chapter, by name, in the order in which they are entered. No two of all chapters share a name."""

    taken: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        self.mistakes: dict[str, Mistake] = {}

    def add(self, mistake: Mistake) -> None:
        """Enter a mistake as it is. Raises ValueError where another one has its name: the vocabulary would lose one of the two."""
        if mistake.name in self.taken:
            raise ValueError(f"two mistakes are called {mistake.name}")
        self.taken.add(mistake.name)
        self.mistakes[mistake.name] = mistake

    def enter(self, name: str, says: str, wrong: Callable[[Kernel], Wrong], needs: str = "", **of: Any) -> None:
        """Enter a canonical mistake, by which every problem is measured. `needs`: fields that a problem must have to show it."""

        def given(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
            lacking = any(getattr(problem, field) is None or getattr(problem, field) is False for field in needs.split())
            if problem.carrier is not None and not lacking:
                return of_each(given, problem, dialect, exact)
            return None if lacking else wrong(kernel_at(problem, dialect))

        self.add(Mistake(name, says, given, **of))

    def special(
        self, name: str, says: str, wrong: Callable[[Kernel], Wrong], needs: str = "", of: str = "", coarse: bool = False
    ) -> None:
        """Enter a special case, or a rarer mistake; where a size is zero it gives nothing."""

        def some(x: Kernel) -> Wrong:
            return wrong(x) if x.b * x.h * x.g * x.i * x.j * x.problem.d * x.problem.e else None

        self.enter(name, says, some, needs, special=True, of=of, coarse=coarse)


def of_each(wrong: Callable[[Problem, Dialect, Exact], Wrong], problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
    """What a mistake gives that is made in each sequence of a ragged problem; None where it can show in none of them."""
    assert isinstance(exact, RaggedExact)
    each = sequences_of(problem, dialect)
    found = [wrong(one, dialect, right) for one, right in zip(each, exact.parts, strict=True)]
    return put_together(problem, exact, found)


def put_together(problem: Problem, exact: RaggedExact, found: Sequence[Wrong]) -> Wrong:
    """Outputs of a ragged problem from those of its sequences, of which None is right; None where all of them are."""
    names = dict.fromkeys(name for one in found for name in one or () if name in exact.values)
    if not names:
        return None
    parts = {
        name: [
            right.values[name] if one is None else one.get(name, right.values[name])
            for one, right in zip(found, exact.parts, strict=True)
        ]
        for name in names
    }
    return {name: joined(problem, name, each, exact.parts) for name, each in parts.items()}


def without(j: int, start: int, stop: int) -> Array:
    """All keys but start … stop − 1, where all of those are there."""
    return np.delete(np.arange(j), np.s_[start : stop if stop <= j else start])


def filled(j: int) -> Array:
    """All keys, and keys of zeros up to a full 16."""
    return np.pad(np.arange(j), (0, -j % 16), constant_values=-1)
