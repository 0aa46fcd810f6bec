"""What the suite's problems contain, and how often: levels, combinations of levels, and situations, as one Markdown page.

    python benchmarks/coverage.py --markdown docs/coverage.md [--searches 200] [--impl sdpa-math]

The probabilities that are stated, and tested, stand in tests/situations.py; the figures beside them are measured here.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from judging import judge
from situations import SITUATIONS, Drawn, Everything, searches

from attnspec.adapters import Adapter, resolve
from attnspec.conformance.plugin import hooks as plugin
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.coverage import Space, share_in_words
from attnspec.conformance.problems.factors import LEVELS, alike
from attnspec.conformance.run.tier import TIERS

DTYPES = LEVELS["dtype"]
EXAMPLES = TIERS["standard"].searched

PROSE = """A problem is a level for each of {factors} factors, and a seed. Tier smoke asks an array of {pairs} rows in which every
two levels meet, standard and the tiers above it one of {triples} rows in which every three do, and what a search draws
besides. What is not offered, or makes no sense, such as holes without a mask, is not asked and not counted.

`covered` in the table at the end of a run counts the combinations in the problems whose answers were compared with the
reference, of those that this implementation can be asked. It is counted from what was asked, so a run that was cut short,
or asked of a few clauses, covers less.
"""

SEARCHED = """One search is what one test draws in one dtype in tier standard: {examples} examples. *stated*: the probability, at
least, that a search contains the situation; where it is lower, tests/test_discovery.py fails, with a false alarm once in 10⁶.
*searches*: the share of {searches} searches, each with its own seed, that did in float32; *draws*: the share of their draws.
{tests} comparisons search, each with its own seed, and take what fits them. *pairs*: rows of the array, all dtypes together;
*triples*: rows in the dtype that has fewest. These are there whatever the seed.
"""


class Padding(Adapter):
    """What the Attend modules offer."""

    offers = frozenset({"mha", "shared_kv", "strided", "key_padding", "causal", "backward"})


def table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    return [*("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)), ""]


def by_level() -> list[str]:
    """Each factor's levels, and what a level stands for besides."""

    def words(name: str) -> str:
        return " · ".join(", ".join(map(str, alike(name, level))) for level in LEVELS[name])

    return table(["factor", "levels"], [[name, words(name)] for name in LEVELS])


def by_adapter() -> list[str]:
    """The arrays, fitted to what is offered."""
    adapters = {"everything": Everything(), "sdpa-math": resolve("sdpa-math")[0], "an `Attend` module": Padding()}
    rows = []
    for what, adapter in adapters.items():
        for name in ("pairs", "triples"):
            some, space = array(name, adapter, DTYPES), Space.of(adapter, DTYPES)
            rows.append(
                [
                    what,
                    name,
                    str(len(some)),
                    share_in_words(*space.reached(some, 2), "pairs"),
                    share_in_words(*space.reached(some, 3), "triples"),
                ]
            )
    return table(["offered", "array", "rows", "two levels", "three levels"], rows)


def by_run(impl: str) -> list[str]:
    """What whole runs say."""
    rows = []
    for tier in ("smoke", "standard"):
        lines = judge(impl, tier=tier).screen.splitlines()
        rows += [[tier, line.removeprefix("  covered").strip()] for line in lines if line.startswith("  covered")]
    return table(["tier", "covered"], rows)


def by_situation(number: int) -> list[str]:
    """Stated and measured."""
    drawn = searches(number, EXAMPLES, "float32")
    rows = {name: [Drawn(case) for case in array(name, Everything(), DTYPES)] for name in ("pairs", "triples")}
    lines = []
    for what, one in SITUATIONS.items():
        found = [[one.holds(x) for x in search] for search in drawn]
        least = min(sum(one.holds(x) for x in rows["triples"] if x.case.dtype == dtype) for dtype in DTYPES)
        lines.append(
            [
                what,
                f"{100 * one.drawn:.0f} %",
                f"{100 * np.mean([any(search) for search in found]):.0f} %",
                f"{100 * np.mean([x for search in found for x in search]):.1f} %",
                str(sum(map(one.holds, rows["pairs"]))),
                str(least),
            ]
        )
    return table(["situation", "stated", "searches", "draws", "pairs", "triples"], lines)


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--impl", default="sdpa-math")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    rows = {name: str(len(array(name, Everything(), DTYPES))) for name in ("pairs", "triples")}
    page = [
        "# What the problems contain",
        "",
        "    python benchmarks/coverage.py --markdown docs/coverage.md",
        "",
        *PROSE.format(factors=len(LEVELS), **rows).splitlines(),
        "",
        "## Levels",
        "",
        "Values between dots are one level: rows take them in turn, and each occurs in every tier, in standard in every dtype.",
        "j = 0 is as many keys as queries, e = 0 values as wide as keys. Zero queries, keys, heads and batch items have tests of",
        "their own in every tier (SHAPE-4, EMPTY-5), as have rows at block edges up to 1025 keys (SHAPE-2).",
        "",
        *by_level(),
        "## Combinations",
        "",
        "The arrays alone:",
        "",
        *by_adapter(),
        f"Whole runs of {options.impl}, with what the tests bend to their clause and what is searched:",
        "",
        *by_run(options.impl),
        "## Situations",
        "",
        *SEARCHED.format(examples=EXAMPLES, searches=options.searches, tests=comparisons()).splitlines(),
        "",
        *by_situation(options.searches),
    ]
    text = "\n".join(page).rstrip() + "\n"
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    else:
        print(text)


def comparisons() -> int:
    """Tests that compare with the reference and search."""
    modules = (import_module(f"attnspec.conformance.clauses.{path.stem}") for path in sorted(plugin.TESTS.glob("test_*.py")))
    return sum(x.plan.comparison for module in modules for x in vars(module).values() if hasattr(x, "plan"))


if __name__ == "__main__":
    main()
