"""The choices that the spec leaves open, because published implementations differ and users rely on each."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

CHOICES: dict[str, tuple[str, ...]] = {
    "causal_alignment": ("bottom_right", "top_left"),
    "empty_row": ("zero", "uniform", "nan"),
    "head_grouping": ("blocked", "strided"),
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
            value, allowed = getattr(self, choice.name), CHOICES[choice.name]
            if value not in allowed:
                raise ValueError(f"{choice.name} is {value!r}; it can be {' | '.join(allowed)}")

    def with_choice(self, key: str, value: str) -> Dialect:
        """The same dialect with one choice made otherwise. Raises ValueError for an unknown key or value."""
        if key not in CHOICES:
            raise ValueError(f"no choice is called {key!r}; there are {', '.join(CHOICES)}")
        return replace(self, **{key: value})


CANONICAL = Dialect()
