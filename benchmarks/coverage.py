"""Writes one Markdown page: which levels, combinations of levels and situations the suite's problems contain, and how often.

    python benchmarks/coverage.py --markdown docs/coverage.md [--searches 200] [--impl sdpa-math]

tests/situations.py states the least probabilities, and a test holds them; this script measures the figures beside them.
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
from attnspec.conformance.problems.extension import ALONE, EXTENSIONS
from attnspec.conformance.problems.factors import LEVELS, alike
from attnspec.conformance.run.tier import TIERS

DTYPES = LEVELS["dtype"]
EXAMPLES = TIERS["standard"].searched

PROSE = """\
A problem is one level of each of {factors} factors, and a seed. Tier smoke runs an array of {pairs} rows that contains every
pair of levels. Standard and the tiers above it run an array of {triples} rows that contains every three levels together, and
also problems that a search draws. The suite neither asks nor counts what an implementation does not offer, nor what makes no
sense, such as holes without a mask.

At the end of a run the table says `covered`: how many pairs and triples of levels occur in the problems whose answers were
compared with the reference, of all that this implementation can be asked. Only what was really asked counts, so a run that
was cut short, or limited to a few clauses, covers less.
"""

SPELLING = """\
A dot separates levels. Values with commas between them are one level: the rows use them in turn, and each value occurs in
every tier, in standard in every dtype. j = 0 means as many keys as queries, e = 0 means values as wide as keys. Every tier
also has tests of zero queries, keys, heads and batch items (SHAPE-4, EMPTY-5), and of rows at block edges up to 1025 keys
(SHAPE-2).
"""

SEARCHED = """\
A search is what one test draws in one dtype in tier standard: {examples} examples. {tests} comparisons search, each
with its own seed, and use the draws that fit them.

- *stated*: a search contains the situation with at least this probability. If it does not, tests/test_discovery.py fails;
  the probability of a false alarm is 10⁻⁶.
- *searches*: the share of {searches} searches that contained it. They were made in float32, each with its own seed.
- *draws*: the share of the draws of these searches.
- *pairs*, *triples*: how many rows of that array contain it, whatever the seed: of pairs in all dtypes together, of triples
  in the dtype that has the fewest.
"""


class Padding(Adapter):
    """What the Attend modules offer."""

    offers = frozenset({"mha", "shared_kv", "strided", "key_padding", "causal", "backward"})


class Core(Everything):
    """Offers the whole core, and no extension."""

    offers = Everything.offers - {one.feature for one in EXTENSIONS}


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
    adapters = {"all of the core": Core(), "sdpa-math": resolve("sdpa-math")[0], "an `Attend` module": Padding()}
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


def by_extension() -> list[str]:
    """Rows beside the core's, of who offers one extension alone, or all."""

    class Offering(Core):
        """The core, and what is given."""

        def __init__(self, features: Iterable[str]) -> None:
            self.offers = Core.offers.union(features)

    offering = {rows.name: Offering([feature]) for feature, rows in ALONE.items()} | {"all": Everything()}
    core = [len(array(name, Core(), DTYPES)) for name in ("pairs", "triples")]
    more = {what: [len(array(name, adapter, DTYPES)) for name in ("pairs", "triples")] for what, adapter in offering.items()}
    rows = ([what, *(str(n - of_core) for n, of_core in zip(some, core, strict=True))] for what, some in more.items())
    return table(["extension", "pairs", "triples"], rows)


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
    rows = {name: [Drawn(case) for case in array(name, Core(), DTYPES)] for name in ("pairs", "triples")}
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


def page(impl: str, number: int) -> str:
    """The document: an implementation whose runs are shown, and how many searches are measured."""
    rows = {name: str(len(array(name, Core(), DTYPES))) for name in ("pairs", "triples")}
    lines = [
        "# What the problems contain",
        "",
        "    python benchmarks/coverage.py --markdown docs/coverage.md",
        "",
        *PROSE.format(factors=len(LEVELS), **rows).splitlines(),
        "",
        "## Levels",
        "",
        *SPELLING.splitlines(),
        "",
        *by_level(),
        "## Combinations",
        "",
        "The arrays alone, fitted to what an implementation offers:",
        "",
        *by_adapter(),
        "Who offers an extension is asked further rows, which are those of all extensions together where he offers more than one:",
        "",
        *by_extension(),
        f"Whole runs of {impl}, where each test changes the problems to fit its clause, and a search adds others:",
        "",
        *by_run(impl),
        "## Situations",
        "",
        *SEARCHED.format(examples=EXAMPLES, searches=number, tests=comparisons()).splitlines(),
        "",
        *by_situation(number),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--impl", default="sdpa-math")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    text = page(options.impl, options.searches)
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
