"""What a reader sees: header, failures, the table at the end."""

from __future__ import annotations

import platform
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnspec.adapters import FEATURES, RESTRICTIONS
from attnspec.adapters.restrictions import NO_BACKWARD
from attnspec.conformance import __version__
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.diagnosis.folding import fold, names_of
from attnspec.conformance.known.inherited import Origin
from attnspec.conformance.problems.coverage import Space, said
from attnspec.conformance.problems.words import describe, describe_problem, summary
from attnspec.conformance.report.environment import device_data, device_name, versions
from attnspec.conformance.report.repro import FOLDER, write
from attnspec.conformance.run.ending import incomplete
from attnspec.conformance.run.run import TIERS, Run
from attnspec.conformance.subject.subject import ORACLE, Subject
from attnspec.conformance.verdicts.lines import finite, judged, mark, tally
from attnspec.conformance.verdicts.record import Failure, Record
from attnspec.conformance.verdicts.text import visible
from attnspec.conformance.verdicts.verdict import Verdict
from attnspec.spec import SPEC_VERSION, Clause, Problem, index

FEW = 16  # numbers of operands up to which they are shown
NAMES = {
    "o": "output",
    "dq": "gradient of q",
    "dk": "gradient of k",
    "dv": "gradient of v",
    "dbias": "gradient of the bias",
    "call": "call",
}


# HEADER


def header(run: Run) -> list[str]:
    """What was resolved, where it runs, what it offers, and where each choice comes from."""
    first = run.subjects[0]
    adapter = first.adapter
    lines = [
        f"attnspec {__version__} (spec {SPEC_VERSION}) · {adapter.name} · {adapter.version or 'no version'} · "
        f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    ]
    for subject in run.subjects:
        lines.append(
            f"  {'variant ' + subject.label if subject.adapter.variant else 'implementation'} on {device_name(subject.device)}: "
            f"{', '.join(subject.dtypes) or 'no dtype'}; class "
            + ", ".join(dict.fromkeys(f"{subject.required_class(d)} for {d}" for d in subject.dtypes))
        )
        if subject.backend is not None and str(subject.backend):
            lines.append(f"    backend seen in a plain {subject.dtypes[0]} call: {subject.backend}")
        offered = [name for name in FEATURES if subject.offers(name)]
        absent = [name for name in FEATURES if not subject.offers(name)]
        lines.append(f"    offers {', '.join(offered)}" + (f"; not {', '.join(absent)}" if absent else ""))
        lines += [f"    {name} = {getattr(subject.dialect, name)} ({source})" for name, source in subject.sources.items()]
        if subject.refused_dtypes:
            lines.append("    refused: " + "; ".join(f"{d} ({why[:80]})" for d, why in subject.refused_dtypes.items()))
        for name, (means, source) in restrictions(subject).items():
            lines.append(f"    restricted, {name}: {means} ({source})")
        if subject.refused_strides:
            lines.append(f"    a last dimension that is not dense is refused by a plain call ({subject.refused_strides[:80]})")
        if subject.refused_widths:
            lines.append(
                f"    widths refused by a plain call: {', '.join(map(str, subject.refused_widths))} "
                f"({next(iter(subject.refused_widths.values()))[:80]})"
            )
    lines.append(f"  oracle: {oracle()}")
    seed = ("no search" if run.pinned_only or not run.tier.searched else f"search with seed {run.seed}") + (
        f", budget {run.budget:g} s" if run.budget else ""
    )
    lines.append(
        f"  tier {_tier(run)}, {seed}"
        + (f", clauses {', '.join(run.clauses)}" if run.clauses else "")
        + (f", case {run.case.token()}" if run.case else "")
        + (f", shard {run.shard}" if run.shard else "")
    )
    if run.known.source:
        lines.append(f"  known issues: {len(run.known.issues)}, from {run.known.source}")
    if run.inherited.accepted:
        lines.append("  inherited failures of torch are noted, and decide nothing (--inherited=note)")
    return [visible(line) for line in lines]


