"""The verdict file: writes its JSON lines as they come, reads them back, and counts them.

The file has a header, then lines of kind cell, accuracy, failure and note, and at the end a footer. `verdicts.schema.json`, beside
this module, says what each line holds. A test that adds to a cell writes it again; the last line of a cell holds. At its end a run
puts the file in order, with one line for each cell. Any prefix of whole lines can be read. A file without a footer is incomplete,
and everything that reads a file says so.

Nothing here needs torch: you can read a file where no kernel runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from attnspec.conformance.verdicts.text import visible
from attnspec.conformance.verdicts.verdict import BROKEN, JUDGED, Verdict
from attnspec.spec.words import CLASSES

FORMAT = 1
SCHEMA = Path(__file__).parent / "verdicts.schema.json"
KEY = ("clause", "dtype", "variant", "device")

Key = tuple[str, str, str, str]
Counts = Mapping[Any, int]  # by verdict, or what stands beside it


class Why(StrEnum):
    """Why a clause that the implementation offers has no judged problem."""

    NO_CASE = "no case"  # no problem of this tier can show it
    SOAKED = "soaked"  # the time of soak is its normal end
    TIME = "time"
    INTERRUPTION = "interruption"
    ENDINGS = "endings"  # of the implementation's process

    @property
    def cut(self) -> bool:
        """Whether something else came first: there may be problems that were not reached."""
        return self in (Why.TIME, Why.INTERRUPTION, Why.ENDINGS)


class VerdictError(ValueError):
    """A file is not a verdict file, or can't be used for what was asked. The message names the file, and says what to do."""


def finite(x: float) -> float | str:
    """A number as JSON can hold it: one that is not finite becomes 'inf', '-inf' or 'nan'."""
    return x if math.isfinite(x) else repr(x)


class Share(NamedTuple):
    """An error as a share of its bound, and the accuracy class of that bound."""

    of_bound: float
    class_: str


def worse(a: Share | None, b: Share) -> Share:
    """The larger of two errors. Shares of different classes don't compare: the milder class counts, for it was needed."""
    return b if a is None else max(a, b, key=lambda share: (CLASSES.index(share.class_), share.of_bound))


# WRITING


@dataclass
class Lines:
    """Lines of a run, kept, and appended to a file where there is one; each is on disk before the next is made.

    trouble: why the file can't be written any more. Its last line is then cut off, and it has no footer.
    """

    path: Path | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""

    def __post_init__(self) -> None:
        if self.path is not None:
            self.path.write_text("", encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        """Keep a line and write it."""
        self.kept.append(line)
        if self.path is not None and not self.trouble:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_dump(line))
            except OSError as error:
                self.trouble = f"the verdicts can't be written to {self.path}: {error.strerror or error}; the file is incomplete"

    @property
    def final(self) -> bool:
        """Whether what was written can't be written once more: a pipe stays as it is."""
        return self.path is not None and not self.path.is_file()

    def drop(self, line: dict[str, Any]) -> None:
        """Take a line back, unless what was written is final."""
        if not self.final:
            self.kept.remove(line)

    def put_in_order(self) -> None:
        """Write the file once more, each cell once, in the order of the text; at no moment is there half a file."""
        if self.path is None or self.final:
            return
        beside = self.path.with_name(self.path.name + ".new")
        try:
            beside.write_text("".join(map(_dump, collect(self.kept).lines())), encoding="utf-8")
            os.replace(beside, self.path)
        except OSError:  # the file stays as it was written, line by line
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
        else:
            self.trouble = ""


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False, default=str) + "\n"


# READING


