"""Does the suite stop wrong kernels of many sequences, each by the chapter of its own clause alone?

    python benchmarks/ragged_kills.py --into FOLDER [--tier smoke] [--dtypes float32] [--only NAME …] [--again] [--whole]
    python benchmarks/ragged_kills.py --into FOLDER --tabulate

As benchmarks/kill_matrix.py has it, each mutant runs in a process of its own and ends at its first broken MUST: first its own
clause is asked, then all of its chapter. With --whole the whole suite is asked, and nothing else. The script appends results to
FOLDER/TIER.jsonl, or to FOLDER/TIER-whole.jsonl, and goes on where it stopped.
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

from attnspec.spec import index

FAMILIES = ("varlen", "cache", "paged", "mla", "rotary", "determinism")
FORMS = {"VARLEN": "packed", "CACHE": "cached", "PAGED": "paged"}  # the honest kernel that is asked before the mutants of a chapter
FEW = {"VARLEN": "VARLEN-10", "CACHE": "CACHE-10", "PAGED": "PAGED-4"}  # enough to see that it passes


def chapter_of(clause: str) -> str:
    return clause.partition("-")[0]


def measured(name: str, tier: str, whole_suite: bool) -> dict[str, Any]:
    """What the mutant's own clause says of it, and then its chapter; or what the whole suite says."""
    mutant = load()[name]
    chapter = chapter_of(mutant.clause)
    enforced = [] if index()[mutant.clause].binding else ["--enforce-should"]
    runs: list[dict[str, Any]] = []
    for clauses in [[]] if whole_suite else [[f"--clauses={mutant.clause}"], [f"--clauses={chapter}"]]:
        if not runs or not runs[0]["first"]:
            impl, asked = f"mutants.implementations.{name}", ("-x", *clauses, *enforced)
            runs.append(kill_matrix.watched(impl, tier, *asked, enough=mutant.clause))
    broken = sorted({clause for run in runs for clause in run["broken"]})
    near = any(chapter_of(clause) == chapter for clause in broken)
    verdict = ("own" if mutant.clause in broken else "chapter" if near else "other") if broken else "survived"
    first = next((run["first"] for run in runs if run["first"]), {})
    sums = {clock: sum(run[clock] for run in runs) for clock in ("seconds", "cpu", "judged")}
    if not broken and runs[-1]["exit"]:
        raise RuntimeError(f"no clause broken, and exit {runs[-1]['exit']}")
    return {"name": name, "verdict": verdict, "first": first, "broken": broken, "exit": runs[-1]["exit"], **sums}


def of_many() -> list[str]:
    """The mutants of many sequences, chapter by chapter."""
    found = [one for one in load().values() if one.family in FAMILIES]
    return [one.name for one in sorted(found, key=lambda one: (FAMILIES.index(one.family), chapter_of(one.clause)))]


def sampled() -> list[str]:
    """The same by the hash of their names: the first ones are a sample of all chapters."""
    return [one.name for one in kill_matrix.sample((load()[name] for name in of_many()), len(of_many()))]


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Verdicts by chapter, as a table."""
    lines = ["| chapter | mutants | own clause | its chapter | another | survived | errored or timeout |", "|---|" + "---|" * 6]
    for chapter in dict.fromkeys(chapter_of(load()[name].clause) for name in of_many()):
        counts = Counter(one["verdict"] for one in results.values() if chapter_of(one["clause"]) == chapter)
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
    parser.add_argument("--whole", action="store_true", help="the whole suite, not the mutant's own clause and its chapter")
    parser.add_argument("--tabulate", action="store_true", help="measure nothing")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    path = options.into / f"{options.tier}{'-whole' * options.whole}.jsonl"
    names = options.only or (sampled() if options.whole else of_many())
    kill_matrix.LIMIT["smoke"] *= 6 if options.whole else 1
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
    chapters = {chapter_of(load()[name].clause) for name in todo}
    for chapter in sorted(chapters & FORMS.keys()):
        asked = FEW[chapter] if options.cold else chapter
        honest = judge(f"honest_ragged.{FORMS[chapter]}", *EVERY, f"--clauses={asked}", tier=options.tier)
        if honest.exit:
            pytest.exit(f"the honest kernel fails: {honest.broken()}\n{honest.screen[-2000:]}")
    gc.collect()
    gc.freeze()
    for name in todo:
        result = alone(name, options.tier, options.whole)
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
