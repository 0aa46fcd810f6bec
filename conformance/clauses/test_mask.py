"""MASK: a mask is bool and selects."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import NotApplicable, must_answer, must_be_right, must_keep_bits
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.relations import every_form, garbage, hidden_keys, with_hidden
from attnspec.reference.stages.given import Given
from attnspec.reference.stages.visible import masked
from attnspec.spec.words import OUTPUTS

HIDING = ("prefix", "suffix", "first_block", "inner_blocks", "random", "single")


def _drawn(draw: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=draw) < 0.7


def hides(case: Case) -> bool:
    """Some key is likely to be hidden from everyone."""
    return case.layout != "expanded" and (
        (case.mask in ("padding", "bj", "j", "bhj", "hj") and case.holes in HIDING and case.keys > 1)
        or (case.causal and case.keys > case.i)
    )


@clause("MASK-1")
@agrees(*OUTPUTS, offering=("mask",), where=lambda case: case.mask not in ("none", "padding"))
def test_true_means_may_attend(subject: Subject, case: Case) -> None:
    """Holes, left padding, bands, single keys: not only lengths."""


@clause("MASK-2")
@agrees(*OUTPUTS, offering=("key_padding",), mask="padding")
def test_key_padding_hides_a_key_from_everyone(subject: Subject, case: Case) -> None:
    """Another length and other holes for each batch item."""


@clause("MASK-3")
@agrees(*OUTPUTS, offering=("mask",), where=lambda case: case.mask not in ("none", "padding", "bhij"))
def test_a_mask_broadcasts_from_the_right(subject: Subject, case: Case) -> None:
    """Every form that broadcasts."""


@clause("MASK-3")
@agrees(*OUTPUTS, offering=("mask", "rank3", "mha"), heads="3/3", b=3, mask="rank3")
def test_three_dimensions_are_heads_first(subject: Subject, case: Case) -> None:
    """A mask (h i j) where b = h, so that a reading as (b i j) fits and is wrong."""


@clause("MASK-3")
@once("mask", "mha")
def test_all_sixteen_forms(subject: Subject, case: Case) -> None:
    """Every shape that broadcasts to (b h i j), with few keys and with many; one along the keys shows or hides whole rows."""
    few = Case(dtype=case.dtype, heads="2/2", b=2, i=4, j=600, d=case.d, wrt="none")
    for asked, what in (
        (replace(case, heads="2/2", b=3, i=4, j=5), ""),
        (few, ", 600 keys"),
        (replace(few, i=1, j=40), ", one query"),
    ):
        plain = subject.problem(asked)
        draw = torch.Generator().manual_seed(5)
        for letters, mask in every_form(plain, partial(_drawn, draw)):
            if "i" in letters and plain.i == 1:
                continue
            if "j" in letters:
                mask[..., 0] = True
            else:
                mask.view(-1)[-1], mask.view(-1)[0] = True, False
            must_be_right(subject, plain.replace(mask=mask), f"a mask that varies over {letters}{what}")


@clause("MASK-1")
@once("key_padding")
def test_a_mask_is_read_to_its_end(subject: Subject, case: Case) -> None:
    """Only the last key is visible; then all but the last."""
    for j in (17, 33, 65, 129, 257, 513, 1025):
        problem = subject.problem(fit(Case(dtype=case.dtype, heads=case.heads, i=3, j=j, d=8, wrt="none"), subject.adapter))
        j = problem.j  # as many as queries, where nothing else is taken
        last = (torch.arange(j, device=subject.device) == j - 1).expand(problem.b, j)
        must_be_right(subject, problem.replace(mask=last), f"the last of {j} keys alone")
        must_be_right(subject, problem.replace(mask=~last), f"all of {j} keys but the last")


@clause("MASK-4")
@on_cases(where=hides)
def test_what_is_hidden_has_no_influence(subject: Subject, case: Case) -> None:
    """Hidden keys and values become ±10³⁰, or what float16 can multiply: no bits change, and their gradients stay zero."""
    problem = subject.problem(case)
    exact = subject.solve(problem)
    hidden = hidden_keys(exact)
    before = must_answer(subject, problem)
    for number in (garbage(problem), -garbage(problem)):
        for names in (("k",), ("v",)):
            other = with_hidden(problem, hidden, number, names)
            after = must_answer(subject, other)
            what = f"with {number:g} in every hidden {'key' if names == ('k',) else 'value'}"
            must_keep_bits(subject, problem, before.o, after.o, "o", what, other)
            for name, gradient in before.gradients.items():
                must_keep_bits(subject, problem, gradient, after.gradients[name], name, what, other)


@clause("MASK-5")
@on_cases(where=hides)
def test_not_even_nan_gets_through(subject: Subject, case: Case) -> None:
    """NaN and infinity in hidden keys and values."""
    problem = subject.problem(case)
    hidden = hidden_keys(subject.solve(problem))
    for number in (float("nan"), float("inf")):
        for names in (("k",), ("v",)):
            must_be_right(
                subject,
                with_hidden(problem, hidden, number, names),
                f"with {number} in every hidden {'key' if names == ('k',) else 'value'}",
            )


@clause("MASK-6")
@on_cases(offering=("backward",), where=lambda case: hides(case) and case.wrt in ("all", "k", "v", "qv"))
def test_a_hidden_key_gets_no_gradient(subject: Subject, case: Case) -> None:
    """With other numbers in the hidden places, dk and dv there are zero and not merely small."""
    problem = subject.problem(case)
    hidden = hidden_keys(subject.solve(problem))
    must_be_right(subject, with_hidden(problem, hidden, 100.0), "with 100 in every hidden key and value", ("dk", "dv"))


@clause("MASK-1")
@on_cases(where=lambda case: case.mask != "none")
def test_a_mask_that_hides_nothing_is_no_mask(subject: Subject, case: Case) -> None:
    """All True, in the case's form."""
    problem = subject.problem(case)
    assert problem.mask is not None
    must_be_right(subject, problem.replace(mask=torch.ones_like(problem.mask)), "with a mask that is True everywhere")


@clause("MASK-1")
@on_cases(offering=("mask",), where=lambda case: case.keys > 1, mask="bhij", holes="random")
def test_each_pair_is_read_from_its_own_place(subject: Subject, case: Case) -> None:
    """One-hot values read the probabilities out: hidden pairs are zero, each in its own row and column."""
    problem = subject.problem(case)
    exact = subject.solve(problem)
    visible = torch.from_numpy(exact.forward.visible).to(problem.q.device)
    flipped = problem.mask.clone()  # type: ignore[union-attr]
    flipped[..., -1] = ~flipped[..., -1]
    if not flipped.any(-1).all() or not visible.any(-1).all():
        raise NotApplicable
    must_be_right(
        subject, problem.replace(mask=flipped), "with the last key shown where it was hidden, and hidden where it was shown"
    )


@clause("MASK-3")
@on_cases(offering=("mask",), where=lambda case: case.mask not in ("none", "bhij"))
def test_a_broadcast_mask_is_its_expansion(subject: Subject, case: Case) -> None:
    """The case's mask, written out to (b h i j)."""
    problem = subject.problem(case)
    assert problem.mask is not None
    shown = masked(Given(problem, subject.dialect))
    assert shown is not None
    full = torch.from_numpy(np.broadcast_to(shown, (problem.b, problem.h, problem.i, problem.j)).copy())
    must_be_right(subject, problem.replace(mask=full.to(problem.q.device)), "the mask, written out to (b h i j)")
