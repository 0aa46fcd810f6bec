"""What a campaign found: implementations down, chapters across, and a page for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attnspec.conformance.campaign.file import Campaign, Entry
from attnspec.conformance.verdicts.lines import SIGNS, Verdicts, judged, read
from attnspec.conformance.verdicts.matrix import WORST_FIRST, Column, columns
from attnspec.conformance.verdicts.page import render
from attnspec.conformance.verdicts.page import write as write_page


@dataclass(frozen=True)
class Row:
    """One variant of one implementation on one device; column is None where its run left no verdict."""

    entry: Entry
    result: Mapping[str, Any]
    column: Column | None

    @cached_property
    def subject(self) -> dict[str, Any]:
        """What the header of its run says of it."""
        if self.column is None:
            return {}
        where = (self.column.variant, self.column.device)
        return next(s for s in self.column.run.header["subjects"] if (s["variant"], s["device"]) == where)

    @property
    def version(self) -> str:
        """Of its package; what was required, for a file in one that is not imported whole."""
        required = (x.replace("==", " ") for x in self.entry.requires if "==" in x)
        return self.subject.get("version") or self.entry.of or next(required, "")

    @property
    def asked(self) -> str:
        """The day on which it was asked."""
        return "" if self.column is None else str(self.column.run.header["started"])[:10]

    @property
    def outcome(self) -> tuple[str, str]:
        """A word for colours, and what came of it in words."""
        if self.column is None:
            return "open", (self.result.get("trouble") or self.result.get("refused") or "not asked yet").splitlines()[-1]
        cut = ", incomplete" if self.column.run.incomplete or self.column.run.unreached else ""
        if self.broken:
            return "bad", f"does not conform{cut}"
        return ("open", "incomplete") if cut else ("good", "no broken clause")

    @cached_property
    def broken(self) -> list[str]:
        """The MUST clauses that it breaks."""
        run = None if self.column is None else self.column.run
        if run is None or self.column is None:
            return []
        return [c for c in run.clauses if run.level(c) == "MUST" and self.column.view(c)["state"] == "broken"]

    @property
    def held(self) -> list[str]:
        """The accuracy class that held, by dtype."""
        if self.column is None:
            return []
        where = (self.column.variant, self.column.device)
        strands = self.column.run.strands
        return [f"{dtype} {s['held']}" for (dtype, *at), s in strands.items() if tuple(at) == where and s.get("held")]

    @property
    def dialect(self) -> list[str]:
        """The choices that it follows."""
        return [f"{name} {said['value']}" for name, said in self.subject.get("dialect", {}).items()]

    def view(self, chapter: str) -> dict[str, Any]:
        """A cell: the worst state of its MUST clauses, and which are broken."""
        if self.column is None:
            return {"state": "not-run", "sign": "", "said": ""}
        run = self.column.run
        mine = [c for c in run.clauses if c.partition("-")[0] == chapter and run.level(c) == "MUST"]
        states = {c: self.column.view(c)["state"].replace("-", " ") for c in mine}
        state = next((s for s in WORST_FIRST if s in states.values()), "not run")
        if state in ("unsupported", "not run") and "holds" in states.values():
            state = "holds"
        broken = [c for c, s in states.items() if s == "broken"]
        holds = sum(s == "holds" for s in states.values())
        return {"state": state.replace(" ", "-"), "sign": SIGNS[state], "said": ", ".join(broken) or f"{holds} of {len(mine)} hold"}

    @property
    def judged(self) -> int:
        """Problems that were judged, clause by clause."""
        if self.column is None:
            return 0
        return sum(judged(counts) for cells in self.column.cells.values() for counts in cells.values())


def rows(campaign: Campaign, results: Sequence[Mapping[str, Any]], into: Path) -> list[Row]:
    """One for each variant of each implementation; one without verdicts where its run left none."""
    found = []
    for entry, result in zip(campaign.entries, results, strict=True):
        across = columns([run]) if (run := _verdicts(into, entry.name)) is not None else []
        found += [Row(entry, result, column) for column in across] or [Row(entry, _refused(result), None)]
    return found


def _refused(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the line in which a run says why it asked nothing."""
    said = [line for line in result.get("printed", ()) if line.strip()]
    return {**result, "refused": next((line for line in said if "ERROR" in line or "--impl" in line), said[-1] if said else "")}


def _verdicts(into: Path, name: str) -> Verdicts | None:
    path = into / f"{name}.jsonl"
    if not path.exists() or not path.stat().st_size:
        return None
    return read(path)


def write(campaign: Campaign, results: Sequence[Mapping[str, Any]], into: Path, page: Path) -> None:
    """Write the page, its Markdown beside it, and a page for each implementation in a folder of the page's name."""
    found = rows(campaign, results, into)
    chapters = list(dict.fromkeys(c.partition("-")[0] for row in found if row.column for c in row.column.run.clauses))
    pages = page.with_suffix("")
    pages.mkdir(exist_ok=True)
    for name, run in {row.entry.name: row.column.run for row in found if row.column}.items():
        write_page(run, pages / f"{name}.html")
    said = {"campaign": campaign, "rows": found, "chapters": chapters, "pages": pages.name}
    page.write_text(render("overview.html", **said), encoding="utf-8")
    page.with_suffix(".md").write_text(render("overview.md", **said), encoding="utf-8")
