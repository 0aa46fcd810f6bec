"""A set of vectors read back, and an answer from files judged as an answer of a call is: by the same judge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from attnspec.adapters import Answer
from attnspec.conformance.judging.finding import Finding, Judgement
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.vectors.format import ANSWER, EXPECTED, INPUTS, REFUSAL, UNSUPPORTED, Vector, VectorError, tensor
from attnspec.reference import Tolerance
from attnspec.spec import Dialect, Problem
from attnspec.spec.files import Stored, read
from attnspec.spec.problem import options_from
from attnspec.spec.words import RETURNED


class Refused(RuntimeError):
    """What a board said in the place of an answer."""


@dataclass(frozen=True)
class Filed:
    """The exact answer to a problem as its file has it: what the judge reads of one that was solved."""

    problem: Problem
    values: dict[str, Array]
    rest: dict[str, Array]
    bound: dict[str, Array]
    oracle: str
    class_: str
    dialect: Dialect
    empty: Array | None  # (b h i), the rows without a visible key

    def tolerance(self, class_: str) -> Tolerance:
        """The bounds that stand in the file. Raises ValueError for another class than theirs."""
        if class_ != self.class_:
            raise ValueError(f"the bounds of this problem are those of class {self.class_}, not {class_}")
        return Tolerance(self.bound, {name: np.isposinf(bound) for name, bound in self.bound.items()})


class Judged(NamedTuple):
    """What became of a problem: the judgement, or None where there is no answer to judge; unsupported: why it was not asked."""

    vector: Vector
    judgement: Judgement | None
    exact: Filed | None
    unsupported: str | None = None
    answer: Answer | None = None

    @property
    def finding(self) -> Finding | None:
        """The first thing that is wrong with it, from which the others follow."""
        return self.judgement.findings[0] if self.judgement is not None and self.judgement.findings else None


def stored_in(file: Path) -> dict[str, Stored]:
    """The tensors of a file of the set. Raises VectorError."""
    try:
        return read(file)[0]
    except (OSError, ValueError) as error:
        raise VectorError(f"{file}: {error}; write the set again") from None


def problem_of(folder: Path, vector: Vector) -> Problem:
    """The problem of a vector, from its file. Raises VectorError where its tensors are none."""
    tensors = {name: tensor(x) for name, x in stored_in(vector.file(folder, INPUTS)).items()}
    try:
        return Problem(**tensors, **options_from(vector.options), wrt=vector.wrt)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise VectorError(f"{vector.file(folder, INPUTS)} holds no problem: {error}; write the set again") from None


def exact_of(folder: Path, vector: Vector) -> Filed:
    """The exact answer to a vector and its bounds, from its files. Raises VectorError."""
    found = {name: x.array for name, x in stored_in(vector.file(folder, EXPECTED)).items()}
    lacking = [name for name in vector.outputs if name not in found or f"{name}.bound" not in found]
    if lacking:
        raise VectorError(f"{vector.file(folder, EXPECTED)} lacks {', '.join(lacking)}; write the set again")

    def part(suffix: str) -> dict[str, Array]:
        return {name: found[name + suffix] for name in vector.outputs if name + suffix in found}

    problem, bound, rest = problem_of(folder, vector), part(".bound"), part(".rest")
    oracle = vector.oracle if rest else "float64"
    return Filed(problem, part(""), rest, bound, oracle, vector.class_, Dialect(**vector.dialect), found.get("empty"))


def answer_of(answers: Path, vector: Vector) -> Answer | None:
    """What a folder of answers holds for a vector; None where it holds nothing.

    A file that can't be read is a refusal, as a call that raises is: the judge calls it a failure.
    """
    refusal, file = vector.file(answers, REFUSAL), vector.file(answers, ANSWER)
    error: Refused | None = None
    if refusal.is_file():
        said = " ".join(refusal.read_text(encoding="utf-8", errors="replace").split())
        if said.startswith(UNSUPPORTED):
            return Answer(unsupported=said[len(UNSUPPORTED) :].lstrip(": ") or "no reason is given")
        error = Refused(said or "no reason is given")
    if not file.is_file():
        return None if error is None else Answer(error=error)
    try:
        found = {name: tensor(x) for name, x in read(file)[0].items()}
    except (OSError, ValueError) as unreadable:
        return Answer(error=Refused(str(unreadable)))
    gradients = {} if error is not None else {name: found.get(name) for name in vector.outputs if name not in RETURNED}
    stage = "forward" if error is None else "backward"
    return Answer(found.get("o"), gradients, error=error, stage=stage, lse=found.get("lse"))


def judged(folder: Path, answers: Path, vector: Vector) -> Judged:
    """What the judge says of the answer to a vector."""
    answer = answer_of(answers, vector)
    if answer is None or answer.unsupported is not None:
        return Judged(vector, None, None, None if answer is None else answer.unsupported)
    exact = exact_of(folder, vector)
    result = judge(answer, exact, vector.class_)
    return Judged(vector, replace(result, findings=tuple(map(_of_a_file, result.findings))), exact, answer=answer)


def _of_a_file(finding: Finding) -> Finding:
    """The judge speaks of what a call returned; here it is what a file holds."""
    if finding.kind not in ("missing", "type"):
        return finding
    return replace(finding, message=f"its file holds no {'o' if finding.output == 'call' else finding.output}")
