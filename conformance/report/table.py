"""The end of a run as a reader sees it: faults, the table, what held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from attnspec.conformance.diagnosis.folding import fold
from attnspec.conformance.problems.coverage import Space, share_in_words
from attnspec.conformance.report.bars import Paint, bars
from attnspec.conformance.run.ending import incomplete
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.verdicts.lines import Counts, Why, judged, mark, standing, tally
from attnspec.conformance.verdicts.record import Record
from attnspec.conformance.verdicts.text import visible
from attnspec.conformance.verdicts.verdict import Verdict
from attnspec.spec import index


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
        what += "" if index()[first.clause].binding else " (SHOULD)"
        lines.append(f"{n:3}. {first.clause} in {first.dtype}: {what}")
        if fault.also:
            lines.append(f"     also: {fault.also}")
    return [visible(line) for line in lines]


def table(run: Run, paint: Paint | None = None) -> list[str]:
    """Clause × dtype for each variant: problems passed of those judged; then what held. paint: for bars of the errors, too."""
    record, lines, end, missing = run.record, [], [""], incomplete(run)
    weighed = record.weighed()
    for subject in run.subjects:
        dtypes = [d for d in subject.dtypes if any(cell[1] == d for cell in record.counts)]
        title = f"{subject.adapter.name} {subject.adapter.variant}".strip() + f" on {subject.device}"
        lines += ["", visible(title), f"  {'clause':12}{''.join(f'{d:>18}' for d in dtypes)}"]
        marks = {id_: [weighed.get((id_, d, subject.label, subject.device)) for d in dtypes] for id_ in index()}
        lines += _rows({id_: _marks(cells) for id_, cells in marks.items() if any(cells)})
        lines.append(f"  {'class held':12}" + "".join(f"{held(run, subject, d):>18}" for d in dtypes))
        if paint is not None:
            lines += bars(record, subject, dtypes, paint)
        if subject.compared:
            lines.append(f"  {'covered':12}  {covered(subject)}")
    of = ("INCOMPLETE · " if missing else "") + (f"shard {run.shard} · " if run.shard else "")
    end += [*(run.known.lines and [*run.known.lines, ""]), *totals(record, of), *(f"INCOMPLETE: {line}" for line in missing)]
    if run.hides_seed and run.searches:
        end.append(f"the seed was {run.seed}; --attnspec-seed={run.seed} searches the same again")
    exempt, elements = sum(s.exempt for s in run.subjects), sum(s.elements for s in run.subjects)
    end.append(
        f"{sum(s.judged for s in run.subjects):,} answers judged, {elements:,} elements, {exempt:,} of them exempt "
        f"({exempt / max(elements, 1):.2%}: not promised, or a legal intermediate may leave the dtype's range)"
    )
    return lines + [visible(line) for line in end]


def _marks(cells: Sequence[Counts | None]) -> list[str]:
    """The marks of a row. What is unsupported in each dtype in which it was asked is so in the others, too."""
    marks = [mark(cell) for cell in cells]
    asked = {one for one, cell in zip(marks, cells, strict=True) if cell}
    return ["unsupported"] * len(cells) if asked == {"unsupported"} else marks


def _rows(marks: Mapping[str, list[str]]) -> list[str]:
    """A line a clause; where neighbours of a chapter are all unsupported, one for all of them."""
    lines: list[str] = []
    of_chapter = groupby(marks, key=lambda id_: (index()[id_].chapter, id_ if set(marks[id_]) != {"unsupported"} else ""))
    for _, some in of_chapter:
        first, *others = some
        name = f"{first}…{others[-1].rpartition('-')[2]}" if others else first
        level = "" if others or index()[first].binding else " should"
        columns = "".join(f"{one:>18}" for one in marks[first])
        lines.append(f"  {name}{columns[max(0, len(name) - 12) :] if len(name) > 12 else ' ' * (12 - len(name)) + columns}{level}")
    return lines


def covered(subject: Subject) -> str:
    """Combinations of levels in the cases that were compared with the reference, of those that can be asked of the subject."""
    space = Space.of(subject.adapter, subject.dtypes)
    reached = [share_in_words(*space.reached(subject.compared, n), what) for n, what in ((2, "pairs"), (3, "triples"))]
    return f"{' and '.join(reached)} of the levels that it offers, in {len(subject.compared)} problems"


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


def without_memory(record: Record) -> list[str]:
    """The clauses of which some problems were not judged because the implementation said that there was no memory."""
    lines: list[str] = []
    for id_ in index():
        cells = {cell: counts for cell, counts in record.counts.items() if cell[0] == id_ and counts[Verdict.RESOURCE]}
        if cells:
            n, of = (sum(x) for x in zip(*((c[Verdict.RESOURCE], judged(c)) for c in cells.values()), strict=True))
            why = next((record.reasons[cell] for cell in cells if cell in record.reasons), "")
            start = "" if lines else "not judged, for lack of memory: "
            lines.append(f"{start}{id_} {n} of {n + of} problems" + (f" ({why})" if why else ""))
    return lines


def without_a_case(record: Record) -> list[str]:
    """The MUST clauses that were asked and of which no problem could show anything, by the reason."""
    found: dict[str, list[str]] = {}
    weighed = record.weighed()
    for id_ in (clause.id for clause in index().values() if clause.binding):
        cells = {cell: counts for cell, counts in weighed.items() if cell[0] == id_}
        if cells and all(standing(counts) == "not run" and record.whys.get(cell) is Why.NO_CASE for cell, counts in cells.items()):
            found.setdefault("; ".join(dict.fromkeys(record.reasons[cell] for cell in cells)), []).append(id_)
    return [f"{'not run, ' if not n else ''}{', '.join(ids)}: {why}" for n, (why, ids) in enumerate(found.items())]


def explained_by(record: Record, clauses: Iterable[str]) -> list[str]:
    """Clauses of which nobody can say that they hold, each with the clauses by which its problems fail."""
    found = []
    for id_ in clauses:
        by: Counter[str] = sum((by for cell, by in record.by.items() if cell[0] == id_), Counter())
        passed = any(counts[Verdict.PASS] for cell, counts in record.counts.items() if cell[0] == id_)
        said = ", ".join(by) if passed else "none passed: " + ", ".join(f"{n} problems already fail {c}" for c, n in by.items())
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
        lines.append("known to be broken in the kernel that it calls (i): " + ", ".join(counted.inherited))
    lines += in_part(record) + without_memory(record) + without_a_case(record)
    if counted.should_broken:
        lines.append("SHOULD, broken: " + ", ".join(counted.should_broken))
    return lines
