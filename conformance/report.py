"""What a reader sees: header, failures, the table at the end."""

from __future__ import annotations

import platform
import shlex
from collections import Counter
from importlib.metadata import version
from typing import Any

import numpy
import torch

from attnspec.adapters import FEATURES
from attnspec.conformance import __version__
from attnspec.conformance.case import describe, describe_problem, summary
from attnspec.conformance.judge import Verdict
from attnspec.conformance.record import Failure, Record
from attnspec.conformance.repro import write
from attnspec.conformance.run import Run
from attnspec.conformance.subject import ORACLE, Explained, Subject
from attnspec.spec import SPEC_VERSION, Clause, Problem, index

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
        f"torch {torch.__version__}, numpy {numpy.__version__}, Python {platform.python_version()}"
    ]
    for subject in run.subjects:
        traced = subject.adapter.trace()
        lines.append(
            f"  {'variant ' + subject.label if subject.adapter.variant else 'implementation'} on {device_name(subject.device)}: "
            f"{', '.join(subject.dtypes) or 'no dtype'}; class "
            + ", ".join(dict.fromkeys(f"{subject.required_class(d)} for {d}" for d in subject.dtypes))
        )
        if traced:
            lines.append(f"    backend seen in torch's dispatcher: {traced}")
        offered = [name for name in FEATURES if subject.offers(name)]
        absent = [name for name in FEATURES if not subject.offers(name)]
        lines.append(f"    offers {', '.join(offered)}" + (f"; not {', '.join(absent)}" if absent else ""))
        lines += [f"    {name} = {getattr(subject.dialect, name)} ({source})" for name, source in subject.sources.items()]
        if subject.refused_dtypes:
            lines.append("    refused: " + "; ".join(f"{d} ({why[:80]})" for d, why in subject.refused_dtypes.items()))
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
    tier = next((name for name, tier in _tiers().items() if tier is run.tier), "")
    lines.append(
        f"  tier {tier}, {seed}"
        + (f", clauses {', '.join(run.clauses)}" if run.clauses else "")
        + (f", case {run.case.token()}" if run.case else "")
        + (f", shard {run.shard}" if run.shard else "")
    )
    if run.known.source:
        lines.append(f"  known issues: {len(run.known.issues)}, from {run.known.source}")
    return lines


def oracle() -> str:
    """What the answers are compared with."""
    if ORACLE == "arb":
        return f"float64, and ball arithmetic for answers in float64 and for what is shown (python-flint {version('python-flint')})"
    return "float64; for certainty in float64 too, pip install attnspec[exact]"


def _tiers() -> dict[str, Any]:
    from attnspec.conformance.run import TIERS

    return TIERS


