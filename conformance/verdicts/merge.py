"""One run on several machines: each takes the tests of some clauses, and `merge` puts their verdict files together again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnspec.conformance.verdicts.lines import Key, Lines, VerdictError, Verdicts, finite, read, worst_of
from attnspec.conformance.verdicts.verdict import JUDGED
from attnspec.spec import index
from attnspec.spec.words import CLASSES

# What may differ between the headers of shards: which it is, how it was called, and when.
OWN = {"shard", "command", "started"}


class MergeError(VerdictError):
    """The verdict files are not the shards of one run. The message names the file, and says why not."""


@dataclass(frozen=True)
class Shard:
    """The number-th of `of` parts. Clauses go round: the first to shard 1, the second to shard 2, …"""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read a text like '1/4'. Raises ValueError if it is not one."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ValueError(f"--shard {text}: write 1/4 for the first of four, up to 4/4")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def owns(self, clauses: Iterable[str], asked: Iterable[str] = ()) -> bool:
        """Whether this shard takes a test that decides these clauses: the first of them that is asked decides it."""
        wanted = set(asked)
        places = {
            id_: place
            for place, id_ in enumerate(
                id_ for id_, clause in index().items() if not wanted or id_ in wanted or clause.chapter in wanted
            )
        }
        mine = [places[id_] for id_ in clauses if id_ in places]
        return bool(mine) and min(mine) % self.of == self.number - 1


def merge(paths: Iterable[str | Path], out: str | Path) -> None:
    """Write to `out` the verdict file that one run would have written, from the files of all its shards, in any order.

    Raises MergeError if a file is not a verdict file or is incomplete, if a shard is missing or given twice, or if the files belong
    to different runs.
    """
    shards: dict[int, Verdicts] = {}
    for path in map(str, paths):
        run = _complete(path)
        said = str(run.header.get("shard") or "")
        if not said:
            raise MergeError(f"{path}: this is the verdict file of a whole run, not of a shard; run it with --shard=1/N")
        shard, other = Shard.parse(said), next(iter(shards.values()), run)
        of = Shard.parse(other.header["shard"]).of
        if shard.of != of:
            raise MergeError(f"{path}: it is shard {shard}, and {other.source} is one of {of}; these are shards of different runs")
        different = [name for name in sorted({*run.header, *other.header} - OWN) if run.header.get(name) != other.header.get(name)]
        if different:
            raise MergeError(
                f"{path} and {other.source} are of different runs: {', '.join(different)} differ"
                + "".join(f"\n  {name}: {run.header.get(name)} and {other.header.get(name)}" for name in different)
            )
        if shard.number in shards:
            raise MergeError(f"{path}: shard {shard} is there already, in {shards[shard.number].source}")
        shards[shard.number] = run
    if not shards:
        raise MergeError("there is no verdict file to merge")
    missing = [f"{n}/{of}" for n in range(1, of + 1) if n not in shards]
    if missing:
        raise MergeError(f"shard {', '.join(missing)} is missing: its tests are not in the other files")
    lines = Lines(Path(out))
    for line in together([shards[n] for n in sorted(shards)]):
        lines.add(line)
    lines.put_in_order()


def together(runs: list[Verdicts]) -> Iterable[dict[str, Any]]:
    """The lines of the one run that these are the parts of."""
    header = {name: value for name, value in runs[0].header.items() if name != "shard"}
    yield {**header, "started": min(run.header["started"] for run in runs), "shards": len(runs)}
    # What a test says of another clause than its own stands in the file of its shard: cells are added up.
    cells: dict[Key, list[dict[str, Any]]] = {}
    strands: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in runs:
        for key, cell in run.cells.items():
            cells.setdefault(key, []).append(cell)
        for strand, line in run.strands.items():
            strands.setdefault(strand, []).append(line)
    for held in strands.values():
        yield max(held, key=lambda line: CLASSES.index(line["held"]))
    totals: Counter[str] = Counter()
    for parts in cells.values():
        problems = sum((Counter(part["problems"]) for part in parts), Counter())
        totals.update(problems)
        cell = {**{name: value for part in parts for name, value in part.items()}, "problems": dict(problems)}
        if "fails_by" in cell:
            cell["fails_by"] = dict(sum((Counter(part.get("fails_by", {})) for part in parts), Counter()))
        cell |= {name: sum(part.get(name, 0) for part in parts) for name in ("unclear", "inherited") if name in cell}
        worst = worst_of(parts)
        yield cell | (
            {"worst": {output: {"share": finite(x.of_bound), "class": x.class_} for output, x in worst.items()}} if worst else {}
        )
    failures = [line for run in runs for line in run.failures]
    # Faults are numbered in each shard for itself.
    yield from ({name: value for name, value in line.items() if name != "fault"} for line in failures)
    yield from ({"kind": "note", "text": text} for text in dict.fromkeys(text for run in runs for text in run.notes))
    footers = [run.footer for run in runs if run.footer is not None]
    # A shard whose clauses are all not offered judged nothing (5), which the others make good.
    nothing = not any(totals[verdict] for verdict in JUDGED)
    exit_ = max((footer["exit"] for footer in footers if footer["exit"] not in (0, 5)), default=5 if nothing else 0)
    sums = {name: sum(footer.get(name, 0) for footer in footers) for name in ("answers", "elements", "exempt")}
    yield {"kind": "footer", "exit": exit_, "problems": dict(totals), "failures": len(failures), **sums}


def _complete(path: str) -> Verdicts:
    """The verdicts of a file. Raises MergeError where it is none, or was cut off."""
    try:
        run = read(path)
    except VerdictError as error:
        raise MergeError(f"{path}: not a verdict file: {error}") from None
    if run.footer is None:
        raise MergeError(f"{path}: it has no footer, so its run did not end; run that shard again")
    return run
