"""A repro says 1 while the fault is there, and 0 where the kernel is right, also where it is not about numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from honest import tiled
from judging import ended, judge
from mutants.base import load

from attnspec.adapters import resolve
from attnspec.conformance.diagnosis.explain import Explainer
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.diagnosis.order import earlier
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.report.repro import script
from attnspec.conformance.subject.meeting import meet
from attnspec.spec import Problem


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
        assert run(path) == code


def run(path: Path) -> int:
    """Its exit code; it must say what it found, or end with what the kernel raised."""
    done = ended(path)
    assert "Traceback" not in done.stderr or "expected attn_mask" in done.stderr, done.stderr
    return done.returncode


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
    explained = Explainer(subject).explain(case, subject.judgement(case).findings[0])[0].explained
    assert explained.clause == "PURITY-5"
    tells(script(subject, explained, None), name, tmp_path / "repro.py")


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("gradients_lost_with_frozen_query", Case(bias="bhij", wrt="bias")),
        ("bias_gradient_scaled", Case(heads="2/2", i=3, j=5, bias="hj", causal=True)),
        ("bias_gradient_zero", Case(heads="2/2", i=3, j=5, bias="bhij", mask="padding", wrt="bias")),
    ],
)
def test_it_asks_for_the_gradient_of_a_bias(name: str, case: Case, tmp_path: Path) -> None:
    """Of one that an adapter joined with a mask it asked for that of another tensor, and an output without a graph ended it."""
    load()
    (adapter,) = resolve(f"mutants.implementations.{name}")
    subject = meet(adapter, "cpu", {}, None, None)
    exact, problem = subject.solve(subject.problem(case)), subject.problem(case)
    finding = subject.judge(subject.run(problem), exact).findings[0]
    assert finding.output == "dbias"
    tells(script(subject, Explained("GRAD-4", case, finding, problem, exact), None), name, tmp_path / "repro.py")


def test_it_asks_for_gradients_as_the_suite_did_where_the_output_is_wrong(tmp_path: Path) -> None:
    """There were no `requires_grad_` in it, and a kernel that is wrong only where one is asked for was right in the script."""
    load()
    (adapter,) = resolve("mutants.implementations.SinksIgnoredInTraining")
    subject = meet(adapter, "cpu", {}, None, None)
    for wrt, code in (("all", 1), ("none", 0)):
        problem = subject.problem(Case(i=3, j=5, d=4, sinks="normal", wrt=wrt))
        finding = Finding("value", "o", "what was found")
        path = tmp_path / f"{wrt}.py"
        path.write_text(script(subject, Explained("SINK-1", Case(), finding, problem, subject.solve(problem)), None) or "")
        assert run(path) == code


def test_what_no_script_can_tell_has_none() -> None:
    (adapter,) = resolve("honest.tiled")
    subject, case = meet(adapter, "cpu", {}, None, None), Case()
    counted = Finding("relation", "o", "3 of 4 probabilities are kept, expected 2 ± 1")
    assert script(subject, Explained("DROPOUT-5", case, counted, subject.problem(case), None), None) is None


def now_and_then(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool = False) -> torch.Tensor:
    """Wrong for one problem in two, by the last bit of a sum over its queries, whatever was asked before."""
    wrong = int(query.detach().double().sum().view(torch.int64)) >> 20 & 1
    return tiled(query, key, value, is_causal=is_causal) + wrong


def test_what_fails_now_and_then_remembers_nothing() -> None:
    """An order of right and wrong that chance makes is no memory."""
    (adapter,) = resolve("test_repro.now_and_then")
    subject = meet(adapter, "cpu", {}, None, None)
    cases = [Case(i=3, j=5, causal=True, seed=seed) for seed in range(40)]
    assert 5 < sum(bool(subject.judgement(case).findings) for case in cases) < 35
    assert [earlier(subject, case) for case in cases] == 40 * [None]


def test_what_is_kept_of_an_unknown_call_has_none() -> None:
    (adapter,) = resolve("honest.tiled")
    subject, case = meet(adapter, "cpu", {}, None, None), Case()
    problem = subject.problem(case)
    kept = Finding("value", "o", "a new instance gives the right answer: this one remembers earlier calls", (0, 0, 0, 0))
    assert script(subject, Explained("PURITY-5", case, kept, problem, subject.solve(problem)), None) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_grad_path_drops_tail", "with torch.no_grad():"),
        ("inference_mode_unscaled", "with torch.inference_mode():"),
        ("autocast_in_fp8", "with torch.autocast("),
        ("autocast_refuses_bias", "with torch.autocast("),
        ("compiled_without_scale", "torch.compile(attend"),
        ("RateOfLastTraining", "attend.train(True)"),
    ],
)
def test_it_puts_the_call_where_it_fails(name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The surroundings of a call are in its script, and take nothing away from a kernel that is right."""
    monkeypatch.chdir(tmp_path)
    outcome = judge(
        f"mutants.implementations.{name}", "--clauses=MODE", "--enforce-should", "--impl-dtypes=float32", tier="standard"
    )
    assert outcome.failures
    path = next((tmp_path / "attnspec-repros").glob("repro_MODE*.py"))
    text = path.read_text()
    assert says in text
    if name == "RateOfLastTraining":
        assert run(path) == 1
    else:
        tells(text, name, path)
