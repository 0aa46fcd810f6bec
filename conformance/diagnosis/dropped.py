"""What an implementation does instead of dropout, read out of an answer to a problem whose values are one-hot.

There o_ij is what multiplied v_j: the probability, times what dropout made of it. The pattern is read out of the answer, so
what was drawn need not be known; what follows from it, forward and backward, is algebra (DROPOUT-1, DROPOUT-2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.adapters import Answer
from attnspec.adapters.within import Within
from attnspec.conformance.judging.judge import no_answer
from attnspec.conformance.mistakes.kernel import Kernel
from attnspec.reference import Exact, to_float64
from attnspec.spec import Problem

if TYPE_CHECKING:
    from attnspec.conformance.subject.subject import Subject

# A count this many standard deviations off has a chance below 10⁻¹⁰; the seeds are fixed, so it is drawn once for all.
SIGMAS = 6.5


def one_hot(problem: Problem) -> bool:
    """Whether the values are, so that the output is what multiplied each of them."""
    eye = torch.eye(problem.v.shape[-2], problem.v.shape[-1], dtype=problem.v.dtype, device=problem.v.device)
    return problem.j == problem.e and bool((problem.v == eye).all())


def dropped(subject: Subject, problem: Problem) -> tuple[list[str], int]:
    """The mistakes that explain the answers to a problem with dropout in training, and on how many answers this rests."""
    if not one_hot(problem):
        return [], 0
    exact, names, asked = subject.solve(problem.replace(dropout=0.0)), None, 0
    for seed in range(3):
        first, second = subject.run(problem, Within(seed=seed)), subject.run(problem)
        if any(no_answer(x, problem) is not None for x in (first, second)):
            return [], 0
        found = list(_patterns(problem, exact, *(to_float64(x.o) for x in (first, second))))
        if not found:
            found = list(_gradients(subject, problem, exact, first))
        names, asked = found if names is None else [name for name in names if name in found], asked + 1
    return names or [], asked


def _patterns(problem: Problem, exact: Exact, o: Array, again: Array) -> Iterator[str]:
    """What the output of two calls shows: first what became of what is kept, then how the pattern was drawn."""
    rate, p, visible = problem.dropout, exact.values["o"], exact.forward.visible
    if rate == 1:
        if np.isnan(o).any():
            yield "dropout_of_one_nan"
        return
    keep = (o != 0) | (p == 0)
    kept = np.where(keep, p, 0.0)
    like = torch.finfo(problem.dtype).eps ** 0.5 if problem.dtype != torch.float64 else 1e-6

    def same(x: Array) -> bool:
        return bool((np.abs(o - x) <= like * np.abs(x)).all())

    if keep[visible].all():
        if same(p):
            yield "dropout_not_done"
        return
    total, n, share = kept.sum(-1, keepdims=True), int(visible.sum()), float(keep[visible].mean())
    spread = SIGMAS * (rate * (1 - rate) / n) ** 0.5
    if not same(kept / (1 - rate)):
        for name, x in (
            ("dropout_not_rescaled", kept),
            ("dropout_divided_by_rate", kept / rate),
            ("dropout_renormalised", kept / np.where(total == 0, 1.0, total)),
        ):
            if same(x):
                exchanged = name == "dropout_divided_by_rate" and abs(share - rate) <= spread < abs(1 - 2 * rate)
                yield "dropout_rate_exchanged" if exchanged else name
        return
    for name, axis in (("dropout_same_for_items", 0), ("dropout_same_for_heads", 1)):
        if keep.shape[axis] > 1 and (keep == keep.take([0], axis)).all():
            yield name
            return
    for name, axis in (("dropout_of_whole_keys", 2), ("dropout_of_whole_rows", 3)):
        if keep.shape[axis] > 1 and ((keep == keep.take([0], axis)) | ~visible).all():
            yield name
            return
    pairs = keep[..., : keep.shape[-1] // 2 * 2]
    if (pairs[..., ::2] == pairs[..., 1::2]).all():
        yield "dropout_in_pairs"
    elif keep.shape[-1] > 16 and (keep[..., 16:] == keep[..., :-16]).all():
        yield "dropout_repeats_each_16_keys"
    elif (keep == ((again != 0) | (p == 0))).all():
        yield "dropout_seed_fixed"
    elif keep[..., 0].all():
        yield "dropout_never_the_first_key"
    elif abs(share - (1 - rate)) > spread:
        yield "dropout_at_another_rate"


def _gradients(subject: Subject, problem: Problem, exact: Exact, answer: Answer) -> Iterator[str]:
    """What the gradients of an answer show whose output is right."""
    if problem.do is None:
        return
    x, rate = Kernel(problem, exact.dialect), problem.dropout
    keep = ((to_float64(answer.o) != 0) | (x.p == 0)).astype(float)
    right = subject.solve(problem, keep.astype(bool))
    bound = right.tolerance(subject.required_class(str(problem.dtype)[6:])).bound
    got = {output: to_float64(gradient) for output, gradient in answer.gradients.items() if gradient is not None}
    if all((np.abs(y - right.values[output]) <= bound[output]).all() for output, y in got.items()):
        return

    def away(values: dict[str, Array]) -> float:
        """By the norm, in units of the largest bound of each output."""
        return sum(float(np.square((y - values[output]) / bound[output].max()).sum()) for output, y in got.items()) ** 0.5

    drop = keep / (1 - rate)
    block = keep[..., np.arange(x.j) % 16] / (1 - rate)

    def backward(values: Array, scores: Array) -> dict[str, Array]:
        """The gradients where dv is made of p times `values`, and dP times `scores`."""
        dp = x.dp * scores
        return x.of_values(x.p * values) | x.of_scores(x.p * (dp - (x.p * drop * x.dp).sum(-1, keepdims=True)))

    one = np.ones_like(keep)
    of_output = backward(drop, drop)
    of_output["dv"] = x.summed(x.p.swapaxes(-1, -2) @ (x.do * drop), x.v)
    for name, wrong in (
        ("dropout_of_output", of_output),
        ("dropout_forgotten_in_scores", backward(drop, one)),
        ("dropout_forgotten_in_backward", backward(one, one)),
        ("dropout_not_rescaled_in_backward", backward(keep, keep)),
        ("dropout_first_block_in_backward", backward(block, block)),
    ):
        if away(wrong) < 0.2 * away(right.values):
            yield name
