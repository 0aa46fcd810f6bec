"""What was seen: verdicts by clause, dtype, variant and device, kept as they come and written as they come."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnspec.conformance.verdicts.lines import FORMAT, Lines, Share, Why, finite, weighed, worse
from attnspec.conformance.verdicts.text import visible
from attnspec.conformance.verdicts.verdict import Verdict

FLUSHED = 1.0  # seconds after which what was counted is written, in the middle of a test too
Cell = tuple[str, str, str, str]  # clause, dtype, variant, device
Strand = tuple[str, str, str]  # dtype, variant, device


@dataclass
class Failure:
    """One entry of the report: a broken clause, shown once, with its whole text.

    key: what makes two failures the same, whatever the dtype and the variant. remark: what a note says of a broken SHOULD.
    """

    clause: str
    dtype: str
    variant: str
    device: str
    text: str
    case: str
    data: dict[str, Any] = field(default_factory=dict)
    diagnosis: str = ""  # what the implementation does instead, in words
    names: dict[str, float] = field(default_factory=dict)  # what may be said of it, and what each name costs: see folding
    fault: int = 0  # failures with the same number are one fault, 1 the first that is told; 0: not known yet
    key: str = ""
    brief: bool = False  # the same stands above in another dtype or variant
    remark: str = ""

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells a failure from all others of its run."""
        return self.clause, self.dtype, self.variant, self.device, self.case, self.key

    @property
    def shown(self) -> str:
        """The text for a reader of the whole report: the sentence of the clause is not said twice."""
        head, _, rest = self.text.partition("\n\n")
        return f"{head.partition(chr(10))[0]}, as above\n{rest}" if self.brief else self.text

    @property
    def inherited(self) -> str:
        """What it is inherited from, "torch 2.13 flash (SCALE-3)", or ''."""
        return str(self.data.get("inherited", ""))


