"""An option of attention that is no part of the core: its factors, and the arrays that ask for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from attnspec.conformance.problems.factors import LEVELS, alibi, first_tokens, lse, ragged, sink, softcap, start, window


@dataclass(frozen=True)
class Extension:
    """What is asked of who offers the feature.

    levels: of each of its factors, the plain one (it is not there) first. pairs_with: factors of the core that its levels meet in
    pairs. needs: of factors of other extensions the levels beside which its own say something, where not all do.
    """

    name: str
    feature: str
    levels: dict[str, tuple[Any, ...]]
    pairs_with: tuple[str, ...]
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrays:
    """The arrays of one extension alone, or of several together: `arrays/NAME/`, pairs.csv and triples.csv.

    In a row of several, most stand beside each other, so that it holds combinations for each of them.
    about: the one of which alone combinations are wanted, with what the others have; all where it is None. It is in every row.
    """

    name: str
    extensions: tuple[Extension, ...]
    about: Extension | None = None

    @property
    def own(self) -> dict[str, tuple[Any, ...]]:
        """The levels of the extensions' factors: of one alone without the plain one, and of what an array is about."""
        alone = self.extensions[0] if len(self.extensions) == 1 else self.about
        first = next(iter(alone.levels), None) if alone is not None else None
        return {name: levels[name == first :] for one in self.extensions for name, levels in one.levels.items()}

    @property
    def levels(self) -> dict[str, tuple[Any, ...]]:
        """The levels of a row: those of the core, and of the extensions. A carrier leaves out what only dense calls have."""
        if self.about is None:
            return LEVELS | self.own
        left = {name: levels for name, levels in LEVELS.items() if name not in (*ragged.DENSE_ALONE, "holes", "biases")}
        left["heads"] = tuple(heads for heads in left["heads"] if not heads.endswith("shared"))
        left["wrt"] = tuple(wrt for wrt in left["wrt"] if wrt != "bias")
        own = dict(self.own)
        if self.name in ("cached", "paged"):  # which nobody asks for gradients
            left |= {"wrt": ("none",), "do": ("dense",)}
            own["lse"] = ("none", "returned")
        return left | own

    def meetings(self, strength: int) -> list[tuple[str, ...]]:
        """The sets of factors of which the array holds all combinations: one of an extension, and strength − 1 that it meets."""
        found: dict[frozenset[str], tuple[str, ...]] = {}
        for one in (self.about,) if self.about is not None else self.extensions:
            met = [*one.pairs_with, *(name for name in self.own if name not in one.levels)]
            for own in one.levels:
                inner = [name for name in one.levels if name != own] if one is self.about else []
                for some in combinations([*met, *inner], strength - 1):
                    found.setdefault(frozenset((own, *some)), (own, *some))
        return list(found.values())

    def there(self, levels: Mapping[str, Any]) -> list[Extension]:
        """The extensions of which these levels hold one that is not the plain one."""
        return [one for one in self.extensions if any(levels.get(name, some[0]) != some[0] for name, some in one.levels.items())]

    def goes(self, levels: Mapping[str, Any]) -> bool:
        """Whether each extension that is there has what it needs beside it."""
        needs = [item for one in self.there(levels) for item in one.needs.items()]
        return all(levels[name] in some for name, some in needs if name in levels)


SOFTCAP = Extension(
    "softcap",
    "softcap",
    {"softcap": softcap.SOFTCAP.levels},
    ("dtype", "heads", "i", "j", "mask", "bias", "biases", "causal", "scale", "values", "wrt"),
)
WINDOW = Extension(
    "window",
    "window",
    {"window": window.WINDOW.levels},
    ("dtype", "heads", "i", "j", "mask", "bias", "causal", "wrt"),
)
LSE = Extension(
    "lse",
    "lse",
    {"lse": lse.LSE.levels},
    ("dtype", "heads", "i", "j", "mask", "bias", "biases", "causal", "scale", "values", "wrt"),
)
FIRST_TOKENS = Extension(
    "first_tokens",
    "first_tokens",
    {"first_tokens": first_tokens.FIRST_TOKENS.levels},
    ("dtype", "i", "j", "mask", "causal", "wrt"),
    # Windows that begin soon before the query: beside others first tokens are seen anyway.
    needs={"window": ("3:", "1:0", "2:1", "0:0")},
)
SINKS = Extension(
    "sinks",
    "sinks",
    {"sinks": sink.SINKS.levels},
    ("dtype", "heads", "i", "j", "mask", "bias", "causal", "scale", "values", "wrt"),
)
POSITION = Extension(
    "position",
    "q_start",
    {"q_start": start.START.levels},
    ("dtype", "heads", "b", "i", "j", "mask", "bias", "causal", "wrt"),
)
ALIBI = Extension(
    "alibi",
    "alibi",
    {"alibi_slopes": alibi.ALIBI.levels},
    ("dtype", "heads", "b", "i", "j", "mask", "bias", "causal", "scale", "wrt"),
)


def _carried(form: str, lengths: tuple[str, ...] = ragged.LENGTHS.levels) -> Extension:
    """What is asked of who takes many sequences in one form."""
    carriers = tuple(level for level in ragged.CARRIER.levels if level.partition("+")[0] == form)
    levels = {"carrier": ("none", *carriers), "lengths": lengths, "poison": ragged.POISON.levels}
    return Extension(form, form, levels, ("dtype", "heads", "b", "i", "j", "d", "e", "causal", "scale", "values", "wrt"))


EXTENSIONS = (SOFTCAP, WINDOW, FIRST_TOKENS, LSE, SINKS, POSITION, ALIBI)
# Of who takes many sequences in one call: each form with its own arrays, in which the options that such calls have stand beside it.
CARRIED = {
    form: Arrays(form, (one := _carried(form), SOFTCAP, WINDOW, LSE, SINKS, ALIBI), one)
    for form in ("packed", "padded", "cached", "paged")
}
ALONE = {one.feature: Arrays(one.name, (one,)) for one in EXTENSIONS if not one.needs}
TOGETHER = Arrays("together", EXTENSIONS)


def asked_of(features: Collection[str]) -> Arrays | None:
    """The arrays of who offers these features: of the only extension among them, or of all together; None where there is none."""
    offered = [one.feature for one in EXTENSIONS if one.feature in features]
    return None if not offered else ALONE[offered[0]] if len(offered) == 1 and offered[0] in ALONE else TOGETHER
