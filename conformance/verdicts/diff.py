"""Two runs compared: what broke, what was mended, and what got worse without turning red.

A gate on failures alone can be passed by testing less, offering less, claiming less or hiding more. So five kinds beside new
failures fail it as well: clauses no longer tested, features no longer offered, an accuracy class lost, a grown error, and
grown known issues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attnspec.conformance.verdicts.lines import KEY, Key, VerdictError, Verdicts, counts_of, judged, standing, worst_of
from attnspec.spec.words import CLASSES

GROWTH = 1.5
"""By which factor the largest error of a tensor may grow; docs/verdicts.md has the measurements behind it."""
QUIET = 0.1
"""The share of its bound below which an error is not compared: ten times of it are still inside."""

KINDS = {
    "new failures": "A clause is broken that was not broken before, or it breaks in another way.",
    "no longer tested": "The old run judged it; the new run judged nothing of it.",
    "no longer offered": "A feature, dtype or width is no longer promised, so its clauses do not bind.",
    "accuracy class lost": "Answers leave a class that they held, or a milder class is claimed.",
    "error grown": "The largest error, as a share of its bound, grew.",
    "known issues grown": "Known issues excuse a larger share of the problems.",
}


@dataclass(frozen=True)
class Comparison:
    """What changed from one run to another. gated: by kind, what fails a gate. mended, said: what does not."""

    old: Verdicts
    new: Verdicts
    gated: dict[str, list[str]]
    mended: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def exit(self) -> int:
        """1 where anything fails a gate, else 0."""
        return int(any(self.gated.values()))

    def sections(self) -> list[tuple[str, str, list[str]]]:
        """Title, explanation and lines of everything that there is to say."""
        found = [(kind, KINDS[kind], lines) for kind, lines in self.gated.items()]
        found += [("mended", "It was broken and holds now.", self.mended)]
        found += [("tested differently", "The two runs did not test the same: read the rest with that in mind.", self.said)]
        return [section for section in found if section[2]]

    @property
    def headline(self) -> str:
        """Counts of all kinds, zeros too."""
        return ", ".join(f"{len(lines)} {kind}" for kind, lines in self.gated.items()) + f"; {len(self.mended)} mended"


def compare(old: Verdicts, new: Verdicts, growth: float = GROWTH) -> Comparison:
    """Compare two complete runs. Raises VerdictError where one is incomplete, for what was not asked can't be compared."""
    for verdicts in (old, new):
        if verdicts.incomplete:
            raise VerdictError(
                f"{verdicts.source} is incomplete: {'; '.join(verdicts.incomplete)}. Run it again to its end and compare then; "
                f"`attnspec report {verdicts.source} -o page.html` shows what there is"
            )
    said = asked_differently(old, new)
    gated = {
        "new failures": new_failures(old, new, alike=not said),
        "no longer tested": no_longer_tested(old, new),
        "no longer offered": no_longer_offered(old, new),
        "accuracy class lost": class_lost(old, new),
        "error grown": error_grown(old, new, growth),
        "known issues grown": known_issues_grown(old, new),
    }
    mended = [key for key, cell in old.cells.items() if _is(cell, "broken") and _is(new.cells.get(key), "holds")]
    return Comparison(old, new, gated, _listed(old, new, mended), said)


def asked_differently(old: Verdicts, new: Verdicts) -> list[str]:
    """What a reader must know before he believes a comparison."""
    found = []
    for name in ("suite", "spec", "tier", "seed", "budget", "only", "shard", "enforce_should", "oracle"):
        a, b = (x.drawn if name == "seed" and x.drawn is not None else x.header.get(name) for x in (old, new))
        if a != b:
            found.append(f"{name.replace('_', ' ')}: {_value(a)} → {_value(b)}")
    found += [
        f"{name}: {old.header['versions'].get(name, 'none')} → {new.header['versions'].get(name, 'none')}"
        for name in dict.fromkeys([*old.header["versions"], *new.header["versions"]])
        if old.header["versions"].get(name) != new.header["versions"].get(name)
    ]
    before = {(d["device"]): d for d in old.header["devices"]}
    for device in new.header["devices"]:
        was = before.get(device["device"], device)
        found += [
            f"{device['device']}, {name}: {was[name]} → {device[name]}" for name in ("model", "driver") if was[name] != device[name]
        ]
    for where, a, b in _subjects(old, new):
        for name, choice in b["dialect"].items():
            was = a["dialect"].get(name, {"value": "none"})["value"]
            if was != choice["value"]:
                found.append(f"{name}{where}: {was} → {choice['value']} ({choice['source']})")
    if old.name != new.name:
        found.append(f"implementation: {old.name} → {new.name}")
    if found and old.header["command"] != new.header["command"]:
        found.append(f"command: {old.header['command']} → {new.header['command']}")
    return found


def new_failures(old: Verdicts, new: Verdicts, alike: bool) -> list[str]:
    """Cells that are broken and were not. Where both runs asked the same (`alike`), also another fault in a broken cell.

    What a search with another seed stumbles on first is no news of a clause that was broken before.
    """
    broken = [key for key, cell in new.cells.items() if _is(cell, "broken") and new.decides(key[0])]
    fresh = [key for key in broken if not _is(old.cells.get(key), "broken")]
    found = _listed(old, new, fresh)
    ways = _ways(old)
    for key, how in _ways(new).items():
        if alike and key in broken and key not in fresh and ways.get(key) and not how <= ways[key]:
            found.append(f"{_name(key)}: {', '.join(sorted(how - ways[key]))} beside what was known")
    return found