def restrictions(subject: Subject) -> dict[str, tuple[str, str]]:
    """What each restriction of a subject means, and who says so."""
    said = {}
    for name in sorted(subject.adapter.restrictions):
        known = RESTRICTIONS["no_backward:DEVICE" if name.startswith(NO_BACKWARD) else name]
        found = subject.found.get(name)
        source = "declared by its adapter" if found is None else f"found: all of the first questions raised {found[:100]}"
        if name.startswith(NO_BACKWARD) and found is not None:
            source += "; --without=backward says so"
        said[name] = (known.means, source)
    return said


def oracle() -> str:
    """What the answers are compared with."""
    if ORACLE == "arb":
        return f"float64, and ball arithmetic for answers in float64 and for what is shown (python-flint {version('python-flint')})"
    return "float64; for certainty in float64 too, pip install attnspec[exact]"


def _tier(run: Run) -> str:
    return next((name for name, tier in TIERS.items() if tier is run.tier), "")


def header_data(run: Run) -> dict[str, Any]:
    """The header as plain data, for the verdict file."""
    return {
        "suite": __version__,
        "spec": SPEC_VERSION,
        "command": run.asked or run.command,
        "tier": _tier(run),
        "seed": run.seed,
        "budget": run.budget,
        "only": list(run.clauses) + ([f"case {run.case.token()}"] if run.case else []),
        "enforce_should": run.enforce_should,
        "search": bool(run.tier.searched) and not run.pinned_only,
        "shard": str(run.shard) if run.shard else None,
        "known_issues": [
            {"clause": x.clause, "region": x.region.text if x.region else None, "found": x.found or None} for x in run.known.issues
        ],
        "inherited": "note" if run.inherited.accepted else "fail",
        "oracle": ORACLE,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "devices": [device_data(device) for device in dict.fromkeys(s.device for s in run.subjects)],
        "clauses": {clause.id: {"title": clause.title, "level": clause.level} for clause in index().values()},
        "subjects": [
            {
                "name": s.adapter.name,
                "version": s.adapter.version,
                "variant": s.label,
                "device": s.device,
                "dtypes": list(s.dtypes),
                "refused": {
                    **s.refused_dtypes,
                    **{f"width {d}": why for d, why in s.refused_widths.items()},
                    **({"strided": s.refused_strides} if s.refused_strides else {}),
                },
                "offers": sorted(s.adapter.offers),
                "restrictions": {name: source for name, (_, source) in restrictions(s).items()},
                "widths": sorted(s.adapter.widths) if s.adapter.widths is not None else None,
                "class": {d: s.required_class(d) for d in s.dtypes},
                "dialect": {name: {"value": getattr(s.dialect, name), "source": source} for name, source in s.sources.items()},
            }
            for s in run.subjects
        ],
    }


# FAILURES


