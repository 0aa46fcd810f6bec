"""Failures are told by the mistake that explains them, by no other, and one fault is told once."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import honest
import pytest
import torch
from mutants.base import load, with_sdpa_signature
from threads import one_thread  # noqa: F401  a fixture

from attnspec.adapters import resolve
from attnspec.conformance.clauses.test_dropout import readable
from attnspec.conformance.diagnosis import diagnose as diagnosing
from attnspec.conformance.diagnosis import folding
from attnspec.conformance.diagnosis.diagnose import diagnose
from attnspec.conformance.diagnosis.dropped import dropped
from attnspec.conformance.diagnosis.evidence import probes, shuffled
from attnspec.conformance.diagnosis.explain import Explainer
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.diagnosis.match import look, screen
from attnspec.conformance.diagnosis.names import COARSE, Diagnosis, names_to_print, other_choice, sentence
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.mistakes.table import Chapter, kernel_at
from attnspec.conformance.mistakes.vocabulary import CHAPTERS, MISTAKES
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.words import describe
from attnspec.conformance.report import failure as report
from attnspec.conformance.report.repro import script
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.verdicts.record import Failure
from attnspec.spec import Dialect

EXPECTED = json.loads((Path(__file__).parent / "mutants" / "diagnoses.json").read_text(encoding="utf-8"))
OBSERVED = {"raised", "shape", "dtype", "missing", "changed", "inputs changed", "coarse arithmetic"}
OBSERVED |= {"answered sizes that do not fit", "accepted a bad rate"}
OBSERVED |= {"remembered an earlier call", "answer varies", "memory shared", "global state changed"}


def subject_of(function: Any) -> Subject:
    return meet(resolve(function)[0], "cpu", {}, None, None)


def explained(name: str, token: str) -> tuple[Subject, Explained]:
    """What is said of a mutant that fails on a case."""
    subject, case = subject_of(load()[name].make()), Case.parse(token)
    return subject, Explainer(subject).explain(case, subject.judgement(case).findings[0])[0].explained


# THE RIGHT NAME

NAMED = [
    ("tail_of_16_keys_dropped", "i=3,j=23,d=16,values=peaked", "tail_of_16_dropped"),
    ("tail_of_64_keys_filled", "i=3,j=65,d=16", "tail_of_zeros_64"),
    ("causal_not_read", "i=5,j=7,causal=True,heads=2/2", "causal_ignored"),
    ("causal_bottom_right", "i=5,j=7,causal=True", "causal_corner"),
    ("causal_ignored_in_second_item", "b=2,i=5,j=7,causal=True", "causal_ignored"),
    ("mask_as_prefix_length", "b=2,i=5,j=7,mask=bhij", "mask_as_lengths"),
    ("mask_over_hij_misread", "heads=3/3,i=5,j=7,mask=hij", "mask_of_neighbour"),
    ("bias_scaled", "i=5,j=7,bias=bhij", "bias_scaled"),
    ("heads_interleaved", "heads=4/2,i=5,j=7", "head_map"),
    ("scale_missing", "i=5,j=7", "scale_missing"),
    ("OutputNotRescaled", "i=5,j=65,values=peaked", "rescale_of_output_missing"),
    ("gradient_without_delta", "i=5,j=7", "delta_missing"),
    ("query_gradient_zero", "i=5,j=7", "dq_zero"),
    ("MaskForgottenInBackward", "i=5,j=7,mask=bhij", "mask_forgotten_in_backward"),
    ("key_read_without_strides", "heads=2/2,i=5,j=7,layout=bihd", "strides_of_k"),
    ("control_mean", "i=5,j=7", "scores_ignored"),
    ("SoftcapNotDivided", "i=3,j=5,softcap=3.1", "softcap_not_divided"),
    ("SoftcapAfterMask", "i=3,j=5,mask=bhij,softcap=0.7", "softcap_hidden_leak"),
    ("SoftcapSlopeTwice", "i=3,j=5,softcap=0.7", "softcap_slope_twice"),
    ("window_of_zero_is_off", "i=6,window=0:1,values=peaked", "window_left_zero_is_none"),
    ("window_tile_is_skipped", "i=40,window=1:,values=peaked", "window_begins_late_of_16"),
    ("window_not_in_backward", "i=9,window=1:,values=peaked", "window_gradients_without_window"),
    ("first_tokens_lack_one", "i=9,window=1:,first_tokens=2,values=peaked", "first_tokens_one_less"),
    ("tail_of_64_value_channels_dropped", "i=3,j=5,d=8,e=160", "value_tail_zero_64"),
]


@pytest.mark.parametrize(("name", "token", "mistake"), NAMED, ids=[name for name, *_ in NAMED])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_mistake_is_named(name: str, token: str, mistake: str, dtype: str) -> None:
    _, found = explained(name, f"{token},dtype={dtype}")
    assert found.diagnosis is not None
    assert [MISTAKES[one].of or one for one in found.diagnosis.best] in ([mistake], [MISTAKES[mistake].of])
    assert found.diagnosis.best[0] in EXPECTED[name]
    assert folding.names_of(found)[0]


def test_where_a_mistake_is_made_is_said_of_the_problem_that_is_shown() -> None:
    subject = subject_of(load()["causal_ignored_in_second_item"].make())
    case = Case.parse("b=3,i=5,j=7,causal=True")
    found = diagnose(subject, subject.problem(case), None, [case])
    assert found is not None
    assert found.only == "batch item 1 to 2 of 3"
    smaller = replace(case, b=2)  # met on three batch items, shown on two
    found = diagnose(subject, subject.problem(smaller), None, [case])
    assert found is not None
    assert found.only == "batch item 1 of 2"
    _, simple = explained("causal_ignored_in_second_item", "b=3,i=5,j=7,causal=True")
    assert simple.case.b == 2
    assert "of 3" not in folding.names_of(simple)[0]


def test_what_mutants_should_be_called_is_in_the_vocabulary() -> None:
    assert EXPECTED.keys() <= load().keys()
    assert {name for names in EXPECTED.values() for name in names} <= MISTAKES.keys() | OBSERVED


def test_no_mistake_has_the_name_of_another() -> None:
    """One of the lse hid one of backward for as long as both were called lse_without_maximum."""
    assert {"lse_without_maximum", "lse_without_maximum_in_backward"} <= MISTAKES.keys()
    with pytest.raises(ValueError, match="two mistakes are called lse_zero"):
        Chapter().special("lse_zero", "another one", lambda x: None)
    assert sum(len(chapter.mistakes) for chapter in CHAPTERS) == len(MISTAKES)


# NO NAME RATHER THAN A WRONG ONE


def noisy(call: Any) -> torch.Tensor:
    """An answer that is wrong in no way that has a name."""
    return call.run() * (1 + 0.3 * torch.sin(torch.arange(call.value.shape[-1])))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "like", ["", "i=9,j=19,causal=True", "b=2,i=9,mask=bhij", "i=9,bias=bhij", "i=3,j=33,values=needle", "j=2,d=2"]
)
def test_what_has_no_name_gets_none(dtype: str, like: str) -> None:
    subject = subject_of(with_sdpa_signature(noisy))
    case = Case.parse(f"dtype={dtype},{like or 'heads=2/2,i=9,j=19,d=16'}")
    problem = subject.problem(case)
    assert subject.judgement(case).findings
    assert diagnose(subject, problem, None, [case]) is None


@pytest.mark.parametrize("read", range(1, 9))
def test_what_was_not_read_to_its_end_gets_none(read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded scores have no name; after a few problems they look like a scale that is off, and slow machines called them so."""
    ticks = itertools.count()
    monkeypatch.setattr(diagnosing, "spent", lambda: float(next(ticks)))
    monkeypatch.setattr(diagnosing, "SECONDS", float(read))
    subject = subject_of(load()["float32_exponential_in_half"].make())
    case = Case.parse("i=5,j=7")
    assert subject.judgement(case).findings
    found = diagnose(subject, subject.problem(case), None, [case])
    assert found is None or (found.cut and not found.best)


