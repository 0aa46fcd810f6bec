"""What becomes of the problems that a test has asked: counted where they belong, shown once, and the end that pytest wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from attnspec.conformance.diagnosis.blame import ALONE
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.known.inherited import Origin
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.reduce import descend
from attnspec.conformance.report.failure import failure as failure_of
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.verdicts.lines import Share, Why
from attnspec.conformance.verdicts.record import Cell, Failure
from attnspec.conformance.verdicts.verdict import Verdict
from attnspec.spec import Problem, index


class ClausesBroken(pytest.fail.Exception):  # type: ignore[name-defined, misc]  # pytest adds it to the function fail
    """How a test ends that shows failures. They come along, so nobody needs to read a text to know which clauses are broken."""

    def __init__(self, failures: Sequence[Failure], *more: str) -> None:
        super().__init__("\n\n".join([*(failure.shown for failure in failures), *more]), pytrace=False)
        self.failures, self.more = tuple(failures), more
        self.broken = tuple(dict.fromkeys(failure.clause for failure in failures))


def verdict_of(finding: Finding) -> Verdict:
    """What is counted of a problem on which something was found."""
    return {"crash": Verdict.CRASH, "timeout": Verdict.TIMEOUT}.get(finding.kind, Verdict.FAIL)


class Telling:
    """What one test on one subject in one dtype says of its clauses."""

    def __init__(self, run: Run, subject: Subject, dtype: str, ids: tuple[str, ...], test: Callable[..., Any]) -> None:
        self.run, self.subject, self.dtype, self.test = run, subject, dtype, test
        self.explainer = run.explainer(subject, dtype)
        why_not = {id_: subject.exempt_from(index()[id_]) for id_ in ids}
        for id_, reason in why_not.items():
            if reason:
                run.record.count((id_, dtype, subject.label, subject.device), Verdict.UNSUPPORTED, 1, reason)
        self.ids = tuple(id_ for id_ in ids if not why_not[id_])
        self.excuse = next(iter(why_not.values())) if not self.ids else ""
        self.main = index()[(self.ids or ids)[0]]
        self.passed = self.refused = 0
        self.unasked = False  # the time was up before every problem of the first round was asked
        self.reason = ""
        self.shown: list[Failure] = []  # those that this test is the first to show
        self.again: dict[str, int] = {}  # clause → problems that fail by a failure already shown
        self.others: Counter[str] = Counter()  # clause → problems that fail by it, and say nothing of this test's clauses
        self.excused: dict[str, int] = {}  # clause → problems that fail by a known issue

    def _tell_of_disturbances(self, case: Case | None) -> None:
        """PURITY-3 is broken by whichever call changes something around it; said once, of the simplest case that does."""
        subject, run = self.subject, self.run
        disturbed = subject.disturbed_in(self.dtype)
        new = [name for name in disturbed if run.first_time(("disturbed", name, subject.label, subject.device), self.dtype)]
        if not new:
            return
        what, problem = " and ".join(disturbed[name][0] for name in new), disturbed[new[0]][1]
        again = case is not None and bool(subject.disturbs(case))
        if case is not None and again:
            case = descend(case, subject.adapter, lambda trial: bool(subject.disturbs(trial)))
            what, problem = f"the call changed {' and '.join(subject.disturbs(case).values())}", subject.problem(case)
        else:
            case = Case(dtype=self.dtype)
        self._report(case, Explained("PURITY-3", case, Finding("relation", "call", what), problem, None, again))

    def _report(self, met: Case, explained: Explained, other: Problem | None = None, *, ended: bool = False) -> None:
        """Count a failure where it belongs, and show it once. ended: the implementation is called no more."""
        if self.main.binding and not index()[explained.clause].binding and explained.clause not in ALONE:
            explained = replace(explained, clause=self.main.id)  # what a MUST asks for is wrong, whatever else could be said of it
        broken, subject = index()[explained.clause], self.subject
        cell = self._cell(broken.id)
        issue = self.run.known.excuse(subject, met, explained)
        origin = None if ended or issue is not None else self.run.inherited.origin(subject, met, explained, other)
        if issue is not None or (origin is not None and self.run.inherited.accepted):
            self.run.record.excuse(cell, issue.reason if issue is not None else f"inherited from {origin}", inherited=issue is None)
            if issue is None and origin is not None:
                self.run.record.note(f"inherited from {origin}, and accepted: {origin.issue.reason} {origin.issue.url}")
            self.excused[broken.id] = self.excused.get(broken.id, 0) + 1
            return
        self._tell(met, explained, verdict_of(explained.finding), other, origin)

    def _tell(
        self, met: Case, explained: Explained, verdict: Verdict, other: Problem | None = None, origin: Origin | None = None
    ) -> None:
        """Count a failure, and show it where it is the first of its kind."""
        broken, subject = index()[explained.clause], self.subject
        cell = self._cell(broken.id)
        self.run.record.count(cell, verdict)
        if explained.finding.total and explained.finding.kind != "relation":
            share = Share(explained.finding.ratio, subject.required_class(self.dtype))
            self.run.record.measure(cell, {explained.finding.output: share})
        self.run.draft.failed(self.test.__name__, subject, met, explained)
        what = explained.key if origin is None else ("inherited", str(origin))
        if not self.run.first_time((*what, subject.label, subject.device), self.dtype):
            self.again[broken.id] = self.again.get(broken.id, 0) + 1
            return
        self.run.first_time(("told", broken.id, subject.label, subject.device), self.dtype)
        failure = failure_of(self.run, subject, explained, self.test.__name__, other, origin)
        above = not self.run.first_time((*what, subject.adapter.name), "")
        failure.brief = above and origin is None
        self.run.record.fail(failure)
        self.run.explained.append((self.explainer, explained, failure))
        if above and origin is not None:  # what is inherited is shown once; which of them that is, the end of the run says
            self.again[broken.id] = self.again.get(broken.id, 0) + 1
        elif self.run.decides(broken.id):
            self.shown.append(failure)
            self.run.tell(failure)

    def _measure(self) -> None:
        """Keep the worst of the right answers, and the class that was held. A wrong answer counts where it is blamed."""
        strand = (self.dtype, self.subject.label, self.subject.device)
        for id_ in self.ids if self.passed else ():
            self.run.record.measure((id_, *strand), self.subject.measured)
        if self.dtype in self.subject.held:
            self.run.record.hold(strand, self.subject.required_class(self.dtype), self.subject.held[self.dtype])

    def _cell(self, id_: str) -> Cell:
        return id_, self.dtype, self.subject.label, self.subject.device

    def _count(self, verdict: Verdict, n: int, reason: str = "", why: Why | None = None) -> None:
        for id_ in self.ids:
            self.run.record.count(self._cell(id_), verdict, n, reason, why)

    def _end(self) -> None:
        if self.shown:
            raise ClausesBroken(self.shown)
        fail_by = {**self.others, **self.again}
        if fail_by:
            pytest.skip("not judged: " + ", ".join(f"{n} of its problems already fail {id_}" for id_, n in fail_by.items()))
        if self.excused:
            pytest.xfail("known issues: " + ", ".join(f"{n} of its problems by {id_}" for id_, n in self.excused.items()))
        if not self.passed:
            why = Why.NO_CASE if not self.unasked else Why.SOAKED if self.run.soaks else Why.TIME
            reason = self.reason or ("the time was up" if self.unasked else "no case of this tier can show it")
            if not self.refused or why.cut:
                self._count(Verdict.NOT_RUN, 1, reason, why)
            pytest.skip(reason)
