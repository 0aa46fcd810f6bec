"""What the templates of the page show of a run's verdicts: faults, the matrix, what was not judged and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from attnspec.conformance.verdicts.lines import SIGNS, Verdicts, counts_of, judged, mark, standing, worst_of
from attnspec.conformance.verdicts.text import times
from attnspec.spec import SPEC_VERSION, Clause, index

VIEWS = (
    "asked", "breaks", "clause_text", "counted", "decided", "entries", "further", "groups", "homes", "name_of", "number", "outcome",
    "outside", "problem_and_found", "ranges", "rows", "silences", "started",
)  # fmt: skip

# THE HEAD


def decided(v: Verdicts) -> list[str]:
    """The broken clauses that decide."""
    return [*v.tally.broken, *(v.tally.should_broken if v.header.get("enforce_should") else ())]


def outcome(v: Verdicts) -> tuple[str, str]:
    """What the run comes to, as a word for colours (good, bad, open) and as words for people."""
    tally = v.tally
    if decided(v):
        return "bad", "does not conform" + (", and the run is INCOMPLETE" if v.incomplete else "")
    if v.incomplete:
        return "open", "INCOMPLETE: this says nothing yet"
    if not any(judged(cell["problems"]) for cell in v.cells.values()):
        return "open", "nothing was tested"
    if v.footer is not None and v.footer["exit"]:
        return "open", f"no clause is broken, but the run ended with exit code {v.footer['exit']}"
    but = {"known issues": tally.known, "what is inherited": tally.inherited}
    excused = f", but for {' and '.join(what for what, ids in but.items() if ids)}" if any(but.values()) else ""
    return "good", ("no broken clause among those tested" if tally.not_run else "conforms") + excused


def asked(v: Verdicts) -> str:
    """What a run that tested a part of the clauses was to test, and how many that are; '' where it was to test all."""
    shard = [f"shard {v.header['shard']}"] if v.header.get("shard") else []
    only = [*v.header["only"], *shard]
    if not only:
        return ""
    seen = {key[0] for key in v.cells if v.level(key[0]) == "MUST"}
    return f"Only {', '.join(only)}: that is {len(seen)} of {v.tally.must} MUST clauses. The others were not tested."


def counted(v: Verdicts) -> str:
    """All problems by verdict, with their sum."""
    sums: dict[str, int] = {}
    for cell in v.cells.values():
        for verdict, n in cell["problems"].items():
            sums[verdict] = sums.get(verdict, 0) + n
    names = {"PASS": "passed", "FAIL": "failed", "HARNESS_ERROR": "lost to a failure of attnspec itself"}
    parts = [f"{n:,} {names.get(verdict, verdict.lower().replace('_', ' '))}" for verdict, n in sums.items() if n]
    return f"{sum(sums.values()):,} verdicts over all clauses: {', '.join(parts)}" if parts else "no problem was counted"


def started(v: Verdicts) -> str:
    """When the run began, to the minute."""
    said = str(v.header["started"])
    try:
        return f"{datetime.fromisoformat(said).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return said


def number(n: int) -> str:
    """A count with its digits in groups."""
    return f"{n:,}"


# FAULTS


def entries(v: Verdicts) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Faults, those that decide first: the failure of the most basic clause, and the others that show the same fault."""
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    first: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    order = list(v.clauses)
    for failure in sorted(v.failures, key=lambda one: (one.get("fault", 0), order.index(one["clause"]))):
        alike = (failure["clause"], failure["hint"] or (failure["what"] in ("value", "zero", "nonfinite"), failure["output"]))
        fault = (failure["fault"],) if failure.get("fault") else alike
        if (failure.get("fault") or failure["brief"]) and fault in first:
            first[fault].append(failure)
        else:
            found.append((failure, first.setdefault(fault, [])))
    return sorted(found, key=lambda entry: not v.decides(entry[0]["clause"]))


def homes(v: Verdicts) -> dict[str, str]:
    """Where on the page each clause is spoken of: in a fault where it is broken, else in its line of the matrix."""
    found = {row["clause"]: row["clause"] for group in groups(v) for row in rows(v, group)}
    for n, (failure, others) in reversed(list(enumerate(entries(v), 1))):
        found |= {one["clause"]: f"fault-{n}" for one in (failure, *others)}
    return found


def name_of(failure: Mapping[str, Any]) -> tuple[str, str]:
    """What the implementation does instead, or where that is not known the title of the clause; and on how much this rests."""
    what, _, rest = _words(failure.get("diagnosis")).partition("; this reproduces ")
    return (what, f"This reproduces {rest}." if rest else "") if what else (failure["title"], "")


