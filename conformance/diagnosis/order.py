"""Whether the order of calls matters: what an answer keeps of the calls before it (PURITY-5)."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnspec.conformance.problems.case import OPTIONS, PLAIN, Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import in_memory, surrounded
from attnspec.spec import Problem
from attnspec.spec.ragged import repeated_carrier
from attnspec.spec.words import OUTPUTS, RETURNED

if TYPE_CHECKING:
    from attnspec.conformance.subject.subject import Subject

BY_ADDRESS = "wrong only where a tensor reuses the memory of an earlier call: the kernel keeps something by its address"
KEPT = "right in the first call with these shapes, wrong after a call {}: the kernel keeps something of that call"
# The options as an earlier call may have them otherwise, the last that a reduction takes away first.
LAST_FIRST = sorted(OPTIONS.values(), key=lambda own: own.turn or 0, reverse=True)


def others(case: Case, subject: Subject) -> dict[str, dict[str, Any]]:
    """What an earlier call in the same shapes may have had otherwise, in words: numbers, options, or one option alone."""
    found: dict[str, dict[str, Any]] = {"with other numbers": {"seed": case.seed + 1}, "without options": PLAIN}
    for own in LAST_FIRST:
        found |= {words: dict(changes) for words, changes in (own.otherwise(case) if own.otherwise else {}).items()}
    return {words: changes for words, changes in found.items() if fit(replace(case, **changes), subject.adapter) != case}


def earlier(subject: Subject, case: Case) -> tuple[Case, str] | None:
    """A case after which this one is wrong, where it is right if it comes first, and what it has otherwise; else None.

    In shapes never seen: the same numbers can't be asked first twice.
    """

    def wrong(more: int, changes: dict[str, Any], after: bool) -> bool:
        trial = fit(replace(case, i=case.i + more, j=case.keys + more, d=case.d + more), subject.adapter)
        if after:
            subject.judgement(fit(replace(trial, **changes), subject.adapter))
        return bool(subject.judgement(trial).of(RETURNED))

    for number, (words, changes) in enumerate(others(case, subject).items()):
        least = 61 + case.d % 2 + 32 * number  # widths that nothing else asks for are odd, and beyond 59
        if wrong(least, changes, after=False):
            if not number:
                return None  # it is wrong by itself
            continue
        # Which of sixteen sizes come first: in an order that no length, no residue and hardly any chance explains.
        order = [n.bit_count() % 2 == 1 for n in range(16)]
        if all(wrong(least + 2 * n, changes, x) is x for n, x in enumerate(order[1:], 1)):
            return fit(replace(case, **changes), subject.adapter), words
    return None


def wrong_by_itself(subject: Subject, problem: Problem, first: Problem, outputs: tuple[str, ...] = RETURNED) -> bool | None:
    """Whether one of the outputs of a problem that comes after others in the same shapes is wrong also where it comes first.

    False where it is right then, and wrong after the others; None where that can't be told. Both are asked in shapes that were
    never asked: queries and keys are repeated, by which no row changes its answer; where places matter, under causal, in a window
    and with slopes, batch items are, by which lengths stay as they were.
    """
    if not _alike(problem, first):
        return None

    wrong = partial(_wrong, subject, outputs)
    by_place = any(
        x.causal or x.window is not None or x.alibi_slopes is not None or x.carrier is not None for x in (problem, first)
    )

    def in_new_shapes(more: int) -> tuple[Problem, Problem]:
        one, other = (_more_items(x, 11 + more) if by_place else _repeated(x, 3 + more, 5 + more) for x in (problem, first))
        return one, other

    one, other = in_new_shapes(0)
    if wrong(one):
        return True if not by_place and [wrong(x) for x in (other, one, other)] == [False, True, False] else None
    # Which of five more come first: an order that the lengths, where a kernel is wrong at some of them, hardly explain.
    for more, after in enumerate((True, True, False, True, False), 1):
        one, other = in_new_shapes(more)
        if after:
            wrong(other)
        if wrong(one) is not after:
            return None
    return False


def kept_by_address(subject: Subject, problem: Problem, outputs: tuple[str, ...] = OUTPUTS) -> bool:
    """Whether one of the outputs is wrong where the tensors of a problem lie, and right elsewhere, whatever lies around them there.

    What an earlier call left is then found by the address of its memory, which was freed and is in use again.
    """
    wrong = partial(_wrong, subject, outputs)
    if not wrong(problem):
        return False
    elsewhere = [surrounded(problem, number, shown) for number, shown in in_memory(problem.dtype)]
    held = _memory_of_scores(problem)  # an adapter that joins a mask and a bias finds no room where it did before
    right = not any(wrong(other) for other in elsewhere)
    del held
    # Three times more, so that what is wrong now and then is hardly taken for it.
    return right and all(wrong(problem) for _ in range(3))


def _wrong(subject: Subject, outputs: tuple[str, ...], problem: Problem) -> bool:
    """Whether one of the outputs is wrong now."""
    return bool(subject.judge(subject.run(problem), subject.solve(problem)).of(outputs))


def _memory_of_scores(problem: Problem) -> list[Tensor]:
    """Tensors as large as the scores of a problem and as what is broadcast to them: hardly a place that was free stays free."""
    shapes = itertools.product({1, problem.b}, {1, problem.h}, {1, problem.i}, {problem.j})
    make = [(shape, dtype) for shape in shapes if math.prod(shape) <= 1 << 20 for dtype in (problem.dtype, torch.bool)]
    return [torch.empty(shape, dtype=dtype, device=problem.q.device) for shape, dtype in make for _ in range(16)]


def _alike(problem: Problem, other: Problem) -> bool:
    """Whether two problems differ in nothing but their numbers, the scale among them."""
    tensors, others = problem.inputs(), other.inputs()
    options = all(getattr(problem, name) == getattr(other, name) for name in ("causal", "window", "q_start", "dropout", "training"))
    return options and {n: (x.shape, x.dtype) for n, x in tensors.items()} == {n: (x.shape, x.dtype) for n, x in others.items()}


def _repeated(problem: Problem, queries: int, keys: int) -> Problem:
    """The queries and the keys so many times each: no row gives another answer, since every key weighs as much as before.

    A sink is as many times as heavy.
    """

    def repeated(x: Tensor, axis: int, size: int, times: int) -> Tensor:
        return torch.cat([x] * times, axis) if x.ndim >= -axis and x.shape[axis] == size else x

    mask, bias = problem.mask, problem.bias
    if mask is not None:
        mask = repeated(mask if mask.ndim == 2 else repeated(mask, -2, problem.i, queries), -1, problem.j, keys)
    if bias is not None:
        bias = repeated(repeated(bias, -2, problem.i, queries), -1, problem.j, keys)
    q, k, v = torch.cat([problem.q] * queries, -2), torch.cat([problem.k] * keys, -2), torch.cat([problem.v] * keys, -2)
    sinks = None if problem.sinks is None else problem.sinks + math.log(keys)
    cotangents = {name: torch.cat([x] * queries, 2) for name, x in problem.cotangents().items()}
    return problem.replace(q=q, k=k, v=v, mask=mask, bias=bias, sinks=sinks, **cotangents)


def _more_items(problem: Problem, times: int) -> Problem:
    """Each batch item so many times."""

    def repeated(x: Tensor | None, whole: bool) -> Tensor | None:
        return x if x is None or not whole or (x.shape[0] == 1 < problem.b) else torch.cat([x] * times)

    own = {name: torch.cat([x] * times) for name in ("q", "k", "v", "do", "dlse") if (x := getattr(problem, name)) is not None}
    mask, bias = problem.mask, problem.bias
    mask = repeated(mask, mask is not None and mask.ndim != 3)
    bias = repeated(bias, bias is not None and bias.ndim == 4)
    slopes = repeated(problem.alibi_slopes, problem.alibi_slopes is not None and problem.alibi_slopes.ndim == 2)
    start = problem.q_start * times if isinstance(problem.q_start, tuple) else problem.q_start
    carrier = None if problem.carrier is None else repeated_carrier(problem.carrier, times)
    return problem.replace(**own, mask=mask, bias=bias, alibi_slopes=slopes, q_start=start, carrier=carrier)
