"""The factors of the core that are sizes: heads, batch items, lengths and widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attnspec.conformance.problems.factors.factor import Changes, Factor, Failing, Offer, whole

if TYPE_CHECKING:
    from attnspec.conformance.problems.case import Case

SHARINGS = ("mha", "mqa", "gqa", "shared_kv")


def count(n: int, thing: str) -> str:
    """A number of things, in words."""
    return f"{n} {thing}" if n == 1 else f"{n} {'queries' if thing == 'query' else thing + 's'}"


def fewer(name: str, least: int) -> Callable[[Case], list[Changes]]:
    """Smaller sizes, down to this."""

    def simpler(case: Case) -> list[Changes]:
        value = getattr(case, name)
        options = sorted({least, 1, 2, 3, 4, value // 2, value // 2 + 1, value - 1}) if value > 1 else [least]
        return [{name: x} for x in options if least <= x < value]

    return simpler


def fewer_queries(case: Case) -> list[Changes]:
    """Fewer queries; first one with as many keys as before."""
    as_many_keys: list[Changes] = [{"i": 1, "j": case.keys}] if not case.j and case.i > 1 else []
    return as_many_keys + fewer("i", 1)(case)


def shares(form: str) -> Callable[[Case], bool]:
    """Holds of heads that share keys and values so."""
    return lambda case: case.sharing == form


def read_heads(text: str) -> str:
    """Query heads/key heads. Raises ValueError."""
    h, _, g = text.partition("/")
    if not (h.isdecimal() and (g == "shared" or (g.isdecimal() and int(g) and not int(h) % int(g)))):
        raise ValueError(f"heads can't be {text!r}; it is query heads/key heads, or query heads/shared")
    return text


def heads_of(case: Case, offer: Offer) -> str:
    """As many query heads as the level has, so that no level is lost, in the first form that is offered."""
    if case.sharing in offer.features:
        return case.heads
    h = int(HEADS.level_of(case.heads).split("/")[0])
    forms = {"mha": f"{h}/{h}", "shared_kv": f"{h}/shared", "mqa": f"{h}/1", "gqa": f"{2 * max(h, 2)}/{max(h, 2)}"}
    return next((heads for form, heads in forms.items() if form in offer.features), f"{h}/{h}")


def simpler_heads(case: Case) -> list[Changes]:
    """Fewer query heads that share keys and values in the same way, or in a simpler one."""
    fewer = sorted({n for n in (1, 2, 3, 4, case.h // 2, case.h // 2 + 1, case.h - 1) if 0 < n < case.h})
    if case.sharing == "gqa":
        groups = [f"{n}/{n // size}" for n in (4, 8, 16, 32) if n < case.h for size in (2, 4, 8) if n // size > 1]
        found = ["1/1", "2/2", "2/1", *(heads for heads in groups if heads != case.heads)]
    elif case.g is None:
        found = [f"{n}/shared" for n in fewer]
    elif case.sharing == "mqa":
        found = ["1/1", "2/2", *(f"{n}/1" for n in fewer if n > 1)]
    else:
        found = [f"{n}/{n}" for n in fewer]
    return [{"heads": heads} for heads in found]


def heads_in_words(case: Case) -> str:
    """'4 heads, 2 key/value heads'."""
    kv = {"mha": "", "mqa": ", 1 key/value head", "gqa": f", {case.g} key/value heads"}
    return count(case.h, "head") + kv.get(case.sharing, ", one shared 3-D key/value head")


def sharing_clause(case: Case, failing: Failing) -> str:
    """Of heads that share keys and values."""
    if case.sharing == "mha":
        return ""
    if failing.output in ("dk", "dv"):
        return "SHARED-4"
    return {"mqa": "SHARED-1", "gqa": "SHARED-2", "shared_kv": "SHARED-3"}[case.sharing]


def several_heads_clause(case: Case, failing: Failing) -> str:
    """Of several heads and nothing else: what depends on their number may be the scale."""
    if case.h == 1:
        return ""
    return "SCALE-1" if failing.output == "o" and case.d > 1 else "SHAPE-5"


def offered_width(case: Case, offer: Offer) -> int:
    """The nearest width that is offered."""
    if offer.widths is None or case.d in offer.widths:
        return case.d
    return min(offer.widths, key=lambda width: (abs(width - case.d), width))


HEADS = Factor(
    "heads",
    ("1/1", "2/2", "3/3", "4/1", "4/2", "6/2", "2/shared", "3/shared"),
    alike={
        "2/2": ("2/2", "8/8", "16/16", "32/32"),
        "4/1": ("4/1", "8/1", "16/1"),
        "4/2": ("4/2", "8/2", "32/8", "64/8"),
        "2/shared": ("2/shared", "8/shared", "16/shared"),
    },
    reads=read_heads,
    rule=heads_of,
    examples={"mha": "2/2", "mqa": "4/1", "gqa": "6/2", "shared_kv": "3/shared"},
    turn=110,
    simpler=simpler_heads,
    says=heads_in_words,
    shape=True,
    traits={
        **{form: shares(form) for form in SHARINGS[1:]},
        "h>1": lambda case: case.h > 1,
    },
    words={"sharing": SHARINGS},
    numbers={"h": lambda case: case.h, "g": lambda case: case.g or 1},  # a shared 3-D head is one head
    blames={110: sharing_clause, 180: several_heads_clause},
)
B = Factor(
    "b",
    (1, 2, 3),
    size=True,
    reads=whole("b", 1),
    turn=130,
    simpler=fewer("b", 1),
    says=lambda case: count(case.b, "batch item"),
    shape=True,
    foremost=True,
    traits={"b>1": lambda case: case.b > 1},
    numbers={"b": lambda case: case.b},
    blames={170: lambda case, failing: "SHAPE-5" if case.b > 1 else ""},
)
# Lengths are primes, block edges, and one less and one more.
I = Factor(
    "i",
    (1, 2, 3, 8, 17, 33, 65),
    alike={
        3: (3, 5, 7, 11, 13),
        8: (8, 4, 16, 32),
        17: (17, 15),
        33: (33, 31),
        65: (65, 63, 64, 127, 128, 129, 255, 256, 257, 513, 1025, 4096),
    },
    size=True,
    reads=whole("i", 1),
    turn=150,
    simpler=fewer_queries,
    says=lambda case: count(case.i, "query"),
    shape=True,
    numbers={"i": lambda case: case.i},
)
J = Factor(
    "j",
    (0, 1, 2, 7, 15, 16, 17, 129, 255),  # 0: as many keys as queries
    alike={
        7: (7, 3, 5, 11, 13),
        15: (15, 31, 63, 127),
        16: (16, 32, 64, 128),
        17: (17, 33, 65),
        129: (129, 257, 513, 1025, 2049),
        255: (255, 256, 512, 1024, 4096),
    },
    size=True,
    reads=whole("j", 0),
    turn=140,
    simpler=fewer("j", 0),
    says=lambda case: count(case.keys, "key"),
    shape=True,
    traits={"i<j": lambda case: case.i < case.keys, "i>j": lambda case: case.i > case.keys},
    numbers={"j": lambda case: case.keys},
)
D = Factor(
    "d",
    (8, 1, 3, 4, 40, 64, 160),
    alike={8: (8, 16), 1: (1, 2), 3: (3, 5, 7), 4: (4, 6), 40: (40, 59), 64: (64, 80, 96, 128), 160: (160, 192, 256, 512)},
    size=True,
    reads=whole("d", 1),
    rule=offered_width,
    turn=160,
    simpler=fewer("d", 1),
    says=lambda case: f"width {case.d}",
    shape=True,
    numbers={"d": lambda case: case.d},
)
E = Factor(
    "e",
    (0, 9, 24),  # 0: as wide as keys
    alike={9: (9, 1, 5), 24: (24, 40, 72, 160)},
    size=True,
    reads=whole("e", 0),
    rule=lambda case, offer: case.e if "value_width" in offer.features and case.e != case.d else 0,
    examples={"value_width": 5},
    turn=120,
    simpler=lambda case: [{"e": 0}] if case.e else [],
    says=lambda case: f"values {case.width} wide" if case.e else "",
    shape=True,
    traits={"e≠d": lambda case: case.width != case.d},
    numbers={"e": lambda case: case.width},
    blames={140: lambda case, failing: "SHAPE-3" if case.width != case.d else ""},
)
