"""No false alarm where a call holds many sequences: honest kernels on drawn problems, and every answer outside of its bound.

    python benchmarks/ragged_corridor.py --problems 20000 --seed 0 --into FILE.jsonl
    python benchmarks/ragged_corridor.py --into FILE.jsonl --tabulate

The problems are those that the suite's own search draws, of which it keeps those that have a carrier. Each is put to EACH styles of
tests/honest_ragged.py that have its form, others every time. The script appends a line for each chunk to FILE, and goes on where it
stopped. The exit code is 1 if an answer was outside of its bound, or something was changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from numpy.random import default_rng

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from honest_ragged import FORMS, STYLES  # noqa: E402  tests/ is no package

from attnspec.conformance.judging.judge import judge  # noqa: E402
from attnspec.conformance.problems.case import Case  # noqa: E402
from attnspec.conformance.problems.factors import LEVELS  # noqa: E402
from attnspec.conformance.problems.search import cases  # noqa: E402
from attnspec.conformance.problems.tensors import build  # noqa: E402
from attnspec.reference import default_class, solve  # noqa: E402
from attnspec.spec import Dialect, Problem  # noqa: E402
from attnspec.spec.ragged import Carrier  # noqa: E402

DIALECT = Dialect(causal_alignment="bottom_right")
DTYPES = LEVELS["dtype"]
EACH = 2  # styles that one problem is put to
CHUNK = 100  # problems of one form and dtype between two lines of the file
COST = 1 << 20  # of a case that is asked
CLASSES = {"stored": "C", "tiles and splits": "B"}  # of half types, by the end of a style's name; else A


def drawn(form: str, dtype: str, seed: int, n: int) -> list[Case]:
    """Cases of a form that the search draws."""
    found: list[Case] = []

    @settings(max_examples=4 * n, phases=[Phase.generate], database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @hypothesis_seed(seed)
    @given(cases(FORMS[form](None)(), dtype))
    def take(case: Case) -> None:
        if case.carrier != "none" and case.cost <= COST and len(found) < n:
            found.append(case)

    take()
    return list(dict.fromkeys(found))


def class_for(style: str, dtype: str) -> str:
    """The class that a style's arithmetic belongs to."""
    named = CLASSES.get(style.rpartition(", ")[2], "A")
    return named if dtype in ("float16", "bfloat16") else default_class(dtype)


def ask(case: Case, form: str, number: int) -> tuple[list[str], list[dict[str, Any]]]:
    """The styles that were asked, and what was found."""
    problem: Problem = build(case)
    carrier: Carrier | None = problem.carrier
    assert carrier is not None
    exact, found = solve(problem, DIALECT), []
    there = [style for style, forms in STYLES.items() if form in forms]
    some = [there[n] for n in default_rng([97, number]).choice(len(there), min(EACH, len(there)), replace=False)]
    for style in some:
        answer = FORMS[form](STYLES[style][form])().run(problem)
        findings = judge(answer, exact, class_for(style, case.dtype)).findings
        told = [f"{x.output}: {x.kind} {x.index}: {x.got} for {x.expected}, {x.ratio:.3g} bounds; {x.message}" for x in findings]
        told += [f"changed {x}" for x in answer.changed]
        found += [{"style": style, "case": case.token(), "what": text} for text in told]
    return some, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", type=Path, required=True, metavar="FILE")
    parser.add_argument("--tabulate", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(x) for x in options.into.read_text(encoding="utf-8").splitlines()] if options.into.exists() else []
    chunk = len(lines)
    while not options.tabulate and sum(x["problems"] for x in lines) < options.problems:
        form, dtype = list(FORMS)[chunk % 4], DTYPES[chunk // 4 % 4]
        began, asked, wrong = time.perf_counter(), Counter(), []
        questions = drawn(form, dtype, options.seed * 100003 + chunk, CHUNK)
        for n, case in enumerate(questions):
            some, found = ask(case, form, chunk * CHUNK + n)
            asked.update(some)
            wrong += found
        line: dict[str, Any] = {"form": form, "dtype": dtype, "problems": len(questions), "asked": dict(asked), "wrong": wrong}
        lines.append(line | {"seconds": round(time.perf_counter() - began, 1)})
        with options.into.open("a", encoding="utf-8") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(form, dtype, len(questions), lines[-1]["seconds"], *wrong[:3], flush=True)
        chunk += 1
    problems, answers = Counter(), Counter()
    for line in lines:
        problems[line["form"], line["dtype"]] += line["problems"]
        answers[line["form"], line["dtype"]] += sum(line["asked"].values())
    for key, n in sorted(problems.items()):
        print(f"| {key[0]} | {key[1]} | {n} | {answers[key]} |")
    wrong = [one for line in lines for one in line["wrong"]]
    print(f"{problems.total()} problems, {answers.total()} answers, {len(wrong)} outside")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
