"""Does the suite stop wrong kernels, and only those? Asks every mutant and every honest kernel, one after the other.

    python benchmarks/kill_matrix.py [--tier smoke] [--only NAME …] [--markdown docs/kill-matrix.md] [--json docs/kill-matrix.json]
    python benchmarks/kill_matrix.py --tabulate --markdown docs/kill-matrix.md      # what the results say so far
    python benchmarks/kill_matrix.py --check docs/kill-matrix.json [--sample 90]    # exit 1 where a killed mutant survives now
    python benchmarks/kill_matrix.py --processes 10                                 # seconds of whole commands, for a sample
    python benchmarks/kill_matrix.py --enter RESULTS … --json docs/kill-matrix.json --markdown docs/kill-matrix.md

Each mutant runs in a process of its own, forked with the exact answers that an honest kernel has asked for, so that a mutant
costs only what its own answers cost. A run ends at its first broken MUST. If that is not the mutant's own clause, the script asks
the tests of that clause, too. It appends results to INTO/TIER.jsonl, and the same command goes on where it stopped.

own: the mutant's own clause stopped it. chapter: another MUST of the same chapter did. other: a MUST of another chapter did.
survived, errored, timeout: nothing stopped it. A mutant that breaks only a SHOULD is asked with --enforce-should.

--enter measures nothing: what the lines of RESULTS say goes into the file of verdicts and to the end of the page, and all
else in both stays. So mutants that are new, or that benchmarks/ragged_kills.py asked, need no run of all others.
"""

from __future__ import annotations

import argparse
import copy
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import capped  # noqa: E402  tests/ is no package
from judging import judge  # noqa: E402
from mutants.base import FAMILIES, Mutant, load  # noqa: E402
from mutants.not_emulated import EQUIVALENT, NOT_EMULATED  # noqa: E402
from variants import HONEST  # noqa: E402

from attnspec.conformance.diagnosis import diagnose as diagnosis  # noqa: E402
from attnspec.conformance.diagnosis import explain  # noqa: E402
from attnspec.conformance.run.tier import TIERS  # noqa: E402
from attnspec.conformance.subject import subject  # noqa: E402
from attnspec.conformance.testing import engine as testing  # noqa: E402
from attnspec.conformance.verdicts import record  # noqa: E402
from attnspec.reference import solve  # noqa: E402
from attnspec.spec import SCALARS, TENSORS, Problem, index  # noqa: E402

KERNELS = ("honest.tiled", "honest.split_k", "honest.eager", "honest.Attend", "sdpa-math", "kill_matrix_kernels.steps")
STOPPED = ("own", "chapter", "other")
NOT_STOPPED = ("survived", "errored", "timeout")
EVERY: list[str] = []  # options of every run
LIMIT = {"smoke": 300, "standard": 1800, "thorough": 7200}  # seconds for one mutant


# EXACT ANSWERS, KEPT

_kept: dict[tuple, Any] = {}
LARGEST, MOST = 1 << 14, 8000  # products of probabilities and values in a problem that is kept, and problems: 1 GB


def remember(problem: Problem, dialect: Any, keep: np.ndarray | None = None, oracle: str = "float64") -> Any:
    """reference.solve, each problem once."""
    parts = [getattr(problem, name) for name in TENSORS]
    same = tuple(next(n for n, other in enumerate(parts) if other is x) for x in parts)
    key = (same, tuple(map(digest, parts)), *(getattr(problem, name) for name in SCALARS), problem.training, problem.wrt)
    key = (*key, dialect, None if keep is None else keep.tobytes(), oracle)
    if key in _kept:
        return replace(_kept[key], problem=problem)  # in its own strides
    # Of a copy: a test may write to the tensors of its problem.
    exact = solve(copy.deepcopy(problem), dialect, keep, oracle=oracle)
    exact.tolerance(subject.default_class(str(problem.dtype)[6:]))
    size = exact.values["o"].size * max(problem.j, 1)
    if size <= LARGEST and len(_kept) < MOST:
        _kept[key] = exact
    return exact


