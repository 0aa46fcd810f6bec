"""The memory in which the tensors of a call lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attnspec.adapters.reading import readable
from attnspec.spec import Problem


def leaves_of(problem: Problem) -> dict[str, Tensor]:
    """The inputs as leaves of autograd, in the memory and strides of the problem. A tensor that is given twice stays one leaf."""
    by_id: dict[int, Tensor] = {}
    leaves = {}
    for name, x in problem.inputs().items():
        leaf = by_id.setdefault(id(x), x.detach())
        if name in problem.wrt:
            leaf.requires_grad_()
        leaves[name] = leaf
    return leaves


def _tensors(problem: Problem) -> dict[str, Tensor]:
    """What a call gets, and its cotangent."""
    return {name: x.detach() for name, x in (problem.inputs() | problem.cotangents()).items()}


def memories_of(problem: Problem) -> dict[int, tuple[Tensor, Tensor]]:
    """The memory in which each tensor of a call lies, as bytes, and that tensor, by address."""
    return {x.untyped_storage().data_ptr(): (bytes_of(x), x) for x in _tensors(problem).values() if x.numel()}


def bytes_of(x: Tensor) -> Tensor:
    """All of the memory in which a tensor lies, what is around it too, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of as many bytes hold the same. As words of eight they take a tenth of the time."""
    n = a.numel() // 8 * 8
    return torch.equal(a[:n].view(torch.int64), b[:n].view(torch.int64)) and torch.equal(a[n:], b[n:])


def changed_in(problem: Problem, at: int, before: Tensor) -> Iterator[str]:
    """The inputs in the memory at this address that were changed; where none of them was, what was written lies around them."""
    inside = {name: x for name, x in _tensors(problem).items() if x.untyped_storage().data_ptr() == at}
    found = []
    for name, x in inside.items():
        whole = before[: before.numel() // x.element_size() * x.element_size()].view(x.dtype)
        if not same_bits(x, whole.as_strided(x.shape, x.stride(), x.storage_offset())):
            found.append(name)
    yield from found or [f"{name} (in the memory around it)" for name in inside]


def address_of(x: Any) -> int:
    """The address of the memory of a tensor that holds numbers; 0 for all else."""
    return x.untyped_storage().data_ptr() if readable(x) and x.numel() else 0


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits. So NaN equals itself, and −0 does not equal 0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (x.resolve_conj().resolve_neg() for x in (a, b))
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(whole), b.view(whole))
