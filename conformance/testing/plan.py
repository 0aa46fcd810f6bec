"""Which problems a test asks: the decorators under which a test stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from attnspec.conformance.diagnosis.explain import anything
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.extension import EXTENSIONS
from attnspec.conformance.run.tier import Tier
from attnspec.conformance.subject.subject import Subject
from attnspec.spec.words import OUTPUTS, RAGGED

Test = Callable[..., Any]  # of a subject, and of a case or nothing else
RELATION_COST = 1 << 17


@dataclass(frozen=True)
class Plan:
    """On which cases a test is asked.

    offering: features that must be promised. like: levels that every case gets. where: which cases can show the clause.
    outputs: those compared with the reference where the test is a comparison; for a relation, those that must be right
    before it is asked. dangerous: it asks what some kernels do not survive, and comes last. each_dtype: what it asks is another
    thing in each dtype.
    """

    offering: tuple[str, ...] = ()
    like: tuple[tuple[str, Any], ...] = ()
    where: Callable[[Case], bool] = anything
    outputs: tuple[str, ...] = ()
    comparison: bool = False
    form: bool = False  # the clause speaks of the form of the answer, and not of its numbers
    once: bool = False
    dangerous: bool = False
    each_dtype: bool = False

    def in_one_dtype(self, tier: Tier) -> bool:
        """Whether a tier asks it in one dtype: a small one does what an extension asks beside its arrays."""
        beside = not self.comparison and any(one.feature in self.offering for one in EXTENSIONS)
        return tier.in_turn and beside and not self.each_dtype

    def narrow(self, case: Case, subject: Subject) -> Case | None:
        """The case with the levels that this test wants, or None where it can't show the clause.

        What changes a dense call does not know lengths: a relation is asked of calls of many sequences only where it is about them.
        """
        case = subject.fitted(case, self.like)
        kept = all(getattr(case, name) == value for name, value in self.like)
        if not kept or not self.where(case) or (not self.comparison and case.cost > RELATION_COST):
            return None
        if case.carrier != "none" and not self.comparison and not set(RAGGED) & set(self.offering):
            return None
        return case

    def cases(self, rows: Iterable[Case], subject: Subject) -> dict[Case, None]:
        """The distinct cases that it makes of rows of an array; none where it makes its own problems or is not offered."""
        if self.once or not subject.offers(*self.offering):
            return {}
        return dict.fromkeys(case for row in rows if (case := self.narrow(row, subject)) is not None)

    def own(self, subject: Subject) -> Callable[[Case], bool]:
        """Whether a case is one on which this test is asked."""
        if self.once or (not self.like and self.where is anything):
            return anything
        return lambda case: self.narrow(case, subject) == case


def agrees(
    *outputs: str,
    offering: tuple[str, ...] = (),
    where: Callable[[Case], bool] = anything,
    form: bool = False,
    **like: Any,
) -> Callable[[Test], Test]:
    """The test compares these outputs with the reference, on every fitting row of the array and on searched cases.

    form: the clause speaks of the form of the answer alone; it holds where that is right, whatever the numbers are.
    """
    return _plan(Plan(offering, tuple(like.items()), where, outputs, comparison=True, form=form))


def on_cases(
    offering: tuple[str, ...] = (), where: Callable[[Case], bool] = anything, right: tuple[str, ...] = OUTPUTS, **like: Any
) -> Callable[[Test], Test]:
    """The test is a relation, asked on some fitting cases whose outputs `right` agree with the reference."""
    return _plan(Plan(offering, tuple(like.items()), where, right))


def once(*offering: str, dangerous: bool = False, each_dtype: bool = False) -> Callable[[Test], Test]:
    """The test makes its own problems: it is called once for each dtype, with the simplest case of that dtype.

    dangerous: it asks what some kernels do not survive, such as no heads; all others come first. each_dtype: what it asks is
    another thing in each dtype, so that no tier leaves one out.
    """
    return _plan(Plan(offering, once=True, dangerous=dangerous, each_dtype=each_dtype))


def _plan(plan: Plan) -> Callable[[Test], Test]:
    def attach(test: Test) -> Test:
        test.plan = plan  # type: ignore[attr-defined]
        return test

    return attach