def digest(x: torch.Tensor | None) -> tuple | None:
    """What makes two tensors the same for the reference."""
    if x is None:
        return None
    # A copy: one element keeps whatever stride it had, and then has no other view.
    bits = torch.empty(x.numel(), dtype=x.dtype).copy_(x.detach().reshape(-1)).view(torch.uint8).numpy().tobytes()
    return x.dtype, tuple(x.shape), hashlib.blake2b(bits, digest_size=16).digest()


# ONE IMPLEMENTATION


def watched(impl: str, tier: str, *options: str, enough: str = "") -> dict[str, Any]:
    """What one run says: the first failure, when it came, and everything that broke until the clause `enough` did."""
    began, first, tests = time.perf_counter(), {}, []
    fail, go = record.Record.fail, testing.Asking.go

    def noted(self: record.Record, failure: record.Failure) -> None:
        if (index()[failure.clause].binding or "--enforce-should" in options) and not first:
            seen = {"test": tests[-1], "dtype": failure.dtype, "case": failure.case, "judged": sum(s.judged for s in subjects)}
            first.update(clause=failure.clause, seconds=time.perf_counter() - began, cpu=time.process_time() - spent, **seen)
        fail(self, failure)
        if failure.clause == enough:
            pytest.exit("it is stopped")

    def going(self: testing.Asking) -> None:
        tests.append(self.test.__name__)
        if self.subject not in subjects:
            subjects.append(self.subject)
        go(self)

    subjects, spent = Subjects(), time.process_time()
    record.Record.fail, testing.Asking.go = noted, going  # type: ignore[method-assign]
    simplify, explain.Explainer.simplify = explain.Explainer.simplify, lambda self, explained: explained  # type: ignore[method-assign]
    try:
        outcome = judge(impl, *options, *EVERY, tier=tier)
    finally:
        record.Record.fail, testing.Asking.go = fail, go  # type: ignore[method-assign]
        explain.Explainer.simplify = simplify  # type: ignore[method-assign]
    broken = sorted({failure.clause for failure in outcome.failures})
    result = {"exit": outcome.exit, "first": first, "broken": broken, "judged": sum(s.judged for s in subjects)}
    return result | {"seconds": time.perf_counter() - began, "cpu": time.process_time() - spent}


class Subjects(list):
    """Subjects by identity; their own comparison looks into all they have seen."""

    def __contains__(self, one: object) -> bool:
        return any(one is other for other in self)


def measured(name: str, tier: str, whole_suite: bool) -> dict[str, Any]:
    """What the suite says of a mutant (or of an honest kernel, by its dotted name)."""
    mutant = load().get(name)
    if mutant is None:
        seen = watched(name, tier)
        return seen | {"name": name, "kind": "honest", "verdict": "passed" if seen["exit"] == 0 else "false alarm"}
    impl, own = f"mutants.implementations.{name}", f"--clauses={mutant.clause}"
    enforced = [] if index()[mutant.clause].binding else ["--enforce-should"]
    stages = [["-x"], ["-x", own]] if whole_suite and not enforced else [["-x", own], ["-x"]]
    runs: list[dict[str, Any]] = []
    for options in stages:
        if not runs or not runs[0]["first"] or (whole_suite and mutant.clause not in runs[0]["broken"]):
            runs.append(watched(impl, tier, *options, *enforced, enough=mutant.clause))
    broken = sorted({clause for run in runs for clause in run["broken"]})
    first = next((run["first"] for run in runs if run["first"]), {})
    binding = {clause for clause in broken if index()[clause].binding or clause == mutant.clause}
    near = any(clause.partition("-")[0] == mutant.clause.partition("-")[0] for clause in binding)
    verdict = ("own" if mutant.clause in broken else "chapter" if near else "other") if binding else "survived"
    sums = {clock: sum(run[clock] for run in runs) for clock in ("seconds", "cpu", "judged")}
    if not broken and any(run["exit"] for run in runs):
        raise RuntimeError(f"no clause broken, and exit {[run['exit'] for run in runs]}")
    return {"name": name, "verdict": verdict, "first": first, "broken": broken, "exit": runs[-1]["exit"], **sums}


