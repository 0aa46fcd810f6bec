"""What a search asks and what it finds. Hypothesis, which draws, is imported in :mod:`search` alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from attnspec.conformance.problems.case import Case


class Asked(NamedTuple):
    """What came of one drawn case: whether it is right, and the error of its worst element as a share of the bound, if known."""

    right: bool
    share: float | None = None


class Stop(BaseException):
    """Ends a search: its time is up."""


class Fails(Exception):
    """A drawn case is wrong in a way that nothing has explained yet.

    met: that case. alike: whether another one is wrong in the same way. tell: explains it, from the smallest case that is alike.
    seconds: of this thread, for shrinking. cut: tells it as it was met, where something ends the test.
    """

    def __init__(
        self,
        met: Case,
        alike: Callable[[Case], bool],
        tell: Callable[[Case], bool],
        seconds: float = math.inf,
        cut: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(met.token())
        self.met, self.alike, self.tell, self.seconds, self.cut = met, alike, tell, seconds, cut
        self.smallest = met
