"""The keys of an entry: one table, which the reader of the file and the table in docs/known-issues.md both follow."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TODO = "TODO"  # what a draft leaves to a person, and the reader refuses

NOBODY_ELSE = "write it, because nobody else can"


@dataclass(frozen=True)
class Form:
    """What a value is, in words; what the table of the docs calls it, and what a reader is told who wrote something else."""

    name: str
    fits: Callable[[Any], bool]
    write: str = ""


@dataclass(frozen=True)
class Key:
    """One key. missing: what to write where it is needed and missing; '' where it may be."""

    name: str
    form: Form
    meaning: str
    missing: str = ""


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


TEXT = Form("text", lambda value: isinstance(value, str), "write text in quotes")
PINNED = Form("text, or a list of texts", lambda value: (isinstance(value, str) or _texts(value)) and bool(value))
VERSIONS = Form("list of texts", _texts, 'write the versions in which it was seen, torch = ["2.13"]')
DATE = Form("date", lambda value: isinstance(value, datetime.date) and not isinstance(value, datetime.datetime))

# No package that checks a schema is required, and none would say what to write instead: so these lines, not a JSON Schema.
KEYS = {
    key.name: key
    for key in (
        Key("clause", TEXT, "the clause that the failures name", 'write it as a failure names it, clause = "CAUSAL-1"'),
        Key("region", TEXT, "which problems it covers ([below](#the-region)); needed unless there is `found`"),
        Key(
            "found",
            TEXT,
            "instead of a region, for tests that make their own problems (ERROR-5): what the failure says after `found`, "
            "word by word",
        ),
        Key(
            "pinned",
            PINNED,
            "problems that must fail, as a failure prints them after `--case`; one for each dtype is best",
            'copy what a failure prints after --case, pinned = "i=2,j=5,causal=True"',
        ),
        Key("reason", TEXT, "what is wrong in the implementation", NOBODY_ELSE),
        Key("url", TEXT, "where it is discussed, or `none known`", f'{NOBODY_ELSE} (or url = "none known")'),
        Key("owner", TEXT, "who will mend it", NOBODY_ELSE),
        Key("expiry", DATE, "its last day; an entry that has expired is an error", "write a date, expiry = 2027-06-30"),
        Key("device", TEXT, "it speaks of this device only, such as `cpu`"),
        Key("variant", TEXT, "it speaks of this variant only, as the header names it, such as `flash=True`"),
        Key("backend", TEXT, "in the file that attnspec ships: whose callers [inherit](#inherited-failures) it"),
        Key("torch", VERSIONS, "in the file that attnspec ships: the versions of torch in which it was seen"),
    )
}


def checked(entry: Any) -> dict[str, Any]:
    """The entry, each key there if it is needed and of the form that it must have. Raises ValueError with what to write."""
    if not isinstance(entry, dict):
        raise ValueError("write each issue as a table, [[issue]]")
    strange = [name for name in entry if name not in KEYS]
    if strange:
        raise ValueError(f"unknown key {', '.join(strange)}; choose from {', '.join(KEYS)}")
    for key in KEYS.values():
        value = entry.get(key.name)
        fits = key.name not in entry or key.form.fits(value)
        if not fits and key.form.write:
            raise ValueError(f"{key.name}: {key.form.write}")
        left = value is None or (isinstance(value, str) and (not value.strip() or TODO in value))
        if key.missing and (left or not fits):
            raise ValueError(f"{key.name} is missing; {key.missing}")
    return entry


def table() -> str:
    """The table of the docs."""
    rows = [f"| `{key.name}` | {key.form.name}{', needed' * bool(key.missing)} | {key.meaning} |" for key in KEYS.values()]
    return "\n".join(["| key | value | meaning |", "|---|---|---|", *rows])
