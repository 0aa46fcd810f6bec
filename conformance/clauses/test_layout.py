"""LAYOUT: a tensor is its values; where they lie in memory is not part of the question."""

import torch

from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import NotApplicable, must_be_right
from attnspec.conformance.testing.plan import agrees, on_cases
from attnspec.spec.words import OUTPUTS


@clause("LAYOUT-1")
@agrees(*OUTPUTS, where=lambda case: case.layout in ("bihd", "strided", "turned"))
def test_strides_do_not_matter(subject: Subject, case: Case) -> None:
    """Projection outputs seen as (b h i d), a last dimension that is not dense, and (… d j) in memory."""


@clause("LAYOUT-2")
@agrees(*OUTPUTS, where=lambda case: case.layout in ("fused", "offset"))
def test_where_a_tensor_begins_does_not_matter(subject: Subject, case: Case) -> None:
    """Slices of a fused qkv, and of larger buffers with other numbers around."""


@clause("LAYOUT-3")
@agrees(*OUTPUTS, where=lambda case: case.layout == "expanded")
def test_expanded_inputs_are_inputs(subject: Subject, case: Case) -> None:
    """Keys and values with stride zero over heads, or over the batch."""


@clause("LAYOUT-3")
@on_cases(where=lambda case: case.mask not in ("none", "padding", "rank3") or case.bias not in ("none", "rank2", "rank3"))
def test_expanded_masks_and_biases_are_masks_and_biases(subject: Subject, case: Case) -> None:
    """Mask and bias expanded to (b h i j) with stride zero."""
    problem = subject.problem(case)
    full = (problem.b, problem.h, problem.i, problem.j)
    changes = {
        name: x.expand(full)
        for name in ("mask", "bias")
        if (x := getattr(problem, name)) is not None and (name == "bias" or x.ndim == 4)
    }
    if "mask" in changes and not subject.offers("mask"):
        raise NotApplicable
    must_be_right(subject, problem.replace(**changes), "with mask and bias expanded, stride 0")


@clause("LAYOUT-1")
@on_cases(where=lambda case: case.mask == "bhij" or case.bias == "bhij")
def test_strides_of_masks_and_biases_do_not_matter(subject: Subject, case: Case) -> None:
    """Mask and bias stored (… j i)."""
    problem = subject.problem(case)
    changes = {
        name: x.transpose(-1, -2).contiguous().transpose(-1, -2)
        for name in ("mask", "bias")
        if (x := getattr(problem, name)) is not None and x.ndim == 4
    }
    must_be_right(subject, problem.replace(**changes), "with mask and bias stored (b h j i)")


@clause("LAYOUT-1")
@on_cases(offering=("strided",), where=lambda case: case.i > 1 and case.j == 0)
def test_each_tensor_has_its_own_strides(subject: Subject, case: Case) -> None:
    """q contiguous, k (b j h d), v (… d j) in memory."""
    problem = subject.problem(case)
    k = problem.k.transpose(-2, -3).contiguous().transpose(-2, -3) if problem.k.ndim == 4 else problem.k
    v = problem.v.transpose(-1, -2).contiguous().transpose(-1, -2)
    must_be_right(subject, problem.replace(q=problem.q.contiguous(), k=k, v=v), "with other strides for q, k and v")


@clause("LAYOUT-2")
@on_cases(where=lambda case: case.layout == "contiguous")
def test_slices_of_longer_sequences(subject: Subject, case: Case) -> None:
    """Queries, keys and values that begin in the middle of a cache."""
    problem = subject.problem(case)

    def inside(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(x[..., :1, :], 11.0), x, torch.full_like(x[..., :1, :], 11.0)], dim=-2)[..., 1:-1, :]

    must_be_right(
        subject,
        problem.replace(q=inside(problem.q), k=inside(problem.k), v=inside(problem.v)),
        "with tensors that begin in the middle of longer ones",
    )


@clause("LAYOUT-2")
@on_cases(where=lambda case: case.mask != "none" or case.bias != "none")
def test_slices_of_larger_masks_and_biases(subject: Subject, case: Case) -> None:
    """A mask or a bias that begins in the middle of a larger one, with the opposite around it."""
    problem = subject.problem(case)

    def inside(x: torch.Tensor) -> torch.Tensor:
        around = ~x[..., :1] if x.dtype == torch.bool else 11.0 - x[..., :1]
        return torch.cat([around, x, around], dim=-1)[..., 1:-1]

    changes = {name: inside(x) for name in ("mask", "bias") if (x := getattr(problem, name)) is not None}
    must_be_right(subject, problem.replace(**changes), "with mask and bias cut out of larger ones")
