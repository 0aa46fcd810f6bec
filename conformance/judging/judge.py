"""The judge: is this answer right, and if not, in which way.

Order of questions: was there an answer; shape, dtype and device; finite where the exact answer is; exactly zero where it
must be; within the bound. Each is asked of every element, and nothing is averaged away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.adapters import Answer
from attnspec.adapters.reading import Unreadable, text
from attnspec.reference import INPUT_OF, Exact, to_float64
from attnspec.spec import Problem

# How allocators say, in a plain RuntimeError, that there is no memory: torch's for CPUs and for Apple's, XLA's, cuBLAS's.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "RESOURCE_EXHAUSTED", "STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with an answer.

    kind is one of raised, memory (there was none for an answer), type, shape, dtype, device, missing, changed, nonfinite, zero,
    value, relation, biased (errors lean); or unsupported, which is no fault: it was not asked. output is o, a gradient, or call:
    what ended the call, so that it concerns every output. For a value: index of the worst element, what was got and expected
    there, its bound, the error as a multiple of the bound, and how many of how many elements are outside.
    """

    kind: str
    output: str
    message: str
    index: tuple[int, ...] = ()
    got: float = float("nan")
    expected: float = float("nan")
    bound: float = float("nan")
    ratio: float = float("inf")
    outside: int = 0
    total: int = 0
    hint: str = ""
    class_: str = ""  # the finest arithmetic in which a value would be right, "C of bfloat16"; "" if none
    stage: str = "forward"  # or backward: where the call ended

    @property
    def of_gradient(self) -> bool:
        """Whether the fault is one of the backward."""
        return self.stage == "backward" or self.output not in ("o", "call")

    @property
    def of_numbers(self) -> bool:
        """Whether it is about the numbers of an answer, and not about its form, its lack or another answer."""
        return self.kind in ("value", "zero", "nonfinite")

    @property
    def of_answers(self) -> bool:
        """Whether it is about what an answer holds: its numbers, or another answer to which it does not fit."""
        return self.of_numbers or self.kind == "relation"

    @property
    def likeness(self) -> tuple[str, str, str]:
        """What makes two findings the same fault, for reduction: the kind, the output, and the stage."""
        kind = "value" if self.of_numbers else self.kind
        return kind, self.output, self.stage


@dataclass(frozen=True)
class Judgement:
    """Everything found wrong with one answer, the worst share of the class's bound for each output, and what was exempt."""

    findings: tuple[Finding, ...]
    worst: dict[str, float]
    exempt: int = 0
    elements: int = 0
    class_: str = ""

    def of(self, outputs: tuple[str, ...]) -> tuple[Finding, ...]:
        """The findings about some outputs; those about the call as a whole concern all of them."""
        return tuple(f for f in self.findings if f.output in outputs or f.output == "call")


def judge(answer: Answer, exact: Exact, class_: str, *, gradients: bool = True) -> Judgement:
    """Compare an answer with the exact one, within the bound of an accuracy class."""
    problem = exact.problem
    if answer.changed:
        names = " and ".join(answer.changed)
        return Judgement((Finding("changed", "call", f"the call changed its input {names}"),), {})
    end = ending(answer)
    if end is not None and answer.o is None:
        return Judgement((end,), {})
    wrong = form(answer.o, "output", (problem.b, problem.h, problem.i, problem.e), problem, "call")
    if wrong:
        return Judgement((wrong,), {})
    tolerance = exact.tolerance(class_)
    findings, worst, exempt, elements = [], {}, 0, 0
    got = {"o": answer.o}
    if gradients and problem.do is not None and end is None:
        for name, gradient in answer.gradients.items():
            x = getattr(problem, INPUT_OF[name])
            misfit = form(gradient, f"gradient of {INPUT_OF[name]}", tuple(x.shape), problem, name)
            if misfit:
                findings.append(misfit)
            else:
                got[name] = gradient
    for name, tensor in got.items():
        expected, bound, skip = together(exact, tolerance.bound, tolerance.exempt, name)
        outside, ratio = compare(to_float64(tensor), expected, bound, skip, name, beyond(exact, name))
        exempt, elements = exempt + int(skip.sum()), elements + skip.size
        worst[name] = ratio
        if outside is not None:
            findings.append(outside)
    if end is not None:  # the backward ended; the output came before
        findings.append(end)
    return Judgement(tuple(findings), worst, exempt, elements, class_)


