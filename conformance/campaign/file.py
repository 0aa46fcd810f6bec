"""What a campaign asks, as its TOML file says it."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from attnspec.conformance.verdicts.lines import VerdictError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Entry:
    """One implementation.

    name: of its row and its files. impl: as --impl takes it; {packages} in it stands for the folder
    of the packages of its environment. of: the package that it comes from, for the table. requires: what is
    installed into its environment, as pip takes it. dependencies: whether what these need is installed, too; else they use what is
    there. options: of its run, behind those of the campaign. environment: variables of its run, set before Python starts. seconds:
    after which its run is interrupted. resources: what a worker must have, {"gpu": 1}. remark: a sentence for the table.
    about: a page on which its failures are explained, from where the table is.
    """

    name: str
    impl: str
    of: str = ""
    requires: tuple[str, ...] = ()
    dependencies: bool = False
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 3600.0
    resources: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""
    about: str = ""

    def task(self, options: tuple[str, ...], constraints: str) -> dict[str, Any]:
        """What a worker is told, as plain data: it may be on another machine."""
        return {**asdict(self), "options": [*options, *self.options], "constraints": constraints}

    def stamp(self, task: Mapping[str, Any], suite: str) -> str:
        """A digest of all that decides what its run gives; a result with another one is asked again."""
        decides = {name: x for name, x in task.items() if name not in ("resources", "remark", "about", "of", "seconds")}
        return hashlib.sha256(json.dumps([suite, decides], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Campaign:
    """A title, the options of every run, the limits of environments (a text as pip's --constraint has it), and who is asked."""

    title: str
    options: tuple[str, ...]
    constraints: str
    entries: tuple[Entry, ...]


def read(path: Path) -> Campaign:
    """A campaign's file. Raises VerdictError, which says what in it can't be read."""
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VerdictError(f"{path} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise VerdictError(f"{path} is no TOML: {error}") from None
    strange = said.keys() - {"title", "options", "constraints", "implementation"}
    if strange:
        raise VerdictError(
            f"{path} has {', '.join(sorted(strange))}, which means nothing; it has title, options, constraints, [[implementation]]"
        )
    entries = tuple(_entry(one, path) for one in said.get("implementation", ()))
    if not entries:
        raise VerdictError(f"{path} names no implementation; add [[implementation]] with a name and impl")
    twice = sorted({one.name for one in entries if sum(other.name == one.name for other in entries) > 1})
    if twice:
        raise VerdictError(f"{path} names {', '.join(twice)} twice; each needs a name of its own")
    beside = said.get("constraints")
    try:
        constraints = (path.parent / beside).read_text(encoding="utf-8") if beside else ""
    except OSError as error:
        raise VerdictError(f"{path}: its constraints {beside} can't be read: {error.strerror}") from None
    return Campaign(str(said.get("title", path.stem)), _texts(said.get("options", []), f"{path}: options"), constraints, entries)


def _entry(said: Mapping[str, Any], path: Path) -> Entry:
    name = str(said.get("name", ""))
    where = f"{path}: implementation {name or 'without a name'}"
    known = {x.name for x in fields(Entry)}
    if said.keys() - known:
        raise VerdictError(
            f"{where} has {', '.join(sorted(said.keys() - known))}, which means nothing; choose from {', '.join(sorted(known))}"
        )
    if not NAME.fullmatch(name) or not said.get("impl"):
        raise VerdictError(f"{where} needs a name of letters, digits, '.', '_' and '-', and impl")
    given = dict(said)
    for text in ("requires", "options"):
        given[text] = _texts(said.get(text, []), f"{where}: {text}")
    return Entry(**given)


def _texts(x: Any, where: str) -> tuple[str, ...]:
    if not isinstance(x, list) or not all(isinstance(one, str) for one in x):
        raise VerdictError(f"{where} must be a list of texts, not {x!r}")
    return tuple(x)