def test_beside_enormous_biases_others_that_are_as_large_are_asked() -> None:
    """A bias of the lowest number that hides was called a maximum that is not subtracted: nothing else far from zero was asked."""
    subject = subject_of("honest.tiled")
    asked = {case.biases for case in probes(Case(i=3, j=5, bias="bhij", biases="lowest"), subject)}
    assert "shift" in asked
    assert "lowest" not in asked


def with_hidden_before_scale(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """−∞ in the scores, and then the scale, as torch's flash kernel on a CPU does it."""
    s = query @ key.mT
    hidden = torch.ones(s.shape[-2:], dtype=torch.bool).triu(1) if is_causal else torch.zeros(s.shape[-2:], dtype=torch.bool)
    s = s.masked_fill(hidden, -torch.inf) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return s.softmax(-1) @ value


def test_what_torch_does_with_a_negative_scale_is_named() -> None:
    subject = subject_of(with_hidden_before_scale)
    case = Case(i=5, j=5, causal=True, scale=-0.5)
    found = Explainer(subject).explain(case, subject.judgement(case).findings[0])[0].explained
    assert found.diagnosis is not None
    assert found.diagnosis.best == ("mask_before_scale",)


def test_what_is_plain_to_see_is_no_because() -> None:
    """'the output is NaN' explains nothing where all of it is."""
    subject = subject_of(with_sdpa_signature(lambda call: call.run() * torch.nan))
    case = Case(i=5, j=7)
    found = Explainer(subject).explain(case, subject.judgement(case).findings[0])[0].explained
    assert found.finding.message == "the whole output is NaN"
    assert folding.names_of(found)[0] == ""


# WHAT A TEST MAKES


def test_a_problem_without_a_case_is_varied() -> None:
    """Of a mask that alternates, reading it inverted and reading it one row off are the same; of others they are not."""
    subject = subject_of(load()["mask_over_i_misread"].make())
    plain = subject.problem(Case(heads="2/2", b=3, i=4, j=5, d=8))
    problem = plain.replace(mask=torch.tensor([False, True, False, True]).view(1, 1, 4, 1))
    found = diagnose(subject, problem, None, [])
    assert found is not None
    assert found.best == ("mask_of_neighbour_i",)


def test_a_shuffled_problem_keeps_what_makes_it_special() -> None:
    problem = subject_of(honest.tiled).problem(Case(heads="4/2", i=4, j=5, layout="expanded", bias="hij", mask="padding"))
    other = shuffled(problem, 1)
    for name, x in problem.inputs().items():
        y = other.inputs()[name]
        assert (x.shape, x.stride(), x.dtype, x.requires_grad) == (y.shape, y.stride(), y.dtype, y.requires_grad)
    assert not torch.equal(problem.q, other.q)
    assert problem.mask is not None
    assert other.mask is not None
    assert problem.mask.sum() == other.mask.sum()


# DROPOUT


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("dropout_not_done", "dropout_not_done"),
        ("dropout_not_rescaled", "dropout_not_rescaled"),
        ("dropout_divided_by_rate", "dropout_divided_by_rate"),
        ("dropout_before_softmax", "dropout_renormalised"),
        ("dropout_of_output", "dropout_of_output"),
        ("dropout_same_for_all_items", "dropout_same_for_items"),
        ("dropout_same_for_all_heads", "dropout_same_for_heads"),
        ("dropout_of_whole_rows", "dropout_of_whole_rows"),
        ("dropout_of_whole_keys", "dropout_of_whole_keys"),
        ("dropout_repeats_each_block", "dropout_repeats_each_16_keys"),
        ("dropout_in_pairs", "dropout_in_pairs"),
        ("dropout_rate_exchanged", "dropout_rate_exchanged"),
        ("dropout_keeps_a_little_more", "dropout_at_another_rate"),
        ("dropout_never_the_first_key", "dropout_never_the_first_key"),
        ("dropout_seed_fixed", "dropout_seed_fixed"),
        ("DropoutForgottenInScores", "dropout_forgotten_in_scores"),
        ("DropoutNotRescaledInBackward", "dropout_not_rescaled_in_backward"),
        ("DropoutOfFirstBlockInBackward", "dropout_first_block_in_backward"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_done_instead_of_dropout_is_named(name: str, mistake: str, dtype: str) -> None:
    subject = subject_of(load()[name].make())
    assert dropped(subject, readable(subject, Case(dtype=dtype, heads="2/2"), 0.4, 64, 33))[0] == [mistake]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_right_dropout_has_no_name(dtype: str) -> None:
    for kernel in (honest.tiled, honest.eager):
        subject = subject_of(kernel)
        assert dropped(subject, readable(subject, Case(dtype=dtype, heads="2/2"), 0.4, 64, 33)) == ([], 3)


def test_a_right_answer_has_no_diagnosis() -> None:
    subject = subject_of(honest.tiled)
    case = Case(i=5, j=7, causal=True)
    assert diagnose(subject, subject.problem(case), None, [case]) is None


def test_what_cannot_be_told_apart_is_said_so() -> None:
    """With a single query no causal and the other corner are one; a third one with as good a reason, and nothing is said."""
    one = Diagnosis({"causal_corner": 1.0, "causal_ignored": 1.0, "scores_ignored": 2.0}, asked=3)
    assert one.best == ("causal_corner", "causal_ignored")
    assert sentence(one).startswith("either causal is aligned at the other corner, or causal is ignored;")
    assert names_to_print({"causal_corner": 1.0, "causal_ignored": 1.0, "mask_ignored": 1.0}) == ()
    assert names_to_print({"tail_of_32_dropped": 0.4, "tail_of_128_dropped": 0.4}) == ("tail_of_16_dropped",)
    assert names_to_print({"output_zero": 0.4 + COARSE, "row_tail_zero": COARSE + 1}) == ("output_zero",)


def test_a_choice_is_named_only_where_all_of_it_is_made() -> None:
    made = {"causal_corner": 0.0}
    assert other_choice(Diagnosis(made, whole=True), Dialect()) == "causal_alignment=top_left"
    assert other_choice(Diagnosis(made, whole=False), Dialect()) == ""
    assert other_choice(Diagnosis({"causal_corner": 0.0, "causal_ignored": 0.0}, whole=True), Dialect()) == ""
    assert other_choice(Diagnosis({"empty_row_nan": 0.0}, whole=True), Dialect()) == "empty_row=nan"
    assert other_choice(None, Dialect()) == ""


# NUMBERS


def test_numbers_become_simple_and_fail_still() -> None:
    subject, found = explained("bias_scaled", "heads=2/2,i=5,j=7,bias=bhij,seed=3")
    case = found.case
    assert "numbers=" in case.token()
    assert Case.parse(case.token()) == case
    problem = subject.problem(case)
    assert {float(x) for x in problem.v.flatten()} <= {0.0, 1.0}
    again = judge(subject.run(problem), subject.solve(problem), "A").findings[0]
    assert (again.got, again.kind) == (found.finding.got, found.finding.kind)
    assert "bias 1 0" in report.numbers(found)
    assert "numbers: bias one at 0" in describe(case)
    compile(script(subject, found, None), "repro", "exec")


def test_numbers_stay_as_they_are_where_more_mistakes_would_explain_them() -> None:
    """Zero keys would make every key weigh the same, whatever the scale."""
    _, found = explained("scale_missing", "i=5,j=7,d=16")
    assert "k:zeros" not in found.case.numbers
    assert "q:zeros" not in found.case.numbers


@pytest.mark.parametrize("text", ["x:ones", "q", "q:twos", "q:at", "q:ones,k"])
def test_numbers_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"numbers can't be|unknown factor"):
        Case.parse(f"numbers={text}")


def test_hex_shows_the_bits() -> None:
    subject, found = explained("scale_missing", "i=5,j=7,d=16")
    line = report.found(found, subject, "hex")[1]
    assert "0x1." in line
    assert "ulp of float32 apart" in line
    assert not any("ulp" in line for line in report.found(found, subject))


# ONE FAULT, ONE ENTRY


def failure(clause: str, dtype: str, names: dict[str, float], variant: str = "only") -> Failure:
    return Failure(clause, dtype, variant, "cpu", "", "", names=names)


def test_failures_that_one_mistake_explains_are_one_fault() -> None:
    failures = [
        failure("GRAD-2", "float16", {"mask_ignored": 1.0, "causal_ignored": 0.0}),
        failure("CAUSAL-4", "float32", {"causal_ignored": 0.0, "causal_corner": 0.0}),
        failure("CAUSAL-1", "float32", {"causal_ignored": 0.0}),
        failure("SHAPE-1", "float32", {"shape the output has": 0.0}),
        failure("CAUSAL-1", "bfloat16", {"causal_ignored": 0.5}, "flash"),
    ]
    shape, causal = folding.fold(failures)
    assert (causal.name, causal.failure.clause) == ("causal_ignored", "CAUSAL-1")
    assert causal.also == "bfloat16, flash; CAUSAL-4; GRAD-2 in float16"
    assert (shape.failure.clause, shape.others) == ("SHAPE-1", [])
    assert [one.fault for one in failures] == [2, 2, 2, 1, 2]


def test_every_failure_is_in_one_fault() -> None:
    failures = [failure("CAUSAL-1", "float32", {"causal_ignored": 0.0}), failure("MASK-1", "float32", {"mask_ignored": 0.0})]
    faults = folding.fold(failures)
    assert len(faults) == 2
    assert folding.fold([]) == []


# WHAT IT COSTS


def test_a_screen_of_a_wrong_output_computes_no_gradients_and_takes_the_problem_apart_once_for_each_way_of_putting_it() -> None:
    """Nobody looks at gradients of a wrong output, and they cost more than it; what explains it is the same without them."""
    subject = subject_of(load()["causal_not_read"].make())
    seen = look(subject, subject.problem(Case.parse("i=5,j=7,causal=True,heads=2/2")))
    assert seen is not None
    assert seen.scope == ("o",)
    seen = replace(seen, presented=subject.solve(seen.problem.replace(mask=torch.ones(1, 7, dtype=torch.bool))))
    before = kernel_at.cache_info().misses
    fits = screen(seen, MISTAKES)
    assert kernel_at.cache_info().misses - before <= 2
    assert all(wrong.keys() == {"o"} for name in ("causal_ignored", "first_key_dropped") for wrong in seen.given(name))
    whole = replace(seen)
    whole.__dict__["forward"] = {id(exact): exact.problem for exact in (seen.exact, seen.presented)}
    assert {"dq", "dk", "dv"} <= whole.given("first_key_dropped")[0].keys()
    assert screen(whole, MISTAKES) == fits


def test_what_is_called_like_another_mistake_is_named_although_that_one_does_not_explain_it(monkeypatch):
    """Once a KeyError: hidden scores of the lowest number are called as those of −10000, which gave other answers."""
    like = ("hidden_scores_of_lowest", "hidden_scores_of_1e+09")
    assert {MISTAKES[name].of for name in like} == {"hidden_scores_of_10000"} == {*names_to_print(dict.fromkeys(like, 0.0))}
    explains = [SimpleNamespace(spared=False)]
    monkeypatch.setattr(diagnosing, "_weighed", lambda *_: (dict.fromkeys(like, explains), {}, []))
    monkeypatch.setattr(diagnosing, "_costs", lambda *_: dict.fromkeys(like, 0.0))
    monkeypatch.setattr(diagnosing, "place", lambda name, seen: name)
    found = diagnosing._diagnose(lambda n: None, [None], MISTAKES)
    assert found is not None
    assert found.only == like[0]
