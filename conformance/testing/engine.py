"""What a conformance test is made of: the clause it belongs to, the cases it is asked on, and what it may say.

A test is a function of (subject, case) that returns when its clause holds and raises :class:`Broken` when it does not.
``@clause`` binds it to the text and turns it into a pytest test of (run, subject, dtype); ``@on_cases`` says on which
cases, ``@agrees`` that it is the comparison with the reference.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from attnspec.adapters.reading import handlers, interrupted, words
from attnspec.adapters.within import PLAINLY
from attnspec.conformance.diagnosis.blame import ALONE
from attnspec.conformance.diagnosis.explained import By, Explained
from attnspec.conformance.diagnosis.made import smallest
from attnspec.conformance.diagnosis.order import wrong_by_itself
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.drawn import Asked, Fails, Stop
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.reduce import descend, without
from attnspec.conformance.problems.shrink import as_case
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import DeviceGone, Subject
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, NotOffered, TooLarge, there_was_memory
from attnspec.conformance.testing.plan import Plan
from attnspec.conformance.testing.rows import restricted, rows
from attnspec.conformance.testing.telling import ClausesBroken, Telling, verdict_of
from attnspec.conformance.verdicts.lines import Why
from attnspec.conformance.verdicts.verdict import Verdict
from attnspec.spec import index
from attnspec.spec.words import RETURNED

AROUND = 24  # problems beside those that fail by another clause, for one test
ENDINGS = 3  # problems without an answer, for its process ended or its time was up, after which a test ends


class Asking(Telling):
    """One test on one subject in one dtype."""

    def __init__(self, run: Run, subject: Subject, dtype: str, ids: tuple[str, ...], test: Callable[..., Any]) -> None:
        super().__init__(run, subject, dtype, ids, test)
        self.plan: Plan = test.plan  # type: ignore[attr-defined]
        self.around: dict[Case, None] = {}  # problems of these clauses without what such a failure needs, to be asked, too
        self.key = (test, id(subject), dtype)
        self._cases: deque[Case] | None = None  # those of the array that are still to be asked
        self._seen: set[Case] = set()  # all that were to be asked
        self._case: Case | None = None  # that is being asked
        self._drawn = False  # it was drawn by the search
        self._last_right = True  # whether the last one was right, or not judged
        self._found: Fails | None = None  # what Hypothesis is shrinking
        self._began = time.monotonic()
        self._started = self._ended = False
        self._error: BaseException | None = None
        self._endings = 0  # problems on which the process of the implementation ended

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
            message = f"the call had not returned after {now - since:.2g} s, when a time limit ended the test"
            finding, case = Finding("timeout", "call", message), self._case or Case(dtype=self.dtype)
            self._tell(case, Explained(self.main.id, case, finding, problem, None, by_case=False), Verdict.TIMEOUT)
        else:
            reason = f"a time limit ended {self.test.__name__}[{self.dtype}] after {now - self._began:.2g} s"
            self._count(Verdict.NOT_RUN, int(not self.passed), reason, Why.INTERRUPTION)
            self.run.record.interrupt(f"{reason}, before all of its problems were tested")
        if self.shown:
            raise ClausesBroken(self.shown, str(error))

    @contextlib.contextmanager
    def _kept(self, case: Case, finding: Finding) -> Iterator[None]:
        """What was found is told, although something ends the test while the failure is explained."""
        try:
            yield
        except BaseException as error:
            if interrupted(error, handlers()):
                try:
                    self._cut(case, finding)
                except Exception as own:  # it must not stand in the place of what ends the run
                    self.run.record.interrupt(f"what {self.main.id} found last could not be told: {words(own)}")
            raise

    def _cut(self, case: Case, finding: Finding) -> None:
        """Tell what was found as it was found: the implementation is called no more."""
        self._report(case, self.explainer.unexplained(case, finding, ask=False).explained, ended=True)

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
            self._cases = deque(rows(self.run, self.subject, self.dtype, self.plan))
            self._seen = set(self._cases)
            self._count_restricted()
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
        self._search(ask)

    def _search(self, ask: Callable[[Case], bool]) -> None:
        """Ask what Hypothesis draws; a failure that is new is told once Hypothesis has shrunk it."""
        examples = None if self.plan.comparison else self.run.tier.searched // 3
        self._drawn = True
        try:
            for found in self.run.search(
                self.subject,
                self.dtype,
                lambda case: self._outcome_of(case, ask),
                lambda case: self.plan.narrow(case, self.subject),
                self.test.__name__,
                examples,
            ):
                self._drawn, self._found = False, None
                self._count_outcome(found.met, lambda _, found=found: found.tell(found.smallest))  # type: ignore[misc]
                if len(self.shown) >= self.run.enough:
                    return
                self._drawn = True
        except BaseException as error:
            if self._found is not None and self._found.cut is not None and interrupted(error, handlers()):
                self._found.cut()
            raise
        finally:
            self._drawn = False

    def _outcome_of(self, case: Case, ask: Callable[[Case], bool]) -> Asked:
        """What came of a drawn case. Raises Stop where enough failures are shown, and Fails where one is new."""
        if not self._ask(case, ask):
            raise Stop
        compared = self.plan.comparison and self.subject.remembers(case)
        worst = self.subject.judgement(case).worst if compared else {}
        shares = [worst[output] for output in self.plan.outputs if output in worst]
        return Asked(self._last_right, max(shares, default=None))

    def _shrunk(self, found: Fails) -> bool:
        """Tell a failure that is new: that of a row at once, that of a drawn case when Hypothesis has shrunk it."""
        if self._drawn and not self.explainer.exhausted:
            self._found = found
            raise found
        return found.tell(found.met)

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

    def _ask(self, case: Case, ask: Callable[[Case], bool]) -> bool:
        """Ask about one case; False ends the asking."""
        self._case = case
        self.run.asking = self.subject.asking = f"{self.main.id} --case={case.token()}"
        self.run.known.ask(self.subject, case)
        self._count_outcome(case, ask)
        if self._endings >= ENDINGS:
            self._count_unasked()
            return False
        return len(self.shown) < self.run.enough

    def _count_unasked(self) -> None:
        """The process ended too often: what is left is not asked, and counted."""
        left = len(self._cases or ())
        if left:
            reason = f"{ENDINGS} problems ended the process or had no answer in time; {left} were not asked after them"
            self._count(Verdict.NOT_RUN, left, reason, Why.ENDINGS)

    def _count_outcome(self, case: Case, ask: Callable[[Case], bool]) -> None:
        self._last_right = True
        try:
            self._last_right = ask(case)
            if self._last_right:
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
        except NotApplicable as nothing:
            self.reason = self.reason or str(nothing)
        except DeviceGone as gone:
            self.run.gone = str(gone)
            self._cut(case, Finding("crash", "call", f"crashed: {gone}"))
            raise
        self._tell_of_disturbances(case)

    def _count_restricted(self) -> None:
        """Count what restrictions leave out of the rows that would be asked without them; others are asked instead."""
        if not self.subject.adapter.restrictions or self.plan.once or (self.run.case is not None and self.plan.comparison):
            return
        left_out = restricted(self.run, self.subject, self.dtype, self.plan)
        self.refused += left_out
        self.reason = self.reason or (f"restricted: {', '.join(sorted(self.subject.adapter.restrictions))}" if left_out else "")
        self._count(Verdict.UNSUPPORTED, left_out, self.reason)

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
        self._endings += finding.kind in ("crash", "timeout")
        with self._kept(case, finding):
            by = self.explainer.met_before(case, finding, self.main.chapter)
        return self._by(case, finding, by) if by else self._new(case, finding)

    def _new(self, case: Case, finding: Finding) -> bool:
        """The same of a failure that nothing explained before."""
        own = self.plan.own(self.subject)

        def alike(trial: Case) -> bool:
            with self.explainer.purse.timed("explaining"):
                return self.explainer.found_again(case, finding, own, trial) is not None

        def tell(smallest: Case) -> bool:
            with self._kept(case, finding):
                by = self.explainer.explain_new(case, finding, own, smallest)
            return self._by(case, finding, by)

        return self._shrunk(Fails(case, alike, tell, self.explainer.purse.one, lambda: self._cut(case, finding)))

    def _by(self, case: Case, finding: Finding, by: tuple[By, ...]) -> bool:
        """Report the failures that account for a wrong answer; True where they say nothing of the form that is asked for."""
        for one in by:
            self._report(case, one.explained)
        if self.plan.form and finding.of_numbers:
            return True
        self._fails_by(case, by)
        return False

    def _fails_by(self, case: Case, by: tuple[By, ...]) -> None:
        """A problem that fails by other clauses is no problem of this one's; where they may hide a failure, it is not held."""
        clauses = [one.explained.clause for one in by]
        if ALONE.issuperset(clauses):
            return
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
        self._endings += broken.finding.kind in ("crash", "timeout")
        compared = tuple(problem for problem in (broken.problem, broken.other) if problem is not None)
        known = self.explainer.relation(case, broken.finding, compared, agree=broken.exact is not None)
        if known is not None and self._may_be(known, broken):
            self._report(case, known.explained)
            self._fails_by(case, (known,))
            return False
        if self._seen_broken():
            self.run.record.count(self._cell(self.main.id), verdict_of(broken.finding))
            self.again[self.main.id] = self.again.get(self.main.id, 0) + 1
            return False

        def alike(trial: Case) -> bool:
            with self.explainer.purse.timed("explaining"):
                return self._still(case, broken, trial)

        return self._shrunk(Fails(case, alike, partial(self._tell_broken, case, broken), self.explainer.purse.one))

    def _tell_broken(self, case: Case, broken: Broken, small: Case) -> bool:
        """Explain a relation that does not hold, from a case that shows it in the same way. Returns False."""
        first, spent = broken, self.explainer.exhausted
        if not self.plan.once and not spent:
            with self.explainer.purse.timed("explaining"):
                small = descend(small, self.subject.adapter, partial(self._still, case, broken))
        if small != case:
            again = self._breaks_again(small)
            small, broken = (case, broken) if again is None else (small, again)  # where it was seen, if it varies
        with self.explainer.purse.timed("explaining"):
            alone = self._wrong_by_itself(broken)
            broken, left = self._made_smaller(broken, alone)
        problem = broken.problem if broken.problem is not None else self.subject.problem(small)
        clause, finding, diagnosis = self.main.id, broken.finding, None
        shared = bool(problem.carrier is not None and getattr(problem.carrier, "shared", 0))  # for which a case has no words
        if broken.exact is not None and finding.kind != "relation" and self.main.binding and alone is not False:
            within = broken.within if broken.margin is None else PLAINLY  # what has bounds of its own is not diagnosed
            like = [left] if left is not None else [] if self.plan.once else [case]
            clause, finding, diagnosis = self.explainer.attribute(
                clause, problem, finding, broken.exact, like, first.problem, within, left
            )
        elif finding.output != "call" and (finding.kind == "relation" or shared):  # what breaks a relation may be wrong by itself
            compared = [(problem, first.problem), *([] if broken.other is None else [(broken.other, first.other)])]
            diagnosis = self.explainer.diagnose_one_of(compared, finding, [] if self.plan.once else [case])
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
        outputs = (broken.finding.output,) if broken.finding.of_gradient else RETURNED
        return wrong_by_itself(self.subject, broken.problem, broken.earlier[-1], outputs)

    def _seen_broken(self) -> bool:
        """Whether this clause decides nothing and was already seen broken: most kernels break one, and to reduce it costs more."""
        own = ("told", self.main.id, self.subject.label, self.subject.device)
        return not self.run.decides(self.main.id) and self.run.has_met(own, self.dtype)

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
