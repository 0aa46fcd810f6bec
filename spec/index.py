"""The index of clauses, parsed from their own Markdown.

A clause is a level-3 heading ``### ID-n · title``, a line of fields (level, kind, since, …), one paragraph (the normative
sentence), an optional fenced formula, and the quotes ``> Why:`` and ``> Stops:``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

SPEC_VERSIONS = ("0.1",)  # in their order; `since` of a clause or of a test is one of them
SPEC_VERSION = SPEC_VERSIONS[-1]
LEVELS = ("MUST", "SHOULD", "MAY")
KINDS = ("value", "relation", "conduct")
HEADING = re.compile(r"^### (?P<id>(?P<chapter>[A-Z]+)-\d+) · (?P<title>.+)$")

Function = TypeVar("Function", bound=Callable[..., Any])


class SpecError(Exception):
    """The text of the spec is not well formed, or code names a clause that it lacks."""


@dataclass(frozen=True)
class Clause:
    """One normative sentence with an id that is never reused.

    kind: value, what the numbers are; relation, between two calls; conduct, what a call may not do.
    """

    id: str
    chapter: str
    title: str
    level: str
    kind: str
    since: str
    sentence: str
    feature: str | None = None
    dialect: str | None = None
    formula: str = ""
    why: str = ""
    stops: tuple[str, ...] = ()
    source: str = field(default="", compare=False)

    @property
    def binding(self) -> bool:
        """True for a MUST: only these decide the exit code."""
        return self.level == "MUST"


@cache
def index() -> dict[str, Clause]:
    """All clauses by id, in the order of the chapters. Raises SpecError if the text is not well formed."""
    found: dict[str, Clause] = {}
    for path in sorted((Path(__file__).parent / "clauses").glob("*.md")):
        for clause in parse(path.read_text(encoding="utf-8"), path.name):
            if clause.id in found:
                raise SpecError(f"{path.name}: {clause.id} is already in {found[clause.id].source}; ids are unique")
            found[clause.id] = clause
    if not found:
        raise SpecError(f"no clause found in {Path(__file__).parent / 'clauses'}: the installation is incomplete")
    return found


def parse(text: str, source: str) -> list[Clause]:
    """The clauses of one chapter's Markdown, in order. Raises SpecError, with file, clause and what is missing."""
    clauses = []
    for block in re.split(r"^(?=### )", text, flags=re.MULTILINE)[1:]:
        heading, _, body = block.partition("\n")
        match = HEADING.match(heading)
        if match is None:
            raise SpecError(f"{source}: heading {heading!r} is not of the form '### CHAPTER-n · title'")
        clauses.append(_clause(match, body.split("\n## ")[0].strip(), source))
    return clauses


def _clause(match: re.Match[str], body: str, source: str) -> Clause:
    where = f"{source}, {match['id']}"
    fields, _, rest = body.partition("\n")
    level, kind, *pairs = [part.strip() for part in (fields if "·" in fields else f"{fields}·").split("·")]
    named = {name: value for name, _, value in (part.partition(" ") for part in pairs)}
    unknown = named.keys() - {"since", "feature", "dialect"}
    if level not in LEVELS or kind not in KINDS or "since" not in named or unknown:
        expected = f"{'|'.join(LEVELS)} · {'|'.join(KINDS)} · since x.y [· feature f]"
        raise SpecError(f"{where}: the line of fields is {fields!r}; expected {expected!r}")
    formula = "\n".join(re.findall(r"^```\n(.*?)^```", rest, flags=re.MULTILINE | re.DOTALL)).rstrip()
    prose = re.sub(r"^```\n.*?^```", "", rest, flags=re.MULTILINE | re.DOTALL)
    quotes = {
        name: " ".join(text.replace("\n> ", " ").split())
        for name, text in re.findall(r"^> (Why|Stops): ((?:.+\n?)(?:^> (?!Why:|Stops:).*\n?)*)", prose, flags=re.MULTILINE)
    }
    sentence = " ".join(prose.split("\n>")[0].split())
    if not sentence or "Why" not in quotes:
        raise SpecError(f"{where}: a clause needs a sentence and a '> Why:' line")
    stops = tuple(item.strip().rstrip(".") for item in quotes.get("Stops", "").split(",") if item.strip())
    return Clause(
        match["id"],
        match["chapter"],
        match["title"].strip(),
        level,
        kind,
        named["since"],
        sentence,
        named.get("feature"),
        named.get("dialect"),
        formula,
        quotes["Why"],
        stops,
        source,
    )


def newer(version: str, than: str | None) -> bool:
    """Whether a version of the spec came after another; None stands for the newest, which none came after."""
    return than is not None and SPEC_VERSIONS.index(version) > SPEC_VERSIONS.index(than)


_implementations: dict[str, list[str]] = {}


def implements(*ids: str) -> Callable[[Function], Function]:
    """Mark a reference function as the meaning of these clauses. Raises SpecError for an id that the text lacks."""

    def bind(function: Function) -> Function:
        for id_ in ids:
            if id_ not in index():
                raise SpecError(f"{function.__module__}.{function.__qualname__} implements {id_}, which is not in the spec")
            _implementations.setdefault(id_, []).append(f"{function.__module__}.{function.__qualname__}")
        return function

    return bind


def implementations() -> dict[str, list[str]]:
    """The names of the reference functions that implement each clause, of all modules that are imported by now."""
    return _implementations
