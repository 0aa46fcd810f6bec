"""What an implementation does instead: the canonical mistake that gives its wrong answers, told apart from all others.

A mistake explains a failing problem where each element that is outside of its bound is what the mistake gives. Elements that
are right may stay right: a fault of one path, one head or one block is still that mistake, and where it shows is said.
What is said of a failure explains every problem that was asked about it: the one on which it was met, the one that it was
reduced to, others that failed alike, and probes that differ from them in one size or lack one option. A probe that is
answered rightly counts against a mistake that would have shown there, so that the narrowest name is left.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.conformance.diagnosis.blame import ROUNDED
from attnspec.conformance.diagnosis.dropped import dropped
from attnspec.conformance.judging.judge import form, together
from attnspec.conformance.mistakes.canonical import MISTAKES, asked_outputs, combined
from attnspec.conformance.mistakes.kernel import reduced
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.shrink import as_case
from attnspec.reference import Exact, to_float64
from attnspec.spec import CHOICES, Dialect, Problem

if TYPE_CHECKING:
    from attnspec.conformance.subject.subject import Subject

SECONDS = 4.0  # of this thread, for one failure: what a busy machine may not change
EVIDENCE = 6  # failing problems of the run that one diagnosis must explain, beside its own two and the probes
CERTAIN = 7.0  # decimal digits by which failing elements must agree with a mistake rather than with the right answer, in all
FEW = 3  # what rests on fewer problems than these may have no exceptions, and be nothing special
BREADTH = 32.0  # an answer with a mistake may be further from it than a right one from right: its scores may be larger
BREADTH_OF_HALVES = 3.0  # the same for half types, whose bounds are wide already
BLIND = 60  # a problem that more mistakes explain than this has bounds too wide to tell them apart: then it is by CLOSE
CLOSE = 3.0  # decimal digits, at the mean of the failing elements, by which they are nearer to a mistake than to right
# What a name costs beside the problems that it would have shown in, and did not: one that is special, or fits nearly everything.
SPECIAL, COARSE = 0.4, 0.7
ENORMOUS = ("lowest", "shift")  # biases, beside which a mistake and rounding are hard to tell apart
AXES = {"o": "bhie", "dq": "bhid", "dk": "bgjd", "dv": "bgje", "dbias": "bhij"}
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
            merged = exact is not self.exact and exact.problem.mask is None and mistake.startswith("mask_")
            name = mistake.replace("mask_", "bias_", 1) if merged else mistake  # it is read as the bias is
            problem = self.forward[id(exact)] if self.scope == ("o",) else exact.problem
            wrong = MISTAKES[name].wrong(problem, exact.dialect, exact) if name in MISTAKES else None
            if wrong is None:
                continue
            if exact is self.presented and "dbias" in wrong:  # what reaches the bias through the mask it was merged with
                wrong = wrong | {"dbias": reduced(wrong["dbias"], self.exact.values["dbias"].shape)}
            found.append(wrong)
        return found

    @cached_property
    def forward(self) -> dict[int, Problem]:
        """The problems without gradients, which nobody looks at where the output is wrong, and which cost more than it."""
        both = (exact for exact in (self.exact, self.presented) if exact is not None)
        return {id(exact): exact.problem.replace(do=None) for exact in both}

    @cached_property
    def noise(self) -> dict[str, float]:
        """By output what rounding may leave where all terms cancel: a unit in the last place of the largest."""
        tensors = {name: x for name in ("q", "k", "v", "do") if (x := getattr(self.problem, name)) is not None}
        x = {name: float(t.detach().abs().nan_to_num(posinf=0).max()) if t.numel() else 0.0 for name, t in tensors.items()}
        eps, dp = float(torch.finfo(self.problem.dtype).eps), x.get("do", 0.0) * x["v"] * self.problem.e
        ds = dp * max(abs(self.problem.scale or 0.0), max(self.problem.d, 1) ** -0.5)
        sizes = {"o": x["v"], "dq": ds * x["k"], "dk": ds * x["q"], "dv": x.get("do", 0.0), "dbias": dp}
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
        return ("o",) if "o" in failing else failing


@dataclass(frozen=True)
class Fit:
    """How a mistake fits one failing problem: the share of what it changes that is right, the digits that agree, and where."""

    spared: float
    digits: float
    only: str = ""
    late: bool = False  # it is a mistake of the forward, and the output is right
    near: float = 0.0  # digits at the mean of the failing elements


@dataclass(frozen=True)
class Diagnosis:
    """What explains a failure. cost: of each mistake that does, the likeliest first, its exceptions and how special it is."""

    cost: dict[str, float] = field(default_factory=dict)
    only: str = ""
    asked: int = 0  # problems that it explains
    whole: bool = False  # in each of them all that the mistake would change is wrong

    @property
    def best(self) -> tuple[str, ...]:
        """The one mistake, or the two that nothing tells apart; none where there are more that share no name."""
        return told(self.cost)


def _exceptions(cost: dict[str, float]) -> dict[str, float]:
    """Of what mistakes cost the part that is not about how special or coarse they are."""
    return {name: round(x - SPECIAL * MISTAKES[name].special - COARSE * MISTAKES[name].coarse, 9) for name, x in cost.items()}


def told(cost: dict[str, float]) -> tuple[str, ...]:
    """Which of the mistakes that explain a failure are said: one, or two that nothing tells apart, or what their like is called."""
    exceptions = _exceptions(cost)
    plain = {name: x + COARSE * MISTAKES[name].coarse for name, x in exceptions.items()}
    if any(MISTAKES[name].coarse for name in cost):  # as plain a thing as zeros explains it all: nothing special with exceptions
        special = {name for name, x in exceptions.items() if x and MISTAKES[name].special and not MISTAKES[name].coarse}
        plain, cost = ({name: x for name, x in values.items() if name not in special} for values in (plain, cost))
    tied = [name for name in cost if plain[name] <= min(plain.values()) + 1e-9]
    families: dict[str, list[str]] = {}
    for name in tied:
        families.setdefault(MISTAKES[name].of or name, []).append(name)
    choices = CHOICES.values()  # whatever else would look the same
    choice = any(name == open_.mistake or name.startswith(f"{open_.name}_") for name in tied for open_ in choices)
    if len(families) > 2 or (choice and len(tied) > 2):
        families = {family: names for family, names in families.items() if not all(MISTAKES[name].special for name in names)}
    if len(families) > 2:
        return ()
    return tuple(family if len(names) > 1 and family in MISTAKES else names[0] for family, names in families.items())


def look(subject: Subject, problem: Problem, exact: Exact | None = None) -> Seen | None:
    """The problem asked (once more), or None where no answer of the right form came."""
    answer = subject.run(problem)
    if answer.refusal is not None or answer.changed:
        return None
    exact = exact if exact is not None else subject.solve(problem)
    tolerance = exact.tolerance(subject.required_class(str(problem.dtype)[6:]))
    got, right, bounds, outside = {}, {}, {}, {}
    for name in asked_outputs(problem):
        tensor = answer.o if name == "o" else answer.gradients.get(name)
        value, bound, exempt = together(exact, tolerance.bound, tolerance.exempt, name)
        if form(tensor, name, value.shape, problem, name) is not None:
            continue
        x = to_float64(tensor)
        with np.errstate(invalid="ignore"):
            wrong = ~((np.abs(x - value) <= bound) | (x == value) | (np.isnan(x) & np.isnan(value))) & ~exempt
        got[name], right[name], bounds[name], outside[name] = x, value, bound, wrong
    put = subject.adapter.presented(problem)
    other = put.mask is not problem.mask or put.bias is not problem.bias
    return Seen(problem, exact, got, right, bounds, outside, subject.solve(put) if other else None)


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
    names = [name for name in seen.got if name == "o" or "o" not in seen.scope]  # else gradients of a wrong output

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
    words, letters = [], AXES[name][-outside.ndim :] if outside.ndim == 4 else ""
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


def shows(name: str, seen: Seen) -> bool:
    """Whether a mistake would have shown in a problem that was answered rightly, however it was put."""
    with np.errstate(all="ignore"):
        given = seen.given(name)
        return bool(given) and all(_far(wrong, seen, seen.got, seen.got) for wrong in given)


def touches(name: str, seen: Seen) -> bool:
    """Whether a mistake changes an output that is wrong in a failing problem, so that it may be part of what is wrong."""
    with np.errstate(all="ignore"):
        return any(_far(wrong, seen, seen.right, seen.scope) for wrong in seen.given(name))


def calmer(case: Case) -> Case:
    """Without enormous biases."""
    return replace(case, biases="normal") if case.biases in ENORMOUS else case


def probes(case: Case, subject: Subject) -> Iterator[Case]:
    """Cases that differ from this one in one thing."""
    if case.biases in ENORMOUS:  # what these do to a row is no more alike than what else is far from zero
        (other,) = (biases for biases in ENORMOUS if biases != case.biases)
        yield from (fit(replace(case, biases=other, seed=case.seed + n), subject.adapter) for n in range(3))
    case = calmer(case)
    for name, simple in (
        ("mask", "none"),
        ("bias", "none"),
        ("causal", False),
        ("scale", None),
        ("layout", "contiguous"),
        ("do", "dense"),
    ):
        if getattr(case, name) != simple:
            yield fit(replace(case, **{name: simple}), subject.adapter)
    if case.bias != "none":
        yield replace(case, biases="inf" if case.biases != "inf" else "normal")
    if case.h > 1:
        yield fit(replace(case, heads={"mha": "3/3", "mqa": "9/3", "gqa": "9/3"}.get(case.sharing, "3/shared")), subject.adapter)
    j, i = case.keys, case.i
    # Long enough for a second block of any size, and for what only long rows show.
    yield fit(replace(case, b=min(case.b, 2), i=i + 130, j=j + 130, d=min(case.d, 16), e=min(case.e, 24)), subject.adapter)
    for change in (
        {"j": j + 1},
        {"j": j + 5, "i": i + 1, "values": "normal", "scale": None},
        {"j": j + 18, "i": i + 18},
        {"i": i + 3, "j": j},
        {"b": case.b + 1},
        {"d": case.d + 18},
        {"d": case.d + 66},
        {"seed": case.seed + 1},
    ):
        yield fit(replace(case, **change), subject.adapter)
    if case.values != "normal":
        yield replace(case, values="normal")
    if case.scale is not None:
        yield replace(case, scale=0.7 if case.scale != 0.7 else 0.3)
    if case.wrt not in ("all", "none"):
        yield replace(case, wrt="all")


def shuffled(problem: Problem, seed: int) -> Problem:
    """The problem with what its tensors hold in another order, some of it halved or negated, in the same strides."""
    order, seen = torch.Generator().manual_seed(seed), {}  # type: tuple[torch.Generator, dict[int, object]]
    other = {name: copy.deepcopy(x, seen) for name, x in problem.inputs().items()}  # what is one tensor stays one
    for x in other.values():
        if not any(stride == 0 < size - 1 for size, stride in zip(x.shape, x.stride(), strict=True)):
            x.copy_(x.flatten()[torch.randperm(x.numel(), generator=order).to(x.device)].view(x.shape))
            if x.is_floating_point():
                x *= torch.tensor((1.0, -1.0, 0.5, -0.5)).to(x)[torch.randint(4, x.shape, generator=order).to(x.device)]
    return problem.replace(**other)


def dense(problem: Problem) -> Problem:
    """The problem with contiguous tensors."""
    return problem.replace(**{name: x.contiguous() for name, x in problem.inputs().items()})


def finer(case: Case, subject: Subject, alone: bool) -> list[Case]:
    """The case in the widest dtype of the implementation, where the fault is not in one dtype alone, and as it is."""
    if alone:
        return [case]
    wide = next((dtype for dtype in ("float64", "float32") if dtype in subject.dtypes), case.dtype)
    return [case] if case.dtype == wide or case.biases == "lowest" else [replace(case, dtype=wide), case]


def steady(subject: Subject, problem: Problem) -> bool:
    """Whether an answer comes again; of one that varies nothing is said."""
    first, second = subject.run(problem), subject.run(problem)
    same = isinstance(first.o, torch.Tensor) and isinstance(second.o, torch.Tensor) and first.o.shape == second.o.shape
    return same and first.o.dtype == second.o.dtype and torch.allclose(first.o, second.o, rtol=1e-3, atol=1e-30, equal_nan=True)


def diagnose(
    subject: Subject,
    problem: Problem,
    exact: Exact | None,
    cases: Iterable[Case],
    before: Iterable[str] = (),
    met: Problem | None = None,
) -> Diagnosis | None:
    """What explains a failing problem and the cases that fail like it; None where no canonical mistake does.

    The problem comes first; cases are the one on which it was met and others of the run. Probes are made of the first case.
    before: mistakes that were found already, which are enough where one of them explains all of it. met: the problem that a test
    made of the first case, before it was reduced; where the case by itself is answered rightly, such problems are the evidence.
    """
    if problem.training and problem.dropout:  # what is right depends on what was drawn
        found, asked = dropped(subject, problem)
        return Diagnosis(dict.fromkeys(found, 0.0), "", asked, True) if found else None
    cases, before = list(dict.fromkeys(cases)), [name for name in before if name in MISTAKES]

    @cache
    def seen_in(case: Case) -> Seen | None:
        return look(subject, subject.problem(case))

    def right(case: Case) -> bool:
        return (seen := seen_in(case)) is not None and not seen.scope

    alone = any(right(wide) for case in cases[:1] for wide in finer(case, subject, False)[:-1])
    calm = as_case(problem).biases not in ENORMOUS  # then what fails there fails without them, too
    first = (calmer(case) if calm else case for case in cases[:1])
    further = (calmer(case) for case in cases[1 : 1 + EVIDENCE])
    evidence: list[Case | Problem | Callable[[], Problem]] = []
    evidence += [x for case in (*first, *further) for x in finer(case, subject, alone)]
    evidence += [finer(probe, subject, alone)[0] for case in cases[:1] for probe in probes(case, subject)]
    # Copies are made when they are asked for: most failures need none.
    others = [partial(shuffled, problem, seed) for seed in range(6)]
    made = [] if met is None else [met, *(partial(shuffled, met, seed) for seed in range(4))]
    if made and cases and right(cases[0]):
        cases, evidence = [], []  # it is the test that makes it fail
    evidence = [problem, *made[:1], *dict.fromkeys(evidence), partial(dense, problem), *made[1:], *others]

    @cache
    def seen_at(n: int) -> Seen | None:
        this = evidence[n]
        if isinstance(this, Case):
            return seen_in(this)
        return look(subject, this if isinstance(this, Problem) else this(), None if n else exact)

    if not steady(subject, problem):
        drops = problem.dropout and steady(subject, problem.replace(dropout=0.0))
        return Diagnosis({"dropout_in_evaluation": 0.0}, "", 1, True) if drops else None
    known = _diagnose(seen_at, evidence, before) if before else None
    if known is not None and not min(_exceptions(known.cost).values()):
        return known
    return _diagnose(seen_at, evidence, MISTAKES, before)


def _diagnose(
    seen_at: Callable[[int], Seen | None], evidence: Sequence[Any], among: Iterable[str], others: Sequence[str] = ()
) -> Diagnosis | None:
    """Which of these mistakes explain all of the evidence, the problem itself being the first of it.

    What fails by another fault, too, is no evidence: where one of the mistakes `others`, found already, gives what is wrong or
    is part of it, or in its output where the problem itself is wrong in its gradients alone.
    """
    started, cases = time.thread_time(), any(isinstance(this, Case) for this in evidence)
    alive: dict[str, list[Fit]] | None = None
    against: dict[str, float] = {}
    scope: tuple[str, ...] | None = None
    asked = 0
    for n, this in enumerate(evidence):
        if (alive is not None and not alive) or time.thread_time() - started > SECONDS:
            break
        if n > 1 and cases and asked > 2 and not isinstance(this, Case):
            break  # only where it was the test that made the problem do cases say little of it
        seen = seen_at(n)
        if seen is None:
            continue
        if not seen.scope:
            for name in alive or ():
                against[name] = against.get(name, 0.0) + shows(name, seen)
            continue
        scope = seen.scope if scope is None else scope
        if "o" in seen.scope and "o" not in scope:
            continue
        fits = screen(seen, among if alive is None else alive)
        if fits is None or (alive and not fits and others and _by_others(seen, others)):
            continue
        alive = {name: [*(alive or {}).get(name, []), fits[name]] for name in fits if alive is None or name in alive}
        asked += 1
    if not alive:
        return None
    late = all(any(one.late for one in fits) for fits in alive.values())
    cost = {
        name: against.get(name, 0.0)
        + float(np.mean([one.spared for one in fits]))
        + SPECIAL * MISTAKES[name].special
        + COARSE * MISTAKES[name].coarse
        for name, fits in alive.items()
        if sum(one.digits for one in fits) >= CERTAIN
        and (late or not any(one.late for one in fits))
        and (not name.startswith(ROUNDED) or np.mean([one.near for one in fits]) >= CLOSE)  # beside these any rounding is as small
        and 2 * against.get(name, 0.0) < max(asked, 2)  # less than half as many problems speak against it
        and (asked >= FEW or not (against.get(name) or any(one.spared for one in fits) or MISTAKES[name].special))
    }
    if not cost:
        return None
    cost = dict(sorted(cost.items(), key=lambda item: item[1]))
    best = (told(cost) or tuple(cost))[0]
    those = alive.get(best, [])
    return Diagnosis(cost, place(best, seen_at(0)), asked, not any(one.spared for one in those))


def _by_others(seen: Seen, others: Sequence[str]) -> bool:
    """Whether mistakes that are known give what is wrong, or may be part of it."""
    return bool(screen(seen, others)) or any(touches(name, seen) for name in others)


def explained_by(subject: Subject, problem: Problem) -> frozenset[str]:
    """The mistakes that explain a failing problem by itself."""
    seen = look(subject, problem)
    return frozenset(screen(seen, MISTAKES) or () if seen is not None and seen.scope else ())


# CHOICES


def other_choice(diagnosis: Diagnosis | None, dialect: Dialect) -> str:
    """'choice=value' where the one mistake that explains a failure is to follow another choice than the subject's, else ''."""
    names = {MISTAKES[name].of or name for name in diagnosis.best} if diagnosis is not None and diagnosis.whole else set()
    if len(names) != 1:
        return ""
    name = names.pop()
    for choice in CHOICES.values():
        for value in choice.values:
            if name == choice.mistake_of(value) and value != getattr(dialect, choice.name):
                return f"{choice.name}={value}"
    return ""


# WORDS


def sentence(diagnosis: Diagnosis) -> str:
    """What is said of it: the mistake, where it shows, and on how much this rests."""
    says = [MISTAKES[name].says for name in diagnosis.best]
    if not says:
        return ""
    what = says[0] if len(says) == 1 else f"either {says[0]}, or {says[1]}"
    where = f" ({diagnosis.only} only)" if diagnosis.only else ""
    return f"{what}{where}; that gives exactly this, on {diagnosis.asked} problem{'s' * (diagnosis.asked != 1)}"
