"""Which coarser arithmetic an answer would be right in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from attnspec.adapters import Answer
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import beyond, compare, dtype_name, together
from attnspec.reference import Exact, to_float64

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
    tensor = answer.output(finding.output)
    if not finding.of_numbers or not isinstance(tensor, torch.Tensor):
        return None
    nothing: str | None = ""
    for class_, dtype in COARSER[dtype_name(exact.problem.dtype)]:
        tolerance = exact.tolerance(class_, dtype)
        value, bound, exempt = together(exact, tolerance.bound, tolerance.exempt, finding.output)
        if bound[finding.index] >= np.abs(value).max():
            nothing = None
            continue  # as large as the answer itself: it allows everything
        if compare(to_float64(tensor), value, bound, exempt, finding.output, beyond(exact, finding.output))[0] is None:
            return f"{class_} of {dtype}"
    return nothing
