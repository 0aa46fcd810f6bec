"""A function of arrays of another framework, called with tensors; autograd asks it for gradients."""

from __future__ import annotations

from typing import Any

import torch


class Bridge(torch.autograd.Function):
    """One call, and its gradients by the framework's own."""

    @staticmethod
    def forward(ctx: Any, framework: Any, call: Any, *inputs: Any) -> Any:
        """Of a function of arrays, at these tensors."""
        out, ctx.back = framework.vjp(call, [framework.there(x.detach()) for x in inputs])
        ctx.framework, ctx.devices = framework, [x.device for x in inputs]
        return tuple(framework.here(x).to(inputs[0].device) for x in out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Of all that the call returned."""
        found = ctx.back([ctx.framework.there(x) for x in cotangents])
        gradients = (None if x is None else ctx.framework.here(x) for x in found)
        return None, None, *(x if x is None else x.to(device) for x, device in zip(gradients, ctx.devices, strict=True))


def called(function: Any, framework: Any, /, *args: Any, **arguments: Any) -> Any:
    """The function, whose tensors are the framework's arrays; what it returns of them as tensors."""
    given = [*args, *arguments.values()]
    tensors = [n for n, x in enumerate(given) if isinstance(x, torch.Tensor)]
    graded = [n for n in tensors if given[n].requires_grad]
    shapes: list[Any] = []

    def call(*arrays: Any) -> Any:
        """Of those that need a gradient; the others are as they are. It returns its arrays in one list."""
        found = {n: framework.there(given[n]) for n in tensors if n not in graded} | dict(zip(graded, arrays, strict=True))
        values = [found.get(n, x) for n, x in enumerate(given)]
        returned = function(*values[: len(args)], **dict(zip(arguments, values[len(args) :], strict=True)))
        several = isinstance(returned, (tuple, list))
        members = list(returned) if several else [returned]
        shapes[:] = [several, [framework.own(x) for x in members], members]
        return [x for x in members if framework.own(x)]

    if graded and torch.is_grad_enabled() and framework.vjp is not None:
        out = iter(Bridge.apply(framework, call, *(given[n] for n in graded)))  # type: ignore[no-untyped-call]
    else:
        out = iter([framework.here(x).to(given[tensors[0]].device) for x in call(*(framework.there(given[n]) for n in graded))])
    several, own, members = shapes
    found = [next(out) if arrays else x for arrays, x in zip(own, members, strict=True)]
    return tuple(found) if several else found[0]
