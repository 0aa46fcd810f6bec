"""What each implementation was found to do, as a Markdown table: a row for each chapter, a column for each variant.

    python benchmarks/tables.py sdpa sdpa-math sdpa-flash [--tier standard] [--verdicts FOLDER]

Runs `pytest --impl=NAME --tier=TIER --verdicts FILE` for each name, one after the other, and reads the verdict files. A cell
is problems passed / problems judged, over all dtypes; ✗ where a MUST clause failed, (✗) where only a SHOULD did. With
--verdicts the files are kept in FOLDER, and one that is there and complete is read instead of made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attnspec.spec import index

Counts = dict[str, Counter[str]]  # clause -> verdict -> problems
JUDGED = ("PASS", "FAIL", "KNOWN_ISSUE", "XPASS", "CRASH", "TIMEOUT", "RESOURCE")
WRONG = ("FAIL", "CRASH", "TIMEOUT")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a verdict file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def verdicts(name: str, tier: str, folder: Path) -> list[dict[str, Any]]:
    """The lines of NAME's verdict file, after a run where there is no complete one. Exits where the run gives none."""
    path = folder / f"{name.replace('/', '_').replace(':', '_')}.jsonl"
    lines = read(path)
    if not lines or lines[-1]["kind"] != "footer":
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", f"--impl={name}", f"--tier={tier}", "--verdicts", str(path)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        lines = read(path)
        if not lines or lines[-1]["kind"] != "footer":
            said = (done.stdout + done.stderr)[-2000:]
            sys.exit(f"{' '.join(command)}\nexit code {done.returncode}, no complete verdict file\n{said}")
    return lines


def by_variant(lines: Iterable[dict[str, Any]]) -> dict[str, Counts]:
    """Problems of each variant, by clause and verdict, over all dtypes and devices."""
    seen: dict[str, Counts] = {}
    for line in lines:
        if line["kind"] == "verdict":
            counts = seen.setdefault(line["variant"], defaultdict(Counter))
            counts[line["clause"]][line["verdict"]] += line["problems"]
    return seen


def cell(counts: Counts, clauses: list[str], musts: set[str]) -> str:
    """One chapter of one variant."""
    total: Counter[str] = sum((counts[c] for c in clauses if c in counts), Counter())
    judged = sum(total[v] for v in JUDGED)
    broken = [c for c in clauses if c in counts and any(counts[c][v] for v in WRONG)]
    ours = f" + {total['HARNESS_ERROR']} errors of the suite" if total["HARNESS_ERROR"] else ""
    if not judged:
        return ("unsupported" if total["UNSUPPORTED"] else "not run") + ours
    mark = " ✗" if musts & set(broken) else " (✗)" if broken else ""
    return f"{total['PASS'] + total['XPASS']}/{judged}{mark}" + ours


def names_of(counts: Counts, among: Iterable[str], verdicts_of: tuple[str, ...]) -> str:
    """The clauses with one of these verdicts, or a dash."""
    return ", ".join(c for c in among if c in counts and any(counts[c][v] for v in verdicts_of)) or "–"


def without(counts: Counts, clauses: Iterable[str], offered: bool) -> str:
    """The clauses of which nothing was judged: not run although offered, or not offered."""
    silent = (c for c in clauses if c in counts and not any(counts[c][v] for v in JUDGED))
    return ", ".join(c for c in silent if bool(counts[c]["UNSUPPORTED"]) != offered) or "–"


def table(columns: dict[str, Counts]) -> list[str]:
    """The Markdown table, then the clauses by name."""
    clauses = list(index())
    musts = {c for c in clauses if index()[c].level == "MUST"}
    chapters: dict[str, list[str]] = defaultdict(list)
    for clause in clauses:
        chapters[clause.rpartition("-")[0]].append(clause)
    lines = ["| chapter | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {chapter} | " + " | ".join(cell(counts, ids, musts) for counts in columns.values()) + " |"
        for chapter, ids in chapters.items()
    ]
    lines += ["", "| variant | MUST broken | SHOULD broken | not offered | not run |", "|---|---|---|---|---|"]
    for name, counts in columns.items():
        must = names_of(counts, (c for c in clauses if c in musts), WRONG)
        should = names_of(counts, (c for c in clauses if c not in musts), WRONG)
        lines.append(f"| {name} | {must} | {should} | {without(counts, clauses, False)} | {without(counts, clauses, True)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--tier", default="standard")
    parser.add_argument("--verdicts", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    columns: dict[str, Counts] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.verdicts or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.names:
            for variant, counts in by_variant(verdicts(name, options.tier, folder)).items():
                columns[name if variant == "only" else f"{name} {variant}"] = counts
    print("\n".join(table(columns)))


if __name__ == "__main__":
    main()
