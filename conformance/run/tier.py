"""How much is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tier:
    """How much is asked: which covering array, and for each test in each dtype how much of it and of the search.

    searched: examples that Hypothesis draws. narrowed: rows that are bent to what a comparison wants to see. rows: rows on
    which a relation is asked. generic: problems of generic numbers from which a bias is seen. compiled: the backend for
    torch.compile, or none. slow: whether costs such as rows of a million keys and ball arithmetic for every answer in
    float64 are borne. in_turn: whether what an extension asks beside its arrays is asked in one dtype, each test in its own.
    """

    array: str
    searched: int
    narrowed: int
    rows: int
    generic: int = 0
    compiled: str = ""
    slow: bool = False
    in_turn: bool = False


TIERS = {
    "smoke": Tier("pairs", searched=0, narrowed=16, rows=3, in_turn=True),
    "standard": Tier("triples", searched=6, narrowed=50, rows=10, generic=200, compiled="eager"),
    "thorough": Tier("triples", searched=120, narrowed=500, rows=80, generic=1000, compiled="inductor", slow=True),
    "soak": Tier("triples", searched=1_000_000, narrowed=500, rows=200, generic=4000, compiled="inductor", slow=True),
}
