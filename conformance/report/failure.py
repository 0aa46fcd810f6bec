"""One failure in words: the clause, the problem, what was found and why, and how to see it again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.diagnosis.folding import names_of
from attnspec.conformance.known.inherited import Origin
from attnspec.conformance.problems.words import describe, describe_problem, summary
from attnspec.conformance.report.repro import FOLDER, write
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.verdicts.record import Failure
from attnspec.conformance.verdicts.text import times, visible
from attnspec.spec import Clause, Problem, index

FEW = 16  # numbers of operands up to which they are shown
NAMES = {
    "o": "output",
    "dq": "gradient of q",
    "dk": "gradient of k",
    "dv": "gradient of v",
    "dbias": "gradient of the bias",
    "lse": "lse",
    "dalibi_slopes": "gradient of the slopes",
    "dsinks": "gradient of the sinks",
    "call": "call",
}


def failure(
    run: Run, subject: Subject, explained: Explained, test: str, other: Problem | None = None, origin: Origin | None = None
) -> Failure:
    """One broken clause, as it is shown, with its script and the command that asks again. origin: what it is inherited from."""
    clause, case = index()[explained.clause], explained.case
    asked, seen = problem_in_words(subject, explained), [visible(line) for line in found(explained, subject, run.show)]
    diagnosis, names = names_of(explained)
    path = _script(run, subject, explained, other) if run.repros else None
    token = case.token() if case.token() != "simplest" else f"dtype={case.dtype}"
    thorough = run.tier.slow and not explained.by_case  # the test itself may be asked in that tier only
    again = run.rerun.of(explained.asked_by or clause.id, token, thorough=thorough)

    lines = [f"{clause.id} · {clause.title} ({clause.level})", f"  {clause.sentence}"]
    lines += [f"      {line}" for line in clause.formula.splitlines()]
    where = f"  {subject.adapter.name}" + (f", {subject.adapter.variant}" if subject.adapter.variant else "")
    lines += ["", f"{where} on {subject.device}", f"  problem   {asked}"]
    written = numbers(explained)
    if written:
        lines.append(f"  numbers   {written}")
    lines += [f"  {'found':9} {line}" if n == 0 else f"            {line}" for n, line in enumerate(seen)]
    lines += _reasons(run, explained, diagnosis, origin)
    if path is not None:
        lines.append(f"  repro     python {path}")
    if not explained.reduced:
        how = "in part" if explained.failed_on and explained.case not in explained.failed_on else "not"
        lines.append(f"  reduced   {how}: the time for explanations was used up; --explain-budget=120 gives more")
    elif explained.diagnosis is not None and explained.diagnosis.cut:
        lines.append("  named     not: the time to find its name was used up")
    lines.append(f"  re-run    {again}")
    data = {
        "title": clause.title,
        "level": clause.level,
        "sentence": clause.sentence,
        "formula": clause.formula,
        "asked": asked,
        "found": seen,
        **explained.finding.data(summary(case)),
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


def _reasons(run: Run, explained: Explained, diagnosis: str, origin: Origin | None) -> list[str]:
    """Why it may be so: another choice, a known mistake, what it calls."""
    hint, lines = explained.finding.hint, []
    if hint:
        lines.append(f"  but       this is exactly what {hint} gives; if that is intended, {run.rerun.choose(hint)}")
    elif diagnosis:
        lines.append(f"  because   {diagnosis}")
    if origin is not None:
        lines.append(f"  inherited from {origin}: the call runs no other kernel, and {origin.issue.backend} gives the same numbers")
        lines.append(f"            {run.rerun.accept} accepts it; it is printed once")
    return lines


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
    if gradient:
        tensors |= problem.cotangents()
    if not explained.by_case or sum(x.numel() for x in tensors.values()) > FEW:
        return ""
    return "; ".join(f"{name} {' '.join(f'{float(n):.6g}' for n in x.detach().flatten())}" for name, x in tensors.items())


def found(explained: Explained, subject: Subject, show: str | None = None) -> list[str]:
    """What was got and what was expected, in a line or three; with `show` "hex" to the bit."""
    finding, dtype = explained.finding, explained.case.dtype
    lines = [finding.message] if finding.message else []
    lines += [f"log: {line}" for line in telling(finding.log)]
    if not finding.total:
        return lines or [finding.kind]
    at = ", ".join(map(str, finding.index))
    error = abs(finding.got - finding.expected)
    expected = "the other call" if finding.kind == "relation" else "expected"
    lines.append(f"{NAMES[finding.output]} [{at}] = {number(finding.got)}, {expected} {number(finding.expected)}")
    if show == "hex":
        ulps = abs(error / np.spacing(abs(finding.expected)) / (torch.finfo(getattr(torch, dtype)).eps * 2.0**52))
        lines.append(f"{finding.got.hex()}, {finding.expected.hex()}; {ulps:.4g} ulp of {dtype} apart")
    outside = f"{finding.outside:,} of {finding.total:,} elements"
    if not finding.ratio < float("inf") and finding.bound != 0 and not abs(finding.got) < float("inf"):
        lines.append(f"not finite, but the exact answer is; {outside} are outside their bounds")
    elif finding.bound == 0:
        same = "must be the same bit by bit" if finding.kind == "relation" else "must be exactly zero"
        lines.append(f"error {error:.3g}, where it {same}; {outside} are not")
    else:
        terms = _terms(explained, subject)
        lines.append(
            f"error {error:.3g} = {times(finding.ratio)} × the bound ({finding.bound:.3g}) of class "
            f"{subject.required_class(dtype)}{terms}; {outside} are outside"
        )
    if finding.class_:
        lines.append(f"it would be right in class {finding.class_}")
    return lines


def telling(log: Sequence[str], most: int = 6) -> list[str]:
    """The lines of a log that say what happened: what Python says of a crash and where it was, else the last ones."""
    fatal = next((n for n, line in enumerate(log) if line.startswith(("Fatal Python error", "Traceback"))), None)
    if fatal is None:
        return [line for line in log if line.strip()][-most:]
    where = [line for line in log[fatal + 1 :] if line.strip().startswith("File ")]
    own = [line.strip() for line in where if f"{os.sep}adapters{os.sep}" not in line and '"<' not in line]
    return [log[fatal], *(own or where)[: most - 1]]


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
