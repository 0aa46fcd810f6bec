"""The choices that the spec leaves open, because published implementations differ and users rely on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Choice:
    """An open choice.

    stated: its values, the canonical one first, each with the clause that states it. consistent: the clause that demands one value
    for every call. needs: the feature without which no call shows it. mistake: the known mistake that gives another value, where
    one does; else there is one for each value, called after both.
    """

    name: str
    stated: Mapping[str, str]
    consistent: str
    needs: str
    mistake: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """Its values, the canonical one first."""
        return tuple(self.stated)

    def mistake_of(self, value: str) -> str:
        """The name of the known mistake that gives this value in the place of another."""
        return self.mistake or f"{self.name}_{value}"


CHOICES = {
    choice.name: choice
    for choice in (
        Choice(
            "causal_alignment",
            {"bottom_right": "CAUSAL-2", "top_left": "CAUSAL-3"},
            consistent="CAUSAL-4",
            needs="causal",
            mistake="causal_corner",
        ),
        Choice("empty_row", dict.fromkeys(("zero", "uniform", "nan"), "EMPTY-1"), consistent="EMPTY-2", needs="key_padding"),
        Choice(
            "head_grouping",
            dict.fromkeys(("blocked", "strided"), "SHARED-2"),
            consistent="SHARED-2",
            needs="gqa",
            mistake="head_map",
        ),
    )
}


@dataclass(frozen=True)
class Dialect:
    """One value for each open choice; the defaults are the canonical ones.

    causal_alignment: whether the last query sees the last key (CAUSAL-2) or the first query sees the first (CAUSAL-3).
    empty_row: what a query without any visible key gives (EMPTY-1).
    head_grouping: which key/value head serves query head h (SHARED-2): h // group, or h % g.
    """

    causal_alignment: str = "bottom_right"
    empty_row: str = "zero"
    head_grouping: str = "blocked"

    def __post_init__(self) -> None:
        for choice in fields(self):
            value, allowed = getattr(self, choice.name), CHOICES[choice.name].values
            if value not in allowed:
                raise ValueError(f"{choice.name} is {value!r}; it can be {' | '.join(allowed)}")

    def with_choice(self, key: str, value: str) -> Dialect:
        """The same dialect with one choice made otherwise. Raises ValueError for an unknown key or value."""
        if key not in CHOICES:
            raise ValueError(f"unknown choice {key!r}; choose from {', '.join(CHOICES)}")
        return replace(self, **{key: value})


CANONICAL = Dialect()
