"""What is kept of an earlier call is told as that, with the call; what is wrong by itself is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from honest import tiled
from judging import ended, judge
from mutants.base import Call, load, with_sdpa_signature

from attnspec.adapters import resolve
from attnspec.conformance.diagnosis.explain import Explainer
from attnspec.conformance.diagnosis.order import BY_ADDRESS, kept_by_address, wrong_by_itself
from attnspec.conformance.problems.case import Case
from attnspec.conformance.report import failure as report
from attnspec.conformance.report.repro import script
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.subject.subject import Subject


def subject_of(name: str) -> Subject:
    return meet(resolve(load()[name].make())[0], "cpu", {}, None, None)


def test_a_scale_that_is_kept_is_a_fault_of_state_and_its_script_shows_it() -> None:
    subject, case = subject_of("GraphKeptWithoutItsScale"), Case(i=3, j=5, causal=True)
    subject.judgement(replace(case, scale=0.3))
    found = Explainer(subject).explain(case, subject.judgement(case).findings[0])[0].explained
    assert found.clause == "PURITY-5"
    assert "with another scale" in found.finding.message
    assert [problem.scale for problem in found.earlier] == [0.3]
    text = script(subject, found, None)
    assert text is not None
    assert text.count("= attend(") == 2


def test_in_a_run_it_is_told_so(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = judge("mutants.implementations.GraphKeptWithoutItsScale", "-x", "--clauses=PURITY-5", "--impl-dtypes=float32")
    (failure,) = outcome.failures
    assert failure.clause == "PURITY-5"
    assert not failure.diagnosis
    assert ended(failure.data["repro"]).returncode == 1


def overflows(call: Call) -> torch.Tensor:
    """Scores beyond 20 are cut."""
    return call.run() if float((call.query @ call.key.mT).abs().max()) < 20 else call.run() * 1.5


KEPT: dict[tuple[object, ...], torch.Tensor] = {}


def mask_of_an_address(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """A mask or a bias is copied once, and the copy found by the address of its memory."""
    if attn_mask is not None:
        attn_mask = KEPT.setdefault((attn_mask.data_ptr(), attn_mask.shape, attn_mask.dtype), attn_mask.detach().clone())
    return tiled(q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def test_what_is_kept_by_the_address_of_memory_is_a_fault_of_state(tmp_path, monkeypatch) -> None:
    """It was called MASK-2, BIAS-1, CAUSAL-6 or LAYOUT-1: what lay there before had other options."""
    subject = meet(resolve(mask_of_an_address)[0], "cpu", {}, None, None)
    case = Case(i=7, j=61, mask="ij", wrt="none")
    problem = subject.problem(case)
    subject.run(problem)
    problem.mask[..., 1:].logical_not_()
    assert kept_by_address(subject, problem)
    exact = subject.solve(problem)
    finding = subject.judge(subject.run(problem), exact).findings[0]
    clause, said, _ = Explainer(subject).attribute("MASK-1", problem, finding, exact, [case])
    assert (clause, said.message) == ("PURITY-5", BY_ADDRESS)
    monkeypatch.chdir(tmp_path)
    options = ("--impl-dtypes=float32", "--clauses=MASK-1,LAYOUT-1,PURITY-5", "--explain-budget=200")
    # Without what the adapter joins with a mask: the allocator decides where that lies.
    outcome = judge("test_order.mask_of_an_address", *options, "--without=bias,bias_grad,causal")
    assert set(outcome.broken()) - {"PURITY-4"} == {"PURITY-5"}


def last_query_of_many(call: Call) -> torch.Tensor:
    """Wrong in the last of many queries; and wrong in the first call of a batch of one."""
    o = call.run()
    if call.query.shape[0] > 1 and call.query.shape[-2] > 3:
        o[..., -1, :] *= 3
    elif call.query.shape[0] == 1 and call.query.shape not in SEEN:
        SEEN.add(call.query.shape)
        o = o * 2
    return o


SEEN: set[torch.Size] = set()


def test_what_is_not_seen_again_is_shown_where_it_was_seen() -> None:
    """The finding of one problem was shown with another, which was smaller: the report found no such element."""
    subject = meet(resolve(with_sdpa_signature(last_query_of_many))[0], "cpu", {}, None, None)
    case = Case(b=3, i=20, j=9, d=4, wrt="none")
    SEEN.clear()
    finding = subject.judgement(case).findings[0]
    for one in Explainer(subject).explain(case, finding, lambda trial: trial.b > 1):
        shown = one.explained
        assert any("expected" in line for line in report.found(shown, subject))


@pytest.mark.parametrize("name", ["mask_inverted", "values_of_the_whole_block", "keys_of_the_whole_block_in_the_maximum"])
def test_what_reads_the_memory_around_it_is_none(name: str) -> None:
    subject = subject_of(name)
    for case in (Case(i=3, j=5, mask="ij"), Case(i=3, j=61, d=7, mask="ij", seed=1)):
        assert not kept_by_address(subject, subject.problem(case))


def test_what_is_wrong_by_itself_is_no_state() -> None:
    subject = meet(resolve(with_sdpa_signature(overflows))[0], "cpu", {}, None, None)
    case = Case(i=2, j=3)
    first = subject.problem(case)
    large = first.replace(q=first.q * 50)
    assert wrong_by_itself(subject, large, first) is True
    assert wrong_by_itself(subject_of("GraphKeptWithoutItsScale"), first.replace(scale=0.7), first) is False


def test_nor_is_a_gradient_that_is_wrong_by_itself() -> None:
    subject = subject_of("scale_applied_to_tail_twice")
    case = Case(j=7, d=1, mask="padding", holes="inner_blocks", values="ties", seed=7)
    first = subject.problem(case)
    other = first.replace(scale=0.7)
    wrong = subject.judge(subject.run(other), subject.solve(other))
    assert not wrong.of(("o",)), "its queries are so small that only a gradient shows it"
    assert wrong.of(("dk",))
    assert wrong_by_itself(subject, other, first, ("dk",)) is not False


def test_nor_is_what_is_wrong_at_some_lengths() -> None:
    """With five times the keys its last ones are hidden, and with seven times they are not: that is no memory of a call."""
    subject, token = (
        subject_of("scale_applied_to_tail_twice"),
        "heads=6/2,b=2,i=5,j=13,d=128,mask=j,holes=prefix,bias=bh,biases=inf",
    )
    case = Case.parse(f"{token},values=negative,wrt=none,seed=125")
    first = subject.problem(case)
    other = subject.problem(replace(case, seed=case.seed + 1)).replace(scale=0.7)
    assert subject.judge(subject.run(other), subject.solve(other)).of(("o",))
    assert wrong_by_itself(subject, other, first) is not False


def test_nor_is_what_no_time_is_left_to_explain(tmp_path, monkeypatch) -> None:
    """Where nobody can tell whether a call before it matters, what is left of the problem says the clause."""
    monkeypatch.chdir(tmp_path)
    outcome = judge(
        "mutants.implementations.scale_applied_to_tail_twice", "--explain-budget=0", "--clauses=PURITY-5", "--impl-dtypes=float32"
    )
    assert "SCALE-2" in outcome.broken()
    assert "PURITY-5" not in outcome.broken()


# WORDS


def test_the_problem_says_that_nothing_requires_grad_where_that_is_needed() -> None:
    subject, case = subject_of("first_key_lost_without_gradients"), Case(i=3, j=5, wrt="none")
    found = Explainer(subject).explain(case, subject.judgement(case).findings[0])[0].explained
    assert "no input requires grad" in report.problem_in_words(subject, found)
    plain = subject_of("mask_not_read")
    case = Case(i=3, j=5, mask="bhij", wrt="none")
    found = Explainer(plain).explain(case, plain.judgement(case).findings[0])[0].explained
    assert "requires grad" not in report.problem_in_words(plain, found)


def test_what_a_test_made_by_itself_is_put_to_an_earlier_call_where_that_is_kept(tmp_path, monkeypatch) -> None:
    """A mask of then, for each shape, was called MASK-2 in one test and MASK-1 in another."""
    monkeypatch.chdir(tmp_path)
    outcome = judge("mutants.implementations.MaskCachedByShape", "--impl-dtypes=float32", "--clauses=MASK-1")
    assert set(outcome.broken()) == {"PURITY-5"}
