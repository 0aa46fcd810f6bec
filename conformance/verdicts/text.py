"""Foreign text (messages, names, what a file holds) as it may stand in a terminal, a page or a script."""

from __future__ import annotations

import unicodedata

# Control characters, what turns the direction of a line or is not seen, lone surrogates, and what ends a line.
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: object, keep: str = "") -> str:
    r"""One line: what a terminal would obey is written out, ESC as \x1b and a newline as \n. Characters in `keep` stay."""
    said = str(text)
    if said.isprintable():
        return said
    return "".join(c if c in keep or unicodedata.category(c) not in HIDDEN else ascii(c)[1:-1] for c in said)


def quoted(text: object) -> str:
    """One line for a docstring of Python, which it neither ends nor breaks."""
    return visible(text).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


def times(x: float, digits: int = 3) -> str:
    """A ratio in a few digits: 0.12, 4.71, 115,000. One with too many zeros has a power of ten."""
    if x == float("inf"):
        return "∞"
    shown = f"{x:.{digits}g}"
    return f"{float(shown):,.0f}" if 10 ** (digits - 1) <= abs(x) < 1e9 else shown
