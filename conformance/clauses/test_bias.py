"""BIAS: a float that is added to the scores."""

from dataclasses import replace
from math import inf

import torch

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import must_be_right
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.relations import every_form
from attnspec.spec.words import OUTPUTS


@clause("BIAS-1")
@agrees(*OUTPUTS, offering=("bias",), where=lambda case: case.bias != "none" and case.biases in ("normal", "steep"))
def test_a_bias_is_added_to_the_scaled_score(subject: Subject, case: Case) -> None:
    """As a number: not scaled, not cast to bool."""


@clause("BIAS-2")
@agrees(*OUTPUTS, offering=("bias",), where=lambda case: case.bias not in ("none", "bhij"))
def test_a_bias_broadcasts_from_the_right(subject: Subject, case: Case) -> None:
    """Every form, with b ≠ h and b = h."""


@clause("BIAS-2")
@agrees(*OUTPUTS, offering=("bias", "rank3", "mha"), heads="3/3", b=3, bias="rank3")
def test_three_dimensions_are_heads_first(subject: Subject, case: Case) -> None:
    """A bias (h i j) where b = h, so that a reading as (b i j) fits and is wrong."""


@clause("BIAS-2", "GRAD-4")
@once("bias", "mha")
def test_all_sixteen_forms(subject: Subject, case: Case) -> None:
    """Every shape that broadcasts to (b h i j), with the gradient reduced to it where that is offered."""
    plain = subject.problem(replace(case, heads="2/2", b=3, i=4, j=5))
    draw = torch.Generator().manual_seed(6)
    wrt = (*plain.wrt, "bias") if subject.offers("bias_grad") else plain.wrt
    for letters, bias in every_form(plain, lambda shape: torch.randn(shape, generator=draw).to(plain.dtype)):
        must_be_right(subject, plain.replace(bias=bias, wrt=wrt), f"a bias that varies over {letters}")
    # One number for all keys of a row changes nothing, unless it hides the row.
    hidden = torch.Generator().manual_seed(7)
    for letters, bias in every_form(plain, lambda shape: torch.where(torch.rand(shape, generator=hidden) < 0.3, -inf, 0.5)):
        bias.view(-1)[-1], bias.view(-1)[0] = 0.5, -inf
        what = f"a bias that varies over {letters}, with −inf in it"
        must_be_right(subject, plain.replace(bias=bias.to(plain.dtype), wrt=wrt), what)


@clause("BIAS-3")
@agrees(*OUTPUTS, offering=("bias",), where=lambda case: case.bias != "none" and case.biases == "inf")
def test_minus_infinity_hides_the_key(subject: Subject, case: Case) -> None:
    """−∞ here and there, never the whole row."""


@clause("BIAS-3")
@on_cases(offering=("bias",), where=lambda case: case.mask != "none", bias="none")
def test_a_bias_of_minus_infinity_is_a_mask(subject: Subject, case: Case) -> None:
    """The case's mask, written as zeros and −∞."""
    problem = subject.problem(case)
    assert problem.mask is not None
    mask = problem.mask[:, None, None, :] if problem.mask.ndim == 2 else problem.mask
    bias = torch.zeros(mask.shape, dtype=problem.dtype, device=problem.q.device).masked_fill(~mask, float("-inf"))
    must_be_right(subject, problem.replace(mask=None, bias=bias), "the mask, written as a bias of 0 and −∞")


@clause("BIAS-3")
@once("bias")
def test_a_whole_first_block_at_minus_infinity(subject: Subject, case: Case) -> None:
    """−∞ for the first 16 … 512 keys, the blocks that kernels read at once, and for no other."""
    for block in (16, 64, 128, 512):
        asked = Case(dtype=case.dtype, heads=case.heads, i=2, j=2 * block + 1, d=8, bias="bj")
        problem = subject.problem(fit(asked, subject.adapter))
        assert problem.bias is not None
        bias = problem.bias.masked_fill(torch.arange(problem.j, device=subject.device) < block, -inf)
        must_be_right(subject, problem.replace(bias=bias), f"−∞ in the bias of the first {block} of {problem.j} keys")


@clause("BIAS-4")
@agrees(*OUTPUTS, offering=("bias",), where=lambda case: case.bias != "none" and case.biases == "shift" and case.sinks == "none")
def test_a_constant_added_to_a_row_changes_nothing(subject: Subject, case: Case) -> None:
    """A shift of −10⁵ (−3·10⁴ in float16) under all scores."""
