"""A case and a problem in words, for a reader."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from attnspec.conformance.problems.case import IN_WORDS, Case
from attnspec.conformance.problems.factors.ragged import level_in_words, sequences_in_words, written
from attnspec.spec import OPTIONS, Problem


def describe(case: Case) -> str:
    """A case in words, for a reader."""
    shape = ", ".join(text for factor in IN_WORDS if factor.shape and (text := factor.says(case)))
    options = [text for factor in IN_WORDS if not factor.shape and (text := factor.says(case))]
    return "; ".join([f"{case.dtype}: {shape}", *options])


def describe_problem(problem: Problem) -> str:
    """A problem in words, where a test made it without a case."""
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in problem.inputs().items())
    given = {name: value for name, value in problem.given().items() if not OPTIONS[name].tensor}
    carrier = given.pop("carrier", None)
    carried = []
    if carrier is not None:
        lengths = sequences_in_words(carrier.feature, carrier.q_lengths, carrier.k_lengths)
        carried = [level_in_words(written(carrier)), lengths]
    modes = [name for name, value in given.items() if value is True]
    numbers = [f"{name} {value}" for name, value in given.items() if value is not True]
    return "; ".join([f"{str(problem.dtype)[6:]}: {shapes}", *modes, *numbers, *carried])


def summary(asked: Case) -> dict[str, Any]:
    """A case as plain data, for the verdict file."""
    return asdict(asked)
