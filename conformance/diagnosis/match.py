"""Whether a mistake gives the numbers of an answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.adapters.forms import as_a_form
from attnspec.conformance.diagnosis.names import Diagnosis
from attnspec.conformance.judging.judge import form, together
from attnspec.conformance.mistakes.power import combined
from attnspec.conformance.mistakes.vocabulary import MISTAKES, OF_SEQUENCES
from attnspec.conformance.subject.subject import Subject
from attnspec.reference import Exact, to_float64
from attnspec.reference.dense import reduce_to
from attnspec.spec import OPTIONS, Problem
from attnspec.spec.words import RETURNED

BREADTH = 32.0  # an answer with a mistake may be further from it than a right one from right: its scores may be larger
BREADTH_OF_HALVES = 3.0  # the same for half types, whose bounds are wide already
BLIND = 60  # a problem that more mistakes explain than this has bounds too wide to tell them apart: then it is by CLOSE
CLOSE = 3.0  # decimal digits, at the mean of the failing elements, by which they are nearer to a mistake than to right
OF_OPTIONS = {f"d{name}": own.axes for name, own in OPTIONS.items() if own.gradient}
AXES = {"o": "bhie", "lse": "bhi", "dq": "bhid", "dk": "bgjd", "dv": "bgje", **OF_OPTIONS}
AXIS = {"b": "batch item", "h": "head", "g": "key/value head", "i": "query", "j": "key", "d": "channel", "e": "channel"}


@dataclass(frozen=True)
class Seen:
    """One problem as it was answered: by output what came and what is right, the bound, and which elements are outside."""

    problem: Problem
    exact: Exact
    got: dict[str, Array]
    right: dict[str, Array]
    bound: dict[str, Array]
    outside: dict[str, Array]
    presented: Exact | None = None  # of the problem as the convention puts it, where that is another

    def given(self, mistake: str) -> list[dict[str, Array]]:
        """What a mistake gives: at the problem, and at the problem as it is presented."""
        found = []
        for exact in (self.exact, self.presented):
            if exact is None:
                continue
            in_a_form = exact is not self.exact and exact.problem.carrier is not self.problem.carrier
            if in_a_form and mistake not in OF_SEQUENCES:  # it is the same dense problem, in other tensors
                continue
            merged = exact is not self.exact and exact.problem.mask is None and mistake.startswith("mask_")
            name = mistake.replace("mask_", "bias_", 1) if merged else mistake  # it is read as the bias is
            problem = self.forward[id(exact)] if self.scope in (("o",), ("lse",)) else exact.problem
            wrong = MISTAKES[name].wrong(problem, exact.dialect, exact) if name in MISTAKES else None
            if wrong is None:
                continue
            if exact is self.presented and "dbias" in wrong:  # what reaches the bias through the mask it was merged with
                wrong = wrong | {"dbias": reduce_to(wrong["dbias"], self.exact.values["dbias"].shape)}
            found.append(wrong)
        return found

    @cached_property
    def forward(self) -> dict[int, Problem]:
        """The problems without gradients, which nobody looks at where the output is wrong, and which cost more than it."""
        both = (exact for exact in (self.exact, self.presented) if exact is not None)
        return {id(exact): exact.problem.replace(do=None, dlse=None) for exact in both}

    @cached_property
    def noise(self) -> dict[str, float]:
        """By output what rounding may leave where all terms cancel: a unit in the last place of the largest."""
        tensors = {name: x for name in ("q", "k", "v", "do") if (x := getattr(self.problem, name)) is not None}
        x = {name: float(t.detach().abs().nan_to_num(posinf=0).max()) if t.numel() else 0.0 for name, t in tensors.items()}
        eps, dp = float(torch.finfo(self.problem.dtype).eps), x.get("do", 0.0) * x["v"] * self.problem.e
        ds = dp * max(abs(self.problem.scale or 0.0), max(self.problem.d, 1) ** -0.5)
        score = x["q"] * x["k"] * max(abs(self.problem.scale or 0.0), max(self.problem.d, 1) ** -0.5)
        sizes = {"o": x["v"], "lse": score, "dq": ds * x["k"], "dk": ds * x["q"], "dv": x.get("do", 0.0)}
        sizes |= dict.fromkeys(OF_OPTIONS, dp)
        sizes["dalibi_slopes"] = dp * max(self.problem.i, self.problem.j)
        return {name: eps * size for name, size in sizes.items()}

    @cached_property
    def scales(self) -> dict[str, tuple[Array, Array, Array, float]]:
        """By output, for :func:`_room`, which is asked for each mistake: bound, size, bound of the row, and its usual share."""
        found = {}
        for name, limit in self.bound.items():
            bound, right = np.nan_to_num(limit, nan=0.0, posinf=0.0), np.abs(np.nan_to_num(self.right[name]))
            share = float(torch.finfo(self.problem.dtype).eps)
            row = bound.max(-1, keepdims=True) if bound.size else bound
            if bound.size:
                most = right.max(-1, keepdims=True)
                clear = most > row  # where terms cancel, the bound is no share of what is left
                share = float(np.median(row[clear] / most[clear])) if clear.any() else share
            if self.problem.dtype == torch.float64:
                share = max(share, 2.0**-21)  # a constant may have been written in float32
            found[name] = (bound, right, row, share)
        return found

    @cached_property
    def scope(self) -> tuple[str, ...]:
        """The outputs that are to be explained: a wrong output makes wrong gradients, so then it alone."""
        failing = tuple(name for name, outside in self.outside.items() if outside.any())
        return next(((name,) for name in RETURNED if name in failing), failing)


@dataclass(frozen=True)
class Fit:
    """How a mistake fits one failing problem: the share of what it changes that is right, the digits that agree, and where."""

    spared: float
    digits: float
    only: str = ""
    late: bool = False  # it is a mistake of the forward, and the output is right
    near: float = 0.0  # digits at the mean of the failing elements


def look(subject: Subject, problem: Problem, exact: Exact | None = None) -> Seen | None:
    """The problem asked (once more), or None where no answer of the right form came."""
    answer = subject.run(problem)
    # Where a form lays out the call, it is copies that the call wrote to: what it answered is an answer to this problem.
    if answer.refusal is not None or (answer.changed and problem.carrier is None):
        return None
    exact = exact if exact is not None else subject.solve(problem)
    tolerance = exact.tolerance(subject.required_class(str(problem.dtype)[6:]))
    got, right, bounds, outside = {}, {}, {}, {}
    for name in problem.outputs:
        tensor = answer.output(name)
        value, bound, exempt = together(exact, tolerance.bound, tolerance.exempt, name)
        if tensor is None or form(tensor, name, value.shape, problem, name, exact.dialect) is not None:
            continue
        x = to_float64(tensor)
        with np.errstate(invalid="ignore"):
            wrong = ~((np.abs(x - value) <= bound) | (x == value) | (np.isnan(x) & np.isnan(value))) & ~exempt
        got[name], right[name], bounds[name], outside[name] = x, value, bound, wrong
    put = _presented(subject, problem)
    other = put.mask is not problem.mask or put.bias is not problem.bias or put.carrier is not problem.carrier
    return Seen(problem, exact, got, right, bounds, outside, subject.solve(put) if other else None)


def _presented(subject: Subject, problem: Problem) -> Problem:
    """The problem as the convention puts it: merged, or in a form where it has no other words for a dense one."""
    form = subject.adapter.dense_form
    if form and problem.carrier is None and problem.mask is None and problem.bias is None and not problem.shared:
        return as_a_form(problem, form, subject.adapter.restrictions)
    return subject.adapter.presented(problem)


def _room(seen: Seen, name: str, wrong: Array) -> Array:
    """How far an answer may be from what a mistake gives: the bound of its row, in proportion where the mistake is larger."""
    bound, right, row, share = seen.scales[name]
    if not bound.size:
        return bound
    breadth = BREADTH if seen.problem.dtype in (torch.float32, torch.float64) else BREADTH_OF_HALVES
    finite, least = np.abs(np.where(np.isfinite(wrong), wrong, 0.0)), np.finfo(float).tiny
    room = np.maximum(np.maximum(row, breadth * share * finite.max(-1, keepdims=True)), least) + np.zeros_like(bound)
    # What must be exactly zero has no error of its own: there the mistake's must be told by its own size, and where its terms
    # cancel, by theirs, which are as large as what does not cancel.
    own = np.minimum(room, breadth * share * finite + least)
    return np.where(right > 0, room, np.maximum(np.where(bound == 0, own, room), seen.noise[name]))


def _away(given: Array, seen: Seen, name: str) -> Array:
    """Where what a mistake gives is another than the right answer."""
    right, room = seen.right[name], np.maximum(_room(seen, name, given), 2 * np.nan_to_num(seen.bound[name]))
    with np.errstate(invalid="ignore"):
        return ~((np.abs(given - right) <= room) | (given == right) | (np.isnan(given) & np.isnan(right)))


def _agrees(given: Array, seen: Seen, name: str) -> Array:
    """Where an answer is what a mistake gives."""
    got, room = seen.got[name], _room(seen, name, given)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return (np.abs(got - given) <= room) | (got == given) | (~np.isfinite(got) & ~np.isfinite(given))


def explains(wrong: dict[str, Array], seen: Seen) -> Fit | None:
    """How an answer with a mistake fits what came, None where it does not: some element outside is something else."""
    near, changed, spared, only = [np.zeros(0)], 0, 0, []  # type: list[Array], int, int, list[str]
    names = [
        name for name in seen.got if name in RETURNED or seen.scope[:1] not in (("o",), ("lse",))
    ]  # else gradients of a wrong output

    def gives(name: str) -> bool:
        given = combined(wrong, seen.exact, name)
        return given.shape == seen.got[name].shape and bool(_agrees(given, seen, name)[seen.outside[name]].all())

    if not all(map(gives, seen.scope)):  # so it is with most mistakes: nothing else is asked of them
        return None
    for name in names:
        given = combined(wrong, seen.exact, name)
        got, right, outside = seen.got[name], seen.right[name], seen.outside[name]
        if given.shape != got.shape:
            return None
        agree, shows = _agrees(given, seen, name), _away(given, seen, name)
        if name in seen.scope:
            error, eps = np.abs(got - right)[outside], float(torch.finfo(seen.problem.dtype).eps)
            with np.errstate(invalid="ignore", divide="ignore"):
                left = np.maximum(np.abs(got - given)[outside], eps * np.abs(given)[outside])
                near.append(np.clip(np.nan_to_num(np.log10(error / left), nan=1.0, posinf=6.0), -1, 6))
        missed = shows & ~outside & ~agree
        changed, spared = changed + int(shows.sum()), spared + int(missed.sum())
        if missed.any() and outside.any():
            only += _where(name, outside, shows)
    late = "o" in seen.right and "o" not in seen.scope and bool(np.any(_away(combined(wrong, seen.exact, "o"), seen, "o")))
    digits = np.concatenate(near)
    return Fit(
        spared / changed if changed else 0.0,
        float(digits.sum()),
        ", ".join(dict.fromkeys(only)),
        late,
        float(digits.mean()) if digits.size else 0.0,
    )


def _where(name: str, outside: Array, shows: Array) -> list[str]:
    """Along which axes the wrong elements are a part of those that the mistake would show in."""
    words, letters = [], AXES[name][-outside.ndim :] if outside.ndim == 4 or name == "lse" else ""
    for axis, letter in enumerate(letters):
        others = tuple(n for n in range(outside.ndim) if n != axis)
        wrong, possible = np.flatnonzero(outside.any(others)), np.flatnonzero(shows.any(others))
        if 0 < len(wrong) < len(possible) and len(wrong) == wrong[-1] - wrong[0] + 1:
            n = outside.shape[axis]
            first, last = int(wrong[0]), int(wrong[-1])
            place = f"{first}" if first == last else f"{first} to {last}"
            words.append(f"{AXIS[letter]} {place} of {n}" if letter != "b" or n > 1 else "")
    return [word for word in words if word]


def screen(seen: Seen, among: Iterable[str]) -> dict[str, Fit] | None:
    """The mistakes among these that explain a failing problem; None where its bounds are too wide to tell."""
    found = {}
    with np.errstate(all="ignore"):
        for name in among:
            fits = [fits for wrong in seen.given(name) if (fits := explains(wrong, seen)) is not None]
            if fits:
                found[name] = min(fits, key=lambda one: one.spared)
    if len(found) <= BLIND:
        return found
    return {name: one for name, one in found.items() if one.near >= CLOSE} or None


def place(name: str, seen: Seen | None) -> str:
    """Where in this problem, of all places in which a mistake would show, it does: "head 2 of 3", or "" for everywhere."""
    fits = screen(seen, [name]) if seen is not None and seen.scope else None
    return fits[name].only if fits else ""


def placed(diagnosis: Diagnosis | None, subject: Subject, problem: Problem, exact: Exact) -> Diagnosis | None:
    """The diagnosis with the place in which the mistake shows in this problem."""
    if diagnosis is None or not diagnosis.best:
        return diagnosis
    return replace(diagnosis, only=place(diagnosis.best[0], look(subject, problem, exact)))


def _far(wrong: dict[str, Array], seen: Seen, values: dict[str, Array], outputs: Iterable[str]) -> bool:
    """Whether what a mistake gives is clearly not these values."""
    for output in outputs:
        given, value = combined(wrong, seen.exact, output), values[output]
        far = np.abs(given - value) > 2 * np.maximum(_room(seen, output, given), seen.bound[output])
        if (far | (~np.isfinite(given) & np.isfinite(value))).any():
            return True
    return False


def clearly(wrong: dict[str, Array], seen: Seen) -> bool:
    """Whether what a mistake gives is clearly not what came."""
    return _far(wrong, seen, seen.got, seen.got)


def shows(name: str, seen: Seen) -> bool:
    """Whether a mistake would have shown in a problem that was answered rightly, however it was put."""
    with np.errstate(all="ignore"):
        given = seen.given(name)
        return bool(given) and all(clearly(wrong, seen) for wrong in given)


def touches(name: str, seen: Seen) -> bool:
    """Whether a mistake changes an output that is wrong in a failing problem, so that it may be part of what is wrong."""
    with np.errstate(all="ignore"):
        return any(_far(wrong, seen, seen.right, seen.scope) for wrong in seen.given(name))


def explained_by(subject: Subject, problem: Problem) -> frozenset[str]:
    """The mistakes that explain a failing problem by itself."""
    seen = look(subject, problem)
    return frozenset(screen(seen, MISTAKES) or () if seen is not None and seen.scope else ())
