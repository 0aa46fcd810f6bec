"""Whether a failure is one that was explained before, met again."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from attnspec.adapters import Answer
from attnspec.conformance.diagnosis.evidence import ENORMOUS, calmer
from attnspec.conformance.diagnosis.explained import LENGTHS, By, Explained, comparable, same_words
from attnspec.conformance.diagnosis.match import look, screen, shows
from attnspec.conformance.diagnosis.order import kept_by_address
from attnspec.conformance.diagnosis.purse import COMPARING, FIRST, OTHERS, Purse
from attnspec.conformance.judging.coarser import coarser
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import PLAIN, Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.reduce import factor
from attnspec.conformance.problems.shrink import as_case
from attnspec.conformance.subject.subject import Subject
from attnspec.reference import Exact
from attnspec.spec import Problem

OFTEN = 3  # times that a failure is compared with problems of one chapter before what is left of the time is kept for the others
DOUBTS = 3  # times that a failure may be found in place of another before nobody believes what explains it


@dataclass
class Recognizer:
    """Recognizes the failures of one subject in one dtype that were explained before.

    What it says of a dtype depends on no other one, so that it does not matter whether one process asks both, as long as there is
    time: `purse` has a part for each.

    explained: the failures so far, the first first.
    """

    subject: Subject
    purse: Purse = field(default_factory=Purse)
    explained: list[Explained] = field(default_factory=list)
    _accounted: dict[tuple[Any, ...], bool | None] = field(default_factory=dict)
    _compared_in: Counter[tuple[int, str]] = field(default_factory=Counter)  # a failure, by the chapter that asked
    _doubtful: Counter[int] = field(default_factory=Counter)  # of a failure, how often it was found in place of another

    def relation(self, case: Case, finding: Finding, made: tuple[Problem, ...], agree: bool) -> By | None:
        """The failure met before that accounts, or may account, for a relation that does not hold; None: another fault.

        made: the problem that was wrong, or the two whose answers were compared. agree: they have exact answers, so that it can be
        told which of the two is wrong: what is known must account for all that is.
        """
        unclear = None
        for known in self._alike(case, finding):
            accounts = self._accounts_for(known, case, finding, next(iter(made), None))
            if accounts:
                return By(known, True)
            unclear = unclear or (By(known, False) if accounts is None else None)
        # What the test made may have more than the case has; sizes that do not fit have no words of a case, and are to be refused.
        alone = finding.of_numbers or not finding.of_answers
        wrong = made[:1] if alone else self._wrong_ones(made) if agree else ()
        alike = {
            id(known): known
            for problem in wrong
            for known in self._alike(as_case(problem), finding, in_any_form=finding.of_answers)  # a refusal has words to be told by
            if comparable(known.finding, finding)
        }
        for known in alike.values():
            all_of_it = [self._accounts_for(known, case, finding, problem) for problem in wrong]
            if all(all_of_it):
                return By(known, True)
            # Two faults may meet there. What would tell them apart is a reduction, for which no time is left.
            if self.exhausted or (None in all_of_it and self._compared(known, finding)[1] >= 1.0):
                unclear = unclear or By(known, False)
        return unclear

    def _alike(self, case: Case, finding: Finding, *, in_any_form: bool = False) -> Iterator[Explained]:
        """Failures explained before that have nothing special that this case has not: it may be the same fault, met again.

        in_any_form: a mask or a bias may be of another form. Of those that have a name, by which they can be told again; of all
        where no time is left to tell.
        """
        traits = case.traits()
        factors = {factor(trait) for trait in traits}
        for known in self.explained:
            same = known.finding.likeness[1:] == finding.likeness[1:] or not known.finding.of_gradient
            needs = known.needs()
            if known.finding.hint and traits & LENGTHS:  # another choice shows with fewer keys as it does with more
                needs -= LENGTHS
            has = needs <= traits | factors
            if in_any_form:
                has = (known.has_name or self.exhausted) and {factor(need) for need in needs} <= factors
            if known.by_address or (same and has and self._beside(known, case)):
                yield known

    def _accounts_for(
        self, known: Explained, case: Case, finding: Finding, made: Problem | None = None, *, chapter: str | None = None
    ) -> bool | None:
        """Whether a failure accounts for what is wrong with a problem: the case, or what a test `made` of it. None: not known.

        chapter: that of the clause that is asked, where time is to be kept for other chapters.

        The same words of an exception; the same coarse arithmetic; or the mistake that explains the one gives the numbers of the
        other. Where nothing is known of a failure nobody can tell.
        """
        if not comparable(known.finding, finding):
            return False
        if not finding.of_answers:
            return same_words(known.finding, finding)
        key = (id(known), case, made)
        what, used = self._compared(known, finding)
        spared = used >= 1.0 or (chapter is not None and self._spared(known, chapter, finding))
        if (known.clause.startswith("PURITY") and not known.by_address) or (key not in self._accounted and spared):
            return None
        if key not in self._accounted:
            self._accounted[key] = None
            self._compared_in[id(known), chapter or ""] += 1
            with self.purse.timed(what), contextlib.suppress(Exception):  # no verdict is lost to what would only explain it
                other = made is None and self._right_without(known, case)
                same = None if other else self._same_mistake(known, self.subject.problem(case) if made is None else made)
                if same is False and made is None and case.biases in ENORMOUS:  # it may be there, with rounding beside it
                    same = None if self._same_mistake(known, self.subject.problem(calmer(case))) else False
                self._accounted[key] = False if other else same
        accounts = self._accounted[key]
        return None if accounts is False and self._doubtful[id(known)] >= DOUBTS else accounts

    def _same_mistake(self, known: Explained, problem: Problem) -> bool | None:
        if known.by_address:
            return kept_by_address(self.subject, problem) or None
        if known.finding.class_ and known.clause.startswith("ACCURACY"):
            exact = self.subject.solve(problem)
            answer, findings = self._wrong(problem, exact)
            coarse = [coarser(one, answer, exact) for one in findings if one.output == known.finding.output]
            return False if "" in coarse else True if coarse and all(coarse) else None
        if known.diagnosis is None or not known.diagnosis.best:
            return None
        seen = look(self.subject, problem)
        if seen is None or not seen.scope:
            return None
        fits = screen(seen, known.diagnosis.cost)
        return None if fits is None else bool(fits)

    def _right_without(self, known: Explained, case: Case) -> bool:
        """Whether a case that fails is right without the options that a known failure does not need; it fails by another then."""
        if known.finding.hint or known.clause.startswith(("PURITY", "ACCURACY")) or not known.by_case:
            return False
        needs = {factor(trait).removesuffix("≤0") for trait in known.needs()}
        changes = {name: plain for name, plain in PLAIN.items() if getattr(case, name) != plain and name not in needs}
        bare = fit(replace(case, **changes), self.subject.adapter)
        if not changes or bare == case or self.subject.judgement(bare).findings:
            return False
        if known.diagnosis is None or not known.diagnosis.best:
            return True
        seen = look(self.subject, self.subject.problem(bare))  # what would not show there may be made there all the same
        return seen is None or any(shows(name, seen) for name in known.diagnosis.best)

    def _a_mistake_gives(self, case: Case, finding: Finding) -> bool | None:
        """Whether a mistake that explained a failure before gives the numbers of this problem, whatever else the two share.

        None where that is not known. Another choice is no mistake: who follows it may round otherwise, too.
        """
        accounts = [
            self._accounts_for(known, case, finding)
            for known in self.explained
            if finding.of_numbers and known.finding.of_numbers and not known.finding.hint and self._beside(known, case)
            if known.has_name
        ]
        return True if any(accounts) else None if None in accounts else False

    def _doubt(self, known: Explained, met: Case) -> None:
        """A failure that was found again in place of another: what explains it is not all of it, and is asked no more.

        Where nothing explains it, it may be met in more ways than its case shows, and is not reduced again and again.
        """
        known.failed_on.append(met)  # what was said of it may not explain this: it is weighed again at the end
        self._doubtful[id(known)] += 1
        if self._doubtful[id(known)] >= DOUBTS:
            known.spare(met)

    @property
    def exhausted(self) -> bool:
        """Whether the time for explanations is used up, but for what is kept for the first failure of a kind and an output."""
        return self.purse.used(1 - COMPARING - OTHERS - FIRST)

    def _compared(self, known: Explained, finding: Finding) -> tuple[str, float]:
        """What such a comparison is counted as, and the share of the time for these that is used up."""
        return self.purse.comparing(known.finding.output == finding.output)

    def _spared(self, known: Explained, chapter: str, finding: Finding) -> bool:
        """Whether a failing problem is not compared with a failure, since it was often in this chapter, or no time is left.

        Half of the time is kept for what comes late in the text: it finds time, too, beside a fault that fails everywhere.
        """
        return self._compared(known, finding)[1] >= (0.5 if self._compared_in[id(known), chapter] >= OFTEN else 1.0)

    def _beside(self, known: Explained, case: Case) -> bool:
        """Whether a failure may explain another by where it was met: the side of the regions of known issues."""
        return self.subject.same_side(case, known.case)

    def _wrong_ones(self, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """Those that are wrong by themselves."""
        with self.purse.timed("comparing"):
            return tuple(problem for problem in problems if self._wrong(problem, self.subject.solve(problem))[1])

    def _wrong(self, problem: Problem, exact: Exact) -> tuple[Answer, tuple[Finding, ...]]:
        """The answer to a problem, and what is wrong with it in the class that is required."""
        answer = self.subject.run(problem)
        return answer, judge(answer, exact, self.subject.required_class(str(problem.dtype)[6:])).findings
