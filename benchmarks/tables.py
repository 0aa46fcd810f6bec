"""What the suite found of each implementation, as a Markdown table: a row for each chapter, a column for each variant.

    python benchmarks/tables.py sdpa sdpa-math sdpa-flash [--tier standard] [--verdicts FOLDER]

Runs `pytest --impl=NAME --tier=TIER --verdicts FILE` for each name, one after the other, and reads the verdict files. A cell
is problems passed / problems judged, over all dtypes; ✗ means that a MUST clause failed, (✗) that only a SHOULD did. With
--verdicts the script keeps the files in FOLDER, and reads one that is there and complete instead of making it again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from attnspec.conformance.verdicts.lines import VerdictError, Verdicts, judged, read, standing


def verdicts(name: str, tier: str, folder: Path) -> Verdicts:
    """NAME's verdicts, after a run where there is no complete file of them. Exits where the run gives none."""
    path = folder / f"{name.replace('/', '_').replace(':', '_')}.jsonl"
    if path.exists() and not (found := read(path)).incomplete:
        return found
    command = [sys.executable, "-m", "pytest", f"--impl={name}", f"--tier={tier}", "--verdicts", str(path)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    try:
        found = read(path)
        incomplete = "; ".join(found.incomplete)
    except VerdictError as error:
        incomplete = str(error)
    if incomplete:
        sys.exit(f"{' '.join(command)}\nexit code {done.returncode}: {incomplete}\n{(done.stdout + done.stderr)[-2000:]}")
    return found


class Column:
    """One variant of an implementation: problems by clause and verdict over all dtypes and devices, and the classes that held."""

    def __init__(self, run: Verdicts, variant: str) -> None:
        self.run = run
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        for (clause, _, of, _), cell in run.cells.items():
            if of == variant:
                self.counts[clause].update(cell["problems"])
        self.held = {dtype: strand["held"] for (dtype, of, _), strand in run.strands.items() if of == variant}

    def chapter(self, clauses: Iterable[str]) -> str:
        """Its cell."""
        some = [clause for clause in clauses if clause in self.counts]
        total: Counter[str] = sum((self.counts[clause] for clause in some), Counter())
        if not judged(total):
            return "unsupported" if total["UNSUPPORTED"] else "not run"
        broken = {self.run.level(clause) for clause in some if standing(self.counts[clause]) == "broken"}
        return f"{total['PASS']}/{judged(total)}" + (" ✗" if "MUST" in broken else " (✗)" if broken else "")

    def clauses(self, state: str, level: str = "") -> str:
        """The clauses in a state, of one level or of all, or a dash."""
        some = (clause for clause in self.run.clauses if clause in self.counts and standing(self.counts[clause]) == state)
        return ", ".join(clause for clause in some if level in ("", self.run.level(clause))) or "–"


def table(columns: dict[str, Column]) -> list[str]:
    """The Markdown tables: chapters, clauses by name, classes."""
    chapters: dict[str, list[str]] = defaultdict(list)
    for column in columns.values():
        for clause in column.run.clauses:
            if clause not in chapters[chapter := clause.rpartition("-")[0]]:
                chapters[chapter].append(clause)
    dtypes = list(dict.fromkeys(dtype for column in columns.values() for dtype in column.held))

    def row(*cells: str) -> str:
        return f"| {' | '.join(cells)} |"

    return [
        row("chapter", *columns),
        "|---" * (len(columns) + 1) + "|",
        *(row(chapter, *(column.chapter(clauses) for column in columns.values())) for chapter, clauses in chapters.items()),
        "",
        row("variant", "MUST broken", "SHOULD broken", "not offered", "not run"),
        "|---" * 5 + "|",
        *(
            row(name, *(x.clauses("broken", level) for level in ("MUST", "SHOULD")), *map(x.clauses, ("unsupported", "not run")))
            for name, x in columns.items()
        ),
        "",
        row("best class that held", *dtypes),
        "|---" * (len(dtypes) + 1) + "|",
        *(row(name, *(column.held.get(dtype, "–") for dtype in dtypes)) for name, column in columns.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--tier", default="standard")
    parser.add_argument("--verdicts", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    columns: dict[str, Column] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.verdicts or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.names:
            run = verdicts(name, options.tier, folder)
            for variant in dict.fromkeys(variant for _, _, variant, _ in run.cells):
                columns[name if variant == "only" else f"{name} {variant}"] = Column(run, variant)
    print("\n".join(table(columns)))


if __name__ == "__main__":
    main()
