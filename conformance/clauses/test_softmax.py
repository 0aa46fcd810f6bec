"""SOFTMAX: scores become probabilities that sum to one, whatever the size of the scores."""

from dataclasses import replace

import numpy as np
import torch

from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import NotApplicable, may_answer, must_agree, must_be_right
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.relations import permuted, with_more_keys
from attnspec.reference import solve
from attnspec.spec import Problem, twin
from attnspec.spec.words import OUTPUTS

NAMES = {"q": "query", "k": "key", "v": "value"}


@clause("SOFTMAX-1")
@agrees("o")
def test_the_output_is_the_mean_under_the_softmax(subject: Subject, case: Case) -> None:
    """Everything that is offered, against the reference."""


@clause("SOFTMAX-2")
@agrees(*OUTPUTS, where=lambda case: case.values in ("large", "negative") or case.biases in ("steep", "shift", "lowest"))
def test_large_scores_do_not_overflow(subject: Subject, case: Case) -> None:
    """Scores of thousands, rows far below zero."""


@clause("SOFTMAX-2")
@once()
def test_scores_that_rise_and_fall_by_hundreds(subject: Subject, case: Case) -> None:
    """The largest score first, last, and in the middle of many keys; all scores at −500 and at +500."""
    like = {"dtype": getattr(torch, case.dtype), "device": subject.device}
    d = min(subject.adapter.widths) if subject.adapter.widths else 4
    heads = () if case.g is None else (2,)
    for name, slope in (("rising", 1.0), ("falling", -1.0), ("level at 500", 0.0), ("level at −500", -0.0)):
        steps = torch.linspace(-500, 500, 70) * slope if slope else torch.full((70,), -500.0 if "−" in name else 500.0)
        k = torch.zeros(2, *heads, 70, d)
        k[..., 0] = steps
        q = torch.zeros(2, 2, 3, d)
        q[..., 0] = d**0.5
        v = torch.randn(2, *heads, 70, d, generator=torch.Generator().manual_seed(0))
        must_be_right(subject, Problem(q.to(**like), k.to(**like), v.to(**like)), f"scores {name}", ("o",))


@clause("SOFTMAX-3")
@on_cases(where=lambda case: case.sinks == "none")  # a sink takes a part of each of them
def test_equal_values_come_back_unchanged(subject: Subject, case: Case) -> None:
    """Every value vector of a batch item is the same."""
    problem = subject.problem(case)
    v = problem.v[..., :1, :].expand(problem.v.shape).contiguous()
    if not problem.shared:
        v = v[:, :1].expand(v.shape).contiguous()
    must_be_right(subject, problem.replace(v=v), "with the same value vector for all keys", ("o",))


@clause("SOFTMAX-4")
@on_cases(where=lambda case: not case.causal and case.window == case.alibi_slopes == "none" and case.keys > 1)
def test_the_order_of_keys_does_not_matter(subject: Subject, case: Case) -> None:
    """Keys in the opposite order: the same output, and gradients that moved along."""
    problem = subject.problem(case)
    order = torch.arange(problem.j - 1, -1, -1, device=problem.q.device)
    other = permuted(problem, order)
    before, after = may_answer(subject, problem), must_be_right(subject, other, "with the keys in the opposite order")
    exact = subject.solve(problem)
    must_agree(subject, after.o, before.o, exact, "o", "the keys in the opposite order", other)
    dv = after.gradients.get("dv")
    if dv is not None and before.gradients.get("dv") is not None:
        must_agree(subject, dv[..., order, :], before.gradients["dv"], exact, "dv", "the keys in the opposite order")


@clause("SOFTMAX-5")
@on_cases(offering=("key_padding",), causal=False, window="none", alibi_slopes="none", mask="padding", bias="none")
def test_appended_hidden_keys_change_nothing(subject: Subject, case: Case) -> None:
    """1 and 40 more keys, so that the length crosses block edges."""
    problem = subject.problem(case)
    if problem.mask is not None and not problem.mask.any(-1).all() and subject.dialect.empty_row != "zero":
        raise NotApplicable
    before, exact = may_answer(subject, problem), subject.solve(problem)
    for count in (1, 40):
        other = with_more_keys(problem, count)
        after = must_be_right(subject, other, f"with {count} more hidden keys")
        must_agree(subject, after.o, before.o, exact, "o", f"with {count} more hidden keys", other)


