"""What was seen: verdicts by clause, dtype, variant and device, kept as they come and written as they come."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnspec.conformance.judge import Verdict

Cell = tuple[str, str, str, str]  # clause, dtype, variant, device


@dataclass
class Failure:
    """One entry of the report: a broken clause, shown once, with its whole text."""

    clause: str
    dtype: str
    variant: str
    device: str
    text: str
    case: str
    data: dict[str, Any] = field(default_factory=dict)
    diagnosis: str = ""  # what the implementation does instead, in words
    names: dict[str, float] = field(default_factory=dict)  # what may be said of it, and what each name costs: see folding
    folded: str = ""  # the clause under which the same fault is told, where it is another or another dtype's


@dataclass
class Record:
    """Counts of problems by cell and verdict, failures, notes, and the file that they are appended to."""

    path: Path | None = None
    counts: dict[Cell, Counter[Verdict]] = field(default_factory=lambda: defaultdict(Counter))
    failures: list[Failure] = field(default_factory=list)
    reasons: dict[Cell, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def open(self, header: dict[str, Any]) -> None:
        """Start the file anew with its header."""
        if self.path is not None:
            self.path.write_text("", encoding="utf-8")
            self._append({"kind": "header", **header})

    def count(self, cell: Cell, verdict: Verdict, n: int = 1, reason: str = "") -> None:
        """Add n problems to a cell, and one line to the file."""
        if n == 0:
            return
        self.counts[cell][verdict] += n
        if reason:
            self.reasons.setdefault(cell, reason)
        clause, dtype, variant, device = cell
        self._append(
            {
                "kind": "verdict",
                "clause": clause,
                "dtype": dtype,
                "variant": variant,
                "device": device,
                "verdict": verdict,
                "problems": n,
                **({"reason": reason} if reason else {}),
            }
        )

    def fail(self, failure: Failure) -> None:
        """Keep a failure and write it at once."""
        self.failures.append(failure)
        self._append(
            {
                "kind": "failure",
                "clause": failure.clause,
                "dtype": failure.dtype,
                "variant": failure.variant,
                "device": failure.device,
                "case": failure.case,
                **failure.data,
                "text": failure.text,
            }
        )

    def note(self, text: str) -> None:
        """Something worth saying that is no failure; each text once."""
        if text not in self.notes:
            self.notes.append(text)

    def dump(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "counts": [
                [*cell, str(verdict), n, self.reasons.get(cell, "")]
                for cell, counts in self.counts.items()
                for verdict, n in counts.items()
            ],
            "failures": [vars(failure) for failure in self.failures],
            "notes": list(self.notes),
        }

    def absorb(self, dumped: dict[str, Any]) -> None:
        """Add what :meth:`dump` gave in another process."""
        for clause, dtype, variant, device, verdict, n, reason in dumped["counts"]:
            self.count((clause, dtype, variant, device), Verdict(verdict), n, reason)
        for failure in dumped["failures"]:
            self.fail(Failure(**failure))
        for note in dumped["notes"]:
            self.note(note)

    def close(self, exit_status: int) -> None:
        """Write the footer: totals by verdict. A file without it is not complete."""
        totals: Counter[str] = Counter()
        for counts in self.counts.values():
            totals.update({str(verdict): n for verdict, n in counts.items()})
        self._append({"kind": "footer", "exit": exit_status, "problems": dict(totals), "failures": len(self.failures)})

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=True, default=str) + "\n")
