"""A small verdict file, made by hand: two clauses and a SHOULD, in two dtypes."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from attnspec.conformance.verdicts.lines import FORMAT, KEY, Verdicts, collect

CLAUSES = {
    "SHAPE-1": {"title": "Rows", "level": "MUST"},
    "CAUSAL-1": {"title": "The past", "level": "MUST"},
    "CAUSAL-2": {"title": "The last", "level": "MUST"},
    "MASK-5": {"title": "Not even NaN", "level": "SHOULD"},
}
DTYPES = ("float32", "bfloat16")
CLASS = {"float32": "A", "bfloat16": "B"}


def header(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "header",
        "format": FORMAT,
        "suite": "0.1.0",
        "spec": "0.1",
        "command": "pytest --impl=mine.attend",
        "tier": "standard",
        "seed": 0,
        "budget": None,
        "only": [],
        "enforce_should": False,
        "oracle": "float64",
        "started": "2024-01-01T00:00:00+00:00",
        "versions": {"python": "3.11.0", "torch": "2.5.0"},
        "devices": [{"device": "cpu", "name": "cpu (x86_64, 1 threads)", "model": "any", "driver": None}],
        "clauses": CLAUSES,
        "subjects": [
            {
                "name": "mine.attend",
                "version": "1.0",
                "variant": "only",
                "device": "cpu",
                "dtypes": list(DTYPES),
                "refused": {},
                "offers": ["backward", "causal", "mha"],
                "widths": None,
                "class": dict(CLASS),
                "dialect": {"causal_alignment": {"value": "top_left", "source": "promised by its convention"}},
            }
        ],
    } | changes


def cell(clause: str, dtype: str, problems: dict[str, int], share: float | None = 0.2, **more: Any) -> dict[str, Any]:
    worst = {} if share is None else {"worst": {"o": {"share": share, "class": CLASS[dtype]}}}
    return {
        "kind": "cell",
        "clause": clause,
        "dtype": dtype,
        "variant": "only",
        "device": "cpu",
        "problems": problems,
        **worst,
        **more,
    }


def failure(clause: str, dtype: str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "failure",
        "clause": clause,
        "dtype": dtype,
        "variant": "only",
        "device": "cpu",
        "case": "i=2",
        "title": CLAUSES[clause]["title"],
        "level": CLAUSES[clause]["level"],
        "sentence": "A sentence.",
        "formula": "a = b",
        "brief": False,
        "asked": f"{dtype}: 1 batch item",
        "found": ["output [0, 0, 0, 0] = 1, expected 2"],
        "output": "o",
        "what": "value",
        "problem": {"i": 2},
        "index": [0, 0, 0, 0],
        "got": 1.0,
        "expected": 2.0,
        "bound": 0.1,
        "ratio": "inf",
        "outside": 1,
        "of": 2,
        "hint": "",
        "test": "test_rows",
        "repro": None,
        "rerun": "pytest --impl=mine.attend --case=i=2",
        "text": "the whole text",
    } | changes


def lines() -> list[dict[str, Any]]:
    """A run that conforms."""
    made = [header()]
    made += [
        {
            "kind": "accuracy",
            "dtype": d,
            "variant": "only",
            "device": "cpu",
            "required": "A" if d == "float32" else "C",
            "held": CLASS[d],
        }
        for d in DTYPES
    ]
    made += [cell(clause, dtype, {"PASS": 20}) for clause in CLAUSES for dtype in DTYPES]
    made.append({"kind": "note", "text": "a note"})
    made.append({"kind": "footer", "exit": 0, "problems": {"PASS": 160}, "failures": 0, "answers": 1, "elements": 1, "exempt": 0})
    return copy.deepcopy(made)


def verdicts(*changed: dict[str, Any], drop: tuple[str, ...] = (), **header_changes: Any) -> Verdicts:
    """The run, with lines put before its end (the last line of a cell holds), without lines of some kind or clause."""
    made = [line for line in lines() if line["kind"] not in drop and line.get("clause") not in drop]
    made[0] |= header_changes
    end = [made.pop()] if made[-1]["kind"] == "footer" else []
    made += [*copy.deepcopy(list(changed)), *end]
    if made[-1]["kind"] == "footer":
        cells = {tuple(line[name] for name in KEY): line["problems"] for line in made if line["kind"] == "cell"}
        sums = sum(map(Counter, cells.values()), Counter())
        made[-1] |= {"problems": dict(sums), "failures": sum(line["kind"] == "failure" for line in made)}
    return collect(made, "made.jsonl")
