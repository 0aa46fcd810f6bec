"""Does the suite stop wrong kernels of many sequences, by the chapters VARLEN, CACHE and PAGED alone?

    python benchmarks/ragged_kills.py --into FOLDER [--tier smoke] [--dtypes float32] [--only NAME …] [--again]
    python benchmarks/ragged_kills.py --into FOLDER --tabulate

As benchmarks/kill_matrix.py has it, each mutant runs in a process of its own and ends at its first broken MUST: first its own
clause is asked, then all of its chapter. The script appends results to FOLDER/TIER.jsonl, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections import Counter
from pathlib import Path
from typing import Any

import kill_matrix
import pytest
from _pytest.terminal import TerminalReporter
from judging import judge
from kill_matrix import EVERY, STOPPED, alone, diagnosis, read, remember, subject
from mutants.base import load

FAMILIES = {"varlen": "VARLEN", "cache": "CACHE", "paged": "PAGED"}


def measured(name: str, tier: str, whole_suite: bool) -> dict[str, Any]:
    """What the mutant's own clause says of it, and then its chapter."""
    mutant = load()[name]
    chapter = FAMILIES[mutant.family]
    runs: list[dict[str, Any]] = []
    for clauses in (mutant.clause, chapter):
        if not runs or not runs[0]["first"]:
            asked = ("-x", f"--clauses={clauses}")
            runs.append(kill_matrix.watched(f"mutants.implementations.{name}", tier, *asked, enough=mutant.clause))
    broken = sorted({clause for run in runs for clause in run["broken"]})
    near = any(clause.partition("-")[0] == chapter for clause in broken)
    verdict = ("own" if mutant.clause in broken else "chapter" if near else "other") if broken else "survived"
    first = next((run["first"] for run in runs if run["first"]), {})
    sums = {clock: sum(run[clock] for run in runs) for clock in ("seconds", "cpu", "judged")}
    if not broken and runs[-1]["exit"]:
        raise RuntimeError(f"no clause broken, and exit {runs[-1]['exit']}")
    return {"name": name, "verdict": verdict, "first": first, "broken": broken, "exit": runs[-1]["exit"], **sums}


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Verdicts by chapter, as a table."""
    lines = ["| chapter | mutants | own clause | its chapter | another | survived | errored or timeout |", "|---|" + "---|" * 6]
    for family, chapter in FAMILIES.items():
        counts = Counter(one["verdict"] for one in results.values() if one.get("family") == family)
        cells = (*(counts[verdict] for verdict in (*STOPPED, "survived")), counts["errored"] + counts["timeout"])
        lines.append(f"| {chapter} | {counts.total()} | " + " | ".join(str(n or "·") for n in cells) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tier", default="smoke", choices=("smoke", "standard"))
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--again", action="store_true", help="measure what has a result, too")
    parser.add_argument(
        "--explain", type=float, default=0.7, help="seconds for the explanation of a failure, which names its clause"
    )
    parser.add_argument("--cold", action="store_true", help="keep no exact answers of honest kernels first")
    parser.add_argument("--tabulate", action="store_true", help="measure nothing")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    path = options.into / f"{options.tier}.jsonl"
    names = options.only or [name for name, one in load().items() if one.family in FAMILIES]
    todo = [name for name in names if not options.tabulate and (options.again or name not in read(path))]
    EVERY[:] = [
        "--in-process",
        f"--explain-budget={options.explain}",
        *([f"--impl-dtypes={options.dtypes}"] if options.dtypes else []),
    ]
    kill_matrix.measured = measured
    subject.solve = remember  # type: ignore[assignment]
    diagnosis.SECONDS = 0.2
    for report in ("pytest_keyboard_interrupt", "_report_keyboardinterrupt"):  # of a run that is stopped nobody reads the end
        setattr(TerminalReporter, report, lambda *_: None)
    chapters = {FAMILIES[load()[name].family] for name in todo}
    for chapter in sorted(chapters):
        for form in {"VARLEN": ("packed",), "CACHE": ("cached",), "PAGED": ("paged",)}[chapter]:
            asked = {"VARLEN": "VARLEN-10", "CACHE": "CACHE-10", "PAGED": "PAGED-4"}[chapter] if options.cold else chapter
            honest = judge(f"honest_ragged.{form}", *EVERY, f"--clauses={asked}", tier=options.tier)
            if honest.exit:
                pytest.exit(f"the honest kernel fails: {honest.broken()}\n{honest.screen[-2000:]}")
    gc.collect()
    gc.freeze()
    for name in todo:
        result = alone(name, options.tier)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, default=str) + "\n")
        first = result.get("first") or {}
        told = (result["verdict"], result.get("clause", ""), first.get("clause", ""), result.get("error", ""))
        print(f"{name:55}", *told, f"{result.get('seconds', 0):.1f} s", flush=True)
    results = read(path)
    print("\n".join(table(results)))
    print(*(name for name, one in results.items() if one["verdict"] not in STOPPED))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
