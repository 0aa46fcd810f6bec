"""Does one fault hide another? Asks kernels with two faults each (tests/mutants/pairs.py), and looks for both in one run.

    python benchmarks/two_faults.py [--tier standard] [--only FIRST__SECOND …] [--part 0/2] [--markdown docs/two-faults.md]

Each kernel runs in float32, in a process of its own. A fault is seen if its own clause is broken, or if a failure has a name
that tests/mutants/diagnoses.json expects of it. A lie is a clause of one of the two that the run calls held. The script appends
results to INTO/two-faults-TIER.jsonl; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from diagnosis import EXPECTED, said  # noqa: E402
from judging import judge  # noqa: E402  tests/ is no package
from kill_matrix import read  # noqa: E402
from mutants.base import load  # noqa: E402
from mutants.pairs import PAIRS  # noqa: E402

from attnspec.conformance.diagnosis.folding import fold  # noqa: E402
from attnspec.conformance.verdicts.lines import tally  # noqa: E402
from attnspec.spec import index  # noqa: E402

LIMIT = 1800  # seconds for one kernel


def measured(name: str, tier: str) -> dict[str, Any]:
    """What one run says of a kernel with two faults."""
    began = time.perf_counter()
    outcome = judge(f"mutants.pairs.{name}", "--impl-dtypes=float32", tier=tier)
    counted = tally(outcome.record.weighed(), {clause.id: clause.level for clause in index().values()})
    faults = fold(outcome.failures)
    names = [(fault.failure.clause, said(fault), fault.failure.diagnosis) for fault in faults]
    broken = sorted({failure.clause for failure in outcome.failures})
    return {"broken": broken, "held": counted.holds, "names": names, "seconds": time.perf_counter() - began}


def judgement(one: dict[str, Any], expected: dict[str, list[str]]) -> dict[str, Any]:
    """Of each of the two faults whether it was seen and rightly named; and the names that are neither's, and the lies."""
    mutants, pair = load(), one["name"].split("__")
    right = [set(expected.get(name, ())) for name in pair]
    names = [set(said) for _, said, _ in one["names"] if said]
    named = [any(said & mine for said in names) for mine in right]
    seen = [named[n] or mutants[name].clause in one["broken"] for n, name in enumerate(pair)]
    binding = [set(said) for clause, said, _ in one["names"] if said and index()[clause].binding]
    wrong = [sorted(said) for said in binding if not said & (right[0] | right[1])]
    lies = sorted({mutants[name].clause for name in pair} & set(one["held"]))
    return {"seen": seen, "named": named, "wrong": wrong, "lies": lies}


def told(name: str, tier: str, pipe: Any) -> None:
    """In a process of its own: send what was measured."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # for the scripts of its failures
        try:
            pipe.send(measured(name, tier))
        except BaseException as error:
            pipe.send({"error": f"{type(error).__name__}: {error}"[:300], "broken": [], "held": [], "names": []})


def alone(name: str, tier: str) -> dict[str, Any]:
    """One kernel in a forked process."""
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=told, args=(name, tier, there))
    process.start()
    there.close()
    result: dict[str, Any] = {"error": "timeout", "broken": [], "held": [], "names": []}
    try:
        if here.poll(LIMIT):
            result = here.recv()
    except EOFError:
        result["error"] = "the process ended without a word"
    process.kill()
    process.join()
    return {"name": name, "tier": tier, **result}


def markdown(results: dict[str, dict[str, Any]], tier: str) -> str:
    """The page: totals, and what was said of each kernel."""
    expected = json.loads(EXPECTED.read_text())
    judged = {name: judgement(one, expected) for name, one in results.items()}
    both = sum(all(one["seen"]) for one in judged.values())
    named = sum(all(one["named"]) for one in judged.values())
    lines = [
        "# Kernels with two faults",
        "",
        f"`python benchmarks/two_faults.py --tier {tier}` wrote this page. It asks {len(judged)} kernels in float32. The suite saw",
        f"both faults of {both} kernels, and named both rightly in {named}.",
        f"In {sum(bool(one['lies']) for one in judged.values())} it held a clause that one of the two faults breaks.",
        f"In {sum(bool(one['wrong']) for one in judged.values())} it gave a name that belongs to neither.",
        "",
        "| first fault | second fault | clauses broken | seen | named | held though broken | other names |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in judged.items():
        first, second = name.split("__")
        cells = [f"{mutant} ({load()[mutant].clause})" for mutant in (first, second)]
        cells += [", ".join(results[name]["broken"])]
        cells += [f"{sum(one['seen'])}/2"]
        cells += [f"{sum(one['named'])}/2", ", ".join(one["lies"])]
        cells += ["; ".join(map(" or ".join, one["wrong"]))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tier", default="standard")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--into", type=Path, default=Path(tempfile.gettempdir()) / "attnspec-two-faults")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    arguments.into.mkdir(parents=True, exist_ok=True)
    path, expected = arguments.into / f"two-faults-{arguments.tier}.jsonl", json.loads(EXPECTED.read_text())
    part, parts = map(int, arguments.part.split("/"))
    names = arguments.only or [f"{a}__{b}" for a, b in PAIRS][part::parts]
    for name in names:
        if name in read(path) and not arguments.only:
            continue
        result = alone(name, arguments.tier)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        one = judgement(result, expected)
        print(f"{name:70} {one} {result.get('error', '')} {result.get('seconds', 0):.0f} s", flush=True)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(read(path), arguments.tier), encoding="utf-8")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
