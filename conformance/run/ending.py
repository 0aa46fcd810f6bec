"""What a run comes to: its exit code, which follows from the verdicts, and the words for what was not reached."""

from __future__ import annotations

from attnspec.conformance.run.run import Run
from attnspec.conformance.verdicts import lines as verdicts
from attnspec.conformance.verdicts.lines import Why, unreached
from attnspec.conformance.verdicts.record import Record
from attnspec.conformance.verdicts.verdict import BROKEN, Verdict
from attnspec.spec import index

CONFORMS, BROKE, INTERRUPTED, NOTHING = 0, 1, 2, 5
REASONS = 3  # why nothing was tested: so many of the reasons are said
SAID = {
    Why.TIME: "because the time was up",
    Why.INTERRUPTION: "because the run was interrupted",
    Why.ENDINGS: "because the process of the implementation ended too often",
}


def judged(record: Record) -> int:
    """Problems whose answer was judged."""
    return sum(map(verdicts.judged, record.counts.values()))


def exit_code(run: Run, said: int = CONFORMS) -> int:
    """The exit code of a run; `said` is what is to be said where no verdict objects.

    1 where a clause that decides is broken, the suite itself failed or was tampered with, or a known issue is out of date; 5
    where nothing was judged; 1 where something was to be judged and was not, unless --allow-incomplete. An interruption, an
    internal error and a wrong command line keep their own.
    """
    if said not in (CONFORMS, BROKE, NOTHING):
        return said
    if run.replaced:
        return BROKE
    for (clause, *_), counts in run.record.counts.items():
        if counts[Verdict.HARNESS_ERROR] or (run.decides(clause) and any(counts[verdict] for verdict in BROKEN)):
            return BROKE
    if said == BROKE or run.known.errors:
        return BROKE
    if said == NOTHING or nothing_judged(run):
        return NOTHING
    return BROKE if incomplete(run) and not run.allow_incomplete else CONFORMS


def nothing_judged(run: Run) -> str:
    """Why what passed says nothing; '' where it does say something."""
    if not judged(run.record):
        reasons = list(dict.fromkeys(run.record.reasons.values()))
        more = f"; and {len(reasons) - REASONS} more" if len(reasons) > REASONS else ""
        why = f" ({'; '.join(reasons[:REASONS])}{more})" if reasons else ""
        return f"nothing was tested: none of the selected clauses applies to what this implementation offers{why}"
    compared, answers = sum(len(s.compared) for s in run.subjects), sum(s.judged for s in run.subjects)
    if compared > answers:
        return f"{compared} problems were compared with the reference and {answers} answers judged: something replaced the judge"
    return ""


def incomplete(run: Run) -> list[str]:
    """What was to be judged and was not, with the reason, a line each; empty where all was."""
    missing = unreached(run.record.counts, run.record.whys, run.decides)
    lines = list(run.record.interruptions)
    for why in dict.fromkeys(missing.values()):
        dtypes: dict[str, list[str]] = {}
        for clause, dtype, *_ in (cell for cell, reason in missing.items() if reason is why):
            dtypes.setdefault(clause, []).append(dtype)
        several = len({dtype for subject in run.subjects for dtype in subject.dtypes}) > 1
        names = [id_ + (f" ({', '.join(dict.fromkeys(dtypes[id_]))})" if several else "") for id_ in index() if id_ in dtypes]
        budget = f" (--budget={run.budget:g})" if why is Why.TIME and run.budget is not None else ""
        lines.append(f"{len(names)} clause{'s' * (len(names) != 1)} not reached, {SAID[why]}{budget}: {', '.join(names)}")
    return lines
