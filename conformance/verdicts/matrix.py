"""Many runs side by side: clauses down, implementations across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attnspec.conformance.verdicts.lines import SIGNS, Verdicts, counts_of, mark, standing, tally
from attnspec.conformance.verdicts.page import render

WORST_FIRST = ("broken", "explained", "known issue", "inherited", "holds", "unsupported", "not run")


@dataclass(frozen=True)
class Column:
    """One variant of one implementation on one device."""

    name: str
    variant: str
    device: str
    run: Verdicts

    @cached_property
    def cells(self) -> dict[str, dict[str, dict[str, int]]]:
        """Counts by clause and dtype."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for (clause, dtype, *where), cell in self.run.cells.items():
            if where == [self.variant, self.device]:
                found.setdefault(clause, {})[dtype] = counts_of(cell)
        return found

    @property
    def headline(self) -> str:
        """What the run said of its MUST clauses, or that it did not end."""
        where = (self.variant, self.device)
        mine = {(clause, dtype, *where): counts for clause, cells in self.cells.items() for dtype, counts in cells.items()}
        counts = tally(mine, {clause: self.run.level(clause) for clause in self.run.clauses})
        return ("INCOMPLETE: " if self.run.incomplete else "") + counts.headline

    def view(self, clause: str) -> dict[str, Any]:
        """A cell: the state of the worst dtype, and each dtype in words."""
        cells = self.cells.get(clause, {})
        states = {standing(counts) for counts in cells.values()}
        state = next((s for s in WORST_FIRST if s in states), "not run")
        return {
            "state": state.replace(" ", "-"),
            "sign": SIGNS[state],
            "said": [f"{d} {mark(counts)}" for d, counts in cells.items()],
        }


def columns(runs: Sequence[Verdicts]) -> list[Column]:
    """One for each variant and device of each run, in their order."""
    return [Column(s["name"], s["variant"], s["device"], run) for run in runs for s in run.header["subjects"]]


def clauses(runs: Sequence[Verdicts]) -> dict[str, dict[str, str]]:
    """The clauses of all runs, by id."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        found |= {clause: about for clause, about in run.clauses.items() if clause not in found}
    return found


def write(runs: Sequence[Verdicts], path: Path) -> None:
    """Write the page."""
    path.write_text(render("matrix.html", columns=columns(runs), clauses=clauses(runs), runs=runs), encoding="utf-8")


def markdown(runs: Sequence[Verdicts]) -> str:
    """The table as Markdown."""
    return render("matrix.md", columns=columns(runs), clauses=clauses(runs))


def text(runs: Sequence[Verdicts]) -> list[str]:
    """The table for a terminal, its columns numbered."""
    across = columns(runs)
    lines = [
        f"{n:3}  {c.name}{'' if c.variant == 'only' else f', {c.variant}'} on {c.device}: {c.headline}"
        for n, c in enumerate(across, start=1)
    ]
    lines += ["", f"{'clause':12}" + "".join(f"{n:>4}" for n in range(1, len(across) + 1))]
    for clause, about in clauses(runs).items():
        signs = "".join(f"{column.view(clause)['sign']:>4}" for column in across)
        lines.append(f"{clause:12}{signs}  {about['title']}")
    return [*lines, "", ", ".join(f"{sign} {state}" for state, sign in SIGNS.items())]
