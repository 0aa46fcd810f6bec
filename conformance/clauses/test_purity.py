"""PURITY: the same question has the same answer, and asking changes nothing."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnspec.adapters.answer import KEPT
from attnspec.adapters.within import Within
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import PLAIN, Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, is_right, must_answer, must_be_right, must_keep_bits
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.spec import Problem
from attnspec.spec.place import Place
from attnspec.spec.words import OUTPUTS


@clause("PURITY-1")
@agrees(*OUTPUTS, form=True)
def test_inputs_are_left_as_they_were(subject: Subject, case: Case) -> None:
    """Every input is compared bit by bit after every call of the suite."""


@clause("PURITY-2")
@on_cases()
def test_the_output_is_the_callers_own(subject: Subject, case: Case) -> None:
    """It shares no memory with an input, and the next call does not write into it."""
    _owns(subject, subject.problem(case))


@clause("PURITY-2")
@on_cases(j=1, mask="none", bias="none", causal=False)
def test_the_output_for_a_single_key_is_the_callers_own(subject: Subject, case: Case) -> None:
    """With one key the output is the value: still a copy of it."""
    _owns(subject, subject.problem(case))


def _owns(subject: Subject, problem: Any) -> None:
    answer = must_answer(subject, problem, Within(kept=True))
    for name in answer.shares:
        if name != KEPT:
            raise Broken(Finding("relation", "call", f"the output shares its memory with {name}"), problem)
    first = answer.o.clone()
    second = must_answer(subject, problem.replace(v=1 - problem.v))
    if KEPT in second.shares:
        raise Broken(Finding("relation", "call", "two calls returned the same memory"), problem)
    must_keep_bits(subject, problem, first, subject.adapter.again(answer).o, "o", "the first answer, after a second call")


@clause("PURITY-3")
@on_cases(right=())
def test_nothing_global_changes(subject: Subject, case: Case) -> None:
    """Settings, random states and what belongs to the whole process are watched around every call of the suite."""
    changes = subject.disturbs(case)
    if changes:
        raise Broken(Finding("relation", "call", f"the call changed {' and '.join(changes.values())}"), subject.problem(case))


@clause("PURITY-4")
@on_cases()
def test_asked_twice_answered_twice(subject: Subject, case: Case) -> None:
    """The second answer is as right as the first; the same bits where the implementation claims to be deterministic."""
    problem = subject.problem(case)
    first = must_answer(subject, problem)
    second = must_be_right(subject, problem, "in a second call", earlier=(problem,))
    for name in problem.outputs:
        if subject.repeats(name):
            must_keep_bits(subject, problem, first.output(name), second.output(name), name, "in a second call")


@clause("PURITY-5")
@on_cases()
def test_other_values_in_the_same_shapes(subject: Subject, case: Case) -> None:
    """The same shapes with other numbers and another mask, and another scale; then these numbers at the addresses of the first."""
    first, second = subject.problem(case), subject.problem(replace(case, seed=case.seed + 1))
    must_answer(subject, first)
    must_be_right(subject, second, "after a call with the same shapes and other numbers", earlier=(first,))
    if subject.offers("scale"):
        other = second.replace(scale=0.7 if second.scale != 0.7 else None)
        must_be_right(subject, other, "after a call with the same shapes and another scale", earlier=(first, second))
    if case.layout == "expanded":
        return
    for name, x in first.inputs().items():
        x.copy_(getattr(second, name))
    must_be_right(subject, first, "with other numbers written to the same addresses")


@clause("PURITY-5")
@once("key_padding")
def test_another_mask_in_the_same_memory(subject: Subject, case: Case) -> None:
    """A mask that was changed in place; then a new one where it was freed. So for a bias, where it is offered."""
    asked = Case(dtype=case.dtype, heads=case.heads, b=2, i=2, j=1500, d=case.d, wrt="none")  # no other memory is as large
    plain, draws = subject.problem(asked), [torch.Generator().manual_seed(n) for n in range(3)]
    some = {"mask": [torch.rand(2, 1500, generator=draw) < 0.5 for draw in draws]}
    if subject.offers("bias"):
        some["bias"] = [torch.randn(2, 1, 1, 1500, generator=draw).to(plain.dtype) for draw in draws]
    for name, (first, second, third) in some.items():
        place = Place(first.nbytes)
        problem = plain.replace(**{name: _laid(first, subject.device, place)})
        elsewhere = [plain.replace(**{name: x.to(subject.device, copy=True)}) for x in (second, third)]
        if any(subject.judge(subject.run(x), subject.solve(x)).findings for x in (problem, *elsewhere)):
            raise NotApplicable  # wrong the first time, or kept by its shape: others say so
        getattr(problem, name).copy_(second)
        must_be_right(subject, problem, f"with another {name}, written to the memory of the one before", alone=False)
        address = getattr(problem, name).data_ptr()
        del problem
        if subject.adapter.holds(place):
            continue  # the kernel keeps the earlier one, so nothing new can come to lie there
        tried = [_laid(third, subject.device, place)]
        while tried[-1].data_ptr() != address and len(tried) < 20:  # on a device, whose allocator decides
            tried.append(third.to(subject.device, copy=True))
        there = plain.replace(**{name: tried[-1]})
        must_be_right(subject, there, f"with a new {name}, in memory of an earlier one", alone=False)


def _laid(x: Tensor, device: str, place: Place) -> Tensor:
    """A new tensor with these numbers: on the CPU in this place."""
    return place.lay(x) if device == "cpu" else x.to(device, copy=True)


@clause("PURITY-5")
@on_cases()
def test_other_shapes_in_between(subject: Subject, case: Case) -> None:
    """Longer, shorter, without options, in another mode: then the first question again."""
    problem = subject.problem(case)
    first = must_answer(subject, problem)
    others = tuple(
        subject.problem(fit(replace(case, **change), subject.adapter))
        for change in (
            {"i": case.i + 3, "j": case.keys + 5},
            {"i": 1, "j": case.keys},
            {name: plain for name, plain in PLAIN.items() if name != "scale"},  # another scale is a test of its own
            {"b": case.b + 1},
        )
    )
    for other in others:
        subject.run(other)
    again = must_be_right(subject, problem, "after calls with other shapes and options", earlier=(problem, *others))
    if subject.repeats("o"):
        must_keep_bits(subject, problem, first.o, again.o, "o", "after calls with other shapes and options")


@clause("PURITY-5")
@once("causal")
def test_causal_lengths_up_and_down(subject: Subject, case: Case) -> None:
    """6, 4, 9, 1, 6 causal queries in turn, as a cached mask would like to remember."""
    earlier: tuple[Problem, ...] = ()
    for n, i in enumerate((6, 4, 9, 1, 6)):
        problem = subject.problem(Case(dtype=case.dtype, heads=case.heads, d=case.d, i=i, causal=True))
        if n == 0 and not is_right(subject, problem):
            raise NotApplicable  # wrong the first time: another clause says so
        must_be_right(subject, problem, f"{i} causal queries, in a series of 6, 4, 9, 1, 6", earlier=earlier)
        earlier += (problem,)


@clause("PURITY-6")
@on_cases()
def test_nobody_watching(subject: Subject, case: Case) -> None:
    """A call during which no test framework can be found among the modules or in the environment."""
    must_be_right(subject, subject.problem(case), "where no test framework is imported", within=Within("unwatched"))
