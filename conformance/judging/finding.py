"""What is wrong with an answer: one thing, or all that was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attnspec.conformance.verdicts.lines import finite
from attnspec.spec.words import RETURNED, FindingKind


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with an answer.

    kind is one of raised, memory (there was none for an answer), crash, timeout, type, shape, dtype, device, missing, changed,
    nonfinite, zero, value, relation, biased (errors lean); or unsupported, which is no fault: it was not asked. output is o, a
    gradient, or call: what ended the call, so that it concerns every output. For a value: index of the worst element, what was got
    and expected there, its bound, the error as a multiple of the bound, and how many of how many elements are outside.
    """

    kind: FindingKind
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
    log: tuple[str, ...] = ()  # the last lines that its process wrote, where that ended

    @property
    def of_gradient(self) -> bool:
        """Whether the fault is one of the backward."""
        return self.stage == "backward" or self.output not in (*RETURNED, "call")

    @property
    def ended(self) -> bool:
        """Whether the call ended without an answer, by an exception or with its process."""
        return self.kind in ("raised", "crash", "timeout")

    @property
    def of_numbers(self) -> bool:
        """Whether it is about the numbers of an answer, and not about its form, its lack or another answer."""
        return self.kind in ("value", "zero", "nonfinite")

    @property
    def of_answers(self) -> bool:
        """Whether it is about what an answer holds: its numbers, or another answer to which it does not fit."""
        return self.of_numbers or self.kind == "relation"

    def data(self, problem: Any) -> dict[str, Any]:
        """What was found on a problem, which is given as plain data: as a line of the verdict file says it."""
        return {
            "output": self.output,
            "what": self.kind,
            "problem": problem,
            "index": list(self.index),
            "got": finite(self.got),
            "expected": finite(self.expected),
            "bound": finite(self.bound),
            "ratio": finite(self.ratio),
            "outside": self.outside,
            "of": self.total,
            "hint": self.hint,
        }

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
