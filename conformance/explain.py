"""A failure explained: reduced to the smallest case that still fails, filed under the clause it breaks, and diagnosed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from attnspec.adapters import Adapter, Answer
from attnspec.conformance.blame import FORM_CLAUSE, accuracy_clause, blame, choice_clause, rounded_clause
from attnspec.conformance.case import Case, fit, simpler
from attnspec.conformance.diagnosis import Diagnosis, diagnose, explained_by, other_choice, placed
from attnspec.conformance.judge import Finding, judge, with_class
from attnspec.conformance.order import earlier
from attnspec.conformance.subject import PLAINLY, Subject, Within
from attnspec.reference import Exact, to_float64
from attnspec.spec import Problem

SIMPLIFYING = 2e7  # products that simpler numbers for one failure may take; not seconds, which would show other numbers elsewhere
REDUCTIONS = 120  # answers that the reduction of one failure may ask for
REDUCED_FAILURES = 8  # failures in one dtype that are reduced, each to its own entry


@dataclass(frozen=True)
class Explained:
    """A failure, reduced: the clause it breaks, the smallest case that still fails, and what is wrong there."""

    clause: str
    case: Case
    finding: Finding
    problem: Problem
    exact: Exact | None  # None where the problem is none that the reference would take
    by_case: bool = True  # False where the test made the problem itself
    margin: np.ndarray | None = None  # where two calls are compared: by how much they may differ, inf where they may at all
    met: list[Case] = field(default_factory=list)  # the cases that failed so, the first first
    diagnosis: Diagnosis | None = None
    earlier: tuple[Problem, ...] = ()  # the calls after which it is seen, and not before
    within: Within = PLAINLY  # what surrounds the call, and must not matter
    asked_by: str = ""  # the clause whose test asks for it, where a test of another one made the problem

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two failures the same fault, whatever the dtype."""
        if self.finding.hint:
            return self.clause, self.finding.hint
        return self.clause, *self.finding.likeness

    def needs(self) -> frozenset[str]:
        """What another case must have to show the same fault. Lengths that differ matter where a choice explains it."""
        traits = self.case.traits()
        return traits if self.finding.hint else traits - {"i<j", "i>j"}


