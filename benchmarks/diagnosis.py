"""Is the right mistake named? Asks every faulty kernel of tests/mutants, and compares the names with those it should get.

    python benchmarks/diagnosis.py [--only NAME …] [--part 0/2] [--markdown docs/diagnosis.md]
    python benchmarks/diagnosis.py --tabulate --markdown docs/diagnosis.md      # what the results say so far
    python benchmarks/diagnosis.py --ragged --into FOLDER --markdown results/DATE-ragged-diagnosis.md

Each mutant runs in a process of its own, up to its first failure. The script asks it the tests of its own clause; if they pass,
all tests; if those pass, too, the tests of its own clause in tier standard. tests/mutants/diagnoses.json holds the names that
say what a mutant does, or none where the vocabulary has no word for it. The script appends results to INTO/diagnosis.jsonl. The
same command goes on where it stopped, and several may run side by side, each with its part.

--ragged asks the families of many sequences and of determinism, in float32 and in tier smoke alone: the own clause first, then
its chapter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from judging import ended, judge  # noqa: E402  tests/ is no package
from kill_matrix import read, remember  # noqa: E402
from mutants.base import FAMILIES, load  # noqa: E402

from attnspec.conformance.diagnosis import explain  # noqa: E402
from attnspec.conformance.diagnosis.folding import BY_CLAUSE, PLAIN, Fault, fold  # noqa: E402
from attnspec.conformance.diagnosis.names import names_to_print  # noqa: E402
from attnspec.conformance.mistakes.vocabulary import MISTAKES  # noqa: E402
from attnspec.conformance.subject import subject  # noqa: E402
from attnspec.spec import CHOICES, index  # noqa: E402

EXPECTED = ROOT / "tests" / "mutants" / "diagnoses.json"
LIMIT, LIMIT_RAGGED = 240, 60  # seconds for one mutant
RAGGED = {
    "varlen": ("honest_ragged.packed", "VARLEN"),
    "cache": ("honest_ragged.cached", "CACHE"),
    "paged": ("honest_ragged.paged", "PAGED"),
    "rotary": ("rotated.Honest", "ROTARY"),
    "mla": ("rotated.Honest", "MLA"),
    "determinism": ("steady.Steady", "DETERMINISM,BATCH"),
}  # families of many sequences: an honest kernel that asks for the same answers, and the chapters
SHOWN = {"silent": "rightly none", "survived": "did not fail"}  # verdicts in other words on the page
OBSERVED = {*PLAIN, "coarse arithmetic"}  # facts that stand under "found": no mistake is named


def said(fault: Fault) -> list[str]:
    """The names under which a fault is told: of mistakes, or how it fails; none where it is only the clause."""
    names = fault.failure.names
    first = next(iter(names))
    if names.keys() <= MISTAKES.keys():
        return list(names_to_print(names))
    kind, _, rest = first.partition(" ")
    if kind == "choice":
        choice, _, value = rest.partition("=")
        return [CHOICES[choice].mistake_of(value)]
    if first in {*BY_CLAUSE.values(), "coarse arithmetic"}:
        return [first]
    return [kind] if kind in ("raised", "type", "shape", "dtype", "device", "missing", "changed") else []


def measured(name: str) -> dict[str, Any]:
    """What is said of one mutant, and what it cost."""
    spent: list[float] = []
    diagnose, reduce = explain.diagnose, explain.Explainer.reduce

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent.append(time.perf_counter() - began)

        return call

    explain.diagnose, explain.Explainer.reduce = timed(diagnose), timed(reduce)  # type: ignore[method-assign]
    impl, began = f"mutants.implementations.{name}", time.perf_counter()
    one = load()[name]
    ragged = one.family in RAGGED  # tests/test_ragged_diagnosis.py runs scripts of these
    own = f"--clauses={one.clause}"
    asked: list[tuple[tuple[str, ...], str]] = [((own,), "smoke"), ((), "smoke"), ((own,), "standard")]
    if ragged:
        chapter = f"--clauses={RAGGED[one.family][1]}"
        asked = [(("--impl-dtypes=float32", clauses), "smoke") for clauses in (own, chapter)]
    for options, tier in asked:
        outcome = judge(impl, "-x", *options, tier=tier)
        if any(index()[failure.clause].binding for failure in outcome.failures):
            break
    scripts = [script for failure in outcome.failures if not ragged and (script := failure.data["repro"])]
    faults = [
        {
            "clause": fault.failure.clause,
            "said": said(fault),
            "because": fault.failure.diagnosis,
            "cost": fault.failure.names,
            "also": fault.also,
        }
        for fault in fold(outcome.failures)
    ]
    return {
        "faults": faults,
        "seconds": time.perf_counter() - began,
        "explaining": sum(spent),
        "longest": max(spent, default=0.0),
        "failures": len(outcome.failures),
        "script": ended(scripts[0]).returncode if scripts else None,
    }


def told_of(name: str, pipe: Any) -> None:
    """In a process of its own: send what was measured."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # for the scripts of its failures
        try:
            pipe.send(measured(name))
        except BaseException as error:
            pipe.send({"error": f"{type(error).__name__}: {error}"[:300], "faults": []})


