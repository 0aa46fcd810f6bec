"""EMPTY: a query that may attend to no key at all."""

import torch

from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.choosing import must_follow_a_choice
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import may_answer, must_agree, must_be_right
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.spec import Problem
from attnspec.spec.words import INPUT_OF


def can_be_empty(case: Case) -> bool:
    """Some row is likely to have no key."""
    return (case.mask != "none" and case.holes == "empty_row") or (case.causal and (case.i > case.keys or case.mask != "none"))


@clause("EMPTY-1", "EMPTY-2", "EMPTY-4")
@agrees("o", where=can_be_empty)
def test_a_row_without_a_key_follows_one_rule(subject: Subject, case: Case) -> None:
    """By mask of every form, by causal, by both: the rule that was promised or seen, and the other rows right."""


@clause("EMPTY-3")
@agrees(*INPUT_OF, offering=("backward",), where=lambda case: can_be_empty(case) and case.wrt != "none")
def test_a_row_without_a_key_teaches_nothing(subject: Subject, case: Case) -> None:
    """Gradients with rows that have no key."""


@clause("EMPTY-1", "EMPTY-2")
@on_cases(offering=("key_padding",), where=lambda case: case.b > 1 and case.bias == "none" and not case.causal, right=())
def test_a_batch_item_of_length_zero(subject: Subject, case: Case) -> None:
    """The last batch item has no key; with gradients and without, both give the same rule."""
    problem = subject.problem(case)
    mask = problem.q.new_ones((problem.b, problem.j), dtype=torch.bool)
    mask[-1] = False
    for wrt, how in ((problem.wrt, "with gradients"), ((), "without gradients")):
        must_be_right(subject, problem.replace(mask=mask, wrt=wrt), f"with a batch item that has no key, {how}")


@clause("EMPTY-2")
@on_cases(offering=("bias",), where=lambda case: case.i > 1 and case.mask == "none" and not case.causal, bias="none", right=())
def test_a_row_of_minus_infinity_is_a_row_without_a_key(subject: Subject, case: Case) -> None:
    """The first row's bias is −∞ everywhere."""
    problem = subject.problem(case)
    bias = problem.q.new_zeros((problem.i, problem.j))
    bias[0] = float("-inf")
    must_be_right(subject, problem.replace(bias=bias), "with a bias of −∞ for the whole first row")


@clause("EMPTY-4")
@on_cases(offering=("mask",), where=lambda case: case.i > 1 and not case.causal and case.bias == "none", mask="ij", right=())
def test_the_other_rows_do_not_notice(subject: Subject, case: Case) -> None:
    """The first row loses all its keys: the other rows are what they were."""
    problem = subject.problem(case)
    assert problem.mask is not None
    full = torch.ones_like(problem.mask)
    hidden = full.clone()
    hidden[..., 0, :] = False
    before, other = problem.replace(mask=full), problem.replace(mask=hidden)
    exact = subject.solve(before)
    first, second = may_answer(subject, before), may_answer(subject, other)
    must_agree(
        subject,
        second.o,
        first.o,
        exact,
        "o",
        "other rows, when the first row loses its keys",
        other,
        (slice(None), slice(None), slice(1, None)),
    )


@clause("EMPTY-5")
@once(dangerous=True)
def test_no_keys_at_all(subject: Subject, case: Case) -> None:
    """k_len = 0."""
    d = min(subject.adapter.widths) if subject.adapter.widths else 8
    heads = () if case.g is None else (2,)
    like = {"dtype": getattr(torch, case.dtype), "device": subject.device}
    q, k = torch.ones(2, 2, 3, d, **like), torch.ones(2, *heads, 0, d, **like)
    backward = subject.offers("backward")
    problem = Problem(q, k, k.clone(), do=torch.ones_like(q) if backward else None, wrt=("q",) if backward else ())
    must_be_right(subject, problem, "with no keys at all", ("o", "dq"))


@clause("EMPTY-2")
@once()
def test_one_of_the_rules_is_followed(subject: Subject, case: Case) -> None:
    """The problem on which the rule is observed: by a mask, else by causal, else by a bias."""
    must_follow_a_choice(subject, "empty_row", case.dtype)
