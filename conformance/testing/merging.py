"""A call in parts: its keys split, the parts asked one by one, and what they make when they are merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray as Array

from attnspec.adapters import Answer
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import compare, no_answer
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, answer_of
from attnspec.reference import Exact, Part, merge, merge_error, to_float64
from attnspec.reference.stages import heads
from attnspec.reference.stages.lse import unit
from attnspec.reference.stages.sink import logits
from attnspec.spec import Problem


@dataclass(frozen=True)
class Asked:
    """A part as it was asked: the problem, what came, what is right, and the part in natural units as the kernel has it."""

    problem: Problem
    answer: Answer
    exact: Exact
    part: Part

    @property
    def right(self) -> Part:
        """The part as it is right."""
        return Part(self.exact.forward.o, self.exact.lse)

    def bounds(self, subject: Subject) -> tuple[Array, Array]:
        """How far o and the natural lse of the part may be off. What is exempt may be off by anything."""
        tolerance = self.exact.tolerance(subject.required_class(str(self.problem.dtype)[6:]))
        o, lse = (
            np.where(tolerance.exempt[name] & ~_rows(self.exact, name), np.inf, tolerance.bound[name]) for name in ("o", "lse")
        )
        return o, lse * unit(self.exact.dialect)


def _rows(exact: Exact, name: str) -> Array:
    """Rows with neither a key nor a sink, whose weight is zero whatever they hold."""
    return exact.forward.bare[..., None] if name == "o" else exact.forward.bare


def ask(subject: Subject, problem: Problem) -> Asked:
    """A part, asked. Raises NotApplicable where it has no answer: another clause says so."""
    answer = answer_of(subject, problem)
    if no_answer(answer, problem) is not None:
        raise NotApplicable
    exact = subject.solve(problem)
    return Asked(problem, answer, exact, natural(subject, answer, exact))


def natural(subject: Subject, answer: Answer, exact: Exact) -> Part:
    """What came, its lse natural and with the sink, and −∞ where the choice writes something else into rows without a key."""
    o, lse, rule = to_float64(answer.o), to_float64(answer.lse) * unit(subject.dialect), subject.dialect.lse_empty
    if rule == "plus_inf":
        lse = np.where(np.isposinf(lse), -np.inf, lse)
    alone = subject.dialect.lse_includes_sink == "no"
    if rule == "sentinel":
        lse = np.where(exact.empty if alone else exact.forward.bare, -np.inf, lse)
    if alone and (z := logits(exact._tile.given)) is not None:
        lse = np.logaddexp(lse, z)
    return Part(o, lse)


def must_make(subject: Subject, whole: Asked, parts: Sequence[Asked], merged: Part, what: str) -> None:
    """What parts make when merged must be the whole, as far as both may be off. Raises Broken."""
    bounds = tuple(part.bounds(subject) for part in parts)
    right = tuple(part.right for part in parts)
    allowed = merge_error(merge(*right), bounds, right)
    empty = whole.exact.empty
    for name, of_parts, of_whole in zip(("o", "lse"), allowed, whole.bounds(subject), strict=True):
        got, expected = (getattr(x, name) for x in (merged, whole.part))
        if name == "o" and subject.dialect.empty_row != "zero":  # the whole has then something else than a merge of nothing
            expected = np.where(empty[..., None], 0.0, expected)
        bound = np.where(_rows(whole.exact, name), 0.0, of_parts + of_whole) + np.zeros_like(expected)
        finding, _ = compare(got, expected, bound, np.isinf(bound), name)
        if finding is not None:
            found = replace(finding, kind="relation", message=what)
            raise Broken(found, parts[-1].problem, whole.exact, whole.problem, margin=bound)


def deviations(part: Asked, do: Array, lam: Array) -> dict[str, Array]:
    """How far the gradients of a part move, at most, where its cotangents are off by |do| (b h i e) and |lam| (b h i), natural.

    dS = P∘(dP − D + λ) is linear in both: |δdS| ≤ P (|δdP| + Σ P |δdP| + |δλ|), and |δdv| ≤ Pᵀ |δdo|. In the shapes of the inputs.
    """
    tile, f, problem, grouping = part.exact._tile, part.exact.forward, part.problem, part.exact.dialect.head_grouping
    dp = do @ np.abs(tile.v).swapaxes(-1, -2)
    ds = np.where(f.empty[..., None], 0.0, f.p * (dp + (f.p * dp).sum(-1, keepdims=True) + lam[..., None]))
    dk, dv = abs(tile.scale) * (ds.swapaxes(-1, -2) @ np.abs(tile.q)), f.p.swapaxes(-1, -2) @ do
    return {
        "dq": abs(tile.scale) * (ds @ np.abs(tile.k)),
        "dk": heads.sum_over_group(dk, tuple(problem.k.shape), grouping),
        "dv": heads.sum_over_group(dv, tuple(problem.v.shape), grouping),
    }


def must_equal(got: Array, expected: Array, bound: Array, name: str, what: str, problem: Problem) -> None:
    """Numbers that must be these, within a bound. Raises Broken."""
    finding: Finding | None
    finding, _ = compare(got, expected, bound, ~np.isfinite(bound), name)
    if finding is not None:
        raise Broken(replace(finding, kind="relation", message=what), problem)