@clause("SOFTMAX-6")
@once()
def test_no_overflow_that_the_answer_does_not_have(subject: Subject, case: Case) -> None:
    """Products of 3·10⁵ with a scale that brings them down to hundreds, in float16 the only dtype to overflow there."""
    if case.dtype != "float16":
        raise NotApplicable
    # Beyond a width of 128 the scores themselves would leave the range.
    d = 64 if subject.adapter.widths is None else max((x for x in subject.adapter.widths if x <= 128), default=0)
    if not d:
        raise NotApplicable
    heads = () if case.g is None else (2,)
    # 64 · 70 · 70 = 313 600, divided by 8: 39 200
    q = torch.full((1, 2, 3, d), 70.0, dtype=torch.float16, device=subject.device)
    k = torch.full((1, *heads, 4, d), 70.0, dtype=torch.float16, device=subject.device)
    k[..., 1:, :] = 69.0
    v = torch.arange(4.0, device=subject.device).view(4, 1).expand(1, *heads, 4, d).to(torch.float16)
    problem = Problem(q, k, v)
    exact = subject.solve(problem).promising_all()  # exempt for a MUST; here it is the question
    must_be_right(subject, problem, "products of 3·10⁵ before the scale", ("o",), exact)


@clause("SOFTMAX-7")
@once("bias", "key_padding")
def test_the_lowest_number_outranks_what_is_hidden(subject: Subject, case: Case) -> None:
    """Every second key is hidden, and all others have the lowest number as their bias: in all rows, then in the first."""
    plain = subject.problem(Case(dtype=case.dtype, heads=case.heads, b=2, i=3, j=6, d=case.d, wrt="none"))
    q = torch.zeros_like(plain.q)  # so that no score rounds to −∞
    hidden = torch.arange(6, device=subject.device) % 2 == 1
    v = plain.v.masked_fill(hidden[:, None], 100.0)  # outside of the hull of the others, which is all that scores so low promise
    bias = plain.q.new_full((3, 6), torch.finfo(plain.dtype).min)
    for rows in (3, 1):
        bias[rows:] = 0.0
        problem = plain.replace(q=q, v=v, mask=~hidden.expand(2, 6), bias=bias.clone())
        # Of the rule for empty rows nothing is asked: no row is empty.
        exact = solve(problem, replace(subject.dialect, empty_row="zero"))
        what = f"with a bias of {torch.finfo(plain.dtype).min:g} for every visible key of {'all rows' if rows == 3 else 'one row'}"
        must_be_right(subject, problem, what, ("o",), exact)


@clause("SOFTMAX-8")
@on_cases(where=lambda case: case.layout != "expanded" and case.biases in ("normal", "inf"), values="normal", wrt="none")
def test_a_nan_that_is_visible_stays_visible(subject: Subject, case: Case) -> None:
    """One NaN in a query, in a key, in a value: what depends on it is NaN."""
    problem = subject.problem(case)
    for name in ("q", "k", "v"):
        x = twin(getattr(problem, name))
        x.select(-1, 0).select(-1, 0 if name == "q" else problem.j // 2).fill_(float("nan"))
        other = problem.replace(**{name: x})
        exact = subject.solve(other)
        seen = exact.forward.visible[..., problem.j // 2] if name != "q" else exact.forward.visible.any(-1)
        seen = np.asarray(seen) & (name != "q" or np.arange(problem.i) == 0)
        lost = np.broadcast_to(seen[..., None], exact.values["o"].shape) & (name != "v" or np.arange(problem.e) == 0)
        values = exact.values | {"o": np.where(lost, np.nan, exact.values["o"])}
        undefined = exact.undefined | {"o": ~lost}  # what a hidden NaN does elsewhere MASK-5 says
        exact = replace(exact, values=values, undefined=undefined, _cache={})
        must_be_right(subject, other, f"with NaN in a visible {NAMES[name]}, output that depends on it must be NaN", ("o",), exact)