def failure(
    run: Run, subject: Subject, explained: Explained, test: str, other: Problem | None = None, origin: Origin | None = None
) -> Failure:
    """One broken clause, as it is shown, with its script and the command that asks again. origin: what it is inherited from."""
    clause, finding, case = index()[explained.clause], explained.finding, explained.case
    lines = [f"{clause.id} · {clause.title} ({clause.level})", f"  {clause.sentence}"]
    lines += [f"      {line}" for line in clause.formula.splitlines()]
    where = f"  {subject.adapter.name}" + (f", {subject.adapter.variant}" if subject.adapter.variant else "")
    lines += ["", f"{where} on {subject.device}"]
    asked = problem_in_words(subject, explained)
    seen = [visible(line) for line in found(explained, subject, run.show)]
    lines.append(f"  problem   {asked}")
    written = numbers(explained)
    if written:
        lines.append(f"  numbers   {written}")
    lines += [f"  {'found':9} {line}" if n == 0 else f"            {line}" for n, line in enumerate(seen)]
    if finding.hint:
        lines.append(
            f"  but       this is exactly what {finding.hint} gives; if that is what it means to do, --dialect {finding.hint}"
        )
    diagnosis, names = names_of(explained)
    if diagnosis and not finding.hint:
        lines.append(f"  because   {diagnosis}")
    if origin is not None:
        lines.append(f"  inherited from {origin}: nothing else computes here, and {origin.issue.backend} gives the same numbers")
        lines.append("            --inherited=note accepts that; it is shown once")
    path = _script(run, subject, explained, other) if run.repros else None
    if path is not None:
        lines.append(f"  repro     python {path}")
    if not explained.reduced:
        how = "in part" if explained.by_case and explained.case not in explained.met else "not"
        lines.append(f"  reduced   {how}: the time for explanations was used up; --explain-budget=120 gives more")
    token = case.token() if case.token() != "simplest" else f"dtype={case.dtype}"
    tier = "" if explained.by_case or not run.tier.slow else " --tier=thorough"  # where the test itself is only asked there
    again = f"{run.command}{tier} --clauses={explained.asked_by or clause.id} --case={shlex.quote(token)}"
    lines.append(f"  re-run    {again}")
    data = {
        "title": clause.title,
        "level": clause.level,
        "sentence": clause.sentence,
        "formula": clause.formula,
        "asked": asked,
        "found": seen,
        "output": finding.output,
        "what": finding.kind,
        "problem": summary(case),
        "index": list(finding.index),
        "got": finite(finding.got),
        "expected": finite(finding.expected),
        "bound": finite(finding.bound),
        "ratio": finite(finding.ratio),
        "outside": finding.outside,
        "of": finding.total,
        "hint": finding.hint,
        "diagnosis": diagnosis,
        "inherited": str(origin) if origin is not None else "",
        "test": test,
        "repro": str(path) if path else None,
        "rerun": again,
    }
    text = "\n".join(map(visible, lines))
    cell = (clause.id, case.dtype, subject.label, subject.device)
    failure = Failure(*cell, text, case.token(), data, diagnosis, names, key="\t".join((*explained.key, subject.adapter.name)))
    if not run.decides(clause.id):
        failure.remark = broken_should(failure, clause, explained)
    return failure


def problem_in_words(subject: Subject, explained: Explained) -> str:
    """The problem, and that no input requires grad where one could: a case has that only where the failure needs it."""
    graded = subject.offers("backward")
    if explained.by_case:
        return describe(explained.case if graded else replace(explained.case, wrt="all"))
    without = graded and not explained.problem.wrt and explained.finding.output != "call"
    return describe_problem(explained.problem) + ("; no input requires grad" if without else "")


def _script(run: Run, subject: Subject, explained: Explained, other: Problem | None) -> Path | None:
    try:
        return write(subject, explained, other, run.home)
    except OSError as error:  # a verdict is never lost to what would only show it again
        run.record.note(f"the scripts of failures can't be written to {run.home / FOLDER}: {error.strerror or error}")
        return None


def numbers(explained: Explained) -> str:
    """The operands, where they are few: what a reader can compute with."""
    problem, gradient = explained.problem, explained.finding.of_gradient
    tensors = {name: x for name, x in problem.inputs().items() if name != "mask"}
    if gradient and problem.do is not None:
        tensors["do"] = problem.do
    if not explained.by_case or sum(x.numel() for x in tensors.values()) > FEW:
        return ""
    return "; ".join(f"{name} {' '.join(f'{float(n):.6g}' for n in x.detach().flatten())}" for name, x in tensors.items())


