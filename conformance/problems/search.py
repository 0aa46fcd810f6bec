"""Cases that Hypothesis draws, beside those of the covering arrays, and the search that asks about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import isfinite
from typing import Any
from unittest import SkipTest

from hypothesis import HealthCheck, Phase, Verbosity, event, given, settings, target
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase
from hypothesis.errors import HypothesisException

from attnspec.adapters import Adapter
from attnspec.adapters.watch.spent import spent
from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.drawn import Asked, Fails, Stop
from attnspec.conformance.problems.factors import LEVELS, OPEN_SIZES, alike
from attnspec.conformance.problems.fit import affordable, decodes, fit
from attnspec.conformance.problems.reduce import REDUCTIONS

SHORT = (1, 1, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)
LONG = (63, 64, 65, 127, 128, 129, 255, 256, 257, 513, 1024, 2049, 4096)


def cases(adapter: Adapter, dtype: str) -> st.SearchStrategy[Case]:
    """Any case that is offered, with open sizes whose product stays below COST.

    With what probability it draws what faults hide behind stands in tests/situations.py and docs/coverage.md. What is rare
    among the levels stands here more than once.
    """
    length = st.one_of(st.integers(1, 40), st.sampled_from(SHORT), st.sampled_from(LONG))
    often = {
        "values": (*_values("values"), "large", "large", "needle", "needle", "negative", "peaked"),
        "mask": (*_values("mask"), *16 * ("padding",), *8 * ("rank3",)),
        "holes": (*_values("holes"), "single", "single", "single", "empty_row", "empty_row", "inner_blocks"),
    }
    levels = {name: st.sampled_from(often.get(name, _values(name))) for name in LEVELS if name not in (*OPEN_SIZES, "dtype")}
    for name, factor in FACTORS.items():  # of an extension, where it is offered
        says = factor if factor.of is None or factor.of.array == "core" else factor.of
        if factor.array not in ("", "core") and not {says.needs, *says.examples}.isdisjoint(adapter.offers):
            # Half of the problems of who takes many sequences in one call are dense ones, as nobody else's are fewer.
            dense = len(factor.levels) - 2 if name == "carrier" else 0
            levels[name] = st.sampled_from((*dense * factor.levels[:1], *factor.levels))
    drawn = st.builds(
        Case,
        dtype=st.just(dtype),
        b=st.integers(1, 3),
        i=length,
        j=st.one_of(st.just(0), length, st.sampled_from(LONG)),
        d=st.sampled_from([8, 1, 2, 3, 4, 5, 6, 7, 16, 24, 32, 40, 59, 64, 72, 80, 96, 128, 160, 192, 256, 512]),
        e=st.sampled_from([0, 0, 1, 5, 24, 40, 72, 160]),
        seed=st.integers(0, 2**16),
        **levels,
    )

    def asked(case: Case) -> Case:
        # Every other problem of few queries and more keys asks for no gradients, as such problems do in use.
        case = replace(case, wrt="none") if decodes(case) and case.seed % 2 else case
        return affordable(fit(case, adapter), adapter)

    return drawn.map(asked)


def _values(factor: str) -> tuple[Any, ...]:
    """The values of a factor, as many for each level, so that a level is no likelier for standing for more."""
    most = max(len(alike(factor, level)) for level in LEVELS[factor])
    return tuple(alike(factor, level)[n % len(alike(factor, level))] for level in LEVELS[factor] for n in range(most))


# THE SEARCH


class Wrong(AssertionError):
    """What Hypothesis sees of a case that is wrong."""


class Kept(ExampleDatabase):
    """The failures of one search in a database of Hypothesis: each until it is right again.

    Hypothesis would delete a failure that is wrong still, but explained already, and would keep cases that are right but far off.
    """

    def __init__(self, inner: ExampleDatabase, name: str) -> None:
        super().__init__()
        self.inner, self.key = inner, f"attnspec {name}".encode()
        self.wrong = False  # the case that was asked last

    def save(self, key: bytes, value: bytes) -> None:
        """Keep a case that is wrong."""
        if self.wrong and _primary(key):
            self.inner.save(self.key, value)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """What was wrong before."""
        return self.inner.fetch(self.key) if _primary(key) else ()

    def delete(self, key: bytes, value: bytes) -> None:
        """Forget a case that is right now."""
        if not self.wrong and _primary(key):
            self.inner.delete(self.key, value)

    def move(self, src: bytes, dest: bytes, value: bytes) -> None:
        """Forget a case in favour of a smaller one."""
        if _primary(src):
            self.inner.delete(self.key, value)


def _primary(key: bytes) -> bool:
    return not key.endswith((b".secondary", b".pareto"))


class Search:
    """What Hypothesis asks of one case after another: is the answer right?

    Iterated, it asks about what failed before, then about n drawn cases and a quarter as many near the worst of them. Where `ask`
    raises :class:`Fails`, Hypothesis shrinks the case, and the failure is yielded. The search then begins again with the same seed,
    which draws the same cases, and asks of none of them twice: what is drawn depends on the seed alone, and not on what was
    explained before. `ask` may raise Stop.

    replay: the name under which failures are kept in Hypothesis's database and replayed first; "" for neither.
    """

    def __init__(
        self, drawn: st.SearchStrategy[Case | None], n: int, seed: int, ask: Callable[[Case], Asked], replay: str = ""
    ) -> None:
        self.drawn, self.n, self.seed, self.ask = drawn, n, seed, ask
        database = settings().database if replay else None  # the user's profile says which
        self.kept = Kept(database, replay) if database is not None else None
        self.asked: dict[Case, Asked] = {}  # so that answers that vary confuse nobody here: who explains a failure asks again
        self.found: Fails | None = None  # that is being shrunk
        self.trials: dict[Case, bool] = {}  # whether it is alike in a case
        self.began = 0.0  # the shrinking, in seconds of this thread
        self.ended: BaseException | None = None  # what ended the search from inside
        self.trouble = ""  # what ended it that is Hypothesis's own

    def __iter__(self) -> Iterator[Fails]:
        if self.kept is not None:
            yield from self._until_nothing_fails(1, None, Phase.reuse)
        # Hypothesis climbs once half of its examples are drawn, and not before the tenth. It may climb as often as it has drawn.
        climbs = 10 <= self.n < 1000
        most = self.n + self.n // 4 if climbs else self.n
        yield from self._until_nothing_fails(2 * self.n if climbs else self.n, most, Phase.generate, Phase.target, Phase.shrink)

    def _until_nothing_fails(self, examples: int, most: int | None, *phases: Phase) -> Iterator[Fails]:
        while self.ended is None and (found := self._first(examples, most, phases)) is not None:
            yield found

    def _first(self, examples: int, most: int | None, phases: tuple[Phase, ...]) -> Fails | None:
        """The first failure, shrunk. most: cases that are asked where Hypothesis draws, the first, simplest one apart."""
        profile, calls = settings(), 0

        @settings(
            max_examples=examples + 1,
            phases=[phase for phase in phases if phase in profile.phases],
            database=self.kept,
            derandomize=False,
            deadline=None,
            report_multiple_bugs=False,
            print_blob=False,
            verbosity=Verbosity.quiet if profile.verbosity is Verbosity.normal else profile.verbosity,
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis_seed(self.seed)  # below the settings: a seed takes the database away
        @given(self.drawn)
        def is_right(case: Case | None) -> None:
            nonlocal calls
            calls += self.found is None
            if case is None or (self.found is None and most is not None and not 1 < calls <= most + 1):
                return
            if self._is_wrong(case):
                raise Wrong

        self.found = None
        try:
            is_right()
        except (Wrong, Stop, SkipTest):  # Hypothesis skips what a profile leaves no phase
            pass
        except (HypothesisException, BaseExceptionGroup) as error:
            # Its own trouble says nothing about the implementation; a failure that it has found stays one.
            if self.found is None:
                self.trouble, self.ended = f"{type(error).__name__}: {error}", Stop()
        if self.ended is not None and not isinstance(self.ended, Stop):
            raise self.ended
        return self.found

    def _is_wrong(self, case: Case) -> bool:
        """Whether a case shows a failure that is to be shrunk. What `ask` raises ends the search; Hypothesis takes none of it."""
        try:
            right = self._drawn(case) if self.found is None else not self._alike(self.found, case)
        except BaseException as error:
            self.ended = error
            if self.kept is not None:
                self.kept.wrong = False
            raise Stop from None
        if self.kept is not None:
            self.kept.wrong = not right
        return not right and self.found is not None

    def _drawn(self, case: Case) -> bool:
        if case not in self.asked:
            try:
                self.asked[case] = self.ask(case)
            except Fails as found:
                self.found, self.asked[case] = found, Asked(False)
                self.trials, self.began = {case: True}, spent()
                return False
        right, share = self.asked[case]
        for trait in sorted(case.traits()):
            event(trait)
        event("right" if right else "not right, and told")
        if right and share is not None and isfinite(share):
            target(share, label="error as a share of the bound")
        return right

    def _alike(self, found: Fails, case: Case) -> bool:
        """Whether a trial of the shrinking is wrong in the same way; none is, once the time is up."""
        if case not in self.trials:
            up = len(self.trials) > REDUCTIONS or spent() - self.began > found.seconds
            self.trials[case] = not up and found.alike(case)
        if self.trials[case]:
            found.smallest = case
        return self.trials[case]