@dataclass
class Explainer:
    """Explains the failures of one subject, each fault once. explained: what was explained so far, the first first."""

    subject: Subject
    explained: list[Explained] = field(default_factory=list)

    def explain(self, case: Case, finding: Finding) -> Explained:
        """Reduce a failing case, and name the clause that the smallest failing one breaks."""
        known = self.known(case, finding)
        if known is not None:
            known.met.append(case)
            return known
        same_dtype = [known for known in self.explained if self._beside(known, case)]
        if len(same_dtype) >= REDUCED_FAILURES:  # it is red; what more there is shows when these are mended
            return max(
                same_dtype, key=lambda known: (known.finding.output == finding.output, len(known.case.traits() & case.traits()))
            )
        explained = replace(self._explain(self.reduce(case, finding), finding, case), met=[case])
        explained = self.simplify(explained)
        self.explained.append(explained)
        return explained

    def _beside(self, known: Explained, case: Case) -> bool:
        """Whether a failure may explain another by where it was met: the dtype, and the side of the regions of known issues."""
        return known.case.dtype == case.dtype and self.subject.same_side(case, known.case)

    def _wrong(self, problem: Problem, exact: Exact) -> tuple[Answer, tuple[Finding, ...]]:
        """The answer to a problem, and what is wrong with it in the class that is required."""
        answer = self.subject.run(problem)
        return answer, judge(answer, exact, self.subject.required_class(str(problem.dtype)[6:])).findings

    def diagnose(
        self, problem: Problem, exact: Exact | None, finding: Finding, met: list[Case], made: Problem | None = None
    ) -> Diagnosis | None:
        """The mistake that explains a failure, on the cases in which it was met, or on what a test made of the first of them."""
        if finding.kind not in ("value", "zero", "nonfinite", "relation"):
            return None
        try:
            before = {name for known in self.explained if known.diagnosis is not None for name in known.diagnosis.best}
            return diagnose(self.subject, problem, exact, met, before, made)
        except Exception as error:  # a verdict is never lost to what would only explain it
            warnings.warn(f"attnspec could not diagnose a failure: {type(error).__name__}: {error}; please report it", stacklevel=2)
            return None

    def known(self, case: Case, finding: Finding) -> Explained | None:
        """A failure explained before that has nothing special that this case has not: the same fault, met again."""
        for known in self.explained:
            same = known.finding.likeness[1:] == finding.likeness[1:] or not known.finding.of_gradient
            if same and self._beside(known, case) and known.needs() <= case.traits():
                return known
        return None

    def reduce(self, case: Case, finding: Finding) -> Case:
        """The simplest case that still fails in the same way, by greedy descent over its factors.

        Where a failure in another dtype was reduced to what this one contains, that first.
        """

        def alike(trial: Case) -> bool:
            if not self.subject.same_side(case, trial):
                return False
            return any(f.likeness == finding.likeness for f in self.subject.judgement(trial).findings)

        for known in self.explained:
            if known.by_case and known.case.dtype != case.dtype and known.needs() <= case.traits():
                trial = replace(known.case, dtype=case.dtype, numbers="")
                if alike(trial):
                    return trial
        return descend(case, self.subject.adapter, alike)

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
            finding = replace(finding, message=finding.message or "seen once, and not again on the same problem: the answer varies")
            return Explained("PURITY-4", seen, finding, problem, self.subject.solve(problem, certain=True))
        finding = with_class(found[0], answer, exact)
        if finding.output == "o" and not finding.message and isinstance(answer.o, torch.Tensor):
            everything = to_float64(answer.o)
            what = "zero" if not everything.any() else "NaN" if np.isnan(everything).all() else ""
            finding = replace(finding, message=f"the whole output is {what}" if what else "")
        kept = earlier(self.subject, case) if not finding.of_gradient and finding.kind not in ("raised", "changed") else None
        before, fresh = () if kept is None else (self.subject.problem(kept[0]),), self.subject.adapter.fresh()
        if fresh is not None and not judge(replace(self.subject, adapter=fresh).run(problem), exact, class_).findings:
            finding = replace(finding, message="a fresh instance answers this rightly: it remembers earlier calls")
            return Explained("PURITY-5", case, finding, problem, exact, earlier=before)
        if kept is not None:
            words = f"right where its shapes are new, wrong after a call in them {kept[1]}: something of that call is kept"
            return Explained("PURITY-5", case, replace(finding, message=words), problem, exact, earlier=before)
        diagnosis = self.diagnose(problem, exact, finding, [seen])
        finding = replace(finding, hint=other_choice(diagnosis, self.subject.dialect))
        clause = blame(case, finding, self.subject.dialect, self.subject.observed, bool(exact.empty.any()))
        if finding.output == "o" and diagnosis is not None and all(name.startswith("scale_") for name in diagnosis.best or ("",)):
            clause = "SCALE-1" if case.scale is None else "SCALE-2"
        clause = rounded_clause(finding, case.dtype, diagnosis.best if diagnosis is not None else ()) or clause
        told = diagnosis is not None and bool(diagnosis.best)
        if told if not clause.startswith("ACCURACY") else not self._coarse(seen, finding):
            finding = replace(finding, class_="")
        return Explained(clause, case, finding, problem, exact, diagnosis=diagnosis)

    def _coarse(self, seen: Case, finding: Finding) -> bool:
        """Whether coarse arithmetic explains what is wrong with the same output elsewhere, too."""
        for case in (seen, replace(seen, values="peaked"), replace(seen, values="large"), replace(seen, b=1, i=40, j=70)):
            problem = self.subject.problem(fit(case, self.subject.adapter))
            exact = self.subject.solve(problem)
            answer, findings = self._wrong(problem, exact)
            wrong = [f for f in findings if f.output == finding.output]
            # What overflows in a coarser dtype is no number there.
            if wrong and wrong[0].kind == "value" and not with_class(wrong[0], answer, exact).class_:
                return False
        return True

    def simplify(self, explained: Explained) -> Explained:
        """The same failure with simpler numbers, as long as no more mistakes explain it than before."""
        finding, case = explained.finding, explained.case
        simple = bool(case.numbers)  # asked for with --case, as a failure has shown it
        if simple or finding.kind not in ("value", "zero", "nonfinite") or explained.clause.startswith("PURITY"):
            return explained
        class_, (q, k, v) = self.subject.required_class(case.dtype), (explained.problem.q, explained.problem.k, explained.problem.v)
        trials = SIMPLIFYING // max(1, q.numel() // max(1, q.shape[-1]) * k.shape[-2] * (k.shape[-1] + v.shape[-1]))

        def fails(problem: Problem) -> bool:
            """In the same way, and no less."""
            answer, exact = self.subject.run(problem), self.subject.solve(problem)
            alike = [f for f in judge(answer, exact, class_).findings if (f.likeness, f.kind) == (finding.likeness, finding.kind)]
            coarse = with_class(alike[0], answer, exact).class_ if alike else ""
            return bool(alike) and coarse == finding.class_ and alike[0].ratio >= min(finding.ratio, 4.0)

        for known in self.explained:
            same = known.key == explained.key and replace(known.case, dtype=case.dtype, numbers="") == case
            trial = replace(case, numbers=known.case.numbers)  # in another dtype
            if same and trial != case and fails(self.subject.problem(trial)):
                return self._simplified(explained, trial)
        before, made = explained_by(self.subject, explained.problem), {}  # type: frozenset[str], dict[str, str]
        for name in ("do", "bias", "v", "k", "q"):
            tensor = getattr(explained.problem, name)
            if tensor is None or not tensor.numel() or (name == "do" and finding.output == "o"):
                continue
            places = [f"at{n}" for n in range(min(tensor.numel(), 4))] if tensor.numel() > 1 else []
            for how in ("zeros", "ones", *(["hot"] if name == "v" and tensor.shape[-1] > 1 else []), *places, "rounded"):
                trial = replace(case, numbers="+".join(f"{n}:{x}" for n, x in {**made, name: how}.items()))
                problem = self.subject.problem(trial)
                if trials < 1 or torch.equal(getattr(problem, name), getattr(self.subject.problem(case), name)):
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
        if finding.kind in FORM_CLAUSE and finding.output in ("o", "call"):
            return FORM_CLAUSE[finding.kind], finding, None
        if clause == "DROPOUT-1" and finding.of_gradient:  # what the output shows was dropped, backward must drop
            clause = "DROPOUT-2"
        if finding.kind == "raised" and problem.causal and not (problem.mask is None and problem.bias is None):
            return "CAUSAL-6", finding, None
        answer = self.subject.run(problem)
        if not judge(answer, exact, self.subject.required_class(str(problem.dtype)[6:])).findings:
            if within is PLAINLY:
                return clause, finding, None
            with within.enter():  # right when asked like this: the surroundings of the call matter
                return clause, finding, self.diagnose(problem, exact, finding, [replace(case, wrt="none") for case in met], made)
        diagnosis = self.diagnose(problem, exact, finding, met, made)
        finding = with_class(replace(finding, hint=other_choice(diagnosis, self.subject.dialect)), answer, exact)
        if finding.hint:
            return choice_clause(finding, self.subject.dialect, self.subject.observed), finding, diagnosis
        dtype = str(problem.dtype)[6:]
        seen = any(known.clause.startswith("ACCURACY") and known.case.dtype == dtype for known in self.explained)
        if left is not None:
            clause = blame(left, finding, self.subject.dialect, self.subject.observed, bool(exact.empty.any()))
        rounded = rounded_clause(finding, dtype, diagnosis.best if diagnosis is not None else ())
        return rounded or accuracy_clause(finding, dtype, seen) or clause, finding, diagnosis


def descend(case: Case, adapter: Adapter, fails: Callable[[Case], bool]) -> Case:
    """Greedy descent: take the first simpler case that still fails, until none does or REDUCTIONS were asked."""
    asked, tried = 0, {case}
    while True:
        for trial in (fit(simple, adapter) for simple in simpler(case)):
            if trial in tried:
                continue
            tried.add(trial)
            asked += 1
            if asked > REDUCTIONS:
                return case
            if fails(trial):
                case = trial
                break
        else:
            return case
