"""An option of attention that is no part of the core: its factors, and the array of its own that asks for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from attnspec.conformance.problems.factors import LEVELS, alibi, first_tokens, lse, sink, softcap, start, window


@dataclass(frozen=True)
class Extension:
    """Its arrays lie in `arrays/NAME/`, pairs.csv and triples.csv, and are asked of who offers the feature.

    levels: of each of its factors, the plain one (it is not there) first. pairs_with: factors of the core that its levels meet in
    pairs. beside: the other extensions that it is combined with.
    """

    name: str
    feature: str
    levels: dict[str, tuple[Any, ...]]
    pairs_with: tuple[str, ...]
    beside: tuple[Extension, ...] = ()

    @property
    def all_levels(self) -> dict[str, tuple[Any, ...]]:
        """The levels of a row: those of the core, of what it is combined with, and its own without the plain one."""
        others = {name: levels for other in self.beside for name, levels in other.levels.items()}
        return LEVELS | others | {name: levels[1:] for name, levels in self.levels.items()}

    def meetings(self, strength: int) -> list[tuple[str, ...]]:
        """The sets of factors of which its array holds all combinations: one of its own, and strength − 1 that it meets."""
        met = [*self.pairs_with, *(name for other in self.beside for name in other.levels)]
        return [(own, *some) for own in self.levels for some in combinations(met, strength - 1)]


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
    beside=(SOFTCAP,),
)
LSE = Extension(
    "lse",
    "lse",
    {"lse": lse.LSE.levels},
    ("dtype", "heads", "i", "j", "mask", "bias", "biases", "causal", "scale", "values", "wrt"),
    beside=(SOFTCAP, WINDOW),
)
FIRST_TOKENS = Extension(
    "first_tokens",
    "first_tokens",
    {"first_tokens": first_tokens.FIRST_TOKENS.levels},
    ("dtype", "i", "j", "mask", "causal", "wrt"),
    # Windows that begin soon before the query: beside others first tokens are seen anyway.
    beside=(replace(WINDOW, levels={"window": ("3:", "1:0", "2:1", "0:0")}),),
)
SINKS = Extension(
    "sinks",
    "sinks",
    {"sinks": sink.SINKS.levels},
    ("dtype", "heads", "i", "j", "mask", "bias", "causal", "scale", "values", "wrt"),
    beside=(SOFTCAP, WINDOW, FIRST_TOKENS, LSE),
)
POSITION = Extension(
    "position",
    "q_start",
    {"q_start": start.START.levels},
    ("dtype", "heads", "b", "i", "j", "mask", "bias", "causal", "wrt"),
    beside=(SOFTCAP, WINDOW, FIRST_TOKENS, LSE, SINKS),
)
ALIBI = Extension(
    "alibi",
    "alibi",
    {"alibi_slopes": alibi.ALIBI.levels},
    ("dtype", "heads", "b", "i", "j", "mask", "bias", "causal", "scale", "wrt"),
    beside=(SOFTCAP, WINDOW, FIRST_TOKENS, LSE, SINKS, POSITION),
)
EXTENSIONS = (SOFTCAP, WINDOW, FIRST_TOKENS, LSE, SINKS, POSITION, ALIBI)
