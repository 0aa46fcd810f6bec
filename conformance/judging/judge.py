"""The judge: is this answer right, and if not, in which way.

Order of questions: was there an answer; shape, dtype and device; finite where the exact answer is; exactly zero where it
must be; within the bound. Each is asked of every element, and nothing is averaged away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.adapters import Answer
from attnspec.adapters.reading import Unreadable, kind_of, no_memory
from attnspec.conformance.judging.finding import Finding, Judgement
from attnspec.reference import to_float64
from attnspec.reference.check import Right, worst
from attnspec.reference.check import beyond as beyond
from attnspec.reference.check import together as together
from attnspec.reference.stages.lse import dtype_of
from attnspec.spec import CANONICAL, Dialect, Problem
from attnspec.spec.words import INPUT_OF, FindingKind


def judge(answer: Answer, exact: Right, class_: str) -> Judgement:
    """Compare an answer with the exact one, within the bound of an accuracy class."""
    problem = exact.problem
    if answer.changed:
        names = " and ".join(answer.changed)
        return Judgement((Finding("changed", "call", f"the call changed its input {names}"),), {})
    end = ending(answer)
    if end is not None and answer.o is None:
        return Judgement((end,), {})
    wrong = form(answer.o, "output", problem.shape_of("o"), problem, "call")
    if wrong:
        return Judgement((wrong,), {})
    tolerance = exact.tolerance(class_)
    findings, worst, exempt, elements = [], {}, 0, 0
    got = {"o": answer.o}
    others = {"lse": answer.lse} if problem.lse else {}
    if problem.differentiated and end is None:
        others |= {name: x for name, x in answer.gradients.items() if x is not None or not independent(problem, name)}
    for name, x in others.items():
        misfit = form(x, called(name), problem.shape_of(name), problem, name, exact.dialect)
        if misfit:
            findings.append(misfit)
        else:
            got[name] = x
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
    if answer.ended == "TIMEOUT":
        return Finding("timeout", "call", f"no answer: {answer.refusal}", log=answer.log)
    if answer.ended:
        return Finding("crash", "call", f"crashed: {answer.refusal}", log=answer.log)
    where = "backward " if answer.stage == "backward" else ""
    kind: FindingKind = "memory" if no_memory(answer.error) else "raised"
    return Finding(kind, "call", f"{where}raised {answer.refusal}", stage=answer.stage)


def no_answer(answer: Answer, problem: Problem) -> Finding | None:
    """Why there is nothing to compare in an answer: the call ended, or the output or a gradient that is there has a wrong form."""
    end = ending(answer)
    if end is not None:
        return end
    wrong = form(answer.o, "output", problem.shape_of("o"), problem, "call")
    if wrong is None and problem.lse:
        wrong = form(answer.lse, called("lse"), problem.shape_of("lse"), problem, "lse")
    for name, gradient in answer.gradients.items() if wrong is None else ():
        if gradient is not None:
            wrong = wrong or form(gradient, called(name), problem.shape_of(name), problem, name)
    return wrong


def called(output: str) -> str:
    """An output in words."""
    return {"o": "output", "lse": "lse"}.get(output) or f"gradient of {INPUT_OF[output]}"


def independent(problem: Problem, output: str) -> bool:
    """Whether a gradient belongs to an input on which nothing that has a cotangent depends: autograd may give None for it.

    Where no sequence of a call has both queries and keys, nothing depends on any input.
    """
    carrier = problem.carrier
    if carrier is not None and not any(map(min, carrier.q_lengths, carrier.k_lengths)):
        return True
    return problem.do is None and output == "dv"


def form(
    x: Any, what: str, shape: tuple[int, ...], problem: Problem, output: str, dialect: Dialect | None = None
) -> Finding | None:
    """Whether a result is one tensor of the right shape, dtype and device. What is wrong with o (output "call") ends the call.

    dialect: the choice for the dtype of the lse; without it either will do.
    """
    if x is None and output == "lse":
        return Finding("missing", output, "no lse came back beside the output; an adapter's attend() returns the two: (o, lse)")
    if x is None and output != "call":
        return Finding("missing", output, f"the {what} is None: the output has no grad_fn, or does not depend on it")
    if isinstance(x, Unreadable):
        return Finding("type", output, f"the {what} is {x.what}; expected a plain tensor {shape}")
    if not isinstance(x, torch.Tensor):
        return Finding("type", output, f"returned {kind_of(x)}, expected one tensor {shape}; an adapter's attend() can pick it out")
    if x.layout != torch.strided:
        return Finding("type", output, f"the {what} is a {dtype_name(x.layout)} tensor, expected a dense one")
    if tuple(x.shape) != shape:
        return Finding("shape", output, f"the {what} has shape {tuple(x.shape)}, expected {shape}")
    dtype = getattr(problem, INPUT_OF.get(output, "q")).dtype  # DTYPE-1 and DTYPE-2: a bias may have one of its own
    if output == "lse":
        either = {
            dtype_of(problem, d) for d in ([dialect] if dialect else (CANONICAL, CANONICAL.with_choice("lse_dtype", "operand")))
        }
        dtype = x.dtype if dtype_name(x.dtype) in either else getattr(torch, min(either))
    if x.dtype != dtype:
        return Finding("dtype", output, f"the {what} has dtype {dtype_name(x.dtype)}, expected {dtype_name(dtype)}")
    if x.device.type != problem.q.device.type:
        return Finding("device", output, f"the {what} is on {x.device}, the inputs are on {problem.q.device}")
    return None


def dtype_name(dtype: object) -> str:
    """A dtype of torch as the spec calls it: float32."""
    return str(dtype).removeprefix("torch.")


def compare(
    got: Array, expected: Array, bound: Array, exempt: Array, name: str, rest: Array | float = 0.0
) -> tuple[Finding | None, float]:
    """The worst element of one output, and its error as a share of the bound. NaN never passes for a number.

    The exact value is expected + rest.
    """
    if not got.size:
        return None, 0.0
    at, share, outside = worst(got, expected, bound, exempt, rest)
    if not outside:
        return None, share
    kind: FindingKind = "value"
    if not np.isfinite(got[at]) and np.isfinite(expected[at]):
        kind = "nonfinite"
    elif bound[at] == 0 and not np.isinf(expected[at]):
        kind = "zero"
    return Finding(kind, name, "", at, float(got[at]), float(expected[at]), float(bound[at]), share, outside, got.size), share
