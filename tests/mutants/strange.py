"""Kernels whose answer, exception or conduct is strange: each has a clause that it breaks, and none is a failure of the suite."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor


def right(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    """Attention as in the text."""
    scores = q @ k.mT * max(q.shape[-1], 1) ** -0.5
    if is_causal:
        i, j = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(i, j, dtype=torch.bool).triu(j - i + 1), float("-inf"))
    return torch.softmax(scores, -1).nan_to_num(0.0) @ v


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


class Lying(torch.Tensor):
    """A subclass that answers with another tensor than its own."""

    true: Tensor

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*(x.true if isinstance(x, Lying) else x for x in args), **(kwargs or {}))


class NoText(Exception):
    """It can't be printed."""

    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


def _lying(o: Tensor) -> Tensor:
    wrong = (o * 1.5).as_subclass(Lying)
    wrong.true = o
    return wrong


def _fake(o: Tensor) -> Tensor:
    from torch._subclasses import FakeTensorMode

    return FakeTensorMode().from_tensor(o.detach())


def _freed(o: Tensor) -> Tensor:
    o = o.detach().clone()
    o.untyped_storage().resize_(0)
    return o


def _leaked(o: Tensor) -> Tensor:
    kept = []
    torch.func.vmap(lambda x: kept.append(x + 0) or x)(o.detach().reshape(-1)[: max(o.numel(), 1)] if o.numel() else torch.zeros(1))
    return kept[0]


def _raises(error: BaseException) -> Callable[[Tensor], Tensor]:
    def change(o: Tensor) -> Tensor:
        raise error

    return change


def _after(change: Callable[[], object]) -> Callable[[Tensor], Tensor]:
    return lambda o: (change(), o)[1]


def _elsewhere() -> None:
    os.chdir(tempfile.gettempdir() if os.getcwd() != tempfile.gettempdir() else "/")


# name → what becomes of the right output, and the clause that is broken; "" where all is well
STRANGE: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "pair": (lambda o: (o, None), "SHAPE-1"),
    "nothing": (lambda o: None, "SHAPE-1"),
    "sparse": (lambda o: o.to_sparse(), "SHAPE-1"),
    "nested": (lambda o: torch.nested.nested_tensor(list(o.detach()) or [torch.zeros(1)]), "SHAPE-1"),
    "fake": (_fake, "SHAPE-1"),
    "freed": (_freed, "SHAPE-1"),
    "leaked": (_leaked, "SHAPE-1"),
    "scalar": (lambda o: o.sum(), "SHAPE-1"),
    "complex": (lambda o: o.to(torch.complex64), "DTYPE-1"),
    "whole_numbers": (lambda o: o.detach().long(), "DTYPE-1"),
    "elsewhere": (lambda o: o.to("meta"), "DTYPE-3"),
    "negated": (lambda o: torch._neg_view(-o), ""),
    "subclassed": (lambda o: o.as_subclass(Plain), ""),
    "lying": (_lying, "SOFTMAX-1"),
    "no_text": (_raises(NoText()), "SHAPE-2"),
    "lone_surrogate": (_raises(ValueError("a\udcffb")), "SHAPE-2"),
    "fails": (_raises(pytest.fail.Exception("no")), "SHAPE-2"),
    "leaves": (_raises(SystemExit(0)), "SHAPE-2"),
    "device_changed": (_after(lambda: torch.set_default_device("meta")), "PURITY-3"),
    "output_closed": (_after(lambda: sys.stdout.close()), "PURITY-3"),
    "output_exchanged": (_after(lambda: setattr(sys, "stdout", sys.stderr)), "PURITY-3"),
    "python_reseeded": (_after(lambda: random.seed(0)), "PURITY-3"),
    "numpy_reseeded": (_after(lambda: np.random.seed(0)), "PURITY-3"),
    "numpy_strict": (_after(lambda: np.seterr(all="raise")), "PURITY-3"),
    "moved": (_after(_elsewhere), "PURITY-3"),
    "environment_cleared": (_after(os.environ.clear), "PURITY-3"),
}


def _made(name: str) -> Callable[..., object]:
    change = STRANGE[name][0]

    def attend(query, key, value, is_causal=False):
        return change(right(query, key, value, is_causal))

    return attend


for _name in STRANGE:
    globals()[_name] = _made(_name)
