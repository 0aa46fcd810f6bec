"""Compares an answer with the exact one: its errors as shares of their bounds, and a check for a library's own tests."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.reference.bounds.accuracy import default_class
from attnspec.reference.exact import Tolerance
from attnspec.reference.numbers import to_float64
from attnspec.reference.solve import solve
from attnspec.reference.stages.lse import dtype_of
from attnspec.spec import CANONICAL, Dialect, Problem
from attnspec.spec.words import CLASSES, INPUT_OF, RETURNED


class Right(Protocol):
    """What an answer is held to: an exact answer as it was solved, or as a file has it."""

    @property
    def problem(self) -> Problem:
        """What was asked."""

    @property
    def values(self) -> dict[str, Array]:
        """The exact value of each output, in float64."""

    @property
    def rest(self) -> dict[str, Array]:
        """What float64 leaves of each, where the oracle is not float64 itself."""

    @property
    def dialect(self) -> Dialect:
        """The choices that it follows."""

    @property
    def oracle(self) -> str:
        """Where the values come from: float64 or arb."""

    def tolerance(self, class_: str) -> Tolerance:
        """The bounds of a class, and what it exempts."""


class Worst(NamedTuple):
    """The element of an output that is farthest off.

    at: its index; () if no element is outside its bound. share: its error as a share of its bound, infinite if either number is not
    finite or the bound is 0. outside: how many elements are outside their bounds.
    """

    at: tuple[int, ...]
    share: float
    outside: int


def worst(got: Array, expected: Array, bound: Array, exempt: Array, rest: Array | float = 0.0) -> Worst:
    """The worst element of an output with at least one element. The exact value is expected + rest.

    All arrays have the shape of the output, in float64; exempt is bool. NaN never passes for a number, nor a number for NaN.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.where(got == expected, np.abs(rest), np.abs((got - expected) - rest))
        ratio = np.where(error == 0, 0.0, error / bound)
        # An infinity agrees with nothing, but for one that a rule asks for: a bound of zero says so (LSE-4).
        comparable = (np.isfinite(got) & np.isfinite(expected)) | ((got == expected) & (bound == 0))
        ratio = np.where(np.isnan(got) & np.isnan(expected), 0.0, np.where(comparable, ratio, np.inf))
    ratio = np.where(exempt, 0.0, ratio)
    outside = ~(ratio <= 1)
    if not outside.any():
        return Worst((), float(ratio.max()), 0)
    ranked = np.where(np.isnan(ratio), np.inf, ratio)
    # Among elements that are infinitely far off, the one with the largest error is the clearest.
    place = np.unravel_index(
        int(np.argmax(np.where(np.isinf(ranked), 1e300 + np.minimum(np.nan_to_num(error, nan=0, posinf=0), 1e300), ranked))),
        ranked.shape,
    )
    at = tuple(int(n) for n in place)
    return Worst(at, float(ranked[at]), int(outside.sum()))


def together(exact: Right, bound: dict[str, Array], exempt: dict[str, Array], name: str) -> tuple[Array, Array, Array]:
    """Exact value, bound and exemption of one output, in its shape.

    If one tensor was given for several inputs, its gradient is the sum of theirs, and so is its bound (GRAD-7).
    """
    problem = exact.problem
    if name in RETURNED:
        return exact.values[name], bound[name], exempt[name]
    parts = parts_of(exact, name)
    value = np.sum([exact.values[n] for n in parts], axis=0)
    limit = np.sum([bound[n] for n in parts], axis=0)
    if len(parts) > 1:  # the parts are rounded, and so is their sum, twice where there are three
        unit = torch.finfo(problem.dtype).eps
        limit = limit + unit * (np.abs(value) + limit) * (len(parts) - 1)
    return value, limit, np.logical_or.reduce([exempt[n] for n in parts])


def parts_of(exact: Right, name: str) -> list[str]:
    """An output, and the gradients of all inputs that are one tensor with its own."""
    if name in RETURNED:
        return [name]
    own = getattr(exact.problem, INPUT_OF[name])
    return [n for n in exact.values if n not in RETURNED and getattr(exact.problem, INPUT_OF[n]) is own]


def beyond(exact: Right, name: str) -> Array | float:
    """What the nearest float64 numbers leave of the exact value of one output; 0 if the oracle is float64 itself."""
    if exact.oracle == "float64":
        return 0.0
    return np.sum([exact.rest[n] for n in parts_of(exact, name)], axis=0)


