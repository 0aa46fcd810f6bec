"""A case is the recipe of a problem: a level for each factor, and a seed. It is short, readable and shrinks.

Cases come from covering arrays (every pair or triple of levels) and from a search, for which Hypothesis draws and does nothing
else; :func:`attnspec.conformance.problems.tensors.build` makes the tensors.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib import resources
from math import isfinite
from typing import Any

from attnspec.adapters import Adapter
from attnspec.spec import Problem

# The levels of each factor, the simplest first. j = 0 is as many keys as queries, e = 0 values as wide as keys.
LEVELS: dict[str, tuple[Any, ...]] = {
    "dtype": ("float32", "float64", "bfloat16", "float16"),
    "heads": ("1/1", "2/2", "3/3", "4/1", "4/2", "6/2", "2/shared", "3/shared"),
    "b": (1, 2, 3),
    "i": (1, 2, 3, 8, 17, 33, 65),
    "j": (0, 1, 2, 7, 15, 16, 17, 129, 255),
    "d": (8, 1, 3, 4, 40, 64, 160),
    "e": (0, 9, 24),
    "mask": ("none", "padding", "bhij", "ij", "bj", "hij", "bij", "bhj", "bhi", "j", "rank3"),
    "holes": ("random", "prefix", "suffix", "band", "single", "first_block", "empty_row", "all"),
    "bias": ("none", "bhij", "ij", "hij", "bj", "hj", "bhi", "rank2", "rank3"),
    "biases": ("normal", "steep", "inf", "shift", "lowest"),
    "causal": (False, True),
    "scale": (None, 1.0, 0.3, -0.5, 0.0),
    "layout": ("contiguous", "bihd", "fused", "offset", "strided", "turned", "expanded"),
    "values": ("normal", "peaked", "needle", "integers", "one_hot", "ties", "large", "negative", "offset", "tiny"),
    "wrt": ("all", "q", "k", "v", "bias", "qv", "none"),
    "do": ("dense", "turned", "expanded", "one_row"),
}
# What a level stands for, where that is more than itself: rows of an array take these values in turn, so that each occurs in
# every array without a level of its own. Lengths are primes, block edges, and one less and one more; forms are all sixteen.
ALIKE: dict[str, dict[Any, tuple[Any, ...]]] = {
    "heads": {
        "2/2": ("2/2", "8/8", "16/16", "32/32"),
        "4/1": ("4/1", "8/1", "16/1"),
        "4/2": ("4/2", "8/2", "32/8", "64/8"),
        "2/shared": ("2/shared", "8/shared", "16/shared"),
    },
    "i": {
        3: (3, 5, 7, 11, 13),
        8: (8, 4, 16, 32),
        17: (17, 15),
        33: (33, 31),
        65: (65, 63, 64, 127, 128, 129, 255, 256, 257, 513, 1025, 4096),
    },
    "j": {
        7: (7, 3, 5, 11, 13),
        15: (15, 31, 63, 127),
        16: (16, 32, 64, 128),
        17: (17, 33, 65),
        129: (129, 257, 513, 1025, 2049),
        255: (255, 256, 512, 1024, 4096),
    },
    "d": {8: (8, 16), 1: (1, 2), 3: (3, 5, 7), 4: (4, 6), 40: (40, 59), 64: (64, 80, 96, 128), 160: (160, 192, 256, 512)},
    "e": {9: (9, 1, 5), 24: (24, 40, 72, 160)},
    "holes": {"first_block": ("first_block", "inner_blocks")},
    "mask": {"bhj": ("bhj", "hj"), "bhi": ("bhi", "hi", "bi", "i", "bh", "h", "b", "one")},
    "bias": {"hij": ("hij", "bij"), "bj": ("bj", "bhj"), "hj": ("hj", "j"), "bhi": ("bhi", "hi", "bi", "i", "bh", "h", "b", "one")},
}
NUMBERS = re.compile(r"((q|k|v|bias|do):(zeros|ones|rounded|hot|at\d+)(\+|$))+")
NOT_DENSE = ("strided", "turned")
OPEN_SIZES = ("b", "i", "j", "d", "e")
COST = 1 << 20  # elements of (b h i j max(d, e)) that one searched problem may have


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
                raise ValueError(f"no factor is called {name!r}; there are {', '.join(default)}")
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


def alike(factor: str, level: Any) -> tuple[Any, ...]:
    """The values that a level stands for, itself first."""
    return ALIKE.get(factor, {}).get(level, (level,))


@cache
def _level_of(factor: str) -> dict[Any, Any]:
    return {value: level for level in LEVELS[factor] for value in alike(factor, level)}


def level_of(factor: str, value: Any) -> Any:
    """The level that a value belongs to; a value that no level stands for is its own."""
    return _level_of(factor).get(value, value)


@cache
def _rows(name: str) -> tuple[Case, ...]:
    """The rows as they stand in the file, each with its number as the seed."""
    text = (resources.files("attnspec.conformance.problems") / "arrays" / f"{name}.csv").read_text(encoding="utf-8")
    table = csv.reader(line for line in text.splitlines() if not line.startswith("#"))
    header = next(table)
    if header != list(LEVELS):
        raise ValueError(
            f"arrays/{name}.csv has the factors {header}, case.py has {list(LEVELS)}; run conformance/problems/arrays/make.py"
        )
    known = {factor: {str(value): value for value in _level_of(factor)} for factor in LEVELS}
    try:
        return tuple(
            Case(**{factor: known[factor][text] for factor, text in zip(LEVELS, row, strict=True)}, seed=n)
            for n, row in enumerate(table)
        )
    except KeyError as unknown:
        raise ValueError(
            f"arrays/{name}.csv has {unknown}, which no level stands for; run conformance/problems/arrays/make.py"
        ) from None


def array(name: str, adapter: Adapter, dtypes: tuple[str, ...]) -> list[Case]:
    """The cases of a covering array ("pairs" or "triples"), fitted to what is offered.

    A level that is not offered becomes one that is, so every combination of offered levels that the array holds is still
    there. Each row has its own seed. Of a row of few queries and more keys that asks for gradients stands another one half
    way round the array that does not, which is how such shapes are asked in use, and another way through a kernel.
    """
    cases = []
    for n, row in enumerate(_rows(name)):
        dtype, d = dtypes[LEVELS["dtype"].index(row.dtype) % len(dtypes)], row.d
        if adapter.widths is not None and d not in adapter.widths:  # of the same level if there is one, else any, in turn
            widths = [x for x in alike("d", level_of("d", d)) if x in adapter.widths] or sorted(adapter.widths)
            d = widths[n % len(widths)]
        cases.append(fit(replace(row, dtype=dtype, d=d), adapter))
    there, half, asked = set(cases), len(cases) // 2, []
    for case, opposite in zip(cases, (*cases[half:], *cases[:half]), strict=True):
        asked.append(case)
        twin = fit(replace(opposite, wrt="none"), adapter)
        if decodes(opposite) and twin not in there:
            asked.append(twin)
    return asked


def decodes(case: Case) -> bool:
    """Few queries against more keys, as a cache of keys asks."""
    return case.i <= 8 and case.keys > case.i


def fit(case: Case, adapter: Adapter) -> Case:
    """The nearest case that uses nothing but what is offered, and nothing that a restriction leaves out."""
    offers = set(adapter.offers)
    if adapter.restrictions:
        case = _restricted(case, set(adapter.restrictions))
    if case.sharing not in offers:
        h = int(level_of("heads", case.heads).split("/")[0])  # as many as its level, so that no level is lost
        forms = {"mha": f"{h}/{h}", "shared_kv": f"{h}/shared", "mqa": f"{h}/1", "gqa": f"{2 * max(h, 2)}/{max(h, 2)}"}
        case = replace(case, heads=next((heads for form, heads in forms.items() if form in offers), f"{h}/{h}"))
    mask, bias = case.mask, case.bias
    if mask == "rank3" and "rank3" not in offers:
        mask = "hij"
    if mask not in ("none", "padding") and "mask" not in offers:
        mask = "padding"
    if mask == "padding" and "key_padding" not in offers:
        mask = "bj" if "mask" in offers else "none"
    if bias == "rank3" and "rank3" not in offers:
        bias = "hij"
    if "bias" not in offers:
        bias = "none"
    wrt = case.wrt
    if wrt == "bias" and (bias == "none" or "bias_grad" not in offers):
        wrt = "all"
    if "backward" not in offers:
        wrt = "none"
    layout = case.layout if case.layout not in NOT_DENSE or "strided" in offers else "bihd"
    d = case.d
    if adapter.widths is not None and d not in adapter.widths:
        d = min(adapter.widths, key=lambda width: (abs(width - d), width))
    fitted = {
        "mask": mask,
        "bias": bias,
        "wrt": wrt,
        "d": d,
        "layout": layout,
        "holes": case.holes if mask != "none" else "random",
        "biases": case.biases if bias != "none" else "normal",
        "e": case.e if "value_width" in offers and case.e != d else 0,
        "causal": case.causal and "causal" in offers,
        "scale": case.scale if "scale" in offers else None,
        "do": case.do if wrt != "none" else "dense",
    }
    changes: dict[str, Any] = {name: level for name, level in fitted.items() if getattr(case, name) != level}
    return replace(case, **changes) if changes else case


def _restricted(case: Case, restrictions: set[str]) -> Case:
    """The nearest case that the restrictions leave. Of two options that exclude each other the seed says which is dropped."""
    changes: dict[str, Any] = {}
    if "always_causal" in restrictions:
        changes["causal"] = True
    if restrictions & {"equal_lengths", "one_tensor"}:
        changes["j"] = 0
    if "one_tensor" in restrictions:  # large keys are made for small queries: among themselves they score beyond 10⁸
        changes |= {"heads": f"{case.h}/{case.h}", "e": 0, "values": "peaked" if case.values == "large" else case.values}
    if "padding_only" in restrictions and case.mask != "none":
        changes["mask"] = "padding"
    case = replace(case, **changes)
    plain = {"mask": "none", "bias": "none", "causal": False}
    for n, (a, b) in enumerate((("mask", "bias"), ("mask", "causal"), ("bias", "causal"))):
        if f"{a}_or_{b}" in restrictions and getattr(case, a) != plain[a] and getattr(case, b) != plain[b]:
            dropped = a if case.seed >> n & 1 or (b == "causal" and "always_causal" in restrictions) else b
            case = replace(case, **{dropped: plain[dropped]})  # type: ignore[arg-type]
    return case


# REDUCTION

SIMPLER_FIRST = (
    "bias",
    "biases",
    "mask",
    "holes",
    "causal",
    "scale",
    "layout",
    "do",
    "wrt",
    "values",
    "heads",
    "e",
    "b",
    "j",
    "i",
    "d",
    "seed",
)


def simpler(case: Case) -> Iterator[Case]:
    """Cases with one factor made simpler, the greatest simplification first."""
    for name in SIMPLER_FIRST:
        value = getattr(case, name)
        options: Iterable[Any]
        if name == "heads":
            options = _simpler_heads(case)
        elif name == "seed":
            options = range(min(value, 2))
        elif name == "e":
            options = [0] if value else []
        elif name in OPEN_SIZES:
            least = 0 if name == "j" else 1
            options = sorted({least, 1, 2, 3, 4, value // 2, value // 2 + 1, value - 1}) if value > 1 else [least]
            options = [x for x in options if least <= x < value]
        else:
            known = LEVELS[name]
            level = level_of(name, value)
            options = known[: known.index(level) + (level != value)] if level in known else known[:2]
        if name == "i" and not case.j and case.i > 1:  # as many keys as before, fewer queries
            yield replace(case, i=1, j=case.keys)
        for option in options:
            yield replace(case, **{name: option})  # type: ignore[arg-type]


def _simpler_heads(case: Case) -> list[str]:
    """Fewer query heads that share keys and values in the same way, or in a simpler one."""
    fewer = sorted({n for n in (1, 2, 3, 4, case.h // 2, case.h // 2 + 1, case.h - 1) if 0 < n < case.h})
    if case.sharing == "gqa":
        groups = [f"{n}/{n // size}" for n in (4, 8, 16, 32) if n < case.h for size in (2, 4, 8) if n // size > 1]
        return ["1/1", "2/2", "2/1", *(heads for heads in groups if heads != case.heads)]
    if case.g is None:
        return [f"{n}/shared" for n in fewer]
    if case.sharing == "mqa":
        return ["1/1", "2/2", *(f"{n}/1" for n in fewer if n > 1)]
    return [f"{n}/{n}" for n in fewer]


def describe(case: Case) -> str:
    """A case in words, for a reader."""

    def count(n: int, thing: str) -> str:
        return f"{n} {thing}" if n == 1 else f"{n} {'queries' if thing == 'query' else thing + 's'}"

    kv = {
        "mha": "",
        "mqa": ", 1 key/value head",
        "gqa": f", {case.g} key/value heads",
        "shared_kv": ", one shared 3-D key/value head",
    }[case.sharing]
    words = [
        f"{case.dtype}: {count(case.b, 'batch item')}, {count(case.h, 'head')}{kv}, {count(case.i, 'query')}, "
        f"{count(case.keys, 'key')}, width {case.d}" + (f", values {case.width} wide" if case.e else "")
    ]
    if case.causal:
        words.append("causal")
    if case.mask != "none":
        form = {"padding": "key padding (b j)", "rank3": "mask (h i j)"}.get(case.mask) or f"mask over {case.mask}"
        words.append(form + {"random": "", "all": ", all True"}.get(case.holes, f", {case.holes.replace('_', ' ')}"))
    if case.bias != "none":
        words.append(f"bias over {case.bias}" + ("" if case.biases == "normal" else f", {case.biases}"))
    if case.scale is not None:
        words.append(f"scale {case.scale}")
    for name in ("layout", "values"):
        if getattr(case, name) != LEVELS[name][0]:
            words.append(f"{name}: {getattr(case, name).replace('_', ' ')}")
    if case.wrt == "none":
        words.append("no input requires grad")
    elif case.wrt != "all":
        words.append(f"only {' and '.join(case.wrt) if case.wrt != 'bias' else 'bias'} require grad")
    if case.do != "dense":
        words.append(f"cotangent: {case.do.replace('_', ' ')}")
    if case.numbers:
        words.append("numbers: " + ", ".join(_in_words(*part.split(":")) for part in case.numbers.split("+")))
    return "; ".join(words)


def _in_words(name: str, what: str) -> str:
    return f"{name} one at {what[2:]}, else zero" if what.startswith("at") else f"{name} {what.replace('hot', 'one-hot')}"


def describe_problem(problem: Problem) -> str:
    """A problem in words, where a test made it without a case."""
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in problem.inputs().items())
    options = [f"scale {problem.scale}"] if problem.scale is not None else []
    options += [f"dropout {problem.dropout}"] if problem.dropout else []
    modes = [name for name in ("causal", "training") if getattr(problem, name)]
    return "; ".join([f"{str(problem.dtype)[6:]}: {shapes}", *modes, *options])


def summary(asked: Case) -> dict[str, Any]:
    """A case as plain data, for the verdict file."""
    return asdict(asked)
