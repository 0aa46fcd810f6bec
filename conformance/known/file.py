"""The file of known issues: read, and refused with what to write in it."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

import torch

from attnspec.adapters import ResolveError
from attnspec.conformance.known.issues import TEXTS, Issue, KnownIssues
from attnspec.conformance.known.region import Region, RegionError
from attnspec.conformance.problems.case import Case
from attnspec.spec import index

KEYS = ("clause", "region", "found", "pinned", *TEXTS, "expiry", "device", "variant", "backend", "torch")


def read(path: Path, names: set[str]) -> KnownIssues:
    """The issues of a file for an implementation that has one of these names. Raises ResolveError, with what to write."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResolveError(f"--known-issues {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ResolveError(f"--known-issues {path}: not valid TOML: {error}") from None
    whose = data.pop("implementation", None)
    whose = [whose] if isinstance(whose, str) else whose
    entries = data.pop("issue", [])
    if not isinstance(whose, list) or not whose or not all(isinstance(x, str) for x in whose):
        raise ResolveError(f'--known-issues {path}: name the implementation in its first line, implementation = "{min(names)}"')
    if data or not isinstance(entries, list):
        raise ResolveError(f"--known-issues {path}: unknown key {', '.join(data) or 'issue'}; write implementation and [[issue]]")
    if not any(_same(x, name) for x in whose for name in names):
        raise OtherImplementation(f"--known-issues {path} is for {', '.join(whose)}, but this run tests {', '.join(sorted(names))}")
    issues = []
    for number, entry in enumerate(entries, 1):
        try:
            issues.append(_issue(number, entry))
        except (ValueError, TypeError) as error:
            title = f" ({entry['clause']})" if isinstance(entry, dict) and "clause" in entry else ""
            raise ResolveError(f"--known-issues {path}, entry {number}{title}: {error}") from None
    return KnownIssues(tuple(issues), str(path))


class OtherImplementation(ResolveError):
    """The file speaks of another implementation."""


def _same(one: str, other: str) -> bool:
    """Whether two names are one as far as the shorter goes: `attend` and `kernel.attend` are."""
    longer, shorter = sorted((one, other), key=len, reverse=True)
    return longer == shorter or (longer.endswith(shorter) and longer[-len(shorter) - 1] in "/.:")


def _issue(number: int, entry: Any) -> Issue:
    """One entry. Raises ValueError with what is missing or wrong."""
    if not isinstance(entry, dict):
        raise ValueError("write each issue as a table, [[issue]]")
    strange = [key for key in entry if key not in KEYS]
    if strange:
        raise ValueError(f"unknown key {', '.join(strange)}; choose from {', '.join(KEYS)}")
    pins = entry.get("pinned")
    pins = [pins] if isinstance(pins, str) else pins
    texts = {name: entry.get(name, "") for name in ("clause", *TEXTS, "found", "device", "variant", "backend")}
    wrong = [name for name, value in {**texts, "region": entry.get("region", "")}.items() if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: write text in quotes")
    if texts["clause"] not in index():
        raise ValueError(f"unknown clause {texts['clause']!r}")
    for name in TEXTS:
        if not texts[name].strip() or "TODO" in texts[name]:
            or_none = ' (or url = "none known")' if name == "url" else ""
            raise ValueError(f"{name} is missing; write it, because nobody else can{or_none}")
    expiry = entry.get("expiry")
    if not isinstance(expiry, datetime.date) or isinstance(expiry, datetime.datetime):
        raise ValueError("expiry is missing; write a date, expiry = 2027-06-30")
    if not isinstance(pins, list) or not pins or not all(isinstance(x, str) for x in pins):
        raise ValueError('pinned is missing; copy what a failure prints after --case, pinned = "i=2,j=5,causal=True"')
    pinned = tuple(Case.parse(token) for token in pins)
    if not entry.get("region") and not texts["found"]:
        raise ValueError('region is missing; write which problems it covers, region = "causal and i > j"')
    try:
        region = Region.parse(entry["region"]) if entry.get("region") else None
    except RegionError as error:
        raise ValueError(f"region: {error}") from None
    outside = [case.token() for case in pinned if region is not None and not region(case)]
    if outside:
        raise ValueError(f"its pinned problem {'; '.join(outside)} is not in its own region, {region.text if region else ''}")
    if texts["device"]:
        try:
            torch.device(texts["device"])
        except RuntimeError:
            raise ValueError(f"unknown device {texts['device']!r}: torch has no device of that name") from None
    versions = entry.get("torch", [])
    if not isinstance(versions, list) or not all(isinstance(x, str) for x in versions):
        raise ValueError('torch: write the versions in which it was seen, torch = ["2.13"]')
    return Issue(
        number=number,
        torch=tuple(versions),
        pinned=pinned,
        expiry=expiry,
        region=region,
        **{**texts, "found": " ".join(texts["found"].split())},
    )
