"""The search is Hypothesis's: what it finds it shrinks and keeps, it repeats by its seed, and it raises no false alarm."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from honest import eager
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase, InMemoryExampleDatabase
from hypothesis.errors import Unsatisfiable

from attnspec.adapters import Adapter
from attnspec.conformance.clauses import test_shape as shape
from attnspec.conformance.problems import search as searching
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.drawn import Asked, Fails, Stop
from attnspec.conformance.problems.search import Search, cases
from attnspec.conformance.run.run import Run
from attnspec.conformance.run.tier import Tier
from attnspec.conformance.subject.subject import Subject


class Wide(Adapter):
    """Everything that a case may ask for."""

    offers = frozenset({"mha", "mqa", "mask", "key_padding", "bias", "causal", "scale", "value_width", "strided", "backward"})


def met(case: Case) -> bool:
    return case.keys > 20 and case.causal


def found(
    n: int = 60, replay: str = "", wrong: Any = met, asked: list[Case] | None = None, before: tuple[Case, ...] = ()
) -> list[Fails]:
    """What a search finds of a property; a failure is told as soon as it is yielded, or was `before`."""
    told = set(before)

    def ask(case: Case) -> Asked:
        if asked is not None:
            asked.append(case)
        if wrong(case):
            if told:
                return Asked(False)
            raise Fails(case, wrong, lambda smallest: False)
        return Asked(True, case.keys / 5000)

    every = []
    for one in Search(cases(Wide(), "float32"), n, 1, ask, replay):
        every.append(one)
        told.add(one.smallest)
    return every


@pytest.fixture
def database() -> Iterator[ExampleDatabase]:
    """A database that the profile in force names."""
    before, kept = settings.get_current_profile_name(), InMemoryExampleDatabase()
    settings.register_profile("kept", parent=settings(), derandomize=False, database=kept)
    settings.load_profile("kept")
    yield kept
    settings.load_profile(before)


def test_what_is_found_is_shrunk() -> None:
    (one,) = found()
    assert met(one.met)
    assert met(one.smallest)
    small = one.smallest
    assert (small.heads, small.b, small.mask, small.bias, small.seed, small.e) == ("1/1", 1, "none", "none", 0, 0), small
    assert small.i <= 21
    assert small.keys == 21


def test_a_search_goes_on_after_a_failure_and_asks_nothing_twice() -> None:
    """What is drawn after it does not depend on whether it was explained before, by another test."""
    asked: list[Case] = []
    (one,) = found(asked=asked)
    assert len(asked) == len(set(asked)) > 60
    later: list[Case] = []
    assert not found(asked=later, before=(one.smallest,))
    assert asked == later


def test_it_repeats_by_its_seed_and_climbs() -> None:
    """A quarter more than the number is asked, near the worst; of a tier that asks few, the number itself."""
    one: list[Case] = []
    two: list[Case] = []
    found(wrong=lambda case: False, asked=one)
    found(wrong=lambda case: False, asked=two)
    assert one == two
    assert 60 < len(one) <= 75
    few: list[Case] = []
    found(6, wrong=lambda case: False, asked=few)
    assert len(few) == 6
    assert Case(dtype="float32") not in few  # what Hypothesis draws first is always the simplest
    worst = max(one[:60], key=lambda case: case.keys)
    assert sum(case.keys == worst.keys for case in one[62:]) > 5, [case.keys for case in one]


def test_what_failed_is_asked_first_the_next_time_until_it_is_right(database: ExampleDatabase) -> None:
    (one,) = found(replay="name")
    for _ in range(2):
        asked: list[Case] = []
        again = found(replay="name", asked=asked)
        assert asked[0] == again[0].met == one.smallest
    asked = []
    assert not found(replay="name", wrong=lambda case: False, asked=asked)
    assert asked[0] == one.smallest
    asked = []
    assert not found(replay="name", wrong=lambda case: False, asked=asked)
    assert asked[0] != one.smallest
    assert not found(replay="another", wrong=lambda case: False)


def test_a_failure_that_is_explained_already_stays_in_the_database(database: ExampleDatabase) -> None:
    (one,) = found(replay="name")
    for right in (False, True):
        asked: list[Case] = []

        def ask(case: Case, right: bool = right, asked: list[Case] = asked) -> Asked:
            asked.append(case)
            return Asked(right or not met(case))

        assert not list(Search(cases(Wide(), "float32"), 6, 1, ask, "name"))
        assert asked[0] == one.smallest


def test_what_ends_a_test_ends_the_search_as_it_is() -> None:
    """No exception is taken for a failure of the implementation, and none is swallowed."""
    for error in (KeyboardInterrupt(), ZeroDivisionError(), pytest.fail.Exception("a time limit")):

        def ask(case: Case, error: BaseException = error) -> Asked:
            raise error

        with pytest.raises(type(error)):
            list(Search(cases(Wide(), "float32"), 6, 1, ask))
    asked: list[Case] = []

    def stops(case: Case) -> Asked:
        asked.append(case)
        raise Stop

    assert not list(Search(cases(Wide(), "float32"), 6, 1, stops))
    assert len(asked) == 1


def test_trouble_of_hypothesis_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and hides no failure that was found."""
    given = searching.given

    def troubled(*strategies: Any) -> Any:
        def bind(test: Any) -> Any:
            inner = given(*strategies)(test)

            def ends() -> None:
                with contextlib.suppress(searching.Wrong):
                    inner()
                raise Unsatisfiable("no more")

            return ends

        return bind

    monkeypatch.setattr(searching, "given", troubled)
    monkeypatch.setattr(searching, "settings", lambda **_: (lambda test: test) if _ else settings())
    monkeypatch.setattr(searching, "hypothesis_seed", lambda seed: lambda test: test)
    search = Search(cases(Wide(), "float32"), 6, 1, lambda case: Asked(True))
    assert not list(search)
    assert search.trouble == "Unsatisfiable: no more"
    assert len(found()) == 1


