"""Known issues: what an implementation's own repository says it breaks, where, why and until when.

An issue excuses a failure only if the failure goes to its clause and both the problem on which it was met and the problem to
which it was reduced lie in its region. What is met outside is reduced outside, so that a second fault can't slip into the
region of the first. Pinned problems are asked at the end of every run and must still fail.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.known.region import Region
from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject


@dataclass(frozen=True)
class Issue:
    """One entry of the file. `found` quotes what a test that makes its own problems says; such failures have no region.

    backend, torch: of what every caller inherits, the shipped adapter whose failure it is, and the versions of torch.
    """

    number: int
    clause: str
    pinned: tuple[Case, ...]
    reason: str
    url: str
    owner: str
    expiry: datetime.date
    region: Region | None = None
    found: str = ""
    device: str = ""
    variant: str = ""
    backend: str = ""
    torch: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"known issue {self.number} ({self.clause})"

    def covers(self, case: Case) -> bool:
        """Whether a case lies in its region; everything does where what is found says it all."""
        return self.region is None or self.region(case)

    def concerns(self, subject: Subject) -> bool:
        """Whether it speaks of this variant on this device."""
        return self.device in ("", subject.device, subject.device.split(":")[0]) and self.variant in ("", subject.label)

    def explains(self, met: Case, explained: Explained) -> bool:
        """Whether a failure is this one: its clause, and both cases inside; for a test's own problem, the words."""
        if self.clause != explained.clause or not (self.covers(met) and self.covers(explained.case)):
            return False
        return not self.found if explained.by_case else self.found == " ".join(explained.finding.message.split())


@dataclass
class KnownIssues:
    """The issues of a run, how often their regions were met, and what is wrong with them."""

    issues: tuple[Issue, ...] = ()
    source: str = ""
    total: Counter[str] = field(default_factory=Counter)  # dtype → problems asked
    inside: Counter[tuple[int, str]] = field(default_factory=Counter)  # issue, dtype → problems asked in its region
    failed: Counter[tuple[int, str]] = field(default_factory=Counter)  # issue, dtype → failures that it excused
    errors: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def ask(self, subject: Subject, case: Case) -> None:
        """Count a problem that is asked."""
        if self.issues:
            self.total[case.dtype] += 1
            self.inside.update((x.number, case.dtype) for x in self.issues if x.concerns(subject) and x.region and x.covers(case))

    def excuse(self, subject: Subject, met: Case, explained: Explained) -> Issue | None:
        """The issue that a failure is, or None: then it is a failure like any other."""
        for issue in self.issues:
            if issue.concerns(subject) and issue.explains(met, explained):
                self.failed[issue.number, met.dtype] += 1
                return issue
        return None

    def same_side(self, subject: Subject) -> Callable[[Case, Case], bool]:
        """Whether a failure met on one case may be explained by another: not by one in a region if it was met outside of all."""
        regions = [x.region for x in self.issues if x.region is not None and x.concerns(subject)]

        def same(met: Case, other: Case) -> bool:
            return any(region(met) for region in regions) or not any(region(other) for region in regions)

        return same

    def take(self) -> list[Any]:
        """What was counted since the last call, as plain data; it is forgotten here."""
        counters = (self.total, self.inside, self.failed)
        taken = [[[list(k) if isinstance(k, tuple) else k, n] for k, n in x.items()] for x in counters]
        for counter in counters:
            counter.clear()
        return taken

    def absorb(self, taken: list[Any]) -> None:
        """Add what :meth:`take` gave in another process."""
        counters: list[Counter[Any]] = [self.total, self.inside, self.failed]
        for counter, seen in zip(counters, taken, strict=True):
            counter.update({tuple(k) if isinstance(k, list) else k: n for k, n in seen})