def alone(name: str) -> dict[str, Any]:
    """One mutant in a forked process, which may crash or hang."""
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=told_of, args=(name, there))
    process.start()
    there.close()
    result: dict[str, Any] = {"error": "timeout", "faults": []}
    try:
        if here.poll(LIMIT_RAGGED if load()[name].family in RAGGED else LIMIT):
            result = here.recv()
    except EOFError:
        result = {"error": "the process ended without a word", "faults": []}
    process.kill()
    process.join()
    return {"name": name, **result}


def verdict(one: dict[str, Any], expected: dict[str, list[str]]) -> str:
    """right: each fault named as expected; silent: no name and none expected; missed; wrong; survived."""
    right = expected.get(one["name"], [])
    named = [fault["said"] for fault in one["faults"]]
    named = [names for names in named if names and not (set(names) <= OBSERVED and not set(names) & set(right))]
    if any(not set(names) & set(right) for names in named):  # of "either …, or …" one
        return "wrong"
    if named:
        return "right"
    return "survived" if not one["faults"] else "missed" if right else "silent"


def markdown(results: dict[str, dict[str, Any]], expected: dict[str, list[str]], ragged: bool = False) -> str:
    """The page: rates, costs, and every mutant with what was said of it. ragged: of many sequences, or of all other families."""
    mutants = load()
    every = [name for name, one in mutants.items() if one.kind != "liar" and (one.family in RAGGED) == ragged]
    results = {name: one for name, one in results.items() if name in every}
    verdicts = {name: verdict(one, expected) for name, one in results.items()}
    counts = Counter(verdicts.values())
    asked = sum(counts.values()) - counts["survived"]
    good = counts["right"] + counts["silent"]
    costs = [one["longest"] for one in results.values() if one.get("longest")]
    scripts = {name: one["script"] for name, one in results.items() if one.get("script") is not None}
    this = f"python {Path(__file__).relative_to(ROOT)}"
    asks = [
        f"`{this} --markdown docs/diagnosis.md` wrote this page. It asks each mutant the",
        "tests of its own clause in tier smoke. If they pass it asks all of smoke, and if that passes, too, the tests of its own",
        "clause in standard, each time up to the first failure. A name is right if tests/mutants/diagnoses.json expects it. If the",
    ]
    asks_ragged = [
        f"`{this} --ragged --markdown …` wrote this page. It asks each mutant of many sequences, and of determinism, the",
        "tests of its own clause in float32 and tier smoke. If they pass it asks those of its chapter, each time up to the first",
        "failure. Which bits vary has no name. A name is right if tests/mutants/diagnoses.json expects it. If the",
    ]
    shown = list(scripts.values()).count(1)
    of_scripts = [
        f"{len(scripts)} mutants got a script with their first failure. {shown} of these scripts show",
        "the fault without the suite." + "".join(f" {name} ends with {code}." for name, code in scripts.items() if code != 1),
        "",
    ]
    lines = [
        f"# Is the right mistake named?{' Calls of many sequences' * ragged}",
        "",
        *(asks_ragged if ragged else asks),
        "suite says “either …, or …”, one of the two must be expected. Any other name is wrong; if none is expected, every name",
        "is. We wrote mutants and mistakes side by side. For a kernel that we did not think of, expect fewer names, given with the",
        "same care.",
        "",
        f"{asked} mutants failed. {good} of them got the right name, or rightly none ({good / max(asked, 1):.0%}): "
        f"{counts['right']} were named ({counts['right'] / max(asked, 1):.0%}),",
        f"{counts['silent']} have no name and got none. {counts['missed']} have a name but got none,",
        f"**{counts['wrong']} got a wrong one**. {counts['survived']} did not fail here,",
        f"{len(every) - len(results)} were not asked yet.",
        "",
        f"The vocabulary has {len(MISTAKES)} mistakes. It took {median(costs or [0.0]):.1f} s at the median, and at most",
        f"{max(costs, default=0.0):.1f} s, to reduce or to diagnose one failure, on a machine that others used as well.",
        "",
        *([] if ragged else of_scripts),
        "| family | mutants | right | rightly none | missed | wrong | did not fail |",
        "|---|" + "---|" * 6,
    ]
    for family in FAMILIES:
        of = Counter(verdicts[name] for name in results if mutants[name].family == family)
        if of:
            row = [of.total(), *(of[v] for v in ("right", "silent", "missed", "wrong", "survived"))]
            lines.append(f"| {family} | " + " | ".join(str(n or "·") for n in row) + " |")
    for title, wanted in (("Wrong", ("wrong",)), ("Missed", ("missed",)), ("All others", ("right", "silent", "survived"))):
        some = sorted((name for name in results if verdicts[name] in wanted), key=lambda n: (FAMILIES.index(mutants[n].family), n))
        lines += ["", f"## {title}", "", "| mutant | what it does | what the suite said | verdict |", "|---|---|---|---|"]
        for name in some:
            words = "; ".join(dict.fromkeys(f["because"] or ", ".join(f["said"]) for f in results[name]["faults"] if f["said"]))
            lines.append(
                f"| {name} | {mutants[name].what} | {words.replace('|', '/')} | {SHOWN.get(verdicts[name], verdicts[name])} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ragged", action="store_true", help="the families of many sequences, and no others")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--part", default="0/1", metavar="N/M")
    parser.add_argument("--into", type=Path, default=Path(tempfile.gettempdir()) / "attnspec-diagnosis")
    parser.add_argument("--again", action="store_true", help="measure what has a result, too")
    parser.add_argument("--tabulate", action="store_true", help="measure nothing")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    arguments.into.mkdir(parents=True, exist_ok=True)
    path, (part, parts) = arguments.into / "diagnosis.jsonl", map(int, arguments.part.split("/"))
    # By the hash of their names, so that results so far are a sample of all.
    among = (name for name, one in load().items() if one.kind != "liar" and (one.family in RAGGED) == arguments.ragged)
    every = sorted(among, key=lambda x: sha256(x.encode()).digest())
    names = arguments.only or every[part::parts]
    todo = [] if arguments.tabulate else [name for name in names if arguments.again or name not in read(path)]
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    if len(todo) > 20:
        subject.solve = remember  # type: ignore[assignment]
        for honest, chapter in {RAGGED[load()[name].family] for name in todo} if arguments.ragged else [("honest.tiled", "")]:
            judge(honest, *(["--impl-dtypes=float32", f"--clauses={chapter}"] if chapter else []))
    for name in todo:
        result = alone(name)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, default=str) + "\n")
        names_said = "; ".join(", ".join(f["said"]) or f["clause"] for f in result["faults"])
        print(
            f"{name:45} {verdict(result, expected):9} {result.get('seconds', 0):5.1f} s  {names_said} {result.get('error', '')}",
            flush=True,
        )
    if arguments.markdown:
        arguments.markdown.write_text(markdown(read(path), expected, arguments.ragged), encoding="utf-8")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
