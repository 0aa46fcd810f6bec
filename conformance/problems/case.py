"""A case is the recipe of a problem: a level for each factor, and a seed. It is short, readable and shrinks.

Cases come from covering arrays (every pair or triple of levels) and from a search, for which Hypothesis draws and
shrinks; :func:`attnspec.conformance.problems.tensors.build` makes the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from attnspec.conformance.problems.factors import (
    alibi,
    core,
    first_tokens,
    lse,
    options,
    ragged,
    sink,
    sizes,
    softcap,
    start,
    window,
)
from attnspec.conformance.problems.factors.factor import Factor, factor

LARGEST_CASE = 1 << 34  # elements that one case may ask for; beyond that a machine is more likely to die than to answer


@cache
def _sharing(heads: str) -> str:
    h, g = heads.split("/")
    if g == "shared":
        return "shared_kv"
    return "mha" if int(g) == int(h) else "mqa" if int(g) == 1 else "gqa"


@dataclass(frozen=True)
class Case:
    """One value for each factor: a level, or what a level stands for; sizes may be any. Defaults are the simplest."""

    dtype: str = factor(core.DTYPE)
    heads: str = factor(sizes.HEADS)
    b: int = factor(sizes.B)
    i: int = factor(sizes.I)
    j: int = factor(sizes.J)
    d: int = factor(sizes.D)
    e: int = factor(sizes.E)
    mask: str = factor(options.MASK)
    holes: str = factor(options.HOLES)
    bias: str = factor(options.BIAS)
    biases: str = factor(options.BIASES)
    causal: bool = factor(options.CAUSAL)
    scale: float | None = factor(options.SCALE)
    softcap: float | None = factor(softcap.SOFTCAP)
    window: str = factor(window.WINDOW)
    first_tokens: int = factor(first_tokens.FIRST_TOKENS)
    alibi_slopes: str = factor(alibi.ALIBI)
    sinks: str = factor(sink.SINKS)
    q_start: str = factor(start.START)
    carrier: str = factor(ragged.CARRIER)
    lengths: str = factor(ragged.LENGTHS)
    poison: str = factor(ragged.POISON)
    layout: str = factor(core.LAYOUT)
    values: str = factor(core.VALUES)
    wrt: str = factor(core.WRT)
    do: str = factor(core.DO)
    lse: str = factor(lse.LSE)
    seed: int = factor(core.SEED)
    numbers: str = factor(core.NUMBERS)  # what was made of the numbers, tensor by tensor: "q:ones+v:at3"; see tensors.simple

    @property
    def h(self) -> int:
        """Query heads."""
        return int(self.heads.split("/")[0])

    @property
    def g(self) -> int | None:
        """Key/value heads, or None for one shared 3-D head."""
        g = self.heads.split("/")[1]
        return None if g == "shared" else int(g)

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return self.j or self.i

    @property
    def width(self) -> int:
        """The width of values."""
        return self.e or self.d

    @property
    def sharing(self) -> str:
        """Which of the features mha, mqa, gqa and shared_kv the heads need."""
        return _sharing(self.heads)

    @property
    def cost(self) -> int:
        """Elements of the largest intermediate of the bound."""
        return self.b * self.h * self.i * self.keys * max(self.d, self.width)

    @property
    def elements(self) -> int:
        """Elements of q, k, v and the scores."""
        queries, keys = self.b * self.h * self.i, self.b * max(self.h, self.g or 1) * self.keys
        return queries * (self.d + self.keys) + keys * (self.d + self.width)

    def token(self) -> str:
        """What differs from the simplest case, as text that :meth:`parse` reads: 'dtype=bfloat16,i=3,causal=True'."""
        return (
            ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default) or "simplest"
        )

    @classmethod
    def parse(cls, token: str) -> Case:
        """Read a token. Raises ValueError for a factor or a level that does not exist."""
        values: dict[str, Any] = {}
        for part in [] if token == "simplest" else token.split(","):
            name, _, text = part.partition("=")
            if name not in FACTORS:
                raise ValueError(f"unknown factor {name!r}; choose from {', '.join(FACTORS)}")
            if name in values:
                raise ValueError(f"{name} is given twice; give it once")
            values[name] = FACTORS[name].read(text)
        case = cls(**values)
        if case.elements > LARGEST_CASE:
            raise ValueError(
                f"a case of {case.elements:.3g} elements in q, k, v and the scores is too large; {LARGEST_CASE:.0e} is the most"
            )
        return case

    def traits(self) -> frozenset[str]:
        """What is special about a case, for saying that one failure explains another."""
        special = {
            f"{name}={level}"
            for name, plain, of, idle in NAMED
            if (level := getattr(self, name)) != plain and not (of and getattr(self, of) == idle)
        }
        special.update(trait for trait, holds in TRAITS if holds(self))
        return frozenset(special)


FACTORS: dict[str, Factor] = {f.name: f.metadata["factor"] for f in fields(Case)}
# Those that are options of the call, and all of them left out.
OPTIONS = {name: own for name, own in FACTORS.items() if own.option}
PLAIN: dict[str, Any] = {name: own.plain for name, own in OPTIONS.items()}
# In the order of words: what comes first in its part of a sentence, then as in the fields.
IN_WORDS = sorted(FACTORS.values(), key=lambda own: not own.foremost)
# Of traits that are called after a level: the factor, its simplest level, and what it speaks of, with the level of which it can't.
NAMED = [(name, x.plain, x.of.name if x.of else "", x.of.plain if x.of else None) for name, x in FACTORS.items() if x.named]
TRAITS = [trait for own in FACTORS.values() for trait in own.traits.items()]
