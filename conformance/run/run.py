"""One run of the suite: the subjects, how much to ask, what was seen, and what is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

from attnspec.conformance.diagnosis.explain import Explainer
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.diagnosis.folding import fold, names_of
from attnspec.conformance.diagnosis.purse import EXPLAIN_BUDGET, Purse
from attnspec.conformance.judging.lean import LongRows
from attnspec.conformance.known.draft import Draft
from attnspec.conformance.known.inherited import Inherited
from attnspec.conformance.known.issues import KnownIssues
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.drawn import Asked, Fails, Stop
from attnspec.conformance.run.originals import Originals, named
from attnspec.conformance.run.rerun import Rerun, Shell
from attnspec.conformance.run.shapes import few, fewer, note_of_fallbacks
from attnspec.conformance.run.tier import TIERS, Tier
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.verdicts.merge import Shard
from attnspec.conformance.verdicts.record import Failure, Record
from attnspec.conformance.verdicts.verdict import Verdict
from attnspec.reference import stricter
from attnspec.spec import index
from attnspec.spec.words import REPEATING


@dataclass
class Run:
    """State of a run, made from the options; tests reach it through the fixture `run`."""

    command: str  # what re-runs all of it
    subjects: list[Subject]
    tier: Tier = TIERS["standard"]
    seed: int = 0
    seed_from: str = ""  # the option that gave it, where that is not ours
    hides_seed: bool = False  # it was drawn, and is told when nothing is asked any more
    replays: bool = False  # what the search found is kept in Hypothesis's database, and asked first in the next run
    budget: float | None = None  # seconds for everything
    case: Case | None = None
    clauses: tuple[str, ...] = ()
    spec: str | None = None  # clauses and tests that came after this version of the spec are not asked
    left_out: tuple[str, ...] = ()  # those, in words
    enforce_should: bool = False
    allow_incomplete: bool = False  # what was not reached does not decide the exit code
    few_shapes: frozenset[int] = frozenset()  # ids of the subjects that are asked in few shapes only
    pinned_only: bool = False  # no search: what is asked depends on no seed and on no version of Hypothesis
    shard: Shard | None = None
    record: Record = field(default_factory=Record)
    known: KnownIssues = field(default_factory=KnownIssues)
    inherited: Inherited = field(default_factory=Inherited)
    draft: Draft = field(default_factory=Draft)
    repros: bool = True
    explain_budget: float = EXPLAIN_BUDGET  # seconds for all explanations
    enough: int = 3  # failures that one test shows before it asks no further
    show: str | None = None  # "hex": numbers of failures to the bit
    invocation: str = ""  # the full command, as it was given
    asking: str = ""  # clause and case that the run is at
    tell: Callable[[Failure], None] = lambda failure: None  # gets each failure that decides, when it is found
    gone: str = ""  # why nothing can be asked any more: the device answers nothing
    home: Path = field(default_factory=Path.cwd)  # where the scripts of failures go, wherever a kernel changes to
    until: float = float("inf")  # when the test that is asked must let others ask
    collected: int = 0  # tests that are to be asked
    ended: int = 0  # tests that were asked to their end
    started: float = field(default_factory=time.monotonic)
    explained: list[tuple[Explainer, Explained, Failure]] = field(default_factory=list)
    originals: Originals | None = None  # of the functions that verdicts go through
    replaced: list[str] = field(default_factory=list)  # those that the implementation replaced in a call
    begun: dict[tuple[Any, ...], Any] = field(default_factory=dict)  # tests that have asked their first problems
    _shown: set[tuple[Any, ...]] = field(default_factory=set)
    _rows: dict[int, list[Case]] = field(default_factory=dict)
    _explainers: dict[tuple[int, str], Explainer] = field(default_factory=dict)
    _purses: list[Purse] = field(default_factory=list)
    rerun: Rerun = field(init=False)  # how a failure is asked again

    def __post_init__(self) -> None:
        self.rerun = Shell(self.command)

    @property
    def out_of_time(self) -> bool:
        """True once the budget is spent, or the share of it that the asking test has."""
        return self.budget is not None and time.monotonic() > min(self.until, self.started + self.budget)

    @property
    def over(self) -> bool:
        """True once the whole budget is spent."""
        return self.budget is not None and time.monotonic() > self.started + self.budget

    def share(self, tests: int) -> None:
        """Give the test that comes next its share of the time: what is left, divided by the tests that are left."""
        if self.budget is not None:
            now = time.monotonic()
            self.until = now + max(0.0, self.started + self.budget - now) / max(1, tests)

    def begin(self, askings: Iterable[Any], enough: Callable[[], bool] = lambda: False) -> None:
        """With a budget, each test asks its first problems before any goes on; then all the time that is left is for all.

        Without one there is nothing to divide, and none of them is made here. enough: whether the run is to stop.
        """
        if self.budget is None:
            return
        every = list(askings)
        for n, asking in enumerate(every):
            if enough():
                return
            self.share(len(every) - n)
            asking.begin()
            self.begun[asking.key] = asking
        self.until = float("inf")

    @property
    def searches(self) -> bool:
        """Whether anything is drawn."""
        return bool(self.tier.searched) and self.case is None and not self.pinned_only

    @property
    def soaks(self) -> bool:
        """True in the tier whose end is that of its time."""
        return self.tier is TIERS["soak"]

    def explainer(self, subject: Subject, dtype: str) -> Explainer:
        """Who explains the failures of a subject in a dtype, and remembers them through the run."""
        key = (id(subject), dtype)
        if key not in self._explainers:
            purse = Purse(self.explain_budget, sum(len(s.dtypes) for s in self.subjects), self._purses)
            self._explainers[key] = Explainer(subject, purse)
        return self._explainers[key]

    @property
    def explaining(self) -> float:
        """Seconds that explanations have taken so far."""
        return sum(purse.out for purse in self._purses)

    def decides(self, clause: str) -> bool:
        """Whether a clause decides the exit code: MUST, or with --enforce-should SHOULD."""
        return index()[clause].binding or self.enforce_should

    def afresh(self, subject: Subject, case: Case, clause: str, known: KnownIssues) -> Run:
        """A run of its own for one clause on one case of one subject, with these known issues; nothing of it comes back here."""
        return Run(
            command=self.command,
            subjects=[subject],
            tier=self.tier,
            seed=self.seed,
            case=case,
            clauses=(clause,),
            spec=self.spec,
            enforce_should=self.enforce_should,
            known=known,
            repros=False,
        )

    def has_met(self, key: tuple[Any, ...], dtype: str) -> bool:
        """Whether a failure with this key was met before in this dtype."""
        return (*key, dtype) in self._shown

    def first_time(self, key: tuple[Any, ...], dtype: str) -> bool:
        """Whether a failure with this key is met for the first time, in this dtype or (dtype "") at all."""
        fresh = (*key, dtype) not in self._shown
        self._shown.add((*key, dtype))
        return fresh

    def rows(self, subject: Subject, dtype: str) -> Iterable[Case]:
        """The covering array's cases of a dtype, fitted to the subject; the one case of --case if that was given."""
        if self.case is not None:
            return [self.case] if self.case.dtype == dtype else []
        if id(subject) not in self._rows:
            rows = array(self.tier.array, subject.adapter, subject.dtypes)
            self._rows[id(subject)] = fewer(rows, subject) if id(subject) in self.few_shapes else rows
        return [case for case in self._rows[id(subject)] if case.dtype == dtype]

    def search(
        self,
        subject: Subject,
        dtype: str,
        ask: Callable[[Case], Asked],
        narrow: Callable[[Case], Case | None],
        test: str,
        examples: int | None = None,
    ) -> Iterator[Fails]:
        """Ask Hypothesis for cases until the tier's number is reached or the time is up; the failures that `ask` raises, shrunk.

        Each test and dtype gets cases of its own, so that a rare one is met by some test.
        """
        wanted = self.tier.searched if examples is None else min(examples, self.tier.searched)
        if not self.searches or wanted == 0:
            return
        # Hypothesis is a quarter of what is imported, and smoke draws nothing.
        from attnspec.conformance.problems.search import Search, cases

        def look(case: Case) -> Asked:
            if self.out_of_time:
                raise Stop
            return ask(case)

        drawn = cases(subject.adapter, dtype)
        if id(subject) in self.few_shapes:
            drawn = drawn.map(lambda case: few(case, subject))
        name = f"{subject.adapter.name} {subject.label} {subject.device} {test} {dtype}" if self.replays else ""
        searching = Search(drawn.map(narrow), wanted, crc32(f"{self.seed} {test} {dtype}".encode()), look, name)
        yield from searching
        if searching.trouble:
            self.record.note(f"{test}[{dtype}]: the search ended early, for Hypothesis raised {searching.trouble}")

    def place(self, cell: tuple[str, ...]) -> tuple[int, ...]:
        """Where a clause, dtype, variant and device stand in everything that is listed: in the order of the text, of the
        subjects, and of their dtypes.
        """
        clause, dtype, variant, device = cell
        at = next(n for n, s in enumerate(self.subjects) if (s.label, s.device) == (variant, device))
        return self._order[clause], at, self.subjects[at].dtypes.index(dtype)

    @cached_property
    def _order(self) -> dict[str, int]:
        return {id_: n for n, id_ in enumerate(index())}

    def weigh_again(self) -> None:
        """What is said of each failure must explain what failed after it, too; one without a name may get one now."""
        for n, (explainer, explained, failure) in enumerate(self.explained):
            diagnosis = explainer.name_at_last(explained)
            if diagnosis is None:
                if len(explained.failed_on) < 2 or explained.diagnosis is None or explainer.exhausted:
                    continue
                diagnosis = explainer.diagnose(explained.problem, explained.exact, explained.finding, explained.failed_on)
            explained = replace(explained, diagnosis=diagnosis)
            failure.diagnosis, failure.names = names_of(explained)
            self.explained[n] = (explainer, replace(explained, failed_on=explained.failed_on[:1]), failure)

    def settle(self) -> None:
        """Say of each failure what it is and which fault it belongs to; put them in order, and note the broken SHOULDs.

        Nothing of it depends on the order in which they were met, so several processes come to what one comes to.
        """
        self.weigh_again()
        failures = self.record.failures
        failures.sort(key=lambda failure: self.place((failure.clause, failure.dtype, failure.variant, failure.device)))
        first: dict[str, Failure] = {}
        for failure in list(failures):  # what is inherited is shown once
            if failure.inherited and first.setdefault(failure.inherited, failure) is not failure:
                self.record.drop(failure)
        fold(failures)
        seen: set[str] = set()
        for failure in failures:
            failure.brief = failure.key in seen and not failure.inherited
            seen.add(failure.key)
            if failure.remark and not failure.brief:
                self.record.note(failure.remark)

    def look_at_originals(self) -> None:
        """Say where the implementation has replaced a function that verdicts go through: those since then say nothing.

        One that is isolated runs nowhere in this process.
        """
        if all(subject.adapter.isolated for subject in self.subjects):
            return
        found = [name for name in (self.originals.put_back() if self.originals is not None else []) if name not in self.replaced]
        if found:
            self.replaced += found
            at = f" by {self.asking}" if self.asking else ""
            self.record.interrupt(
                f"calls of the implementation replaced {named(found)}, seen{at}; verdicts go through this, so nothing that was "
                "judged can be believed"
            )

    def no_memory(self, cell: tuple[str, str, str, str], test: str, words: str) -> str:
        """Count a test that stopped because this process had no memory left, and return what is said of it."""
        said = f"no memory was left for the exact answer in {test}, which stopped"
        self.record.count(cell, Verdict.RESOURCE, 1, words)
        self.record.interrupt(said)
        return said

    def note_at_the_end(self) -> None:
        """Say where compiled code became code that is not compiled, and how far outputs lie from the exact ones in long rows."""
        self.note_fallbacks()
        self.note_endings()
        for subject in self.subjects:
            for dtype in subject.dtypes:
                if dtype in subject.long:
                    self.record.note(f"{subject.label}, {dtype} on {subject.device}: {subject.long[dtype].words()}")
            if subject.repeated and not subject.offers(*REPEATING):
                self.record.note(f"{subject.label} on {subject.device}: {subject.repetitions()}")

    def note_endings(self) -> None:
        """Say how often the process of the implementation ended, and was started again."""
        endings = self.subjects[0].adapter.endings
        if endings:
            how = ", ".join(f"{n} × {what}" for what, n in endings.items())
            self.record.note(f"the process of the implementation was started again {sum(endings.values())} times: {how}")

    def note_fallbacks(self) -> None:
        """Say where compiled code became code that is not compiled."""
        note = note_of_fallbacks(self.subjects)
        if note:
            self.record.note(note)

    def write_draft(self) -> None:
        """Write a draft of known issues from what failed here, where one is wanted."""
        self.draft.write(self.command, self.subjects[0].adapter.name, self.decides, several=len(self.subjects) > 1)

    def close(self, exit_status: int) -> None:
        """Say of each failure what it is, and end the verdict file."""
        self.settle()
        self.record.close(
            exit_status,
            answers=sum(s.judged for s in self.subjects),
            elements=sum(s.elements for s in self.subjects),
            exempt=sum(s.exempt for s in self.subjects),
            **({"seed": self.seed} if self.hides_seed else {}),
        )

    # WORKERS

    def take(self) -> dict[str, Any]:
        """What this process saw since the last call, as plain data that another can absorb."""
        taken = {
            "record": self.record.take(),
            "replaced": [list(self.replaced), list(self.record.interruptions)],
            "known": self.known.take(),
            "draft": self.draft.take(),
            "weighed": [[list(failure.identity), failure.diagnosis, failure.names] for *_, failure in self.explained],
            "subjects": [  # lists, for no class of ours travels between workers
                [
                    dict(s.held),
                    s.exempt,
                    s.elements,
                    s.judged,
                    [list(astuple(case)) for case in s.compared],
                    {dtype: list(seen) for dtype, seen in s.long.items()},
                    {dtype: list(seen) for dtype, seen in s.repeated.items()},
                ]
                for s in self.subjects
            ],
        }
        for subject in self.subjects:
            subject.exempt = subject.elements = subject.judged = 0
            subject.compared.clear()
        return taken

    def absorb(self, taken: dict[str, Any]) -> None:
        """Add what another process saw."""
        self.record.absorb(taken["record"])
        replaced, interruptions = taken["replaced"]
        self.replaced += [name for name in replaced if name not in self.replaced]
        for reason in interruptions:
            self.record.interrupt(reason)
        self.known.absorb(taken["known"])
        self.draft.absorb(taken["draft"])
        weighed = {tuple(identity): said for identity, *said in taken["weighed"]}
        for failure in self.record.failures:
            failure.diagnosis, failure.names = weighed.get(failure.identity, (failure.diagnosis, failure.names))
        for subject, seen_there in zip(self.subjects, taken["subjects"], strict=True):
            held, exempt, elements, judged, compared, long, repeated = seen_there
            for dtype, class_ in held.items():
                ladder = stricter(subject.required_class(dtype), dtype)
                subject.held[dtype] = max(class_, subject.held.get(dtype, class_), key=ladder.index)
                strand = (dtype, subject.label, subject.device)
                self.record.hold(strand, subject.required_class(dtype), subject.held[dtype])
            subject.exempt, subject.elements = subject.exempt + exempt, subject.elements + elements
            subject.judged += judged
            subject.compared |= {Case(*values) for values in compared}
            for dtype, seen in long.items():
                subject.lean(dtype, LongRows(*seen))
            for dtype, differed in repeated.items():
                subject.repeated[dtype] = tuple(dict.fromkeys((*subject.repeated.get(dtype, ()), *differed)))
