"""What a conformance test is made of: the clause it belongs to, the cases it is asked on, and what it may say.

A test is a function of (subject, case) that returns when its clause holds and raises :class:`Broken` when it does not.
``@clause`` binds it to the text and turns it into a pytest test of (run, subject, dtype); ``@on_cases`` says on which
cases, ``@agrees`` that it is the comparison with the reference.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pytest

from attnspec.adapters.reading import handlers, interrupted
from attnspec.conformance.diagnosis.explained import By, Explained
from attnspec.conformance.diagnosis.made import smallest
from attnspec.conformance.diagnosis.order import wrong_by_itself
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.known.inherited import Origin
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import PLAIN, Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.reduce import descend, without
from attnspec.conformance.problems.shrink import as_case
from attnspec.conformance.report.failure import failure as failure_of
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import PLAINLY, Subject
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, NotOffered, TooLarge, there_was_memory
from attnspec.conformance.testing.plan import Plan
from attnspec.conformance.verdicts.lines import Share, Why
from attnspec.conformance.verdicts.record import Cell
from attnspec.conformance.verdicts.verdict import Verdict
from attnspec.spec import Problem, index

AROUND = 24  # problems beside those that fail by another clause, for one test


class Asking:
    """One test on one subject in one dtype."""

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
        self.plan: Plan = test.plan  # type: ignore[attr-defined]
        self.passed = self.refused = 0
        self.unasked = False  # the time was up before every problem of the first round was asked
        self.reason = ""
        self.shown: list[str] = []  # texts of failures that this test is the first to show
        self.again: dict[str, int] = {}  # clause → problems that fail by a failure already shown
        self.others: Counter[str] = Counter()  # clause → problems that fail by it, and say nothing of this test's clauses
        self.around: dict[Case, None] = {}  # problems of these clauses without what such a failure needs, to be asked, too
        self.excused: dict[str, int] = {}  # clause → problems that fail by a known issue
        self.key = (test, id(subject), dtype)
        self._cases: deque[Case] | None = None  # those of the array that are still to be asked
        self._seen: set[Case] = set()  # all that were to be asked
        self._case: Case | None = None  # that is being asked
        self._began = time.monotonic()
        self._started = self._ended = False
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Ask the first problems, at least one, until the time of this test is up; :meth:`go` goes on from there."""
        try:
            with self._counted():
                self._go(first=True)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # pytest's skip and fail among them: they are for the test itself
            self._error = error

    def go(self) -> None:
        """Ask, count, and end as pytest wants it: fail, skip with a reason, or return."""
        if self._error is not None:
            raise self._error
        self._began = time.monotonic()
        with self._counted():
            self._go()
            self._end()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.subject.measured.clear()
        try:
            yield
        except KeyboardInterrupt:
            if not self.passed:
                self._count(Verdict.NOT_RUN, 1, "the run was interrupted", Why.INTERRUPTION)
            raise
        except BaseException as error:
            if interrupted(error, handlers()):
                self._cut_short(error)
            raise
        finally:
            self._case = None
            self._measure()
            self.run.record.flush()

    def _cut_short(self, error: BaseException) -> None:
        """A time limit of whoever runs the tests ended this one; raises what says so, where there is more to say.

        TIMEOUT where one call took most of the time, which is to be blamed then; else there are problems that were not reached.
        """
        now = time.monotonic()
        since, problem = self.subject.under_way or (now, None)
        if problem is not None and now - since > (now - self._began) / 2:
            message = f"the call did not return in {now - since:.2g} s, when a time limit ended the test"
            finding, case = Finding("timeout", "call", message), self._case or Case(dtype=self.dtype)
            self._tell(case, Explained(self.main.id, case, finding, problem, None, by_case=False), Verdict.TIMEOUT)
        else:
            reason = f"a time limit ended {self.test.__name__}[{self.dtype}] after {now - self._began:.2g} s"
            self._count(Verdict.NOT_RUN, int(not self.passed), reason, Why.INTERRUPTION)
            self.run.record.interrupt(f"{reason}, before all of its problems were asked")
        if self.shown:
            pytest.fail("\n\n".join([*self.shown, str(error)]), pytrace=False)

    @contextlib.contextmanager
    def _kept(self, case: Case, unreduced: Callable[[], Explained]) -> Iterator[None]:
        """What was found is told, although something ends the test while the failure is explained."""
        try:
            yield
        except BaseException as error:
            if interrupted(error, handlers()):
                self._report(case, unreduced(), ended=True)
            raise

    def _go(self, first: bool = False) -> None:
        if self.excuse:
            pytest.skip(self.excuse)
        missing = [feature for feature in self.plan.offering if not self.subject.offers(feature)]
        if missing:
            self._count(Verdict.UNSUPPORTED, 1, f"{' and '.join(missing)} not offered")
            pytest.skip(f"{' and '.join(missing)} not offered")
        self._tell_of_disturbances(None)  # when the implementation was met
        self._ask_all(first)

    def _ask_all(self, first: bool) -> None:
        """Ask the cases of the array and then the search, until the time is up; called again, go on from there."""
        ask = self._comparison if self.plan.comparison else self._relation
        if self._cases is None:
            self._cases = deque(self._rows())
            self._seen = set(self._cases)
        self.unasked = False
        while self._cases or self._go_around(self._cases):
            if self.run.out_of_time and not (first and not self._started and not self.run.over):
                self.unasked = True
                return
            self._started = True
            if not self._ask(self._cases.popleft(), ask):
                self._cases.clear()
                self._ended = True
        if first or self._ended or self.plan.once:
            return
        self.run.search(
            self.subject,
            self.dtype,
            lambda case: self._ask(case, ask),
            lambda case: self.plan.narrow(case, self.subject),
            self.test.__name__,
            None if self.plan.comparison else self.run.tier.searched // 3,
        )

    def _go_around(self, cases: deque[Case]) -> bool:
        """Whether a problem beside those that fail by another clause is left, which is then the next to be asked.

        A problem that fails by another clause says nothing of this one. The same without one of the things that the other fault
        needs is asked in its place, so that one fault does not hide another.
        """
        while self.around and self.run.case is None and not self._ended:
            case = next(iter(self.around))
            del self.around[case]
            if case not in self._seen:
                self._seen.add(case)
                cases.append(case)
                return True
        return False

    def _rows(self) -> Iterable[Case]:
        """Rows of the array, narrowed to what this test wants: all of them, or the first ones.

        For a relation the most diverse ones, the first without any option if the test allows that.
        """
        if self.plan.once:  # a test that makes its own problems asks nothing of the array
            return [fit(Case(dtype=self.dtype, heads="2/2"), self.subject.adapter)]
        tier, rows = self.run.tier, self.run.rows(self.subject, self.dtype)
        if self.run.case is not None and self.plan.comparison:
            return rows
        fitting = self.plan.cases(rows, self.subject)
        most = 12 * tier.rows if not self.plan.comparison else tier.narrowed if self.plan.like else None
        if self.subject.adapter.restrictions:
            self._count_restricted(most)
        if self.run.budget is not None and self.plan.comparison:  # what another test has asked costs no time
            fitting = dict.fromkeys(sorted(fitting, key=lambda case: not self.subject.remembers(case)))
        if not self.plan.comparison:
            some = list(islice(fitting, most))
            bare = (
                self.plan.narrow(replace(case, **PLAIN), self.subject) for case in some
            )
            return diverse(list(dict.fromkeys((*filter(None, bare), *some))), tier.rows)
        return islice(fitting, most)

    def _count_restricted(self, most: int | None) -> None:
        """Count what restrictions leave out of the rows that would be asked without them; others are asked instead."""
        free = copy.copy(self.subject.adapter)
        names, free.restrictions = sorted(free.restrictions), ()
        rows = [case for case in array(self.run.tier.array, free, self.subject.dtypes) if case.dtype == self.dtype]
        unrestricted = islice(self.plan.cases(rows, replace(self.subject, adapter=free)), most)
        left_out = sum(fit(case, self.subject.adapter) != case for case in unrestricted)
        # A relation is asked on a few of many rows: that it has none is what counts.
        none = not any(True for _ in islice(self.plan.cases(self.run.rows(self.subject, self.dtype), self.subject), 1))
        left_out = left_out if self.plan.comparison else int(bool(left_out) and none)
        self.refused += left_out
        self.reason = self.reason or (f"restricted: {', '.join(names)}" if left_out else "")
        self._count(Verdict.UNSUPPORTED, left_out, self.reason)

    def _ask(self, case: Case, ask: Callable[[Case], bool]) -> bool:
        """Ask about one case; False ends the asking."""
        self._case = case
        self.run.asking = self.subject.asking = f"{self.main.id} --case={case.token()}"
        self.run.known.ask(self.subject, case)
        try:
            if ask(case):
                self.passed += 1
                self._count(Verdict.PASS, 1)
                self.run.draft.passed("" if self.plan.comparison else self.test.__name__, self.subject, case)
        except NotOffered as refusal:
            self.refused += 1
            self.reason = self.reason or str(refusal)
            self._count(Verdict.UNSUPPORTED, 1, self.reason)
        except TooLarge as refusal:
            self.reason = self.reason or str(refusal)
            self._count(Verdict.RESOURCE, 1, self.reason)
        except NotApplicable:
            pass
        self._tell_of_disturbances(case)
        return len(self.shown) < self.run.enough

    # COMPARISON WITH THE REFERENCE

    def _comparison(self, case: Case) -> bool:
        return self._right(case, self.plan.outputs)

    def _right(self, case: Case, outputs: tuple[str, ...]) -> bool:
        """Whether the answer is right; if not, the failure is explained and goes to the clause that it breaks."""
        judgement = self.subject.judgement(case)
        self.subject.compared.add(case)
        if not judgement.of(outputs):
            return True
        if judgement.findings[0].kind == "unsupported":
            raise NotOffered(judgement.findings[0].message)
        # A wrong output makes wrong gradients: the first finding is the fault, the others follow from it.
        finding = judgement.findings[0]
        there_was_memory(finding)
        with self._kept(case, lambda: self.explainer.unexplained(case, finding, ask=False).explained):
            by = self.explainer.explain(case, finding, self.plan.own(self.subject), self.main.chapter)
        for one in by:
            self._report(case, one.explained)
        if self.plan.form and finding.of_numbers:
            return True
        self._fails_by(case, by)
        return False

    def _fails_by(self, case: Case, by: tuple[By, ...]) -> None:
        """A problem that fails by other clauses is no problem of this one's; where they may hide a failure, it is not held."""
        clauses = [one.explained.clause for one in by]
        certain = all(one.certain for one in by)
        for id_ in self.ids:
            if id_ not in clauses:
                self.run.record.fails_by(self._cell(id_), clauses[0], certain)
        if set(clauses).isdisjoint(self.ids):
            self.others[clauses[0]] += 1
            if len(self.around) < AROUND and not self.plan.once:
                own = self.plan.own(self.subject)
                beside = (fit(other, self.subject.adapter) for other in without(case, by[0].explained.needs()))
                self.around |= {other: None for other in beside if other != case and own(other)}

    # RELATIONS

    def _relation(self, case: Case) -> bool:
        if self.plan.outputs and not self.plan.once and not self._right(case, self.plan.outputs):
            return False
        broken = self._breaks(case)
        if broken is None:
            return True
        compared = tuple(problem for problem in (broken.problem, broken.other) if problem is not None)
        known = self.explainer.relation(case, broken.finding, compared, agree=broken.exact is not None)
        if known is not None and self._may_be(known, broken):
            self._report(case, known.explained)
            self._fails_by(case, (known,))
            return False
        if self._told():
            self.run.record.count(self._cell(self.main.id), Verdict.FAIL)
            self.again[self.main.id] = self.again.get(self.main.id, 0) + 1
            return False
        small, made, spent = case, broken.problem, self.explainer.exhausted
        if not self.plan.once and not spent:
            with self.explainer.purse.timed("explaining"):
                small = descend(case, self.subject.adapter, partial(self._still, case, broken))
        if small != case:
            again = self._breaks_again(small)
            small, broken = (case, broken) if again is None else (small, again)  # where it was seen, if it varies
        with self.explainer.purse.timed("explaining"):
            alone = self._wrong_by_itself(broken)
            broken, left = self._made_smaller(broken, alone)
        problem = broken.problem if broken.problem is not None else self.subject.problem(small)
        clause, finding, diagnosis = self.main.id, broken.finding, None
        if broken.exact is not None and finding.kind != "relation" and self.main.binding and alone is not False:
            within = broken.within if broken.margin is None else PLAINLY  # what has bounds of its own is not diagnosed
            like = [left] if left is not None else [] if self.plan.once else [case]
            clause, finding, diagnosis = self.explainer.attribute(clause, problem, finding, broken.exact, like, made, within, left)
        elif finding.kind == "relation" and finding.output != "call":  # what breaks a relation may be wrong by itself
            diagnosis = self.explainer.diagnose(problem, None, finding, [] if self.plan.once else [case], made)
        own = clause == self.main.id
        explained = Explained(
            clause,
            small,
            finding,
            problem,
            broken.exact,
            left is None and not self.plan.once,
            broken.margin,
            diagnosis=diagnosis,
            earlier=broken.earlier if own else (),
            within=broken.within if own else PLAINLY,
            asked_by="" if own else self.main.id,
            reduced=not spent,
        )
        self._report(case, explained, broken.other)
        if not own:
            self._fails_by(case, (By(explained, True),))
        return False

    def _may_be(self, known: By, broken: Broken) -> bool:
        """Whether a failure met before may be what breaks a relation. What the calls before it bring about is none of it.

        One that asks for no right answer stands by itself, for two answers contradict each other: but where the one that is wrong
        is all explained by a mistake that has nothing to do with what the clause speaks of.
        """
        if broken.earlier and not known.certain and self.explainer.exhausted and self._wrong_by_itself(broken) is False:
            return False
        if self.plan.outputs or self.plan.once or broken.finding.kind != "relation":
            return True
        other_chapter = index()[known.explained.clause].chapter != self.main.chapter
        return known.certain and other_chapter and not known.explained.finding.hint

    def _made_smaller(self, broken: Broken, alone: bool | None) -> tuple[Broken, Case | None]:
        """A failing problem that the test made by itself, made smaller, and what is left of it; None where it stays as it is.

        One that is wrong by itself (`alone`) owes nothing to the calls before it, in which a test of PURITY looked for the cause.
        Where nobody can tell and no time is left to explain it, the problem as it is says the clause, unless it is right when it is
        asked once more.
        """
        problem, finding, exact = broken.problem, broken.finding, broken.exact
        value = broken.margin is None and finding.kind != "relation" and self.main.binding
        if problem is None or exact is None or not value or not (broken.earlier or self.plan.once):
            return broken, None
        if alone is False or (broken.earlier and not alone):
            untold = alone is None and self.explainer.exhausted and not self.plan.once
            return broken, as_case(problem) if untold else None
        made = None if self.explainer.exhausted else smallest(self.subject, problem, finding, broken.within)
        if made is None:
            return broken, as_case(problem) if broken.earlier else None
        return Broken(made.finding, made.problem, made.exact, within=broken.within), made.left

    def _wrong_by_itself(self, broken: Broken) -> bool | None:
        """What the test or :func:`wrong_by_itself` says of the output that was wrong after earlier calls; None: not known."""
        if broken.problem is None or not broken.earlier:
            return broken.alone
        outputs = (broken.finding.output,) if broken.finding.of_gradient else ("o",)
        return wrong_by_itself(self.subject, broken.problem, broken.earlier[-1], outputs)

    def _told(self) -> bool:
        """Whether this clause decides nothing and was already seen broken: most kernels break one, and to reduce it costs more."""
        own = ("told", self.main.id, self.subject.label, self.subject.device)
        return not self.run.decides(self.main.id) and self.run.met(own, self.dtype)

    def _breaks(self, case: Case) -> Broken | None:
        try:
            self.test(self.subject, case)
        except Broken as broken:
            return broken
        return None

    def _breaks_again(self, case: Case) -> Broken | None:
        """The same for a case that is not counted: what is refused there, or has no memory, is not seen to fail."""
        try:
            return self._breaks(case)
        except (NotOffered, NotApplicable, TooLarge):
            return None

    def _still(self, met: Case, broken: Broken, case: Case) -> bool:
        fitted = self.plan.narrow(case, self.subject)
        if fitted is None or fitted != case or not self.subject.same_side(met, case):
            return False
        if self.plan.outputs and self.subject.judgement(case).of(self.plan.outputs):
            return False
        again = self._breaks_again(case)
        return again is not None and again.finding.likeness == broken.finding.likeness

    # SAYING SO

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
        if self.main.binding and not index()[explained.clause].binding:
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
        self._tell(met, explained, Verdict.FAIL, other, origin)

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
            self.shown.append(failure.shown)

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
            pytest.fail("\n\n".join(self.shown), pytrace=False)
        fail_by = {**self.others, **self.again}
        if fail_by:
            pytest.skip("not judged: " + ", ".join(f"{n} of its problems fail by {id_}" for id_, n in fail_by.items()))
        if self.excused:
            pytest.xfail("known issues: " + ", ".join(f"{n} of its problems by {id_}" for id_, n in self.excused.items()))
        if not self.passed:
            why = Why.NO_CASE if not self.unasked else Why.SOAKED if self.run.soaks else Why.TIME
            reason = self.reason or ("the time was up" if self.unasked else "no case of this tier can show it")
            if not self.refused or why.cut:
                self._count(Verdict.NOT_RUN, 1, reason, why)
            pytest.skip(reason)


def diverse(cases: list[Case], n: int) -> list[Case]:
    """As many of the cases: the plainest one, then always the one with most traits that none before it had."""
    left = {case: case.traits() for case in cases}
    chosen: list[Case] = []
    seen: set[str] = set()
    while left and len(chosen) < n:
        best = max(left, key=lambda case: len(left[case] - seen)) if chosen else min(left, key=lambda case: len(left[case]))
        seen |= left.pop(best)
        chosen.append(best)
    return chosen


# WHAT TESTS SAY
