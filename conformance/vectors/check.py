"""Answers that were made anywhere, judged: the verdicts by clause, the failures, the table, the exit code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.words import describe, summary
from attnspec.conformance.vectors.answers import Judged, judged
from attnspec.conformance.vectors.common import Blame, Fault, faults
from attnspec.conformance.vectors.format import ANSWER, REFUSAL, Vector, VectorError, about, read_index
from attnspec.conformance.verdicts.lines import Share, Why, mark, tally
from attnspec.conformance.verdicts.lines import judged as judged_of
from attnspec.conformance.verdicts.record import Cell, Failure, Record
from attnspec.conformance.verdicts.text import times, visible
from attnspec.conformance.verdicts.verdict import BROKEN, Verdict
from attnspec.spec import SPEC_VERSIONS, Dialect, index

DEVICE, VARIANT = "files", "only"
CONFORMS, BROKE, NOTHING = 0, 1, 5


@dataclass
class Checked:
    """What was said of a folder of answers. lines: as the terminal shows it."""

    record: Record
    judged: tuple[Judged, ...]
    faults: tuple[Fault, ...]
    missing: int
    exit: int
    lines: tuple[str, ...]


def check(
    folder: Path,
    answers: Path,
    blame: Blame,
    *,
    name: str = "",
    verdicts: Path | None = None,
    header: Mapping[str, Any] | None = None,
    allow_incomplete: bool = False,
) -> Checked:
    """Judge the answers to a set. Raises VectorError where one of the folders is none.

    header: what the verdict file says of the run, beside what the set says of itself.
    """
    said, vectors = about(folder), read_index(folder)
    if not answers.is_dir():
        raise VectorError(f"{answers} is no folder; name the one that holds {vectors[0].id}.{ANSWER} and the others")
    strange = strangers(answers, vectors)
    if strange:
        raise VectorError(f"{answers} holds {strange[0]}, and the set has no such problem; check it against its own set")
    if said["spec"] not in SPEC_VERSIONS:  # an older one is read: no clause of it was changed or given to another
        raise VectorError(f"{folder} was written with spec {said['spec']}, which this attnspec does not know; install a newer one")
    name, record = name or answers.resolve().name, Record(verdicts)
    dialect = Dialect(**said["dialect"])
    record.open({**header_of(said, vectors, name), **(header or {})})
    every = [judged(folder, answers, vector) for vector in vectors]
    found = faults(every, dialect, blame)
    clause_of = {one.vector.id: fault.clause for fault in found for one in fault.failing}
    for one in every:
        count(record, one, clause_of.get(one.vector.id))
    for n, fault in enumerate(found, start=1):
        for failure in failures(fault, name, len(every), n):
            record.fail(failure)
    missing = sum(one.judgement is None and one.unsupported is None for one in every)
    code = exit_code(record, missing if not allow_incomplete else 0)
    if missing and not allow_incomplete:
        record.interrupt(f"{missing} of {len(every)} problems have no answer")
    known = [one.judgement for one in every if one.judgement is not None]
    elements, exempt = sum(x.elements for x in known), sum(x.exempt for x in known)
    lines = tuple(map(visible, [*shown(record), *table(record, name, said), *_end(every, missing, elements, exempt)]))
    record.close(code, answers=len(known), elements=elements, exempt=exempt)
    return Checked(record, tuple(every), tuple(found), missing, code, lines)


def strangers(answers: Path, vectors: Iterable[Vector]) -> list[str]:
    """Files of answers to problems that the set does not have."""
    ids = {vector.id for vector in vectors}
    kinds = (f".{ANSWER}", f".{REFUSAL}")
    files = sorted(file.name for file in answers.iterdir())
    return [name for name in files for kind in kinds if name.endswith(kind) and name.removesuffix(kind) not in ids]


def count(record: Record, one: Judged, broken: str | None) -> None:
    """Count a problem for each test that asks it. broken: the clause by which it is filed, where it fails."""
    vector, finding = one.vector, one.finding
    for asks in vector.asked_by:
        cells: list[Cell] = [(id_, vector.dtype, VARIANT, DEVICE) for id_ in asks.clauses]
        if one.judgement is None:
            for cell in cells:
                if one.unsupported is not None:
                    record.count(cell, Verdict.UNSUPPORTED, 1, one.unsupported)
                else:
                    record.count(cell, Verdict.NOT_RUN, 1, "there is no answer", Why.INTERRUPTION)
        elif finding is not None and finding.kind == "memory":
            for cell in cells:
                record.count(cell, Verdict.RESOURCE, 1, finding.message)
        elif not one.judgement.of(asks.outputs) or (asks.form and finding is not None and finding.of_numbers):
            for cell in cells:
                record.count(cell, Verdict.PASS)
                if finding is None:
                    record.measure(cell, {name: Share(share, vector.class_) for name, share in one.judgement.worst.items()})
        else:
            assert broken is not None
            for cell in cells:
                if cell[0] != broken:  # it may fail by this clause as well: nothing was asked again to find out
                    record.fails_by(cell, broken, certain=False)
    if broken is not None and finding is not None:
        cell = (broken, vector.dtype, VARIANT, DEVICE)
        record.count(cell, Verdict.FAIL)
        if finding.total:
            record.measure(cell, {finding.output: Share(finding.ratio, vector.class_)})


def exit_code(record: Record, missing: int) -> int:
    """1 where a problem fails or has no answer, 5 where none was judged, else 0."""
    if any(counts[verdict] for counts in record.counts.values() for verdict in BROKEN):
        return BROKE
    if not any(map(judged_of, record.counts.values())):
        return NOTHING
    return BROKE if missing else CONFORMS


# WORDS


def failures(fault: Fault, name: str, problems: int, number: int) -> list[Failure]:
    """A fault as the report shows it: once for each dtype, the smallest problem of it."""
    first: dict[str, Judged] = {}
    for one in fault.failing:
        first.setdefault(one.vector.dtype, one)
    return [_failure(fault, one, name, problems, number, brief=n > 0) for n, one in enumerate(first.values())]


def _failure(fault: Fault, one: Judged, name: str, problems: int, number: int, brief: bool) -> Failure:
    vector, finding = one.vector, one.finding
    assert finding is not None
    clause, case = index()[fault.clause], Case.parse(vector.case)
    like = f"like {describe(case)}; of {vector.made}" if vector.made else describe(case)
    found, hint = [visible(line) for line in found_in(one)], fault.finding.hint
    lines = [f"{clause.id} · {clause.title} ({clause.level})", f"  {clause.sentence}"]
    lines += [f"      {line}" for line in clause.formula.splitlines()]
    lines += ["", f"  {name}", f"  problem   {vector.id}: {like}"]
    lines += [f"  {'found' if n == 0 else '':9} {line}" for n, line in enumerate(found)]
    if hint:
        lines.append(f"  but       this is exactly what {hint} gives; if that is intended, write the set with --dialect {hint}")
    alike = f"{len(fault.failing)} of {problems} problems fail like this"
    lines.append(f"  alike     {alike}" + (f"; all of them have {', '.join(fault.shared)}" if fault.shared else ""))
    lines.append("            nothing was asked again: the clause is that of what they have in common")
    data = {
        "title": clause.title,
        "level": clause.level,
        "sentence": clause.sentence,
        "formula": clause.formula,
        "asked": like,
        "found": found,
        **finding.data(summary(case)),
        "hint": hint,
        "test": "vectors",
        "repro": None,
        "rerun": f"problem {vector.id} of the set",
    }
    where = (clause.id, vector.dtype, VARIANT, DEVICE)
    return Failure(
        *where, "\n".join(map(visible, lines)), vector.case, data, fault=number, key=f"{clause.id} {number}", brief=brief
    )


def found_in(one: Judged) -> list[str]:
    """What was found in an answer, in a line or two."""
    finding = one.finding
    assert finding is not None
    if not finding.total:
        return [finding.message or finding.kind]
    at = ", ".join(map(str, finding.index))
    lines = [f"{finding.output} [{at}] = {finding.got:.9g}, expected {finding.expected:.9g} ± {finding.bound:.3g}"]
    how = (
        f"{times(finding.ratio)} × the bound of class {one.vector.class_}"
        if np.isfinite(finding.ratio)
        else "beyond any multiple of it"
    )
    return [*lines, f"{how}; {finding.outside:,} of {finding.total:,} elements are outside their bounds"]


def shown(record: Record) -> list[str]:
    """The failures, each with its whole text."""
    return [line for failure in record.failures for line in (*failure.shown.splitlines(), "")]


def table(record: Record, name: str, said: Mapping[str, Any]) -> list[str]:
    """Clause × dtype: problems passed of those judged; and the headline with its denominators."""
    weighed, dtypes = record.weighed(), said["dtypes"]
    lines = [name, f"  {'clause':12}{''.join(f'{d:>18}' for d in dtypes)}"]
    for id_ in index():
        cells = [weighed.get((id_, dtype, VARIANT, DEVICE)) for dtype in dtypes]
        if any(cells):
            level = "" if index()[id_].binding else " should"
            lines.append(f"  {id_:12}{''.join(f'{mark(cell):>18}' for cell in cells)}{level}")
    counted = tally(weighed, {clause.id: clause.level for clause in index().values()})
    lines += ["", counted.headline]
    return lines + (["broken: " + ", ".join(counted.broken)] if counted.broken else [])


def _end(every: list[Judged], missing: int, elements: int, exempt: int) -> list[str]:
    """How many problems were judged, of how many, and what became of the others."""
    judged_, unsupported = sum(one.judgement is not None for one in every), sum(one.unsupported is not None for one in every)
    wrong = sum(one.finding is not None for one in every)
    lines = [
        f"{judged_} of {len(every)} problems judged, {wrong} of them wrong; {unsupported} unsupported, {missing} without an answer",
        f"{elements} elements, {exempt} of them exempt: not promised, or a legal intermediate may leave the dtype's range",
        "clauses that compare two calls or speak of how a call behaves are not run: files can't show them",
    ]
    return ([f"INCOMPLETE: {missing} of {len(every)} problems have no answer"] if missing else []) + lines


def header_of(said: Mapping[str, Any], vectors: Iterable[Vector], name: str) -> dict[str, Any]:
    """The header of the verdict file, from what the set says of itself."""
    dialect = {choice: {"value": value, "source": "the set of vectors"} for choice, value in said["dialect"].items()}
    return {
        "suite": said["suite"],
        "spec": said["spec"],
        "command": "attnspec vectors check",
        "tier": said["tier"],
        "seed": 0,
        "budget": None,
        "only": [f"{said['problems']} problems written as vectors"],
        "enforce_should": False,
        "search": False,
        "shard": None,
        "known_issues": [],
        "inherited": "fail",
        "oracle": "arb" if any(vector.oracle == "arb" for vector in vectors) else "float64",
        "started": "",
        "versions": {},
        "devices": [{"device": DEVICE, "name": DEVICE, "model": None, "driver": None}],
        "clauses": {clause.id: {"title": clause.title, "level": clause.level} for clause in index().values()},
        "subjects": [
            {
                "name": name,
                "version": "",
                "variant": VARIANT,
                "device": DEVICE,
                "dtypes": said["dtypes"],
                "refused": {},
                "offers": said["offers"],
                "restrictions": {},
                "widths": None,
                "class": said["classes"],
                "dialect": dialect,
            }
        ],
    }
