"""How a run with an injected fault ends, how it should end, and the grade that follows from the two."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnspec.conformance.verdicts.lines import VerdictError, Verdicts, read

KERNEL = """\
import atexit, ctypes, gc, os, random, signal, sys, threading, time, warnings
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

{top}

def attend(q, k, v):
    {each}
    o = sdpa(q, k, v)
    if q.shape[-2] == 17:
        {at17}
    return o
"""
OURS = (r"attnspec itself failed", r"Traceback \(most recent call last\)", r"INTERNALERROR")  # the suite is never to blame


@dataclass(frozen=True)
class Ending:
    """What a run is to leave. A field that is None decides nothing.

    file: "complete", "prefix" (its lines can be read, and it has no end), "refused", "empty", "none", or several with "|". page:
    "conforms", "does not conform", "INCOMPLETE", "open", "none", or several. has: of each entry one of the verdicts that it names
    with "|" is counted. never: verdicts that are not. says and silent: patterns of what the screen has, and has not.
    """

    rc: tuple[int, ...] = (1,)
    file: str | None = "complete"
    page: str | None = "does not conform"
    has: tuple[str, ...] = ()
    never: tuple[str, ...] = ("HARNESS_ERROR",)
    says: tuple[str, ...] = ()
    silent: tuple[str, ...] = OURS


@dataclass
class Seen:
    """What a run left. rc None: it did not end within its time."""

    folder: Path
    rc: int | None
    screen: str
    seconds: float
    verdicts: Verdicts | None = None
    file: str = "none"
    page: str = "none"
    notes: dict[str, Any] = field(default_factory=dict)  # what a fault measured beside

    @property
    def counts(self) -> dict[str, int]:
        """Problems by verdict, over all cells."""
        sums: dict[str, int] = {}
        for cell in self.verdicts.cells.values() if self.verdicts is not None else ():
            for verdict, n in cell["problems"].items():
                sums[verdict] = sums.get(verdict, 0) + n
        return sums

    def look(self) -> None:
        """Read the file of verdicts and the page."""
        path, page = self.folder / "v.jsonl", self.folder / "r.html"
        if path.is_file():
            try:
                self.verdicts = read(path)
                self.file = "prefix" if self.verdicts.incomplete or self.verdicts.footer is None else "complete"
            except VerdictError:
                self.file = "empty" if not path.stat().st_size else "refused"
        if page.is_file():
            text = page.read_text(encoding="utf-8", errors="replace")
            said = {"INCOMPLETE": "INCOMPLETE", 'class="banner bad"': "does not conform", 'class="banner good"': "conforms"}
            said |= {'class="banner open"': "open"}
            self.page = next((word for sign, word in said.items() if sign in _head(text)), "half a page")


def _head(page: str) -> str:
    """The title and the heading of a page."""
    return " ".join(re.findall(r"<title>.*?</title>|<h1.*?</h1>.{0,400}", page, re.S)[:2]) if page.rstrip() else ""


@dataclass(frozen=True)
class Fault:
    """One fault: what the kernel does, or what becomes of the run; and how it should end.

    at17: statements for calls with 17 queries; each: for all calls; top: at the import; source: the whole kernel instead.
    isolated: how it should end with a process of the kernel's own, where that differs. least: what is weak and not bad. before:
    its grade in the table that was made before any of this was mended. first, during, check: what is done before, meanwhile, and
    asked afterwards (complaints, in words). commands: what is run instead of pytest, each as `python …`. elsewhere: what shows
    it, where it is not run here.
    """

    family: str
    name: str
    before: str
    ending: Ending = field(default_factory=Ending)
    isolated: Ending | None = None
    least: Ending | None = None
    at17: str = "pass"
    each: str = "pass"
    top: str = ""
    source: str = ""
    impl: str = "kernel.py:attend"
    clauses: str = "SHAPE-1"
    options: tuple[str, ...] = ()
    env: Mapping[str, str | None] = field(default_factory=dict)
    wrap: str = ""
    first: Callable[[Path], None] | None = None
    during: Callable[[Any, Path, Seen], None] | None = None
    check: Callable[[Seen], list[str]] | None = None
    commands: tuple[tuple[str, ...], ...] = ()
    limit: float = 90
    needs: str = ""  # a module, without which it is not run
    elsewhere: str = ""

    @property
    def kernel(self) -> str:
        """The source of the kernel."""
        return self.source or KERNEL.format(at17=self.at17, each=self.each, top=self.top)

    def expected(self, isolated: bool) -> Ending:
        """How the run should end."""
        return self.isolated if isolated and self.isolated is not None else self.ending


def complaints(seen: Seen, ending: Ending) -> list[str]:
    """What of a run is not as it should be, in words."""
    if seen.rc is None:
        return ["it did not end"]
    found = [] if seen.rc in ending.rc else [f"exit code {seen.rc}, not {' or '.join(map(str, ending.rc))}"]
    if ending.file is not None and seen.file not in ending.file.split("|"):
        found.append(f"file {seen.file}, not {ending.file}")
    if ending.page is not None and seen.page not in ending.page.split("|"):
        found.append(f"page {seen.page}, not {ending.page}")
    counts = seen.counts
    found += [f"no {entry}" for entry in ending.has if not any(counts.get(name) for name in entry.split("|"))]
    found += [f"{counts[name]} {name}" for name in ending.never if counts.get(name)]
    found += [f"does not say {pattern!r}" for pattern in ending.says if not re.search(pattern, seen.screen)]
    return found + [f"says {pattern!r}" for pattern in ending.silent if re.search(pattern, seen.screen)]


def grade(fault: Fault, seen: Seen, isolated: bool) -> tuple[str, list[str]]:
    """OK where the run ended as it should; weak where it did what it must at least; else bad. With what is not as it should be."""
    ending = fault.expected(isolated)
    more = fault.check(seen) if fault.check is not None and seen.rc is not None else []
    wrong = complaints(seen, ending) + more
    if not wrong:
        return "OK", []
    if fault.least is not None and not complaints(seen, fault.least) and not more:
        return "weak", wrong
    decisive = [x for x in wrong if not x.startswith(("does not say", "page", "says 'Captured"))]
    return "bad" if decisive else "weak", wrong
