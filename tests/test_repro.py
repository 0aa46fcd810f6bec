"""A repro says 1 while the fault is there, and 0 where the kernel is right, also where it is not about numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutants.base import load

from attnspec.adapters import resolve
from attnspec.conformance.case import Case
from attnspec.conformance.judge import Finding
from attnspec.conformance.meeting import meet
from attnspec.conformance.repro import script
from attnspec.conformance.subject import Explained
from attnspec.spec import Problem

HERE = Path(__file__).parent


def misfit(problem: Problem) -> Problem:
    """6 values for 7 keys, which Problem itself would refuse."""
    object.__setattr__(problem, "v", problem.v[..., :-1, :])
    return problem


def impossible(problem: Problem) -> Problem:
    """A rate that is no probability."""
    problem = problem.replace(training=True)
    object.__setattr__(problem, "dropout", 1.5)
    return problem


def tells(text: str | None, name: str, path: Path) -> None:
    """The script ends with 1 on the faulty kernel and with 0 on one that is right, and not by accident."""
    assert text is not None
    for attend, code in ((f"from mutants.implementations import {name} as attend", 1), ("from honest import tiled as attend", 0)):
        path.write_text(text.replace(f"from mutants.implementations import {name} as attend", attend))
        command = [sys.executable, "-c", f"import runpy, sys; sys.path[:0] = [{str(HERE)!r}]; runpy.run_path({str(path)!r})"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "clause", "change"),
    [
        ("global_generator_seeded", "PURITY-3", lambda problem: problem),
        ("OutputInOneBuffer", "PURITY-2", lambda problem: problem),
        ("mismatched_lengths_cut", "ERROR-2", misfit),
        ("rates_clamped", "ERROR-4", impossible),
    ],
)
def test_it_tells_the_faulty_from_the_honest(name: str, clause: str, change, tmp_path: Path) -> None:
    load()
    (adapter,) = resolve(f"mutants.implementations.{name}")
    subject, case = meet(adapter, "cpu", {}, None, None), Case(b=2, i=5, j=7, d=4, wrt="none")
    finding = Finding("relation", "call", "what was found")
    text = script(subject, Explained(clause, case, finding, change(subject.problem(case)), None), None)
    tells(text, name, tmp_path / "repro.py")


@pytest.mark.parametrize(
    ("name", "first", "case"),
    [
        ("ScaleOfFirstCall", Case(i=3, j=5, d=4), Case(i=3, j=5, d=4, scale=0.3)),
        ("BiasOfFirstCall", Case(i=3, j=5, bias="bhij", seed=1), Case(i=3, j=5, bias="bhij")),
        ("AnswerCachedByShape", Case(i=3, j=5, seed=1), Case(i=3, j=5)),
    ],
)
def test_it_asks_first_what_must_come_first(name: str, first: Case, case: Case, tmp_path: Path) -> None:
    load()
    (adapter,) = resolve(f"mutants.implementations.{name}")
    subject = meet(adapter, "cpu", {}, None, None)
    assert not subject.judgement(first).findings
    explained = subject.explain(case, subject.judgement(case).findings[0])
    assert explained.clause == "PURITY-5"
    tells(script(subject, explained, None), name, tmp_path / "repro.py")


def test_what_no_script_can_tell_has_none() -> None:
    (adapter,) = resolve("honest.tiled")
    subject, case = meet(adapter, "cpu", {}, None, None), Case()
    counted = Finding("relation", "o", "3 of 4 probabilities are kept, expected 2 ± 1")
    assert script(subject, Explained("DROPOUT-5", case, counted, subject.problem(case), None), None) is None


def test_what_is_kept_of_an_unknown_call_has_none() -> None:
    (adapter,) = resolve("honest.tiled")
    subject, case = meet(adapter, "cpu", {}, None, None), Case()
    problem = subject.problem(case)
    kept = Finding("value", "o", "a fresh instance answers this rightly: it remembers earlier calls", (0, 0, 0, 0))
    assert script(subject, Explained("PURITY-5", case, kept, problem, subject.solve(problem)), None) is None
