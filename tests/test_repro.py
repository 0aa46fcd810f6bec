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
    assert text is not None
    for attend, code in ((f"from mutants.implementations import {name} as attend", 1), ("from honest import tiled as attend", 0)):
        path = tmp_path / "repro.py"
        path.write_text(text.replace(f"from mutants.implementations import {name} as attend", attend))
        command = [sys.executable, "-c", f"import runpy, sys; sys.path[:0] = [{str(HERE)!r}]; runpy.run_path({str(path)!r})"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_what_no_script_can_tell_has_none() -> None:
    (adapter,) = resolve("honest.tiled")
    subject, case = meet(adapter, "cpu", {}, None, None), Case()
    counted = Finding("relation", "o", "3 of 4 probabilities are kept, expected 2 ± 1")
    assert script(subject, Explained("DROPOUT-5", case, counted, subject.problem(case), None), None) is None
