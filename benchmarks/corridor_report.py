"""The report of the corridor: its tables in Markdown, and its picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from corridor_tally import BINS, LEAST, STEP, Share, Tally
from picture import INK, picture

from attnspec.conformance.problems.factors import LEVELS
from attnspec.spec.words import CLASSES, OUTPUTS

DTYPES = LEVELS["dtype"]

# What earlier runs found; a new run can't, for the bounds are mended.
EARLIER = """\
Earlier runs found bounds that lacked something. Of 100,000 problems on earlier code (2996b48ca89e9d19) four were outside a bound
(24175, 36637, 39452, 69563), and later two more of the same seed (6507, 10787). There were three causes. Gradient accumulators that
are kept in storage may overflow on the way. Numbers may underflow before and after dropout multiplies them. A scale of zero may
multiply an operand that overflowed. We added terms for these. The terms only widen a bound, so no number that was inside a bound
is outside now. `--replay N` shows that each of the six is inside.
"""


def number(x: float) -> str:
    return "0" if x == 0 else f"{x:.2f}" if x >= 0.095 else f"{x:.1g}" if x >= 1e-4 else f"{x:.0e}".replace("e-0", "e-")


def row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(x) for x in cells) + " |"


def heading(*cells: str) -> list[str]:
    return [row(cells), "|---" * len(cells) + "|"]


def pooled(tally: Tally, class_: str, dtype: str, output: str) -> Share:
    """All implementations of a class together."""
    total = Share()
    for (_, c, t, o), share in tally.shares.items():
        if (c, t, o) == (class_, dtype, output):
            total.merge(share)
    return total


def triple(share: Share | None) -> str:
    if share is None or not (share.exact or share.bins.any()):
        return "–"
    return " / ".join(number(x) for x in (share.largest, share.quantile(0.999), share.quantile(0.5)))


def groups(tally: Tally) -> list[tuple[str, str]]:
    """The classes of each dtype."""
    return sorted({(c, t) for _, c, t, _ in tally.shares}, key=lambda x: (DTYPES.index(x[1]), CLASSES.index(x[0])))


def asked_for(tally: Tally) -> list[str]:
    """The outputs of the core, and those that somebody gave."""
    given = {output for _, _, _, output in tally.shares} | {"o", "dq", "dk", "dv", "dbias"}
    return [output for output in OUTPUTS if output in given]


def table(tally: Tally, header: dict[str, Any], command: str, picture: str) -> list[str]:
    """The report, in Markdown."""
    outputs = asked_for(tally)
    answers, elements = sum(tally.asked.values()), sum(int(x.bins.sum()) + x.exact for x in tally.shares.values())
    rate, names = tally.problems / max(tally.seconds, 1e-9), len({name for name, _ in tally.asked})
    where = f"torch {header['torch']}, CPU, one thread, {rate:.0f} problems per second and worker; seed {header['seed']}"
    lines = [
        "# No false alarm, measured",
        "",
        f"**{tally.problems:,} random problems, {answers:,} answers of {names} correct implementations, "
        f"{elements:,} numbers judged: {len(tally.violations):,} outside their bounds.**",
        "",
        f"    {command}",
        "",
        f"{where}; code {header['code']}.",
        "The judge holds each implementation to the class of its arithmetic (`tests/variants.py` gives the reasons). A cell shows",
        "error/bound as **largest / 99.9 % / median**, over all elements that have an error. 1 is the most that rounding can",
        "cause.",
        "",
        *EARLIER.splitlines(),
        "",
        *([f"![error/bound by class and dtype]({picture})", ""] if picture else []),
        "## By class",
        "",
        *heading("dtype", "class", *outputs, "exempt elements"),
    ]
    for class_, dtype in groups(tally):
        share = tally.exempt[class_, dtype] / max(1, tally.elements[class_, dtype])
        cells = (triple(pooled(tally, class_, dtype, output)) for output in outputs)
        lines.append(row((dtype, class_, *cells, f"{share:.3%}")))
    lines += ["", "No kernel of the class can promise an element that is exempt, because a legal intermediate may overflow.", ""]
    for dtype in DTYPES:
        lines += [f"## {dtype}", "", *heading("implementation", "class", "answers", *outputs)]
        seen = {(name, c) for name, c, t, _ in tally.shares if t == dtype}
        lines += [
            row((name, c, f"{tally.asked[name, dtype]:,}", *(triple(tally.shares.get((name, c, dtype, o))) for o in outputs)))
            for name, c in sorted(seen, key=lambda x: (CLASSES.index(x[1]), x[0]))
        ]
        lines.append("")
    lines += ["## Problems that were left out", "", *heading("implementation", "why", "problems")]
    lines += [row((name, why, f"{n:,}")) for (name, why), n in sorted(tally.left_out.items()) if why != "another dtype"]
    lines += ["", "## Outside their bounds", ""]
    if not tally.violations:
        return [*lines, "None."]
    lines += heading("problem", "implementation", "class", "output", "times the bound", "at", "got", "expected", "case")
    lines += [
        row(
            (
                x["number"],
                x["implementation"],
                x["class"],
                x["output"],
                f"{x['ratio']:.3g}" if x["kind"] == "value" else f"{x['kind']} {x['message']}",
                tuple(x["index"]),
                f"{x['got']:.9g}",
                f"{x['expected']:.9g}",
                f"`{x['problem']}`",
            )
        )
        for x in tally.violations[:200]
    ]
    return lines


def plot(tally: Tally, path: Path) -> None:
    """Distributions of error/bound: a panel for each output, a row for each class and dtype. Readable on white and black."""
    colours = {"float32": "#3b82c4", "float64": "#7a68b3", "bfloat16": "#c9772b", "float16": "#3f9a64"}
    rows, outputs = groups(tally)[::-1], asked_for(tally)
    edges = (LEAST + STEP * np.arange(BINS))[::2]
    with picture(path, 1, len(outputs), size=(13, 1.4 + 0.42 * len(rows)), sharey=True) as (figure, panels):
        for output, axes in zip(outputs, panels, strict=True):
            for y, (class_, dtype) in enumerate(rows):
                share = pooled(tally, class_, dtype, output)
                if not share.bins.any():
                    continue
                height = np.convolve(share.bins, np.ones(6), "same")[::2]
                shown = (edges > -6.2) & (height > 0)
                axes.fill_between(edges[shown], y, y + 0.85 * height[shown] / height.max(), color=colours[dtype], linewidth=0)
                axes.plot([np.log10(max(share.quantile(0.5), 1e-9))] * 2, [y, y + 0.85], color="#222222", linewidth=1)
                axes.plot(np.log10(min(share.largest, 2.0)), y + 0.12, "D", color=colours[dtype], markeredgecolor=INK, markersize=4)
            axes.axvline(0, color="#d0342c", linewidth=1.2)
            axes.set_title(output, color=INK)
            axes.set_xlim(-6.2, 0.4)
            axes.set_xticks(range(-6, 1, 2), [f"$10^{{{n}}}$" if n else "1" for n in range(-6, 1, 2)])
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color=INK, alpha=0.25, linewidth=0.5)
            axes.set_xlabel("error / bound")
        panels[0].set_yticks([y + 0.3 for y in range(len(rows))], [f"{dtype}  {class_}" for class_, dtype in rows])
        figure.suptitle("Correct kernels: elements with an error.  │ median   ◆ largest   red: the bound", color=INK, fontsize=10)
