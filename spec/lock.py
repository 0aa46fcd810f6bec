"""The lock of the clauses: no sentence and no formula changes without its version, and no id is used twice.

    python -m attnspec.spec.lock                        # after you add a clause, or give one a new version (`since`)
    python -m attnspec.spec.lock --reworded CAUSAL-5    # after you reword its sentence, so that it demands the same

`clauses.lock` has a line for each clause that ever was: its id, the version since which it demands what it does, and a hash of
its level, sentence and formula. After a rewording the hashes of its earlier wordings follow: all of them demand the same. Where
the text no longer has the clause, `withdrawn` takes the place of the hash.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from attnspec.spec.index import Clause, index

LOCK = Path(__file__).parent / "clauses.lock"
WITHDRAWN = "withdrawn"


class Entry(NamedTuple):
    """The line of one clause, without its id."""

    version: str
    hash: str
    earlier: tuple[str, ...] = ()  # hashes of other wordings, which demanded the same

    def same_demand(self, clause: Clause) -> Entry:
        """The line of this clause after a rewording."""
        return Entry(self.version, digest(clause), (self.hash, *self.earlier))


Locked = dict[str, Entry]


def digest(clause: Clause) -> str:
    """What a clause demands, as a hash: its level, sentence and formula, however its lines are broken."""
    demanded = "\n".join((clause.level, clause.sentence, *(" ".join(line.split()) for line in clause.formula.splitlines())))
    return hashlib.sha256(demanded.encode()).hexdigest()[:16]


def read(text: str) -> Locked:
    """The lines of a lock."""
    lines = (line.split() for line in text.splitlines())
    return {id_: Entry(version, hash_, tuple(earlier)) for id_, version, hash_, *earlier in lines}


def changed(locked: Locked, clauses: Mapping[str, Clause]) -> list[str]:
    """The errors, in sentences that say what to do: a clause changed without a new version, is used again, or is gone."""
    problems = []
    for id_, (version, hash_, _) in locked.items():
        if id_ not in clauses:
            if hash_ != WITHDRAWN:
                problems.append(
                    f"{id_} is gone; nobody may use its id again: write {WITHDRAWN} in place of its hash in {LOCK.name}"
                )
        elif hash_ == WITHDRAWN:
            problems.append(f"{id_} was withdrawn, and nobody may use its id again: give the new clause another id")
        elif digest(clauses[id_]) != hash_ and clauses[id_].since == version:
            problems.append(
                f"{id_} does not read as in version {version}: where it demands something else, give it a new version "
                f"(since); where it demands the same, run python -m attnspec.spec.lock --reworded {id_}"
            )
    return problems


def behind(locked: Locked, clauses: Mapping[str, Clause]) -> list[str]:
    """The clauses that the lock lacks, or has in an older version."""
    return [id_ for id_, clause in clauses.items() if locked.get(id_, ())[:2] != (clause.since, digest(clause))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the lock anew, unless a clause changed without a new version."""
    parser = argparse.ArgumentParser(prog="python -m attnspec.spec.lock", description="Write spec/clauses.lock anew.")
    parser.add_argument("--reworded", nargs="+", default=[], metavar="ID", help="sentences that demand the same in new words")
    reworded = parser.parse_args(arguments).reworded
    locked, clauses = read(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}, index()
    for id_ in reworded:
        if id_ not in clauses or id_ not in locked or locked[id_].hash in (digest(clauses[id_]), WITHDRAWN):
            parser.error(f"--reworded {id_}: the lock has no other wording of such a clause")
        if locked[id_].version != clauses[id_].since:
            parser.error(f"--reworded {id_}: it has a new version, so it demands something else; leave it out")
        locked[id_] = locked[id_].same_demand(clauses[id_])
    problems = changed(locked, clauses)
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 1
    for id_ in behind(locked, clauses):
        locked[id_] = Entry(clauses[id_].since, digest(clauses[id_]))
    lines = (" ".join((id_, entry.version, entry.hash, *entry.earlier)) for id_, entry in locked.items())
    LOCK.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
