"""A first draft of a file of known issues, from what failed in a run; nobody but a person can finish it."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnspec.adapters import ResolveError
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.known.entry import TODO
from attnspec.conformance.known.region import NUMBERS, WORDS, Region
from attnspec.conformance.problems.case import IN_WORDS, OPTIONS, Case
from attnspec.conformance.problems.reduce import simpler
from attnspec.conformance.subject.subject import Subject
from attnspec.spec import index

VALID = datetime.timedelta(days=90)


@dataclass(frozen=True)
class Failed:
    """One failure as it was met: where, on which case, and the clause, reduced case and words that explain it."""

    relation: str  # the test that found two answers to contradict each other; '' where one was compared with the reference
    variant: str
    device: str
    seen_on: str
    clause: str
    smallest: str
    key: tuple[str, ...]
    found: str  # what a test says that makes its own problems; '' where the case is the problem


@dataclass
class Draft:
    """What a run saw, as far as a draft needs it. Without a path nothing is kept."""

    path: Path | None = None
    good: set[tuple[str, str, str, str]] = field(default_factory=set)  # relation or '', variant, device, case
    bad: list[Failed] = field(default_factory=list)

    def passed(self, relation: str, subject: Subject, case: Case) -> None:
        """Keep a problem on which a relation held, or ('') that was compared with the reference and is right throughout."""
        if self.path is not None and (relation or not subject.judgement(case).findings):
            self.good.add((relation, subject.label, subject.device, case.token()))

    def failed(self, test: str, subject: Subject, met: Case, explained: Explained) -> None:
        """Keep a failure that no known issue excuses."""
        if self.path is not None:
            found = "" if explained.by_case else " ".join(explained.finding.message.split())
            relation = "" if explained.by_case and explained.finding.kind != "relation" else test
            tokens = met.token(), explained.case.token()
            self.bad.append(
                Failed(relation, subject.label, subject.device, tokens[0], explained.clause, tokens[1], explained.key, found)
            )

    def take(self) -> dict[str, Any]:
        """What was seen since the last call, as plain data; it is forgotten here."""
        taken = {"good": [list(x) for x in self.good], "bad": [{**vars(x), "key": list(x.key)} for x in self.bad]}
        self.good.clear()
        self.bad.clear()
        return taken

    def absorb(self, taken: dict[str, Any]) -> None:
        """Add what :meth:`take` gave in another process."""
        self.good |= {tuple(x) for x in taken["good"]}
        self.bad += [Failed(**{**x, "key": tuple(x["key"])}) for x in taken["bad"]]

    def write(self, command: str, implementation: str, decides: Callable[[str], bool], several: bool) -> None:
        """Write the draft: an entry for each fault that decides the exit code. Reason, url and owner are left to be written.

        several: whether there is more than one variant or device, so that an entry must say which it speaks of.
        """
        if self.path is None:
            return
        faults: dict[tuple[Any, ...], list[Failed]] = defaultdict(list)
        for x in self.bad:
            if decides(x.clause):
                faults[x.clause, x.key, x.found, x.variant, x.device].append(x)
        text = [toml_comment(f"A draft, from {command}. attnspec refuses it until you replace each {TODO}."), ""]
        text += [f"implementation = {toml_string(implementation)}", ""]
        for (clause, _, found, variant, device), failures in faults.items():
            lines = ["[[issue]]", f'clause = "{clause}"  {toml_comment(index()[clause].title)}']
            if found:
                lines.append(f"found = {toml_string(found)}")
                cases = [Case.parse(x.seen_on) for x in failures]
            else:
                lines += self._region(failures)
                cases = [Case.parse(x.smallest) for x in failures]
            pins: dict[str, str] = {}
            for case in cases:
                pins.setdefault(case.dtype, toml_string(case.token() if case.token() != "simplest" else f"dtype={case.dtype}"))
            lines.append(f"pinned = [{', '.join(pins.values())}]")
            if several:
                lines += [f"variant = {toml_string(variant)}", f"device = {toml_string(device.split(':')[0])}"]
            expiry = datetime.date.today() + VALID
            text += [*lines, *(f'{key} = "{TODO}"' for key in ("reason", "url", "owner")), f"expiry = {expiry}", ""]
        if not faults:
            text.append("# No failure of this run decides the exit code.")
        self.path.write_text("\n".join(text), encoding="utf-8")

    def _region(self, failures: list[Failed]) -> list[str]:
        """The line of the region, with what it can't separate. What is one step simpler than a reduced case has passed, too."""
        where = {(x.relation, x.variant, x.device) for x in failures}
        bad = {token for x in failures for token in (x.seen_on, x.smallest)}
        good = {token for *place, token in self.good if tuple(place) in where} - {x.seen_on for x in self.bad}
        inside, outside = [Case.parse(token) for token in bad], [Case.parse(token) for token in good]
        tried = {case for x in failures for case in simpler(Case.parse(x.smallest))} - set(inside)
        region = guess(inside, [*outside, *tried])
        left = sum(region(case) for case in outside)
        lines = [f"region = {toml_string(region.text)}"]
        if left:
            lines.insert(0, f"# {left} problems in this region passed, {len(inside)} failed: no condition tells them apart")
        return lines