# A WHOLE TEST


@pytest.fixture
def searched_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rows of an array, which find what a search would find later."""
    monkeypatch.setattr(Run, "rows", lambda self, subject, dtype: [])


class Kernel(Adapter):
    """Right, but for problems of which a hook says what is wrong."""

    offers = frozenset({"mha", "mask", "key_padding", "causal", "scale", "backward"})
    deterministic = True

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask=None, causal=False, scale=None) -> torch.Tensor:  # type: ignore[no-untyped-def]
        return self.spoilt(eager(q, k, v, mask, 0.0, causal, scale), k)

    def spoilt(self, o: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return o


class Long(Kernel):
    """Wrong for more than 20 keys."""

    def spoilt(self, o: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return o * 1.5 if k.shape[-2] > 20 else o


class Fickle(Kernel):
    """Wrong for more than 20 keys, each third time."""

    calls = 0

    def spoilt(self, o: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        type(self).calls += 1
        return o * 1.5 if k.shape[-2] > 20 and self.calls % 3 == 0 else o


def run_of(adapter: Adapter, searched: int = 12) -> Run:
    """One test of the suite that searched only."""
    run = Run("", [Subject(adapter, dtypes=("float32",))], Tier("pairs", searched=searched, narrowed=0, rows=0), repros=False)
    asking: Any = vars(shape)["test_no_length_and_no_width_is_special"]
    with contextlib.suppress(pytest.fail.Exception, pytest.skip.Exception):
        asking.asking(run, run.subjects[0], "float32").go()
    return run


@pytest.mark.usefixtures("searched_only")
def test_a_right_kernel_is_asked_all_of_it() -> None:
    run = run_of(Kernel())
    assert not run.record.failures, run.record.failures[0].text
    assert run.subjects[0].judged >= 12


@pytest.mark.usefixtures("searched_only")
def test_a_wrong_kernel_is_shown_on_the_smallest_case() -> None:
    run = run_of(Long())
    (failure,) = run.record.failures
    assert failure.clause == "SHAPE-2"
    assert re.search(r"1 batch item, 1 head, 1 query, 21 keys", failure.text), failure.text


@pytest.mark.usefixtures("searched_only")
def test_answers_that_vary_are_said_to_vary() -> None:
    """Hypothesis calls such a test flaky; here the clause of it is named."""
    run = run_of(Fickle())
    assert run.record.failures
    assert {failure.clause for failure in run.record.failures} <= {"PURITY-4", "PURITY-5", "SHAPE-2"}
    assert not run.record.notes, run.record.notes


def test_a_database_of_files_works(tmp_path: Path, database: ExampleDatabase) -> None:
    settings.register_profile("files", parent=settings(), database=DirectoryBasedExampleDatabase(tmp_path))
    settings.load_profile("files")
    (one,) = found(replay="name")
    asked: list[Case] = []
    found(replay="name", asked=asked)
    assert asked[0] == one.smallest
    assert list(tmp_path.iterdir())
