"""LSE: the log of each row's sum, its gradients, and parts that are merged by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from attnspec.adapters.restrictions import sizes
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.lse import GRADED
from attnspec.conformance.problems.factors.sink import SINKS
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import cotangent_of_lse
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.choosing import must_follow_a_choice
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.merging import ask, deviations, must_equal, must_make
from attnspec.conformance.testing.outcomes import (
    Broken,
    NotApplicable,
    is_right,
    may_answer,
    must_agree,
    must_answer,
    must_be_right,
    must_keep_bits,
)
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.relations import garbage, some_keys
from attnspec.reference import merge, merge_gradients, to_float64
from attnspec.reference.stages.lse import LN2, SENTINEL, Part, unit
from attnspec.spec import Problem, twin

GRADIENTS = ("dq", "dk", "dv", "dbias")
LENGTHS = (1, 2, 5, 16, 17, 33, 64, 65, 129)


def asked(case: Case) -> bool:
    """The lse is asked for."""
    return case.lse != "none"


def graded(case: Case) -> bool:
    """The lse has a cotangent."""
    return case.lse in GRADED


def made(subject: Subject, case: Case, **changes: object) -> Problem:
    """A small problem that asks for the lse, whose scores differ much. Raises NotApplicable where one of that is not offered."""
    wanted = {"values": "peaked", "lse": "returned", "wrt": "none"} | changes
    if "queries" in (only := sizes(subject.adapter.restrictions)):
        wanted["i"] = only["queries"]
    small = Case(dtype=case.dtype, heads=case.heads, d=case.d, **wanted)  # type: ignore[arg-type]
    found = fit(small, subject.adapter)
    if any(getattr(found, name) != value for name, value in wanted.items()):
        raise NotApplicable
    return subject.problem(found)


# WHAT IT IS


@clause("LSE-1")
@agrees("lse", offering=("lse",), where=asked)
def test_the_log_of_the_sum(subject: Subject, case: Case) -> None:
    """Every mask, bias, cap and window."""


@clause("LSE-1")
@once("lse")
def test_the_log_of_the_sum_at_every_length(subject: Subject, case: Case) -> None:
    """Rows of one key to several blocks, many rows and one."""
    for j in LENGTHS:
        for i in (1, 3, 33):
            must_be_right(subject, made(subject, case, i=i, j=j), f"{i} queries, {j} keys", ("o", "lse"))


@clause("LSE-2", "LSE-3", "LSE-6")
@agrees("lse", offering=("lse",), where=asked)
def test_one_base_for_all_problems(subject: Subject, case: Case) -> None:
    """The base that was promised or seen."""


@clause("LSE-6")
@once("lse", each_dtype=True)
def test_one_of_the_conventions_is_followed(subject: Subject, case: Case) -> None:
    """The problems on which base, dtype and empty rows are observed."""
    for choice in ("lse_base", "lse_dtype", "lse_includes_sink"):
        if choice in subject.observed | subject.assumed:
            must_follow_a_choice(subject, choice, case.dtype)


@clause("LSE-4")
@agrees(
    "lse", offering=("lse",), where=lambda case: asked(case) and (case.holes == "empty_row" or case.causal or case.window != "none")
)
def test_a_row_without_a_key_has_no_sum(subject: Subject, case: Case) -> None:
    """Masks and triangles that leave rows without a key."""


@clause("LSE-4", "LSE-6")
@once("lse")
def test_every_row_without_a_key_has_the_same(subject: Subject, case: Case) -> None:
    """Key padding, masks over rows, causal with more queries, a bias of −∞; one query and whole blocks of them."""
    seen: dict[str, tuple[float, str]] = {}  # of each kind the first number, and with what it came
    for problem, what in _emptied(subject, case):
        answer = must_answer(subject, problem)
        lse, empty = to_float64(answer.lse), subject.solve(problem).empty
        for number in np.unique(lse[empty]).tolist():
            if np.isnan(number) or (np.isfinite(number) and number >= SENTINEL):
                raise Broken(Finding("relation", "lse", f"{what}: the lse of a row without a key is {number:g}"), problem)
            seen.setdefault("finite" if np.isfinite(number) else str(number), (number, what))
            if len(seen) > 1:
                (a, first), (b, second) = list(seen.values())[:2]
                found = f"a row without a key has {a:g} with {first}, and {b:g} with {second}"
                raise Broken(Finding("relation", "lse", found), problem)
        must_be_right(subject, problem, what, ("lse",))
    if not seen:
        raise NotApplicable


def _emptied(subject: Subject, case: Case) -> Iterator[tuple[Problem, str]]:
    for i, j in ((3, 4), (1, 40), (33, 20)):
        plain = made(subject, case, b=2, i=i, j=j)
        if subject.offers("key_padding"):
            mask = torch.ones(2, j, dtype=torch.bool, device=plain.q.device)
            mask[1] = False
            yield plain.replace(mask=mask), f"key padding, {i} queries and {j} keys"
        if subject.offers("mask"):
            rows = torch.ones(2, 1, i, j, dtype=torch.bool, device=plain.q.device)
            rows[:, :, -1] = False
            yield plain.replace(mask=rows), f"a mask over rows, {i} queries and {j} keys"
        if subject.offers("bias") and subject.dialect.empty_row != "uniform":
            hidden = plain.q.new_zeros((i, j))
            hidden[-1] = float("-inf")
            yield plain.replace(bias=hidden), f"a bias of −∞, {i} queries and {j} keys"
    if subject.offers("causal") and subject.dialect.causal_alignment == "bottom_right":
        for i, j in ((5, 2), (70, 3)):
            yield made(subject, case, i=i, j=j, causal=True), f"causal, {i} queries and {j} keys"


@clause("LSE-5")
@agrees("lse", offering=("lse",), where=asked, form=True)
def test_its_shape_and_dtype(subject: Subject, case: Case) -> None:
    """(b, h, i), and the dtype of the choice."""


# WHAT IT DOES NOT DEPEND ON, AND HOW


@clause("LSE-7")
@on_cases(offering=("lse",), where=asked)
def test_to_ask_for_it_changes_nothing(subject: Subject, case: Case) -> None:
    """The same call without it."""
    problem = subject.problem(case)
    other = problem.replace(lse=False, dlse=None, wrt=problem.wrt if problem.do is not None else ())
    before, after, exact = may_answer(subject, other), may_answer(subject, problem), subject.solve(problem)
    must_agree(subject, after.o, before.o, exact, "o", "with the lse asked for, and without", other)
    if problem.dlse is None:
        for name, gradient in before.gradients.items():
            must_agree(subject, after.gradients.get(name), gradient, exact, name, "with the lse asked for, and without", other)


@clause("LSE-8")
@on_cases(offering=("lse",), where=lambda case: asked(case) and case.layout != "expanded", right=("lse",))
def test_other_values_leave_it(subject: Subject, case: Case) -> None:
    """Values of another sign and size, and large ones: no bit changes."""
    problem = subject.problem(case).replace(wrt=(), do=None, dlse=None)
    before = may_answer(subject, problem)
    for numbers in (-3 * problem.v.detach().flip(-2), torch.full_like(problem.v, garbage(problem))):
        v = twin(problem.v)  # in the same strides, so that a kernel takes the same path through it
        v.copy_(numbers)
        other = problem.replace(v=v)
        after = may_answer(subject, other)
        must_keep_bits(subject, problem, before.lse, after.lse, "lse", "with other values", other)


@clause("LSE-9")
@once("lse", "dropout")
def test_dropout_leaves_it(subject: Subject, case: Case) -> None:
    """A half of the weights is dropped, or a tenth: the lse is that of all of them."""
    for i, j in ((3, 5), (17, 33)):
        plain = made(subject, case, i=i, j=j)
        exact = subject.solve(plain)
        if not is_right(subject, plain):
            raise NotApplicable
        for rate in (0.5, 0.1):
            dropped = plain.replace(dropout=rate, training=True)
            answer = may_answer(subject, dropped)
            tolerance = exact.tolerance(subject.required_class(case.dtype))
            what = f"with {rate:g} of the weights dropped, {i} queries and {j} keys"
            bound = np.where(tolerance.exempt["lse"], np.inf, tolerance.bound["lse"])
            must_equal(to_float64(answer.lse), exact.values["lse"], bound, "lse", what, dropped)


@clause("LSE-10")
@once("lse", "bias")
def test_a_shift_of_a_row_shifts_it(subject: Subject, case: Case) -> None:
    """Another number for each row, as a bias of its own shape and written out, near and far from zero."""
    for i, j in ((3, 5), (1, 17), (5, 33)):
        plain = made(subject, case, i=i, j=j)
        if subject.dialect.softcap_order == "after_bias":
            plain = plain.replace(softcap=None)
        if not is_right(subject, plain):
            raise NotApplicable
        for size in (1.0, 30.0, -300.0):
            t = size * (1 + torch.arange(i, dtype=torch.float64)).to(plain.q)[:, None]
            for form in (t, t.expand(i, j).contiguous(), t.expand(plain.h, i, 1).contiguous()):
                if form.ndim == 3 and not subject.offers("rank3"):
                    continue
                must_be_right(subject, plain.replace(bias=form), f"each score of row n shifted by {size:g}·(n + 1)", ("o", "lse"))


@clause("LSE-11")
@once("lse")
def test_each_key_twice_adds_ln_2(subject: Subject, case: Case) -> None:
    """Beside each other and one half behind the other; equal keys alone."""
    for j in LENGTHS:
        plain = made(subject, case, i=3, j=j)
        if plain.causal or not is_right(subject, plain):  # what is always causal sees another number of keys then
            raise NotApplicable
        before = may_answer(subject, plain)
        step = LN2 / unit(subject.dialect)
        for how, twice in (
            ("behind each other", lambda x: torch.cat([x, x], -2)),
            ("beside each other", lambda x: x.repeat_interleave(2, -2)),
        ):
            other = plain.replace(k=twice(plain.k), v=twice(plain.v))
            what = f"each of {j} keys twice, {how}"
            after = must_be_right(subject, other, what, ("o", "lse"))
            one, two = (subject.solve(x).tolerance(subject.required_class(case.dtype)).bound["lse"] for x in (plain, other))
            grown = to_float64(after.lse) - to_float64(before.lse)
            must_equal(grown, np.full(one.shape, step), one + two, "lse", what, other)


# ITS GRADIENTS


@clause("LSE-12")
@agrees(*GRADIENTS, offering=("lse_grad", "backward"), where=graded)
def test_gradients_through_it(subject: Subject, case: Case) -> None:
    """Its cotangent alone, and beside that of the output."""


@clause("LSE-12")
@once("lse_grad", "backward")
def test_the_lse_alone(subject: Subject, case: Case) -> None:
    """The cotangent of the output is not there, or zero."""
    for i, j in ((1, 1), (3, 5), (1, 33), (17, 64), (33, 20), (70, 5), (130, 17)):
        problem = made(subject, case, i=i, j=j, lse="alone", wrt="all")
        zeros = problem.replace(do=problem.q.new_zeros(problem.shape_of("o")))
        must_be_right(subject, problem, f"{i} queries, {j} keys, a cotangent of the lse alone", GRADIENTS)
        must_be_right(subject, zeros, f"{i} queries, {j} keys, and a cotangent of zeros for the output", GRADIENTS)
        last = torch.zeros_like(zeros.dlse)  # type: ignore[arg-type]
        last[..., -1] = 1
        must_be_right(subject, zeros.replace(dlse=last), f"{i} queries, {j} keys, of which the last has a cotangent", GRADIENTS)


@clause("LSE-13")
@on_cases(offering=("lse_grad", "backward"), where=graded)
def test_both_cotangents_add_up(subject: Subject, case: Case) -> None:
    """Each alone, the other being zero."""
    problem = subject.problem(case if case.lse == "both" else replace(case, lse="both"))
    assert problem.do is not None
    assert problem.dlse is not None
    parts = (problem, problem.replace(dlse=torch.zeros_like(problem.dlse)), problem.replace(do=torch.zeros_like(problem.do)))
    both, first, second = (may_answer(subject, part) for part in parts)
    tolerances = [subject.solve(part).tolerance(subject.required_class(case.dtype)) for part in parts]
    for name, gradient in both.gradients.items():
        found = [answer.gradients.get(name) for answer in (first, second)]
        if gradient is None or None in found:
            raise NotApplicable
        a, b = (to_float64(x) for x in found)  # type: ignore[arg-type]
        bound = sum(t.bound[name] for t in tolerances)
        skip = np.logical_or.reduce([t.exempt[name] for t in tolerances])
        what = "with both cotangents, and the sum of each alone"
        must_equal(to_float64(gradient), a + b, np.where(skip, np.inf, bound), name, what, problem)


@clause("LSE-14")
@agrees(
    *GRADIENTS, offering=("lse_grad", "backward"), where=lambda case: graded(case) and (case.holes == "empty_row" or case.causal)
)
def test_a_row_without_a_key_gets_no_gradient(subject: Subject, case: Case) -> None:
    """Masks and triangles that leave rows without a key."""


@clause("LSE-14")
@once("lse_grad", "backward")
def test_a_large_cotangent_of_a_row_without_a_key(subject: Subject, case: Case) -> None:
    """10⁴ in each row without a key, ordinary numbers in the others."""
    asked_any = False
    for plain, what in _emptied(subject, case):
        empty = torch.from_numpy(subject.solve(plain).empty)
        drawn = cotangent_of_lse(replace(case, b=plain.b, i=plain.i), np.random.default_rng(5))
        dlse = torch.where(empty, 1e4, drawn.to(empty.device)).to(drawn.dtype).to(plain.q.device)
        problem = plain.replace(dlse=dlse, wrt=("q", "k", "v"))
        must_be_right(subject, problem, f"{what}, 10⁴ as cotangent in rows without a key", GRADIENTS)
        asked_any = True
    if not asked_any:
        raise NotApplicable


# MERGE


def _whole(subject: Subject, case: Case, i: int, j: int, **changes: object) -> Problem:
    problem = made(subject, case, i=i, j=j, **changes)
    if problem.causal or not is_right(subject, problem):  # a part of the keys has other positions
        raise NotApplicable
    return problem


@clause("LSE-15")
@once("lse")
def test_two_parts_make_the_whole(subject: Subject, case: Case) -> None:
    """Split before the first key, behind it, in the middle, before the last, and behind it; with a mask and a bias."""
    variants: list[dict[str, object]] = [{}]
    variants += [{"mask": "padding", "holes": "random"}] if subject.offers("key_padding") else []
    variants += [{"bias": "ij"}] if subject.offers("bias") else []
    for i, j in ((3, 9), (2, 49)):
        for variant in variants:
            problem = _whole(subject, case, i, j, **variant)
            whole = ask(subject, problem)
            for n in sorted({0, 1, j // 2, j - 1, j}):
                try:
                    parts = [ask(subject, some_keys(problem, a, b)) for a, b in ((0, n), (n, j))]
                except NotApplicable:
                    continue
                what = f"{j} keys in parts of {n} and {j - n}, merged"
                must_make(subject, whole, parts, merge(*(part.part for part in parts)), what)


@clause("LSE-16")
@once("lse")
def test_neither_order_nor_grouping_matters(subject: Subject, case: Case) -> None:
    """Three parts, one of them wholly hidden by a mask or without keys, whose output is then replaced by NaN."""
    i, j = 3, 24
    problem = _whole(subject, case, i, j)
    whole = ask(subject, problem)
    parts = [ask(subject, some_keys(problem, m, n)) for m, n in ((0, 5), (5, 6), (6, j))]
    a, b, c = (part.part for part in parts)
    for merged in (merge(a, b, c), merge(merge(a, b), c), merge(a, merge(b, c)), merge(merge(c, a), b)):
        must_make(subject, whole, parts, merged, "three parts, merged in several orders")
    nothing = some_keys(problem, 0, 0)
    if subject.offers("key_padding"):
        nothing = some_keys(problem, 0, 7)
        nothing = nothing.replace(mask=torch.zeros(problem.b, 7, dtype=torch.bool, device=problem.q.device))
    none = ask(subject, nothing)
    empty = Part(np.full_like(none.part.o, np.nan), none.part.lse)
    must_make(subject, whole, parts, merge(empty, a, b, c), "three parts and one without a key")
    both = merge(empty, empty)
    right = np.full(both.lse.shape, -np.inf)
    must_equal(both.lse, right, np.zeros_like(right), "lse", "two parts without a key, merged", nothing)
    must_equal(both.o, np.zeros_like(both.o), np.zeros_like(both.o), "o", "two parts without a key, merged", nothing)


@clause("LSE-17")
@once("lse_grad", "backward")
def test_gradients_of_the_parts_add_up(subject: Subject, case: Case) -> None:
    """The cotangents that the merge gives the parts; the loss uses the output, and the lse, too."""
    for i, j, n in ((3, 9, 4), (2, 49, 48), (3, 17, 1)):
        _gradients_agree(subject, _whole(subject, case, i, j, lse="both", wrt="all"), n)


@clause("LSE-17")
@once("lse_grad", "backward", "q_start", "causal")
def test_gradients_of_the_parts_add_up_under_causal(subject: Subject, case: Case) -> None:
    """Queries that stand within the second part, or begin before it, so that some of them see nothing of it."""
    for i, j, n, start in ((5, 20, 9, 12), (3, 33, 16, 17), (5, 20, 14, 12)):
        if start < n and not subject.offers("q_start_negative"):
            continue
        problem = made(subject, case, i=i, j=j, lse="both", wrt="all").replace(causal=True, q_start=start)
        must_be_right(subject, problem, f"{i} queries from position {start} on, {j} keys", GRADIENTS)  # no other test asks it
        _gradients_agree(subject, problem, n)


@clause("LSE-18")
@once("lse", "sinks")
def test_a_sink_is_part_of_it_or_not(subject: Subject, case: Case) -> None:
    """Sinks near the scores, above and below them; one query and many, and rows without a key."""
    for sinks in SINKS.levels[1:]:
        for i, j in ((1, 5), (3, 33), (33, 17)):
            problem = made(subject, case, i=i, j=j, sinks=sinks)
            must_be_right(subject, problem, f"{i} queries, {j} keys, {sinks} sinks", ("lse",))
        if subject.offers("key_padding"):
            hidden = torch.zeros(problem.b, problem.j, dtype=torch.bool, device=problem.q.device)
            must_be_right(subject, problem.replace(mask=hidden), f"no key for any query, {sinks} sinks", ("lse",))


@clause("LSE-19")
@once("lse", "sinks")
def test_a_sink_belongs_to_one_part(subject: Subject, case: Case) -> None:
    """The sinks in the first part or in the second, which may have no key."""
    for i, j, n in ((3, 9, 4), (2, 49, 48), (3, 17, 0)):
        problem = _whole(subject, case, i, j, sinks="normal")
        whole = ask(subject, problem)
        for own in (0, 1):
            cuts = ((0, n), (n, j))
            asked_parts = [
                some_keys(problem, a, b).replace(sinks=problem.sinks if m == own else None) for m, (a, b) in enumerate(cuts)
            ]
            try:
                parts = [ask(subject, part) for part in asked_parts]
            except NotApplicable:
                continue
            what = f"{j} keys in parts of {n} and {j - n}, merged, the sinks in the {('first', 'second')[own]}"
            must_make(subject, whole, parts, merge(*(part.part for part in parts)), what)


def _gradients_agree(subject: Subject, problem: Problem, n: int) -> None:
    """The gradients of the first n keys and of the others make those of all."""
    assert problem.do is not None
    assert problem.dlse is not None
    exact, size = subject.solve(problem), unit(subject.dialect)
    class_ = subject.required_class(str(problem.dtype)[6:])
    cuts = ((0, n), (n, problem.j))
    parts = [ask(subject, some_keys(problem.replace(do=None, dlse=None, wrt=()), a, b)) for a, b in cuts]
    do, dlse = to_float64(problem.do), to_float64(problem.dlse) / size
    of_kernel = merge_gradients(do, dlse, *(part.part for part in parts))
    of_right = merge_gradients(do, dlse, *(part.right for part in parts))
    total, allowed = np.zeros_like(exact.values["dq"]), np.zeros_like(exact.values["dq"])
    for part, (a, b), (own_do, own_lam), (right_do, right_lam) in zip(parts, cuts, of_kernel, of_right, strict=True):
        given = part.problem.replace(
            do=torch.from_numpy(own_do).to(problem.do),
            dlse=torch.from_numpy(own_lam * size).to(problem.dlse),
            wrt=("q", "k", "v"),
        )
        what = f"keys {a} to {b - 1} by themselves, with their cotangents"
        answer = must_be_right(subject, given, what, GRADIENTS)
        assert given.do is not None
        assert given.dlse is not None
        tolerance = subject.solve(given).tolerance(class_)
        off = np.abs(to_float64(given.do) - right_do), np.abs(to_float64(given.dlse) / size - right_lam)
        moved = deviations(part, *off)
        got = {name: to_float64(x) for name, x in answer.gradients.items() if x is not None}
        bound = {name: np.where(tolerance.exempt[name], np.inf, tolerance.bound[name]) + 2 * moved[name] for name in moved}
        for name in ("dk", "dv"):
            whole = exact.values[name][..., a:b, :]
            must_equal(got[name], whole, _with_rounding(bound[name], whole), name, f"{what}, and those keys of all", problem)
        total, allowed = total + got["dq"], allowed + bound["dq"]
    what = f"dq of two parts of {problem.j} keys, split at {n}, added"
    must_equal(total, exact.values["dq"], _with_rounding(allowed, total), "dq", what, problem)


def _with_rounding(bound: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A bound, and what float64 adds to numbers of this size."""
    wider: np.ndarray = bound * (1 + 2.0**-20) + 2.0**-50 * np.abs(size)
    return wider
