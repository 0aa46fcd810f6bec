"""One run of the suite: the subjects, how much to ask, what was seen, and what is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed

from attnspec.conformance.case import Case, array, cases
from attnspec.conformance.record import Record
from attnspec.conformance.subject import Subject


@dataclass(frozen=True)
class Tier:
    """How much is asked: which covering array, how many searched examples and rows per test, and which costs are borne."""

    array: str
    searched: int
    rows: int
    slow: bool = False


TIERS = {
    "smoke": Tier("pairs", searched=0, rows=3),
    "standard": Tier("triples", searched=6, rows=12),
    "thorough": Tier("triples", searched=120, rows=80, slow=True),
    "soak": Tier("triples", searched=1_000_000, rows=200, slow=True),
}


@dataclass
class Run:
    """State of a run, made from the options; tests reach it through the fixture `run`."""

    command: str  # what re-runs it, without --case
    subjects: list[Subject]
    tier: Tier = TIERS["standard"]
    seed: int = 0
    budget: float | None = None  # seconds for everything
    case: Case | None = None
    clauses: tuple[str, ...] = ()
    enforce_should: bool = False
    record: Record = field(default_factory=Record)
    repros: bool = True
    started: float = field(default_factory=time.monotonic)
    _shown: set[tuple] = field(default_factory=set)
    _rows: dict[int, list[Case]] = field(default_factory=dict)

    @property
    def out_of_time(self) -> bool:
        """True once the budget is spent."""
        return self.budget is not None and time.monotonic() - self.started > self.budget

    def first_time(self, key: tuple, dtype: str) -> bool:
        """Whether a failure with this key is met for the first time, in this dtype or (dtype "") at all."""
        fresh = (*key, dtype) not in self._shown
        self._shown.add((*key, dtype))
        return fresh

    def rows(self, subject: Subject, dtype: str) -> Iterable[Case]:
        """The covering array's cases of a dtype, fitted to the subject; the one case of --case if that was given."""
        if self.case is not None:
            return [self.case] if self.case.dtype == dtype else []
        if id(subject) not in self._rows:
            self._rows[id(subject)] = array(self.tier.array, subject.adapter, subject.dtypes)
        return [case for case in self._rows[id(subject)] if case.dtype == dtype]

    def search(self, subject: Subject, dtype: str, ask: Callable[[Case], bool], narrow: Callable[[Case], Case | None],
               examples: int | None = None) -> None:
        """Ask Hypothesis for cases until `ask` says stop, the tier's number is reached or the time is up.

        Reduction is not left to Hypothesis: what fails is reduced by the same descent as a row of the array, which it
        does not do for explicit examples.
        """
        wanted = self.tier.searched if examples is None else min(examples, self.tier.searched)
        if self.case is not None or wanted == 0:
            return
        stopped = False

        @hypothesis_seed(self.seed)
        @settings(max_examples=wanted, database=None, deadline=None, phases=(Phase.generate,),
                  suppress_health_check=list(HealthCheck))
        @given(cases(subject.adapter, dtype))
        def look(case: Case) -> None:
            nonlocal stopped
            if stopped or self.out_of_time:
                return
            fitting = narrow(case)
            if fitting is not None:
                stopped = not ask(fitting)

        look()