def found(explained: Explained, subject: Subject, show: str | None = None) -> list[str]:
    """What was got and what was expected, in a line or three; with `show` "hex" to the bit."""
    finding, dtype = explained.finding, explained.case.dtype
    lines = [finding.message] if finding.message else []
    if not finding.total:
        return lines or [finding.kind]
    at = ", ".join(map(str, finding.index))
    error = abs(finding.got - finding.expected)
    expected = "the other call" if finding.kind == "relation" else "expected"
    lines.append(f"{NAMES[finding.output]} [{at}] = {number(finding.got)}, {expected} {number(finding.expected)}")
    if show == "hex":
        ulps = abs(error / np.spacing(abs(finding.expected)) / (torch.finfo(getattr(torch, dtype)).eps * 2.0**52))
        lines.append(f"{finding.got.hex()}, {finding.expected.hex()}; {ulps:.4g} ulp of {dtype} apart")
    if not finding.ratio < float("inf") and finding.bound != 0 and not abs(finding.got) < float("inf"):
        lines.append(f"not finite where the answer is; {finding.outside} of {finding.total} elements are outside their bounds")
    elif finding.bound == 0:
        same = "must be the same bit by bit" if finding.kind == "relation" else "must be exactly zero"
        lines.append(f"error {error:.3g}, where it {same}; {finding.outside} of {finding.total} elements are not")
    else:
        terms = _terms(explained, subject)
        lines.append(
            f"error {error:.3g} = {finding.ratio:.3g} × the bound ({finding.bound:.3g}) of class "
            f"{subject.required_class(dtype)}{terms}; {finding.outside} of {finding.total} elements are outside"
        )
    if finding.class_:
        lines.append(f"it would be right in class {finding.class_}")
    return lines


def _terms(explained: Explained, subject: Subject) -> str:
    """What the bound at the worst element is made of, the two largest terms."""
    finding, exact = explained.finding, explained.exact
    if exact is None or finding.kind == "relation":
        return ""
    terms = exact.terms(subject.required_class(str(exact.problem.dtype)[6:]), finding.output, finding.index)
    return f" ({', '.join(f'{name} {share:.0%}' for name, share in list(terms.items())[:2])})" if terms else ""


def number(x: float) -> str:
    """A number with as many digits as tell it apart."""
    return f"{x:.9g}"


def broken_should(failure: Failure, clause: Clause, explained: Explained) -> str:
    """A broken SHOULD in a line: it is said once, and does not decide the exit code."""
    where = failure.dtype if failure.variant == "only" else f"{failure.variant}, {failure.dtype}"
    what = explained.finding.message or explained.finding.kind
    return visible(f"{clause.id} (SHOULD) does not hold, first seen in {where}: {clause.title}; {what} --case={failure.case}")


# THE END


def faults(run: Run) -> list[str]:
    """Each fault once: its most basic clause, what the implementation does instead, and where else it shows."""
    found = fold(run.record.failures)
    if not found:
        return []
    n = len(run.record.failures)
    lines = [f"{n} failure{'s' * (n != 1)}, {len(found)} fault{'s' * (len(found) != 1)}:"]
    for n, fault in enumerate(found, 1):
        first = fault.failure
        what = first.diagnosis or index()[first.clause].title
        what += f" (inherited from {first.inherited})" if first.inherited else ""
        lines.append(f"{n:3}. {first.clause} in {first.dtype}: {what}")
        if fault.also:
            lines.append(f"     also: {fault.also}")
    return [visible(line) for line in lines]


def table(run: Run) -> list[str]:
    """Clause × dtype for each variant: problems passed of those judged; then what held."""
    record, lines, missing = run.record, [], incomplete(run)
    weighed = record.weighed()
    for subject in run.subjects:
        dtypes = [d for d in subject.dtypes if any(cell[1] == d for cell in record.counts)]
        title = f"{subject.adapter.name} {subject.adapter.variant}".strip() + f" on {subject.device}"
        lines += ["", title, f"  {'clause':12}{''.join(f'{d:>18}' for d in dtypes)}"]
        for id_ in index():
            cells = [weighed.get((id_, d, subject.label, subject.device)) for d in dtypes]
            if any(cells):
                level = "" if index()[id_].binding else " should"
                lines.append(f"  {id_:12}{''.join(f'{mark(c):>18}' for c in cells)}{level}")
        lines.append(f"  {'class held':12}" + "".join(f"{held(run, subject, d):>18}" for d in dtypes))
        if subject.compared:
            lines.append(f"  {'covered':12}  {covered(subject)}")
    of = ("INCOMPLETE · " if missing else "") + (f"shard {run.shard} · " if run.shard else "")
    lines += ["", *(run.known.lines and [*run.known.lines, ""]), *totals(record, of), *(f"INCOMPLETE: {line}" for line in missing)]
    exempt, elements = sum(s.exempt for s in run.subjects), sum(s.elements for s in run.subjects)
    lines.append(
        f"{sum(s.judged for s in run.subjects)} answers judged, {elements} elements, {exempt} of them exempt "
        f"({exempt / max(elements, 1):.2%}: not promised, or a legal intermediate may leave the dtype's range)"
    )
    return [visible(line) for line in lines]


