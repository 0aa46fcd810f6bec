"""Problems that may tell one mistake from another: of the run, and made for it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch

from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.factors.ragged import form_of
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.spec import Problem
from attnspec.spec.memory import expanded

EVIDENCE = 6  # failing problems of the run that one diagnosis must explain, beside its own two and the probes
# Lengths of which neither the first nor the last is the longest or the shortest, and none the room there is.
APART = "2:5/4:9/1:3/3:7"
ENORMOUS = ("lowest", "shift")  # biases, beside which a mistake and rounding are hard to tell apart


def calmer(case: Case) -> Case:
    """Without enormous biases."""
    return replace(case, biases="normal") if case.biases in ENORMOUS else case


def finite(case: Case) -> Case:
    """Without a huge number where nobody may read, beside which the other numbers are lost."""
    return replace(case, poison="lure") if case.poison == "huge" else case


def probes(case: Case, subject: Subject) -> Iterator[Case]:
    """Cases that differ from this one in one thing."""
    if case.biases in ENORMOUS:  # what these do to a row is no more alike than what else is far from zero
        (other,) = (biases for biases in ENORMOUS if biases != case.biases)
        yield from (fit(replace(case, biases=other, seed=case.seed + n), subject.adapter) for n in range(3))
    case = calmer(case)
    for name, own in FACTORS.items():
        if own.probed and getattr(case, name) != own.plain:
            yield fit(replace(case, **{name: own.plain}), subject.adapter)
    if case.carrier != "none":
        # Lengths that differ, room behind them, and finite numbers where nothing may be read: so it shows what is read.
        more = {"packed": "tail", "cached": "room", "paged": "spare"}.get(form_of(case), "")
        carrier = case.carrier if not more or more in case.carrier.split("+") else f"{case.carrier}+{more}"
        apart = replace(case, carrier=carrier, b=max(case.b, 4), i=case.i + 3, j=case.keys + 9, poison="lure")
        seen = replace(apart, causal=False, window="none", first_tokens=0)  # where none of it is hidden
        yield from (fit(replace(one, lengths=lengths), subject.adapter) for one, lengths in ((apart, APART), (seen, "crossed")))
        yield fit(replace(case, poison="lure" if case.poison != "lure" else "nan"), subject.adapter)
    if case.bias != "none":
        yield replace(case, biases="inf" if case.biases != "inf" else "normal")
    if case.h > 1:
        yield fit(replace(case, heads={"mha": "3/3", "mqa": "9/3", "gqa": "9/3"}.get(case.sharing, "3/shared")), subject.adapter)
    j, i = case.keys, case.i
    # Long enough for a second block of any size, and for what only long rows show.
    yield fit(replace(case, b=min(case.b, 2), i=i + 130, j=j + 130, d=min(case.d, 16), e=min(case.e, 24)), subject.adapter)
    if case.q_start != "none":  # a start that is not small
        yield fit(replace(case, b=min(case.b, 2), j=j + 130, d=min(case.d, 16), e=min(case.e, 24), q_start="half"), subject.adapter)
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
    for name, own in FACTORS.items():
        if own.another is not None and (value := getattr(case, name)) != own.plain:
            yield replace(case, **{name: next(x for x in own.another if x != value)})
    if case.wrt not in ("all", "none"):
        yield replace(case, wrt="all")


def shuffled(problem: Problem, seed: int) -> Problem:
    """The problem with what its tensors hold in another order, some of it halved or negated, in the same strides."""
    order, seen = torch.Generator().manual_seed(seed), {}  # type: tuple[torch.Generator, dict[int, object]]
    other = {name: copy.deepcopy(x, seen) for name, x in problem.inputs().items()}  # what is one tensor stays one
    for x in other.values():
        if not expanded(x):
            x.copy_(x.flatten()[torch.randperm(x.numel(), generator=order).to(x.device)].view(x.shape))
            if x.is_floating_point():
                x *= torch.tensor((1.0, -1.0, 0.5, -0.5)).to(x)[torch.randint(4, x.shape, generator=order).to(x.device)]
    return problem.replace(**other)


def poisoned(problem: Problem, poison: str) -> Problem:
    """The problem with something else where nobody may read."""
    assert problem.carrier is not None
    return problem.replace(carrier=replace(problem.carrier, poison=poison))


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
