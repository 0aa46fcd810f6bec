"""Verdicts as a page: one file of HTML without scripts or links to load, and short Markdown for a pull request.

Names, messages and everything else that comes from an implementation, or out of a file, is text and never markup: HTML is
escaped by jinja2, and in Markdown foreign text stands in code, where nothing is interpreted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnspec.conformance.verdicts.lines import SIGNS, VerdictError, Verdicts, counts_of, judged, mark, standing, worst_of
from attnspec.conformance.verdicts.site import address, clause_link
from attnspec.conformance.verdicts.text import visible

TEMPLATES = Path(__file__).parent / "templates"
NEEDS = ("jinja2",)


def check_target(path: Path, needs: Sequence[str] = NEEDS) -> None:
    """Whether a page can be written there. Raises VerdictError, which says what is missing, before any work is done."""
    missing = [package for package in needs if find_spec(package) is None]
    if missing:
        raise VerdictError(f"a page needs {' and '.join(missing)}, not installed here: pip install attnspec[report]")
    if path.suffix != ".html":
        raise VerdictError(f"a page is written to a file that ends in .html, and its Markdown beside it in .md; found {path}")
    if not path.absolute().parent.is_dir():
        raise VerdictError(f"{path} can't be written: folder {path.parent} does not exist")


def write(verdicts: Verdicts, path: Path) -> tuple[Path, Path]:
    """Write the page and, beside it, the Markdown; return both paths."""
    beside = path.with_suffix(".md")
    path.write_text(html(verdicts), encoding="utf-8")
    beside.write_text(markdown(verdicts), encoding="utf-8")
    return path, beside


def announce(path: Path, command: str) -> None:
    """Put in the place of an earlier page one that says that nothing is known yet; it stays where a run is killed."""
    words = "INCOMPLETE: this run is going on, or it was killed before it wrote its page"
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><title>{words}</title><h1>{words}</h1><p><code>{escape(command)}</code></p>\n',
        encoding="utf-8",
    )
    path.with_suffix(".md").write_text(f"### {words}\n\n{code(command)}\n", encoding="utf-8")


def html(verdicts: Verdicts) -> str:
    """The page."""
    from attnspec.conformance.verdicts.plots import accuracy_plot

    plots = {group["key"]: accuracy_plot(verdicts, *group["key"]) for group in groups(verdicts)}
    return render("verdicts.html", v=verdicts, plots=plots)


def markdown(verdicts: Verdicts) -> str:
    """The short form: headline, failures, and the table folded."""
    return re.sub(r"\n{3,}", "\n\n", render("verdicts.md", v=verdicts))


def render(template: str, **data: Any) -> str:
    """A template with data; what it prints is escaped for the language it is in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    html = template.endswith(".html")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        finalize=_seen if html else lambda x: x if isinstance(x, Markdown) else plain(x),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": code, "fence": fence, "prose": prose, "clause": clause_link if html else _clause}
    environment.globals |= {name: globals()[name] for name in VIEWS}
    return environment.get_template(template).render(**data)


def _seen(x: Any) -> Any:
    """A text with nothing hidden in it; what is markup already is the page's own."""
    return visible(x, keep="\n") if isinstance(x, str) and not hasattr(x, "__html__") else x


def prose(text: str) -> str:
    """A clause's sentence for HTML: what the text of the spec puts in backticks is code, all else is escaped."""
    from markupsafe import Markup
    from markupsafe import escape as escaped

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escaped(text))))


# WHAT THE TEMPLATES SHOW

VIEWS = ("outcome", "decided", "entries", "groups", "rows", "counted", "silences", "further", "problem_and_found")


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


def counted(v: Verdicts) -> str:
    """All problems by verdict, with their sum."""
    sums: dict[str, int] = {}
    for cell in v.cells.values():
        for verdict, n in cell["problems"].items():
            sums[verdict] = sums.get(verdict, 0) + n
    names = {"PASS": "passed", "FAIL": "failed", "HARNESS_ERROR": "lost to a failure of attnspec itself"}
    parts = [f"{n} {names.get(verdict, verdict.lower().replace('_', ' '))}" for verdict, n in sums.items() if n]
    return f"{sum(sums.values())} verdicts over all clauses: {', '.join(parts)}" if parts else "no problem was counted"


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
        found.append({"clause": clause, **about, "cells": [_view(cell) for cell in cells]})
    return found


def _view(cell: Mapping[str, Any]) -> dict[str, str]:
    counts = counts_of(cell) if cell else {}
    worst = max(worst_of([cell]).items(), key=lambda item: item[1].of_bound, default=None)
    said = [f"{n} {verdict}" for verdict, n in cell.get("problems", {}).items()] + ([cell["reason"]] if cell.get("reason") else [])
    if worst is not None:
        output, largest = worst
        said.append(f"worst error {share(largest.of_bound)} of the bound of class {largest.class_}, in {output}")
    return {
        "state": standing(counts).replace(" ", "-") if counts else "silent",
        "mark": mark(counts) if judged(counts) else SIGNS[standing(counts)],
        "worst": share(worst[1].of_bound) if worst is not None else "",
        "said": "; ".join(said),
    }


def share(x: float) -> str:
    """A share of the bound in two digits."""
    return "∞" if x == float("inf") else f"{x:.2f}" if 0.01 <= x < 10 else f"{x:.2g}" if x else "0"


def silences(v: Verdicts) -> list[tuple[str, str, list[str]]]:
    """Why clauses were not judged: state, reason, and which, for cells in which nothing was."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for key, cell in v.cells.items():
        if not judged(cell["problems"]):
            found.setdefault((standing(counts_of(cell)), cell.get("reason", "no reason was given")), {})[key[0]] = None
    order = list(v.clauses)
    return [(state, reason, sorted(ids, key=order.index)) for (state, reason), ids in found.items()]


def entries(v: Verdicts) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Failures, those that decide first, each with the others that show the same fault."""
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


def further(failure: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a failure says beside its problem and what was found, name and text: diagnosis, hint, repro, command."""
    inherited = f"from {failure['inherited']}; --inherited=note accepts it" if failure.get("inherited") else ""
    said = [("diagnosis", _words(failure.get("diagnosis"))), ("inherited", inherited)]
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


# MARKDOWN


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def plain(text: object) -> Markdown:
    """Text in which no sign means anything to Markdown, and no name calls anybody."""
    said = visible(" ".join(str(text).split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markdown(re.sub(r"([\\`*_\[\]|~])", r"\\\1", said).replace("@", "@\u200b"))


def code(text: object) -> Markdown:
    """A span of code, whatever the text holds."""
    said = visible(" ".join(str(text).split())) or " "
    ticks = "`" * (1 + max(map(len, re.findall("`+", said)), default=0))
    pad = " " if said.startswith("`") or said.endswith("`") else ""
    return Markdown(f"{ticks}{pad}{said}{pad}{ticks}")


def fence(lines: Sequence[str]) -> Markdown:
    """A block of code, whatever the lines hold."""
    said = "\n".join(map(visible, lines))
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", said)), default=0))
    return Markdown(f"{ticks}text\n{said}\n{ticks}")


def _clause(id_: str) -> str:
    """The id of a clause, as a link to its text where the site has an address."""
    to = address(id_)
    return Markdown(f"[{plain(id_)}]({to})") if to else id_
