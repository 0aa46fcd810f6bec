"""Known issues at the end of a run: their pinned problems are asked again, and what their regions hide is said."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import fields

import pytest

from attnspec.conformance.known.issues import Issue, KnownIssues
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import tests_of
from attnspec.conformance.verdicts.verdict import JUDGED, Verdict
from attnspec.spec import index
from attnspec.spec.words import DTYPES

LOUD = 0.10  # share of the problems that a test of its clause asks from which a region is called wide
MOST = 0.50  # share from which it is an error: that is no issue, it is a promise to withdraw


def ask_pinned(run: Run) -> None:
    """Ask the pinned problems, and say what each issue hides and what is wrong with it. Once, where the run is summed up."""
    known = run.known
    known.lines = [f"known issues, from {known.source}:"] if known.issues else []
    for issue in known.issues:
        if issue.expiry < datetime.date.today():
            _wrong(known, issue, f"it expired on {issue.expiry}; look at it again, then mend it or give it another date")
        known.lines.append(f"  {issue.clause}: {issue.region.text if issue.region else issue.found}")
        subjects = [subject for subject in run.subjects if issue.concerns(subject)]
        if not subjects and issue.device and all(s.device.split(":")[0] != issue.device for s in run.subjects):
            known.lines.append(f"    not tested: this run is not on {issue.device}")
            continue
        if not subjects:
            _wrong(
                known,
                issue,
                f"unknown variant {issue.variant!r}; choose from {', '.join(sorted({s.label for s in run.subjects}))}",
            )
            continue
        _share(known, issue, subjects)
        for case in issue.pinned:
            for subject in subjects:
                _pinned(issue, case, subject, run)
        known.lines.append(f"    {issue.reason.strip().splitlines()[0]} {issue.url} · {issue.owner}, until {issue.expiry}")
    _widths(known, run.subjects)
    known.lines += [f"ERROR: {error}" for error in known.errors]


def _wrong(known: KnownIssues, issue: Issue, what: str) -> None:
    known.errors.append(f"{issue.name}: {what}")


def _share(known: KnownIssues, issue: Issue, subjects: list[Subject]) -> None:
    """How much of what its clause's tests ask lies in the region, and how much of what was asked there failed."""
    if issue.region is None:
        return
    hidden, rows = share([issue], subjects)
    wide = f": a wide region, more than {LOUD:.0%}" if hidden > LOUD * rows else ""
    if rows:
        what = f"{hidden} of {rows} problems that a test of {issue.clause} asks"
        known.lines.append(f"    its region holds {what}, {hidden / rows:.1%}{wide}")
    for dtype in DTYPES:
        inside, failed = known.inside[issue.number, dtype], known.failed[issue.number, dtype]
        if inside or failed:
            total, most = known.total[dtype], "; most pass: narrow the region if you can" if 2 * failed < inside else ""
            hides = f"hides {inside} of {total} problems asked, {inside / total:.1%}"
            known.lines.append(f"    {dtype}: {hides}; {failed} of them fail{most}")


def _widths(known: KnownIssues, subjects: list[Subject]) -> None:
    for clause in dict.fromkeys(issue.clause for issue in known.issues if issue.region is not None):
        issues = [issue for issue in known.issues if issue.clause == clause and issue.region is not None]
        hidden, rows = share(issues, [s for s in subjects if any(issue.concerns(s) for issue in issues)])
        if hidden > MOST * rows:
            known.errors.append(
                f"the known issues of {clause} hide {hidden} of {rows} problems that one of its tests asks, more than "
                f"{MOST:.0%}: narrow their regions, or withdraw the promise "
                "(--without, --impl-dtypes, --dialect, or the adapter's offers)"
            )


def _pinned(issue: Issue, case: Case, subject: Subject, run: Run) -> None:
    """Ask as `--clauses --case` would, and expect the failure that the issue describes, and no other."""
    known, reason = run.known, _not_asked(issue, case, subject, run)
    if reason:
        known.lines.append(f"    pinned {case.token()}: not tested, {reason}")
        return
    refused = subject.refused_dtypes.get(case.dtype)
    fitted = fit(case, subject.adapter)
    bent = [x.name for x in fields(Case) if getattr(fitted, x.name) != getattr(case, x.name) and x.name not in ("wrt", "do")]
    where = f"the pinned problem {case.token()}" + (f" of {subject.label}" if subject.adapter.variant else "")
    if refused or bent:
        what = f"{case.dtype} is refused ({refused})" if refused else f"it can't take this {', '.join(bent)}"
        _wrong(known, issue, f"{where} is not offered: {what}. Pin the problem that a failure prints, or delete the entry")
        return
    alone = KnownIssues((issue,), known.source)
    fresh = subject.afresh()
    again = run.afresh(fresh, fitted, issue.clause, alone)
    for test in tests_of((issue.clause,), run.spec):
        try:
            test(again, fresh, case.dtype)
        except (pytest.fail.Exception, pytest.skip.Exception):
            continue
        except Exception as error:
            _wrong(known, issue, f"attnspec itself failed on {where}: {type(error).__name__}: {error}")
            return
    seen: Counter[Verdict] = sum((counts for counts in again.record.counts.values()), Counter())
    cell = (issue.clause, case.dtype, subject.label, subject.device)
    if alone.failed:
        run.record.count(cell, Verdict.KNOWN_ISSUE, 1, issue.reason)
        known.lines.append(f"    pinned {case.token()}: fails, as expected")
    elif again.record.failures:
        others = "; ".join(f"{f.clause} on {f.case}" for f in again.record.failures)
        why = "says something other than `found`" if issue.found else "fails in another way, or outside of the region once reduced"
        _wrong(known, issue, f"{where} {why}: {others}. Look at it again with {run.command} --case={case.token()}")
    elif any(seen[verdict] for verdict in JUDGED):
        run.record.count(cell, Verdict.XPASS, 1, issue.reason)
        _wrong(known, issue, f"{where} passes (XPASS). The issue is fixed: delete the entry and its region")
    else:
        why = "; ".join(dict.fromkeys(again.record.reasons.values()))
        _wrong(known, issue, f"{where} does not test {issue.clause} ({why}); pin the problem that a failure prints")


def share(issues: list[Issue], subjects: list[Subject]) -> tuple[int, int]:
    """How many of the problems that a test of their clause asks lie in one of the regions, and of how many.

    The problems are those that the test makes of the array of all triples, whatever narrows the run; of several tests the one of
    which the regions hide the largest share.
    """
    found = (0, 0)
    for test in tests_of((issues[0].clause,)):
        asked = [(s, case) for s in subjects for case in test.plan.cases(array("triples", s.adapter, DTYPES), s)]
        hidden = sum(any(x.concerns(s) and x.covers(case) for x in issues) for s, case in asked)
        found = max(found, (hidden, len(asked)), key=lambda n: n[0] / max(n[1], 1))
    return found


def _not_asked(issue: Issue, case: Case, subject: Subject, run: Run) -> str:
    """Why this run does not ask a pinned problem, or ''."""
    if run.case is not None:
        return "--case selects one problem"
    if run.clauses and issue.clause not in run.clauses and index()[issue.clause].chapter not in run.clauses:
        return "--clauses leaves it out"
    if not tests_of((issue.clause,), run.spec):
        return "--spec leaves it out"
    if run.shard is not None and not run.shard.owns((issue.clause,), run.clauses):
        return "it belongs to another shard"
    if case.dtype not in subject.dtypes and case.dtype not in subject.refused_dtypes:
        return "--impl-dtypes leaves it out"
    return ""
