"""The choices that the spec leaves open, because published implementations differ, and users rely on each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Choice:
    """An open choice.

    stated: its values, the canonical one first, each with the clause that states it.
    consistent: the clause that demands the same value in every call.
    needs: the feature without which no call shows the value. of: the feature of an extension that the choice belongs to; who does
    not offer it makes no such choice.
    mistake: the known mistake that gives another value; "" if each value has one of its own, called NAME_VALUE.
    """

    name: str
    stated: Mapping[str, str]
    consistent: str
    needs: str
    mistake: str = ""
    of: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """Its values, the canonical one first."""
        return tuple(self.stated)

    def mistake_of(self, value: str) -> str:
        """The name of the known mistake that gives this value instead of another."""
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
        Choice(
            "softcap_order",
            {"before_bias": "SOFTCAP-3", "after_bias": "SOFTCAP-4"},
            consistent="SOFTCAP-5",
            needs="bias",
            mistake="softcap_order",
            of="softcap",
        ),
        Choice(
            "window_count",
            {"inclusive": "WINDOW-2", "total": "WINDOW-3", "exclusive": "WINDOW-4"},
            consistent="WINDOW-5",
            needs="window",
            of="window",
        ),
        Choice(
            "lse_dtype",
            dict.fromkeys(("wide", "operand"), "LSE-5"),
            consistent="LSE-6",
            needs="lse",
            mistake="lse_rounded",
            of="lse",
        ),
        Choice("lse_base", {"e": "LSE-2", "2": "LSE-3"}, consistent="LSE-6", needs="lse", mistake="lse_base", of="lse"),
        Choice(
            "lse_empty",
            dict.fromkeys(("minus_inf", "plus_inf", "sentinel"), "LSE-4"),
            consistent="LSE-6",
            needs="key_padding",
            of="lse",
        ),
        Choice(
            "lse_includes_sink",
            dict.fromkeys(("yes", "no"), "LSE-18"),
            consistent="LSE-6",
            needs="sinks",
            mistake="lse_sink",
            of="lse",
        ),
        Choice(
            "alibi_form",
            {"distance": "ALIBI-2", "signed": "ALIBI-3", "column": "ALIBI-4"},
            consistent="ALIBI-5",
            needs="alibi",
            of="alibi",
        ),
        Choice(
            "rotary_pairs",
            dict.fromkeys(("halves", "interleaved"), "ROTARY-3"),
            consistent="ROTARY-6",
            needs="rotary",
            of="rotary",
        ),
        Choice("rotary_query", {"each": "ROTARY-4", "first": "ROTARY-5"}, consistent="ROTARY-6", needs="rotary", of="rotary"),
    )
}


@dataclass(frozen=True)
class Dialect:
    """One value for each open choice; the defaults are the canonical ones.

    causal_alignment: "bottom_right", the last query sees the last key (CAUSAL-2); or "top_left", the first query sees the first
    key only (CAUSAL-3).
    empty_row: what a query without a visible key gives (EMPTY-1): "zero"; "uniform", the mean of all values; or "nan".
    head_grouping: which key/value head serves query head n (SHARED-2): "blocked", n // (h / g), or "strided", n % g.
    softcap_order: "before_bias", the cap limits the scaled product alone (SOFTCAP-3); or "after_bias", it limits the product with
    its bias (SOFTCAP-4).

    window_count: what the numbers of a window mean: "inclusive", how far it reaches (WINDOW-2); "total", how many keys a side holds
    with the query's own (WINDOW-3); or "exclusive", a left end that is open and a right one that is not (WINDOW-4).
    alibi_form: what slopes are multiplied with: "distance", −|p_i − j| (ALIBI-2); "signed", j − p_i (ALIBI-3); or "column", j alone
    (ALIBI-4).

    rotary_pairs: which channels turn together where a call does not name them (ROTARY-3): "halves", r and r + width/2; or
    "interleaved", 2r and 2r + 1.
    rotary_query: by which position a query is turned where neither causal nor a window is asked for: "each" by its own (ROTARY-4);
    or all by that of the "first" (ROTARY-5).

    lse_dtype: the dtype of the lse (LSE-5): "wide", float32 and float64 for float64; or "operand", that of q.
    lse_base: the base of the lse: "e" (LSE-2), or "2" (LSE-3).
    lse_empty: the lse of a row without a key (LSE-4): "minus_inf", "plus_inf", or "sentinel", a finite number below −10000.
    lse_includes_sink: whether the sum of a row beside a sink has its term (LSE-18): "yes", or "no".

    Raises ValueError for an unknown value.
    """

    causal_alignment: str = "bottom_right"
    empty_row: str = "zero"
    head_grouping: str = "blocked"
    softcap_order: str = "before_bias"
    window_count: str = "inclusive"
    lse_dtype: str = "wide"
    lse_base: str = "e"
    lse_empty: str = "minus_inf"
    lse_includes_sink: str = "yes"
    alibi_form: str = "distance"
    rotary_pairs: str = "halves"
    rotary_query: str = "each"

    def __post_init__(self) -> None:
        for choice in fields(self):
            value, allowed = getattr(self, choice.name), CHOICES[choice.name].values
            if value not in allowed:
                raise ValueError(f"{choice.name} is {value!r}; it can be {' | '.join(allowed)}")

    def with_choice(self, key: str, value: str) -> Dialect:
        """The same dialect with another value for one choice. Raises ValueError for an unknown key or value."""
        if key not in CHOICES:
            raise ValueError(f"unknown choice {key!r}; choose from {', '.join(CHOICES)}")
        return replace(self, **{key: value})


CANONICAL = Dialect()
