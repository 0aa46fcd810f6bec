"""One run on several machines: each takes the tests of some clauses, and their verdict files are put together again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnspec.conformance.judge import JUDGED
from attnspec.spec import index

# What may differ between the headers of shards: where and when each ran, and what it was told to write.
OWN = ("shard", "command", "arguments", "started", "time", "host", "node", "xdist", "workers")


class MergeError(ValueError):
    """These verdict files are not the shards of one run."""


@dataclass(frozen=True)
class Shard:
    """The number-th of `of` parts. Clauses go round: the first to shard 1, the second to shard 2, …"""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read '1/4'. Raises ValueError."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ValueError(f"--shard {text}: write 1/4 for the first of four, up to 4/4")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def owns(self, clauses: Iterable[str], asked: Iterable[str] = ()) -> bool:
        """Whether a test that decides these clauses is this shard's: it goes where the first of them that is asked goes."""
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
    """Write the verdict file that one run would have written, from those of all its shards.

    Raises MergeError where a file is incomplete or none, a shard is missing or there twice, or the runs differ.
    """
    shards: dict[int, tuple[Path, list[dict[str, Any]]]] = {}
    common: dict[str, Any] = {}
    of, first = 0, Path()
    for path in map(Path, paths):
        lines = _lines(path)
        said = str(lines[0].get("shard") or "")
        if not said:
            raise MergeError(f"{path}: this is the verdict file of a whole run, not of a shard; run it with --shard=1/N")
        shard = Shard.parse(said)
        header = {name: value for name, value in lines[0].items() if name not in OWN}
        if not shards:
            common, of, first = header, shard.of, path
        different = sorted(name for name in {*header, *common} if header.get(name) != common.get(name))
        if shard.of != of:
            raise MergeError(f"{path}: it is shard {shard}, and {first} is one of {of}; these are shards of different runs")
        if different:
            raise MergeError(
                f"{path} and {first} are of different runs: {', '.join(different)} differ"
                + "".join(f"\n  {name}: {header.get(name)} and {common.get(name)}" for name in different)
            )
        if shard.number in shards:
            raise MergeError(f"{path}: shard {shard} is there already, in {shards[shard.number][0]}")
        shards[shard.number] = path, lines
    if not shards:
        raise MergeError("there is no verdict file to merge")
    missing = [f"{n}/{of}" for n in range(1, of + 1) if n not in shards]
    if missing:
        raise MergeError(f"shard {', '.join(missing)} is missing: what it asked was not asked")
    ordered = [shards[n][1] for n in sorted(shards)]
    body = [line for lines in ordered for line in lines[1:-1]]
    totals: Counter[str] = Counter()
    for line in body:
        if line["kind"] == "verdict":
            totals[line["verdict"]] += line["problems"]
    exits = [lines[-1]["exit"] for lines in ordered]
    # A shard whose clauses are all not offered judged nothing (5), which the others make good.
    nothing = not any(totals[verdict] for verdict in JUDGED)
    exit_ = max((x for x in exits if x not in (0, 5)), default=5 if nothing else 0)
    header = {"kind": "header", **{k: v for k, v in ordered[0][0].items() if k not in ("kind", "shard")}, "shards": of}
    footer = {
        "kind": "footer",
        "exit": exit_,
        "problems": dict(totals),
        "failures": sum(line["kind"] == "failure" for line in body),
    }
    with Path(out).open("w", encoding="utf-8") as file:
        for line in (header, *body, footer):
            file.write(json.dumps(line) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a complete verdict file. Raises MergeError."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise MergeError(f"{path}: this is no verdict file: {error}") from None
    if not lines or not isinstance(lines[0], dict) or lines[0].get("kind") != "header":
        raise MergeError(f"{path}: this is no verdict file: it does not begin with a header")
    if lines[-1].get("kind") != "footer":
        raise MergeError(f"{path}: it has no footer, so its run did not end; run that shard again")
    return lines
