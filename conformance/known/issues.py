"""Known issues: what an implementation's own repository says it breaks, where, why and until when.

An issue excuses a failure only if the failure goes to its clause and both the problem on which it was met and the problem to
which it was reduced lie in its region. What is met outside is reduced outside, so that a second fault can't slip into the
region of the first. Pinned problems are asked at the end of every run and must still fail.
"""

from __future__ import annotations

import datetime
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from attnspec.adapters import ResolveError
from attnspec.conformance.diagnosis.explain import Explained
from attnspec.conformance.judging.judge import JUDGED, Verdict
from attnspec.conformance.known.region import Region, RegionError
from attnspec.conformance.problems.case import Case, array, fit
from attnspec.conformance.subject.subject import DTYPES, Subject
from attnspec.spec import index

if TYPE_CHECKING:
    from attnspec.conformance.run.run import Run

LOUD = 0.10  # share of the problems that a test of its clause asks from which a region is called wide
MOST = 0.50  # share from which it is an error: that is no issue, it is a promise to withdraw
TEXTS = ("reason", "url", "owner")
KEYS = ("clause", "region", "found", "pinned", *TEXTS, "expiry", "device", "variant", "backend", "torch")


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

    # THE END OF A RUN

    def settle(self, run: Run, tests: Callable[[tuple[str, ...]], list[Any]]) -> None:
        """Ask the pinned problems, and say what each issue hides and what is wrong with it. Once, where the run is summed up."""
        self.lines = [f"known issues, from {self.source}:"] if self.issues else []
        for issue in self.issues:
            if issue.expiry < datetime.date.today():
                self._wrong(issue, f"it expired on {issue.expiry}; look at it again, then mend it or give it another date")
            self.lines.append(f"  {issue.clause}: {issue.region.text if issue.region else issue.found}")
            subjects = [subject for subject in run.subjects if issue.concerns(subject)]
            if not subjects and issue.device and all(s.device.split(":")[0] != issue.device for s in run.subjects):
                self.lines.append(f"    not asked: this run is not on {issue.device}")
                continue
            if not subjects:
                self._wrong(
                    issue, f"there is no variant {issue.variant!r}; there are {', '.join(sorted({s.label for s in run.subjects}))}"
                )
                continue
            self._share(issue, subjects, tests)
            for case in issue.pinned:
                for subject in subjects:
                    self._pinned(issue, case, subject, run, tests)
            self.lines.append(f"    {issue.reason.strip().splitlines()[0]} {issue.url} · {issue.owner}, until {issue.expiry}")
        self._widths(run.subjects, tests)
        self.lines += [f"ERROR: {error}" for error in self.errors]

    def _wrong(self, issue: Issue, what: str) -> None:
        self.errors.append(f"{issue.name}: {what}")

    def _share(self, issue: Issue, subjects: list[Subject], tests: Callable[[tuple[str, ...]], list[Any]]) -> None:
        """How much of what its clause's tests ask lies in the region, and how much of what was asked there failed."""
        if issue.region is None:
            return
        hidden, rows = share([issue], subjects, tests)
        wide = f": a wide region, more than {LOUD:.0%}" if hidden > LOUD * rows else ""
        if rows:
            what = f"{hidden} of {rows} problems that a test of {issue.clause} asks"
            self.lines.append(f"    its region holds {what}, {hidden / rows:.1%}{wide}")
        for dtype in DTYPES:
            inside, failed = self.inside[issue.number, dtype], self.failed[issue.number, dtype]
            if inside or failed:
                total, most = self.total[dtype], "; most pass: narrow the region if you can" if 2 * failed < inside else ""
                hides = f"hides {inside} of {total} problems asked, {inside / total:.1%}"
                self.lines.append(f"    {dtype}: {hides}; {failed} of them fail{most}")

    def _widths(self, subjects: list[Subject], tests: Callable[[tuple[str, ...]], list[Any]]) -> None:
        for clause in dict.fromkeys(issue.clause for issue in self.issues if issue.region is not None):
            issues = [issue for issue in self.issues if issue.clause == clause and issue.region is not None]
            hidden, rows = share(issues, [s for s in subjects if any(issue.concerns(s) for issue in issues)], tests)
            if hidden > MOST * rows:
                self.errors.append(
                    f"the known issues of {clause} hide {hidden} of {rows} problems that one of its tests asks, more than "
                    f"{MOST:.0%}: narrow their regions, or withdraw the promise "
                    "(--without, --impl-dtypes, --dialect, or the adapter's offers)"
                )

    def _pinned(self, issue: Issue, case: Case, subject: Subject, run: Run, tests: Callable[[tuple[str, ...]], list[Any]]) -> None:
        """Ask as `--clauses --case` would, and expect the failure that the issue describes, and no other."""
        reason = _not_asked(issue, case, subject, run)
        if reason:
            self.lines.append(f"    pinned {case.token()}: not asked, {reason}")
            return
        refused = subject.refused_dtypes.get(case.dtype)
        fitted = fit(case, subject.adapter)
        bent = [x.name for x in fields(Case) if getattr(fitted, x.name) != getattr(case, x.name) and x.name not in ("wrt", "do")]
        where = f"the pinned problem {case.token()}" + (f" of {subject.label}" if subject.adapter.variant else "")
        if refused or bent:
            what = f"{case.dtype} is refused ({refused})" if refused else f"{', '.join(bent)} can't be so here"
            self._wrong(issue, f"{where} is not offered: {what}. Pin the problem that a failure prints, or delete the entry")
            return
        alone = KnownIssues((issue,), self.source)
        fresh = subject.afresh()
        again = run.afresh(fresh, fitted, issue.clause, alone)
        for test in tests((issue.clause,)):
            try:
                test(again, fresh, case.dtype)
            except (pytest.fail.Exception, pytest.skip.Exception):
                continue
            except Exception as error:
                self._wrong(issue, f"attnspec itself failed on {where}: {type(error).__name__}: {error}")
                return
        seen: Counter[Verdict] = sum((counts for counts in again.record.counts.values()), Counter())
        cell = (issue.clause, case.dtype, subject.label, subject.device)
        if alone.failed:
            run.record.count(cell, Verdict.KNOWN_ISSUE, 1, issue.reason)
            self.lines.append(f"    pinned {case.token()}: fails, as is known")
        elif again.record.failures:
            others = "; ".join(f"{f.clause} on {f.case}" for f in again.record.failures)
            why = "says something else than `found`" if issue.found else "fails otherwise or, reduced, outside of the region"
            self._wrong(issue, f"{where} {why}: {others}. Look at it again with {run.command} --case={case.token()}")
        elif any(seen[verdict] for verdict in JUDGED):
            run.record.count(cell, Verdict.XPASS, 1, issue.reason)
            self._wrong(issue, f"{where} passes (XPASS). It is mended: delete the entry, and with it the region that it hides")
        else:
            why = "; ".join(dict.fromkeys(again.record.reasons.values()))
            self._wrong(issue, f"{where} shows nothing of {issue.clause} ({why}); pin the problem that a failure prints")


