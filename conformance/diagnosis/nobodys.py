"""Whether an answer depends on rows that belong to no sequence: the same problem again, with something else in them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attnspec.conformance.subject.subject import Subject
from attnspec.spec import Problem
from attnspec.spec.ragged import POISONS

READ = "rows that belong to no sequence are read: with other numbers in them the answer is another"


def reads_nobodys(subject: Subject, problem: Problem, output: str) -> bool:
    """Whether an output of a ragged problem changes with what stands where nothing may be read.

    Never of an answer that does not come again by itself.
    """
    carrier = problem.carrier
    if carrier is None or (problem.dropout and problem.training):
        return False
    first, again = (subject.run(problem).output(output) for _ in range(2))
    if not _same(first, again):
        return False
    others = (problem.replace(carrier=replace(carrier, poison=poison)) for poison in POISONS if poison != carrier.poison)
    return any(not _same(first, subject.run(other).output(output)) for other in others)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Bit by bit; NaN is NaN."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return one is other
    return torch.equal(one.detach().nan_to_num(7.0), other.detach().nan_to_num(7.0)) and torch.equal(one.isnan(), other.isnan())