def breaks(v: Verdicts, failure: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The clauses that a fault breaks, each with the dtypes, variants and devices in which it does."""
    devices = {subject["device"] for subject in v.header["subjects"]}
    found: dict[str, dict[str, None]] = {}
    for one in (failure, *others):
        place = [
            one["dtype"],
            *([one["variant"]] if one["variant"] != "only" else []),
            *([one["device"]] if len(devices) > 1 else []),
        ]
        found.setdefault(one["clause"], {})[", ".join(place)] = None
    return {clause: list(places) for clause, places in found.items()}


def further(failure: Mapping[str, Any], named: bool = False) -> list[tuple[str, str]]:
    """What a failure says beside its problem and what was found, name and text: diagnosis, hint, repro, command.

    named: the diagnosis stands above already.
    """
    inherited = f"from {failure['inherited']}; --inherited=note accepts it" if failure.get("inherited") else ""
    said = [("diagnosis", "" if named else _words(failure.get("diagnosis"))), ("inherited", inherited)]
    if failure.get("hint"):
        said.append(("but", f"this is exactly what {failure['hint']} gives; if that is intended, --dialect {failure['hint']}"))
    said += [("repro", f"python {failure['repro']}" if failure.get("repro") else ""), ("re-run", failure.get("rerun", ""))]
    return [(name, text) for name, text in said if text]


def _words(x: Any) -> str:
    """A field that may be a text, a list or a mapping, as one line."""
    if isinstance(x, Mapping):
        return ", ".join(_words(value) for value in x.values() if value)
    return ", ".join(map(_words, x)) if isinstance(x, Iterable) and not isinstance(x, str) else str(x or "")


def problem_and_found(failure: Mapping[str, Any]) -> list[str]:
    """A failure in a few lines."""
    said = [("problem", failure["asked"]), *(("found", line) for line in failure["found"]), *further(failure)]
    return [f"{name:11} {text}" for name, text in said]


# CLAUSE BY CLAUSE


def groups(v: Verdicts) -> list[dict[str, Any]]:
    """Variants on devices, each with its dtypes and what the header says of it."""
    found = []
    for subject in v.header["subjects"]:
        strands = [strand for strand in v.strands if strand[1:] == (subject["variant"], subject["device"])]
        cells = [key for key in v.cells if key[2:] == (subject["variant"], subject["device"])]
        seen = {key[1] for key in cells} | {strand[0] for strand in strands}
        title = subject["name"] if subject["variant"] == "only" else f"{subject['name']}, {subject['variant']}"
        found.append(
            {
                "title": title,
                "key": (subject["variant"], subject["device"]),
                "subject": subject,
                "dtypes": [dtype for dtype in subject["dtypes"] if dtype in seen],
                "held": {strand[0]: v.strands[strand] for strand in strands},
            }
        )
    return found


def rows(v: Verdicts, group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The matrix: each clause of which something was judged, with its cells, one for each dtype."""
    variant, device = group["key"]
    found = []
    for clause, about in v.clauses.items():
        cells = [v.cells.get((clause, dtype, variant, device), {}) for dtype in group["dtypes"]]
        if not any(judged(cell.get("problems", {})) for cell in cells):
            continue
        found.append({"clause": clause, **about, "cells": [_view(cell, v.decides(clause)) for cell in cells]})
    return found


def _view(cell: Mapping[str, Any], decides: bool) -> dict[str, str]:
    counts = counts_of(cell) if cell else {}
    worst = max(worst_of([cell]).items(), key=lambda item: item[1].of_bound, default=None)
    said = [f"{n} {verdict}" for verdict, n in cell.get("problems", {}).items()] + ([cell["reason"]] if cell.get("reason") else [])
    if worst is not None:
        output, largest = worst
        said.append(f"worst error {share(largest.of_bound)} of the bound of class {largest.class_}, in {output}")
    state = standing(counts).replace(" ", "-") if counts else "silent"
    return {
        "state": "remark" if state == "broken" and not decides else state,
        "mark": mark(counts) if judged(counts) else SIGNS[standing(counts)],
        "worst": share(worst[1].of_bound) if worst is not None else "",
        "said": "; ".join(said),
    }


def share(x: float) -> str:
    """A share of the bound in two digits; a large one as a factor."""
    return f"{x:.2f}" if 0.01 <= x < 10 else f"×{times(x, 2)}" if 10 <= x < float("inf") else times(x, 2)


def clause_text(v: Verdicts, clause: str) -> Clause | None:
    """A clause as the spec says it, where the spec that is installed here is the one that the run followed."""
    return index().get(clause) if v.header["spec"] == SPEC_VERSION else None


def outside(v: Verdicts, key: tuple[str, str]) -> dict[str, list[str]]:
    """The crosses of the plot of a variant on a device: clauses, each with what of it lies outside of its bound, and how far."""
    found: dict[str, list[str]] = {}
    for (clause, dtype, *where), cell in v.cells.items():
        for output, worst in cell.get("worst", {}).items() if tuple(where) == tuple(key) else ():
            largest = float(worst["share"])
            if not largest <= 1:
                found.setdefault(clause, []).append(f"{output} in {dtype} {share(largest)}")
    return found


def silences(v: Verdicts) -> dict[bool, list[tuple[str, str, list[str]]]]:
    """Why clauses were not judged: state, reason, and which. True: what the implementation does not offer; False: all else."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for key, cell in v.cells.items():
        if not judged(cell["problems"]):
            found.setdefault((standing(counts_of(cell)), cell.get("reason", "no reason was given")), {})[key[0]] = None
    order = list(v.clauses)
    said = [(state, reason, sorted(ids, key=order.index)) for (state, reason), ids in found.items()]
    return {absent: [one for one in said if (one[0] == "unsupported") is absent] for absent in (False, True)}


def ranges(ids: Iterable[str]) -> str:
    """Clauses in few words: SOFTCAP-1…3, 5, GRAD-9."""
    named = list(ids)
    if not all(id_.rpartition("-")[2].isdecimal() for id_ in named):
        return ", ".join(named)
    parts = []
    for chapter, some in groupby(named, key=lambda id_: id_.rpartition("-")[0]):
        runs: list[list[int]] = []
        for n in (int(id_.rpartition("-")[2]) for id_ in some):
            if runs and n == runs[-1][-1] + 1:
                runs[-1].append(n)
            else:
                runs.append([n])
        said = [str(run[0]) if len(run) == 1 else f"{run[0]}{', ' if len(run) == 2 else '…'}{run[-1]}" for run in runs]
        parts.append(f"{chapter}-{', '.join(said)}")
    return "; ".join(parts)
