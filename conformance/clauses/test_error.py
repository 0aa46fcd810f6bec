"""ERROR: what an implementation can't do it says."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from attnspec.adapters.reading import readable
from attnspec.adapters.within import Within
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import no_answer
from attnspec.conformance.problems.case import FACTORS, OPTIONS, Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import in_memory, misfit, surrounded
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import (
    Broken,
    NotApplicable,
    NotOffered,
    must_answer,
    must_be_right,
    must_keep_bits,
    refused,
)
from attnspec.conformance.testing.plan import on_cases, once
from attnspec.reference import to_float64
from attnspec.spec import Problem
from attnspec.spec.words import FEATURES, RAGGED

# What needs each feature, as changes of a plain case. A call of many sequences is no option of another call: nobody drops it.
NEEDS: dict[str, dict[str, Any]] = {
    feature: {name: level}
    for name, factor in FACTORS.items()
    for feature, level in factor.examples.items()
    if feature not in RAGGED
}


@clause("ERROR-1")
@once()
def test_what_is_not_offered_is_refused_or_right(subject: Subject, case: Case) -> None:
    """Each feature that is not promised is asked for."""
    declined, right = [], []
    for feature, change in NEEDS.items():
        if subject.offers(feature):
            continue
        asked = replace(Case(dtype=case.dtype, heads=case.heads, b=2, i=5, j=7, d=case.d, wrt="none"), **change)
        problem = subject.problem(asked)
        if refusal := refused(subject.run(problem), problem):
            declined.append(f"{feature}: {refusal[:90]}")
            continue
        must_be_right(
            subject, problem, f"{FEATURES[feature]} is not offered, but the call gave an answer, and the answer is wrong", ("o",)
        )
        right.append(feature)
    if declined and not right:
        raise NotOffered("; ".join(declined))


@clause("ERROR-1")
@on_cases(offering=("mask", "causal"), where=lambda case: case.mask not in ("none", "rank3"), bias="none", causal=True, wrt="none")
def test_mask_and_is_causal_both_handed_over(subject: Subject, case: Case) -> None:
    """A convention that calls them exclusive: given both, refused or both obeyed, never one of them dropped."""
    if not subject.adapter.torch_convention:
        raise NotApplicable
    within = Within("unmerged")
    try:
        must_be_right(subject, subject.problem(case), "with both attn_mask and is_causal=True", ("o",), within=within)
    except Broken as broken:
        if broken.finding.kind == "raised":
            raise NotOffered(broken.finding.message) from None
        raise


@clause("ERROR-1")
@once("bias")
def test_a_bias_in_float32_beside_half_types(subject: Subject, case: Case) -> None:
    """Queries in a half type, the bias in float32, which the text does not name: refused, or right."""
    if case.dtype not in ("float16", "bfloat16"):
        raise NotApplicable
    asked = Case(dtype=case.dtype, heads=case.heads, b=2, i=4, j=6, d=case.d, bias="ij")
    for one in (replace(asked, wrt="none"), asked, replace(asked, biases="lowest"), replace(asked, bias="bj", j=40)):
        problem = subject.problem(fit(one, subject.adapter))
        assert problem.bias is not None
        bias = problem.bias.float() * (1 + 2.0**-6)
        if one.biases == "lowest":
            bias = torch.where(problem.bias < -1e4, torch.finfo(torch.float32).min, bias)
        wide = problem.replace(bias=bias)
        if refusal := refused(subject.run(wide), wide):
            raise NotOffered(f"a float32 bias beside {case.dtype}: {refusal}")
        must_be_right(subject, wide, f"with a bias in float32{', its lowest number in it' if one.biases == 'lowest' else ''}")


@clause("ERROR-2")
@once()
def test_sizes_that_do_not_fit_are_refused(subject: Subject, case: Case) -> None:
    """Lengths, widths, masks and head counts that contradict each other."""
    answered: dict[str, Problem] = {}
    for what, problem in misfits(subject, case):
        # What a kernel reads behind a tensor is there, so that no call ends the process.
        if not isinstance(unchecked(subject, surrounded(problem, 1.0, False)), Refused):
            answered[what] = problem
    if answered:
        what = f"it returned an answer where it should raise an exception: {'; '.join(answered)}"
        raise Broken(Finding("relation", "call", what), next(iter(answered.values())))


class Refused(Exception):
    """A call that was refused, as it must be."""


def unchecked(subject: Subject, problem: Problem) -> Any:
    """What a call returns whose arguments may be invalid, or the exception that it raises."""
    answer = subject.run(problem, Within(checked=False))
    refusal = refused(answer, problem)
    return Refused(refusal) if refusal is not None else answer.o


def misfits(subject: Subject, case: Case) -> Iterator[tuple[str, Problem]]:
    """Problems that Problem itself would refuse."""
    plain = subject.problem(Case(dtype=case.dtype, heads=case.heads, b=3, i=5, j=7, d=case.d, wrt="none"))

    yield "7 keys and 6 values", misfit(plain, v=plain.v[..., :-1, :])
    yield "6 keys and 7 values", misfit(plain, k=plain.k[..., :-1, :])
    yield "3 batch items of queries, 2 of keys and values", misfit(plain, k=plain.k[:2], v=plain.v[:2])
    if plain.d > 1:
        yield f"queries {plain.d} wide, keys {plain.d - 1} wide", misfit(plain, k=plain.k[..., :-1])
    if subject.offers("gqa"):
        odd = subject.problem(Case(dtype=case.dtype, heads="6/3", b=2, i=5, j=7, d=case.d, wrt="none"))
        yield "5 query heads on 3 key/value heads", misfit(odd, q=odd.q[:, :5])
    if subject.offers("key_padding"):
        mask = torch.ones(3, 6, dtype=torch.bool, device=subject.device)
        yield "a key padding mask of 6 for 7 keys", misfit(plain, mask=mask)
    if subject.offers("bias"):
        yield "a bias over 4 queries where there are 5", misfit(plain, bias=plain.q.new_zeros((4, 7)))
    if subject.offers("sinks"):
        wide = torch.promote_types(plain.dtype, torch.float32)
        yield "sinks for one head more", misfit(plain, sinks=torch.zeros(plain.h + 1, dtype=wide, device=subject.device))


@clause("ERROR-3")
@once()
def test_every_accepted_option_matters(subject: Subject, case: Case) -> None:
    """Each offered option, on an input where the exact answers with and without it are far apart."""
    base = Case(dtype=case.dtype, heads=case.heads, b=2, i=6, j=9, d=case.d, values="peaked", wrt="none")
    features = [feature for factor in OPTIONS.values() for feature in factor.examples if feature in NEEDS and feature != "rank3"]
    options = {feature: NEEDS[feature] for feature in features if subject.offers(feature)}
    without = subject.problem(base)
    plain = must_answer(subject, without)
    class_ = subject.required_class(case.dtype)
    for name, change in options.items():
        problem = subject.problem(replace(base, **change))
        exact = subject.solve(problem)
        distance = np.abs(exact.values["o"] - subject.solve(without).values["o"])
        must = distance > 10 * exact.tolerance(class_).bound["o"]
        answer = subject.run(problem)
        if no_answer(answer, problem) is not None:
            continue  # offered and refused: the option's own clause says so
        same = to_float64(answer.o) == to_float64(plain.o)
        if must.any() and same[must].all():
            raise Broken(
                Finding("relation", "o", f"{FEATURES[name]} has no effect: the output is, bit by bit, the one without it"),
                problem,
                exact,
            )


@clause("ERROR-4")
@once("dropout")
def test_a_rate_that_is_no_probability_is_refused(subject: Subject, case: Case) -> None:
    """Rates of −0.1 and 1.5, in training."""
    plain = subject.problem(Case(dtype=case.dtype, heads=case.heads, i=3, j=4, d=case.d, wrt="none"))
    for rate in (-0.1, 1.5):
        bad = misfit(plain, training=True, dropout=rate)
        if not isinstance(unchecked(subject, bad), Refused):
            raise Broken(Finding("relation", "call", f"it accepted a dropout rate of {rate}"), bad)


def in_other_memory(problem: Problem) -> tuple[Problem, list[tuple[str, Problem]]]:
    """The problem among plain numbers, and among others that would change an answer that they reach."""
    first, *others = ((f"{number:g}", surrounded(problem, number, shown)) for number, shown in in_memory(problem.dtype))
    return first[1], others


@clause("ERROR-5")
@on_cases()
def test_memory_around_the_inputs_has_no_influence(subject: Subject, case: Case) -> None:
    """NaN and large numbers before, behind and between the elements of all inputs: no bit changes."""
    must_read_nothing_else(subject, subject.problem(case))


@clause("ERROR-5")
@once()
def test_no_tail_of_a_block_is_read(subject: Subject, case: Case) -> None:
    """Lengths and widths that fill no block, and nothing hidden."""
    for j in (5, 17, 65, 257):
        asked = fit(Case(dtype=case.dtype, heads=case.heads, i=min(j, 19), j=j, d=12 if j % 8 == 1 else 7), subject.adapter)
        if not subject.judgement(asked).findings:  # else its own clause says so
            must_read_nothing_else(subject, subject.problem(asked))


def must_read_nothing_else(subject: Subject, problem: Problem) -> None:
    """The answer must be the same, bit by bit, whatever lies in the memory around the inputs."""
    first, others = in_other_memory(problem)
    before = must_answer(subject, first)
    for number, other in others:
        after = must_answer(subject, other)
        what = f"with {number} in place of 1 in the memory around the inputs"
        must_keep_bits(subject, first, before.o, after.o, "o", what, other)
        for name, gradient in before.gradients.items():
            must_keep_bits(subject, first, gradient, after.gradients.get(name), name, what, other)


@clause("ERROR-5")
@once()
def test_sizes_that_do_not_fit_read_nothing_else(subject: Subject, case: Case) -> None:
    """The calls of ERROR-2 with other memory around the inputs: refused, or the same answer. All that read it are named."""
    found: list[Broken] = []
    for what, problem in misfits(subject, case):
        first, others = in_other_memory(problem)
        before, again = unchecked(subject, first), unchecked(subject, first)
        for number, other in others:
            answers = (before, again, unchecked(subject, other))
            if not all(readable(x) and x.shape == answers[0].shape for x in answers):
                continue
            a, b, c = (to_float64(x) for x in answers)
            differ = same(a, b) & ~same(a, c)
            if differ.any():
                around = f"with {number} in place of 1 in the memory around the inputs"
                said = f"{what}: {differ.sum()} of {differ.size} elements of the output change {around}"
                found.append(Broken(Finding("relation", "call", said), first, None, other, np.zeros(differ.shape)))
                break
    if found:
        found[0].finding = replace(found[0].finding, message="; ".join(broken.finding.message for broken in found))
        raise found[0]


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two answers are equal, or both NaN."""
    return (a == b) | ((a != a) & (b != b))