@dataclass
class Verdicts:
    """What a run found, from the lines of its verdict file (docs/verdicts.md).

    source: the file. header, footer: those lines; the footer is None if the run did not end. cells: by clause, dtype, variant and
    device, with their problems by verdict. strands: by dtype, variant and device, with the accuracy class that held. failures,
    notes: in the order of the file. interrupted: why the run was interrupted, or "".
    """

    source: str
    header: dict[str, Any]
    cells: dict[Key, dict[str, Any]] = field(default_factory=dict)
    strands: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    footer: dict[str, Any] | None = None
    interrupted: str = ""
    drawn: int | None = None  # the seed, where it was drawn: the end of the file has it

    @property
    def seed(self) -> int | str:
        """The seed of the search; "random" where it was drawn and the run did not come to tell it."""
        return self.header["seed"] if self.drawn is None else self.drawn

    @property
    def incomplete(self) -> list[str]:
        """Why the run did not ask all that it set out to ask; empty if it did."""
        reasons = [self.interrupted] if self.interrupted else []
        if self.footer is None and not reasons:
            reasons.append("there is no footer: the run was killed, or is still going on")
        errors = sum(cell["problems"].get("HARNESS_ERROR", 0) for cell in self.cells.values())
        if errors:
            reasons.append(f"attnspec itself failed in {errors} test{'s' if errors > 1 else ''}, which then stopped")
        return reasons

    @property
    def name(self) -> str:
        """The name of the implementation."""
        return str(self.header["subjects"][0]["name"]) if self.header["subjects"] else "nothing"

    @property
    def clauses(self) -> dict[str, dict[str, str]]:
        """The clauses of the run's spec by id, each with title and level."""
        return self.header["clauses"]

    def level(self, clause: str) -> str:
        """MUST, SHOULD or MAY; MUST for a clause that the header lacks."""
        return self.clauses.get(clause, {}).get("level", "MUST")

    def decides(self, clause: str) -> bool:
        """Whether a broken clause makes the run fail."""
        return self.level(clause) == "MUST" or bool(self.header.get("enforce_should"))

    @property
    def unreached(self) -> dict[Key, Why]:
        """The cells that the run was to judge and did not, each with the reason."""
        whys = {key: Why(cell["why"]) for key, cell in self.cells.items() if cell.get("why")}
        return unreached({key: cell["problems"] for key, cell in self.cells.items()}, whys, self.decides)

    @property
    def tally(self) -> Tally:
        """The MUST clauses by their result (held, broken, unsupported and so on), and the broken SHOULDs."""
        return tally({key: counts_of(cell) for key, cell in self.cells.items()}, {c: self.level(c) for c in self.clauses})

    def lines(self) -> list[dict[str, Any]]:
        """The lines again, each cell once, in the order of the text."""
        clauses = {clause: n for n, clause in enumerate(self.clauses)}
        subjects = self.header["subjects"]
        strands = {s: n for n, s in enumerate((d, x["variant"], x["device"]) for x in subjects for d in x["dtypes"])}

        def place(line: dict[str, Any]) -> tuple[int, int]:
            strand = strands.get((line["dtype"], line["variant"], line["device"]), len(strands))
            return clauses.get(line.get("clause", ""), len(clauses)), strand

        held, cells, failures = (sorted(x, key=place) for x in (self.strands.values(), self.cells.values(), self.failures))
        notes = [{"kind": "note", "text": text} for text in self.notes]
        return [self.header, *held, *cells, *failures, *notes, *([self.footer] if self.footer else [])]


