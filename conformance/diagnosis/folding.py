"""One fault is one entry: failures that the same mistake explains, whatever their clause, dtype or variant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attnspec.conformance.diagnosis.names import names_to_print, sentence
from attnspec.conformance.mistakes.vocabulary import MISTAKES
from attnspec.conformance.verdicts.record import Failure
from attnspec.spec import index

if TYPE_CHECKING:
    from attnspec.conformance.diagnosis.explained import Explained


# Clauses whose failure is its own explanation.
BY_CLAUSE = {
    "PURITY-1": "inputs changed",
    "PURITY-2": "memory shared",
    "PURITY-3": "global state changed",
    "PURITY-4": "answer varies",
    "PURITY-5": "remembered an earlier call",
    "PURITY-6": "detected the test framework",
    "ERROR-2": "answered sizes that do not fit",
    "ERROR-4": "accepted a bad rate",
    "ERROR-5": "read foreign memory",
    "VARLEN-13": "remembered an earlier call",
    "CACHE-11": "remembered an earlier call",
    "PAGED-12": "remembered an earlier call",
}
PLAIN = {"output_nan", "output_zero"}  # mistakes that are no more than what was found


@dataclass
class Fault:
    """A fault: the failure of the most basic clause that it breaks, and the others."""

    name: str
    failure: Failure
    others: list[Failure] = field(default_factory=list)

    @property
    def also(self) -> str:
        """Where else it shows: "CAUSAL-4, GRAD-2 in float16", or "float64; float16, flash=True" where one place has a comma."""
        own = self.failure
        places: dict[str, None] = {}
        for other in self.others:
            what = [other.clause] if other.clause != own.clause else []
            what += [other.dtype] if other.dtype != own.dtype else []
            what += [other.variant] if other.variant != own.variant else []
            what += [other.device] if other.device != own.device else []
            named = other.clause != own.clause and len(what) > 1
            words = f"{what[0]} in {', '.join(what[1:])}" if named else ", ".join(what)
            places[words] = None
        between = "; " if any(", " in words for words in places) else ", "
        return between.join(words for words in places if words)


def names_of(explained: Explained) -> tuple[str, dict[str, float]]:
    """What is said of a failure, and the names that it can be folded under, with what each costs.

    Without a diagnosis that is how it fails: what it raised, or the clause.
    """
    finding, diagnosis = explained.finding, explained.diagnosis
    if finding.hint:
        return f"follows {finding.hint}", diagnosis.cost if diagnosis is not None else {f"choice {finding.hint}": 0.0}
    if diagnosis is not None and diagnosis.best:
        plain = PLAIN.issuperset(diagnosis.best) and "the whole output" in finding.message
        return "" if plain else sentence(diagnosis), diagnosis.cost  # the finding itself says so
    if explained.clause.startswith("ACCURACY") and finding.class_:
        return "", {"coarse arithmetic": 0.0}  # the finding itself says in which class it would be right
    if finding.kind == "timeout":  # whatever clause has asked it
        return "", {"no return": 0.0}
    if finding.kind == "crash":
        return "", {finding.message: 0.0}
    if explained.clause in BY_CLAUSE and finding.kind != "raised":
        return "", {BY_CLAUSE[explained.clause]: 0.0}
    if finding.kind == "raised":
        return "", {"raised " + re.sub(r"[\d.]+", "#", finding.message)[:80]: 0.0}
    if finding.kind in ("type", "shape", "dtype", "device", "missing", "changed"):
        return "", {f"{finding.kind} {re.sub(r'[^ a-z]+', '', finding.message)[:80]}": 0.0}
    return "", {explained.clause: 0.0}


def fold(failures: Sequence[Failure]) -> list[Fault]:
    """The faults, those of the most basic clauses first. Each failure gets the number of its fault.

    A name that is the likeliest of some failure is taken for all that it explains; first the one that explains most.
    """
    order = {id_: n for n, id_ in enumerate(index())}
    left, faults = list(failures), []
    while left:
        likely = {name for failure in left for name in told_of(failure.names)}
        # Of names that explain as many, the one that costs least.
        name = min(
            likely,
            key=lambda one: (-sum(one in f.names for f in left), sum(f.names.get(one, 0.0) for f in left), one),
        )
        mine = sorted((f for f in left if name in f.names), key=lambda f: (not index()[f.clause].binding, order[f.clause]))
        left = [failure for failure in left if all(failure is not one for one in mine)]
        faults.append(Fault(name, mine[0], mine[1:]))
    faults.sort(key=lambda fault: (not index()[fault.failure.clause].binding, order[fault.failure.clause]))
    for n, fault in enumerate(faults, start=1):
        for failure in (fault.failure, *fault.others):
            failure.fault = n
    return faults


def told_of(names: dict[str, float]) -> tuple[str, ...]:
    """The names under which a failure may be told."""
    if names.keys() <= MISTAKES.keys():
        return tuple(name for name in names_to_print(names) if name in names) or (next(iter(names)),)
    return tuple(names)