def told(name: str, tier: str, whole_suite: bool, pipe: Any) -> None:
    """In a process of its own: send what was measured."""
    torch.set_num_threads(1)
    try:
        pipe.send(measured(name, tier, whole_suite))
    except BaseException as error:
        pipe.send({"name": name, "verdict": "errored", "error": f"{type(error).__name__}: {error}"[:300]})


def alone(name: str, tier: str, whole_suite: bool = False) -> dict[str, Any]:
    """One implementation in a forked process, which may crash or hang."""
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=told, args=(name, tier, whole_suite, there))
    process.start()
    there.close()
    result: dict[str, Any] = {"verdict": "timeout"}
    try:
        if here.poll(LIMIT.get(tier, 7200)):
            result = here.recv()
    except EOFError:
        result = {"verdict": "errored", "error": "the process ended without a word"}
    process.kill()
    process.join()
    mutant = load().get(name)
    known = {} if mutant is None else {"kind": mutant.kind, "family": mutant.family, "clause": mutant.clause, "what": mutant.what}
    return {"name": name, "tier": tier, "source": "" if mutant is None else mutant.source, **known, **result}


# WHOLE COMMANDS


def whole(mutant: Mutant, tier: str) -> float | None:
    """Seconds from the command to the first failure in its verdict file, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        verdicts = Path(folder) / "verdicts.jsonl"
        file = f"{ROOT / 'tests' / 'mutants' / 'implementations.py'}:{mutant.name}"
        command = [sys.executable, "-m", "pytest", f"--impl={file}", f"--tier={tier}", "-x", f"--verdicts={verdicts}", "-q"]
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                time.sleep(0.05)
                if verdicts.exists() and '"kind": "failure"' in verdicts.read_text(encoding="utf-8"):
                    return time.perf_counter() - began
            return None
        finally:
            process.kill()
            process.wait()


def sample(mutants: Iterable[Mutant], n: int) -> list[Mutant]:
    """Some of them, by the hash of their names."""
    return sorted(mutants, key=lambda one: hashlib.sha256(one.name.encode()).digest())[:n]


# TABLES


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The latest result of each name; a line that was cut off is none."""
    results = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            results[json.loads(line)["name"]] = json.loads(line)
        except ValueError:
            continue
    return results


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Verdicts of mutants by name, the false alarms, and the mutants that were not measured."""
    mutants = {name: one["verdict"] for name, one in sorted(results.items()) if one.get("kind") != "honest"}
    alarms = sorted(name for name, one in results.items() if one["verdict"] == "false alarm")
    left = sorted(name for name, one in load().items() if one.clause and name not in mutants)
    return {"verdicts": mutants, "false alarms": alarms, "not measured": left}


def times(results: Iterable[dict[str, Any]], clock: str = "seconds") -> tuple[float, float]:
    """Median and worst time to the first failure."""
    seconds = [one["first"][clock] for one in results if one.get("first")]
    return (median(seconds), max(seconds)) if seconds else (float("nan"), float("nan"))


def markdown(tiers: dict[str, dict[str, dict[str, Any]]], processes: list[float]) -> str:
    """The page: totals by family and tier, what was not stopped, false alarms, times."""
    kinds = Counter(one.kind for one in load().values())
    lines = [
        "# The kill matrix",
        "",
        f"`python {Path(__file__).relative_to(ROOT)}` wrote this page. It asks {len(load())} mutants, implementations with one",
        f"planted fault each: {kinds['function']} functions, {kinds['module']} `Attend` modules, and {kinds['liar']} that cheat or",
        f"misbehave. Together they repeat {len({source for one in load().values() for source in one.sources})} public bugs.",
        f"{', '.join(sorted(load().keys() - asked_of_all().keys()))} only gives right answers; it breaks no clause and has no row.",
        "",
    ]
    for tier, results in tiers.items():
        mutants = [one for one in results.values() if one.get("kind") != "honest"]
        honest = [one for one in results.values() if one.get("kind") == "honest"]
        counts = Counter(one["verdict"] for one in mutants)
        stopped = sum(counts[v] for v in STOPPED)
        controls = [one for one in mutants if one.get("family") == "control"]
        lines += [
            f"## {tier}",
            "",
            f"A MUST clause stops {stopped} of {len(mutants)} mutants; {counts['own']} are stopped by their own clause.",
        ]
        alive = [one["name"] for one in controls if one["verdict"] not in STOPPED]
        lines += [f"**Void: controls survived: {', '.join(alive)}.**" if alive else f"All {len(controls)} controls are stopped."]
        alarms = [one["name"] for one in honest if one["verdict"] != "passed"]
        asked_ = sum(1 for one in load().values() if one.clause)
        if len(mutants) < asked_:
            lines += [f"**Incomplete: {asked_ - len(mutants)} of {asked_} mutants were not measured in this tier.**"]
        lines += [f"False alarms: {len(alarms)} on {len(honest)} honest kernels{': ' + ', '.join(alarms) if alarms else ''}."]
        wall, cpu = times(mutants), times(mutants, "cpu")
        seconds = f"median {wall[0]:.1f} s ({cpu[0]:.1f} s of CPU), worst {wall[1]:.0f} s"
        lines += [f"Time to the first failure, inside the process: {seconds}.", ""]
        lines += [
            "| family | mutants | own clause | its chapter | another | survived | errored | timeout |",
            "|---|" + "---|" * 7,
        ]
        by = defaultdict(Counter)
        for one in mutants:
            by[one.get("family", "?")][one["verdict"]] += 1
        for family in (*FAMILIES, "?"):
            if by[family]:
                row = [by[family].total(), *(by[family][v] for v in (*STOPPED, *NOT_STOPPED))]
                lines.append(f"| {family} | " + " | ".join(str(n or "·") for n in row) + " |")
        lines += ["", "| not stopped | clause | fault | verdict |", "|---|---|---|---|"]
        for one in sorted(mutants, key=lambda one: one["name"]):
            if one["verdict"] not in STOPPED:
                verdict = f"{one['verdict']} {one.get('error', '')}".strip()
                lines.append(f"| {one['name']} | {one.get('clause', '')} | {one.get('what', '')} | {verdict} |")
        lines += [
            "",
            "<details><summary>Every mutant</summary>",
            "",
            "| mutant | clause | bug | first stopped by | test | after problems | seconds |",
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        for one in sorted(mutants, key=lambda one: (FAMILIES.index(one.get("family", "control")), one["name"])):
            first = one.get("first") or {}
            seconds = f"{first['seconds']:.1f}" if first else ""
            cells = (one["name"], one.get("clause", ""), one.get("source", ""), first.get("clause", one["verdict"]))
            lines.append("| " + " | ".join(map(str, (*cells, first.get("test", ""), first.get("judged", ""), seconds))) + " |")
        lines += ["", "</details>", ""]
    if processes:
        worst = f"median {median(processes):.1f} s, worst {max(processes):.1f} s"
        lines += [
            f"Time from the command to the first failure, for whole processes of {len(processes)} mutants in smoke: {worst}.",
            "",
        ]
    return "\n".join([*lines, *latest({tier: summary(results) for tier, results in tiers.items()})]) + "\n"


LATEST = "## The latest verdict of each mutant"


def latest(stored: dict[str, dict[str, Any]]) -> list[str]:
    """The end of the page, which follows from the file of verdicts and needs no other result."""
    lines = [
        LATEST,
        "",
        "From docs/kill-matrix.json. Some were asked apart, and some in one dtype alone: results/ says which, and how.",
        "",
        "| family | tier | mutants | own clause | its chapter | another | survived | errored | timeout | not measured |",
        "|---|" + "---|" * 9,
    ]
    alive = []
    for family in FAMILIES:
        names = [name for name, one in load().items() if one.clause and one.family == family]
        for tier, found in stored.items():
            verdicts = found["verdicts"]
            counts = Counter(verdicts.get(name, "not measured") for name in names)
            row = (len(names), *(counts[verdict] or "·" for verdict in (*STOPPED, *NOT_STOPPED, "not measured")))
            lines.append(f"| {family} | {tier} | " + " | ".join(map(str, row)) + " |")
            alive += [(tier, name, verdicts[name]) for name in names if verdicts.get(name) in NOT_STOPPED]
    lines += ["", "| tier | not stopped there | clause | verdict |", "|---|---|---|---|"]
    lines += [f"| {tier} | {name} | {load()[name].clause} | {verdict} |" for tier, name, verdict in sorted(alive)]
    lines += ["", "## Public bugs without a mutant", "", "| bug | why |", "|---|---|"]
    lines += [f"| {bug} | {reason} |" for bug, reason in NOT_EMULATED.items()]
    lines += ["", "## Changes that look like a fault and are right", "", "| change | why |", "|---|---|"]
    return [*lines, *(f"| {change} | {proof} |" for change, proof in EQUIVALENT.items())]


def entered(stored: dict[str, dict[str, Any]], results: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The file of verdicts with what these results say; a later one counts."""
    verdicts = {tier: dict(found["verdicts"]) for tier, found in stored.items()}
    for one in results:
        if one["name"] in load():
            verdicts.setdefault(one["tier"], {})[one["name"]] = one["verdict"]
    alarms = {tier: stored.get(tier, {}).get("false alarms", []) for tier in verdicts}
    left = {tier: sorted(asked_of_all().keys() - found.keys()) for tier, found in verdicts.items()}
    return {
        tier: {"verdicts": dict(sorted(found.items())), "false alarms": alarms[tier], "not measured": left[tier]}
        for tier, found in verdicts.items()
    }


