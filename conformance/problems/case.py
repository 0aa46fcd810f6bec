"""A case is the recipe of a problem: a level for each factor, and a seed. It is short, readable and shrinks.

Cases come from covering arrays (every pair or triple of levels) and from a search, for which Hypothesis draws and
shrinks; :func:`attnspec.conformance.problems.tensors.build` makes the tensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from attnspec.conformance.problems.factors import LEVELS, OPEN_SIZES, alike

NUMBERS = re.compile(r"((q|k|v|bias|do):(zeros|ones|rounded|hot|at\d+)(\+|$))+")


LARGEST_CASE = 1 << 34  # elements that one case may ask for; beyond that a machine is more likely to die than to answer


def _scale(text: str) -> float:
    """A given scale. Raises ValueError for what is no finite number."""
    try:
        scale = float(text)
    except ValueError:
        scale = float("nan")
    if not isfinite(scale):
        raise ValueError(f"scale can't be {text[:40]!r}; it is a finite number, such as 0.3 or -0.5, or None for the default")
    return scale


@dataclass(frozen=True)
class Case:
    """One value for each factor of LEVELS (sizes may be any), and the seed of the numbers. Defaults are the simplest."""

    dtype: str = "float32"
    heads: str = "1/1"
    b: int = 1
    i: int = 1
    j: int = 0
    d: int = 8
    e: int = 0
    mask: str = "none"
    holes: str = "random"
    bias: str = "none"
    biases: str = "normal"
    causal: bool = False
    scale: float | None = None
    layout: str = "contiguous"
    values: str = "normal"
    wrt: str = "all"
    do: str = "dense"
    seed: int = 0
    numbers: str = ""  # what was made of the numbers, tensor by tensor: "q:ones+v:at3"; see tensors.simple

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
        if self.g is None:
            return "shared_kv"
        return "mha" if self.g == self.h else "mqa" if self.g == 1 else "gqa"

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
            default = {f.name: f.default for f in fields(cls)}
            if name not in default:
                raise ValueError(f"unknown factor {name!r}; choose from {', '.join(default)}")
            if name in values:
                raise ValueError(f"{name} is given twice; give it once")
            if name in (*OPEN_SIZES, "seed") and not (text.isascii() and text.isdecimal() and len(text) <= 10):
                raise ValueError(f"{name} can't be {text[:40]!r}; it is a whole number below 10 000 000 000")
            if name in ("b", "i", "d") and int(text) == 0:
                raise ValueError(f"{name} can't be 0; it is at least 1")
            h, _, g = text.partition("/")
            if name == "heads" and not (h.isdecimal() and (g == "shared" or (g.isdecimal() and int(g) and not int(h) % int(g)))):
                raise ValueError(f"heads can't be {text!r}; it is query heads/key heads, or query heads/shared")
            if name == "numbers":
                if not NUMBERS.fullmatch(text):
                    raise ValueError(
                        f"numbers can't be {text!r}; it is like q:ones+k:rounded+v:at3, of zeros, ones, rounded, hot and at…"
                    )
                values[name] = text
            elif name in OPEN_SIZES or name == "seed":
                values[name] = int(text)
            elif name == "heads":
                values[name] = text
            else:
                known = {str(value): value for level in LEVELS[name] for value in alike(name, level)}
                if name == "scale" and text not in known:
                    known[text] = _scale(text)
                if text not in known:
                    raise ValueError(f"{name} can't be {text!r}; it can be {', '.join(known)}")
                values[name] = known[text]
        case = cls(**values)
        if case.elements > LARGEST_CASE:
            raise ValueError(
                f"a case of {case.elements:.3g} elements in q, k, v and the scores is too large; {LARGEST_CASE:.0e} is the most"
            )
        return case

    def traits(self) -> frozenset[str]:
        """What is special about a case, for saying that one failure explains another."""
        special = {
            f"{name}={getattr(self, name)}"
            for name in ("mask", "bias", "causal", "layout", "values", "wrt", "do")
            if getattr(self, name) != LEVELS[name][0]
        }
        if self.mask != "none" and self.holes != "random":
            special.add(f"holes={self.holes}")
        if self.bias != "none" and self.biases != "normal":
            special.add(f"biases={self.biases}")
        if self.sharing != "mha":
            special.add(self.sharing)
        special |= {
            trait
            for trait, holds in (
                ("scale", self.scale is not None),
                ("scale≤0", self.scale is not None and self.scale <= 0),
                ("e≠d", self.width != self.d),
                ("b>1", self.b > 1),
                ("h>1", self.h > 1),
                ("i<j", self.i < self.keys),
                ("i>j", self.i > self.keys),
            )
            if holds
        }
        return frozenset(special)


# COVERING ARRAYS


# REDUCTION