def share(issues: list[Issue], subjects: list[Subject], tests: Callable[[tuple[str, ...]], list[Any]]) -> tuple[int, int]:
    """How many of the problems that a test of their clause asks lie in one of the regions, and of how many.

    The problems are those that the test makes of the array of all triples, whatever narrows the run; of several tests the one of
    which the regions hide the largest share.
    """
    found = (0, 0)
    for test in tests((issues[0].clause,)):
        asked = [(s, case) for s in subjects for case in test.plan.cases(array("triples", s.adapter, DTYPES), s)]
        hidden = sum(any(x.concerns(s) and x.covers(case) for x in issues) for s, case in asked)
        found = max(found, (hidden, len(asked)), key=lambda n: n[0] / max(n[1], 1))
    return found


def _not_asked(issue: Issue, case: Case, subject: Subject, run: Run) -> str:
    """Why this run does not ask a pinned problem, or ''."""
    if run.case is not None:
        return "--case asks for one problem"
    if run.clauses and issue.clause not in run.clauses and index()[issue.clause].chapter not in run.clauses:
        return "--clauses leaves it out"
    if run.shard is not None and not run.shard.owns((issue.clause,), run.clauses):
        return "it is another shard's"
    if case.dtype not in subject.dtypes and case.dtype not in subject.refused_dtypes:
        return "--impl-dtypes leaves it out"
    return ""


# READING THE FILE


