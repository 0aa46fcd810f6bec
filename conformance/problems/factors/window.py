"""The factor of WINDOW: how far before and behind itself a query sees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from attnspec.conformance.problems.factors.factor import Changes, Factor, Failing, Offer

if TYPE_CHECKING:
    from attnspec.conformance.problems.case import Case

Window = tuple[int | None, int | None]


def meant(text: str) -> Window | None:
    """The window that a level stands for: "2:1" is two before and one behind, "2:" has no limit behind, "none" is none."""
    if text == "none":
        return None
    left, right = (int(side) if side else None for side in text.split(":"))
    return left, right


def written(window: Window) -> str:
    """The level that stands for a window."""
    return ":".join("" if side is None else str(side) for side in window)


def read_window(text: str) -> str:
    """Reads a window. Raises ValueError for what is none."""
    if not re.fullmatch(r"[0-9]{0,9}:[0-9]{0,9}", text):
        raise ValueError(
            f"window can't be {text[:40]!r}; it is left:right, two whole numbers of which either may be left out, such as 2:1 or 2:"
        )
    return text


def offered(case: Case, offer: Offer) -> str:
    """The window as far as it is offered: without its right end, or none."""
    if case.window == "none" or "window" not in offer.features:
        return "none"
    left, _, right = case.window.partition(":")
    if not right or "window_right" in offer.features:
        return case.window
    return f"{left}:" if left else "none"


def in_words(case: Case) -> str:
    """What a window shows."""
    window = meant(case.window)
    if window is None:
        return ""
    left, right = ("all" if side is None else side for side in window)
    return f"window ({left} before, {right} behind)"


def simpler(case: Case) -> Iterable[Changes]:
    """No window, then one of one side, then smaller numbers."""
    window = meant(case.window)
    if window is None:
        return
    left, right = window
    texts = ["none", f"{case.window.split(':')[0]}:", f":{case.window.split(':')[1]}"]
    if left is not None:
        texts += [f"{x}:{'' if right is None else right}" for x in sorted({0, 1, 2, left // 2, left - 1}) if 0 <= x < left]
    if right is not None:
        texts += [f"{'' if left is None else left}:{x}" for x in sorted({0, 1, 2, right // 2, right - 1}) if 0 <= x < right]
    yield from ({"window": text} for text in dict.fromkeys(texts) if text not in (case.window, ":"))


def window_clause(case: Case, failing: Failing) -> str:
    """Of a window, by what is beside it and by what is wrong."""
    if case.window == "none":
        return ""
    if failing.has_empty and not failing.gradient and failing.kind != "raised":
        return "WINDOW-8"
    if failing.gradient and failing.kind == "zero":
        return "WINDOW-9"
    if case.causal or case.mask != "none" or (case.bias != "none" and case.biases == "inf"):
        return "WINDOW-7"
    if case.i != case.keys:
        return "WINDOW-6"
    left, right = meant(case.window) or (None, None)
    if max(left or 0, right or 0) >= case.keys:
        return "WINDOW-11"
    return "WINDOW-1"


def other_window(case: Case) -> Mapping[str, Changes]:
    """With a window, without it, and with another."""
    if case.window == "none":
        return {"with a window": {"window": "1:0"}}
    return {"with another window": {"window": "2:1" if case.window != "2:1" else "1:0"}, "without its window": {"window": "none"}}


# The shortest with a past, one whose sides differ, the query alone, one without an end on each side, one longer than a block,
# and two that are longer than many of the keys: on both sides, and behind alone.
WINDOW = Factor(
    "window",
    ("none", "1:0", "2:1", "0:0", "3:", ":1", "17:3", "100:200", ":40"),
    array="window",
    reads=read_window,
    given=lambda case: meant(case.window),
    found=written,
    needs="window",
    rule=offered,
    examples={"window": "1:", "window_right": "1:0"},
    turn=52,
    simpler=simpler,
    says=in_words,
    traits={"window": lambda case: case.window != "none"},
    flags={"windowed": lambda case: case.window != "none"},  # a window is given
    conditions=("windowed",),
    option=True,
    probed=True,
    another=("2:1", "1:0"),
    otherwise=other_window,
    blames={25: window_clause},
)
