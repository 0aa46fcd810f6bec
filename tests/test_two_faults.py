"""One fault never hides another: what a run says of kernels that are wrong in two ways."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from honest import tiled
from judging import Outcome, judge
from mutants.base import load
from mutants.pairs import PAIRS

from attnspec.adapters import Adapter, resolve
from attnspec.conformance.diagnosis.explain import Explainer
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.diagnosis.purse import Purse
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.reduce import descend, without
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.verdicts.lines import mark, standing, tally, weighed
from attnspec.spec import Problem, index


def held(outcome: Outcome) -> tuple[str, ...]:
    return tally(outcome.record.weighed(), {clause.id: clause.level for clause in index().values()}).holds


def no_mask_and_half_a_gradient(q, k, v, mask=None, causal=False):
    """Every mask is ignored, and dq is half of what it should be under causal with fewer queries than keys."""
    if causal and q.shape[-2] < k.shape[-2]:
        q = (q + q.detach()) / 2
    return tiled(q, k, v, None, 0.0, causal)


def mask_and_causal(q, k, v, mask=None, causal=False):
    """Causal is dropped beside any mask, and a mask of one item serves all."""
    if mask is not None:
        causal, mask = False, mask[:1].expand(mask.shape)
    return tiled(q, k, v, mask, 0.0, causal)


def test_a_fault_of_masks_does_not_hide_one_of_masks_beside_causal() -> None:
    """CAUSAL-6 stood as held, 4/4, for what was filed under the mask's clause."""
    outcome = judge("test_two_faults.mask_and_causal", "--impl-dtypes=float32", "--clauses=MASK,CAUSAL")
    assert "CAUSAL-6" in outcome.broken()
    assert any(clause.startswith("MASK") for clause in outcome.broken())
    assert not {"CAUSAL-6", *outcome.broken()} & set(held(outcome))


def causal_only_of_many_queries_alone(q, k, v, attn_mask=None, is_causal=False):
    """Causal is dropped for one query, which a caller may mean, and beside any mask, which nobody does."""
    return tiled(q, k, v, attn_mask, 0.0, is_causal and q.shape[-2] > 1 and attn_mask is None)


class OfManyQueries(Adapter):
    offers = frozenset({"mha", "causal", "mask", "backward"})
    dialect = {"causal_alignment": "top_left", "empty_row": "zero"}

    def attend(self, q, k, v, *, mask=None, causal=False):
        return causal_only_of_many_queries_alone(q, k, v, mask, causal)


def test_a_problem_that_is_made_smaller_does_not_end_at_another_fault() -> None:
    """What fails beside a mask alone was made smaller until it failed by the single query, and told as that."""
    outcome = judge("test_two_faults.OfManyQueries", "--impl-dtypes=float32", "--clauses=CAUSAL-1,CAUSAL-3,CAUSAL-6")
    assert {"CAUSAL-3", "CAUSAL-6"} <= set(outcome.broken())
    assert "causal is ignored beside a mask" in outcome.screen


def test_a_fault_of_masks_does_not_hide_one_of_gradients() -> None:
    outcome = judge("test_two_faults.no_mask_and_half_a_gradient", "--impl-dtypes=float32", "--clauses=MASK-1,GRAD-1")
    assert any(clause.startswith("MASK") for clause in outcome.broken())
    assert any(failure.data["output"] == "dq" and "mask=" not in failure.case for failure in outcome.failures)
    assert "GRAD-1" not in held(outcome)


def test_what_fails_by_another_clause_is_counted_there_and_not_passed() -> None:
    outcome = judge("test_two_faults.mask_and_causal", "--impl-dtypes=float32", "--clauses=MASK-1,ACCURACY-1")
    cell = ("ACCURACY-1", "float32", "only", "cpu")
    assert outcome.record.by[cell]
    assert outcome.record.counts[cell]["NOT_RUN"] == sum(outcome.record.by[cell].values())
    line = next(line for line in outcome.record.lines.kept if line.get("clause") == "ACCURACY-1" and line["kind"] == "cell")
    assert line["fails_by"] == dict(outcome.record.by[cell])
    assert line["reason"].startswith("its problems already fail ")


def test_what_time_leaves_unexplained_is_said_to_be() -> None:
    options = ("--impl-dtypes=float32", "--clauses=MASK-1", "--explain-budget=0")
    outcome = judge("mutants.implementations.mask_of_first_query", *options)
    assert outcome.exit == 1
    assert "the time for explanations was used up; --explain-budget=120 gives more" in outcome.screen