def read(path: Path, names: set[str]) -> KnownIssues:
    """The issues of a file for an implementation that has one of these names. Raises ResolveError, with what to write."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResolveError(f"--known-issues {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ResolveError(f"--known-issues {path}: this is no TOML: {error}") from None
    whose = data.pop("implementation", None)
    whose = [whose] if isinstance(whose, str) else whose
    entries = data.pop("issue", [])
    if not isinstance(whose, list) or not whose or not all(isinstance(x, str) for x in whose):
        raise ResolveError(f'--known-issues {path}: say whose they are in its first line, implementation = "{min(names)}"')
    if data or not isinstance(entries, list):
        raise ResolveError(
            f"--known-issues {path}: {', '.join(data) or 'issue'} is not known there; write implementation and [[issue]]"
        )
    if not any(_same(x, name) for x in whose for name in names):
        raise OtherImplementation(f"--known-issues {path} is for {', '.join(whose)}; this is {', '.join(sorted(names))}")
    issues = []
    for number, entry in enumerate(entries, 1):
        try:
            issues.append(_issue(number, entry))
        except (ValueError, TypeError) as error:
            title = f" ({entry['clause']})" if isinstance(entry, dict) and "clause" in entry else ""
            raise ResolveError(f"--known-issues {path}, entry {number}{title}: {error}") from None
    return KnownIssues(tuple(issues), str(path))


class OtherImplementation(ResolveError):
    """The file speaks of another implementation."""


def _same(one: str, other: str) -> bool:
    """Whether two names are one as far as the shorter goes: `attend` and `kernel.attend` are."""
    longer, shorter = sorted((one, other), key=len, reverse=True)
    return longer == shorter or (longer.endswith(shorter) and longer[-len(shorter) - 1] in "/.:")


def _issue(number: int, entry: Any) -> Issue:
    """One entry. Raises ValueError with what is missing or wrong."""
    if not isinstance(entry, dict):
        raise ValueError("write each issue as a table, [[issue]]")
    strange = [key for key in entry if key not in KEYS]
    if strange:
        raise ValueError(f"there is no {', '.join(strange)}; there are {', '.join(KEYS)}")
    pins = entry.get("pinned")
    pins = [pins] if isinstance(pins, str) else pins
    texts = {name: entry.get(name, "") for name in ("clause", *TEXTS, "found", "device", "variant", "backend")}
    wrong = [name for name, value in texts.items() if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: write text in quotes")
    if texts["clause"] not in index():
        raise ValueError(f"clause {texts['clause']!r}: there is no such clause")
    for name in TEXTS:
        if not texts[name].strip() or "TODO" in texts[name]:
            or_none = ' (or url = "none known")' if name == "url" else ""
            raise ValueError(f"it has no {name}; write it, for nobody else can{or_none}")
    expiry = entry.get("expiry")
    if not isinstance(expiry, datetime.date) or isinstance(expiry, datetime.datetime):
        raise ValueError("it has no expiry; write a date, expiry = 2027-06-30")
    if not isinstance(pins, list) or not pins or not all(isinstance(x, str) for x in pins):
        raise ValueError('it has no pinned problem; write what a failure prints after --case, pinned = "i=2,j=5,causal=True"')
    pinned = tuple(Case.parse(token) for token in pins)
    if not entry.get("region") and not texts["found"]:
        raise ValueError('it has no region; write for which problems it speaks, region = "causal and i > j"')
    try:
        region = Region.parse(entry["region"]) if entry.get("region") else None
    except RegionError as error:
        raise ValueError(f"region: {error}") from None
    outside = [case.token() for case in pinned if region is not None and not region(case)]
    if outside:
        raise ValueError(f"its pinned problem {'; '.join(outside)} is not in its own region, {region.text if region else ''}")
    if texts["device"]:
        try:
            torch.device(texts["device"])
        except RuntimeError:
            raise ValueError(f"device {texts['device']!r}: torch knows none of that name") from None
    versions = entry.get("torch", [])
    if not isinstance(versions, list) or not all(isinstance(x, str) for x in versions):
        raise ValueError('torch: write the versions in which it was seen, torch = ["2.13"]')
    return Issue(
        number=number,
        torch=tuple(versions),
        pinned=pinned,
        expiry=expiry,
        region=region,
        **{**texts, "found": " ".join(texts["found"].split())},
    )