def guess(failing: list[Case], passing: list[Case]) -> Region:
    """The fewest conditions that hold for every failing case and leave out as many passing ones as conditions can.

    Greedy: the condition that leaves out most comes first, of equals the one that is listed first. What is not needed to
    leave out a passing case is not said, so the region is no narrower than what was seen allows.
    """
    conditions = [region for region in map(Region.parse, _conditions(failing)) if all(region(case) for case in failing)]
    chosen: list[Region] = []
    while passing:
        best = max(conditions, key=lambda region: sum(not region(case) for case in passing), default=None)
        if best is None or all(best(case) for case in passing):
            break
        chosen.append(best)
        passing = [case for case in passing if best(case)]
    return Region.parse(" and ".join(x.text for x in chosen) or "b >= 1")


def _conditions(failing: Iterable[Case]) -> list[str]:
    """Conditions that a fault may need, the most telling first; those with numbers of the cases themselves last."""
    cases = list(failing)
    plain = [condition for factor in IN_WORDS for condition in factor.conditions]
    plain += ["i < j", "i > j", "i != j", "i == j", "j > 1", "i > 1", "b > 1", "h > 1", "g < h", "e != d", "d > 1"]
    for name, levels in WORDS.items():
        met = {getattr(case, name) for case in cases}
        several = [level for level in levels if level in met]
        if len(several) == 1:
            plain.append(f'{name} == "{several[0]}"')
        elif len(several) <= len(levels) // 2:
            plain.append(f"{name} in ({', '.join(toml_string(level) for level in several)})")
    for name in ("j", "i", "d", "e", "h", "g", "b"):
        sizes = [NUMBERS[name](case) for case in cases]
        plain += [f"{name} == {sizes[0]}"] if len(set(sizes)) == 1 else [f"{name} >= {min(sizes)}", f"{name} <= {max(sizes)}"]
    for name in (name for name, factor in OPTIONS.items() if name in factor.numbers):
        given = {getattr(case, name) for case in cases}
        if len(given) == 1 and None not in given:
            plain.append(f"{name} == {given.pop()}")
    return plain


# tomli-w would be one more package for these lines: it writes no comments, and a draft speaks to its reader in comments; it
# escapes a region's own quotes; and half of a surrogate pair, which an exception's text may hold, ends it.


def toml_string(text: str) -> str:
    """A TOML string: literal where it can be, so that a region's own quotes need no backslash."""
    if "'" not in text and text.isprintable() and '"' in text:
        return f"'{text}'"
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(letter: str) -> str:
    """One character inside of a quoted TOML string; what is no character (half of a surrogate pair) as U+FFFD."""
    if letter in '\\"':
        return "\\" + letter
    if letter.isprintable():
        return letter
    number = ord(letter) if not 0xD800 <= ord(letter) <= 0xDFFF else 0xFFFD
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def toml_comment(text: str) -> str:
    """A comment, which ends at the end of its line and can hold no control characters."""
    return "# " + "".join(x if x.isprintable() else " " for x in text)


def new_file(name: str) -> Path:
    """A path that nothing stands at yet. Raises ResolveError."""
    path = Path(name).absolute()
    if path.exists():
        raise ResolveError(f"--write-known-issues {name}: the file exists, and may be somebody's work; name a new file")
    if not path.absolute().parent.is_dir():
        raise ResolveError(f"--write-known-issues {name}: folder {path.parent} does not exist")
    return path