def check_answer(
    problem: Problem,
    o: torch.Tensor,
    *,
    lse: torch.Tensor | None = None,
    dq: torch.Tensor | None = None,
    dk: torch.Tensor | None = None,
    dv: torch.Tensor | None = None,
    dbias: torch.Tensor | None = None,
    dsinks: torch.Tensor | None = None,
    dialect: Dialect = CANONICAL,
    accuracy: str | None = None,
) -> None:
    """Raise AssertionError if an answer is wrong. It says the clause, what was found, what was expected, and at which index.

    o: the output (b h i e). lse: that of a problem that asks for it (b h i).
    dq, dk, dv, dbias, dsinks: the gradients for the cotangents of the problem, in the shapes of their inputs;
    one that is None is not checked. Each must have the dtype and the device of its input, o those of q.
    dialect: the choices that your kernel follows.
    accuracy: the class that it must hold, of CLASSES (default: A for float64 and float32, C for float16 and bfloat16).
    docs/bounds.md derives the bounds of each class.

    Raises ValueError if there is nothing to compare with: an lse that is not asked for,
    gradients of a problem without a cotangent or without that input, dropout
    in training, or an unknown class.
    """
    class_ = default_class(str(problem.dtype).removeprefix("torch.")) if accuracy is None else accuracy
    if class_ not in CLASSES:
        raise ValueError(f"accuracy {accuracy!r}: choose from {', '.join(CLASSES)}")
    answers = {"o": o, "lse": lse, "dq": dq, "dk": dk, "dv": dv, "dbias": dbias, "dsinks": dsinks}
    given = {name: x for name, x in answers.items() if x is not None}
    if "o" not in given:
        raise AssertionError("SHAPE-1: o is None, expected a tensor")
    exact = solve(problem, dialect)
    for name in given.keys() - exact.values.keys():
        lacks = (
            "lse=True"
            if name == "lse"
            else "a cotangent; give Problem do=…"
            if not problem.differentiated
            else f"a {INPUT_OF[name]}"
        )
        raise ValueError(f"{name} can't be checked: the problem has not {lacks}")
    tolerance = exact.tolerance(class_)
    for name, x in given.items():
        _must_have_form(problem, dialect, name, x)
        got = to_float64(x)
        expected, bound, exempt = together(exact, tolerance.bound, tolerance.exempt, name)
        if not got.size:
            continue
        at, share, outside = worst(got, expected, bound, exempt, beyond(exact, name))
        if outside:
            clause = "ACCURACY-3" if bound[at] == 0 else "ACCURACY-1" if name in RETURNED else "ACCURACY-2"
            off = f"{share:.3g} × the bound" if np.isfinite(share) else "beyond any multiple of the bound"
            raise AssertionError(
                f"{clause}: {name}{list(at)} is {got[at]:.9g}, expected {expected[at]:.9g} ± {bound[at]:.3g} (class {class_} of "
                f"{str(problem.dtype).removeprefix('torch.')}); the error is {off}; {outside} of {got.size} elements are outside"
            )


def _must_have_form(problem: Problem, dialect: Dialect, name: str, x: torch.Tensor) -> None:
    """Raise AssertionError if a result is not a tensor of the right shape, dtype and device."""
    like, shape = getattr(problem, INPUT_OF.get(name, "q")), problem.shape_of(name)
    dtype = getattr(torch, dtype_of(problem, dialect)) if name == "lse" else like.dtype
    of_form = {"o": ("SHAPE-1", "DTYPE-1"), "lse": ("LSE-5", "LSE-5")}.get(name, ("DTYPE-2", "DTYPE-2"))
    if not isinstance(x, torch.Tensor):
        raise AssertionError(f"{name} is a {type(x).__name__}, expected a tensor {shape}")
    if tuple(x.shape) != shape:
        raise AssertionError(f"{of_form[0]}: {name} has shape {tuple(x.shape)}, expected {shape}")
    if x.dtype != dtype:
        raise AssertionError(f"{of_form[1]}: {name} is {x.dtype}, expected {dtype}")
    if x.device != like.device:
        raise AssertionError(f"DTYPE-3: {name} is on {x.device}, expected {like.device}")
