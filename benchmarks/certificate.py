"""How far the two float64 forms of the reference are from the exact answer, as a share of their bound.

    python benchmarks/certificate.py [--problems 4000] [--seed 0] [--first 0] [--markdown docs/certificate.md]

Every second problem is a random one of tests/random_problems.py, in all dialects. The others are cases of the suite, in
every regime of values and biases, with operands of all four dtypes. The script encloses each answer in balls
(reference/witnesses/enclosure.py), and divides the errors of the NumPy form and of the torch form by the bound of class A in
float64, which is not doubled here. Where that bound is zero the balls must hold nothing but zero. The exit code is 1 if an error
exceeds its bound; the script then prints the problem.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray as Array
from numpy.random import Generator, default_rng

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from random_problems import CAPS, DIALECTS, SINKS, SLOPES, WINDOWS, draw, with_lse

from attnspec.adapters import resolve
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import Exact, solve
from attnspec.reference.witnesses.autograd import attend
from attnspec.reference.witnesses.enclosure import Enclosure, enclose
from attnspec.spec import CHOICES, Dialect, Problem

OUTPUTS = ("o", "lse", "dq", "dk", "dv", "dbias", "dalibi_slopes", "dsinks")
FORMS = ("NumPy", "torch")
LSES = list(product(CHOICES["lse_base"].values, CHOICES["lse_empty"].values))
REGIMES = list(product(LEVELS["values"], LEVELS["biases"]))
RANDOM = "random problems"
TWICE = 2.0  # a tolerance in float64 holds the bound once for the implementation and once for the reference
UNIT = 2.0**-53


# PROBLEMS


@dataclass(frozen=True)
class Asked:
    """A problem in a dialect, and how to name it."""

    number: int
    token: str
    values: str  # the regime of the numbers
    biases: str
    problem: Problem
    dialect: Dialect
    keep: Array

    def __str__(self) -> str:
        words = f"dropout {self.problem.dropout}" if self.problem.training else "no dropout"
        return f"problem {self.number}: {self.token}; {words}; {self.dialect}"


def random_problem(seed: int, number: int) -> Asked:
    """Small, in any form: shared heads, empty sizes, dropout, every broadcast; every second may have a cap, a window, slopes and
    sinks, and returns its lse, which has a cotangent."""
    rng = default_rng([31, seed, number])
    drawn = draw(rng, caps=CAPS, windows=WINDOWS, slopes=SLOPES, sinks=SINKS) if number % 4 == 2 else draw(rng)
    chosen = ",".join(f"{name}={value}" for name, value in drawn.choices)
    problem, dialect = drawn.problem, DIALECTS[number // 2 % len(DIALECTS)]
    if number % 4 == 2:
        problem, dialect = with_lse(problem, rng), with_choices(dialect, number // 4)
    return Asked(number, f"{RANDOM[:-1]}, {chosen}", RANDOM, "", problem, dialect, drawn.keep.numpy())


def with_choices(dialect: Dialect, number: int) -> Dialect:
    """The same dialect, with each way of returning an lse in turn."""
    base, empty = LSES[number % len(LSES)]
    return replace(dialect, lse_base=base, lse_empty=empty)


def suite_case(seed: int, number: int) -> Asked:
    """A case with any level of each factor, at sizes that take milliseconds; one in four with dropout."""
    rng = default_rng([32, seed, number])
    values, biases = REGIMES[number // 2 % len(REGIMES)]
    level = {name: options[int(rng.integers(len(options)))] for name, options in LEVELS.items()}
    level |= {
        "b": int(rng.integers(1, 3)),
        "i": int(rng.integers(1, 34)),
        "j": int(rng.choice([0, 1, 2, 7, 16, 17, 33, 50])),
        "d": int(rng.choice([1, 3, 8, 16, 40])),
        "values": values,
        "biases": biases,
        "wrt": "all",
    }
    case = fit(Case(**level, seed=int(rng.integers(1 << 16))), resolve("sdpa-math")[0])
    problem, dialect = build(case), DIALECTS[int(rng.integers(len(DIALECTS)))]
    rate = _choose(rng, (0.0, 0.0, 0.0, 0.3))
    keep = rng.random((problem.b, problem.h, problem.i, problem.j)) >= rate
    problem = problem.replace(dropout=rate, training=rate > 0)
    return Asked(number, case.token(), case.values, case.biases if case.bias != "none" else "none", problem, dialect, keep)


def _choose(rng: Generator, options: tuple[float, ...]) -> float:
    return options[int(rng.integers(len(options)))]


def problems(seed: int, first: int, count: int) -> Iterator[Asked]:
    """Random problems and cases of the suite in turn."""
    for number in range(first, first + count):
        yield (suite_case if number % 2 else random_problem)(seed, number)


# SHARES


def one_bound(exact: Exact) -> tuple[dict[str, Array], dict[str, Array]]:
    """The bound of class A in float64, once, by output, and what is left out: exempt or undefined elements."""
    tolerance = exact.tolerance("A", "float64")
    bound = {name: x / TWICE for name, x in tolerance.bound.items()}
    skip = {name: tolerance.exempt[name] | exact.undefined[name] for name in exact.undefined}
    if "lse" not in exact.values:
        # A row is open in lse where it is in the output; but one without a key has −∞ under every rule, without an error.
        skip["lse"] = skip["o"].any(-1) & ~exact.forward.bare
    bound["lse"] = np.where(exact.forward.bare, np.nan, bound["lse"])
    return bound, skip


def share(enclosure: Enclosure, name: str, got: Array, bound: Array, skip: Array) -> float:
    """The worst error as a share of its bound. NaN is right where the ball is NaN; ∞ is a broken zero, or a NaN too many."""
    with np.errstate(invalid="ignore", divide="ignore"):
        error = enclosure.error(name, got)
        ratio = np.where(error == 0, 0.0, error / bound)
    ratio = np.where(np.isnan(error) & np.isnan(got), 0.0, np.where(np.isnan(ratio), inf, ratio))
    return float(np.where(skip, 0.0, ratio).max(initial=0.0))


def enclosed(asked: Asked, exact: Exact) -> Enclosure:
    """The problem in balls that are small beside its bound."""
    bound, skip = one_bound(exact)
    good_enough = {name: np.where(skip[name], np.nan, x) for name, x in bound.items()}
    return enclose(asked.problem, asked.dialect, asked.keep, good_enough=good_enough)


def numpy_form(asked: Asked) -> tuple[Exact, dict[str, Array]]:
    exact = solve(asked.problem, asked.dialect, asked.keep)
    return exact, {"lse": exact.lse} | exact.values


def torch_form(asked: Asked) -> dict[str, Array]:
    return {name: x.numpy() for name, x in attend(asked.problem, asked.dialect, torch.from_numpy(asked.keep)).items()}


def shares(enclosure: Enclosure, exact: Exact, answer: dict[str, Array]) -> dict[str, float]:
    """The worst share of each output."""
    bound, skip = one_bound(exact)
    return {name: share(enclosure, name, answer[name], bound[name], skip[name]) for name in enclosure.balls}


# REPORT


@dataclass
class Report:
    """The worst shares, and what was counted on the way."""

    worst: dict[tuple[str, str, str], float] = field(default_factory=dict)  # (row, output, form)
    rows: Counter[str] = field(default_factory=Counter)  # problems
    elements: Counter[str] = field(default_factory=Counter)
    bits: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def ask(self, asked: Asked) -> None:
        """Judge both forms on one problem."""
        rows = [asked.values] + [f"bias: {asked.biases}"] * bool(asked.biases)
        self.rows.update(rows)
        exact, first = numpy_form(asked)
        try:
            enclosure = enclosed(asked, exact)
        except ArithmeticError as error:
            self.broken.append(f"{error}\n  {asked}")
            return
        self.bits[enclosure.bits] += 1
        bound, skip = one_bound(exact)
        for name in enclosure.balls:
            out, opened = skip[name], exact.undefined.get(name, skip[name])
            self.elements.update({"judged": int((~out).sum()), "open": int(opened.sum()), "overflow": int((out & ~opened).sum())})
            self.elements["zeros"] += int(((bound[name] == 0) & ~out).sum())
        for form, answer in zip(FORMS, (first, torch_form(asked)), strict=True):
            for name, ratio in shares(enclosure, exact, answer).items():
                if ratio > 1:
                    self.broken.append(f"{name} of the {form} form is at {ratio:.3g} of its bound\n  {asked}")
                for row in rows:
                    self.worst[row, name, form] = max(self.worst.get((row, name, form), 0.0), ratio)

    def cell(self, row: str, name: str) -> str:
        both = [self.worst.get((row, name, form)) for form in FORMS]
        return " / ".join("–" if x is None else f"{x:.2g}" for x in both)

    def table(self, title: str, rows: list[str]) -> list[str]:
        """A Markdown table of the worst shares, NumPy / torch."""
        lines = [f"| {title} | problems | {' | '.join(OUTPUTS)} |", "|---" * (len(OUTPUTS) + 2) + "|"]
        for row in rows:
            cells = " | ".join(self.cell(row, name) for name in OUTPUTS)
            lines.append(f"| {row.removeprefix('bias: ').replace('_', ' ')} | {self.rows[row]} | {cells} |")
        return lines

    def markdown(self, command: str) -> str:
        """The report as a page."""
        version = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "python-flint")}
        overall = {form: max((x for (_, _, of), x in self.worst.items() if of == form), default=0.0) for form in FORMS}
        bits = ", ".join(f"{n} at {bits}" for bits, n in sorted(self.bits.items()))
        judged, zeros, open_, overflow = (
            f"{self.elements[x]:,}".replace(",", " ") for x in ("judged", "zeros", "open", "overflow")
        )
        text = [
            "# How exact the reference is",
            "",
            f"    {command}",
            "",
            "The reference is NumPy in float64. We compute its answers twice more: with torch and autograd, in float64",
            "(reference/witnesses/autograd.py), and in ball arithmetic (reference/witnesses/enclosure.py). A ball contains the",
            "exact answer, whatever was rounded on the way. A cell gives the worst error of the NumPy form / of the torch form, as",
            "a share of the bound of class A in float64. A verdict doubles this bound, because the reference rounds, too; here it",
            "is not doubled. 1 is the most that rounding can cause. A larger share would be an error of the reference, or of the",
            "bound. The error itself is an upper bound: the distance from the number to the far end of the ball.",
            "",
            f"{sum(self.bits.values())} problems. Worst share: NumPy {overall['NumPy']:.2g}, torch {overall['torch']:.2g}.",
            "",
            *self.table("values", [RANDOM, *LEVELS["values"]]),
            "",
            "The first row holds small problems of every form: shared heads, empty sizes, dropout, every broadcast. The other rows",
            "hold cases of the suite: up to 33 queries, 50 keys and width 40, with operands of all four dtypes. The next table has",
            "the same cases by their bias:",
            "",
            *self.table("bias", [f"bias: {x}" for x in ("none", *LEVELS["biases"])]),
            "",
            "The row *lowest*: if every key that a query sees has its dtype's lowest number as its bias, float64 loses what tells",
            "the keys apart, and answers with the mean of their values. The bound allows any mean, however it is weighted. The",
            "share is one half where the exact answer is the value of a single key.",
            "",
            f"{judged} elements were judged. {zeros} of these must be exactly zero: both forms give zero for them, and their",
            f"balls hold nothing but zero. {open_} elements were left out because the clauses promise nothing about them:",
            "gradients that a row under the rule nan reaches, and rows without a key under the rule uniform in which a bias of −∞",
            f"takes part. {overflow} were left out because a legal intermediate may overflow.",
            "",
            "We start each ball with 128 bits, and add bits until its radius is at most 2^-20 of the bound. Problems by bits:",
            f"{bits}. The row *lowest* needs more than 128.",
            "",
            f"numpy {version['numpy']}, torch {version['torch']}, python-flint {version['python-flint']}.",
        ]
        return "\n".join(text) + "\n"


def main() -> int:
    """Ask all problems, write the page, and say what is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first problem")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report()
    for asked in problems(options.seed, options.first, options.problems):
        report.ask(asked)
    command = f"python benchmarks/certificate.py --problems {options.problems} --seed {options.seed}"
    page = report.markdown(command + (f" --markdown {options.markdown}" if options.markdown else ""))
    if options.markdown:
        options.markdown.write_text(page, encoding="utf-8")
    print(page)
    for line in report.broken:
        print(line)
    return bool(report.broken)


if __name__ == "__main__":
    sys.exit(main())
