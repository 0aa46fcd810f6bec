"""The file of known issues: read, and refused with what to write in it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import torch

from attnspec.adapters import ResolveError
from attnspec.conformance.known.entry import checked
from attnspec.conformance.known.issues import Issue, KnownIssues
from attnspec.conformance.known.region import Region, RegionError
from attnspec.conformance.problems.case import Case
from attnspec.spec import index


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
    given = checked(entry)
    if given["clause"] not in index():
        raise ValueError(f"unknown clause {given['clause']!r}")
    pins = given["pinned"]
    pinned = tuple(Case.parse(token) for token in ([pins] if isinstance(pins, str) else pins))
    region, found = given.get("region"), " ".join(given.get("found", "").split())
    if not region and not found:
        raise ValueError('region is missing; write which problems it covers, region = "causal and i > j"')
    where = _region(region, pinned) if region else None
    if given.get("device"):
        try:
            torch.device(given["device"])
        except RuntimeError:
            raise ValueError(f"unknown device {given['device']!r}: torch has no device of that name") from None
    read = {"pinned": pinned, "region": where, "found": found, "torch": tuple(given.get("torch", ()))}
    return Issue(number=number, **{**given, **read})


def _region(text: str, pinned: tuple[Case, ...]) -> Region:
    """The region, in which the pinned problems must lie."""
    try:
        region = Region.parse(text)
    except RegionError as error:
        raise ValueError(f"region: {error}") from None
    outside = [case.token() for case in pinned if not region(case)]
    if outside:
        raise ValueError(f"its pinned problem {'; '.join(outside)} is not in its own region, {region.text}")
    return region
