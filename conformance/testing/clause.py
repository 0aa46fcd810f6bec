"""Which clauses a test shows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from zlib import crc32

from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.engine import Asking
from attnspec.conformance.testing.plan import Test
from attnspec.spec import index, newer

TESTED: dict[str, list[str]] = {}  # clause → tests, filled as test modules are imported
NEW: dict[str, tuple[tuple[str, ...], str]] = {}  # a test that is newer than its clauses → these, and its version


def clause(*ids: str, since: str | None = None) -> Callable[[Test], Test]:
    """Bind a test to the clauses that it decides; the first is the one it speaks of.

    since: the version of the spec from which on the test is asked, where it is newer than its clauses. CHANGELOG.md names it then.
    """

    def bind(test: Test) -> Test:
        for id_ in ids:
            TESTED.setdefault(id_, []).append(f"{test.__module__}.{test.__qualname__}")
        if since is not None:
            NEW[f"{test.__module__}.{test.__qualname__}"] = (ids, since)

        @functools.wraps(test)
        def run_it(attnspec_run: Run, subject: Subject, dtype: str) -> None:
            begun = attnspec_run.begun.pop((test, id(subject), dtype), None)
            (begun or asking(attnspec_run, subject, dtype)).go()

        def asking(run: Run, subject: Subject, dtype: str) -> Asking:
            return Asking(run, subject, dtype, ids_of(run_it, run.spec), test)

        del run_it.__wrapped__  # pytest reads fixtures from the signature
        run_it.clauses, run_it.asking, run_it.since = ids, asking, since  # type: ignore[attr-defined]
        return run_it

    return bind


def ids_of(test: Any, spec: str | None) -> tuple[str, ...]:
    """The clauses that a test decides as of a version of the spec, None for the newest.

    None of them where the test came later; those that came later are left out.
    """
    if test.since is not None and newer(test.since, spec):
        return ()
    return tuple(id_ for id_ in test.clauses if not newer(index()[id_].since, spec))


def dtypes_of(test: Any, run: Run, subject: Subject) -> tuple[str, ...]:
    """The dtypes in which a subject is asked a test: all of them, or where the tier says so one.

    One for what an extension asks beside its arrays, each test in the dtype that its name falls on.
    """
    if not (test.plan.in_one_dtype(run.tier) and subject.dtypes):
        return subject.dtypes
    return (subject.dtypes[crc32(test.__name__.encode()) % len(subject.dtypes)],)


def clauses_of(item: Any) -> tuple[str, ...]:
    """The clauses that an item of pytest decides; () for a test that is not of the suite."""
    return getattr(getattr(item, "function", None), "clauses", ())


def wanted(test: Any, clauses: tuple[str, ...], spec: str | None = None) -> bool:
    """Whether a test decides one of these clauses or chapters (() for all) as of a version of the spec."""
    ids = ids_of(test, spec)
    return any(not clauses or id_ in clauses or index()[id_].chapter in clauses for id_ in ids)


def left_out(spec: str) -> list[str]:
    """What came after a version of the spec, and is not asked as of it: clauses, and tests that are new for an old clause."""
    found = [f"{clause.id} ({clause.since})" for clause in index().values() if newer(clause.since, spec)]
    tests = [test for test in tests_of(()) if test.since is not None and newer(test.since, spec)]
    return found + [f"{test.__name__} of {', '.join(test.clauses)} ({test.since})" for test in tests]


def tests_of(clauses: tuple[str, ...], spec: str | None = None) -> list[Any]:  # noqa: PT028 - it is no test
    """The tests of these clauses or chapters, or all, as of a version of the spec, in the order of the text."""
    files = (Path(__file__).parent.parent / "clauses").glob("test_*.py")
    modules = [import_module(f"attnspec.conformance.clauses.{path.stem}") for path in sorted(files)]
    tests = [x for module in modules for x in vars(module).values() if inspect.isfunction(x) and hasattr(x, "clauses")]
    order = {id_: n for n, id_ in enumerate(index())}
    asked = (test for test in tests if wanted(test, clauses, spec))
    return sorted(asked, key=lambda test: (test.plan.dangerous, min(order[id_] for id_ in test.clauses)))
