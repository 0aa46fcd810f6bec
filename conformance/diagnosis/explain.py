"""A failure explained: reduced to the smallest case that still fails, filed under the clause it breaks, and diagnosed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from attnspec.adapters.watch.spent import spent
from attnspec.adapters.within import PLAINLY, Within
from attnspec.conformance.diagnosis.blame import FORM_CLAUSE, accuracy_clause, blame, choice_clause, rounded_clause
from attnspec.conformance.diagnosis.diagnose import diagnose
from attnspec.conformance.diagnosis.evidence import ENORMOUS, calmer
from attnspec.conformance.diagnosis.explained import By, Explained, comparable, in_empty_row, in_outranked_row
from attnspec.conformance.diagnosis.match import explained_by, placed
from attnspec.conformance.diagnosis.names import Diagnosis, other_choice
from attnspec.conformance.diagnosis.nobodys import READ, reads_nobodys
from attnspec.conformance.diagnosis.order import BY_ADDRESS, KEPT, earlier, kept_by_address
from attnspec.conformance.diagnosis.purse import COMPARING, OTHERS, SIMPLER
from attnspec.conformance.diagnosis.recognize import Recognizer
from attnspec.conformance.judging.coarser import with_class
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.mistakes.ragged import TOO_FAR
from attnspec.conformance.mistakes.vocabulary import OF_SEQUENCES
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.ragged import OF_NOBODY
from attnspec.conformance.problems.fit import avoidable, fit
from attnspec.conformance.problems.reduce import SMALL, descend, small_cases, stripped
from attnspec.conformance.problems.shrink import as_case
from attnspec.reference import Exact, to_float64
from attnspec.spec import COTANGENTS, Problem
from attnspec.spec.words import RETURNED

SIMPLIFYING = 2e7  # products that simpler numbers for one failure may take; not seconds, which would show other numbers elsewhere
BESIDE = frozenset({"causal_ignored_with_mask", "mask_ignored_with_causal"})  # mistakes of a mask and causal together


def anything(case: Case) -> bool:
    """The clause is asked on every case."""
    return True


def diagnosed(diagnosis: Diagnosis | None) -> bool:
    """Whether a mistake, or one of a few, explains a failure."""
    return diagnosis is not None and bool(diagnosis.best)


@dataclass
class Explainer(Recognizer):
    """Explains the failures of one subject in one dtype, each fault once."""

    def explain(self, case: Case, finding: Finding, own: Callable[[Case], bool] = anything, chapter: str = "") -> tuple[By, ...]:
        """The failures that account for a failing problem: one met before, or what it is reduced to.

        own: which problems belong to the clause that is asked. chapter: that of the clause.
        """
        return self.met_before(case, finding, chapter) or self.explain_new(case, finding, own)

    def met_before(self, case: Case, finding: Finding, chapter: str = "") -> tuple[By, ...]:
        """The failure explained before that accounts for a failing problem, or may; empty where none does."""
        unclear, alike = None, list(self._alike(case, finding))
        for known in alike:
            accounts = self._accounts_for(known, case, finding, chapter=chapter)
            if accounts:
                known.failed_on.append(case)
                return (By(known, True),)
            unclear = unclear or (known if accounts is None else None)
        for known in self._alike(case, finding, in_any_form=True) if unclear is None else ():
            accounts = self._accounts_for(known, case, finding, chapter=chapter)
            if accounts:
                known.failed_on.append(case)
                return (By(known, True),)
            if accounts is None and (case.biases in ENORMOUS or self._spared(known, chapter, finding)):
                unclear = unclear or known
        if unclear is not None or len(alike) > 1:  # where two faults meet, neither explains it
            return (By(unclear or alike[0], False),)
        return ()

    def explain_new(
        self, case: Case, finding: Finding, own: Callable[[Case], bool] = anything, begin: Case | None = None
    ) -> tuple[By, ...]:
        """What a failing problem that nothing accounts for is reduced to. begin: a smaller one that is wrong in the same way.

        The problem is reduced among the clause's own first. Where a simpler one, which is none of them, fails as well, it may fail
        by another fault: both are failures, unless what explains the simpler one accounts for the clause's own, too.
        """
        if self._out_of_time(finding):
            return (self.unexplained(case, finding),)
        with self.purse.timed("explaining"):
            smallest = self.reduce(begin or case, finding, own)
            simpler = smallest if own is anything else self.reduce(smallest, finding)
            if simpler == smallest:
                return (self._new(smallest, finding, case),)
            shown = self.found_again(case, finding, anything, smallest)
            basic = self._new(simpler, finding, case) if shown is None else self._new(simpler, shown, smallest)
            known = basic.explained
            if self._right_without(known, case):  # another fault, which meets that one where the problem became small
                return (self._new(self.reduce_apart(case, finding, own, known), finding, case),)
            if self._accounts_for(known, smallest, finding) is not False:
                return (replace(basic, certain=bool(self._accounts_for(known, case, finding))),)
            return (self._new(smallest, finding, case), basic)

    def _new(self, smallest: Case, finding: Finding, met: Case) -> By:
        """A failure that was reduced to a case: explained, or one that was explained before, if it is that."""
        for known in self.explained:
            if replace(known.case, numbers=smallest.numbers) == smallest and known.finding.likeness == finding.likeness:
                self._doubt(known, met)
                return By(known, bool(self._accounts_for(known, met, finding)))
        explained = replace(self._explain(smallest, finding, met), failed_on=[met])
        with self.purse.timed("simplifying"):
            explained = self.simplify(explained)
        for known in self.explained:
            if known.key == explained.key and self._beside(known, smallest) and known.needs() == explained.needs():
                self._doubt(known, met)
                return By(known, False)
        self.explained.append(explained)
        return By(explained, smallest == met or bool(self._accounts_for(explained, met, finding)))

    def unexplained(self, case: Case, finding: Finding, *, ask: bool = True) -> By:
        """Where the time for explanations is used up: the failure that is most like it, or the case with what it needs to fail.

        ask: whether the implementation may still be called; else the case stays as it was met.
        """
        known = [known for known in self.explained if self._beside(known, case) and comparable(known.finding, finding)]
        if known:
            most = max(known, key=lambda one: (one.finding.output == finding.output, len(one.case.traits() & case.traits())))
            return By(most, False)
        left, finding = self._bare(case, finding) if ask else (case, finding)
        problem = self.subject.problem(left)
        exact = self.subject.solve(problem)
        clause = self._blamed(left, finding, exact)
        if ask and self._by_address(finding, problem):
            clause, finding = "PURITY-5", replace(finding, message=BY_ADDRESS)
        explained = Explained(clause, left, finding, problem, exact, failed_on=[case], reduced=False)
        self.explained.append(explained)
        return By(explained, False)

    def _bare(self, case: Case, finding: Finding) -> tuple[Case, Finding]:
        """A case with what it needs to fail alike, and small where that fails at once; and what is found there."""
        found = {case: finding}

        def alike(trial: Case) -> bool:
            again = self.found_again(case, finding, anything, trial)
            if again is not None:
                found[trial] = again
            return again is not None

        left = stripped(case, self.subject.adapter, alike)
        sizes = (fit(replace(left, i=i, j=0 if i == j else j), self.subject.adapter) for i, j in SMALL)
        left = next((small for small in sizes if alike(small)), left)
        return left, found[left]

    def _out_of_time(self, finding: Finding) -> bool:
        """Whether there is no time left to explain a failure of this kind, of this output."""
        like = (finding.output, finding.kind)
        if not self.exhausted or any(
            known.reduced and (known.finding.output, known.finding.kind) == like for known in self.explained
        ):
            return self.exhausted
        return self.purse.used(1 - COMPARING - OTHERS)

    def diagnose(
        self,
        problem: Problem,
        exact: Exact | None,
        finding: Finding,
        met: list[Case],
        made: Problem | None = None,
        *,
        at_last: bool = False,
    ) -> Diagnosis | None:
        """The mistake that explains a failure, on the cases in which it was met, or on what a test made of the first of them.

        at_last: in time that was kept for comparing, too.
        """
        if not finding.of_answers or (self._out_of_time(finding) and not at_last):
            return None
        try:
            with self.purse.timed("explaining"):
                return diagnose(self.subject, problem, exact, met, self._names(), made)
        except Exception as error:  # a verdict is never lost to what would only explain it
            warnings.warn(f"attnspec could not diagnose a failure: {type(error).__name__}: {error}; please report it", stacklevel=2)
            return None

    def diagnose_one_of(
        self, compared: list[tuple[Problem, Problem | None]], finding: Finding, met: list[Case]
    ) -> Diagnosis | None:
        """The mistake that explains why two answers differ: what is wrong with the first problem that is wrong by itself.

        compared: the problems, each with what it was before it was made smaller.
        """
        wrong: list[tuple[Problem, Problem | None]] = []
        if finding.of_answers and not self._out_of_time(finding):
            with contextlib.suppress(Exception):  # no verdict is lost to what would only explain it
                wrong = [(problem, made) for problem, made in compared if self._wrong_ones((problem,))]
        problem, made = (wrong or compared)[0]
        return self.diagnose(problem, None, finding, met, made)

    def _names(self) -> set[str]:
        """The mistakes that were found."""
        return {name for known in self.explained if known.diagnosis is not None for name in known.diagnosis.best}

    def name_at_last(self, explained: Explained) -> Diagnosis | None:
        """The mistake that explains a failure which had no name when it was met, beside those that have got one since."""
        finding = explained.finding
        unread = explained.diagnosis is None or explained.diagnosis.cut
        nameless = finding.of_numbers and not finding.hint and explained.by_case and unread
        if not nameless or not self._names() or self.purse.used():
            return None
        return self.diagnose(explained.problem, explained.exact, finding, explained.failed_on, at_last=True)

    def reduce(self, case: Case, finding: Finding, own: Callable[[Case], bool] = anything) -> Case:
        """The simplest case of the clause's own that still fails in the same way, by greedy descent over its factors.

        And for which no failure accounts that was explained before. The smallest cases that the clause has come first.
        """
        another = self._a_mistake_gives(case, finding) is False

        def alike(trial: Case) -> bool:
            return self.found_again(case, finding, own, trial) is not None

        def apart(trial: Case) -> bool:
            found = self.found_again(case, finding, own, trial)
            return found is not None and not self._a_mistake_gives(trial, found)

        smallest = self._descend(case, own, alike)
        return self._descend(case, own, apart) if another and not apart(smallest) else smallest

    def _descend(self, case: Case, own: Callable[[Case], bool], fails: Callable[[Case], bool]) -> Case:
        adapter, began, seconds = self.subject.adapter, spent(), self.purse.one
        begin = next((small for small in small_cases(case, adapter, own) if fails(small)), case)
        smallest = descend(begin, adapter, fails, seconds=seconds)
        # Where the time was up, it may have traits that it does not need, and what has them not would be taken for another fault.
        return stripped(smallest, adapter, fails) if spent() - began > seconds else smallest

    def reduce_apart(self, case: Case, finding: Finding, own: Callable[[Case], bool], known: Explained) -> Case:
        """The simplest case of the clause's own that still fails in the same way, and not by what is known."""

        def apart(trial: Case) -> bool:
            return self.found_again(case, finding, own, trial) is not None and self._right_without(known, trial)

        return descend(case, self.subject.adapter, apart, seconds=self.purse.one)

    def found_again(self, case: Case, finding: Finding, own: Callable[[Case], bool], trial: Case) -> Finding | None:
        """What a case has found, in a trial that the clause may be asked, on the same side of what is known."""
        if not own(trial) or not self.subject.same_side(case, trial):
            return None
        return next((f for f in self.subject.judgement(trial).findings if f.likeness == finding.likeness), None)

    def _explain(self, case: Case, finding: Finding, seen: Case) -> Explained:
        problem = self.subject.problem(case)
        answer, class_ = self.subject.run(problem), self.subject.required_class(case.dtype)
        for certain in (True, False):  # beside numbers that a bound hardly limits one oracle may see what the other does not
            exact = self.subject.solve(problem, certain=certain)
            found = [f for f in judge(answer, exact, class_).findings if f.likeness == finding.likeness]
            if found:
                break
        if not found:  # not repeatable: keep what was seen the first time, where it was seen
            problem = self.subject.problem(seen)
            finding = replace(finding, message=finding.message or "the answer varies: a second call on this problem did not fail")
            return Explained("PURITY-4", seen, finding, problem, self.subject.solve(problem, certain=True))
        finding = with_class(found[0], answer, exact)
        if finding.output == "o" and not finding.message and isinstance(answer.o, torch.Tensor):
            everything = to_float64(answer.o)
            what = "zero" if not everything.any() else "NaN" if np.isnan(everything).all() else ""
            finding = replace(finding, message=f"the whole output is {what}" if what else "")
        kept = earlier(self.subject, case) if not finding.of_gradient and not finding.ended and finding.kind != "changed" else None
        before, fresh = () if kept is None else (self.subject.problem(kept[0]),), self.subject.adapter.fresh()
        if fresh is not None and not judge(replace(self.subject, adapter=fresh).run(problem), exact, class_).findings:
            finding = replace(finding, message="a new instance gives the right answer: this one remembers earlier calls")
            return Explained("PURITY-5", case, finding, problem, exact, earlier=before)
        if kept is not None:
            return Explained("PURITY-5", case, replace(finding, message=KEPT.format(kept[1])), problem, exact, earlier=before)
        if self._by_address(finding, problem):
            return Explained("PURITY-5", case, replace(finding, message=BY_ADDRESS), problem, exact)
        diagnosis = self.diagnose(problem, exact, finding, [seen])
        if seen != case and not diagnosed(diagnosis):  # where it was met there may be another fault
            alone = self.diagnose(problem, exact, finding, [case])
            diagnosis = alone if other_choice(alone, self.subject.dialect) else diagnosis
        finding = replace(finding, hint=other_choice(diagnosis, self.subject.dialect))
        if finding.class_ and case.biases in ENORMOUS and not self._coarse_in(calmer(case), finding, or_right=False):
            finding = replace(finding, class_="")  # beside enormous biases any small error is coarse arithmetic
        hardly = case.softcap is not None or case.alibi_slopes != "none"
        if finding.class_ and hardly and (diagnosed(diagnosis) or not self._coarse(seen, finding)):
            finding = replace(finding, class_="")  # whatever is wrong with a cap is small where the scores are, and so are slopes
        clause = self._blamed(case, finding, exact)
        if finding.output == "o" and diagnosis is not None and all(name.startswith("scale_") for name in diagnosis.best or ("",)):
            clause = "SCALE-1" if case.scale is None else "SCALE-2"
        if finding.output == "o" and diagnosis is not None and diagnosis.best and BESIDE.issuperset(diagnosis.best):
            clause = "CAUSAL-6"  # in a row that the two leave without a key, too
        if clause == "WINDOW-6" and diagnosis is not None and diagnosis.best and "window_corner" not in diagnosis.best:
            clause = "WINDOW-1"  # one query that sees two keys is the smallest problem also of a right end that is lost
        form, dense, best = self.subject.adapter.dense_form, "", set(diagnosis.best if diagnosis is not None else ())
        if case.carrier == "none" and form and best and OF_SEQUENCES.keys() >= best:  # who has no dense call breaks it in its form
            dense, clause = clause, self._blamed(replace(case, carrier=form), finding, exact)
            clause = OF_NOBODY.get(clause, clause) if any(name.startswith(TOO_FAR) for name in best) else clause
        if finding.of_numbers and not finding.hint and self._reads_nobodys(problem, finding):
            message = f"{finding.message}; {READ}" if finding.message else READ
            too_far = diagnosis is None or not diagnosis.best or diagnosis.best[0].startswith(TOO_FAR)
            clause, finding = OF_NOBODY.get(clause, clause) if too_far else clause, replace(finding, message=message)
        clause = rounded_clause(finding, case.dtype, diagnosis.best if diagnosis is not None else ()) or clause
        if diagnosed(diagnosis) if not clause.startswith("ACCURACY") else not self._coarse(seen, finding):
            finding = replace(finding, class_="")
        return Explained(clause, case, finding, problem, exact, diagnosis=diagnosis, asked_by=dense)

    def _blamed(self, case: Case, finding: Finding, exact: Exact) -> str:
        """The clause that a reduced case breaks."""
        case = avoidable(case, self.subject.adapter, self.subject.dialect)
        found = in_empty_row(finding, exact), in_outranked_row(finding, exact)
        if case.carrier == "none" and case.b > 1 and self.subject.adapter.dense_form:  # its batch items are sequences
            case = replace(case, carrier=self.subject.adapter.dense_form)
        clause = blame(case, finding, self.subject.dialect, self.subject.observed, *found)
        return "PAGED-1" if clause == "PAGED-6" and not self.subject.offers("paged_queries") else clause

    def _by_address(self, finding: Finding, problem: Problem) -> bool:
        """Whether an output is wrong by what an earlier call left under the address of its memory."""
        if not finding.of_numbers or (problem.dropout and problem.training):
            return False
        with contextlib.suppress(Exception):  # no verdict is lost to what would only explain it
            return kept_by_address(self.subject, problem, (finding.output,))
        return False

    def _reads_nobodys(self, problem: Problem, finding: Finding) -> bool:
        """Whether the answer depends on rows that belong to no sequence."""
        with contextlib.suppress(Exception):  # no verdict is lost to what would only explain it
            return reads_nobodys(self.subject, problem, finding.output)
        return False

    def _coarse(self, seen: Case, finding: Finding) -> bool:
        """Whether coarse arithmetic explains what is wrong with the same output elsewhere, too."""
        cases = (seen, replace(seen, values="peaked"), replace(seen, values="large"), replace(seen, b=1, i=40, j=70))
        return all(self._coarse_in(case, finding) for case in cases)

    def _coarse_in(self, case: Case, finding: Finding, *, or_right: bool = True) -> bool:
        """Whether coarse arithmetic explains what is wrong with this output in a case."""
        problem = self.subject.problem(fit(case, self.subject.adapter))
        exact = self.subject.solve(problem)
        answer, findings = self._wrong(problem, exact)
        wrong = [f for f in findings if f.output == finding.output]
        if not wrong:
            return or_right
        # What overflows in a coarser dtype is no number there.
        return wrong[0].kind != "value" or bool(with_class(wrong[0], answer, exact).class_)

    def simplify(self, explained: Explained) -> Explained:
        """The same failure with simpler numbers, as long as no more mistakes explain it than before."""
        finding, case = explained.finding, explained.case
        simple = bool(case.numbers)  # asked for with --case, as a failure has shown it
        if simple or not finding.of_numbers or explained.clause.startswith("PURITY"):
            return explained
        if self.purse.spent["simplifying"] >= SIMPLER * self.purse.budget:
            return explained
        class_, (q, k, v) = self.subject.required_class(case.dtype), (explained.problem.q, explained.problem.k, explained.problem.v)
        trials = SIMPLIFYING // max(1, q.numel() // max(1, q.shape[-1]) * k.shape[-2] * (k.shape[-1] + v.shape[-1]))

        def fails(problem: Problem) -> bool:
            """In the same way, and no less."""
            answer, exact = self.subject.run(problem), self.subject.solve(problem)
            alike = [f for f in judge(answer, exact, class_).findings if (f.likeness, f.kind) == (finding.likeness, finding.kind)]
            coarse = with_class(alike[0], answer, exact).class_ if alike else ""
            return bool(alike) and coarse == finding.class_ and alike[0].ratio >= min(finding.ratio, 4.0)

        until = spent() + self.purse.one
        for known in self.explained:
            same = known.key == explained.key and replace(known.case, numbers="") == case
            trial = replace(case, numbers=known.case.numbers)
            if same and trial != case and fails(self.subject.problem(trial)):
                return self._simplified(explained, trial)
        before, made = explained_by(self.subject, explained.problem), {}  # type: frozenset[str], dict[str, str]
        for name in ("do", "dlse", "bias", "v", "k", "q"):
            tensor = getattr(explained.problem, name)
            if tensor is None or not tensor.numel() or (name in COTANGENTS and finding.output in RETURNED):
                continue
            places = [f"at{n}" for n in range(min(tensor.numel(), 4))] if tensor.numel() > 1 else []
            for how in ("zeros", "ones", *(["hot"] if name == "v" and tensor.shape[-1] > 1 else []), *places, "rounded"):
                if trials < 1 or spent() > until:
                    break
                trial = replace(case, numbers="+".join(f"{n}:{x}" for n, x in {**made, name: how}.items()))
                problem = self.subject.problem(trial)
                if torch.equal(getattr(problem, name), getattr(self.subject.problem(case), name)):
                    continue
                trials -= 1
                if not fails(problem) or not explained_by(self.subject, problem) <= before:
                    continue
                made[name], case = how, trial
                break
        return self._simplified(explained, case) if made else explained

    def _simplified(self, explained: Explained, case: Case) -> Explained:
        """The failure as it is seen on a simpler case; as it was where it is not seen again."""
        problem, finding = self.subject.problem(case), explained.finding
        exact = self.subject.solve(problem, certain=True)
        answer, findings = self._wrong(problem, exact)
        found = [f for f in findings if f.likeness == finding.likeness]
        if not found:  # not repeatable
            return explained
        kept = with_class(found[0], answer, exact) if finding.class_ else found[0]
        kept = replace(kept, hint=finding.hint, message=finding.message)
        diagnosis = placed(explained.diagnosis, self.subject, problem, exact)  # the place is that of the problem that is shown
        return replace(explained, case=case, finding=kept, problem=problem, exact=exact, diagnosis=diagnosis)

    def attribute(
        self,
        clause: str,
        problem: Problem,
        finding: Finding,
        exact: Exact,
        met: list[Case],
        made: Problem | None = None,
        within: Within = PLAINLY,
        left: Case | None = None,
    ) -> tuple[str, Finding, Diagnosis | None]:
        """The clause that a relation's failure breaks: another choice or coarser arithmetic may explain it, else `clause`.

        left: what is left of a problem that a test made by itself, after it was made smaller; that says the clause then.
        """
        written = finding.kind == "changed" and problem.carrier is not None
        if finding.kind in FORM_CLAUSE and finding.output in ("o", "call") and not written:
            return FORM_CLAUSE[finding.kind], finding, None
        if clause == "DROPOUT-1" and finding.of_gradient:  # what the output shows was dropped, backward must drop
            clause = "DROPOUT-2"
        if finding.ended and problem.causal and not (problem.mask is None and problem.bias is None):
            return "CAUSAL-6", finding, None
        answer = self.subject.run(problem)
        if not judge(answer, exact, self.subject.required_class(str(problem.dtype)[6:])).findings:
            if within == PLAINLY:
                return clause, finding, None
            with self.subject.surrounded(within):  # right when asked like this: the surroundings of the call matter
                return clause, finding, self.diagnose(problem, exact, finding, [replace(case, wrt="none") for case in met], made)
        if within == PLAINLY and clause != "PURITY-5" and self._by_address(finding, problem):
            return "PURITY-5", replace(finding, message=BY_ADDRESS), None
        if within == PLAINLY and finding.output == "o" and finding.of_numbers and not self.exhausted:
            kept = None
            with self.purse.timed("explaining"), contextlib.suppress(Exception):  # no verdict is lost to what would only explain it
                kept = earlier(self.subject, left or as_case(problem))
            if kept is not None:
                return "PURITY-5", replace(finding, message=KEPT.format(kept[1])), None
        diagnosis = self.diagnose(problem, exact, finding, met, made)
        finding = with_class(replace(finding, hint=other_choice(diagnosis, self.subject.dialect)), answer, exact)
        if finding.hint:
            return choice_clause(finding, self.subject.dialect, self.subject.observed), finding, diagnosis
        hardly = problem.softcap is not None or problem.alibi_slopes is not None
        if hardly and (left is not None or diagnosed(diagnosis)):
            finding = replace(finding, class_="")  # small where the scores are; were it arithmetic, neither would be left
        dtype = str(problem.dtype)[6:]
        seen = any(known.clause.startswith("ACCURACY") for known in self.explained)
        if left is not None:
            clause = self._blamed(left, finding, exact)
        elif finding.of_gradient and (clause == "EMPTY-1" or exact.empty.all()):
            clause = "EMPTY-3"  # whatever the test is about, only rows without a key can be wrong
        rounded = rounded_clause(finding, dtype, diagnosis.best if diagnosis is not None else ())
        return rounded or accuracy_clause(finding, dtype, seen) or clause, finding, diagnosis
