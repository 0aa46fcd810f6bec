"""What a mistake is: a name, words, and the answer that an otherwise exact kernel gives that makes it; and a chapter of them.

:mod:`vocabulary` has all of them. Canonical are those of which every problem of the suite is asked whether it shows them; special
are special cases of them, or rarer: a diagnosis knows both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.reference import Exact
from attnspec.spec import Dialect, Problem


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


kernel_at = lru_cache(maxsize=2)(Kernel)  # all mistakes are asked of one problem after the other, as given and as presented


class Chapter:
    """The mistakes of one chapter, by name, in the order in which they are entered."""

    def __init__(self) -> None:
        self.mistakes: dict[str, Mistake] = {}

    def enter(self, name: str, says: str, wrong: Callable[[Kernel], Wrong], needs: str = "", **of: Any) -> None:
        """Enter a canonical mistake, by which every problem is measured. `needs`: fields that a problem must have to show it."""

        def given(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
            lacking = any(getattr(problem, field) is None or getattr(problem, field) is False for field in needs.split())
            return None if lacking else wrong(kernel_at(problem, dialect))

        assert name not in self.mistakes, f"two mistakes are called {name}"
        self.mistakes[name] = Mistake(name, says, given, **of)

    def special(
        self, name: str, says: str, wrong: Callable[[Kernel], Wrong], needs: str = "", of: str = "", coarse: bool = False
    ) -> None:
        """Enter a special case, or a rarer mistake; where a size is zero it gives nothing."""

        def some(x: Kernel) -> Wrong:
            return wrong(x) if x.b * x.h * x.g * x.i * x.j * x.problem.d * x.problem.e else None

        self.enter(name, says, some, needs, special=True, of=of, coarse=coarse)


def without(j: int, start: int, stop: int) -> Array:
    """All keys but start … stop − 1, where all of those are there."""
    return np.delete(np.arange(j), np.s_[start : stop if stop <= j else start])


def filled(j: int) -> Array:
    """All keys, and keys of zeros up to a full 16."""
    return np.pad(np.arange(j), (0, -j % 16), constant_values=-1)