def bent(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """A bias over heads and keys alone is bent in a way that has no name."""
    if attn_mask is not None and attn_mask.is_floating_point() and attn_mask.ndim > 2 and attn_mask.shape[-2] == 1:
        attn_mask = torch.where(attn_mask.isinf(), attn_mask, (2 * attn_mask).sin() + 0.3)
    return tiled(q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def test_what_has_no_name_is_not_reduced_again_and_again() -> None:
    """A bias over heads and keys was reduced to the same bias (b h i j) for each problem, until no time was left for others."""
    subject = meet(resolve(bent)[0], "cpu", {}, None, None)
    explainer, calls = Explainer(subject), []
    rows = (row for row in array("triples", subject.adapter, ("float32",)) if row.bias in ("hj", "hij", "rank3"))
    for case in islice((row for row in rows if row.keys < 300 and subject.judgement(row).of(("o",))), 6):
        before = subject.calls
        (by,) = explainer.explain(case, subject.judgement(case).findings[0])
        calls.append(subject.calls - before)
    assert len(explainer.explained) == 1
    assert by.explained is explainer.explained[0]
    assert not by.certain
    assert calls[-1] < 10 < min(calls[:3])


def test_a_wrong_gradient_is_told_where_a_fault_of_the_output_took_the_time_for_comparisons() -> None:
    """A scale that is wrong in every problem was compared with each of them, and dq = 0 was then put down to it."""
    subject = meet(resolve("mutants.pairs.scale_one_over_width__query_gradient_zero")[0], "cpu", {}, None, None)
    explainer, clauses = Explainer(subject), []
    for case in (Case(i=3, j=5, d=4), Case(i=3, j=5, d=4, scale=0.3)):
        explainer.explain(case, subject.judgement(case).findings[0])
        explainer.purse.spent["comparing"] = 0.8 * explainer.purse.budget
        clauses.append([known.clause for known in explainer.explained])
    assert clauses == [["SCALE-1"], ["SCALE-1", "GRAD-1"]]


def test_problems_of_one_chapter_leave_time_to_compare_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is wrong in every problem was compared with each of them; a wrong triangle was then put down to it."""

    same, plain = Explainer._same_mistake, []

    def counted(self: Explainer, known: Explained, problem: Problem) -> bool | None:
        plain.extend([problem] if not problem.causal else [])
        return same(self, known, problem)

    monkeypatch.setattr(Explainer, "_same_mistake", counted)
    subject = meet(resolve("mutants.pairs.causal_slides_by_block__scale_missing")[0], "cpu", {}, None, None)
    explainer = Explainer(subject, Purse(40.0))
    for case in (*(Case(i=3, j=5, d=4, seed=seed) for seed in range(14)), Case(i=40, d=4, causal=True)):
        explainer.purse.spent["comparing"] = float(len(plain))  # as if each took a second
        explainer.explain(case, subject.judgement(case).findings[0], chapter="CAUSAL" if case.causal else "SHAPE")
    assert [known.clause for known in explainer.explained] == ["SCALE-1", "CAUSAL-1"]


@pytest.mark.parametrize(
    ("counts", "unclear", "by", "state", "sign"),
    [
        ({"PASS": 4}, 0, {}, "holds", "4/4"),
        ({"PASS": 4, "NOT_RUN": 6}, 0, {"MASK-2": 6}, "holds", "4/4"),
        ({"PASS": 4, "NOT_RUN": 6}, 1, {"MASK-2": 6}, "explained", "4/4 e"),
        ({"NOT_RUN": 6}, 0, {"MASK-2": 6}, "explained", "6 e"),
        ({"PASS": 4, "FAIL": 1, "NOT_RUN": 6}, 6, {"MASK-2": 6}, "broken", "4/5 ✗"),
    ],
)
def test_a_clause_is_held_by_problems_that_no_other_failure_touches(counts, unclear, by, state, sign) -> None:
    assert standing(weighed(counts, unclear, by)) == state
    assert mark(weighed(counts, unclear, by)) == sign


def test_problems_beside_a_fault_lack_one_of_the_things_that_it_needs() -> None:
    case = Case(heads="4/2", b=2, i=3, j=5, mask="bhij", causal=True)
    beside = list(without(case, frozenset({"mask=bhij", "gqa", "b>1"})))
    assert beside[:3] == [
        Case(heads="4/2", b=1, i=3, j=5, mask="bhij", causal=True),
        Case(heads="4/4", b=2, i=3, j=5, mask="bhij", causal=True),
        Case(heads="4/2", b=2, i=3, j=5, causal=True),
    ]
    assert beside[3] == Case(heads="4/4", b=1, i=3, j=5, causal=True)


def test_the_pairs_are_of_mutants_with_other_clauses() -> None:
    assert len(set(PAIRS)) >= 30
    assert all(load()[a].clause != load()[b].clause for a, b in PAIRS)


def test_a_relation_between_two_calls_is_compared_with_what_is_known() -> None:
    """An inverted mask made CAUSAL-4 a fault of its own: causal beside a mask that is True everywhere, and causal alone."""
    outcome = judge("mutants.implementations.mask_inverted", "--impl-dtypes=float32", "--clauses=MASK-2,CAUSAL-4")
    assert set(outcome.broken()) == {"MASK-2"}


def padding_of_one_and_no_root(q, k, v, mask=None, scale=None):
    """A mask of the first item serves all, and the default scale has no root."""
    scale = 1 / q.shape[-1] if scale is None else scale
    return tiled(q, k, v, None if mask is None else mask[:1].expand(mask.shape), 0.0, False, scale)


def test_with_no_time_left_what_a_test_made_is_put_to_a_fault_that_may_be_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item of length zero was called EMPTY-1 where two other faults meet in it."""
    monkeypatch.setattr(Explainer, "exhausted", property(lambda self: sum(known.has_name for known in self.explained) > 1))
    options = ("--impl-dtypes=float32", "--explain-budget=200")
    outcome = judge("test_two_faults.padding_of_one_and_no_root", *options, "--clauses=SCALE-1,MASK-2,EMPTY-1")
    assert {"SCALE-1", "MASK-2"} <= set(outcome.broken()) <= {"SCALE-1", "MASK-2", "MASK-3"}


def test_each_dtype_has_time_of_its_own() -> None:
    """The first dtype took all the time, and what failed in the others was filed as it was met."""
    purses: list[Purse] = []
    first, second = Purse(20.0, 2, purses), Purse(20.0, 2, purses)
    assert (first.budget, second.budget) == (15.0, 15.0)
    first.spent["explaining"] = 15.0
    assert (first.used(), second.budget, second.used()) == (True, 5.0, False)
    second.spent["comparing"] = 5.0
    assert second.used()
    assert first.out + second.out == 20.0


def test_a_dtype_that_takes_all_its_time_leaves_the_others_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is inverted was called LAYOUT-1, GRAD-7 and EMPTY-1 in one dtype, for another had taken the time."""

    def made(self: Purse) -> None:
        self.purses.append(self)
        if len(self.purses) == 1:
            self.spent["explaining"] = self.budget

    monkeypatch.setattr(Purse, "__post_init__", made)
    options = ("--impl-dtypes=float32,float64", "--clauses=MASK-2,LAYOUT-1,GRAD-7", "--explain-budget=200")
    outcome = judge("mutants.implementations.mask_inverted", *options)
    in_time = [failure.clause for failure in outcome.failures if failure.dtype == "float64"]
    assert in_time
    assert all(clause.startswith("MASK") for clause in in_time)
    assert outcome.screen.count("the time for explanations was used up") == len(outcome.failures) - len(in_time)


def test_one_descent_ends_when_its_share_of_the_time_is_up() -> None:
    """What is slow to make smaller left no time for what came after it."""
    adapter = resolve("sdpa-math")[0]
    case = Case(heads="4/2", b=2, i=40, j=70, d=16, mask="bhij")
    assert descend(case, adapter, lambda trial: True, seconds=0.0) == case
    assert descend(case, adapter, lambda trial: True) == Case(d=1)
    assert Purse(40.0).one < 0.2 * 40.0


def test_the_first_failure_of_a_kind_finds_time_where_others_took_theirs() -> None:
    """A gradient that is zero was put down to a wrong scale, which had taken all the time."""
    subject = meet(resolve("mutants.pairs.scale_one_over_width__query_gradient_zero")[0], "cpu", {}, None, None)
    explainer, reduced = Explainer(subject), []
    for case in (Case(i=3, j=5, d=4), Case(i=3, j=5, d=4, scale=0.3), Case(i=3, j=5, d=4, scale=0.3, causal=True)):
        for finding in subject.judgement(case).findings[:1]:
            reduced += [by.explained.reduced for by in explainer.explain(case, finding)]
        explainer.purse.spent["explaining"] = 0.6 * explainer.purse.budget
        assert explainer.exhausted
    assert [(known.clause, known.reduced) for known in explainer.explained] == [("SCALE-1", True), ("GRAD-1", True)]
    assert reduced == [True, True, True]


def no_bias_and_no_mask(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """A bias raises, and a mask is ignored."""
    if attn_mask is not None and attn_mask.is_floating_point():
        raise IndexError("tuple index out of range")
    return tiled(q, k, v, None, dropout_p, is_causal, scale, enable_gqa)


def test_with_no_time_left_wrong_numbers_are_not_put_to_an_exception() -> None:
    """A dropout that is wrong stood as explained by BIAS-2, which raises: time was used up."""
    subject = meet(resolve(no_bias_and_no_mask)[0], "cpu", {}, None, None)
    explainer = Explainer(subject)
    for case in (Case(i=3, j=5, bias="bhij"), Case(i=3, j=5, mask="bhij")):
        (by,) = explainer.explain(case, subject.judgement(case).findings[0])
        explainer.purse.spent["explaining"] = explainer.purse.budget
    assert (by.explained.clause, by.explained.reduced) == ("MASK-1", False)


@pytest.mark.parametrize(
    ("name", "clause", "case"),
    [
        ("mask_of_first_query", "MASK-1", "heads=2/2,b=2,i=7,j=9,d=4,mask=bhij,layout=fused,values=ties"),
        ("mask_of_first_query", "MASK-1", "i=7,j=9,d=4,mask=bhij,causal=True,layout=strided,scale=0.3"),
        ("query_strides_ignored", "LAYOUT-1", "heads=2/2,b=2,i=7,j=9,d=4,mask=bhij,bias=ij,layout=strided,values=ties"),
    ],
)
def test_with_no_time_left_nothing_is_blamed_that_has_no_part_in_it(name: str, clause: str, case: str) -> None:
    """A mask that is ignored stood as LAYOUT-2, for its problem was fused, too."""
    subject = meet(resolve(f"mutants.implementations.{name}")[0], "cpu", {}, None, None)
    explainer, met = Explainer(subject), Case.parse(case)
    explainer.purse.spent["explaining"] = explainer.purse.budget
    (by,) = explainer.explain(met, subject.judgement(met).findings[0])
    assert (by.explained.clause, by.explained.reduced, by.explained.failed_on) == (clause, False, [met])


def test_a_reduction_that_ends_early_leaves_no_trait_that_has_no_part_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has them not was taken for another fault: mask and is_causal at a scale below zero for one beside SCALE-3."""
    monkeypatch.setattr(Purse, "one", 0.0)
    subject = meet(resolve("mutants.implementations.mask_of_first_query")[0], "cpu", {}, None, None)
    met = Case.parse("heads=2/2,b=2,i=7,j=9,d=4,mask=bhij,layout=fused,values=ties,scale=0.3")
    (by,) = Explainer(subject).explain(met, subject.judgement(met).findings[0])
    assert (by.explained.clause, by.explained.case.traits() - {"i<j"}) == ("MASK-1", {"mask=bhij"})


def no_triangle(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Causal raises."""
    if is_causal:
        raise TypeError("get_mask() missing 1 required positional argument: 'device'")
    return tiled(q, k, v, attn_mask, dropout_p, False, scale, enable_gqa)


def test_what_a_test_makes_and_is_refused_in_the_same_words_is_no_fault_of_its_own() -> None:
    """1100 queries and keys, causal, stood as SHAPE-2 in four dtypes beside CAUSAL-1: the words are the same."""
    subject = meet(resolve(no_triangle)[0], "cpu", {}, None, None)
    explainer, asked, plain = Explainer(subject), Case(i=3, j=5, causal=True), Case(heads="2/2")
    explainer.explain(asked, subject.judgement(asked).findings[0])
    made = subject.problem(Case(i=1100, j=1100, d=8, causal=True, wrt="none"))
    finding = Finding("raised", "call", str(subject.run(made).refusal))
    by = explainer.relation(plain, replace(finding, message=subject.judgement(asked).findings[0].message), (made,), agree=False)
    assert by is not None
    assert (by.explained.clause, by.certain) == ("CAUSAL-1", True)
    other = explainer.relation(plain, replace(finding, message="raised IndexError: another"), (made,), agree=False)
    assert other is None
