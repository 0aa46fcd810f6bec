"""Calls that are made otherwise than as they are written: differentiated twice, on another stream, captured into a graph."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnspec.adapters import device
from attnspec.adapters.answer import Answer
from attnspec.adapters.memory import leaves_of, memories_of
from attnspec.adapters.reading import plain, words
from attnspec.adapters.within import STREAM, direction, quiet
from attnspec.spec import Problem

if TYPE_CHECKING:
    from attnspec.adapters.contract import Adapter


def queued(adapter: Adapter, problem: Problem, how: str) -> Answer:
    """The answer on another stream, or of a captured graph. Unsupported where the device or the arrays have none of torch's."""
    at, memories = device.streams(problem.q.device), [*memories_of(problem).values()]
    if at is None:
        return Answer(unsupported=f"{problem.q.device.type} has no streams")
    if adapter.reading.arrays:
        return Answer(unsupported=f"arrays of {adapter.reading.arrays} are on no stream of torch")
    plainly = adapter.run(problem)  # what the first call compiles takes longer than anything can be late
    if plainly.refusal is not None:
        return plainly
    leaves = leaves_of(problem)
    call = partial(_forward_and_backward, adapter, problem.replace(**leaves), leaves)
    try:
        with quiet():
            o, *gradients = (device.on_another_stream if how == STREAM else device.captured)(at, memories, call)
    except Exception as error:
        return Answer(unsupported=f"it can't be captured into a graph: {words(error)}") if how != STREAM else Answer(error=error)
    return Answer(o.detach(), {f"d{name}": plain(x) for name, x in zip(problem.wrt, gradients, strict=True)})


def _forward_and_backward(adapter: Adapter, problem: Problem, leaves: dict[str, Tensor]) -> list[Tensor]:
    """The output, and the gradients if autograd gives them, of which nothing is looked at meanwhile."""
    call = adapter.call(problem)
    o = call.function(**call.arguments)
    if not problem.wrt:
        return [o]
    return [o, *torch.autograd.grad(o, [leaves[name] for name in problem.wrt], problem.do)]


def second(adapter: Adapter, problem: Problem) -> Answer:
    """The output, and as dq the derivative of ⟨dq, r⟩ with respect to q."""
    leaves = {name: x.detach().clone().requires_grad_(name != "mask") for name, x in problem.inputs().items()}
    try:
        with quiet():
            call = adapter.call(problem.replace(**leaves, lse=False, dlse=None))
            o = plain(call.function(**call.arguments))
            (first,) = torch.autograd.grad(o, leaves["q"], problem.do, create_graph=True)
            (again,) = torch.autograd.grad((first * direction(first).to(first.device)).sum(), leaves["q"])
            return Answer(o.detach(), {"dq": plain(again)})
    except Exception as error:
        return Answer(error=error)
