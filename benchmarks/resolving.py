"""Which known mistakes the suite's own problems can show, in multiples of the bound, as Markdown tables.

    python benchmarks/resolving.py [--array triples] [--every 1] [--markdown docs/resolving.md]

For each problem of a covering array and each known mistake of conformance/mistakes/ it measures how far the wrong answer is
from the exact one, as a multiple of the bound of an accuracy class. The suite fails an answer at more than 1.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from attnspec.adapters import Adapter, resolve
from attnspec.conformance.mistakes.alibi import ALIBI
from attnspec.conformance.mistakes.lse import LSE
from attnspec.conformance.mistakes.position import POSITION
from attnspec.conformance.mistakes.power import multiple, power
from attnspec.conformance.mistakes.sink import SINK
from attnspec.conformance.mistakes.softcap import SOFTCAP
from attnspec.conformance.mistakes.vocabulary import MISTAKES
from attnspec.conformance.mistakes.window import WINDOW
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.extension import TOGETHER
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.tensors import build
from attnspec.reference import default_class, solve
from attnspec.spec import Dialect
from attnspec.spec.words import FEATURES

DTYPES = ("float64", "float32", "float16", "bfloat16")  # as columns; rows of an array get them in the suite's order
HALF = ("float16", "bfloat16")
FINER = ("B", "A")  # than the default class of the half types
TORCH = Dialect(causal_alignment="top_left")
CHAPTERS = (SOFTCAP, WINDOW, LSE, ALIBI, SINK, POSITION)  # of the extensions
Column = tuple[str, str]  # dtype, class


class Padding(Adapter):
    """What the Attend modules offer."""

    offers = frozenset({"mha", "shared_kv", "strided", "key_padding", "causal", "backward"})


class Everything(Adapter):
    """All that can be offered."""

    offers = frozenset(FEATURES)


@dataclass
class Measured:
    """By mistake and column the multiples of the problems to which the mistake applies; and what single problems show."""

    multiples: dict[str, dict[Column, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    nothing: list[Case] = field(default_factory=list)  # in the default class of their dtype
    coarse: list[Case] = field(default_factory=list)
    no_scores: list[Case] = field(default_factory=list)
    problems: int = 0

    def cell(self, mistake: str, column: Column) -> str:
        """Problems, share that shows it, median multiple."""
        x = self.multiples[mistake][column]
        return f"{len(x)} · {100 * np.mean(np.array(x) > 1):.0f} % · {number(float(np.median(x)))}" if x else "–"


def number(x: float) -> str:
    """Briefly: 0.13, 41, 6e5, ∞."""
    if x < 10:
        return "< 0.01" if x < 0.01 else f"{x:.2g}"
    return "∞" if x > 1e100 else f"{x:.0f}" if x < 1000 else f"{x:.0e}".replace("e+0", "e").replace("e+", "e")


def classes(dtype: str) -> tuple[str, ...]:
    """The classes of a dtype that are asked, the default first."""
    return (default_class(dtype), *FINER) if dtype in HALF else (default_class(dtype),)


def measure(cases: Iterable[Case], dialect: Dialect, finer: bool = True) -> Measured:
    """All mistakes on all cases."""
    seen = Measured()
    for case in cases:
        problem = build(case)
        exact = solve(problem, dialect)
        seen.problems += 1
        for class_ in classes(case.dtype) if finer else (default_class(case.dtype),):
            found = power(problem, exact, class_)
            for mistake, times in found.items():
                seen.multiples[mistake][case.dtype, class_].append(times)
            if class_ == default_class(case.dtype):
                shown = {mistake for mistake, times in found.items() if times > 1}
                fine = {mistake for mistake in shown if not MISTAKES[mistake].coarse}
                if not fine:
                    (seen.coarse if shown else seen.nothing).append(case)
                if "scores_ignored" not in shown:
                    seen.no_scores.append(case)
    return seen


def measure_extensions(cases: Iterable[Case]) -> Measured:
    """The mistakes of the extensions on all cases, in the default class."""
    seen, mistakes = Measured(), {name: one for chapter in CHAPTERS for name, one in chapter.mistakes.items() if not one.special}
    for case in cases:
        problem = build(case)
        exact, class_ = solve(problem, TORCH), default_class(case.dtype)
        seen.problems += 1
        for name, one in mistakes.items():
            wrong = one.wrong(problem, TORCH, exact)
            if wrong is not None and wrong.keys() & set(problem.outputs):
                seen.multiples[name][case.dtype, class_].append(multiple(wrong, exact, class_))
    return seen


def extensions(every: int) -> list[str]:
    """The section on what is no part of the core, of the smaller array."""
    cases = [case for case in array("pairs", Everything(), LEVELS["dtype"]) if TOGETHER.there(vars(case))]
    seen = measure_extensions(cases[::every])
    return [
        "## Beside the core",
        "",
        f"The {seen.problems} problems that `pairs` has beside those of the core for a kernel which offers all options:",
        "windows and first tokens, soft caps, slopes, sinks, starts and the lse, most of them together. In the default class.",
        "",
        *by_mistake(seen, [(dtype, default_class(dtype)) for dtype in DTYPES]),
    ]


def exempt_shares(cases: Iterable[Case], dialect: Dialect) -> dict[str, float]:
    """The share of the elements of all answers that no class can promise, by dtype, in the default class."""
    exempt: dict[str, list[int]] = {dtype: [0, 0] for dtype in DTYPES}
    for case in cases:
        problem = build(case)
        tolerance = solve(problem, dialect).tolerance(default_class(case.dtype))
        for output in problem.outputs:
            exempt[case.dtype][0] += int(tolerance.exempt[output].sum())
            exempt[case.dtype][1] += tolerance.exempt[output].size
    return {dtype: part / max(whole, 1) for dtype, (part, whole) in exempt.items()}


def table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    return [*("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)), ""]


def by_mistake(seen: Measured, columns: list[Column]) -> list[str]:
    """A row for each mistake that applies somewhere."""
    return table(
        ["mistake", *(f"{dtype} {class_}" for dtype, class_ in columns)],
        [
            [one.says + (" ⁽¹⁾" if one.coarse else ""), *(seen.cell(name, column) for column in columns)]
            for name, one in MISTAKES.items()
            if any(seen.multiples[name].values())
        ],
    )


def report(name: str, every: int) -> list[str]:
    """The page."""
    full, padding = resolve("sdpa-math")[0], Padding()
    offered = {"sdpa-math": (full, TORCH), "padding": (padding, Dialect())}
    cases = {what: array(name, adapter, LEVELS["dtype"])[::every] for what, (adapter, _) in offered.items()}
    seen = {what: measure(cases[what], offered[what][1], what == "sdpa-math") for what in offered}
    main = seen["sdpa-math"]
    return [
        "# What the problems can show",
        "",
        f"    python benchmarks/resolving.py --array {name}"
        + (f" --every {every}" if every > 1 else "")
        + " --markdown docs/resolving.md",
        "",
        *PROSE.format(
            problems=main.problems, array=name, mistakes=sum(map(any, map(dict.values, main.multiples.values())))
        ).splitlines(),
        "",
        "## In the default class",
        "",
        *by_mistake(main, [(dtype, default_class(dtype)) for dtype in DTYPES]),
        "⁽¹⁾ A coarse mistake: nearly any problem shows it.",
        "",
        *extensions(every),
        "## In the half types, for kernels that claim a stricter class",
        "",
        *by_mistake(main, [(dtype, class_) for dtype in HALF for class_ in classes(dtype)]),
        "## Problems that show little",
        "",
        *table(
            ["fitted to", "problems", "show nothing", "show coarse mistakes only ⁽¹⁾", "do not show that the scores are ignored"],
            [
                [what, str(x.problems), str(len(x.nothing)), str(len(x.coarse)), f"{len(x.no_scores)} ({where(x.no_scores)})"]
                for what, x in seen.items()
            ],
        ),
        *(f"- {what}: `{case.token()}`\n" for what, x in seen.items() for case in (*x.nothing, *x.coarse)),
        "## Elements that are exempt",
        "",
        "No kernel of the class can promise these, because a legal intermediate may overflow. The table gives their share of all",
        "elements of output and gradients, by array and dialect.",
        "",
        *table(
            ["array", "dialect", *DTYPES],
            [
                [
                    which,
                    said,
                    *(f"{100 * x:.2f} %" for x in exempt_shares(array(which, adapter, LEVELS["dtype"])[::every], dialect).values()),
                ]
                for which in ("pairs", "triples")
                for said, adapter, dialect in (
                    ("top-left, zero", full, TORCH),
                    ("bottom-right, uniform", Everything(), Dialect(empty_row="uniform")),
                )
            ],
        ),
    ]


def where(some: list[Case]) -> str:
    """Why scores do not show in these cases, as far as it is plain."""
    one_key = sum(case.keys == 1 or (case.causal and case.i == 1) for case in some)
    zero = sum(case.scale == 0 for case in some) - sum(
        case.scale == 0 and (case.keys == 1 or (case.causal and case.i == 1)) for case in some
    )
    return f"one key: {one_key}, scale 0: {zero}, other: {len(some) - one_key - zero}"


PROSE = """{mistakes} known mistakes (conformance/mistakes/) were tried on the {problems} problems of the array `{array}`,
fitted to `sdpa-math`. The script computes the wrong answer of each mistake exactly, in float64, so that nothing else is
wrong with it. Then it asks what the judge asks: by how many times its bound is the worst element off?

A cell holds three numbers: to how many problems the mistake applies · the share of them that show it, with an element that
is off by more than its bound · the median multiple of the bound. ∞ means that an element is not finite, or must be exactly
zero and is not. A dash means that the mistake applies to no problem.

How to read it. At 100 % any one of these problems is enough. 20 % of 50 problems is no gap, because an implementation is
judged on all of them. A share near 0 is a gap: the class may round by as much as the mistake changes. One such mistake is a
scale that is off by 0.1 % in the half types, because class C may round the scale to storage, which changes it by up to
0.4 % in bfloat16. Gradients that are sums of many terms show less in class C than others do, because a bound covers the
worst that all their roundings together can do. A mistake in the scores can't show if each query sees only one key, or if the
scale is 0. Such problems are counted below; they are there to test something else."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--array", choices=("pairs", "triples"), default="pairs")
    parser.add_argument("--every", type=int, default=1, help="take each nth row")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    lines = report(options.array, options.every)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