def read(path: str | Path) -> Verdicts:
    """Read a file that --verdicts wrote. Raises VerdictError, with the line and what to do, if it is not one.

    It leaves out a last line that was cut off; such a file has no footer and is incomplete (`Verdicts.incomplete`).
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # with the mark that some editors and shells put first, or without
    except (OSError, UnicodeDecodeError) as error:
        raise VerdictError(f"{path} can't be read: {error}; expected a file that --verdicts wrote") from None
    lines = []
    for n, line in enumerate(re.findall(r"[^\n]*\n|[^\n]+\Z", text), start=1):
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            if not line.endswith("\n"):
                continue  # cut off
            raise VerdictError(f"{path}, line {n}: not valid JSON; expected a file that --verdicts wrote") from None
    return collect(lines, str(path))


def collect(lines: Iterable[Any], source: str = "this run") -> Verdicts:
    """The verdicts in some lines, the header first. Raises VerdictError if they are not verdicts, or have another format."""
    verdicts: Verdicts | None = None
    for n, line in enumerate(lines, start=1):
        kind = line.get("kind") if isinstance(line, dict) else None
        if verdicts is None:
            if kind != "header":
                raise VerdictError(f"{source} does not begin with a header; expected a file that --verdicts wrote")
            if line.get("format") != FORMAT:
                raise VerdictError(
                    f"{source} is of format {line.get('format', 0)!r}, and this attnspec reads format {FORMAT}; "
                    "write it again with the attnspec that is installed here"
                )
            verdicts = Verdicts(source, line)
        elif verdicts.footer is not None or verdicts.interrupted:
            raise VerdictError(f"{source}, line {n}: a line after the end; two runs wrote to one file. Run again, each to its own")
        elif kind == "cell":
            where = f"{source}, line {n}"
            verdicts.cells[_names(line, KEY, where)] = _counted(line, where)  # type: ignore[index]
        elif kind == "accuracy":
            verdicts.strands[_names(line, KEY[1:], f"{source}, line {n}")] = line  # type: ignore[index]
        elif kind == "failure":
            verdicts.failures.append(line)
        elif kind == "note":
            verdicts.notes.append(line["text"])
        elif kind == "footer":
            verdicts.footer, verdicts.drawn = line, line.get("seed")
        elif kind == "interrupted":
            verdicts.interrupted, verdicts.drawn = line["reason"], line.get("seed")
        else:
            raise VerdictError(
                f"{source}, line {n}: unknown kind {kind!r}; choose from header, cell, accuracy, failure, note, footer, interrupted"
            )
    if verdicts is not None and verdicts.footer is not None:
        _sums_agree(verdicts)
    if verdicts is None:
        raise VerdictError(f"{source} is empty: the run did not begin, or nothing of it was written. Run it again")
    return verdicts


def _names(line: dict[str, Any], names: Iterable[str], where: str) -> tuple[str, ...]:
    """What a line is about. Raises VerdictError where it does not say so."""
    lacking = [name for name in names if not isinstance(line.get(name), str)]
    if lacking:
        raise VerdictError(
            f"{where}: {', '.join(lacking)} of the {line['kind']} is not text; run again, or use the file as it was written"
        )
    return tuple(line[name] for name in names)


def _counted(cell: dict[str, Any], where: str) -> dict[str, Any]:
    """The cell. Raises VerdictError where it counts what is no verdict, or what is no number of problems."""
    for about in ("problems", "fails_by"):
        counts = cell.get(about, None if about == "problems" else {})
        if not isinstance(counts, dict):
            raise VerdictError(
                f"{where}: {about} is {str(counts)[:40]!r}; expected counts by {'verdict' if about == 'problems' else 'clause'}"
            )
        for name, n in [*counts.items(), ("unclear", cell.get("unclear", 0)), ("inherited", cell.get("inherited", 0))]:
            if type(n) is not int or n < 0:
                raise VerdictError(f"{where}: {name} is {str(n)[:40]!r}; expected a number of problems, 0 or more")
    strange = sorted(cell["problems"].keys() - set(Verdict))
    if strange:
        raise VerdictError(f"{where}: unknown verdict {visible(strange[0])!r}; choose from {', '.join(sorted(Verdict))}")
    worst = cell.get("worst", {})
    for share in worst.values() if isinstance(worst, dict) else (worst,):
        said = share.get("share") if isinstance(share, dict) else None
        if not (type(said) in (int, float) or said in ("inf", "-inf", "nan")) or share["class"] not in CLASSES:
            raise VerdictError(
                f"{where}: worst has {str(share)[:60]!r}; expected a share and one of the classes {', '.join(CLASSES)}"
            )
    return cell


def _sums_agree(verdicts: Verdicts) -> None:
    """Raise VerdictError where the footer says other totals than the lines before it."""
    sums: Counter[str] = Counter()
    for cell in verdicts.cells.values():
        sums.update(cell["problems"])
    assert verdicts.footer is not None
    said = {**verdicts.footer.get("problems", {}), "failures": verdicts.footer.get("failures", 0)}
    for name, n in {**dict.fromkeys(said, 0), **sums, "failures": len(verdicts.failures)}.items():
        if said.get(name, 0) != n:
            raise VerdictError(
                f"{verdicts.source}: its footer counts {said.get(name, 0)} {visible(name)}, and its lines {n}; lines are "
                "missing, or were changed. Run again, or use the file as it was written"
            )


# COUNTING

SIGNS = {"holds": "✓", "broken": "✗", "explained": "e", "known issue": "k", "inherited": "i", "unsupported": "–", "not run": "·"}


def weighed(problems: Counts, unclear: int = 0, by: Mapping[str, int] | None = None, inherited: int = 0) -> dict[str, int]:
    """Counts by verdict, with three more beside them: ELSEWHERE, the problems that fail by another clause, and UNCLEAR, of these
    the ones that may hide a failure of this clause, both among NOT_RUN; and INHERITED, among KNOWN_ISSUE.
    """
    beside = {"ELSEWHERE": sum((by or {}).values()), "UNCLEAR": unclear, "INHERITED": inherited}
    return {**{str(verdict): n for verdict, n in problems.items()}, **{name: n for name, n in beside.items() if n}}


def standing(counts: Counts) -> str:
    """What became of a clause or a cell: broken, known issue, inherited, explained, holds, unsupported or not run.

    inherited: it fails by issues of what the implementation calls, and by nothing else. explained: it fails, as far as that is
    known by another clause; nobody can say that it holds.
    """
    if any(counts.get(verdict) for verdict in BROKEN):
        return "broken"
    if counts.get("KNOWN_ISSUE"):
        return "known issue" if counts["KNOWN_ISSUE"] > counts.get("INHERITED", 0) else "inherited"
    if counts.get("UNCLEAR") or (counts.get("ELSEWHERE") and not counts.get("PASS")):
        return "explained"
    if counts.get("PASS"):
        return "holds"
    if counts.get("UNSUPPORTED") and not (counts.get("RESOURCE") or counts.get("HARNESS_ERROR")):
        return "unsupported"
    return "not run"


def counts_of(cell: Mapping[str, Any]) -> dict[str, int]:
    """What the standing of a cell of a file follows from."""
    return weighed(cell["problems"], cell.get("unclear", 0), cell.get("fails_by"), cell.get("inherited", 0))


def judged(counts: Counts) -> int:
    """Problems whose answer was judged."""
    return sum(counts.get(verdict, 0) for verdict in JUDGED)


def unreached(cells: Mapping[Key, Counts], whys: Mapping[Key, Why], decides: Callable[[str], bool]) -> dict[Key, Why]:
    """The cells of clauses that decide of which no problem was judged, since the time or an interruption came first."""
    return {key: why for key, why in whys.items() if why.cut and decides(key[0]) and not judged(cells.get(key, {}))}


def worst_of(cells: Iterable[Mapping[str, Any]]) -> dict[str, Share]:
    """For each tensor the largest error of some cells."""
    found: dict[str, Share] = {}
    for cell in cells:
        for output, worst in cell.get("worst", {}).items():
            found[output] = worse(found.get(output), Share(float(worst["share"]), worst["class"]))
    return found


@dataclass(frozen=True)
class Tally:
    """The MUST clauses by what became of them, each once, in the order of the text; and the SHOULDs that are broken."""

    must: int
    holds: tuple[str, ...]
    broken: tuple[str, ...]
    explained: tuple[str, ...]
    known: tuple[str, ...]
    inherited: tuple[str, ...]
    unsupported: tuple[str, ...]
    should_broken: tuple[str, ...]

    @property
    def not_run(self) -> int:
        """What is left."""
        return self.must - sum(map(len, (self.holds, self.broken, self.explained, self.known, self.inherited, self.unsupported)))

    @property
    def headline(self) -> str:
        """Counts with their denominator, never a lone percentage."""
        known = f"{len(self.explained)} explained by these, " if self.explained else ""
        known += f"{len(self.known)} with known issues, " if self.known else ""
        known += f"{len(self.inherited)} inherited, " if self.inherited else ""
        return (
            f"MUST clauses: {len(self.holds)} of {self.must} hold, {len(self.broken)} broken, {known}"
            f"{len(self.unsupported)} unsupported, {self.not_run} not run"
        )


def tally(cells: Mapping[Key, Counts], levels: Mapping[str, str]) -> Tally:
    """Count clauses, over all dtypes, variants and devices: one cell that is broken breaks the clause."""
    together: dict[str, dict[str, int]] = {}
    for (clause, *_), counts in cells.items():
        sums = together.setdefault(clause, {})
        for verdict, n in counts.items():
            sums[verdict] = sums.get(verdict, 0) + n
    found: dict[str, list[str]] = {}
    for clause, level in levels.items():
        if clause in together:
            found.setdefault(f"{'' if level == 'MUST' else 'should '}{standing(together[clause])}", []).append(clause)

    def of(kind: str) -> tuple[str, ...]:
        return tuple(found.get(kind, ()))

    must = sum(level == "MUST" for level in levels.values())
    states = ("holds", "broken", "explained", "known issue", "inherited", "unsupported", "should broken")
    return Tally(must, *map(of, states))


def mark(counts: Counts | None) -> str:
    """A cell in a few signs: problems passed of those judged, and how many could not be asked; or why there were none."""
    if not counts:
        return "·"
    n, state = judged(counts), standing(counts)
    if n:
        share = f", {counts['UNSUPPORTED']} {SIGNS['unsupported']}" if counts.get("UNSUPPORTED") else ""
        sign = f" {SIGNS[state]}" if state in ("broken", "explained", "known issue", "inherited") else ""
        return f"{counts.get('PASS', 0)}/{n}" + sign + share
    if state == "explained":
        return f"{counts['ELSEWHERE']} e"
    return "unsupported" if state == "unsupported" else "not run" if counts.get("NOT_RUN") else "·"
