"""Which clauses a test shows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.engine import Asking
from attnspec.conformance.testing.plan import Test
from attnspec.spec import index

TESTED: dict[str, list[str]] = {}  # clause → tests, filled as test modules are imported


def clause(*ids: str) -> Callable[[Test], Test]:
    """Bind a test to the clauses that it decides; the first is the one it speaks of."""

    def bind(test: Test) -> Test:
        for id_ in ids:
            TESTED.setdefault(id_, []).append(f"{test.__module__}.{test.__qualname__}")

        @functools.wraps(test)
        def run_it(attnspec_run: Run, subject: Subject, dtype: str) -> None:
            begun = attnspec_run.begun.pop((test, id(subject), dtype), None)
            (begun or asking(attnspec_run, subject, dtype)).go()

        def asking(run: Run, subject: Subject, dtype: str) -> Asking:
            return Asking(run, subject, dtype, ids, test)

        del run_it.__wrapped__  # pytest reads fixtures from the signature
        run_it.clauses, run_it.asking, run_it.dangerous = ids, asking, test.plan.dangerous  # type: ignore[attr-defined]
        return run_it

    return bind


def tests_of(clauses: tuple[str, ...]) -> list[Any]:
    """The tests of these clauses or chapters, or all, in the order of the text."""
    files = (Path(__file__).parent.parent / "clauses").glob("test_*.py")
    modules = [import_module(f"attnspec.conformance.clauses.{path.stem}") for path in sorted(files)]
    tests = [x for module in modules for x in vars(module).values() if inspect.isfunction(x) and hasattr(x, "clauses")]
    order = {id_: n for n, id_ in enumerate(index())}
    wanted = set(clauses)
    tests = [t for t in tests if not wanted or any(id_ in wanted or id_.rpartition("-")[0] in wanted for id_ in t.clauses)]
    return sorted(tests, key=lambda test: (test.dangerous, min(order[id_] for id_ in test.clauses)))
