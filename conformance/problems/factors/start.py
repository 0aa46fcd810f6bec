"""The factor of POSITION: where the first query stands on the key axis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from attnspec.conformance.problems.factors.factor import Changes, Factor, Failing, Offer

if TYPE_CHECKING:
    from attnspec.conformance.problems.case import Case

Start = int | tuple[int, ...]
# Levels that depend on the lengths; those with several have one for each batch item, in turn.
RELATIVE = {
    "end": ("end",),  # where bottom-right alignment has it
    "half": ("half",),
    "past": ("past",),  # behind the last key
    "each": ("half", "0", "past", "3"),
    "around": ("end", "-2", "half", "past"),
}


def meant(case: Case) -> Start | None:
    """The start that a level stands for: one number, "3"; one for each batch item, "3/-1/", in turn; or a word of RELATIVE."""
    if case.q_start == "none":
        return None
    places = {"end": case.keys - case.i, "half": case.keys // 2, "past": case.keys + 1}
    texts = RELATIVE.get(case.q_start) or tuple(text for text in case.q_start.split("/") if text)
    each = tuple(places[text] if text in places else int(text) for text in texts)
    alone = len(each) == 1 and "/" not in case.q_start
    return each[0] if alone else tuple(each[n % len(each)] for n in range(case.b))


def read_start(text: str) -> str:
    """Reads a start. Raises ValueError for what is none."""
    if not re.fullmatch(r"-?[0-9]{1,8}(/-?[0-9]{1,8})*/?", text):
        raise ValueError(
            f"q_start can't be {text[:40]!r}; it is a whole number, such as 3 or -2, or several for the batch items in turn, "
            f"such as 3/-2, or one of {', '.join(RELATIVE)}"
        )
    return text


def written(start: Start) -> str:
    """The level that stands for a start."""
    return str(start) if isinstance(start, int) else "".join(f"{x}/" for x in start)


def offered(case: Case, offer: Offer) -> str:
    """The start as far as it is offered: one for all batch items, not before the first key, or none."""
    start = meant(case)
    if start is None or "q_start" not in offer.features:
        return "none"
    fits = start[0] if isinstance(start, tuple) and "q_start_batch" not in offer.features else start
    if "q_start_negative" not in offer.features:
        fits = max(fits, 0) if isinstance(fits, int) else tuple(max(x, 0) for x in fits)
    return case.q_start if fits == start else written(fits)


def in_words(case: Case) -> str:
    """Where the queries start."""
    start = meant(case)
    if start is None:
        return ""
    return f"first query at {start}" if isinstance(start, int) else f"first queries at {', '.join(map(str, start))}"


def simpler(case: Case) -> Iterable[Changes]:
    """No start, then one for all batch items, then the number that a word stands for, then numbers nearer to zero."""
    start = meant(case)
    if start is None:
        return
    texts = ["none"]
    if isinstance(start, tuple):
        texts += [str(x) for x in dict.fromkeys(start)]
    texts.append(written(start))
    if isinstance(start, int):
        texts += [str(-start)] if start < 0 else []  # among the keys, where it may be
        sign = -1 if start < 0 else 1
        texts += [str(sign * x) for x in sorted({0, 1, 2, abs(start) // 2, abs(start) - 1}) if 0 <= x < abs(start)]
    yield from ({"q_start": text} for text in dict.fromkeys(texts) if text != case.q_start)


def start_clause(case: Case, failing: Failing) -> str:
    """Of a start, by what it moves and by where it lies."""
    start = meant(case)
    if start is None:
        return ""
    if not case.causal and case.window == "none":
        return "POSITION-5" if case.alibi_slopes == "none" else ""  # distances begin at the start
    if failing.gradient and failing.kind == "zero":
        return "POSITION-12"
    each = start if isinstance(start, tuple) else (start,)
    if len(set(each)) > 1 or (isinstance(start, tuple) and failing.kind == "raised"):
        return "POSITION-6"
    if not case.causal:
        return "POSITION-2"
    if min(each) < 0:
        return "POSITION-3"
    if max(each) >= case.keys:
        return "POSITION-4"
    return "POSITION-2" if case.window != "none" else "POSITION-1"


def other_start(case: Case) -> Mapping[str, Changes]:
    """With a start, without it, and with another."""
    if case.q_start == "none":
        return {"with a start": {"q_start": "half"}}
    return {"with another start": {"q_start": "0" if case.q_start != "0" else "half"}, "without its start": {"q_start": "none"}}


# Those of both alignments, two among the keys, one before them and one behind them, and different ones in one call.
START = Factor(
    "q_start",
    ("none", "end", "0", "half", "3", "-2", "past", "each", "around"),
    array="position",
    reads=read_start,
    given=meant,
    found=written,
    needs="q_start",
    rule=offered,
    examples={"q_start": "3", "q_start_batch": "each", "q_start_negative": "-2"},
    turn=45,
    simpler=simpler,
    says=in_words,
    traits={
        "q_start": lambda case: case.q_start != "none",
        "q_start each": lambda case: isinstance(meant(case), tuple),
    },
    flags={"started": lambda case: case.q_start != "none"},  # a start is given
    conditions=("started",),
    option=True,
    probed=True,
    another=("half", "0"),
    otherwise=other_start,
    blames={20: start_clause},
)