def enter(arguments: argparse.Namespace) -> None:
    """Enter results into the file of verdicts, and say what that is now at the end of the page."""
    results = [one for path in arguments.enter for one in read(path).values()]
    stored = entered(json.loads(arguments.json.read_text(encoding="utf-8")), results)
    arguments.json.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        measured_ = arguments.markdown.read_text(encoding="utf-8").partition(LATEST)[0]
        arguments.markdown.write_text(measured_ + "\n".join(latest(stored)) + "\n", encoding="utf-8")


def check(stored: dict[str, Any], tiers: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """What got worse: mutants that were stopped and are not, honest kernels that were passed and are not."""
    worse = []
    for tier, before in stored.items():
        worse += [f"{tier}: {name} is gone" for name in before["verdicts"] if name not in load()]
    for tier, results in tiers.items():
        before, now = stored.get(tier, {}), summary(results)
        for name, verdict in now["verdicts"].items():
            if verdict not in STOPPED and before.get("verdicts", {}).get(name) in STOPPED:
                worse.append(f"{tier}: {name} was stopped and is not: {verdict}")
        worse += [f"{tier}: false alarm on {name}" for name in now["false alarms"] if name not in before.get("false alarms", [])]
    return worse


# COMMAND


def asked_of_all() -> dict[str, Mutant]:
    """The mutants that break a clause; a liar without one gives right answers only."""
    return {name: one for name, one in load().items() if one.clause}


def asked(arguments: argparse.Namespace) -> list[str]:
    """The names to measure, controls first and honest kernels last."""
    mutants = asked_of_all()
    if arguments.only:
        return arguments.only
    names = [name for name, one in mutants.items() if not arguments.family or one.family in arguments.family]
    if arguments.sample:
        chosen = {one.name for one in sample((mutants[name] for name in names), arguments.sample)}
        names = [name for name in names if name in chosen or mutants[name].family == "control"]
    if arguments.family or arguments.survivors or arguments.sample:
        honest = []
    else:  # the variants take half an hour in standard, and docs/corridor.md has a hundred thousand problems of them
        honest = [*KERNELS, *(f"kill_matrix_kernels.{name}" for name in kernels() if arguments.tier == "smoke")]
    return [*sorted(names, key=lambda name: (mutants[name].family != "control", mutants[name].kind, name)), *honest]


def kernels() -> dict[str, Any]:
    """Honest kernels that must pass in the suite's own classes, and the one that mutants are planted in, under dotted names."""
    import types

    from mutants.base import with_sdpa_signature
    from mutants.tools import Steps

    module = types.ModuleType("kill_matrix_kernels")
    sys.modules[module.__name__] = module
    found = {
        name.replace(" ", "_").replace("-", "_"): kernel for name, (kernel, class_) in HONEST.items() if class_ in ("A", "B", "C")
    }
    for styles, order in ((capped.HONEST, "capped"), (capped.AFTER, "capped_after_the_bias")):
        found |= {f"{order}_{name.replace(' ', '_').replace(',', '')}": kernel for name, (kernel, _) in styles.items()}
    for name, kernel in (*found.items(), ("steps", with_sdpa_signature(Steps()))):
        setattr(module, name, kernel)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tier", default="smoke", choices=TIERS)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=[])
    parser.add_argument("--survivors", metavar="TIER", help="only the mutants that this tier did not stop")
    parser.add_argument("--into", type=Path, default=Path(tempfile.gettempdir()) / "attnspec-kill-matrix")
    parser.add_argument("--again", action="store_true", help="measure what has a result, too")
    parser.add_argument("--whole", action="store_true", help="the whole suite first, not the tests of the mutant's own clause")
    parser.add_argument("--tabulate", action="store_true", help="measure nothing")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="time N whole commands")
    parser.add_argument("--isolate", action="store_true", help="each in a process of its own, as --isolate of the suite has it")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, by the hash of their names, and the controls")
    parser.add_argument("--check", type=Path, metavar="FILE")
    parser.add_argument("--enter", nargs="+", type=Path, metavar="RESULTS", help="enter these into --json FILE and --markdown FILE")
    arguments = parser.parse_args()
    if arguments.enter:
        if not arguments.json:
            parser.error("--enter needs --json FILE, into which it enters")
        enter(arguments)
        return 0
    arguments.into.mkdir(parents=True, exist_ok=True)
    kernels()  # under their dotted names
    EVERY.extend(["--isolate"] if arguments.isolate else ["--in-process"])
    path, names = arguments.into / f"{arguments.tier}.jsonl", asked(arguments)
    unknown = [name for name in arguments.only if name not in load() and "." not in name and name not in KERNELS]
    if unknown:
        parser.error(f"no mutant is called {', '.join(unknown)}")
    todo = [] if arguments.tabulate else [name for name in names if arguments.again or name not in read(path)]
    if todo:
        subject.solve = remember  # type: ignore[assignment]
        diagnosis.SECONDS = 0.2  # for the clause that a failure goes to; docs/diagnosis.md is about the words
        for kernel in ("honest.tiled", "honest.Attend"):
            judge(kernel, tier=arguments.tier)
        gc.collect()
        gc.freeze()  # what is kept is shared with the forked processes, and a collection would copy it
        print(f"{len(_kept)} exact answers kept; {len(todo)} of {len(names)} to measure", flush=True)
    for name in todo:
        result = alone(name, arguments.tier, arguments.whole)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, default=str) + "\n")
        first = result.get("first") or {}
        print(f"{name:45} {result['verdict']:10} {first.get('clause', '')} {result.get('seconds', 0):.1f} s", flush=True)
    seconds = [whole(one, arguments.tier) for one in sample(load().values(), arguments.processes)]
    for one, spent in zip(sample(load().values(), arguments.processes), seconds, strict=True):
        print(f"{one.name:45} {'no failure' if spent is None else f'{spent:.1f} s'}", flush=True)
    tiers = {tier: read(arguments.into / f"{tier}.jsonl") for tier in TIERS if (arguments.into / f"{tier}.jsonl").exists()}
    tiers = {
        tier: {name: one for name, one in results.items() if one.get("kind") == "honest" or name in load()}
        for tier, results in tiers.items()
    }
    if arguments.markdown:
        arguments.markdown.write_text(markdown(tiers, [s for s in seconds if s is not None]), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps({tier: summary(results) for tier, results in tiers.items()}, indent=1) + "\n")
    worse = check(json.loads(arguments.check.read_text()), tiers) if arguments.check else []
    print("\n".join(worse), end="\n" if worse else "")
    return 1 if worse else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
