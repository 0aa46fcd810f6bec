"""What tests of families share: a function of a signature, one that is wrong, and whether answers are right."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from attnspec.adapters import resolve
from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.function import family_of
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.report.repro import script
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.subject.subject import Subject
from attnspec.reference import solve


def family(signature: str) -> Convention:
    """What a function of this signature, at no known path, is taken for."""
    scope: dict[str, Any] = {}
    exec(f"def elsewhere({signature}): ...", scope)
    return family_of(scope["elsewhere"], "elsewhere")


def met(target: Any) -> Subject:
    """An implementation, as a run in float32 meets it; in one width, for some compile each shape anew."""
    (adapter,) = resolve(target)
    adapter = adapter.on("cpu")
    adapter.widths = (8,)
    return meet(adapter, "cpu", {}, None, ("float32",))


def instead(subject: Subject, function: Callable[..., Any]) -> Subject:
    """Another function, as if it had been met like this one."""
    other = subject.afresh()
    other.adapter = resolve(function)[0].on("cpu")
    return other


def findings(subject: Subject, case: Case) -> list[Finding]:
    """What is wrong with the answer to a case that is offered as it is."""
    assert fit(case, subject.adapter) == case, "it is not offered"
    problem, dtype = subject.problem(case), str(case.dtype)
    return list(judge(subject.run(problem), solve(problem, subject.dialect), subject.required_class(dtype)).findings)


def off(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, at the same path; its numbers are a hundredth too large."""

    @wraps(function)
    def wrong(*args: Any, **options: Any) -> Any:
        found = function(*args, **options)
        return (found[0] * 1.01, *found[1:]) if isinstance(found, tuple) else found * 1.01

    return wrong


def write_script(subject: Subject, case: Case, path: Path) -> None:
    """Write the script of the first thing that is wrong with an answer."""
    finding, problem = findings(subject, case)[0], subject.problem(case)
    text = script(subject, Explained("SHAPE-1", case, finding, problem, solve(problem, subject.dialect)), None)
    assert text is not None
    path.write_text(text)
