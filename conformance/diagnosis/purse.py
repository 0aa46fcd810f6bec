"""The time for explanations: how much of it a variant has in a dtype, and what it may be spent on."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from attnspec.adapters.watch.spent import spent

EXPLAIN_BUDGET = 20.0  # seconds, the default of --explain-budget
KEPT = 0.5  # the share of all time that is kept, in equal parts, for each variant in each dtype, whenever its turn comes
COMPARING, SIMPLER = 0.25, 0.25  # shares of a purse; a fault that has no name yet costs nothing of them
OTHERS = 0.1  # the share for comparing with a failure of another output: a fault that fails everywhere leaves it untouched
ONE = 0.15  # the share of one descent, and of simpler numbers for one failure: what is slow leaves time for others
MOST = 0.8  # the share that comparing may take of what is not used for anything else
FIRST = 0.1  # the share for the first failure of a kind and an output of which nothing was explained yet


@dataclass
class Purse:
    """What one variant may spend in one dtype, in seconds of this thread.

    whole: seconds for everybody together. among: how many share them. purses: those of all, this one among them, as they are made.
    """

    whole: float = EXPLAIN_BUDGET
    among: int = 1
    purses: list[Purse] = field(default_factory=list, repr=False)
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        self.purses.append(self)

    @property
    def out(self) -> float:
        """What was spent of it."""
        return sum(self.spent.values())

    @property
    def budget(self) -> float:
        """What may be spent of it in all: the whole, without what others spent and what is kept for them."""
        kept = KEPT * self.whole / self.among
        to_come = max(0, self.among - len(self.purses)) * kept
        return max(0.0, self.whole - to_come - sum(max(kept, other.out) for other in self.purses if other is not self))

    @property
    def one(self) -> float:
        """Seconds that one descent may take, or the search for simpler numbers of one failure."""
        return ONE * self.budget

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """What is spent on this; what is timed inside counts by itself."""
        began, inside = spent(), self.out
        try:
            yield
        finally:
            self.spent[what] += spent() - began - (self.out - inside)

    def used(self, share: float = 1.0) -> bool:
        """Whether explaining took this share, or everything together all of it."""
        return self.spent["explaining"] + self.spent["simplifying"] >= share * self.budget or self.out >= self.budget

    def comparing(self, same: bool) -> tuple[str, float]:
        """What comparing with a failure of the same output, or of another, counts as, and the share of its time that is used up.

        Where little is to be explained there is more time for comparing: MOST of all.
        """
        what, share = ("comparing", COMPARING) if same else ("comparing others", OTHERS)
        budget = self.budget
        others = self.out - self.spent[what]
        seconds = max(share, MOST - others / budget if same else 0.0) * budget if budget else 0.0
        return what, self.spent[what] / seconds if seconds else 1.0