def device_name(device: str) -> str:
    """A device as a person would name it."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)" if device == "cpu" else device


def header_data(run: Run) -> dict[str, Any]:
    """The header as plain data, for the verdict file."""
    return {
        "suite": __version__,
        "spec": SPEC_VERSION,
        "command": run.command,
        "seed": run.seed,
        "search": bool(run.tier.searched) and not run.pinned_only,
        "shard": str(run.shard) if run.shard else None,
        "known_issues": [
            {"clause": x.clause, "region": x.region.text if x.region else None, "found": x.found or None} for x in run.known.issues
        ],
        "oracle": ORACLE,
        "versions": {"torch": torch.__version__, "numpy": numpy.__version__, "python": platform.python_version()},
        "subjects": [
            {
                "name": s.adapter.name,
                "version": s.adapter.version,
                "variant": s.label,
                "device": s.device,
                "dtypes": list(s.dtypes),
                "offers": sorted(s.adapter.offers),
                "class": {d: s.required_class(d) for d in s.dtypes},
                "dialect": {name: {"value": getattr(s.dialect, name), "source": source} for name, source in s.sources.items()},
            }
            for s in run.subjects
        ],
    }


# FAILURES


def failure(
    run: Run, subject: Subject, explained: Explained, test: str, other: Problem | None = None, brief: bool = False
) -> Failure:
    """One broken clause, as it is shown, with its script and the command that asks again.

    Brief where the same fault was shown in full in another dtype or variant.
    """
    clause, finding, case = index()[explained.clause], explained.finding, explained.case
    lines = [f"{clause.id} · {clause.title} ({clause.level}){', as above' if brief else ''}"]
    if not brief:
        lines += [f"  {clause.sentence}", *(f"      {line}" for line in clause.formula.splitlines())]
    where = f"  {subject.adapter.name}" + (f", {subject.adapter.variant}" if subject.adapter.variant else "")
    lines += ["", f"{where} on {subject.device}"] if not brief else [f"{where} on {subject.device}"]
    lines.append(f"  problem   {describe(case) if explained.by_case else describe_problem(explained.problem)}")
    lines += [f"  {'found':9} {line}" if n == 0 else f"            {line}" for n, line in enumerate(found(explained, subject))]
    if finding.hint:
        lines.append(
            f"  but       this is exactly what {finding.hint} gives; if that is what it means to do, --dialect {finding.hint}"
        )
    path = write(subject, explained, other) if run.repros else None
    if path is not None:
        lines.append(f"  repro     python {path}")
    token = case.token() if case.token() != "simplest" else f"dtype={case.dtype}"
    tier = "" if explained.by_case or not run.tier.slow else " --tier=thorough"  # where the test itself is only asked there
    lines.append(f"  re-run    {run.command}{tier} --clauses={clause.id} --case={shlex.quote(token)}")
    data = {
        "output": finding.output,
        "what": finding.kind,
        "problem": summary(case),
        "index": list(finding.index),
        "got": repr(finding.got),
        "expected": repr(finding.expected),
        "bound": repr(finding.bound),
        "ratio": repr(finding.ratio),
        "outside": finding.outside,
        "of": finding.total,
        "hint": finding.hint,
        "test": test,
        "repro": str(path) if path else None,
    }
    return Failure(clause.id, case.dtype, subject.label, subject.device, "\n".join(lines), case.token(), data)


def found(explained: Explained, subject: Subject) -> list[str]:
    """What was got and what was expected, in a line or three."""
    finding, dtype = explained.finding, explained.case.dtype
    lines = [finding.message] if finding.message else []
    if not finding.total:
        return lines or [finding.kind]
    at = ", ".join(map(str, finding.index))
    error = abs(finding.got - finding.expected)
    expected = "the other call" if finding.kind == "relation" else "expected"
    lines.append(f"{NAMES[finding.output]} [{at}] = {number(finding.got)}, {expected} {number(finding.expected)}")
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
    return f"{clause.id} (SHOULD) does not hold, first seen in {where}: {clause.title}; {what} --case={failure.case}"


# THE END


def table(run: Run) -> list[str]:
    """Clause × dtype for each variant: problems passed of those judged; then what held."""
    record, lines = run.record, []
    for subject in run.subjects:
        dtypes = [d for d in subject.dtypes if any(cell[1] == d for cell in record.counts)]
        title = f"{subject.adapter.name} {subject.adapter.variant}".strip() + f" on {subject.device}"
        lines += ["", title, f"  {'clause':12}{''.join(f'{d:>18}' for d in dtypes)}"]
        for id_ in index():
            cells = [record.counts.get((id_, d, subject.label, subject.device)) for d in dtypes]
            if any(cells):
                mark = "" if index()[id_].binding else " should"
                lines.append(f"  {id_:12}{''.join(f'{_cell(c):>18}' for c in cells)}{mark}")
        lines.append(f"  {'class held':12}" + "".join(f"{_held(subject, d):>18}" for d in dtypes))
    lines += ["", *(run.known.lines and [*run.known.lines, ""]), *totals(record, f"shard {run.shard} · " if run.shard else "")]
    exempt, elements = sum(s.exempt for s in run.subjects), sum(s.elements for s in run.subjects)
    lines.append(
        f"{sum(s.judged for s in run.subjects)} answers judged, {elements} elements, {exempt} of them exempt "
        f"({exempt / max(elements, 1):.2%}: not promised, or a legal intermediate may leave the dtype's range)"
    )
    return lines


def _cell(counts: Counter[Verdict] | None) -> str:
    if not counts:
        return "·"
    good, bad, known = counts[Verdict.PASS], counts[Verdict.FAIL], counts[Verdict.KNOWN_ISSUE]
    if good + bad + known:
        return f"{good}/{good + bad + known}" + (" ✗" if bad else " known" if known else "")
    if counts[Verdict.UNSUPPORTED]:
        return "unsupported"
    return "not run" if counts[Verdict.NOT_RUN] else "·"


def _held(subject: Subject, dtype: str) -> str:
    return subject.held.get(dtype, "–")


def totals(record: Record, of: str = "") -> list[str]:
    """The headline: clauses with denominators, and never a lone percentage."""
    by_clause: dict[str, set[Verdict]] = {}
    for (clause, *_), counts in record.counts.items():
        by_clause.setdefault(clause, set()).update(v for v, n in counts.items() if n)
    binding = {id_: seen for id_, seen in by_clause.items() if index()[id_].binding}
    must = sum(1 for clause in index().values() if clause.binding)
    failed = [id_ for id_, seen in binding.items() if Verdict.FAIL in seen]
    known = [id_ for id_, seen in binding.items() if Verdict.KNOWN_ISSUE in seen and Verdict.FAIL not in seen]
    passed = [id_ for id_, seen in binding.items() if Verdict.PASS in seen and not seen & {Verdict.FAIL, Verdict.KNOWN_ISSUE}]
    unsupported = [
        id_ for id_, seen in binding.items() if seen <= {Verdict.UNSUPPORTED, Verdict.NOT_RUN} and Verdict.UNSUPPORTED in seen
    ]
    rest = must - len(failed) - len(known) - len(passed) - len(unsupported)
    should = [id_ for id_, seen in by_clause.items() if not index()[id_].binding and Verdict.FAIL in seen]
    not_held = f"{len(failed)} broken, " + (f"{len(known)} known to be broken, " if known else "")
    lines = [f"{of}MUST clauses: {len(passed)} of {must} hold, {not_held}{len(unsupported)} unsupported, {rest} not run"]
    if failed:
        lines.append("broken: " + ", ".join(sorted(failed, key=list(index()).index)))
    if known:
        lines.append("known to be broken: " + ", ".join(sorted(known, key=list(index()).index)))
    if should:
        lines.append("SHOULD, broken: " + ", ".join(sorted(should, key=list(index()).index)))
    return lines