@dataclass
class Record:
    """Counts of problems by cell and verdict, worst errors, failures, notes, and the file that they are written to.

    by: for each cell the clauses by which problems of it fail, and how many do. unclear: of how many of these it is not certain.
    worst: for each cell and tensor the largest error as a share of its bound, and the class of that bound. held: for each
    dtype, variant and device the class that is required and the strictest that no answer left. interruptions: why the run
    did not ask everything that it set out to ask. whys: of cells with NOT_RUN, why. inherited: how many of the known issues of a
    cell are those of what the implementation calls.
    """

    path: Path | None = None
    counts: dict[Cell, Counter[Verdict]] = field(default_factory=lambda: defaultdict(Counter))
    by: dict[Cell, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unclear: Counter[Cell] = field(default_factory=Counter)
    inherited: Counter[Cell] = field(default_factory=Counter)
    worst: dict[Cell, dict[str, Share]] = field(default_factory=lambda: defaultdict(dict))
    held: dict[Strand, tuple[str, str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    reasons: dict[Cell, str] = field(default_factory=dict)
    whys: dict[Cell, Why] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    interruptions: list[str] = field(default_factory=list)
    lines: Lines = field(default_factory=Lines)
    _written: list[tuple[Failure, dict[str, Any]]] = field(default_factory=list)  # failures, and their lines
    _changed: dict[Cell, None] = field(default_factory=dict)
    _flushed: float = 0.0  # when

    def open(self, header: dict[str, Any]) -> None:
        """Start the file anew with its header."""
        self.lines = Lines(self.path)
        self.lines.add({"kind": "header", "format": FORMAT, **header})

    def count(self, cell: Cell, verdict: Verdict, n: int = 1, reason: str = "", why: Why | None = None) -> None:
        """Add n problems to a cell. What changed is written at least each second, whatever becomes of the test."""
        if n == 0:
            return
        self.counts[cell][verdict] += n
        if reason:
            self.reasons.setdefault(cell, visible(reason))
        if why is not None and not (cell in self.whys and self.whys[cell].cut):
            self.whys[cell] = why
        self._changed[cell] = None
        if self.path is not None and time.monotonic() - self._flushed >= FLUSHED:
            self.flush()

    def fails_by(self, cell: Cell, clause: str, certain: bool) -> None:
        """Count a problem of a cell that fails by another clause, and was not judged; if not certain, it may hide a failure."""
        self.count(cell, Verdict.NOT_RUN, 1)
        self.by[cell][clause] += 1
        self.unclear[cell] += not certain

    def excuse(self, cell: Cell, reason: str, *, inherited: bool) -> None:
        """Count a problem that fails by a known issue, its own or that of what it calls."""
        self.count(cell, Verdict.KNOWN_ISSUE, 1, reason)
        self.inherited[cell] += inherited

    def weighed(self) -> dict[Cell, dict[str, int]]:
        """The counts of each cell with what its standing needs beside them."""
        return {
            cell: weighed(counts, self.unclear[cell], self.by[cell], self.inherited[cell]) for cell, counts in self.counts.items()
        }

    def measure(self, cell: Cell, shares: Mapping[str, Share]) -> None:
        """Keep the worst error of each tensor, as a share of its bound."""
        worst = self.worst[cell]
        for output, share in shares.items():
            worst[output] = worse(worst.get(output), share)
        self._changed[cell] = None

    def hold(self, strand: Strand, required: str, held: str) -> None:
        """The class that a dtype has held so far."""
        if self.held.get(strand) != (required, held):
            self.held[strand] = (required, held)
            self.lines.add(self._accuracy(strand))

    def fail(self, failure: Failure) -> None:
        """Keep a failure and write it at once."""
        self.failures.append(failure)
        named = {name: getattr(failure, name) for name in ("clause", "dtype", "variant", "device", "case", "brief")}
        line = {"kind": "failure", **named, **failure.data, "text": failure.text}
        self._written.append((failure, line))
        self.lines.add(line)

    def drop(self, failure: Failure) -> None:
        """Take a failure back: another says the same."""
        self.failures.remove(failure)
        for written in [written for written in self._written if written[0] is failure]:
            self._written.remove(written)
            self.lines.drop(written[1])

    def note(self, text: str) -> None:
        """Something worth saying that is no failure; each text once."""
        text = visible(text)
        if text not in self.notes:
            self.notes.append(text)
            self.lines.add({"kind": "note", "text": text})

    def interrupt(self, reason: str) -> None:
        """Remember that something was not asked; the file will have no footer."""
        if reason not in self.interruptions:
            self.interruptions.append(reason)

    def flush(self) -> None:
        """Write the cells that changed; the last line of a cell holds. Called when a test ends."""
        for cell in self._changed:
            self.lines.add(self._cell(cell))
        self._changed.clear()
        self._flushed = time.monotonic()

    def take(self) -> dict[str, Any]:
        """What came since the last call, as plain data; it is forgotten here."""
        taken = {
            "counts": [
                [*cell, str(verdict), n, self.reasons.get(cell, ""), str(self.whys.get(cell, ""))]
                for cell, counts in self.counts.items()
                for verdict, n in counts.items()
            ],
            "worst": [[*cell, output, *share] for cell, worst in self.worst.items() for output, share in worst.items()],
            "by": [[*cell, clause, n] for cell, by in self.by.items() for clause, n in by.items()],
            "unclear": [[*cell, n] for cell, n in self.unclear.items()],
            "inherited": [[*cell, n] for cell, n in self.inherited.items()],
            "failures": [dict(vars(failure)) for failure in self.failures],
            "notes": list(self.notes),
        }
        seen = (self.counts, self.by, self.unclear, self.inherited, self.worst, self.failures, self.notes)
        for some in (*seen, self._changed, self._written):
            some.clear()
        return taken

    def absorb(self, taken: dict[str, Any]) -> None:
        """Add what :meth:`take` gave in another process."""
        for *cell, verdict, n, reason, why in taken["counts"]:
            self.count(tuple(cell), Verdict(verdict), n, reason, Why(why) if why else None)
        for clause, dtype, variant, device, other, n in taken["by"]:
            self.by[clause, dtype, variant, device][other] += n
        for clause, dtype, variant, device, n in taken["unclear"]:
            self.unclear[clause, dtype, variant, device] += n
        for clause, dtype, variant, device, n in taken["inherited"]:
            self.inherited[clause, dtype, variant, device] += n
        for clause, dtype, variant, device, output, share, class_ in taken["worst"]:
            self.measure((clause, dtype, variant, device), {output: Share(share, class_)})
        for failure in taken["failures"]:
            self.fail(Failure(**failure))
        for note in taken["notes"]:
            self.note(note)
        self.flush()

    def close(self, exit_status: int, *, seed: int | None = None, **answers: int) -> None:
        """End the file: a footer with totals, or, where the run was interrupted, why; a file without footer is not complete.

        seed: the one that was drawn and that the header does not have.
        """
        self.flush()
        for failure, line in self._written:  # what it is may be known only now
            line.update(diagnosis=failure.diagnosis, fault=failure.fault, brief=failure.brief)
        drawn = {} if seed is None else {"seed": seed}
        if self.interruptions:
            self.lines.add({"kind": "interrupted", "exit": exit_status, "reason": "; ".join(self.interruptions), **drawn})
            return
        totals: Counter[str] = Counter()
        for counts in self.counts.values():
            totals.update({str(verdict): n for verdict, n in counts.items()})
        failures = sum(line["kind"] == "failure" for line in self.lines.kept)
        problems = dict(sorted(totals.items()))  # whichever of several workers ended first
        self.lines.add({"kind": "footer", "exit": exit_status, "problems": problems, "failures": failures, **answers, **drawn})
        self.lines.put_in_order()

    def _cell(self, cell: Cell) -> dict[str, Any]:
        clause, dtype, variant, device = cell
        line: dict[str, Any] = {"kind": "cell", "clause": clause, "dtype": dtype, "variant": variant, "device": device}
        line["problems"] = {str(verdict): n for verdict, n in self.counts[cell].items() if n} if cell in self.counts else {}
        if self.worst.get(cell):
            line["worst"] = {
                output: {"share": finite(share.of_bound), "class": share.class_} for output, share in self.worst[cell].items()
            }
        if self.by.get(cell):
            line |= {"fails_by": dict(self.by[cell]), "unclear": self.unclear[cell]}
        if self.inherited[cell]:
            line["inherited"] = self.inherited[cell]
        if cell in self.reasons or self.by.get(cell):
            line["reason"] = self.reasons.get(cell) or f"its problems already fail {next(iter(self.by[cell]))}"
        if cell in self.whys:
            line["why"] = str(self.whys[cell])
        return line

    def _accuracy(self, strand: Strand) -> dict[str, Any]:
        required, held = self.held[strand]
        return {
            "kind": "accuracy",
            **dict(zip(("dtype", "variant", "device"), strand, strict=True)),
            "required": required,
            "held": held,
        }