def covered(subject: Subject) -> str:
    """Combinations of levels in the cases that were compared with the reference, of those that can be asked of the subject."""
    space = Space.of(subject.adapter, subject.dtypes)
    reached = [said(*space.reached(subject.compared, n), what) for n, what in ((2, "pairs"), (3, "triples"))]
    return f"{' and '.join(reached)} of levels that it can be asked, in {len(subject.compared)} problems"


def held(run: Run, subject: Subject, dtype: str) -> str:
    """The strictest class that no right answer left, or – where none was right.

    "not A" where A had to be held, and a clause of ACCURACY says that it was not.
    """
    broken = any(
        counts[Verdict.FAIL] and cell[0].startswith("ACCURACY") and index()[cell[0]].binding
        for cell, counts in run.record.counts.items()
        if cell[1:] == (dtype, subject.label, subject.device)
    )
    return f"not {subject.required_class(dtype)}" if broken else subject.held.get(dtype, "–")


def in_part(record: Record) -> list[str]:
    """The clauses of which some problems were judged and others are unsupported, each with its share and the first reason."""
    lines: list[str] = []
    for id_ in index():
        cells = {cell: counts for cell, counts in record.counts.items() if cell[0] == id_}
        some = {cell: counts for cell, counts in cells.items() if counts[Verdict.UNSUPPORTED] and judged(counts)}
        if some:
            n, of = (sum(x) for x in zip(*((c[Verdict.UNSUPPORTED], judged(c)) for c in some.values()), strict=True))
            why = next((record.reasons[cell] for cell in some if cell in record.reasons), "")
            lines.append(f"{'' if lines else 'unsupported in part: '}{id_} {n} of {n + of} problems" + (f" ({why})" if why else ""))
    return lines


def explained_by(record: Record, clauses: Iterable[str]) -> list[str]:
    """Clauses of which nobody can say that they hold, each with the clauses by which its problems fail."""
    found = []
    for id_ in clauses:
        by: Counter[str] = sum((by for cell, by in record.by.items() if cell[0] == id_), Counter())
        passed = any(counts[Verdict.PASS] for cell, counts in record.counts.items() if cell[0] == id_)
        said = ", ".join(by) if passed else "not judged, all " + ", ".join(f"{n} problems fail by {c}" for c, n in by.items())
        found.append(f"{id_} ({said})")
    return found


def totals(record: Record, of: str = "") -> list[str]:
    """The headline: clauses with denominators, and never a lone percentage."""
    counted = tally(record.weighed(), {clause.id: clause.level for clause in index().values()})
    lines = [of + counted.headline]
    if counted.broken:
        lines.append("broken: " + ", ".join(counted.broken))
    if counted.explained:
        lines.append("fails, explained by another clause (e): " + "; ".join(explained_by(record, counted.explained)))
    if counted.known:
        lines.append("known to be broken: " + ", ".join(counted.known))
    if counted.inherited:
        lines.append("known to be broken in what it calls (i): " + ", ".join(counted.inherited))
    lines += in_part(record)
    if counted.should_broken:
        lines.append("SHOULD, broken: " + ", ".join(counted.should_broken))
    return lines