def no_longer_tested(old: Verdicts, new: Verdicts) -> list[str]:
    """Cells of which something was judged, and now nothing is."""
    lost = [
        key
        for key, cell in old.cells.items()
        if judged(cell["problems"]) and not judged(new.cells.get(key, {"problems": {}})["problems"])
    ]
    why = {key: new.cells[key].get("reason", "") for key in lost if key in new.cells}
    return _listed(old, new, lost, lambda key: why.get(key) or "not tested")


def no_longer_offered(old: Verdicts, new: Verdicts) -> list[str]:
    """Features, dtypes and widths that were promised, and whole variants and devices."""
    found = []
    present = {(s["variant"], s["device"]) for s in new.header["subjects"]}
    for subject in old.header["subjects"]:
        if (subject["variant"], subject["device"]) not in present:
            found.append(f"{_place(subject['variant'], subject['device']).removeprefix(', ')}: gone")
    for where, a, b in _subjects(old, new):
        found += [f"{feature}{where}" for feature in a["offers"] if feature not in b["offers"]]
        found += [f"{dtype}{where}" for dtype in a["dtypes"] if dtype not in b["dtypes"]]
        if b["widths"] is not None and a["widths"] is None:
            found.append(f"all widths but {', '.join(map(str, b['widths']))}{where}")
        elif b["widths"] is not None:
            found += [f"width {width}{where}" for width in a["widths"] if width not in b["widths"]]
    return found


def class_lost(old: Verdicts, new: Verdicts) -> list[str]:
    """Dtypes that hold a milder class than they did, or are asked for a milder one."""
    found = []
    for strand, a in old.strands.items():
        b = new.strands.get(strand)
        if b is None:
            continue
        for name, says in (("held", "held"), ("required", "required")):
            if CLASSES.index(b[name]) > CLASSES.index(a[name]):
                found.append(f"{strand[0]}{_place(*strand[1:])}: {says} {a[name]}, now {b[name]}")
    return found


def error_grown(old: Verdicts, new: Verdicts, growth: float = GROWTH) -> list[str]:
    """Tensors whose largest error over all clauses grew by more than the factor, and is above QUIET."""
    found = []
    for strand in old.strands:
        a, b = (worst_of(c for key, c in v.cells.items() if key[1:] == strand and _is(c, "holds")) for v in (old, new))
        for output, share in b.items():
            if output not in a or a[output].class_ != share.class_:
                continue  # another bound; a class that was lost says so itself
            if share.of_bound > max(growth * a[output].of_bound, QUIET):
                found.append(
                    f"{output} in {strand[0]}{_place(*strand[1:])}: {a[output].of_bound:.3g} → {share.of_bound:.3g} "
                    f"of the bound of class {share.class_}"
                )
    return found


def known_issues_grown(old: Verdicts, new: Verdicts) -> list[str]:
    """Cells of which known issues excuse a larger part: problems that were none, or half as many again as a share."""
    found = []
    for key, cell in new.cells.items():
        before = old.cells.get(key, {"problems": {}})["problems"]
        a, b = before.get("KNOWN_ISSUE", 0), cell["problems"].get("KNOWN_ISSUE", 0)
        if b and b / judged(cell["problems"]) > GROWTH * a / max(judged(before), 1):
            found.append(f"{_name(key)}: {a} of {judged(before)} → {b} of {judged(cell['problems'])} problems")
    return found


# WORDS


def _is(cell: Mapping[str, Any] | None, state: str) -> bool:
    return cell is not None and standing(counts_of(cell)) == state


def _ways(verdicts: Verdicts) -> dict[Key, set[str]]:
    """In which ways each cell fails: what explains the answers, else what is wrong with them."""
    found: dict[Key, set[str]] = {}
    for failure in verdicts.failures:
        how = str(failure.get("diagnosis") or failure["hint"] or f"{failure['what']} ({failure['output']})")
        found.setdefault(tuple(failure[name] for name in KEY), set()).add(how)
    return found


def _subjects(old: Verdicts, new: Verdicts) -> Iterable[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Variants on devices that both runs have, and how they are called."""
    before = {(s["variant"], s["device"]): s for s in old.header["subjects"]}
    for subject in new.header["subjects"]:
        place = (subject["variant"], subject["device"])
        if place in before:
            yield _place(*place), before[place], subject


def _place(variant: str, device: str) -> str:
    return f"{'' if variant == 'only' else f', {variant}'}, {device}"


def _name(key: Key) -> str:
    return f"{key[0]} in {key[1]}{_place(*key[2:])}"


def _listed(old: Verdicts, new: Verdicts, keys: list[Key], why: Callable[[Key], str] = lambda key: "") -> list[str]:
    """Cells in words, those of one clause together, those with one reason in one line."""
    titles = {**old.clauses, **new.clauses}
    together: dict[tuple[str, str, str], list[str]] = {}
    for key in keys:
        together.setdefault((_place(*key[2:]), why(key), key[0]), []).append(key[1])
    lines: dict[tuple[str, str, str], list[str]] = {}
    for (place, reason, clause), in_dtypes in together.items():
        lines.setdefault((place, reason, ", ".join(in_dtypes)), []).append(clause)
    found = []
    for (place, reason, dtypes), clauses in lines.items():
        because = f": {reason}" if reason else ""
        if len(clauses) > 3:
            found.append(f"{len(clauses)} clauses in {dtypes}{place}{because}: {', '.join(clauses)}")
        else:
            found += [f"{c} · {titles.get(c, {}).get('title', '?')} · in {dtypes}{place}{because}" for c in clauses]
    return found


def _value(x: Any) -> str:
    return ", ".join(map(str, x)) or "everything" if isinstance(x, list) else "none" if x is None else str(x)