def ending(answer: Answer) -> Finding | None:
    """What ended a call before its whole answer was there: an exception, or a lack of memory; None where nothing did."""
    if answer.refusal is None:
        return None
    if answer.unsupported is not None:
        return Finding("unsupported", "call", answer.unsupported)
    where = "backward " if answer.stage == "backward" else ""
    kind = "memory" if out_of_memory(answer) else "raised"
    return Finding(kind, "call", f"{where}raised {answer.refusal}", stage=answer.stage)


def out_of_memory(answer: Answer) -> bool:
    """Whether an answer is missing because there was no memory for it. A limit of the chip, such as shared memory, is none."""
    if isinstance(answer.error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = text(answer.error) if isinstance(answer.error, RuntimeError) else ""
    return any(words in said for words in NO_MEMORY)


def no_answer(answer: Answer, problem: Problem) -> Finding | None:
    """Why there is nothing to compare in an answer: the call ended, or the output or a gradient that is there has a wrong form."""
    end = ending(answer)
    if end is not None:
        return end
    wrong = form(answer.o, "output", (problem.b, problem.h, problem.i, problem.e), problem, "call")
    for name, gradient in answer.gradients.items() if wrong is None else ():
        if gradient is not None:
            x = getattr(problem, INPUT_OF[name])
            wrong = wrong or form(gradient, f"gradient of {INPUT_OF[name]}", tuple(x.shape), problem, name)
    return wrong


def form(x: Any, what: str, shape: tuple[int, ...], problem: Problem, output: str) -> Finding | None:
    """Whether a result is one tensor of the right shape, dtype and device. What is wrong with o (output "call") ends the call."""
    if x is None and output != "call":
        return Finding("missing", output, f"the {what} is None: the output has no grad_fn, or does not depend on it")
    if isinstance(x, Unreadable):
        return Finding("type", output, f"the {what} is {x.what}; expected a plain tensor {shape}")
    if not isinstance(x, torch.Tensor):
        kind = "nothing (None)" if x is None else f"a {type(x).__name__}"
        kind = f"a tuple of {tuple.__len__(x)}" if isinstance(x, tuple) else kind
        return Finding("type", output, f"returned {kind}, expected one tensor {shape}; an adapter's attend() can pick it out")
    if x.layout != torch.strided:
        return Finding("type", output, f"the {what} is a {_plain(x.layout)} tensor, expected a dense one")
    if tuple(x.shape) != shape:
        return Finding("shape", output, f"the {what} has shape {tuple(x.shape)}, expected {shape}")
    dtype = getattr(problem, INPUT_OF.get(output, "q")).dtype  # DTYPE-1 and DTYPE-2: a bias may have one of its own
    if x.dtype != dtype:
        return Finding("dtype", output, f"the {what} has dtype {_plain(x.dtype)}, expected {_plain(dtype)}")
    if x.device.type != problem.q.device.type:
        return Finding("device", output, f"the {what} is on {x.device}, the inputs are on {problem.q.device}")
    return None


def _plain(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def together(exact: Exact, bound: dict[str, Array], exempt: dict[str, Array], name: str) -> tuple[Array, Array, Array]:
    """Exact value, bound and exemption of one output; where one tensor was given twice, of the sum of its parts (GRAD-7)."""
    problem = exact.problem
    if name == "o":
        return exact.values[name], bound[name], exempt[name]
    own = getattr(problem, INPUT_OF[name])
    parts = [n for n in exact.values if n != "o" and getattr(problem, INPUT_OF[n]) is own]
    value = np.sum([exact.values[n] for n in parts], axis=0)
    limit = np.sum([bound[n] for n in parts], axis=0)
    if len(parts) > 1:  # the parts are rounded, and so is their sum, twice where there are three
        unit = torch.finfo(problem.dtype).eps
        limit = limit + unit * (np.abs(value) + limit) * (len(parts) - 1)
    return value, limit, np.logical_or.reduce([exempt[n] for n in parts])


def beyond(exact: Exact, name: str) -> Array | float:
    """What float64 leaves of the exact value of one output; 0 where the oracle is float64 itself."""
    if exact.oracle == "float64":
        return 0.0
    own = getattr(exact.problem, INPUT_OF[name]) if name != "o" else None
    parts = [name] if own is None else [n for n in exact.values if n != "o" and getattr(exact.problem, INPUT_OF[n]) is own]
    return np.sum([exact.rest[n] for n in parts], axis=0)


def compare(
    got: Array, expected: Array, bound: Array, exempt: Array, name: str, rest: Array | float = 0.0
) -> tuple[Finding | None, float]:
    """The worst element of one output, and its error as a share of the bound. NaN never passes for a number.

    The exact value is expected + rest.
    """
    if not got.size:
        return None, 0.0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.where(got == expected, np.abs(rest), np.abs((got - expected) - rest))
        ratio = np.where(error == 0, 0.0, error / bound)
        ratio = np.where(np.isnan(got) & np.isnan(expected), 0.0, np.where(np.isfinite(got) & np.isfinite(expected), ratio, np.inf))
    ratio = np.where(exempt, 0.0, ratio)
    outside = ~(ratio <= 1)
    if not outside.any():
        return None, float(ratio.max())
    ranked = np.where(np.isnan(ratio), np.inf, ratio)
    # Among elements that are infinitely far off, the one with the largest error is the clearest.
    place = np.unravel_index(
        int(np.argmax(np.where(np.isinf(ranked), 1e300 + np.nan_to_num(error, nan=0, posinf=0), ranked))), ranked.shape
    )
    at = tuple(int(n) for n in place)
    kind = "value"
    if not np.isfinite(got[at]) and np.isfinite(expected[at]):
        kind = "nonfinite"
    elif bound[at] == 0:
        kind = "zero"
    return Finding(
        kind, name, "", at, float(got[at]), float(expected[at]), float(bound[at]), float(ranked[at]), int(outside.sum()), got.size
    ), float(ranked[at])


# What a computation that is right but too coarse may have been done in, the finest first.
COARSER = {
    "float64": (("A", "float32"), ("C", "bfloat16")),
    "float32": (("T", "float32"), ("C", "float16"), ("C", "bfloat16")),
    "float16": (*((class_, "float16") for class_ in ("A", "B", "B*", "C", "C*", "D")), ("C", "bfloat16")),
    "bfloat16": tuple((class_, "bfloat16") for class_ in ("A", "B", "B*", "C", "C*", "D")),
}


def with_class(finding: Finding, answer: Answer, exact: Exact) -> Finding:
    """The finding, with the finest arithmetic that would have been allowed this error: 'C of bfloat16', or ''."""
    return replace(finding, class_=coarser(finding, answer, exact) or "") if finding.kind == "value" else finding


def coarser(finding: Finding, answer: Answer, exact: Exact) -> str | None:
    """The finest arithmetic that would have been allowed what was found, '' where none would, None where that is not known."""
    tensor = answer.o if finding.output == "o" else answer.gradients.get(finding.output)
    if not finding.of_numbers or not isinstance(tensor, torch.Tensor):
        return None
    nothing: str | None = ""
    for class_, dtype in COARSER[_plain(exact.problem.dtype)]:
        tolerance = exact.tolerance(class_, dtype)
        value, bound, exempt = together(exact, tolerance.bound, tolerance.exempt, finding.output)
        if bound[finding.index] >= np.abs(value).max():
            nothing = None
            continue  # as large as the answer itself: it allows everything
        if compare(to_float64(tensor), value, bound, exempt, finding.output, beyond(exact, finding.output))[0] is None:
            return f"{class_} of {dtype}"
    return nothing
