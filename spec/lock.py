"""The lock of the clauses: no sentence and no formula changes without its version, and no id is used twice.

    python -m attnspec.spec.lock        # after a clause got a new version (its field `since`), or is new

`clauses.lock` has a line for each clause that ever was: its id, the version since which it reads so, and a hash of its sentence and
its formula; `withdrawn` in the place of the hash where the text has it no more.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from attnspec.spec.index import Clause, index

LOCK = Path(__file__).parent / "clauses.lock"
WITHDRAWN = "withdrawn"

Locked = dict[str, tuple[str, str]]  # id → version, hash


def digest(clause: Clause) -> str:
    """What a clause demands, as a hash: its level, sentence and formula, however its lines are broken."""
    demanded = "\n".join((clause.level, clause.sentence, *(" ".join(line.split()) for line in clause.formula.splitlines())))
    return hashlib.sha256(demanded.encode()).hexdigest()[:16]


def read(text: str) -> Locked:
    """The lines of a lock."""
    lines = (line.split() for line in text.splitlines())
    return {id_: (version, hash_) for id_, version, hash_ in lines}


def changed(locked: Locked, clauses: Mapping[str, Clause]) -> list[str]:
    """What must not be, in sentences with what to do: changed without its version, used again, gone without a word."""
    problems = []
    for id_, (version, hash_) in locked.items():
        if id_ not in clauses:
            if hash_ != WITHDRAWN:
                problems.append(
                    f"{id_} is gone; an id is never used again: write {WITHDRAWN} in the place of its hash in {LOCK.name}"
                )
        elif hash_ == WITHDRAWN:
            problems.append(f"{id_} was withdrawn; an id is never used again: give the new clause another")
        elif digest(clauses[id_]) != hash_ and clauses[id_].since == version:
            problems.append(
                f"{id_} says something else than in version {version}; write the version since which it does in its text"
            )
    return problems


def behind(locked: Locked, clauses: Mapping[str, Clause]) -> list[str]:
    """The clauses that the lock lacks, or has in an older version."""
    return [id_ for id_, clause in clauses.items() if locked.get(id_) != (clause.since, digest(clause))]


def main() -> int:
    """Write the lock anew, unless something changed without its version."""
    locked, clauses = read(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}, index()
    problems = changed(locked, clauses)
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 1
    lines = {id_: f"{id_} {version} {hash_}" for id_, (version, hash_) in locked.items()}
    lines |= {id_: f"{id_} {clause.since} {digest(clause)}" for id_, clause in clauses.items()}
    LOCK.write_text("\n".join(lines.values()) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
